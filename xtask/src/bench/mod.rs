//! `cargo xtask bench`: what ktstr costs on top of the emulator and the kernel.
//!
//! Pairs, each interleaved in one run so that both halves see the same
//! machine:
//!
//! | `--only` | ours | against |
//! |---|---|---|
//! | `tcg` | `ktstr shell --accel tcg --exec true` | bare QEMU (q35, or microvm) with a trivial init |
//! | `warm` | `ktstr shell` from a snapshot, up to the first word of the command | the same booted |
//! | `lab` | our VMM with a trivial init, in the KVM lab | QEMU/KVM with the same init |
//! | `warm-lab` | as `warm`, with `kvm` in the lab | the same booted |
//!
//! `boots` and `boots-lab`, the time to PID 1 of ours, q35 and microvm by the number of vCPUs ([`boots`]), and `figures`,
//! what is no ratio ([`figures`]). Same kernel, memory and vCPU count within a pair. A run that did not
//! get to its end is an error, not a figure. Judges ratios of medians against
//! the project's limits; absolute times are this machine's.

mod boots;
mod figures;
mod init;
mod stations;

use crate::{lab::LabKernel, workspace::RUN_PACKAGES};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use stations::Stations;
use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Ours may take this much of the baseline.
const TCG_LIMIT: f64 = 1.15;
const LAB_LIMIT: f64 = 0.7;
/// A snapshot against a boot. What is aimed at is [`WARM_GOAL`]; what is in the way is said in
/// docs/decisions/2026-11-21-warm-starts.md.
const WARM_LIMIT: f64 = 0.25;
const WARM_GOAL: f64 = 1.0 / 40.0;
/// The same in the lab.
const WARM_LAB_LIMIT: f64 = 0.25;
const WARM_LAB_GOAL: f64 = 1.0 / 20.0;
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// Options of `cargo xtask bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Runs of each half of a pair
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// vCPUs of the measured machines
    #[arg(long, default_value_t = 2)]
    vcpus: u32,
    /// vCPUs of the machines of `boots` and `boots-lab`
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 8, 16])]
    boot_vcpus: Vec<u32>,
    /// Their memory in MiB
    #[arg(long, default_value_t = 1024)]
    memory_mb: u32,
    /// The emulator's machine to compare with
    #[arg(long, value_enum, default_value_t = Machine::Q35)]
    machine: Machine,
    /// Kernel: a directory with vmlinux and modules [default: as for the lab]
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// Only one of the pairs
    #[arg(long, value_enum)]
    only: Option<PairName>,
    /// Take our executables from here instead of building them (release profile)
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Machine {
    Q35,
    Microvm,
}

impl Machine {
    fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        }
    }

    /// As the emulator is told. microvm's interrupt controller of old is never set up: its firmware leaves it alone, and
    /// so does a kernel that is told of reduced hardware. The timer's interrupt, which it passes on, is then vector 0 (a
    /// divide error) where the boot is quick.
    fn board(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Microvm => "microvm,pic=off",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PairName {
    /// A cold start under `tcg` against the bare emulator
    Tcg,
    /// A warm start under `tcg` against a cold one
    Warm,
    /// Our VMM against the emulator, both with KVM in the lab
    Lab,
    /// A warm start under `kvm` in the lab against a cold one
    WarmLab,
    /// Cold boots under `tcg` to PID 1, by the number of vCPUs
    Boots,
    /// The same with KVM in the lab
    BootsLab,
    /// In the lab: what a machine costs besides its RAM, exits of an idle guest, machines made per second
    Figures,
}

struct Case {
    label: String,
    argv: Vec<String>,
    /// What its standard output must contain.
    marker: Option<&'static str>,
    /// What is timed ends with the marker, not with the run.
    until_marker: bool,
}

struct Pair {
    title: String,
    limit: f64,
    /// What is aimed at beyond the limit.
    goal: Option<f64>,
    baseline: Case,
    ours: Case,
    /// Whether the stations of ours are told.
    stations: bool,
}

/// What a pair showed; in the order in which one hides another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Pass,
    Inconclusive,
    Fail,
}

