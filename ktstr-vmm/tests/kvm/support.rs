//! Boots guests on the KVM backend for the tests of `main.rs`.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ktstr_vmm::kvm::{KvmMachine, StartError};
use ktstr_vmm::machine::{ConsoleFds, Event, Exit, MachineSpec, Numa, RingRegion, Running, Topology};
use ktstr_vmm::probe::{Verdict, probe};
use ktstr_vmm::snapshot::SnapshotFile;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::guest::{initramfs, sink, text};

/// A nested guest on an emulated CPU takes ten seconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub const ONE: Topology = Topology { numa_nodes: 1, llcs: 1, cores: 1, threads: 1 };
pub const TWO: Topology = Topology { cores: 2, ..ONE };

/// The kernels to boot, or `None` after saying what is missing. `KTSTR_REQUIRE=kvm` makes it a failure.
pub fn kernels() -> Option<Vec<PathBuf>> {
    let missing = |what: String| {
        let required =
            std::env::var("KTSTR_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item == "kvm"));
        assert!(!required, "KTSTR_REQUIRE demands kvm, but {what}");
        println!("NOT RUN: {what}");
        None
    };
    let verdict = probe();
    println!("{verdict}");
    if let Verdict::Unusable { reason } = verdict {
        return missing(reason);
    }
    if !Path::new("/bin/busybox").exists() {
        return missing("/bin/busybox is not installed (package busybox-static)".into());
    }
    let found = find_kernels();
    if found.is_empty() {
        return missing(
            "there is no kernel: set KTSTR_KERNEL to a decompressed vmlinux or pull one into the store"
                .into(),
        );
    }
    Some(found)
}

fn find_kernels() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("KTSTR_KERNEL") {
        return std::env::split_paths(&list).filter(|path| path.is_file()).collect();
    }
    let store = std::env::var_os("KTSTR_CACHE_DIR").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        Some(cache.or_else(home)?.join("ktstr/kernels"))
    });
    let Some(Ok(entries)) = store.map(std::fs::read_dir) else { return Vec::new() };
    let image = |entry: std::fs::DirEntry| Some(entry.path().join("vmlinux")).filter(|path| path.is_file());
    let mut found: Vec<PathBuf> = entries.flatten().filter_map(image).collect();
    found.sort();
    found
}

/// The first file below `dir` whose name starts with `name`.
pub fn find_below(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if let Some(found) = find_below(&path, name) {
                return Some(found);
            }
        } else if entry.file_name().to_string_lossy().starts_with(name) {
            return Some(path);
        }
    }
    None
}

/// An archive with one file, to be unpacked over the first.
pub fn archive_of(name: &str, data: &[u8]) -> OwnedFd {
    let mut archive = Vec::new();
    for (name, mode, data) in [(name, 0o100_755, data), ("TRAILER!!!", 0, &[][..])] {
        archive.extend_from_slice(b"070701");
        for field in [0, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.resize((archive.len() + 1).next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    let mut file = sink();
    file.write_all(&archive).unwrap();
    file.rewind().unwrap();
    file.into()
}

/// What to boot.
pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub topology: Topology,
    pub numa: Numa,
    pub absent_llcs: u32,
    pub memory_mib: u64,
    pub ring: Option<RingRegion>,
    pub cmdline: &'a str,
    pub more: Vec<OwnedFd>,
    pub console: Option<ConsoleFds>,
    pub script: &'a str,
}

/// A running guest.
pub struct Guest {
    pub machine: KvmMachine,
    pub com1: File,
    pub com2: File,
    pub started: Instant,
}

impl<'a> Boot<'a> {
    pub fn new(kernel: &'a Path, script: &'a str) -> Self {
        Boot {
            kernel,
            topology: TWO,
            numa: Default::default(),
            absent_llcs: 0,
            memory_mib: 512,
            ring: None,
            cmdline: "",
            more: Vec::new(),
            console: None,
            script,
        }
    }

    pub fn start(self) -> Guest {
        self.start_from(None)
    }

    /// From where such a machine once stood.
    pub fn start_from(self, snapshot: Option<SnapshotFile>) -> Guest {
        self.try_start_from(snapshot).unwrap()
    }

    /// The same, or why not.
    pub fn try_start_from(self, snapshot: Option<SnapshotFile>) -> Result<Guest, StartError> {
        let (com1, com2) = (sink(), sink());
        let mut initrd = vec![initramfs(self.script)];
        initrd.extend(self.more);
        let spec = MachineSpec {
            topology: self.topology,
            numa: self.numa.clone(),
            absent_llcs: self.absent_llcs,
            memory: self.memory_mib << 20,
            kernel: File::open(self.kernel).unwrap().into(),
            initrd,
            cmdline: format!("console=ttyS0 panic=-1 tsc=reliable no_timer_check {}", self.cmdline),
            ring: self.ring,
            com1: com1.try_clone().unwrap().into(),
            com2: Some(com2.try_clone().unwrap().into()),
            console: self.console,
            devices: Default::default(),
            isolation: None,
        };
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let started = Instant::now();
        let machine = KvmMachine::start_from(kvm.into(), spec, snapshot, None)?;
        Ok(Guest { machine, com1, com2, started })
    }
}

impl Guest {
    /// Waits for the end.
    pub fn exit(&mut self) -> Exit {
        self.exit_within(PATIENCE)
    }

    /// The same for a guest that takes longer than others.
    pub fn exit_within(&mut self, patience: Duration) -> Exit {
        loop {
            let left = patience.saturating_sub(self.started.elapsed());
            let left = PollTimeout::try_from(left).unwrap();
            let mut fds = [PollFd::new(self.machine.event_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, left).unwrap() == 0 {
                panic!("no end after {patience:?}:\n{}", text(&self.com1));
            }
            match self.machine.next_event() {
                Some(Event::Exited(exit)) => return exit,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
    }

    /// Waits until the console shows this.
    pub fn until(&mut self, wanted: &str) {
        while !text(&self.com1).contains(wanted) {
            assert!(self.started.elapsed() < PATIENCE, "never saw {wanted:?}:\n{}", text(&self.com1));
            assert_eq!(self.machine.next_event(), None, "ended before {wanted:?}:\n{}", text(&self.com1));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
