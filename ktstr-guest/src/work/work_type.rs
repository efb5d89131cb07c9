//! The kinds of work: what each does, which path of the kernel it presses on, its parameters.
//!
//! Defaults are in the constructors of the same name in snake case ([`WorkType::pipe_io`]); names, aliases
//! and parsing are in [`super::catalogue`], the loops in the modules of the families. All work keeps going
//! until it is told to stop, chooses at random only from the workload's seed, and measures itself alike.

use std::time::Duration;

use super::{
    bench::{SchbenchConfig, TaobenchConfig},
    custom::Custom,
};
use crate::attributes::SchedPolicy;

/// How wide the multiplications of [`WorkType::AluHot`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SimdWidth {
    /// General-purpose registers.
    Scalar,
    /// 128-bit vectors (SSE2, NEON).
    Vec128,
    /// 256-bit vectors (AVX2).
    Vec256,
    /// 512-bit vectors (AVX-512).
    Vec512,
    /// Tiles (AMX).
    Amx,
    /// The widest vectors this machine has (tiles only when asked for by name).
    #[default]
    Widest,
}

/// What wakes the next hop of a [`WorkType::WakeChain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WakeMechanism {
    /// A byte in a pipe: the kernel wakes with `WF_SYNC`.
    #[default]
    Pipe,
    /// A futex: no `WF_SYNC`.
    Futex,
}

/// Whether a lock lends its waiters' priority to its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PiMode {
    /// `FUTEX_WAIT`/`FUTEX_WAKE`: it does not.
    #[default]
    Plain,
    /// `FUTEX_LOCK_PI`: it does, through `rt_mutex_setprio`.
    Pi,
}

/// How [`WorkType::CgroupAttachStorm`] gets rid of its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reap {
    /// `SIGCHLD` is ignored; the kernel reaps them as they exit.
    SigIgn,
    /// The worker waits for each.
    #[default]
    Waitpid,
}

/// A phase of [`WorkType::Sequence`], repeated in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequencePhase {
    /// Computes for so long.
    Spin(Duration),
    /// Sleeps for so long.
    Sleep(Duration),
    /// Yields for so long.
    Yield(Duration),
    /// Writes 64 KiB to a file and sleeps 100 µs, in turn, for so long.
    Io(Duration),
    /// Multiplies as [`WorkType::AluHot`] does.
    AluHot {
        /// Width of the multiplications.
        width: SimdWidth,
        /// For how long.
        duration: Duration,
    },
}

