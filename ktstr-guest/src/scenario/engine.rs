//! Carries a scenario out.
//!
//! ```text
//! backdrop cgroups, operations, programs ─▶ for each step: operations, its cgroups, hold, its end ─▶ end
//! ```
//!
//! Within one layer all workers are forked and placed before any of them starts. What is created is
//! owned by the [`Engine`]; dropping it ends workers and programs, removes cgroups in reverse order and
//! puts CPUs back into service, however the scenario ended.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ktstr_proto::{
    guest,
    stats::{PayloadMetrics, PhaseBucket},
    verdict::{Assert, AssertResult, DetailKind, Outcome},
};

use super::{
    Backdrop, CgroupDef, Ctx, HoldSpec, Op, Payload, Random, ScenarioError, Step,
    hold::{self, Reading},
    host::HostError,
    names::{self, Layer},
    payload::PayloadHandle,
    phases::Phases,
    step::holds,
};
use crate::{
    check::{self, Group},
    work::{WorkError, WorkloadHandle},
};

/// A step whose cgroups are known.
pub(super) struct PlannedStep {
    pub defs: Vec<CgroupDef>,
    pub ops: Vec<Op>,
    pub hold: HoldSpec,
    pub time: Duration,
}

/// A scenario with everything resolved that depends on the machine.
pub(super) struct Plan {
    pub backdrop: Vec<CgroupDef>,
    pub backdrop_ops: Vec<Op>,
    pub steps: Vec<PlannedStep>,
}

impl Plan {
    pub fn new(ctx: &Ctx, backdrop: Backdrop, steps: Vec<Step>) -> Result<Self, ScenarioError> {
        if steps.is_empty() {
            return Err(ScenarioError::NoSteps);
        }
        for (number, step) in steps.iter().enumerate() {
            if let HoldSpec::Frac(frac) = step.hold
                && !(frac.is_finite() && frac >= 0.0)
            {
                let reason = format!("it cannot hold for {frac} of the duration: give a number from 0 on");
                return Err(ScenarioError::Impossible { place: format!("step {number}"), reason });
            }
        }
        let times = holds(&steps, ctx.duration);
        for (number, (step, time)) in steps.iter().zip(&times).enumerate() {
            if matches!(step.hold, HoldSpec::Loop { .. }) && time.is_zero() {
                let reason = format!("the other steps leave nothing of the {:?} for its loop", ctx.duration);
                return Err(ScenarioError::Impossible { place: format!("step {number}"), reason });
            }
        }
        let steps = steps.into_iter().zip(times).map(|(step, time)| PlannedStep {
            defs: step.setup.resolve(ctx),
            ops: step.ops,
            hold: step.hold,
            time,
        });
        let mut backdrop_ops = backdrop.ops;
        backdrop_ops.extend(ctx.payloads.iter().chain(&backdrop.payloads).map(Op::run_payload));
        Ok(Self { backdrop: backdrop.cgroups, backdrop_ops, steps: steps.collect() })
    }
}

/// A cgroup that exists.
pub(super) struct Live {
    pub name: String,
    pub layer: Layer,
    /// CPUs it is restricted to by itself; empty is not at all.
    pub cpus: Vec<u32>,
    pub frozen_since: Option<Instant>,
}

/// Workers that run, all of one group.
pub(super) struct Running {
    pub handle: WorkloadHandle,
    /// Where they were started; reports go by this name.
    pub origin: String,
    /// Where they are.
    pub cgroup: String,
    pub layer: Layer,
    pub order: usize,
    pub started: Option<Instant>,
    /// For how long the quota had kept CPUs from their cgroup when they got there, nanoseconds of all CPUs.
    pub throttled_before_ns: u64,
    /// CPUs each was allowed in each epoch, which ends when they become others; `None` is all.
    pub allowed: Vec<Vec<Option<BTreeSet<u32>>>>,
    /// CPUs each is restricted to by itself; empty is not at all.
    pub affinity: Vec<Vec<u32>>,
    /// They set affinities themselves, or what they are given does not reach all their threads, so that it says nothing.
    pub wanders: bool,
    /// They go into cgroups of their own, where what becomes of this one does not reach them.
    pub leaves: bool,
}

/// A program that runs.
pub(super) struct Program {
    pub handle: PayloadHandle,
    /// Where it is; empty is the runner's own cgroup.
    pub cgroup: String,
    pub layer: Layer,
}

/// Everything that is under way.
pub(super) struct Engine<'a> {
    pub ctx: &'a Ctx,
    pub random: Random,
    pub cgroups: Vec<Live>,
    pub workers: Vec<Running>,
    pub programs: Vec<Program>,
    pub offline: BTreeSet<u32>,
    pub phases: Phases,
    /// Workers that were ever started.
    pub order: usize,
    /// When the step that runs began.
    step_began: Instant,
    done: Vec<(usize, Group)>,
    /// What programs came to, and remarks; not run until a program was.
    found: AssertResult,
    measured: Vec<PayloadMetrics>,
}

