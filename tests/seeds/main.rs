//! The examples of the founding documents, word for word, one module per document. Each is compiled as
//! it stands; those that name a scheduler of their own run with the fixture scheduler in its place,
//! which `KTSTR_SCHEDULER` allows.

mod features;
mod new_scheduler;
#[rustfmt::skip]
mod overview_api;
mod overview_taste;

use ktstr::host::KTSTR_TESTS;

#[test]
fn every_example_is_registered() {
    let mut names: Vec<_> = KTSTR_TESTS.iter().map(|entry| entry.full_name()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "new_scheduler::basic_steady",
            "new_scheduler::smt_steady",
            "overview_api::my_test",
            "overview_taste::my_test",
        ]
    );
}
