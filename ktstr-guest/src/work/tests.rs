//! Workers from outside: every kind of work in every mode on the host, and every way to end. What each
//! kind does to a kernel is tested in a guest (`tests/work_types`).

use std::time::{Duration, Instant};

use ktstr_proto::verdict::{WorkerExit, WorkerReport};
use nix::{
    errno::Errno,
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::Pid,
};

use super::*;
use crate::attributes::Attributes;

fn config(workers: u32, work_type: WorkType) -> WorkloadConfig {
    WorkloadConfig { workers, work_type, cgroup: "cg".into(), seed: 1, ..WorkloadConfig::default() }
}

/// A host that is stopped for seconds makes everything late, and nothing here wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets the workers work until all figures are `enough`. A fixed time would not do: how much of it a
/// worker gets is the host's choice.
fn work_until(handle: &WorkloadHandle, enough: impl Fn(&WorkerReport) -> bool) {
    let until = Instant::now() + PATIENCE;
    loop {
        let figures: Vec<_> = (0..handle.workers()).map(|worker| handle.report(worker, true)).collect();
        if figures.iter().all(&enough) {
            return;
        }
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {figures:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run(config: WorkloadConfig, enough: impl Fn(&WorkerReport) -> bool) -> Vec<WorkerReport> {
    let mut handle = WorkloadHandle::spawn(config).unwrap();
    assert_eq!(handle.iterations(), 0, "nobody works before the start");
    handle.start().unwrap();
    work_until(&handle, enough);
    handle.stop_and_collect()
}

fn at_work(report: &WorkerReport) -> bool {
    report.work_units > 0
}

fn pid(handle: &WorkloadHandle, index: usize) -> Pid {
    Pid::from_raw(handle.pids()[index] as i32)
}

/// Those that need neither real-time priority nor a cgroup of their own.
fn harmless() -> impl Iterator<Item = WorkType> {
    let not_here = [
        "PriorityInversion",
        "PreemptStorm",
        "RtStarvation",
        "CgroupChurn",
        "CgroupAttachStorm",
        "AsymmetricWaker",
        "NetTraffic",
        "IrqWake",
    ];
    WorkType::ALL_NAMES
        .into_iter()
        .filter(move |name| !not_here.contains(name))
        .map(|name| WorkType::from_name(name).unwrap())
}

fn all_in_mode(mode: &CloneMode) {
    for work_type in harmless() {
        if *mode == CloneMode::Thread && work_type.needs_own_process() {
            continue;
        }
        let name = work_type.name();
        let workers = work_type.group_size() * if work_type.group_size() > 4 { 1 } else { 2 };
        let config = WorkloadConfig { mode: mode.clone(), ..config(workers, work_type) };
        let mut handle = WorkloadHandle::spawn(config).unwrap();
        handle.start().unwrap();
        // Long enough to be in the midst of it when told to stop.
        std::thread::sleep(Duration::from_millis(50));
        work_until(&handle, |report| report.not_run.is_some() || at_work(report));
        let reports = handle.stop_and_collect();
        assert_eq!(reports.len(), workers as usize);
        for report in reports {
            assert_eq!(report.exit, WorkerExit::Completed, "{name}: {report:?}");
            assert_ne!(report.tid, 0, "{name}");
            if report.not_run.is_none() {
                assert!(report.wall_time_ns > 0 && !report.cpus_used.is_empty(), "{name}: {report:?}");
                assert!(report.work_units > 0, "{name} in {mode:?}: {report:?}");
            }
        }
    }
}

#[test]
fn every_kind_of_work_makes_progress_and_stops_when_told_in_processes() {
    all_in_mode(&CloneMode::Fork);
}

#[test]
fn every_kind_of_work_makes_progress_and_stops_when_told_in_threads() {
    all_in_mode(&CloneMode::Thread);
}

#[test]
fn every_kind_of_work_makes_progress_and_stops_when_told_in_one_process() {
    all_in_mode(&CloneMode::Pcomm("host".into()));
}

#[test]
fn every_kind_of_work_counts_a_first_iteration_that_can_be_waited_for() {
    for work_type in harmless() {
        let (name, workers) = (work_type.name(), work_type.group_size());
        let mut handle = WorkloadHandle::spawn(config(workers, work_type)).unwrap();
        handle.start().unwrap();
        handle.await_first_iteration(PATIENCE).unwrap_or_else(|error| panic!("{name}: {error}"));
        for report in handle.snapshot() {
            assert!(report.iterations > 0 || report.not_run.is_some(), "{name}: {report:?}");
        }
    }
}

#[test]
fn a_worker_parks_after_its_iterations_and_goes_on_when_released() {
    let parked =
        |report: &WorkerReport| report.metrics.iter().any(|(name, _)| name == "parked_after_iterations");
    for mode in [CloneMode::Fork, CloneMode::Thread, CloneMode::Pcomm("host".into())] {
        let config = WorkloadConfig { mode, park_after_iterations: Some(3), ..config(2, WorkType::SpinWait) };
        let mut handle = WorkloadHandle::spawn(config.clone()).unwrap();
        handle.start().unwrap();
        work_until(&handle, parked);
        for report in handle.snapshot() {
            assert_eq!(report.iterations, 3, "{report:?}");
        }
        handle.release();
        work_until(&handle, |report| report.iterations > 3);
        for report in handle.stop_and_collect() {
            assert_eq!(report.exit, WorkerExit::Completed);
            assert_eq!(report.metrics, [("parked_after_iterations".to_owned(), 3.0)]);
        }
        // One that is parked ends when it is told to.
        for report in run(config, parked) {
            assert_eq!((report.exit, report.iterations), (WorkerExit::Completed, 3));
        }
    }
}

#[test]
fn what_would_not_park_as_a_whole_is_refused() {
    let threads = harmless().find(WorkType::has_threads).expect("work with threads of its own");
    let config = WorkloadConfig { park_after_iterations: Some(1), ..config(threads.group_size(), threads) };
    assert!(matches!(WorkloadHandle::spawn(config), Err(WorkError::Parks { .. })));
}

#[test]
fn who_does_no_first_iteration_is_named() {
    fn never(ctx: &mut WorkerCtx<'_, '_>) {
        while !ctx.stopped() {
            ctx.sleep(Duration::from_millis(1));
        }
    }
    let idle = Custom::new("never", never);
    let mut handle = WorkloadHandle::spawn(config(2, WorkType::Custom(idle))).unwrap();
    handle.start().unwrap();
    let error = handle.await_first_iteration(Duration::from_millis(50)).unwrap_err().to_string();
    let tids = handle.tids();
    assert!(error.starts_with("2 of 2 workers of cgroup `cg` did no first iteration within "), "{error}");
    assert!(error.ends_with(&format!("worker 0 (tid {}), worker 1 (tid {})", tids[0], tids[1])), "{error}");
}

#[test]
fn the_same_seed_chooses_the_same() {
    fn choose(ctx: &mut WorkerCtx<'_, '_>) {
        let drawn = ctx.rng().below(1 << 40);
        ctx.did(drawn, 1);
        while !ctx.stopped() {
            ctx.sleep(Duration::from_millis(5));
        }
    }
    let draw = |seed| {
        let config = WorkloadConfig { seed, ..config(2, WorkType::Custom(Custom::new("choose", choose))) };
        run(config, at_work).iter().map(|report| report.work_units).collect::<Vec<_>>()
    };
    let first = draw(7);
    assert_eq!(first, draw(7));
    assert_ne!(first, draw(8));
    assert_ne!(first[0], first[1], "workers choose apart");
}

#[test]
fn a_pcomm_process_hosts_all_workers_under_its_name() {
    let attributes = vec![Attributes { comm: Some("worker-0".into()), ..Attributes::default() }];
    let mode = CloneMode::Pcomm("the-host".into());
    let mut handle =
        WorkloadHandle::spawn(WorkloadConfig { mode, attributes, ..config(2, WorkType::SpinWait) }).unwrap();
    handle.start().unwrap();
    assert_eq!(handle.pids().len(), 1);
    let comm =
        |tid: u32| std::fs::read_to_string(format!("/proc/{}/task/{tid}/comm", handle.pids()[0])).unwrap();
    assert_eq!(comm(handle.pids()[0]), "the-host\n");
    assert_eq!(comm(handle.tids()[0]), "worker-0\n");
    let reports = handle.stop_and_collect();
    assert_eq!(reports[1].exit, WorkerExit::Completed);
}

/// Two workloads in one process, parked.
fn sharing() -> (WorkloadHandle, WorkloadHandle) {
    let mode = CloneMode::Pcomm("the-host".into());
    let configs = [config(2, WorkType::SpinWait), config(4, WorkType::PipeIo { burst_iters: 64 })];
    let configs = configs.map(|config| WorkloadConfig { mode: mode.clone(), ..config });
    let mut handles = WorkloadHandle::spawn_sharing(configs.into()).unwrap();
    let second = handles.pop().unwrap();
    (handles.pop().unwrap(), second)
}

#[test]
fn workloads_that_share_a_process_stop_one_by_one() {
    let (mut first, mut second) = sharing();
    assert_eq!((first.pids(), first.pids().len()), (second.pids(), 1));
    first.start().unwrap();
    second.start().unwrap();
    work_until(&first, at_work);
    work_until(&second, at_work);
    let pid = first.pids()[0];
    let reports = first.stop_and_collect();
    assert_eq!(reports.len(), 2);
    assert!(reports.iter().all(|report| report.exit == WorkerExit::Completed), "{reports:?}");
    let before = second.iterations();
    work_until(&second, |_| second.iterations() > before);
    let reports = second.stop_and_collect();
    assert!(reports.iter().all(|report| report.exit == WorkerExit::Completed), "{reports:?}");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the process ended with the last");
}

#[test]
fn a_shared_process_ends_with_the_last_that_is_dropped() {
    let (first, mut second) = sharing();
    second.start().unwrap();
    let path = format!("/proc/{}", second.pids()[0]);
    // Parked, never started.
    drop(first);
    assert!(std::path::Path::new(&path).exists());
    work_until(&second, at_work);
    drop(second);
    assert!(!std::path::Path::new(&path).exists());
}

#[test]
fn only_workloads_made_for_it_share_a_process() {
    let host = |name: &str| CloneMode::Pcomm(name.into());
    for modes in [[host("a"), host("b")], [host("a"), CloneMode::Fork], [CloneMode::Fork, host("a")]] {
        let configs = modes.map(|mode| WorkloadConfig { mode, ..config(1, WorkType::SpinWait) });
        assert!(matches!(WorkloadHandle::spawn_sharing(configs.into()), Err(WorkError::Unshared)));
    }
    assert!(WorkloadHandle::spawn_sharing(Vec::new()).unwrap().is_empty());
}

#[test]
fn workers_that_block_say_so_and_a_duty_cycle_is_kept() {
    let work_type = WorkType::Bursty {
        burst_duration: Duration::from_millis(5),
        sleep_duration: Duration::from_millis(20),
    };
    let reports = run(config(1, work_type), |report| report.iterations >= 10);
    // The stop cuts the last sleep short.
    let slept = (reports[0].iterations - 1) * 20_000_000;
    assert!(reports[0].voluntary_off_cpu_ns > slept / 10 * 9, "{reports:?}");
    let duty = reports[0].duty.unwrap();
    assert!((duty.requested_pct - 20.0).abs() < 0.1, "{duty:?}");
    // A busy host gives less, never more.
    assert!(duty.achieved_pct > 0.0 && duty.achieved_pct < 24.0, "{duty:?}");
    assert!(reports[0].wake_latency.count() > 3, "{:?}", reports[0].wake_latency);
}

#[test]
fn a_wake_latency_is_measured_from_the_wake_and_not_from_the_block() {
    let spin_iters = 2_000_000;
    let often = |report: &WorkerReport| report.wake_latency.count() >= 20;
    let reports = run(config(2, WorkType::FutexPingPong { spin_iters }), often);
    // Who blocks waits for the partner's wake, the partner's work and its own wake. On a busy host wakes
    // may take longer than work, but not the wakes of both more than half of the whole.
    let halves = reports.iter().map(|report| {
        let (wake, block) = (report.wake_latency.quantile(0.5), report.block_time.quantile(0.5));
        let (wake, block) = (wake.expect("it was woken"), block.expect("it blocked"));
        println!("woken after {wake} ns of {block} ns");
        wake * 2 < block
    });
    assert!(halves.collect::<Vec<_>>().contains(&true), "blocked as long as it took to wake");
}

/// Two others go on with the lock meanwhile, so its last hand-over is always a moment ago.
#[test]
fn a_contender_that_is_kept_from_running_is_measured_from_its_own_wake() {
    let work_type = WorkType::MutexContention { contenders: 3, hold_iters: 50_000, work_iters: 1 };
    let mut handle = WorkloadHandle::spawn(config(3, work_type)).unwrap();
    handle.start().unwrap();
    let victim = Pid::from_raw(handle.pids()[0] as i32);
    let of_others = |handle: &WorkloadHandle| {
        handle.snapshot().iter().skip(1).map(|report| report.iterations).sum::<u64>()
    };
    // Stopped while it sleeps, which it does for the lock only, and until others had it.
    let asleep = || {
        let stat = std::fs::read_to_string(format!("/proc/{victim}/stat")).unwrap();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
    };
    let (begun, mut stops) = (Instant::now(), 0);
    while stops < 8 && begun.elapsed() < Duration::from_secs(60) {
        if !asleep() {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        kill(victim, Signal::SIGSTOP).unwrap();
        let before = of_others(&handle);
        std::thread::sleep(Duration::from_millis(60));
        stops += u32::from(of_others(&handle) > before + 2);
        kill(victim, Signal::SIGCONT).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let longest = handle.stop_and_collect()[0].wake_latency.max();
    assert!(stops == 8, "it never waited, or nobody went on: {stops}");
    assert!(longest > 30_000_000, "stopped for 60 ms each time, woken after {longest} ns at most");
}

#[test]
fn figures_of_phases_add_up_to_the_whole() {
    let mut handle = WorkloadHandle::spawn(config(1, WorkType::YieldHeavy)).unwrap();
    handle.start().unwrap();
    // A worker that does not run does not notice that a phase has begun.
    let worked_in = |phase| {
        move |report: &WorkerReport| {
            let slice = report.phases.iter().find(|slice| slice.phase == phase);
            slice.is_some_and(|slice| slice.work_units > 0 && slice.cpu_time_ns > 0)
        }
    };
    for phase in 1..=2 {
        work_until(&handle, worked_in(phase - 1));
        handle.enter_phase(phase);
    }
    work_until(&handle, worked_in(2));
    let report = handle.stop_and_collect().remove(0);
    assert_eq!(report.phases.iter().map(|slice| slice.phase).collect::<Vec<_>>(), [0, 1, 2]);
    for sum in [
        (report.phases.iter().map(|slice| slice.work_units).sum::<u64>(), report.work_units),
        (report.phases.iter().map(|slice| slice.wall_time_ns).sum(), report.wall_time_ns),
        (report.phases.iter().map(|slice| slice.pcount).sum(), report.pcount),
    ] {
        assert_eq!(sum.0, sum.1);
    }
    assert!(report.phases.iter().all(|slice| slice.work_units > 0 && slice.cpu_time_ns > 0));
}

#[test]
fn a_worker_that_dies_is_evidence_and_not_a_hang() {
    let mut handle = WorkloadHandle::spawn(config(2, WorkType::SpinWait)).unwrap();
    handle.start().unwrap();
    kill(pid(&handle, 1), Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let reports = handle.stop_and_collect();
    assert_eq!(reports[0].exit, WorkerExit::Completed);
    assert_eq!(reports[1].exit, WorkerExit::Signaled { signal: 9 });
}

#[test]
fn a_worker_that_panics_says_so_in_every_mode() {
    fn fail(ctx: &mut WorkerCtx<'_, '_>) {
        assert!(ctx.index() != 1, "planted: worker 1 fails");
        while !ctx.stopped() {
            ctx.compute(1000);
            ctx.did(0, 1);
        }
    }
    for mode in [CloneMode::Fork, CloneMode::Thread, CloneMode::Pcomm("host".into())] {
        let config =
            WorkloadConfig { mode: mode.clone(), ..config(2, WorkType::Custom(Custom::new("fail", fail))) };
        let reports = run(config, |_| true);
        assert_eq!(reports[0].exit, WorkerExit::Completed, "{mode:?}");
        assert_eq!(reports[1].exit, WorkerExit::Panicked, "{mode:?}");
        assert_eq!(reports[0].work_type, "fail");
    }
}

#[test]
fn a_worker_that_ends_before_it_is_told_to_is_not_complete() {
    let config = config(1, WorkType::Custom(Custom::new("early", |_| {})));
    let ended = WorkerExit::Exited { code: 0 };
    assert_eq!(run(config, |report| report.exit == ended)[0].exit, ended);
}

#[test]
fn one_partner_that_dies_does_not_keep_the_other() {
    for work_type in [WorkType::pipe_io(), WorkType::futex_ping_pong()] {
        let mut handle = WorkloadHandle::spawn(config(2, work_type)).unwrap();
        handle.start().unwrap();
        kill(pid(&handle, 0), Signal::SIGKILL).unwrap();
        let reports = handle.stop_and_collect();
        assert_eq!(reports[0].exit, WorkerExit::Signaled { signal: 9 });
        assert_ne!(reports[1].exit, WorkerExit::TimedOut);
    }
}

#[test]
fn partners_end_in_any_order_and_are_not_killed_by_each_other() {
    // As before `main`, where nothing has told the system to spare writers of closed pipes.
    // SAFETY: restores the default disposition; no other code of this test depends on it.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
    for _ in 0..20 {
        let config = config(4, WorkType::PipeIo { burst_iters: 100_000 });
        for report in run(config, at_work) {
            assert_eq!(report.exit, WorkerExit::Completed, "{report:?}");
        }
    }
}

#[test]
fn a_worker_that_does_not_stop_is_killed_after_the_timeout() {
    let mut handle = WorkloadHandle::spawn(config(1, WorkType::SpinWait)).unwrap();
    handle.start().unwrap();
    while handle.iterations() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(pid(&handle, 0), Signal::SIGSTOP).unwrap();
    let reports = handle.stop_and_collect();
    assert_eq!(reports[0].exit, WorkerExit::TimedOut);
    assert!(reports[0].max_gap_ns >= STOP_TIMEOUT.as_nanos() as u64, "{}", reports[0].max_gap_ns);
}

#[test]
fn dropping_a_handle_leaves_no_worker_nor_what_it_forked() {
    #[expect(clippy::zombie_processes, reason = "that it is left behind is what is tested")]
    fn fork_a_sleeper(ctx: &mut WorkerCtx<'_, '_>) {
        let sleeper = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep starts");
        ctx.did(u64::from(sleeper.id()), 1);
        while !ctx.stopped() {
            ctx.sleep(Duration::from_millis(5));
        }
    }
    let work_type = WorkType::Custom(Custom::new("forks", fork_a_sleeper));
    let mut handle = WorkloadHandle::spawn(config(1, work_type)).unwrap();
    handle.start().unwrap();
    let sleeper = loop {
        let figures = handle.snapshot();
        if figures[0].work_units > 0 {
            break figures[0].work_units as i32;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let worker = pid(&handle, 0);
    drop(handle);
    assert_eq!(kill(worker, None), Err(Errno::ESRCH));
    // An orphan is reaped by init, which takes a moment.
    let gone = |pid: i32| match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => true,
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
    };
    let until = Instant::now() + PATIENCE;
    while !gone(sleeper) {
        assert!(Instant::now() < until, "process {sleeper} is left");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_worker_that_is_refused_what_it_asks_for_is_an_error_at_once() {
    let attributes = vec![Attributes::default(), Attributes { affinity: vec![511], ..Attributes::default() }];
    for mode in [CloneMode::Fork, CloneMode::Thread, CloneMode::Pcomm("host".into())] {
        let config = WorkloadConfig { attributes: attributes.clone(), mode, ..config(2, WorkType::SpinWait) };
        let error = WorkloadHandle::spawn(config).unwrap().start().unwrap_err().to_string();
        assert!(error.contains("worker 1 of cgroup `cg`") && error.contains("CPUs 511"), "{error}");
    }
}

#[test]
fn what_makes_no_work_is_refused_before_anything_is_made() {
    let refused = |config: WorkloadConfig| {
        let error = WorkloadHandle::spawn(config).err().unwrap();
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    };
    assert!(
        refused(config(3, WorkType::pipe_io()))
            .starts_with("PipeIo works in groups of 2: 3 workers cannot be divided into such groups")
    );
    let threads = WorkloadConfig { mode: CloneMode::Thread, ..config(1, WorkType::ForkExit) };
    assert!(refused(threads).starts_with("ForkExit forks or moves its process"));
    let nobody = WorkType::FutexFanOut { fan_out: 0, spin_iters: 1 };
    assert!(refused(config(1, nobody)).contains("FutexFanOut with fan_out = 0: it must be at least 1"));
}
