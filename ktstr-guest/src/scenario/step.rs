//! The order of things: steps with their operations and holds, and the backdrop that lasts through
//! all of them.

use std::{fmt, sync::Arc, time::Duration};

use super::{CgroupDef, Ctx, Op, Payload};

/// How long a step lasts once its operations are done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HoldSpec {
    /// A fraction of [`Ctx::duration`], from 0 on; what is no such number is refused when the scenario is run.
    Frac(f64),
    /// So long.
    Fixed(Duration),
    /// For what the other steps leave of [`Ctx::duration`] (several such steps share it), with the
    /// step's operations again and again.
    Loop {
        /// Time between two rounds.
        interval: Duration,
    },
}

impl HoldSpec {
    /// The whole duration.
    pub const FULL: Self = Self::Frac(1.0);

    /// A fraction of the duration.
    pub const fn frac(frac: f64) -> Self {
        Self::Frac(frac)
    }

    /// So long.
    pub const fn fixed(time: Duration) -> Self {
        Self::Fixed(time)
    }

    /// The rest of the duration, with the operations every `interval`.
    pub const fn loop_at(interval: Duration) -> Self {
        Self::Loop { interval }
    }
}

/// Makes cgroups that depend on the machine.
pub type Factory = Arc<dyn Fn(&Ctx) -> Vec<CgroupDef> + Send + Sync>;

/// The cgroups a step begins with; they end with it.
#[derive(Clone)]
pub enum Setup {
    /// These.
    Defs(Vec<CgroupDef>),
    /// Whatever the function makes of the machine.
    Factory(Factory),
}

impl Setup {
    /// Whatever the function makes of the machine.
    pub fn with_factory(make: impl Fn(&Ctx) -> Vec<CgroupDef> + Send + Sync + 'static) -> Self {
        Self::Factory(Arc::new(make))
    }

    pub(super) fn resolve(&self, ctx: &Ctx) -> Vec<CgroupDef> {
        match self {
            Self::Defs(defs) => defs.clone(),
            Self::Factory(make) => make(ctx),
        }
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::Defs(Vec::new())
    }
}

impl From<Vec<CgroupDef>> for Setup {
    fn from(defs: Vec<CgroupDef>) -> Self {
        Self::Defs(defs)
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defs(defs) => f.debug_tuple("Defs").field(defs).finish(),
            Self::Factory(_) => f.write_str("Factory(…)"),
        }
    }
}

/// A part of a scenario: operations, then new cgroups, then time.
#[derive(Debug, Clone)]
#[must_use]
pub struct Step {
    /// Cgroups that live as long as the step.
    pub setup: Setup,
    /// What is done first, in order.
    pub ops: Vec<Op>,
    /// How long it lasts then.
    pub hold: HoldSpec,
}

impl Step {
    /// Operations, then time.
    pub fn new(ops: Vec<Op>, hold: HoldSpec) -> Self {
        Self { setup: Setup::default(), ops, hold }
    }

    /// New cgroups, then time.
    pub fn with_defs(defs: Vec<CgroupDef>, hold: HoldSpec) -> Self {
        Self { setup: Setup::Defs(defs), ops: Vec::new(), hold }
    }

    /// Nothing but time.
    pub fn hold(hold: HoldSpec) -> Self {
        Self::new(Vec::new(), hold)
    }

    /// One operation, then time.
    pub fn with_op(op: Op, hold: HoldSpec) -> Self {
        Self::new(vec![op], hold)
    }

    /// A program that is started, then time.
    pub fn with_payload(payload: &Payload, hold: HoldSpec) -> Self {
        Self::with_op(Op::run_payload(payload), hold)
    }

    /// Replaces the new cgroups.
    pub fn set_setup(mut self, setup: impl Into<Setup>) -> Self {
        self.setup = setup.into();
        self
    }

    /// Replaces the operations.
    pub fn set_ops(mut self, ops: Vec<Op>) -> Self {
        self.ops = ops;
        self
    }

    /// Adds an operation.
    pub fn push_op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Adds operations.
    pub fn extend_ops(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.ops.extend(ops);
        self
    }

    /// Replaces the time.
    pub fn set_hold(mut self, hold: HoldSpec) -> Self {
        self.hold = hold;
        self
    }
}

/// What lasts through all steps: cgroups, then operations, then programs, in this order.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Backdrop {
    /// Cgroups.
    pub cgroups: Vec<CgroupDef>,
    /// Operations.
    pub ops: Vec<Op>,
    /// Programs.
    pub payloads: Vec<Payload>,
}

impl Backdrop {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// These cgroups.
    pub fn from_cgroups(cgroups: Vec<CgroupDef>) -> Self {
        Self { cgroups, ..Self::default() }
    }

    /// Adds a cgroup.
    pub fn push_cgroup(mut self, cgroup: CgroupDef) -> Self {
        self.cgroups.push(cgroup);
        self
    }

    /// Adds cgroups.
    pub fn extend_cgroups(mut self, cgroups: impl IntoIterator<Item = CgroupDef>) -> Self {
        self.cgroups.extend(cgroups);
        self
    }

    /// Adds an operation.
    pub fn push_op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Adds operations.
    pub fn extend_ops(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.ops.extend(ops);
        self
    }

    /// Adds a program.
    pub fn push_payload(mut self, payload: &Payload) -> Self {
        self.payloads.push(*payload);
        self
    }

    /// Adds programs.
    pub fn extend_payloads<'a>(mut self, payloads: impl IntoIterator<Item = &'a Payload>) -> Self {
        self.payloads.extend(payloads);
        self
    }
}

/// How long each step lasts, and how often its operations are repeated.
pub(super) fn holds(steps: &[Step], duration: Duration) -> Vec<Duration> {
    let fixed = |hold: &HoldSpec| match hold {
        HoldSpec::Frac(frac) => {
            Some(duration.mul_f64(if frac.is_finite() { frac.clamp(0.0, 1000.0) } else { 0.0 }))
        }
        HoldSpec::Fixed(time) => Some(*time),
        HoldSpec::Loop { .. } => None,
    };
    let taken: Duration = steps.iter().filter_map(|step| fixed(&step.hold)).sum();
    let loops = steps.iter().filter(|step| fixed(&step.hold).is_none()).count() as u32;
    let rest = duration.saturating_sub(taken) / loops.max(1);
    steps.iter().map(|step| fixed(&step.hold).unwrap_or(rest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_share_what_the_others_leave() {
        let s = Duration::from_secs;
        let steps = [
            Step::hold(HoldSpec::frac(0.25)),
            Step::hold(HoldSpec::loop_at(s(1))),
            Step::hold(HoldSpec::fixed(s(1))),
            Step::hold(HoldSpec::loop_at(s(2))),
        ];
        assert_eq!(
            holds(&steps, s(8)),
            [s(2), Duration::from_millis(2500), s(1), Duration::from_millis(2500)]
        );
        assert_eq!(holds(&steps[1..2], s(8)), [s(8)]);
    }
}
