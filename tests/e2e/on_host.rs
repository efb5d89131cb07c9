//! `ktstr run`, for which a guest is as good a host as any: root, cgroups, a real kernel, no orchestrator.

use ktstr::executables::find_own;
use ktstr_proto::{
    Accel, Topology,
    run::{Job, RunSpec, ShellJob},
    verdict::{AssertResult, Outcome},
};

use crate::harness::{exec, run_with_output};

/// What runs there, one after the other; each says its exit code.
const COMMANDS: &str = "\
cd /include-files; \
./ktstr run --filter nested_cgroup_steady --duration 2 --workers 2 --json >/tmp/told; echo exit $?; cat /tmp/told; \
echo; ls -d /sys/fs/cgroup/ktstr-* 2>/dev/null; \
umount /sys/fs/cgroup; ./ktstr run --filter nested_cgroup_steady --duration 1 2>&1; echo exit $?";

/// Under `det`, where nothing that another host does can make the scenario fail.
#[test]
fn a_scenario_is_carried_out_on_the_host_itself() {
    let include = ["ktstr", "ktstr-guest"].map(|name| find_own(name).expect("it is built")).to_vec();
    let job = ShellJob { include, exec: Some(COMMANDS.into()), dmesg: false, term: None };
    let topology = Topology::new(1, 1, 2, 1).expect("a machine");
    let (report, output) =
        run_with_output(RunSpec { accel: Accel::Det, topology, job: Job::Shell(job), ..exec("") });
    assert_eq!(report.outcome, Outcome::Pass, "{:?}", report.cause);
    let (told, without_cgroups) =
        output.split_once("\n]\n").unwrap_or_else(|| panic!("no end of a list: {output}"));
    let (code, told) = told.split_once('\n').unwrap_or_default();
    assert_eq!(code.trim(), "exit 0", "{output}");
    let told: Vec<serde_json::Value> = serde_json::from_str(&format!("{told}\n]")).expect("JSON");
    let [one] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(one["name"], "nested_cgroup_steady");
    let result: AssertResult = serde_json::from_value(one["result"].clone()).expect("a result");
    assert_eq!(result.outcome, Outcome::Pass, "{:?}", result.details);
    let stats = &result.stats;
    assert!(stats.workers.len() >= 2 && stats.workers.iter().all(|w| w.cpu_time_ns > 0), "{stats:?}");

    // Its cgroups are gone again; and where there are none, what is missing is said.
    assert!(!without_cgroups.contains("/sys/fs/cgroup/ktstr-"), "{without_cgroups}");
    assert!(without_cgroups.contains("mount -t cgroup2"), "{without_cgroups}");
    assert!(without_cgroups.trim_end().ends_with("exit 4"), "{without_cgroups}");
}