/// What a worker does all day.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum WorkType {
    /// Computes without pause, 1024 steps a unit. Presses on the tick: preemption of a task that never
    /// gives up the CPU (`scheduler_tick`, `update_curr`).
    #[default]
    SpinWait,
    /// Yields the CPU after next to no work. Presses on `yield_task` and `pick_next_task` without sleep.
    YieldHeavy,
    /// Computes 1024 steps, then yields. Presses on the tick and on `yield_task` in turn.
    Mixed,
    /// Four independent chains of multiplications, two instructions and more a cycle. Presses on switches
    /// of tasks with large vector state (`fpu__switch`) and on cores that slow down for it.
    AluHot {
        /// Width of the multiplications; one the machine lacks is reported as not run.
        width: SimdWidth,
    },
    /// Pairs that spin with the CPU's pause instruction, each on one SMT sibling of a core. Presses on
    /// SMT-aware placement and on core scheduling. Not run without SMT siblings among the allowed CPUs.
    SmtSiblingSpin,
    /// Multiplies, then touches 512 KiB at random, so that the instructions per cycle change. Presses on
    /// schedulers that judge by performance counters or by utilisation.
    IpcVariance {
        /// Multiplications of a hot phase.
        hot_iters: u64,
        /// Random touches of a cold phase.
        cold_iters: u64,
        /// Pairs of phases in one iteration.
        period_iters: u64,
    },
    /// 16 writes of 4 KiB to a file opened with `O_SYNC`, then `fdatasync`. Presses on I/O sleeps
    /// (`io_schedule`) and wakes from the block layer. Uses a stripe of its own on the raw disk that the test
    /// declares, else a file.
    IoSyncWrite,
    /// Reads 4 KiB at a random offset with `O_DIRECT`. Presses on short I/O sleeps and wakes from
    /// completions.
    IoRandRead,
    /// Sequential writes and random reads in turn with `O_DIRECT`, `fdatasync` every 16th time. Presses on
    /// I/O completions that arrive in convoys.
    IoConvoy,
    /// Computes, then sleeps. Presses on wake-up preemption of a task that slept long (lag, `place_entity`).
    Bursty {
        /// CPU time of a burst.
        burst_duration: Duration,
        /// Time of sleeping.
        sleep_duration: Duration,
    },
    /// Short bursts and short sleeps. Presses on high-resolution timers and on entering and leaving idle.
    IdleChurn {
        /// CPU time of a burst.
        burst_duration: Duration,
        /// Time of sleeping.
        sleep_duration: Duration,
        /// Whether timers may not be late on purpose (timer slack of 1 ns instead of 50 µs).
        precise_timing: bool,
    },
    /// Pairs that compute and pass a byte through pipes. Presses on `WF_SYNC` wakes and on placing a wakee
    /// near its waker (`select_task_rq`, `wake_affine`).
    PipeIo {
        /// Steps between two bytes.
        burst_iters: u64,
    },
    /// Pairs that wake each other through one futex. Presses on wakes without `WF_SYNC`.
    FutexPingPong {
        /// Steps between two wakes.
        spin_iters: u64,
    },
    /// One messenger wakes many receivers at once through a futex. Presses on one-to-many wakes, each
    /// placed on its own (`wake_up_q`).
    FutexFanOut {
        /// Receivers of a messenger.
        fan_out: u32,
        /// Steps between two wakes.
        spin_iters: u64,
    },
    /// Reads and writes memory in strides. Presses on the caches, so that migrations cost something.
    CachePressure {
        /// Size of the memory.
        size_kib: u32,
        /// Distance of two touches, bytes.
        stride: u32,
    },
    /// As [`WorkType::CachePressure`], and yields after each round. Presses on `yield_task` of tasks with
    /// warm caches.
    CacheYield {
        /// Size of the memory.
        size_kib: u32,
        /// Distance of two touches, bytes.
        stride: u32,
    },
    /// As [`WorkType::PipeIo`] with touches of memory for work. Presses on wake placement that trades cache
    /// warmth for an idle CPU.
    CachePipe {
        /// Size of the memory.
        size_kib: u32,
        /// Touches between two bytes.
        burst_iters: u64,
    },
    /// Phases one after the other, over and over. Presses on schedulers that classify tasks by their past.
    Sequence {
        /// The first phase.
        first: SequencePhase,
        /// The others.
        rest: Vec<SequencePhase>,
    },
    /// Forks a child that exits at once, and waits for it. Presses on `sched_fork`, `wake_up_new_task`,
    /// `sched_exit`, `init_task`/`exit_task` of a BPF scheduler. Not in threads of the test process.
    ForkExit,
    /// Sets its nice value from −20 to 19 in turn, yielding between. Presses on `reweight_task` and
    /// `set_weight`. Values it may not set are left out.
    NiceSweep,
    /// Restricts itself to one random CPU after the other. Presses on `set_cpus_allowed` and the stopper's
    /// `migration_cpu_stop`.
    AffinityChurn {
        /// Steps between two changes.
        spin_iters: u64,
    },
    /// Changes its policy: OTHER, BATCH, IDLE, and FIFO and RR where it may. Presses on
    /// `__sched_setscheduler`, `switched_from`, `switched_to`.
    PolicyChurn {
        /// Steps between two changes.
        spin_iters: u64,
    },
    /// Restricts itself to the CPUs of one NUMA node after the other. Presses on migrations across nodes.
    /// Not run with CPUs of fewer than two nodes.
    NumaMigrationChurn {
        /// Time between two changes, milliseconds.
        period_ms: u64,
    },
    /// Moves itself through sibling cgroups. Presses on `sched_move_task`, `cgroup_move` of a BPF
    /// scheduler. Processes only.
    CgroupChurn {
        /// Number of sibling cgroups.
        groups: u32,
        /// Time between two moves, milliseconds.
        cycle_ms: u64,
    },
    /// A messenger hands out work; workers think, multiply matrices and report back. Presses on wake
    /// latency of many short requests (the shape of schbench).
    FanOutCompute {
        /// Workers of a messenger.
        fan_out: u32,
        /// Size of a worker's matrices.
        cache_footprint_kib: u32,
        /// Multiplications of a request.
        operations: u32,
        /// Thinking before a request's work, microseconds.
        sleep_usec: u64,
    },
    /// Pairs of different scheduling classes on one futex. Presses on wakes across classes
    /// (`wakeup_preempt`).
    AsymmetricWaker {
        /// Policy of the one that wakes.
        waker_class: SchedPolicy,
        /// Policy of the one that is woken.
        wakee_class: SchedPolicy,
        /// Steps between two wakes.
        burst_iters: u64,
    },
    /// A ring in which each wakes the next. Presses on chains of wakes that want to stay on one CPU, with
    /// `WF_SYNC` (pipe) or without (futex).
    WakeChain {
        /// Workers in a ring.
        depth: u32,
        /// How the next one is woken.
        wake: WakeMechanism,
        /// CPU time of a hop's work.
        work_per_hop: Duration,
    },
    /// Producers write eventfds in bursts, consumers wait in one epoll. Presses on exclusive wakes of
    /// `ep_poll_callback`.
    EpollStorm {
        /// Writers of a group.
        producers: u32,
        /// Waiters of a group.
        consumers: u32,
        /// Events of a burst.
        events_per_burst: u32,
    },
    /// All waiters of one futex are woken at once, over and over. Presses on bursts of wakes that all want
    /// a CPU at the same moment.
    ThunderingHerd {
        /// Waiters of a waker.
        waiters: u32,
        /// Wakes until the waker lets stragglers catch up.
        batches: u32,
        /// Time between two wakes, milliseconds.
        inter_batch_ms: u64,
    },
    /// Writes random pages of a region and gives them back. Presses on page faults and `mmap_lock` inside
    /// the worker's time slice.
    PageFaultChurn {
        /// Size of the region.
        region_kib: u32,
        /// Pages written in a cycle.
        touches_per_cycle: u32,
        /// Steps between two pages.
        spin_iters: u64,
    },
    /// Moves a region of memory from node to node with `mbind` and touches it. Presses on page
    /// migration. Not run with memory on fewer than two nodes, unless nodes are named.
    NumaWorkingSetSweep {
        /// Size of the region.
        region_kib: u32,
        /// Time between two moves, milliseconds.
        sweep_period_ms: u64,
        /// Nodes to visit; empty is all that have memory.
        target_nodes: Vec<u32>,
    },
    /// Contenders for one futex mutex. Presses on lock hand-over: a preempted holder keeps all waiting.
    MutexContention {
        /// Workers that share a mutex.
        contenders: u32,
        /// Steps while holding it.
        hold_iters: u64,
        /// Steps without it.
        work_iters: u64,
    },
    /// High and low real-time priorities share a lock; medium ones, which do not, run whenever a high one must wait for
    /// it, all on one CPU: with a plain lock before its holder can let it go, so that the high one waits for them, too.
    /// Presses on priority inversion and, with [`PiMode::Pi`], on `rt_mutex_setprio`.
    PriorityInversion {
        /// Workers of high priority (FIFO 30).
        high_count: u32,
        /// Workers of medium priority (FIFO 20), which do not use the lock.
        medium_count: u32,
        /// Workers of low priority (FIFO 10).
        low_count: u32,
        /// Steps while holding the lock.
        hold_iters: u64,
        /// Steps without it.
        work_iters: u64,
        /// Kind of lock.
        pi_mode: PiMode,
    },
    /// Producers fill a bounded queue at a rate, consumers empty it and cannot keep up unless an item is made cheaper.
    /// Presses on wakes of one side by the other: of producers once the queue has grown full, of consumers where
    /// it runs dry.
    ProducerConsumerImbalance {
        /// Producers of a queue.
        producers: u32,
        /// Consumers of a queue.
        consumers: u32,
        /// Items a second of each producer.
        produce_rate_hz: u64,
        /// CPU time of an item, in steps of 250 ns.
        consume_iters: u64,
        /// Items the queue holds.
        queue_depth_target: u64,
    },
    /// Pairs that send each other `SIGUSR1` between bursts. Presses on signal delivery: kicks of running
    /// tasks (`kick_process`).
    SignalStorm {
        /// Signals after a burst.
        signals_per_iter: u32,
        /// Steps of a burst.
        work_iters: u64,
    },
    /// One FIFO worker interrupts spinning fair ones about a thousand times a second, all on one CPU. Presses on real-time
    /// preemption, and on what a BPF scheduler does when its CPU is taken (`cpu_release`).
    PreemptStorm {
        /// Fair workers of a group.
        cfs_workers: u32,
        /// Steps of the FIFO worker's burst.
        rt_burst_iters: u64,
        /// Its sleep, microseconds.
        rt_sleep_us: u64,
    },
    /// FIFO workers that never sleep beside fair ones, all on one CPU. Presses on real-time throttling and the fair (and
    /// ext) deadline server.
    RtStarvation {
        /// Real-time workers of a group.
        rt_workers: u32,
        /// Fair workers of a group.
        cfs_workers: u32,
        /// Priority of the real-time ones.
        rt_priority: u32,
        /// Steps between two looks at the stop flag.
        burst_iters: u64,
    },
    /// Restricts random workers of the same workload (itself among them) to random CPUs. Presses on
    /// `set_cpus_allowed` of running and waking tasks of others.
    CrossAffinityChurn {
        /// Steps between two changes.
        spin_iters: u64,
    },
    /// Forks children and moves them to a sibling cgroup while they exit. Presses on `cgroup_attach_task`
    /// against `do_exit`. Not in threads of the test process.
    CgroupAttachStorm {
        /// Name of the sibling cgroup.
        dest: String,
        /// How the children are reaped.
        reap: Reap,
    },
    /// Sleeps to absolute times. Presses on timers: how late `hrtimer` wake-ups are.
    TimerLatency {
        /// Time between two wakes, microseconds.
        interval_us: u64,
    },
    /// Sends raw frames on the first network device. Presses on the transmit path and its soft interrupts.
    /// Not run without a device.
    NetTraffic {
        /// Pause between two frames, microseconds; 0 is none.
        interval_us: u64,
        /// Bytes of a frame, 60 to 1514.
        frame_bytes: u32,
    },
    /// Pairs: one sends frames, the other sleeps in `recv`. Presses on wakes from interrupts. Not run
    /// without a device that receives what it sends.
    IrqWake {
        /// Time between two frames, microseconds.
        interval_us: u64,
        /// Bytes of a frame, 60 to 1514.
        frame_bytes: u32,
    },
    /// Message and worker threads inside one worker, as the benchmark schbench has them. Presses on wake
    /// latency under load. Its figures are metrics of their own.
    Schbench(SchbenchConfig),
    /// A cache server's threads inside one worker: fast hits, slow misses through a queue. Presses on many
    /// short tasks beside blocked ones. Its figures are metrics of their own.
    Taobench(TaobenchConfig),
    /// A function of the user's.
    Custom(Custom),
}

