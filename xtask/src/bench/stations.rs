//! Where the time of a start goes: the stations of a run, from what its directory says.
//!
//! Three clocks meet: the event log's, the VMM's, which begins with the request to start the machine, and the
//! guest's. The machine's being handed out is on the first two, the guest's first word on the first and the last.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

/// Stations of several runs, in the order in which they are first passed.
#[derive(Debug, Default)]
pub struct Stations {
    order: Vec<String>,
    /// Milliseconds from the opening of the run's directory.
    at: BTreeMap<String, Vec<f64>>,
}

impl Stations {
    /// Adds the last run in `root`, which is emptied.
    pub fn add_run(&mut self, root: &Path) -> Result<()> {
        for (what, at) in take_last(root)? {
            if !self.at.contains_key(&what) {
                self.order.push(what.clone());
            }
            self.at.entry(what).or_default().push(at);
        }
        Ok(())
    }

    /// One line per station: the median moment, and the time since the one before.
    pub fn table(&self, median: fn(&[f64]) -> f64) -> Vec<String> {
        let mut moments: Vec<(f64, &String)> =
            self.order.iter().map(|what| (median(&self.at[what]), what)).collect();
        moments.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut before = 0.0;
        let line = |(at, what): (f64, &String)| {
            let since = at - std::mem::replace(&mut before, at);
            format!("{at:>8.1} ms  +{since:>6.1}  {what}")
        };
        moments.into_iter().map(line).collect()
    }
}

/// Milliseconds from the first word of PID 1 to that of the job, in the last run in `root`, which is emptied.
pub fn from_first_word_to_job(root: &Path) -> Result<f64> {
    let all = take_last(root)?;
    let at = |station: &str| {
        let found = all.iter().find(|(what, _)| what == station);
        found.map(|(_, at)| *at).with_context(|| format!("the run did not get to: {station}"))
    };
    Ok(at("job's first word")? - at("guest's first word")?)
}

/// The stations of the last run in `root`; names of runs begin with their time.
fn take_last(root: &Path) -> Result<Vec<(String, f64)>> {
    let entries = fs::read_dir(root).with_context(|| format!("reading {}", root.display()))?;
    let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|p| p.is_dir()).collect();
    dirs.sort();
    let dir = dirs.last().context("the run left no directory")?;
    let all = of_run(&lines(&dir.join("events.jsonl"))?, &lines(&dir.join("guest.jsonl"))?)?;
    dirs.iter().try_for_each(fs::remove_dir_all).context("removing the run's directory")?;
    Ok(all)
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).context("a line that is no JSON")).collect()
}

/// Milliseconds on the event log's clock at which each station was passed.
fn of_run(events: &[Value], guest: &[Value]) -> Result<Vec<(String, f64)>> {
    let number = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_f64);
    let recorded = |what: &str| {
        let event = events.iter().find(|event| event["what"] == what);
        event.and_then(|event| number(event, "/t_ms")).with_context(|| format!("no event {what}"))
    };
    let station = |event: &Value| {
        let station = event.pointer("/value/Station").filter(|_| event["what"] == "station")?;
        Some((station["what"].as_str()?.to_owned(), number(station, "/at_us")? / 1000.0))
    };
    let mut all = vec![("prepared, VMM's process begun".to_owned(), recorded("vmm-start")?)];
    let passed: Vec<(String, f64)> = events.iter().filter_map(station).collect();
    let (started, first) = (recorded("vmm-started")?, recorded("first-word")?);
    let handed_out = passed.iter().find(|(what, _)| what == "machine handed out").map_or(0.0, |(_, at)| *at);
    all.push(("VMM up, request read".into(), started - handed_out));
    all.extend(passed.into_iter().map(|(what, at)| (what, started - handed_out + at)));
    all.push(("guest's first word".into(), first));
    let clock = |message: &Value| number(message, "/t_ns").map(|ns| ns / 1e6);
    let origin = guest.first().and_then(clock).context("the guest said nothing")?;
    for (name, what) in [("SystemReady", "system ready"), ("TestStarted", "job's process begun")] {
        let phase = guest.iter().find(|message| message["body"]["Phase"] == name);
        all.extend(phase.and_then(clock).map(|at| (what.to_owned(), first + at - origin)));
    }
    let printed = guest.iter().find(|message| message["body"]["Log"]["source"] == "Stdout");
    all.extend(printed.and_then(clock).map(|at| ("job's first word".to_owned(), first + at - origin)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_clocks_become_one() {
        let parse =
            |text: &str| -> Vec<Value> { text.lines().map(|l| serde_json::from_str(l).unwrap()).collect() };
        let events = parse(
            r#"{"t_ms":20,"what":"vmm-start","value":{}}
{"t_ms":220,"what":"vmm-started","value":{}}
{"t_ms":221,"what":"station","value":{"Station":{"what":"RAM made","at_us":2000}}}
{"t_ms":221,"what":"station","value":{"Station":{"what":"machine handed out","at_us":180000}}}
{"t_ms":230,"what":"station","value":{"Station":{"what":"job given","at_us":190000}}}
{"t_ms":300,"what":"first-word","value":null}"#,
        );
        let guest = parse(
            r#"{"t_ns":1000000000,"body":{"Hello":{}}}
{"t_ns":1005000000,"body":{"Phase":"SystemReady"}}
{"t_ns":1090000000,"body":{"Log":{"source":"Stdout","text":"x"}}}"#,
        );
        let all = of_run(&events, &guest).unwrap();
        let at = |what: &str| all.iter().find(|(station, _)| station == what).unwrap().1;
        assert_eq!([at("VMM up, request read"), at("RAM made"), at("job given")], [40.0, 42.0, 230.0]);
        assert_eq!(
            [at("guest's first word"), at("system ready"), at("job's first word")],
            [300.0, 305.0, 390.0]
        );
        let mut stations = Stations::default();
        for (what, at) in all {
            stations.order.push(what.clone());
            stations.at.insert(what, vec![at]);
        }
        let table = stations.table(|all| all[0]);
        assert!(table[0].contains("+  20.0") && table.last().unwrap().contains("+  85.0"), "{table:#?}");
        assert!(of_run(&events[..1], &guest).is_err());
    }
}
