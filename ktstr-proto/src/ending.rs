//! How a run ended, without what differs between two runs that ended the same way: figures, thread
//! ids, CPU numbers, moments. Two runs of a test with equal [`RunReport::ending`] show one fault; two
//! different claims, panics or errors are two.
//!
//! Refuses to guess at meaning: a text is compared word for word once its figures are gone.

use crate::verdict::{Cause, Outcome, RunReport};

/// What stands for a figure.
const FIGURE: char = '#';

impl RunReport {
    /// The way it ended: outcome, cause, and the words of what failed.
    pub fn ending(&self) -> String {
        let outcome = if self.infrastructure {
            "infrastructure".into()
        } else {
            self.outcome.to_string().to_lowercase()
        };
        if self.outcome == Outcome::Pass && !self.infrastructure {
            return outcome;
        }
        let mut text = outcome;
        let decided_by_checks = matches!(self.cause, None | Some(Cause::Assertion));
        if let Some(cause) = &self.cause {
            let (name, words) = parts(cause);
            text.push_str(&format!(" {name}"));
            if !words.is_empty() {
                text.push_str(&format!(": {words}"));
            }
        }
        let details = self.result.iter().flat_map(|result| &result.details);
        let mut findings: Vec<String> = details
            .filter(|detail| detail.outcome == self.outcome)
            // What else is found after a stall or a panic follows from it, and in how many words is chance.
            .map(|detail| match decided_by_checks {
                true => format!("{:?}: {}", detail.kind, without_figures(&detail.message)),
                false => format!("{:?}", detail.kind),
            })
            .collect();
        findings.sort();
        findings.dedup();
        if !findings.is_empty() {
            text.push_str(&format!("; {}", findings.join("; ")));
        }
        text
    }
}

/// A cause's name, and its words without figures.
fn parts(cause: &Cause) -> (&'static str, String) {
    let (name, words) = match cause {
        Cause::Assertion => ("Assertion", String::new()),
        // Where a panic was raised tells it from another of the same words.
        Cause::TestPanic { message, .. } => {
            let words = match message.rsplit_once(", at ") {
                Some((words, place)) => format!("{}, at {place}", without_figures(words)),
                None => without_figures(message),
            };
            return ("TestPanic", words);
        }
        Cause::TestDied { how } => ("TestDied", how.clone()),
        Cause::SchedulerStall { reason } => ("SchedulerStall", reason.clone()),
        Cause::SchedulerError { reason } => ("SchedulerError", reason.clone()),
        Cause::SchedulerNotAttached { reason } => ("SchedulerNotAttached", reason.clone()),
        Cause::SchedulerDied { how } => ("SchedulerDied", how.clone()),
        Cause::KernelPanic { message } => ("KernelPanic", message.clone()),
        Cause::GuestInit { step, reason } => ("GuestInit", format!("{step}: {reason}")),
        Cause::Deadline { phase, .. } => ("Deadline", phase.clone()),
        Cause::GuestEnded { how } => ("GuestEnded", how.clone()),
        Cause::Channel { reason } => ("Channel", reason.clone()),
        Cause::ProcessDied { process, how } => ("ProcessDied", format!("{process} {how}")),
        Cause::Missing { reason } => ("Missing", reason.clone()),
        Cause::BadRequest { reason } => ("BadRequest", reason.clone()),
        Cause::Cancelled => ("Cancelled", String::new()),
    };
    (name, without_figures(&words))
}

/// The text with `#` for each figure with its unit, and for each list of figures. A number that belongs
/// to a name (`cg_0`, `layer2a`) stays; a CPU's does not.
fn without_figures(text: &str) -> String {
    let words: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < words.len() {
        let names = |c: char| c.is_alphabetic() || c == '_';
        let of_a_name = out.chars().next_back().is_some_and(names) && !numbered(&out);
        if !words[at].is_ascii_digit() || of_a_name {
            // All digits of a name are the name's.
            let digits = words[at..].iter().take_while(|c| of_a_name && c.is_ascii_digit()).count();
            let end = at + digits.max(1);
            out.extend(&words[at..end]);
            at = end;
            continue;
        }
        at = figure_end(&words, at);
        // `1,2,3`, `1-3` and `1.2` are one, however long.
        let joined = out.ends_with([',', '-', '.', ':']) && out[..out.len() - 1].ends_with(FIGURE);
        match joined {
            true => out.truncate(out.len() - 1),
            false => out.push(FIGURE),
        }
    }
    out
}

/// Whether what is written so far ends in the word for something that is numbered.
fn numbered(out: &str) -> bool {
    let word = out.rsplit(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    matches!(word.to_lowercase().as_str(), "cpu" | "tid" | "pid" | "node" | "llc" | "dsq")
}

/// Where a figure that begins at `at` ends: digits, more of them behind a dot, a unit.
fn figure_end(words: &[char], at: usize) -> usize {
    let run = |from: usize, of: fn(&char) -> bool| from + words[from..].iter().take_while(|c| of(c)).count();
    if words[at..].starts_with(&['0', 'x']) {
        return run(at + 2, char::is_ascii_hexdigit);
    }
    let mut end = run(at, char::is_ascii_digit);
    if words.get(end) == Some(&'.') && words.get(end + 1).is_some_and(char::is_ascii_digit) {
        end = run(end + 1, char::is_ascii_digit);
    }
    const UNITS: [&str; 10] = ["ns", "us", "µs", "ms", "s", "%", "Hz", "KiB", "MiB", "x"];
    let unit_end = run(end, |c| c.is_alphabetic() || *c == '%');
    let unit: String = words[end..unit_end].iter().collect();
    if UNITS.contains(&unit.as_str()) { unit_end } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_go_and_names_stay() {
        for (text, plain) in [
            ("test[110] failed to run for 1.408s", "test[#] failed to run for #"),
            ("tid 71 stuck 998ms on cpu2 at +3000ms", "tid # stuck # on cpu# at +#"),
            ("cg_0 has 3 workers of 4", "cg_0 has # workers of #"),
            ("cg_12 has none", "cg_12 has none"),
            ("at tests/demo.rs:41:9", "at tests/demo.rs:#"),
            ("cpus 0-3,7", "cpus #"),
            ("address 0xffff8880deadbeef", "address #"),
            ("spread 61.2% (threshold 35%)", "spread # (threshold #)"),
            ("", ""),
        ] {
            assert_eq!(without_figures(text), plain);
        }
    }

    #[test]
    fn hostile_text_is_only_text() {
        for text in ["0x", "1.", ".1", "9999999999999999999999999", "1e9", "\u{0}1\u{7f}", "१२"] {
            assert!(without_figures(text).chars().count() <= text.chars().count() + 1, "{text}");
        }
    }
}
