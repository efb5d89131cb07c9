//! What the host withholds from everybody while a test measures a time.
//!
//! A bound on the clock holds only where the clock's time was there to be used: a machine that was stopped
//! for two seconds, or whose CPUs another machine uses half of the time, makes every reaction late. So a
//! thread on each CPU does nothing but sleep for a moment and note how late it woke, and a test that bounds
//! a time allows that much more. Threads that sleep are served first by the machine's own scheduler: what
//! is noted is hardly ever the test's own load. Refuses nothing; without threads nothing is allowed.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// How long each thread sleeps.
const BEAT: Duration = Duration::from_millis(2);
/// So late is every wake.
const USUAL: Duration = Duration::from_millis(1);

/// What one thread has noted: when it last woke, and each wake that came late, with by how much.
struct Noted {
    last: Instant,
    late: Vec<(Instant, Duration)>,
}

/// Threads that note how late they wake, until dropped.
pub struct Pulse {
    stop: Arc<AtomicBool>,
    noted: Vec<Arc<Mutex<Noted>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pulse {
    /// Begins to note.
    pub fn start() -> Self {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let mut pulse = Self { stop: Arc::default(), noted: Vec::new(), threads: Vec::new() };
        for cpu in cpus {
            let noted = Arc::new(Mutex::new(Noted { last: Instant::now(), late: Vec::new() }));
            pulse.noted.push(noted.clone());
            let stop = pulse.stop.clone();
            pulse.threads.push(std::thread::spawn(move || beat(cpu, &stop, &noted)));
        }
        pulse
    }

    /// How much of the time since `from` was withheld on the CPU that lost most.
    pub fn withheld_since(&self, from: Instant) -> Duration {
        let asked = Instant::now();
        self.noted.iter().map(|noted| lost(noted, from, asked)).max().unwrap_or_default()
    }
}

/// Waits for a beat after `asked`, so that a wait that is not over yet counts, too.
fn lost(noted: &Mutex<Noted>, from: Instant, asked: Instant) -> Duration {
    loop {
        let noted = noted.lock().expect("no thread panics");
        if noted.last > asked {
            let within =
                |(woke, late): &(Instant, Duration)| (*late).min(woke.saturating_duration_since(from));
            return noted.late.iter().map(within).sum();
        }
        drop(noted);
        std::thread::sleep(BEAT);
    }
}

fn beat(cpu: usize, stop: &AtomicBool, noted: &Mutex<Noted>) {
    let mut only = CpuSet::new();
    // A CPU that has just gone away is left to the others.
    let _ = only.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
    while !stop.load(Ordering::Relaxed) {
        let slept = Instant::now();
        std::thread::sleep(BEAT);
        let woke = Instant::now();
        let late = (woke - slept).saturating_sub(BEAT);
        let mut noted = noted.lock().expect("no thread panics");
        noted.last = woke;
        if late > USUAL {
            noted.late.push((woke, late));
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
