//! Control groups of the default hierarchy: tree, `cpu.stat`, pressure (`kernel/cgroup/rstat.c`,
//! `kernel/sched/psi.c`).
//!
//! `cpu.stat` is not one number in memory. The kernel keeps what each CPU has not yet handed up and
//! adds it when somebody reads the file; what is computed here is what that reader would see.

use std::collections::HashMap;

use super::list::{self, Cut, Walk};
use super::value::{Gap, Reading};
use super::view::View;
use crate::addr::Kva;
use crate::node::Node;

/// Control groups read, at most.
const MAX_CGROUPS: usize = 10_000;
/// Levels of a path, at most.
const MAX_DEPTH: usize = 64;
/// `NAME_MAX` and the NUL.
const MAX_NAME: usize = 256;

crate::mirror! {
    /// What is read of a `struct cgroup`.
    CgroupCopy, CgroupLayout of "cgroup" {
        level: i32 = "level",
        nr_descendants: i32 = "nr_descendants",
        nr_populated_children: i32 = "self.nr_populated_children",
        nr_populated_domain_children: i32 = "nr_populated_domain_children",
        nr_populated_threaded_children: i32 = "nr_populated_threaded_children",
        nr_populated_csets: i32 = "self.nr_populated_csets" | "nr_populated_csets",
        kn: Kva = "kn",
        psi: Kva = "psi",
        rstat_base_cpu: Kva = "rstat_base_cpu" | "rstat_cpu",
        utime: u64 = "bstat.cputime.utime",
        stime: u64 = "bstat.cputime.stime",
        runtime: u64 = "bstat.cputime.sum_exec_runtime",
        ntime: u64 = "bstat.ntime",
        handed_up: u64 = "last_bstat.cputime.sum_exec_runtime",
    }
}

crate::mirror! {
    /// What one CPU has counted for a control group, and how much of it was handed up.
    BaseStat, BaseStatLayout of "cgroup_rstat_base_cpu" {
        runtime: u64 = "bstat.cputime.sum_exec_runtime",
        handed_up: u64 = "last_bstat.cputime.sum_exec_runtime",
    }
}

crate::mirror! {
    /// Pressure of a group: averages as fixed-point numbers, totals in nanoseconds.
    PsiCopy, PsiLayout of "psi_group" {
        enabled: bool = "enabled",
        total: Vec<u64> = "total",
        avg: Vec<u64> = "avg",
    }
}

crate::mirror! {
    /// A node of kernfs, for its name.
    KernfsCopy, KernfsLayout of "kernfs_node" {
        parent: Kva = "__parent" | "parent",
        name: Kva = "name",
        id: u64 = "id",
    }
}

/// A control group.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Where it lies.
    pub at: Kva,
    /// Path from the root of the hierarchy, which is `/`.
    pub path: Reading<String>,
    /// Its members.
    pub copy: CgroupCopy,
    /// `usage_usec` of `cpu.stat` in nanoseconds: execution time of all its tasks, gone ones included.
    pub usage_ns: Reading<u64>,
    /// Its pressure; none where it is not accounted.
    pub psi: Reading<Option<Psi>>,
    /// Position of its parent in the list.
    pub parent: Option<usize>,
}

/// Pressure stall information.
#[derive(Clone, Debug, PartialEq)]
pub struct Psi(Vec<PsiState>);

/// One state of one resource.
#[derive(Clone, Debug, PartialEq)]
pub struct PsiState {
    /// The kernel's name, e.g. `PSI_CPU_SOME`.
    pub name: String,
    /// Over 10, 60 and 300 seconds, percent.
    pub avg: [f64; 3],
    /// Since boot, microseconds.
    pub total_us: u64,
}

/// Paths of control groups, remembered: many tasks share few of them.
#[derive(Debug, Default)]
pub struct CgroupPaths {
    sets: HashMap<Kva, Reading<String>>,
    groups: HashMap<Kva, Reading<String>>,
}

