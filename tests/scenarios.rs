//! The scenario engine on a real kernel: each test states inside the guest what its workers must show.

use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Instant,
};

use ktstr::prelude::*;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Workers stay where their cgroup's cpuset puts them.
#[ktstr_test(llcs = 2, cores = 1, threads = 2, duration_s = 1)]
fn cpusets_are_kept(ctx: &Ctx) -> Result<AssertResult> {
    let result = execute_defs(
        ctx,
        vec![
            CgroupDef::named("first").workers(2).cpuset(CpusetSpec::Llc(0)),
            CgroupDef::named("second").workers(2).cpuset(CpusetSpec::Llc(1)),
        ],
    )?;
    for worker in &result.stats.workers {
        let allowed: &[u32] = if worker.cgroup == "first" { &[0, 1] } else { &[2, 3] };
        ensure!(worker.cpus_allowed == allowed, "{worker:?}");
        ensure!(worker.cpus_used.iter().all(|cpu| allowed.contains(cpu)), "{worker:?}");
    }
    ensure!(!ctx.cgroups.path("first").exists(), "the cgroup was left behind");
    Ok(result)
}

/// Workers of one cgroup, started by hand.
fn spinners(ctx: &Ctx, cgroup: &str, cpus_allowed: Vec<u32>) -> Result<WorkloadHandle> {
    let config = WorkloadConfig {
        workers: 2,
        work_type: WorkType::SpinWait,
        cgroup: cgroup.into(),
        cpus_allowed,
        seed: ctx.seed,
        ..WorkloadConfig::default()
    };
    let handle = WorkloadHandle::spawn(config)?;
    for pid in handle.pids() {
        ctx.cgroups.move_process(cgroup, pid)?;
    }
    Ok(handle)
}

