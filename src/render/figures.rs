//! Figures of the workers, of the kernel as the monitor saw it, and of what the host gave.

use ktstr_proto::{
    host::HostTime,
    monitor::MonitorSummary,
    symbols::{ADVICE, SymbolsCompared},
    verdict::ScenarioStats,
};

use super::text::{line, wrapped};

pub(super) fn stats(out: &mut String, stats: &ScenarioStats) {
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

pub(super) fn monitor(out: &mut String, summary: &MonitorSummary) {
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
    if let Some(symbols) = &summary.symbols {
        self::symbols(out, symbols);
    }
    for what in &summary.unavailable {
        wrapped(out, "unavailable: ", what);
    }
}

/// Agreement is a number, a difference has a line of its own.
fn symbols(out: &mut String, symbols: &SymbolsCompared) {
    let SymbolsCompared { agree, differ, untold, impossible } = symbols;
    if let Some(why) = impossible {
        return wrapped(out, "symbols: ", &format!("the guest cannot say where they lie: {why}"));
    }
    let mut text = format!("{agree} lie where the guest says");
    if !untold.is_empty() {
        text += &format!(", of {} it says nothing", untold.len());
    }
    wrapped(out, "symbols: ", &text);
    for differs in differ {
        wrapped(out, "  ", &differs.to_string());
    }
    if !differ.is_empty() {
        wrapped(out, "  ", ADVICE);
    }
}

pub(super) fn host(out: &mut String, host: &HostTime) {
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
