//! `attach` as a person has it: on a terminal, keys pressed, a live run behind it.

use std::{
    fs,
    num::NonZero,
    path::Path,
    process::{Command, ExitStatus},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ktstr::prelude::*;
use ktstr_proto::Accel;

use crate::harness::{Live, PATIENCE, assert_sound, reached, spec, wait_for};
use crate::observe::{ask, bin, monitor};
use crate::terminal::Terminal;

declare_scheduler!(SCX, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 1, 2, 1) });

/// A counter of the scheduler's that counts only with `--race`, and what ends the test once it is there.
const COUNTER: &str = "nr_not_looked";
const WORD: u64 = 77;

/// Six threads that spin on two CPUs until somebody outside writes the word.
#[ktstr_test(scheduler = SCX, duration_s = 300, max_gap_ms = 60000, max_spread_pct = 100, ignore)]
fn until_told(ctx: &Ctx) -> Result<AssertResult> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let told = loop {
            match ctx.read_map(".bss", COUNTER) {
                Ok(number) if number.as_u64() != Some(WORD) => thread::sleep(Duration::from_millis(200)),
                told => break told,
            }
        };
        over.store(true, Ordering::Relaxed);
        told
    })?;
    Ok(AssertResult::pass())
}

/// `attach` on a terminal, and what the terminal shows.
pub struct View {
    at: Terminal,
    shown: vt100::Parser,
}

const fn cells(n: u16) -> NonZero<u16> {
    NonZero::new(n).expect("a screen")
}

impl View {
    fn of(run: &Path, more: &[&str], rows: u16, cols: u16) -> Self {
        let mut attach = Command::new(bin("ktstr-monitor"));
        attach.arg("attach").arg(run).args(more).env("TERM", "xterm-256color");
        Self {
            at: Terminal::start(&attach, rows, cols),
            shown: vt100::Parser::new(cells(rows), cells(cols), 0),
        }
    }

    fn text(&self) -> String {
        self.shown.screen().contents()
    }

    /// Takes in what was written until the screen is as wanted, and returns it. What is wanted is said in one: half of
    /// a picture may be there already.
    fn until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let text = self.text();
            if wanted(&text) {
                return text;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} is not shown:\n{text}");
            let bytes = self.at.read();
            if bytes.is_empty() {
                assert!(self.at.child.try_wait().unwrap().is_none(), "ended before {what}:\n{text}");
            }
            self.shown.process(&bytes);
        }
    }

    /// Until `part` stands on the screen, or false: the run was over before.
    fn showed(&mut self, part: &str) -> bool {
        wait_for(part, PATIENCE, || {
            let ended = self.at.child.try_wait().unwrap().is_some();
            self.shown.process(&self.at.read());
            let found = self.text().contains(part);
            (found || ended).then_some(found)
        })
    }

    /// Looks, has the guest stand for each look, and leaves; whether both were seen before the run was over.
    pub fn glance(run: &Path) -> bool {
        let mut view = Self::of(run, &[], 24, 80);
        let looked = view.showed("│0 ");
        view.at.type_keys("f");
        let stood = view.showed("us each look");
        view.at.type_keys("q");
        view.end();
        looked && stood
    }

    /// Until all these stand on the screen, and none of those.
    fn shows(&mut self, parts: &[&str], without: &[&str]) {
        self.until(&format!("{parts:?} without {without:?}"), |text| {
            parts.iter().all(|part| text.contains(part)) && !without.iter().any(|part| text.contains(part))
        });
    }

    fn resize(&mut self, rows: u16, cols: u16) {
        self.shown.screen_mut().set_size(cells(rows), cells(cols));
        self.at.resize(rows, cols);
    }

    /// Waits for its end, and gives what stands on the terminal then.
    fn end(mut self) -> (ExitStatus, String) {
        let status = wait_for("its end", PATIENCE, || {
            self.shown.process(&self.at.read());
            self.at.child.try_wait().unwrap()
        });
        loop {
            let rest = self.at.read();
            if rest.is_empty() {
                break;
            }
            self.shown.process(&rest);
        }
        assert!(self.at.is_cooked(), "given back as it was");
        assert!(!self.shown.screen().alternate_screen() && !self.shown.screen().hide_cursor());
        let text = self.text();
        (status, text)
    }
}

/// The rows of a list: those between the line with `head` and the frame's end.
fn rows<'t>(text: &'t str, head: &str) -> Vec<&'t str> {
    let lines = text.lines().skip_while(|line| !line.contains(head)).skip(1);
    lines.take_while(|line| !line.starts_with('└')).collect()
}

