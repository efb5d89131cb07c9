//! Structures of the kernel and of its modules, shown by their BTF: `struct rq runqueues@1 cfs.load`.
//!
//! | where | means |
//! |---|---|
//! | `0xffff…` | that address |
//! | `NAME`, `MODULE:NAME` | a variable of the kernel, of a module |
//! | `NAME@2` | a per-CPU variable on CPU 2 |
//! | `NAME[3]` | an element of an array of them |
//! | `123` | a task by its thread id, for `task_struct` only |
//!
//! The type is `NAME`, looked for in the kernel and then in its modules, or `MODULE:NAME`. Types of
//! modules are read out of guest memory: the guest says which modules it has, and what is in them.

use std::sync::Arc;

use ktstr_proto::capture::Structure;
use thiserror::Error;

use crate::addr::{CpuId, Kva};
use crate::bpf::path::{Path, PathError};
use crate::bpf::{BpfError, BpfLayout, Follow, Reader, WriteError, value_node};
use crate::kernel::module::{self, Module};
use crate::kernel::task::TaskReader;
use crate::kernel::{Gap, LiveKernel, Profile, View};
use crate::mem::GuestMem;
use crate::node::Node;
use crate::render::Options;
use crate::types::{Ty, TypeRef, TypeSet};

/// A longer name is none.
const MAX_NAME: usize = 512;
/// Pointers followed one after the other, at most: values grow by each.
const MAX_FOLLOW: u8 = 4;