/// Entry point: 0 the ratios are within their limits, 1 not, 2 inconclusive.
pub fn command(args: &BenchArgs) -> Result<u8> {
    let kernel = LabKernel::resolve(args.kernel.as_deref())?;
    let bins = match &args.bin_dir {
        Some(dir) => dir.canonicalize().with_context(|| format!("--bin-dir {}", dir.display()))?,
        None => build(args)?,
    };
    let initrd = work_dir()?.join("bench-init.cpio");
    fs::write(&initrd, init::initramfs(init::Then::PowerOff))
        .with_context(|| format!("writing {}", initrd.display()))?;
    let mut worst = Verdict::Pass;
    if wants(args, PairName::Tcg) {
        worst = worst.max(measure(&tcg_pair(args, &kernel, &bins, &initrd)?, args.rounds)?);
    }
    if wants(args, PairName::Warm) {
        worst = worst.max(measure(&warm_pair(args, &kernel, &bins)?, args.rounds)?);
    }
    if wants(args, PairName::Lab) {
        worst = worst.max(measure(&lab_pair(args, &kernel, &bins, &initrd)?, args.rounds)?);
    }
    if wants(args, PairName::WarmLab) {
        worst = worst.max(measure(&warm_lab_pair(args, &kernel, &bins)?, args.rounds)?);
    }
    for (name, lab) in [(PairName::Boots, false), (PairName::BootsLab, true)] {
        if wants(args, name) {
            worst = worst.max(boots::measure(args, &kernel, &bins, &initrd, lab)?);
        }
    }
    if wants(args, PairName::Figures) {
        worst = worst.max(figures::measure(args, &kernel, &bins)?);
    }
    Ok(match worst {
        Verdict::Pass => 0,
        Verdict::Fail => 1,
        Verdict::Inconclusive => 2,
    })
}

fn wants(args: &BenchArgs, name: PairName) -> bool {
    args.only.is_none_or(|only| only == name)
}

/// Builds what is measured; figures of unoptimised programs would mislead.
fn build(args: &BenchArgs) -> Result<PathBuf> {
    let mut cargo_args = vec!["build", "--release", "--quiet"];
    let with_roles = [PairName::Tcg, PairName::Warm, PairName::WarmLab, PairName::Boots];
    if with_roles.into_iter().any(|name| wants(args, name)) {
        cargo_args.extend(RUN_PACKAGES.iter().flat_map(|p| ["-p", p]));
        cargo_args.push("--bins");
    } else {
        cargo_args.extend(["-p", "ktstr-vmm"]);
    }
    let boot = [PairName::Lab, PairName::BootsLab].as_slice();
    for (names, example) in [(boot, "boot"), (&[PairName::Figures], "figures")] {
        if names.iter().any(|name| wants(args, *name)) {
            cargo_args.extend(["--example", example]);
        }
    }
    println!("+ cargo {}", cargo_args.join(" "));
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(&cargo_args)
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("building what is to be measured failed: {status}");
    }
    Ok(target_dir()?.join("release"))
}

fn tcg_pair(args: &BenchArgs, kernel: &LabKernel, bins: &Path, initrd: &Path) -> Result<Pair> {
    let vmlinux = text(&kernel.vmlinux)?;
    let baseline = bare_tcg(args.machine, (args.vcpus, args.memory_mb), &vmlinux, &text(initrd)?);
    let ours = shell(args, args.vcpus, "tcg", &vmlinux, bins, &["--cold", "--exec", "true"])?;
    Ok(Pair {
        title: format!("tcg: kernel {}, {} vCPUs", kernel.release, args.vcpus),
        limit: TCG_LIMIT,
        goal: None,
        baseline: Case {
            label: format!("bare QEMU {}, trivial init", args.machine.name()),
            argv: baseline,
            marker: Some(init::MARKER),
            until_marker: false,
        },
        ours: Case {
            label: "ktstr shell --accel tcg --exec true --cold".into(),
            argv: ours,
            marker: None,
            until_marker: false,
        },
        stations: false,
    })
}

/// The bare emulator.
fn bare_tcg(name: Machine, size: (u32, u32), vmlinux: &str, initrd: &str) -> Vec<String> {
    let mut argv: Vec<String> =
        ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max"].map(str::to_owned).to_vec();
    argv.extend(machine(name, size, vmlinux, initrd));
    argv
}

/// `ktstr shell` on the measured machine.
fn shell(
    args: &BenchArgs,
    vcpus: u32,
    accel: &str,
    vmlinux: &str,
    bins: &Path,
    rest: &[&str],
) -> Result<Vec<String>> {
    let ktstr = text(&bins.join("ktstr"))?;
    let (topology, memory) = (format!("1,1,{vcpus},1"), args.memory_mb.to_string());
    let kernel = kernel_name(Path::new(vmlinux));
    let mut argv = vec![ktstr.as_str(), "shell", "--accel", accel, "--kernel", &kernel];
    argv.extend(["--topology", &topology, "--memory-mb", &memory]);
    argv.extend(rest);
    Ok(argv.into_iter().map(str::to_owned).collect())
}

