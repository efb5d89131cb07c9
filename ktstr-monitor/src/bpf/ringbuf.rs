//! Ring buffers (`struct bpf_ringbuf`, `kernel/bpf/ringbuf.c`): the records not yet consumed.
//!
//! Positions only grow. A record is a header of 8 bytes (length with two flags, page offset) and its
//! bytes, padded to 8. The data are mapped twice, one after the other, so no record is in two pieces.

use super::map::{Budget, Cell, Entries, Entry, Key, Limits, MapInfo, RecordState};
use super::reader::{BpfError, Reader};

const HEADER: u64 = 8;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

impl Reader<'_> {
    pub(super) fn ringbuf_entries(&self, map: &MapInfo, limits: Limits) -> Result<Entries, BpfError> {
        let layout = &self.layout.ringbuf;
        let rb = self.get_kva(map.at, &self.layout.ringbuf_map.rb, "bpf_ringbuf_map.rb")?;
        let damaged = |why| BpfError::Damaged { what: "a ring buffer", at: rb, why };
        let mask = self.get(rb, &layout.mask, "bpf_ringbuf.mask")?;
        if !mask.wrapping_add(1).is_power_of_two() || mask > u32::MAX.into() {
            return Err(damaged("its size is no power of two"));
        }
        let overwrites = self.get(rb, &layout.overwrite_mode, "bpf_ringbuf.overwrite_mode").unwrap_or(0) != 0;
        let start = match overwrites {
            true => self.get(rb, &layout.overwrite, "bpf_ringbuf.overwrite_pos")?,
            false => self.get(rb, &layout.consumer, "bpf_ringbuf.consumer_pos")?,
        };
        let end = self.get(rb, &layout.producer, "bpf_ringbuf.producer_pos")?;
        // The consumer is user space and may write what it likes.
        if end.wrapping_sub(start) > mask + 1 {
            return Err(damaged("its reader's and writer's positions do not fit together"));
        }
        let data = rb.wrapping_add(Self::offset(&layout.data)?);
        let mut budget = Budget::new(limits);
        let mut found = Entries::default();
        let mut position = start;
        while position != end {
            let at = data.wrapping_add(position & mask);
            let header = match self.word(at, "a ring buffer record") {
                Ok(header) => header as u32,
                // Where the next one begins is not known, but what was read stays.
                Err(error) => {
                    found.damage.push(error);
                    break;
                }
            };
            let len = u64::from(header & !(BUSY | DISCARDED));
            let whole = (len + HEADER).next_multiple_of(8);
            if whole > end.wrapping_sub(position) {
                found.damage.push(damaged("a record reaches past the writer's position"));
                break;
            }
            if budget.take(len) {
                let state = match () {
                    () if header & BUSY != 0 => RecordState::Busy,
                    () if header & DISCARDED != 0 => RecordState::Discarded,
                    () => RecordState::Unread,
                };
                let at = at.wrapping_add(HEADER);
                let bytes = self.bytes(at, len, "a ring buffer record");
                let cells = vec![Cell { cpu: None, at, bytes }];
                found.items.push(Entry { key: Key::Record { position, state }, cells });
            } else {
                found.left_off += 1;
            }
            position = position.wrapping_add(whole);
        }
        Ok(found)
    }
}
