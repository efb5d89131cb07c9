//! Each kind of work does to a real kernel what its documentation says, with the kernel as witness; and
//! the same seed does the same work under `det`.
//!
//! One boot runs all kinds, a moment each. The table it prints is the one in `docs/work-types.md`; with
//! `KTSTR_WRITE_DOCS=1` the run writes it there.

mod bench;
mod claims;
#[cfg(target_arch = "x86_64")]
mod registers;
mod trace;

use std::{collections::BTreeSet, fs, os::unix::fs::FileExt, path::Path};

use ktstr::prelude::*;
use ktstr_proto::{Accel, verdict::Outcome};

use crate::harness::{run, run_with_output, spec};

/// What precedes each row of the table in the guest's output.
const ROW: &str = "work-type-row ";

#[ktstr_test(numa_nodes = 2, llcs = 2, cores = 1, threads = 2, memory_mb = 1024, duration_s = 60, ignore)]
fn every_kind_of_work(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.enable(&["cpu", "cpuset"])?;
    let mut group = CgroupGroup::new(&ctx.cgroups);
    group.add(bench::CGROUP)?;
    let tracer = trace::Tracer::start()?;
    let mut failures = Vec::new();
    for claim in claims::claims() {
        let name = claim.run.label();
        let seen = bench::run(ctx, &tracer, claim.run, |_| Ok(()))?;
        match (claim.check)(&seen) {
            Ok(evidence) => println!("{ROW}{}", seen.row(&evidence)),
            Err(error) => {
                println!("{name}: {error:#}\n{:#?}", seen.reports);
                failures.push(format!("{name}: {error:#}"));
            }
        }
    }
    modes(ctx, &tracer, &mut failures)?;
    caches(ctx, &tracer, &mut failures)?;
    #[cfg(target_arch = "x86_64")]
    widths(ctx, &tracer, &mut failures)?;
    group.remove()?;
    let left: Vec<_> =
        fs::read_dir(ctx.cgroups.root())?.flatten().filter(|entry| entry.path().is_dir()).collect();
    ensure!(left.is_empty(), "cgroups are left: {left:?}");
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(AssertResult::pass())
}

/// Kinds that need a kernel of their own to be tried, as threads and in one process; the others are tried so on
/// any host.
fn modes(ctx: &Ctx, tracer: &trace::Tracer, failures: &mut Vec<String>) -> Result<()> {
    let kinds = [
        WorkType::priority_inversion(),
        WorkType::preempt_storm(),
        WorkType::rt_starvation(),
        WorkType::cgroup_churn(),
        WorkType::cgroup_attach_storm(),
        WorkType::asymmetric_waker(),
        WorkType::net_traffic(),
        WorkType::irq_wake(),
    ];
    for kind in kinds {
        for mode in [CloneMode::Thread, CloneMode::Pcomm("host".into())] {
            let wanted = bench::Run::of(kind.clone()).mode(mode.clone()).lasting(Duration::from_millis(100));
            let label = wanted.label();
            if mode == CloneMode::Thread && kind.needs_own_process() {
                let refused =
                    bench::run(ctx, tracer, wanted, |_| Ok(())).err().map(|error| format!("{error:#}"));
                if !refused.as_ref().is_some_and(|text| text.contains("use CloneMode::Fork")) {
                    failures.push(format!("{label} is not refused: {refused:?}"));
                }
                continue;
            }
            let seen = bench::run(ctx, tracer, wanted, |_| Ok(()))?;
            let ended = seen.reports.iter().all(|report| report.exit == WorkerExit::Completed);
            let worked = seen.not_run().is_some() || seen.reports.iter().any(|report| report.work_units > 0);
            if !ended || !worked {
                failures.push(format!("{label}: {:#?}", seen.reports));
            }
        }
    }
    Ok(())
}

/// KiB of a process's own memory that were written since they were last asked about
/// (Documentation/admin-guide/mm/soft-dirty.rst).
fn written_kib(pid: u32) -> Result<u64> {
    const PAGE: u64 = 4096;
    const SOFT_DIRTY: u64 = 1 << 55;
    let pagemap = fs::File::open(format!("/proc/{pid}/pagemap"))?;
    let mut written = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut words = line.split(' ');
        let (Some(range), Some("rw-p")) = (words.next(), words.next()) else { continue };
        let (from, to) = range.split_once('-').context("a range")?;
        let pages = |text| u64::from_str_radix(text, 16).map(|address| address / PAGE);
        let (from, to) = (pages(from)?, pages(to)?);
        let mut entries = vec![0; ((to - from) * 8) as usize];
        pagemap.read_exact_at(&mut entries, from * 8)?;
        let entries = entries.chunks_exact(8).filter_map(|entry| entry.try_into().ok());
        written += entries.filter(|entry| u64::from_le_bytes(*entry) & SOFT_DIRTY != 0).count() as u64;
    }
    fs::write(format!("/proc/{pid}/clear_refs"), "4")?;
    Ok(written * PAGE / 1024)
}

