//! Under `det` a run is repeated to the byte, however busy the host is.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ktstr::prelude::*;
use ktstr_proto::{Accel, verdict::Outcome};

use crate::attach::View;
use crate::harness::{Live, spec};
use crate::observe::monitor;

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

/// What the guest said in a run of `naps`, while `meanwhile` is done on the host.
fn trace(root: &Path, meanwhile: impl FnOnce(&Path)) -> [String; 2] {
    let mut spec = spec("naps", Accel::Det);
    (spec.seed, spec.vary) = (7, true);
    let live = Live::start(spec, root);
    meanwhile(&live.dir);
    let report = live.end().0.expect("a report");
    assert_eq!(report.outcome, Outcome::Pass, "{:?}", report.cause);
    let said =
        ["console.log", "guest.jsonl"].map(|file| fs::read_to_string(report.run_dir.join(file)).unwrap());
    assert!(said[1].contains("done after"), "{}", said[1]);
    said
}

fn assert_same(one: &[String; 2], other: &[String; 2]) {
    for (one, other) in one.iter().zip(other) {
        let differing = one.lines().zip(other.lines()).find(|(one, other)| one != other);
        assert!(one == other, "the first line that differs: {differing:#?}");
    }
}

#[test]
fn on_det_a_busy_host_is_not_seen_by_a_guest_that_naps() {
    let root = tempfile::tempdir().unwrap();
    let calm = trace(&root.path().join("calm"), |_| ());
    let _noise = Noise::new();
    assert_same(&calm, &trace(&root.path().join("busy"), |_| ()));
}

/// Questions of eight who come and go; two more attach on terminals.
const QUESTIONS: [&[&str]; 8] = [
    &["tasks", "--freeze"],
    &["rq[*].nr_running"],
    &["dsq", "--freeze"],
    &["scx"],
    &["cgroups", "--freeze"],
    &["bpf"],
    &["rq", "--freeze"],
    &["struct", "task_struct", "1", "--freeze"],
];

#[test]
fn on_det_ten_who_look_in_are_not_seen_by_the_guest() {
    let root = tempfile::tempdir().unwrap();
    let alone = trace(&root.path().join("alone"), |_| ());
    let (answers, views) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let watched = trace(&root.path().join("watched"), |run| {
        let over = || run.join("sidecar.json").exists();
        let name = run.to_str().unwrap();
        thread::scope(|scope| {
            for question in QUESTIONS {
                let ask = move || monitor(&[&["query", name], question].concat()).status.success();
                let answers = &answers;
                scope.spawn(move || {
                    while !over() {
                        answers.fetch_add(usize::from(ask()), Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over() {
                        views.fetch_add(usize::from(View::glance(run)), Ordering::Relaxed);
                    }
                });
            }
        });
    });
    println!("{answers:?} questions answered, {views:?} attached and left");
    assert!(answers.into_inner() >= QUESTIONS.len() && views.into_inner() >= 1, "somebody looked in");
    assert_same(&alone, &watched);
}
