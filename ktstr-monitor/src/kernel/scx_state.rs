//! The state of sched_ext: enabled or not, the loaded scheduler, why it ended (`ext_internal.h`).
//!
//! Some of what older kernels keep in variables newer ones keep in `scx_sched`; both places are
//! looked at, and what is in neither is absent.

use super::scx::Scx;
use super::value::{Gap, Reading};
use super::view::View;
use crate::addr::Kva;
use crate::node::Node;

/// `SCX_EXIT_DUMP_DFL_LEN` is 32 KiB; schedulers may ask for more.
const MAX_DUMP: usize = 1 << 20;
/// `SCX_EXIT_MSG_LEN`.
const MAX_MSG: usize = 4096;
/// `SCX_EXIT_BT_LEN` is 64.
const MAX_BT: u32 = 64;

crate::mirror! {
    /// What is read of the loaded scheduler.
    SchedCopy, SchedLayout of "scx_sched" {
        name: String = "ops.name",
        flags: u64 = "ops.flags",
        timeout_ms: u32 = "ops.timeout_ms",
        exit_dump_len: u32 = "ops.exit_dump_len",
        dispatch_max_batch: u32 = "ops.dispatch_max_batch",
        hotplug_seq: u64 = "ops.hotplug_seq",
        exit_kind: i32 = "exit_kind",
        exit_info: Kva = "exit_info",
        nr_dsqs: i32 = "dsq_hash.nelems",
        slice_dfl: u64 = "slice_dfl",
        bypass_depth: i32 = "bypass_depth",
        bypass_timestamp: u64 = "bypass_timestamp",
        aborting: bool = "aborting",
        level: i32 = "level",
        watchdog_timeout: u64 = "watchdog_timeout",
    }
}

crate::mirror! {
    /// Why a scheduler ended.
    ExitCopy, ExitLayout of "scx_exit_info" {
        kind: i32 = "kind",
        exit_cpu: i32 = "exit_cpu",
        exit_code: i64 = "exit_code",
        flags: u64 = "flags",
        reason: Kva = "reason",
        bt: Kva = "bt",
        bt_len: u32 = "bt_len",
        msg: Kva = "msg",
        dump: Kva = "dump",
    }
}

/// All of sched_ext that is not per CPU or per task.
#[derive(Clone, Debug)]
pub struct ScxState {
    /// `enabled`, `disabled`, …: the enumerator without its prefix, in lower case.
    pub enable_state: Reading<String>,
    /// Address of the `scx_sched`; none when no scheduler is loaded.
    pub instance: Reading<Option<Kva>>,
    /// What it holds.
    pub sched: Option<Reading<SchedCopy>>,
    /// Its exit information, once there is any.
    pub exit: Option<Reading<ExitInfo>>,
    /// Its event counters.
    pub events: Scx,
    /// Jiffies after which the watchdog calls a waiting task stalled.
    pub watchdog_timeout: Reading<u64>,
    /// When the watchdog last looked, in jiffies.
    pub watchdog_timestamp: Reading<u64>,
    /// How many tasks were rejected by the scheduler.
    pub nr_rejected: Reading<u64>,
    /// How deep the kernel bypasses the scheduler; 0 means not at all.
    pub bypass_depth: Reading<i64>,
}

/// Why a scheduler ended, in words.
#[derive(Clone, Debug)]
pub struct ExitInfo {
    /// The members.
    pub copy: ExitCopy,
    /// The enumerator of `kind`.
    pub kind: Reading<String>,
    /// The kernel's words for the kind.
    pub reason: Reading<Option<String>>,
    /// What the scheduler or the kernel said.
    pub msg: Reading<Option<String>>,
    /// The debug dump.
    pub dump: Reading<Option<String>>,
    /// Where the error was raised: symbol and offset, or an address.
    pub backtrace: Reading<Vec<String>>,
}