/// A kernel of the store has a name; one given by its path is digested by every run, which users' kernels are not.
fn kernel_name(vmlinux: &Path) -> String {
    let entry = vmlinux.parent().filter(|dir| dir.join("metadata.json").is_file());
    let named = entry.and_then(Path::file_name).unwrap_or(vmlinux.as_os_str());
    named.to_string_lossy().into_owned()
}

/// From the request to the first word of what runs in the guest. The first warm run, which is not
/// measured, keeps the snapshot where there is none.
fn warm_pair(args: &BenchArgs, kernel: &LabKernel, bins: &Path) -> Result<Pair> {
    warm_cases(args, kernel, bins, "tcg", &[])
}

/// The same under KVM, in a lab that keeps the snapshot for as long as it runs.
fn warm_lab_pair(args: &BenchArgs, kernel: &LabKernel, bins: &Path) -> Result<Pair> {
    let mut lab = lab(args)?;
    lab.retain(|arg| arg != "--no-bins");
    let modules = kernel.vmlinux.parent().context("the kernel lies in no directory")?;
    lab.extend(["--bin-dir".to_owned(), text(bins)?, "--file".into(), text(modules)?]);
    // What the runs say about themselves.
    let runs = text(&runs_root()?)?;
    let beside = text(&work_dir()?)?;
    lab.extend(["--fetch".to_owned(), format!("{runs}:{beside}"), "--".into()]);
    let pair = warm_cases(args, kernel, bins, "kvm", &lab)?;
    Ok(Pair { limit: WARM_LAB_LIMIT, goal: Some(WARM_LAB_GOAL), ..pair })
}

fn warm_cases(
    args: &BenchArgs,
    kernel: &LabKernel,
    bins: &Path,
    accel: &str,
    before: &[String],
) -> Result<Pair> {
    const READY: &str = "ktstr-first-word";
    let vmlinux = text(&kernel.vmlinux)?;
    let say = format!("echo {READY}");
    let case = |label: &str, rest: &[&str]| {
        let argv = [before, &shell(args, args.vcpus, accel, &vmlinux, bins, rest)?].concat();
        Ok::<_, anyhow::Error>(Case { label: label.into(), argv, marker: Some(READY), until_marker: true })
    };
    Ok(Pair {
        title: format!("warm start under {accel}: kernel {}, {} vCPUs", kernel.release, args.vcpus),
        limit: WARM_LIMIT,
        goal: Some(WARM_GOAL),
        baseline: case("booted, to the command's first word", &["--cold", "--exec", &say])?,
        ours: case("from a snapshot, to the command's first word", &["--warm", "--exec", &say])?,
        stations: true,
    })
}

fn lab_pair(args: &BenchArgs, kernel: &LabKernel, bins: &Path, initrd: &Path) -> Result<Pair> {
    let files = (text(&kernel.vmlinux)?, text(initrd)?);
    Ok(Pair {
        title: format!("KVM lab: kernel {}, {} vCPUs", kernel.release, args.vcpus),
        limit: LAB_LIMIT,
        goal: None,
        baseline: emulator_in_lab(args, args.machine, args.vcpus, &files)?,
        ours: ours_in_lab(args, bins, args.vcpus, &files)?,
        stations: false,
    })
}

/// The emulator with KVM in the lab; `files` are kernel and initramfs.
fn emulator_in_lab(args: &BenchArgs, name: Machine, vcpus: u32, files: &(String, String)) -> Result<Case> {
    let mut argv = lab_with(args, files)?;
    argv.extend(["--qemu", "--", "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host"].map(str::to_owned));
    argv.extend(machine(name, (vcpus, args.memory_mb), &files.0, &files.1));
    let label = format!("QEMU/KVM {}, trivial init", name.name());
    Ok(Case { label, argv, marker: Some(init::MARKER), until_marker: false })
}

