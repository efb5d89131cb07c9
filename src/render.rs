//! A run's report as text for people: plain, readable in 80 columns, the verdict first, the way to
//! repeat it last. Paths and command lines are never broken, so that they can be copied.

use std::fmt::Write;

use ktstr_proto::{
    host::HostTime,
    monitor::MonitorSummary,
    run::Boot,
    stats::PhaseMonitor,
    verdict::{AssertResult, Cause, Outcome, RunReport, ScenarioStats, TimelineMark, TimelineSource},
};

const WIDTH: usize = 80;
/// Log lines shown; the run directory holds all.
const TAIL: usize = 25;
/// Of the scheduler's log, which comes as what is worth showing.
const LOG: usize = 40;
/// Marks of the scenario shown before the last marks of all kinds.
const EARLIER: usize = 10;

/// The whole report.
pub fn report(report: &RunReport) -> String {
    let mut out = String::new();
    header(&mut out, report);
    if let Some(result) = &report.result {
        findings(&mut out, result);
    }
    if let Some(cause) = &report.cause {
        particulars(&mut out, cause);
    }
    for note in &report.notes {
        wrapped(&mut out, "  note: ", note);
    }
    machine(&mut out, report);
    if let Some(result) = report.result.as_ref().filter(|result| !result.stats.cgroups.is_empty()) {
        stats(&mut out, &result.stats);
    }
    if !matches!(report.outcome, Outcome::Pass | Outcome::NotRun) {
        timeline(&mut out, report);
    }
    if let Some(summary) = &report.monitor {
        monitor(&mut out, summary);
    }
    if let Some(given) = &report.host {
        host(&mut out, given);
    }
    if report.infrastructure || !matches!(report.outcome, Outcome::Pass | Outcome::NotRun) {
        tail(&mut out, "scheduler log", &report.scheduler_log, LOG);
        if console_matters(report) {
            tail(&mut out, "console", &report.console_tail, TAIL);
        }
    }
    line(&mut out, format_args!("run directory: {}", report.run_dir.display()));
    if !report.replay.is_empty() {
        line(&mut out, format_args!("replay: {}", report.replay));
    }
    out
}

/// What is said when there was no run to report on.
pub fn infrastructure(test: &str, reason: &str) -> String {
    let mut out = String::new();
    line(&mut out, format_args!("ktstr_test '{test}' FAILED: infrastructure, nothing was tested"));
    wrapped(&mut out, "  ", reason);
    out
}

