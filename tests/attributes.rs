//! Attributes of tests on a real kernel: programs beside the workers, files for them, expected failures,
//! a look at the run from the host, schedulers that take over.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use ktstr::{host::KTSTR_TESTS, prelude::*};

declare_scheduler!(SCX_KTSTR, {
    name = "scx-ktstr",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sysctls = [Sysctl::new("kernel.panic_on_warn", "0"), Sysctl::new("kernel.threads-max", "4321")],
    cgroup_parent = "/ktstr.slice/tests",
});
declare_scheduler!(OTHER, { name = "other", binary = "scx-ktstr", sched_args = ["--slice-us", "5000"] });
declare_scheduler!(UNWILLING, { name = "unwilling", binary = "scx-ktstr", sched_args = ["--fail-init"] });
declare_scheduler!(BROKEN, { name = "broken", binary = "scx-ktstr", sched_args = ["--fail-verify"] });
declare_scheduler!(CONFIGURED, {
    name = "configured",
    binary = "scx-ktstr",
    config_file_def = ("--config {file}", "/include-files/scx-ktstr.conf"),
});

declare_scheduler!(ERRS, { name = "errs", binary = "scx-ktstr", sched_args = ["--crash-after", "1000"] });

declare_scheduler!(IN_THE_KERNEL, {
    name = "short-turns",
    kernel_builtin_enable = ["cd /proc/sys/kernel; cat sched_rr_timeslice_ms; echo 40 > sched_rr_timeslice_ms"],
    kernel_builtin_disable = ["echo turns of $(cat /proc/sys/kernel/sched_rr_timeslice_ms) ms end"],
});

declare_scheduler!(WITHOUT_PARITY, {
    name = "without-parity",
    kernel_builtin_enable = ["echo NO_RUN_TO_PARITY > /sys/kernel/debug/sched/features"],
    kernel_builtin_disable = [
        "echo RUN_TO_PARITY > /sys/kernel/debug/sched/features",
        "cat /sys/kernel/debug/sched/features"
    ],
});
declare_scheduler!(WITHOUT_SWITCH, {
    name = "without-switch",
    kernel_builtin_enable = ["true", "echo no such switch >&2; exit 3", "echo never > /dev/kmsg"],
    kernel_builtin_disable = ["true"],
});

/// Prints JSON and the size of a file it was given.
#[derive(Payload)]
#[payload(binary = "sh", name = "probe", output = Json)]
#[default_args("-c", "echo '{\"lines\": '$(wc -l < /include-files/Cargo.toml)'}'; exit 3")]
#[default_check(min("lines", 10.0))]
#[default_check(exit_code_eq(3))]
#[metric(name = "lines", polarity = Informational, unit = "lines")]
#[include_files("Cargo.toml")]
struct ProbePayload;

fn looks_right(vm: &VmResult) -> Result<()> {
    let stats = vm.stats().context("the run has figures")?;
    let mut verdict = Verdict::new();
    let probe = claim_present!(verdict, stats.payload("probe")).context("no probe")?;
    claim!(verdict, probe.get("lines").unwrap_or(0.0)).at_least(10.0);
    claim!(verdict, stats.phases.len()).equals(5);
    claim!(verdict, vm.console()?.len()).above(0);
    claim_set!(verdict, stats.workers.iter().map(|w| w.cgroup.clone())).equals(["cg_0".to_owned()]);
    verdict.into_anyhow_or_log()
}

