//! Which kernel shows what: a column of `docs/support-matrix.md` from what a capture really held.
//!
//! A cell says `works`, or names the members that this kernel's BTF does not have. With
//! `KTSTR_MATRIX=1` the column of the kernel that was run is written; else it is compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Capabilities in the order of the table: name, and where a capture shows them.
const CAPABILITIES: [(&str, &[&str]); 20] = [
    (
        "run queue: counts, clocks, running task",
        &[
            "rq/*/nr_running",
            "rq/*/nr_switches",
            "rq/*/nr_pinned",
            "rq/*/clock",
            "rq/*/clock_task",
            "rq/*/cpu_capacity",
            "rq/*/running",
            "rq/*/online",
            "rq/*/avg_idle",
        ],
    ),
    ("run queue: cfs", &["rq/*/cfs"]),
    ("run queue: rt", &["rq/*/rt"]),
    ("run queue: dl", &["rq/*/dl"]),
    (
        "run queue: average load by class",
        &["rq/*/avg_rt", "rq/*/avg_dl", "rq/*/avg_irq/util_avg", "rq/*/avg_hw/util_avg"],
    ),
    ("run queue: sched_ext", &["rq/*/scx", "rq/*/runnable_list"]),
    (
        "schedstat of CPUs",
        &[
            "rq/*/rq_sched_info",
            "rq/*/rq_cpu_time",
            "rq/*/yld_count",
            "rq/*/sched_count",
            "rq/*/sched_goidle",
            "rq/*/ttwu_count",
            "rq/*/ttwu_local",
        ],
    ),
    ("CPU times (kernel_cpustat)", &["rq/*/cpustat"]),
    ("scheduling domains and groups", &["rq/*/domains"]),
    (
        "tasks: identity, state, class, affinity",
        &[
            "tasks/*/pid",
            "tasks/*/tgid",
            "tasks/*/comm",
            "tasks/*/state",
            "tasks/*/class",
            "tasks/*/prio",
            "tasks/*/policy",
            "tasks/*/on_cpu",
            "tasks/*/thread_info",
            "tasks/*/cpus_mask",
            "tasks/*/allowed",
            "tasks/*/cgroup",
        ],
    ),
    (
        "tasks: statistics",
        &["tasks/*/se", "tasks/*/sched_info", "tasks/*/stats", "tasks/*/nvcsw", "tasks/*/nivcsw"],
    ),
    (
        "tasks: sched_ext entity, DSQ, runnable age",
        &["tasks/*/scx", "tasks/*/dsq", "tasks/*/runnable_age_jiffies"],
    ),
    ("dispatch queues with their tasks", &["dsq"]),
    (
        "sched_ext: state, watchdog, bypass",
        &[
            "scx/state",
            "scx/instance",
            "scx/watchdog_timeout_jiffies",
            "scx/watchdog_timestamp_jiffies",
            "scx/nr_rejected",
            "scx/bypass_depth",
        ],
    ),
    ("sched_ext: the loaded scheduler", &["scx/scx_sched"]),
    ("sched_ext: event counters", &["scx/events"]),
    ("control groups: tree, cpu.stat", &["cgroups/*/path", "cgroups/*/usage_ns", "cgroups/*/cgroup"]),
    ("pressure (PSI), system and groups", &["psi", "cgroups/*/psi"]),
    ("loaded modules and their symbols", &["modules/*/name", "modules/*/state", "modules/*/symbols"]),
    (
        "BPF programs and maps",
        &[
            "bpf/programs/*/name",
            "bpf/programs/*/verified_insns",
            "bpf/programs/*/runs",
            "bpf/maps/*/type",
            "bpf/maps/*/max_entries",
        ],
    ),
];

/// The column of one kernel: a cell for each capability.
pub fn column(capture: &Value) -> Vec<String> {
    CAPABILITIES.iter().map(|(name, places)| cell(name, capture, places)).collect()
}

fn cell(name: &str, capture: &Value, places: &[&str]) -> String {
    let mut absent = BTreeSet::new();
    let mut present = 0;
    for place in places {
        let steps: Vec<_> = place.split('/').collect();
        for value in select(capture, &steps) {
            present += count(value, &mut absent);
        }
    }
    assert!(present > 0, "{name}: nothing at all was read");
    if absent.is_empty() {
        return "works".into();
    }
    let members: Vec<_> = absent.into_iter().map(|member| format!("`{member}`")).collect();
    format!("works; this kernel has no {}", members.join(", "))
}

