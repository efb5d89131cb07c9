//! The page about all columns.

use std::{collections::BTreeMap, fmt::Write as _};

use super::boot::Line;

/// The catalogue under one scheduler on one machine shape.
#[derive(Debug, Default)]
pub struct Column {
    pub name: String,
    pub lines: Vec<Line>,
    pub boots: u32,
    /// What belongs to no single scenario.
    pub findings: Vec<String>,
    /// Whether scenarios are left that had no turn.
    pub unfinished: bool,
}

impl Column {
    /// The worst of its scenarios.
    pub fn verdict(&self) -> &'static str {
        let has = |word: &str| self.lines.iter().any(|line| line.outcome.contains(word));
        if has("FAIL") {
            "FAILED"
        } else if has("INFRASTRUCTURE") || has("no ") {
            "INFRASTRUCTURE"
        } else if self.unfinished {
            "NOT RUN"
        } else if has("INCONCLUSIVE") {
            "INCONCLUSIVE"
        } else {
            "PASS"
        }
    }
}

/// What a scenario of this length can fail by at all, with the usual limits of an emulated machine
/// (`ktstr-proto/src/thresholds.rs`: gaps of 3 s; spreads of 35 points and 50 more over the life in seconds).
fn could_fail(moment_ms: u32) -> String {
    let seconds = f64::from(moment_ms) / 1000.0;
    let gaps = if seconds <= 3.0 { "no gap can be too long" } else { "gaps of more than 3 s fail" };
    format!(
        "What this length can show: {gaps}, spreads fail above {:.0} points, steps are judged by shares of \
         CPU time only where they hold for 1 s, and workers that live for less than 1 s are not judged by progress. Isolation, errors and the \
         scheduler's end are judged at any length.",
        35.0 + 50.0 / seconds.max(0.001)
    )
}

/// Markdown.
pub fn render(columns: &[Column], accel: &str, moment_ms: u32) -> String {
    let mut page = format!(
        "# The scenario catalogue under several schedulers\n\nWritten by `cargo xtask scenarios`: every scenario \
         for {} s under `{accel}`. Figures are wall time in the guest, milliseconds, with the making and \
         removing of its cgroups. Where a scheduler ends within a scenario, the next boot begins with the one \
         after it.\n\n{}\n\nWhat is known of verdicts that are no PASS: [the catalogue under a published \
         scheduler](decisions/2026-11-21-catalogue-under-a-published-scheduler.md), with the reason for which EEVDF \
         leaves a CPU idle in `cgroup_cpuset_resize`.\n\n| scenario |",
        f64::from(moment_ms) / 1000.0,
        could_fail(moment_ms)
    );
    for column in columns {
        let _ = write!(page, " {} |", column.name);
    }
    let _ = writeln!(page, "\n|---|{}", "---:|".repeat(columns.len()));
    let mut rows: BTreeMap<&str, Vec<Option<&Line>>> = BTreeMap::new();
    for (nth, column) in columns.iter().enumerate() {
        for line in &column.lines {
            let row = rows.entry(&line.scenario).or_insert_with(|| vec![None; columns.len()]);
            row[nth] = Some(line);
        }
    }
    for (scenario, cells) in &rows {
        let _ = write!(page, "| {scenario} |");
        for cell in cells {
            let _ = match cell {
                Some(Line { outcome, ms: Some(ms), .. }) if outcome == "PASS" => write!(page, " {ms} |"),
                Some(Line { outcome, ms: Some(ms), .. }) => write!(page, " {ms} ({outcome}) |"),
                Some(line) => write!(page, " {} |", line.outcome),
                None => write!(page, " not run |"),
            };
        }
        page.push('\n');
    }
    let _ = write!(page, "| **all** ({}) |", rows.len());
    for column in columns {
        let sum: u64 = column.lines.iter().filter_map(|line| line.ms).sum();
        let (count, boots, verdict) = (column.lines.len(), column.boots, column.verdict());
        let _ = write!(page, " {count} scenarios, {boots} boots, {} s: {verdict} |", sum / 1000);
    }
    page.push('\n');
    for column in columns {
        let whole = (!column.findings.is_empty()).then_some(("The boots as a whole", &column.findings));
        let single = column.lines.iter().filter(|line| !line.details.is_empty());
        for (what, details) in single.map(|line| (line.scenario.as_str(), &line.details)).chain(whole) {
            let _ = writeln!(page, "\n{what} under {}:\n", column.name);
            for detail in details {
                let _ = writeln!(page, "- {detail}");
            }
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(scenario: &str, outcome: &str, ms: u64) -> Line {
        Line { scenario: scenario.into(), outcome: outcome.into(), ms: Some(ms), details: Vec::new() }
    }

    #[test]
    fn each_scenario_has_its_cell_and_each_column_its_sum() {
        let mut a = Column { name: "a".into(), boots: 2, ..Column::default() };
        a.lines = vec![line("basic::steady", "PASS", 437), line("nested::churn", "NOT RUN", 5)];
        assert_eq!(a.verdict(), "PASS");
        let mut b = Column { name: "b".into(), boots: 1, unfinished: true, ..Column::default() };
        b.lines = vec![line("basic::steady", "FAIL", 9)];
        b.lines[0].details.push("SchedulerStall".into());
        let page = render(&[a, b], "tcg", 400);
        assert!(page.contains("| basic::steady | 437 | 9 (FAIL) |"), "{page}");
        assert!(page.contains("| nested::churn | 5 (NOT RUN) | not run |"), "{page}");
        assert!(
            page.contains("| 2 scenarios, 2 boots, 0 s: PASS | 1 scenarios, 1 boots, 0 s: FAILED |"),
            "{page}"
        );
        assert!(page.contains("basic::steady under b:\n\n- SchedulerStall\n"), "{page}");
    }
}