/// Carries a scenario out and judges it.
pub(super) fn run(
    ctx: &Ctx,
    backdrop: Backdrop,
    steps: Vec<Step>,
    assert: &Assert,
) -> Result<AssertResult, ScenarioError> {
    let plan = Plan::new(ctx, backdrop, steps)?;
    names::check(ctx, &plan)?;
    let mut engine = Engine {
        ctx,
        random: Random::new(ctx.seed),
        cgroups: Vec::new(),
        workers: Vec::new(),
        programs: Vec::new(),
        offline: BTreeSet::new(),
        phases: Phases::begin(),
        order: 0,
        step_began: Instant::now(),
        done: Vec::new(),
        found: AssertResult::nothing(),
        measured: Vec::new(),
    };
    let result = match engine.carry_out(&plan) {
        Ok(()) => engine.conclude(assert),
        // What no run like this one can do was not tested.
        Err(ScenarioError::Host { place, source: HostError::NotHere(reason) }) => {
            engine.cut_short(assert, format!("{place}: {reason}"))
        }
        Err(error) => Err(error),
    }?;
    ctx.remember(&result);
    Ok(result)
}

/// Says of each gap in which phase it ended.
fn name_phases(result: &mut AssertResult, phases: &[PhaseBucket], begun_ns: u64) {
    for detail in result.details.iter_mut().filter(|detail| detail.kind == DetailKind::Gap) {
        let Some(when) = &detail.when else { continue };
        let at_ms = when.to_ns.saturating_sub(begun_ns) / 1_000_000;
        if let Some(phase) = phases.iter().find(|phase| (phase.start_ms..=phase.end_ms).contains(&at_ms)) {
            detail.message.push_str(&format!(", {}", phase.label));
        }
    }
}

