//! The table: what is needed, for what, and how to see that it is there.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Build the demo and run it on a pulled kernel
    Demo,
    /// Run the whole suite
    Test,
    /// Build schedulers published elsewhere, to test with them
    PublishedSchedulers,
}

/// How to see that something is there.
#[derive(Debug)]
pub enum Probe {
    /// Any of these executables in PATH.
    Executable(&'static [&'static str]),
    /// A C header the compiler would find.
    Header(&'static str),
}

/// One thing, named by its Debian package.
#[derive(Debug)]
pub struct Need {
    pub group: Group,
    pub package: &'static str,
    /// Packages that serve as well, tried when apt does not offer the first.
    pub alternatives: &'static [&'static str],
    pub why: &'static str,
    pub probe: Probe,
}

const fn need(group: Group, package: &'static str, why: &'static str, probe: Probe) -> Need {
    Need { group, package, alternatives: &[], why, probe }
}

/// The names that scx-ktstr's build script tries, in its order.
const CLANGS: &[&str] = &["clang-19", "clang-20", "clang-18", "clang-17"];

const NEEDS: &[Need] = &[
    need(Group::Demo, "gcc", "links Rust programs and compiles libbpf", Probe::Executable(&["cc", "gcc"])),
    need(Group::Demo, "make", "builds libbpf", Probe::Executable(&["make"])),
    need(Group::Demo, "pkg-config", "finds libelf and zlib", Probe::Executable(&["pkg-config", "pkgconf"])),
    need(Group::Demo, "libelf-dev", "libbpf reads BPF objects with it", Probe::Header("libelf.h")),
    need(Group::Demo, "zlib1g-dev", "libbpf needs it", Probe::Header("zlib.h")),
    need(Group::Demo, "busybox-static", "the guest's small tools", Probe::Executable(&["busybox"])),
    need(Group::Demo, "xz-utils", "unpacks kernels and modules", Probe::Executable(&["xz"])),
    need(Group::Demo, "zstd", "unpacks kernels and modules", Probe::Executable(&["zstd"])),
    Need {
        group: Group::Demo,
        package: CLANGS[0],
        alternatives: CLANGS,
        why: "compiles the schedulers' BPF programs (17 or later)",
        probe: Probe::Executable(CLANGS),
    },
    need(Group::Test, "acpica-tools", "checks our ACPI tables with iasl", Probe::Executable(&["iasl"])),
    need(Group::PublishedSchedulers, "gawk", "libbpf's version script", Probe::Executable(&["gawk"])),
    need(Group::PublishedSchedulers, "autoconf", "vendored elfutils", Probe::Executable(&["autoconf"])),
    need(Group::PublishedSchedulers, "automake", "vendored elfutils", Probe::Executable(&["automake"])),
    need(Group::PublishedSchedulers, "libtool", "vendored elfutils", Probe::Executable(&["libtoolize"])),
    need(Group::PublishedSchedulers, "gettext", "vendored elfutils", Probe::Executable(&["msgfmt"])),
    need(Group::PublishedSchedulers, "autopoint", "vendored elfutils", Probe::Executable(&["autopoint"])),
];

/// Testing includes what the demo needs, as do other people's schedulers.
fn wanted(group: Group, asked: &[Group]) -> bool {
    asked.contains(&group) || group == Group::Demo && !asked.is_empty()
}

/// A clang that compiles BPF programs, if there is one.
pub fn clang() -> Option<&'static str> {
    CLANGS.iter().copied().find(|name| in_path(name))
}

/// What is not there.
pub fn missing(asked: &[Group]) -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| wanted(need.group, asked) && !is_there(&need.probe)).collect()
}

fn is_there(probe: &Probe) -> bool {
    match probe {
        Probe::Executable(names) if names.contains(&CLANGS[0]) => {
            names.iter().any(|name| in_path(name)) || plain_clang_is_new_enough()
        }
        Probe::Executable(names) => names.iter().any(|name| in_path(name)),
        Probe::Header(name) => {
            ["/usr/include", "/usr/local/include"].iter().any(|dir| Path::new(dir).join(name).is_file())
        }
    }
}

/// Whether an executable is in PATH or in the directories of the superuser.
pub fn in_path(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/bin", "/usr/bin"].map(Into::into))
        .any(|dir| dir.join(name).is_file())
}

fn plain_clang_is_new_enough() -> bool {
    let Ok(output) = Command::new("clang").arg("--version").stderr(Stdio::null()).output() else {
        return false;
    };
    clang_major(&String::from_utf8_lossy(&output.stdout)).is_some_and(|major| major >= 17)
}

fn clang_major(text: &str) -> Option<u32> {
    text.split("clang version ").nth(1)?.split('.').next()?.parse().ok()
}

/// Whether `cargo nextest` works.
pub fn has_nextest() -> bool {
    let status = Command::new("cargo")
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clang_tells_its_version() {
        assert_eq!(
            clang_major("Debian clang version 19.1.7 (3~deb12u1)\nTarget: x86_64-pc-linux-gnu\n"),
            Some(19)
        );
        assert_eq!(clang_major("clang version 17.0.6"), Some(17));
        assert_eq!(clang_major("gcc (Debian 12.2.0)"), None);
    }

    #[test]
    fn every_group_includes_the_demo_and_nothing_else() {
        assert!(wanted(Group::Demo, &[Group::Test]));
        assert!(!wanted(Group::Test, &[Group::Demo]));
        assert!(!wanted(Group::Demo, &[]));
    }
}
