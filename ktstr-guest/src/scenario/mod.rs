//! What a test says and how it is carried out: the context it is given ([`Ctx`]), cgroups, operations
//! and steps as data ([`CgroupDef`], [`Op`], [`Step`], [`Backdrop`]), and the engine that turns them into
//! running workers and a judged result ([`execute_scenario`] and its shorter forms).
//!
//! Random choices come from [`Ctx::seed`] only; results hold no wall-clock times and no order that
//! depends on hashing, so that equal runs give equal results.

mod affinity;
mod apply;
mod by_hand;
mod cpuset;
mod ctx;
mod def;
mod engine;
mod error;
mod execute;
mod hold;
mod host;
mod kernel;
mod names;
mod nearest;
mod op;
mod payload;
mod phases;
mod random;
pub mod scenarios;
mod spec;
mod step;
mod topology;

pub use affinity::{AffinityError, AffinityIntent};
pub use by_hand::{collect_all, dfl_wl, setup_cgroups, spawn_diverse};
pub use cpuset::{CpusetError, CpusetSpec, cpu_list};
pub use ctx::Ctx;
pub use def::CgroupDef;
pub use error::ScenarioError;
pub use execute::{execute_defs, execute_scenario, execute_scenario_with, execute_steps, execute_steps_with};
pub use host::{HostError, MapValue};
pub use ktstr_proto::kernel_place::{KernelTarget, KernelValue, KernelWidth, KernelWrite};
pub use nearest::nearest;
pub use op::{Irq, Op, OpKind, Placement};
pub use payload::{MetricCheck, MetricDef, Payload, PayloadError, PayloadHandle, PayloadOutput, PayloadRun};
pub use random::Random;
pub use spec::WorkSpec;
pub use step::{Backdrop, Factory, HoldSpec, Setup, Step};
pub(crate) use topology::parse_list as parse_cpu_list;
pub use topology::{NodeMeminfo, TestTopology};
