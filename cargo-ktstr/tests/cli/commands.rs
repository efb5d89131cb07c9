//! `test`, `list`, `run`, `cleanup`, `show-thresholds`: what they ask of others, played by small scripts,
//! and what they make of the answers. No test and no scenario runs here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use ktstr_proto::verdict::{AssertResult, Cause, DetailKind, Outcome, RunReport};
use ktstr_proto::{RunId, Topology};

use crate::session::plant_kernel;
use crate::{KTSTR, command, home, text};

/// A report as an orchestrator or a test would write it.
pub fn report(name: &str, outcome: Outcome, cause: Option<Cause>) -> RunReport {
    let shape = Topology::new(1, 1, 1, 1).unwrap();
    RunReport {
        outcome,
        cause,
        console_tail: vec!["the last line".into()],
        kernel: "7.2.0".into(),
        replay: format!("cargo nextest run -E 'test(={name})'"),
        ..RunReport::blank(RunId(format!("{name}-1")), format!("/runs/{name}-1"), name, shape)
    }
}

fn script(path: &Path, body: &str) -> PathBuf {
    fs::write(path, format!("#!/bin/sh\n{body}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}

/// A cargo whose nextest leaves these reports and ends with this code. What it was told is in `told`.
fn test(home: &Path, reports: &[RunReport], code: i32, args: &[&str], env: &[(&str, &str)]) -> Output {
    let prepared = home.join("prepared");
    for report in reports {
        let dir = prepared.join(&report.run_id.0);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("sidecar.json"), serde_json::to_vec(report).unwrap()).unwrap();
    }
    fs::create_dir_all(&prepared).unwrap();
    let body = format!(
        "[ \"$2\" = --version ] && exit 0\necho \"$@\" > '{0}/told'\nenv >> '{0}/told'\n\
         cp -r '{1}/.' \"$KTSTR_RUNS_ROOT\"\nexit {code}\n",
        home.display(),
        prepared.display()
    );
    let cargo = script(&home.join("cargo"), &body);
    let mut command = command(KTSTR, home);
    command.arg("test").args(args).env("CARGO", cargo).env("KTSTR_RUNS_ROOT", home.join("runs"));
    command.envs(env.iter().copied()).output().unwrap()
}

fn told(home: &Path) -> String {
    fs::read_to_string(home.join("told")).unwrap()
}

#[test]
fn reports_decide_the_code_of_a_test_run() {
    use Outcome::{Fail, Inconclusive, NotRun, Pass};
    let open = || report("open", Inconclusive, Some(Cause::Assertion));
    let broken = RunReport { infrastructure: true, ..report("broken", Fail, Some(Cause::Cancelled)) };
    let missing = || report("missing", NotRun, Some(Cause::Missing { reason: "no emulator".into() }));
    let pass = || report("fine", Pass, None);
    let stall = Cause::SchedulerStall { reason: "stall".into() };
    for (reports, nextest, args, code) in [
        (vec![pass(), missing()], 0, &[][..], 0),
        (vec![pass(), missing()], 0, &["--deny", "not-run"][..], 3),
        (vec![pass(), open()], 100, &[], 2),
        (vec![pass(), RunReport { allow_inconclusive: true, ..open() }], 0, &[], 0),
        (vec![pass(), broken.clone()], 100, &[], 4),
        (vec![report("bad", Fail, Some(stall)), broken, open()], 100, &[], 1),
        (vec![pass()], 100, &[], 1),
    ] {
        let home = home();
        let output = test(home.path(), &reports, nextest, args, &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("ktstr: ") && said.contains(" passed, "), "{said}");
        for report in reports.iter().filter(|report| report.outcome != Pass) {
            assert!(said.contains(&format!(": {}: ", report.name)), "{said}");
        }
        assert!(!said.contains('\x1b'), "nobody has a terminal: {said}");
        assert!(told(home.path()).contains("KTSTR_COLOR=never"));
    }
}

#[test]
fn what_is_chosen_reaches_the_tests() {
    let home = home();
    plant_kernel(home.path(), "k-new", "7.2.0");
    plant_kernel(home.path(), "k-old", "6.18.3");
    let args = [
        "--accel",
        "det",
        "--seed",
        "7",
        "--seeds",
        "3",
        "--kernel",
        "7.2",
        "--no-auto-repro",
        "--",
        "-E",
        "test(x)",
    ];
    let output = test(home.path(), &[], 0, &args, &[("KTSTR_COLOR", "always")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let one = told(home.path());
    assert!(one.starts_with("nextest run -E test(x)\n"), "{one}");
    for set in [
        "KTSTR_ACCEL=det",
        "KTSTR_SEED=7",
        "KTSTR_SEEDS=3",
        "KTSTR_KERNEL=k-new",
        "KTSTR_COLOR=always",
        "KTSTR_AUTO_REPRO=0",
    ] {
        assert!(one.lines().any(|line| line == set), "{set}: {one}");
    }
    assert!(!one.contains("KTSTR_KERNELS="), "{one}");
    assert!(text(&output.stderr).contains("\x1b[1mktstr: 0 passed"), "{}", text(&output.stderr));
    // Both names of one kernel are one; each test is told what was found under which name.
    let several = ["--kernel", "7.2", "--kernel", "6.18", "--kernel", "k-new"];
    test(home.path(), &[], 0, &several, &[]);
    let told = told(home.path());
    assert!(told.lines().any(|line| line == "KTSTR_KERNELS=7.2=k-new,6.18=k-old"), "{told}");
}

#[test]
fn without_a_kernel_or_nextest_nothing_is_run() {
    let home = home();
    let output = test(home.path(), &[], 0, &["--kernel", "9.9"], &[]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(!home.path().join("told").exists());
    let cargo = script(&home.path().join("bare-cargo"), "exit 101\n");
    let output = command(KTSTR, home.path()).arg("test").env("CARGO", cargo).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("cargo install --locked cargo-nextest"));
}

/// A copy of the command with a stand-in for the guest's program beside it, which is found first.
fn with_scenarios(home: &Path) -> PathBuf {
    let ktstr = home.join("ktstr");
    fs::copy(KTSTR, &ktstr).unwrap();
    let scenario = |name: &str, group: &str, flags: &[&str]| serde_json::json!({"name": name, "group": group, "question": format!("Is {name} so?"), "flags": flags, "aliases": [format!("custom_{name}")]});
    let list = serde_json::json!([
        scenario("calm", "basic", &[]),
        scenario("torn", "basic", &["llc", "steal"]),
        scenario("wild", "stress", &[]),
    ]);
    fs::write(home.join("list.json"), list.to_string()).unwrap();
    let mut torn = AssertResult::fail(DetailKind::Gap, "tid 7 stuck");
    torn.push(DetailKind::Note, Outcome::Pass, "it was Tuesday");
    for (name, result) in [("calm", AssertResult::pass()), ("torn", torn)] {
        fs::write(home.join(format!("{name}.json")), serde_json::to_vec(&result).unwrap()).unwrap();
    }
    script(
        &home.join("ktstr-guest"),
        "cd \"$(dirname \"$0\")\"\ncase \"$1\" in\nlist) cat list.json;;\n\
         run) cat \"$2.json\" || { echo no cgroups here >&2; exit 1; };;\nesac\n",
    );
    ktstr
}

#[test]
fn scenarios_are_listed_by_group() {
    let home = home();
    let ktstr = with_scenarios(home.path());
    let run = |args: &[&str]| {
        command(ktstr.to_str().unwrap(), home.path()).arg("list").args(args).output().unwrap()
    };
    let all = text(&run(&[]).stdout);
    let expected = "basic:\n  calm\n      Is calm so?\n  torn [llc+steal]\n      Is torn so?\nstress:\n  wild\n      Is wild so?\n3 scenarios\n";
    assert_eq!(all, expected);
    assert!(text(&run(&["--filter", "il"]).stdout).ends_with("wild\n      Is wild so?\n1 scenarios\n"));
    assert!(
        text(&run(&["--filter", "custom_wild"]).stdout).ends_with("wild\n      Is wild so?\n1 scenarios\n")
    );
    let json: serde_json::Value = serde_json::from_slice(&run(&["--json"]).stdout).unwrap();
    assert_eq!(json[1]["aliases"], serde_json::json!(["custom_torn"]));
    assert_eq!(json[1]["flags"], serde_json::json!(["llc", "steal"]));
    for args in [
        &["--filter", "nowhere"][..],
        &["--filter", "nowhere", "--json"],
        &["--flags", "llc", "--filter", "nowhere"],
    ] {
        let none = run(args);
        let said = text(&none.stderr);
        assert_eq!((none.status.code(), text(&none.stdout)), (Some(1), String::new()), "{said}");
        assert!(said.contains("no scenario has `nowhere` in its name"), "{said}");
    }
}

#[test]
fn scenarios_on_this_host_say_which_finding_failed() {
    let home = home();
    let ktstr = with_scenarios(home.path());
    let run =
        |args: &[&str]| command(ktstr.to_str().unwrap(), home.path()).arg("run").args(args).output().unwrap();
    let calm = run(&["--filter", "calm"]);
    assert_eq!((calm.status.code(), text(&calm.stdout).starts_with("PASS")), (Some(0), true));
    let torn = run(&["--filter", "torn"]);
    let said = text(&torn.stdout);
    assert_eq!(torn.status.code(), Some(1), "{said}");
    assert!(said.contains("    failed: tid 7 stuck\n    note: it was Tuesday\n"), "{said}");
    let wild = run(&["--filter", "wild"]);
    assert_eq!(wild.status.code(), Some(4), "{}", text(&wild.stderr));
    assert!(text(&wild.stderr).contains("wild: ") && text(&wild.stderr).contains("no cgroups here"));
    let none = run(&["--filter", "nothing"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("no scenario has `nothing` in its name"));
    let json: serde_json::Value = serde_json::from_slice(&run(&["--json"]).stdout).unwrap();
    assert_eq!(json.as_array().map(Vec::len), Some(3));
}

/// A cgroup of this test, where this host lets one be made.
fn own_cgroup(what: &str) -> Option<std::path::PathBuf> {
    let name = format!("cleanup-{what}-{}", std::process::id());
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(std::path::PathBuf::from);
    let cgroup2 = mounts.into_iter().find(|mount| mount.join("cgroup.procs").exists())?.join(name);
    fs::create_dir(&cgroup2).ok().map(|()| cgroup2).filter(|made| made.join("cgroup.events").exists())
}

#[test]
fn cleanup_empties_a_cgroup_and_leaves_it() {
    let Some(parent) = own_cgroup("named") else {
        println!("NOT RUN: no cgroup can be made on this host");
        return;
    };
    let home = home();
    fs::create_dir_all(parent.join("a/b")).unwrap();
    fs::create_dir_all(parent.join("c")).unwrap();
    let path = parent.to_str().unwrap();
    let output = command(KTSTR, home.path()).args(["cleanup", "--parent-cgroup", path]).output().unwrap();
    let left = ["a/b", "a", "c"].map(|child| fs::remove_dir(parent.join(child)).is_ok());
    let stayed = fs::remove_dir(&parent).is_ok();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("/a: 2 cgroups removed") && said.contains("/c: 1 cgroups removed"), "{said}");
    assert_eq!((left, stayed), ([false; 3], true));
}

/// A process called `name` in a cgroup of its own; it lasts longer than any test.
fn process_in(cgroup: &Path, name: &Path) -> std::process::Child {
    let placed = format!("echo $$ > '{}/cgroup.procs' && exec '{}' 3600", cgroup.display(), name.display());
    let child = std::process::Command::new("sh").args(["-c", &placed]).spawn().unwrap();
    let own = name.file_name().unwrap().to_str().unwrap();
    let comm = format!("/proc/{}/comm", child.id());
    while fs::read_to_string(&comm).unwrap().trim() != own {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child
}

/// Seen from a cgroup of its own as if that were the root: nothing else of the host can be reached from there.
#[test]
fn cleanup_of_itself_takes_what_dead_runs_left_and_nothing_else() {
    let Some(root) = own_cgroup("bare") else {
        println!("NOT RUN: no cgroup can be made on this host");
        return;
    };
    let home = home();
    let [sleeper, left] = ["ktstr-sleeper", "left-behind"].map(|name| home.path().join(name));
    for name in [&sleeper, &left] {
        std::os::unix::fs::symlink("/bin/sleep", name).unwrap();
    }
    // No process has an id beyond 2^22.
    let dead = root.join("ktstr-4194305");
    fs::create_dir_all(dead.join("cg_0/deep")).unwrap();
    fs::create_dir(root.join("ktstr")).unwrap();
    for foreign in ["ktstr-notes", "ktstrx", "system.slice"] {
        fs::create_dir(root.join(foreign)).unwrap();
    }
    let mut orphan = process_in(&dead.join("cg_0/deep"), &left);
    fs::create_dir(root.join("runs")).unwrap();
    let mut running = process_in(&root.join("runs"), &sleeper);
    let taken = root.join(format!("ktstr-{}", running.id()));
    fs::create_dir(&taken).unwrap();
    // The mount is seen by this command alone.
    let script = format!(
        "echo $$ > '{}/cgroup.procs' && exec unshare --mount --cgroup sh -c \
         'mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" cleanup' '{KTSTR}'",
        root.display()
    );
    let mut shell = command("sh", home.path());
    let output = shell.args(["-c", &script]).output().unwrap();
    let still_there = running.try_wait().unwrap().is_none();
    let left = |name: &Path| fs::remove_dir(name).is_ok();
    let gone =
        [left(&dead.join("cg_0/deep")), left(&dead.join("cg_0")), left(&dead), left(&root.join("ktstr"))];
    let foreign = ["ktstr-notes", "ktstrx", "system.slice"].map(|name| left(&root.join(name)));
    let kept = left(&taken);
    running.kill().unwrap();
    let ended = orphan.try_wait().unwrap().and_then(|status| status.signal());
    // One that the command has left is not left by the test.
    let _ = orphan.kill();
    let _ = (orphan.wait().unwrap(), running.wait().unwrap());
    left(&root.join("runs"));
    left(&root);
    let (said, warned) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}{warned}");
    assert!(said.contains("/sys/fs/cgroup/ktstr-4194305: 3 cgroups removed"), "{said}");
    assert!(said.contains("/sys/fs/cgroup/ktstr: 1 cgroups removed"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(warned.contains(&format!("ktstr-{}: process {0} still runs", running.id())), "{warned}");
    assert_eq!((gone, foreign, kept, still_there), ([false; 4], [true; 3], true, true));
    assert_eq!(ended, Some(9), "the process of the dead run was killed");
}

#[test]
fn cleanup_touches_nothing_that_is_no_cgroup() {
    let home = home();
    fs::create_dir_all(home.path().join("mine/empty")).unwrap();
    let mine = home.path().join("mine");
    for (path, why) in
        [(mine.to_str().unwrap(), "is no cgroup"), ("/nonexistent", "cannot read /nonexistent")]
    {
        let output = command(KTSTR, home.path()).args(["cleanup", "--parent-cgroup", path]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
    }
    assert!(mine.join("empty").exists());
}

#[test]
fn thresholds_are_asked_of_the_test_executables() {
    let home = home();
    let rows = serde_json::json!({"max_gap_ms": "2000", "min_work_rate": null});
    let judged = serde_json::json!([{
        "test": "a::steady", "package": "p", "scheduler": "EEVDF", "own": ["max_gap_ms"],
        "thresholds": {"kvm": rows, "tcg": rows},
    }]);
    fs::write(home.path().join("judged.json"), judged.to_string()).unwrap();
    let body = "[ \"$1$KTSTR_SHOW_THRESHOLDS\" = --list1 ] && cat \"$(dirname \"$0\")/judged.json\"\n";
    let executable = script(&home.path().join("a-test"), body);
    let artifact = serde_json::json!({"profile": {"test": true}, "executable": executable});
    fs::write(home.path().join("artifact.json"), artifact.to_string()).unwrap();
    let body = "[ \"$1 $2\" = \"test --no-run\" ] && cat \"$(dirname \"$0\")/artifact.json\"\n";
    let cargo = script(&home.path().join("cargo"), body);
    let show = |args: &[&str]| {
        let mut command = command(KTSTR, home.path());
        command.arg("show-thresholds").args(args).env("CARGO", &cargo).output().unwrap()
    };
    let steady = show(&["steady"]);
    let said = text(&steady.stdout);
    assert_eq!(steady.status.code(), Some(0), "{}", text(&steady.stderr));
    assert!(said.starts_with("a::steady (package p, scheduler EEVDF)\n"), "{said}");
    assert!(said.contains("* max_gap_ms") && said.contains("      2000      2000"), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&show(&["steady", "--json"]).stdout).unwrap();
    assert_eq!(json["test"], "a::steady");
    let near = show(&["stedy"]);
    assert_eq!(near.status.code(), Some(1));
    assert!(text(&near.stderr).contains("did you mean `a::steady`?"), "{}", text(&near.stderr));
}