/// Five looks at the scheduler's own figures; a claim that does not hold says where and when.
fn sees_counters_rise(vm: &VmResult) -> Result<()> {
    let bridge = vm.snapshot_bridge();
    let series = vm.snapshots();
    let mut verdict = Verdict::new();
    claim!(verdict, bridge.periodic_target()).equals(4);
    // A busy host may leave time for fewer; those that were not taken are places without values.
    claim!(verdict, bridge.periodic_real()).at_least(2);
    let enqueued = series.var_u64("nr_enqueued");
    enqueued.nondecreasing(&mut verdict);
    let values: Vec<u64> = enqueued.values().copied().collect();
    claim!(verdict, values.last()).above(values.first());
    println!("nr_enqueued: {values:?}");
    for snapshot in series.snapshots().iter().filter(|snapshot| snapshot.json().is_ok()) {
        println!("{} at {:.0} ms, stood {} us", snapshot.tag(), snapshot.at_ms(), snapshot.mark().stood_us);
        claim!(verdict, snapshot.kernel("rq[1].cpu")?.as_u64()?).equals(1);
        let limit = snapshot.kernel("scx.watchdog_timeout_jiffies")?.as_u64()?;
        claim!(verdict, limit).equals(45 * snapshot.kernel("hz")?.as_u64()?);
    }

    let mut wrong = Verdict::new();
    enqueued.each(&mut wrong).at_most(0);
    let said = wrong.into_anyhow_or_log().expect_err("the scheduler has enqueued something").to_string();
    let first = enqueued.points().iter().find(|point| point.value.is_ok()).context("no value")?;
    let evidence = format!("nr_enqueued is {} at {}, claimed at most 0", values[0], first.place());
    claim!(verdict, said == evidence || said.starts_with("nr_enqueued: no value")).equals(true);
    println!("{said}");
    let taken = series.snapshots().iter().find(|snapshot| snapshot.json().is_ok()).context("none")?;
    let said = taken.var("nr_enqeued").expect_err("there is no such variable").to_string();
    claim!(verdict, said.contains("nearest: nr_enqueued")).equals(true);
    verdict.into_anyhow_or_log()
}

#[ktstr_test(
    scheduler = SCX_KTSTR,
    num_snapshots = 4,
    watchdog_timeout_s = 45,
    duration_s = 4,
    post_vm = sees_counters_rise
)]
fn counters_are_seen_rising(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

/// One boot for everything that can stand together.
#[ktstr_test(
    scheduler = SCX_KTSTR,
    staged_schedulers = [OTHER, BROKEN, UNWILLING],
    payload = PROBE,
    workers_per_cgroup = 3,
    post_vm = looks_right,
    duration_s = 4,
    max_cpus = 2,
    max_spread_pct = 90,
    kaslr = false
)]
fn everything_reaches_the_guest(ctx: &Ctx) -> Result<AssertResult> {
    let threads = std::fs::read_to_string("/proc/sys/kernel/threads-max")?;
    ensure!(threads.trim() == "4321", "sysctl of the scheduler: {threads}");
    ensure!(std::fs::read_to_string("/proc/cmdline")?.contains("nokaslr"));
    ensure!(ctx.cgroups.root().ends_with("ktstr.slice/tests"), "{:?}", ctx.cgroups);
    let state = || std::fs::read_to_string("/sys/kernel/sched_ext/state").map(|s| s.trim().to_owned());
    ensure!(state()? == "enabled");
    let backdrop = Backdrop::from_cgroups(vec![CgroupDef::named("cg_0")]);
    let quarter = HoldSpec::frac(0.25);
    let steps = vec![
        Step::hold(quarter),
        Step::with_op(Op::DetachScheduler, quarter),
        Step::with_op(Op::AttachScheduler, quarter),
        Step::with_op(Op::replace_scheduler("other"), quarter),
    ];
    let result = execute_scenario(ctx, backdrop, steps)?;
    ensure!(state()? == "enabled", "the scheduler that took over is in charge");
    // What does not attach is told to the test, which may go on, whether or not the kernel has heard of it.
    for (name, said) in [("broken", "before it attached"), ("unwilling", "the kernel said: ")] {
        let step = Step::with_op(Op::replace_scheduler(name), quarter);
        let error = execute_scenario(ctx, Backdrop::new(), vec![step]).err().context("it attached")?;
        let error = format!("{error:#}");
        ensure!(error.contains(name) && error.contains(said) && state()? == "disabled", "{error}");
    }
    let again = Step::with_op(Op::AttachScheduler, HoldSpec::frac(0.0));
    ensure!(!execute_scenario(ctx, Backdrop::new(), vec![again])?.is_fail());
    ensure!(state()? == "enabled", "the test's own is back");
    ensure!(result.stats.workers.len() == 3, "{:?}", result.stats.workers.len());
    Ok(result)
}

