//! Benchmarks with threads of their own inside one worker. The threads count into the worker's figures;
//! its own thread only waits for the end.

use std::{
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use super::matrix::Matrices;
use crate::work::{
    bench::{SchbenchConfig, TaobenchConfig},
    board::{Board, Series},
    cpus,
    not_run::Missing,
    region::Region,
    rng::Rng,
    sys::{futex_wait, futex_wake, now_ns, sleep_until},
    thread_meter::ThreadMeter,
    worker::{Done, WAIT_SLICE, Worker},
};

/// Metrics, by position: see [`crate::work::WorkType::metric_names`].
const REQUESTS_PER_S: usize = 0;
const SECOND: usize = 1;

/// Misses that a fast thread lets wait before it waits itself.
const OUTSTANDING: u32 = 64;

/// What the threads of one worker share.
struct Shared<'a> {
    board: &'a Board,
    index: usize,
    requests: AtomicU64,
}

impl Shared<'_> {
    /// Measures the calling thread until it ends.
    fn meter(&self) -> ThreadMeter<'_> {
        ThreadMeter::start(self.board, self.index)
    }

    fn served(&self) {
        self.requests.fetch_add(1, Relaxed);
    }
}

/// The worker's own thread, while the others work; requests counted so far.
fn oversee(w: &mut Worker<'_>, shared: &Shared<'_>) -> u64 {
    let start = now_ns();
    let mut counted = 0;
    while !w.stopped() {
        w.meter.blocking(|| sleep_until(now_ns() + 10_000_000));
        counted = count(w, shared, counted);
        let served = counted;
        let seconds = now_ns().saturating_sub(start) as f64 / 1e9;
        w.meter.metric(REQUESTS_PER_S, served as f64 / seconds.max(1e-9));
        w.meter.checkpoint();
    }
    counted
}

/// Counts the requests served since there were `counted`.
fn count(w: &mut Worker<'_>, shared: &Shared<'_>, counted: u64) -> u64 {
    let served = shared.requests.load(Relaxed);
    w.meter.did(served - counted, served - counted);
    served
}

/// Workers wait on a word of their own; the messenger stamps and wakes those that wait.
struct Desk {
    word: AtomicU32,
    stamp: AtomicU64,
}

pub(super) fn schbench(w: &mut Worker<'_>, config: &SchbenchConfig) -> Done {
    let cpus = cpus::allowed().len().max(1) as u32;
    let per_messenger = match config.worker_threads {
        0 => cpus.div_ceil(config.message_threads),
        workers => workers,
    };
    let shared = Shared { board: w.board, index: w.place.index, requests: AtomicU64::new(0) };
    let desks: Vec<Vec<Desk>> = (0..config.message_threads)
        .map(|_| {
            (0..per_messenger).map(|_| Desk { word: AtomicU32::new(0), stamp: AtomicU64::new(0) }).collect()
        })
        .collect();
    let started = std::thread::scope(|scope| {
        for team in &desks {
            let spawned =
                std::thread::Builder::new().spawn_scoped(scope, || messenger(&shared, team, config.rps));
            spawned.map_err(|_| Missing::Process)?;
            for desk in team {
                let spawned =
                    std::thread::Builder::new().spawn_scoped(scope, || attend(&shared, desk, config));
                spawned.map_err(|_| Missing::Process)?;
            }
        }
        Ok(oversee(w, &shared))
    });
    // Those whose requests were under way when the stop came have finished them.
    count(w, &shared, *started.as_ref().unwrap_or(&0));
    w.meter.metric(SECOND, f64::from(per_messenger * config.message_threads));
    started.map(drop)
}

fn messenger(shared: &Shared<'_>, team: &[Desk], rps: u64) {
    let mut meter = shared.meter();
    let mut tick = now_ns();
    let mut turn = 0;
    while !shared.board.stopped() {
        meter.checkpoint();
        if let Some(period) = 1_000_000_000u64.checked_div(rps) {
            // One request at each tick, to whoever waits first from here.
            tick += period;
            sleep_until(tick);
            let asking = (0..team.len()).map(|step| &team[(turn + step) % team.len()]);
            if let Some(desk) = asking.into_iter().find(|desk| desk.word.load(SeqCst) == 0) {
                hand_out(desk);
            }
            turn = (turn + 1) % team.len();
            continue;
        }
        for desk in team.iter().filter(|desk| desk.word.load(SeqCst) == 0) {
            hand_out(desk);
        }
        // Asleep until somebody asks for more; any desk will do.
        if let Some(busy) = team.iter().find(|desk| desk.word.load(SeqCst) == 1) {
            futex_wait(&busy.word, 1, Duration::from_millis(1));
        }
    }
}

fn hand_out(desk: &Desk) {
    desk.stamp.store(now_ns(), SeqCst);
    desk.word.store(1, SeqCst);
    futex_wake(&desk.word, 1);
}

