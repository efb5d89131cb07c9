//! A guest that runs `scx-ktstr --plant`, and its memory.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Emulated, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(240);
const MEMORY_MIB: u64 = 512;
const SCRIPT: &str = "echo 1 > /proc/sys/kernel/bpf_stats_enabled; scx-ktstr --plant & \
     while [ \"$(cat /sys/kernel/sched_ext/state)\" != enabled ]; do sleep 0.1; done; \
     echo guest-is-ready; wait; sleep 600";

/// A running guest; killed when dropped.
pub struct Guest {
    child: Child,
    lines: Receiver<String>,
    /// The kernel's file.
    pub vmlinux: PathBuf,
    /// Where the program's `task_struct` is, by its own word.
    pub task: u64,
    /// Where the first node of its list is.
    pub first_node: u64,
}

impl Guest {
    /// Boots a [stored kernel](stored_kernel); `None`, with the reason printed, without one.
    pub fn boot(series: Option<&str>) -> Option<Self> {
        let (release, vmlinux) = stored_kernel(series)?;
        let scheduler = executable("scx-ktstr");
        let mut child = Command::new(executable("ktstr"))
            .args(["shell", "--accel", "tcg", "--kernel", &release, "--topology", "1,1,2,1"])
            .args(["--memory-mb", &MEMORY_MIB.to_string(), "--include-files"])
            .arg(&scheduler)
            .args(["--exec", SCRIPT])
            .env("KTSTR_BIN_DIR", scheduler.parent().expect("an executable lies in a directory"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ktstr starts: build all executables first");
        let (sender, lines) = channel();
        let output = child.stdout.take().expect("its output is piped");
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                println!("guest: {line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut guest = Self { child, lines, vmlinux, task: 0, first_node: 0 };
        // Two processes say these, so they come in any order.
        let [planted, _] = guest.lines_with(["scx-ktstr: planted ", "guest-is-ready"]);
        guest.task = number_after(&planted, "task=");
        guest.first_node = number_after(&planted, "first_node=");
        Some(guest)
    }

    /// Waits for a line with each of these texts, whichever comes first.
    pub fn lines_with<const N: usize>(&self, texts: [&str; N]) -> [String; N] {
        let until = Instant::now() + PATIENCE;
        let mut found = [const { None }; N];
        while found.contains(&None) {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|e| panic!("{e}: {texts:?}: {found:?}"));
            for (found, text) in found.iter_mut().zip(texts) {
                if found.is_none() && line.contains(text) {
                    *found = Some(line.clone());
                }
            }
        }
        found.map(|line| line.expect("all were found"))
    }

    /// The guest's memory, from address 0 on.
    pub fn ram(&self, write: bool) -> (File, u64) {
        let path = memory_of(self.child.id()).expect("a process below ktstr holds the guest's memory");
        let file = OpenOptions::new().read(true).write(write).open(path).expect("the memory opens");
        (file, MEMORY_MIB << 20)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Everything below it ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number_after(line: &str, name: &str) -> u64 {
    let (_, rest) = line.split_once(name).expect("the number is there");
    let word = rest.split_whitespace().next().expect("the number is there");
    u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("it is hexadecimal")
}

/// An executable of ours: beside this test's directory, unless told otherwise.
pub fn executable(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let beside = own.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let dir = std::env::var_os("KTSTR_BIN_DIR").map_or(beside.to_path_buf(), PathBuf::from);
    let path = dir.join(name);
    assert!(path.exists(), "{} is not there: build all executables first", path.display());
    path
}

/// Release and file of the newest stored kernel, of that series if one is named. Without one the reason is printed;
/// where `tcg` is required, that is a failure.
pub fn stored_kernel(series: Option<&str>) -> Option<(String, PathBuf)> {
    let found = newest_stored(series);
    if found.is_none() {
        let required = std::env::var("KTSTR_REQUIRE").unwrap_or_default();
        let what = series.map_or("no kernel".to_owned(), |series| format!("no kernel {series}"));
        assert!(!required.split(',').any(|word| word == "tcg"), "{what} in the store");
        println!("NOT RUN: {what} in the store");
    }
    found
}

fn newest_stored(series: Option<&str>) -> Option<(String, PathBuf)> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let entries = fs::read_dir(cache.join("ktstr/kernels")).ok()?.flatten();
    let kernel = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let release = name.strip_prefix("debian-")?.split(['+', '-']).next()?.to_owned();
        let vmlinux = Some(entry.path().join("vmlinux")).filter(|vmlinux| vmlinux.exists())?;
        Some((release, vmlinux))
    };
    let fits = |(release, _): &(String, PathBuf)| {
        series.is_none_or(|series| release.strip_prefix(series).is_some_and(|rest| rest.starts_with('.')))
    };
    let number = |(release, _): &(String, PathBuf)| -> Vec<u32> {
        release.split('.').filter_map(|part| part.parse().ok()).collect()
    };
    entries.filter_map(kernel).filter(fits).max_by_key(number)
}

/// The descriptor of the guest's memory, in the process that holds it.
fn memory_of(root: u32) -> Option<PathBuf> {
    let mut todo = VecDeque::from([root]);
    while let Some(pid) = todo.pop_front() {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for fd in fds {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            let len = fs::metadata(fd.path()).map_or(0, |meta| meta.len());
            if target.to_string_lossy().starts_with("/memfd:") && len >= MEMORY_MIB << 20 {
                return Some(fd.path());
            }
        }
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            todo.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    None
}
