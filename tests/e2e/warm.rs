//! A machine that was kept ready, and those that begin from it: the same verdicts, and nothing in common
//! that they must not have in common.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use ktstr::client::Session;
use ktstr_proto::{
    Accel, Topology,
    client::ClientEvent,
    run::{Boot, RunSpec},
    snapshot::{ENTRY, HEADER, Header, decode_table, encode_table},
    verdict::{Outcome, RunReport},
};

use crate::{
    bad_input::Served,
    harness::{self, PATIENCE, assert_sound, not_run},
};

/// An orchestrator with a store of its own.
struct Store {
    dir: tempfile::TempDir,
    served: Served,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let served = Served::start_with(&[("KTSTR_WARM_DIR", dir.path())]);
        Self { dir, served }
    }

    fn run(&self, spec: RunSpec) -> (RunReport, String) {
        let mut session = Session::connect(self.served.socket.to_str().unwrap().into(), "e2e").unwrap();
        let mut output = String::new();
        let report = session
            .run(spec, PATIENCE, |event, _| {
                if let ClientEvent::Output { text, .. } = event {
                    output.push_str(&text);
                }
            })
            .expect("a report");
        println!("{}", ktstr::render::report(&report));
        (report, output)
    }

    /// The one snapshot, once it is on the disk.
    fn snapshot(&self) -> PathBuf {
        crate::harness::wait_for("snapshot", PATIENCE, || {
            let all = fs::read_dir(self.dir.path()).ok()?.flatten().map(|entry| entry.path());
            all.into_iter().find(|path| path.extension().is_some_and(|e| e == "snapshot"))
        })
    }
}

/// As all make it, but warm whatever KTSTR_COLD says to the suite.
fn spec(name: &str, accel: Accel) -> RunSpec {
    RunSpec { warm: true, ..harness::spec(name, accel) }
}

fn exec(command: &str) -> RunSpec {
    RunSpec { warm: true, ..harness::exec(command) }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// A snapshot with nothing wrong in it, of a machine that has forgotten its kernel.
fn hollow(path: &Path) {
    // Where one without `nokaslr` would not always lie.
    const KERNEL: std::ops::Range<u64> = 16 << 20..64 << 20;
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let old = Header::read(&mut file).unwrap();
    let read = |at, len| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let state = read(old.state_at(), old.state as usize);
    let pieces = decode_table(&old, &read(old.table_at(), old.pieces as usize * ENTRY)).unwrap();
    let (mut from, mut to) = (HEADER as u64, HEADER as u64);
    let mut left = Vec::new();
    for piece in pieces {
        if !KERNEL.contains(&piece.offset) {
            file.write_all_at(&read(from, piece.len as usize), to).unwrap();
            to += u64::from(piece.len);
            left.push(piece);
        }
        from += u64::from(piece.len);
    }
    let table = encode_table(&left);
    let content = to - HEADER as u64;
    let new = Header { content, pieces: left.len() as u32, table_crc: crc32(&table), ..old };
    file.write_all_at(&new.encode().unwrap(), 0).unwrap();
    file.write_all_at(&state, new.state_at()).unwrap();
    file.write_all_at(&table, new.table_at()).unwrap();
    file.set_len(new.file_len()).unwrap();
}

/// A snapshot with nothing wrong in it, but what the emulator is to read of its devices is not what it wrote.
fn nonsense(path: &Path) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let old = Header::read(&mut file).unwrap();
    let mut state = vec![0; old.state as usize];
    file.read_exact_at(&mut state, old.state_at()).unwrap();
    let middle = state.len() / 2;
    state[middle..].fill(0xa5);
    let new = Header { state_crc: crc32(&state), ..old };
    file.write_all_at(&state, new.state_at()).unwrap();
    file.write_all_at(&new.encode().unwrap(), 0).unwrap();
}

/// CRC-32 as in IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

/// Boot id, 16 random bytes, seconds since the epoch.
const WHO: &str = "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1; date +%s";

#[test]
fn machines_from_one_snapshot_differ_where_they_must() {
    let store = Store::new();
    let mut seen: Vec<(String, String)> = Vec::new();
    for begun in [Boot::Kept, Boot::Warm, Boot::Warm] {
        let before = now();
        let (report, output) = store.run(exec(WHO));
        assert_eq!((report.outcome, report.exit_status), (Outcome::Pass, Some(0)), "{:?}", report.cause);
        assert_eq!(report.boot, begun);
        let lines: Vec<&str> = output.lines().map(str::trim).collect();
        let [id, random, seconds] = lines[..] else { panic!("{output}") };
        let seconds: u64 = seconds.parse().unwrap();
        assert!((before..=now() + 1).contains(&seconds), "{seconds} is not between {before} and {}", now());
        assert!(seen.iter().all(|(other, bytes)| other != id && bytes != random), "{seen:?} {output}");
        seen.push((id.to_owned(), random.to_owned()));
        store.snapshot();
    }
    // Where a file of this size has been damaged nobody can tell without reading all of it.
    flip(&store.snapshot(), fs::metadata(store.snapshot()).unwrap().len() / 2);
    let (report, _) = store.run(exec("true"));
    assert_eq!((report.outcome, report.boot), (Outcome::Pass, Boot::Kept));
    let said = report.notes.join("\n");
    assert!(said.contains("discarded") && said.contains("damaged") && said.contains("cold"), "{said}");
    fs::remove_file(store.snapshot()).unwrap();
    // Another command line is another machine. One that is whole and of no use boots in the same run, too.
    let other = |command| RunSpec { kernel_args: vec!["nokaslr".into()], ..exec(command) };
    assert_eq!(store.run(other("true")).0.boot, Boot::Kept);
    hollow(&store.snapshot());
    let (report, output) = store.run(other("echo here"));
    assert_eq!((report.outcome, report.boot, output.trim()), (Outcome::Pass, Boot::Kept, "here"));
    let said = report.notes.join("\n");
    assert!(said.contains("discarded") && said.contains("the guest") && said.contains("cold"), "{said}");
    // So does one at which the emulator ends, or which it does not take.
    nonsense(&store.snapshot());
    let (report, output) = store.run(other("echo there"));
    assert_eq!((report.outcome, report.boot, output.trim()), (Outcome::Pass, Boot::Kept, "there"));
    let said = report.notes.join("\n");
    assert!(said.contains("discarded") && said.contains("emulat") && said.contains("cold"), "{said}");
}