impl WorkType {
    /// Widest vectors.
    pub const fn alu_hot() -> Self {
        Self::AluHot { width: SimdWidth::Widest }
    }

    /// 100000 multiplications, 1024 touches, 64 times.
    pub const fn ipc_variance() -> Self {
        Self::IpcVariance { hot_iters: 100_000, cold_iters: 1024, period_iters: 64 }
    }

    /// 50 ms of computing, 100 ms of sleep.
    pub const fn bursty() -> Self {
        Self::Bursty { burst_duration: Duration::from_millis(50), sleep_duration: Duration::from_millis(100) }
    }

    /// 1 ms of computing, 5 ms of sleep.
    pub const fn idle_churn() -> Self {
        Self::IdleChurn {
            burst_duration: Duration::from_millis(1),
            sleep_duration: Duration::from_millis(5),
            precise_timing: false,
        }
    }

    /// 1024 steps between two bytes.
    pub const fn pipe_io() -> Self {
        Self::PipeIo { burst_iters: 1024 }
    }

    /// 1024 steps between two wakes.
    pub const fn futex_ping_pong() -> Self {
        Self::FutexPingPong { spin_iters: 1024 }
    }

    /// Four receivers, 1024 steps between two wakes.
    pub const fn futex_fan_out() -> Self {
        Self::FutexFanOut { fan_out: 4, spin_iters: 1024 }
    }

