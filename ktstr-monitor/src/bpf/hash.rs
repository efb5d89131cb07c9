//! Hash tables (`struct bpf_htab`, `kernel/bpf/hashtab.c`): buckets of chained elements.
//!
//! ```text
//! buckets[n].head.first ─▶ htab_elem ─▶ htab_elem ─▶ nulls (lowest bit set)
//!                          └ key, padded to 8, then the value or a pointer to it
//! ```
//!
//! An element that was freed while the chain was followed may lead into another chain; the nulls mark
//! says which bucket a chain ends in, and no more elements are followed than the map can hold.

use super::map::{Budget, Entries, Entry, Key, Limits, MapInfo, MapKind};
use super::reader::{BpfError, Reader};
use crate::addr::Kva;

/// 16 million buckets are 256 MiB: more than any scheduler has.
const MAX_BUCKETS: u64 = 1 << 24;
/// The same for elements.
const MAX_ELEMENTS: u64 = 4 << 20;
const CHUNK: u64 = 4096;

impl Reader<'_> {
    pub(super) fn hash_entries(&self, map: &MapInfo, limits: Limits) -> Result<Entries, BpfError> {
        let layout = self.layout;
        let damaged = |why| BpfError::Damaged { what: "a hash map", at: map.at, why };
        let buckets = self.get_kva(map.at, &layout.htab.buckets, "bpf_htab.buckets")?;
        let count = self.get(map.at, &layout.htab.n_buckets, "bpf_htab.n_buckets")?;
        if !count.is_power_of_two() || count > MAX_BUCKETS {
            return Err(damaged("its number of buckets is no power of two, or absurd"));
        }
        let stride = match &layout.bucket_size {
            Ok(size) if (8..=256).contains(size) => *size,
            Ok(_) => return Err(damaged("its buckets have an absurd size")),
            Err(missing) => return Err(crate::kernel::Gap::Absent(missing.clone()).into()),
        };
        let first = Self::offset(&layout.bucket.first)?;
        let mut chains =
            Chains { reader: self, map, budget: Budget::new(limits), found: Entries::default(), seen: 0 };
        for start in (0..count).step_by(CHUNK as usize) {
            let here = CHUNK.min(count - start);
            let bytes = match self.bytes(buckets.wrapping_add(start * stride), here * stride, "hash buckets")
            {
                Ok(bytes) => bytes,
                Err(BpfError::Exhausted) => return Err(BpfError::Exhausted),
                Err(error) => {
                    chains.found.damage.push(error);
                    continue;
                }
            };
            for (nth, bucket) in bytes.chunks_exact(stride as usize).enumerate() {
                let head = bucket.get(first as usize..).and_then(|rest| rest.first_chunk());
                let head = head.map_or(1, |eight| u64::from_le_bytes(*eight));
                if !chains.follow(head, start + nth as u64)? {
                    return Ok(chains.found);
                }
            }
        }
        Ok(chains.found)
    }
}

struct Chains<'r, 'a> {
    reader: &'r Reader<'a>,
    map: &'r MapInfo,
    budget: Budget,
    found: Entries,
    seen: u64,
}

impl Chains<'_, '_> {
    /// Reads the chain of one bucket; false when the whole map leads nowhere sensible.
    fn follow(&mut self, head: u64, bucket: u64) -> Result<bool, BpfError> {
        let layout = &self.reader.layout.htab_elem;
        let next_at = Reader::offset(&layout.next)?;
        let mut here = head;
        while here & 1 == 0 {
            if here == 0 {
                // A bucket that was never set up: no chain of a live map is without its mark.
                return Ok(true);
            }
            // While elements are replaced a few more than fit are in the chains.
            if self.seen > u64::from(self.map.max_entries).saturating_add(1024).min(MAX_ELEMENTS) {
                let why = "its chains hold more elements than fit into it: a loop, or it changes too fast";
                self.found.damage.push(BpfError::Damaged { what: "a hash map", at: self.map.at, why });
                return Ok(false);
            }
            self.seen += 1;
            let elem = Kva(here);
            if let Err(error) = self.element(elem) {
                self.found.damage.push(error);
            }
            here = match self.reader.word(elem.wrapping_add(next_at), "htab_elem.hash_node.next") {
                Ok(next) => next,
                Err(error) => {
                    self.found.damage.push(error);
                    return Ok(true);
                }
            };
        }
        // Kernels number the mark by bucket; another number means that the chain was left on the way.
        if here >> 1 != bucket && head & 1 == 0 {
            let why = "a chain ended in another bucket: an element moved while it was read";
            self.found.damage.push(BpfError::Damaged { what: "a hash map", at: self.map.at, why });
        }
        Ok(true)
    }

    fn element(&mut self, elem: Kva) -> Result<(), BpfError> {
        let (map, reader) = (self.map, self.reader);
        let per_cpu = matches!(map.kind, MapKind::PerCpuHash | MapKind::LruPerCpuHash);
        let cpus = if per_cpu { reader.cpus().len() as u64 } else { 1 };
        let bytes = u64::from(map.key_size) + u64::from(map.value_size) * cpus;
        if !self.budget.take(bytes) {
            self.found.left_off += 1;
            return Ok(());
        }
        let key_at = elem.wrapping_add(Reader::offset(&reader.layout.htab_elem.key)?);
        let key = reader.bytes(key_at, map.key_size.into(), "htab_elem.key")?;
        let value = key_at.wrapping_add(u64::from(map.key_size).next_multiple_of(8));
        let cells = match map.kind {
            MapKind::PerCpuHash | MapKind::LruPerCpuHash => {
                let cookie = reader.word(value, "a per-CPU value's pointer")?;
                reader.per_cpu(cookie).map(|(cpu, at)| reader.cell(Some(cpu), at, map.value_size)).collect()
            }
            MapKind::HashOfMaps => vec![reader.cell(None, value, 8)],
            _ => vec![reader.cell(None, value, map.value_size)],
        };
        self.found.items.push(Entry { key: Key::Bytes(key), cells });
        Ok(())
    }
}
