//! Builds the libraries that are preloaded into the emulator (`src/emulator/*.c`).

use std::{env, path::PathBuf};

const LIBRARIES: [&str; 2] = ["lockstep", "coherence"];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the output directory"));
    // Always optimised: they are in the way of what the emulator does most.
    let compiler = cc::Build::new().opt_level(2).debug(false).warnings(true).pic(true).get_compiler();
    for library in LIBRARIES {
        let source = format!("src/emulator/{library}.c");
        println!("cargo::rerun-if-changed={source}");
        let mut build = compiler.to_command();
        build.args(["-shared", "-o"]).arg(out.join(format!("{library}.so"))).args([&source, "-ldl"]);
        let status = build.status().expect("a C compiler is needed, as for linking: install gcc or clang");
        assert!(status.success(), "{build:?} failed");
    }
}
