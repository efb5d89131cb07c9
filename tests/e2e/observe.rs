//! What is read from outside is what the guest's own files say, and looking leaves no trace.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Instant,
};

use ktstr_proto::{
    Accel, Topology,
    run::{Job, RunSpec, ShellJob},
    verdict::{Outcome, RunReport},
};
use serde_json::Value;

use crate::core_file;
use crate::harness::{Live, PATIENCE, SOON, end_machine, exec, recorded_pid, run, spec, wait_for};
use crate::matrix;

/// A worker that is stopped after some work has constant figures; six that spin fill the queues.
const PLANT: &str = r#"
exec 2>&1
for M in irqbypass kvm; do insmod "/include-files/$(uname -r).$M.ko"; done
echo 1 > /proc/sys/kernel/sched_schedstats
/include-files/scx-ktstr --watchdog-ms 25000 &
until [ "$(cat /sys/kernel/sched_ext/state)" = enabled ]; do sleep 0.1; done
mkdir -p /sys/fs/cgroup/facts/inner
sh -c 'echo $$ > /sys/fs/cgroup/facts/inner/cgroup.procs; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; kill -STOP $$' &
W=$!
until grep -q 'State:.T' /proc/$W/status; do sleep 0.1; done
for i in 1 2 3 4 5 6; do sh -c 'while :; do :; done' & done
look() {
    echo "--- $1"
    echo "worker $W"
    cat /proc/schedstat
    sed 's/^/event /' /sys/kernel/sched_ext/root/events
    sed 's/^/sched /' /proc/$W/sched
    sed 's/^/usage /' /sys/fs/cgroup/facts/cpu.stat
    sed 's/^/status /' /proc/$W/status
    sed 's/^/group /' /proc/$W/cgroup
    echo "--- end of $1"
}
grep '800 [TDRB] ' /proc/kallsyms | sed 's/^/symbol /'
N=0
while [ $N -lt 20 ]; do look $N; N=$((N+1)); sleep 1; done
"#;

/// The guest's own account at one moment: lines by their first words.
struct Account(BTreeMap<String, Vec<String>>);

impl Account {
    /// What was printed between the marks, once the last one is there.
    fn read(output: &str, which: usize) -> Option<Self> {
        let (_, rest) = output.split_once(&format!("--- {which}\n"))?;
        let (lines, _) = rest.split_once(&format!("--- end of {which}\n"))?;
        let mut account = BTreeMap::new();
        for line in lines.lines() {
            let words: Vec<String> =
                line.split([' ', '\t', ':']).filter(|w| !w.is_empty()).map(str::to_owned).collect();
            let key = match words[0].as_str() {
                "event" | "sched" | "usage" | "status" | "group" if words.len() > 2 => words[..2].join(" "),
                _ => words[0].clone(),
            };
            account.insert(key, words);
        }
        Some(Self(account))
    }

    fn words(&self, key: &str) -> &[String] {
        self.0.get(key).unwrap_or_else(|| panic!("no `{key}` in {:?}", self.0.keys()))
    }

    fn number(&self, key: &str, nth: usize) -> i64 {
        let word = &self.words(key)[nth];
        word.parse().unwrap_or_else(|_| panic!("`{word}` of `{key}` is a number"))
    }

    /// Milliseconds with six decimals, as nanoseconds.
    fn nanos(&self, key: &str) -> i64 {
        let last = self.words(key).last().expect("a value");
        let (ms, ns) = last.split_once('.').expect("a fraction");
        ms.parse::<i64>().unwrap() * 1_000_000 + ns.parse::<i64>().unwrap()
    }
}

pub fn bin(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let beside = exe.ancestors().nth(2).unwrap().join(name);
    if beside.is_file() {
        return beside;
    }
    PathBuf::from(std::env::var_os("KTSTR_BIN_DIR").expect("KTSTR_BIN_DIR names the executables")).join(name)
}

pub fn monitor(args: &[&str]) -> Output {
    Command::new(bin("ktstr-monitor")).args(args).output().expect("ktstr-monitor can be run")
}