/// What works on memory comes back to all of it, over and over.
fn caches(ctx: &Ctx, tracer: &trace::Tracer, failures: &mut Vec<String>) -> Result<()> {
    // Multiplications for a few microseconds only: several cold phases fit between two looks of a slow machine.
    let ipc = WorkType::IpcVariance { hot_iters: 256, cold_iters: 1024, period_iters: 4 };
    for (kind, kib) in [(WorkType::CachePressure { size_kib: 1024, stride: 64 }, 1024), (ipc, 512)] {
        let mut looks = Vec::new();
        let seen = bench::run(ctx, tracer, bench::Run::of(kind), |handle| {
            looks.push(written_kib(handle.tids()[0])?);
            Ok(())
        })?;
        // Before the first look everything was new.
        let looks = looks.split_off(1.min(looks.len()));
        let whole = looks.iter().filter(|written| **written >= kib).count();
        let (of, slept) = (looks.len(), seen.reports[0].voluntary_switches);
        // Each look holds the lock that faults of the worker wait for.
        if slept <= 2 * of as u64 + 5 && whole * 2 > of {
            let evidence =
                format!("wrote all its {kib} KiB between {whole} of {of} looks, never slept otherwise");
            println!("{ROW}{}", seen.row(&evidence));
        } else {
            let label = seen.run.label();
            failures.push(format!("{label}: gave up the CPU {slept} times, wrote KiB {looks:?}"));
        }
    }
    Ok(())
}

/// The registers of `AluHot` are as wide as asked for.
#[cfg(target_arch = "x86_64")]
fn widths(ctx: &Ctx, tracer: &trace::Tracer, failures: &mut Vec<String>) -> Result<()> {
    let lane = |lane: u32| 0x9e37_79b1u32 + 2 * lane;
    let (low, high) = ([0, 1, 2, 3].map(lane), [4, 5, 6, 7].map(lane));
    for (width, uses_low, uses_high) in [
        (SimdWidth::Scalar, false, false),
        (SimdWidth::Vec128, true, false),
        (SimdWidth::Vec256, true, true),
        (SimdWidth::Widest, true, true),
    ] {
        let mut vectors = Vec::new();
        let seen = bench::run(ctx, tracer, bench::Run::of(WorkType::AluHot { width }), |handle| {
            vectors.push(registers::vector4(handle.tids()[0])?.0);
            Ok(())
        })?;
        let count = |found: fn(&registers::Vector) -> [u32; 4], wanted| {
            vectors.iter().filter(|vector| found(vector) == wanted).count()
        };
        let (lows, highs) = (count(|v| v.0, low), count(|v| v.1, high));
        // Between two units of work the clock is read; then the register may hold something else.
        let used = |hits: usize, uses: bool| if uses { hits * 2 > vectors.len() } else { hits == 0 };
        if used(lows, uses_low) && used(highs, uses_high) {
            let bits = [64, 128, 256][usize::from(uses_low) + usize::from(uses_high)];
            println!("{ROW}{}", seen.row(&format!("registers of {bits} bits in use")));
        } else {
            let of = vectors.len();
            failures.push(format!("AluHot {width:?}: 128 bits in {lows}, 256 in {highs} of {of} looks"));
        }
    }
    Ok(())
}

/// The emulated CPU has no AVX-512; the one under it may.
#[cfg(target_arch = "x86_64")]
#[test]
fn on_a_host_with_avx512_the_registers_are_512_bits_wide() {
    if !is_x86_feature_detected!("avx512f") {
        println!("NOT RUN: this CPU lacks vectors of that width");
        return;
    }
    for width in [SimdWidth::Vec512, SimdWidth::Widest] {
        let work_type = WorkType::AluHot { width };
        let config = WorkloadConfig { workers: 1, work_type, ..WorkloadConfig::default() };
        let mut handle = WorkloadHandle::spawn(config).expect("a worker");
        handle.start().expect("it starts");
        let mut looks = Vec::new();
        while looks.len() < 16 {
            std::thread::sleep(Duration::from_millis(5));
            match registers::vector4(handle.tids()[0]) {
                Ok(look) => looks.push(look),
                Err(error) if error.downcast_ref() == Some(&nix::errno::Errno::EPERM) => {
                    println!("NOT RUN: this host does not let a process look at its child's registers");
                    return;
                }
                Err(error) => panic!("{error:#}"),
            }
        }
        let lane = |lane: u32| 0x9e37_79b1u32 + 2 * lane;
        let full = |look: &&(registers::Vector, [u32; 8])| {
            look.0 == ([0, 1, 2, 3].map(lane), [4, 5, 6, 7].map(lane))
                && look.1 == [8, 9, 10, 11, 12, 13, 14, 15].map(lane)
        };
        let wide = looks.iter().filter(full).count();
        let report = &handle.stop_and_collect()[0];
        assert!(report.iterations > 0 && report.not_run.is_none(), "{report:?}");
        // Between two units of work the clock is read; then the register may hold something else.
        assert!(wide * 2 > looks.len(), "512 bits in {wide} of {} looks: {looks:x?}", looks.len());
    }
}