    /// 32 KiB in strides of 64 bytes.
    pub const fn cache_pressure() -> Self {
        Self::CachePressure { size_kib: 32, stride: 64 }
    }

    /// 32 KiB in strides of 64 bytes.
    pub const fn cache_yield() -> Self {
        Self::CacheYield { size_kib: 32, stride: 64 }
    }

    /// 32 KiB, 1024 touches between two bytes.
    pub const fn cache_pipe() -> Self {
        Self::CachePipe { size_kib: 32, burst_iters: 1024 }
    }

    /// 50 ms of computing, 10 ms of yields, 20 ms of sleep, 20 ms of I/O, 20 ms of multiplications.
    pub fn sequence() -> Self {
        let ms = Duration::from_millis;
        Self::Sequence {
            first: SequencePhase::Spin(ms(50)),
            rest: vec![
                SequencePhase::Yield(ms(10)),
                SequencePhase::Sleep(ms(20)),
                SequencePhase::Io(ms(20)),
                SequencePhase::AluHot { width: SimdWidth::Widest, duration: ms(20) },
            ],
        }
    }

    /// 1024 steps between two changes.
    pub const fn affinity_churn() -> Self {
        Self::AffinityChurn { spin_iters: 1024 }
    }

    /// 1024 steps between two changes.
    pub const fn policy_churn() -> Self {
        Self::PolicyChurn { spin_iters: 1024 }
    }

