//! Goes through a scenario before anything is created and refuses what cannot work: names that are not
//! there at that point, names used twice, cgroups that still hold others, CPUs that cannot go offline.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AffinityIntent, CgroupDef, Ctx, HoldSpec, Op, ScenarioError,
    engine::Plan,
    host::{self, HostError},
    kernel, nearest,
    op::Placement,
};
use crate::work::in_groups;

/// Where a name lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// Through the whole scenario.
    Backdrop,
    /// Until the end of the step.
    Step,
}

/// A program that was started.
struct Running {
    name: String,
    /// Where it is; empty is the runner's own cgroup.
    cgroup: String,
    layer: Layer,
}

/// What is there at one point of the scenario.
#[derive(Default)]
struct Names {
    cgroups: BTreeMap<String, Layer>,
    /// Programs that may be running, in the order they were started; one may be there several times.
    payloads: Vec<Running>,
    /// Names by which BPF maps were pinned.
    pinned: BTreeSet<String>,
}

/// Refuses a scenario that cannot work.
pub(super) fn check(ctx: &Ctx, plan: &Plan) -> Result<(), ScenarioError> {
    let mut names = Names::default();
    for def in &plan.backdrop {
        names.create(ctx, "the backdrop", def, Layer::Backdrop)?;
    }
    for op in &plan.backdrop_ops {
        names.apply(ctx, "the backdrop", op, Layer::Backdrop)?;
    }
    for (number, step) in plan.steps.iter().enumerate() {
        let looping = matches!(step.hold, HoldSpec::Loop { .. });
        let setup = |names: &mut Names| {
            let place = format!("step {number}");
            step.defs.iter().try_for_each(|def| names.create(ctx, &place, def, Layer::Step))
        };
        if looping {
            setup(&mut names)?;
        }
        // A second round finds what the first one left.
        for round in 0..if looping { 2 } else { 1 } {
            for (at, op) in step.ops.iter().enumerate() {
                let again = if round > 0 { " when repeated" } else { "" };
                let place = format!("step {number}, operation {at} ({:?}){again}", op.kind());
                names.apply(ctx, &place, op, Layer::Step)?;
            }
        }
        if !looping {
            setup(&mut names)?;
        }
        names.cgroups.retain(|_, layer| *layer == Layer::Backdrop);
        names.payloads.retain(|running| running.layer == Layer::Backdrop);
    }
    Ok(())
}

impl Names {
    fn create(&mut self, ctx: &Ctx, place: &str, def: &CgroupDef, layer: Layer) -> Result<(), ScenarioError> {
        let name = &def.name;
        crate::cgroup::check_name(name)?;
        if let Some((outer, _)) = name.rsplit_once('/') {
            self.cgroup(place, outer)?;
        }
        if self.cgroups.insert(name.clone(), layer).is_some() {
            return Err(exists(place, "cgroup", name));
        }
        if let Some(spec) = &def.cpuset {
            cpuset(ctx, name, spec)?;
        }
        def.limits.check().map_err(|source| ScenarioError::Limit { cgroup: name.clone(), source })?;
        for work in def.groups() {
            check_work(ctx, name, &work)?;
        }
        for payload in &def.workloads {
            self.payloads.push(Running { name: payload.name.into(), cgroup: name.clone(), layer });
        }
        Ok(())
    }

