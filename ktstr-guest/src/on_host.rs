//! Ready-made scenarios on a running system, whatever schedules it: what `ktstr list` and `ktstr run` call.
//!
//! `ktstr-guest list` prints the catalogue, with `--flags` what makes sense with such a scheduler,
//! `ktstr-guest run NAME …` runs one scenario in cgroups of its own and prints its result, both as JSON on
//! standard output; `ktstr-guest work-type NAME` says what is wrong with a name. One process per scenario:
//! one that goes wrong takes nothing else with it. Starts no scheduler and changes no setting of the system.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    scenario::{
        Ctx, nearest,
        scenarios::{
            catalogue, find, others,
            profile::{Profile, pressed},
        },
    },
    work::WorkType,
};

/// What the executable says when it is called neither as PID 1 nor with a command.
const USAGE: &str = "ktstr-guest is the first process of a ktstr guest. Elsewhere it only lists and runs \
     scenarios: `ktstr list`, `ktstr run`; to get a shell in a guest: `ktstr shell`";

/// Carries out one command; `args` without the program's name.
pub fn main(args: &[String]) -> ExitCode {
    match carry_out(args) {
        Ok(Some(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(args: &[String]) -> Result<Option<String>> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => list(|_| true).map(Some),
        ["list", "--flags", flags] => {
            let profile = Profile::parse(flags)?;
            list(|name| profile.admits(name)).map(Some)
        }
        ["run", name, rest @ ..] => run(name, rest).map(Some),
        ["work-type", name] => Ok(Some(WorkType::from_name(name)?.name().to_owned())),
        _ => Ok(None),
    }
}

/// The catalogue as JSON, as far as `wanted` by name.
fn list(wanted: impl Fn(&str) -> bool) -> Result<String> {
    let all: Vec<_> = catalogue()
        .filter(|canned| wanted(canned.name))
        .map(|canned| {
            let flags: Vec<&str> = pressed(canned.name).iter().map(|feature| feature.name()).collect();
            serde_json::json!({
                "name": canned.name,
                "group": canned.group,
                "question": canned.question,
                "flags": flags,
                "aliases": others(canned),
            })
        })
        .collect();
    Ok(serde_json::to_string(&all)?)
}

fn run(name: &str, options: &[&str]) -> Result<String> {
    let Some(canned) = find(name) else {
        let known: Vec<&str> = catalogue().map(|canned| canned.name).collect();
        let near = nearest(name, &known).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        bail!("there is no scenario `{name}`{near}");
    };
    let mut ctx = Ctx::on_host(name, Duration::from_secs(20), 1).context("cannot read this system's CPUs")?;
    for pair in options.chunks(2) {
        let [option, value] = pair else { bail!("`{}` needs a value", pair[0]) };
        let number = || value.parse::<u64>().with_context(|| format!("{option} {value}"));
        match *option {
            "--duration-ms" => ctx.duration = Duration::from_millis(number()?),
            "--workers" => ctx.workers_per_cgroup = u32::try_from(number()?)?.max(1),
            "--seed" => ctx.seed = number()?,
            "--work-type" => ctx.work_type_override = Some(WorkType::from_name(value)?),
            other => bail!("unknown option `{other}`"),
        }
    }
    let result = (canned.run)(&ctx);
    // What the scenario leaves is its empty parent; should it not be empty, `ktstr cleanup` says so.
    let _ = std::fs::remove_dir(ctx.cgroups.root());
    Ok(serde_json::to_string(&result?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_list_is_json_with_the_questions() {
        let text = carry_out(&words("list")).unwrap().unwrap();
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        let steady = &all.as_array().unwrap()[0];
        assert_eq!(
            (steady["name"].as_str(), steady["group"].as_str()),
            (Some("cgroup_steady"), Some("basic"))
        );
        assert!(steady["question"].as_str().unwrap().ends_with('?'));
        assert_eq!(steady["aliases"], serde_json::json!(["custom_cgroup_steady", "steady"]));
    }

    #[test]
    fn a_profile_chooses_scenarios() {
        let names = |flags: &str| {
            let text = carry_out(&["list".into(), "--flags".into(), flags.into()]).unwrap().unwrap();
            let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            all.iter().map(|s| s["name"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        let (plain, stealing) = (names("default"), names("llc,steal"));
        assert!(plain.iter().any(|name| name == "cgroup_steady"));
        assert!(!plain.iter().any(|name| name == "cgroup_llc_overflow"));
        assert!(stealing.iter().any(|name| name == "cgroup_llc_overflow"));
        assert!(names("llc,borrow,steal,rebal,reject-pin,no-ctrl").len() == catalogue().count());
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| format!("{:#}", carry_out(&words(text)).unwrap_err());
        assert!(error("run cgroup_stedy").contains("did you mean `cgroup_steady`?"));
        assert!(error("run cgroup_steady --work-type Spin").contains("Spin"));
        assert!(error("run cgroup_steady --duration-ms x").contains("--duration-ms x"));
        assert!(error("list --flags lcc").contains("did you mean `llc`?"));
        assert!(error("work-type SpinWat").contains("did you mean `SpinWait`?"));
        assert!(error("run cgroup_steady --seed").contains("needs a value"));
        assert!(carry_out(&words("dance")).unwrap().is_none());
    }
}
