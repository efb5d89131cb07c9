//! Where vCPUs stand when a capture is taken: one that is idle in the kernel's idle function, on the stack of
//! its own idle task, one that computes in user space.

use ktstr_proto::{Accel, Topology, run::RunSpec, verdict::Outcome};
use serde_json::Value;

use crate::core_file;
use crate::harness::{Live, PATIENCE, exec, not_run, recorded_pid, run, spec, wait_for};
use crate::observe::{ask, at, int, printed};
use crate::schema;

/// One process that computes; the other CPU has nothing to do.
const ONE_SPINS: &str = r#"
exec 2>&1
sh -c 'while :; do :; done' &
echo "--- worker $!"
sleep 100000
"#;

/// `THREAD_SIZE` of x86_64.
const STACK: u64 = 16 << 10;

fn hex(value: &Value, path: &str) -> u64 {
    let digits = at(value, path).as_str().and_then(|text| text.strip_prefix("0x")).expect("hexadecimal");
    u64::from_str_radix(digits, 16).unwrap()
}

/// Whether the CPU waits for an interrupt where idle CPUs do.
fn idles(registers: &Value) -> bool {
    let at = at(registers, "/at").as_str().unwrap_or_default();
    ["halt", "mwait", "default_idle"].iter().any(|word| at.contains(word))
}

/// A CPU's registers go with its run queue: numbers of vCPUs and of CPUs are not mixed up.
fn agree(run: &str, capture: &Value) {
    for (cpu, registers) in at(capture, "/registers").as_array().unwrap().iter().enumerate() {
        assert_eq!(int(registers, "/cpu"), cpu as i64);
        let in_kernel = hex(registers, "/cs") & 3 == 0;
        let rip = hex(registers, "/rip");
        assert_eq!(rip >> 63 == 1, in_kernel, "{registers}");
        if in_kernel && idles(registers) {
            let queue = format!("runqueues@{cpu}");
            let idle = |path: &str| ask(&["query", run, "struct", "rq", &queue, path, "--json"]);
            assert_eq!(idle("idle->comm")["value"], format!("swapper/{cpu}"));
            let stack = idle("idle->stack");
            println!("{stack}");
            let (bottom, rsp) = (hex(&stack, "/value"), hex(registers, "/rsp"));
            assert!((bottom..bottom + STACK).contains(&rsp), "CPU {cpu}: {rsp:#x} in {bottom:#x}");
        }
    }
}

fn stand_where_their_tasks_are(accel: Accel) {
    let mut spec: RunSpec = exec(ONE_SPINS);
    spec.accel = accel;
    spec.topology = Topology::new(1, 1, 2, 1).unwrap();
    spec.observe = true;
    spec.memory_mb = Some(384);
    let root = tempfile::tempdir().unwrap();
    let live = Live::start(spec, root.path());
    let dir = live.dir.clone();
    let run = dir.to_str().unwrap();
    let worker = wait_for("the worker", PATIENCE, || {
        let printed = printed(&dir);
        let pid = || printed.split("--- worker ").nth(1)?.lines().next()?.trim().parse::<i64>().ok();
        pid().map(Some).or_else(|| dir.join("sidecar.json").exists().then_some(None))
    });
    let Some(worker) = worker else {
        let report = live.end().0.expect("a report");
        assert!(not_run(&report, accel), "{:?}", report.cause);
        return;
    };
    let capture = |more: &[&str]| -> (String, Value) {
        let path =
            at(&ask(&[&["capture", run, "--json"], more].concat()), "/path").as_str().unwrap().to_owned();
        let capture = schema::checked(format!("{path}.json").as_ref());
        (path, capture)
    };
    // At some moment one is idle and the other computes; interrupts come in between.
    let seen = wait_for("an idle CPU beside one that computes", PATIENCE, || {
        let (path, capture) = capture(&[]);
        agree(run, &capture);
        let cpus = at(&capture, "/registers").as_array().unwrap();
        let computes = |registers: &&Value| {
            let cpu = int(registers, "/cpu");
            let runs = capture.pointer(&format!("/rq/{cpu}/running/pid")).and_then(Value::as_i64);
            runs == Some(worker) && hex(registers, "/cs") & 3 == 3
        };
        let found = cpus.iter().any(idles) && cpus.iter().any(|registers| computes(&registers));
        found.then_some(path)
    });
    let text = std::fs::read_to_string(format!("{seen}.txt")).unwrap();
    let stood = text.split("== where CPUs stood ==").nth(1).expect("the text has it, too");
    println!("{stood}");
    assert!(stood.contains("user space") && stood.contains("+0x"), "{stood}");
    // Writing all memory takes minutes in the lab, and is the same for both.
    if accel == Accel::Tcg {
        let (path, capture) = capture(&["--vmcore"]);
        core_file::is_what_debuggers_take(&format!("{path}.vmcore"), &capture);
    }
    // It would go on for ever.
    let vmm = nix::unistd::Pid::from_raw(recorded_pid(&dir, "vmm-pid", "/value").cast_signed());
    nix::sys::signal::kill(vmm, nix::sys::signal::Signal::SIGKILL).unwrap();
    live.end().0.expect("a report");
}

#[test]
fn on_tcg_vcpus_stand_where_their_tasks_are() {
    stand_where_their_tasks_are(Accel::Tcg);
}

#[test]
fn on_kvm_vcpus_stand_where_their_tasks_are() {
    stand_where_their_tasks_are(Accel::Kvm);
}

/// Its machine stands with the emulator's process: nobody can be asked.
#[test]
fn under_det_captures_say_why_they_have_no_registers() {
    let root = tempfile::tempdir().unwrap();
    let mut spec = spec("eevdf", Accel::Det);
    spec.snapshots = 1;
    spec.runs_root = root.path().to_owned();
    let report = run(spec);
    assert_eq!(report.outcome, Outcome::Pass, "{:?}", report.cause);
    let file = report.captures.iter().find_map(|mark| mark.file.as_ref().ok()).expect("a capture");
    let capture: Value = serde_json::from_slice(&std::fs::read(report.run_dir.join(file)).unwrap()).unwrap();
    let why = at(&capture, "/registers/absent").as_str().unwrap();
    assert!(why.contains("det tells no registers"), "{why}");
}