    /// Another node every 100 ms.
    pub const fn numa_migration_churn() -> Self {
        Self::NumaMigrationChurn { period_ms: 100 }
    }

    /// Two cgroups, 100 ms in each.
    pub const fn cgroup_churn() -> Self {
        Self::CgroupChurn { groups: 2, cycle_ms: 100 }
    }

    /// Four workers, 256 KiB, five multiplications, 100 µs of thinking.
    pub const fn fan_out_compute() -> Self {
        Self::FanOutCompute { fan_out: 4, cache_footprint_kib: 256, operations: 5, sleep_usec: 100 }
    }

    /// A FIFO waker and a fair wakee, 1024 steps between two wakes.
    pub const fn asymmetric_waker() -> Self {
        Self::AsymmetricWaker {
            waker_class: SchedPolicy::Fifo(1),
            wakee_class: SchedPolicy::Normal,
            burst_iters: 1024,
        }
    }

    /// Four hops through pipes, 100 µs of work each.
    pub const fn wake_chain() -> Self {
        Self::WakeChain { depth: 4, wake: WakeMechanism::Pipe, work_per_hop: Duration::from_micros(100) }
    }

    /// One producer, two consumers, bursts of 32 events.
    pub const fn epoll_storm() -> Self {
        Self::EpollStorm { producers: 1, consumers: 2, events_per_burst: 32 }
    }

