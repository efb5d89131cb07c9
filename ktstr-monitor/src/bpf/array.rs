//! Arrays (`struct bpf_array`, `kernel/bpf/arraymap.c`): values side by side, or pointers to them.

use super::map::{Budget, Entries, Entry, Key, Limits, MapInfo};
use super::reader::{BpfError, Reader};
use crate::addr::Kva;

impl Reader<'_> {
    pub(super) fn array_entries(&self, map: &MapInfo, limits: Limits) -> Result<Entries, BpfError> {
        let layout = &self.layout.array;
        let stride = self.get(map.at, &layout.elem_size, "bpf_array.elem_size")?;
        let least = u64::from(map.value_size);
        if stride < least || stride - least >= 8 {
            let why = "its values have another size than the map says";
            return Err(BpfError::Damaged { what: "an array", at: map.at, why });
        }
        let first = map.at.wrapping_add(Self::offset(&layout.value)?);
        Ok(self.indexed(map, limits, stride, |index| {
            vec![self.cell(None, first.wrapping_add(index * stride), map.value_size)]
        }))
    }

    pub(super) fn per_cpu_array_entries(&self, map: &MapInfo, limits: Limits) -> Result<Entries, BpfError> {
        let first = map.at.wrapping_add(Self::offset(&self.layout.array.pointers)?);
        let each = u64::from(map.value_size).saturating_mul(self.cpus().len() as u64);
        let mut damage = Vec::new();
        let mut entries = self.indexed(map, limits, each, |index| {
            match self.word(first.wrapping_add(index * 8), "bpf_array.pptrs") {
                Ok(cookie) => {
                    self.per_cpu(cookie).map(|(cpu, at)| self.cell(Some(cpu), at, map.value_size)).collect()
                }
                Err(error) => {
                    damage.push(error);
                    Vec::new()
                }
            }
        });
        entries.damage = damage;
        Ok(entries)
    }

    /// The slots themselves: the address of a map, or 0.
    pub(super) fn pointer_array_entries(&self, map: &MapInfo, limits: Limits) -> Result<Entries, BpfError> {
        let first = map.at.wrapping_add(Self::offset(&self.layout.array.pointers)?);
        Ok(self.indexed(map, limits, 8, |index| vec![self.cell(None, first.wrapping_add(index * 8), 8)]))
    }

    fn indexed(
        &self,
        map: &MapInfo,
        limits: Limits,
        each: u64,
        mut cells: impl FnMut(u64) -> Vec<super::map::Cell>,
    ) -> Entries {
        let mut budget = Budget::new(limits);
        let mut entries = Entries::default();
        for index in 0..map.max_entries {
            if !budget.take(each) {
                entries.left_off = u64::from(map.max_entries - index);
                break;
            }
            entries.items.push(Entry { key: Key::Index(index), cells: cells(index.into()) });
        }
        entries
    }

    /// Where the value at `address` of an array's memory is: its index and the bytes into it.
    pub fn array_place(&self, map: &MapInfo, address: u64) -> Option<(u64, u64)> {
        let stride = self.get(map.at, &self.layout.array.elem_size, "bpf_array.elem_size").ok()?;
        let first = map.at.wrapping_add(Self::offset(&self.layout.array.value).ok()?);
        let into = Kva(address).0.checked_sub(first.0)?;
        let index = into.checked_div(stride)?;
        (index < u64::from(map.max_entries)).then_some((index, into % stride))
    }

    /// Where the kernel's inlined look-ups find values, where this kernel has them.
    pub fn places(&self) -> Places {
        let offset = |slot| Self::offset(slot).ok();
        Places {
            value: offset(&self.layout.array.value),
            pointers: offset(&self.layout.array.pointers),
            key: offset(&self.layout.htab_elem.key),
        }
    }
}

/// Distances that the verifier writes into programs.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// From an array map to its first value.
    pub value: Option<u64>,
    /// From a per-CPU array map to its first pointer.
    pub pointers: Option<u64>,
    /// From a hash's element to its key.
    pub key: Option<u64>,
}
