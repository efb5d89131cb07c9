//! Everything at one moment: what a capture reads while the guest stands.
//!
//! Reading and showing are apart: [`KernelState::read`] copies and follows pointers, which is all
//! that has to happen while vCPUs stand; [`KernelState::node`] makes a tree of it afterwards.

use std::time::{Duration, Instant};

use ktstr_proto::link::chain;

use super::cgroup::{self, Cgroup, Psi};
use super::cpu::{self, Cpu};
use super::dsq::{self, Dsq, DsqKind};
use super::list::Walk;
use super::locate::LiveKernel;
use super::module::{self, Module};
use super::profile::Profile;
use super::scx_state::{self, ScxState};
use super::task::{Task, TaskReader};
use super::value::{Gap, Reading, read_field};
use super::view::{Known, View};
use super::{cpu as cpu_mirrors, scx_state as scx_mirrors, task as task_mirrors};
use crate::addr::Kva;
use crate::btf::{FieldMissing, KernelTypes};
use crate::mem::GuestMem;
use crate::node::Node;
use crate::paging::{Budget, KernelMem, Tlb};

/// Where this kernel keeps what a capture reads.
#[derive(Debug)]
pub struct StateLayouts {
    pub(super) task: task_mirrors::TaskLayout,
    pub(super) rq: cpu_mirrors::RqCopyLayout,
    pub(super) domain: cpu_mirrors::DomainLayout,
    pub(super) group: cpu_mirrors::GroupLayout,
    pub(super) cpustat: cpu_mirrors::CpuStatLayout,
    pub(super) dsq: dsq::DsqLayout,
    pub(super) sched: scx_mirrors::SchedLayout,
    pub(super) exit: scx_mirrors::ExitLayout,
    pub(super) cgroup: cgroup::CgroupLayout,
    pub(super) base_stat: cgroup::BaseStatLayout,
    pub(super) psi: cgroup::PsiLayout,
    pub(super) kernfs: cgroup::KernfsLayout,
    pub(super) known: Known,
}

impl StateLayouts {
    /// Looks everything up.
    pub fn of(types: &KernelTypes) -> Self {
        Self {
            task: task_mirrors::TaskLayout::of(types),
            rq: cpu_mirrors::RqCopyLayout::of(types),
            domain: cpu_mirrors::DomainLayout::of(types),
            group: cpu_mirrors::GroupLayout::of(types),
            cpustat: cpu_mirrors::CpuStatLayout::of(types),
            dsq: dsq::DsqLayout::of(types),
            sched: scx_mirrors::SchedLayout::of(types),
            exit: scx_mirrors::ExitLayout::of(types),
            cgroup: cgroup::CgroupLayout::of(types),
            base_stat: cgroup::BaseStatLayout::of(types),
            psi: cgroup::PsiLayout::of(types),
            kernfs: cgroup::KernfsLayout::of(types),
            known: Known::default(),
        }
    }

    /// Reads one task by its address.
    pub(crate) fn task(&self, view: &View<'_, '_>, at: Kva) -> Reading<task_mirrors::TaskCopy> {
        self.task.read(&view.mem, at)
    }

    /// The members this kernel lacks.
    pub fn absent(&self) -> impl Iterator<Item = &FieldMissing> {
        self.task
            .absent()
            .chain(self.rq.absent())
            .chain(self.domain.absent())
            .chain(self.group.absent())
            .chain(self.cpustat.absent())
            .chain(self.dsq.absent())
            .chain(self.sched.absent())
            .chain(self.exit.absent())
            .chain(self.cgroup.absent())
            .chain(self.base_stat.absent())
            .chain(self.psi.absent())
            .chain(self.kernfs.absent())
    }
}

/// The guest's scheduler state at one moment.
#[derive(Debug)]
pub struct KernelState {
    /// The kernel's version text.
    pub version: String,
    /// How long reading took.
    pub took: Duration,
    /// `jiffies`.
    pub jiffies: Reading<u64>,
    /// Jiffies per second.
    pub hz: Reading<u32>,
    /// All possible CPUs.
    pub cpus: Vec<Cpu>,
    /// All tasks.
    pub tasks: Walk<Task>,
    /// Why tasks are missing from the list.
    pub unreadable_tasks: Vec<Gap>,
    /// All loaded modules.
    pub modules: Walk<Module>,
    /// sched_ext.
    pub scx: ScxState,
    /// All dispatch queues.
    pub dsqs: Walk<Dsq>,
    /// All control groups of the default hierarchy.
    pub cgroups: Walk<Cgroup>,
    /// Pressure of the whole system.
    pub psi: Reading<Option<Psi>>,
}

