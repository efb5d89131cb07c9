//! Finds the bytes that somebody wants watched for writes, by the name he gives them.
//!
//! | written as | means |
//! |---|---|
//! | `scx_root->exit_kind` | a member of the running scheduler's `scx_sched` |
//! | `map.path`, `map[3].member`, `.bss.name` | a value in a BPF map, as in queries |
//! | `name`, `name.member`, `name[2]` | a global variable of a BPF program |
//! | `symbol` | the first four bytes of a kernel variable |
//!
//! A processor watches 1, 2, 4 or 8 aligned bytes at a virtual address. What user space or another
//! mapping of the same page writes is not seen.

use ktstr_proto::capture::{Located, WatchPoint};
use thiserror::Error;

use crate::addr::Kva;
use crate::bpf::follow_all;
use crate::bpf::path::Path;
use crate::bpf::{
    BpfError, BpfLayout, MapInfo, Reader, WriteError, of_scheduler as maps_of_scheduler, the_map,
};
use crate::kernel::{Gap, LiveKernel, Profile};
use crate::mem::GuestMem;
use crate::paging::AccessError;
use crate::render::NoDeref;
use crate::types::Ty;

/// A longer name is none.
const MAX_NAME: usize = 512;

/// Why there is nothing to watch.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// It is no name of anything.
    #[error("there is no kernel symbol, BPF map or global variable `{what}`; maps: {maps}")]
    Unknown {
        /// What was asked for.
        what: String,
        /// The maps there are.
        maps: String,
    },
    /// Several are called so.
    #[error("`{what}` is in several maps, {maps}: write MAP.{what}")]
    Ambiguous {
        /// What was asked for.
        what: String,
        /// Those maps.
        maps: String,
    },
    /// It is no path.
    #[error("`{what}` is too long")]
    TooLong {
        /// Its beginning.
        what: String,
    },
    /// A pointer of the kernel leads nowhere yet.
    #[error("`{symbol}` is NULL: no scheduler is loaded")]
    NoScheduler {
        /// The variable.
        symbol: &'static str,
    },
    /// Every CPU has its own.
    #[error("`{symbol}` is per CPU: what is watched has one address")]
    PerCpu {
        /// The variable.
        symbol: String,
    },
    /// More than a processor watches, or at an address that it does not.
    #[error("`{what}` is {len} bytes at {at}: watched are 1, 2, 4 or 8 bytes at a multiple of their number")]
    Size {
        /// What was asked for.
        what: String,
        /// Its length.
        len: u64,
        /// Where it lies.
        at: Kva,
    },
    /// This kernel has no such member.
    #[error("`{what}` cannot be found")]
    Member {
        /// What was asked for.
        what: String,
        /// Why not.
        #[source]
        source: Gap,
    },
    /// A pointer cannot be read.
    #[error("`{what}` cannot be read")]
    Read {
        /// What was read.
        what: &'static str,
        /// Why not.
        #[source]
        source: AccessError,
    },
    /// Which map is meant cannot be told.
    #[error("`{what}` may be in several maps")]
    Map {
        /// What was asked for.
        what: String,
        /// Which they are.
        #[source]
        source: WriteError,
    },
    /// Code is not written.
    #[error("`{symbol}` is code of the kernel: watched are variables")]
    Code {
        /// The symbol.
        symbol: String,
    },
    /// The maps cannot be read.
    #[error("BPF maps cannot be read")]
    Maps(#[from] BpfError),
    /// There is no such place in the map.
    #[error("`{path}` in map {map}")]
    Path {
        /// The map.
        map: String,
        /// The path.
        path: String,
        /// Why not.
        #[source]
        source: WriteError,
    },
}

/// Finds `what`.
pub fn find(profile: &Profile, live: &LiveKernel, mem: &GuestMem, what: &str) -> Result<Located, PlaceError> {
    if what.len() > MAX_NAME {
        return Err(PlaceError::TooLong { what: what.chars().take(40).collect() });
    }
    if let Some(member) = what.strip_prefix("scx_root->") {
        return of_scheduler(profile, live, mem, member);
    }
    let layout = BpfLayout::of(profile.types());
    let reader = Reader::new(profile, live, live.view(mem), &layout);
    match in_maps(&reader, what)? {
        Some(located) => Ok(located),
        None => symbol(profile, live, what)?.ok_or_else(|| {
            let maps = reader.maps().map(|walk| walk.items).unwrap_or_default();
            let maps: Vec<&str> = maps.iter().map(|map| map.name.as_str()).collect();
            let maps = if maps.is_empty() { "none yet".to_owned() } else { maps.join(", ") };
            PlaceError::Unknown { what: what.to_owned(), maps }
        }),
    }
}

