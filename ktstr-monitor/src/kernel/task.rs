//! `struct task_struct`: every task of the guest (`include/linux/sched.h`, `sched/ext.h`).
//!
//! All tasks are the thread lists (`signal_struct.thread_head`) of the processes on
//! `init_task.tasks`, bounded. The idle tasks of CPUs other than 0 are on no list; run queues name
//! them.

use std::collections::{HashMap, HashSet};

use super::cgroup::CgroupPaths;
use super::list::{self, Cut, Walk};
use super::mirror::{CpuMask, Member as _};
use super::value::{Gap, Reading};
use super::view::View;
use crate::addr::Kva;
use crate::node::Node;

/// More tasks than this are not read: `PID_MAX_LIMIT` is four million, but no test has that many.
pub const MAX_TASKS: usize = 100_000;

crate::mirror! {
    /// What is read of a task.
    TaskCopy, TaskLayout of "task_struct" {
        pid: i32 = "pid",
        tgid: i32 = "tgid",
        comm: String = "comm",
        state: u32 = "__state",
        exit_state: i32 = "exit_state",
        flags: u32 = "flags",
        on_cpu: i32 = "on_cpu",
        on_rq: i32 = "on_rq",
        cpu: u32 = "thread_info.cpu",
        recent_used_cpu: i32 = "recent_used_cpu",
        prio: i32 = "prio",
        static_prio: i32 = "static_prio",
        normal_prio: i32 = "normal_prio",
        rt_priority: u32 = "rt_priority",
        policy: u32 = "policy",
        sched_class: Kva = "sched_class",
        nr_cpus_allowed: i32 = "nr_cpus_allowed",
        migration_disabled: i32 = "migration_disabled",
        cpus_mask: CpuMask = "cpus_mask",
        cpus_ptr: Kva = "cpus_ptr",
        weight: u64 = "se.load.weight",
        vruntime: u64 = "se.vruntime",
        deadline: u64 = "se.deadline",
        se_slice: u64 = "se.slice",
        sum_exec_runtime: u64 = "se.sum_exec_runtime",
        nr_migrations: u64 = "se.nr_migrations",
        util_avg: u64 = "se.avg.util_avg",
        nvcsw: u64 = "nvcsw",
        nivcsw: u64 = "nivcsw",
        utime: u64 = "utime",
        stime: u64 = "stime",
        start_time: u64 = "start_time",
        pcount: u64 = "sched_info.pcount",
        run_delay: u64 = "sched_info.run_delay",
        last_arrival: u64 = "sched_info.last_arrival",
        last_queued: u64 = "sched_info.last_queued",
        wait_max: u64 = "stats.wait_max",
        wait_sum: u64 = "stats.wait_sum",
        wait_count: u64 = "stats.wait_count",
        iowait_sum: u64 = "stats.iowait_sum",
        nr_wakeups: u64 = "stats.nr_wakeups",
        cgroups: Kva = "cgroups",
        signal: Kva = "signal",
        scx_dsq: Kva = "scx.dsq",
        scx_dsq_flags: u32 = "scx.dsq_flags",
        scx_flags: u32 = "scx.flags",
        scx_weight: u32 = "scx.weight",
        scx_sticky_cpu: i32 = "scx.sticky_cpu",
        scx_holding_cpu: i32 = "scx.holding_cpu",
        scx_selected_cpu: i32 = "scx.selected_cpu",
        scx_ops_state: u64 = "scx.ops_state",
        scx_ddsp_dsq_id: u64 = "scx.ddsp_dsq_id",
        scx_runnable_at: u64 = "scx.runnable_at",
        scx_slice: u64 = "scx.slice",
        scx_dsq_vtime: u64 = "scx.dsq_vtime",
        scx_disallow: bool = "scx.disallow",
    }
}

/// A task with what its pointers lead to.
#[derive(Clone, Debug)]
pub struct Task {
    /// Where it lies.
    pub at: Kva,
    /// Its members.
    pub copy: TaskCopy,
    /// Where it may run now: one CPU while it may not migrate, whatever its user allows (`cpus_mask`).
    pub allowed: Reading<CpuMask>,
    /// `fair`, `ext`, `rt`, `dl`, `idle`, `stop`.
    pub class: Reading<&'static str>,
    /// Path of its cgroup in the default hierarchy.
    pub cgroup: Reading<String>,
    /// Id of the DSQ it is queued on; none when it is on no DSQ.
    pub dsq: Reading<Option<u64>>,
    /// How long it has been runnable without running, in jiffies; none when it is not waiting.
    pub runnable_age: Reading<Option<u64>>,
}

/// Turns addresses into tasks, remembering what many of them share.
pub struct TaskReader<'v, 'k, 'm> {
    view: &'v View<'k, 'm>,
    classes: HashMap<Kva, &'static str>,
    paths: CgroupPaths,
    dsq_ids: HashMap<Kva, Reading<u64>>,
    dsq_id: Reading<u64>,
    queued: Reading<i64>,
    jiffies: Reading<u64>,
    possible: CpuMask,
}