/// The answer to a question about a live run or a core file.
pub fn ask(args: &[&str]) -> Value {
    let output = monitor(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// Modules of the stored kernels, by names that tell which kernel each is for: the guest knows its own.
fn modules(series: Option<&str>, into: &Path) -> Vec<PathBuf> {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let store = var("KTSTR_CACHE_DIR")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("ktstr/kernels")))
        .or_else(|| Some(var("HOME")?.join(".cache/ktstr/kernels")));
    let entries = store.into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let mut found = Vec::new();
    for dir in entries.map(|entry| entry.path()) {
        let metadata = fs::read(dir.join("metadata.json")).unwrap_or_default();
        let metadata: Value = serde_json::from_slice(&metadata).unwrap_or_default();
        let Some(release) = metadata["release"].as_str() else { continue };
        if series.is_some_and(|series| !release.starts_with(series)) {
            continue;
        }
        for name in ["irqbypass", "kvm"] {
            let to = into.join(format!("{release}.{name}.ko"));
            if !found.contains(&to) && fs::copy(dir.join(format!("modules/{name}.ko")), &to).is_ok() {
                found.push(to);
            }
        }
    }
    found
}

/// Structures of the kernel and of a module that the guest has loaded, by the types of each.
fn structures(run: &str, capture: &Value) {
    let shown = |words: &[&str]| -> Value {
        let mut args = vec!["query", run, "struct"];
        args.extend(words);
        args.push("--json");
        ask(&args)["value"].clone()
    };
    let init = shown(&["task_struct", "1"]);
    assert_eq!((int(&init, "/pid"), int(&init, "/tgid")), (1, 1), "{}", at(&init, "/comm"));
    let own = at(capture, "/tasks").as_array().unwrap().iter().find(|task| int(task, "/pid") == 1);
    assert_eq!(at(&init, "/comm"), at(own.expect("PID 1"), "/comm"));
    assert_eq!(shown(&["task_struct", "1", "real_parent->comm"]), "swapper/0");
    for cpu in [0, 1] {
        assert_eq!(shown(&["rq", &format!("runqueues@{cpu}"), "cpu"]), cpu);
    }
    let followed = ask(&["query", run, "struct rq runqueues@1 rd", "--follow", "1", "--json"]);
    assert!(int(&followed, "/value/value/refcount/counter") >= 1, "{followed}");
    let refused = monitor(&["query", run, "struct", "rq", "runqueues"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("per CPU: write runqueues@CPU"), "{said}");

    let loaded = at(capture, "/modules").as_array().unwrap();
    if !loaded.iter().any(|module| at(module, "/name") == "kvm") {
        println!("NOT RUN: the store has no module for {}", at(capture, "/kernel"));
        return;
    }
    assert!(loaded.iter().all(|module| at(module, "/state") == "live"), "{loaded:?}");
    let modules = ask(&["query", run, "modules", "--json"]);
    println!("modules: {modules}");
    let kvm = modules.as_array().unwrap().iter().find(|module| at(module, "/name") == "kvm").unwrap();
    assert!(int(kvm, "/types") > 1000 && int(kvm, "/symbols") > 1000, "{kvm}");
    // A table of the module's own type, which has another name in older ones.
    let is_there = |of: &&str| monitor(&["query", run, "struct", of, "kvm:kvm_caps"]).status.success();
    let of = ["kvm:_kvm_stats_desc", "kvm:kvm_stats_desc"].into_iter().find(is_there).expect("a type");
    let first = shown(&[of, "kvm:kvm_vm_stats_desc"]);
    assert_eq!(at(&first, "/name"), "remote_tlb_flush", "{first}");
    assert_eq!(shown(&[of, "kvm:kvm_vm_stats_desc[1]", "name"]), "remote_tlb_flush_requests");
    // Its type is found without saying whose it is.
    assert_eq!(shown(&["kvm_caps", "kvm:kvm_caps", "supported_vm_types"]), 0);
    assert_eq!(shown(&["file_operations", "kvm:kvm_chardev_ops", "llseek"]), "noop_llseek");
    let refused = monitor(&["query", run, "struct", "kvm:no_such", "kvm:kvm_caps"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("nor a module has a structure `no_such`") && said.contains("irqbypass"), "{said}");
}

fn planted(kernel: Option<&str>, files: &Path) -> RunSpec {
    let mut spec = exec(PLANT);
    spec.topology = Topology::new(1, 1, 2, 1).unwrap();
    spec.kernel = kernel.map(str::to_owned).or(spec.kernel);
    spec.memory_mb = Some(384);
    spec.observe = true;
    spec.watchdog_ms = Some(60_000);
    let mut include = vec![bin("scx-ktstr")];
    include.extend(modules(spec.kernel.as_deref(), files));
    spec.job = Job::Shell(ShellJob { include, exec: Some(PLANT.into()), dmesg: false, term: None });
    spec
}

/// What the guest's processes have printed so far.
pub fn printed(dir: &Path) -> String {
    let log = fs::read_to_string(dir.join("guest.jsonl")).unwrap_or_default();
    let text = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(message.pointer("/body/Log/text")?.as_str()?.to_owned())
    };
    log.lines().filter_map(text).collect()
}

pub fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    value.pointer(path).unwrap_or_else(|| panic!("no {path}"))
}

