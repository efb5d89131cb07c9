//! The loops of all kinds of work, one file per family. A loop works until the worker is told to stop,
//! counts what it did, passes a checkpoint in each round, and blocks only through the worker's means.

mod alu;
mod arch;
mod cache;
mod cgroup;
mod chain;
mod churn;
mod disk;
mod fan_out;
mod io;
mod lock;
mod matrix;
mod memory;
mod net;
mod pair;
mod realtime;
mod sleep;
mod spin;
mod threads;

pub(super) use cgroup::{Siblings, own_cgroup};
pub use io::DISK_ENV;
pub(super) use io::own_disk;

use super::{
    WorkType,
    worker::{Done, Place, Worker},
};

/// Takes the CPU and the policy that a kind of work gives its members, before any of them begins: one that
/// is pinned where a real-time task spins would not come to change its own policy.
pub(super) fn prepare(work_type: &WorkType, place: Place) -> Done {
    match work_type {
        WorkType::SmtSiblingSpin => spin::take_sibling(place),
        WorkType::AsymmetricWaker { waker_class, wakee_class, .. } => {
            pair::take_class(place, waker_class, wakee_class)
        }
        WorkType::PriorityInversion { high_count, medium_count, .. } => {
            lock::take_priority(place, *high_count, *medium_count)
        }
        WorkType::PreemptStorm { .. } => realtime::take_priority(place, 1, realtime::STORM_PRIORITY),
        WorkType::RtStarvation { rt_workers, rt_priority, .. } => {
            realtime::take_priority(place, *rt_workers, *rt_priority)
        }
        _ => Ok(()),
    }
}

/// Works until told to stop, or says what is missing.
pub(super) fn run(work_type: &WorkType, w: &mut Worker<'_>) -> Done {
    match work_type {
        WorkType::SpinWait => spin::spin_wait(w),
        WorkType::YieldHeavy => spin::yield_heavy(w, 16),
        WorkType::Mixed => spin::yield_heavy(w, 1024),
        WorkType::AluHot { width } => alu::alu_hot(w, *width),
        WorkType::SmtSiblingSpin => spin::smt_sibling_spin(w),
        WorkType::IpcVariance { hot_iters, cold_iters, period_iters } => {
            spin::ipc_variance(w, *hot_iters, *cold_iters, *period_iters)
        }
        WorkType::IoSyncWrite => io::sync_write(w),
        WorkType::IoRandRead => io::rand_read(w),
        WorkType::IoConvoy => io::convoy(w),
        WorkType::Bursty { burst_duration, sleep_duration } => {
            sleep::bursty(w, *burst_duration, *sleep_duration)
        }
        WorkType::IdleChurn { burst_duration, sleep_duration, precise_timing } => {
            sleep::idle_churn(w, *burst_duration, *sleep_duration, *precise_timing)
        }
        WorkType::PipeIo { burst_iters } => pair::pipe(w, *burst_iters, None),
        WorkType::CachePipe { size_kib, burst_iters } => pair::pipe(w, *burst_iters, Some(*size_kib)),
        WorkType::FutexPingPong { spin_iters } => pair::futex(w, *spin_iters),
        WorkType::AsymmetricWaker { burst_iters, .. } => pair::futex(w, *burst_iters),
        WorkType::SignalStorm { signals_per_iter, work_iters } => {
            pair::signals(w, *signals_per_iter, *work_iters)
        }
        WorkType::FutexFanOut { spin_iters, .. } => fan_out::futex(w, *spin_iters),
        WorkType::FanOutCompute { cache_footprint_kib, operations, sleep_usec, .. } => {
            fan_out::compute(w, *cache_footprint_kib, *operations, *sleep_usec)
        }
        WorkType::ThunderingHerd { batches, inter_batch_ms, .. } => {
            fan_out::herd(w, *batches, *inter_batch_ms)
        }
        WorkType::EpollStorm { events_per_burst, .. } => fan_out::epoll(w, *events_per_burst),
        WorkType::CachePressure { size_kib, stride } => cache::pressure(w, *size_kib, *stride, false),
        WorkType::CacheYield { size_kib, stride } => cache::pressure(w, *size_kib, *stride, true),
        WorkType::Sequence { first, rest } => sleep::sequence(w, first, rest),
        WorkType::ForkExit => churn::fork_exit(w),
        WorkType::NiceSweep => churn::nice_sweep(w),
        WorkType::AffinityChurn { spin_iters } => churn::affinity(w, *spin_iters),
        WorkType::CrossAffinityChurn { spin_iters } => churn::cross_affinity(w, *spin_iters),
        WorkType::PolicyChurn { spin_iters } => churn::policy(w, *spin_iters),
        WorkType::NumaMigrationChurn { period_ms } => churn::nodes(w, *period_ms),
        WorkType::CgroupChurn { groups, cycle_ms } => cgroup::churn(w, *groups, *cycle_ms),
        WorkType::CgroupAttachStorm { dest, reap } => cgroup::attach_storm(w, dest, *reap),
        WorkType::WakeChain { wake, work_per_hop, .. } => chain::wake_chain(w, *wake, *work_per_hop),
        WorkType::ProducerConsumerImbalance {
            producers,
            produce_rate_hz,
            consume_iters,
            queue_depth_target,
            ..
        } => chain::queue(w, *producers, *produce_rate_hz, *consume_iters, *queue_depth_target),
        WorkType::PageFaultChurn { region_kib, touches_per_cycle, spin_iters } => {
            memory::page_faults(w, *region_kib, *touches_per_cycle, *spin_iters)
        }
        WorkType::NumaWorkingSetSweep { region_kib, sweep_period_ms, target_nodes } => {
            memory::sweep(w, *region_kib, *sweep_period_ms, target_nodes)
        }
        WorkType::MutexContention { hold_iters, work_iters, .. } => {
            lock::contention(w, *hold_iters, *work_iters)
        }
        WorkType::PriorityInversion { high_count, medium_count, hold_iters, work_iters, pi_mode, .. } => {
            lock::inversion(w, (*high_count, *medium_count), (*hold_iters, *work_iters), *pi_mode)
        }
        WorkType::PreemptStorm { rt_burst_iters, rt_sleep_us, .. } => {
            realtime::preempt_storm(w, *rt_burst_iters, *rt_sleep_us)
        }
        WorkType::RtStarvation { rt_workers, burst_iters, .. } => {
            realtime::starvation(w, *rt_workers, *burst_iters)
        }
        WorkType::TimerLatency { interval_us } => sleep::timer_latency(w, *interval_us),
        WorkType::NetTraffic { interval_us, frame_bytes } => net::traffic(w, *interval_us, *frame_bytes),
        WorkType::IrqWake { interval_us, frame_bytes } => net::irq_wake(w, *interval_us, *frame_bytes),
        WorkType::Schbench(config) => threads::schbench(w, config),
        WorkType::Taobench(config) => threads::taobench(w, config),
        WorkType::Custom(custom) => {
            custom.run(w);
            Ok(())
        }
    }
}