/// Why a structure cannot be shown.
#[derive(Debug, Error)]
pub enum StructureError {
    /// It is no name of a place.
    #[error("`{at}` is no place: {what}")]
    Syntax {
        /// What was given.
        at: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No such type.
    #[error("neither the kernel nor a module has a structure `{name}`; modules with types: {modules}")]
    NoType {
        /// The type.
        name: String,
        /// The modules there are.
        modules: String,
    },
    /// No such module, or none with types.
    #[error("no loaded module `{module}` has types; those that have: {modules}")]
    NoModule {
        /// The module.
        module: String,
        /// The modules there are.
        modules: String,
    },
    /// No such variable.
    #[error("`{of}` has no variable `{name}`")]
    NoVariable {
        /// The module, or the kernel.
        of: String,
        /// The variable.
        name: String,
    },
    /// Each CPU has its own.
    #[error("`{name}` is per CPU: write {name}@CPU")]
    PerCpu {
        /// The variable.
        name: String,
    },
    /// There is only one, or no such CPU.
    #[error("`{name}` is no per-CPU variable, or there is no CPU {cpu}")]
    NoCpu {
        /// The variable.
        name: String,
        /// The CPU.
        cpu: u32,
    },
    /// No such task.
    #[error("the guest has no task {pid} now")]
    NoTask {
        /// The thread id.
        pid: i32,
    },
    /// Modules or tasks cannot be read.
    #[error("what leads to `{at}` cannot be read")]
    Read {
        /// What was given.
        at: String,
        /// Why not.
        #[source]
        source: Gap,
    },
    /// The types of modules cannot be read.
    #[error("the types of modules cannot be read")]
    Types(#[from] BpfError),
    /// There is no such place in the structure.
    #[error("`{path}` in {of}")]
    Path {
        /// The path.
        path: String,
        /// The type.
        of: String,
        /// Why not.
        #[source]
        source: WriteError,
    },
}

/// A BTF object of a module.
struct Types {
    module: String,
    set: Result<Arc<TypeSet>, BpfError>,
}

/// Shows the structure that is asked for.
pub fn answer(
    profile: &Profile,
    live: &LiveKernel,
    mem: &GuestMem,
    asked: &Structure,
) -> Result<Node, StructureError> {
    let layout = BpfLayout::of(profile.types());
    let reader = Reader::new(profile, live, live.view(mem), &layout);
    let view = View { profile, live, mem: live.view(mem) };
    let ty = find_type(&reader, &asked.of)?;
    let at = find_place(&view, asked, ty.size().unwrap_or(0))?;
    let steps = |text: &str| {
        let path: Path = text.parse()?;
        match (path.entry, path.cpu) {
            (None, None) => Ok(path.steps),
            _ => Err(PathError::NotArray { of: ty.name() }),
        }
    };
    let wrong = |path: &str, source| StructureError::Path { path: path.to_owned(), of: ty.name(), source };
    let steps = match &asked.path {
        Some(path) => steps(path).map_err(|e| wrong(path, e.into()))?,
        None => Vec::new(),
    };
    let follow = Follow::new(&reader, &[]);
    let found = reader.walk(at, &ty, None, &steps, &follow);
    let found = found.map_err(|e| wrong(asked.path.as_deref().unwrap_or_default(), e))?;
    let options =
        Options { follow: asked.follow.min(MAX_FOLLOW).into(), follow_kernel: true, ..Options::default() };
    let value = value_node(&reader.render(&found, &follow, options));
    Ok(Node::map([
        ("type", Node::Text(found.place.ty.name())),
        ("of", Node::Text(ty.set.label().to_owned())),
        ("at", found.at.into()),
        ("value", value),
    ]))
}

/// All modules, each with the number of its types.
pub fn modules(profile: &Profile, live: &LiveKernel, mem: &GuestMem) -> Node {
    let layout = BpfLayout::of(profile.types());
    let reader = Reader::new(profile, live, live.view(mem), &layout);
    let view = View { profile, live, mem: live.view(mem) };
    let types = of_modules(&reader);
    let node = |module: &Module| {
        let gap = |error: &BpfError| Node::Unreadable(ktstr_proto::link::chain(error));
        let own = match (&types, &module.name) {
            (Ok(types), Ok(name)) => types.iter().find(|types| types.module == *name),
            _ => None,
        };
        let count = match (own.map(|own| &own.set), &types) {
            (Some(Ok(set)), _) => set.ids().count().into(),
            (Some(Err(error)), _) | (None, Err(error)) => gap(error),
            (None, Ok(_)) => Node::Absent("it has no BTF".into()),
        };
        module.node().with("types", count)
    };
    crate::kernel::state::walk(&module::all(&view), node)
}

fn of_modules(reader: &Reader<'_>) -> Result<Vec<Types>, BpfError> {
    let own = reader.module_objects()?.into_iter();
    Ok(own.map(|(module, at)| Types { module, set: reader.object(at) }).collect())
}

fn find_type(reader: &Reader<'_>, name: &str) -> Result<TypeRef, StructureError> {
    let (module, name) = match name.split_once(':') {
        Some((module, name)) => (Some(module), name),
        None => (None, name),
    };
    let name = name.strip_prefix("struct ").unwrap_or(name);
    let kernel = reader.kernel_types();
    if matches!(module, None | Some("vmlinux"))
        && let Some(ty) = complete(kernel, name)
    {
        return Ok(ty);
    }
    let objects = of_modules(reader)?;
    let names = || objects.iter().map(|own| own.module.as_str()).collect::<Vec<_>>().join(", ");
    let no_type = || StructureError::NoType { name: name.to_owned(), modules: names() };
    let Some(module) = module else {
        let sets = objects.iter().filter_map(|own| own.set.as_ref().ok());
        return sets.into_iter().find_map(|set| complete(set, name)).ok_or_else(no_type);
    };
    let no_module = || StructureError::NoModule { module: module.to_owned(), modules: names() };
    let set = objects.iter().find(|own| own.module == module).ok_or_else(no_module)?.set.clone()?;
    // What a module shares with the kernel is in the kernel's types.
    complete(&set, name).or_else(|| complete(kernel, name)).ok_or_else(no_type)
}

/// A structure, union or typedef of that name.
fn complete(set: &Arc<TypeSet>, name: &str) -> Option<TypeRef> {
    let composite = set.composite(name).map(|(id, _)| id);
    let alias = || {
        let mut named = set.named(name).iter().copied();
        named.find(|id| matches!(set.strip(*id), Some((_, Ty::Composite(_)))))
    };
    composite.or_else(alias).map(|id| TypeRef::new(set, id))
}

pub(crate) fn find_place(view: &View<'_, '_>, asked: &Structure, size: u64) -> Result<Kva, StructureError> {
    let text = asked.at.as_str();
    let wrong = |what| StructureError::Syntax { at: text.chars().take(80).collect(), what };
    if text.len() > MAX_NAME {
        return Err(wrong("it is too long"));
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map(Kva).map_err(|_| wrong("no hexadecimal number"));
    }
    if text.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
        let pid = text.parse().map_err(|_| wrong("an address begins with 0x"))?;
        return match asked.of.trim_start_matches("struct ") {
            "task_struct" => task(view, pid),
            _ => Err(wrong("only a task_struct is found by a thread id; an address begins with 0x")),
        };
    }
    let (text, nth) = match text.strip_suffix(']').map(|text| text.rsplit_once('[')) {
        None => (text, 0),
        Some(Some((name, nth))) => (name, nth.parse().map_err(|_| wrong("an index is a number"))?),
        Some(None) => return Err(wrong("a bracket is not opened")),
    };
    let (name, cpu) = match text.split_once('@') {
        None => (text, None),
        Some((name, cpu)) => (name, Some(cpu.parse().map_err(|_| wrong("behind @ comes a CPU's number"))?)),
    };
    let at = match name.split_once(':') {
        Some((module, name)) => of_module(view, module, name)?,
        None => of_kernel(view, name)?,
    };
    let at = match cpu {
        None if is_per_cpu(view, at) => return Err(StructureError::PerCpu { name: name.to_owned() }),
        None => at,
        Some(cpu) => {
            let no_cpu = || StructureError::NoCpu { name: name.to_owned(), cpu };
            let area = view.live.cpus().iter().find(|area| area.cpu == CpuId(cpu));
            at.wrapping_add(area.filter(|_| is_per_cpu(view, at)).ok_or_else(no_cpu)?.offset)
        }
    };
    Ok(at.wrapping_add(size.wrapping_mul(nth)))
}

/// A module's per-CPU variables lie where none of the kernel's do, and are not told from others here.
fn is_per_cpu(view: &View<'_, '_>, at: Kva) -> bool {
    let bound = |symbol| view.symbol(symbol).ok();
    let (from, to) = (bound("__per_cpu_start"), bound("__per_cpu_end"));
    from.zip(to).is_some_and(|(from, to)| (from..to).contains(&at))
}

fn of_kernel(view: &View<'_, '_>, name: &str) -> Result<Kva, StructureError> {
    let no_variable = || StructureError::NoVariable { of: "the kernel".into(), name: name.to_owned() };
    view.profile.symbols().get(name).map(|link| view.live.at(link)).ok_or_else(no_variable)
}

fn of_module(view: &View<'_, '_>, module: &str, name: &str) -> Result<Kva, StructureError> {
    let read = |source| StructureError::Read { at: format!("{module}:{name}"), source };
    let loaded = module::all(view).items;
    let own = loaded.iter().find(|own| own.name.as_deref() == Ok(module));
    let named = || loaded.iter().filter_map(|own| own.name.as_deref().ok()).collect::<Vec<_>>().join(", ");
    let no_module = || StructureError::NoModule { module: module.to_owned(), modules: named() };
    let found = module::symbol(view, own.ok_or_else(no_module)?.at, name).map_err(read)?;
    found.ok_or_else(|| StructureError::NoVariable { of: module.to_owned(), name: name.to_owned() })
}

fn task(view: &View<'_, '_>, pid: i32) -> Result<Kva, StructureError> {
    let into = view.offset("task_struct", "pid");
    let into = into.map_err(|source| StructureError::Read { at: "task_struct.pid".into(), source })?;
    let is_it = |at: &Kva| view.mem.read_u32(at.wrapping_add(into)).is_ok_and(|own| own as i32 == pid);
    let found = TaskReader::new(view).addresses().items.into_iter().find(is_it);
    found.ok_or(StructureError::NoTask { pid })
}