pub fn int(value: &Value, path: &str) -> i64 {
    let found = at(value, path);
    found.as_i64().unwrap_or_else(|| panic!("{path} is {found}"))
}

/// `cpuN` lines of `/proc/schedstat`: word and member.
const SCHEDSTAT: [(usize, &str); 8] = [
    (1, "/yld_count"),
    (3, "/sched_count"),
    (4, "/sched_goidle"),
    (5, "/ttwu_count"),
    (6, "/ttwu_local"),
    (7, "/rq_cpu_time"),
    (8, "/rq_sched_info/run_delay"),
    (9, "/rq_sched_info/pcount"),
];

/// Everything that moves lies between what the guest said before and after; what stands is equal.
fn compare(capture: &Value, before: &Account, after: &Account) {
    let between = |what: &str, low: i64, found: i64, high: i64| {
        assert!(low <= found && found <= high, "{what}: {low} ≤ {found} ≤ {high}");
    };
    for (cpu, rq) in at(capture, "/rq").as_array().unwrap().iter().enumerate() {
        let key = format!("cpu{cpu}");
        for (word, member) in SCHEDSTAT {
            let found = int(rq, member);
            between(&format!("{key}{member}"), before.number(&key, word), found, after.number(&key, word));
        }
    }
    let mut compared = 0;
    for (name, value) in at(capture, "/scx/events").as_object().unwrap() {
        let key = format!("event {name}");
        match value.as_i64() {
            Some(found) => between(name, before.number(&key, 2), found, after.number(&key, 2)),
            None => assert!(!before.0.contains_key(&key), "{name} is there: {value}"),
        }
        compared += usize::from(value.is_i64());
    }
    assert!(compared >= 5, "{compared} event counters");

    let pid = before.number("worker", 1);
    let tasks = at(capture, "/tasks").as_array().unwrap();
    let task = tasks.iter().find(|task| int(task, "/pid") == pid).expect("the worker is there");
    assert_eq!(int(task, "/se/sum_exec_runtime"), before.nanos("sched se.sum_exec_runtime"));
    assert_eq!(before.nanos("sched se.sum_exec_runtime"), after.nanos("sched se.sum_exec_runtime"));
    let switches = int(task, "/nvcsw") + int(task, "/nivcsw");
    assert_eq!(switches, before.number("sched nr_switches", 2));
    assert_eq!(int(task, "/se/nr_migrations"), before.number("sched se.nr_migrations", 2));
    assert_eq!(int(task, "/prio"), before.number("sched prio", 2));
    assert_eq!(int(task, "/policy"), before.number("sched policy", 2));
    assert_eq!(at(task, "/cpus_mask"), before.words("status Cpus_allowed_list")[2].as_str());
    assert_eq!(at(task, "/allowed"), at(task, "/cpus_mask"), "nothing holds it");
    assert_eq!(at(task, "/cgroup"), "/facts/inner");
    assert_eq!(at(task, "/state"), "T (stopped)");
    assert_eq!(at(task, "/class"), "ext");

    let groups = at(capture, "/cgroups").as_array().unwrap();
    let usage = |path: &str| {
        let group = groups.iter().find(|group| at(group, "/path") == path).expect("the group is there");
        int(group, "/usage_ns") / 1000
    };
    assert_eq!(usage("/facts"), before.number("usage usage_usec", 2));
    assert_eq!(usage("/facts/inner"), before.number("usage usage_usec", 2));

    // Six tasks on two CPUs: some wait, on the scheduler's own queue, and the queue's count is right but for what a
    // CPU was about when it stood: list and count are written one after the other, under the queue's lock.
    let queues = at(capture, "/dsq").as_array().unwrap();
    let listed = queues.iter().map(|q| at(q, "/tasks").as_array().unwrap().len() as i64);
    let counted: i64 = queues.iter().map(|q| int(q, "/nr")).sum();
    let cpus = at(capture, "/rq").as_array().unwrap().len() as u64;
    assert!(listed.sum::<i64>().abs_diff(counted) <= cpus, "{counted} by the counts: {queues:?}");
    assert!(counted >= 3, "{counted} tasks wait");
    let shared = queues.iter().filter(|q| at(q, "/kind") == "user" || at(q, "/kind") == "global");
    assert!(shared.map(|q| int(q, "/nr")).sum::<i64>() >= 1, "{queues:?}");
}

