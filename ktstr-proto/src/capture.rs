//! Looking into a guest while it runs: questions with one answer, and captures of everything.
//!
//! The same types travel from a client to the orchestrator ([`Query`], [`TakeCapture`]) and from
//! there to the monitor ([`Ask`], [`Capture`]). Whether the guest stands meanwhile is between the
//! orchestrator and the VMM; the monitor is only told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    kernel_place::{KernelTarget, KernelWidth},
    link::FdSlot,
    registers::Registers,
    run::RunId,
};

/// What the names of the sockets of live runs begin with.
pub const DOOR_PREFIX: &str = "ktstr-run/";

/// The name of the socket, of the abstract kind, through which observers of a run come in: the id,
/// without its beginning where it is longer than a name may be.
pub fn door_name(run: &RunId) -> String {
    /// A socket address holds 107 bytes after the NUL that marks the kind.
    const ROOM: usize = 107 - DOOR_PREFIX.len();
    let mut from = run.0.len().saturating_sub(ROOM);
    while !run.0.is_char_boundary(from) {
        from += 1;
    }
    format!("{DOOR_PREFIX}{}", &run.0[from..])
}

/// What somebody wants to know about the guest. Append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Values by path: `rq[*].nr_running`, `rq[0].cfs.load.weight`, `scx.events`.
    Path(String),
    /// All tasks in brief.
    Tasks,
    /// One task in full, by thread id.
    Task(i32),
    /// Dispatch queues with their tasks.
    Dsqs,
    /// sched_ext and its scheduler.
    Scx,
    /// Control groups with usage and pressure.
    Cgroups,
    /// A BPF map's contents, or the value at a path in it: `Map("sched.bss", Some("nr_running"))`.
    Map(String, Option<String>),
    /// All BPF programs and maps.
    Bpf,
    /// A structure of the kernel or of a module, by its type.
    Structure(Structure),
    /// Loaded modules.
    Modules,
    /// What is at a place of the kernel: a number, or bytes as hexadecimal digits.
    Kernel(KernelTarget, KernelWidth),
}

/// A structure that is to be shown by its BTF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// Its type: `task_struct`, or `kvm:kvm_caps` for one of a module.
    pub of: String,
    /// Where: a thread id (for `task_struct`), `0xADDRESS`, `SYMBOL`, `MODULE:SYMBOL`; behind a symbol
    /// `@CPU` for a per-CPU variable and `[N]` for an element.
    pub at: String,
    /// A member instead of all: `se.avg.util_avg`, `mm->owner->pid`.
    pub path: Option<String>,
    /// Pointers followed one after the other, at most 4.
    pub follow: u8,
}

/// Asked by a client of a live run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Which run; on the socket of a run there is only one.
    pub run: Option<RunId>,
    /// What is asked.
    pub question: Question,
    /// Stop all vCPUs meanwhile, so that what is answered belongs together.
    pub freeze: bool,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueryAnswer {
    /// As JSON. What is missing is `{"absent": why}` or `{"unreadable": why}`, never 0.
    pub json: String,
    /// For people.
    pub text: String,
    /// Time the reading took, microseconds.
    pub read_us: u64,
    /// How long the vCPUs stood, microseconds; none when they did not.
    pub stood_us: Option<u64>,
}

/// A client asks for a capture of a live run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeCapture {
    /// Which run; on the socket of a run there is only one.
    pub run: Option<RunId>,
    /// Also write all of guest memory as an ELF core file.
    pub vmcore: bool,
}

/// A client sets a number in a BPF map of a live run; the guest stands meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetNumber {
    /// Which run; on the socket of a run there is only one.
    pub run: Option<RunId>,
    /// The map, as in [`Question::Map`].
    pub map: String,
    /// The place in it.
    pub path: String,
    /// What is to be there.
    pub value: i64,
}

/// It is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberSet {
    /// What was written, and where.
    pub what: String,
    /// How long the vCPUs stood, microseconds.
    pub stood_us: u64,
}

/// A capture was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureTaken {
    /// Its files without their endings: `.json`, `.txt` and, when asked for, `.vmcore`.
    pub path: PathBuf,
    /// How long the vCPUs stood, microseconds.
    pub stood_us: u64,
    /// What was read.
    pub read: Captured,
}

