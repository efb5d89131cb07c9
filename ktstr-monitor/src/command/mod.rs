//! The commands with which a user looks into a run: `query`, `capture`, `attach`.
//!
//! A live run is reached through a socket of its orchestrator; this
//! process then sees answers and no guest memory. A core file is read by this process itself, which
//! confines itself as the role process does, after it has opened the files.

mod attach;
mod core;
mod live;
mod screen;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ktstr_proto::capture::{Question, Structure};

use crate::freeze::CAPTURE_SCHEMA;

const USAGE: &str = "usage: ktstr-monitor query [RUN] QUESTION [--json] [--freeze] [--follow N]
       ktstr-monitor query --core FILE --kernel VMLINUX QUESTION [--json]
       ktstr-monitor capture [RUN] [--vmcore] [--json]
       ktstr-monitor attach [RUN] [--watch PATH]... [--rw]
       ktstr-monitor write [RUN] MAP PATH NUMBER --rw
       ktstr-monitor schema

RUN        directory of a live run, or a part of its id; not needed when only one is live
QUESTION   tasks | task PID | dsq | scx | cgroups | bpf | modules | map NAME [PATH] | struct TYPE WHERE [PATH],
           or a path: 'rq[*].nr_running', 'rq[0].cfs', 'cgroups[*].usage_ns'; `*` stands for every item
TYPE       of the kernel or a module: task_struct, kvm:kvm_caps
WHERE      a thread id (of a task_struct), 0xADDRESS, SYMBOL, SYMBOL@CPU, MODULE:SYMBOL, SYMBOL[N]
--json     for machines; what is missing is {\"absent\": why} or {\"unreadable\": why}
--follow   follow that many pointers one after the other, 0 to 4, in struct
--freeze   stop all vCPUs meanwhile, so that what is answered belongs together
--core     ask a core file (written by capture --vmcore) instead of a live run
--kernel   the decompressed kernel of the core file
--vmcore   write all guest memory as an ELF core file, too
--watch    a path, or a question like 'map .bss nr', whose answer is shown, too
--rw       numbers in maps may be written: NUMBER is put at PATH in MAP while the guest stands, which its report
           tells; never under det
schema     prints the JSON Schema of a capture (capture-N.json); what --json prints of a path is a part of it

A run that cannot be asked yet (queued, booting) is waited for, 300 s at most; what for is told on standard error.

keys of attach: q leave, Tab next view, f freeze for each look, d capture, with --rw w write: MAP PATH NUMBER

exit codes: 0 answered, 1 the question has no answer, 3 no such run, 4 broken";

/// What was asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    words: Vec<String>,
    /// Options that were given.
    given: Vec<String>,
    json: bool,
    freeze: bool,
    vmcore: bool,
    core: Option<PathBuf>,
    kernel: Option<PathBuf>,
    watch: Vec<String>,
    rw: bool,
    follow: u8,
}

/// Prints an answer. Who has read enough of it gets no more, and no complaint.
fn say(what: impl Display) -> Result<()> {
    match writeln!(io::stdout(), "{what}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print"),
    }
}

/// Runs a command. Exit codes: see the usage.
pub fn main(args: &[String]) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ktstr-monitor: {error:#}");
            let no_run = error.chain().any(|cause| cause.is::<live::NoRun>());
            ExitCode::from(if no_run { 3 } else { 1 })
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let (command, rest) = args.split_first().context(USAGE)?;
    let options = options(rest)?;
    options.are_of(command)?;
    match command.as_str() {
        "query" => match &options.core {
            Some(core) => {
                let kernel = options.kernel.as_ref().context("--core needs --kernel VMLINUX")?;
                let question = question(&options.words, options.follow)?;
                core::query(core, kernel, &question, options.json)
            }
            None => {
                let (run, question) = run_and_question(&options.words, options.follow)?;
                live::query(run, question, options.freeze, options.json)
            }
        },
        "capture" => match options.words.as_slice() {
            [] => live::capture(None, options.vmcore, options.json),
            [run] => live::capture(Some(run), options.vmcore, options.json),
            _ => bail!("{USAGE}"),
        },
        "attach" => match options.words.as_slice() {
            [] => attach::attach(None, &options.watch, options.rw),
            [run] => attach::attach(Some(run), &options.watch, options.rw),
            _ => bail!("{USAGE}"),
        },
        "write" => {
            anyhow::ensure!(options.rw, "a write changes the guest: say --rw if that is meant");
            let (run, words) = match options.words.as_slice() {
                [run, words @ ..] if words.len() == 3 => (Some(run.as_str()), words),
                words => (None, words),
            };
            let (map, path, value) = assignment(words)?;
            live::write(run, map, path, value)
        }
        "schema" => say(CAPTURE_SCHEMA.trim_end()),
        "--help" | "-h" => say(USAGE),
        _ => bail!("{USAGE}"),
    }
}