/// Global symbols, spread over the guest's `/proc/kallsyms`, lie where the monitor takes them to lie: what it decoded
/// from the stripped image, moved by KASLR.
fn symbols(run: &str, printed: &str) {
    // Modules' symbols have their module behind them.
    let symbol = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["symbol", address, _, name] => Some((u64::from_str_radix(address, 16).ok()?, name.to_owned())),
        _ => None,
    };
    let told: Vec<_> = printed.lines().filter_map(symbol).collect();
    let mut compared = 0;
    for (address, name) in told.iter().step_by((told.len() / 24).max(1)) {
        let output = monitor(&["query", run, "struct", "list_head", name, "--json"]);
        // Per-CPU variables have many addresses, and what only the boot needed is there no more.
        if !output.status.success() {
            continue;
        }
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = at(&answer, "/at").as_str().expect("an address").trim_start_matches("0x").to_owned();
        let found = u64::from_str_radix(&found, 16).expect("an address");
        assert_eq!(found, *address, "{name}: the monitor has {found:#x}, the guest {address:#x}");
        compared += 1;
    }
    println!("{compared} of {} symbols are compared, and lie where the guest says", told.len());
    assert!(compared >= 12, "{compared} of {told:?}");
}

/// In a run like any other guest and monitor agree where the symbols lie that everything is found by.
fn symbols_agree(report: &RunReport) {
    let monitor = report.monitor.as_ref().expect("the run was observed");
    let symbols = monitor.symbols.as_ref().expect("they were compared");
    println!("{symbols:?}");
    assert_eq!((&symbols.differ, &symbols.impossible), (&vec![], &None));
    assert!(symbols.agree >= 20 && symbols.untold.is_empty(), "{symbols:?}");
    let log = fs::read_to_string(report.run_dir.join("events.jsonl")).unwrap();
    assert_eq!(log.matches("SymbolsCompared").count(), 1, "it is in the run's record");
}

#[test]
fn symbols_of_every_run_are_compared() {
    let mut spec = spec("eevdf", Accel::Tcg);
    let root = tempfile::tempdir().unwrap();
    spec.runs_root = root.path().into();
    let report = run(spec);
    assert_eq!(report.outcome, Outcome::Pass, "{:?} {:?}", report.cause, report.result);
    println!("{:?}", report.boot);
    symbols_agree(&report);
}

/// Whoever attaches for writing sets numbers, and nobody else.
fn writes(run: &str) {
    let words = ["write", run, ".bss", "nr_stalled", "77"];
    let refused = monitor(&words);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("say --rw"), "{said}");
    let ask_for = || ask(&["query", run, "map", ".bss", "nr_stalled", "--json"]);
    assert_eq!(ask_for(), 0);
    let written = monitor(&[&words[..], &["--rw"]].concat());
    let said = String::from_utf8_lossy(&written.stderr).into_owned();
    assert!(written.status.success() && said.contains("the guest stood for"), "{said}");
    assert_eq!(ask_for(), 77);
    let refused = monitor(&["write", run, ".bss", "no_such", "1", "--rw"]);
    assert!(!refused.status.success(), "there is no such variable");
}

