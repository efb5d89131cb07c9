//! Planted facts against what is read.

use std::time::{Duration, Instant};

use ktstr_monitor::bpf::path::Path;
use ktstr_monitor::bpf::{
    BpfLayout, BpfState, MapAnswer, MapInfo, Reader, WriteError, Writer, follow_all, query, the_map,
};
use ktstr_monitor::cast;
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::kernel::{LiveKernel, Profile};
use ktstr_monitor::mem::{GuestMem, GuestMemMut, Layout};
use ktstr_monitor::render::{Value, to_text};
use ktstr_monitor::types::Ty;

use crate::facts;
use crate::guest::Guest;

/// For what a guest does sooner or later.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn facts_planted_on_the_newest_are_read() {
    check(None);
}

#[test]
fn facts_planted_on_6_18_are_read() {
    check(Some("6.18"));
}

/// Another series: `KTSTR_MATRIX_KERNEL=6.16`.
#[test]
fn facts_planted_on_another_series_are_read() {
    match std::env::var("KTSTR_MATRIX_KERNEL") {
        Ok(series) => check(Some(&series)),
        Err(_) => println!("NOT RUN: KTSTR_MATRIX_KERNEL names no series"),
    }
}

fn check(series: Option<&str>) {
    let Some(guest) = Guest::boot(series) else { return };
    let (ram, len) = guest.ram(true);
    let layout = Layout::flat(len).expect("one region");
    let mem = GuestMem::map(&ram, layout.clone()).expect("guest memory maps");
    let file = std::fs::File::open(&guest.vmlinux).expect("the kernel's file");
    let profile = Profile::of(&KernelImage::read(file).expect("a vmlinux")).expect("a known kernel");
    let live = LiveKernel::locate(&profile, &mem).expect("a running kernel");
    let bpf = BpfLayout::of(profile.types());
    assert_eq!(bpf.absent(), Vec::<&ktstr_monitor::btf::FieldMissing>::new());
    let reader = Reader::new(&profile, &live, live.view(&mem), &bpf);

    values(&reader);
    let state = BpfState::read(&reader, Default::default());
    assert_eq!(state.damage, Vec::<String>::new());
    maps(&state);
    programs(&state);
    runs_are_counted(&reader);
    addresses(&state, &guest);
    storage(&state);
    struct_ops(&reader);
    casts(&reader);
    json(&state);

    let writable = GuestMemMut::map(&ram, layout).expect("guest memory maps for writing");
    writes(&reader, &writable, &guest);
}

fn value(reader: &Reader<'_>, map: &str, path: &str) -> Value {
    let parsed: Path = path.parse().expect("a path");
    let answer = query(reader, map, Some(&parsed), Default::default());
    match answer.unwrap_or_else(|e| panic!("{map} {path}: {e}")).unwrap_or_else(|| panic!("no map {map}")) {
        MapAnswer::Value(value) => value,
        MapAnswer::Map(_) => panic!("{map} {path}: a whole map"),
    }
}

fn values(reader: &Reader<'_>) {
    for (map, path, expected) in facts::VALUES {
        assert_eq!(to_text(&value(reader, map, path), 0), *expected, "{map} {path}");
    }
}

fn maps(state: &BpfState) {
    for (name, expected) in facts::MAPS {
        let dump = state.map(name).unwrap_or_else(|| panic!("no map {name}"));
        let text = dump.to_text();
        let mut lines: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
        lines.sort_unstable();
        assert_eq!(lines, *expected, "{name}");
    }
    for map in &state.maps {
        assert_eq!(map.damage, Vec::<String>::new(), "{}", map.info.name);
        assert_eq!(map.left_off, 0, "{}", map.info.name);
    }
}

