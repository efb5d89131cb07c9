//! Names, group sizes and limits of all work types.

use std::time::Duration;

use super::{
    bench::{SchbenchConfig, TaobenchConfig},
    work_type::{SequencePhase, WorkType},
};

/// A name that is no work type's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no work type `{name}`{hint}")]
pub struct UnknownWorkType {
    /// The name given.
    pub name: String,
    hint: String,
}

/// A parameter that makes no work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{work_type} with {parameter}: {rule}")]
pub struct WorkTypeError {
    /// Kind of work.
    pub work_type: &'static str,
    /// Parameter and its value.
    pub parameter: String,
    /// What holds for it.
    pub rule: &'static str,
}

type Make = fn() -> WorkType;

/// Every work type that a name alone makes, in the order of the documentation.
const CATALOGUE: [(&str, Make); 44] = [
    ("SpinWait", || WorkType::SpinWait),
    ("YieldHeavy", || WorkType::YieldHeavy),
    ("Mixed", || WorkType::Mixed),
    ("AluHot", WorkType::alu_hot),
    ("SmtSiblingSpin", || WorkType::SmtSiblingSpin),
    ("IpcVariance", WorkType::ipc_variance),
    ("IoSyncWrite", || WorkType::IoSyncWrite),
    ("IoRandRead", || WorkType::IoRandRead),
    ("IoConvoy", || WorkType::IoConvoy),
    ("Bursty", WorkType::bursty),
    ("IdleChurn", WorkType::idle_churn),
    ("PipeIo", WorkType::pipe_io),
    ("FutexPingPong", WorkType::futex_ping_pong),
    ("FutexFanOut", WorkType::futex_fan_out),
    ("CachePressure", WorkType::cache_pressure),
    ("CacheYield", WorkType::cache_yield),
    ("CachePipe", WorkType::cache_pipe),
    ("Sequence", WorkType::sequence),
    ("ForkExit", || WorkType::ForkExit),
    ("NiceSweep", || WorkType::NiceSweep),
    ("AffinityChurn", WorkType::affinity_churn),
    ("PolicyChurn", WorkType::policy_churn),
    ("NumaMigrationChurn", WorkType::numa_migration_churn),
    ("CgroupChurn", WorkType::cgroup_churn),
    ("FanOutCompute", WorkType::fan_out_compute),
    ("AsymmetricWaker", WorkType::asymmetric_waker),
    ("WakeChain", WorkType::wake_chain),
    ("EpollStorm", WorkType::epoll_storm),
    ("ThunderingHerd", WorkType::thundering_herd),
    ("PageFaultChurn", WorkType::page_fault_churn),
    ("NumaWorkingSetSweep", WorkType::numa_working_set_sweep),
    ("MutexContention", WorkType::mutex_contention),
    ("PriorityInversion", WorkType::priority_inversion),
    ("ProducerConsumerImbalance", WorkType::producer_consumer_imbalance),
    ("SignalStorm", WorkType::signal_storm),
    ("PreemptStorm", WorkType::preempt_storm),
    ("RtStarvation", WorkType::rt_starvation),
    ("CrossAffinityChurn", WorkType::cross_affinity_churn),
    ("CgroupAttachStorm", WorkType::cgroup_attach_storm),
    ("TimerLatency", WorkType::timer_latency),
    ("NetTraffic", WorkType::net_traffic),
    ("IrqWake", WorkType::irq_wake),
    ("Schbench", || WorkType::Schbench(SchbenchConfig::DEFAULT)),
    ("Taobench", || WorkType::Taobench(TaobenchConfig::DEFAULT)),
];

/// Names of earlier versions.
pub(super) const ALIASES: [(&str, &str); 2] = [("CpuSpin", "SpinWait"), ("IoSync", "IoSyncWrite")];

/// The names only.
const fn names() -> [&'static str; CATALOGUE.len()] {
    let mut names = [""; CATALOGUE.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = CATALOGUE[at].0;
        at += 1;
    }
    names
}

