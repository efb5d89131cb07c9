//! All that `struct rq` tells of a CPU, its times and its scheduling domains (`kernel/sched/sched.h`).
//!
//! [`super::rq`] is the small part that every sample reads; this is for a capture.

use super::list::{self, Cut, Walk};
use super::locate::CpuArea;
use super::mirror::CpuMask;
use super::value::{Gap, Reading};
use super::view::View;
use crate::addr::{CpuId, Kva};
use crate::node::Node;

/// Levels of scheduling domains, at most.
const MAX_DOMAINS: usize = 16;
/// Groups of one domain, at most.
const MAX_GROUPS: usize = 1024;
/// Tasks on one `runnable_list`, at most.
pub const MAX_RUNNABLE: usize = 50_000;

crate::mirror! {
    /// What is read of a run queue: all classes, and what `/proc/schedstat` shows.
    RqCopy, RqCopyLayout of "rq" {
        nr_running: u32 = "nr_running",
        nr_switches: u64 = "nr_switches",
        nr_uninterruptible: u64 = "nr_uninterruptible",
        nr_pinned: u32 = "nr_pinned",
        clock: u64 = "clock",
        clock_task: u64 = "clock_task",
        clock_pelt: u64 = "clock_pelt",
        cpu_capacity: u64 = "cpu_capacity",
        curr: Kva = "curr",
        idle: Kva = "idle",
        online: i32 = "online",
        active_balance: i32 = "active_balance",
        push_cpu: i32 = "push_cpu",
        misfit_task_load: u64 = "misfit_task_load",
        /// `struct sched_avg` of what is not cfs, of 1024: how it was at `last_update_time`, nanoseconds of the run
        /// queue's clocks in steps of 1024.
        avg_rt_updated: u64 = "avg_rt.last_update_time",
        avg_rt_load: u64 = "avg_rt.load_avg",
        avg_rt_runnable: u64 = "avg_rt.runnable_avg",
        avg_rt_util: u64 = "avg_rt.util_avg",
        avg_dl_updated: u64 = "avg_dl.last_update_time",
        avg_dl_load: u64 = "avg_dl.load_avg",
        avg_dl_runnable: u64 = "avg_dl.runnable_avg",
        avg_dl_util: u64 = "avg_dl.util_avg",
        /// Where the kernel accounts interrupts or stolen time (`CONFIG_HAVE_SCHED_AVG_IRQ`).
        avg_irq_updated: u64 = "avg_irq.last_update_time",
        avg_irq_load: u64 = "avg_irq.load_avg",
        avg_irq_runnable: u64 = "avg_irq.runnable_avg",
        avg_irq_util: u64 = "avg_irq.util_avg",
        /// Where the kernel is told of capacity that heat takes (`CONFIG_SCHED_HW_PRESSURE`).
        avg_hw_updated: u64 = "avg_hw.last_update_time",
        avg_hw_load: u64 = "avg_hw.load_avg",
        avg_hw_runnable: u64 = "avg_hw.runnable_avg",
        avg_hw_util: u64 = "avg_hw.util_avg",
        avg_idle: u64 = "avg_idle",
        prev_steal_time: u64 = "prev_steal_time",
        sd: Kva = "sd",
        cfs_load: u64 = "cfs.load.weight",
        cfs_nr_queued: u32 = "cfs.nr_queued" | "cfs.nr_running",
        cfs_h_nr_queued: u32 = "cfs.h_nr_queued" | "cfs.h_nr_running",
        cfs_h_nr_runnable: u32 = "cfs.h_nr_runnable",
        cfs_h_nr_idle: u32 = "cfs.h_nr_idle" | "cfs.idle_h_nr_running",
        cfs_min_vruntime: u64 = "cfs.min_vruntime",
        /// No new name for the one above: it is the reference of the average, and may go back.
        cfs_zero_vruntime: u64 = "cfs.zero_vruntime",
        cfs_curr: Kva = "cfs.curr",
        cfs_avg_updated: u64 = "cfs.avg.last_update_time",
        cfs_load_avg: u64 = "cfs.avg.load_avg",
        cfs_runnable_avg: u64 = "cfs.avg.runnable_avg",
        cfs_util_avg: u64 = "cfs.avg.util_avg",
        rt_nr_running: u32 = "rt.rt_nr_running",
        rr_nr_running: u32 = "rt.rr_nr_running",
        rt_highest: i32 = "rt.highest_prio.curr",
        rt_overloaded: bool = "rt.overloaded",
        rt_queued: i32 = "rt.rt_queued",
        dl_nr_running: u32 = "dl.dl_nr_running",
        dl_overloaded: bool = "dl.overloaded",
        dl_running_bw: u64 = "dl.running_bw",
        dl_this_bw: u64 = "dl.this_bw",
        dl_earliest: u64 = "dl.earliest_dl.curr",
        scx_nr_running: u32 = "scx.nr_running",
        scx_flags: u32 = "scx.flags",
        scx_nr_immed: u32 = "scx.nr_immed",
        scx_cpuperf_target: u32 = "scx.cpuperf_target",
        scx_cpu_released: bool = "scx.cpu_released",
        scx_clock: u64 = "scx.clock",
        scx_local_nr: u32 = "scx.local_dsq.nr",
        pcount: u64 = "rq_sched_info.pcount",
        run_delay: u64 = "rq_sched_info.run_delay",
        rq_cpu_time: u64 = "rq_cpu_time",
        yld_count: u32 = "yld_count",
        sched_count: u32 = "sched_count",
        sched_goidle: u32 = "sched_goidle",
        ttwu_count: u32 = "ttwu_count",
        ttwu_local: u32 = "ttwu_local",
    }
}