/// Reads it.
pub fn read(view: &View<'_, '_>) -> ScxState {
    let instance = view.word("scx_root").map(|at| (at != 0).then_some(Kva(at)));
    let loaded = instance.clone().ok().flatten();
    let sched = loaded.map(|at| view.profile.state.sched.read(&view.mem, at));
    let inside = |member: fn(&SchedCopy) -> Reading<i64>| match &sched {
        Some(Ok(copy)) => member(copy),
        _ => Err(Gap::Nothing { why: "no scheduler is loaded" }),
    };
    let events = match view.symbol("scx_root") {
        Ok(root) => view.profile.scx.read(&view.mem, view.live, root),
        Err(gap) => Scx::Unknown(gap),
    };
    let bypass = |copy: &SchedCopy| copy.bypass_depth.clone().map(i64::from);
    ScxState {
        enable_state: enable_state(view),
        events,
        watchdog_timeout: watchdog_timeout(view, loaded),
        watchdog_timestamp: view.word("scx_watchdog_timestamp"),
        nr_rejected: view.word("scx_nr_rejected"),
        bypass_depth: inside(bypass)
            .or_else(|gap| view.half("scx_bypass_depth").map(|d| i64::from(d as i32)).map_err(|_| gap)),
        exit: sched.as_ref().and_then(|copy| exit(view, copy)),
        instance,
        sched,
    }
}

/// What the watchdog tolerates, in jiffies: a member of the scheduler, or a variable in older kernels.
pub fn watchdog_timeout(view: &View<'_, '_>, instance: Option<Kva>) -> Reading<u64> {
    let what = "scx_sched.watchdog_timeout";
    match (instance, view.offset("scx_sched", "watchdog_timeout")) {
        (Some(instance), Ok(into)) => {
            super::list::pointer(&view.mem, instance.wrapping_add(into), what).map(|timeout| timeout.0)
        }
        (_, Err(gap)) => view.word("scx_watchdog_timeout").map_err(|_| gap),
        (None, Ok(_)) => Err(Gap::Nothing { why: "no scheduler is loaded" }),
    }
}

/// The enumerator of how the scheduler at `instance` ends; `SCX_EXIT_NONE` while it does not.
pub fn exit_kind(view: &View<'_, '_>, instance: Kva) -> Reading<String> {
    let at = instance.wrapping_add(view.offset("scx_sched", "exit_kind")?);
    let found =
        view.mem.read_u32(at).map_err(|source| Gap::Unreadable { what: "scx_sched.exit_kind", source })?;
    kind(view, Ok(found as i32))
}

fn enable_state(view: &View<'_, '_>) -> Reading<String> {
    let value = view
        .half("scx_enable_state_var")
        .or_else(|gap| view.half("scx_ops_enable_state_var").map_err(|_| gap))?;
    let what = "scx_enable_state_var";
    let all = view.enumerators("scx_enable_state");
    let all = all.or_else(|gap| view.enumerators("scx_ops_enable_state").map_err(|_| gap))?;
    let found = all.iter().find(|(_, own)| *own == i64::from(value));
    let (name, _) = found.ok_or(Gap::Implausible { what, value: value.into() })?;
    Ok(name.rsplit('_').next().unwrap_or_default().to_lowercase())
}

/// `None` while the scheduler goes on.
fn exit(view: &View<'_, '_>, sched: &Reading<SchedCopy>) -> Option<Reading<ExitInfo>> {
    let sched = sched.as_ref().ok()?;
    if matches!(sched.exit_kind, Ok(0)) {
        return None;
    }
    let read = || {
        let copy = view.profile.state.exit.read(&view.mem, sched.exit_info.clone()?)?;
        let text = |at: &Reading<Kva>, limit, what| at.clone().and_then(|at| view.string(at, limit, what));
        Ok(ExitInfo {
            // `exit_kind` is set first, `exit_info.kind` when the rest is filled in.
            kind: kind(view, sched.exit_kind.clone()),
            reason: text(&copy.reason, MAX_MSG, "scx_exit_info.reason"),
            msg: text(&copy.msg, MAX_MSG, "scx_exit_info.msg"),
            dump: text(&copy.dump, MAX_DUMP, "scx_exit_info.dump"),
            backtrace: backtrace(view, &copy),
            copy,
        })
    };
    Some(read())
}

