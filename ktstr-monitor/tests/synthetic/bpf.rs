//! BPF state in made-up memory: sound maps are read, and memory full of pointers that lead anywhere
//! neither stops the readers nor keeps them busy without end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ktstr_monitor::bpf::{BpfLayout, BpfState, Entries, Limits, Reader};
use ktstr_monitor::cast;
use ktstr_monitor::cast::code::{Callee, Code, CodeFunction, CodeMap, Meaning};
use ktstr_monitor::cast::evidence::{Evidence, Told};
use ktstr_monitor::cast::insn::Insn;
use ktstr_monitor::cast::place::{Slot, leaf_at, repeats};
use ktstr_monitor::freeze::Freeze;
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::kernel::{LiveKernel, Profile};
use ktstr_monitor::render::{NoDeref, Options, Renderer, Space, to_json, to_text};
use ktstr_monitor::types::{Ty, TypeId, TypeRef, TypeSet};
use proptest::prelude::*;

use crate::bpf_types::{LEN, PLACE, object};
use crate::btf_writer::BtfWriter;
use crate::guest::{Guest, Shape};

const BOUND: Duration = Duration::from_secs(60);

/// Reads the BPF state of a guest in whose memory `plant` has put something.
fn read<T>(plant: impl FnOnce(&Guest), look: impl FnOnce(&Reader<'_>) -> T) -> T {
    let guest = Guest::new(Shape::default());
    plant(&guest);
    let mem = guest.mem();
    let profile = Profile::of(&KernelImage::parse(guest.kernel.clone()).unwrap()).unwrap();
    let live = LiveKernel::locate(&profile, &mem).unwrap();
    let layout = BpfLayout::of(profile.types());
    assert_eq!(layout.absent(), Vec::<&ktstr_monitor::btf::FieldMissing>::new());
    let reader = Reader::new(&profile, &live, live.view(&mem), &layout);
    look(&reader)
}

fn words(guest: &Guest, at: u64, words: &[u32]) {
    for (nth, word) in words.iter().enumerate() {
        guest.write(at + nth as u64 * 4, &word.to_le_bytes());
    }
}

#[test]
fn a_hash_of_a_typed_value_is_read() {
    let entries = read(
        |guest| {
            let kva = |into: u64| guest.page_offset() + PLACE + into;
            // One map alone in the tree stands in its head.
            guest.write_u64(guest.variable("map_idr") + 8, kva(0));
            words(guest, PLACE, &[1, 8, 24, 4, 0, 7, 1, 5, 0]);
            guest.write_u64(PLACE + 40, kva(0x1000));
            guest.write(PLACE + 48, b"made_up\0");
            guest.write_u64(PLACE + 80, kva(0x200));
            words(guest, PLACE + 88, &[2]);
            // Two buckets: one element, none; both end in their own mark.
            guest.write_u64(PLACE + 0x200, kva(0x300));
            guest.write_u64(PLACE + 0x210, 1 << 1 | 1);
            guest.write_u64(PLACE + 0x300, 1);
            guest.write_u64(PLACE + 0x320, 42);
            guest.write_u64(PLACE + 0x328, 1000);
            guest.write_u64(PLACE + 0x330, kva(0x328));
            words(guest, PLACE + 0x338, &[5, 5]);
            let object = object();
            guest.write_u64(PLACE + 0x1000, kva(0x1100));
            words(guest, PLACE + 0x1008, &[object.len() as u32, 9]);
            guest.write(PLACE + 0x1100, &object);
        },
        |reader| {
            let state = BpfState::read(reader, Default::default());
            assert!(state.damage.is_empty(), "{:?}", state.damage);
            let map = state.map("made_up").expect("the map");
            assert!(map.damage.is_empty(), "{:?}", map.damage);
            map.entries
                .iter()
                .map(|(key, _, value)| format!("{key} {}", to_text(value, 0)))
                .collect::<Vec<_>>()
        },
    );
    assert_eq!(entries.len(), 1);
    assert!(entries[0].starts_with("[42] {first = 1000, next = (struct item *) 0x"), "{entries:?}");
    assert!(entries[0].ends_with("small = [[0..1] = 5]}"), "{entries:?}");
}

/// `BTF_KIND_FWD`, of a structure or of a union.
fn declared(btf: &mut BtfWriter, name: &str, union: bool) -> u32 {
    btf.raw(name, 7 << 24 | u32::from(union) << 31, 0, &[])
}

#[test]
fn what_one_object_only_declares_another_defines() {
    let mut btf = BtfWriter::new();
    for (name, union) in [("node", false), ("node", true), ("nowhere", false), ("", false)] {
        let to = declared(&mut btf, name, union);
        btf.pointer(to);
    }
    let of_own = declared(&mut btf, "own", false);
    btf.structure("own", 4, &[]);
    let declares = Arc::new(TypeSet::parse("declares", &btf.section()).unwrap());
    let defines = |label: &str, size: u32, union: bool| {
        let mut btf = BtfWriter::new();
        let number = btf.int("u64", 8, false);
        btf.structure("", 16, &[("anonymous", number, 0)]);
        btf.structure("own", 24, &[("number", number, 0)]);
        match union {
            true => btf.union("node", size, &[("number", number, 0)]),
            false => btf.structure("node", size, &[("number", number, 0)]),
        };
        Arc::new(TypeSet::parse(label, &btf.section()).unwrap())
    };
    let others = [defines("union", 32, true), defines("structure", 40, false), defines("later", 48, false)];
    let complete = |id: u32| TypeRef::new(&declares, TypeId(id)).complete(&others);
    let size = |id: u32| complete(id).and_then(|ty| ty.size());
    // A structure is no union of the same name, and the first that defines it says what it is.
    assert_eq!(size(1), Some(40));
    assert_eq!(size(3), Some(32));
    assert_eq!(complete(1).unwrap().name(), "struct node");
    assert_eq!(complete(5), None, "defined nowhere");
    assert_eq!(complete(7), None, "structures without a name are not the same for that");
    assert_eq!(size(of_own), Some(4), "its own object comes first");
    assert_eq!(complete(2).map(|ty| ty.id), Some(TypeId(2)), "a pointer is no declaration");
    let again = complete(1).unwrap();
    assert_eq!(again.complete(&others), Some(again), "what is complete is itself");
}

#[test]
fn a_chain_without_end_is_left() {
    let Entries { items, damage, .. } = read(
        |guest| {
            let kva = |into: u64| guest.page_offset() + PLACE + into;
            guest.write_u64(guest.variable("map_idr") + 8, kva(0));
            words(guest, PLACE, &[1, 8, 8, u32::MAX, 0, 7, 0, 0, 0]);
            guest.write_u64(PLACE + 80, kva(0x200));
            words(guest, PLACE + 88, &[1]);
            guest.write_u64(PLACE + 0x200, kva(0x300));
            guest.write_u64(PLACE + 0x300, kva(0x300));
        },
        |reader| {
            let map = reader.maps().unwrap().items.remove(0);
            reader.entries(&map, Limits { entries: 10, bytes: 1 << 20 }).unwrap()
        },
    );
    assert_eq!(items.len(), 10);
    assert!(!damage.is_empty());
}

#[test]
fn a_tree_that_is_its_own_child_ends() {
    let maps = read(
        |guest| {
            let node = guest.page_offset() + PLACE;
            guest.write_u64(guest.variable("map_idr") + 8, node + 2);
            guest.write(PLACE, &[6]);
            for slot in 0..64 {
                guest.write_u64(PLACE + 16 + slot * 8, node + 2);
            }
        },
        |reader| reader.maps().unwrap(),
    );
    assert!(maps.items.is_empty());
    assert!(!maps.damage.is_empty());
}

#[test]
fn a_slot_that_disagrees_with_what_is_copied_hands_nothing_on() {
    let types = crate::guest::btf(&Shape::default()).section();
    let set = Arc::new(TypeSet::parse("object", &types).unwrap());
    let composites: Vec<TypeRef> = set
        .ids()
        .filter(|id| matches!(set.ty(*id), Some(Ty::Composite(_))))
        .map(|id| TypeRef::new(&set, id))
        .collect();
    let [one, other, ..] = &composites[..] else { panic!("{composites:?}") };
    let slot = |owner: u32| Slot { owner: TypeId(owner), offset: 0 };
    let resolved = |fill: &dyn Fn(&mut Evidence)| {
        let mut evidence = Evidence::default();
        fill(&mut evidence);
        let resolved = evidence.resolve(&set, &|_| false);
        let mut found: Vec<u32> = resolved.iter().map(|(slot, ..)| slot.owner.0).collect();
        found.sort_unstable();
        found
    };
    // 1 holds one type, 4 another, both are copied to 2, and that to 3: neither 2 nor 3 has a type.
    let mixed = resolved(&|evidence| {
        evidence.typed(slot(1), Told::stored(one, Space::Arena, false));
        evidence.typed(slot(4), Told::stored(other, Space::Arena, false));
        for (from, to) in [(1, 2), (2, 3), (4, 2)] {
            evidence.link(slot(from), slot(to));
        }
    });
    assert_eq!(mixed, [1, 4]);
    // A number that is copied is a number where it comes to.
    let number = resolved(&|evidence| {
        evidence.number(slot(1));
        evidence.typed(slot(2), Told::stored(one, Space::Arena, false));
        evidence.link(slot(1), slot(2));
        evidence.link(slot(2), slot(3));
    });
    assert!(number.is_empty(), "{number:?}");
    let plain = resolved(&|evidence| {
        evidence.typed(slot(1), Told::stored(one, Space::Arena, false));
        evidence.link(slot(1), slot(2));
    });
    assert_eq!(plain, [1, 2]);
}

/// How many hostile inputs are tried; `KTSTR_CASES` for more.
fn cases() -> u32 {
    std::env::var("KTSTR_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(24)
}

/// A word as a hostile guest would choose it.
fn word() -> impl Strategy<Value = u64> {
    let pointer = Guest::direct_map() + PLACE;
    prop_oneof![
        4 => (0..LEN / 8).prop_map(move |nth| pointer + nth * 8),
        1 => (0..LEN / 64).prop_map(move |nth| pointer + nth * 64 + 2),
        2 => 0u64..64,
        1 => (0u64..34, 0u64..64).prop_map(|(low, high)| low | high << 32),
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    #[test]
    fn memory_full_of_pointers_is_read_in_bounded_time(
        memory in prop::collection::vec(word(), (LEN / 8) as usize / 8),
        starts in prop::collection::vec(0..LEN / 8, 2),
    ) {
        let began = Instant::now();
        let text = read(
            |guest| {
                let bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_le_bytes()).collect();
                for part in 0..8 {
                    guest.write(PLACE + part * LEN / 8, &bytes);
                }
                // A tree of objects all over it.
                let pointer = guest.page_offset() + PLACE;
                guest.write(PLACE, &[0; 16]);
                for slot in 0..64 {
                    guest.write_u64(PLACE + 16 + slot * 8, pointer + 0x400 + (starts[0] + slot * 997) % (LEN / 8) * 8);
                }
                guest.write_u64(guest.variable("map_idr") + 8, pointer + 2);
                guest.write_u64(guest.variable("prog_idr") + 8, pointer + 2);
            },
            |reader| {
                let state = BpfState::read(reader, Default::default());
                // The same by way of a copy, which must not take long either: the guest stands for it.
                let (freeze, mem) = (Freeze::default(), reader.mem().physical());
                let copied = freeze.touch(reader.profile(), reader.live(), mem);
                let later = freeze.read(reader.profile(), reader.live(), mem);
                (state.to_text(), state.to_json().to_string(), copied, later.bpf.to_json().to_string())
            },
        );
        prop_assert!(!text.0.is_empty());
        prop_assert!(text.2.took < BOUND / 4 && text.2.bytes < 600 << 20, "{:?}", text.2);
        prop_assert_eq!(&text.1, &text.3);
        prop_assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    }

    #[test]
    fn damaged_objects_and_any_bytes_render(
        flips in prop::collection::vec((0usize..400, any::<u8>()), 0..24),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        offset in any::<u64>(),
        size in prop::sample::select(vec![1u64, 2, 4, 8]),
    ) {
        let mut section = crate::guest::btf(&Shape::default()).section();
        let len = section.len();
        for (at, value) in flips {
            // Behind the header: types and names.
            section[24 + at * 7 % (len - 24)] = value;
        }
        if let Ok(set) = TypeSet::parse("hostile", &section) {
            let set = Arc::new(set);
            let mut renderer = Renderer::new(&NoDeref, Options { nodes: 20_000, ..Options::default() });
            for id in set.ids() {
                let ty = TypeRef::new(&set, id);
                let value = renderer.render(&ty, &bytes);
                let _ = (to_text(&value, 0).len(), to_json(&value));
                let _ = (leaf_at(&ty, offset % 300, size), repeats(&ty, offset % 300, size * 3), ty.name());
            }
        }
    }

    #[test]
    fn any_instructions_are_interpreted_in_bounded_time(
        raw in prop::collection::vec(instruction(), 1..400),
        starts in prop::collection::vec(0usize..400, 0..6),
        meanings in prop::collection::hash_map(0usize..400, 0u8..4, 0..60),
    ) {
        let began = Instant::now();
        let set = Arc::new(TypeSet::parse("object", &object()).unwrap());
        let item = TypeRef::new(&set, TypeId(5));
        let map = Arc::new(CodeMap {
            value: Some(item.clone()),
            per_cpu: false,
            stride: 24,
            first: Some(88),
            pointers: Some(88),
            in_element: Some(40),
        });
        let insns: Vec<Insn> = raw.iter().copied().map(Insn::decode).collect();
        let mut functions = vec![CodeFunction { start: 0, takes: vec![Some(item.clone())], static_takes: Vec::new(), context: vec![Some(item.clone()), None] }];
        let mut starts: Vec<usize> = starts.into_iter().filter(|start| *start < insns.len() && *start > 0).collect();
        starts.sort_unstable();
        starts.dedup();
        functions.extend(starts.iter().map(|&start| CodeFunction { start, takes: Vec::new(), static_takes: Vec::new(), context: Vec::new() }));
        let mut code = Code {
            name: "any".into(),
            functions,
            types: Arc::clone(&set),
            constants: HashMap::new(),
            calls: HashMap::new(),
            cpu_pointers: HashMap::new(),
            insns,
        };
        for (at, kind) in meanings {
            match kind {
                0 => drop(code.constants.insert(at, Meaning::Map(Arc::clone(&map)))),
                1 => drop(code.constants.insert(at, Meaning::Global { section: item.clone(), offset: 8 })),
                2 => drop(code.calls.insert(at, Callee::MapValue)),
                _ => drop(code.calls.insert(at, Callee::Function(starts.first().copied().unwrap_or(0)))),
            }
        }
        let resolved = cast::resolve(&set, &[code], &|_| false);
        for (slot, ..) in resolved.iter() {
            prop_assert!(set.get(slot.owner).is_some());
        }
        prop_assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    }
}

/// Mostly instructions that exist.
fn instruction() -> impl Strategy<Value = [u8; 8]> {
    let codes = vec![
        0x18u8, 0x61, 0x69, 0x71, 0x79, 0x62, 0x63, 0x6a, 0x6b, 0x72, 0x73, 0x7a, 0x7b, 0xdb, 0xb9, 0xbb,
        0xba, 0x07, 0x0f, 0x17, 0x1f, 0x27, 0x67, 0xb7, 0xbf, 0xbc, 0x05, 0x15, 0x55, 0x1d, 0x25, 0x85, 0x95,
        0x06,
    ];
    let code = prop_oneof![9 => prop::sample::select(codes), 1 => any::<u8>()];
    let off =
        prop_oneof![4 => -24i16..24, 1 => any::<i16>(), 1 => prop::sample::select(vec![0i16, 8, 16, 40, 88])];
    let imm = prop_oneof![4 => -24i32..100, 1 => any::<i32>()];
    (code, any::<u8>(), off, imm).prop_map(|(code, regs, off, imm)| {
        let [off0, off1] = off.to_le_bytes();
        let [a, b, c, d] = imm.to_le_bytes();
        [code, regs, off0, off1, a, b, c, d]
    })
}

/// `code[off](regs, imm)` as the processor of BPF programs reads it.
fn insn(code: u8, regs: u8, off: i16, imm: i32) -> Insn {
    let ([a, b], [c, d, e, f]) = (off.to_le_bytes(), imm.to_le_bytes());
    Insn::decode([code, regs, a, b, c, d, e, f])
}

/// Offsets of the slots in `struct item` that are found in one function, whose first two arguments are items; the
/// call at `call`, if there is one, takes an item, too.
fn found_in(insns: Vec<Insn>, call: usize) -> Vec<u64> {
    let set = Arc::new(TypeSet::parse("object", &object()).unwrap());
    let item = Some(TypeRef::new(&set, TypeId(5)));
    let takes = vec![item.clone(), item.clone()];
    let function = CodeFunction { start: 0, takes, static_takes: Vec::new(), context: Vec::new() };
    let code = Code {
        name: "union".into(),
        functions: vec![function],
        types: Arc::clone(&set),
        constants: HashMap::new(),
        calls: HashMap::from([(call, Callee::Kernel { takes: vec![item], returns: None })]),
        cpu_pointers: HashMap::new(),
        insns,
    };
    let resolved = cast::resolve(&set, &[code], &|_| false);
    resolved.iter().map(|(slot, ..)| slot.offset).collect()
}

/// An instruction that does nothing of interest.
const NOTHING: [u8; 8] = [0xb7, 4, 0, 0, 0, 0, 0, 0];

/// Two members of a union in one word of the stack: where paths have joined, the kernel's function takes the
/// pointer that one of them put there, and what the other put there is a number.
#[test]
fn a_word_that_two_paths_fill_tells_of_neither() {
    let found = |branch: Insn| {
        let insns = vec![
            // item->next into the word, and, where it is not jumped over, item->first.
            insn(0x79, 0x13, 8, 0),
            insn(0x7b, 0x3a, -8, 0),
            branch,
            insn(0x79, 0x13, 0, 0),
            insn(0x7b, 0x3a, -8, 0),
            insn(0x79, 0xa1, -8, 0),
            insn(0x85, 0, 0, 1),
            insn(0x95, 0, 0, 0),
        ];
        found_in(insns, 6)
    };
    // r5 != 0: two further on.
    assert!(found(insn(0x55, 5, 2, 0)).is_empty());
    assert_eq!(found(Insn::decode(NOTHING)), [0]);
}

/// The same where such a word is stored: the pointer that one path put there is not what the slot gets from the other.
#[test]
fn a_word_that_two_paths_fill_makes_no_pointer_of_where_it_is_stored() {
    let found = |branch: Insn| {
        let insns = vec![
            // item->first, a number, into the word, and, where it is not jumped over, the second argument, a pointer.
            insn(0x79, 0x13, 0, 0),
            insn(0x7b, 0x3a, -8, 0),
            branch,
            insn(0x7b, 0x2a, -8, 0),
            // The word into the same member of the other item.
            insn(0x79, 0xa4, -8, 0),
            insn(0x7b, 0x42, 0, 0),
            insn(0x95, 0, 0, 0),
        ];
        found_in(insns, usize::MAX)
    };
    assert!(found(insn(0x55, 5, 1, 0)).is_empty());
    assert_eq!(found(Insn::decode(NOTHING)), [0]);
}