crate::mirror! {
    /// What is read of a scheduling domain.
    DomainCopy, DomainLayout of "sched_domain" {
        parent: Kva = "parent",
        groups: Kva = "groups",
        name: Kva = "name",
        level: i32 = "level",
        flags: i32 = "flags",
        span_weight: u32 = "span_weight",
        min_interval: u64 = "min_interval",
        max_interval: u64 = "max_interval",
        busy_factor: u32 = "busy_factor",
        imbalance_pct: u32 = "imbalance_pct",
        cache_nice_tries: u32 = "cache_nice_tries",
        imb_numa_nr: u32 = "imb_numa_nr",
        last_balance: u64 = "last_balance",
        balance_interval: u32 = "balance_interval",
        nr_balance_failed: u32 = "nr_balance_failed",
        max_newidle_lb_cost: u64 = "max_newidle_lb_cost",
        newidle_call: u32 = "newidle_call",
        newidle_success: u32 = "newidle_success",
        newidle_ratio: u32 = "newidle_ratio",
        lb_count: Vec<u32> = "lb_count",
        lb_failed: Vec<u32> = "lb_failed",
        lb_balanced: Vec<u32> = "lb_balanced",
        lb_imbalance_load: Vec<u32> = "lb_imbalance_load",
        lb_imbalance_util: Vec<u32> = "lb_imbalance_util",
        lb_imbalance_task: Vec<u32> = "lb_imbalance_task",
        lb_imbalance_misfit: Vec<u32> = "lb_imbalance_misfit",
        lb_gained: Vec<u32> = "lb_gained",
        lb_hot_gained: Vec<u32> = "lb_hot_gained",
        lb_nobusyg: Vec<u32> = "lb_nobusyg",
        lb_nobusyq: Vec<u32> = "lb_nobusyq",
        alb_count: u32 = "alb_count",
        alb_failed: u32 = "alb_failed",
        alb_pushed: u32 = "alb_pushed",
        sbe_count: u32 = "sbe_count",
        sbe_balanced: u32 = "sbe_balanced",
        sbe_pushed: u32 = "sbe_pushed",
        sbf_count: u32 = "sbf_count",
        sbf_balanced: u32 = "sbf_balanced",
        sbf_pushed: u32 = "sbf_pushed",
        ttwu_wake_remote: u32 = "ttwu_wake_remote",
        ttwu_move_affine: u32 = "ttwu_move_affine",
        ttwu_move_balance: u32 = "ttwu_move_balance",
    }
}

