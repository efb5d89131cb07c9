//! Cast analysis against the truth: the types that a scheduler's source declares are taken out of its
//! object's BTF, and what the analysis finds in their place is compared with them.
//!
//! Every pointer to a structure that is a member of a structure of the program's own, or a global
//! variable, becomes a `u64`; the kernel's structures stay as they are. What is found must be what was
//! declared. How much of it is found is printed, for each hidden alone and for all at once: a pointer
//! that no program follows leaves no trace, and where nothing is declared nothing says what is stored.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ktstr_monitor::btf::KernelTypes;
use ktstr_monitor::cast::object;
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::types::{TypeRef, TypeSet};
use object_file::{Object, ObjectSection};

use crate::guest::{executable, stored_kernel};
use crate::object::casts;

extern crate object as object_file;

/// Owner, member, and the structure that it points at.
type Declared = BTreeMap<(String, String), String>;

/// A type record of a BTF section.
struct Record {
    at: usize,
    name: String,
    kind: u32,
    count: usize,
    of: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn name(strings: &[u8], at: u32) -> String {
    let text = strings.get(at as usize..).unwrap_or_default();
    String::from_utf8_lossy(text.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The records of `btf` by number, from 1 on, and its strings.
fn records(btf: &[u8]) -> (Vec<Record>, &[u8]) {
    let header = word(btf, 4) as usize;
    let (types, len) = (header + word(btf, 8) as usize, word(btf, 12) as usize);
    let strings = &btf[header + word(btf, 16) as usize..];
    let (mut at, mut found) = (types, Vec::new());
    found.push(Record { at: 0, name: String::new(), kind: 0, count: 0, of: 0 });
    while at < types + len {
        let info = word(btf, at + 4);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let of = word(btf, at + 8);
        found.push(Record { at, name: name(strings, word(btf, at)), kind, count, of });
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => count * 12,
                6 | 13 => count * 8,
                _ => 0,
            };
    }
    (found, strings)
}

/// Without typedefs, qualifiers and tags.
fn strip(records: &[Record], id: u32) -> u32 {
    let mut id = id;
    for _ in 0..32 {
        match records.get(id as usize) {
            Some(record) if matches!(record.kind, 8..=11 | 18) => id = record.of,
            _ => break,
        }
    }
    id
}

/// Takes the declared types out of an object, in place, all or one by number; says what they were.
fn hide(elf: &mut [u8], only: Option<usize>, is_kernels: &dyn Fn(&str) -> bool) -> Declared {
    let file = object_file::File::parse(&*elf).expect("an ELF");
    let (from, len) = file.section_by_name(".BTF").and_then(|s| s.file_range()).expect("types");
    let btf = elf[from as usize..(from + len) as usize].to_vec();
    let (records, strings) = records(&btf);
    let long = records.iter().position(|r| r.kind == 1 && r.of == 8 && word(&btf, r.at + 12) == 64);
    let long = long.expect("a number of 64 bits") as u32;
    let pointee = |id: u32| {
        let pointer = &records[strip(&records, id) as usize];
        let to = (pointer.kind == 2).then(|| &records[strip(&records, pointer.of) as usize])?;
        (to.kind == 4 && !to.name.is_empty()).then(|| to.name.clone())
    };
    let mut declared = Declared::new();
    let mut seen = 0;
    let mut patch = |at: usize, owner: &str, member: String, to: String| {
        seen += 1;
        if only.is_some_and(|nth| nth + 1 != seen) {
            return;
        }
        elf[from as usize + at..][..4].copy_from_slice(&long.to_le_bytes());
        declared.insert((owner.to_owned(), member), to);
    };
    for record in &records {
        match record.kind {
            // Structures without names describe maps; `task_struct___old` is a `task_struct` of another kernel.
            4 if !record.name.is_empty()
                && !is_kernels(record.name.split("___").next().unwrap_or_default()) =>
            {
                for nth in 0..record.count {
                    let at = record.at + 12 + nth * 12;
                    if let Some(to) = pointee(word(&btf, at + 4)) {
                        patch(at + 4, &record.name, name(strings, word(&btf, at)), to);
                    }
                }
            }
            15 if [".bss", ".data"].contains(&record.name.as_str()) => {
                for nth in 0..record.count {
                    let var = &records[word(&btf, record.at + 12 + nth * 12) as usize];
                    if let (14, Some(to)) = (var.kind, pointee(var.of)) {
                        patch(var.at + 8, &record.name, var.name.clone(), to);
                    }
                }
            }
            _ => {}
        }
    }
    declared
}

/// What was found of what was hidden, of all objects in one executable.
#[derive(Default, Debug)]
struct Score {
    hidden: usize,
    found: usize,
    /// Found when nothing else was hidden.
    alone: usize,
    missed: Vec<String>,
    wrong: Vec<String>,
    /// Numbers in the source that lead somewhere: whether that is true says [`REVIEWED`].
    more: Vec<String>,
}

/// Whether a pointer to `truth` is one to `found`, too: it is the same, or its first member.
fn agrees(set: &Arc<TypeSet>, truth: &str, found: &str) -> bool {
    let is_found = |ty: TypeRef| set.get(ty.id).is_some_and(|entry| entry.name == found);
    let whole = set.composite(truth).map(|(id, _)| TypeRef::new(set, id));
    truth == found || whole.is_some_and(|whole| whole.beginnings().any(is_found))
}

/// Whether the declared type of that number is found when only it is hidden.
fn alone(sound: &[u8], nth: usize, is_kernels: &dyn Fn(&str) -> bool, wrong: &mut Vec<String>) -> bool {
    let mut elf = sound.to_vec();
    let Some(((owner, member), truth)) = hide(&mut elf, Some(nth), is_kernels).into_iter().next() else {
        return false;
    };
    let code = object::parse("hidden", &elf).expect("only a type was changed");
    let found = casts(&code, is_kernels).into_iter().find(|(o, m, _)| *o == owner && *m == member);
    let Some((_, _, to)) = found else { return false };
    let agrees = agrees(&code.types, &truth, &to);
    if !agrees {
        wrong.push(format!("{owner}.{member} -> {to}, declared as {truth}"));
    }
    agrees
}

fn score(path: &PathBuf, kernel: &HashSet<String>) -> Score {
    let bytes = fs::read(path).expect("the executable");
    let is_kernels = |name: &str| kernel.contains(name);
    let mut score = Score::default();
    for elf in object::embedded(&bytes) {
        let mut elf = elf.to_vec();
        if object::parse("hidden", &elf).is_err() {
            continue;
        }
        let sound = elf.clone();
        let declared = hide(&mut elf, None, &is_kernels);
        score.alone +=
            (0..declared.len()).filter(|nth| alone(&sound, *nth, &is_kernels, &mut score.wrong)).count();
        let code = object::parse("hidden", &elf).expect("only types were changed");
        score.hidden += declared.len();
        let mut found = casts(&code, &is_kernels);
        found.dedup();
        for (owner, member, to) in found {
            let what = format!("{owner}.{member} -> {to}");
            match declared.get(&(owner, member)) {
                Some(truth) if agrees(&code.types, truth, &to) => score.found += 1,
                Some(truth) => score.wrong.push(format!("{what}, declared as {truth}")),
                None => score.more.push(what),
            }
        }
        let found: HashSet<_> = casts(&code, &is_kernels).into_iter().map(|(o, m, _)| (o, m)).collect();
        let missed = declared.iter().filter(|(slot, _)| !found.contains(slot));
        score.missed.extend(missed.map(|((owner, member), to)| format!("{owner}.{member} -> {to}")));
    }
    score
}

/// The names of the kernel's structures; `KTSTR_MATRIX_KERNEL` names another series than the newest.
fn kernel_structures() -> Option<HashSet<String>> {
    let series = std::env::var("KTSTR_MATRIX_KERNEL").ok();
    let (_, vmlinux) = stored_kernel(series.as_deref())?;
    println!("structures of {}", vmlinux.display());
    let image =
        KernelImage::parse(fs::read(vmlinux).expect("a stored kernel is read")).expect("it is a vmlinux");
    let types = KernelTypes::parse(image.section(".BTF").expect("it has BTF")).expect("its BTF is read");
    let set = types.graph();
    Some(set.ids().filter_map(|id| set.get(id)).map(|entry| entry.name.clone()).collect())
}

/// Numbers in the sources of these schedulers that lead somewhere, each looked at by a person in the source.
/// Anything else that is found in a number is taken for wrong, and what is no longer found of a scheduler is to go from
/// its list.
const REVIEWED: [(&str, &[&str]); 3] = [
    ("scx-ktstr", &["plant_casts.task -> task_struct"]),
    (
        "scx_lavd",
        &[
            "arena_topology_node_init_args.bitmap -> scx_bitmap",
            "cpu_ctx.cached_task -> task_struct",
            "cpu_ctx.cached_taskc_raw -> task_ctx",
            "scx_task_map_val.tptr -> task_struct",
        ],
    ),
    (
        "scx_p2dq",
        &["arena_topology_node_init_args.bitmap -> scx_bitmap", "scx_task_map_val.tptr -> task_struct"],
    ),
];

/// What was found in numbers of the scheduler `name` and nobody has looked at, and what was looked at and is not found.
fn against_review<'a>(name: &str, more: &'a [String]) -> (Vec<&'a str>, Vec<&'static str>) {
    let known = |what: &&str| REVIEWED.iter().any(|(_, reviewed)| reviewed.contains(what));
    let of_it = REVIEWED.iter().filter(|(scheduler, _)| *scheduler == name);
    let is_gone = |what: &&str| !more.iter().any(|found| found == what);
    let invented = more.iter().map(String::as_str).filter(|what| !known(what)).collect();
    (invented, of_it.flat_map(|(_, reviewed)| *reviewed).copied().filter(is_gone).collect())
}

#[test]
fn a_review_knows_what_is_new_and_what_is_gone() {
    let more = ["cpu_ctx.cached_task -> task_struct", "a.b -> c"].map(str::to_owned);
    assert_eq!(against_review("scx_other", &more), (vec!["a.b -> c"], vec![]));
    let (_, gone) = against_review("scx_lavd", &more);
    assert_eq!(gone.len(), 3, "{gone:?}");
    assert_eq!(against_review("scx-ktstr", &[]).1, ["plant_casts.task -> task_struct"]);
}

/// All numbers and pointers to nothing in particular that hold pointers to one structure, in globals and in structures of
/// the scheduler's own: what a build would declare whose author gave them their types. Read out of the sources of 1.1.4.
/// Not here: raw memory of allocators, what holds numbers as well (`scx_minheap_elem.elem`), members of structures
/// without a name.
const UNDECLARED: [(&str, &[&str]); 2] = [
    (
        "scx_lavd",
        &[
            ".bss.cbw_cgx_free_head -> scx_cgroup_ctx",
            ".bss.cbw_llcx_free_head -> scx_cgroup_llc_ctx",
            ".bss.topo_nodes -> topology",
            "arena_alloc_mask_args.bitmap -> scx_bitmap",
            "arena_topology_node_init_args.bitmap -> scx_bitmap",
            "cbw_cgrp_entry.cgx -> scx_cgroup_ctx",
            "cbw_llc_entry.llcx -> scx_cgroup_llc_ctx",
            "cpu_ctx.cached_task -> task_struct",
            "cpu_ctx.cached_taskc_raw -> task_ctx",
            "rbnode.value -> scx_task_common",
            "scx_cgroup_llc_ctx.free_next -> scx_cgroup_llc_ctx",
            "scx_task_cgroup_bw.cgx_raw -> scx_cgroup_ctx",
            "scx_task_cgroup_bw.llcx_raw -> scx_cgroup_llc_ctx",
            "scx_task_map_val.data -> task_ctx",
            "scx_task_map_val.tptr -> task_struct",
        ],
    ),
    (
        "scx_p2dq",
        &[
            ".bss.topo_nodes -> topology",
            "arena_alloc_mask_args.bitmap -> scx_bitmap",
            "arena_topology_node_init_args.bitmap -> scx_bitmap",
            "rbnode.value -> scx_task_common",
            "scx_task_map_val.data -> task_p2dq",
            "scx_task_map_val.tptr -> task_struct",
        ],
    ),
];

/// The object as it was built, against what its author could have declared.
#[derive(Default, Debug, PartialEq, Eq)]
struct AsBuilt {
    found: Vec<String>,
    missed: Vec<String>,
    /// The structure that it leads to is in no type information: nobody could name it.
    nameless: Vec<String>,
    wrong: Vec<String>,
}

fn as_built(path: &PathBuf, kernel: &HashSet<String>, truths: &[&str]) -> AsBuilt {
    let bytes = fs::read(path).expect("the executable");
    let (mut score, mut named) = (AsBuilt::default(), HashSet::new());
    let mut casted = Vec::new();
    let mut sets = Vec::new();
    for elf in object::embedded(&bytes) {
        let Ok(code) = object::parse("as built", elf) else { continue };
        casted.extend(casts(&code, &|name: &str| kernel.contains(name)));
        sets.push(code.types);
    }
    for truth in truths {
        let (slot, to) = truth.split_once(" -> ").expect("a place and a structure");
        let (owner, member) = slot.rsplit_once('.').expect("an owner and a member");
        let has = |set: &Arc<TypeSet>| set.composite(owner).is_some() || owner == ".bss";
        let mut found = casted.iter().filter(|(o, m, _)| o == owner && m == member).map(|(_, _, to)| to);
        let is_true = |found: &String| sets.iter().any(|set| agrees(set, to, found));
        named.insert((owner.to_owned(), member.to_owned()));
        match found.next() {
            Some(found) if is_true(found) => score.found.push((*truth).into()),
            Some(found) => score.wrong.push(format!("{slot} -> {found}, in truth {to}")),
            None if sets.iter().any(|set| has(set) && set.composite(to).is_some()) => {
                score.missed.push((*truth).into());
            }
            None => score.nameless.push((*truth).into()),
        }
    }
    let beyond = casted.iter().filter(|(o, m, _)| !named.contains(&(o.clone(), m.clone())));
    score.wrong.extend(beyond.map(|(o, m, to)| format!("{o}.{m} -> {to}, of which the sources say nothing")));
    score
}

#[test]
fn what_is_found_in_published_objects_is_what_their_sources_hold() {
    let published = std::env::var("KTSTR_PUBLISHED").unwrap_or_default();
    let mut compared = 0;
    let Some(kernel) = kernel_structures() else { return };
    for path in published.split(':').filter(|path| !path.is_empty()).map(PathBuf::from) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((_, truths)) = UNDECLARED.iter().find(|(of, _)| *of == name) else { continue };
        let score = as_built(&path, &kernel, truths);
        println!(
            "{name}: of {} undeclared pointers {} found, {} missed, {} to structures without a type, {} wrong: {score:#?}",
            truths.len(),
            score.found.len(),
            score.missed.len(),
            score.nameless.len(),
            score.wrong.len()
        );
        assert!(score.wrong.is_empty() && !score.found.is_empty(), "{score:#?}");
        compared += 1;
    }
    if compared == 0 {
        println!("NOT RUN: KTSTR_PUBLISHED names none of {:?}", UNDECLARED.map(|(name, _)| name));
    }
}

