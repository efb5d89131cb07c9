//! The commands with which a user looks into a run: `query`, `capture`, `attach`.
//!
//! A live run is reached through a socket of its orchestrator; this
//! process then sees answers and no guest memory. A core file is read by this process itself, which
//! confines itself as the role process does, after it has opened the files.

mod attach;
mod core;
mod live;
mod screen;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ktstr_proto::capture::Question;

const USAGE: &str = "usage: ktstr-monitor query [RUN] QUESTION [--json] [--freeze]
       ktstr-monitor query --core FILE --kernel VMLINUX QUESTION [--json]
       ktstr-monitor capture [RUN] [--vmcore] [--json]
       ktstr-monitor attach [RUN] [--watch PATH]...

RUN        directory of a live run, or a part of its id; not needed when only one is live
QUESTION   tasks | task PID | dsq | scx | cgroups | bpf | map NAME [PATH], or a path: 'rq[*].nr_running', 'rq[0].cfs',
           'cgroups[*].usage_ns', 'scx.events'; `*` stands for every item
--json     for machines; what is missing is {\"absent\": why} or {\"unreadable\": why}
--freeze   stop all vCPUs meanwhile, so that what is answered belongs together
--core     ask a core file (written by capture --vmcore) instead of a live run
--kernel   the decompressed kernel of the core file
--vmcore   write all guest memory as an ELF core file, too
--watch    a path whose value is shown, too; keys: q leave, f freeze for each look, d capture

exit codes: 0 answered, 1 the question has no answer, 3 no such run, 4 broken";

/// What was asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    words: Vec<String>,
    json: bool,
    freeze: bool,
    vmcore: bool,
    core: Option<PathBuf>,
    kernel: Option<PathBuf>,
    watch: Vec<String>,
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
    match command.as_str() {
        "query" => {
            let options = options(rest)?;
            match &options.core {
                Some(core) => {
                    let kernel = options.kernel.as_ref().context("--core needs --kernel VMLINUX")?;
                    let question = question(&options.words)?;
                    core::query(core, kernel, &question, options.json)
                }
                None => {
                    let (run, question) = run_and_question(&options.words)?;
                    live::query(run, question, options.freeze, options.json)
                }
            }
        }
        "capture" => {
            let options = options(rest)?;
            match options.words.as_slice() {
                [] => live::capture(None, options.vmcore, options.json),
                [run] => live::capture(Some(run), options.vmcore, options.json),
                _ => bail!("{USAGE}"),
            }
        }
        "attach" => {
            let options = options(rest)?;
            match options.words.as_slice() {
                [] => attach::attach(None, &options.watch),
                [run] => attach::attach(Some(run), &options.watch),
                _ => bail!("{USAGE}"),
            }
        }
        "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

fn options(args: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--json" => options.json = true,
            "--freeze" => options.freeze = true,
            "--vmcore" => options.vmcore = true,
            "--core" => options.core = Some(value()?.into()),
            "--kernel" => options.kernel = Some(value()?.into()),
            "--watch" => options.watch.push(value()?.clone()),
            option if option.starts_with("--") => bail!("there is no option {option}\n{USAGE}"),
            word => options.words.push(word.to_owned()),
        }
    }
    Ok(options)
}

fn question(words: &[String]) -> Result<Question> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    Ok(match words.as_slice() {
        ["tasks"] => Question::Tasks,
        ["task", pid] => Question::Task(pid.parse().with_context(|| format!("{pid} is no thread id"))?),
        ["dsq"] => Question::Dsqs,
        ["scx"] => Question::Scx,
        ["cgroups"] => Question::Cgroups,
        ["bpf"] => Question::Bpf,
        ["map", name] => Question::Map((*name).to_owned(), None),
        ["map", name, path] => Question::Map((*name).to_owned(), Some((*path).to_owned())),
        [path] => Question::Path((*path).to_owned()),
        _ => bail!("{USAGE}"),
    })
}

/// `[RUN] QUESTION`: what cannot be a question alone begins with a run.
fn run_and_question(words: &[String]) -> Result<(Option<&str>, Question)> {
    match words {
        [run, rest @ ..] if !rest.is_empty() && run != "task" && run != "map" => {
            Ok((Some(run), question(rest)?))
        }
        words => Ok((None, question(words)?)),
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
            let (run, question) = run_and_question(&words).unwrap();
            (run.map(str::to_owned), question)
        };
        assert_eq!(asked("tasks"), (None, Question::Tasks));
        assert_eq!(asked("task 7"), (None, Question::Task(7)));
        assert_eq!(asked("demo task 7"), (Some("demo".into()), Question::Task(7)));
        assert_eq!(asked("demo rq[*].clock"), (Some("demo".into()), Question::Path("rq[*].clock".into())));
        assert!(run_and_question(&words("demo tasks too")).is_err());
    }

    #[test]
    fn options_may_stand_anywhere() {
        let found = options(&words("--json demo --core f dsq --freeze")).unwrap();
        assert_eq!((found.words, found.json, found.freeze), (words("demo dsq"), true, true));
        assert_eq!(found.core, Some("f".into()));
        assert!(options(&words("dsq --core")).is_err() && options(&words("--jsno")).is_err());
    }
}
