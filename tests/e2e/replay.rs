//! Under `det` a run is repeated to the byte, however busy the host is.

use std::{
    fs,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ktstr::prelude::*;
use ktstr_proto::{Accel, verdict::Outcome};

use crate::harness::{run, spec};

/// Naps of each sleeper, and messages each way.
const ROUNDS: u32 = 800;
/// Threads of the host that do nothing but compute.
const NOISE: usize = 3;

/// Threads that compute until this is dropped, also by a test that fails.
struct Noise(Arc<AtomicBool>);

impl Noise {
    fn new() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..NOISE {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(over)
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// CPUs that fall idle and wake thousands of times, at moments that have nothing to do with each other.
#[ktstr_test(llcs = 1, cores = 2, threads = 1, max_gap_ms = 60000, max_spread_pct = 100, ignore)]
fn naps(_: &Ctx) -> Result<AssertResult> {
    let began = Instant::now();
    let (mut there, mut here) = std::io::pipe()?;
    let (mut back, mut answer) = std::io::pipe()?;
    thread::scope(|scope| {
        for micros in [60, 150, 410] {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    thread::sleep(Duration::from_micros(micros));
                    (0..round % 17 * 300).for_each(|n| _ = std::hint::black_box(n));
                }
            });
        }
        scope.spawn(move || {
            let mut byte = [0];
            while matches!(there.read(&mut byte), Ok(1)) && answer.write_all(&byte).is_ok() {}
        });
        scope.spawn(move || {
            let mut byte = [0];
            for _ in 0..ROUNDS {
                here.write_all(&byte).and_then(|()| back.read_exact(&mut byte)).expect("an answer");
            }
        });
    });
    // Differs where one instruction does.
    println!("done after {} ns", began.elapsed().as_nanos());
    Ok(AssertResult::pass())
}

#[test]
fn on_det_a_busy_host_is_not_seen_by_a_guest_that_naps() {
    let root = tempfile::tempdir().unwrap();
    let trace = |name: &str| {
        let mut spec = spec("naps", Accel::Det);
        (spec.seed, spec.vary, spec.runs_root) = (7, true, root.path().join(name));
        let report = run(spec);
        assert_eq!(report.outcome, Outcome::Pass, "{:?}", report.cause);
        ["console.log", "guest.jsonl"].map(|file| fs::read_to_string(report.run_dir.join(file)).unwrap())
    };
    let calm = trace("calm");
    assert!(calm[1].contains("done after"), "{}", calm[1]);
    let busy = {
        let _noise = Noise::new();
        trace("busy")
    };
    for (calm, busy) in calm.iter().zip(&busy) {
        let differing = calm.lines().zip(busy.lines()).find(|(calm, busy)| calm != busy);
        assert!(calm == busy, "the first line that differs: {differing:#?}");
    }
}
