//! A request for tests of this crate, which change in it what they are about.

use std::path::Path;

use ktstr_proto::{
    Topology,
    run::{Accel, Job, RunSpec},
};

/// Of the smallest machine, under `det`, unobserved, with nothing special.
pub fn request(job: Job, runs_root: &Path) -> RunSpec {
    RunSpec {
        name: "example".into(),
        job,
        kernel: None,
        accel: Accel::Det,
        topology: Topology::new(1, 1, 1, 1).expect("the smallest machine"),
        numa: Default::default(),
        absent_llcs: 0,
        memory_mb: None,
        seed: 1,
        vary: false,
        deadline_ms: None,
        runs_root: runs_root.to_owned(),
        replay: String::new(),
        warm: false,
        kernel_args: Vec::new(),
        observe: false,
        watchdog_ms: None,
        snapshots: 0,
        env: Vec::new(),
        disk: None,
        networks: Vec::new(),
        jail: Default::default(),
        performance: Default::default(),
        cpu_budget: None,
        cleanup_budget_ms: None,
        watches: Vec::new(),
        auto_repro: false,
        probing: None,
    }
}