    fn apply(&mut self, ctx: &Ctx, place: &str, op: &Op, layer: Layer) -> Result<(), ScenarioError> {
        match op {
            Op::AddCgroup { name } => self.create(ctx, place, &CgroupDef::empty(name), layer),
            Op::AddCgroupDef { def } => self.create(ctx, place, def, layer),
            Op::RemoveCgroup { cgroup } => {
                self.cgroup(place, cgroup)?;
                let below = format!("{cgroup}/");
                if let Some(inner) = self.cgroups.keys().find(|name| name.starts_with(&below)) {
                    let reason = format!("`{cgroup}` still holds `{inner}`, which must be removed first");
                    return Err(ScenarioError::Impossible { place: place.into(), reason });
                }
                self.cgroups.remove(cgroup);
                self.payloads.retain(|running| running.cgroup != *cgroup);
                Ok(())
            }
            Op::SetCpuset { cgroup, cpus } => {
                self.cgroup(place, cgroup)?;
                cpuset(ctx, cgroup, cpus)
            }
            Op::SetLimits { cgroup, limits } => {
                self.cgroup(place, cgroup)?;
                limits.check().map_err(|source| ScenarioError::Limit { cgroup: cgroup.clone(), source })
            }
            Op::StopCgroup { cgroup }
            | Op::ClearCpuset { cgroup }
            | Op::SetAffinity { cgroup, .. }
            | Op::FreezeCgroup { cgroup }
            | Op::UnfreezeCgroup { cgroup }
            | Op::CaptureCgroupProcs { cgroup, .. } => self.cgroup(place, cgroup).map(drop),
            Op::WatchSnapshot { .. } => Ok(()),
            Op::SwapCpusets { a, b } => {
                self.cgroup(place, a)?;
                self.cgroup(place, b).map(drop)
            }
            Op::Spawn { placement, work } => {
                let cgroup = self.placement(place, placement)?;
                check_work(ctx, cgroup, work)
            }
            Op::MoveAllTasks { from, to } => {
                let (source, target) = (self.cgroup(place, from)?, self.cgroup(place, to)?);
                if source == Layer::Backdrop && target == Layer::Step {
                    let reason = format!(
                        "workers of `{from}` outlive the step, `{to}` does not: make `{to}` part of the backdrop"
                    );
                    return Err(ScenarioError::Impossible { place: place.into(), reason });
                }
                for running in self.payloads.iter_mut().filter(|running| running.cgroup == *from) {
                    running.cgroup.clone_from(to);
                }
                Ok(())
            }
            Op::OfflineCpu { cpu } | Op::OnlineCpu { cpu } => check_cpu(ctx, place, *cpu),
            Op::CaptureSnapshot { name } => host::check_capture_name(name).map_err(|source| match source {
                HostError::Name { reason, .. } => ScenarioError::Impossible { place: place.into(), reason },
                source => ScenarioError::Host { place: place.into(), source },
            }),
            Op::ReadMap { map, path, .. } | Op::WriteMap { map, path, .. }
                if map.is_empty() || path.is_empty() =>
            {
                let reason = "a BPF map and a path in it are needed".into();
                Err(ScenarioError::Impossible { place: place.into(), reason })
            }
            Op::ReadMap { map, .. } | Op::WriteMap { map, .. } => match map.strip_prefix(host::PINNED) {
                // It may also have been pinned by the test itself, before the scenario.
                Some(name) if !self.pinned.contains(name) && ctx.pinned_as(name).is_none() => {
                    Err(unknown(place, "pinned map", name, self.pinned.iter().map(String::as_str)))
                }
                _ => Ok(()),
            },
            Op::PinBpfMap { name } if name.is_empty() => {
                let reason = "a BPF map needs a name, or the end of one".into();
                Err(ScenarioError::Impossible { place: place.into(), reason })
            }
            Op::PinBpfMap { name } => {
                self.pinned.insert(name.clone());
                Ok(())
            }
            Op::ReadKernelHot { width, .. } | Op::ReadKernelCold { width, .. } => {
                kernel::check_width(*width).map_err(|source| impossible(place, &source))
            }
            Op::WriteKernelHot { writes } | Op::WriteKernelCold { writes } => {
                kernel::check_writes(writes).map_err(|source| impossible(place, &source))
            }
            Op::SteerIrq { cpu, .. } if *cpu < 1 => Ok(()),
            Op::SteerIrq { cpu, .. } => check_cpu(ctx, place, *cpu),
            Op::RunPayload { payload, placement, .. } => {
                let cgroup = self.placement(place, placement)?.to_owned();
                self.payloads.push(Running { name: payload.name.into(), cgroup, layer });
                Ok(())
            }
            Op::WaitPayload { name, cgroup } | Op::KillPayload { name, cgroup } => {
                self.end_payload(place, name, cgroup.as_deref())
            }
            Op::ReplaceScheduler { name } => {
                let known = ctx.staged_schedulers.iter().map(String::as_str);
                match ctx.staged_schedulers.contains(name) {
                    true => Ok(()),
                    false => Err(unknown(place, "staged scheduler", name, known)),
                }
            }
            Op::AttachScheduler | Op::DetachScheduler | Op::RestartScheduler => match &ctx.scheduler {
                Some(_) => Ok(()),
                None => Err(ScenarioError::Impossible {
                    place: place.into(),
                    reason: "this test has no scheduler of its own: add `scheduler = …`".into(),
                }),
            },
        }
    }

    fn cgroup(&self, place: &str, name: &str) -> Result<Layer, ScenarioError> {
        self.cgroups
            .get(name)
            .copied()
            .ok_or_else(|| unknown(place, "cgroup", name, self.cgroups.keys().map(String::as_str)))
    }