/// What is said of a test that ran on this host.
pub fn on_host(report: &RunReport) -> String {
    let mut out = String::new();
    verdict(&mut out, &format!("ktstr_test '{}' [on this host]", report.name), report);
    if let Some(result) = &report.result {
        findings(&mut out, result);
        if !result.stats.cgroups.is_empty() {
            stats(&mut out, &result.stats);
        }
    }
    for note in &report.notes {
        wrapped(&mut out, "  note: ", note);
    }
    wrapped(&mut out, "  ", &format!("kernel {}, seed {}", report.kernel, report.seed));
    line(&mut out, format_args!("run directory: {}", report.run_dir.display()));
    if !report.replay.is_empty() {
        line(&mut out, format_args!("replay: {}", report.replay));
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

fn header(out: &mut String, report: &RunReport) {
    let scheduler = if report.scheduler.is_empty() { "EEVDF" } else { &report.scheduler };
    let name = format!("ktstr_test '{}' [sched={scheduler}] [topo={}]", report.name, report.topology);
    verdict(out, &name, report);
}

/// The first line, or two: what was tested, and how it ended.
fn verdict(out: &mut String, name: &str, report: &RunReport) {
    let verdict = match (report.infrastructure, report.outcome) {
        (true, _) => "FAILED: infrastructure".to_owned(),
        (false, Outcome::Pass) => "PASS".into(),
        (false, Outcome::NotRun) => "NOT RUN".into(),
        (false, Outcome::Inconclusive) => "INCONCLUSIVE".into(),
        (false, Outcome::Fail) => "FAILED".into(),
    };
    match (&report.cause, report.infrastructure) {
        (None, _) => line(out, format_args!("{name} {verdict}")),
        (Some(cause), true) => {
            line(out, format_args!("{name} {verdict}"));
            wrapped(out, "  ", &headline(cause));
        }
        (Some(cause), false) => {
            let whole = format!("{name} {verdict}: {}", headline(cause));
            if whole.chars().count() <= WIDTH {
                line(out, format_args!("{whole}"));
            } else {
                wrapped(out, "", &format!("{name} {verdict}"));
                wrapped(out, "  ", &headline(cause));
            }
        }
    }
}

/// A cause in one sentence.
pub fn headline(cause: &Cause) -> String {
    match cause {
        Cause::Assertion => "a check failed".into(),
        Cause::TestPanic { message, .. } => format!("the test panicked: {message}"),
        Cause::TestDied { how } => format!("the test process {how} without a result"),
        Cause::SchedulerStall { reason } => format!("scheduler stall: {reason}"),
        Cause::SchedulerError { reason } => format!("the scheduler failed with an error: {reason}"),
        Cause::SchedulerNotAttached { reason } => format!("the scheduler did not attach: {reason}"),
        Cause::SchedulerDied { how } => format!("the scheduler process {how}"),
        Cause::KernelPanic { message } => format!("the guest kernel panicked: {message}"),
        Cause::GuestInit { step, reason } => format!("the guest could not be set up: {step}: {reason}"),
        Cause::Deadline { phase, waited_ms } => {
            format!(
                "nothing more was heard for {:.1} s; the last station was {phase}",
                *waited_ms as f64 / 1000.0
            )
        }
        Cause::GuestEnded { how } => format!("the guest ended before its result arrived: {how}"),
        Cause::Channel { reason } => format!("the guest sent what cannot be understood: {reason}"),
        Cause::ProcessDied { process, how } => format!("{process} {how}"),
        Cause::Missing { reason } | Cause::BadRequest { reason } => reason.clone(),
        Cause::Cancelled => "cancelled".into(),
    }
}

fn findings(out: &mut String, result: &AssertResult) {
    // What decided comes first.
    let mut details: Vec<_> = result.details.iter().collect();
    details.sort_by_key(|detail| std::cmp::Reverse(detail.outcome));
    for detail in details {
        let mark = match detail.outcome {
            Outcome::Fail => "  ",
            Outcome::Inconclusive => "  inconclusive: ",
            Outcome::Pass | Outcome::NotRun => "  note: ",
        };
        wrapped(out, mark, &detail.message);
    }
}

fn particulars(out: &mut String, cause: &Cause) {
    if let Cause::TestPanic { backtrace, .. } = cause
        && !backtrace.is_empty()
    {
        line(out, format_args!("--- backtrace ---"));
        for text in trimmed_backtrace(backtrace) {
            line(out, format_args!("  {text}"));
        }
    }
}

/// The frames between the panic machinery and ktstr's own call of the test.
fn trimmed_backtrace(backtrace: &str) -> Vec<&str> {
    let lines: Vec<&str> = backtrace.lines().map(str::trim_end).collect();
    let is_frame =
        |text: &str| text.trim_start().split_once(": ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
    let last_machinery = lines.iter().rposition(|l| {
        is_frame(l)
            && (l.contains("core::panicking::")
                || l.contains("rust_begin_unwind")
                || l.contains("begin_panic"))
    });
    let start = last_machinery
        .and_then(|at| lines[at + 1..].iter().position(|l| is_frame(l)).map(|next| at + 1 + next))
        .unwrap_or(0);
    let end = lines[start..]
        .iter()
        .position(|l| l.contains("ktstr::guest_entry"))
        .map_or(lines.len(), |n| start + n);
    let frames = if start < end { &lines[start..end] } else { &lines[..] };
    frames.iter().take(2 * TAIL).copied().collect()
}

fn machine(out: &mut String, report: &RunReport) {
    let mut parts = Vec::new();
    if report.accel.is_some() && !report.kernel.is_empty() {
        parts.push(format!("kernel {}", report.kernel));
    }
    if let Some(accel) = report.accel {
        let detail = if report.accel_detail.is_empty() {
            String::new()
        } else {
            format!(" ({})", report.accel_detail)
        };
        parts.push(format!("{accel}{detail}"));
    }
    parts.push(format!("seed {}", report.seed));
    let (boot, total) = report.host_ms;
    if boot > 0 {
        let how = match report.boot {
            Boot::Cold => String::new(),
            kept_or_warm => format!(" ({kept_or_warm})"),
        };
        let (boot, total) = (boot as f64 / 1000.0, total as f64 / 1000.0);
        parts.push(format!("boot {boot:.1} s{how}, total {total:.1} s"));
    }
    wrapped(out, "  ", &parts.join(", "));
}

fn stats(out: &mut String, stats: &ScenarioStats) {
    let mut cpus: Vec<u32> = stats.workers.iter().flat_map(|w| w.cpus_used.iter().copied()).collect();
    cpus.sort_unstable();
    cpus.dedup();
    let workers: u32 = stats.cgroups.iter().map(|c| c.workers).sum();
    let (migrations, spread, gap) = (stats.total_migrations(), stats.worst_spread(), stats.worst_gap_ms());
    line(out, format_args!("--- stats ---"));
    let summary = format!(
        "{workers} workers, {} cpus, {migrations} migrations, worst_spread={spread:.1}%, worst_gap={gap}ms",
        cpus.len()
    );
    wrapped(out, "", &summary);
    for cgroup in &stats.cgroups {
        let text = format!(
            "{}: workers={} cpus={} off_cpu={:.1}-{:.1}% spread={:.1}% gap={}ms migrations={} iter={} run_delay={:.0}us",
            cgroup.name,
            cgroup.workers,
            cgroup.cpus,
            cgroup.min_off_cpu_pct,
            cgroup.max_off_cpu_pct,
            cgroup.spread_pct,
            cgroup.max_gap_ms,
            cgroup.migrations,
            cgroup.iterations,
            cgroup.mean_run_delay_us
        );
        let ratio =
            cgroup.migration_ratio.map_or(String::new(), |ratio| format!(" migration_ratio={ratio:.3}"));
        let wakes = cgroup.wake_latency.map_or(String::new(), |wake| {
            format!(" wake p50={:.0}us p99={:.0}us", wake.median_us, wake.p99_us)
        });
        wrapped(out, "  ", &format!("{text}{ratio}{wakes}"));
    }
}

/// A line of the timeline.
enum Shown<'m> {
    Mark(&'m TimelineMark),
    /// So many more of the same source between two that are shown.
    More(usize, TimelineSource),
}

/// The last of all marks, and before them the last of those that say what the scenario did. What one
/// source says at a stretch, a scheduler's dump for instance, is shown by its beginning and its end.
fn marks(all: &[TimelineMark]) -> Vec<Shown<'_>> {
    let did = |source: TimelineSource| matches!(source, TimelineSource::Stimulus | TimelineSource::Capture);
    let mut lines = Vec::new();
    for stretch in all.chunk_by(|a, b| a.source == b.source && !did(a.source)) {
        match stretch {
            [first, second, between @ .., last] if between.len() > 1 => {
                let more = Shown::More(between.len(), last.source);
                lines.extend([Shown::Mark(first), Shown::Mark(second), more, Shown::Mark(last)]);
            }
            few => lines.extend(few.iter().map(Shown::Mark)),
        }
    }
    let last = lines.split_off(lines.len().saturating_sub(TAIL));
    lines.retain(|line| matches!(line, Shown::Mark(mark) if did(mark.source)));
    let mut shown = lines.split_off(lines.len().saturating_sub(EARLIER));
    shown.extend(last);
    shown
}

/// What the monitor saw of a phase.
fn of_phase(seen: &PhaseMonitor) -> String {
    let mut text = format!(
        "  monitor: samples={} running={:.1} max_imbalance={:.1} max_dsq_depth={}",
        seen.samples, seen.mean_nr_running, seen.max_imbalance_ratio, seen.max_local_dsq_depth
    );
    for (name, rose) in &seen.events {
        let _ = write!(text, " {}+{rose}", printable(name));
    }
    text
}

/// Operations of the scenario, and what each of its phases was like.
fn timeline(out: &mut String, report: &RunReport) {
    let phases = report.result.as_ref().map(|result| result.stats.phases.as_slice()).unwrap_or_default();
    if report.timeline.is_empty() && phases.is_empty() {
        return;
    }
    line(out, format_args!("--- timeline ---"));
    let shown = marks(&report.timeline);
    if shown.len() < report.timeline.len() {
        let (some, all) = (shown.len(), report.timeline.len());
        line(out, format_args!("  ({some} of {all} marks and more: all are in timeline.jsonl)"));
    }
    for shown in shown {
        let text = match shown {
            Shown::More(count, source) => format!("  [{source}] … {count} more …"),
            Shown::Mark(mark) => {
                let what = printable(&mark.what);
                match mark.source {
                    TimelineSource::Stimulus => format!("{:+}ms {what}", mark.at_ms),
                    source => format!("{:+}ms [{source}] {what}", mark.at_ms),
                }
            }
        };
        wrapped(out, "  ", &text);
    }
    let workers = report.result.as_ref().map(|result| result.stats.workers.as_slice()).unwrap_or_default();
    for phase in phases.iter().filter(|phase| !phase.cgroups.is_empty()) {
        let (start, end) = (phase.start_ms, phase.end_ms);
        line(out, format_args!("  {} {start}-{end}ms ops={}:", phase.label, phase.ops));
        if let Some(seen) = &phase.monitor {
            wrapped(out, "  ", &of_phase(seen));
        }
        for cgroup in phase.cgroups.iter().filter(|cgroup| cgroup.workers > 0) {
            let of_cgroup = workers.iter().filter(|worker| worker.cgroup == cgroup.name);
            let slices = of_cgroup.flat_map(|worker| &worker.phases).filter(|s| s.phase == phase.index);
            let gap_ms = slices.map(|slice| slice.max_gap_ns / 1_000_000).max();
            let gap = gap_ms.map_or(String::new(), |gap| format!(" gap={gap}ms"));
            let us = |ns: u64| ns as f64 / 1000.0;
            let wakes = if cgroup.wakes > 0 {
                let (median, p99, max) =
                    (cgroup.median_wake_latency_ns, cgroup.p99_wake_latency_ns, cgroup.max_wake_latency_ns);
                format!(" wake p50={:.0}us p99={:.0}us max={:.0}us", us(median), us(p99), us(max))
            } else {
                String::new()
            };
            let delay = cgroup.mean_run_delay_ns();
            let delay = delay.map_or(String::new(), |ns| format!(" run_delay={:.0}us", us(ns)));
            let used =
                phase.cpus_of(&cgroup.name).map_or(String::new(), |cpus| format!(" used={cpus:.2}cpus"));
            let throttled = cgroup.usage.filter(|usage| usage.throttled > 0);
            let throttled = throttled
                .map_or(String::new(), |usage| format!(" throttled={}ms", usage.throttled_ns / 1_000_000));
            let text = format!(
                "  {}: workers={}{used}{throttled} iter={} rate={:.0}/cpu-s migrations={}{gap}{delay}{wakes}",
                cgroup.name,
                cgroup.workers,
                cgroup.iterations,
                cgroup.iteration_rate(),
                cgroup.migrations
            );
            wrapped(out, "  ", &text);
        }
    }
}

/// The report in colours, if standard error is a terminal that wants them, or somebody says so: a test
/// whose output nextest reads cannot see the terminal, and `cargo ktstr test` tells it (`KTSTR_COLOR`).
pub fn for_terminal(text: &str) -> String {
    use std::io::IsTerminal;
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if ktstr_proto::colour::wanted(set, std::io::stderr().is_terminal()) {
        coloured(text)
    } else {
        text.into()
    }
}

/// The verdict by its colour, headings and the way to repeat it in bold.
fn coloured(text: &str) -> String {
    const VERDICTS: [(&str, &str); 4] =
        [("FAILED", "31"), ("INCONCLUSIVE", "33"), ("NOT RUN", "36"), ("PASS", "32")];
    let mut out = String::new();
    for (number, text) in text.lines().enumerate() {
        let verdict = VERDICTS.iter().find_map(|(word, colour)| Some((text.find(word)?, word, colour)));
        match verdict.filter(|_| number < 2) {
            Some((at, word, colour)) => {
                let (before, after) = (&text[..at], &text[at + word.len()..]);
                line(&mut out, format_args!("{before}\x1b[1;{colour}m{word}\x1b[0m{after}"));
            }
            None if text.starts_with("--- ") || text.starts_with("replay: ") => {
                line(&mut out, format_args!("\x1b[1m{text}\x1b[0m"));
            }
            None => line(&mut out, format_args!("{text}")),
        }
    }
    out
}

fn monitor(out: &mut String, summary: &MonitorSummary) {
    line(out, format_args!("--- monitor ---"));
    let stuck = match summary.stuck_cpus.as_slice() {
        [] => "none".into(),
        cpus => format!("cpus {}", ktstr_guest::scenario::cpu_list(cpus)),
    };
    let text = format!(
        "samples={} failed={} max_imbalance={:.1} max_dsq_depth={} (cpu{}) stuck={stuck}",
        summary.samples,
        summary.failed_samples,
        summary.max_imbalance_ratio,
        summary.max_local_dsq_depth,
        summary.max_local_dsq_cpu
    );
    wrapped(out, "", &text);
    let events: Vec<String> =
        summary.events.iter().filter(|(_, n)| *n != 0).map(|(name, n)| format!("{name}={n}")).collect();
    if !events.is_empty() {
        wrapped(out, "events: ", &events.join(" "));
    }
    let watched: Vec<String> =
        summary.watched.iter().map(|metric| format!("{}={}", metric.name, metric.value)).collect();
    if !watched.is_empty() {
        wrapped(out, "watched: ", &watched.join(" "));
    }
    for what in &summary.unavailable {
        wrapped(out, "unavailable: ", what);
    }
}

fn host(out: &mut String, host: &HostTime) {
    let per_thread = |ms: &[u64]| {
        let shares = ms.iter().map(|ms| format!("{:.0}%", *ms as f64 * 100.0 / host.window_ms.max(1) as f64));
        shares.collect::<Vec<_>>().join(" ")
    };
    let (ran, waited) = (per_thread(&host.ran_ms), per_thread(&host.waited_ms));
    let seconds = host.window_ms as f64 / 1000.0;
    let pressure = host.pressure_ms.map_or(String::new(), |ms| {
        let share = ms as f64 * 100.0 / host.window_ms.max(1) as f64;
        format!("; any task of the host waited {share:.0}% (PSI)")
    });
    let text =
        format!("vCPU threads over {seconds:.1} s: ran {ran}; waited for a host CPU {waited}{pressure}");
    wrapped(out, "host: ", &text);
}

/// The console says something when the machine or the scheduler's place in the kernel is the matter.
fn console_matters(report: &RunReport) -> bool {
    report.infrastructure
        || !matches!(report.cause, None | Some(Cause::Assertion | Cause::TestPanic { .. } | Cause::Cancelled))
}

fn tail(out: &mut String, title: &str, lines: &[String], most: usize) {
    if lines.is_empty() {
        return;
    }
    let skipped = lines.len().saturating_sub(most);
    line(out, format_args!("--- {title} ---"));
    if skipped > 0 {
        line(out, format_args!("  ({skipped} earlier lines are in the run directory)"));
    }
    for text in &lines[skipped..] {
        wrapped(out, "  ", &printable(text));
    }
}

/// What the guest wrote, without what would steer a terminal.
fn printable(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text.trim_end().chars();
    while let Some(c) = rest.next() {
        match c {
            '\t' => shown.push(' '),
            // ECMA-48: a control sequence ends with a byte from `@` to `~`.
            '\x1b' if rest.as_str().starts_with('[') => {
                let end = |c: char| ('@'..='~').contains(&c);
                rest.nth(0);
                rest.find(|c| end(*c));
            }
            c if c.is_control() => {}
            c => shown.push(c),
        }
    }
    shown
}

/// Breaks `text` between words at the width; further lines are indented. Its own line ends are kept.
pub(crate) fn wrapped(out: &mut String, prefix: &str, text: &str) {
    let indent = " ".repeat(prefix.chars().take_while(|c| *c == ' ').count() + 2);
    for (number, part) in text.lines().enumerate() {
        let mut current = if number == 0 { prefix.to_owned() } else { indent.clone() };
        let mut empty = true;
        for word in part.split(' ') {
            let fits = current.chars().count() + usize::from(!empty) + word.chars().count() <= WIDTH;
            if !fits && !empty {
                line(out, format_args!("{}", current.trim_end()));
                current.clone_from(&indent);
                empty = true;
            }
            if !empty {
                current.push(' ');
            }
            current.push_str(word);
            empty = false;
        }
        line(out, format_args!("{}", current.trim_end()));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ktstr_proto::{
        RunId, Topology,
        run::AccelKind,
        verdict::{CgroupStats, DetailKind, Process},
    };

    use super::*;

    pub(crate) fn sample() -> RunReport {
        let mut result = AssertResult::fail(
            DetailKind::Gap,
            "tid 71 stuck 4210ms on cpu2 at +3000ms (threshold 3000ms) in cg_0",
        );
        result.stats.cgroups.push(CgroupStats {
            name: "cg_0".into(),
            workers: 2,
            cpus: 2,
            ..CgroupStats::default()
        });
        RunReport {
            run_id: RunId("r1".into()),
            run_dir: "/t/ktstr/runs/r1".into(),
            name: "demo".into(),
            outcome: Outcome::Fail,
            infrastructure: false,
            cause: Some(Cause::Assertion),
            result: Some(result),
            timeline: Vec::new(),
            captures: Vec::new(),
            assert: None,
            host: None,
            monitor: Some(MonitorSummary {
                samples: 50,
                events: vec![("SCX_EV_X".into(), 3)],
                ..MonitorSummary::default()
            }),
            notes: vec![
                "accelerator tcg, because this host's KVM cannot run a stock kernel at a useful speed".into(),
            ],
            scheduler_log: vec!["attached\x1b[2J".into()],
            console_tail: vec!["Linux version".into()],
            accel: Some(AccelKind::Tcg),
            accel_detail: "QEMU 10.0.2".into(),
            kernel: "7.2.12".into(),
            scheduler: "scx-ktstr".into(),
            topology: Topology { numa_nodes: 1, llcs: 2, cores: 2, threads: 1 },
            exit_status: None,
            seed: 7,
            replay:
                "KTSTR_KERNEL=7.2.12 KTSTR_ACCEL=tcg KTSTR_SEED=7 cargo nextest run -p ktstr -E 'test(=demo)'"
                    .into(),
            host_ms: (3100, 9200),
            boot: Default::default(),
            allow_inconclusive: false,
        }
    }

    #[test]
    fn a_failure_says_what_where_and_how_to_repeat_it() {
        let text = report(&sample());
        let expected = "\
ktstr_test 'demo' [sched=scx-ktstr] [topo=1n2l2c1t] FAILED: a check failed
  tid 71 stuck 4210ms on cpu2 at +3000ms (threshold 3000ms) in cg_0
  note: accelerator tcg, because this host's KVM cannot run a stock kernel at a
    useful speed
  kernel 7.2.12, tcg (QEMU 10.0.2), seed 7, boot 3.1 s, total 9.2 s
--- stats ---
2 workers, 0 cpus, 0 migrations, worst_spread=0.0%, worst_gap=0ms
  cg_0: workers=2 cpus=2 off_cpu=0.0-0.0% spread=0.0% gap=0ms migrations=0
    iter=0 run_delay=0us
--- monitor ---
samples=50 failed=0 max_imbalance=0.0 max_dsq_depth=0 (cpu0) stuck=none
events: SCX_EV_X=3
--- scheduler log ---
  attached
run directory: /t/ktstr/runs/r1
replay: KTSTR_KERNEL=7.2.12 KTSTR_ACCEL=tcg KTSTR_SEED=7 cargo nextest run -p ktstr -E 'test(=demo)'
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_failure_shows_what_happened_when_and_a_pass_does_not() {
        use ktstr_proto::stats::{PhaseBucket, PhaseCgroup, PhaseMonitor};
        let mut failed = sample();
        failed.timeline = (0..40)
            .map(|n| TimelineMark {
                at_ms: n * 100,
                source: TimelineSource::Stimulus,
                phase: None,
                what: format!("cpuset of cg_0 set to {n}"),
                iterations: 0,
            })
            .collect();
        let cgroup = PhaseCgroup {
            name: "cg_0".into(),
            workers: 2,
            iterations: 50,
            cpu_time_ns: 500_000_000,
            run_delay_ns: 90_000,
            pcount: 3,
            wakes: 9,
            median_wake_latency_ns: 12_000,
            p99_wake_latency_ns: 1_400_000,
            max_wake_latency_ns: 1_500_000,
            ..PhaseCgroup::default()
        };
        let phase = PhaseBucket {
            index: 1,
            label: "Step[0]".into(),
            start_ms: 10,
            end_ms: 900,
            hold: None,
            monitor: Some(PhaseMonitor {
                samples: 8,
                mean_nr_running: 2.25,
                max_imbalance_ratio: 3.0,
                max_local_dsq_depth: 1,
                events: vec![("SCX_EV_X".into(), 4)],
            }),
            ops: 3,
            cgroups: vec![cgroup],
        };
        if let Some(result) = &mut failed.result {
            result.stats.phases.push(phase);
        }
        let text = report(&failed);
        assert!(
            text.contains(
                "--- timeline ---\n  (35 of 40 marks and more: all are in timeline.jsonl)\n  +500ms cpuset"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "  Step[0] 10-900ms ops=3:\n    monitor: samples=8 running=2.2 max_imbalance=3.0 max_dsq_depth=1 \
                 SCX_EV_X+4\n    cg_0: workers=2 iter=50 rate=100/cpu-s migrations=0 \
                 run_delay=30us wake\n    p50=12us p99=1400us max=1500us\n"
            ),
            "{text}"
        );
        assert!(text.lines().filter(|l| !l.starts_with("replay")).all(|l| l.chars().count() <= 80), "{text}");
        let mut flooded = failed.clone();
        let says = |nth: i64| TimelineMark {
            at_ms: 4000 + nth,
            source: TimelineSource::Scheduler,
            what: format!("dump {nth}"),
            iterations: 0,
            phase: None,
        };
        flooded.timeline.extend((0..90).map(says));
        let text = report(&flooded);
        let end =
            "  +4001ms [scheduler] dump 1\n    [scheduler] … 87 more …\n  +4089ms [scheduler] dump 89\n";
        assert!(text.contains(end) && text.contains("+3900ms cpuset of cg_0"), "{text}");
        let passed = report(&RunReport { outcome: Outcome::Pass, cause: None, ..failed });
        assert!(!passed.contains("--- timeline ---"), "{passed}");
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let text = report(&sample());
        let painted = coloured(&text);
        assert!(
            painted.contains("\x1b[1;31mFAILED\x1b[0m") && painted.contains("\x1b[1m--- stats ---\x1b[0m")
        );
        let stripped =
            ["\x1b[1;31m", "\x1b[1m", "\x1b[0m"].iter().fold(painted, |t, code| t.replace(code, ""));
        // The sample's log has an escape of its own, which is printed without its first byte.
        assert_eq!(stripped, text);
    }

    #[test]
    fn infrastructure_is_never_called_a_scheduler_failure() {
        let cause = Cause::ProcessDied { process: Process::Vmm, how: "was killed by signal 9".into() };
        let text = report(&RunReport { infrastructure: true, cause: Some(cause), result: None, ..sample() });
        assert!(
            text.starts_with("ktstr_test 'demo' [sched=scx-ktstr] [topo=1n2l2c1t] FAILED: infrastructure\n"),
            "{text}"
        );
        assert!(text.contains("  ktstr-vmm was killed by signal 9\n"), "{text}");
        assert!(text.contains("--- console ---"), "{text}");
    }

    #[test]
    fn a_pass_shows_figures_and_no_logs() {
        let text = report(&RunReport { outcome: Outcome::Pass, cause: None, ..sample() });
        assert!(text.contains("PASS\n") && text.contains("--- stats ---"), "{text}");
        assert!(!text.contains("scheduler log"), "{text}");
    }

    #[test]
    fn prose_stays_within_the_width_and_keeps_its_line_ends() {
        let mut out = String::new();
        wrapped(&mut out, "  note: ", &format!("{}\nsecond", "word ".repeat(60)));
        assert!(out.lines().all(|l| l.len() <= WIDTH), "{out}");
        assert!(out.ends_with("    second\n"), "{out}");
    }

    #[test]
    fn a_backtrace_is_cut_down_to_the_test() {
        let text = "   0: std::backtrace::x\n             at /r/std\n   1: core::panicking::panic_fmt\n             at /r/core\n   2: demo::my_test\n             at tests/demo.rs:3\n   3: ktstr::guest_entry::call\n   4: main\n";
        assert_eq!(trimmed_backtrace(text), ["   2: demo::my_test", "             at tests/demo.rs:3"]);
        assert_eq!(trimmed_backtrace("no frames"), ["no frames"]);
    }
}
