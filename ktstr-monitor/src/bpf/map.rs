//! Maps: their headers, and their contents as cells of bytes.
//!
//! A cell is one value with the address it was copied from, so that what was found can also be
//! written. How entries are found differs by kind and has a file each; what was not read for lack of
//! room is counted, never dropped silently.

use std::fmt;
use std::sync::Arc;

use super::reader::{BpfError, Reader, Walk};
use crate::addr::{CpuId, Kva};
use crate::types::{Ty, TypeId, TypeRef, TypeSet};

/// `enum bpf_map_type` (uapi), as far as contents can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// One value per index.
    Array,
    /// One value per index and CPU.
    PerCpuArray,
    /// A value per key.
    Hash,
    /// A value per key and CPU.
    PerCpuHash,
    /// A hash that forgets the least recently used.
    LruHash,
    /// As `LruHash`, with values per CPU.
    LruPerCpuHash,
    /// Maps by index.
    ArrayOfMaps,
    /// Maps by key.
    HashOfMaps,
    /// A value per task.
    TaskStorage,
    /// A value per cgroup.
    CgroupStorage,
    /// A value per inode or socket.
    OtherStorage,
    /// A queue of records.
    Ringbuf,
    /// A structure of functions that the kernel calls.
    StructOps,
    /// Memory shared with user space.
    Arena,
    /// A kind whose contents are not read.
    Other(u32),
}

impl MapKind {
    fn of(raw: u32) -> Self {
        match raw {
            1 => Self::Hash,
            2 => Self::Array,
            5 => Self::PerCpuHash,
            6 => Self::PerCpuArray,
            9 => Self::LruHash,
            10 => Self::LruPerCpuHash,
            12 => Self::ArrayOfMaps,
            13 => Self::HashOfMaps,
            24 | 28 => Self::OtherStorage,
            26 => Self::StructOps,
            27 | 31 => Self::Ringbuf,
            29 => Self::TaskStorage,
            32 => Self::CgroupStorage,
            33 => Self::Arena,
            other => Self::Other(other),
        }
    }
}

/// A map's header.
#[derive(Clone, Debug)]
pub struct MapInfo {
    /// Where its `struct bpf_map` is.
    pub at: Kva,
    /// Its number.
    pub id: u32,
    /// Its name, at most 15 characters.
    pub name: String,
    /// Its kind.
    pub kind: MapKind,
    /// `enum bpf_map_type`, as the kernel calls it.
    pub kind_name: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many entries fit.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// The type of keys, where the program said it.
    pub key_type: Option<TypeRef>,
    /// The type of values, where the program or the kernel said it.
    pub value_type: Option<TypeRef>,
    /// Why types are missing although there should be some.
    pub types_missing: Option<BpfError>,
}

/// How much of a map is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries.
    pub entries: usize,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 4096, bytes: 16 << 20 }
    }
}

/// The contents of a map.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    /// What was read.
    pub items: Vec<Entry>,
    /// How many more there are.
    pub left_off: u64,
    /// What could not be read; chains may have ended early because of it.
    pub damage: Vec<BpfError>,
}

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is found by.
    pub key: Key,
    /// Its value; several where CPUs have their own.
    pub cells: Vec<Cell>,
}

/// What an entry is found by.
#[derive(Clone, Debug)]
pub enum Key {
    /// The only one.
    Only,
    /// A position.
    Index(u32),
    /// Bytes of the key's type.
    Bytes(Vec<u8>),
    /// The object that carries the value.
    Owner(Owner),
    /// A record's position in a ring buffer.
    Record {
        /// Bytes from the beginning of time.
        position: u64,
        /// How far it is.
        state: RecordState,
    },
}

/// Whose value it is.
#[derive(Clone, Debug)]
pub enum Owner {
    /// A task.
    Task {
        /// Its `task_struct`.
        at: Kva,
        /// Its number in the initial namespace.
        pid: Result<i32, BpfError>,
        /// Its name.
        comm: Result<String, BpfError>,
    },
    /// A cgroup.
    Cgroup {
        /// Its `struct cgroup`.
        at: Kva,
        /// Its number.
        id: Result<u64, BpfError>,
        /// Its own name, without those above it; the root's is empty.
        name: Result<String, BpfError>,
    },
    /// Something else.
    Object {
        /// Its address.
        at: Kva,
    },
}

/// A record of a ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// Waits for its reader.
    Unread,
    /// Reserved, not yet submitted.
    Busy,
    /// Taken back.
    Discarded,
}

/// One value.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Whose, where CPUs have their own.
    pub cpu: Option<CpuId>,
    /// Where it is.
    pub at: Kva,
    /// What it was.
    pub bytes: Result<Vec<u8>, BpfError>,
}

impl fmt::Display for RecordState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unread => "unread",
            Self::Busy => "busy",
            Self::Discarded => "discarded",
        })
    }
}

impl MapInfo {
    /// Whether `name` means this map: its name, the end of it (`.bss` means `sched.bss`), or the
    /// beginning of a name that the kernel has cut off.
    pub fn is_called(&self, name: &str) -> bool {
        const KEPT: usize = 15;
        self.name == name
            || (name.starts_with('.') && self.name.ends_with(name))
            || (self.name.len() == KEPT && name.starts_with(&self.name))
    }

    /// Whether it holds a section of global variables.
    pub fn is_section(&self) -> bool {
        let ty = self.value_type.as_ref().and_then(|ty| ty.set.ty(ty.id));
        self.kind == MapKind::Array && matches!(ty, Some(Ty::Section { .. }))
    }
}

