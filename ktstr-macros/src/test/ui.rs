//! What a user sees of a refused attribute: the message, and the words it points at.

use std::str::FromStr;

use proc_macro2::TokenStream;

use super::expand;

const GOOD: &str = "fn t(ctx: &Ctx) -> Result<AssertResult> { scenarios::steady(ctx) }";

/// Attributes, the message, and the text under the marker.
const REFUSED: &[(&str, &str, &str)] = &[
    ("core = 2", "unknown key `core`, did you mean `cores`?", "core"),
    ("llcs = 1, max_gap = 3", "unknown key `max_gap`, did you mean `max_gap_ms`?", "max_gap"),
    ("cores = 2, cores = 3", "`cores` is given twice", "cores"),
    ("cores = 0", "`cores` must be at least 1", "0"),
    ("cores = -1", "`cores` cannot be negative", "-"),
    ("cores = \"2\"", "`cores` must be a whole number", "\"2\""),
    ("cores = 99999999999", "`cores` must be below 2^32", "99999999999"),
    ("cores", "`cores` needs a value: `cores = …`", "cores"),
    ("duration_s = 1.5", "`duration_s` must be a whole number", "1.5"),
    ("not_stuck = 1", "`not_stuck` must be `true` or `false`", "1"),
    ("min_page_locality = 1.5", "`min_page_locality` must be a number from 0 to 1", "1.5"),
    (
        "extra_include_files = \"a\"",
        "`extra_include_files` must be a list of strings, `[\"…\", \"…\"]`",
        "\"a\"",
    ),
    (
        "scheduler = \"scx\"",
        "`scheduler` must be the name of a scheduler declared with `declare_scheduler!`",
        "\"scx\"",
    ),
    ("payload = 3", "`payload` must be the name of a payload made by `#[derive(Payload)]`", "3"),
    ("workloads = A", "`workloads` must be a list of payloads, `[A, B]`", "A"),
    ("workloads = [A, 2]", "`workloads` must be a list of payloads, `[A, B]`", "2"),
    ("payload = A, workloads = [B, A]", "`A` is given twice", "A"),
    ("scheduler = S, staged_schedulers = [S]", "`S` is given twice", "S"),
    (
        "performance_mode, no_perf_mode",
        "`performance_mode` and `no_perf_mode` cannot stand together: one asks for what the other forbids",
        "no_perf_mode",
    ),
    (
        "scheduler = S, survives_storm, expect_err",
        "`survives_storm` and `expect_err` cannot stand together: a scheduler cannot both survive and fail",
        "expect_err",
    ),
    (
        "cpu_budget = 2",
        "`cpu_budget` needs `no_perf_mode`: otherwise the host decides where the vCPUs run",
        "cpu_budget",
    ),
    ("no_perf_mode, cpu_budget = 0", "`cpu_budget` must be at least 1", "0"),
    ("cleanup_budget_ms = 0", "`cleanup_budget_ms` must be at least 1", "0"),
    (
        "host_only, cleanup_budget_ms = 9",
        "`host_only` and `cleanup_budget_ms` cannot stand together: there is no machine to put away",
        "cleanup_budget_ms",
    ),
    (
        "bpf_map_write = SLOW",
        "`bpf_map_write` needs `scheduler`: there must be a scheduler whose maps are written",
        "bpf_map_write",
    ),
    (
        "scheduler = S, bpf_map_write = 3",
        "`bpf_map_write` must be a `BpfMapWrite` constant or a list of them, `[A, B]`",
        "3",
    ),
    (
        "scheduler = S, bpf_map_write = []",
        "`bpf_map_write` must be a `BpfMapWrite` constant or a list of them, `[A, B]`",
        "[",
    ),
    (
        "watch_bpf_maps = [A]",
        "`watch_bpf_maps` needs `scheduler`: there must be a scheduler whose maps are watched",
        "watch_bpf_maps",
    ),
    (
        "scheduler = S, watch_bpf_maps = \"x\"",
        "`watch_bpf_maps` must be a `WatchBpfMap` constant or a list of them, `[A, B]`",
        "\"x\"",
    ),
    ("networks = NET", "`networks` must be a list of `NetConfig` constants, `[NET]`", "NET"),
    ("networks = []", "`networks` must be a list of `NetConfig` constants, `[NET]`", "["),
    ("disk", "`disk` needs a value: `disk = …`", "disk"),
    (
        "host_only, disk = DISK",
        "`host_only` and `disk` cannot stand together: there is no machine that could have one",
        "disk",
    ),
    (
        "networks = [NET], host_only",
        "`host_only` and `networks` cannot stand together: there is no machine that could have them",
        "networks",
    ),
    ("seeds = 0", "`seeds` must be at least 1", "0"),
    (
        "seeds = 5, host_only",
        "`host_only` and `seeds` cannot stand together: a seed decides no interleaving on the host",
        "seeds",
    ),
    (
        "performance_mode, seeds = 5",
        "`performance_mode` and `seeds` cannot stand together: seeds are run under `det`, which no host can speed up",
        "seeds",
    ),
    (
        "host_only, scheduler = S",
        "`host_only` and `scheduler` cannot stand together: no scheduler is started on the host",
        "scheduler",
    ),
    (
        "expect_scx_bpf_error_contains = \"x\"",
        "`expect_scx_bpf_error_contains` needs `expect_err`: it is looked for in the error that is expected",
        "expect_scx_bpf_error_contains",
    ),
    (
        "expect_err, expect_scx_bpf_error_matches = \"a*\"",
        "`expect_scx_bpf_error_matches` matches everything, even nothing at all",
        "\"a*\"",
    ),
    (
        "survives_storm",
        "`survives_storm` needs `scheduler`: there must be a scheduler that can survive",
        "survives_storm",
    ),
    ("config = \"{}\"", "`config` needs `scheduler`: there must be a scheduler that reads it", "config"),
    ("min_cpus = 8, max_cpus = 4", "`min_cpus = 8` is above `max_cpus = 4`: no machine fits", "max_cpus"),
    (
        "llcs = 1, cores = 2, threads = 1, min_cpus = 4",
        "the test's own machine has 2 CPUs, below `min_cpus = 4`: make it larger or the bound smaller",
        "4",
    ),
    (
        "llcs = 4, max_llcs = 2",
        "the test's own machine has 4 LLCs, above `max_llcs = 2`: make it smaller or the bound larger",
        "2",
    ),
    (
        "min_llcs = 2",
        "the test's own machine has 1 LLCs, below `min_llcs = 2`: make it larger or the bound smaller",
        "2",
    ),
    (
        "max_cpus = 1",
        "the test's own machine has 2 CPUs, above `max_cpus = 1`: make it smaller or the bound larger",
        "1",
    ),
    (
        "min_numa_nodes = 2, llcs = 2",
        "the test's own machine has 1 NUMA nodes, below `min_numa_nodes = 2`: make it larger or the bound smaller",
        "2",
    ),
    (
        "scheduler = S, llcs = 4, max_llcs = 2",
        "the test's own machine has 4 LLCs, above `max_llcs = 2`: make it smaller or the bound larger",
        "2",
    ),
    (
        "threads = 1, requires_smt",
        "the test's own machine has one thread per core, and `requires_smt` wants more: say `threads = 2`",
        "1",
    ),
    (
        "requires_smt",
        "the test's own machine has one thread per core, and `requires_smt` wants more: say `threads = 2`",
        "requires_smt",
    ),
    (
        "llcs = 100, cores = 100",
        "100 LLCs × 100 cores × 1 threads are 10000 CPUs, more than the 512 a machine can have: take at most 5 cores",
        "100",
    ),
    (
        "scheduler = S, llcs = 3, cores = 200",
        "3 LLCs × 200 cores are 600 CPUs, more than the 512 a machine can have: take at most 170 cores",
        "200",
    ),
    (
        "llcs = 300",
        "300 LLCs × 2 cores × 1 threads are 600 CPUs, more than the 512 a machine can have: take at most 256 LLCs",
        "300",
    ),
    ("llcs = 65, numa_nodes = 65, cores = 1", "65 NUMA nodes are more than the 64 a machine can have", "65"),
    (
        "absent_llcs = 256",
        "with 256 absent LLCs 514 CPUs are possible, more than the 512 a machine can have: take at most 255",
        "256",
    ),
    (
        "llcs = 256, absent_llcs = 1",
        "with 1 absent LLCs 514 CPUs are possible, more than the 512 a machine can have: there is room for none",
        "1",
    ),
    (
        "workload_root_cgroup = \"a\"",
        "`workload_root_cgroup` begins with `/`, is not `/` itself and has no `..` in it",
        "\"a\"",
    ),
    (
        "watchdog_timeout_s = 60",
        "`watchdog_timeout_s` needs `scheduler`: there must be a scheduler that is watched",
        "watchdog_timeout_s",
    ),
    ("num_snapshots = 65", "`num_snapshots = 65` is more than the 64 a run keeps", "65"),
    (
        "host_only, num_snapshots = 3",
        "`host_only` and `num_snapshots` cannot stand together: there is no machine that could be captured",
        "num_snapshots",
    ),
    ("max_spread_pct = 500", "`max_spread_pct` must be a number of percent, from 0 to 100", "500"),
    (
        "memory_mb = 512, memory_mib = 512",
        "`memory_mb` and `memory_mib` cannot stand together: they are two names for the same",
        "memory_mib",
    ),
    (
        "num_snapshots = 64",
        "`num_snapshots = 64` in 5 s are 61 ms apart, less than 100: take at most 39, or a longer `duration_s`",
        "64",
    ),
    (
        "num_snapshots = 9, duration_s = 1",
        "`num_snapshots = 9` in 1 s are 80 ms apart, less than 100: take at most 7, or a longer `duration_s`",
        "9",
    ),
    (
        "expect_err, post_vm = f",
        "`expect_err` and `post_vm` cannot stand together: it is not called after a failure; use `post_vm_unconditional`",
        "post_vm",
    ),
    (
        "expect_scx_bpf_error_matches = \"x\"",
        "`expect_scx_bpf_error_matches` needs `expect_err`: it is looked for in the error that is expected",
        "expect_scx_bpf_error_matches",
    ),
    (
        "extra_sched_args = [\"-v\"]",
        "`extra_sched_args` needs `scheduler`: there must be a scheduler that takes them",
        "extra_sched_args",
    ),
    (
        "staged_schedulers = [S]",
        "`staged_schedulers` needs `scheduler`: there must be a scheduler that they take over from",
        "staged_schedulers",
    ),
    ("threads = 1, max_cpus = 0", "`max_cpus` must be at least 1", "0"),
    ("post_vm", "`post_vm` needs a value: `post_vm = …`", "post_vm"),
    ("post_vm = |r| Ok(())", "`post_vm` must be the name of a `fn(&VmResult) -> Result<()>`", "|"),
    (
        "llcs = 3, numa_nodes = 2",
        "3 LLCs cannot be divided evenly among 2 NUMA nodes; `llcs` counts the whole machine: take 4",
        "llcs",
    ),
    (
        "numa_nodes = 2",
        "1 LLCs cannot be divided evenly among 2 NUMA nodes; `llcs` counts the whole machine: take 2",
        "numa_nodes",
    ),
    ("min_work_rate = -1.0", "`min_work_rate` must be a number that is not negative", "-"),
    ("max_imbalance_ratio = \"2\"", "`max_imbalance_ratio` must be a number that is not negative", "\"2\""),
    (
        "scheduler = S, expect_err, auto_repro",
        "`expect_err` and `auto_repro` cannot stand together: a failure that is meant to be is not looked into",
        "auto_repro",
    ),
    ("auto_repro", "`auto_repro` needs `scheduler`: there must be a scheduler that can crash", "auto_repro"),
    (
        "scheduler = S, extra_sched_args = [\"--cell-parent-cgroup\", \"..\"]",
        "the path of `--cell-parent-cgroup` begins with `/`, is not `/` itself and has no `..` in it: `..` cannot be it",
        "\"..\"",
    ),
    (
        "scheduler = S, extra_sched_args = [\"--cell-parent-cgroup\"]",
        "`--cell-parent-cgroup` in `extra_sched_args` has no path after it: add one, `\"/cells\"`",
        "\"--cell-parent-cgroup\"",
    ),
    (
        "expect_auto_repro",
        "`expect_auto_repro` needs `scheduler`: there must be a scheduler that can crash",
        "expect_auto_repro",
    ),
    (
        "scheduler = S, expect_auto_repro, auto_repro = false",
        "`expect_auto_repro` and `auto_repro = false` cannot stand together: without a second run there is nothing to \
         expect of it; remove `auto_repro = false`",
        "false",
    ),
    (
        "scheduler = S, expect_auto_repro, expect_err",
        "`expect_err` and `expect_auto_repro` cannot stand together: a failure that is meant to be is not looked into; \
         keep one of them",
        "expect_auto_repro",
    ),
    (
        "scheduler = S, survives_storm, expect_auto_repro",
        "`survives_storm` and `expect_auto_repro` cannot stand together: a scheduler cannot both survive and crash",
        "expect_auto_repro",
    ),
    (
        "scheduler = S, seeds = 9, expect_auto_repro",
        "`seeds` and `expect_auto_repro` cannot stand together: of several seeds none is looked into; name the one \
         that crashes by KTSTR_SEED",
        "expect_auto_repro",
    ),
];

