//! Kernels that chose their page tables themselves: five levels or four, direct map and stacks at random places.
//!
//! Machines of ktstr enter the kernel by its PVH entry, which knows four levels and moves nothing but the image. So
//! these boot as from a disk, through the kernel's own decompressor, until it finds no root. What is read is compared
//! with the emulated CPU's own walk (`gva2gpa`), its CR4, and what the kernel says when it panics.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ktstr_monitor::GuestKernel;
use ktstr_monitor::addr::{Gpa, Kva};
use ktstr_monitor::arch::x86_64::{Levels, PageTable};
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::kernel::state::Parts;
use ktstr_monitor::kernel::{LiveKernel, Profile};
use ktstr_monitor::mem::{GuestMem, Layout};
use ktstr_proto::capture::{Question, Structure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use crate::guest::stored_kernel;

/// Emulated, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(300);
const MEMORY: u64 = 512 << 20;
/// Where the direct map begins unless it is moved (`__PAGE_OFFSET_BASE_L4`, `_L5`).
const UNMOVED: [(Levels, u64); 2] =
    [(Levels::Four, 0xffff_8880_0000_0000), (Levels::Five, 0xff11_0000_0000_0000)];
/// `X86_CR4_LA57`.
const LA57: u64 = 1 << 12;

/// An emulator with a kernel in it; killed when dropped.
struct Emulator {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
    ram: File,
    console: File,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Emulator {
    fn boot(image: &std::path::Path, cmdline: &str) -> Self {
        // Opened anew by path: nobody inherits it, neither this emulator nor a guest that another thread starts.
        let file =
            |name: &str| File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
        let (ram, console) = (file("ram"), file("console"));
        ram.set_len(MEMORY).expect("so large");
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let mut child = Command::new("qemu-system-x86_64")
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-machine",
                "q35,memory-backend=ram",
            ])
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "512M", "-object"])
            .arg(format!("memory-backend-file,id=ram,size=512M,share=on,mem-path={}", path(&ram)))
            .arg("-kernel")
            .arg(image)
            .args(["-append", &format!("console=ttyS0 panic=0 {cmdline}")])
            .args(["-serial", &format!("file:{}", path(&console)), "-qmp", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64, as for every emulated run");
        let say = child.stdin.take().expect("its input is piped");
        let hear = BufReader::new(child.stdout.take().expect("its output is piped"));
        let mut emulator = Self { child, say, hear, ram, console };
        emulator.ask("qmp_capabilities", json!({}));
        emulator
    }

    fn ask(&mut self, execute: &str, arguments: Value) -> Value {
        writeln!(self.say, "{}", json!({"execute": execute, "arguments": arguments})).expect("it listens");
        loop {
            let mut line = String::new();
            assert!(self.hear.read_line(&mut line).expect("it speaks") > 0, "the emulator is gone");
            let mut message: Value = serde_json::from_str(&line).expect("JSON");
            assert!(message["error"].is_null(), "{execute}: {message}");
            if let Some(answer) = message.get_mut("return") {
                return answer.take();
            }
        }
    }

    /// An answer for people.
    fn human(&mut self, line: &str) -> String {
        let answer = self.ask("human-monitor-command", json!({"command-line": line}));
        answer.as_str().expect("text").to_owned()
    }

    /// Where the first CPU's own walk leads.
    fn walks_to(&mut self, kva: Kva) -> Option<Gpa> {
        let said = self.human(&format!("gva2gpa {:#x}", kva.0));
        let digits = said.trim().strip_prefix("gpa: 0x")?.to_owned();
        Some(Gpa(u64::from_str_radix(&digits, 16).expect("an address")))
    }

    fn printed(&mut self) -> String {
        let mut bytes = Vec::new();
        self.console.rewind().and_then(|()| self.console.read_to_end(&mut bytes)).expect("the console");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Until the kernel has nothing left to do; then it stands.
    fn until_it_panics(&mut self) -> String {
        let begun = Instant::now();
        loop {
            let printed = self.printed();
            if printed.contains("end Kernel panic") {
                self.ask("stop", json!({}));
                return printed;
            }
            assert!(begun.elapsed() < PATIENCE, "no panic:\n{printed}");
            assert!(self.child.try_wait().expect("a child").is_none(), "the emulator is gone:\n{printed}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn hex_after(text: &str, name: &str) -> Option<u64> {
    let (_, rest) = text.split_once(name)?;
    let rest = rest.trim_start_matches("0x");
    let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
    u64::from_str_radix(&rest[..end], 16).ok()
}

fn check(cmdline: &str, levels: Levels, moved: bool) {
    let Some((release, vmlinux)) = stored_kernel(None) else { return };
    let mut emulator = Emulator::boot(&vmlinux.with_file_name("image"), cmdline);
    let printed = emulator.until_it_panics();
    let registers = emulator.human("info registers");
    let cr4 = hex_after(&registers, "CR4=").expect("a CPU has it");
    assert_eq!(cr4 & LA57 != 0, levels == Levels::Five, "what the kernel made of `{cmdline}`: {registers}");

    let mem = GuestMem::map(&emulator.ram, Layout::flat(MEMORY).expect("one region")).expect("memory maps");
    let file = File::open(vmlinux).expect("the kernel's file");
    let profile = Profile::of(&KernelImage::read(file).expect("a vmlinux")).expect("a known kernel");
    let live = LiveKernel::locate(&profile, &mem).expect("a kernel that ran");
    assert_eq!(live.page_table().levels, levels);
    // The kernel says by how much it was moved, or that it was not.
    let said = hex_after(&printed, "Kernel Offset: 0x").unwrap_or(0);
    assert_eq!(live.kaslr_shift(), said, "{printed}");
    assert_eq!(moved, !printed.contains("Kernel Offset: disabled"), "{printed}");
    let (_, unmoved) = UNMOVED.into_iter().find(|(of, _)| *of == levels).expect("both are there");
    if !moved {
        assert_eq!(live.page_offset(), Kva(unmoved));
    }
    assert_eq!(emulator.walks_to(live.page_offset().wrapping_add(0x10_0000)), Some(Gpa(0x10_0000)));

    let kernel = GuestKernel::find(&profile, &mem).expect("the same kernel");
    let state = kernel.state(Parts { cpus: true, tasks: true, ..Parts::NONE });
    assert!(state.version.contains(&release), "{}", state.version);
    assert_eq!(state.cpus.len(), 2);
    assert!(state.tasks.cut.is_none() && state.tasks.items.len() > 20, "{} tasks", state.tasks.items.len());
    assert_eq!(state.unreadable_tasks, vec![]);
    let comm = |pid: i32| {
        let task = state.tasks.items.iter().find(|task| task.copy.pid == Ok(pid));
        serde_json::to_value(task.expect("it is there").brief()).expect("JSON")["comm"].clone()
    };
    // Nothing was started yet, and a panic ends nobody.
    assert_eq!((comm(1), comm(2)), ("swapper/0".into(), "kthreadd".into()));

    // Of every task its structure, in the direct map, and its stack, in vmalloc: where the CPU finds them.
    let view = live.view(&mem);
    let mut compared = 0;
    for task in &state.tasks.items {
        let pid = *task.copy.pid.as_ref().expect("readable");
        let stack = kernel.answer(&Question::Structure(Structure {
            of: "task_struct".into(),
            at: task.at.to_string(),
            path: Some("stack".into()),
            follow: 0,
        }));
        let stack = serde_json::to_string(&stack.expect("a stack").0).expect("JSON");
        let stack = Kva(hex_after(&stack, "\"value\":\"").unwrap_or_else(|| panic!("{pid}: {stack}")));
        for kva in [task.at, stack] {
            let found = view.translate(kva).unwrap_or_else(|e| panic!("{pid} at {kva}: {e}")).gpa;
            assert_eq!(emulator.walks_to(kva), Some(found), "{pid} at {kva}");
            compared += 1;
        }
    }
    // Beyond all memory nothing is mapped, for neither.
    let nowhere = live.page_offset().wrapping_add(64 << 30);
    assert!(emulator.walks_to(nowhere).is_none() && view.translate(nowhere).is_err());
    // The other depth makes another address of it, or none.
    let other = if levels == Levels::Five { Levels::Four } else { Levels::Five };
    let wrong = PageTable { levels: other, ..live.page_table() };
    assert_ne!(
        wrong.translate(&mem, live.page_offset().wrapping_add(0x10_0000)).ok().map(|m| m.gpa),
        Some(Gpa(0x10_0000))
    );
    println!(
        "{levels:?}: image moved by {said:#x}, direct map at {}, {compared} addresses of {} tasks compared",
        live.page_offset(),
        state.tasks.items.len()
    );
}

#[test]
fn five_levels_at_random_places_are_read() {
    check("", Levels::Five, true);
}

#[test]
fn five_levels_where_they_always_are_are_read() {
    check("nokaslr", Levels::Five, false);
}

#[test]
fn four_levels_at_random_places_are_read() {
    check("no5lvl", Levels::Four, true);
}