crate::mirror! {
    /// What is read of a group in a domain.
    GroupCopy, GroupLayout of "sched_group" {
        next: Kva = "next",
        group_weight: u32 = "group_weight",
        cores: u32 = "cores",
        sgc: Kva = "sgc",
    }
}

crate::mirror! {
    /// Time of a CPU by what it was spent on, nanoseconds.
    CpuStatCopy, CpuStatLayout of "kernel_cpustat" {
        cpustat: Vec<u64> = "cpustat",
    }
}

/// A CPU with everything that belongs to it.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// Which one.
    pub cpu: CpuId,
    /// Where its run queue lies.
    pub at: Kva,
    /// Its run queue.
    pub rq: Reading<RqCopy>,
    /// Nanoseconds by the kernel's names (`CPUTIME_USER`, …).
    pub times: Reading<Vec<(String, u64)>>,
    /// From the smallest domain up.
    pub domains: Walk<Domain>,
    /// Addresses of the tasks on `rq.scx.runnable_list`, longest waiting first.
    pub runnable: Walk<Kva>,
}

/// A scheduling domain.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Its members.
    pub copy: DomainCopy,
    /// `SMT`, `MC`, `PKG`, `NUMA`…
    pub name: Reading<Option<String>>,
    /// Its CPUs.
    pub span: Reading<CpuMask>,
    /// Its groups with their CPUs and capacity.
    pub groups: Walk<Group>,
}

/// A group in a domain.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its members.
    pub copy: GroupCopy,
    /// Its CPUs.
    pub cpus: Reading<CpuMask>,
    /// Sum of its CPUs' capacities.
    pub capacity: Reading<u64>,
}

/// Reads one CPU.
pub fn read(view: &View<'_, '_>, area: CpuArea) -> Cpu {
    let at = view.live.per_cpu(view.profile.runqueues(), area);
    let rq = view
        .profile
        .rq
        .identify(&view.mem, at, area.cpu)
        .and_then(|()| view.profile.state.rq.read(&view.mem, at));
    let sd = rq.as_ref().map_err(Gap::clone).and_then(|rq| rq.sd.clone());
    Cpu {
        cpu: area.cpu,
        at,
        times: times(view, area),
        domains: match sd {
            Ok(sd) => domains(view, sd),
            Err(gap) => Walk::none("sched_domain.parent", gap),
        },
        runnable: runnable(view, at),
        rq,
    }
}

fn times(view: &View<'_, '_>, area: CpuArea) -> Reading<Vec<(String, u64)>> {
    let at = view.per_cpu("kernel_cpustat", area)?;
    let times = view.profile.state.cpustat.read(&view.mem, at)?.cpustat?;
    let names = view.enumerators("cpu_usage_stat")?;
    let named = |(name, nth): &(String, i64)| Some((name.clone(), *times.get(usize::try_from(*nth).ok()?)?));
    Ok(names.iter().filter_map(named).collect())
}

/// The tasks on the runnable list of the run queue at `rq`.
pub fn runnable(view: &View<'_, '_>, rq: Kva) -> Walk<Kva> {
    let list = "rq.scx.runnable_list";
    let offsets = view
        .offset("rq", "scx.runnable_list")
        .and_then(|head| Ok((head, view.offset("task_struct", "scx.runnable_node")?)));
    match offsets {
        Ok((head, node)) => list::list_head(&view.mem, list, rq.wrapping_add(head), MAX_RUNNABLE)
            .map(|at| list::container(at, node)),
        Err(gap) => Walk::none(list, gap),
    }
}

