//! Loaded modules and their symbols (`include/linux/module.h`, `kernel/module/kallsyms.c`).
//!
//! A module keeps its own symbol table in memory; addresses in it are those of the running kernel, not
//! link addresses. Which symbols there are is the kernel's choice (`CONFIG_KALLSYMS_ALL`). The types
//! of a module are BTF objects of their own, see [`crate::structure`].

use super::list::{self, Walk, container};
use super::value::{Gap, Reading};
use super::view::View;
use crate::addr::Kva;
use crate::node::Node;

/// More modules than any guest loads.
const MAX_MODULES: usize = 4096;
/// `MODULE_NAME_LEN` is 56.
const MAX_NAME: usize = 64;
/// `KSYM_NAME_LEN` is 512.
const MAX_SYMBOL: usize = 512;
/// The largest modules have some ten thousand.
const MAX_SYMBOLS: u32 = 500_000;
/// Bytes of an `Elf64_Sym`: name, info, other, section, value, size.
const SYMBOL: usize = 24;

/// A loaded module.
#[derive(Clone, Debug)]
pub struct Module {
    /// Where its `struct module` lies.
    pub at: Kva,
    /// Its name, with `_` for `-`.
    pub name: Reading<String>,
    /// `live`, `coming`, `going`, `unformed`.
    pub state: Reading<String>,
    /// How many symbols it has.
    pub symbols: Reading<u32>,
}

/// All modules, the newest first, as in `/proc/modules`.
pub fn all(view: &View<'_, '_>) -> Walk<Module> {
    let list = "modules";
    let start = || Ok::<_, Gap>((view.symbol(list)?, view.offset("module", "list")?));
    let (head, into) = match start() {
        Ok(start) => start,
        Err(gap) => return Walk::none(list, gap),
    };
    list::list_head(&view.mem, list, head, MAX_MODULES).map(|node| read(view, container(node, into)))
}

fn read(view: &View<'_, '_>, at: Kva) -> Module {
    let name = || {
        let at = at.wrapping_add(view.offset("module", "name")?);
        Ok(view.string(at, MAX_NAME, "module.name")?.unwrap_or_default())
    };
    Module { at, name: name(), state: state(view, at), symbols: table(view, at).map(|table| table.count) }
}

fn state(view: &View<'_, '_>, module: Kva) -> Reading<String> {
    let what = "module.state";
    let at = module.wrapping_add(view.offset("module", "state")?);
    let value = view.mem.read_u32(at).map_err(|source| Gap::Unreadable { what, source })?;
    let all = view.enumerators("module_state")?;
    let found = all.iter().find(|(_, own)| *own == i64::from(value));
    let (name, _) = found.ok_or(Gap::Implausible { what, value: value.into() })?;
    Ok(name.trim_start_matches("MODULE_STATE_").to_lowercase())
}

/// Where a module's symbols are.
struct Table {
    symbols: Kva,
    names: Kva,
    count: u32,
}

fn table(view: &View<'_, '_>, module: Kva) -> Reading<Table> {
    let what = "module.kallsyms";
    let table = list::pointer(&view.mem, module.wrapping_add(view.offset("module", "kallsyms")?), what)?;
    let member = |name| Ok::<_, Gap>(table.wrapping_add(view.offset("mod_kallsyms", name)?));
    let count = view
        .mem
        .read_u32(member("num_symtab")?)
        .map_err(|source| Gap::Unreadable { what: "mod_kallsyms.num_symtab", source })?;
    if count > MAX_SYMBOLS {
        return Err(Gap::Implausible { what: "mod_kallsyms.num_symtab", value: count.into() });
    }
    Ok(Table {
        symbols: list::pointer(&view.mem, member("symtab")?, "mod_kallsyms.symtab")?,
        names: list::pointer(&view.mem, member("strtab")?, "mod_kallsyms.strtab")?,
        count,
    })
}

/// Where the symbol of the module at `module` lies; none when it has no such symbol.
pub fn symbol(view: &View<'_, '_>, module: Kva, name: &str) -> Reading<Option<Kva>> {
    let table = table(view, module)?;
    let mut bytes = vec![0; table.count as usize * SYMBOL];
    let unreadable = |what| move |source| Gap::Unreadable { what, source };
    view.mem.read(table.symbols, &mut bytes).map_err(unreadable("mod_kallsyms.symtab"))?;
    for symbol in bytes.as_chunks::<SYMBOL>().0 {
        let [n0, n1, n2, n3, ..] = *symbol;
        let at = table.names.wrapping_add(u32::from_le_bytes([n0, n1, n2, n3]).into());
        let own = view.mem.read_string(at, MAX_SYMBOL).map_err(unreadable("mod_kallsyms.strtab"))?;
        if own == name {
            let [_, _, _, _, _, _, _, _, value @ .., _, _, _, _, _, _, _, _] = *symbol;
            return Ok(Some(Kva(u64::from_le_bytes(value))));
        }
    }
    Ok(None)
}

impl Module {
    /// Everything.
    pub fn node(&self) -> Node {
        Node::map([
            ("name", Node::reading(&self.name, |name| name.as_str().into())),
            ("state", Node::reading(&self.state, |state| state.as_str().into())),
            ("symbols", Node::reading(&self.symbols, |count| (*count).into())),
        ])
        .with("at", self.at.into())
    }
}