/// Waits for what comes soon; on a host that is stopped for seconds it takes seconds.
fn until(what: &str, mut reached: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !reached()? {
        ensure!(begun.elapsed() < Duration::from_secs(60), "it never came that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A fault that is planted is found, under its own name.
#[ktstr_test(llcs = 1, cores = 2, threads = 1, max_gap_ms = 500, duration_s = 1)]
fn planted_faults_are_found(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.enable(&["cpu"])?;
    let mut group = CgroupGroup::new(&ctx.cgroups);
    group.add("frozen")?;
    group.add("astray")?;
    let mut frozen = spinners(ctx, "frozen", Vec::new())?;
    let mut astray = spinners(ctx, "astray", vec![400])?;
    frozen.start()?;
    astray.start()?;
    // A worker that never ran has neither a gap nor a CPU it was seen on.
    until("all are at work", || {
        let figures = [frozen.snapshot(), astray.snapshot()].concat();
        Ok(figures.iter().all(|worker| worker.work_units > 0))
    })?;
    let freezer = ctx.cgroups.path("frozen").join("cgroup.freeze");
    std::fs::write(&freezer, "1")?;
    let events = ctx.cgroups.path("frozen").join("cgroup.events");
    until("they are frozen", || Ok(std::fs::read_to_string(&events)?.contains("frozen 1")))?;
    kill(Pid::from_raw(astray.pids()[1] as i32), Signal::SIGKILL)?;
    std::thread::sleep(Duration::from_millis(1500));
    std::fs::write(&freezer, "0")?;
    let mut reports = frozen.stop_and_collect();
    reports.extend(astray.stop_and_collect());
    let found = judge(ctx, reports);
    let count = |kind: DetailKind| found.details.iter().filter(|d| d.kind == kind).count();
    ensure!(count(DetailKind::Gap) >= 2, "frozen workers have a gap: {:#?}", found.details);
    ensure!(count(DetailKind::WorkerDied) == 1, "one worker was killed: {:#?}", found.details);
    ensure!(count(DetailKind::Isolation) == 2, "CPU 400 was never used: {:#?}", found.details);
    group.remove()?;
    Ok(AssertResult::pass())
}

/// Cgroups and workers made by hand are judged as those of the engine, and leave nothing.
#[ktstr_test(llcs = 1, cores = 2, threads = 1, max_gap_ms = 500, duration_s = 1)]
fn work_made_by_hand_is_judged(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.enable(&["cpu"])?;
    let (handles, cgroups) = setup_cgroups(ctx, 2, &dfl_wl(ctx))?;
    std::thread::sleep(ctx.duration);
    let steady = collect_all(handles, &ctx.assert);
    let worked = |cgroup: &str| {
        let here = steady.stats.workers.iter().filter(|worker| worker.cgroup == cgroup);
        here.filter(|worker| worker.work_units > 0).count()
    };
    ensure!((worked("cg_0"), worked("cg_1")) == (2, 2), "{:#?}", steady.stats.workers);
    cgroups.remove()?;
    ensure!(!ctx.cgroups.path("cg_1").exists(), "cg_1 was left behind");

    let names = ["a", "b", "c", "d", "e", "f"];
    let mut cgroups = CgroupGroup::new(&ctx.cgroups);
    names.iter().try_for_each(|name| cgroups.add(name))?;
    let handles = spawn_diverse(ctx, &names)?;
    until("all are at work", || {
        Ok(handles.iter().flat_map(WorkloadHandle::snapshot).all(|worker| worker.work_units > 0))
    })?;
    let freezer = ctx.cgroups.path("a").join("cgroup.freeze");
    std::fs::write(&freezer, "1")?;
    std::thread::sleep(Duration::from_millis(1500));
    std::fs::write(&freezer, "0")?;
    let diverse = collect_all(handles, &ctx.assert);
    let kinds: BTreeSet<&str> =
        diverse.stats.workers.iter().map(|worker| worker.work_type.as_str()).collect();
    ensure!(kinds.len() == 5, "{kinds:?}");
    let late: Vec<_> = diverse.details.iter().filter(|d| d.kind == DetailKind::Gap).collect();
    ensure!(late.iter().any(|detail| detail.message.ends_with(" in a")), "frozen a is not named: {late:#?}");
    cgroups.remove()?;
    let misspelt = spawn_diverse(ctx, &["a"]).err().context("cgroup a is gone")?;
    ensure!(format!("{:#}", anyhow::Error::from(misspelt)).contains("/a"), "the cgroup is named");
    Ok(steady)
}

/// What each cgroup's one worker shows of itself in `/proc`.
fn look_at(ctx: &Ctx, cgroup: &str) -> Result<(String, String, String)> {
    let pids = ctx.cgroups.processes(cgroup)?;
    let pid = pids.first().with_context(|| format!("{cgroup} is empty"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key));
        value.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let policy = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(38));
    Ok((line("Name:"), line("Cpus_allowed_list:"), policy.unwrap_or_default().to_owned()))
}

/// Runs a scenario and looks at it meanwhile on another thread, until what is looked for is there or the scenario is over.
fn watched<T: Send>(
    ctx: &Ctx,
    steps: Vec<Step>,
    look: impl Fn() -> Result<T> + Send + Sync,
) -> Result<(AssertResult, T)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            loop {
                match look() {
                    // Workers need a while to become what they should be, and then are it for the whole step.
                    Err(_) if !over.load(SeqCst) => std::thread::sleep(Duration::from_millis(20)),
                    seen => return seen,
                }
            }
        });
        let result = execute_steps(ctx, steps);
        over.store(true, SeqCst);
        let result = result?;
        let seen = watcher.join().map_err(|_| anyhow!("the watcher panicked"))??;
        Ok((result, seen))
    })
}

