//! One budget for all test executables of a run: what `KTSTR_BUDGET_SECS` means to `test`.
//!
//! `cargo nextest list` with the same arguments builds the executables and has each of them offer what it
//! holds; what the arguments leave out is no candidate. The plan goes to `cargo nextest run`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use ktstr_proto::budget::{Candidate, Choice, OFFERS, Offer, PLAN, Plan, choose};
use serde::Deserialize;

/// Where offers and plan are, beside the runs.
pub const DIRECTORY: &str = "budget";
/// Seconds that the chosen tests of a run may take.
pub const SECONDS: &str = "KTSTR_BUDGET_SECS";

/// Options of `nextest run` that `nextest list` does not know, which decide nothing about what is chosen:
/// those with a value, and those without.
const WITH_VALUE: [&str; 19] = [
    "--debugger",
    "--failure-output",
    "--final-status-level",
    "--flaky-result",
    "--max-fail",
    "--max-progress-running",
    "--message-format",
    "--message-format-version",
    "--no-tests",
    "--retries",
    "--show-progress",
    "--status-level",
    "--stress-count",
    "--stress-duration",
    "--success-output",
    "--test-threads",
    "--jobs",
    "--tracer",
    "-j",
];
const WITHOUT: [&str; 8] = [
    "--fail-fast",
    "--ff",
    "--hide-progress-bar",
    "--no-capture",
    "--nocapture",
    "--no-fail-fast",
    "--no-input-handler",
    "--no-output-indent",
];
/// Which of a test's kinds run has been decided by the plan.
const RUN_IGNORED: &str = "--run-ignored";

/// The budget, if one is set.
pub fn limit() -> anyhow::Result<Option<Duration>> {
    let Some(given) = std::env::var(SECONDS).ok().filter(|given| !given.is_empty()) else { return Ok(None) };
    let seconds = given.parse();
    seconds
        .map(|seconds| Some(Duration::from_secs(seconds)))
        .with_context(|| format!("{SECONDS}=`{given}` is no whole number of seconds"))
}

/// What was planned.
pub struct Planned {
    choice: Choice,
    candidates: usize,
    executables: usize,
    limit: Duration,
    left_out: PathBuf,
}

impl Planned {
    /// What was chosen and where what was not is listed.
    pub fn render(&self) -> String {
        let mut text = format!(
            "ktstr budget over {} test executables: {}\n",
            self.executables,
            self.choice.in_words(self.candidates, self.limit)
        );
        if let Some(first) = self.choice.left_out.first() {
            let more = match self.choice.left_out.len() {
                1 => first.clone(),
                n => format!("{first} and {} more", n - 1),
            };
            text.push_str(&format!("  left out: {more}, listed in {}\n", self.left_out.display()));
        }
        text
    }
}

/// Asks, chooses and tells `run`, which is `nextest run` as it will be started with `args`; `list` is
/// `nextest`, to be asked.
pub fn plan(
    run: &mut Command,
    mut list: Command,
    args: &[OsString],
    limit: Duration,
    root: &Path,
) -> anyhow::Result<Planned> {
    let offers = root.join(DIRECTORY);
    fs::create_dir_all(&offers).with_context(|| format!("cannot create {}", offers.display()))?;
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => list.env(name, value),
            None => list.env_remove(name),
        };
    }
    list.env(OFFERS, &offers).env_remove(PLAN);
    list.args(["list", "--message-format", "json"]).args(for_list(args));
    list.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = list.output().context("cannot run cargo nextest list")?;
    if !output.status.success() {
        bail!("cannot plan by {SECONDS}: `cargo nextest list` failed ({})", output.status);
    }
    let listed = serde_json::from_slice(&output.stdout).context("cannot read the list of cargo nextest")?;
    let held = candidates(&matching(listed), &read(&offers)?);
    let all: Vec<Candidate> = held.iter().map(|(_, candidate)| candidate.clone()).collect();
    let choice = choose(&all, limit);
    let (plan_file, left_out) = (offers.join("plan"), root.join("left-out-by-budget.txt"));
    let write = |path: &Path, text: &[u8]| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write(&plan_file, &serde_json::to_vec(&planned(&held, &choice))?)?;
    write(&left_out, (choice.left_out.join("\n") + "\n").as_bytes())?;
    run.env(PLAN, &plan_file).env_remove(OFFERS);
    let executables = held.iter().map(|((executable, _), _)| executable).collect::<BTreeSet<_>>().len();
    Ok(Planned { candidates: all.len(), choice, executables, limit, left_out })
}

/// The arguments without those that only `run` knows; those for the executables stay.
fn for_list(args: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy();
        if text == "--" {
            kept.push(arg.clone());
            kept.extend(rest.cloned());
            break;
        }
        let (name, inline) = text.split_once('=').map_or((&*text, false), |(name, _)| (name, true));
        if WITH_VALUE.contains(&name) || name == RUN_IGNORED {
            if !inline {
                rest.next();
            }
        } else if !WITHOUT.contains(&name) && !name.starts_with("-j") {
            kept.push(arg.clone());
        }
    }
    kept
}