/// The number in the last column of each row that has one.
fn last_numbers(rows: &[&str]) -> Vec<i64> {
    let last = |row: &&str| row.trim_end_matches(['│', ' ']).rsplit(' ').next()?.parse().ok();
    rows.iter().filter_map(last).collect()
}

#[test]
fn who_attaches_sees_the_run_and_leaves_it_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let live = Live::start(spec("until_told", Accel::Tcg), root.path());
    let dir = live.dir.clone();
    assert!(reached(&dir, "TestStarted"), "the test is under way");

    let mut view = View::of(&dir, &["--watch", "map .bss nr_enqueued"], 24, 80);
    // One list at a time fits. Six that spin on two CPUs: some wait, the longest first.
    let enqueued = |text: &str| {
        let (_, rest) = text.split_once("nr_enqueued = ")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let text = view.until("CPUs, and who waits", |text| {
        let (ages, cpus) = (last_numbers(&rows(text, "waiting")), rows(text, "runnable cfs"));
        let busy = cpus.len() == 2 && cpus.iter().all(|row| row.contains('['));
        let alone = !text.contains("queues") && text.contains("sched_ext enabled ktstr");
        busy && alone && ages.len() >= 3 && ages.is_sorted_by(|a, b| a >= b) && enqueued(text).is_some()
    });
    println!("{text}");
    let first = enqueued(&text).expect("a number");
    view.until("a number that grows", |text| enqueued(text).is_some_and(|now| now > first));

    view.at.type_keys("\t");
    view.shows(&["queues", "0x6b74", "global"], &["runnable age"]);
    view.at.type_keys("\t");
    view.shows(&["events", "DISPATCH_KEEP_LAST", "per s"], &["queues"]);
    view.at.type_keys("\t");
    view.shows(&["runnable cfs", "["], &["events", "queues", "runnable age"]);
    view.at.type_keys("\t");

    // All lists, once there is room for them; and back.
    view.resize(50, 200);
    view.shows(&["runnable age", "queues", "events"], &[]);
    view.resize(24, 80);
    view.shows(&["runnable age"], &["queues", "events"]);

    view.at.type_keys("f");
    view.shows(&["frozen for ", " us each look"], &[]);
    view.at.type_keys("f");
    view.shows(&["sched_ext enabled ktstr"], &["frozen for "]);
    view.at.type_keys("d");
    view.shows(&["captured, the guest stood for ", "capture-0.txt"], &[]);
    let capture = wait_for("the capture", PATIENCE, || fs::read_to_string(dir.join("capture-0.txt")).ok());
    assert!(capture.contains("scx-ktstr"), "{capture}");
    view.at.type_keys("w");
    view.shows(&["attached for reading"], &[]);
    assert!(!view.at.is_cooked(), "raw while it is shown");
    view.at.type_keys("q");
    let (status, text) = view.end();
    assert!(status.success() && text.trim().is_empty(), "{status}: {text}");

    // Who is told to end gives the terminal back, too.
    let mut view = View::of(&dir, &[], 24, 80);
    view.shows(&["sched_ext enabled"], &[]);
    let pid = nix::unistd::Pid::from_raw(view.at.child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert!(view.end().0.success());

    // The run goes on, and ends when it is told to: by a line that is typed.
    assert_eq!(ask(&["query", dir.to_str().unwrap(), "scx.state", "--json"]), "enabled");
    let mut view = View::of(&dir, &["--rw"], 24, 100);
    view.shows(&["sched_ext enabled", "w write"], &[]);
    view.at.type_keys("w");
    view.shows(&["write MAP PATH NUMBER"], &[]);
    // No key of a line means anything else.
    view.at.type_keys("q\x7f.bss nr_not_looked 77");
    view.shows(&[": .bss nr_not_looked 77"], &[]);
    view.at.type_keys("\r");
    let (status, text) = view.end();
    let name = dir.file_name().unwrap().to_str().unwrap();
    assert!(status.success() && text.contains(&format!("the run {name} is over")), "{status}: {text}");

    let (report, _) = live.end();
    let report = report.expect("a report");
    assert_sound(&report);
    let told: Vec<_> = report.notes.iter().filter(|note| note.contains("wrote into a map")).collect();
    assert!(told.len() == 1 && told[0].contains(COUNTER), "{:?}", report.notes);

    // What is over, what never was, and what is no run is said so, and the terminal stays as it is.
    let core = dir.join("capture-0.txt");
    let nowhere = root.path().join("no-such-run");
    for (what, why) in [(&dir, "it may be over"), (&nowhere, "no live run has"), (&core, "query --core")] {
        let (status, text) = View::of(what, &[], 24, 200).end();
        assert!(status.code() == Some(3) && text.contains(why), "{status}: {text}");
    }
    let refused = monitor(&["attach", "--core", "x"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("query --core FILE"), "{said}");
}