impl CgroupPaths {
    /// The path that the tasks of a `css_set` have in the default hierarchy.
    pub fn of_css_set(&mut self, view: &View<'_, '_>, set: Kva) -> Reading<String> {
        if let Some(path) = self.sets.get(&set) {
            return path.clone();
        }
        let cgroup = view
            .offset("css_set", "dfl_cgrp")
            .and_then(|into| list::pointer(&view.mem, set.wrapping_add(into), "css_set.dfl_cgrp"));
        let path = cgroup.and_then(|cgroup| self.of_cgroup(view, cgroup));
        self.sets.insert(set, path.clone());
        path
    }

    /// The path of a control group.
    pub fn of_cgroup(&mut self, view: &View<'_, '_>, cgroup: Kva) -> Reading<String> {
        if let Some(path) = self.groups.get(&cgroup) {
            return path.clone();
        }
        let path = view
            .offset("cgroup", "kn")
            .and_then(|into| list::pointer(&view.mem, cgroup.wrapping_add(into), "cgroup.kn"))
            .and_then(|kn| path_of(view, kn));
        self.groups.insert(cgroup, path.clone());
        path
    }
}

/// Names from a kernfs node up to its root.
fn path_of(view: &View<'_, '_>, node: Kva) -> Reading<String> {
    let mut names = Vec::new();
    let mut here = node;
    for _ in 0..MAX_DEPTH {
        let copy = view.profile.state.kernfs.read(&view.mem, here)?;
        let parent = copy.parent?;
        if parent.is_null() {
            names.reverse();
            return Ok(format!("/{}", names.join("/")));
        }
        let name = view.string(copy.name?, MAX_NAME, "kernfs_node.name")?;
        names.push(name.unwrap_or_default());
        here = parent;
    }
    Err(Gap::Implausible { what: "depth of a kernfs path", value: MAX_DEPTH as i128 })
}

/// All control groups of the default hierarchy, parents before their children.
pub fn all(view: &View<'_, '_>) -> Walk<Cgroup> {
    let list = "cgroup_subsys_state.children";
    let start = || {
        Ok::<_, Gap>((
            view.symbol("cgrp_dfl_root")?.wrapping_add(view.offset("cgroup_root", "cgrp")?),
            view.offset("cgroup", "self.children")?,
            view.offset("cgroup", "self.sibling")?,
        ))
    };
    let (root, children, sibling) = match start() {
        Ok(found) => found,
        Err(gap) => return Walk::none(list, gap),
    };
    let mut paths = CgroupPaths::default();
    let mut found: Walk<Cgroup> = Walk { items: Vec::new(), cut: None };
    let mut pending: Vec<Reading<i128>> = Vec::new();
    let mut waiting = std::collections::VecDeque::from([(root, None)]);
    let mut seen = std::collections::HashSet::from([root]);
    while let Some((at, parent)) = waiting.pop_front() {
        if found.items.len() >= MAX_CGROUPS {
            found.cut = Some(Cut::TooLong { list, limit: MAX_CGROUPS });
            break;
        }
        let copy = match view.profile.state.cgroup.read(&view.mem, at) {
            Ok(copy) => copy,
            Err(gap) => {
                found.cut.get_or_insert(Cut::Unreachable { list, source: Box::new(gap) });
                continue;
            }
        };
        let nth = found.items.len();
        let inside = list::list_head(&view.mem, list, at.wrapping_add(children), MAX_CGROUPS);
        found.cut = found.cut.or(inside.cut);
        let inside = inside.items.into_iter().map(|node| list::container(node, sibling));
        waiting.extend(inside.filter(|child| seen.insert(*child)).map(|child| (child, Some(nth))));
        pending.push(unflushed(view, &copy));
        let psi = psi(view, copy.psi.clone());
        let path = paths.of_cgroup(view, at);
        let usage_ns = copy.runtime.clone();
        found.items.push(Cgroup { at, path, copy, usage_ns, psi, parent });
    }
    add_unflushed(&mut found.items, &pending);
    found
}