impl WorkType {
    /// The names [`WorkType::from_name`] takes, aliases aside; `Custom` is not among them, it needs a function.
    pub const ALL_NAMES: [&'static str; CATALOGUE.len()] = names();

    /// The work type of a name with its default parameters. Upper and lower case are the same.
    pub fn from_name(name: &str) -> Result<Self, UnknownWorkType> {
        let alias = ALIASES.iter().find(|(old, _)| old.eq_ignore_ascii_case(name)).map(|(_, new)| *new);
        let wanted = alias.unwrap_or(name);
        match CATALOGUE.iter().find(|(known, _)| known.eq_ignore_ascii_case(wanted)) {
            Some((_, make)) => Ok(make()),
            None => Err(UnknownWorkType { name: name.into(), hint: hint(name) }),
        }
    }

    /// Name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SpinWait => "SpinWait",
            Self::YieldHeavy => "YieldHeavy",
            Self::Mixed => "Mixed",
            Self::AluHot { .. } => "AluHot",
            Self::SmtSiblingSpin => "SmtSiblingSpin",
            Self::IpcVariance { .. } => "IpcVariance",
            Self::IoSyncWrite => "IoSyncWrite",
            Self::IoRandRead => "IoRandRead",
            Self::IoConvoy => "IoConvoy",
            Self::Bursty { .. } => "Bursty",
            Self::IdleChurn { .. } => "IdleChurn",
            Self::PipeIo { .. } => "PipeIo",
            Self::FutexPingPong { .. } => "FutexPingPong",
            Self::FutexFanOut { .. } => "FutexFanOut",
            Self::CachePressure { .. } => "CachePressure",
            Self::CacheYield { .. } => "CacheYield",
            Self::CachePipe { .. } => "CachePipe",
            Self::Sequence { .. } => "Sequence",
            Self::ForkExit => "ForkExit",
            Self::NiceSweep => "NiceSweep",
            Self::AffinityChurn { .. } => "AffinityChurn",
            Self::PolicyChurn { .. } => "PolicyChurn",
            Self::NumaMigrationChurn { .. } => "NumaMigrationChurn",
            Self::CgroupChurn { .. } => "CgroupChurn",
            Self::FanOutCompute { .. } => "FanOutCompute",
            Self::AsymmetricWaker { .. } => "AsymmetricWaker",
            Self::WakeChain { .. } => "WakeChain",
            Self::EpollStorm { .. } => "EpollStorm",
            Self::ThunderingHerd { .. } => "ThunderingHerd",
            Self::PageFaultChurn { .. } => "PageFaultChurn",
            Self::NumaWorkingSetSweep { .. } => "NumaWorkingSetSweep",
            Self::MutexContention { .. } => "MutexContention",
            Self::PriorityInversion { .. } => "PriorityInversion",
            Self::ProducerConsumerImbalance { .. } => "ProducerConsumerImbalance",
            Self::SignalStorm { .. } => "SignalStorm",
            Self::PreemptStorm { .. } => "PreemptStorm",
            Self::RtStarvation { .. } => "RtStarvation",
            Self::CrossAffinityChurn { .. } => "CrossAffinityChurn",
            Self::CgroupAttachStorm { .. } => "CgroupAttachStorm",
            Self::TimerLatency { .. } => "TimerLatency",
            Self::NetTraffic { .. } => "NetTraffic",
            Self::IrqWake { .. } => "IrqWake",
            Self::Schbench(_) => "Schbench",
            Self::Taobench(_) => "Taobench",
            Self::Custom(custom) => custom.name,
        }
    }

    /// Workers that belong together; a number of workers is a multiple of it.
    pub fn group_size(&self) -> u32 {
        match self {
            Self::SmtSiblingSpin
            | Self::PipeIo { .. }
            | Self::FutexPingPong { .. }
            | Self::CachePipe { .. }
            | Self::AsymmetricWaker { .. }
            | Self::SignalStorm { .. }
            | Self::IrqWake { .. } => 2,
            Self::FutexFanOut { fan_out, .. } | Self::FanOutCompute { fan_out, .. } => fan_out + 1,
            Self::WakeChain { depth, .. } => *depth,
            Self::EpollStorm { producers, consumers, .. }
            | Self::ProducerConsumerImbalance { producers, consumers, .. } => producers + consumers,
            Self::ThunderingHerd { waiters, .. } => waiters + 1,
            Self::MutexContention { contenders, .. } => *contenders,
            Self::PriorityInversion { high_count, medium_count, low_count, .. } => {
                high_count + medium_count + low_count
            }
            Self::PreemptStorm { cfs_workers, .. } => cfs_workers + 1,
            Self::RtStarvation { rt_workers, cfs_workers, .. } => rt_workers + cfs_workers,
            _ => 1,
        }
    }

    /// Whether workers set affinities, their own or each other's, so that those they were given do not last.
    pub fn sets_affinities(&self) -> bool {
        matches!(
            self,
            Self::AffinityChurn { .. } | Self::CrossAffinityChurn { .. } | Self::NumaMigrationChurn { .. }
        )
    }

    /// Whether workers have threads of their own, which are measured with them.
    pub fn has_threads(&self) -> bool {
        matches!(self, Self::Schbench(_) | Self::Taobench(_))
    }

    /// Whether workers move into cgroups of their own beside the one they were started in.
    pub fn leaves_its_cgroup(&self) -> bool {
        matches!(self, Self::CgroupChurn { .. })
    }

    /// Whether a worker never gives up the CPU by itself, so that all time off the CPU is the scheduler's.
    pub fn never_blocks(&self) -> bool {
        matches!(
            self,
            Self::SpinWait
                | Self::YieldHeavy
                | Self::Mixed
                | Self::AluHot { .. }
                | Self::SmtSiblingSpin
                | Self::IpcVariance { .. }
                | Self::CachePressure { .. }
                | Self::CacheYield { .. }
                | Self::NiceSweep
                | Self::PolicyChurn { .. }
                | Self::RtStarvation { .. }
        )
    }

    /// Whether it forks children or moves between cgroups, which a thread of the test process must not.
    pub fn needs_own_process(&self) -> bool {
        matches!(self, Self::ForkExit | Self::CgroupChurn { .. } | Self::CgroupAttachStorm { .. })
    }

    /// Whether the member at `position` of a group only hands out work.
    pub fn is_messenger(&self, position: u32) -> bool {
        let hands_out = matches!(
            self,
            Self::FutexFanOut { .. } | Self::FanOutCompute { .. } | Self::ThunderingHerd { .. }
        );
        hands_out && position == 0
    }

    /// Which part the member at `position` of a group has; only members with the same part do the same.
    pub fn role(&self, position: u32) -> u32 {
        let borders: [u32; 2] = match self {
            Self::FutexFanOut { .. }
            | Self::FanOutCompute { .. }
            | Self::ThunderingHerd { .. }
            | Self::AsymmetricWaker { .. }
            | Self::PreemptStorm { .. }
            | Self::IrqWake { .. } => [1, u32::MAX],
            Self::EpollStorm { producers, .. } | Self::ProducerConsumerImbalance { producers, .. } => {
                [*producers, u32::MAX]
            }
            Self::RtStarvation { rt_workers, .. } => [*rt_workers, u32::MAX],
            Self::PriorityInversion { high_count, medium_count, .. } => {
                [*high_count, high_count + medium_count]
            }
            _ => return 0,
        };
        borders.into_iter().filter(|border| position >= *border).count() as u32
    }

    /// Names of the figures that only this work type reports, by position.
    pub fn metric_names(&self) -> &'static [&'static str] {
        match self {
            Self::ProducerConsumerImbalance { .. } => &["deepest_queue"],
            Self::PriorityInversion { .. } => &["medium_rounds_while_high_waited"],
            Self::CgroupAttachStorm { .. } => &["children_gone_before_the_move"],
            Self::Schbench(_) => &["requests_per_s", "worker_threads"],
            Self::Taobench(_) => &["requests_per_s", "hit_pct"],
            _ => &[],
        }
    }

    /// Checks that the parameters make sense.
    pub fn check(&self) -> Result<(), WorkTypeError> {
        let refuse = |parameter: String, rule| Err(WorkTypeError { work_type: self.name(), parameter, rule });
        for (name, value, least, most) in self.limits() {
            if value < least {
                return refuse(
                    format!("{name} = {value}"),
                    if least == 1 { "it must be at least 1" } else { "it is too small" },
                );
            }
            if value > most {
                return refuse(format!("{name} = {value}"), "it is too large");
            }
        }
        match self {
            Self::AsymmetricWaker { waker_class, wakee_class, .. } => {
                for (name, class) in [("waker_class", waker_class), ("wakee_class", wakee_class)] {
                    if class.checked().is_err() {
                        return refuse(format!("{name} = {class:?}"), "no kernel has such a policy");
                    }
                }
                Ok(())
            }
            Self::Sequence { first, rest } => {
                let short = |phase: &&SequencePhase| phase.duration() < Duration::from_micros(1);
                match std::iter::once(first).chain(rest).find(short) {
                    Some(phase) => refuse(format!("phase {phase:?}"), "a phase takes 1 µs or more"),
                    None => Ok(()),
                }
            }
            Self::CgroupAttachStorm { dest, .. } if dest.is_empty() || dest.contains('/') => {
                refuse(format!("dest = {dest:?}"), "it must be one path component")
            }
            _ => Ok(()),
        }
    }

    /// Parameters with their least and greatest values.
    fn limits(&self) -> Vec<(&'static str, u64, u64, u64)> {
        const MEMBERS: u64 = 1024;
        const STEPS: u64 = 1 << 40;
        const KIB: u64 = 4 << 20;
        let micros = |time: &Duration| time.as_micros().min(u128::from(u64::MAX)) as u64;
        const HOUR_US: u64 = 3600 * 1_000_000;
        let members = |name, value: &u32| (name, u64::from(*value), 1, MEMBERS);
        let steps = |name, value: &u64| (name, *value, 0, STEPS);
        let kib = |name, value: &u32| (name, u64::from(*value), 1, KIB);
        match self {
            Self::IpcVariance { hot_iters, cold_iters, period_iters } => vec![
                ("hot_iters", *hot_iters, 1, STEPS),
                ("cold_iters", *cold_iters, 1, STEPS),
                ("period_iters", *period_iters, 1, STEPS),
            ],
            Self::Bursty { burst_duration, sleep_duration }
            | Self::IdleChurn { burst_duration, sleep_duration, .. } => vec![
                ("burst_duration in µs", micros(burst_duration), 1, HOUR_US),
                ("sleep_duration in µs", micros(sleep_duration), 1, HOUR_US),
            ],
            Self::PipeIo { burst_iters } => vec![steps("burst_iters", burst_iters)],
            Self::FutexPingPong { spin_iters }
            | Self::AffinityChurn { spin_iters }
            | Self::PolicyChurn { spin_iters }
            | Self::CrossAffinityChurn { spin_iters } => vec![steps("spin_iters", spin_iters)],
            Self::FutexFanOut { fan_out, spin_iters } => {
                vec![members("fan_out", fan_out), steps("spin_iters", spin_iters)]
            }
            Self::CachePressure { size_kib, stride } | Self::CacheYield { size_kib, stride } => {
                vec![
                    kib("size_kib", size_kib),
                    ("stride", u64::from(*stride), 1, u64::from(*size_kib) * 1024),
                ]
            }
            Self::CachePipe { size_kib, burst_iters } => {
                vec![kib("size_kib", size_kib), steps("burst_iters", burst_iters)]
            }
            Self::NumaMigrationChurn { period_ms } => vec![("period_ms", *period_ms, 1, HOUR_US)],
            Self::CgroupChurn { groups, cycle_ms } => {
                vec![("groups", u64::from(*groups), 1, 64), ("cycle_ms", *cycle_ms, 1, HOUR_US)]
            }
            Self::FanOutCompute { fan_out, cache_footprint_kib, operations, .. } => vec![
                members("fan_out", fan_out),
                kib("cache_footprint_kib", cache_footprint_kib),
                ("operations", u64::from(*operations), 1, STEPS),
            ],
            Self::AsymmetricWaker { burst_iters, .. } => vec![steps("burst_iters", burst_iters)],
            Self::WakeChain { depth, work_per_hop, .. } => vec![
                ("depth", u64::from(*depth), 2, MEMBERS),
                ("work_per_hop in µs", micros(work_per_hop), 0, HOUR_US),
            ],
            Self::EpollStorm { producers, consumers, events_per_burst } => vec![
                members("producers", producers),
                members("consumers", consumers),
                ("events_per_burst", u64::from(*events_per_burst), 1, STEPS),
            ],
            Self::ThunderingHerd { waiters, batches, inter_batch_ms } => vec![
                members("waiters", waiters),
                ("batches", u64::from(*batches), 1, STEPS),
                ("inter_batch_ms", *inter_batch_ms, 0, HOUR_US),
            ],
            Self::PageFaultChurn { region_kib, touches_per_cycle, spin_iters } => vec![
                ("region_kib", u64::from(*region_kib), 4, KIB),
                ("touches_per_cycle", u64::from(*touches_per_cycle), 1, STEPS),
                steps("spin_iters", spin_iters),
            ],
            Self::NumaWorkingSetSweep { region_kib, sweep_period_ms, .. } => vec![
                ("region_kib", u64::from(*region_kib), 4, KIB),
                ("sweep_period_ms", *sweep_period_ms, 1, HOUR_US),
            ],
            Self::MutexContention { contenders, hold_iters, work_iters } => vec![
                ("contenders", u64::from(*contenders), 2, MEMBERS),
                steps("hold_iters", hold_iters),
                steps("work_iters", work_iters),
            ],
            Self::PriorityInversion {
                high_count, medium_count, low_count, hold_iters, work_iters, ..
            } => vec![
                members("high_count", high_count),
                ("medium_count", u64::from(*medium_count), 0, MEMBERS),
                members("low_count", low_count),
                steps("hold_iters", hold_iters),
                steps("work_iters", work_iters),
            ],
            Self::ProducerConsumerImbalance {
                producers,
                consumers,
                produce_rate_hz,
                consume_iters,
                queue_depth_target,
            } => vec![
                members("producers", producers),
                members("consumers", consumers),
                ("produce_rate_hz", *produce_rate_hz, 1, 1_000_000),
                ("consume_iters", *consume_iters, 0, 4_000_000),
                ("queue_depth_target", *queue_depth_target, 1, u64::from(u32::MAX / 2)),
            ],
            Self::SignalStorm { signals_per_iter, work_iters } => vec![
                ("signals_per_iter", u64::from(*signals_per_iter), 1, STEPS),
                steps("work_iters", work_iters),
            ],
            Self::PreemptStorm { cfs_workers, rt_burst_iters, rt_sleep_us } => vec![
                members("cfs_workers", cfs_workers),
                steps("rt_burst_iters", rt_burst_iters),
                ("rt_sleep_us", *rt_sleep_us, 1, HOUR_US),
            ],
            Self::RtStarvation { rt_workers, cfs_workers, rt_priority, burst_iters } => vec![
                members("rt_workers", rt_workers),
                members("cfs_workers", cfs_workers),
                ("rt_priority", u64::from(*rt_priority), 1, 99),
                ("burst_iters", *burst_iters, 1, STEPS),
            ],
            Self::TimerLatency { interval_us } => vec![("interval_us", *interval_us, 1, HOUR_US)],
            Self::NetTraffic { interval_us, frame_bytes } => vec![
                ("interval_us", *interval_us, 0, HOUR_US),
                ("frame_bytes", u64::from(*frame_bytes), 60, 1514),
            ],
            Self::IrqWake { interval_us, frame_bytes } => vec![
                ("interval_us", *interval_us, 1, HOUR_US),
                ("frame_bytes", u64::from(*frame_bytes), 60, 1514),
            ],
            Self::Schbench(config) => config.limits(),
            Self::Taobench(config) => config.limits(),
            _ => Vec::new(),
        }
    }
}

