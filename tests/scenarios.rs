//! The scenario engine on a real kernel: each test states inside the guest what its workers must show.

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
        attributes: Vec::new(),
    };
    let handle = WorkloadHandle::spawn(config)?;
    for pid in handle.pids() {
        ctx.cgroups.move_process(cgroup, pid)?;
    }
    Ok(handle)
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
    std::thread::sleep(Duration::from_millis(200));
    let freezer = ctx.cgroups.path("frozen").join("cgroup.freeze");
    std::fs::write(&freezer, "1")?;
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

/// Partners need each other.
#[ktstr_test(llcs = 1, cores = 1, threads = 1, duration_s = 1)]
fn an_odd_number_of_partners_is_refused(ctx: &Ctx) -> Result<AssertResult> {
    let defs = vec![CgroupDef::named("odd").workers(3).work_type(WorkType::pipe_io())];
    let error = execute_defs(ctx, defs).err().context("three workers cannot be pairs")?;
    ensure!(format!("{error:#}").contains("PipeIo works in groups of 2"), "{error:#}");
    Ok(AssertResult::pass())
}
