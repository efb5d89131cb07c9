//! The commands as a user sees them: help, errors, exit codes, the kernel
//! store through the executables, the terminal. No kernel boots here; the
//! shell talks to a stand-in for the orchestrator (`session`).

mod commands;
mod session;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::termios::{self, LocalFlags};

const KTSTR: &str = env!("CARGO_BIN_EXE_ktstr");
const CARGO_KTSTR: &str = env!("CARGO_BIN_EXE_cargo-ktstr");

fn command(program: &str, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).stdin(Stdio::null());
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    command(KTSTR, home).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn help_names_the_subcommands_in_order() {
    let home = home();
    let help = run(home.path(), &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = text(&help.stdout);
    let mut at = 0;
    for name in ["test", "kernel", "shell", "topo", "completions"] {
        let found =
            text[at..].find(&format!("\n  {name} ")).unwrap_or_else(|| panic!("{name} in order in:\n{text}"));
        at += found + 1;
    }
}

#[test]
fn shell_help_names_every_option_in_order() {
    let home = home();
    let text = text(&run(home.path(), &["shell", "--help"]).stdout);
    let options = [
        "--kernel <ID>",
        "--topology <N,L,C,T>",
        "-i, --include-files <PATH>",
        "--memory-mb <MB>",
        "--dmesg",
        "--exec <CMD>",
        "--accel",
    ];
    let mut at = 0;
    for option in options {
        at += text[at..].find(option).unwrap_or_else(|| panic!("{option} in order in:\n{text}"));
    }
}

#[test]
fn the_plugin_takes_the_extra_word() {
    let home = home();
    let direct = command(CARGO_KTSTR, home.path()).args(["topo"]).output().unwrap();
    let through_cargo = command(CARGO_KTSTR, home.path()).args(["ktstr", "topo"]).output().unwrap();
    assert_eq!(direct.status.code(), Some(0), "{}", text(&direct.stderr));
    assert_eq!(direct.stdout, through_cargo.stdout);
    assert!(text(&direct.stdout).starts_with("CPUs: "));
}

#[test]
fn mistakes_have_code_1_and_name_the_fix() {
    let home = home();
    for (args, words) in [
        (&["shell", "--topology", "1,2"][..], "nodes,llcs,cores,threads"),
        (&["shell", "--topology", "2,3,1,1"], "cannot be divided evenly"),
        (&["shell", "--memory-mb", "64"], "128"),
        (&["shell", "--accel", "fast"], "choose auto, kvm, tcg or det"),
        (&["shell"], "--exec CMD"),
        (&["kernel", "pull", "debian:sid"], "debian:7.2"),
        (&["kernel", "pull", "7.2"], "ktstr kernel pull debian:7.2"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let output = run(home.path(), args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
}

#[test]
fn a_missing_kernel_is_not_run() {
    let home = home();
    let output = run(home.path(), &["shell", "--exec", "true", "--kernel", "9.9"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("is empty") && stderr.contains("ktstr kernel pull debian:9.9"), "{stderr}");
    let empty =
        command(KTSTR, home.path()).args(["shell", "--exec", "true"]).env("KTSTR_TEST_KERNEL", "").output();
    let stderr = text(&empty.unwrap().stderr);
    assert!(stderr.contains("KTSTR_TEST_KERNEL: the kernel selector is empty"), "{stderr}");
}

#[test]
fn no_home_names_the_variables() {
    let output = Command::new(KTSTR).env_clear().args(["kernel", "list"]).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("HOME is unset") && stderr.contains("KTSTR_CACHE_DIR"), "{stderr}");
}

#[test]
fn pulling_without_apt_names_the_alternatives() {
    let home = home();
    let output =
        command(KTSTR, home.path()).env("PATH", "/nonexistent").args(["kernel", "pull"]).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("--kernel /path/to/vmlinuz") && stderr.contains("FILE.deb"), "{stderr}");
}

#[test]
fn an_empty_store_and_a_damaged_entry() {
    let home = home();
    let empty = run(home.path(), &["kernel", "list"]);
    assert_eq!((empty.status.code(), text(&empty.stdout)), (Some(0), String::new()));
    assert!(text(&empty.stderr).contains("ktstr kernel pull"));

    let entry = home.path().join(".cache/ktstr/kernels/debian-1.2");
    fs::create_dir_all(&entry).unwrap();
    fs::write(entry.join("metadata.json"), "{").unwrap();
    let listed = text(&run(home.path(), &["kernel", "list"]).stdout);
    assert!(listed.starts_with("KEY ") && listed.contains("(corrupt: metadata.json:"), "{listed}");
    let json: serde_json::Value =
        serde_json::from_slice(&run(home.path(), &["kernel", "list", "--json"]).stdout).unwrap();
    assert_eq!((&json[0]["key"], &json[0]["valid"]), (&"debian-1.2".into(), &false.into()));

    let unconfirmed = run(home.path(), &["kernel", "clean"]);
    assert_eq!(unconfirmed.status.code(), Some(1));
    assert!(text(&unconfirmed.stderr).contains("--force"), "{}", text(&unconfirmed.stderr));
    assert!(entry.exists());
    let forced = run(home.path(), &["kernel", "clean", "--corrupt-only", "--force"]);
    assert_eq!(text(&forced.stdout), "removed debian-1.2\n");
    assert!(!entry.exists());
}

#[test]
fn a_kernel_that_is_none() {
    let home = home();
    let path = home.path().join("vmlinuz");
    fs::write(&path, "not a kernel").unwrap();
    let output = run(home.path(), &["kernel", "pull", path.to_str().unwrap()]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("no usable kernel image\n  caused by: neither a bzImage"), "{stderr}");
    assert_eq!(
        fs::read_dir(home.path().join(".cache/ktstr/kernels")).unwrap().count(),
        2,
        "only the two own directories"
    );
}

#[test]
fn completions_for_every_shell() {
    let home = home();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(home.path(), &["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("include-files"), "{shell}");
    }
    let named = run(home.path(), &["completions", "bash", "--binary", "kt"]);
    assert!(text(&named.stdout).contains("_kt()"));
    let plugin = command(CARGO_KTSTR, home.path()).args(["ktstr", "completions", "bash"]).output().unwrap();
    let script = text(&plugin.stdout);
    assert!(
        script.contains("_cargo()") && script.contains("cargo__subcmd__ktstr__subcmd__shell"),
        "{script}"
    );
}

#[test]
fn a_terminal_is_left_as_it_was_when_no_machine_starts() {
    let home = home();
    let pty = nix::pty::openpty(None, None).unwrap();
    let before = termios::tcgetattr(&pty.slave).unwrap();
    let slave = |fd: &OwnedFd| Stdio::from(fd.as_fd().try_clone_to_owned().unwrap());
    let output = command(KTSTR, home.path())
        .args(["shell", "--kernel", "9.9"])
        .stdin(slave(&pty.slave))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let after = termios::tcgetattr(&pty.slave).unwrap();
    assert_eq!(before.local_flags, after.local_flags);
    assert!(after.local_flags.contains(LocalFlags::ICANON));
}

#[test]
fn clean_asks_on_a_terminal() {
    let home = home();
    let entry = home.path().join(".cache/ktstr/kernels/x");
    fs::create_dir_all(&entry).unwrap();
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut child = command(KTSTR, home.path())
        .args(["kernel", "clean"])
        .stdin(Stdio::from(pty.slave))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    fs::File::from(pty.master.try_clone().unwrap()).write_all(b"n\n").unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("remove x? [y/N]") && said.contains("nothing was removed"), "{said}");
    assert!(entry.exists());
}
