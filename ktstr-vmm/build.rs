//! Builds the library that the emulator runs with under `det` (`src/emulator/lockstep.c`).

use std::{env, path::PathBuf};

const SOURCE: &str = "src/emulator/lockstep.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the output directory"));
    // Always optimised: it is in the way of every lock that the emulator takes.
    let compiler = cc::Build::new().opt_level(2).debug(false).warnings(true).pic(true).get_compiler();
    let mut build = compiler.to_command();
    build.args(["-shared", "-o"]).arg(out.join("lockstep.so")).args([SOURCE, "-ldl"]);
    let status = build.status().expect("a C compiler is needed, as for linking: install gcc or clang");
    assert!(status.success(), "{build:?} failed");
}
