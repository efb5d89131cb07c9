//! What a test reads and writes of its kernel through the host, the kernel itself being the witness; and a map that
//! outlives its scheduler.

use std::fs;

use ktstr::prelude::*;
use ktstr_proto::{Accel, verdict::Outcome};

use crate::harness::{run, spec};

declare_scheduler!(SCX, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 1, 2, 1) });

/// A counter that this scheduler counts only with `--race`.
const COUNTER: &str = "nr_not_looked";
/// A number of the kernel that `/proc` shows, too: seconds until it starts anew after a panic.
const NUMBER: &str = "panic_timeout";

fn symbol() -> KernelTarget {
    KernelTarget::Symbol(NUMBER.into())
}

fn shown() -> Result<u32> {
    // Negative is at once.
    Ok(fs::read_to_string("/proc/sys/kernel/panic")?.trim().parse::<i32>()?.cast_unsigned())
}

fn of_queue(field: &str) -> KernelTarget {
    KernelTarget::PerCpuField { symbol: "runqueues".into(), field: field.into(), cpu: 1 }
}

fn of_itself(field: &str, expected_start_time_ns: Option<u64>) -> KernelTarget {
    let pid = std::process::id().cast_signed();
    KernelTarget::TaskField { pid, expected_start_time_ns, field: field.into() }
}

fn reads(ctx: &Ctx) -> Result<()> {
    ensure!(ctx.read_kernel_hot(of_queue("cpu"), KernelWidth::U32)? == KernelValue::U32(1));
    ensure!(ctx.read_kernel_cold(of_queue("cpu"), KernelWidth::U32)? == KernelValue::U32(1));
    let started = ctx.read_kernel_hot(of_itself("start_time", None), KernelWidth::U64)?;
    let started = started.as_u64().filter(|at| *at > 0).context("when it started")?;
    let comm = ctx.read_kernel_cold(of_itself("comm", Some(started)), KernelWidth::Bytes(16))?;
    let mut own = fs::read("/proc/self/comm")?;
    own.truncate(own.len().saturating_sub(1));
    own.resize(16, 0);
    // After the name's NUL stands what was there before.
    let KernelValue::Bytes(comm) = comm else { bail!("{comm:?} are no bytes") };
    let end = own.iter().position(|byte| *byte == 0).unwrap_or(16);
    ensure!(comm[..=end.min(15)] == own[..=end.min(15)], "{comm:?} is not {own:?}");
    let refused = |target: KernelTarget, width| match ctx.read_kernel_hot(target.clone(), width) {
        Ok(value) => format!("{target} was read: {value}"),
        Err(error) => error.to_string(),
    };
    for (target, width, why) in [
        (of_itself("comm", Some(started + 1)), KernelWidth::Bytes(16), "it is another one"),
        (of_queue("cpu"), KernelWidth::U64, "has 4 bytes, not 8"),
        (of_queue("no_such_member"), KernelWidth::U32, "no_such_member"),
        (KernelTarget::Symbol("no_such_symbol".into()), KernelWidth::U32, "no variable `no_such_symbol`"),
        (KernelTarget::Kva(8), KernelWidth::U32, "cannot be read"),
    ] {
        let said = refused(target, width);
        ensure!(said.contains(why), "{said} instead of {why}");
    }
    Ok(())
}

fn writes(ctx: &Ctx) -> Result<()> {
    let before = shown()?;
    let write = |value| KernelWrite::new(symbol(), value);
    ctx.write_kernel_hot([write(KernelValue::U32(77))])?;
    ensure!(shown()? == 77, "{}", shown()?);
    ctx.write_kernel_cold([write(KernelValue::OrU32(0x80))])?;
    ensure!(shown()? == 77 | 0x80, "{}", shown()?);
    // None is written where one cannot be found.
    let nowhere = KernelWrite::new(KernelTarget::Symbol("no_such_symbol".into()), KernelValue::U32(1));
    let refused = ctx.write_kernel_cold([write(KernelValue::U32(1)), nowhere]).unwrap_err().to_string();
    ensure!(refused.contains("no_such_symbol") && shown()? == 77 | 0x80, "{refused}");
    let code = KernelWrite::new(KernelTarget::Symbol("schedule".into()), KernelValue::U32(1));
    let refused = ctx.write_kernel_cold([code]).unwrap_err().to_string();
    ensure!(refused.contains("is code of the kernel"), "{refused}");
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let line =
        symbols.lines().find(|line| line.ends_with(&format!(" {NUMBER}"))).context("no such symbol")?;
    let at = u64::from_str_radix(line.split(' ').next().unwrap_or_default(), 16)?;
    let there = ctx.read_kernel_hot(KernelTarget::Kva(at), KernelWidth::U32)?;
    ensure!(there == KernelValue::U32(77 | 0x80), "{there}");
    let bytes = before.to_le_bytes().to_vec();
    ctx.write_kernel_cold([KernelWrite::new(KernelTarget::Kva(at), KernelValue::Bytes(bytes))])?;
    Ok(ensure!(shown()? == before, "{}", shown()?))
}

#[ktstr_test(scheduler = SCX, duration_s = 2, ignore)]
fn kernel_and_pinned_maps(ctx: &Ctx) -> Result<AssertResult> {
    reads(ctx).context("reading")?;
    writes(ctx).context("writing")?;
    let quarter = HoldSpec::frac(0.25);
    let same = [KernelWrite::new(symbol(), KernelValue::U32(shown()?))];
    let steps = vec![
        Step::new(
            vec![
                Op::write_map(".bss", COUNTER, 4711),
                Op::pin_bpf_map(".bss"),
                Op::read_kernel_hot("hot", of_queue("cpu"), KernelWidth::U32),
                Op::read_kernel_cold("cold", of_queue("cpu"), KernelWidth::U32),
                Op::write_kernel_hot(same.clone()),
                Op::write_kernel_cold(same),
            ],
            quarter,
        ),
        Step::new(vec![Op::DetachScheduler, Op::read_map("gone", "pinned:.bss", COUNTER)], quarter),
        Step::new(
            vec![
                Op::AttachScheduler,
                Op::read_map("new", ".bss", COUNTER),
                Op::read_map("old", "pinned:.bss", COUNTER),
            ],
            quarter,
        ),
    ];
    let wrong = vec![Step::with_op(Op::read_map("t", "pinned:.bsss", COUNTER), quarter)];
    let error = execute_steps(ctx, wrong).err().context("nothing is pinned so")?.to_string();
    ensure!(error.contains("pinned map `.bsss`"), "{error}");
    execute_scenario(ctx, Backdrop::new().push_cgroup(CgroupDef::named("load").workers(2)), steps)
}

#[test]
fn a_test_reads_and_writes_its_kernel_and_maps_of_a_scheduler_that_is_gone() {
    let report = run(spec("kernel_and_pinned_maps", Accel::Tcg));
    let text = ktstr::render::report(&report);
    // A host without time may leave the workers' figures in doubt, never what was asked for here.
    assert!(matches!(report.outcome, Outcome::Pass | Outcome::Inconclusive), "{text}");
    let details = &report.result.as_ref().expect("it came to its end").details;
    for said in [
        "hot: runqueues@1 cpu is 1".to_owned(),
        "cold: runqueues@1 cpu is 1".to_owned(),
        format!("gone: {COUNTER} in pinned:.bss is 4711"),
        format!("new: {COUNTER} in .bss is 0"),
        format!("old: {COUNTER} in pinned:.bss is 4711"),
    ] {
        assert!(details.iter().any(|detail| detail.message == said), "{said} is not among {details:#?}");
    }
}