/// What a test on this host cannot ask for, how it is named there, and why.
const NOT_ON_HOST: &[(&str, &str, &str)] = &[
    ("performance_mode", "performance_mode", "there is no machine to isolate"),
    ("no_perf_mode", "no_perf_mode", "there is no machine to isolate"),
    ("no_perf_mode, cpu_budget = 2", "cpu_budget", "there is no machine that could be held to it"),
    ("expect_err", "expect_err", "there is no scheduler that could fail"),
    ("post_vm = f", "post_vm", "there is no machine whose end it could look at"),
    ("post_vm_unconditional = f", "post_vm_unconditional", "there is no machine whose end it could look at"),
    ("staged_schedulers = [S]", "staged_schedulers", "no scheduler is started on the host"),
    ("numa_nodes = 1", "numa_nodes", "the host has the shape it has"),
    ("llcs = 1", "llcs", "the host has the shape it has"),
    ("cores = 1", "cores", "the host has the shape it has"),
    ("threads = 1", "threads", "the host has the shape it has"),
    ("absent_llcs = 1", "absent_llcs", "the host has the shape it has"),
    ("memory_mb = 512", "memory_mb", "the host has the memory it has"),
    ("memory_mib = 512", "memory_mib", "the host has the memory it has"),
    ("kaslr = false", "kaslr", "no kernel is booted"),
    (
        "extra_include_files = [\"f\"]",
        "extra_include_files",
        "nothing is packed: the test sees the host's files",
    ),
    ("min_llcs = 2", "min_llcs", "it is run on no preset"),
    ("max_llcs = 2", "max_llcs", "it is run on no preset"),
    ("min_cpus = 2", "min_cpus", "it is run on no preset"),
    ("max_cpus = 2", "max_cpus", "it is run on no preset"),
    ("min_numa_nodes = 2", "min_numa_nodes", "it is run on no preset"),
    ("max_numa_nodes = 2", "max_numa_nodes", "it is run on no preset"),
    ("requires_smt", "requires_smt", "it is run on no preset"),
    ("auto_repro", "auto_repro", "there is no machine that could run a second time"),
    ("expect_auto_repro", "expect_auto_repro", "there is no machine that could run a second time"),
];

