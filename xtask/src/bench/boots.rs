//! Cold boots to PID 1, ours beside the emulator's two machines, by the number of vCPUs.
//!
//! With KVM in the lab all three have the trivial init ([`super::init`]), and ours is the VMM by itself. Under `tcg`
//! ours is `ktstr shell` whole: orchestrator, jails, monitor, an initramfs with all that a job needs, up to the first
//! word of its own PID 1. Rounds go through all machines in turn, so that each ratio is of runs beside each other.

use std::path::Path;

use anyhow::Result;

use super::stations::from_first_word_to_job;
use super::{
    BenchArgs, Case, LAB_LIMIT, Machine, TCG_LIMIT, Verdict, bare_tcg, emulator_in_lab, init, median,
    ours_in_lab, runs_root, shell, text, time,
};
use crate::lab::LabKernel;

/// What ours says in the guest, where a run is timed to its first word.
const READY: &str = "ktstr-first-word";

/// One row of the table: seconds of each run of ours, q35, microvm.
struct Row {
    vcpus: u32,
    seconds: [Vec<f64>; 3],
}

/// Prints a table; the worst verdict on ours against q35.
pub fn measure(
    args: &BenchArgs,
    kernel: &LabKernel,
    bins: &Path,
    initrd: &Path,
    in_lab: bool,
) -> Result<Verdict> {
    let files = (text(&kernel.vmlinux)?, text(initrd)?);
    let (limit, accel) = if in_lab { (LAB_LIMIT, "kvm in the lab") } else { (TCG_LIMIT, "tcg") };
    println!("cold boot to PID 1, {accel}: kernel {}, {} MiB", kernel.release, args.memory_mb);
    let mut rows = Vec::new();
    for &vcpus in &args.boot_vcpus {
        let cases =
            if in_lab { lab_cases(args, bins, vcpus, &files) } else { tcg_cases(args, bins, vcpus, &files) }?;
        let mut row = Row { vcpus, seconds: Default::default() };
        // Caches warm up, the lab boots and gets its files: not measured.
        drop(time(&cases[0]));
        for round in 1..=args.rounds {
            let mut line = format!("  {vcpus:>3} vCPUs, round {round:>2}");
            for (index, case) in cases.iter().enumerate() {
                match to_pid_1(case, !in_lab && index == 0) {
                    Ok(seconds) => {
                        row.seconds[index].push(seconds);
                        line += &format!("  {seconds:>7.2} s");
                    }
                    Err(error) => {
                        println!("  failed: {error:#}");
                        line += "     failed";
                    }
                }
            }
            println!("{line}   load {}", load());
        }
        rows.push(row);
    }
    println!(
        "\n| vCPUs | ours, s | q35, s | microvm, s | ours / q35 | ours / microvm |\n|---|---|---|---|---|---|"
    );
    rows.iter().for_each(|row| println!("{}", line(row)));
    Ok(rows.iter().map(|row| judge(row, args.rounds, limit)).max().unwrap_or(Verdict::Pass))
}

/// Ours is timed to the first word of what it runs; its PID 1 spoke before that, and says when.
fn to_pid_1(case: &Case, has_stations: bool) -> Result<f64> {
    let seconds = time(case)?;
    if !has_stations {
        return Ok(seconds);
    }
    Ok(seconds - from_first_word_to_job(&runs_root()?)? / 1000.0)
}

fn tcg_cases(args: &BenchArgs, bins: &Path, vcpus: u32, files: &(String, String)) -> Result<[Case; 3]> {
    let say = format!("echo {READY}");
    let ours = shell(args, vcpus, "tcg", &files.0, bins, &["--cold", "--exec", &say])?;
    let ours =
        Case { label: "ktstr shell --cold".into(), argv: ours, marker: Some(READY), until_marker: true };
    let bare = |name: Machine| Case {
        label: format!("QEMU {}", name.name()),
        argv: bare_tcg(name, (vcpus, args.memory_mb), &files.0, &files.1),
        marker: Some(init::MARKER),
        until_marker: true,
    };
    Ok([ours, bare(Machine::Q35), bare(Machine::Microvm)])
}

fn lab_cases(args: &BenchArgs, bins: &Path, vcpus: u32, files: &(String, String)) -> Result<[Case; 3]> {
    let until_marker = |case: Case| Case { until_marker: true, ..case };
    Ok([
        until_marker(ours_in_lab(args, bins, vcpus, files)?),
        until_marker(emulator_in_lab(args, Machine::Q35, vcpus, files)?),
        until_marker(emulator_in_lab(args, Machine::Microvm, vcpus, files)?),
    ])
}

/// How busy the host is: tasks that run or want to, over the last minute.
fn load() -> String {
    let said = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    said.split(' ').next().unwrap_or("unknown").to_owned()
}

fn line(row: &Row) -> String {
    let medians = row.seconds.each_ref().map(|all| (!all.is_empty()).then(|| median(all)));
    let seconds = medians.map(|middle| middle.map_or("none booted".to_owned(), |s| format!("{s:.2}")));
    let ratio = |of: Option<f64>| match (medians[0], of) {
        (Some(ours), Some(theirs)) => format!("{:.2}", ours / theirs),
        _ => "-".to_owned(),
    };
    let [ours, q35, microvm] = seconds;
    format!("| {} | {ours} | {q35} | {microvm} | {} | {} |", row.vcpus, ratio(medians[1]), ratio(medians[2]))
}

/// Where the emulator's machine does not boot, there is nothing to compare with; where ours does not, that is for
/// a person to look at.
fn judge(row: &Row, rounds: u32, limit: f64) -> Verdict {
    let [ours, q35, _] = &row.seconds;
    let enough = |seconds: &[f64]| seconds.len() * 5 >= rounds as usize * 4 && !seconds.is_empty();
    match enough(ours) && enough(q35) {
        false => Verdict::Inconclusive,
        true if median(ours) <= limit * median(q35) => Verdict::Pass,
        true => Verdict::Fail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_did_not_boot() {
        let row = |seconds: [Vec<f64>; 3]| Row { vcpus: 2, seconds };
        let whole = row([vec![1.0, 3.0, 2.0], vec![4.0, 4.0, 4.0], vec![2.5, 2.5, 2.5]]);
        assert_eq!(line(&whole), "| 2 | 2.00 | 4.00 | 2.50 | 0.50 | 0.80 |");
        assert_eq!(judge(&whole, 3, 0.7), Verdict::Pass);
        assert_eq!(judge(&whole, 3, 0.4), Verdict::Fail);
        let half = row([vec![1.0, 3.0, 2.0], vec![4.0], vec![]]);
        assert_eq!(line(&half), "| 2 | 2.00 | 4.00 | none booted | 0.50 | - |");
        assert_eq!(judge(&half, 3, 0.7), Verdict::Inconclusive);
    }
}