impl Options {
    /// Every option that was given means something to the command.
    fn are_of(&self, command: &str) -> Result<()> {
        let known: &[&str] = match command {
            "query" if self.core.is_some() => &["--core", "--kernel", "--json", "--follow"],
            "query" => &["--json", "--freeze", "--follow"],
            "capture" => &["--vmcore", "--json"],
            "attach" => &["--watch", "--rw"],
            "write" => &["--rw"],
            "schema" => &[],
            _ => return Ok(()),
        };
        let unknown = |given: &&String| !known.contains(&given.as_str());
        match self.given.iter().find(unknown) {
            None => Ok(()),
            Some(_) if self.core.is_some() && !known.contains(&"--core") => {
                bail!(
                    "{command} is for live runs; a core file is asked by query --core FILE --kernel VMLINUX"
                )
            }
            Some(other) if self.core.is_some() => bail!("{other} is for live runs, not for core files"),
            Some(other) => bail!("{other} means nothing to {command}\n{USAGE}"),
        }
    }
}

fn options(args: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg.starts_with("--") {
            options.given.push(arg.clone());
        }
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--json" => options.json = true,
            "--freeze" => options.freeze = true,
            "--vmcore" => options.vmcore = true,
            "--rw" => options.rw = true,
            "--core" => options.core = Some(value()?.into()),
            "--kernel" => options.kernel = Some(value()?.into()),
            "--follow" => options.follow = value()?.parse().context("--follow takes a number")?,
            "--watch" => options.watch.push(value()?.clone()),
            option if option.starts_with("--") => bail!("there is no option {option}\n{USAGE}"),
            word => options.words.push(word.to_owned()),
        }
    }
    Ok(options)
}

/// `MAP PATH NUMBER`; the number decimal or `0x…`.
fn assignment(words: &[String]) -> Result<(&str, &str, i64)> {
    let [map, path, value] = words else { bail!("a write takes MAP PATH NUMBER") };
    let number = match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).map(u64::cast_signed),
        None => value.parse(),
    };
    Ok((map, path, number.with_context(|| format!("{value} is no number of 64 bits"))?))
}

fn question(words: &[String], follow: u8) -> Result<Question> {
    let words: Vec<_> = words.iter().flat_map(|word| word.split(' ')).collect();
    let structure = |of: &str, at: &str, path: Option<&str>| {
        let path = path.map(str::to_owned);
        Question::Structure(Structure { of: of.to_owned(), at: at.to_owned(), path, follow })
    };
    Ok(match words.as_slice() {
        ["tasks"] => Question::Tasks,
        ["task", pid] => Question::Task(pid.parse().with_context(|| format!("{pid} is no thread id"))?),
        ["dsq"] => Question::Dsqs,
        ["scx"] => Question::Scx,
        ["cgroups"] => Question::Cgroups,
        ["bpf"] => Question::Bpf,
        ["modules"] => Question::Modules,
        ["struct", of, at] => structure(of, at, None),
        ["struct", of, at, path] => structure(of, at, Some(path)),
        ["map", name] => Question::Map((*name).to_owned(), None),
        ["map", name, path] => Question::Map((*name).to_owned(), Some((*path).to_owned())),
        [path] => Question::Path((*path).to_owned()),
        _ => bail!("{USAGE}"),
    })
}

/// `[RUN] QUESTION`: what cannot be a question alone begins with a run.
fn run_and_question(words: &[String], follow: u8) -> Result<(Option<&str>, Question)> {
    match words {
        [run, rest @ ..] if !rest.is_empty() && !["task", "map", "struct"].contains(&run.as_str()) => {
            Ok((Some(run), question(rest, follow)?))
        }
        words => Ok((None, question(words, follow)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_run_may_be_left_out() {
        let asked = |text| {
            let words = words(text);
            let (run, question) = run_and_question(&words, 1).unwrap();
            (run.map(str::to_owned), question)
        };
        assert_eq!(asked("tasks"), (None, Question::Tasks));
        assert_eq!(asked("task 7"), (None, Question::Task(7)));
        assert_eq!(asked("demo task 7"), (Some("demo".into()), Question::Task(7)));
        let structure = |at: &str, path: Option<&str>| {
            let (of, at, path) = ("rq".into(), at.to_owned(), path.map(str::to_owned));
            Question::Structure(Structure { of, at, path, follow: 1 })
        };
        assert_eq!(asked("struct rq runqueues@0"), (None, structure("runqueues@0", None)));
        assert_eq!(asked("demo struct rq 0x7 cfs"), (Some("demo".into()), structure("0x7", Some("cfs"))));
        let in_one = ["struct rq 0x7 cfs".to_owned()];
        assert_eq!(run_and_question(&in_one, 1).unwrap(), (None, structure("0x7", Some("cfs"))));
        assert_eq!(asked("demo rq[*].clock"), (Some("demo".into()), Question::Path("rq[*].clock".into())));
        assert!(run_and_question(&words("demo tasks too"), 0).is_err());
    }

    #[test]
    fn options_may_stand_anywhere() {
        let found = options(&words("--json demo --core f dsq --freeze")).unwrap();
        assert!(found.are_of("attach").unwrap_err().to_string().contains("query --core"));
        assert!(found.are_of("query").unwrap_err().to_string().contains("--freeze"));
        assert_eq!((found.words, found.json, found.freeze), (words("demo dsq"), true, true));
        assert_eq!(found.core, Some("f".into()));
        assert!(options(&words("run --rw --watch jiffies")).unwrap().are_of("attach").is_ok());
        assert!(options(&words("dsq --rw")).unwrap().are_of("query").is_err());
        assert!(options(&words("dsq --core")).is_err() && options(&words("--jsno")).is_err());
    }
}