/// Our VMM in the lab.
fn ours_in_lab(args: &BenchArgs, bins: &Path, vcpus: u32, files: &(String, String)) -> Result<Case> {
    let (vmlinux, initrd) = files.clone();
    let (shape, memory) = (format!("1,1,{vcpus},1"), args.memory_mb.to_string());
    let mut argv = lab_with(args, files)?;
    let boot = text(&example(bins, "boot")?)?;
    argv.extend(["--".to_owned(), boot, vmlinux, initrd, shape, memory, CMDLINE.to_owned()]);
    let label = "ktstr-vmm, trivial init".into();
    Ok(Case { label, argv, marker: Some(init::MARKER), until_marker: false })
}

fn lab_with(args: &BenchArgs, (vmlinux, initrd): &(String, String)) -> Result<Vec<String>> {
    let mut lab = lab(args)?;
    for file in [vmlinux, initrd] {
        lab.extend(["--file".to_owned(), file.clone()]);
    }
    Ok(lab)
}

/// The beginning of a command in the lab.
fn lab(args: &BenchArgs) -> Result<Vec<String>> {
    let exe = text(&env::current_exe().context("finding this executable")?)?;
    let mut lab = vec![exe, "lab".to_owned(), "--no-bins".into()];
    if let Some(dir) = &args.kernel {
        lab.extend(["--kernel".to_owned(), text(dir)?]);
    }
    Ok(lab)
}

/// An example of ktstr-vmm.
fn example(bins: &Path, name: &str) -> Result<PathBuf> {
    [bins.join("examples").join(name), bins.join(name)]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no example `{name}` of ktstr-vmm in {}", bins.display()))
}

const CMDLINE: &str = "console=ttyS0 tsc=reliable no_timer_check panic=-1";

/// The machine's options; `size` is vCPUs and MiB.
fn machine(name: Machine, size: (u32, u32), vmlinux: &str, initrd: &str) -> Vec<String> {
    let (vcpus, memory) = (size.0.to_string(), size.1.to_string());
    // Without firmware's tables microvm's kernel would measure its counter against a timer chip that is not there.
    let cmdline = match name {
        Machine::Q35 => CMDLINE.to_owned(),
        Machine::Microvm => format!("{CMDLINE} tsc_early_khz=1000000"),
    };
    ["-machine", name.board(), "-smp", &vcpus, "-m", &memory]
        .into_iter()
        .chain(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .chain(["-kernel", vmlinux, "-initrd", initrd, "-append", &cmdline])
        .map(str::to_owned)
        .collect()
}

/// Runs a pair A B A B …; what the ratio of medians says about the limit.
///
/// A run that fails is reported and left out; emulated SVM kills a nested
/// guest now and then. With more than one in five gone there is no verdict.
fn measure(pair: &Pair, rounds: u32) -> Result<Verdict> {
    println!("{}\n  A: {}\n  B: {}", pair.title, pair.baseline.label, pair.ours.label);
    // Caches warm up, the lab boots and gets its files: not measured.
    for case in [&pair.baseline, &pair.ours] {
        if let Err(err) = time(case) {
            println!("  warm-up failed: {err:#}");
        }
    }
    let runs = runs_root()?;
    let forget = || drop(fs::remove_dir_all(&runs));
    let mut stations = Stations::default();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let cell = |case: &Case, all: &mut Vec<f64>| match time(case) {
            Ok(seconds) => {
                all.push(seconds);
                format!("{seconds:>7.2} s")
            }
            Err(err) => {
                println!("  failed: {err:#}");
                "   failed".to_owned()
            }
        };
        let a = cell(&pair.baseline, &mut a);
        forget();
        let b = cell(&pair.ours, &mut b);
        if let (true, Err(error)) = (pair.stations, stations.add_run(&runs)) {
            println!("  no stations of this run: {error:#}");
        }
        println!("  {round:>3}  A {a}   B {b}");
    }
    stations.table(median).iter().for_each(|line| println!("  {line}"));
    let enough = |seconds: &[f64]| seconds.len() * 5 >= rounds as usize * 4 && !seconds.is_empty();
    if !enough(&a) || !enough(&b) {
        println!(
            "  INCONCLUSIVE: of {rounds} runs each, {} of A and {} of B got to their end",
            a.len(),
            b.len()
        );
        return Ok(Verdict::Inconclusive);
    }
    let ratio = median(&b) / median(&a);
    let verdict = if ratio <= pair.limit { Verdict::Pass } else { Verdict::Fail };
    let goal = pair.goal.map(|goal| format!(", goal {goal:.3}")).unwrap_or_default();
    println!(
        "  medians: A {:.2} s of {} runs, B {:.2} s of {}; B/A {ratio:.3} (limit {}{goal}): {}",
        median(&a),
        a.len(),
        median(&b),
        b.len(),
        pair.limit,
        if verdict == Verdict::Pass { "PASS" } else { "FAIL" }
    );
    Ok(verdict)
}

