//! Captures: copy while the guest stands, read and render when it runs again.
//!
//! ```text
//! vCPUs stand:  touch ── walks lists, copies structures, values, instructions, arena pages
//! vCPUs run:    read  ── the same walks over the copy; parses, analyses, renders
//! ```
//!
//! Both go the same ways, so that the second finds what the first has copied; what it does not find
//! says so. Page tables alone are read from the running guest, where they were not remembered: kernel
//! memory that was mapped at that moment hardly moves, and if it does, the copy lacks it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::bpf::{self, BpfLayout, BpfState, DumpOptions, Memory, Reader};
use crate::dump;
use crate::kernel::state::{KernelState, Parts};
use crate::kernel::{LiveKernel, Profile, View};
use crate::mem::{GuestMem, Kept};
use crate::node::Node;
use crate::paging::{KernelMem, Tlb};

/// The version of [`CAPTURE_SCHEMA`].
const SCHEMA: &str = "ktstr.capture/1";
/// What a capture holds as JSON, for machines: a JSON Schema (2020-12). For people:
/// `docs/reference/snapshots.md`.
pub const CAPTURE_SCHEMA: &str = include_str!("../schema/capture.json");
/// Pages whose place is remembered through one freeze.
const PAGES: usize = 1 << 16;
/// Bytes for which there is room from the beginning: about a thousand tasks and a scheduler's maps.
const ROOM: usize = 8 << 20;
/// Bytes for which room is made ahead, at most.
const MAX_ROOM: usize = 128 << 20;
/// Threads more than twice as many as before that are no reason to make ready anew.
const FEW: u32 = 256;

/// Room for what one freeze copies, used again by the next.
#[derive(Debug)]
pub struct Freeze {
    tlb: Tlb,
    kept: Kept,
    memory: Memory,
    /// Threads that the guest had when everything was made ready.
    ready_for: Cell<u32>,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Tasks.
    pub tasks: usize,
    /// Dispatch queues.
    pub dsqs: usize,
    /// Bytes.
    pub bytes: usize,
    /// How long it took.
    pub took: Duration,
}

/// Everything that a capture holds.
#[derive(Debug)]
pub struct Captured {
    /// The kernel.
    pub state: KernelState,
    /// BPF programs and maps.
    pub bpf: BpfState,
}

impl Default for Freeze {
    fn default() -> Self {
        Self {
            tlb: Tlb::of(PAGES),
            kept: Kept::default(),
            memory: Memory::default(),
            ready_for: Cell::new(0),
        }
    }
}

impl Freeze {
    /// Looks up once what every look needs, and makes room, before anybody waits for it.
    pub fn warm_up(&self, profile: &Profile, live: &LiveKernel, mem: &GuestMem) {
        // Names of the kernel's types are put in order when the first is asked for.
        let _ = profile.types().graph().named("bpf_map_type");
        self.kept.make_room(ROOM);
        self.ready_for.set(threads(profile, live, mem));
        let copied = self.touch(profile, live, mem).bytes;
        self.end();
        self.kept.make_room(copied.saturating_mul(2).min(MAX_ROOM));
    }

    /// Makes ready anew when the guest has become so much larger that a capture would have to find room and touch
    /// memory for the first time while the guest stands. One word is read otherwise.
    pub fn keep_warm(&self, profile: &Profile, live: &LiveKernel, mem: &GuestMem) {
        let enough = self.ready_for.get().saturating_mul(2).saturating_add(FEW);
        if threads(profile, live, mem) > enough {
            self.warm_up(profile, live, mem);
        }
    }

    /// Copies what [`Freeze::read`] will need. The guest stands meanwhile.
    pub fn touch(&self, profile: &Profile, live: &LiveKernel, mem: &GuestMem) -> Copied {
        let began = Instant::now();
        let through = self.through(live, mem);
        let (tasks, dsqs) = KernelState::touch(profile, live, through);
        let layout = BpfLayout::of(profile.types());
        let reader = Reader::new(profile, live, through, &layout).copying();
        BpfState::touch(&reader, DumpOptions::default());
        self.kept.seal();
        Copied { tasks, dsqs, bytes: self.kept.len(), took: began.elapsed() }
    }

    /// Reads what was copied. The guest may run meanwhile.
    pub fn read(&self, profile: &Profile, live: &LiveKernel, mem: &GuestMem) -> Captured {
        let through = self.through(live, mem);
        let state = KernelState::read_through(profile, live, through, Parts::ALL);
        let layout = BpfLayout::of(profile.types());
        let reader = Reader::new(profile, live, through, &layout).knowing(&self.memory);
        let bpf = BpfState::read(&reader, DumpOptions::default());
        Captured { state, bpf }
    }

    /// Forgets what was copied, not what was found out about programs.
    pub fn end(&self) {
        self.kept.reopen();
        self.tlb.forget();
    }

    fn through<'m>(&'m self, live: &LiveKernel, mem: &'m GuestMem) -> KernelMem<'m> {
        live.view(mem).remembering(&self.tlb).keeping(&self.kept)
    }
}

/// How many threads the guest has, by its own count; 0 where it has none. A hint, and no more.
fn threads(profile: &Profile, live: &LiveKernel, mem: &GuestMem) -> u32 {
    View { profile, live, mem: live.view(mem) }.half("nr_threads").unwrap_or(0)
}

impl Captured {
    /// Everything, as a tree.
    pub fn node(&self, why: &str) -> Node {
        let state = self.state.node().with("schema", SCHEMA.into());
        state.with("why", why.into()).with("bpf", bpf::state_node(&self.bpf))
    }

    /// Everything, for people.
    pub fn text(&self, why: &str) -> String {
        let mut text = dump::text(why, &self.state);
        text.push_str("\n== BPF programs and maps ==\n");
        text.push_str(&self.bpf.to_text());
        text
    }
}
