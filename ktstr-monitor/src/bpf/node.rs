//! BPF state as a [`Node`], for the questions `map NAME [PATH]` and `bpf`, and for captures.

use ktstr_proto::link::chain;

use super::dump::{BpfState, MapAnswer, MapDump, follow_all, query};
use super::layout::BpfLayout;
use super::map::MapInfo;
use super::path::Path;
use super::pick::the_map;
use super::program::ProgramInfo;
use super::reader::Reader;
use super::write::Writer;
use crate::addr::Kva;
use crate::kernel::{LiveKernel, Profile};
use crate::mem::{GuestMem, GuestMemMut};
use crate::node::Node;
use crate::render::{Pointer, Run, Target, Value};

/// Elements of an array that are listed one by one; longer ones by runs of equal elements.
const LISTED: u64 = 64;

/// Answers `map NAME [PATH]`; the reason, where there is no answer.
pub fn answer_map(
    profile: &Profile,
    live: &LiveKernel,
    mem: &GuestMem,
    name: &str,
    path: Option<&str>,
) -> Result<Node, String> {
    let path = path.map(str::parse::<Path>).transpose().map_err(|error| chain(&error))?;
    let layout = BpfLayout::of(profile.types());
    let reader = Reader::new(profile, live, live.view(mem), &layout);
    match query(&reader, name, path.as_ref(), Default::default()).map_err(|error| chain(&error))? {
        Some(MapAnswer::Map(map)) => Ok(map_node(&map)),
        Some(MapAnswer::Value(value)) => Ok(value_node(&value)),
        None => Err(no_map(name, &reader.maps().map(|walk| walk.items).unwrap_or_default())),
    }
}

/// Sets the number at `path` in the map `name`; the reason, where it cannot be. Returns where it was.
pub fn set_number(
    profile: &Profile,
    live: &LiveKernel,
    mem: &GuestMemMut,
    name: &str,
    path: &str,
    value: i128,
) -> Result<Kva, String> {
    let path: Path = path.parse().map_err(|error| chain(&error))?;
    let layout = BpfLayout::of(profile.types());
    let reader = Reader::new(profile, live, live.view(mem.read()), &layout);
    let maps = reader.maps().map_err(|error| chain(&error))?.items;
    let programs = reader.programs().map_err(|error| chain(&error))?.items;
    let meant = the_map(&reader, &maps, &programs, name).map_err(|error| chain(&error))?;
    let Some(map) = meant else { return Err(no_map(name, &maps)) };
    let follow = follow_all(&reader, &programs, &maps);
    let written = Writer::new(&reader, mem).write_field(map, &path, value, &follow);
    written.map(|located| located.at).map_err(|error| chain(&error))
}

fn no_map(name: &str, maps: &[MapInfo]) -> String {
    let names: Vec<&str> = maps.iter().map(|map| map.name.as_str()).collect();
    format!("no map is called {name:?}; there are {}", names.join(", "))
}

/// All programs and maps.
pub fn answer_all(profile: &Profile, live: &LiveKernel, mem: &GuestMem) -> Node {
    let layout = BpfLayout::of(profile.types());
    let reader = Reader::new(profile, live, live.view(mem), &layout);
    state_node(&BpfState::read(&reader, Default::default()))
}

/// All programs and maps, as they were read.
pub fn state_node(state: &BpfState) -> Node {
    let cast = |(place, target): &(String, String)| {
        Node::map([("place", Node::Text(place.clone())), ("target", Node::Text(target.clone()))])
    };
    let allocator = |(name, told): &(String, String)| {
        Node::map([("name", Node::Text(name.clone())), ("told", Node::Text(told.clone()))])
    };
    Node::map([
        ("programs", Node::List(state.programs.iter().map(|program| program_node(&program.info)).collect())),
        ("maps", Node::List(state.maps.iter().map(map_node).collect())),
        ("casts", Node::List(state.casts.iter().map(cast).collect())),
        ("allocators", Node::List(state.allocators.iter().map(allocator).collect())),
        ("damage", texts(&state.damage)),
    ])
}

fn texts(list: &[String]) -> Node {
    Node::List(list.iter().map(|text| Node::Unreadable(text.clone())).collect())
}