impl Engine<'_> {
    fn carry_out(&mut self, plan: &Plan) -> Result<(), ScenarioError> {
        self.ctx.enter_step(0);
        self.populate(&plan.backdrop, Layer::Backdrop)?;
        self.ctx.begin();
        self.ctx.phase(guest::Phase::ScenarioStarted)?;
        for op in &plan.backdrop_ops {
            self.apply(op, Layer::Backdrop, "the backdrop")?;
        }
        for (number, step) in plan.steps.iter().enumerate() {
            self.step(number, step)?;
        }
        self.stop_workers(|_| true);
        self.ctx.phase(guest::Phase::ScenarioEnded)?;
        Ok(())
    }

    fn step(&mut self, number: usize, step: &PlannedStep) -> Result<(), ScenarioError> {
        self.step_began = Instant::now();
        self.enter(number as u32 + 1, format!("Step[{number}]"));
        let place = |at: usize, op: &Op| format!("step {number}, operation {at} ({:?})", op.kind());
        let looping = match step.hold {
            HoldSpec::Loop { interval } => Some(interval),
            HoldSpec::Frac(_) | HoldSpec::Fixed(_) => None,
        };
        if looping.is_none() {
            for (at, op) in step.ops.iter().enumerate() {
                self.apply(op, Layer::Step, &place(at, op))?;
            }
        }
        self.populate(&step.defs, Layer::Step)?;
        sleep_until(Instant::now() + self.ctx.settle);
        self.note(format!(
            "step {number} holds for {} ms ({} cgroups, {} workers)",
            step.time.as_millis(),
            self.cgroups.len(),
            self.workers.iter().map(|w| w.handle.workers()).sum::<usize>()
        ))?;
        let before = Reading::take(self);
        let begun = Instant::now();
        if let Some(interval) = looping {
            let mut round = 1;
            while begun.elapsed() < step.time {
                for (at, op) in step.ops.iter().enumerate() {
                    self.apply(op, Layer::Step, &place(at, op))?;
                }
                sleep_until(begun + (interval * round).min(step.time));
                round += 1;
            }
        }
        sleep_until(begun + step.time);
        if let (Some(before), Some(after)) = (before, Reading::take(self)) {
            self.phases.held(after.since(&before));
        }
        self.end_layer()
    }

    fn enter(&mut self, index: u32, label: String) {
        self.ctx.enter_step(index);
        let Self { phases, workers, .. } = self;
        workers.iter().for_each(|worker| worker.handle.enter_phase(index));
        phases.next(index, label, workers);
    }

    /// Ends what began with the step.
    fn end_layer(&mut self) -> Result<(), ScenarioError> {
        self.stop_workers(|worker| worker.layer == Layer::Step);
        self.end_programs(|program| program.layer == Layer::Step)?;
        while let Some(at) = self.cgroups.iter().rposition(|cgroup| cgroup.layer == Layer::Step) {
            let cgroup = self.cgroups.remove(at);
            self.ctx.cgroups.remove(&cgroup.name)?;
        }
        Ok(())
    }

    /// Ends those programs and keeps what they came to.
    pub fn end_programs(&mut self, which: impl Fn(&Program) -> bool) -> Result<(), ScenarioError> {
        let (over, kept): (Vec<_>, Vec<_>) = self.programs.drain(..).partition(which);
        self.programs = kept;
        over.into_iter().try_for_each(|program| self.keep(program.handle.stop()))
    }

    /// Creates cgroups with their workers and programs; workers start when all are in place.
    pub fn populate(&mut self, defs: &[CgroupDef], layer: Layer) -> Result<(), ScenarioError> {
        for def in defs {
            self.create(def, layer)?;
        }
        self.start()?;
        for def in defs {
            for payload in &def.workloads {
                self.run_program(*payload, &[], Some(&def.name), layer)?;
            }
        }
        Ok(())
    }

    /// Lets the workers go that were forked and placed.
    pub fn start(&mut self) -> Result<(), ScenarioError> {
        for worker in self.workers.iter_mut().filter(|worker| worker.started.is_none()) {
            let failed = |source: WorkError| ScenarioError::Work { cgroup: worker.origin.clone(), source };
            worker.handle.await_ready().map_err(failed)?;
        }
        let mut begun = Vec::new();
        for (at, worker) in self.workers.iter_mut().enumerate().filter(|(_, worker)| worker.started.is_none())
        {
            let failed = |source: WorkError| ScenarioError::Work { cgroup: worker.origin.clone(), source };
            worker.throttled_before_ns = hold::throttled_ns(&self.ctx.cgroups, &worker.cgroup);
            worker.handle.begin().map_err(failed)?;
            worker.started = Some(Instant::now());
            begun.push(at);
        }
        // All are at work by now: one group may need what another does.
        for worker in begun.into_iter().map(|at| &self.workers[at]) {
            let failed = |source: WorkError| ScenarioError::Work { cgroup: worker.origin.clone(), source };
            worker.handle.first_iterations().map_err(failed)?;
        }
        Ok(())
    }

    pub fn run_program(
        &mut self,
        payload: Payload,
        args: &[String],
        cgroup: Option<&str>,
        layer: Layer,
    ) -> Result<(), ScenarioError> {
        let handle = PayloadHandle::spawn(self.ctx, payload, args, cgroup)?;
        let cgroup = cgroup.unwrap_or_default().into();
        self.programs.push(Program { handle, cgroup, layer });
        Ok(())
    }

    /// Puts a line among the findings, which judges nothing.
    pub fn remark(&mut self, what: String) {
        self.found.push(DetailKind::Note, Outcome::NotRun, what);
    }

    /// Takes over what a program came to.
    pub fn keep(
        &mut self,
        ended: Result<(AssertResult, PayloadMetrics), super::PayloadError>,
    ) -> Result<(), ScenarioError> {
        let (result, metrics) = ended?;
        self.found.merge(result);
        self.measured.push(metrics);
        Ok(())
    }

    /// Stops those workers and keeps their figures.
    pub fn stop_workers(&mut self, which: impl Fn(&Running) -> bool) {
        let (mut over, kept): (Vec<_>, Vec<_>) = self.workers.drain(..).partition(which);
        self.workers = kept;
        let mut lived = Vec::new();
        let ended_ns = Some(crate::work::now_ns());
        for worker in &mut over {
            self.thaw(worker);
            let throttled_ns = hold::throttled_ns(&self.ctx.cgroups, &worker.cgroup)
                .saturating_sub(worker.throttled_before_ns);
            worker.handle.request_stop();
            lived.push((worker.started.map_or(Duration::ZERO, |started| started.elapsed()), throttled_ns));
        }
        for (worker, (lived, throttled_ns)) in over.into_iter().zip(lived) {
            let Running { handle, allowed, origin, order, .. } = worker;
            let mut reports = Vec::new();
            for (index, (mut report, used)) in
                handle.stop_and_collect_places(allowed.len()).into_iter().enumerate()
            {
                let mine: Vec<_> = allowed.iter().map(|epoch| epoch[index].as_ref()).collect();
                (report.cpus_allowed, report.cpus_outside) = places(&mine, &used);
                reports.push(report);
            }
            self.phases.finish(&origin, order, &reports);
            // The kernel adds up what each CPU was kept from it.
            let cpus: BTreeSet<u32> =
                reports.iter().flat_map(|report| report.cpus_used.iter().copied()).collect();
            let whole_ns = lived.as_nanos() as f64 * cpus.len().max(1) as f64;
            let throttled =
                if throttled_ns == 0 { 0.0 } else { (throttled_ns as f64 / whole_ns.max(1.0)).min(1.0) };
            let began_ns = self.ctx.began();
            let group = Group { reports, lived: Some(lived), throttled, began_ns, ended_ns };
            self.done.push((order, group));
        }
    }

    /// A frozen worker cannot stop.
    fn thaw(&self, worker: &Running) {
        for cgroup in &self.cgroups {
            let holds =
                worker.cgroup == cgroup.name || worker.cgroup.starts_with(&format!("{}/", cgroup.name));
            if holds && let Some(since) = cgroup.frozen_since {
                if !worker.leaves {
                    worker.handle.was_frozen(since.elapsed());
                }
                // Should it fail, the worker is found not to stop, which says the same.
                let _ = self.ctx.cgroups.freeze(&cgroup.name, false);
            }
        }
    }

    /// Iterations of all workers so far, those that are gone included.
    fn iterations(&self) -> u64 {
        let gone: u64 = self.done.iter().flat_map(|(_, group)| &group.reports).map(|r| r.iterations).sum();
        gone + self.workers.iter().map(|worker| worker.handle.iterations()).sum::<u64>()
    }

    /// Puts a line into the timeline.
    pub fn note(&mut self, what: String) -> Result<(), ScenarioError> {
        Ok(self.ctx.stimulus(what, self.iterations())?)
    }

    /// The end of a scenario of which the rest cannot be carried out. What failed before has failed; beyond that
    /// the scenario was not run. Who began with the step that was cut short has shown nothing.
    fn cut_short(mut self, assert: &Assert, reason: String) -> Result<AssertResult, ScenarioError> {
        let step_began = self.step_began;
        self.stop_workers(|worker| worker.started.is_some_and(|started| started < step_began));
        self.workers.clear();
        self.programs.retain_mut(|program| program.handle.has_ended());
        self.ctx.phase(guest::Phase::ScenarioEnded)?;
        let mut result = self.conclude(assert)?;
        if !result.is_fail() {
            result.outcome = Outcome::NotRun;
        }
        result.push(DetailKind::Note, Outcome::NotRun, reason);
        Ok(result)
    }

    fn conclude(mut self, assert: &Assert) -> Result<AssertResult, ScenarioError> {
        self.end_programs(|_| true)?;
        let begun_ns = self.phases.begun_ns();
        let phases: Vec<PhaseBucket> = std::mem::replace(&mut self.phases, Phases::begin()).into_buckets();
        let workers = self.done.iter().map(|(_, group)| group.reports.len()).sum::<usize>();
        self.note(format!("{workers} workers stopped"))?;
        self.done.sort_by_key(|(order, _)| *order);
        let groups = std::mem::take(&mut self.done).into_iter().map(|(_, group)| group).collect();
        let mut result = check::judge_groups(assert, Some(&self.ctx.topo), groups);
        name_phases(&mut result, &phases, begun_ns);
        result.merge(std::mem::replace(&mut self.found, AssertResult::pass()));
        result.stats.phases = phases;
        result.stats.payloads = std::mem::take(&mut self.measured);
        self.remove_all()?;
        Ok(result)
    }

    /// Removes all cgroups, the last first, and puts CPUs back; the first failure after all were tried.
    fn remove_all(&mut self) -> Result<(), ScenarioError> {
        let mut first = Ok(());
        self.workers.clear();
        self.programs.clear();
        while let Some(cgroup) = self.cgroups.pop() {
            if cgroup.frozen_since.is_some() {
                first = first.and(self.ctx.cgroups.freeze(&cgroup.name, false).map_err(Into::into));
            }
            first = first.and(self.ctx.cgroups.remove(&cgroup.name).map_err(Into::into));
        }
        for cpu in std::mem::take(&mut self.offline) {
            first = first.and(super::apply::set_online(cpu, true, "the end of the scenario"));
        }
        first
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // A failure here follows another one that is being reported.
        let _ = self.remove_all();
    }
}

/// All CPUs that were ever allowed, empty when it was unrestricted for a while, and those on which the worker was seen
/// when they were not.
fn places(allowed: &[Option<&BTreeSet<u32>>], used: &[Vec<u32>]) -> (Vec<u32>, Vec<u32>) {
    let outside: BTreeSet<u32> = allowed
        .iter()
        .zip(used)
        .filter_map(|(allowed, used)| Some((allowed.as_ref()?, used)))
        .flat_map(|(allowed, used)| used.iter().copied().filter(|cpu| !allowed.contains(cpu)))
        .collect();
    let ever = match allowed.iter().copied().collect::<Option<Vec<_>>>() {
        Some(each) => each.into_iter().flatten().copied().collect(),
        None => BTreeSet::new(),
    };
    (ever.into_iter().collect(), outside.into_iter().collect())
}

fn sleep_until(until: Instant) {
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests;