/// Accepted: within the limits to the last CPU, and where the scheduler's part of the shape is not known.
#[test]
fn shapes_that_may_be_built_are_taken() {
    for attributes in [
        "llcs = 16, cores = 16, threads = 2",
        "llcs = 64, numa_nodes = 64",
        "absent_llcs = 255",
        "scheduler = S, numa_nodes = 2",
        "scheduler = S, requires_smt, min_llcs = 8, min_cpus = 64",
        "llcs = 2, threads = 2, min_llcs = 2, min_cpus = 8, max_cpus = 8, requires_smt",
        "requires_smt = false",
        "scheduler = S, expect_auto_repro, auto_repro",
        "scheduler = S, expect_auto_repro = false, auto_repro = false, seeds = 9",
    ] {
        let parse = |text: &str| TokenStream::from_str(text).unwrap();
        let taken = expand(parse(attributes), parse(GOOD));
        assert!(taken.is_ok(), "{attributes}: {}", taken.unwrap_err());
    }
}

#[test]
fn what_only_a_machine_has_is_refused_on_the_host() {
    for (attribute, key, why) in NOT_ON_HOST {
        let attributes = TokenStream::from_str(&format!("{attribute}, host_only")).unwrap();
        let error = expand(attributes, TokenStream::from_str(GOOD).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("`host_only` and `{key}` cannot stand together: {why}"));
        assert_eq!(error.span().source_text().as_deref(), Some(*key));
    }
}

