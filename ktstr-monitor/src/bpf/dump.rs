//! The whole BPF state at once, as a section of a failure dump: text for people, JSON for machines.
//!
//! The schema of the JSON is in `docs/bpf-state.md`. What could not be read stands where it would have
//! been, with the reason; what a limit left out is counted.

use std::fmt::Write;

use ktstr_proto::link::chain;
use serde_json::{Value as Json, json};

use super::follow::Follow;
use super::map::{Cell, Entries, Entry, Key, Limits, MapInfo, MapKind, Owner};
use super::path::Path;
use super::pick::{of_scheduler, the_map};
use super::program::ProgramInfo;
use super::reader::{BpfError, Reader};
use super::write::{Located, WriteError};
use crate::cast;
use crate::render::{Options, Renderer, Value, to_json, to_text};
use crate::types::{Ty, TypeRef};

/// Values in a whole dump, at most.
const MAX_NODES: usize = 2_000_000;

/// Pages of arenas that are copied while a guest stands: 64 MiB.
const MAX_ARENA_PAGES: usize = 16 << 10;

/// All programs and maps.
#[derive(Debug)]
pub struct BpfState {
    /// Programs, by number.
    pub programs: Vec<ProgramDump>,
    /// Maps, by number.
    pub maps: Vec<MapDump>,
    /// Numbers that programs use as pointers: the place, and what it points at.
    pub casts: Vec<(String, String)>,
    /// Allocators of slots in arenas: the variable, and what is known of it.
    pub allocators: Vec<(String, String)>,
    /// What could not be read at all.
    pub damage: Vec<String>,
}

/// A program.
#[derive(Debug)]
pub struct ProgramDump {
    /// What is known of it.
    pub info: ProgramInfo,
}

/// A map with its contents.
#[derive(Debug)]
pub struct MapDump {
    /// Its header.
    pub info: MapInfo,
    /// Whether the running scheduler's programs use it.
    pub of_scheduler: bool,
    /// Its entries: key, CPU, value.
    pub entries: Vec<(String, Option<u32>, Value)>,
    /// How many were left off.
    pub left_off: u64,
    /// For an arena: its pages, as ranges of page numbers.
    pub pages: Vec<std::ops::Range<u64>>,
    /// What could not be read.
    pub damage: Vec<String>,
}

/// How much goes into a dump.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpOptions {
    /// Of each map.
    pub limits: Limits,
    /// Of each value.
    pub render: Options,
}

impl BpfState {
    /// Reads everything. The guest should be stopped.
    pub fn read(reader: &Reader<'_>, options: DumpOptions) -> Self {
        let mut state = Self {
            programs: Vec::new(),
            maps: Vec::new(),
            casts: Vec::new(),
            allocators: Vec::new(),
            damage: Vec::new(),
        };
        let programs = state.walk(reader.programs());
        let maps = state.walk(reader.maps());
        let follow = follow_all(reader, &programs, &maps);
        state.casts = follow.told();
        state.allocators = follow.allocators();
        let own = of_scheduler(reader, &maps, &programs);
        let mut nodes = MAX_NODES;
        for map in maps {
            let mut options = options;
            options.render.nodes = options.render.nodes.min(nodes);
            let (mut dump, used) = dump_map(reader, map, &follow, options);
            dump.of_scheduler = own.contains(&dump.info.at);
            nodes = nodes.saturating_sub(used);
            state.maps.push(dump);
        }
        state.programs = programs.into_iter().map(|info| ProgramDump { info }).collect();
        state
    }

    /// Reads what [`BpfState::read`] will read, so that it is copied; the guest stands meanwhile.
    pub fn touch(reader: &Reader<'_>, options: DumpOptions) {
        let programs = reader.programs().map(|walk| walk.items).unwrap_or_default();
        for program in &programs {
            // What cannot be read is said when it is asked for.
            let _ = reader.instructions(program);
        }
        let maps = reader.maps().map(|walk| walk.items).unwrap_or_default();
        let mut pages = MAX_ARENA_PAGES;
        for map in &maps {
            let _ = reader.entries_shortly(map, options.limits);
            if map.kind == MapKind::Arena
                && let Ok(arena) = reader.arena(map)
            {
                for page in reader.arena_pages(map, &arena).into_iter().flatten() {
                    let Some(left) = pages.checked_sub(1) else { break };
                    pages = left;
                    reader.mem.touch(arena.page(page), 4096);
                }
            }
        }
        drop(of_scheduler(reader, &maps, &programs));
        drop(Follow::new(reader, &maps));
    }

