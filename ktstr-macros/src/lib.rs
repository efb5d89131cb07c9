//! Procedural macros of ktstr: [`macro@ktstr_test`] and [`declare_scheduler!`].
//!
//! They only parse, check and emit; what the emitted code calls lives in the `ktstr` crate, where
//! users find these macros re-exported. Everything that can be refused is refused at compile time,
//! at the place where it stands. See `attributes.rs` for the shared reading of `key = value` lists.

mod attributes;
mod scheduler;
mod test;

use proc_macro::TokenStream;

/// Makes a function `fn(&Ctx) -> Result<AssertResult>` a test that runs in a machine of its own.
///
/// All attributes are optional: `llcs`, `cores`, `threads`, `numa_nodes` (each inherited from the
/// scheduler, else 1, 2, 1, 1), `memory_mb`, `duration_s` (5), `scheduler`, `extra_sched_args`,
/// the thresholds `not_stuck`, `isolation`, `max_gap_ms`, `max_spread_pct`,
/// `max_imbalance_ratio`, `max_local_dsq_depth`, `fail_on_rq_clock_stuck`, `sustained_samples`,
/// the bounds of its gauntlet `min_llcs`, `max_llcs`, `min_cpus`, `max_cpus`, `min_numa_nodes`,
/// `max_numa_nodes`, `requires_smt`, and `ignore`. Other attributes of the function go to the emitted `#[test]`.
#[proc_macro_attribute]
pub fn ktstr_test(attributes: TokenStream, function: TokenStream) -> TokenStream {
    test::expand(attributes.into(), function.into()).unwrap_or_else(|e| e.into_compile_error()).into()
}

/// Declares a scheduler: `declare_scheduler!(IDENT, { name = "x", binary = "scx_x", … })`.
///
/// Emits `pub static IDENT: Scheduler` and registers it in `KTSTR_SCHEDULERS`. Fields: `name` and
/// `binary` (required), `topology = (numa_nodes, llcs, cores, threads)`, `sched_args = ["…"]`,
/// `kernels = ["6.14", "6.15..=7.0"]`, `assert = Assert { … }`.
#[proc_macro]
pub fn declare_scheduler(input: TokenStream) -> TokenStream {
    scheduler::expand(input.into()).unwrap_or_else(|e| e.into_compile_error()).into()
}