/// `scx-ktstr` always, and the schedulers named in `KTSTR_PUBLISHED` (paths, separated by colons).
#[test]
fn what_is_found_is_what_was_declared() {
    let Some(kernel) = kernel_structures() else { return };
    let published = std::env::var("KTSTR_PUBLISHED").unwrap_or_default();
    let mut paths = vec![executable("scx-ktstr")];
    paths.extend(published.split(':').filter(|path| !path.is_empty()).map(PathBuf::from));
    if paths.len() == 1 {
        println!("NOT RUN for published schedulers: KTSTR_PUBLISHED names none");
    }
    for path in &paths {
        let score = score(path, &kernel);
        let Score { hidden, found, alone, missed, wrong, more } = &score;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let path = path.display();
        println!(
            "{path}: of {hidden} found {alone} each by itself, {found} all at once, {} wrong",
            wrong.len()
        );
        println!("  missed: {missed:?}\n  numbers in the source that are pointers: {more:?}");
        assert!(wrong.is_empty(), "{wrong:#?}");
        let (invented, gone) = against_review(&name, more);
        assert!(invented.is_empty(), "numbers that nobody has seen to be pointers: {invented:#?}");
        assert!(gone.is_empty(), "no longer found, so no longer to be in REVIEWED: {gone:#?}");
        assert!(*hidden > 0, "{path} declares pointers");
    }
}