/// What of a state is asked for: a question need not read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Run queues, times, domains.
    pub cpus: bool,
    /// Tasks.
    pub tasks: bool,
    /// Dispatch queues.
    pub dsqs: bool,
    /// Control groups.
    pub cgroups: bool,
    /// Modules.
    pub modules: bool,
}

impl Parts {
    /// Everything.
    pub const ALL: Self = Self { cpus: true, tasks: true, dsqs: true, cgroups: true, modules: true };
    /// Only what is always read: time and sched_ext.
    pub const NONE: Self = Self { cpus: false, tasks: false, dsqs: false, cgroups: false, modules: false };
}

impl KernelState {
    /// Reads `parts`; consistent when the vCPUs stand, else each value for itself.
    pub fn read(profile: &Profile, live: &LiveKernel, mem: &GuestMem, parts: Parts) -> Self {
        let tlb = Tlb::default();
        Self::read_through(profile, live, live.view(mem).remembering(&tlb), parts)
    }

    /// Reads what [`KernelState::read_through`] will read of everything, so that it is kept; the guest
    /// stands meanwhile. Returns how many tasks and dispatch queues there are.
    pub fn touch(profile: &Profile, live: &LiveKernel, mem: KernelMem<'_>) -> (usize, usize) {
        let budget = Budget::default();
        let view = View { profile, live, mem: mem.within(&budget) };
        let tasks = TaskReader::new(&view).touch();
        let rest = Self::read_through(profile, live, mem, Parts { tasks: false, ..Parts::ALL });
        (tasks, rest.dsqs.items.len())
    }

    /// As [`KernelState::read`], through `mem`.
    pub fn read_through(profile: &Profile, live: &LiveKernel, mem: KernelMem<'_>, parts: Parts) -> Self {
        let began = Instant::now();
        let budget = Budget::default();
        let view = View { profile, live, mem: mem.within(&budget) };
        let empty = || Walk { items: Vec::new(), cut: None };
        let jiffies = view.word("jiffies_64").or_else(|_| view.word("jiffies"));
        let cpus: Vec<_> = live.cpus().iter().filter(|_| parts.cpus).map(|a| cpu::read(&view, *a)).collect();
        let scx = scx_state::read(&view);
        let instance = scx.instance.clone().ok().flatten();
        let dsqs = if parts.dsqs { dsq::all(&view, instance) } else { empty_of() };
        let (tasks, unreadable_tasks) =
            if parts.tasks { TaskReader::new(&view).all() } else { (empty(), Vec::new()) };
        let cgroups = if parts.cgroups { cgroup::all(&view) } else { empty_of() };
        let psi = if parts.cgroups { cgroup::psi(&view, view.symbol("psi_system")) } else { Ok(None) };
        let modules = if parts.modules { module::all(&view) } else { empty_of() };
        let hz = hz(&view);
        let (version, took) = (profile.version(), began.elapsed());
        Self { version, took, jiffies, hz, cpus, tasks, unreadable_tasks, modules, scx, dsqs, cgroups, psi }
    }

    /// The task at an address.
    pub fn task_at(&self, at: Kva) -> Option<&Task> {
        self.tasks.items.iter().find(|task| task.at == at)
    }

    /// Everything, as a tree.
    pub fn node(&self) -> Node {
        let tasks: std::collections::HashMap<Kva, &Task> =
            self.tasks.items.iter().map(|task| (task.at, task)).collect();
        let shown = |at: &Kva| match tasks.get(at) {
            Some(task) => task.brief(),
            None => Node::map([("at", (*at).into())]),
        };
        Node::map([
            ("kernel", self.version.as_str().into()),
            ("jiffies", Node::reading(&self.jiffies, |jiffies| (*jiffies).into())),
            ("hz", Node::reading(&self.hz, |hz| (*hz).into())),
            ("rq", Node::List(self.cpus.iter().map(|cpu| rq_node(cpu, &shown)).collect())),
            ("scx", self.scx.node()),
            ("dsq", walk(&self.dsqs, |dsq| dsq_node(dsq, &shown))),
            ("tasks", walk(&self.tasks, |task| self.task_node(task))),
            ("cgroups", walk(&self.cgroups, Cgroup::node)),
            ("modules", walk(&self.modules, Module::node)),
            ("psi", Node::reading(&self.psi, |psi| psi.as_ref().map_or_else(no_psi, Psi::node))),
            ("unreadable_tasks", Node::List(self.unreadable_tasks.iter().map(Node::gap).collect())),
        ])
    }

    fn task_node(&self, task: &Task) -> Node {
        task.node().with("runnable_age_ms", self.age_ms(task))
    }

