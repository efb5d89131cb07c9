//! What a machine gets of its host: CPUs and memory of its own, or the refusal by name.

use ktstr::prelude::*;
use ktstr_proto::{
    Accel,
    run::{Performance, RunSpec},
};

use crate::harness::{exec, run, run_with_output};

#[test]
fn a_host_cpu_makes_an_emulated_one_no_real_one() {
    let report = run(RunSpec { performance: Performance::Isolated, ..exec("true") });
    assert_eq!(report.outcome, Outcome::NotRun);
    assert!(format!("{:?}", report.cause).contains("accelerator tcg emulates"), "{:?}", report.cause);
}

/// Says what the guest's kernel was told and how it waits.
const LOOK: &str = "dmesg | grep -c 'KVM_HINTS_REALTIME\\|PV qspinlock disabled\\|hints'; echo up";

/// All memory of that guest.
const PAGES: u32 = 160;

#[test]
fn on_kvm_a_machine_is_alone_or_the_host_says_what_it_refuses() {
    // In the lab, which is nobody else's, they can be had for the asking.
    let in_lab = std::env::var_os("KTSTR_LAB").is_some();
    if in_lab {
        std::fs::write("/proc/sys/vm/nr_hugepages", (PAGES + 32).to_string()).expect("the lab is root's");
    }
    let (report, output) = run_with_output(RunSpec {
        accel: Accel::Kvm,
        performance: Performance::Isolated,
        memory_mb: Some(PAGES * 2),
        ..exec(LOOK)
    });
    if in_lab {
        std::fs::write("/proc/sys/vm/nr_hugepages", "0").expect("the lab is root's");
    }
    if report.outcome == Outcome::NotRun {
        let cause = format!("{:?}", report.cause);
        assert!(
            ["accelerator kvm cannot be used", "the host refuses", "exit suppression"]
                .iter()
                .any(|refusal| cause.contains(refusal)),
            "{cause}"
        );
        return println!("NOT RUN: {cause}");
    }
    assert_eq!(report.outcome, Outcome::Pass, "{:?}\n{output}", report.cause);
    let told = report.notes.iter().find(|note| note.starts_with("performance mode: vCPUs on host CPUs "));
    assert!(
        told.is_some_and(|note| note.ends_with(&format!(" {PAGES} pages of 2 MiB"))),
        "{:?}",
        report.notes
    );
}