/// The monitor is to answer a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// What is asked.
    pub question: Question,
    /// All vCPUs stand until [`Thawed`].
    pub frozen: bool,
}

/// The monitor's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// As JSON.
    pub json: String,
    /// For people.
    pub text: String,
    /// Time the reading took, microseconds.
    pub read_us: u64,
}

/// The monitor is to read everything; all vCPUs stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// Why, in a few words: it heads the text.
    pub why: String,
    /// Where the JSON goes.
    pub json: FdSlot,
    /// Where the text goes.
    pub text: FdSlot,
    /// Where guest memory goes, if it is wanted.
    pub vmcore: Option<FdSlot>,
    /// The write that stopped the guest, if one did.
    pub watched: Option<PlaceWritten>,
    /// The registers of the vCPUs.
    pub registers: Registers,
}

/// Places that can be watched for writes at the same time: as many as an x86 processor has registers for.
pub const MAX_WATCHED: usize = 4;

/// The monitor is to find a place that is to be watched for writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locate {
    /// A symbol of the kernel, `scx_root->member`, a map with a path (`counters[0].hits`), or the name of a
    /// scheduler's global variable.
    pub what: String,
}

/// Where it lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// Kernel-virtual address.
    pub place: WatchPoint,
    /// What was found, for people: `nr_hits in map sched.bss, a u64`.
    pub found: String,
    /// Whether it goes with the scheduler, whose memory is then used for something else.
    pub of_scheduler: bool,
}

/// Bytes that are watched for writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WatchPoint {
    /// Kernel-virtual address, a multiple of `len`.
    pub kva: u64,
    /// 1, 2, 4 or 8 bytes.
    pub len: u8,
}

impl WatchPoint {
    /// Whether a processor can watch it.
    pub fn is_possible(self) -> bool {
        matches!(self.len, 1 | 2 | 4 | 8) && self.kva.is_multiple_of(self.len.into())
    }
}

/// A write to a watched place: the guest stands right after the instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceWritten {
    /// What was asked to be watched.
    pub what: String,
    /// The place.
    pub place: WatchPoint,
    /// The CPU that wrote.
    pub cpu: u32,
    /// Which stop at this place it is, from 1.
    pub nth: u32,
    /// Whether the place is watched no more from now on: a busy one would stop the guest for ever.
    pub last: bool,
}

/// A place that was written so often that it was watched no more before the run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyPlace {
    /// What was asked to be watched.
    pub what: String,
    /// After how many stops it was given up.
    pub captured: u32,
    /// The value at the last of them, if it could be read.
    pub last_captured: Option<u64>,
    /// The newest value that was read since, while the place was there.
    pub last_read: Option<u64>,
}

/// Everything is read; the vCPUs may go on while the files are written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Captured {
    /// Time the reading took, microseconds.
    pub read_us: u64,
    /// Tasks read.
    pub tasks: u32,
    /// Dispatch queues read.
    pub dsqs: u32,
    /// Bytes of guest memory copied for it.
    pub copied_bytes: u64,
    /// Bytes of guest memory written as a core file.
    pub vmcore_bytes: u64,
    /// Why there is no core file, where one was asked for.
    pub no_core: Option<String>,
    /// Why the core file that was asked for has no registers.
    pub no_registers: Option<String>,
    /// The newest clock of the run queues, nanoseconds of the guest's time.
    pub clock_ns: Option<u64>,
}

/// The vCPUs run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thawed {
    /// How long they stood, microseconds; time that did not pass for the guest.
    pub stood_us: u64,
}

/// See [`Thawed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThawNoted;

/// A task has been waiting for half of what the watchdog tolerates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalling {
    /// Its thread id.
    pub pid: i32,
    /// Its name.
    pub comm: String,
    /// The CPU on whose list it waits.
    pub cpu: u32,
    /// How long it has been runnable, jiffies.
    pub age_jiffies: u64,
    /// What the watchdog tolerates, jiffies.
    pub limit_jiffies: u64,
}
