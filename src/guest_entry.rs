//! The guest half of a test executable: PID 1 starts the same executable with `KTSTR_GUEST_TEST=NAME`,
//! and a constructor that runs before `main` runs that one registered test instead of the test harness.
//!
//! It reports through [`Reporter`] and leaves through `exit`; `main` is not reached in the guest. Outside
//! the guest the variable is not set and the constructor does nothing.

use std::{
    backtrace::Backtrace,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind},
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Context;
use ktstr_guest::{
    cgroup::Cgroups,
    cpu,
    job::read_job,
    report::{ReportError, Reporter},
    scenario::{Ctx, HostError},
};
use ktstr_proto::{
    AccelKind,
    guest::{GuestFrame, GuestJob, GuestTask, JOB_PATH, TEST_ENV, TestEnd},
    verdict::{Assert, AssertResult, DetailKind, Outcome, WorkerReport},
};

use crate::host::{KTSTR_TESTS, KtstrTestEntry, bpf_map::write_all};

/// Longest backtrace that is reported, in bytes.
const MAX_BACKTRACE: usize = 64 << 10;
/// Exit status when PID 1 cannot be told anything.
const NO_REPORT: i32 = 2;

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

/// Variable that makes a test executable say what its tests are judged by, as JSON, and end.
const SHOW_ENV: &str = "KTSTR_SHOW_THRESHOLDS";

/// Every registered test with its thresholds under each accelerator.
fn thresholds() -> serde_json::Value {
    let accels = [AccelKind::Kvm, AccelKind::Tcg, AccelKind::Det];
    let of = |entry: &KtstrTestEntry| {
        let said = entry.overrides();
        let rows = accels.map(|accel| {
            let rows = Assert::defaults_for(accel).merge(said).rows();
            let rows: serde_json::Map<String, serde_json::Value> =
                rows.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            (accel.to_string(), serde_json::Value::Object(rows))
        });
        let own: Vec<_> =
            said.rows().into_iter().filter(|(_, v)| v.is_some()).map(|(name, _)| name).collect();
        serde_json::json!({
            "test": entry.full_name(),
            "package": entry.package,
            "scheduler": entry.scheduler.map_or("EEVDF", |scheduler| scheduler.name),
            "own": own,
            "thresholds": serde_json::Map::from_iter(rows),
        })
    };
    KTSTR_TESTS.iter().map(of).collect()
}

extern "C" fn before_main() {
    if std::env::var_os(SHOW_ENV).is_some() {
        println!("{}", thresholds());
        std::process::exit(0);
    }
    if let Some(name) = std::env::var_os(TEST_ENV) {
        // What the standard library does before `main`: a closed pipe is an error, not a death.
        // SAFETY: sets a disposition before any other thread exists; nothing relied on the old one.
        let _ = unsafe {
            nix::sys::signal::signal(nix::sys::signal::SIGPIPE, nix::sys::signal::SigHandler::SigIgn)
        };
        let code = catch_unwind(|| run(&name.to_string_lossy())).unwrap_or(NO_REPORT);
        std::process::exit(code);
    }
    crate::gauntlet::before_main();
}

/// Runs one registered test; the exit status.
fn run(name: &str) -> i32 {
    match carry_out(name) {
        Ok(passed) => i32::from(!passed),
        Err(error) => {
            eprintln!("ktstr: test `{name}` cannot be run in this guest: {error:#}");
            NO_REPORT
        }
    }
}

fn carry_out(name: &str) -> anyhow::Result<bool> {
    let reporter = Reporter::from_env()?;
    let entry = KTSTR_TESTS.iter().find(|entry| entry.full_name() == name);
    let Some(entry) = entry else {
        let mut known: Vec<String> = KTSTR_TESTS.iter().map(KtstrTestEntry::full_name).collect();
        known.sort();
        reporter.send(&GuestFrame::TestEnded(TestEnd::Unknown(known)))?;
        return Ok(false);
    };
    let job = read_job(Path::new(JOB_PATH))?;
    let GuestTask::Test(test) = &job.task else {
        anyhow::bail!("the job at {JOB_PATH} asks for no test");
    };
    let mut ctx = Ctx::of_job(&job, test, reporter);
    prepare(&mut ctx, entry);
    let end = match as_asked(entry, &job, &ctx) {
        Ok(()) => call(entry, &ctx),
        Err(error) => of_error(&ctx, &error),
    };
    let passed = matches!(&end, TestEnd::Returned(result) if result.is_pass() || result.is_skip());
    report(&ctx.reporter, end)?;
    Ok(passed)
}