    /// The earliest of that name is over.
    fn end_payload(&mut self, place: &str, name: &str, cgroup: Option<&str>) -> Result<(), ScenarioError> {
        if let Some(cgroup) = cgroup {
            self.cgroup(place, cgroup)?;
        }
        let here = |running: &&Running| cgroup.is_none_or(|cgroup| cgroup == running.cgroup);
        match self.payloads.iter().position(|running| running.name == name && here(&running)) {
            Some(at) => {
                self.payloads.remove(at);
                Ok(())
            }
            None => {
                let known = self.payloads.iter().filter(here).map(|running| running.name.as_str());
                Err(unknown(place, "payload", name, known))
            }
        }
    }

    fn placement<'a>(&self, place: &str, placement: &'a Placement) -> Result<&'a str, ScenarioError> {
        match placement {
            Placement::RunnerCgroup => Ok(""),
            Placement::Cgroup(name) => self.cgroup(place, name).map(|_| name.as_str()),
        }
    }
}

fn unknown<'a>(
    place: &str,
    what: &'static str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> ScenarioError {
    let known: Vec<&str> = known.collect();
    ScenarioError::Unknown {
        place: place.into(),
        what,
        name: name.into(),
        near: nearest(name, &known).map(Into::into),
        known: known.into_iter().map(Into::into).collect(),
    }
}

fn impossible(place: &str, why: &HostError) -> ScenarioError {
    ScenarioError::Impossible { place: place.into(), reason: why.to_string() }
}

fn exists(place: &str, what: &'static str, name: &str) -> ScenarioError {
    ScenarioError::Exists { place: place.into(), what, name: name.into() }
}

fn cpuset(ctx: &Ctx, cgroup: &str, spec: &super::CpusetSpec) -> Result<(), ScenarioError> {
    ctx.cpuset_cpus(spec).map(drop).map_err(|source| ScenarioError::Cpuset { cgroup: cgroup.into(), source })
}

fn check_cpu(ctx: &Ctx, place: &str, cpu: u32) -> Result<(), ScenarioError> {
    let reason = match cpu {
        0 => "CPU 0 cannot go offline".into(),
        cpu if !ctx.topo.all_cpus().contains(&cpu) => format!("there is no CPU {cpu} on {}", ctx.topo),
        _ => return Ok(()),
    };
    Err(ScenarioError::Impossible { place: place.into(), reason })
}