fn domains(view: &View<'_, '_>, lowest: Kva) -> Walk<Domain> {
    let list = "sched_domain.parent";
    let mut found = Walk { items: Vec::new(), cut: None };
    let mut here = lowest;
    while !here.is_null() {
        if found.items.len() >= MAX_DOMAINS {
            found.cut = Some(Cut::TooLong { list, limit: MAX_DOMAINS });
            break;
        }
        let copy = match view.profile.state.domain.read(&view.mem, here) {
            Ok(copy) => copy,
            Err(gap) => {
                found.cut = Some(Cut::Unreachable { list, source: Box::new(gap) });
                break;
            }
        };
        let name = copy.name.clone().and_then(|at| view.string(at, 64, "sched_domain.name"));
        let groups = match &copy.groups {
            Ok(first) => groups(view, *first),
            Err(gap) => Walk::none("sched_group.next", gap.clone()),
        };
        let span = span(view, here, &copy);
        let parent = copy.parent.clone();
        found.items.push(Domain { copy, name, span, groups });
        here = match parent {
            Ok(parent) => parent,
            Err(gap) => {
                found.cut = Some(Cut::Unreachable { list, source: Box::new(gap) });
                break;
            }
        };
    }
    found
}

/// The CPUs of a domain are kept behind its last member. Newer kernels give that place no name; it is
/// believed there when as many CPUs are set as the domain says it spans.
fn span(view: &View<'_, '_>, at: Kva, copy: &DomainCopy) -> Reading<CpuMask> {
    let what = "sched_domain.span";
    if let Ok(into) = view.offset("sched_domain", "span") {
        return view.cpu_mask(at.wrapping_add(into), what);
    }
    let mask = view.cpu_mask(at.wrapping_add(view.profile.types().size_of("sched_domain")?), what)?;
    let (found, expected) = (mask.cpus().count() as u32, copy.span_weight.clone()?);
    if found != expected {
        return Err(Gap::Implausible { what, value: found.into() });
    }
    Ok(mask)
}

fn groups(view: &View<'_, '_>, first: Kva) -> Walk<Group> {
    let list = "sched_group.next";
    // The ring has no head: it ends where it began.
    let mut nodes = vec![first];
    let ring = match view.offset("sched_group", "next") {
        Ok(0) => list::chain(&view.mem, list, first, MAX_GROUPS, |next| next == first),
        Ok(_) => Walk::none(list, Gap::Implausible { what: "offset of sched_group.next", value: 1 }),
        Err(gap) => Walk::none(list, gap),
    };
    nodes.extend(ring.items);
    let mut found = Walk { items: Vec::new(), cut: ring.cut };
    for at in nodes {
        match group(view, at) {
            Ok(group) => found.items.push(group),
            Err(gap) => {
                found.cut.get_or_insert(Cut::Unreachable { list, source: Box::new(gap) });
            }
        }
    }
    found
}

fn group(view: &View<'_, '_>, at: Kva) -> Reading<Group> {
    let copy = view.profile.state.group.read(&view.mem, at)?;
    let cpus = view
        .offset("sched_group", "cpumask")
        .and_then(|into| view.cpu_mask(at.wrapping_add(into), "sched_group.cpumask"));
    let capacity = copy.sgc.clone().and_then(|sgc| {
        let into = view.offset("sched_group_capacity", "capacity")?;
        list::pointer(&view.mem, sgc.wrapping_add(into), "sched_group_capacity.capacity").map(|c| c.0)
    });
    Ok(Group { copy, cpus, capacity })
}

impl Domain {
    /// Everything.
    pub fn node(&self) -> Node {
        let group = |group: &Group| {
            Node::map([
                ("cpus", Node::reading(&group.cpus, |mask| mask.to_string().as_str().into())),
                ("capacity", Node::reading(&group.capacity, |capacity| (*capacity).into())),
            ])
            .with("sched_group", group.copy.node())
        };
        Node::map([
            ("name", Node::reading(&self.name, |name| name.as_deref().map_or(Node::Null, Node::from))),
            ("span", Node::reading(&self.span, |mask| mask.to_string().as_str().into())),
        ])
        .with("sched_domain", self.copy.node())
        .with("groups", super::state::walk(&self.groups, group))
    }
}

impl Cpu {
    /// Times by name.
    pub fn times_node(&self) -> Node {
        Node::reading(&self.times, |times| {
            Node::Map(times.iter().map(|(name, ns)| (name.clone().into(), (*ns).into())).collect())
        })
    }
}
