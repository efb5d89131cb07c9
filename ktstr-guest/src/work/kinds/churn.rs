//! Work that keeps changing what the scheduler knows of a task.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use nix::{
    errno::Errno,
    sched::sched_yield,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
};

use crate::{
    attributes::{SchedPolicy, set_affinity},
    work::{
        cpus,
        not_run::Missing,
        sys::{fork_and_exit, set_nice},
        worker::{Done, Worker},
    },
};

/// Steps between two nice values.
const NICE_STEPS: u64 = 512;

/// Waiting for a child that exits at once is a blocking call like any other, and ends.
pub(super) fn fork_exit(w: &mut Worker<'_>) -> Done {
    while !w.stopped() {
        match fork_and_exit(|| {}) {
            Ok(child) => {
                while matches!(w.meter.blocking(|| waitpid(child, None)), Err(Errno::EINTR)) {
                    if w.stopped() {
                        // One that does not come to run is not waited for without bound.
                        let _ = kill(child, Signal::SIGKILL);
                    }
                }
                w.meter.did(1, 1);
            }
            // A limit on processes: others must end first.
            Err(Errno::EAGAIN | Errno::EINTR) => w.sleep(Duration::from_millis(1)),
            Err(errno) => return Err(Missing::Process.because(errno)),
        }
        w.meter.checkpoint();
    }
    Ok(())
}

/// From the lowest value that is permitted; back to 0 at the end.
pub(super) fn nice_sweep(w: &mut Worker<'_>) -> Done {
    let lowest = (-20..0).find(|nice| set_nice(*nice).is_ok()).unwrap_or(0);
    'sweep: loop {
        for nice in lowest..=19 {
            if w.stopped() {
                break 'sweep;
            }
            w.compute(NICE_STEPS);
            if set_nice(nice).is_ok() {
                w.meter.did(0, 1);
            }
            // Fails never on Linux.
            let _ = sched_yield();
            w.meter.checkpoint();
        }
        // Without the right to lower it, one sweep is all.
        if lowest == 0 && set_nice(0).is_err() {
            while !w.stopped() {
                w.compute(NICE_STEPS);
                let _ = sched_yield();
                w.meter.checkpoint();
            }
            break;
        }
    }
    let _ = set_nice(0);
    Ok(())
}

pub(super) fn affinity(w: &mut Worker<'_>, spin_iters: u64) -> Done {
    let allowed = cpus::allowed();
    while !w.stopped() {
        w.compute(spin_iters);
        if let Some(cpu) = w.rng.choose(&allowed) {
            // A cpuset that shrank meanwhile refuses some.
            if set_affinity(0, &[*cpu]).is_ok() {
                w.meter.did(0, 1);
            }
        }
        let _ = sched_yield();
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn cross_affinity(w: &mut Worker<'_>, spin_iters: u64) -> Done {
    let allowed = cpus::allowed();
    let workers = w.board.slots() as u64;
    while !w.stopped() {
        w.compute(spin_iters);
        let victim = w.board.slot(w.rng.below(workers) as usize);
        let tid = victim.tid.load(Relaxed);
        let cpu = w.rng.choose(&allowed).filter(|_| tid != 0 && !victim.finished.load(Relaxed));
        if cpu.is_some_and(|cpu| set_affinity(tid, &[*cpu]).is_ok()) {
            w.meter.did(0, 1);
        }
        let _ = sched_yield();
        w.meter.checkpoint();
    }
    Ok(())
}

pub(super) fn policy(w: &mut Worker<'_>, spin_iters: u64) -> Done {
    let all = [
        SchedPolicy::Normal,
        SchedPolicy::Batch,
        SchedPolicy::Idle,
        SchedPolicy::Fifo(1),
        SchedPolicy::RoundRobin(1),
    ];
    let permitted: Vec<SchedPolicy> =
        all.into_iter().filter(|policy| policy.apply(0, None).is_ok()).collect();
    while !w.stopped() {
        for policy in &permitted {
            w.compute(spin_iters);
            if policy.apply(0, None).is_ok() {
                w.meter.did(0, 1);
            }
            let _ = sched_yield();
            w.meter.checkpoint();
            if w.stopped() {
                break;
            }
        }
    }
    let _ = SchedPolicy::Normal.apply(0, None);
    Ok(())
}

pub(super) fn nodes(w: &mut Worker<'_>, period_ms: u64) -> Done {
    let nodes = cpus::nodes_of(&cpus::allowed());
    if nodes.len() < 2 {
        return Err(Missing::Nodes.into());
    }
    for (_, cpus) in nodes.iter().cycle().skip(w.place.index % nodes.len()) {
        if w.stopped() {
            break;
        }
        if set_affinity(0, cpus).is_ok() {
            w.meter.did(0, 1);
        }
        w.burst(Duration::from_millis(period_ms));
    }
    Ok(())
}
