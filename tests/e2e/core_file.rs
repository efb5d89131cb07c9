//! What debuggers of other people make of a core file.
//!
//! What they need in its headers and in the kernel's note is looked at always; `drgn` and `crash` themselves
//! are asked where they are installed and `KTSTR_DEBUG_VMLINUX` names the kernel with debugging symbols.
//! `KTSTR_CRASH` names another `crash` than the one that is installed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::observe::{at, int};

/// `core` was taken at the same moment as `capture`.
pub fn is_what_debuggers_take(core: &str, capture: &Value) {
    headers_and_notes(core, capture);
    drgn(core, capture);
    crash(core, capture);
}

fn symbols() -> Option<String> {
    std::env::var("KTSTR_DEBUG_VMLINUX").ok()
}

/// By these `crash` and `drgn` find the kernel's release, its symbols with KASLR, its page tables, and where its CPUs
/// stood.
fn headers_and_notes(core: &str, capture: &Value) {
    let mut head = Vec::new();
    File::open(core).unwrap().take(1 << 20).read_to_end(&mut head).unwrap();
    let word = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&head[at..at + len]);
        u64::from_le_bytes(bytes)
    };
    let (first, count) = (word(32, 8) as usize, word(56, 2) as usize);
    let headers: Vec<usize> = (0..count).map(|nth| first + nth * 56).collect();
    // Kind, offset, length in the file, alignment.
    let fields = |at: &usize| (word(*at, 4), word(at + 8, 8), word(at + 32, 8), word(at + 48, 8));
    let headers: Vec<_> = headers.iter().map(fields).collect();
    assert!(headers.iter().all(|(.., align)| *align == 0), "crash takes others for dumps of old kernels");
    assert!(headers.iter().any(|(kind, ..)| *kind == 1), "memory");
    let (_, offset, len, _) = headers.iter().find(|(kind, ..)| *kind == 4).expect("notes");
    let mut notes = &head[*offset as usize..(*offset + *len) as usize];
    let (mut cpus, mut text) = (Vec::new(), String::new());
    while !notes.is_empty() {
        let part = |nth: usize| u32::from_le_bytes(notes[nth * 4..nth * 4 + 4].try_into().unwrap()) as usize;
        let (name, len, kind) = (part(0), part(1), part(2));
        let from = 12 + name.next_multiple_of(4);
        let body = &notes[from..from + len];
        match (&notes[12..12 + name - 1], kind) {
            (b"CORE", 1) => cpus.push(body.to_vec()),
            (b"VMCOREINFO", 0) => text = String::from_utf8(body.to_vec()).expect("text"),
            other => panic!("a note of another kind: {other:?}"),
        }
        notes = &notes[from + len.next_multiple_of(4)..];
    }
    registers(&cpus, capture);
    let said: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let hex = |key: &str| u64::from_str_radix(said[key].trim_start_matches("0x"), 16).unwrap();
    assert_eq!(said["BUILD-ID"].len(), 40, "{text}");
    assert!(said.contains_key("OSRELEASE") && said["NUMBER(phys_base)"].parse::<i64>().is_ok(), "{text}");
    assert_eq!(hex("SYMBOL(_stext)") - hex("KERNELOFFSET"), 0xffff_ffff_8100_0000, "where it was linked to");
    assert!(hex("SYMBOL(init_top_pgt)") > hex("SYMBOL(_stext)"), "{text}");
}

/// `struct elf_prstatus` of each CPU, as include/linux/elfcore.h and arch/x86/include/asm/user_64.h have it.
fn registers(found: &[Vec<u8>], capture: &Value) {
    const NAMES: [&str; 27] = [
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
        "rdi", "", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
    ];
    let queues = at(capture, "/rq").as_array().unwrap();
    assert_eq!(found.len(), queues.len(), "one note for each CPU");
    for (cpu, status) in found.iter().enumerate() {
        assert_eq!(status.len(), 336, "sizeof(struct elf_prstatus)");
        let pid = i32::from_le_bytes(status[32..36].try_into().unwrap());
        // Idle tasks of other CPUs than the first are in no list of tasks.
        let running = queues[cpu].pointer("/running/pid").and_then(Value::as_i64);
        assert_eq!(i64::from(pid), running.unwrap_or(0));
        let expected = at(capture, &format!("/registers/{cpu}"));
        for (nth, name) in NAMES.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let value = u64::from_le_bytes(status[112 + nth * 8..][..8].try_into().unwrap());
            assert_eq!(format!("{value:#x}"), at(expected, &format!("/{name}")).as_str().unwrap(), "{name}");
        }
    }
}

/// `drgn` reads the same run queues out of the core file.
fn drgn(core: &str, capture: &Value) {
    const SCRIPT: &str = r#"
import sys
from drgn import Program
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import for_each_task
prog = Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info([sys.argv[2]])
for cpu in for_each_possible_cpu(prog):
    rq = per_cpu(prog["runqueues"], cpu)
    print(int(rq.nr_running), int(rq.nr_switches), int(rq.clock), int(rq.scx.nr_running))
print(len({int(task.pid) for task in for_each_task(prog)} | {0}))
"#;
    let installed = Command::new("python3").args(["-c", "import drgn"]).output();
    let (true, Some(symbols)) = (installed.is_ok_and(|output| output.status.success()), symbols()) else {
        return println!("NOT RUN: drgn is not installed, or KTSTR_DEBUG_VMLINUX names no symbols");
    };
    let output = Command::new("python3").args(["-c", SCRIPT, core, &symbols]).output().expect("python3");
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("did not match any loaded modules") {
        return println!("NOT RUN: the debugging symbols are of another kernel");
    }
    assert!(output.status.success(), "{said}");
    let queue = |rq: &Value| {
        let members = ["/nr_running", "/nr_switches", "/clock", "/scx/nr_running"];
        members.map(|member| int(rq, member).to_string()).join(" ")
    };
    let mut expected: Vec<String> = at(capture, "/rq").as_array().unwrap().iter().map(queue).collect();
    expected.push(at(capture, "/tasks").as_array().unwrap().len().to_string());
    let found = String::from_utf8_lossy(&output.stdout);
    println!("drgn: {found}");
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
}

/// So does `crash`, and it knows what tasks do.
fn crash(core: &str, capture: &Value) {
    const COMMANDS: &str = "struct rq.nr_running,nr_switches,clock runqueues:a\nbt 1\nquit\n";
    let program = std::env::var("KTSTR_CRASH").unwrap_or_else(|_| "crash".to_owned());
    let Some(symbols) = symbols() else {
        return println!("NOT RUN: KTSTR_DEBUG_VMLINUX names no symbols");
    };
    // Published ones do not know the modules of kernel 7.
    let mut command = Command::new(&program);
    command.args(["-s", "--no_modules", &symbols, core]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = match command.stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => return println!("NOT RUN: {program}: {error}"),
    };
    child.stdin.take().unwrap().write_all(COMMANDS.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let found = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    println!("crash: {found}");
    if found.contains("do not match") {
        return println!("NOT RUN: the debugging symbols are of another kernel");
    }
    let members = ["nr_running", "nr_switches", "clock"];
    let line = |rq: &Value| members.map(|name| format!("  {name} = {},", int(rq, &format!("/{name}"))));
    let expected: Vec<String> = at(capture, "/rq").as_array().unwrap().iter().flat_map(line).collect();
    let is_one = |line: &&str| members.iter().any(|name| line.starts_with(&format!("  {name} = ")));
    assert_eq!(found.lines().filter(is_one).collect::<Vec<_>>(), expected);
    assert!(found.contains("PID: 1 ") && found.contains("] schedule at "), "{found}");
}