impl Reader<'_> {
    /// All maps, by number.
    pub fn maps(&self) -> Result<Walk<MapInfo>, BpfError> {
        let found = self.idr("map_idr")?;
        let mut walk = Walk { items: Vec::new(), damage: found.damage };
        for at in found.items {
            match self.map(at) {
                Ok(map) => walk.items.push(map),
                Err(error) => walk.damage.push(error),
            }
        }
        Ok(walk)
    }

    /// The map at `at`.
    pub fn map(&self, at: Kva) -> Result<MapInfo, BpfError> {
        let layout = &self.layout.map;
        let raw = self.get_u32(at, &layout.kind, "bpf_map.map_type")?;
        let mut map = MapInfo {
            at,
            id: self.get_u32(at, &layout.id, "bpf_map.id")?,
            name: self.text(at, &layout.name, "bpf_map.name")?,
            kind: MapKind::of(raw),
            kind_name: self.kernel_enum("bpf_map_type", "BPF_MAP_TYPE_", raw),
            key_size: self.get_u32(at, &layout.key_size, "bpf_map.key_size")?,
            value_size: self.get_u32(at, &layout.value_size, "bpf_map.value_size")?,
            max_entries: self.get_u32(at, &layout.max_entries, "bpf_map.max_entries")?,
            flags: self.get_u32(at, &layout.flags, "bpf_map.map_flags")?,
            key_type: None,
            value_type: None,
            types_missing: None,
        };
        if let Err(error) = self.type_map(&mut map) {
            map.types_missing = Some(error);
        }
        Ok(map)
    }

    fn type_map(&self, map: &mut MapInfo) -> Result<(), BpfError> {
        let layout = &self.layout.map;
        let kernel = self.get_u32(map.at, &layout.kernel_value_type, "bpf_map.btf_vmlinux_value_type_id")?;
        if kernel != 0 {
            let set = self.struct_ops_types(map)?;
            map.value_type = self.fitting(&set, kernel, map.value_size);
            return Ok(());
        }
        let object = self.get_kva(map.at, &layout.btf, "bpf_map.btf")?;
        if object.is_null() {
            return Ok(());
        }
        let set = self.object(object)?;
        let key = self.get_u32(map.at, &layout.key_type, "bpf_map.btf_key_type_id")?;
        let value = self.get_u32(map.at, &layout.value_type, "bpf_map.btf_value_type_id")?;
        map.key_type = self.fitting(&set, key, map.key_size);
        map.value_type = self.fitting(&set, value, map.value_size);
        Ok(())
    }

    /// The type `id`, unless it is `void` or larger than what it should describe.
    fn fitting(&self, set: &Arc<TypeSet>, id: u32, size: u32) -> Option<TypeRef> {
        let ty = TypeRef::new(set, TypeId(id));
        (id != 0 && ty.size().is_some_and(|len| len <= size.into())).then_some(ty)
    }

    /// The name of the kernel's enumerator, in lower case and without `prefix`.
    pub(super) fn kernel_enum(&self, name: &str, prefix: &str, raw: u32) -> String {
        let set = self.kernel_types();
        let found = set.named(name).iter().find_map(|&id| match set.ty(id)? {
            Ty::Enum(values) => values.values.iter().find(|(_, value)| *value == i128::from(raw)),
            _ => None,
        });
        match found {
            Some((text, _)) => text.strip_prefix(prefix).unwrap_or(text).to_lowercase(),
            None => format!("type {raw}"),
        }
    }

    /// The contents of `map`.
    pub fn entries(&self, map: &MapInfo, limits: Limits) -> Result<Entries, BpfError> {
        match map.kind {
            MapKind::Array => self.array_entries(map, limits),
            MapKind::PerCpuArray => self.per_cpu_array_entries(map, limits),
            MapKind::ArrayOfMaps => self.pointer_array_entries(map, limits),
            MapKind::Hash | MapKind::LruHash => self.hash_entries(map, limits),
            MapKind::PerCpuHash | MapKind::LruPerCpuHash => self.hash_entries(map, limits),
            MapKind::HashOfMaps => self.hash_entries(map, limits),
            MapKind::TaskStorage | MapKind::CgroupStorage | MapKind::OtherStorage => {
                self.storage_entries(map, limits)
            }
            MapKind::Ringbuf => self.ringbuf_entries(map, limits),
            MapKind::StructOps => self.struct_ops_entries(map),
            MapKind::Arena => Ok(Entries::default()),
            MapKind::Other(kind) => Err(BpfError::UnknownMap { kind }),
        }
    }

    /// As [`Reader::entries`], keeping only the first of very many complaints.
    pub(super) fn entries_shortly(&self, map: &MapInfo, limits: Limits) -> Result<Entries, BpfError> {
        const MAX_DAMAGE: usize = 64;
        let mut entries = self.entries(map, limits)?;
        entries.damage.truncate(MAX_DAMAGE);
        Ok(entries)
    }

    pub(super) fn cell(&self, cpu: Option<CpuId>, at: Kva, len: u32) -> Cell {
        Cell { cpu, at, bytes: self.bytes(at, len.into(), "a map's value") }
    }
}

/// Counts what is read against the limits.
pub(super) struct Budget {
    limits: Limits,
    entries: usize,
    bytes: u64,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, entries: 0, bytes: 0 }
    }

    /// Whether one more entry of `bytes` may be read.
    pub(super) fn take(&mut self, bytes: u64) -> bool {
        let total = self.bytes.saturating_add(bytes);
        if self.entries >= self.limits.entries || total > self.limits.bytes {
            return false;
        }
        self.entries += 1;
        self.bytes = total;
        true
    }
}
