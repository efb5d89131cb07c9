//! What the kernel counts, by task: histograms of tracepoints in tracefs, and `/proc`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

const TRACEFS: &str = "/sys/kernel/tracing";

/// Events that are counted, with the keys they are counted by.
const EVENTS: [(Event, &str, &str); 9] = [
    (Event::Wakeup, "ktstr/ttwu", "common_pid,flags"),
    (Event::Waking, "sched/sched_waking", "common_pid,pid"),
    (Event::Syscall, "raw_syscalls/sys_enter", "common_pid,id"),
    (Event::Switch, "sched/sched_switch", "prev_pid,next_pid"),
    (Event::Signal, "signal/signal_generate", "common_pid,sig,pid"),
    (Event::Fault, "exceptions/page_fault_user", "common_pid"),
    (Event::Fork, "sched/sched_process_fork", "parent_pid"),
    (Event::Attach, "cgroup/cgroup_attach_task", "common_pid"),
    (Event::PiBoost, "sched/sched_pi_setprio", "pid"),
];
/// Keys a histogram has room for; children of fork storms fill many.
const SIZE: u32 = 16384;
/// `WF_SYNC` of the kernel's `kernel/sched/sched.h`.
pub const WF_SYNC: i64 = 0x10;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// `try_to_wake_up` was called: by whom, with which flags.
    Wakeup,
    /// A task is about to be woken: by whom, which.
    Waking,
    /// A system call: by whom, its number.
    Syscall,
    /// A task followed another on a CPU.
    Switch,
    /// A signal: by whom, which, for whom.
    Signal,
    /// A page fault in user space.
    Fault,
    /// A child was made, by whom.
    Fork,
    /// A task was moved to a cgroup, by whom.
    Attach,
    /// A task got another priority through a lock.
    PiBoost,
}

/// Counting from its start to its end.
pub struct Tracer;

/// Hits by event and keys.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<Event, BTreeMap<Vec<i64>, u64>>);

fn trigger(event: &str) -> PathBuf {
    Path::new(TRACEFS).join("events").join(event).join("trigger")
}

fn write(path: &Path, text: &str) -> Result<()> {
    // Opened for writing only, not truncated: that would remove other triggers.
    let mut file =
        fs::OpenOptions::new().append(true).open(path).with_context(|| path.display().to_string())?;
    std::io::Write::write_all(&mut file, text.as_bytes())
        .with_context(|| format!("{text} > {}", path.display()))
}

impl Tracer {
    /// Starts to count.
    pub fn start() -> Result<Self> {
        write(&Path::new(TRACEFS).join("kprobe_events"), "p:ktstr/ttwu try_to_wake_up flags=$arg3:u32\n")?;
        for (_, event, keys) in EVENTS {
            write(&trigger(event), &format!("hist:keys={keys}:size={SIZE}"))?;
        }
        Ok(Self)
    }

    /// Forgets what was counted.
    pub fn clear(&self) -> Result<()> {
        EVENTS.iter().try_for_each(|(_, event, keys)| {
            write(&trigger(event), &format!("hist:keys={keys}:size={SIZE}:clear"))
        })
    }

    /// What was counted.
    pub fn read(&self) -> Result<Counts> {
        let mut counts = Counts::default();
        for (event, path, _) in EVENTS {
            let text = fs::read_to_string(trigger(path).with_file_name("hist"))?;
            ensure!(text.contains("Dropped: 0"), "the histogram of {path} is full");
            counts.0.insert(event, text.lines().filter_map(parse).collect());
        }
        Ok(counts)
    }
}

/// `{ common_pid:        132, flags:         16 } hitcount:          6`
fn parse(line: &str) -> Option<(Vec<i64>, u64)> {
    let (keys, count) = line.strip_prefix('{')?.split_once("} hitcount:")?;
    let key = |part: &str| part.split_once(':')?.1.trim().parse().ok();
    Some((keys.split(',').map(key).collect::<Option<_>>()?, count.trim().parse().ok()?))
}

impl Counts {
    /// Hits of an event whose keys start with these.
    pub fn of(&self, event: Event, keys: &[i64]) -> u64 {
        self.all(event).filter(|(found, _)| found.starts_with(keys)).map(|(_, count)| count).sum()
    }

    /// All keys of an event with their hits.
    pub fn all(&self, event: Event) -> impl Iterator<Item = (&[i64], u64)> {
        self.0.get(&event).into_iter().flatten().map(|(keys, count)| (keys.as_slice(), *count))
    }
}

/// Some of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stat {
    /// `priority`: nice + 20, or −1 − the real-time priority, boosts included.
    pub priority: i64,
    /// Nice value.
    pub nice: i64,
    /// Real-time priority as asked for.
    pub rt_priority: i64,
    /// `SCHED_…`.
    pub policy: i64,
}

/// What `/proc` says of a task right now.
pub fn stat(tid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // Fields are numbered from 1 in proc(5); the first here is the third there.
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(Stat { priority: field(18)?, nice: field(19)?, rt_priority: field(40)?, policy: field(41)? })
}

/// A counter of `/proc/vmstat`.
pub fn vmstat(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// Open flags of the regular files a process holds.
pub fn file_flags(pid: u32) -> Vec<i32> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let flags = infos.filter_map(|info| {
        let text = fs::read_to_string(info.path()).ok()?;
        i32::from_str_radix(text.lines().find_map(|line| line.strip_prefix("flags:"))?.trim(), 8).ok()
    });
    flags.collect()
}
