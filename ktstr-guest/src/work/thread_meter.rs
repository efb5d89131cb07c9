//! What a benchmark's own threads count into the figures of the worker they belong to: each the CPUs it was on, what it
//! burnt, how long it was kept from running and how often it moved.
//!
//! As with [`super::meter`], the longest time off the CPU is the run delay between two checkpoints. Wall time is the
//! worker's own thread's to count: that of several threads is no time that passed.

use std::{fs::File, sync::atomic::Ordering::Relaxed};

use super::{
    board::{Board, Counter, Series, Slot},
    meter::{CHECKPOINT_NS, LastCpu, read_schedstat},
    sys::{cpu_ns, now_ns},
};

/// Measures the thread that made it, until it is dropped.
pub(super) struct ThreadMeter<'a> {
    board: &'a Board,
    slot: &'a Slot,
    schedstat: Option<File>,
    phase: u32,
    last_ns: u64,
    last_cpu_ns: u64,
    /// Run delay and times run.
    last_stat: (u64, u64),
    last_frozen_ns: u64,
    cpu: LastCpu,
}

impl<'a> ThreadMeter<'a> {
    /// For a thread of the worker at `index`.
    pub fn start(board: &'a Board, index: usize) -> Self {
        let schedstat = File::open("/proc/thread-self/schedstat").ok();
        let last_stat = schedstat.as_ref().and_then(read_schedstat).unwrap_or_default();
        let mut meter = Self {
            board,
            slot: board.slot(index),
            schedstat,
            phase: board.phase(),
            last_ns: now_ns(),
            last_cpu_ns: cpu_ns(),
            last_stat,
            last_frozen_ns: board.frozen_ns().load(Relaxed),
            cpu: LastCpu::default(),
        };
        meter.cpu.look(board, meter.slot);
        meter
    }

    /// Notes one time.
    pub fn record(&self, series: Series, ns: u64) {
        self.slot.in_phase(self.phase).record(series, ns);
    }

    /// Counts what happened since the last time, at most once a millisecond.
    pub fn checkpoint(&mut self) {
        let (now, phase) = (now_ns(), self.board.phase());
        if now.saturating_sub(self.last_ns) >= CHECKPOINT_NS || phase != self.phase {
            self.count(now);
            self.phase = phase;
        }
    }

    fn count(&mut self, now: u64) {
        let figures = self.slot.in_phase(self.phase);
        let burnt_ns = cpu_ns();
        let ran_ns = burnt_ns.saturating_sub(self.last_cpu_ns);
        figures.add(Counter::CpuNs, ran_ns);
        let was_on = self.cpu.number();
        if self.cpu.look(self.board, self.slot) {
            figures.add(Counter::Migrations, 1);
        }
        // What was frozen on purpose is nobody's fault.
        let frozen_ns = self.board.frozen_ns().load(Relaxed);
        let frozen = frozen_ns.saturating_sub(self.last_frozen_ns);
        if let Some(stat) = self.schedstat.as_ref().and_then(read_schedstat) {
            let delay_ns = stat.0.saturating_sub(self.last_stat.0);
            figures.add(Counter::RunDelayNs, delay_ns);
            figures.add(Counter::Pcount, stat.1.saturating_sub(self.last_stat.1));
            self.last_stat = stat;
            let off_cpu = now.saturating_sub(self.last_ns).saturating_sub(ran_ns);
            let kept_off = delay_ns.min(off_cpu.saturating_sub(frozen));
            if kept_off > self.slot.greatest(Counter::MaxGapNs) {
                let began_ns = self.slot.began_ns.load(Relaxed);
                self.slot.note_gap(began_ns, (self.last_ns, now), (was_on, self.cpu.number()));
            }
            figures.raise(Counter::MaxGapNs, kept_off);
        }
        (self.last_ns, self.last_cpu_ns, self.last_frozen_ns) = (now, burnt_ns, frozen_ns);
    }
}

impl Drop for ThreadMeter<'_> {
    fn drop(&mut self) {
        self.count(now_ns());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use crate::{
        attributes::set_affinity,
        work::{SchbenchConfig, WorkType, WorkloadConfig, WorkloadHandle, cpus},
    };

    fn benchmark() -> WorkloadHandle {
        let work_type = WorkType::Schbench(SchbenchConfig {
            message_threads: 1,
            worker_threads: 2,
            cache_footprint_kib: 16,
            operations: 1,
            ..SchbenchConfig::DEFAULT
        });
        let config = WorkloadConfig { workers: 1, work_type, ..WorkloadConfig::default() };
        let mut handle = WorkloadHandle::spawn(config).unwrap();
        handle.start().unwrap();
        handle
    }

    fn threads(handle: &WorkloadHandle) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", handle.pids()[0])).unwrap();
        tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_thread_that_runs_elsewhere_is_seen_there() {
        let allowed = cpus::allowed();
        let &[first, .., last] = &allowed[..] else { return };
        let handle = benchmark();
        handle.set_affinity(0, &[first]).unwrap();
        until("four threads", || threads(&handle).len() == 4);
        for thread in threads(&handle) {
            let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
            assert!(status.contains(&format!("Cpus_allowed_list:\t{first}\n")), "{status}");
        }
        for thread in threads(&handle).into_iter().filter(|thread| *thread != handle.pids()[0]) {
            set_affinity(thread, &[last]).unwrap();
        }
        until("a look at the other CPU", || handle.snapshot()[0].cpus_used.contains(&last));
        assert!(handle.stop_and_collect()[0].migrations > 0);
    }

    #[test]
    fn what_threads_burn_counts_where_they_burn_it() {
        let handle = benchmark();
        let rounds = |more: u64| {
            let before = handle.iterations();
            until("requests", || handle.iterations() > before + more);
        };
        rounds(50);
        handle.enter_phase(1);
        rounds(50);
        let report = handle.stop_and_collect().remove(0);
        let sum: u64 = report.phases.iter().map(|phase| phase.cpu_time_ns).sum();
        assert_eq!((report.phases.len(), sum), (2, report.cpu_time_ns), "{:?}", report.phases);
        // Requests are counted a little later than they were served, so there were at least so many.
        let first = &report.phases[0];
        let (requests, burnt) = (first.iterations as f64, first.cpu_time_ns as f64);
        let (all, all_burnt) = (report.iterations as f64, report.cpu_time_ns as f64);
        assert!(burnt / all_burnt > requests / all / 10.0, "{:?}", report.phases);
    }
}