    /// What a list of tasks shows of one.
    pub fn brief_task_node(&self, task: &Task) -> Node {
        task.brief().with("runnable_age_ms", self.age_ms(task))
    }

    fn age_ms(&self, task: &Task) -> Node {
        let shown = |ms: &Option<u64>| ms.map_or_else(|| Node::Absent("it does not wait".into()), Node::from);
        let age = task.runnable_age.clone();
        Node::reading(&age.and_then(|age| age.map(|age| self.jiffies_to_ms(age)).transpose()), shown)
    }

    /// Milliseconds of that many jiffies.
    pub fn jiffies_to_ms(&self, jiffies: u64) -> Reading<u64> {
        let hz = u64::from(self.hz.clone()?);
        let ms = jiffies.checked_mul(1000).map(|ms| ms / hz);
        ms.ok_or(Gap::Implausible { what: "jiffies", value: jiffies.into() })
    }
}

fn no_psi() -> Node {
    Node::Absent("pressure is not accounted".into())
}

fn empty_of<T>() -> Walk<T> {
    Walk { items: Vec::new(), cut: None }
}

fn rq_node(cpu: &Cpu, shown: &impl Fn(&Kva) -> Node) -> Node {
    let members = match &cpu.rq {
        Ok(copy) => copy.node(),
        Err(gap) => Node::Map(vec![("rq".into(), Node::gap(gap))]),
    };
    let curr = cpu.rq.as_ref().map_err(Gap::clone).and_then(|copy| copy.curr.clone());
    members
        .with("cpu", cpu.cpu.0.into())
        .with("at", cpu.at.into())
        .with("running", Node::reading(&curr, shown))
        .with("runnable_list", walk(&cpu.runnable, shown))
        .with("cpustat", cpu.times_node())
        .with("domains", walk(&cpu.domains, cpu_mirrors::Domain::node))
}

fn dsq_node(dsq: &Dsq, shown: &impl Fn(&Kva) -> Node) -> Node {
    let (kind, of) = match dsq.kind {
        DsqKind::Local(cpu) => ("local", Some(cpu.0)),
        DsqKind::Bypass(cpu) => ("bypass", Some(cpu.0)),
        DsqKind::Reject(cpu) => ("reject", Some(cpu.0)),
        DsqKind::Rescue(cpu) => ("rescue", Some(cpu.0)),
        DsqKind::Global(node) => ("global", Some(node)),
        DsqKind::User => ("user", None),
    };
    let copy = dsq.copy.as_ref().map_err(Gap::clone);
    let id = copy.clone().and_then(|copy| copy.id.clone());
    let nr = copy.and_then(|copy| copy.nr.clone());
    Node::map([
        ("kind", kind.into()),
        ("of", of.map_or_else(|| Node::Absent("it belongs to no CPU or node".into()), Node::from)),
        ("id", Node::reading(&id, |id| Node::Hex(*id))),
        ("nr", Node::reading(&nr, |nr| (*nr).into())),
        ("at", dsq.at.into()),
        ("tasks", walk(&dsq.queued, shown)),
    ])
}

/// The items of a walk as a list; when the walk was cut short the last item says why.
pub fn walk<T>(walk: &Walk<T>, node: impl Fn(&T) -> Node) -> Node {
    let cut = walk.cut.iter().map(|cut| Node::Unreadable(chain(cut)));
    Node::List(walk.items.iter().map(node).chain(cut).collect())
}

/// The newest clock of the run queues, nanoseconds of the guest's time.
pub fn newest_clock(view: &View<'_, '_>) -> Option<u64> {
    let clocks = view.live.cpus().iter().filter_map(|area| {
        let at = view.live.per_cpu(view.profile.runqueues(), *area);
        view.profile.rq.read(&view.mem, at, area.cpu).clock.ok()
    });
    clocks.max()
}

/// `CONFIG_HZ`, from the clock source that counts jiffies: its `mult` is the nanoseconds of one, shifted
/// (kernel/time/jiffies.c).
pub(crate) fn hz(view: &View<'_, '_>) -> Reading<u32> {
    const CLOCK: &str = "clocksource_jiffies";
    let at = view.symbol(CLOCK)?;
    let member = |name: &'static str| -> Reading<i128> {
        read_field(&view.mem, at, &view.profile.types().field("clocksource", name)?, CLOCK)
    };
    let (mult, shift) = (member("mult")?, member("shift")?);
    let implausible = || Gap::Implausible { what: CLOCK, value: mult };
    let ns = u32::try_from(shift).ok().and_then(|shift| mult.checked_shr(shift)).ok_or_else(implausible)?;
    match ns {
        1..=1_000_000_000 => Ok(((1_000_000_000 + ns / 2) / ns) as u32),
        _ => Err(implausible()),
    }
}