    fn walk<T>(&mut self, walked: Result<super::Walk<T>, BpfError>) -> Vec<T> {
        match walked {
            Ok(walk) => {
                self.damage.extend(walk.damage.iter().map(chained));
                walk.items
            }
            Err(error) => {
                self.damage.push(chained(&error));
                Vec::new()
            }
        }
    }

    /// The first map that `name` means.
    pub fn map(&self, name: &str) -> Option<&MapDump> {
        self.maps.iter().find(|map| map.info.is_called(name))
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for program in &self.programs {
            writeln!(text, "{}", program_text(&program.info)).expect("writing to a string");
        }
        for map in &self.maps {
            text.push_str(&map.to_text());
        }
        for (place, target) in &self.casts {
            writeln!(text, "cast {place} {target}").expect("writing to a string");
        }
        for (name, told) in &self.allocators {
            writeln!(text, "allocator {name}: {told}").expect("writing to a string");
        }
        for damage in &self.damage {
            writeln!(text, "! {damage}").expect("writing to a string");
        }
        text
    }

    /// For machines.
    pub fn to_json(&self) -> Json {
        let allocators: Vec<Json> =
            self.allocators.iter().map(|(name, told)| json!({"name": name, "told": told})).collect();
        let programs: Vec<Json> = self.programs.iter().map(|program| program_json(&program.info)).collect();
        let maps: Vec<Json> = self.maps.iter().map(MapDump::to_json).collect();
        let casts: Vec<Json> =
            self.casts.iter().map(|(place, target)| json!({"place": place, "target": target})).collect();
        json!({
            "schema": "ktstr.bpf/1",
            "programs": programs,
            "maps": maps,
            "casts": casts,
            "allocators": allocators,
            "damage": self.damage,
        })
    }
}

impl MapDump {
    /// For people.
    pub fn to_text(&self) -> String {
        let MapInfo { id, name, kind_name, key_size, value_size, max_entries, .. } = &self.info;
        let mut text = format!(
            "map {id} {name:?} {kind_name}: keys of {key_size}, values of {value_size} bytes, at most \
             {max_entries} entries\n"
        );
        for range in &self.pages {
            writeln!(text, "  pages {}..{}", range.start, range.end).expect("writing to a string");
        }
        for (key, cpu, value) in &self.entries {
            let cpu = cpu.map_or_else(String::new, |cpu| format!("@{cpu}"));
            match value {
                Value::Composite { members, .. } if self.info.is_section() => {
                    for (name, value) in members {
                        writeln!(text, "  {name} = {}", to_text(value, 2)).expect("writing to a string");
                    }
                }
                _ => writeln!(text, "  {key}{cpu} = {}", to_text(value, 2)).expect("writing to a string"),
            }
        }
        if self.left_off > 0 {
            writeln!(text, "  … {} more entries left off", self.left_off).expect("writing to a string");
        }
        for damage in &self.damage {
            writeln!(text, "  ! {damage}").expect("writing to a string");
        }
        text
    }

    /// For machines.
    pub fn to_json(&self) -> Json {
        let entries: Vec<Json> = self
            .entries
            .iter()
            .map(|(key, cpu, value)| json!({"key": key, "cpu": cpu, "value": to_json(value)}))
            .collect();
        let pages: Vec<Json> = self.pages.iter().map(|range| json!([range.start, range.end])).collect();
        json!({
            "id": self.info.id,
            "name": self.info.name,
            "address": self.info.at.to_string(),
            "type": self.info.kind_name,
            "key_size": self.info.key_size,
            "value_size": self.info.value_size,
            "max_entries": self.info.max_entries,
            "of_scheduler": self.of_scheduler,
            "key_type": self.info.key_type.as_ref().map(TypeRef::name),
            "value_type": self.info.value_type.as_ref().map(TypeRef::name),
            "entries": entries,
            "left_off": self.left_off,
            "arena_pages": pages,
            "damage": self.damage,
        })
    }
}

