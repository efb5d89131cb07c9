//! Compiles `src/bpf/*.bpf.c` and writes the skeletons that `main.rs` and `plant.rs` include.
//!
//! Needs a clang that can emit BPF with the CO-RE relocations used here (17 or newer). `BPF_CLANG`
//! and `CLANG` are honoured in that order; without them the versioned names are tried before the
//! plain one. Nothing is read from the running kernel: the types the program needs are declared in
//! `src/bpf/kernel.bpf.h`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use libbpf_cargo::SkeletonBuilder;

const MIN_CLANG: u32 = 17;
const FALLBACKS: [&str; 5] = ["clang-19", "clang-20", "clang-18", "clang-17", "clang"];
const INSTALL: &str = "install one (Debian, Ubuntu: `apt-get install clang-19`) or name it in \
     BPF_CLANG, for example BPF_CLANG=/usr/lib/llvm-19/bin/clang";

fn main() -> Result<()> {
    for name in ["BPF_CLANG", "CLANG"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=src/bpf");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo did not set OUT_DIR")?);
    let clang = find_clang()?;
    for (source, skeleton) in
        [("src/bpf/main.bpf.c", "bpf_skel.rs"), ("src/bpf/plant.bpf.c", "plant_skel.rs")]
    {
        SkeletonBuilder::new()
            .source(source)
            .clang(&clang)
            .clang_args(["-I", "src/bpf", "-Wall", "-Werror"])
            .build_and_generate(out.join(skeleton))
            .with_context(|| format!("compiling {source}"))?;
    }
    Ok(())
}

/// The first usable compiler. One that the user named is not silently replaced.
fn find_clang() -> Result<String> {
    for name in ["BPF_CLANG", "CLANG"] {
        if let Some(clang) = env::var(name).ok().filter(|v| !v.is_empty()) {
            return match clang_major(&clang) {
                Some(major) if major >= MIN_CLANG => Ok(clang),
                Some(major) => {
                    bail!("{name}={clang} is clang {major}, BPF needs {MIN_CLANG} or newer: {INSTALL}")
                }
                None => bail!("{name}={clang} does not run or is no clang: {INSTALL}"),
            };
        }
    }
    let usable = |name: &&str| clang_major(name).is_some_and(|major| major >= MIN_CLANG);
    match FALLBACKS.into_iter().find(usable) {
        Some(name) => Ok(name.to_owned()),
        None => bail!("no clang {MIN_CLANG} or newer among {}: {INSTALL}", FALLBACKS.join(", ")),
    }
}

/// The major version a compiler reports, `None` where it does not run or is something else.
fn clang_major(program: &str) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, version) = text.lines().next()?.split_once("clang version ")?;
    version.split('.').next()?.parse().ok()
}
