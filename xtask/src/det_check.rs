//! `cargo xtask det-check`: the same run under `det`, again and again, must leave the same bytes,
//! whether or not the host is busy and the monitor looks on.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::workspace;

/// Options of `cargo xtask det-check`.
#[derive(Args, Debug)]
pub struct DetCheckArgs {
    /// How many runs to compare
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..))]
    runs: u32,
    /// Kernel, as for `cargo ktstr test --kernel`
    #[arg(long)]
    kernel: Option<String>,
}

/// What of the report is measured on the host, or names the run or how it was observed.
const HOST_FIELDS: [&str; 8] =
    ["run_id", "run_dir", "host_ms", "host", "monitor", "notes", "timeline", "replay"];

/// 0 identical, 1 different.
pub fn command(args: &DetCheckArgs) -> Result<u8> {
    workspace::build_executables()?;
    if args.kernel.is_none() {
        workspace::ensure_kernel(None)?;
    }
    let test = ["test", "-q", "-p", "ktstr", "--test", "demo"];
    workspace::step("build the demo test", workspace::cargo().args(test).arg("--no-run"))?;
    let base = workspace::target_dir().join("det-check");
    if base.exists() {
        fs::remove_dir_all(&base).context("cannot clear the last check")?;
    }
    let mut first: Option<BTreeMap<&str, Vec<u8>>> = None;
    let mut different = 0;
    for n in 0..args.runs {
        let (busy, observe) = (n % 2 == 1, n / 2 % 2 == 0);
        let label = format!(
            "det run {} of {}, host {}, monitor {}",
            n + 1,
            args.runs,
            if busy { "busy" } else { "calm" },
            if observe { "on" } else { "off" }
        );
        let runs = base.join(format!("{n}"));
        let mut run = workspace::cargo();
        run.args(test).args(["--", "--exact", "demo"]);
        run.envs([
            ("KTSTR_ACCEL", "det"),
            ("KTSTR_SEED", "1"),
            ("KTSTR_OBSERVE", if observe { "1" } else { "0" }),
        ]);
        run.env("KTSTR_RUNS_ROOT", &runs)
            .env("KTSTR_AUTO_REPRO", "0")
            .envs(args.kernel.iter().map(|k| ("KTSTR_KERNEL", k)));
        let load = busy.then(Load::start);
        workspace::step(&label, &mut run)?;
        drop(load);
        let traces = traces(&runs)?;
        match &first {
            None => first = Some(traces),
            Some(expected) => {
                for (name, bytes) in &traces {
                    if expected.get(name) != Some(bytes) {
                        different += 1;
                        println!("DIFFERENT: {name} of {} and {}", base.join("0").display(), runs.display());
                    }
                }
            }
        }
    }
    let sizes: Vec<String> =
        first.iter().flatten().map(|(name, bytes)| format!("{name} {} bytes", bytes.len())).collect();
    println!(
        "det-check: {} of {} runs identical to the first ({})",
        args.runs - 1 - different.min(args.runs - 1),
        args.runs - 1,
        sizes.join(", ")
    );
    Ok(u8::from(different > 0))
}

/// Keeps one host CPU busy until dropped.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// What must be equal: console, the guest's messages, and the report without host fields.
fn traces(runs: &Path) -> Result<BTreeMap<&'static str, Vec<u8>>> {
    let dirs: Vec<PathBuf> = fs::read_dir(runs)
        .with_context(|| format!("no run was recorded in {}", runs.display()))?
        .flatten()
        .map(|e| e.path())
        .collect();
    let [dir] = dirs.as_slice() else { bail!("{} runs in {} instead of one", dirs.len(), runs.display()) };
    let read =
        |name: &str| fs::read(dir.join(name)).with_context(|| format!("{} has no {name}", dir.display()));
    let mut report: Value = serde_json::from_slice(&read("sidecar.json")?)?;
    let fields = report.as_object_mut().context("sidecar.json is no object")?;
    fields.retain(|name, _| !HOST_FIELDS.contains(&name.as_str()));
    // What the monitor saw in each phase is sampled by the host's clock, too.
    let phases = fields.get_mut("result").and_then(|result| result.pointer_mut("/stats/phases"));
    for phase in phases.and_then(Value::as_array_mut).into_iter().flatten() {
        phase.as_object_mut().map(|phase| phase.remove("monitor"));
    }
    if fields.get("outcome").and_then(Value::as_str) != Some("Pass") {
        bail!("{} did not pass", dir.display());
    }
    Ok(BTreeMap::from([
        ("console.log", read("console.log")?),
        ("guest.jsonl", read("guest.jsonl")?),
        ("sidecar.json", serde_json::to_vec(&report)?),
    ]))
}
