//! Carries out single operations: what they do to cgroups, workers, programs, CPUs and the scheduler.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use ktstr_proto::guest::SchedulerRequest;
use nix::errno::Errno;

use super::{
    AffinityIntent, CgroupDef, KernelTarget, KernelWidth, KernelWrite, Op, ScenarioError, WorkSpec, cpu_list,
    engine::{Engine, Live, Program, Running},
    hold,
    host::HostError,
    names::Layer,
    op::{Irq, Placement},
};
use crate::{
    attributes::Attributes,
    work::{CloneMode, WorkError, WorkType, WorkloadConfig, WorkloadHandle},
};

/// A group of workers before it is made.
struct Planned {
    config: WorkloadConfig,
    /// What each asks for itself.
    affinity: Vec<Vec<u32>>,
    /// What its cgroup allows, if it restricts.
    restricted: Option<Vec<u32>>,
    order: usize,
}

impl Engine<'_> {
    /// Carries out one operation and puts it into the timeline.
    pub fn apply(&mut self, op: &Op, layer: Layer, place: &str) -> Result<(), ScenarioError> {
        self.phases.count_op();
        let what = match op {
            Op::AddCgroup { name } => {
                self.populate(&[CgroupDef::empty(name)], layer)?;
                format!("cgroup {name} added")
            }
            Op::AddCgroupDef { def } => {
                self.populate(std::slice::from_ref(def), layer)?;
                format!("cgroup {} added with its workers", def.name)
            }
            Op::RemoveCgroup { cgroup } => {
                self.stop_workers(|worker| worker.cgroup == *cgroup);
                self.end_programs(|program| program.cgroup == *cgroup)?;
                self.ctx.cgroups.remove(cgroup)?;
                self.cgroups.retain(|live| live.name != *cgroup);
                format!("cgroup {cgroup} removed")
            }
            Op::StopCgroup { cgroup } => {
                self.stop_workers(|worker| worker.cgroup == *cgroup);
                format!("workers of {cgroup} stopped")
            }
            Op::SetCpuset { cgroup, cpus } => {
                let cpus = self.resolve(cgroup, cpus)?;
                self.set_cpuset(cgroup, cpus.clone())?;
                format!("cpuset of {cgroup} set to {}", cpu_list(&cpus))
            }
            Op::ClearCpuset { cgroup } => {
                self.set_cpuset(cgroup, Vec::new())?;
                format!("cpuset of {cgroup} cleared")
            }
            Op::SwapCpusets { a, b } => {
                let of = |name: &str| self.live(name).map(|live| live.cpus.clone()).unwrap_or_default();
                let (old_a, old_b) = (of(a), of(b));
                self.set_cpuset(a, old_b)?;
                self.set_cpuset(b, old_a)?;
                format!("cpusets of {a} and {b} swapped")
            }
            Op::SetLimits { cgroup, limits } => {
                self.ctx.cgroups.enable_for(cgroup, &limits.controllers())?;
                self.ctx.cgroups.set_limits(cgroup, limits)?;
                let files = limits.files();
                let texts: Vec<String> = files.iter().map(|(file, text)| format!("{file}={text}")).collect();
                format!("limits of {cgroup}: {}", texts.join(", "))
            }
            Op::Spawn { placement, work } => {
                let cgroup = name_of(placement).unwrap_or_default().to_owned();
                self.spawn(&cgroup, std::slice::from_ref(work), layer)?;
                self.start()?;
                format!(
                    "workers started in {}",
                    if cgroup.is_empty() { "the runner's cgroup" } else { &cgroup }
                )
            }
            Op::SetAffinity { cgroup, affinity } => {
                self.set_affinity(cgroup, affinity)?;
                format!("affinity in {cgroup} set to {affinity:?}")
            }
            Op::MoveAllTasks { from, to } => {
                let moved = self.move_all(from, to)?;
                format!("{moved} tasks moved from {from} to {to}")
            }
            Op::FreezeCgroup { cgroup } => {
                self.ctx.cgroups.freeze(cgroup, true)?;
                if let Some(live) = self.live_mut(cgroup) {
                    live.frozen_since = Some(Instant::now());
                }
                format!("{cgroup} frozen")
            }
            Op::UnfreezeCgroup { cgroup } => {
                self.unfreeze(cgroup)?;
                format!("{cgroup} thawed")
            }
            Op::OfflineCpu { cpu } => {
                set_online(*cpu, false, place)?;
                self.offline.insert(*cpu);
                self.forget_affinities();
                self.widen();
                format!("cpu{cpu} offline")
            }
            Op::OnlineCpu { cpu } => {
                set_online(*cpu, true, place)?;
                self.offline.remove(cpu);
                format!("cpu{cpu} online")
            }
            Op::SteerIrq { irq, cpu } => {
                let number = irq_number(irq, place)?;
                let file = format!("/proc/irq/{number}/smp_affinity_list");
                put(Path::new(&file), &cpu.to_string(), place)?;
                format!("interrupt {number} sent to cpu{cpu}")
            }
            Op::CaptureCgroupProcs { tag, cgroup } => {
                let pids = self.ctx.cgroups.processes(cgroup)?;
                let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
                format!("{tag}: processes of {cgroup}: {}", pids.join(" "))
            }
            Op::CaptureSnapshot { name } => {
                self.ctx.capture_snapshot(name).map_err(at(place))?;
                format!("state captured as {name}")
            }
            Op::ReadMap { tag, map, path } => {
                let value = self.ctx.read_map(map, path).map_err(at(place))?;
                let what = format!("{tag}: {path} in {map} is {value}");
                self.remark(what.clone());
                what
            }
            Op::WriteMap { map, path, value } => {
                self.ctx.write_map(map, path, *value).map_err(at(place))?;
                format!("{path} in {map} set to {value}")
            }
            Op::PinBpfMap { name } => {
                let id = self.ctx.pin_bpf_map(name).map_err(at(place))?;
                format!("map {name} pinned, its number is {id}")
            }
            Op::ReadKernelHot { tag, target, width } => {
                self.read_kernel(tag, target, *width, false, place)?
            }
            Op::ReadKernelCold { tag, target, width } => {
                self.read_kernel(tag, target, *width, true, place)?
            }
            Op::WriteKernelHot { writes } => self.write_kernel(writes, false, place)?,
            Op::WriteKernelCold { writes } => self.write_kernel(writes, true, place)?,
            Op::WatchSnapshot { what } => {
                self.ctx.watch(what.clone())?;
                format!("{what} is to be watched")
            }
            Op::RunPayload { payload, args, placement } => {
                self.run_program(*payload, args, name_of(placement), layer)?;
                format!("payload {} started", payload.name)
            }
            Op::WaitPayload { name, cgroup } => {
                let program = self.take_program(name, cgroup.as_deref(), place)?;
                let ended = program.wait(None);
                self.keep(ended)?;
                format!("payload {name} ended")
            }
            Op::KillPayload { name, cgroup } => {
                let program = self.take_program(name, cgroup.as_deref(), place)?;
                let ended = program.stop();
                self.keep(ended)?;
                format!("payload {name} was ended")
            }
            Op::AttachScheduler => self.ask(SchedulerRequest::Attach, place)?,
            Op::DetachScheduler => self.ask(SchedulerRequest::Detach, place)?,
            Op::RestartScheduler => self.ask(SchedulerRequest::Restart, place)?,
            Op::ReplaceScheduler { name } => self.ask(SchedulerRequest::Replace(name.clone()), place)?,
        };
        self.note(what)
    }

    /// Creates one cgroup and forks its workers, which wait in it.
    pub(super) fn create(&mut self, def: &CgroupDef, layer: Layer) -> Result<(), ScenarioError> {
        let name = &def.name;
        let cpus = match &def.cpuset {
            Some(spec) => self.resolve(name, spec)?,
            None => Vec::new(),
        };
        let mut controllers = def.limits.controllers();
        let mut need = |controller| {
            if !controllers.contains(&controller) {
                controllers.push(controller);
            }
        };
        if def.cpuset.is_some() || def.cpuset_mems.is_some() {
            need("cpuset");
        }
        // A parent with tasks of its own cannot pass controllers on; its children go without.
        if !name.contains('/') {
            need("cpu");
        }
        if !controllers.is_empty() {
            self.ctx.cgroups.enable_for(name, &controllers)?;
        } else {
            self.ctx.cgroups.enable(&["cpu"])?;
        }
        self.ctx.cgroups.create(name)?;
        self.cgroups.push(Live { name: name.clone(), layer, cpus: cpus.clone(), frozen_since: None });
        if !cpus.is_empty() {
            self.ctx.cgroups.set_cpuset(name, &cpus)?;
        }
        if let Some(nodes) = &def.cpuset_mems {
            self.ctx.cgroups.set_cpuset_mems(name, &nodes.iter().copied().collect::<Vec<_>>())?;
        }
        self.ctx.cgroups.set_limits(name, &def.limits)?;
        let groups: Vec<WorkSpec> = def.groups().into_iter().map(|work| self.overridden(def, work)).collect();
        self.spawn(name, &groups, layer)
    }

    /// The work with the run's own work type, where the cgroup allows it and its numbers fit.
    fn overridden(&self, def: &CgroupDef, work: WorkSpec) -> WorkSpec {
        match &self.ctx.work_type_override {
            Some(work_type) if def.swappable => {
                let workers = self.count(&def.name, &work);
                if workers.is_multiple_of(work_type.group_size()) {
                    return work.work_type(work_type.clone());
                }
                work
            }
            _ => work,
        }
    }

    fn count(&self, cgroup: &str, work: &WorkSpec) -> u32 {
        match (work.workers, work.workers_pct) {
            (Some(workers), _) => workers,
            (None, Some(pct)) => (self.allowed(cgroup).len() as f64 * pct).ceil().max(0.0) as u32,
            (None, None) => {
                // The default is made to fit kinds of work that need partners.
                let group = work.work_type.as_ref().map_or(1, WorkType::group_size);
                self.ctx.workers_per_cgroup.next_multiple_of(group)
            }
        }
    }

    /// Forks groups of workers into a cgroup; the empty name is the runner's own. Those that name the same
    /// process become threads of one.
    fn spawn(&mut self, cgroup: &str, groups: &[WorkSpec], layer: Layer) -> Result<(), ScenarioError> {
        let mut planned = Vec::new();
        for work in groups {
            planned.push(Some(self.plan(cgroup, work)?));
        }
        let failed = |source| ScenarioError::Work { cgroup: cgroup.into(), source };
        let mut made: Vec<(Planned, WorkloadHandle)> = Vec::new();
        for at in 0..planned.len() {
            let Some(first) = planned[at].take() else { continue };
            let mut together = vec![first];
            if let CloneMode::Pcomm(_) = together[0].config.mode {
                let same = |other: &mut Planned| other.config.mode == together[0].config.mode;
                let rest: Vec<Planned> =
                    planned[at + 1..].iter_mut().filter_map(|other| other.take_if(same)).collect();
                together.extend(rest);
            }
            let configs: Vec<WorkloadConfig> = together.iter().map(|group| group.config.clone()).collect();
            let handles = match configs.first().map(|config| &config.mode) {
                Some(CloneMode::Pcomm(_)) => WorkloadHandle::spawn_sharing(configs).map_err(failed)?,
                _ => configs
                    .into_iter()
                    .map(WorkloadHandle::spawn)
                    .collect::<Result<_, _>>()
                    .map_err(failed)?,
            };
            made.extend(together.into_iter().zip(handles));
        }
        made.sort_by_key(|(group, _)| group.order);
        for (group, handle) in made {
            let Planned { config, affinity, restricted, order } = group;
            handle.enter_phase(self.phases.current());
            if !cgroup.is_empty() {
                for pid in handle.pids() {
                    self.ctx.cgroups.move_process(cgroup, pid)?;
                }
            }
            let wanders = config.work_type.sets_affinities();
            let own = |own: &Vec<u32>| within(restricted.as_deref(), if wanders { &[] } else { own });
            self.workers.push(Running {
                allowed: vec![affinity.iter().map(own).collect()],
                wanders,
                leaves: config.work_type.leaves_its_cgroup(),
                handle,
                origin: config.cgroup,
                cgroup: cgroup.into(),
                layer,
                order,
                started: None,
                throttled_before_ns: 0,
                affinity,
            });
        }
        Ok(())
    }

    /// What a group of workers is to be.
    fn plan(&mut self, cgroup: &str, work: &WorkSpec) -> Result<Planned, ScenarioError> {
        let workers = self.count(cgroup, work);
        if workers == 0 {
            return Err(ScenarioError::NoWorkers { cgroup: cgroup.into() });
        }
        let allowed = self.allowed(cgroup);
        self.check_memory(cgroup, work, &allowed)?;
        let mut affinity = Vec::new();
        for worker in 0..workers as usize {
            affinity.push(self.choose(cgroup, work, &allowed, worker)?);
        }
        let attributes = affinity.iter().map(|cpus| Attributes {
            comm: work.comm.clone(),
            nice: work.nice,
            sched_policy: work.sched_policy,
            mem_policy: work.mem_policy.clone(),
            mpol_flags: work.mpol_flags.unwrap_or_default(),
            affinity: cpus.clone(),
            uid: work.uid,
            gid: work.gid,
        });
        let restricted = self.restriction(cgroup);
        let config = WorkloadConfig {
            workers,
            work_type: work.work_type.clone().unwrap_or_default(),
            cgroup: if cgroup.is_empty() { "(runner)".into() } else { cgroup.into() },
            cpus_allowed: restricted.clone().unwrap_or_default(),
            seed: self.ctx.seed.wrapping_add((self.order as u64) << 32),
            attributes: attributes.collect(),
            mode: work.pcomm.clone().map_or(CloneMode::Fork, CloneMode::Pcomm),
            signal_first_iteration: work.signal_first_iteration.unwrap_or_default(),
            park_after_iterations: work.park_after_iterations,
        };
        let order = self.order;
        self.order += 1;
        Ok(Planned { config, affinity, restricted, order })
    }

    fn choose(
        &mut self,
        cgroup: &str,
        work: &WorkSpec,
        allowed: &[u32],
        worker: usize,
    ) -> Result<Vec<u32>, ScenarioError> {
        let node = work.numa_node.and_then(|node| self.ctx.topo.nodes().get(node as usize));
        let pool: Vec<u32> = match node {
            Some(node) => allowed.iter().copied().filter(|cpu| node.contains(cpu)).collect(),
            None => allowed.to_vec(),
        };
        let intent = match (&work.affinity, work.numa_node) {
            (None | Some(AffinityIntent::Inherit), Some(_)) => &AffinityIntent::exact(pool.iter().copied()),
            (None, None) => &AffinityIntent::Inherit,
            (Some(intent), _) => intent,
        };
        intent
            .resolve(&self.ctx.topo, &pool, worker, &mut self.random)
            .map_err(|source| ScenarioError::Affinity { cgroup: cgroup.into(), source })
    }

    fn check_memory(&self, cgroup: &str, work: &WorkSpec, allowed: &[u32]) -> Result<(), ScenarioError> {
        use crate::attributes::{MemPolicyError, MpolFlags};
        let Some(policy) = &work.mem_policy else { return Ok(()) };
        let flags = work.mpol_flags.unwrap_or_default();
        if flags.contains(MpolFlags::STATIC_NODES) || flags.contains(MpolFlags::RELATIVE_NODES) {
            return Ok(());
        }
        let reach = self.ctx.topo.nodes_of(allowed);
        match policy.nodes().into_iter().find(|node| !reach.contains(node)) {
            None => Ok(()),
            Some(node) => {
                let (policy, allowed) = (policy.clone(), cpu_list(&reach));
                let source = MemPolicyError::Unreachable { policy, node, cgroup: cgroup.into(), allowed };
                Err(ScenarioError::MemPolicy { cgroup: cgroup.into(), source })
            }
        }
    }

    fn live(&self, name: &str) -> Option<&Live> {
        self.cgroups.iter().find(|live| live.name == name)
    }

    fn live_mut(&mut self, name: &str) -> Option<&mut Live> {
        self.cgroups.iter_mut().find(|live| live.name == name)
    }

    /// The CPUs a cgroup is restricted to by itself and by those above it.
    fn restriction(&self, cgroup: &str) -> Option<Vec<u32>> {
        let levels = cgroup.match_indices('/').map(|(at, _)| &cgroup[..at]).chain([cgroup]);
        let own = levels.map(|name| self.live(name).map(|live| live.cpus.as_slice()).unwrap_or_default());
        effective(own, &self.offline)
    }

    /// The CPUs a cgroup may use.
    fn allowed(&self, cgroup: &str) -> Vec<u32> {
        let all = self.restriction(cgroup).unwrap_or_else(|| self.ctx.topo.all_cpus().to_vec());
        all.into_iter().filter(|cpu| !self.offline.contains(cpu)).collect()
    }

    fn resolve(&self, cgroup: &str, spec: &super::CpusetSpec) -> Result<Vec<u32>, ScenarioError> {
        let failed = |source| ScenarioError::Cpuset { cgroup: cgroup.to_owned(), source };
        self.ctx.cpuset_cpus(spec).map_err(failed)
    }

    fn set_cpuset(&mut self, cgroup: &str, cpus: Vec<u32>) -> Result<(), ScenarioError> {
        let had = self.live(cgroup).is_some_and(|live| !live.cpus.is_empty());
        if cpus.is_empty() && !had {
            return Ok(());
        }
        self.ctx.cgroups.enable_for(cgroup, &["cpuset"])?;
        if let Some(live) = self.live_mut(cgroup) {
            live.cpus.clone_from(&cpus);
        }
        // Before the kernel moves anyone, so that no worker is blamed for where it is put.
        self.widen();
        self.ctx.cgroups.set_cpuset(cgroup, &cpus)?;
        self.narrow();
        Ok(())
    }

    /// What each worker is allowed now.
    fn allowed_now(&self) -> Vec<Vec<Option<BTreeSet<u32>>>> {
        let of = |worker: &Running| match worker.leaves {
            // What happens to the cgroup no longer reaches them.
            true => worker.allowed.last().cloned().unwrap_or_default(),
            false => {
                let restricted = self.restriction(&worker.cgroup);
                let own =
                    |own: &Vec<u32>| within(restricted.as_deref(), if worker.wanders { &[] } else { own });
                worker.affinity.iter().map(own).collect()
            }
        };
        self.workers.iter().map(of).collect()
    }

    /// A worker none of whose CPUs is in service any more is let run elsewhere by the kernel, and stays free
    /// when they come back (kernel/sched/core.c, `select_fallback_rq()`).
    fn forget_affinities(&mut self) {
        let restrictions: Vec<_> = self.workers.iter().map(|w| self.restriction(&w.cgroup)).collect();
        for (worker, restricted) in self.workers.iter_mut().zip(restrictions) {
            for own in worker.affinity.iter_mut().filter(|own| !own.is_empty()) {
                let left = |cpu: &u32| {
                    !self.offline.contains(cpu) && restricted.as_ref().is_none_or(|cpus| cpus.contains(cpu))
                };
                if !own.iter().any(left) {
                    own.clear();
                }
            }
        }
    }

    /// Adds what each worker is allowed now to what it was allowed before.
    fn widen(&mut self) {
        let now = self.allowed_now();
        for (worker, now) in self.workers.iter_mut().zip(now) {
            let Some(last) = worker.allowed.last_mut() else { continue };
            for (allowed, now) in last.iter_mut().zip(now) {
                *allowed = match (allowed.take(), now) {
                    (Some(mut before), Some(now)) => {
                        before.extend(now);
                        Some(before)
                    }
                    _ => None,
                };
            }
        }
    }

    /// From now on each worker is allowed only what it is allowed now. The kernel has moved everybody when it has
    /// taken a change; CPUs that leave and come back are not such a change.
    fn narrow(&mut self) {
        let now = self.allowed_now();
        for (worker, now) in self.workers.iter_mut().zip(now) {
            if worker.allowed.last() != Some(&now) && worker.handle.next_epoch() {
                worker.allowed.push(now);
            }
        }
    }

    fn set_affinity(&mut self, cgroup: &str, intent: &AffinityIntent) -> Result<(), ScenarioError> {
        let allowed = self.allowed(cgroup);
        let failed = |source| ScenarioError::Work { cgroup: cgroup.into(), source };
        let Self { workers, random, ctx, .. } = self;
        let mut number = 0;
        for worker in workers.iter_mut().filter(|worker| worker.cgroup == cgroup) {
            worker.wanders |= !worker.handle.reaches_threads();
            for own in &mut worker.affinity {
                *own = intent
                    .resolve(&ctx.topo, &allowed, number, random)
                    .map_err(|source| ScenarioError::Affinity { cgroup: cgroup.into(), source })?;
                number += 1;
            }
        }
        // Before the kernel moves anyone, so that no worker is blamed for where it is put.
        self.widen();
        for worker in self.workers.iter().filter(|worker| worker.cgroup == cgroup) {
            for (index, cpus) in worker.affinity.iter().enumerate() {
                let asked = if cpus.is_empty() { self.ctx.topo.all_cpus() } else { cpus };
                match worker.handle.set_affinity(index, asked) {
                    // It ended, which is a finding of its own.
                    Err(WorkError::System { source, .. })
                        if source.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                    other => other.map_err(failed)?,
                }
            }
        }
        self.narrow();
        Ok(())
    }

    fn move_all(&mut self, from: &str, to: &str) -> Result<u32, ScenarioError> {
        let layer = self.live(to).map_or(Layer::Step, |live| live.layer);
        for worker in self.workers.iter_mut().filter(|worker| worker.cgroup == from) {
            worker.cgroup = to.into();
            worker.throttled_before_ns = hold::throttled_ns(&self.ctx.cgroups, to);
            // Workers of a step that move into the backdrop still end with the step.
            if layer == Layer::Step {
                worker.layer = layer;
            }
        }
        for program in self.programs.iter_mut().filter(|program| program.cgroup == from) {
            program.cgroup = to.into();
        }
        self.widen();
        let moved = self.ctx.cgroups.move_all(from, to)?;
        self.narrow();
        Ok(moved)
    }

    fn unfreeze(&mut self, cgroup: &str) -> Result<(), ScenarioError> {
        // Before they run again, so that no worker takes this time for a gap.
        if let Some(since) = self.live_mut(cgroup).and_then(|live| live.frozen_since.take()) {
            let below = format!("{cgroup}/");
            for worker in &self.workers {
                let inside = worker.cgroup == cgroup || worker.cgroup.starts_with(&below);
                if inside && !worker.leaves {
                    worker.handle.was_frozen(since.elapsed());
                }
            }
        }
        Ok(self.ctx.cgroups.freeze(cgroup, false)?)
    }

    fn take_program(
        &mut self,
        name: &str,
        cgroup: Option<&str>,
        place: &str,
    ) -> Result<super::payload::PayloadHandle, ScenarioError> {
        let here = |program: &Program| cgroup.is_none_or(|cgroup| program.cgroup == cgroup);
        let at = self.programs.iter().position(|program| program.handle.name() == name && here(program));
        at.map(|at| self.programs.remove(at).handle).ok_or_else(|| ScenarioError::Impossible {
            place: place.into(),
            reason: format!("payload `{name}` does not run any more"),
        })
    }

    fn read_kernel(
        &mut self,
        tag: &str,
        target: &KernelTarget,
        width: KernelWidth,
        cold: bool,
        place: &str,
    ) -> Result<String, ScenarioError> {
        let value = self.ctx.read_kernel(target.clone(), width, cold).map_err(at(place))?;
        let what = format!("{tag}: {target} is {value}");
        self.remark(what.clone());
        Ok(what)
    }

    fn write_kernel(
        &mut self,
        writes: &[KernelWrite],
        cold: bool,
        place: &str,
    ) -> Result<String, ScenarioError> {
        self.ctx.write_kernel(writes.to_vec(), cold).map_err(at(place))?;
        let said: Vec<String> =
            writes.iter().map(|KernelWrite { target, value }| format!("{target} set to {value}")).collect();
        Ok(said.join(", "))
    }

    /// Has PID 1 do something with the scheduler.
    fn ask(&mut self, request: SchedulerRequest, place: &str) -> Result<String, ScenarioError> {
        let what = request.to_string();
        match self.ctx.reporter.ask(request)? {
            Ok(_) => Ok(what),
            Err(reason) => Err(ScenarioError::Scheduler { place: place.into(), reason }),
        }
    }
}