/// Everything there is to know about pointers: arenas, declarations, and what programs do.
pub fn follow_all<'r, 'a>(
    reader: &'r Reader<'a>,
    programs: &[ProgramInfo],
    maps: &[MapInfo],
) -> Follow<'r, 'a> {
    let mut follow = Follow::new(reader, maps);
    let find = || cast::of_guest(reader, programs, maps);
    let all = match reader.memory {
        Some(memory) => memory.casts(programs, find),
        None => find(),
    };
    for (set, casts) in all {
        follow.add_casts(&set, casts);
    }
    follow.find_allocators(maps);
    follow
}

/// What one query asks for: a map's contents, or one value in it.
#[derive(Debug)]
pub enum MapAnswer {
    /// All of it.
    Map(Box<MapDump>),
    /// One value.
    Value(Value),
}

/// Answers `map NAME [PATH]`. `None` for `name` means that no map is called so.
pub fn query(
    reader: &Reader<'_>,
    name: &str,
    path: Option<&Path>,
    options: DumpOptions,
) -> Result<Option<MapAnswer>, WriteError> {
    let maps = reader.maps()?.items;
    let programs = reader.programs()?.items;
    let follow = follow_all(reader, &programs, &maps);
    let Some(map) = the_map(reader, &maps, &programs, name)? else { return Ok(None) };
    let Some(path) = path else {
        let (mut dump, _) = dump_map(reader, map.clone(), &follow, options);
        dump.of_scheduler = of_scheduler(reader, &maps, &programs).contains(&map.at);
        return Ok(Some(MapAnswer::Map(Box::new(dump))));
    };
    let located = reader.locate(map, path, &follow)?;
    Ok(Some(MapAnswer::Value(reader.render(&located, &follow, options.render))))
}

impl Reader<'_> {
    /// What lies there, as its type says.
    pub fn render(&self, located: &Located, follow: &Follow<'_, '_>, options: Options) -> Value {
        let Located { at, place } = located;
        let mut renderer = Renderer::new(follow, options);
        let len = match place.bits {
            Some((low, width)) => (u64::from(low) + u64::from(width)).div_ceil(8),
            None => match place.ty.size() {
                Some(len) => len,
                None => return Value::Missing(format!("a {} has no size", place.ty.name())),
            },
        };
        match (self.bytes(*at, len, "a value"), place.bits) {
            (Err(error), _) => Value::Missing(chained(&error)),
            (Ok(bytes), Some((low, width))) => renderer.render_bits(&place.ty, &bytes, low, width),
            (Ok(bytes), None) => renderer.render(&place.ty, &bytes),
        }
    }
}

fn dump_map(
    reader: &Reader<'_>,
    info: MapInfo,
    follow: &Follow<'_, '_>,
    options: DumpOptions,
) -> (MapDump, usize) {
    let mut nodes = 0;
    let mut dump = MapDump {
        info,
        of_scheduler: false,
        entries: Vec::new(),
        left_off: 0,
        pages: Vec::new(),
        damage: Vec::new(),
    };
    let info = &dump.info;
    dump.damage.extend(info.types_missing.as_ref().map(chained));
    if info.kind == MapKind::Arena {
        match reader.arena(info) {
            Ok(arena) => dump.pages = reader.arena_pages(info, &arena),
            Err(error) => dump.damage.push(chained(&error)),
        }
    }
    match reader.entries_shortly(info, options.limits) {
        Ok(Entries { items, left_off, damage }) => {
            dump.left_off = left_off;
            let mut renderer = Renderer::new(follow, options.render);
            for entry in items {
                let key = key_text(info, &entry.key, follow);
                dump.entries.extend(cells(info, &key, &entry, &mut renderer));
            }
            nodes = renderer.nodes();
            dump.damage.extend(damage.iter().map(chained));
        }
        Err(error) => dump.damage.push(chained(&error)),
    }
    (dump, nodes)
}

