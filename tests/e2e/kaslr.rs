//! Kernels lie at an address of their own, unless they are told to stay.

use anyhow::Context;
use ktstr::prelude::*;
use ktstr_proto::{Accel, run::RunSpec, verdict::Outcome};

use crate::harness::{run_with_output, spec};

/// Where x86_64 kernels are linked: `__START_KERNEL_map` and CONFIG_PHYSICAL_START.
const LINKED: &str = "ffffffff81000000";

#[ktstr_test(llcs = 1, cores = 1, threads = 1, ignore)]
fn says_where_the_kernel_lies(_: &Ctx) -> Result<AssertResult> {
    let symbols = std::fs::read_to_string("/proc/kallsyms")?;
    let text = symbols.lines().find(|line| line.ends_with(" T _text")).context("no _text")?;
    println!("kernel at {text}");
    Ok(AssertResult::pass())
}

#[test]
fn on_tcg_a_kernel_is_moved_and_one_told_not_to_is_not() {
    let place = |kernel_args: Vec<String>| {
        let asked = spec("says_where_the_kernel_lies", Accel::Tcg);
        let (report, output) = run_with_output(RunSpec { kernel_args, ..asked });
        assert_eq!(report.outcome, Outcome::Pass, "{:?}", report.cause);
        let (_, place) = output.split_once("kernel at ").expect("the place");
        place.split_whitespace().next().expect("an address").to_owned()
    };
    let moved = place(Vec::new());
    assert!(moved.starts_with("ffffffff8") && moved != LINKED, "{moved}");
    assert_eq!(place(vec!["nokaslr".into()]), LINKED);
}
