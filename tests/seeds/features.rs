//! "Declarative scheduler registration" of the features page.

use ktstr::declare_scheduler;

declare_scheduler!(MITOSIS, {
    name = "mitosis",
    binary = "scx_mitosis",
    topology = (1, 2, 4, 1),
    sched_args = ["--exit-dump-len", "1048576"],
});

#[test]
fn the_declaration_is_what_it_says() {
    assert_eq!((MITOSIS.name, MITOSIS.binary), ("mitosis", "scx_mitosis"));
    assert_eq!(MITOSIS.topology.to_string(), "1n2l4c1t");
    assert_eq!(MITOSIS.sched_args, ["--exit-dump-len", "1048576"]);
    assert!(ktstr::KTSTR_SCHEDULERS.iter().any(|scheduler| scheduler.name == "mitosis"));
}