impl std::str::FromStr for WorkType {
    type Err = UnknownWorkType;

    fn from_str(name: &str) -> Result<Self, UnknownWorkType> {
        Self::from_name(name)
    }
}

/// The nearest known name, or all of them.
fn hint(name: &str) -> String {
    let wanted = name.to_ascii_lowercase();
    let known = WorkType::ALL_NAMES.into_iter().chain(ALIASES.map(|(old, _)| old));
    let near = known.map(|known| (strsim::levenshtein(&wanted, &known.to_ascii_lowercase()), known)).min();
    match near {
        Some((steps, known)) if steps <= 1 + known.len() / 3 => format!(", did you mean `{known}`?"),
        _ if wanted == "custom" => ": `Custom` needs a function and cannot be made from a name".into(),
        _ => format!("; known are: {}", WorkType::ALL_NAMES.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attributes::SchedPolicy,
        work::{Reap, WakeMechanism},
    };

    #[test]
    fn every_name_makes_its_type_with_sound_defaults() {
        for name in WorkType::ALL_NAMES {
            let made = WorkType::from_name(name).unwrap();
            assert_eq!(made.name(), name);
            assert_eq!(made.check(), Ok(()), "{name}");
            assert!(made.group_size() >= 1, "{name}");
            assert_eq!(name.to_lowercase().parse(), Ok(made));
        }
        assert_eq!("CpuSpin".parse(), Ok(WorkType::SpinWait));
        assert_eq!("IoSync".parse(), Ok(WorkType::IoSyncWrite));
    }

    #[test]
    fn group_sizes_are_those_of_the_parameters() {
        let sizes: Vec<(&str, u32)> = WorkType::ALL_NAMES
            .into_iter()
            .map(|name| (name, WorkType::from_name(name).unwrap().group_size()))
            .filter(|(_, size)| *size > 1)
            .collect();
        let expected = [
            ("SmtSiblingSpin", 2),
            ("PipeIo", 2),
            ("FutexPingPong", 2),
            ("FutexFanOut", 5),
            ("CachePipe", 2),
            ("FanOutCompute", 5),
            ("AsymmetricWaker", 2),
            ("WakeChain", 4),
            ("EpollStorm", 3),
            ("ThunderingHerd", 8),
            ("MutexContention", 4),
            ("PriorityInversion", 3),
            ("ProducerConsumerImbalance", 3),
            ("SignalStorm", 2),
            ("PreemptStorm", 3),
            ("RtStarvation", 2),
            ("IrqWake", 2),
        ];
        assert_eq!(sizes, expected);
    }

    #[test]
    fn members_of_a_group_have_the_parts_of_its_parameters() {
        let roles = |work_type: WorkType| -> Vec<u32> {
            (0..work_type.group_size()).map(|position| work_type.role(position)).collect()
        };
        assert_eq!(roles(WorkType::pipe_io()), [0, 0]);
        assert_eq!(roles(WorkType::futex_fan_out()), [0, 1, 1, 1, 1]);
        assert_eq!(roles(WorkType::epoll_storm()), [0, 1, 1]);
        assert_eq!(roles(WorkType::priority_inversion()), [0, 1, 2]);
        assert_eq!(roles(WorkType::mutex_contention()), [0; 4]);
    }

    #[test]
    fn a_mistyped_name_gets_the_nearest_known_one() {
        let said = |name: &str| WorkType::from_name(name).unwrap_err().to_string();
        assert_eq!(said("PipeIO2"), "there is no work type `PipeIO2`, did you mean `PipeIo`?");
        assert_eq!(said("SpinWiat"), "there is no work type `SpinWiat`, did you mean `SpinWait`?");
        assert!(said("Custom").contains("needs a function"), "{}", said("Custom"));
        assert!(said("qqqqqqqqqqqq").contains("known are: SpinWait, YieldHeavy"));
    }

    #[test]
    fn parameters_that_make_no_work_are_refused_by_name() {
        let ms = Duration::from_millis;
        let refused = |work_type: WorkType| work_type.check().unwrap_err().to_string();
        let idle = WorkType::IdleChurn {
            burst_duration: Duration::ZERO,
            sleep_duration: ms(1),
            precise_timing: true,
        };
        assert_eq!(refused(idle), "IdleChurn with burst_duration in µs = 0: it must be at least 1");
        for (work_type, what) in [
            (WorkType::WakeChain { depth: 1, wake: WakeMechanism::Futex, work_per_hop: ms(1) }, "depth = 1"),
            (WorkType::NetTraffic { interval_us: 0, frame_bytes: 59 }, "frame_bytes = 59"),
            (WorkType::IrqWake { interval_us: 1, frame_bytes: 1515 }, "frame_bytes = 1515"),
            (WorkType::FutexFanOut { fan_out: 0, spin_iters: 1 }, "fan_out = 0"),
            (WorkType::CachePressure { size_kib: 1, stride: 2048 }, "stride = 2048"),
            (
                WorkType::RtStarvation { rt_workers: 1, cfs_workers: 1, rt_priority: 100, burst_iters: 1 },
                "rt_priority = 100",
            ),
            (WorkType::CgroupAttachStorm { dest: "a/b".into(), reap: Reap::Waitpid }, "dest = \"a/b\""),
            (
                WorkType::AsymmetricWaker {
                    waker_class: SchedPolicy::Fifo(0),
                    wakee_class: SchedPolicy::Normal,
                    burst_iters: 1,
                },
                "waker_class = Fifo(0)",
            ),
            (
                WorkType::Sequence { first: SequencePhase::Spin(Duration::ZERO), rest: Vec::new() },
                "phase Spin(0ns)",
            ),
        ] {
            assert!(refused(work_type.clone()).contains(what), "{}", refused(work_type));
        }
    }
}