/// Makes the machine and its scheduler what the test's attributes ask for, as far as that is left to the guest.
fn as_asked(entry: &KtstrTestEntry, job: &GuestJob, ctx: &Ctx) -> anyhow::Result<()> {
    let (asked, possible) = (job.topology.possible_cpus(entry.absent_llcs)?, cpu::possible()?.len());
    if entry.absent_llcs > 0 && possible != asked as usize {
        let reason = format!(
            "absent_llcs: {asked} CPUs should be possible and this kernel says {possible}; newer ones do not count \
             CPUs that an emulator describes as absent, use kvm or an older kernel"
        );
        return Err(HostError::NotHere(reason).into());
    }
    write_all(ctx, entry.bpf_map_write).context("bpf_map_write")
}

/// What no run like this one can do was not tested.
fn of_error(ctx: &Ctx, error: &anyhow::Error) -> TestEnd {
    if error.chain().any(not_here) {
        return TestEnd::Returned(ctx.not_here(format!("{error:#}")));
    }
    TestEnd::Error(error.chain().map(ToString::to_string).collect())
}

/// What the test's attributes say of its context.
pub(crate) fn prepare(ctx: &mut Ctx, entry: &KtstrTestEntry) {
    ctx.payloads = entry.payloads().copied().collect();
    ctx.workers_per_cgroup = entry.workers_per_cgroup.unwrap_or(ctx.workers_per_cgroup);
    let parent = entry.scheduler.and_then(|scheduler| scheduler.cgroup_parent);
    if let Some(root) = entry.workload_root_cgroup.or(parent) {
        ctx.cgroups = Cgroups::under(format!("/sys/fs/cgroup{root}"));
    }
}

/// Calls the test function and catches whatever it does.
fn call(entry: &KtstrTestEntry, ctx: &Ctx) -> TestEnd {
    static FIRST_PANIC: Mutex<Option<(String, String)>> = Mutex::new(None);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let mut first = FIRST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some((panic_message(info), backtrace()));
        }
        drop(first);
        usual(info);
    }));
    match catch_unwind(AssertUnwindSafe(|| (entry.run)(ctx))) {
        Ok(Ok(result)) => TestEnd::Returned(result),
        Ok(Err(error)) => of_error(ctx, &error),
        Err(_) => {
            let first = FIRST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
            let (message, backtrace) =
                first.unwrap_or_else(|| ("resumed a panic without message".into(), String::new()));
            TestEnd::Panicked { message, backtrace }
        }
    }
}

fn not_here(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(HostError::NotHere(_)))
}

fn panic_message(info: &PanicHookInfo<'_>) -> String {
    let text = info.payload_as_str().unwrap_or("(payload is no text)");
    match info.location() {
        Some(place) => format!("{text}, at {}:{}:{}", place.file(), place.line(), place.column()),
        None => text.into(),
    }
}

fn backtrace() -> String {
    let mut text = Backtrace::force_capture().to_string();
    if text.len() > MAX_BACKTRACE {
        let end = (0..=MAX_BACKTRACE).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("\n(cut)");
    }
    text
}

/// Sends the end of the test. When it is too long, workers' distributions are left out, then the workers.
fn report(reporter: &Reporter, end: TestEnd) -> Result<(), ReportError> {
    let mut frame = GuestFrame::TestEnded(end);
    for shorten in [without_distributions, without_workers] {
        match (reporter.send(&frame), &mut frame) {
            (Err(ReportError::TooLong { length }), GuestFrame::TestEnded(TestEnd::Returned(result))) => {
                shorten(result, length);
            }
            (sent, _) => return sent,
        }
    }
    reporter.send(&frame)
}

fn without_distributions(result: &mut AssertResult, length: usize) {
    result.stats.workers.iter_mut().for_each(WorkerReport::drop_distributions);
    let message = format!("latency distributions of single workers left out: {length} bytes are too many");
    result.push(DetailKind::Note, Outcome::NotRun, message);
}

fn without_workers(result: &mut AssertResult, length: usize) {
    let left_out = result.stats.workers.len();
    result.stats.workers.clear();
    let message = format!("figures of {left_out} single workers left out: {length} bytes are too many");
    result.push(DetailKind::Note, Outcome::NotRun, message);
    shorten(result);
}

/// Keeps the first findings; the rest is counted.
fn shorten(result: &mut AssertResult) {
    const KEPT: usize = 200;
    let more = result.details.len().saturating_sub(KEPT);
    if more > 0 {
        result.details.truncate(KEPT);
        result.push(DetailKind::Note, result.outcome, format!("{more} more findings left out"));
    }
}