fn facts(kernel: Option<&str>) {
    let root = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let live = Live::start(planted(kernel, files.path()), root.path());
    let dir = live.dir.clone();
    let run = dir.to_str().unwrap();
    wait_for("the guest's account", PATIENCE, || Account::read(&printed(&dir), 0));

    let taken = ask(&["capture", run, "--vmcore", "--json"]);
    let path = at(&taken, "/path").as_str().unwrap().to_owned();
    println!("capture: {taken}");
    let text = wait_for("the capture's text", SOON, || {
        fs::read_to_string(format!("{path}.txt")).ok().filter(|text| text.contains("== all "))
    });
    assert!(text.contains("scx-ktstr") && text.contains("/facts/inner"), "{text}");
    let capture: Value = serde_json::from_slice(&fs::read(format!("{path}.json")).unwrap()).unwrap();

    // The watchdog is as patient as was asked, not the scheduler's 25 s, wherever this kernel keeps it.
    assert_eq!(
        int(&capture, "/scx/watchdog_timeout_jiffies"),
        60 * int(&capture, "/hz"),
        "{}",
        at(&capture, "/scx")
    );
    let log = fs::read_to_string(dir.join("events.jsonl")).unwrap();
    let line = log.lines().find(|line| line.contains("\"what\":\"watchdog\"")).expect("it was told of");
    println!("{line}");

    // What the scheduler's programs keep is in it, with names and values, and what they cost.
    let map = |ending: &str| {
        let maps = at(&capture, "/bpf/maps").as_array().unwrap();
        let is_it = |map: &&Value| at(map, "/name").as_str().is_some_and(|name| name.ends_with(ending));
        maps.iter().find(is_it).unwrap_or_else(|| panic!("no map {ending} among {}", maps.len()))
    };
    let programs = at(&capture, "/bpf/programs").as_array().unwrap();
    assert!(programs.iter().any(|prog| int(prog, "/verified_insns") > 0), "{programs:?}");
    assert!(at(map(".bss"), "/entries/0/value").as_object().is_some_and(|vars| vars.len() > 2));
    assert!(text.contains("== BPF programs and maps =="), "{text}");

    assert_eq!(at(&capture, "/schema"), "ktstr.capture/1");
    for member in capture.as_object().unwrap().keys() {
        assert!(
            include_str!("../../docs/reference/snapshots.md").contains(&format!("`{member}`")),
            "{member}"
        );
    }
    structures(run, &capture);
    symbols(run, &printed(&dir));
    writes(run);

    // Ten who ask at once all get their answer.
    let began = Instant::now();
    thread::scope(|scope| {
        let asked = (0..10).map(|_| scope.spawn(|| ask(&["query", run, "rq[*].nr_running", "--json"])));
        let answers: Vec<Value> = asked.collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect();
        assert!(answers.iter().all(|answer| answer.as_array().is_some_and(|cpus| cpus.len() == 2)));
    });
    println!("ten questions answered in {:?}", began.elapsed());

    // A monitor that hangs while the guest stands does not keep it standing.
    let pid = nix::unistd::Pid::from_raw(recorded_pid(&dir, "monitor-pid", "/value") as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    let refused = monitor(&["query", run, "tasks", "--freeze"]);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGCONT).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("did not answer in time"), "{said}");

    // The core file of the same moment answers the same; for this nobody needs the guest any more.
    let kernel = kernel_file(&dir);
    let core = format!("{path}.vmcore");
    let from_core = |question| ask(&["query", "--core", &core, "--kernel", &kernel, question, "--json"]);
    let members = |member: &str| -> Value {
        at(&capture, "/rq").as_array().unwrap().iter().map(|rq| at(rq, member).clone()).collect()
    };
    assert_eq!(from_core("rq[*].nr_switches"), members("/nr_switches"));
    assert_eq!(from_core("rq[*].clock"), members("/clock"));
    assert_eq!(
        from_core("tasks").as_array().unwrap().len(),
        at(&capture, "/tasks").as_array().unwrap().len()
    );

    core_file::is_what_debuggers_take(&core, &capture);

    let (report, _) = live.end();
    let report = report.expect("a report");
    assert_eq!(report.exit_status, Some(0), "{:?}", report.cause);
    assert!(report.notes.iter().any(|note| note.contains("the guest goes on")), "{:?}", report.notes);
    let told = report.notes.iter().any(|note| note.contains("wrote into a map: nr_stalled"));
    assert!(told, "{:?}", report.notes);
    let printed = printed(&dir);
    let accounts: Vec<_> = (0..).map_while(|nth| Account::read(&printed, nth)).collect();
    assert_eq!(accounts.len(), 20, "the guest went on to the end");
    let jiffies = int(&capture, "/jiffies");
    let is_later = |account: &Account| account.number("timestamp", 1) >= jiffies;
    let later = accounts.iter().position(is_later).expect("the guest went on after the capture");
    compare(&capture, &accounts[later - 1], &accounts[later]);
    let series: Vec<&str> = report.kernel.split('.').take(2).collect();
    matrix::check(&series.join("."), &capture);
}