fn attend(shared: &Shared<'_>, desk: &Desk, config: &SchbenchConfig) {
    let mut meter = shared.meter();
    let mut matrices = Matrices::new(config.cache_footprint_kib as usize * 1024);
    while !shared.board.stopped() {
        let since = now_ns();
        let mut slept = false;
        while desk.word.load(SeqCst) == 0 && !shared.board.stopped() {
            slept = futex_wait(&desk.word, 0, WAIT_SLICE);
        }
        if desk.word.load(SeqCst) == 0 {
            // Told to stop; nobody asked for anything.
            break;
        }
        let stamp = desk.stamp.load(SeqCst);
        if slept && stamp >= since {
            meter.record(Series::Wake, now_ns().saturating_sub(stamp));
        }
        let start = now_ns();
        if config.sleep_usec > 0 {
            sleep_until(start + config.sleep_usec * 1000);
        }
        for _ in 0..config.operations {
            if shared.board.stopped() {
                break;
            }
            matrices.multiply();
        }
        meter.record(Series::Iteration, now_ns().saturating_sub(start));
        meter.checkpoint();
        shared.served();
        desk.word.store(0, SeqCst);
        futex_wake(&desk.word, 1);
    }
}

/// Misses that nobody has fetched yet; futex.
struct Misses {
    waiting: AtomicU32,
    outstanding: AtomicU32,
    served: AtomicU64,
}

pub(super) fn taobench(w: &mut Worker<'_>, config: &TaobenchConfig) -> Done {
    let cpus = cpus::allowed().len().max(1) as u32;
    let fast = if config.client_threads == 0 { cpus } else { config.client_threads };
    let slow = if config.slow_threads == 0 { fast } else { config.slow_threads };
    let shared = Shared { board: w.board, index: w.place.index, requests: AtomicU64::new(0) };
    let misses =
        Misses { waiting: AtomicU32::new(0), outstanding: AtomicU32::new(0), served: AtomicU64::new(0) };
    let share = config.cache_mib as usize * (1 << 20) / fast as usize;
    let caches = (0..fast)
        .map(|_| Region::new(share).map(|cache| (w.rng.next_u64(), cache)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|errno| Missing::Memory.because(errno))?;
    let started = std::thread::scope(|scope| {
        let (shared, misses) = (&shared, &misses);
        for (seed, cache) in caches {
            let spawned = std::thread::Builder::new()
                .spawn_scoped(scope, move || serve_fast(shared, misses, config, seed, cache));
            spawned.map_err(|_| Missing::Process)?;
        }
        for _ in 0..slow {
            let spawned =
                std::thread::Builder::new().spawn_scoped(scope, move || fetch_slow(shared, misses, config));
            spawned.map_err(|_| Missing::Process)?;
        }
        Ok(oversee(w, shared))
    });
    count(w, &shared, *started.as_ref().unwrap_or(&0));
    let (all, fetched) = (shared.requests.load(Relaxed) as f64, misses.served.load(Relaxed) as f64);
    w.meter.metric(SECOND, if all > 0.0 { 100.0 * (all - fetched) / all } else { 0.0 });
    started.map(drop)
}

fn serve_fast(shared: &Shared<'_>, misses: &Misses, config: &TaobenchConfig, seed: u64, mut cache: Region) {
    let bytes = cache.len();
    let mut rng = Rng::new(seed);
    let mut meter = shared.meter();
    let mut tick = now_ns();
    while !shared.board.stopped() {
        meter.checkpoint();
        if let Some(period) = 1_000_000_000u64.checked_div(config.arrival_rate_hz) {
            tick += period;
            sleep_until(tick);
        }
        let start = now_ns();
        if rng.below(100) < u64::from(config.hit_pct) {
            let at = rng.below(bytes as u64) as usize;
            for line in 0..16 {
                cache.touch(at + line * 64);
            }
            meter.record(Series::Iteration, now_ns().saturating_sub(start));
            shared.served();
            continue;
        }
        misses.outstanding.fetch_add(1, SeqCst);
        misses.waiting.fetch_add(1, SeqCst);
        futex_wake(&misses.waiting, 1);
        loop {
            let outstanding = misses.outstanding.load(SeqCst);
            if outstanding < OUTSTANDING || shared.board.stopped() {
                break;
            }
            futex_wait(&misses.outstanding, outstanding, WAIT_SLICE);
        }
    }
}

fn fetch_slow(shared: &Shared<'_>, misses: &Misses, config: &TaobenchConfig) {
    let mut meter = shared.meter();
    while !shared.board.stopped() {
        meter.checkpoint();
        if misses.waiting.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_err() {
            futex_wait(&misses.waiting, 0, WAIT_SLICE);
            continue;
        }
        sleep_until(now_ns() + config.slow_path_us * 1000);
        misses.outstanding.fetch_sub(1, SeqCst);
        futex_wake(&misses.outstanding, 1);
        misses.served.fetch_add(1, Relaxed);
        shared.served();
    }
}