/// What is left of the CPUs that each level, from the top, is restricted to (none is not at all): where a level has
/// nothing in common with what is above it, or nothing in service, the kernel takes what is above
/// (Documentation/admin-guide/cgroup-v2.rst, `cpuset.cpus.effective`).
fn effective<'a>(levels: impl Iterator<Item = &'a [u32]>, offline: &BTreeSet<u32>) -> Option<Vec<u32>> {
    let mut effective: Option<Vec<u32>> = None;
    for own in levels.filter(|own| !own.is_empty()) {
        let above = |cpu: &u32| effective.as_ref().is_none_or(|above| above.contains(cpu));
        let both: Vec<u32> = own.iter().copied().filter(above).collect();
        if both.iter().any(|cpu| !offline.contains(cpu)) {
            effective = Some(both);
        }
    }
    effective
}

/// An error of the host, and where it was asked.
fn at(place: &str) -> impl Fn(HostError) -> ScenarioError {
    move |source| ScenarioError::Host { place: place.into(), source }
}

/// What a worker is allowed by its cgroup and by itself; `None` is everything.
fn within(restricted: Option<&[u32]>, own: &[u32]) -> Option<BTreeSet<u32>> {
    let own_set = || own.iter().copied().collect::<BTreeSet<u32>>();
    match (restricted, own.is_empty()) {
        (None, true) => None,
        (None, false) => Some(own_set()),
        (Some(cpus), true) => Some(cpus.iter().copied().collect()),
        (Some(cpus), false) => {
            let both: BTreeSet<u32> = own.iter().copied().filter(|cpu| cpus.contains(cpu)).collect();
            // With nothing in common the kernel takes the cgroup's.
            Some(if both.is_empty() { cpus.iter().copied().collect() } else { both })
        }
    }
}