#[ktstr_test(
    llcs = 1,
    cores = 2,
    threads = 1,
    duration_s = 1,
    max_gap_ms = 60000,
    max_spread_pct = 100,
    ignore
)]
fn seeded_work(ctx: &Ctx) -> Result<AssertResult> {
    // Alone, and in time that passes by instructions, a duty cycle is what was asked for.
    let alone = WorkloadConfig { workers: 1, work_type: WorkType::bursty(), ..WorkloadConfig::default() };
    let mut alone = WorkloadHandle::spawn(alone)?;
    alone.start()?;
    std::thread::sleep(Duration::from_millis(590));
    let duty = alone.stop_and_collect()[0].duty.context("a duty cycle")?;
    ensure!((duty.requested_pct - duty.achieved_pct).abs() < 2.0, "{duty:?}");
    let kinds = [
        WorkType::SpinWait,
        WorkType::pipe_io(),
        WorkType::affinity_churn(),
        WorkType::page_fault_churn(),
        WorkType::IoRandRead,
        WorkType::mutex_contention(),
        WorkType::ForkExit,
        WorkType::bursty(),
    ];
    let def = |(number, kind): (usize, WorkType)| {
        CgroupDef::named(format!("cg_{number}")).workers(kind.group_size()).work_type(kind)
    };
    execute_defs(ctx, kinds.into_iter().enumerate().map(def).collect())
}

/// Rows of the table that the guest printed.
fn rows(output: &str) -> Vec<&str> {
    output.lines().filter_map(|line| line.strip_prefix(ROW)).collect()
}

fn kind_of(row: &str) -> &str {
    row.trim_start_matches("| ").split(' ').next().unwrap_or_default()
}

#[test]
fn on_tcg_every_kind_of_work_does_what_it_says() {
    let (report, output) = run_with_output(spec("every_kind_of_work", Accel::Tcg));
    assert!(
        !report.infrastructure && report.outcome == Outcome::Pass,
        "{:?}\n{:#?}\n{output}",
        report.cause,
        report.result.map(|result| result.details)
    );
    let shown: BTreeSet<&str> = rows(&output).into_iter().map(kind_of).collect();
    let missing: Vec<&str> = WorkType::ALL_NAMES.into_iter().filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "not tried: {missing:?}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/work-types.md");
    let mut text = fs::read_to_string(&page).expect("the page on work types");
    if std::env::var_os("KTSTR_WRITE_DOCS").is_some() {
        let about = format!("Kernel {}, {}.", report.kernel, report.accel_detail);
        text = with_table(&text, &about, &rows(&output));
        fs::write(&page, &text).expect("the page can be written");
    }
    // Figures differ from run to run; the kinds do not.
    let documented: BTreeSet<&str> =
        text.lines().filter(|line| line.starts_with("| ")).map(kind_of).collect();
    let missing: Vec<&&str> = shown.iter().filter(|name| !documented.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/work-types.md lacks {missing:?}: run this with KTSTR_WRITE_DOCS=1");
}

/// The page with another table between its marks.
fn with_table(text: &str, about: &str, rows: &[&str]) -> String {
    let (begin, end) = ("<!-- table: begin -->\n", "<!-- table: end -->");
    let (before, rest) = text.split_once(begin).expect("the mark before the table");
    let (_, after) = rest.split_once(end).expect("the mark after the table");
    let head = "| work type | workers | iterations/s | gave up CPU/s | lost CPU/s | migrations/s | wake p50 / p99, µs | kernel evidence |\n|---|---|---|---|---|---|---|---|\n";
    format!("{before}{begin}{about}\n\n{head}{}\n{end}{after}", rows.join("\n"))
}

#[test]
fn on_det_the_same_seed_does_the_same_work() {
    let work = |seed: u64| {
        let mut spec = spec("seeded_work", Accel::Det);
        spec.seed = seed;
        let report = run(spec);
        assert!(!report.infrastructure, "{:?}", report.cause);
        report.result.expect("the test delivers figures").stats.workers
    };
    let first = work(7);
    assert_eq!(first.len(), 12);
    assert!(first.iter().all(|worker| worker.work_units > 0), "{first:#?}");
    assert_eq!(first, work(7), "two runs of one seed differ");
}
