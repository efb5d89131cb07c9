//! Real kernels, real schedulers, all processes: what a user sees, from the request to the report.
//!
//! Subjects are registered tests that are ignored as tests of their own; each case runs one of them
//! with an accelerator and looks at its report. Cases named `on_kvm…` are not run where hardware KVM
//! cannot run a stock kernel, unless `KTSTR_REQUIRE` names kvm.

mod asked;
mod attach;
mod bad_input;
mod confined;
mod core_file;
mod death;
mod device_work;
mod disk;
mod exits;
mod gauntlet;
mod harness;
mod host;
mod kaslr;
mod kernel_places;
mod kernels;
mod leaves;
mod load_avg;
mod maps;
mod matrix;
mod observe;
mod on_host;
mod operations;
mod pulse;
mod race;
mod registers;
mod replay;
mod repro;
mod said;
mod schema;
mod session;
mod shares;
mod terminal;
mod topology;
mod trust;
mod verdicts;
mod warm;
mod watch;
mod work_types;