/// The variables that are scheduling classes, and their short names.
const CLASSES: [(&str, &str); 6] = [
    ("fair_sched_class", "fair"),
    ("ext_sched_class", "ext"),
    ("rt_sched_class", "rt"),
    ("dl_sched_class", "dl"),
    ("idle_sched_class", "idle"),
    ("stop_sched_class", "stop"),
];

impl<'v, 'k, 'm> TaskReader<'v, 'k, 'm> {
    /// For the kernel of `view`.
    pub fn new(view: &'v View<'k, 'm>) -> Self {
        let class = |(symbol, name)| Some((view.symbol(symbol).ok()?, name));
        Self {
            view,
            classes: CLASSES.into_iter().filter_map(class).collect(),
            paths: CgroupPaths::default(),
            dsq_ids: HashMap::new(),
            dsq_id: view.offset("scx_dispatch_q", "id"),
            queued: view.enumerator("scx_ent_flags", "SCX_TASK_QUEUED"),
            jiffies: view.word("jiffies_64").or_else(|_| view.word("jiffies")),
            possible: view.possible(),
        }
    }

    /// The addresses of all tasks, process by process.
    pub fn addresses(&self) -> Walk<Kva> {
        let list = "init_task.tasks";
        let start = || {
            Ok::<_, Gap>((
                self.view.symbol("init_task")?,
                self.view.offset("task_struct", "tasks")?,
                self.view.offset("task_struct", "thread_node")?,
                self.view.offset("task_struct", "signal")?,
                self.view.offset("signal_struct", "thread_head")?,
            ))
        };
        let (init, tasks, thread, signal, threads) = match start() {
            Ok(offsets) => offsets,
            Err(gap) => return Walk::none(list, gap),
        };
        let mem = &self.view.mem;
        let leaders = list::list_head(mem, list, init.wrapping_add(tasks), MAX_TASKS);
        let mut found = Walk { items: vec![init], cut: leaders.cut };
        let mut seen = HashSet::from([init]);
        for leader in leaders.items.into_iter().map(|node| list::container(node, tasks)) {
            let inside = match list::pointer(mem, leader.wrapping_add(signal), "task_struct.signal") {
                Ok(signal) if !signal.is_null() => {
                    let head = signal.wrapping_add(threads);
                    list::list_head(mem, "signal_struct.thread_head", head, MAX_TASKS)
                }
                // A process that is being reaped has no signal_struct any more.
                Ok(_) => Walk { items: Vec::new(), cut: None },
                Err(gap) => Walk::none("signal_struct.thread_head", gap),
            };
            found.cut = found.cut.or(inside.cut);
            let inside = inside.items.into_iter().map(|node| list::container(node, thread));
            let fresh = std::iter::once(leader).chain(inside).filter(|task| seen.insert(*task));
            found.items.extend(fresh);
            if found.items.len() > MAX_TASKS {
                found.items.truncate(MAX_TASKS);
                found.cut = Some(Cut::TooLong { list, limit: MAX_TASKS });
                break;
            }
        }
        found
    }

    /// All tasks; those that cannot be read are left out and counted in the second value.
    pub fn all(&mut self) -> (Walk<Task>, Vec<Gap>) {
        let addresses = self.addresses();
        let mut gaps = Vec::new();
        let mut items = Vec::with_capacity(addresses.items.len());
        for at in addresses.items {
            match self.read(at) {
                Ok(task) => items.push(task),
                Err(gap) => gaps.push(gap),
            }
        }
        (Walk { items, cut: addresses.cut }, gaps)
    }

    /// Keeps for later what [`TaskReader::all`] will read; how many tasks there are.
    pub fn touch(&mut self) -> usize {
        let addresses = self.addresses().items;
        let css_set = self.view.offset("task_struct", "cgroups");
        let dsq = self.view.offset("task_struct", "scx.dsq");
        let (held, own) =
            (self.view.offset("task_struct", "cpus_ptr"), self.view.offset("task_struct", "cpus_mask"));
        let mem = &self.view.mem;
        let pointer = |at: Kva, member: &Reading<u64>| {
            list::pointer(mem, at.wrapping_add(member.clone()?), "a member of task_struct")
        };
        for &at in &addresses {
            self.view.profile.state.task.touch(mem, at);
            // What cannot be read is said when it is asked for.
            let is_own = |mask: Kva| own.as_ref().is_ok_and(|own| mask == at.wrapping_add(*own));
            if let Some(mask) = pointer(at, &held).ok().filter(|mask| !is_own(*mask)) {
                let _ = self.view.cpu_mask(mask, "task_struct.cpus_ptr");
            }
            let _ = pointer(at, &css_set).and_then(|set| self.paths.of_css_set(self.view, set));
            let _ = pointer(at, &dsq).and_then(|dsq| self.dsq(dsq));
        }
        addresses.len()
    }