/// Everything a cgroup definition says reaches the kernel.
#[ktstr_test(llcs = 2, cores = 2, threads = 1, duration_s = 1)]
fn what_a_definition_says_reaches_the_kernel(ctx: &Ctx) -> Result<AssertResult> {
    let defs = vec![
        CgroupDef::named("named").workers(1).comm("renamed").nice(5).cpuset(CpusetSpec::Llc(1)),
        CgroupDef::named("batch").workers(1).sched_policy(SchedPolicy::Batch),
        CgroupDef::named("fifo")
            .workers(1)
            .sched_policy(SchedPolicy::Fifo(1))
            .cpuset(CpusetSpec::exact([3]))
            .work_type(WorkType::bursty()),
        CgroupDef::named("limited")
            .workers(1)
            .cpu_quota_pct(20)
            .cpu_weight(50)
            .memory_max(64 << 20)
            .pids_max(9)
            .affinity(AffinityIntent::exact([2])),
        CgroupDef::named("hosted")
            .pcomm("the-host")
            .work(WorkSpec::new(WorkType::pipe_io()).workers(2))
            .work(WorkSpec::new(WorkType::bursty()).workers(1)),
        CgroupDef::empty("outer"),
        CgroupDef::named("outer/inner").workers(1).mem_policy(MemPolicy::Bind([0].into())),
    ];
    let deadline =
        SchedPolicy::deadline(Duration::from_millis(5), Duration::from_millis(50), Duration::from_millis(50));
    let hold = Duration::from_secs(3);
    let steps = vec![
        Step::with_defs(defs, HoldSpec::fixed(hold))
            .push_op(Op::spawn_host(WorkSpec::default().workers(1).sched_policy(deadline).comm("dl"))),
    ];
    let (result, ()) = watched(ctx, steps, || {
        ensure!(
            look_at(ctx, "named")? == ("renamed".into(), "2-3".into(), "0".into()),
            "{:?}",
            look_at(ctx, "named")?
        );
        ensure!(look_at(ctx, "batch")?.2 == "3", "{:?}", look_at(ctx, "batch")?);
        ensure!(
            look_at(ctx, "fifo")?.2 == "1" && look_at(ctx, "fifo")?.1 == "3",
            "{:?}",
            look_at(ctx, "fifo")?
        );
        ensure!(look_at(ctx, "limited")?.1 == "2", "{:?}", look_at(ctx, "limited")?);
        let hosts = ctx.cgroups.processes("hosted")?;
        ensure!(hosts.len() == 1 && look_at(ctx, "hosted")?.0 == "the-host", "{:?}", look_at(ctx, "hosted")?);
        let threads = std::fs::read_dir(format!("/proc/{}/task", hosts[0]))?.count();
        ensure!(threads == 4, "the leader and three workers of two groups are {threads} threads");
        ensure!(ctx.cgroups.processes("outer/inner")?.len() == 1, "the nested cgroup has its worker");
        let file = |name: &str| std::fs::read_to_string(ctx.cgroups.path("limited").join(name));
        ensure!(file("cpu.max")?.trim() == "20000 100000" && file("pids.max")?.trim() == "9");
        ensure!(file("memory.max")?.trim() == "67108864" && file("cpu.weight")?.trim() == "50");
        Ok(())
    })?;
    let hosted = result.stats.phase_cgroup(Phase::step(0), "hosted").context("hosted in the step")?;
    let latencies = [hosted.median_wake_latency_ns, hosted.p99_wake_latency_ns, hosted.max_wake_latency_ns];
    ensure!(hosted.workers == 3 && hosted.wakes > 0 && hosted.pcount > 0, "{hosted:?}");
    ensure!(latencies[0] > 0 && latencies.is_sorted(), "{hosted:?}");
    let limited = result.stats.workers.iter().find(|w| w.cgroup == "limited").context("no such worker")?;
    let share = limited.cpu_time_ns * 100 / limited.wall_time_ns.max(1);
    ensure!(share <= 35, "20 % of one CPU were allowed, {share} % were used");
    let dl = result.stats.workers.iter().find(|w| w.cgroup == "(runner)").context("no runner worker")?;
    ensure!(dl.cpu_time_ns * 100 / dl.wall_time_ns.max(1) <= 25, "{dl:?}");
    Ok(result)
}