/// Seconds from start to exit, or to the marker, of one run that reached its end.
fn time(case: &Case) -> Result<f64> {
    let start = Instant::now();
    let (output, marked) = run(&case.argv, case.marker)?;
    let whole = start.elapsed().as_secs_f64();
    let seconds = marked.filter(|_| case.until_marker).map_or(whole, |at| (at - start).as_secs_f64());
    let stdout = String::from_utf8_lossy(&output.stdout);
    let printed = case.marker.is_none_or(|marker| stdout.contains(marker));
    if !output.status.success() || !printed {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}: {} after {seconds:.1} s{}\n`{}`\nstdout ends:\n{}\nstderr ends:\n{}",
            case.label,
            output.status,
            if printed { "" } else { ", without reaching its init" },
            case.argv.join(" "),
            tail(&stdout),
            tail(&stderr)
        );
    }
    Ok(seconds)
}

/// Runs to the end; also when the marker was printed, if it was.
fn run(argv: &[String], marker: Option<&str>) -> Result<(Output, Option<Instant>)> {
    // `timeout` ends the whole group, so that no emulator stays behind.
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", &RUN_LIMIT.as_secs().to_string()])
        .args(argv)
        .env("KTSTR_RUNS_ROOT", runs_root()?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", argv[0]))?;
    let mut errors = child.stderr.take().context("its standard error")?;
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        errors.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut out = child.stdout.take().context("its standard output")?;
    let (mut stdout, mut marked, mut piece) = (Vec::new(), None, [0; 4096]);
    loop {
        let read = out.read(&mut piece).context("reading its standard output")?;
        if read == 0 {
            break;
        }
        stdout.extend_from_slice(&piece[..read]);
        let there = |marker: &str| String::from_utf8_lossy(&stdout).contains(marker);
        if marked.is_none() && marker.is_some_and(there) {
            marked = Some(Instant::now());
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {}", argv[0]))?;
    let stderr = errors.join().expect("reading does not panic").context("reading its standard error")?;
    Ok((Output { status, stdout, stderr }, marked))
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

fn target_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("finding this executable")?;
    exe.ancestors().nth(2).map(Path::to_owned).context("this executable does not lie in a target directory")
}

/// Where the measured runs leave what they say about themselves.
fn runs_root() -> Result<PathBuf> {
    Ok(work_dir()?.join("runs"))
}

fn work_dir() -> Result<PathBuf> {
    let dir = target_dir()?.join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn kernels_of_the_store_go_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let entry = dir.path().join("debian-7.3");
        fs::create_dir(&entry).unwrap();
        let vmlinux = entry.join("vmlinux");
        assert_eq!(kernel_name(&vmlinux), vmlinux.to_str().unwrap());
        fs::write(entry.join("metadata.json"), "{}").unwrap();
        assert_eq!(kernel_name(&vmlinux), "debian-7.3");
    }

    #[test]
    fn too_many_failed_runs_give_no_verdict() {
        let case = |script: &str| Case {
            label: "case".into(),
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            marker: None,
            until_marker: false,
        };
        let pair = |ours: &str, limit: f64| Pair {
            title: "pair".into(),
            limit,
            goal: None,
            baseline: case("true"),
            ours: case(ours),
            stations: false,
        };
        assert_eq!(measure(&pair("false", 1e9), 2).unwrap(), Verdict::Inconclusive);
        assert_eq!(measure(&pair("true", 1e9), 2).unwrap(), Verdict::Pass);
        assert_eq!(measure(&pair("true", 1e-9), 2).unwrap(), Verdict::Fail);
    }

    #[test]
    fn a_run_without_its_marker_is_an_error() {
        let case = |script: &str| Case {
            label: "case".into(),
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            marker: Some("here"),
            until_marker: true,
        };
        assert!(time(&case("echo here")).is_ok());
        let marked = |script| run(&case(script).argv, Some("here")).unwrap().1;
        assert!(marked("echo here; sleep 0").is_some() && marked("echo nothing").is_none());
        assert!(time(&case("true")).unwrap_err().to_string().contains("without reaching its init"));
        assert!(time(&case("echo here; exit 3")).is_err());
    }
}
