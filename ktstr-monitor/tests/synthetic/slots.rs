//! Allocators of slots in an arena, made up in memory as both published layouts have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ktstr_monitor::addr::Kva;
use ktstr_monitor::bpf::{Allocator, Header};
use ktstr_monitor::types::{TypeRef, TypeSet};

use crate::btf_writer::BtfWriter;

/// Where user space sees the arena; the kernel's addresses are the same here.
const ARENA: u64 = 0x1000_0000_0000;
const FANOUT: u64 = 512;
const SLOT: u64 = 40;

/// The types of an object with an allocator; `data` adds those that only some objects have.
fn types(data: impl FnOnce(&mut BtfWriter, u32, u32)) -> Arc<TypeSet> {
    let mut btf = BtfWriter::new();
    let u64_ = btf.int("u64", 8, false);
    let s32 = btf.int("int", 4, true);
    let bits = btf.array(u64_, s32, 8);
    let pointer = btf.pointer(0);
    let desc = btf.structure(
        "sdt_desc",
        80,
        &[("allocated", bits, 0), ("nr_free", u64_, 512), ("chunk", pointer, 576)],
    );
    let to_desc = btf.pointer(desc);
    let pool =
        btf.structure("sdt_pool", 32, &[("slab", pointer, 0), ("elem_size", u64_, 64), ("idx", u64_, 128)]);
    btf.structure("scx_allocator", 40, &[("pool", pool, 0), ("root", to_desc, 256)]);
    btf.structure("node", 8, &[("key", u64_, 0)]);
    let node = btf.next_id() - 1;
    btf.structure("task_ctx", 24, &[("node", node, 0), ("runs", u64_, 64), ("pid", s32, 128)]);
    let id = btf.structure("sdt_id", 8, &[("idx", s32, 0), ("genn", s32, 32)]);
    data(&mut btf, id, u64_);
    Arc::new(TypeSet::parse("object", &btf.section()).expect("sound types"))
}

fn named(set: &Arc<TypeSet>, name: &str) -> TypeRef {
    TypeRef::new(set, set.composite(name).expect("the structure is there").0)
}

/// An arena with one allocator, word by word.
#[derive(Default)]
struct Made {
    words: BTreeMap<u64, u64>,
    next: u64,
}

impl Made {
    fn room(&mut self, len: u64) -> u64 {
        let at = ARENA + self.next;
        self.next += len.next_multiple_of(8);
        at
    }

    fn node(&mut self) -> (u64, u64) {
        let (desc, chunk) = (self.room(80), self.room(FANOUT * 8));
        self.words.insert(desc + 72, chunk);
        (desc, chunk)
    }

