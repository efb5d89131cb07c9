//! Storage that tasks and cgroups carry (`struct bpf_local_storage_map`,
//! `kernel/bpf/bpf_local_storage.c`): a map is a hash of elements, each belonging to an owner.

use super::map::{Budget, Entries, Entry, Key, Limits, MapInfo, MapKind, Owner};
use super::reader::{BpfError, Reader};
use crate::addr::Kva;
use crate::kernel::Gap;

const MAX_BUCKET_LOG: u64 = 16;
/// As many tasks as a guest may have.
const MAX_ELEMENTS: u64 = 4 << 20;

impl Reader<'_> {
    pub(super) fn storage_entries(&self, map: &MapInfo, limits: Limits) -> Result<Entries, BpfError> {
        let layout = self.layout;
        let buckets = self.get_kva(map.at, &layout.storage_map.buckets, "bpf_local_storage_map.buckets")?;
        let log = self.get(map.at, &layout.storage_map.bucket_log, "bpf_local_storage_map.bucket_log")?;
        if log > MAX_BUCKET_LOG {
            let why = "its number of buckets is absurd";
            return Err(BpfError::Damaged { what: "a storage map", at: map.at, why });
        }
        let stride = layout.storage_bucket_size.as_ref().map_err(|missing| Gap::Absent(missing.clone()))?;
        let first = Self::offset(&layout.storage_bucket.first)?;
        let node = Self::offset(&layout.storage_elem.node)?;
        let mut budget = Budget::new(limits);
        let mut found = Entries::default();
        let mut seen = 0;
        for bucket in 0..1u64 << log {
            let head = buckets.wrapping_add(bucket * stride + first);
            let mut here = match self.word(head, "a storage bucket") {
                Ok(here) => here,
                Err(error) => {
                    found.damage.push(error);
                    continue;
                }
            };
            while here != 0 {
                seen += 1;
                if seen > MAX_ELEMENTS {
                    let why = "its chains do not end";
                    found.damage.push(BpfError::Damaged { what: "a storage map", at: map.at, why });
                    return Ok(found);
                }
                let elem = Kva(here.wrapping_sub(node));
                if budget.take(map.value_size.into()) {
                    match self.storage_entry(map, elem) {
                        Ok(entry) => found.items.push(entry),
                        Err(error) => found.damage.push(error),
                    }
                } else {
                    found.left_off += 1;
                }
                here = match self.get(elem, &layout.storage_elem.next, "bpf_local_storage_elem.map_node") {
                    Ok(next) => next,
                    Err(error) => {
                        found.damage.push(error);
                        break;
                    }
                };
            }
        }
        Ok(found)
    }

    fn storage_entry(&self, map: &MapInfo, elem: Kva) -> Result<Entry, BpfError> {
        let layout = self.layout;
        let storage =
            self.get_kva(elem, &layout.storage_elem.storage, "bpf_local_storage_elem.local_storage")?;
        let owner = self.get_kva(storage, &layout.storage.owner, "bpf_local_storage.owner")?;
        let at = elem.wrapping_add(Self::offset(&layout.storage_elem.data)?);
        let cell = self.cell(None, at, map.value_size);
        Ok(Entry { key: Key::Owner(self.owner(map.kind, owner)), cells: vec![cell] })
    }

    fn owner(&self, kind: MapKind, at: Kva) -> Owner {
        let layout = self.layout;
        match kind {
            MapKind::TaskStorage => Owner::Task {
                at,
                pid: self.get(at, &layout.task.pid, "task_struct.pid").map(|pid| pid as i32),
                comm: self.text(at, &layout.task.comm, "task_struct.comm"),
            },
            MapKind::CgroupStorage => {
                let node = self.get_kva(at, &layout.cgroup.node, "cgroup.kn");
                let id = node.clone().and_then(|kn| self.get(kn, &layout.kernfs_node.id, "kernfs_node.id"));
                let name = node.and_then(|kn| {
                    let text = self.get_kva(kn, &layout.kernfs_node.name, "kernfs_node.name")?;
                    self.text_at(text, "a cgroup's name")
                });
                Owner::Cgroup { at, id, name }
            }
            _ => Owner::Object { at },
        }
    }
}