fn select<'v>(value: &'v Value, steps: &[&str]) -> Vec<&'v Value> {
    let Some((step, rest)) = steps.split_first() else { return vec![value] };
    match (*step, value) {
        ("*", Value::Array(items)) => items.iter().flat_map(|item| select(item, rest)).collect(),
        (name, value) => {
            let inner = value.get(name).unwrap_or_else(|| panic!("no `{name}` in {value}"));
            select(inner, rest)
        }
    }
}

/// Counts values that are there and collects what is absent; nothing may be unreadable.
fn count(value: &Value, absent: &mut BTreeSet<String>) -> usize {
    match value {
        Value::Object(members) => {
            if let (1, Some(reason)) = (members.len(), value.get("absent")) {
                let reason = reason.as_str().expect("a reason");
                // Other reasons are not this kernel's: no scheduler, a task on no DSQ.
                if reason.contains("this kernel") {
                    absent.insert(member(reason));
                }
                return 0;
            }
            assert!(!members.contains_key("unreadable"), "{value}");
            members.values().map(|inner| count(inner, absent)).sum()
        }
        Value::Array(items) => items.iter().map(|item| count(item, absent)).sum(),
        Value::Null => 0,
        _ => 1,
    }
}

/// "`struct s` of this kernel has no member `m`" as `s.m`; a symbol or a type by its name.
fn member(reason: &str) -> String {
    let quoted: Vec<_> = reason.split('`').skip(1).step_by(2).collect();
    let names: Vec<_> = quoted.iter().map(|name| name.trim_start_matches("struct ")).collect();
    names.join(".")
}

const HEAD: &str = "# What is read of which kernel

Written by a test run (`KTSTR_MATRIX=1`, see `tests/e2e/matrix.rs`) from captures of real kernels; the
same test compares it ever after. A cell says `works`, or names the members that the BTF of this
kernel does not have: those are reported as absent, never as 0.

";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/support-matrix.md")
}

/// Compares the column of `series` with the document, or writes it.
pub fn check(series: &str, capture: &Value) {
    let found = column(capture);
    let mut table = read(&fs::read_to_string(path()).unwrap_or_default());
    if std::env::var_os("KTSTR_MATRIX").is_some_and(|value| value == "1") {
        table.insert(series.to_owned(), found);
        fs::write(path(), write(&table)).expect("the document can be written");
        return;
    }
    let expected = table.get(series).unwrap_or_else(|| panic!("{series} is not in {}", path().display()));
    for ((found, expected), (name, _)) in found.iter().zip(expected).zip(CAPABILITIES) {
        assert_eq!(found, expected, "{name} of {series}: run with KTSTR_MATRIX=1 if this is meant");
    }
}

/// The columns of the document by series.
fn read(text: &str) -> BTreeMap<String, Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = text.lines().filter(|line| line.starts_with('|'));
    let series = lines.next().map(cells).unwrap_or_default();
    let rows: Vec<Vec<String>> = lines.skip(1).map(cells).collect();
    let columns = series.iter().enumerate().skip(1).map(|(nth, name)| {
        let column = rows.iter().map(|row| row.get(nth).cloned().unwrap_or_default()).collect();
        (name.clone(), column)
    });
    columns.collect()
}

fn write(table: &BTreeMap<String, Vec<String>>) -> String {
    // 6.18 comes after 6.9: by number, not by letter.
    let mut series: Vec<&String> = table.keys().collect();
    series
        .sort_by_key(|name| name.split('.').map(|part| part.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>());
    let names: Vec<_> = series.iter().map(|name| name.as_str()).collect();
    let mut text = format!("{HEAD}| | {} |\n|---{}|\n", names.join(" | "), "|---".repeat(series.len()));
    for (nth, (name, _)) in CAPABILITIES.iter().enumerate() {
        let cells: Vec<_> =
            series.iter().map(|series| table[*series].get(nth).map_or("", String::as_str)).collect();
        text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    text
}

#[test]
fn the_document_survives_a_round_trip() {
    let table = read(&fs::read_to_string(path()).expect("docs/support-matrix.md"));
    assert!(table.len() >= 2 && table.values().all(|column| column.len() == CAPABILITIES.len()));
    assert_eq!(read(&write(&table)), table);
}
