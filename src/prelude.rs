//! What a test file needs: `use ktstr::prelude::*;`.

pub use std::{collections::BTreeSet, time::Duration};

/// A result whose error is any error, as test functions return it.
pub use anyhow::{Context, Result, anyhow, bail, ensure};
pub use ktstr_guest::{
    attributes::{MemPolicy, MpolFlags, SchedPolicy},
    cgroup::{CgroupGroup, CgroupManager, Cgroups, CpuQuota, Limit, Limits},
    scenario::{
        AffinityIntent, Backdrop, CgroupDef, CpusetSpec, Ctx, HoldSpec, HostError, Irq, KernelTarget,
        KernelValue, KernelWidth, KernelWrite, MapValue, MetricCheck, MetricDef, Op, OpKind, Payload,
        PayloadHandle, PayloadOutput, Placement, Random, Setup, Step, TestTopology, WorkSpec, collect_all,
        dfl_wl, setup_cgroups, spawn_diverse,
    },
    work::{
        CloneMode, Custom, CustomCfg, PiMode, Reap, SchbenchConfig, SequencePhase, SimdWidth, TaobenchConfig,
        WakeMechanism, WorkType, WorkerCtx, WorkloadConfig, WorkloadHandle,
    },
};
pub use ktstr_macros::{Payload, declare_scheduler, ktstr_test};
pub use ktstr_proto::{
    Topology,
    device::{DISK_DEVICE, DISK_MOUNT, DiskConfig, Filesystem, NetConfig},
    map_watch::Aggregate,
    scx_stats::MissingStatsReason,
    stats::{PayloadMetrics, Phase, PhaseBucket, PhaseCgroup, Polarity},
    verdict::{
        Assert, AssertResult, CgroupStats, DetailKind, Outcome, ScenarioStats, WorkerExit, WorkerReport,
    },
};

pub use crate::{
    Scheduler, Sysctl, claim, claim_present, claim_seq, claim_set,
    claims::{
        AbsoluteThresholds, Verdict, all_of, any_of, assert_scx_events_clean, assert_thresholds, claim_better,
    },
    host::{
        Constraints, VmResult,
        bpf_map::{BpfMapWrite, WatchBpfMap},
        series::{SampleSeries, SeriesField},
        snapshot::{Snapshot, SnapshotBridge, SnapshotError},
    },
    scenario::{
        execute_defs, execute_scenario, execute_scenario_with, execute_steps, execute_steps_with, judge,
        scenarios,
    },
};