fn name_of(placement: &Placement) -> Option<&str> {
    match placement {
        Placement::RunnerCgroup => None,
        Placement::Cgroup(name) => Some(name),
    }
}

/// Takes a CPU out of service or puts it back.
pub(super) fn set_online(cpu: u32, online: bool, place: &str) -> Result<(), ScenarioError> {
    let file = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/online"));
    put(&file, if online { "1" } else { "0" }, place)
}

fn put(file: &Path, text: &str, place: &str) -> Result<(), ScenarioError> {
    fs::write(file, text).map_err(|source| ScenarioError::File {
        place: place.into(),
        path: file.display().to_string(),
        source,
    })
}

fn irq_number(irq: &Irq, place: &str) -> Result<u32, ScenarioError> {
    let label = match irq {
        Irq::Number(number) => return Ok(*number),
        Irq::Label(label) => label,
    };
    let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let number = table
        .lines()
        .filter(|line| line.contains(label.as_str()))
        .find_map(|line| line.split_once(':').and_then(|(number, _)| number.trim().parse().ok()));
    number.ok_or_else(|| ScenarioError::Impossible {
        place: place.into(),
        reason: format!("no numbered line of /proc/interrupts has `{label}` in it"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_bound_by_those_above_it() {
        let left = |levels: &[&[u32]], offline: &[u32]| {
            effective(levels.iter().copied(), &offline.iter().copied().collect())
        };
        assert_eq!(left(&[&[], &[]], &[]), None);
        assert_eq!(left(&[&[2, 3], &[]], &[]), Some(vec![2, 3]));
        assert_eq!(left(&[&[], &[0, 1]], &[]), Some(vec![0, 1]));
        assert_eq!(left(&[&[1, 2, 3], &[0, 1]], &[]), Some(vec![1]));
        assert_eq!(left(&[&[2, 3], &[0, 1]], &[]), Some(vec![2, 3]), "nothing in common");
        assert_eq!(left(&[&[1, 2, 3], &[0, 1]], &[1]), Some(vec![1, 2, 3]), "nothing in service");
    }

    #[test]
    fn what_has_nothing_in_common_with_its_cgroup_is_allowed_the_cgroups() {
        let set = |cpus: &[u32]| Some(cpus.iter().copied().collect::<BTreeSet<u32>>());
        assert_eq!(within(None, &[]), None);
        assert_eq!(within(None, &[1]), set(&[1]));
        assert_eq!(within(Some(&[0, 1]), &[1, 2]), set(&[1]));
        assert_eq!(within(Some(&[0, 1]), &[2]), set(&[0, 1]));
    }
}