/// The kernel that a run used: the orchestrator's store has it under its key.
fn kernel_file(dir: &Path) -> String {
    let found = wait_for("kernel in the log", SOON, || {
        let log = fs::read_to_string(dir.join("events.jsonl")).ok()?;
        let line = log.lines().find(|line| line.contains("\"what\":\"kernel-file\""))?;
        let event: Value = serde_json::from_str(line).ok()?;
        Some(event.pointer("/value")?.as_str()?.to_owned())
    });
    assert!(Path::new(&found).is_file(), "{found}");
    found
}

/// Sleepers beside some that spin, under a scheduler; then it waits for captures.
const CROWD: &str = r#"
exec 2>&1
"/include-files/$NAME" >/dev/null &
until [ "$(cat /sys/kernel/sched_ext/state)" = enabled ]; do sleep 0.1; done
for i in 1 2 3 4 5 6; do sh -c 'while :; do :; done' & done
N=0
while [ $N -lt 1000 ]; do sleep 1000 & N=$((N+1)); done
echo "--- crowd"
sleep 40
"#;

/// `KTSTR_PUBLISHED_SCHEDULER=PATH`: what a full capture of at least 1,000 tasks costs under that scheduler.
fn crowd(accel: Accel) {
    let Some(binary) = std::env::var_os("KTSTR_PUBLISHED_SCHEDULER").map(PathBuf::from) else {
        println!("NOT RUN: KTSTR_PUBLISHED_SCHEDULER names no scheduler; `cargo xtask published` builds one");
        return;
    };
    let name = binary.file_name().unwrap().to_string_lossy().into_owned();
    let script = CROWD.replace("$NAME", &name);
    let mut spec = exec(&script);
    spec.accel = accel;
    spec.topology = Topology::new(1, 1, 2, 1).unwrap();
    spec.memory_mb = Some(2048);
    spec.observe = true;
    spec.job = Job::Shell(ShellJob { include: vec![binary], exec: Some(script), dmesg: false, term: None });
    let root = tempfile::tempdir().unwrap();
    let live = Live::start(spec, root.path());
    let dir = live.dir.clone();
    wait_for("the crowd", PATIENCE, || printed(&dir).contains("--- crowd").then_some(()));
    for _ in 0..3 {
        let taken = ask(&["capture", dir.to_str().unwrap(), "--json"]);
        println!("{name}: {taken}");
        assert!(int(&taken, "/read/tasks") >= 1000, "{taken}");
    }
    let (report, _) = live.end();
    println!("on {}", report.expect("a report").kernel);
}

#[test]
fn a_crowd_under_a_published_scheduler_is_captured() {
    crowd(Accel::Tcg);
}

#[test]
fn on_kvm_a_crowd_under_a_published_scheduler_is_captured() {
    crowd(Accel::Kvm);
}

/// A run that has a boot before it, observed.
fn begun(root: &Path) -> Live {
    Live::start(RunSpec { warm: false, observe: true, ..exec("sleep 1000") }, root)
}

