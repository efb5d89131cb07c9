//! Entries for hostile bytes: what a guest or a kernel file can make the monitor read.
//!
//! Each takes any bytes, does with them what the monitor does, and panics only if an invariant breaks.
//! `fuzz/` beside this package feeds them from libFuzzer, [`super::hostile_bytes`] in every run of the
//! suite. Guest memory is made once per thread: what an entry writes into it, it takes away again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use ktstr_monitor::addr::{Gpa, Kva};
use ktstr_monitor::arch::{PageTables, aarch64, x86_64};
use ktstr_monitor::bpf::{BpfLayout, BpfState, DumpOptions, Limits, Reader};
use ktstr_monitor::btf::KernelTypes;
use ktstr_monitor::cast;
use ktstr_monitor::cast::code::{Callee, Code, CodeFunction, CodeMap, Meaning};
use ktstr_monitor::cast::insn::Insn;
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::kernel::state::{KernelState, Parts};
use ktstr_monitor::kernel::{LiveKernel, Profile};
use ktstr_monitor::mem::{GuestMem, GuestMemMut, Layout};
use ktstr_monitor::paging::KernelMem;
use ktstr_monitor::render::{NoDeref, Options, Renderer, to_json, to_text};
use ktstr_monitor::symbols::kallsyms::{Encoding, decode};
use ktstr_monitor::types::{TypeId, TypeRef, TypeSet};

use crate::bpf_types::{LEN, PLACE, object};
use crate::guest::{Guest, Shape, btf as kernel_btf};
use crate::kallsyms_writer::{image, symbols};
use crate::kernel_file::{LINK, elf};

/// An entry.
pub type Entry = fn(&[u8]);
/// All of them, by name.
pub const ENTRIES: [(&str, Entry); 7] = [
    ("btf", btf),
    ("kallsyms", kallsyms),
    ("walk", walk),
    ("render", render),
    ("cast", cast),
    ("maps", maps),
    ("tasks", tasks),
];

/// Bytes that an entry finds sound, or nearly.
pub fn seeds(entry: &str) -> Vec<Vec<u8>> {
    let small = object();
    let kernel = kernel_btf(&Shape::default()).section();
    match entry {
        "btf" => vec![small, kernel],
        "kallsyms" => [Encoding::PlaceRelative, Encoding::Base(ktstr_monitor::addr::Kva(LINK))]
            .map(|encoding| image(&symbols(20), encoding, 8)[0x800..].to_vec())
            .to_vec(),
        "walk" => (0..12u8).map(walk_seed).collect(),
        "render" => vec![with_btf(&small, &[7; 24]), with_btf(&kernel, &[3; 200])],
        "cast" => vec![cast_seed()],
        "maps" => vec![map_seed(1), map_seed(2), map_seed(5), map_seed(27)],
        "tasks" => vec![task_seed()],
        _ => Vec::new(),
    }
}

