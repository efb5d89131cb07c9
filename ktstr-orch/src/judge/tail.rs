//! The end of a text stream, and the lines of it that say why a guest died.

pub(super) const PANIC: &str = "Kernel panic - not syncing";
pub(super) const FATAL: &str = "ktstr-guest: FATAL";
/// What init/initramfs.c and arch/x86/kernel/setup.c say of an archive that does not fit.
pub(super) const NOT_UNPACKED: [&str; 2] =
    ["Initramfs unpacking failed", "initrd extends beyond end of memory"];
/// A breakpoint that nobody set: the kernel patches its own text with one in between, and an emulator with
/// several threads may go on with a translation from that moment.
pub(super) const STALE_TEXT: &str = "Oops: int3: 0000 [#1]";
/// Console lines that say why a guest died.
const NOTABLE: [&str; 5] = [PANIC, FATAL, NOT_UNPACKED[0], NOT_UNPACKED[1], STALE_TEXT];

/// The last lines of a text stream.
#[derive(Debug, Default)]
pub struct Tail {
    lines: std::collections::VecDeque<String>,
    partial: String,
    /// Lines that say why the guest died, kept however far back they lie.
    notable: Vec<String>,
}

impl Tail {
    /// Lines kept; a dump of sched_ext with a hundred tasks fits.
    pub const KEEP: usize = 1000;
    const LONGEST: usize = 4096;

    /// Adds text in any pieces.
    pub fn push(&mut self, text: &str) {
        for piece in text.split_inclusive('\n') {
            self.partial.push_str(piece);
            if piece.ends_with('\n') || self.partial.len() > Self::LONGEST {
                let line = std::mem::take(&mut self.partial);
                self.keep(line.trim_end().to_owned());
            }
        }
    }

    fn keep(&mut self, line: String) {
        let notable = NOTABLE.iter().any(|n| line.contains(n));
        if notable && self.notable.len() < 8 {
            self.notable.push(line.clone());
        }
        if self.lines.len() == Self::KEEP {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Up to `n` last lines.
    pub fn last(&self, n: usize) -> Vec<String> {
        let all = self.lines.iter().chain((!self.partial.is_empty()).then_some(&self.partial));
        let skip = (self.lines.len() + usize::from(!self.partial.is_empty())).saturating_sub(n);
        all.skip(skip).cloned().collect()
    }

    pub(super) fn notable(&self, needle: &str) -> Option<&str> {
        self.notable.iter().find_map(|line| line.find(needle).map(|at| &line[at..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_whole_lines_and_the_reason_of_death() {
        let mut tail = Tail::default();
        tail.push("Kernel panic - not syncing: x\npart");
        for n in 0..300 {
            tail.push(&format!("ial {n}\n"));
        }
        assert_eq!(tail.last(2), ["ial 298", "ial 299"]);
        assert_eq!(tail.notable("Kernel panic"), Some("Kernel panic - not syncing: x"));
    }
}