    /// Seven waiters, a wake every 5 ms.
    pub const fn thundering_herd() -> Self {
        Self::ThunderingHerd { waiters: 7, batches: 1000, inter_batch_ms: 5 }
    }

    /// 4 MiB, 256 pages in a cycle, 64 steps between two pages.
    pub const fn page_fault_churn() -> Self {
        Self::PageFaultChurn { region_kib: 4096, touches_per_cycle: 256, spin_iters: 64 }
    }

    /// 4 MiB, another node every 100 ms.
    pub const fn numa_working_set_sweep() -> Self {
        Self::NumaWorkingSetSweep { region_kib: 4096, sweep_period_ms: 100, target_nodes: Vec::new() }
    }

    /// Four contenders, 256 steps with the lock, 1024 without.
    pub const fn mutex_contention() -> Self {
        Self::MutexContention { contenders: 4, hold_iters: 256, work_iters: 1024 }
    }

    /// One of each priority, 4096 steps with the lock, 1024 without, a plain lock.
    pub const fn priority_inversion() -> Self {
        Self::PriorityInversion {
            high_count: 1,
            medium_count: 1,
            low_count: 1,
            hold_iters: 4096,
            work_iters: 1024,
            pi_mode: PiMode::Plain,
        }
    }

    /// Two producers of 1000 items a second each, one consumer that takes about a millisecond of CPU time for an
    /// item, a queue of 1024, which is full after a second.
    pub const fn producer_consumer_imbalance() -> Self {
        Self::ProducerConsumerImbalance {
            producers: 2,
            consumers: 1,
            produce_rate_hz: 1000,
            consume_iters: 4096,
            queue_depth_target: 1024,
        }
    }

    /// 16 signals after 1024 steps.
    pub const fn signal_storm() -> Self {
        Self::SignalStorm { signals_per_iter: 16, work_iters: 1024 }
    }

    /// Two fair workers, bursts of 1024 steps, 1000 µs of sleep.
    pub const fn preempt_storm() -> Self {
        Self::PreemptStorm { cfs_workers: 2, rt_burst_iters: 1024, rt_sleep_us: 1000 }
    }

    /// One FIFO worker of priority 50 and one fair one.
    pub const fn rt_starvation() -> Self {
        Self::RtStarvation { rt_workers: 1, cfs_workers: 1, rt_priority: 50, burst_iters: 1024 }
    }

    /// 1024 steps between two changes.
    pub const fn cross_affinity_churn() -> Self {
        Self::CrossAffinityChurn { spin_iters: 1024 }
    }

    /// Into cgroup `dest`, waiting for each child.
    pub fn cgroup_attach_storm() -> Self {
        Self::CgroupAttachStorm { dest: "dest".into(), reap: Reap::Waitpid }
    }

    /// A wake every 1000 µs.
    pub const fn timer_latency() -> Self {
        Self::TimerLatency { interval_us: 1000 }
    }

    /// Frames of 60 bytes without pause.
    pub const fn net_traffic() -> Self {
        Self::NetTraffic { interval_us: 0, frame_bytes: 60 }
    }

    /// A frame of 60 bytes every 1000 µs.
    pub const fn irq_wake() -> Self {
        Self::IrqWake { interval_us: 1000, frame_bytes: 60 }
    }
}

impl SequencePhase {
    /// How long it takes.
    pub const fn duration(&self) -> Duration {
        match self {
            Self::Spin(duration)
            | Self::Sleep(duration)
            | Self::Yield(duration)
            | Self::Io(duration)
            | Self::AluHot { duration, .. } => *duration,
        }
    }
}