/// A failure that is expected, with the words it must come with; only its configuration makes it crash.
#[ktstr_test(
    scheduler = CONFIGURED,
    config = "--crash-after 1500\n",
    duration_s = 20,
    expect_err,
    expect_scx_bpf_error_contains = "ktstr",
    expect_scx_bpf_error_matches = "(?i)crash"
)]
fn an_expected_crash_passes(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

fn tells_the_crash(vm: &VmResult) -> Result<()> {
    let repro = vm.report.auto_repro.as_ref().context("a second run")?;
    ensure!(repro.end.as_ref().is_some_and(|end| end.fired), "{:?}", repro.end);
    ensure!(repro.seen.iter().any(|seen| seen.site == "scx_bpf_error_bstr"), "the call that raised it");
    Ok(())
}

/// A crash that the second run must catch: then the test passes.
#[ktstr_test(scheduler = ERRS, duration_s = 30, expect_auto_repro, post_vm = tells_the_crash)]
fn a_crash_is_looked_into_as_it_must_be(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

/// Whether [`nothing_to_look_into`] ran at all.
static RAN: AtomicBool = AtomicBool::new(false);

fn it_ran(_: &VmResult) -> Result<()> {
    RAN.store(true, SeqCst);
    Ok(())
}

/// Nothing crashes, so that nothing can be looked into; run by the test below.
#[ktstr_test(scheduler = OTHER, duration_s = 1, expect_auto_repro, post_vm_unconditional = it_ran, ignore)]
fn nothing_to_look_into(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

#[test]
fn without_a_crash_a_second_run_cannot_be_expected() {
    let entry = KTSTR_TESTS.iter().find(|entry| entry.name == "nothing_to_look_into").expect("registered");
    let ended = ktstr::host::run_variant(entry, &ktstr::host::Variant::of(entry));
    if RAN.load(SeqCst) {
        assert_eq!(ended, Err("failed".to_owned()));
    } else {
        assert_eq!(ended, Ok(()), "what could not be run is no failure, unless it is required");
    }
}

/// A name that is not there is an error before anything runs.
#[ktstr_test(host_only)]
fn a_mistyped_name_is_an_error_at_once(ctx: &Ctx) -> Result<AssertResult> {
    let step = Step::with_op(Op::stop_cgroup("cg_O"), HoldSpec::FULL);
    let backdrop = Backdrop::from_cgroups(vec![CgroupDef::named("cg_0")]);
    let error = execute_scenario(ctx, backdrop, vec![step]).err().context("there is no cg_O")?;
    ensure!(format!("{error:#}").contains("did you mean `cg_0`?"), "{error:#}");
    Ok(AssertResult::pass())
}

#[test]
fn attributes_are_in_the_entry() {
    let entry = KTSTR_TESTS.iter().find(|e| e.name == "everything_reaches_the_guest").expect("registered");
    assert_eq!(entry.constraints.max_cpus, Some(2));
    assert_eq!(entry.payloads().map(|p| p.name).collect::<Vec<_>>(), ["probe"]);
    assert_eq!(entry.validate(), Ok(()));
}

fn was_switched_off(vm: &VmResult) -> Result<()> {
    let log = vm.scheduler_log();
    ensure!(log.iter().any(|line| line.contains("turns of 40 ms end")), "{log:?}");
    Ok(())
}

fn has_parity_again(vm: &VmResult) -> Result<()> {
    let log = vm.scheduler_log();
    let again = |line: &String| line.split_whitespace().any(|feature| feature == "RUN_TO_PARITY");
    ensure!(log.iter().any(again), "{log:?}");
    Ok(())
}

/// A feature of EEVDF, switched off while the workers run and on again after them.
#[ktstr_test(scheduler = WITHOUT_PARITY, duration_s = 1, post_vm = has_parity_again)]
fn a_feature_of_the_kernels_own_scheduler_is_a_scheduler(ctx: &Ctx) -> Result<AssertResult> {
    let features = std::fs::read_to_string("/sys/kernel/debug/sched/features")?;
    ensure!(features.split_whitespace().any(|feature| feature == "NO_RUN_TO_PARITY"), "{features}");
    scenarios::steady(ctx)
}

/// A command that fails is named with how it ended, and what it said is in the scheduler's log.
#[ktstr_test(
    scheduler = WITHOUT_SWITCH,
    duration_s = 1,
    expect_err,
    expect_scx_bpf_error_contains = "was not switched on: `echo no such switch >&2; exit 3` ",
    expect_scx_bpf_error_matches = "(?m)^no such switch$"
)]
fn a_command_that_fails_is_told_with_its_words(ctx: &Ctx) -> Result<AssertResult> {
    scenarios::steady(ctx)
}

/// Its first iteration is over after most of a second.
fn slow_first(ctx: &mut WorkerCtx<'_, '_>) {
    ctx.sleep(Duration::from_millis(700));
    while !ctx.stopped() {
        ctx.did(1, 1);
        ctx.sleep(Duration::from_millis(5));
    }
}

/// A hold that is over long before the first iteration would be: it begins after it.
#[ktstr_test(duration_s = 1)]
fn a_scenario_waits_for_first_iterations(ctx: &Ctx) -> Result<AssertResult> {
    let work = || WorkType::Custom(Custom::new("slow_first", slow_first));
    let def = CgroupDef::named("cg_0").work_type(work()).workers(2).signal_first_iteration(true);
    let result =
        execute_steps(ctx, vec![Step::with_defs(vec![def], HoldSpec::fixed(Duration::from_millis(50)))])?;
    let iterations: Vec<u64> = result.stats.workers.iter().map(|worker| worker.iterations).collect();
    ensure!(iterations.len() == 2 && iterations.iter().all(|done| *done > 0), "{iterations:?}");

    let config =
        WorkloadConfig { workers: 2, work_type: work(), signal_first_iteration: true, ..dfl_wl(ctx) };
    let mut handle = WorkloadHandle::spawn(config)?;
    handle.start()?;
    let done: Vec<u64> = handle.snapshot().iter().map(|worker| worker.iterations).collect();
    ensure!(done.iter().all(|done| *done > 0), "{done:?}");
    handle.stop_and_collect();
    Ok(result)
}

/// Workers that park sleep in the kernel, are not stuck by that, and go no further.
#[ktstr_test(duration_s = 2)]
fn parked_workers_sleep_until_their_end(ctx: &Ctx) -> Result<AssertResult> {
    let def = CgroupDef::named("cg_0").workers(2).park_after_iterations(5).signal_first_iteration(true);
    let result = execute_defs(ctx, vec![def])?;
    let iterations: Vec<u64> = result.stats.workers.iter().map(|worker| worker.iterations).collect();
    ensure!(iterations.len() == 2 && iterations.iter().all(|done| (1..=5).contains(done)), "{iterations:?}");

    let config = WorkloadConfig { workers: 2, park_after_iterations: Some(5), ..dfl_wl(ctx) };
    let mut handle = WorkloadHandle::spawn(config)?;
    handle.start()?;
    let sleeps = |tid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
    };
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while !(handle.snapshot().iter().all(|worker| worker.iterations == 5) && handle.tids().iter().all(sleeps))
    {
        ensure!(std::time::Instant::now() < until, "{:?}", handle.snapshot());
        std::thread::sleep(Duration::from_millis(10));
    }
    handle.stop_and_collect();
    Ok(result)
}

/// What the kernel has needs no program: commands switch it on and off.
#[ktstr_test(scheduler = IN_THE_KERNEL, duration_s = 1, no_perf_mode, cpu_budget = 1, post_vm = was_switched_off)]
fn commands_switch_the_kernels_own_scheduler(ctx: &Ctx) -> Result<AssertResult> {
    let turn = std::fs::read_to_string("/proc/sys/kernel/sched_rr_timeslice_ms")?;
    let mut verdict = Verdict::new();
    claim!(verdict, turn.trim()).equals("40");
    let mut result = scenarios::steady(ctx)?;
    result.merge(verdict.into_result());
    Ok(result)
}