/// What the CPUs have counted and not yet handed to the group itself.
fn unflushed(view: &View<'_, '_>, copy: &CgroupCopy) -> Reading<i128> {
    let per_cpu = copy.rstat_base_cpu.clone()?;
    let mut sum = 0;
    for area in view.live.cpus() {
        let stat = view.profile.state.base_stat.read(&view.mem, per_cpu.wrapping_add(area.offset))?;
        sum += i128::from(stat.runtime?) - i128::from(stat.handed_up?);
    }
    Ok(sum)
}

/// Adds to each group what it and its descendants have not handed up; children come after parents.
fn add_unflushed(groups: &mut [Cgroup], pending: &[Reading<i128>]) {
    let mut below: Vec<Reading<i128>> = vec![Ok(0); groups.len()];
    for nth in (0..groups.len()).rev() {
        let own = pending[nth].clone().and_then(|own| Ok(own + below[nth].clone()?));
        let copy = &groups[nth].copy;
        let kept_back =
            || Ok::<_, Gap>(i128::from(copy.runtime.clone()?) - i128::from(copy.handed_up.clone()?));
        let up = own.clone().and_then(|own| Ok(own + kept_back()?));
        if let Some(parent) = groups[nth].parent {
            below[parent] = below[parent].clone().and_then(|sum| Ok(sum + up?));
        }
        let what = "usage of a control group";
        groups[nth].usage_ns = own.and_then(|own| {
            let value = i128::from(copy.runtime.clone()?) + own;
            u64::try_from(value).map_err(|_| Gap::Implausible { what, value })
        });
    }
}

/// The pressure kept at `group`.
pub fn psi(view: &View<'_, '_>, group: Reading<Kva>) -> Reading<Option<Psi>> {
    /// Bits behind the point of the kernel's load averages.
    const FSHIFT: u32 = 11;
    let group = group?;
    if group.is_null() {
        return Ok(None);
    }
    let copy = view.profile.state.psi.read(&view.mem, group)?;
    if copy.enabled == Ok(false) {
        return Err(Gap::Off { what: "accounting of pressure (psi=0, or cgroup.pressure is 0)" });
    }
    let (total, avg) = (copy.total?, copy.avg?);
    let states = view.enumerators("psi_states")?;
    let state = |(name, nth): &(String, i64)| {
        let nth = usize::try_from(*nth).ok()?;
        // Averages are kept for every state but the last, which counts time in which anything ran.
        let avg = avg.get(nth.checked_mul(3)?..nth.checked_mul(3)?.checked_add(3)?)?;
        let load = |n: usize| avg[n] as f64 / f64::from(1u32 << FSHIFT);
        Some(PsiState {
            name: name.clone(),
            avg: [load(0), load(1), load(2)],
            total_us: total.get(nth)? / 1000,
        })
    };
    Ok(Some(Psi(states.iter().filter_map(state).collect())))
}

impl Psi {
    /// By state.
    pub fn node(&self) -> Node {
        let state = |state: &PsiState| {
            let node = Node::map([
                ("avg10", Node::Float(state.avg[0])),
                ("avg60", Node::Float(state.avg[1])),
                ("avg300", Node::Float(state.avg[2])),
                ("total_us", state.total_us.into()),
            ]);
            (state.name.clone().into(), node)
        };
        Node::Map(self.0.iter().map(state).collect())
    }
}

impl Cgroup {
    /// Everything.
    pub fn node(&self) -> Node {
        let none = || Node::Absent("pressure is not accounted".into());
        let own = |psi: &Option<Psi>| psi.as_ref().map_or_else(none, Psi::node);
        Node::map([
            ("path", Node::reading(&self.path, |path| path.as_str().into())),
            ("usage_ns", Node::reading(&self.usage_ns, |ns| (*ns).into())),
        ])
        .with("cgroup", self.copy.node())
        .with("psi", Node::reading(&self.psi, own))
    }
}