/// Bytes taken one after the other; at the end come zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let len = N.min(self.0.len());
        taken[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// What was read as JSON costs as much as reading it, and is asked for of one input in eight.
fn is_shown_as_json(data: &[u8]) -> bool {
    data.len().is_multiple_of(8)
}

/// Type information, and what is asked of it.
pub fn btf(data: &[u8]) {
    if let Ok(types) = KernelTypes::parse(data) {
        for (name, path) in
            [("rq", "nr_running"), ("rq", "clock"), ("rq", "scx.local_dsq.nr"), ("item", "next")]
        {
            if let (Ok(field), Ok(size)) = (types.field(name, path), types.size_of(name)) {
                assert!(field.offset + field.size <= size, "{name}.{path}");
            }
        }
        let _ = (types.members("rq"), types.enumerators("item"));
    }
    let Ok(set) = TypeSet::parse("hostile", data) else { return };
    let set = Arc::new(set);
    for id in set.ids().take(64) {
        let _ = (set.size(id), set.c_name(id), set.strip(id).is_some(), set.member(id, "next").is_some());
    }
    // The same bytes as the types of a module on top of them.
    let _ = TypeSet::parse_split("split", data, &set).map(|split| split.ids().count());
}

/// Symbol tables in the image of a kernel.
pub fn kallsyms(data: &[u8]) {
    static TYPES: LazyLock<Vec<u8>> = LazyLock::new(object);
    let mut bytes = vec![0xcc; 0x800];
    bytes.extend_from_slice(data);
    let Ok(image) = KernelImage::parse(elf(&bytes, &TYPES, &[])) else { return };
    if let Ok(symbols) = decode(&image) {
        assert_eq!(symbols.get("_text"), Some(Kva(LINK)));
        assert!(symbols.iter().count() == symbols.len());
        let _ = (symbols.at(Kva(LINK + 40)), symbols.name_at(Kva(LINK)));
    }
}

/// 64 KiB of page tables.
const TABLES: u64 = 0x1_0000;

/// Room for tables that one thread has for itself: zeros, between two inputs.
struct Room {
    memory: GuestMemMut,
    /// The same bytes, for comparison.
    bytes: RefCell<Vec<u8>>,
}

impl Room {
    fn new() -> Self {
        let memory = GuestMemMut::map(crate::guest::ram(TABLES), Layout::flat(TABLES).unwrap()).unwrap();
        Self { memory, bytes: RefCell::new(vec![0; TABLES as usize]) }
    }

    fn put(&self, at: usize, word: [u8; 8]) {
        self.memory.write(Gpa(at as u64), &word).unwrap();
        self.bytes.borrow_mut()[at..at + 8].copy_from_slice(&word);
    }
}

thread_local! {
    static ROOM: Room = Room::new();
}

/// Page tables of every kind: one byte for the kind, addresses to look up, then entries.
pub fn walk(data: &[u8]) {
    let mut input = Input(data);
    let table = tables_of(input.byte());
    let kvas: [u64; 4] = std::array::from_fn(|_| input.word());
    let entries: Vec<usize> =
        input.0.chunks(10).map(|raw| usize::from(raw[0]) & !7 | second(raw) << 8).collect();
    ROOM.with(|room| {
        for at in &entries {
            input.take::<2>();
            room.put(*at, input.take());
        }
        look_up(room, table, kvas.map(Kva));
        // As it was for the next one.
        for at in &entries {
            room.put(*at, [0; 8]);
        }
    });
}

fn second(raw: &[u8]) -> usize {
    raw.get(1).copied().unwrap_or(0).into()
}

fn look_up(room: &Room, table: PageTables, kvas: [Kva; 4]) {
    let bytes = room.bytes.borrow();
    let mem = KernelMem::new(room.memory.read(), table);
    for (nth, kva) in kvas.into_iter().enumerate() {
        let walked = mem.translate(kva);
        assert!(walked.is_err() || mem.is_canonical(kva), "{kva} is no address");
        let mut into = [0; 64];
        let read = mem.read(kva, &mut into);
        if let Ok(mapped) = walked {
            assert!(mapped.left >= 1 && (mapped.gpa.0 + mapped.left).is_multiple_of(4096));
            let inside = mapped.gpa.0 + 64 <= TABLES && mapped.left >= 64;
            assert!(!inside || (read.is_ok() && into == bytes[mapped.gpa.0 as usize..][..64]));
        }
        // All 512 of them, so not for each address.
        if nth < 2
            && let Ok(pieces) = mem.neighbours(kva)
        {
            let own = pieces[(kva.0 >> 12) as usize % 512];
            let expected = walked.ok().map(|mapped| Gpa(mapped.gpa.0 & !0xfff));
            assert!(own == expected, "{kva}: {own:?}, not {expected:?}");
        }
        let _ = mem.read_string(kva, 300);
    }
}

fn tables_of(kind: u8) -> PageTables {
    use aarch64::Granule::{K4, K16, K64};
    let arm = |granule: aarch64::Granule, va_bits, wide| {
        let root = Gpa((1 << granule.shift()) % TABLES);
        PageTables::from(aarch64::PageTable { root, granule, va_bits, wide })
    };
    let root = Gpa(0x1000);
    match kind % 12 {
        0 => x86_64::PageTable { root, levels: x86_64::Levels::Four }.into(),
        1 => x86_64::PageTable { root, levels: x86_64::Levels::Five }.into(),
        2 => arm(K4, 39, false),
        3 => arm(K4, 48, false),
        4 => arm(K4, 52, true),
        5 => arm(K16, 36, false),
        6 => arm(K16, 47, false),
        7 => arm(K16, 48, false),
        8 => arm(K16, 52, true),
        9 => arm(K64, 42, false),
        10 => arm(K64, 48, false),
        _ => arm(K64, 52, true),
    }
}

/// Tables that lead into themselves and to a page, from the first entry on.
fn walk_seed(kind: u8) -> Vec<u8> {
    let mut seed = vec![kind];
    let base = match kind {
        0 => 0xffff_8000_0000_0000,
        1 => 0xff00_0000_0000_0000,
        2 => u64::MAX << 39,
        5 => u64::MAX << 36,
        6 => u64::MAX << 47,
        9 => u64::MAX << 42,
        3 | 7 | 10 => u64::MAX << 48,
        _ => u64::MAX << 52,
    };
    for word in [base, base + 0x1008, base + (2 << 20), u64::MAX - 100] {
        seed.extend(word.to_le_bytes());
    }
    let root = match kind {
        0..=4 => 0x1000u16,
        5..=8 => 0x4000,
        _ => 0,
    };
    for (at, entry) in [(root, u64::from(root) | 3), (root + 8, 0x8003), (root + 0x800, u64::from(root) | 3)]
    {
        seed.extend(at.to_le_bytes());
        seed.extend(entry.to_le_bytes());
    }
    seed
}

fn with_btf(section: &[u8], value: &[u8]) -> Vec<u8> {
    let mut seed = (section.len() as u16).to_le_bytes().to_vec();
    seed.extend_from_slice(section);
    seed.extend_from_slice(value);
    seed
}

/// A length, that many bytes of types, and a value to be shown as each of them.
pub fn render(data: &[u8]) {
    let mut input = Input(data);
    let len = usize::from(u16::from_le_bytes(input.take())).min(input.0.len());
    let (section, value) = input.0.split_at(len);
    let Ok(set) = TypeSet::parse("hostile", section) else { return };
    let set = Arc::new(set);
    let options = Options { nodes: 400, elements: 64, ..Options::default() };
    let mut renderer = Renderer::new(&NoDeref, options);
    for id in set.ids().take(64) {
        let ty = TypeRef::new(&set, id);
        let rendered = renderer.render(&ty, value);
        assert!(!to_text(&rendered, 0).is_empty());
        assert!(!is_shown_as_json(data) || !to_json(&rendered).to_string().is_empty());
    }
}

/// Instructions of a program with a map, a global and functions at places that the input names.
pub fn cast(data: &[u8]) {
    static TYPES: LazyLock<Arc<TypeSet>> =
        LazyLock::new(|| Arc::new(TypeSet::parse("object", &object()).unwrap()));
    let set = &*TYPES;
    let item = TypeRef::new(set, TypeId(5));
    let map = Arc::new(CodeMap {
        value: Some(item.clone()),
        per_cpu: false,
        stride: 24,
        first: Some(88),
        pointers: Some(88),
        in_element: Some(40),
    });
    let mut input = Input(data);
    let meanings: [[u8; 2]; 8] = std::array::from_fn(|_| input.take());
    let starts = input.take::<4>();
    // More of them find nothing that fewer do not, and take longer.
    let insns: Vec<Insn> =
        input.0.chunks_exact(8).take(96).map(|raw| Insn::decode(*raw.as_array().unwrap())).collect();
    let mut functions = vec![CodeFunction {
        start: 0,
        takes: vec![Some(item.clone())],
        static_takes: Vec::new(),
        context: vec![Some(item.clone()), None],
    }];
    let mut starts: Vec<usize> =
        starts.map(usize::from).into_iter().filter(|&s| s > 0 && s < insns.len()).collect();
    starts.sort_unstable();
    starts.dedup();
    functions.extend(starts.iter().map(|&start| CodeFunction {
        start,
        takes: Vec::new(),
        static_takes: Vec::new(),
        context: Vec::new(),
    }));
    let (mut constants, mut calls) = (HashMap::new(), HashMap::new());
    for [kind, at] in meanings {
        let at = usize::from(at);
        match kind % 6 {
            0 => drop(constants.insert(at, Meaning::Map(Arc::clone(&map)))),
            1 => drop(constants.insert(at, Meaning::Global { section: item.clone(), offset: 8 })),
            2 => drop(calls.insert(at, Callee::MapValue)),
            3 => drop(calls.insert(at, Callee::returning(item.clone()))),
            4 => drop(calls.insert(at, Callee::MapUpdate)),
            _ => drop(calls.insert(at, Callee::Function(starts.first().copied().unwrap_or(0)))),
        }
    }
    let (name, types, cpu_pointers) = ("any".into(), Arc::clone(set), HashMap::new());
    let code = Code { name, insns, functions, types, constants, calls, cpu_pointers };
    let resolved = cast::resolve(set, &[code], &|_| false);
    for (slot, to, _) in resolved.iter() {
        let owner = TypeRef::new(set, slot.owner);
        assert!(owner.size().is_some_and(|size| slot.offset + 8 <= size), "{slot:?}");
        assert!(to.to.size().is_some());
    }
}

/// Looks a value up, stores what it holds into a global, follows it.
fn cast_seed() -> Vec<u8> {
    let mut seed = vec![0, 0, 2, 2, 1, 6, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 0, 0, 0, 0];
    let insns: [[u8; 8]; 12] = [
        [0x18, 0x01, 0, 0, 0, 0, 0, 0],
        [0; 8],
        [0x85, 0, 0, 0, 1, 0, 0, 0],
        [0x15, 0x00, 8, 0, 0, 0, 0, 0],
        [0x79, 0x01, 8, 0, 0, 0, 0, 0],
        [0x7b, 0x10, 0, 0, 0, 0, 0, 0],
        [0x18, 0x02, 0, 0, 0, 0, 0, 0],
        [0; 8],
        [0x7b, 0x12, 0, 0, 0, 0, 0, 0],
        [0x61, 0x13, 16, 0, 0, 0, 0, 0],
        [0x05, 0, 0xf9, 0xff, 0, 0, 0, 0],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    seed.extend(insns.concat());
    seed
}

/// A guest that one thread has for itself.
struct Fixed {
    guest: Guest,
    mem: GuestMem,
    profile: Profile,
    live: LiveKernel,
    layout: BpfLayout,
}

impl Fixed {
    fn new() -> Self {
        // One CPU: each is read the same way, and takes its time.
        let guest = Guest::new(Shape { cpus: 1, ..Shape::default() });
        guest.plant_tasks(3);
        let mem = guest.mem();
        let profile = Profile::of(&KernelImage::parse(guest.kernel.clone()).unwrap()).unwrap();
        let live = LiveKernel::locate(&profile, &mem).unwrap();
        let layout = BpfLayout::of(profile.types());
        Self { guest, mem, profile, live, layout }
    }
}

thread_local! {
    static FIXED: Fixed = Fixed::new();
}

/// Words whose upper half is this are addresses of the place itself: nobody guesses those.
const HERE: u64 = 0xbcbc_bcbc;

/// The words of an input, with addresses put in.
fn plant(data: &[u8], base: u64, len: u64) -> Vec<u8> {
    let words = data.chunks_exact(8).take(512).map(|raw| u64::from_le_bytes(*raw.as_array().unwrap()));
    let address = |word: u64| match word >> 32 {
        HERE => base + (word & 0xffff_ffff) % len,
        _ => word,
    };
    words.flat_map(|word| address(word).to_le_bytes()).collect()
}

fn here(into: u64) -> u64 {
    HERE << 32 | into
}

/// Maps and programs: the first two words are the heads of their trees, the rest is memory.
pub fn maps(data: &[u8]) {
    FIXED.with(|fixed| {
        let guest = &fixed.guest;
        let planted = plant(data, guest.page_offset() + PLACE, LEN);
        let heads = planted.first_chunk::<16>().copied().unwrap_or_default();
        let rest = planted.get(16..).unwrap_or_default();
        guest.write(guest.variable("map_idr") + 8, &heads[..8]);
        guest.write(guest.variable("prog_idr") + 8, &heads[8..]);
        guest.write(PLACE, rest);
        let reader = Reader::new(&fixed.profile, &fixed.live, fixed.live.view(&fixed.mem), &fixed.layout)
            .at_most(2000);
        let limits = Limits { entries: 8, bytes: 4096 };
        let render = Options { nodes: 200, elements: 16, ..Options::default() };
        let state = BpfState::read(&reader, DumpOptions { limits, render });
        assert!(!state.to_text().contains('\0'));
        assert!(!is_shown_as_json(data) || state.to_json().is_object());
        guest.write(PLACE, &vec![0; rest.len()]);
    });
}

/// A map of one kind, alone in the tree.
fn map_seed(kind: u32) -> Vec<u8> {
    let mut words = vec![here(0), 0];
    let mut place = [0u64; 160];
    let halves = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    place[0] = halves(kind, if kind == 2 { 4 } else { 8 });
    place[1] = halves(24, 2);
    place[2] = halves(0, 7);
    place[3] = halves(0, 5);
    place[5] = here(0x400);
    place[6] = u64::from_le_bytes(*b"made_up\0");
    place[10] = if kind == 2 { 24 } else { here(0x200) };
    place[11] = if kind == 2 { 77 } else { 2 };
    place[0x200 / 8] = here(0x300);
    place[0x210 / 8] = 3;
    place[0x300 / 8] = 1;
    place[0x320 / 8] = 42;
    place[0x328 / 8] = 1000;
    place[0x330 / 8] = here(0x328);
    let object = object();
    place[0x400 / 8] = here(0x500);
    place[0x408 / 8] = halves(object.len() as u32, 9);
    words.extend(place);
    for chunk in object.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        words.push(u64::from_le_bytes(word));
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The first task and its lists.
pub fn tasks(data: &[u8]) {
    FIXED.with(|fixed| {
        let guest = &fixed.guest;
        let planted = plant(data, guest.task(1), 0x400);
        let planted = &planted[..planted.len().min(0x300)];
        guest.plant_tasks(3);
        guest.write(guest.task_gpa(1), planted);
        guest.write_u64(
            guest.variable("scx_root"),
            planted.first_chunk().map_or(0, |w| u64::from_le_bytes(*w)),
        );
        let state = KernelState::read(&fixed.profile, &fixed.live, &fixed.mem, Parts::ALL);
        if is_shown_as_json(data) {
            let node = state.node();
            assert!(!node.text().is_empty() && serde_json::to_string(&node).is_ok());
        }
        guest.write(guest.task_gpa(1), &vec![0; planted.len()]);
    });
}

/// A task that leads to itself.
fn task_seed() -> Vec<u8> {
    let mut words = [0u64; 40];
    words[0] = here(0);
    words[2] = here(168);
    words[4] = here(160);
    words[5] = 5;
    words[6] = u64::from_le_bytes(*b"any-task");
    words[21] = here(16);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