    /// A tree with these slots, used or freed; the number of each at `header` bytes into it. Its variable.
    fn tree(&mut self, slots: &[(u64, bool)], header: u64) -> Vec<u8> {
        let (root, top) = self.node();
        let (mid, middle) = self.node();
        self.words.insert(top, mid);
        for &(index, live) in slots {
            let nth = index / FANOUT;
            let leaf = match self.words.get(&(middle + nth * 8)) {
                Some(&leaf) => leaf,
                None => self.node().0,
            };
            self.words.insert(middle + nth * 8, leaf);
            let (chunk, slot) = (self.words[&(leaf + 72)], self.room(SLOT));
            let bit = index % FANOUT;
            self.words.insert(chunk + bit * 8, slot);
            self.words.insert(slot + header, index | 7 << 32);
            if live {
                *self.words.entry(leaf + bit / 64 * 8).or_default() |= 1 << (bit % 64);
            }
        }
        [0, SLOT, 0, 0, root].into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn read(&self, at: u64, len: u64) -> Result<(Kva, Vec<u8>), String> {
        if !(ARENA..ARENA + self.next).contains(&at) {
            return Err("it leads into no arena".to_owned());
        }
        let byte = |at: u64| self.words.get(&(at & !7)).map_or(0, |word| word.to_le_bytes()[at as usize % 8]);
        Ok((Kva(at), (at..at + len).map(byte).collect()))
    }

    fn allocator(&self, set: &Arc<TypeSet>, variable: &[u8]) -> Option<Allocator> {
        let read = |at: u64, len: u64| self.read(at, len);
        Allocator::read("tasks", &named(set, "scx_allocator"), variable, &read)
    }
}

const SLOTS: [(u64, bool); 4] = [(0, true), (1, false), (2, true), (600, true)];

#[test]
fn a_header_behind_is_found_without_its_type() {
    let set = types(|_, _, _| ());
    let mut made = Made::default();
    let variable = made.tree(&SLOTS, SLOT - 16);
    let mut allocator = made.allocator(&set, &variable).expect("an allocator");
    assert_eq!(allocator.header, Ok(Header::Behind(16)));
    assert_eq!((allocator.live, allocator.held()), (3, Some((0, 24))));
    assert!(allocator.damage.is_empty() && !allocator.left_off);
    // The last slot that was made is the one with number 600.
    let start = Kva(ARENA + made.next - SLOT);
    let slot = allocator.slot(start.wrapping_add(9)).expect("a slot");
    assert_eq!((slot.index, slot.live, slot.start, slot.into), (600, true, start, 9));
    assert_eq!(allocator.slot(start.wrapping_add(SLOT)), None);
    // What only begins what is there is not all of it, and two that disagree are none.
    let (node, task) = (named(&set, "node"), named(&set, "task_ctx"));
    allocator.learn(&[node.clone(), task.clone(), node.clone()]);
    assert_eq!(allocator.payload, Some(task.clone()));
    allocator.learn(&[task, named(&set, "sdt_desc")]);
    assert_eq!(allocator.payload, None);
}

#[test]
fn a_header_before_is_found_by_its_type_and_without() {
    let open = types(|btf, id, u64_| {
        let rest = btf.array(u64_, u64_, 0);
        btf.structure("sdt_data", 8, &[("tid", id, 0), ("payload", rest, 64)]);
    });
    for set in [open, types(|_, _, _| ())] {
        let mut made = Made::default();
        let variable = made.tree(&SLOTS, 0);
        let allocator = made.allocator(&set, &variable).expect("an allocator");
        assert_eq!(allocator.header, Ok(Header::Before(8)));
        assert_eq!(allocator.held(), Some((8, 32)));
    }
}

/// Numbers that are where no header is: nothing is said of what slots hold.
#[test]
fn slots_that_do_not_carry_their_numbers_are_not_believed() {
    let closed = types(|btf, id, u64_| {
        btf.structure("sdt_data", 16, &[("tid", id, 0), ("urcu_link", u64_, 64)]);
    });
    // BTF says that the header is behind; the numbers are before.
    let mut made = Made::default();
    let variable = made.tree(&SLOTS, 0);
    let mut allocator = made.allocator(&closed, &variable).expect("an allocator");
    assert!(allocator.header.is_err(), "{:?}", allocator.header);
    allocator.learn(&[named(&closed, "task_ctx")]);
    assert_eq!((allocator.payload.as_ref(), allocator.held()), (None, None));
    // One slot with number 0: zeroes are everywhere.
    let mut made = Made::default();
    let variable = made.tree(&[(0, true)], SLOT - 16);
    let allocator = made.allocator(&closed, &variable).expect("an allocator");
    assert!(allocator.header.is_err(), "{:?}", allocator.header);
}

#[test]
fn a_tree_in_circles_ends_and_says_so() {
    let set = types(|_, _, _| ());
    let mut made = Made::default();
    let variable = made.tree(&SLOTS, SLOT - 16);
    let root = u64::from_le_bytes(variable[32..].try_into().unwrap());
    let chunk = made.words[&(root + 72)];
    // Every child of the root is the root, and one leads nowhere.
    for nth in 0..FANOUT {
        made.words.insert(chunk + nth * 8, root);
    }
    made.words.insert(chunk + 8, 0xdead_0000_0000);
    let allocator = made.allocator(&set, &variable).expect("an allocator");
    assert!(allocator.left_off);
    assert!(!allocator.damage.is_empty());
}
