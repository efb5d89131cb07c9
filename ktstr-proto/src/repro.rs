//! The second run of a failure: what is to be probed, what the guest says of it, what is told of both.
//!
//! A run whose scheduler crashed is carried out again with probes on the kernel functions of the crash
//! path. [`Probing`] goes to PID 1, which answers with a [`ProbeAccount`] before the scheduler starts, and
//! after its end with [`ProbeEvent`]s and [`ProbeEnd`]. The orchestrator puts them together as [`AutoRepro`].
//! Nothing here changes the first run's verdict.

use serde::{Deserialize, Serialize};

use crate::{run::RunId, verdict::Cause};

/// Most events that a guest may send in all; what is beyond is not taken.
pub const MAX_EVENTS: usize = 4000;
/// Events in one frame at most.
pub const EVENTS_PER_FRAME: usize = 100;
/// Longest text of one event, bytes.
pub const MAX_EVENT_TEXT: usize = 1024;
/// Most functions of a crash stack that are probed.
pub const MAX_STACK: usize = 24;

/// What PID 1 is to probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probing {
    /// Kernel functions of the first run's crash stack, innermost first; at most [`MAX_STACK`].
    pub stack: Vec<String>,
}

/// One probed place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSite {
    /// The kernel's function, or `SYSTEM:EVENT` of a tracepoint.
    pub name: String,
    /// It was in the crash stack.
    pub of_stack: bool,
    /// Fields that this kernel does not have, each with its words.
    pub absent: Vec<String>,
    /// Why it is not probed, in the kernel's words; `None` if it is.
    pub refused: Option<String>,
}

/// What became of the probes, told before the scheduler starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProbeAccount {
    /// Every place that was asked for and that this kernel has.
    pub sites: Vec<ProbeSite>,
    /// Functions that this kernel does not have or does not let be traced.
    pub unknown: Vec<String>,
    /// The functions of which a call with an error stops the recording; none: this kernel has none of them, and
    /// then nothing is probed.
    pub triggers: Vec<String>,
    /// Why nothing is probed, if that is so.
    pub impossible: Option<String>,
    /// Size of the buffer, KiB for each CPU.
    pub buffer_kb: u32,
}

/// Something a probe saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeEvent {
    /// Guest `CLOCK_MONOTONIC`, nanoseconds.
    pub t_ns: u64,
    /// On which CPU.
    pub cpu: u32,
    /// The task that ran there.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Name of the event: the function's, or `FUNCTION__return`, or the tracepoint's.
    pub site: String,
    /// What the kernel wrote of it: `name=value`, each after a blank.
    pub text: String,
}

impl ProbeEvent {
    /// Whether it is about this task: one of those it names, or where it names none, the one that ran.
    #[must_use]
    pub fn concerns(&self, pid: u32) -> bool {
        let named = |word: &str| {
            let (name, value) = word.split_once('=')?;
            TASK_IDS.contains(&name).then(|| value.parse::<u32>().ok())
        };
        let mut tasks = self.text.split(' ').filter_map(named).peekable();
        match tasks.peek() {
            None => self.pid == pid,
            Some(_) => tasks.any(|task| task == Some(pid)),
        }
    }
}

/// Names under which events tell the ids of the tasks they are about: our probes' own, and those of
/// include/trace/events/sched.h.
const TASK_IDS: [&str; 4] = ["p_pid", "pid", "prev_pid", "next_pid"];

/// The task that the kernel's words blame: `runnable task stall: worker[122] failed to run for …`.
#[must_use]
pub fn blamed(reason: &str) -> Option<(String, u32)> {
    reason.split_whitespace().find_map(|word| {
        let word = word.trim_matches(['(', ')', ',', ';', ':', '.', '"']);
        let (name, pid) = word.strip_suffix(']')?.rsplit_once('[')?;
        let pid: u32 = pid.parse().ok()?;
        (!name.is_empty() && pid > 0).then(|| (name.to_owned(), pid))
    })
}

/// How much was recorded, told after the scheduler's end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProbeEnd {
    /// The scheduler's exit with an error was seen and stopped the recording.
    pub fired: bool,
    /// Events in the buffer.
    pub recorded: u64,
    /// Of them, those that were sent.
    pub sent: u64,
    /// Events that were overwritten, for each CPU.
    pub lost: Vec<u64>,
    /// The first event in the buffer, `CLOCK_MONOTONIC`, nanoseconds.
    pub oldest_ns: u64,
    /// What kept the rest from being read.
    pub trouble: Option<String>,
}

/// How the second run ended, compared with the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recurrence {
    /// The same kind of crash.
    Again(Cause),
    /// Another failure.
    Otherwise(Cause),
    /// No failure.
    NotAgain,
    /// There was no second run, or it did not come to an end.
    NotRun(String),
}

/// What a [`Seen`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeenKind {
    /// A function was entered.
    Entry,
    /// A function returned.
    Return,
    /// A tracepoint was passed.
    Trace,
    /// The scheduler was sent away.
    Exit,
}

/// An event as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Microseconds after the scheduler was sent away, so mostly negative.
    pub at_us: i64,
    /// On which CPU.
    pub cpu: u32,
    /// Name and id of the task that ran there.
    pub task: String,
    /// What was passed.
    pub site: String,
    /// How.
    pub kind: SeenKind,
    /// Arguments and fields, values decoded.
    pub args: Vec<(String, String)>,
}

/// The second run of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoRepro {
    /// It, if it began.
    pub run: Option<RunId>,
    /// Its directory.
    pub run_dir: std::path::PathBuf,
    /// How it ended.
    pub recurrence: Recurrence,
    /// Wall time it took, milliseconds.
    pub took_ms: u64,
    /// Functions found in the first run's crash stack.
    pub stack: Vec<String>,
    /// What became of the probes; `None` if the guest did not say.
    pub account: Option<ProbeAccount>,
    /// How much they recorded.
    pub end: Option<ProbeEnd>,
    /// The task at fault, `comm[pid]`, where the kernel names one.
    pub task: Option<String>,
    /// The CPU on which the scheduler was sent away.
    pub cpu: Option<u32>,
    /// What concerns that task, or else that CPU, in order of time.
    pub seen: Vec<Seen>,
    /// Events of theirs that were sent and are not shown.
    pub left_out: u64,
    /// Remarks.
    pub notes: Vec<String>,
}

impl AutoRepro {
    /// Of a run that did not take place.
    pub fn not_run(why: impl Into<String>) -> Self {
        Self {
            run: None,
            run_dir: std::path::PathBuf::new(),
            recurrence: Recurrence::NotRun(why.into()),
            took_ms: 0,
            stack: Vec::new(),
            account: None,
            end: None,
            task: None,
            cpu: None,
            seen: Vec::new(),
            left_out: 0,
            notes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_name_the_task() {
        for (reason, task) in [
            ("runnable task stall: kworker/0:1[123] failed to run for 5.0s", Some(("kworker/0:1", 123))),
            ("runtime error: cpu 3 not allowed for work:er[7], bye", Some(("work:er", 7))),
            ("runtime error: x (y[12])", Some(("y", 12))),
            ("scx_bpf_error: no [task] here [0]", None),
            ("", None),
        ] {
            assert_eq!(blamed(reason), task.map(|(name, pid)| (name.to_owned(), pid)), "{reason}");
        }
    }
}