/// From a run's first moment on it can be asked, and answers once its guest is there: a question, one for which the
/// guest stands, and a capture.
#[test]
fn who_asks_too_early_gets_an_answer_and_asks_once() {
    let root = tempfile::tempdir().unwrap();
    let live = begun(root.path());
    let run = live.dir.to_str().unwrap();
    // 3: its socket is not there yet.
    let early = |words: &[&str]| {
        let output = wait_for("the run's socket", SOON, || {
            let output = monitor(words);
            (output.status.code() != Some(3)).then_some(output)
        });
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{words:?}: {said}");
        assert!(output.status.success(), "{words:?}: {said}");
        let mut waited_for: Vec<&str> = said.lines().filter(|line| line.starts_with("waiting: ")).collect();
        let nr_told = waited_for.len();
        waited_for.dedup();
        assert_eq!(waited_for.len(), nr_told, "each is told once");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    thread::scope(|scope| {
        let running = scope.spawn(|| early(&["query", run, "rq[*].nr_running", "--json"]));
        let frozen = scope.spawn(|| early(&["query", run, "scx.state", "--freeze", "--json"]));
        let taken = early(&["capture", run, "--json"]);
        assert!(Path::new(&format!("{}.json", at(&taken, "/path").as_str().unwrap())).is_file());
        assert!(running.join().unwrap().as_array().is_some_and(|cpus| !cpus.is_empty()));
        assert_eq!(frozen.join().unwrap(), "disabled");
    });
    // Of all tries one is a capture.
    let files = fs::read_dir(&live.dir).unwrap().flatten();
    let is_capture = |file: &fs::DirEntry| {
        let name = file.file_name().into_string().unwrap();
        name.starts_with("capture-") && name.ends_with(".json")
    };
    assert_eq!(files.filter(is_capture).count(), 1);

    end_machine(live);
}

/// Who waits for a run that ends before it can be asked is told so.
#[test]
fn who_waits_for_a_run_that_ends_is_told() {
    let root = tempfile::tempdir().unwrap();
    let live = begun(root.path());
    let run = live.dir.to_str().unwrap().to_owned();
    wait_for("the run's socket", SOON, || {
        let name = live.dir.file_name().unwrap().to_str().unwrap();
        fs::read_to_string("/proc/net/unix").unwrap().contains(name).then_some(())
    });
    let mut asking = Command::new(bin("ktstr-monitor"))
        .args(["query", &run, "tasks"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(asking.stderr.take().unwrap());
    let (mut first, mut rest) = (String::new(), String::new());
    said.read_line(&mut first).unwrap();
    end_machine(live);
    said.read_to_string(&mut rest).unwrap();
    let status = asking.wait().unwrap();
    println!("{first}{rest}");
    // On a host that stops for seconds the answer is the first that is heard of it.
    if !status.success() {
        assert!(first.starts_with("waiting: "), "{first}");
        let told = ["ended before it could be asked", "does not run any more"];
        assert!(told.iter().any(|told| rest.contains(told)), "{rest}");
    }
}

/// Other series, for the support matrix: `KTSTR_MATRIX_KERNEL=6.16`.
#[test]
fn what_is_read_of_another_series_is_what_the_guest_says() {
    match std::env::var("KTSTR_MATRIX_KERNEL") {
        Ok(series) => facts(Some(&series)),
        Err(_) => println!("NOT RUN: KTSTR_MATRIX_KERNEL names no series"),
    }
}

#[test]
fn what_is_read_is_what_the_guest_says() {
    facts(None);
}

#[test]
fn what_is_read_of_an_older_series_is_what_the_guest_says() {
    facts(Some("6.18"));
}

#[test]
fn under_det_captures_leave_no_trace() {
    let root = tempfile::tempdir().unwrap();
    let trace = |snapshots: u32| {
        let mut spec = spec("eevdf", Accel::Det);
        spec.snapshots = snapshots;
        spec.runs_root = root.path().join(snapshots.to_string());
        let report = run(spec);
        assert_eq!(report.outcome, Outcome::Pass, "{:?}", report.cause);
        symbols_agree(&report);
        // Each is taken when the guest's own clock has come so far, whatever the host's says.
        let phases = report.result.as_ref().map(|result| result.stats.phases.as_slice()).unwrap_or_default();
        let ended = phases.last().map_or(i64::MAX, |phase| phase.end_ms as i64);
        for mark in report.captures.iter().filter(|mark| mark.file.is_ok()) {
            let Some(boundary) = mark.boundary_ms else { continue };
            println!("{} at {} ms of {ended}, due at {boundary}", mark.tag, mark.at_ms);
            assert!(boundary as i64 <= mark.at_ms, "{mark:?}");
        }
        let captures = fs::read_dir(&report.run_dir).unwrap().flatten();
        let is_text = |e: &fs::DirEntry| e.path().extension().is_some_and(|ending| ending == "txt");
        let taken = captures.filter(is_text).count();
        println!("{snapshots} asked for, {taken} captures taken");
        assert!(taken >= snapshots.min(30) as usize, "{taken} of {snapshots}");
        ["console.log", "guest.jsonl"].map(|name| fs::read(report.run_dir.join(name)).unwrap())
    };
    let none = trace(0);
    assert!(trace(1) == none, "one capture left a trace");
    assert!(trace(100) == none, "a hundred captures left a trace");
}
