//! Kernel text that one vCPU replaces while others run it, with the emulator's gap made wide.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::{Command, Output},
};

use super::guest::{Needs, QEMU, initramfs, needs};

/// As built for the emulator.
const LIBRARY: &str = concat!(env!("OUT_DIR"), "/coherence.so");
const WIDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator/widen.c");

/// A static branch on the way of each task that wakes or sleeps is switched while tasks do.
const SCRIPT: &str = "
i=0; while [ $i -lt 6 ]; do (while :; do cat /dev/null; done) & i=$((i+1)); done
i=0; while [ $i -lt 8 ]; do
  echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; i=$((i+1))
done
echo switched $i times
poweroff -f";

fn run(needs: &Needs, initrd: &OwnedFd, preload: &str) -> Output {
    let initrd = format!("/proc/{}/fd/{}", std::process::id(), initrd.as_raw_fd());
    let kernel = needs.kernels.last().expect("there is one");
    Command::new("timeout")
        .args(["280", "env", &format!("LD_PRELOAD={preload}"), "KTSTR_COHERENCE=2", QEMU])
        .args("-nodefaults -no-user-config -display none -no-reboot -serial stdio -m 512M -smp 4".split(' '))
        .args("-machine q35,hpet=off -cpu max,vendor=GenuineIntel -accel tcg,thread=multi".split(' '))
        .args(["-initrd", &initrd, "-append", "console=ttyS0 tsc=reliable no_timer_check panic=-1"])
        .arg("-kernel")
        .arg(kernel)
        .output()
        .expect("it can be started")
}

#[test]
fn replaced_kernel_text_is_not_executed() {
    let Some(needs) = needs() else { return };
    let directory = tempfile::tempdir().unwrap();
    let widen = directory.path().join("widen.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&widen).args([WIDEN, "-ldl"]);
    assert!(compiler.status().expect("a C compiler").success());
    let (widen, initrd) = (widen.display(), initramfs(SCRIPT));

    let without = run(&needs, &initrd, &widen.to_string());
    let said = String::from_utf8_lossy(&without.stdout);
    let complaints = String::from_utf8_lossy(&without.stderr);
    assert!(!complaints.contains("widened"), "{complaints}");
    assert!(said.contains("Oops: int3"), "without the library nothing happens:\n{said}");

    assert!(Path::new(LIBRARY).exists(), "{LIBRARY}");
    let with = run(&needs, &initrd, &format!("{LIBRARY}:{widen}"));
    let said = String::from_utf8_lossy(&with.stdout);
    assert_eq!(String::from_utf8_lossy(&with.stderr), "c", "what the library reports");
    assert!(said.contains("switched 8 times") && !said.contains("Oops"), "{said}");
}