/// The part of nextest's list that is of interest.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    rust_suites: BTreeMap<String, Suite>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Suite {
    binary_path: PathBuf,
    #[serde(default)]
    testcases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Case {
    filter_match: Match,
}

#[derive(Deserialize)]
struct Match {
    status: String,
}

/// What would be run: by file name of the executable, its name among people and its tests.
type Matching = BTreeMap<String, (String, BTreeSet<String>)>;

fn matching(listed: Listed) -> Matching {
    let of_suite = |(id, suite): (String, Suite)| {
        let file = suite.binary_path.file_name()?.to_string_lossy().into_owned();
        let matches = |(name, case): (String, Case)| (case.filter_match.status == "matches").then_some(name);
        Some((file, (id, suite.testcases.into_iter().filter_map(matches).collect())))
    };
    listed.rust_suites.into_iter().filter_map(of_suite).collect()
}

fn read(offers: &Path) -> anyhow::Result<Vec<Offer>> {
    let files = fs::read_dir(offers).with_context(|| format!("cannot read {}", offers.display()))?;
    let mut paths: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let offer = |path: PathBuf| {
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no offer of tests", path.display()))
    };
    paths.into_iter().map(offer).collect()
}

/// Where a candidate is: executable and test.
type Place = (String, String);

/// What is offered and would be run, called as nextest calls it.
fn candidates(matching: &Matching, offers: &[Offer]) -> Vec<(Place, Candidate)> {
    let of_offer = |offer: &Offer| {
        let known = matching.get(&offer.executable);
        let held = offer.candidates.iter().filter_map(|candidate| {
            let (id, tests) = known?;
            let name = format!("{id} {}", candidate.name);
            let place = (offer.executable.clone(), candidate.name.clone());
            tests.contains(&candidate.name).then(|| (place, Candidate { name, ..candidate.clone() }))
        });
        held.collect::<Vec<_>>()
    };
    offers.iter().flat_map(of_offer).collect()
}

fn planned(held: &[(Place, Candidate)], choice: &Choice) -> Plan {
    let chosen: BTreeSet<&str> = choice.chosen.iter().map(String::as_str).collect();
    let mut plan = Plan::default();
    for ((executable, test), candidate) in held {
        // What is not chosen of an executable is left out there, too.
        let of_executable = plan.0.entry(executable.clone()).or_default();
        if chosen.contains(candidate.name.as_str()) {
            of_executable.insert(test.clone());
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gets_what_chooses_and_not_what_only_a_run_knows() {
        let kept = |args: &[&str]| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            let kept = for_list(&args).into_iter().map(|arg| arg.into_string().unwrap());
            kept.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kept(&["-p", "k", "--no-fail-fast", "-E", "test(a)", "-j", "2"]), "-p k -E test(a)");
        assert_eq!(kept(&["--retries=2", "--test", "e2e", "-j2", "--run-ignored", "all"]), "--test e2e");
        assert_eq!(kept(&["a", "--nocapture", "--", "--nocapture", "-j"]), "a -- --nocapture -j");
    }

    #[test]
    fn one_budget_is_divided_among_executables() {
        let candidate = |name: &str, feature: &str, seconds| Candidate {
            name: name.into(),
            features: vec![feature.into(), "kernel 7.2".into()],
            estimate: Duration::from_secs(seconds),
        };
        let offer = |executable: &str, candidates| Offer { executable: executable.into(), candidates };
        let offers = [
            offer("a-1", vec![candidate("t", "test a t", 10), candidate("slow", "test a slow", 60)]),
            offer("b-2", vec![candidate("t", "test b t", 10), candidate("elsewhere", "x", 1)]),
            offer("not-built-now", vec![candidate("t", "test c t", 1)]),
        ];
        let listed = r#"{"rust-suites":{
            "p::a":{"binary-path":"/t/a-1","testcases":{"t":{"ignored":false,"filter-match":{"status":"matches"}},
                "slow":{"filter-match":{"status":"matches"}}}},
            "p::b":{"binary-path":"/t/b-2","testcases":{"t":{"filter-match":{"status":"matches"}},
                "elsewhere":{"filter-match":{"status":"mismatch","reason":"expression"}}}},
            "p::c":{"binary-path":"/t/c-3","status":"skipped"}}}"#;
        let held = candidates(&matching(serde_json::from_str(listed).unwrap()), &offers);
        let all: Vec<Candidate> = held.iter().map(|(_, candidate)| candidate.clone()).collect();
        let choice = choose(&all, Duration::from_secs(25));
        assert_eq!(choice.chosen, ["p::a t", "p::b t"]);
        assert_eq!(choice.left_out, ["p::a slow"]);
        let Plan(plan) = planned(&held, &choice);
        let of = |executable: &str| plan[executable].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((of("a-1"), of("b-2")), (vec!["t"], vec!["t"]));
        let one = choose(&all, Duration::from_secs(12));
        assert_eq!(planned(&held, &one).0["b-2"], BTreeSet::new(), "it is told to leave its own out");
    }
}