fn cells(
    map: &MapInfo,
    key: &str,
    entry: &Entry,
    renderer: &mut Renderer<'_>,
) -> Vec<(String, Option<u32>, Value)> {
    let mut value = |cell: &Cell| match (&cell.bytes, &map.value_type) {
        (Err(error), _) => Value::Missing(chained(error)),
        (Ok(bytes), Some(ty)) => renderer.render(ty, bytes),
        (Ok(bytes), None) => Value::Bytes(bytes.clone()),
    };
    entry.cells.iter().map(|cell| (key.to_owned(), cell.cpu.map(|cpu| cpu.0), value(cell))).collect()
}

/// The key as a path may begin with it, and a word on what it is.
fn key_text(map: &MapInfo, key: &Key, follow: &Follow<'_, '_>) -> String {
    let shown =
        |text: Result<String, BpfError>| text.unwrap_or_else(|error| format!("<{}>", chained(&error)));
    match key {
        Key::Only => String::from("value"),
        Key::Index(index) => format!("[{index}]"),
        Key::Record { position, state } => format!("[{position}] {state}"),
        Key::Owner(Owner::Task { pid, comm, .. }) => {
            let pid = shown(pid.clone().map(|pid| pid.to_string()));
            format!("[{pid}] {:?}", shown(comm.clone()))
        }
        Key::Owner(Owner::Cgroup { id, name, .. }) => {
            let id = shown(id.clone().map(|id| id.to_string()));
            format!("[{id}] cgroup {:?}", shown(name.clone()))
        }
        Key::Owner(Owner::Object { at }) => format!("[{at}]"),
        Key::Bytes(bytes) => {
            let options = Options { follow: 0, ..Options::default() };
            let value = match &map.key_type {
                Some(ty) => Renderer::new(follow, options).render(ty, bytes),
                None => Value::Bytes(bytes.clone()),
            };
            format!("[{}]", to_text(&value, 2))
        }
    }
}

fn program_text(info: &ProgramInfo) -> String {
    let mut text = format!("prog {} {:?} {} tag {}", info.id, info.name, info.kind, info.tag_text());
    if let Some(to) = &info.attached_to {
        write!(text, " at {to}").expect("writing to a string");
    }
    write!(text, ": {} insns", info.insns).expect("writing to a string");
    match &info.verified_insns {
        Ok(verified) => write!(text, ", {verified} verified"),
        Err(error) => write!(text, ", verified <{}>", chained(error)),
    }
    .expect("writing to a string");
    match &info.stats {
        Ok(stats) => write!(text, ", {} runs, {} ns, {} misses", stats.runs, stats.nanos, stats.misses),
        Err(error) => write!(text, ", runs <{}>", chained(error)),
    }
    .expect("writing to a string");
    for damage in &info.damage {
        write!(text, " ! {}", chained(damage)).expect("writing to a string");
    }
    text
}

fn program_json(info: &ProgramInfo) -> Json {
    let stats = info.stats.as_ref().ok();
    let functions: Vec<Json> = info
        .functions
        .iter()
        .map(|function| {
            let name = function.ty.set.get(function.ty.id).map(|entry| entry.name.clone());
            let is_func = matches!(function.ty.set.ty(function.ty.id), Some(Ty::Func { .. }));
            json!({"start": function.start, "name": name.filter(|_| is_func)})
        })
        .collect();
    json!({
        "id": info.id,
        "name": info.name,
        "type": info.kind,
        "tag": info.tag_text(),
        "attached_to": info.attached_to,
        "insns": info.insns,
        "jited": info.jited,
        "sleepable": info.sleepable,
        "verified_insns": info.verified_insns.as_ref().ok(),
        "loaded_at_ns": info.loaded_at.as_ref().ok(),
        "runs": stats.map(|stats| stats.runs),
        "run_ns": stats.map(|stats| stats.nanos),
        "misses": stats.map(|stats| stats.misses),
        "functions": functions,
        "damage": info.damage.iter().map(chained).collect::<Vec<_>>(),
    })
}

fn chained(error: &BpfError) -> String {
    chain(error)
}
