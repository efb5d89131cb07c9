//! An interactive session as a person has it: `ktstr shell` on a terminal, keys typed, a real guest behind it.

use std::{process::Command, time::Instant};

use crate::harness::PATIENCE;
use crate::terminal::Terminal;

/// A running `ktstr shell` and what its terminal has shown.
struct OnTerminal {
    at: Terminal,
    seen: String,
}

impl OnTerminal {
    fn start(args: &[&str]) -> Self {
        let ktstr = ktstr::executables::find_own("ktstr").expect("ktstr is built");
        let mut shell = Command::new(ktstr);
        shell
            .args(["shell", "--accel", "tcg", "--topology", "1n1l2c1t", "--memory-mb", "512"])
            .args(args)
            .env("TERM", "vt102");
        Self { at: Terminal::start(&shell, 31, 107), seen: String::new() }
    }

    /// Reads until the terminal has shown `needle`, and forgets what it showed up to there.
    fn until(&mut self, needle: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.seen.find(needle) {
                let rest = self.seen.split_off(at + needle.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(begun.elapsed() < PATIENCE, "no `{needle}` in:\n{}", self.seen);
            let bytes = self.at.read();
            if bytes.is_empty() {
                assert!(self.at.child.try_wait().unwrap().is_none(), "ended early:\n{}", self.seen);
            }
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    fn type_keys(&self, keys: &str) {
        self.at.type_keys(keys);
    }
}

#[test]
fn what_is_typed_is_carried_out_and_the_status_comes_back() {
    let mut terminal = OnTerminal::start(&[]);
    terminal.until("ktstr# ");
    assert!(!terminal.at.is_cooked(), "raw while the guest has it");
    // What is looked for is computed by the guest: the terminal echoes what was typed.
    terminal.type_keys("echo cpus=$(nproc) pid1=$(cat /proc/1/comm)\r");
    terminal.until("cpus=2 pid1=init");
    terminal.type_keys("stty size; echo $TERM-$((6*7))\r");
    let size = terminal.until("vt102-42");
    assert!(size.contains("31 107"), "{size}");
    terminal.at.resize(19, 83);
    // The guest hears of it through a port of its own, when it may.
    terminal.type_keys("while [ \"$(stty size)\" != '19 83' ]; do :; done; echo seen-$((2*50))\r");
    terminal.until("seen-100");
    // The key interrupts the guest's command, not ours; between two commands it would reach the guest's shell.
    terminal.type_keys("sh -c 'echo begun-$((3*3)); exec sleep 10000'\r");
    terminal.until("begun-9");
    terminal.type_keys("\x03");
    terminal.type_keys("echo status=$?\r");
    terminal.until("status=130");
    terminal.type_keys("exit 7\r");
    assert_eq!(terminal.at.child.wait().unwrap().code(), Some(7));
    assert!(terminal.at.is_cooked(), "given back as it was");
}
