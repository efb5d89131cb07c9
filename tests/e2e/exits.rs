//! What the channel costs a guest under hardware virtualization: a frame is written to memory and the host looks there,
//! so a machine that says much leaves the guest no oftener than one that says nothing.

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    guest::{GuestFrame, Log, LogSource},
    run::RunSpec,
    verdict::Outcome,
    vmm::VcpuStatistics,
};

use crate::harness::{not_run, run, spec};

/// More than four times what the VMM serves in a boot.
const FRAMES: u64 = 2_000;

/// Frames of its own, each made whether or not it is sent.
fn talk(ctx: &Ctx, send: bool) -> Result<AssertResult> {
    for nth in 0..FRAMES {
        let frame = GuestFrame::Log(Log { source: LogSource::Stdout, text: format!("frame {nth}\n") });
        if send {
            ctx.reporter.send(&frame)?;
        } else {
            std::hint::black_box(&frame);
        }
    }
    Ok(AssertResult::pass())
}

#[ktstr_test(llcs = 1, cores = 1, threads = 1, duration_s = 1, ignore)]
fn says_much(ctx: &Ctx) -> Result<AssertResult> {
    talk(ctx, true)
}

#[ktstr_test(llcs = 1, cores = 1, threads = 1, duration_s = 1, ignore)]
fn says_nothing(ctx: &Ctx) -> Result<AssertResult> {
    talk(ctx, false)
}

/// Of a boot, so that both did the same besides: exits for no interrupt and no new page, and what the VMM served. A timer's
/// interrupt costs one exit more, in which the guest asks for the next: it is left out with those it is injected for.
struct Exits {
    others: u64,
    served: u64,
    frames: u64,
}

fn exits_of(name: &str) -> Option<Exits> {
    let report = run(RunSpec { warm: false, ..spec(name, Accel::Kvm) });
    if not_run(&report, Accel::Kvm) {
        return None;
    }
    assert_eq!(report.outcome, Outcome::Pass, "{:?}", report.cause);
    let read = |file: &str| std::fs::read_to_string(report.run_dir.join(file)).expect(file);
    let vcpus: Vec<VcpuStatistics> = serde_json::from_str(&read("kvm-statistics.json")).unwrap();
    let counters: Vec<&(String, u64)> = vcpus.iter().flat_map(|vcpu| &vcpu.counters).collect();
    let sum = |names: &[&str]| -> u64 {
        let found = counters.iter().filter(|(name, _)| names.contains(&name.as_str()));
        found.map(|(_, value)| value).sum()
    };
    let explained = ["pf_taken", "irq_exits", "irq_window_exits", "nmi_window_exits", "irq_injections"];
    let exits = Exits {
        others: sum(&["exits"]).saturating_sub(sum(&explained)),
        served: sum(&["io_exits", "mmio_exits"]),
        frames: read("guest.jsonl").lines().filter(|line| line.contains("frame ")).count() as u64,
    };
    let told: Vec<_> = counters.iter().filter(|(_, value)| *value > 0).collect();
    println!(
        "{name}: {} other exits, {} served by the VMM, {} frames; {told:?}",
        exits.others, exits.served, exits.frames
    );
    Some(exits)
}

#[test]
fn on_kvm_a_frame_costs_no_exit() {
    let (Some(silent), Some(talking)) = (exits_of("says_nothing"), exits_of("says_much")) else { return };
    assert_eq!((silent.frames, talking.frames), (0, FRAMES));
    // A boot writes to its console.
    assert!(silent.served > 0, "KVM counted nothing");
    let more = talking.served.saturating_sub(silent.served);
    assert!(more * 4 < FRAMES, "{more} exits more that the VMM served, {FRAMES} frames");
    // Not even one that KVM serves itself, as it does a doorbell. Boots differ by some hundreds.
    let more = talking.others.saturating_sub(silent.others);
    assert!(more < FRAMES, "{more} exits more, {FRAMES} frames");
}
