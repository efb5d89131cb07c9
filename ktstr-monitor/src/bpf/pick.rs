//! Which of several maps of one name is meant: the running scheduler's, or none without its number.
//!
//! `.bss` is the end of every object's name for its variables, and a scheduler that was started again leaves the
//! maps of the one before for a while. The running one's are those that the programs of its `struct_ops` use: the
//! kernel keeps a copy of that table in `scx_sched.ops`, so its trampolines tell whose it is.

use std::collections::HashSet;

use super::map::{MapInfo, MapKind};
use super::program::ProgramInfo;
use super::reader::{BpfError, Reader};
use super::write::WriteError;
use crate::addr::Kva;
use crate::kernel::Gap;

/// A table of functions is not longer.
const MAX_OPS: u64 = 4096;

/// The map that `name` means: the one of this very name, else the one that ends or begins so; among several
/// the running scheduler's. `#7` is the map of that number. `None` where no map is called so.
pub fn the_map<'m>(
    reader: &Reader<'_>,
    maps: &'m [MapInfo],
    programs: &[ProgramInfo],
    name: &str,
) -> Result<Option<&'m MapInfo>, WriteError> {
    if let Some(id) = name.strip_prefix('#').and_then(|id| id.parse::<u32>().ok()) {
        return Ok(maps.iter().find(|map| map.id == id));
    }
    let exact: Vec<&MapInfo> = maps.iter().filter(|map| map.name == name).collect();
    let called = || maps.iter().filter(|map| map.is_called(name)).collect();
    let meant: Vec<&MapInfo> = if exact.is_empty() { called() } else { exact };
    if let [] | [_] = meant[..] {
        return Ok(meant.first().copied());
    }
    let own = of_scheduler(reader, maps, programs);
    let mut owned = meant.iter().filter(|map| own.contains(&map.at));
    match (owned.next(), owned.next()) {
        (Some(map), None) => Ok(Some(map)),
        _ => Err(WriteError::Ambiguous {
            name: name.to_owned(),
            maps: meant.iter().map(|map| format!("#{} {}", map.id, map.name)).collect(),
        }),
    }
}

/// Where the maps are that the running scheduler's programs use; none where no scheduler runs, or where it
/// cannot be told.
pub fn of_scheduler(reader: &Reader<'_>, maps: &[MapInfo], programs: &[ProgramInfo]) -> HashSet<Kva> {
    let Ok(running) = reader.running_functions() else { return HashSet::new() };
    let tables = maps.iter().filter(|map| map.kind == MapKind::StructOps);
    let tables = tables.filter_map(|map| reader.struct_ops_programs(map).ok());
    let own: HashSet<Kva> = tables
        .filter(|table| table.iter().any(|(function, _)| running.contains(function)))
        .flat_map(|table| table.into_iter().map(|(_, program)| program))
        .collect();
    let programs = programs.iter().filter(|program| own.contains(&program.at));
    programs.flat_map(|program| program.maps.iter().copied()).collect()
}

impl Reader<'_> {
    /// The words of the running scheduler's table of functions.
    fn running_functions(&self) -> Result<HashSet<u64>, BpfError> {
        let symbol = "scx_root";
        let link = self.profile.symbols().get(symbol).ok_or(Gap::NoSymbol { symbol })?;
        let root = self.word(self.live.at(link), symbol)?;
        if root == 0 {
            return Err(Gap::Nothing { why: "no scheduler is loaded" }.into());
        }
        let ops = self.profile.types().field("scx_sched", "ops").map_err(Gap::Absent)?;
        let at = Kva(root).wrapping_add(ops.offset);
        let bytes = self.bytes(at, ops.size.min(MAX_OPS), "scx_sched.ops")?;
        let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        Ok(words.filter(|word| *word != 0).collect())
    }
}
