//! Any process may die at any moment: the report names it, soon, and nothing stays behind.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use ktstr_proto::{
    Accel,
    run::RunSpec,
    verdict::{Cause, Outcome, Process, RunReport},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{
    Live, PATIENCE, SOON, alive, reached, recorded_at, recorded_pid, run_dir, spec, wait_for,
};
use crate::pulse::Pulse;

/// The survivors notice within this, of the time that the host does not withhold from everybody.
const NOTICE: Duration = Duration::from_millis(200);
/// The others are ended, the report is written and has arrived within this.
const REPORT: Duration = Duration::from_millis(1000);

/// When the victim is killed.
const PHASES: [&str; 4] = ["spawn", "boot", "ScenarioStarted", "TestEnded"];

struct Pids {
    vmm: u32,
    emulator: u32,
    monitor: u32,
}

impl Pids {
    /// Blocks until all of them run.
    fn of(dir: &Path) -> Self {
        Self {
            vmm: recorded_pid(dir, "vmm-pid", "/value"),
            emulator: recorded_pid(dir, "emulator-pid", "/value"),
            monitor: recorded_pid(dir, "monitor-pid", "/value"),
        }
    }

    fn gone(&self) {
        for (name, pid) in [("VMM", self.vmm), ("emulator", self.emulator), ("monitor", self.monitor)] {
            wait_for(&format!("end of the {name}"), SOON, || (!alive(pid)).then_some(()));
        }
    }
}

/// When a killed process was dead, on both clocks: how long the kernel takes to tear down a large
/// emulator is not ours to answer for.
pub struct Blow {
    at: Instant,
    unix: Duration,
}

pub fn strike(pid: u32) -> Blow {
    // The victim may be gone already when the run was quicker; then the report tells.
    let _ = kill(Pid::from_raw(pid.try_into().expect("a pid")), Signal::SIGKILL);
    wait_for("end of the victim", SOON, || (!alive(pid)).then_some(()));
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock that is set");
    Blow { at: Instant::now(), unix }
}

/// Whether the phase came before the run was over.
fn at(dir: &Path, phase: &str) -> bool {
    matches!(phase, "spawn" | "boot") || reached(dir, phase)
}

/// Kills one process of a run in each phase and hands the reports to `judge`.
fn kill_in_each_phase(victim: fn(&Pids) -> u32, judge: fn(&str, &RunReport)) {
    let pulse = Pulse::start();
    for phase in PHASES {
        let root = tempfile::tempdir().unwrap();
        // What begins from a snapshot has no boot to be killed in, and an emulator that dies before it
        // goes on costs no run: the machine is booted instead.
        let warm = !matches!(phase, "spawn" | "boot");
        let live = Live::start(RunSpec { warm, ..spec("eevdf", Accel::Tcg) }, root.path());
        let pids = Pids::of(&live.dir);
        if phase == "boot" {
            wait_for("console output", PATIENCE, || {
                fs::metadata(live.dir.join("console.log")).is_ok_and(|m| m.len() > 0).then_some(())
            });
        }
        assert!(at(&live.dir, phase), "the run ended before {phase}");
        let struck = strike(victim(&pids));
        let (report, ended) = live.end();
        let report = report.expect("the orchestrator lives and reports");
        let took = ended.saturating_duration_since(struck.at);
        let marks = ["stopped", "observation-ended", "vmm-exited"];
        let noticed = marks.iter().find_map(|mark| recorded_at(&report.run_dir, mark));
        let noticed = noticed.map(|at| Duration::from_millis(at).saturating_sub(struck.unix));
        let withheld = pulse.withheld_since(struck.at);
        let cause = &report.cause;
        println!(
            "{phase}: {cause:?} noticed after {noticed:?}, reported after {took:?}, {withheld:?} withheld"
        );
        // What a failure below is understood by.
        let log = fs::read_to_string(report.run_dir.join("events.jsonl")).unwrap_or_default();
        log.lines()
            .rev()
            .take(12)
            .for_each(|line| println!("  {}", line.chars().take(160).collect::<String>()));
        judge(phase, &report);
        if report.infrastructure {
            assert!(took < REPORT + withheld, "{phase}: the report took {took:?}");
        }
        // A machine that had already gone by itself leaves nothing to notice.
        if phase != "TestEnded" {
            let noticed = noticed.expect("the death is in the event log");
            assert!(noticed < NOTICE + withheld, "{phase}: noticed after {noticed:?}");
        }
        pids.gone();
    }
}

/// The process is named as dead; a run whose machine had already gone by itself may have passed.
fn names(process: Process, phase: &str, report: &RunReport) {
    let named = matches!(report.cause, Some(Cause::ProcessDied { process: p, .. }) if p == process);
    let over = phase == "TestEnded" && report.outcome == Outcome::Pass;
    assert!(named || over, "{phase}: {:?}", report.cause);
    assert!(over || report.exit_code() == 4);
}

#[test]
fn of_the_vmm() {
    kill_in_each_phase(|pids| pids.vmm, |phase, report| names(Process::Vmm, phase, report));
}

#[test]
fn of_the_emulator() {
    kill_in_each_phase(|pids| pids.emulator, |phase, report| names(Process::Emulator, phase, report));
}

#[test]
fn of_the_monitor_ends_observation_not_the_run() {
    kill_in_each_phase(
        |pids| pids.monitor,
        |phase, report| {
            assert_eq!(
                (report.outcome, report.infrastructure),
                (Outcome::Pass, false),
                "{phase}: {:?}",
                report.cause
            );
            let noted = report.notes.iter().any(|note| note.contains("observation ended"));
            assert!(noted || phase == "TestEnded", "{phase}: {:?}", report.notes);
        },
    );
}

/// Children of this test process that are orchestrators.
pub fn orchestrator() -> u32 {
    let own = std::process::id().to_string();
    wait_for("orchestrator", SOON, || {
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, rest) = stat.rsplit_once(')')?;
            let parent = rest.split_whitespace().nth(1)?;
            (head.ends_with("(ktstr-orch") && parent == own).then(|| head.split(' ').next()?.parse().ok())?
        })
    })
}

#[test]
fn of_the_orchestrator() {
    let pulse = Pulse::start();
    for phase in PHASES {
        let root = tempfile::tempdir().unwrap();
        let live = Live::start(spec("eevdf", Accel::Tcg), root.path());
        let pids = Pids::of(&live.dir);
        assert!(at(&live.dir, phase), "the run ended before {phase}");
        let struck = strike(orchestrator());
        let (report, ended) = live.end();
        if phase == "TestEnded" && report.is_ok() {
            // The run was over before the blow fell.
            continue;
        }
        let error = report.expect_err("nobody is left to report");
        assert!(error.to_string().contains("ktstr-orch"), "{error}");
        let took = ended.saturating_duration_since(struck.at);
        let withheld = pulse.withheld_since(struck.at);
        assert!(took < NOTICE + withheld, "{phase}: the client noticed after {took:?}");
        pids.gone();
    }
}

#[test]
fn of_the_client() {
    for phase in PHASES {
        let root = tempfile::tempdir().unwrap();
        let mut client = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "verdicts::eevdf"])
            .env("KTSTR_RUNS_ROOT", root.path())
            .env("KTSTR_ACCEL", "tcg")
            .env_remove("NEXTEST")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let dir = run_dir(root.path());
        let pids = Pids::of(&dir);
        assert!(at(&dir, phase), "the run ended before {phase}");
        strike(client.id());
        client.wait().unwrap();
        pids.gone();
    }
}
