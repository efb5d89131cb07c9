//! Procedural macros of ktstr: [`macro@ktstr_test`], [`declare_scheduler!`] and [`macro@Payload`].
//!
//! They only parse, check and emit; what the emitted code calls lives in the `ktstr` crate, where
//! users find these macros re-exported. Everything that can be refused is refused at compile time,
//! at the place where it stands. See `attributes.rs` for the shared reading of `key = value` lists.

mod attributes;
mod cell_parent;
mod features;
mod limits;
mod payload;
mod presets;
mod scheduler;
mod test;

use proc_macro::TokenStream;

/// Makes a function `fn(&Ctx) -> Result<AssertResult>` a test that runs in a machine of its own.
///
/// All attributes are optional. What the machine is: `llcs`, `cores`, `threads`, `numa_nodes` (each
/// inherited from the scheduler, else 1, 2, 1, 1), `absent_llcs`, `memory_mb`, `kaslr`. What runs: `duration_s`,
/// `workers_per_cgroup`, `scheduler`, `extra_sched_args`, `config`, `staged_schedulers`, `payload`,
/// `workloads`, `extra_include_files`, `workload_root_cgroup`, `host_only`. What is judged: every
/// threshold of `Assert` by its name, `watchdog_timeout_s`, `expect_err` with `expect_scx_bpf_error_contains` and
/// `expect_scx_bpf_error_matches`, `survives_storm`, `auto_repro`, `expect_auto_repro`, `allow_inconclusive`, `post_vm`,
/// `post_vm_unconditional`, after captures of the guest: `num_snapshots`. On which other machines it makes sense: `min_llcs`, `max_llcs`, `min_cpus`,
/// `max_cpus`, `min_numa_nodes`, `max_numa_nodes`, `requires_smt`. And `performance_mode`,
/// `no_perf_mode`, `ignore`. Other attributes of the function go to the emitted `#[test]`.
#[proc_macro_attribute]
pub fn ktstr_test(attributes: TokenStream, function: TokenStream) -> TokenStream {
    test::expand(attributes.into(), function.into()).unwrap_or_else(|e| e.into_compile_error()).into()
}

/// Declares a scheduler: `declare_scheduler!(IDENT, { name = "x", binary = "scx_x", … })`.
///
/// Emits `pub static IDENT: Scheduler` and registers it in `KTSTR_SCHEDULERS`. `name` and one of
/// `binary` (to be found) and `binary_path` are required. The rest: `topology = (numa_nodes, llcs, cores,
/// threads)`, `sched_args = ["…"]`, `kernels = ["6.14", "6.15..=7.0"]`, `assert`, `kargs = ["…"]`,
/// `sysctls = [Sysctl::new("kernel.x", "1")]`, `constraints`, `cgroup_parent = "/…"`, `config_file = "…"`,
/// `config_file_def = ("--config {file}", "/include-files/x.json")`, `verifier_exclude_topologies`.
#[proc_macro]
pub fn declare_scheduler(input: TokenStream) -> TokenStream {
    scheduler::expand(input.into()).unwrap_or_else(|e| e.into_compile_error()).into()
}

/// Declares a program that runs beside the workers: a constant named after the struct.
///
/// `#[payload(binary = "fio", name = "fio", output = Json)]` is required (`name` and `output` may be left
/// out); `#[default_args("…")]`, `#[default_check(min("iops", 5.0))]`, `#[metric(name = "iops",
/// polarity = HigherBetter, unit = "1/s")]` and `#[include_files("…")]` may be repeated.
#[proc_macro_derive(Payload, attributes(payload, default_args, default_check, metric, include_files))]
pub fn derive_payload(input: TokenStream) -> TokenStream {
    payload::expand(input.into()).unwrap_or_else(|e| e.into_compile_error()).into()
}