fn program_node(info: &ProgramInfo) -> Node {
    let counted = |count: Result<u64, String>| match count {
        Ok(count) => Node::Int(count.into()),
        Err(why) => Node::Unreadable(why),
    };
    let stats = info.stats.as_ref().map_err(|error| chain(error));
    let verified = info.verified_insns.as_ref().map_err(|error| chain(error));
    Node::map([
        ("id", Node::Int(info.id.into())),
        ("name", Node::Text(info.name.clone())),
        ("type", Node::Text(info.kind.clone())),
        ("tag", Node::Text(info.tag_text())),
        ("attached_to", info.attached_to.clone().map_or(Node::Null, Node::Text)),
        ("insns", Node::Int(info.insns.into())),
        ("verified_insns", counted(verified.map(|count| u64::from(*count)))),
        ("runs", counted(stats.clone().map(|stats| stats.runs))),
        ("run_ns", counted(stats.clone().map(|stats| stats.nanos))),
        ("misses", counted(stats.map(|stats| stats.misses))),
    ])
}

fn map_node(map: &MapDump) -> Node {
    let entries = map.entries.iter().map(|(key, cpu, value)| {
        let entry = Node::map([("key", Node::Text(key.clone()))]);
        let entry = match cpu {
            Some(cpu) => entry.with("cpu", Node::Int((*cpu).into())),
            None => entry,
        };
        entry.with("value", value_node(value))
    });
    let pages = map.pages.iter().map(|range| Node::Text(format!("{}..{}", range.start, range.end)));
    Node::map([
        ("id", Node::Int(map.info.id.into())),
        ("name", Node::Text(map.info.name.clone())),
        ("type", Node::Text(map.info.kind_name.clone())),
        ("address", Node::Hex(map.info.at.0)),
        ("max_entries", Node::Int(map.info.max_entries.into())),
        ("of_scheduler", Node::Bool(map.of_scheduler)),
        ("entries", Node::List(entries.collect())),
        ("left_off", Node::Int(map.left_off.into())),
        ("arena_pages", Node::List(pages.collect())),
        ("damage", texts(&map.damage)),
    ])
}

/// A value; members of anonymous structures stand among their neighbours.
pub fn value_node(value: &Value) -> Node {
    match value {
        Value::Unsigned(value) => Node::Int((*value).into()),
        Value::Signed(value) => Node::Int((*value).into()),
        Value::Bool(value) => Node::Bool(*value),
        Value::Float(value) => Node::Float(*value),
        Value::Char(byte) => Node::Int((*byte).into()),
        Value::Enum { raw, names } if names.is_empty() => Node::Int(*raw),
        Value::Enum { names, .. } => Node::Text(names.join("|")),
        Value::Text(text) => Node::Text(text.clone()),
        Value::Cpus(ranges) => {
            let range = |(first, last): &(u32, u32)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            Node::Text(ranges.iter().map(range).collect::<Vec<_>>().join(","))
        }
        Value::Bytes(bytes) => Node::Text(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        Value::Pointer(pointer) => pointer_node(pointer),
        Value::Array { runs, left_off } => array_node(runs, *left_off),
        Value::Composite { members, .. } => {
            let mut all = Vec::new();
            for (name, value) in members {
                match value_node(value) {
                    Node::Map(inner) if name.is_empty() => all.extend(inner),
                    node => all.push((name.clone().into(), node)),
                }
            }
            Node::Map(all)
        }
        Value::Missing(why) => Node::Unreadable(why.clone()),
    }
}

fn array_node(runs: &[Run], left_off: u64) -> Node {
    let len: u64 = runs.iter().map(|run| run.count).sum();
    if len <= LISTED && left_off == 0 {
        let each = runs.iter().flat_map(|run| (0..run.count).map(|_| value_node(&run.value)));
        return Node::List(each.collect());
    }
    let named = runs.iter().map(|run| {
        let name = match run.count {
            1 => format!("[{}]", run.first),
            count => format!("[{}..{}]", run.first, run.first + count - 1),
        };
        (name.into(), value_node(&run.value))
    });
    let mut all: Vec<_> = named.collect();
    if left_off > 0 {
        all.push(("left_off".into(), Node::Int(left_off.into())));
    }
    Node::Map(all)
}

fn pointer_node(pointer: &Pointer) -> Node {
    if pointer.raw == 0 {
        return Node::Null;
    }
    let head = || {
        let node = Node::map([("address", Node::Hex(pointer.raw)), ("to", Node::Text(pointer.to.clone()))]);
        let node = if pointer.cast { node.with("cast", Node::Bool(true)) } else { node };
        match &pointer.slot {
            Some(slot) => node.with("sdt_alloc", Node::Text(slot.clone())),
            None => node,
        }
    };
    match &pointer.target {
        Target::None if pointer.cast => head(),
        Target::None => Node::Hex(pointer.raw),
        Target::Symbol(name) => Node::Text(name.clone()),
        Target::Cycle => head().with("cycle", Node::Bool(true)),
        Target::Lost(why) => head().with("value", Node::Unreadable(why.clone())),
        Target::Value(value) => head().with("value", value_node(value)),
    }
}