fn kind(view: &View<'_, '_>, kind: Reading<i32>) -> Reading<String> {
    let kind = kind?;
    let all = view.enumerators("scx_exit_kind")?;
    let found = all.iter().find(|(_, value)| *value == i64::from(kind));
    let unknown = Gap::Implausible { what: "scx_exit_info.kind", value: kind.into() };
    found.map(|(name, _)| name.clone()).ok_or(unknown)
}

fn backtrace(view: &View<'_, '_>, copy: &ExitCopy) -> Reading<Vec<String>> {
    let (at, len) = (copy.bt.clone()?, copy.bt_len.clone()?);
    if at.is_null() || len == 0 {
        return Ok(Vec::new());
    }
    if len > MAX_BT {
        return Err(Gap::Implausible { what: "scx_exit_info.bt_len", value: len.into() });
    }
    let addresses = super::list::words(&view.mem, at, len as usize, "scx_exit_info.bt")?;
    let shift = view.live.kaslr_shift();
    let name = |address: u64| match view.profile.symbols().at(Kva(address.wrapping_sub(shift))) {
        Some((name, into)) if into < 1 << 20 => format!("{name}+{into:#x}"),
        _ => format!("{address:#x}"),
    };
    Ok(addresses.into_iter().map(name).collect())
}

impl ScxState {
    /// Everything.
    pub fn node(&self) -> Node {
        let text = |text: &Option<String>| text.as_deref().map_or(Node::Null, Node::from);
        let exit = |exit: &ExitInfo| {
            let lines = |lines: &Vec<String>| Node::List(lines.iter().map(|l| l.as_str().into()).collect());
            Node::map([
                ("kind", Node::reading(&exit.kind, |kind| kind.as_str().into())),
                ("exit_code", Node::reading(&exit.copy.exit_code, |code| (*code).into())),
                ("exit_cpu", Node::reading(&exit.copy.exit_cpu, |cpu| (*cpu).into())),
                ("flags", Node::reading(&exit.copy.flags, |flags| Node::Hex(*flags))),
                ("reason", Node::reading(&exit.reason, text)),
                ("msg", Node::reading(&exit.msg, text)),
                ("backtrace", Node::reading(&exit.backtrace, lines)),
                ("dump", Node::reading(&exit.dump, text)),
            ])
        };
        Node::map([
            ("state", Node::reading(&self.enable_state, |state| state.as_str().into())),
            ("instance", Node::reading(&self.instance, |at| at.map_or(Node::Null, Node::from))),
            ("watchdog_timeout_jiffies", Node::reading(&self.watchdog_timeout, |t| (*t).into())),
            ("watchdog_timestamp_jiffies", Node::reading(&self.watchdog_timestamp, |t| (*t).into())),
            ("nr_rejected", Node::reading(&self.nr_rejected, |n| (*n).into())),
            ("bypass_depth", Node::reading(&self.bypass_depth, |n| (*n).into())),
            ("events", self.events_node()),
        ])
        .with("scx_sched", self.sched.as_ref().map_or(Node::Null, |s| Node::reading(s, SchedCopy::node)))
        .with("exit", self.exit.as_ref().map_or(Node::Null, |e| Node::reading(e, exit)))
    }

    fn events_node(&self) -> Node {
        match &self.events {
            Scx::NotLoaded => Node::Absent("no scheduler is loaded".into()),
            Scx::Unknown(gap) => Node::gap(gap),
            Scx::Loaded { events, .. } => {
                let event = |event: &super::scx::Event| {
                    (event.name.clone().into(), Node::reading(&event.count, |count| (*count).into()))
                };
                Node::Map(events.iter().map(event).collect())
            }
        }
    }
}