#[test]
fn every_pair_and_every_need_is_shown_here() {
    let text: Vec<&str> = REFUSED.iter().map(|(_, message, _)| *message).collect();
    let on_host = |key: &str| NOT_ON_HOST.iter().any(|(_, named, _)| *named == key);
    for (one, other, why) in super::checks::EXCLUDE {
        let message = format!("`{one}` and `{other}` cannot stand together: {why}");
        let shown = text.contains(&message.as_str()) || *one == "host_only" && on_host(other);
        assert!(shown, "no test sees: {message}");
    }
    for (one, needed, why) in super::checks::NEED {
        let message = format!("`{one}` needs `{needed}`: {why}");
        assert!(text.contains(&message.as_str()), "no test sees: {message}");
    }
}

#[test]
fn the_compiler_is_given_the_gates() {
    let parse = |text: &str| TokenStream::from_str(text).unwrap();
    let code = |attributes: &str| expand(parse(attributes), parse(GOOD)).unwrap().to_string();
    let gate = "const _ : () = :: ktstr :: host :: config_gate (& S ,";
    assert!(code("scheduler = S").contains(&format!("{gate} false)")));
    assert!(code("scheduler = S, config = \"x\"").contains(&format!("{gate} true)")));
    assert!(!code("").contains("_gate"));
    let devices = code("disk = DISK, networks = [A, B]");
    let gate = "const _ : () = :: ktstr :: host :: device_gate (:: core :: option :: Option :: Some (DISK) , & [A , B])";
    assert!(devices.contains(gate), "{devices}");
}

