//! Figures of the KVM backend that are no ratios, from the example `figures` of ktstr-vmm in the lab.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::init::{self, MARKER, Then};
use super::{BenchArgs, Case, Verdict, example, lab, median, run, tail, text, work_dir};
use crate::lab::LabKernel;

/// Seconds for which an idle guest is watched and machines are made.
const SECONDS: u32 = 10;

/// One figure.
struct Figure {
    name: &'static str,
    means: &'static str,
    /// More than this is too much.
    most: Option<f64>,
}

const FIGURES: [Figure; 3] = [
    Figure {
        name: "resident_kib",
        means: "KiB of the VMM's process besides guest RAM, 1 vCPU, 128 MiB, guest idle",
        most: Some(5.0 * 1024.0),
    },
    Figure { name: "idle_exits_per_second", means: "exits a second of that guest", most: None },
    Figure {
        name: "machines_per_second_and_cpu",
        means: "such machines made and unmade a second and CPU of the lab, 8 at a time",
        most: None,
    },
];

/// Medians over the rounds.
pub fn measure(args: &BenchArgs, kernel: &LabKernel, bins: &Path) -> Result<Verdict> {
    let initrd = work_dir()?.join("idle-init.cpio");
    fs::write(&initrd, init::initramfs(Then::Wait))
        .with_context(|| format!("writing {}", initrd.display()))?;
    let (vmlinux, initrd) = (text(&kernel.vmlinux)?, text(&initrd)?);
    let mut argv = lab(args)?;
    for file in [&vmlinux, &initrd] {
        argv.extend(["--file".to_owned(), file.clone()]);
    }
    argv.extend(["--".to_owned(), text(&example(bins, "figures")?)?, vmlinux, initrd, SECONDS.to_string()]);
    println!(
        "figures of the KVM backend in the lab: kernel {}, init says {MARKER:?} and waits",
        kernel.release
    );
    let case = Case { label: "figures".into(), argv, marker: None, until_marker: false };
    let mut seen: [Vec<f64>; FIGURES.len()] = Default::default();
    for round in 1..=args.rounds {
        let (output, _) = run(&case.argv, None)?;
        let said = String::from_utf8_lossy(&output.stdout);
        for (figure, all) in FIGURES.iter().zip(&mut seen) {
            all.extend(value(&said, figure.name));
        }
        println!("  {round:>3}  {}", said.trim().replace('\n', "   "));
        if !output.status.success() {
            println!("  {}: {}", output.status, tail(&String::from_utf8_lossy(&output.stderr)));
        }
    }
    Ok(FIGURES.iter().zip(&seen).map(|(figure, all)| judge(figure, all)).max().unwrap_or(Verdict::Pass))
}

fn value(said: &str, name: &str) -> Option<f64> {
    said.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn judge(figure: &Figure, all: &[f64]) -> Verdict {
    if all.is_empty() {
        println!("  {}: INCONCLUSIVE, no round got there", figure.means);
        return Verdict::Inconclusive;
    }
    let middle = median(all);
    let verdict = if figure.most.is_some_and(|most| middle > most) { Verdict::Fail } else { Verdict::Pass };
    let goal = figure.most.map(|most| format!(", at most {most}: {verdict:?}")).unwrap_or_default();
    println!("  {middle:>10.2}  {} (median of {}{goal})", figure.means, all.len());
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_and_judged() {
        let said = "resident_kib 4100\nidle_exits_per_second 12.5\nnoise\n";
        assert_eq!(value(said, "resident_kib"), Some(4100.0));
        assert_eq!(value(said, "machines_per_second_and_cpu"), None);
        assert_eq!(judge(&FIGURES[0], &[4100.0, 9000.0, 5000.0]), Verdict::Pass);
        assert_eq!(judge(&FIGURES[0], &[9000.0]), Verdict::Fail);
        assert_eq!(judge(&FIGURES[2], &[]), Verdict::Inconclusive);
    }
}