fn programs(state: &BpfState) {
    let program = |name: &str| {
        let found = state.programs.iter().find(|program| program.info.name == name);
        &found.unwrap_or_else(|| panic!("no program {name}")).info
    };
    let plant = program("plant");
    assert_eq!((plant.kind.as_str(), plant.stats.as_ref().expect("stats").runs), ("syscall", 1));
    assert!(plant.sleepable && plant.jited);
    let names: Vec<&str> = plant
        .functions
        .iter()
        .map(|function| function.ty.set.get(function.ty.id).map_or("", |entry| entry.name.as_str()))
        .collect();
    assert!(names.contains(&"plant") && names.contains(&"follow"), "{names:?}");
    let enqueue = program("ktstr_enqueue");
    assert_eq!((enqueue.kind.as_str(), enqueue.attached_to.as_deref()), ("struct_ops", Some("enqueue")));
    assert!(*enqueue.verified_insns.as_ref().expect("verified") > 50);
}

/// The scheduler has just been attached; whoever waits for a CPU next makes it count.
fn runs_are_counted(reader: &Reader<'_>) {
    let runs = || {
        let state = BpfState::read(reader, Default::default());
        let enqueue = state.programs.iter().find(|program| program.info.name == "ktstr_enqueue");
        enqueue.and_then(|program| program.info.stats.as_ref().ok().map(|stats| stats.runs))
    };
    let until = Instant::now() + PATIENCE;
    while runs().expect("stats of the program") == 0 {
        assert!(Instant::now() < until, "nothing was queued in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What only the guest could say.
fn addresses(state: &BpfState, guest: &Guest) {
    let casts = state.map("plant_casts").expect("the map");
    let (_, _, third) = &casts.entries[2];
    let number = |path: &str| third.at(path).and_then(Value::as_number);
    assert_eq!(number("task"), Some(guest.task.into()));
    assert_eq!(number("node"), Some(guest.first_node.into()));
    assert_eq!(number("leaf"), Some((guest.first_node + 4096).into()));
    // The leaf's type is nowhere in the object: it must not be taken for another one.
    assert!(matches!(third.at("leaf"), Some(Value::Unsigned(_))), "{:?}", third.at("leaf"));
    let text = casts.to_text();
    assert!(text.contains("(cast→arena)") && text.contains("(cast→kernel)"), "{text}");
}

fn storage(state: &BpfState) {
    let tasks = state.map("plant_tasks").expect("the map");
    let [(key, None, value)] = &tasks.entries[..] else { panic!("{:?}", tasks.entries) };
    assert!(key.ends_with("\"scx-ktstr\""), "{key}");
    let pid = value.at("pid").and_then(Value::as_number).expect("a pid");
    assert!(key.starts_with(&format!("[{pid}] ")), "{key} {pid}");
    assert_eq!(value.at("cookie").and_then(Value::as_number), Some(0x7461_736b));
    assert_eq!(value.at("colour").map(|colour| to_text(colour, 0)).as_deref(), Some("PLANT_GREEN (2)"));
    // Every task that the scheduler knows has its virtual time.
    let known = state.map("task_vtime").expect("the map");
    assert!(known.entries.len() > 20, "{} tasks", known.entries.len());
}

fn struct_ops(reader: &Reader<'_>) {
    let text = |path: &str| to_text(&value(reader, "ktstr_ops", path), 0);
    assert_eq!(text("data.name"), "\"ktstr\"");
    assert_eq!(text("data.timeout_ms"), "5000");
    assert!(text("data.enqueue").ends_with("<ktstr_enqueue>"), "{}", text("data.enqueue"));
    assert!(text("data.select_cpu").ends_with("<ktstr_select_cp>"), "{}", text("data.select_cpu"));
    assert_eq!(text("data.dequeue"), "NULL");
}

/// All that is found is true, and all that can be known is found.
fn casts(reader: &Reader<'_>) {
    let maps = reader.maps().expect("maps").items;
    let programs = reader.programs().expect("programs").items;
    let mut found = Vec::new();
    for (set, casts) in cast::of_guest(reader, &programs, &maps) {
        for ((owner, offset), cast) in casts {
            let entry = set.get(owner).expect("a type");
            let member = match &entry.ty {
                Ty::Composite(composite) => {
                    composite.members.iter().find(|m| m.bit / 8 == offset).map(|m| m.name.clone())
                }
                Ty::Section { vars, .. } => {
                    let var = vars.iter().find(|v| v.offset == offset);
                    var.and_then(|var| set.get(var.var)).map(|var| var.name.clone())
                }
                _ => None,
            };
            let to = cast.to.set.get(cast.to.id).expect("a type").name.clone();
            found.push((entry.name.clone(), member.unwrap_or_default(), to));
        }
    }
    found.sort();
    let found: Vec<(&str, &str, &str)> =
        found.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str())).collect();
    let wrong = found.iter().filter(|cast| !facts::CASTS.contains(cast)).count();
    let all = facts::CASTS.len() + facts::MISSED.len();
    println!("casts: {} of {all} found, {wrong} wrong", found.len() - wrong);
    assert_eq!(found, facts::CASTS);
}

fn json(state: &BpfState) {
    let json = state.to_json();
    assert_eq!(json["schema"], "ktstr.bpf/1");
    let maps = json["maps"].as_array().expect("maps");
    let lru = maps.iter().find(|map| map["name"] == "plant_lru").expect("the map");
    let entries = lru["entries"].as_array().expect("entries");
    assert!(entries.iter().any(|e| e["key"] == "[1006]" && e["value"]["value"] == 216), "{entries:?}");
}

/// Writes every kind of place, and last the one that the scheduler reacts to.
fn writes(reader: &Reader<'_>, mem: &GuestMemMut, guest: &Guest) {
    let maps = reader.maps().expect("maps").items;
    let programs = reader.programs().expect("programs").items;
    let follow = follow_all(reader, &programs, &maps);
    let writer = Writer::new(reader, mem);
    let map = |name: &str| -> &MapInfo {
        the_map(reader, &maps, &programs, name).expect("one map").expect("the map")
    };
    // Two objects have variables; the one that the kernel has as its scheduler is meant.
    assert_eq!(maps.iter().filter(|map| map.is_called(".bss")).count(), 2, "{maps:?}");
    assert_eq!(map(".bss").name, "main_bpf.bss");
    let by_number = format!("#{}", map("plant_bp.bss").id);
    assert_eq!(map(&by_number).name, "plant_bp.bss");
    let write = |name: &str, path: &str, value: i128| {
        writer.write_field(map(name), &path.parse().expect("a path"), value, &follow)
    };
    for (name, path, number) in [
        ("plant_bp.data", "plant_scalars.u8v", 7),
        ("plant_bp.data", "plant_scalars.s16v", -5),
        ("plant_bp.data", "plant_scalars.u64v", 1 << 63),
        ("plant_bp.data", "plant_scalars.bits.thirteen", 8191),
        ("plant_bp.data", "plant_scalars.bits.forty", 1),
        ("plant_bp.data", "plant_scalars.colour", 2),
        ("plant_casts", "[3].plain", 33),
        ("plant_casts", "[2].node->next->payload[1]", 4321),
        ("plant_percpu", "[2]@1.y", -99),
        ("plant_hash", "[{6,60}].at.x", 1234),
        ("plant_pcpu_hash", "[0x1122334455667788]@0", 6),
    ] {
        write(name, path, number).unwrap_or_else(|e| panic!("{name} {path}: {e}"));
        assert_eq!(value(reader, name, path).as_number(), Some(number), "{name} {path}");
    }
    // Neighbours of a bitfield stay.
    let bits = to_text(&value(reader, "plant_bp.data", "plant_scalars.bits"), 0);
    assert_eq!(bits, "{three = 5, thirteen = 8191, minus = -7, forty = 1, last = 1}");
    let refused = write("plant_bp.data", "plant_scalars.u8v", 256);
    assert!(matches!(refused, Err(WriteError::TooLarge { .. })), "{refused:?}");
    let refused = write("plant_bp.data", "plant_scalars.points", 1);
    assert!(matches!(refused, Err(WriteError::NotScalar { .. })), "{refused:?}");
    let refused = write("plant_percpu", "[0].x", 1);
    assert!(matches!(refused, Err(WriteError::NeedsCpu { .. })), "{refused:?}");
    let refused = write("plant_hash", "[{6,61}].square", 1);
    assert!(matches!(refused, Err(WriteError::NoEntry { .. })), "{refused:?}");

    write("main_bpf.bss", "crash", 1).expect("the switch is written");
    guest.lines_with(["scx-ktstr: exit kind="]);
}
