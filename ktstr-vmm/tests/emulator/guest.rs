//! A guest for tests: a kernel of the kernel store and an initramfs of busybox and one script.
//!
//! Where to look next: `main.rs`, the tests.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ktstr_vmm::emulator::running::wait_event;
use ktstr_vmm::emulator::{EmulatedMachine, EmulatorSpec, Mode, Prepared, Version};
use ktstr_vmm::machine::{Event, Exit, MachineSpec, Topology};
use nix::sys::memfd::{MFdFlags, memfd_create};

pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const BUSYBOX: &str = "/bin/busybox";

/// What a test needs from the host.
pub struct Needs {
    pub kernels: Vec<PathBuf>,
    pub version: Version,
}

/// What is there, or `None` after saying what is missing. `KTSTR_REQUIRE=tcg` makes missing a failure.
pub fn needs() -> Option<Needs> {
    let missing = |what: String| {
        let required =
            std::env::var("KTSTR_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "tcg"));
        assert!(!required, "KTSTR_REQUIRE demands tcg, but {what}");
        println!("NOT RUN: {what}");
    };
    let version = match Version::detect(Path::new(QEMU)) {
        Ok(version) => version,
        Err(error) => {
            missing(error.to_string());
            return None;
        }
    };
    if !Path::new(BUSYBOX).exists() {
        missing(format!("{BUSYBOX} is not installed (package busybox-static)"));
        return None;
    }
    let kernels = kernels();
    if kernels.is_empty() {
        missing(
            "no kernel: set KTSTR_KERNEL to a decompressed vmlinux or pull one into the kernel store".into(),
        );
        return None;
    }
    Some(Needs { kernels, version })
}

fn kernels() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("KTSTR_KERNEL") {
        // It may also name a kernel of the store, which is then looked through below.
        let files: Vec<PathBuf> = std::env::split_paths(&list).filter(|path| path.is_file()).collect();
        if !files.is_empty() {
            return files;
        }
    }
    let directory = |name, below: &str| std::env::var_os(name).map(|value| PathBuf::from(value).join(below));
    let store = directory("KTSTR_CACHE_DIR", "")
        .or_else(|| directory("XDG_CACHE_HOME", "ktstr/kernels"))
        .or_else(|| directory("HOME", ".cache/ktstr/kernels"));
    let Some(Ok(entries)) = store.map(std::fs::read_dir) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path().join("vmlinux")).filter(|path| path.is_file()).collect();
    found.sort();
    found
}

/// A growing file in memory that takes a serial port's output.
pub fn sink() -> File {
    memfd_create(c"console", MFdFlags::MFD_CLOEXEC).unwrap().into()
}

pub fn text(sink: &File) -> String {
    let mut bytes = vec![0; sink.metadata().unwrap().len() as usize];
    sink.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An initramfs whose PID 1 is busybox running `script`.
pub fn initramfs(script: &str) -> OwnedFd {
    let busybox = std::fs::read(BUSYBOX).unwrap();
    let init = format!(
        "#!/bin/sh\nexport PATH=/bin\nmount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t devtmpfs dev /dev\n{script}\n"
    );
    let mut archive = Vec::new();
    for directory in ["bin", "proc", "sys", "dev"] {
        member(&mut archive, directory, 0o040_755, &[]);
    }
    member(&mut archive, "bin/busybox", 0o100_755, &busybox);
    for tool in [
        "sh", "mount", "cat", "echo", "poweroff", "dd", "sleep", "printf", "head", "seq", "sync", "tr",
        "grep", "cut",
    ] {
        member(&mut archive, &format!("bin/{tool}"), 0o120_777, b"busybox");
    }
    member(&mut archive, "init", 0o100_755, init.as_bytes());
    member(&mut archive, "TRAILER!!!", 0, &[]);
    let mut file = sink();
    file.write_all(&archive).unwrap();
    file.rewind().unwrap();
    file.into()
}

fn member(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    let fields = [0, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
}

/// A booting guest.
pub struct Guest {
    pub machine: EmulatedMachine,
    pub com1: File,
    pub com2: File,
}

pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub version: Version,
    pub mode: Mode,
    pub topology: Topology,
    pub memory_mib: u64,
    pub extra: &'a str,
    pub script: &'a str,
}

pub const FLAT: Topology = Topology { numa_nodes: 1, llcs: 1, cores: 2, threads: 1 };

impl<'a> Boot<'a> {
    pub fn new(needs: &'a Needs, script: &'a str) -> Self {
        Boot {
            kernel: &needs.kernels[0],
            version: needs.version,
            mode: Mode::Tcg,
            topology: FLAT,
            memory_mib: 512,
            extra: "quiet",
            script,
        }
    }

    pub fn start(self) -> Guest {
        let (com1, com2) = (sink(), sink());
        let spec = MachineSpec {
            topology: self.topology,
            numa: Default::default(),
            absent_llcs: 0,
            memory: self.memory_mib << 20,
            kernel: File::open(self.kernel).unwrap().into(),
            initrd: vec![initramfs(self.script)],
            cmdline: format!("console=ttyS0 panic=-1 rdinit=/init mitigations=off {}", self.extra),
            ring: None,
            com1: com1.try_clone().unwrap().into(),
            com2: Some(com2.try_clone().unwrap().into()),
            console: None,
            devices: Default::default(),
            isolation: None,
        };
        let emulator = EmulatorSpec {
            program: QEMU.into(),
            version: self.version,
            mode: self.mode,
            files: Vec::new(),
            host_cpus: 2,
            jail: ktstr_proto::run::Jail::Full,
        };
        let machine = Prepared::spawn(spec, &emulator).unwrap().start().unwrap();
        Guest { machine, com1, com2 }
    }
}

impl Guest {
    /// Waits for the end.
    pub fn exit(&mut self) -> Exit {
        match wait_event(&mut self.machine, Duration::from_secs(120)) {
            Some(Event::Exited(exit)) => exit,
            other => panic!("no exit but {other:?}; console:\n{}", text(&self.com1)),
        }
    }

    /// Waits until the first serial port has shown `needle`.
    pub fn until(&mut self, needle: &str) {
        let start = std::time::Instant::now();
        while !text(&self.com1).contains(needle) {
            assert!(start.elapsed() < Duration::from_secs(120), "no `{needle}` in:\n{}", text(&self.com1));
            // Returns early, with a panic, when the guest ends instead.
            if let Some(event) = wait_event(&mut self.machine, Duration::from_millis(20)) {
                panic!("{event:?} before `{needle}`; console:\n{}", text(&self.com1));
            }
        }
    }
}