fn check_work(ctx: &Ctx, cgroup: &str, work: &super::WorkSpec) -> Result<(), ScenarioError> {
    let cgroup = || cgroup.to_owned();
    if work.workers == Some(0) {
        return Err(ScenarioError::NoWorkers { cgroup: cgroup() });
    }
    if work.workers.is_some() && work.workers_pct.is_some() {
        return Err(ScenarioError::WorkersTwice { cgroup: cgroup() });
    }
    let attribute = |reason: String| Err(ScenarioError::Attribute { cgroup: cgroup(), reason });
    if let Some(pct) = work.workers_pct.filter(|pct| !(pct.is_finite() && *pct > 0.0)) {
        return attribute(format!("workers_pct of {pct} is no number of workers: give one above 0"));
    }
    if let Some(nice) = work.nice.filter(|nice| !(-20..=19).contains(nice)) {
        return attribute(format!("nice value {nice}: they go from -20 to 19"));
    }
    for name in [&work.comm, &work.pcomm].into_iter().flatten() {
        if name.is_empty() || name.len() > 15 || name.contains('\0') {
            return attribute(format!("`{name}` is no name of a task: the kernel keeps 1 to 15 bytes"));
        }
    }
    if let Some(node) = work.numa_node {
        match ctx.topo.nodes().get(node as usize) {
            None => {
                let nodes = ctx.topo.num_numa_nodes();
                return attribute(format!("there is no NUMA node {node}: {} has {nodes}", ctx.topo));
            }
            Some(cpus) if cpus.is_empty() => {
                return attribute(format!("NUMA node {node} has no CPU to run on"));
            }
            Some(_) => {}
        }
    }
    if let Some(AffinityIntent::Exact(cpus) | AffinityIntent::RandomSubset { from: cpus, .. }) =
        &work.affinity
        && let Some(cpu) = cpus.iter().find(|cpu| !ctx.topo.all_cpus().contains(cpu))
    {
        return attribute(format!("its affinity names CPU {cpu}, which {} has not got", ctx.topo));
    }
    if let Some(work_type) = &work.work_type {
        let refused = |source| ScenarioError::Work { cgroup: cgroup(), source };
        work_type.check().map_err(|source| refused(source.into()))?;
        work.workers.map_or(Ok(()), |workers| in_groups(work_type, workers)).map_err(refused)?;
    }
    if let Some(policy) = work.sched_policy {
        policy.checked().map_err(|source| ScenarioError::SchedPolicy { cgroup: cgroup(), source })?;
    }
    if let Some(policy) = &work.mem_policy {
        policy
            .check(work.mpol_flags.unwrap_or_default(), ctx.topo.num_numa_nodes())
            .map_err(|source| ScenarioError::MemPolicy { cgroup: cgroup(), source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        scenario::{Backdrop, CpusetSpec, Payload, Step, WorkSpec},
        work::WorkType,
    };

    fn refusal(backdrop: Backdrop, steps: Vec<Step>) -> String {
        let mut ctx = Ctx::on_host("t", Duration::from_secs(1), 1).unwrap();
        ctx.staged_schedulers = vec!["other".into()];
        match Plan::new(&ctx, backdrop, steps).and_then(|plan| check(&ctx, &plan)) {
            Ok(()) => "accepted".into(),
            Err(error) => ktstr_proto::link::chain(&error),
        }
    }

    fn one(op: Op) -> String {
        let backdrop = Backdrop::from_cgroups(vec![CgroupDef::named("cg_0"), CgroupDef::named("heavy")]);
        refusal(backdrop, vec![Step::with_op(op, HoldSpec::FULL)])
    }

    #[test]
    fn a_mistyped_name_is_an_error_with_the_nearest_known_one() {
        let text = one(Op::stop_cgroup("haevy"));
        assert_eq!(
            text,
            "step 0, operation 0 (StopCgroup) names cgroup `haevy`, which is not there then; did you mean `heavy`?"
        );
        assert!(one(Op::remove_cgroup("zzzzzz")).ends_with("known are: cg_0, heavy"));
        assert!(one(Op::kill_payload("fio")).contains("names payload `fio`"));
        assert!(one(Op::replace_scheduler("othr")).contains("did you mean `other`?"));
        assert_eq!(one(Op::move_all_tasks("cg_0", "heavy")), "accepted");
    }

    #[test]
    fn names_live_as_long_as_their_layer() {
        let add = Step::with_op(Op::add_cgroup("late"), HoldSpec::FULL);
        let stop = Step::with_op(Op::stop_cgroup("late"), HoldSpec::FULL);
        assert!(refusal(Backdrop::new(), vec![add.clone(), stop.clone()]).contains("step 1, operation 0"));
        let kept = Backdrop::new().push_op(Op::add_cgroup("late"));
        assert_eq!(refusal(kept, vec![stop]), "accepted");
        let again = add.set_hold(HoldSpec::loop_at(Duration::from_millis(10)));
        assert!(refusal(Backdrop::new(), vec![again]).contains("when repeated creates cgroup `late`"));
    }

    #[test]
    fn what_cannot_work_says_why() {
        assert!(one(Op::add_cgroup("cg_0")).contains("creates cgroup `cg_0`, which is there already"));
        let full = Step::hold(HoldSpec::FULL);
        let none_left =
            refusal(Backdrop::new(), vec![full, Step::hold(HoldSpec::loop_at(Duration::from_millis(1)))]);
        assert!(none_left.contains("step 1: the other steps leave nothing"), "{none_left}");
        assert!(one(Op::add_cgroup("cg_9/inner")).contains("names cgroup `cg_9`"));
        assert!(one(Op::offline_cpu(0)).contains("CPU 0 cannot go offline"));
        assert!(one(Op::offline_cpu(499)).contains("there is no CPU 499"));
        assert!(one(Op::AttachScheduler).contains("no scheduler of its own"));
        assert!(one(Op::set_cpuset("cg_0", CpusetSpec::Llc(400))).contains("names LLC 400"));
        let policy = WorkSpec::default().sched_policy(crate::attributes::SchedPolicy::Fifo(0));
        assert!(one(Op::spawn_workers("cg_0", policy)).contains("priorities go from 1 to 99"));
        let spawn = |work: WorkSpec| one(Op::spawn_workers("cg_0", work));
        let refused = [
            (WorkSpec::default().numa_node(90), "there is no NUMA node 90"),
            (WorkSpec::default().nice(30), "nice value 30: they go from -20 to 19"),
            (WorkSpec::default().comm("longer than fifteen"), "the kernel keeps 1 to 15 bytes"),
            (WorkSpec::default().workers_pct(f64::INFINITY), "workers_pct of inf is no number of workers"),
            (WorkSpec::default().workers_pct(f64::NAN), "workers_pct of NaN"),
            (WorkSpec::default().workers_pct(-1.0), "workers_pct of -1"),
            (WorkSpec::default().affinity(AffinityIntent::exact([0, 900])), "its affinity names CPU 900"),
            (WorkSpec::default().workers(3).work_type(WorkType::pipe_io()), "works in groups of 2"),
        ];
        for (work, reason) in refused {
            let text = spawn(work);
            assert!(text.contains(reason) && text.contains("cg_0"), "{text}");
        }
        for frac in [f64::NAN, f64::INFINITY, -0.5] {
            let text = refusal(Backdrop::new(), vec![Step::hold(HoldSpec::frac(frac))]);
            assert!(text.contains("step 0: it cannot hold for"), "{text}");
        }
        let nested = Step::new(
            vec![Op::add_cgroup("a"), Op::add_cgroup("a/b"), Op::remove_cgroup("a")],
            HoldSpec::FULL,
        );
        assert!(refusal(Backdrop::new(), vec![nested]).contains("still holds `a/b`"));
        let stranded = Step::new(vec![Op::add_cgroup("s"), Op::move_all_tasks("k", "s")], HoldSpec::FULL);
        let kept = Backdrop::from_cgroups(vec![CgroupDef::named("k")]);
        assert!(refusal(kept, vec![stranded]).contains("outlive the step"));
        let twice = CgroupDef::named("w").workers(1).workers_pct(1.0);
        assert!(
            refusal(Backdrop::from_cgroups(vec![twice]), vec![Step::hold(HoldSpec::FULL)]).contains("both")
        );
    }

    #[test]
    fn a_payload_runs_until_it_is_waited_for() {
        let payload = Payload::binary("fio", "fio");
        let (run, wait) = (Op::run_payload(&payload), Op::wait_payload("fio"));
        let in_cg_0 = || Op::run_payload_in(&payload, "cg_0");
        let steps = |ops: &[&[Op]]| {
            let backdrop = Backdrop::from_cgroups(vec![CgroupDef::named("cg_0"), CgroupDef::named("heavy")]);
            refusal(
                backdrop,
                ops.iter()
                    .map(|ops| Step::new(ops.to_vec(), HoldSpec::fixed(Duration::from_millis(1))))
                    .collect(),
            )
        };
        assert_eq!(steps(&[&[run.clone(), wait.clone()]]), "accepted");
        assert_eq!(steps(&[&[run.clone(), run.clone(), wait.clone(), wait.clone()]]), "accepted");
        let one_too_many = steps(&[&[run.clone(), wait.clone(), wait.clone()]]);
        assert!(one_too_many.contains("operation 2 (WaitPayload) names payload `fio`"), "{one_too_many}");
        // It ends with the step that began it, and one of the backdrop does not.
        assert!(
            steps(&[std::slice::from_ref(&run), std::slice::from_ref(&wait)]).contains("step 1, operation 0")
        );
        let kept = Backdrop::new().push_payload(&payload);
        let both = vec![
            Step::with_op(run.clone(), HoldSpec::fixed(Duration::from_millis(1))),
            Step::with_op(wait, HoldSpec::fixed(Duration::from_millis(1))),
        ];
        assert_eq!(refusal(kept, both), "accepted");
        // Where it is can be said, and it goes with its cgroup.
        let here = Op::wait_payload_in("fio", "cg_0");
        assert_eq!(steps(&[&[run.clone(), in_cg_0(), here.clone()]]), "accepted");
        assert!(steps(&[&[run, here.clone()]]).contains("names payload `fio`"));
        assert!(
            steps(&[&[in_cg_0(), Op::remove_cgroup("cg_0"), Op::kill_payload("fio")]])
                .contains("operation 2")
        );
        let moved = [in_cg_0(), Op::move_all_tasks("cg_0", "heavy"), Op::kill_payload_in("fio", "heavy")];
        assert_eq!(steps(&[&moved]), "accepted");
        assert!(steps(&[&[in_cg_0(), Op::wait_payload_in("fio", "cg0")]]).contains("did you mean `cg_0`?"));
    }
}