/// Each operation does what it says, and what it leaves behind is gone afterwards.
#[ktstr_test(llcs = 2, cores = 2, threads = 1, duration_s = 4)]
fn operations_do_what_they_say(ctx: &Ctx) -> Result<AssertResult> {
    let short = HoldSpec::fixed(Duration::from_millis(400));
    let backdrop = Backdrop::new()
        .push_cgroup(CgroupDef::named("base").workers(2).cpuset(CpusetSpec::Llc(0)))
        .push_cgroup(CgroupDef::named("peer").workers(1).cpuset(CpusetSpec::Llc(1)))
        .push_op(Op::add_cgroup("spare"));
    let steps = vec![
        Step::new(vec![Op::swap_cpusets("base", "peer")], short),
        Step::new(vec![Op::set_cpuset("base", CpusetSpec::exact([1])), Op::clear_cpuset("peer")], short),
        Step::new(vec![Op::freeze_cgroup("base")], short),
        Step::new(vec![Op::unfreeze_cgroup("base"), Op::offline_cpu(3)], short),
        Step::new(vec![Op::online_cpu(3), Op::move_all_tasks("peer", "spare")], short),
        Step::with_defs(vec![CgroupDef::named("guest").workers(2)], short)
            .push_op(Op::set_affinity("base", AffinityIntent::SingleCpu)),
        Step::new(
            vec![
                Op::AddCgroup { name: "churn".into() },
                Op::spawn_workers("churn", WorkSpec::default().workers(1)),
                Op::remove_cgroup("churn"),
            ],
            HoldSpec::loop_at(Duration::from_millis(200)),
        ),
        Step::new(vec![Op::stop_cgroup("base")], short),
    ];
    let result = execute_scenario(ctx, backdrop, steps)?;
    let stats = &result.stats;
    ensure!(stats.phases.len() == 9, "baseline and eight steps: {:#?}", stats.phases);
    let frozen = stats.phase_cgroup(Phase::step(2), "base").context("base in step 2")?;
    // Two workers, who may have worked until they were frozen; then they were held for all of `short`.
    let phase_ms = stats.phase(Phase::step(2)).map_or(0, |phase| phase.duration_ms());
    let before_ms = phase_ms.saturating_sub(400);
    let worked_ms = frozen.cpu_time_ns / 1_000_000;
    ensure!(worked_ms <= 2 * before_ms + 100, "frozen workers worked: {frozen:?} in {phase_ms} ms");
    let after = stats.phase_cgroup(Phase::step(3), "base").context("base in step 3")?;
    ensure!(after.iterations > 0, "thawed workers did not work: {after:?}");
    ensure!(stats.phase_cgroup(Phase::step(6), "churn").is_some(), "the loop made workers");
    ensure!(stats.phase_cgroup(Phase::step(0), "guest").is_none(), "step-local cgroups stay in their step");
    for worker in &stats.workers {
        match worker.cgroup.as_str() {
            "base" => ensure!(worker.cpus_allowed == [0, 1, 2, 3], "{worker:?}"),
            "peer" => ensure!(worker.cpus_allowed.is_empty(), "it was unrestricted for a while: {worker:?}"),
            _ => {}
        }
    }
    for name in ["base", "peer", "spare", "guest", "churn"] {
        ensure!(!ctx.cgroups.path(name).exists(), "{name} was left behind");
    }
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    ensure!(online.trim() == "0-3", "CPUs online: {online}");
    const ECHO: Payload = Payload::binary("echo", "sh")
        .with_default_args(&["-c"])
        .with_output(PayloadOutput::Json)
        .with_checks(&[MetricCheck::min("iops", 3.0)]);
    let (judged, metrics) = ctx.payload(&ECHO).arg("echo '{\"iops\": 4}'").run()?;
    ensure!(judged.is_pass() && metrics.get("iops") == Some(4.0), "{judged:?} {metrics:?}");
    Ok(result)
}

/// A program ends with its cgroup, which is no failure of it; of two with one name the cgroup tells which.
#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 1)]
fn a_program_goes_with_its_cgroup(ctx: &Ctx) -> Result<AssertResult> {
    const SLEEPER: Payload = Payload::binary("sleeper", "sh").with_default_args(&["-c", "exec sleep 1000"]);
    let backdrop = Backdrop::new()
        .push_cgroup(CgroupDef::named("goes").workers(1).workload(&SLEEPER))
        .push_cgroup(CgroupDef::named("stays").workers(1).workload(&SLEEPER));
    let ops = vec![
        Op::kill_payload_in("sleeper", "stays"),
        Op::run_payload_in(&SLEEPER, "stays"),
        Op::remove_cgroup("goes"),
        Op::CaptureCgroupProcs { tag: "left".into(), cgroup: "stays".into() },
    ];
    let result = execute_scenario(ctx, backdrop, vec![Step::new(ops, HoldSpec::FULL)])?;
    let of_programs: Vec<_> = result.details.iter().filter(|d| d.kind == DetailKind::Payload).collect();
    ensure!(of_programs.is_empty(), "they were ended, which is no failure: {of_programs:#?}");
    let ended: Vec<&str> = result.stats.payloads.iter().map(|payload| payload.cgroup.as_str()).collect();
    ensure!(ended == ["stays", "goes", "stays"], "in this order: {ended:?}");
    Ok(result)
}

/// Partners need each other.
#[ktstr_test(llcs = 1, cores = 1, threads = 1, duration_s = 1)]
fn an_odd_number_of_partners_is_refused(ctx: &Ctx) -> Result<AssertResult> {
    let defs = vec![CgroupDef::named("odd").workers(3).work_type(WorkType::pipe_io())];
    let error = execute_defs(ctx, defs).err().context("three workers cannot be pairs")?;
    ensure!(format!("{error:#}").contains("PipeIo works in groups of 2"), "{error:#}");
    Ok(AssertResult::pass())
}