/// The value there, as a number.
pub fn value(live: &LiveKernel, mem: &GuestMem, place: WatchPoint) -> Option<u64> {
    let mut bytes = [0; 8];
    let into = bytes.get_mut(..usize::from(place.len))?;
    live.view(mem).read(Kva(place.kva), into).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// The value there, if `what` still names the place: memory of a scheduler that is gone is somebody else's.
pub fn value_while_called(
    profile: &Profile,
    live: &LiveKernel,
    mem: &GuestMem,
    what: &str,
    place: WatchPoint,
) -> Option<u64> {
    let is_there = || find(profile, live, mem, what).is_ok_and(|located| located.place == place);
    if !is_there() {
        return None;
    }
    let value = value(live, mem, place)?;
    // The guest runs: what was freed meanwhile may have been used again before it was read.
    is_there().then_some(value)
}

fn located(what: &str, at: Kva, len: u64, found: String, of_scheduler: bool) -> Result<Located, PlaceError> {
    let place = WatchPoint { kva: at.0, len: u8::try_from(len).unwrap_or(u8::MAX) };
    match place.is_possible() {
        true => Ok(Located { place, found, of_scheduler }),
        false => Err(PlaceError::Size { what: what.to_owned(), len, at }),
    }
}

fn of_scheduler(
    profile: &Profile,
    live: &LiveKernel,
    mem: &GuestMem,
    member: &str,
) -> Result<Located, PlaceError> {
    const SYMBOL: &str = "scx_root";
    let what = format!("{SYMBOL}->{member}");
    let absent = |source| PlaceError::Member { what: what.clone(), source };
    let no_symbol = || absent(Gap::NoSymbol { symbol: SYMBOL });
    let slot = live.at(profile.symbols().get(SYMBOL).ok_or_else(no_symbol)?);
    let read = |source| PlaceError::Read { what: SYMBOL, source };
    let root = live.view(mem).read_u64(slot).map_err(read)?;
    if root == 0 {
        return Err(PlaceError::NoScheduler { symbol: SYMBOL });
    }
    let field = profile.types().field("scx_sched", member).map_err(|e| absent(Gap::Absent(e)))?;
    let at = Kva(root).wrapping_add(field.offset);
    located(&what, at, field.size, format!("{member} of the running scheduler's scx_sched"), true)
}

fn symbol(profile: &Profile, live: &LiveKernel, what: &str) -> Result<Option<Located>, PlaceError> {
    let symbols = profile.symbols();
    let Some(link) = symbols.get(what) else { return Ok(None) };
    if let (Some(from), Some(to)) = (symbols.get("__per_cpu_start"), symbols.get("__per_cpu_end"))
        && (from..to).contains(&link)
    {
        return Err(PlaceError::PerCpu { symbol: what.to_owned() });
    }
    if let (Some(from), Some(to)) = (symbols.get("_stext"), symbols.get("_etext"))
        && (from..to).contains(&link)
    {
        return Err(PlaceError::Code { symbol: what.to_owned() });
    }
    let at = live.at(link);
    let len = if at.0.is_multiple_of(4) { 4 } else { 1 };
    located(what, at, len, format!("kernel symbol {what}"), false).map(Some)
}

/// In the map whose name `what` begins with, or in the sections that have a variable of that name.
fn in_maps(reader: &Reader<'_>, what: &str) -> Result<Option<Located>, PlaceError> {
    let maps = reader.maps()?.items;
    let programs = reader.programs()?.items;
    let splits = what.char_indices().filter(|(at, c)| *at > 0 && matches!(c, '.' | '[')).map(|(at, _)| at);
    let mut splits: Vec<usize> = splits.collect();
    splits.reverse();
    for at in splits {
        let (name, rest) = what.split_at(at);
        let wrong = |source| PlaceError::Map { what: what.to_owned(), source };
        if let Some(map) = the_map(reader, &maps, &programs, name).map_err(wrong)? {
            return in_map(reader, &maps, map, rest.strip_prefix('.').unwrap_or(rest), what).map(Some);
        }
    }
    let variable = what.split(['.', '[', '-']).next().unwrap_or(what);
    let mut holding: Vec<&MapInfo> = maps.iter().filter(|map| holds(map, variable)).collect();
    if holding.len() > 1 {
        let own = maps_of_scheduler(reader, &maps, &programs);
        let owned: Vec<&MapInfo> = holding.iter().copied().filter(|map| own.contains(&map.at)).collect();
        holding = if owned.len() == 1 { owned } else { holding };
    }
    match holding[..] {
        [] => Ok(None),
        [map] => in_map(reader, &maps, map, what, what).map(Some),
        _ => {
            let maps = holding.iter().map(|map| format!("{} (id {})", map.name, map.id)).collect::<Vec<_>>();
            Err(PlaceError::Ambiguous { what: what.to_owned(), maps: maps.join(", ") })
        }
    }
}

/// Whether it is a section of variables with one of that name.
fn holds(map: &MapInfo, variable: &str) -> bool {
    let Some(ty) = map.value_type.as_ref().filter(|_| map.is_section()) else { return false };
    let Some(Ty::Section { vars, .. }) = ty.set.ty(ty.id) else { return false };
    vars.iter().any(|var| ty.set.get(var.var).is_some_and(|entry| entry.name == variable))
}

fn in_map(
    reader: &Reader<'_>,
    maps: &[MapInfo],
    map: &MapInfo,
    path: &str,
    what: &str,
) -> Result<Located, PlaceError> {
    let wrong = |source| PlaceError::Path { map: map.name.clone(), path: path.to_owned(), source };
    let parsed: Path = path.parse().map_err(|e| wrong(WriteError::from(e)))?;
    let located_there = match path.contains("->") {
        false => reader.locate(map, &parsed, &NoDeref),
        true => reader.locate(map, &parsed, &follow_all(reader, &reader.programs()?.items, maps)),
    };
    let there = located_there.map_err(wrong)?;
    let len = match there.place.bits {
        Some((low, width)) => (u64::from(low) + u64::from(width)).div_ceil(8),
        None => there.place.ty.size().unwrap_or(0),
    };
    let found = format!("{path} in map {}, a {}", map.name, there.place.ty.name());
    located(what, there.at, len, found, true)
}