    /// The task at `at`.
    pub fn read(&mut self, at: Kva) -> Reading<Task> {
        let mut copy = self.view.profile.state.task.read(&self.view.mem, at)?;
        copy.cpus_mask = copy.cpus_mask.map(|mask| mask.within(&self.possible));
        let allowed = self.allowed(at, &copy);
        let class = copy.sched_class.clone().and_then(|at| {
            let value = i128::from(at.0);
            let what = "task_struct.sched_class";
            self.classes.get(&at).copied().ok_or(Gap::Implausible { what, value })
        });
        let cgroup = copy.cgroups.clone().and_then(|set| self.paths.of_css_set(self.view, set));
        let dsq = copy.scx_dsq.clone().and_then(|dsq| self.dsq(dsq));
        let runnable_age = self.runnable_age(&copy);
        Ok(Task { at, copy, allowed, class, cgroup, dsq, runnable_age })
    }

    /// What `cpus_ptr` leads to, which is the task's own mask unless something holds it.
    fn allowed(&self, at: Kva, copy: &TaskCopy) -> Reading<CpuMask> {
        let mask = copy.cpus_ptr.clone()?;
        match self.view.offset("task_struct", "cpus_mask") {
            Ok(own) if mask == at.wrapping_add(own) => copy.cpus_mask.clone(),
            _ => self.view.cpu_mask(mask, "task_struct.cpus_ptr"),
        }
    }

    fn dsq(&mut self, dsq: Kva) -> Reading<Option<u64>> {
        if dsq.is_null() {
            return Ok(None);
        }
        let id = self.dsq_id.clone()?;
        let mem = &self.view.mem;
        let read = || list::pointer(mem, dsq.wrapping_add(id), "scx_dispatch_q.id").map(|id| id.0);
        self.dsq_ids.entry(dsq).or_insert_with(read).clone().map(Some)
    }

    fn runnable_age(&self, copy: &TaskCopy) -> Reading<Option<u64>> {
        let queued = i64::from(copy.scx_flags.clone()?) & self.queued.clone()? != 0;
        let on_cpu = copy.on_cpu.clone()? != 0;
        if !queued || on_cpu {
            return Ok(None);
        }
        let age = self.jiffies.clone()?.wrapping_sub(copy.scx_runnable_at.clone()?);
        // A stamp taken after jiffies was read, when nothing is frozen.
        Ok(Some(if age > u64::MAX / 2 { 0 } else { age }))
    }
}

/// `TASK_*` bits in the words of `/proc/PID/status`.
fn state_word(state: u32, exit_state: i32) -> &'static str {
    const TASK_NOLOAD: u32 = 0x400;
    match (exit_state & 0x30, state) {
        (0x10, _) => "X (dead)",
        (0x20 | 0x30, _) => "Z (zombie)",
        (_, 0) => "R (running)",
        // Freezing, frozen and the special states are told by their bits, not by words of their own.
        (_, s) if s & 1 != 0 => "S (sleeping)",
        (_, s) if s & 2 != 0 && s & TASK_NOLOAD != 0 => "I (idle)",
        (_, s) if s & 2 != 0 => "D (disk sleep)",
        (_, s) if s & 4 != 0 => "T (stopped)",
        (_, s) if s & 8 != 0 => "t (tracing stop)",
        (_, s) if s & 0x40 != 0 => "P (parked)",
        _ => "other",
    }
}

impl Task {
    /// Everything, by the kernel's names, and what the pointers lead to.
    pub fn node(&self) -> Node {
        let words =
            self.copy.state.clone().and_then(|state| Ok(state_word(state, self.copy.exit_state.clone()?)));
        self.copy
            .node()
            .with("at", self.at.into())
            .with("state", Node::reading(&words, |word| (*word).into()))
            .with("allowed", Node::reading(&self.allowed, |mask| mask.node()))
            .with("class", Node::reading(&self.class, |class| (*class).into()))
            .with("cgroup", Node::reading(&self.cgroup, |path| path.node()))
            .with(
                "dsq",
                Node::reading(&self.dsq, |id| {
                    id.map_or_else(|| Node::Absent("it is on no DSQ".into()), Node::Hex)
                }),
            )
            .with("runnable_age_jiffies", Node::reading(&self.runnable_age, age))
    }

    /// What a list of tasks shows of each.
    pub fn brief(&self) -> Node {
        let copy = &self.copy;
        Node::map([
            ("pid", Node::reading(&copy.pid, |pid| pid.node())),
            ("comm", Node::reading(&copy.comm, |comm| comm.node())),
            ("cpu", Node::reading(&copy.cpu, |cpu| cpu.node())),
            ("class", Node::reading(&self.class, |class| (*class).into())),
            ("weight", Node::reading(&copy.scx_weight, |weight| weight.node())),
            ("slice", Node::reading(&copy.scx_slice, |slice| slice.node())),
            ("dsq_vtime", Node::reading(&copy.scx_dsq_vtime, |vtime| vtime.node())),
            ("runnable_age_jiffies", Node::reading(&self.runnable_age, age)),
        ])
    }
}

fn age(age: &Option<u64>) -> Node {
    age.map_or_else(|| Node::Absent("it does not wait".into()), Node::from)
}