#[test]
fn a_test_with_a_scheduler_comes_to_the_same_from_a_snapshot() {
    let store = Store::new();
    for begun in [Boot::Kept, Boot::Warm] {
        let (report, _) = store.run(spec("healthy", Accel::Tcg));
        assert_sound(&report);
        assert_eq!(report.boot, begun);
        assert!(report.monitor.is_some_and(|summary| summary.samples > 0), "it is observed");
        store.snapshot();
    }
}

/// Each way for a run to end is the same whether its machine has booted, is kept, or was kept.
#[test]
fn verdicts_are_the_same_booted_and_from_a_snapshot() {
    let store = Store::new();
    let kernel_panics = || exec("echo c >/proc/sysrq-trigger");
    let kinds = [spec("panicking", Accel::Tcg), spec("erring", Accel::Tcg), spec("crashing", Accel::Tcg)];
    for wanted in kinds.into_iter().chain([kernel_panics()]) {
        let (booted, _) = store.run(RunSpec { warm: false, ..wanted.clone() });
        assert_eq!(booted.boot, Boot::Cold);
        assert_ne!(booted.outcome, Outcome::Pass, "it is to go wrong");
        // The first of its kind of machine is kept, the next begins from that.
        for _ in 0..2 {
            let (report, _) = store.run(wanted.clone());
            assert_ne!(report.boot, Boot::Cold, "{:?}", report.notes);
            assert_eq!(report.outcome, booted.outcome, "{}: {:?}", wanted.name, report.cause);
            let kind = |report: &RunReport| report.cause.as_ref().map(std::mem::discriminant);
            let both = (&report.cause, &booted.cause);
            assert_eq!(kind(&report), kind(&booted), "{}: {both:?}", wanted.name);
            if report.boot == Boot::Warm {
                break;
            }
            store.snapshot();
        }
    }
    // What brought that kernel down may have been there before: the next one boots.
    assert_eq!(store.run(exec("true")).0.boot, Boot::Kept);
}

/// Machines of the nested kind die now and then before they have said a word. Such a snapshot is discarded
/// and the run boots; then there are more runs until two have begun from one. What the test does not get to in
/// time it does in another attempt: the limit is the one of the lab's tests.
#[test]
fn on_kvm_two_machines_from_one_snapshot_come_to_what_a_booted_one_comes_to() {
    const MOST: usize = 5;
    let store = Store::new();
    let mut seen: Vec<(String, String)> = Vec::new();
    let mut begun = Vec::new();
    let topology = Topology::new(1, 1, 2, 1).expect("the lab's own shape");
    let healthy = RunSpec { topology, ..spec("healthy", Accel::Kvm) };
    let who = RunSpec { topology, accel: Accel::Kvm, ..exec(WHO) };
    while begun.iter().filter(|boot| **boot == Boot::Warm).count() < 2 {
        assert!(begun.len() < MOST, "{begun:?}");
        // The first is kept, the second does something else, and what comes then does the same again.
        let test = begun.len() == 1;
        let before = now();
        let (report, output) = store.run(if test { healthy.clone() } else { who.clone() });
        if not_run(&report, Accel::Kvm) {
            return;
        }
        begun.push(report.boot);
        if report.infrastructure {
            // Nothing was said about any scheduler, by a machine that the lab lost or did not get to run.
            continue;
        }
        println!("{output}");
        assert_sound(&report);
        assert_ne!(report.boot, Boot::Cold, "{:?}", report.notes);
        if test {
            assert!(report.monitor.is_some_and(|summary| summary.samples > 0), "it is observed");
            continue;
        }
        let lines: Vec<&str> = output.lines().map(str::trim).collect();
        let [id, random, seconds] = lines[..] else { panic!("{output}") };
        let seconds: u64 = seconds.parse().unwrap();
        assert!((before..=now() + 1).contains(&seconds), "{seconds} is not between {before} and {}", now());
        assert!(seen.iter().all(|(other, bytes)| other != id && bytes != random), "{seen:?} {output}");
        seen.push((id.to_owned(), random.to_owned()));
    }
    assert!(begun.contains(&Boot::Kept), "{begun:?}");
}

#[test]
fn what_the_guest_has_no_room_for_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    fs::write(&path, vec![1; 100 << 20]).unwrap();
    let mut spec = exec("true");
    let ktstr_proto::run::Job::Shell(shell) = &mut spec.job else { unreachable!("exec makes a shell job") };
    shell.include.push(path);
    spec.kernel_args = vec!["mem=192M".into()];
    let (report, _) = Store::new().run(spec);
    let Some(ktstr_proto::verdict::Cause::GuestInit { reason, .. }) = &report.cause else {
        panic!("{:?}", report.cause)
    };
    assert!(reason.contains("unpack") && reason.contains("memory"), "{reason}");
}