#[test]
fn the_harness_s_own_ignore_is_known_to_the_entry() {
    let parse = |text: &str| TokenStream::from_str(text).unwrap();
    let code =
        |attributes: &str, function: &str| expand(parse(attributes), parse(function)).unwrap().to_string();
    let outside = code("", &format!("#[ignore = \"slow\"] {GOOD}"));
    assert!(outside.contains("ignored : true"), "{outside}");
    assert_eq!(outside.matches("# [ignore").count(), 1, "{outside}");
    assert!(code("", GOOD).contains("ignored : false"));
    assert!(code("ignore", GOOD).contains("ignored : true"));
}

#[test]
fn each_refusal_names_its_reason_and_points_at_its_place() {
    for (attributes, message, place) in REFUSED {
        let parse = |text: &str| TokenStream::from_str(text).unwrap();
        let error = expand(parse(attributes), parse(GOOD)).unwrap_err();
        assert_eq!(error.to_string(), *message, "{attributes}");
        let pointed = error.span().source_text().unwrap_or_default();
        assert!(pointed.starts_with(place), "{attributes}: points at `{pointed}`, not `{place}`");
    }
}

#[test]
fn an_invalid_pattern_says_what_is_wrong_with_it() {
    let attributes = TokenStream::from_str("expect_err, expect_scx_bpf_error_matches = \"(\"").unwrap();
    let error = expand(attributes, TokenStream::from_str(GOOD).unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("`expect_scx_bpf_error_matches` is no regular expression: "));
}
