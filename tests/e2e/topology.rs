//! A guest sees exactly the machine that was asked for, whatever runs its CPUs.
//!
//! A few shapes are shown in every run of the suite; `cargo xtask topologies` shows all presets.

mod view;

use std::time::Instant;

use ktstr_proto::{
    Accel,
    run::RunSpec,
    topology::{PRESETS, Shape},
    verdict::Outcome,
};
use view::{SCRIPT, View};

use crate::harness::{exec, not_run, run_with_output};

/// Nodes that differ in everything in which nodes can differ.
const UNEQUAL: &str = "2n2l2c2t/mem=256,512/cxl=256@400@16000/dist=10,21,30:21,10,15:30,15,10";

fn request(shape: &Shape, accel: Accel, command: &str) -> RunSpec {
    let memory_mb =
        shape.numa.memory_mb().unwrap_or((512 + 6 * u64::from(shape.topology.cpus())).next_multiple_of(2));
    RunSpec {
        topology: shape.topology,
        numa: shape.numa.clone(),
        memory_mb: Some(memory_mb as u32),
        accel,
        ..exec(command)
    }
}

/// Boots the shape and compares; says in one line what was shown.
fn show(shape: &str, accel: Accel) {
    let parsed: Shape = shape.parse().expect("a shape");
    let spec = request(&parsed, accel, SCRIPT);
    let memory_mb = spec.memory_mb.expect("chosen above");
    let started = Instant::now();
    let (report, output) = run_with_output(spec);
    if not_run(&report, accel) {
        return;
    }
    assert_eq!(report.outcome, Outcome::Pass, "{:?}", report.cause);
    let differences = View::read(&output).differences(&parsed, memory_mb);
    assert!(differences.is_empty(), "{} facts differ:\n{}", differences.len(), differences.join("\n"));
    let cpus = parsed.topology.cpus();
    println!(
        "SHOWN {shape} = {parsed}: booted under {accel} with {cpus} CPUs in {:.0} s",
        started.elapsed().as_secs_f64()
    );
}

#[test]
fn caches_threads_and_packages() {
    show("12cpu-3llc-smt", Accel::Tcg);
    show("odd-3llc", Accel::Tcg);
}

#[test]
fn nodes_of_unequal_memory_distance_and_speed() {
    show(UNEQUAL, Accel::Tcg);
}

#[test]
fn det_shows_the_same_machine() {
    show("2n2l1c2t/cxl=128", Accel::Det);
}

mod on_kvm {
    use super::*;

    #[test]
    fn nodes_of_unequal_memory_distance_and_speed() {
        show(UNEQUAL, Accel::Kvm);
    }

    #[test]
    fn caches_threads_and_packages() {
        show("8cpu-2llc-smt", Accel::Kvm);
    }
}

/// One ignored test for each preset: `cargo xtask topologies` runs them.
macro_rules! presets {
    ($($test:ident => $name:literal),* $(,)?) => {
        mod preset {
            use super::*;

            $(#[test]
            #[ignore = "all of them take many minutes: `cargo xtask topologies`"]
            fn $test() {
                show($name, Accel::Tcg);
            })*

            #[test]
            fn none_is_left_out() {
                assert_eq!([$($name),*], PRESETS.map(|preset| preset.name));
            }
        }
    };
}

presets! {
    p01 => "4cpu-1llc-nosmt",
    p02 => "4cpu-2llc-nosmt",
    p03 => "9cpu-3llc-nosmt",
    p04 => "15cpu-5llc-nosmt",
    p05 => "14cpu-7llc-nosmt",
    p06 => "8cpu-2llc-smt",
    p07 => "12cpu-3llc-smt",
    p08 => "32cpu-4llc-smt",
    p09 => "64cpu-8llc-smt",
    p10 => "128cpu-4llc-smt",
    p11 => "128cpu-8llc-smt",
    p12 => "240cpu-15llc-smt",
    p13 => "252cpu-14llc-smt",
    p14 => "32cpu-4llc-nosmt",
    p15 => "64cpu-8llc-nosmt",
    p16 => "128cpu-4llc-nosmt",
    p17 => "128cpu-8llc-nosmt",
    p18 => "240cpu-15llc-nosmt",
    p19 => "252cpu-14llc-nosmt",
    p20 => "2numa-16cpu-4llc-nosmt",
    p21 => "2numa-128cpu-8llc-smt",
    p22 => "2numa-128cpu-8llc-nosmt",
    p23 => "4numa-32cpu-8llc-nosmt",
    p24 => "4numa-192cpu-12llc-smt",
}
