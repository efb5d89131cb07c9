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
    headers_and_note(core);
    drgn(core, capture);
    crash(core, capture);
}

fn symbols() -> Option<String> {
    std::env::var("KTSTR_DEBUG_VMLINUX").ok()
}

/// By these `crash` and `drgn` find the kernel's release, its symbols with KASLR, and its page tables.
fn headers_and_note(core: &str) {
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
    let note = &head[*offset as usize..(*offset + *len) as usize];
    assert_eq!(&note[12..23], b"VMCOREINFO\0");
    let text = std::str::from_utf8(&note[24..]).expect("text").trim_end_matches('\0');
    let said: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let hex = |key: &str| u64::from_str_radix(said[key].trim_start_matches("0x"), 16).unwrap();
    assert_eq!(said["BUILD-ID"].len(), 40, "{text}");
    assert!(said.contains_key("OSRELEASE") && said["NUMBER(phys_base)"].parse::<i64>().is_ok(), "{text}");
    assert_eq!(hex("SYMBOL(_stext)") - hex("KERNELOFFSET"), 0xffff_ffff_8100_0000, "where it was linked to");
    assert!(hex("SYMBOL(init_top_pgt)") > hex("SYMBOL(_stext)"), "{text}");
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
