//! Probes on the crash path, in the second run of a crash: the kernel's own dynamic events
//! (Documentation/trace/fprobetrace.rst), nothing is loaded into it.
//!
//! Set up before the scheduler starts: the callers of its callbacks, the functions by which it acts, those
//! of the first run's crash stack, each with its arguments and what this kernel's BTF has of the fields in
//! `places`; scheduling events beside them. An exit with an error stops the recording
//! (`traceoff if kind >= 1024`, `SCX_EXIT_ERROR` of kernel/sched/ext_internal.h). Where no such function can
//! be probed nothing is, and that is said: a recording that goes on is of the clean-up, not of the crash.
//! A field that is absent is left out and named; the kernel's refusals are passed on in its words.
//!
//! After the scheduler's end the last events are sent: of all, and of the task that the kernel blames.

mod places;
mod recording;

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use ktstr_proto::repro::{ProbeAccount, ProbeSite, Probing};

use self::places::{Fields, TRIGGERS, groups, tracepoints};

/// Where the kernel offers it.
const TRACEFS: &str = "/sys/kernel/tracing";
/// Our events' group.
const GROUP: &str = "ktstr";
/// For all CPUs together, KiB.
const BUFFER_KB: u32 = 16 << 10;
/// For one CPU, KiB.
const CPU_KB: (u32, u32) = (256, 2048);
/// More fields than are asked for cannot be absent.
const TRIES: usize = 24;
/// What stops the recording, on a [`places::TRIGGERS`].
const STOP: &str = "traceoff if kind >= 1024";

/// Probes that are set up, or why they are not.
pub struct Probes {
    root: PathBuf,
    cpus: u32,
    account: ProbeAccount,
}

impl Probes {
    /// Sets them up; what did not succeed stands in the account.
    pub fn set_up(probing: &Probing, cpus: u32) -> Self {
        let mut probes = Self { root: TRACEFS.into(), cpus, account: ProbeAccount::default() };
        if let Err(why) = probes.begin(probing) {
            probes.account.impossible = Some(why);
            // Nothing of a half-made set is recorded.
            let _ = probes.write("tracing_on", "0");
        }
        probes
    }

    /// What became of them.
    pub fn account(&self) -> &ProbeAccount {
        &self.account
    }

    fn begin(&mut self, probing: &Probing) -> Result<(), String> {
        let said = |what: &str, e: io::Error| format!("{TRACEFS}/{what}: {e}");
        let wanted: BTreeSet<String> = groups()
            .flat_map(|group| group.functions.iter().map(|name| (*name).to_owned()))
            .chain(TRIGGERS.concat().into_iter().map(str::to_owned))
            .chain(probing.stack.iter().cloned())
            .collect();
        let listed = "available_filter_functions";
        let traceable = traceable(&self.root.join(listed), &wanted).map_err(|e| said(listed, e))?;
        let first = |group: &&[&'static str]| group.iter().find(|name| traceable.contains(**name)).copied();
        let triggers: Vec<&str> = TRIGGERS.iter().filter_map(first).collect();
        if triggers.is_empty() {
            let all = TRIGGERS.concat().join(", ");
            return Err(format!("no trigger in this kernel: it lets none of {all} be traced"));
        }
        self.write("tracing_on", "0").map_err(|e| said("tracing_on", e))?;
        self.write("trace_clock", "mono").map_err(|e| said("trace_clock", e))?;
        let kb = (BUFFER_KB / self.cpus.max(1)).clamp(CPU_KB.0, CPU_KB.1);
        self.write("buffer_size_kb", &kb.to_string()).map_err(|e| said("buffer_size_kb", e))?;
        self.account.buffer_kb = kb;
        // Without it names of tasks are lost, and nothing else.
        let _ = self.write("saved_cmdlines_size", "1024");
        for trigger in triggers {
            self.define(trigger, Fields::None, false, false);
            let stop = format!("events/{GROUP}/{}/trigger", event_name(trigger));
            match self.account.sites.last().and_then(|site| site.refused.clone()) {
                None => self.write(&stop, STOP).map_err(|e| said(&stop, e))?,
                Some(why) => return Err(format!("no trigger in this kernel: {trigger}: {why}")),
            }
            self.account.triggers.push(trigger.to_owned());
        }
        self.define_all(probing, &traceable);
        for at in 0..self.account.sites.len() {
            self.enable(at);
        }
        self.write("tracing_on", "1").map_err(|e| said("tracing_on", e))
    }

    fn define_all(&mut self, probing: &Probing, traceable: &BTreeSet<String>) {
        for group in groups() {
            let here: Vec<&str> =
                group.functions.iter().copied().filter(|name| traceable.contains(*name)).collect();
            if here.is_empty() {
                self.account.unknown.push(group.functions.join(" or "));
            }
            for name in here {
                let of_stack = probing.stack.iter().any(|function| function == name);
                self.define(name, group.fields, false, of_stack);
                if group.returns {
                    self.define(name, Fields::Brief, true, of_stack);
                }
            }
        }
        for name in &probing.stack {
            if !traceable.contains(name) {
                self.account.unknown.push(name.clone());
            } else if !self.account.sites.iter().any(|site| site.name == *name) {
                self.define(name, Fields::Full, false, true);
            }
        }
        for name in tracepoints() {
            let known = self.root.join("events").join(name.replace(':', "/")).is_dir();
            if known {
                self.account.sites.push(site(name, false));
            } else {
                self.account.unknown.push((*name).to_owned());
            }
        }
    }

    /// Makes an event of a function's entry or return, with all of its arguments and with those of the fields
    /// that are there.
    fn define(&mut self, function: &str, fields: Fields, returns: bool, of_stack: bool) {
        let name = if returns { format!("{function}__return") } else { function.to_owned() };
        let mut site = site(&name, of_stack);
        let place = if returns { format!("{function}%return") } else { function.to_owned() };
        let mut arguments = fields.arguments(self.cpus);
        // The kernel counts its mark in the arguments that `$arg*` becomes: what stands before it is marked right.
        arguments.push(if returns { "ret=$retval" } else { "$arg*" }.to_owned());
        let event = event_name(&name);
        let head = format!("f:{GROUP}/{event} {place}");
        site.refused = Some("it has too many fields that this kernel does not know".to_owned());
        for _ in 0..TRIES {
            let definition = format!("{head} {}", arguments.join(" "));
            match self.append("dynamic_events", &definition) {
                Ok(()) => {
                    site.refused = None;
                    break;
                }
                Err(error) => {
                    let refusal = self.refusal(&definition);
                    let Some(at) = refusal.as_ref().and_then(|r| argument_at(&head, &arguments, r.column))
                    else {
                        site.refused = Some(refusal.map_or_else(|| error.to_string(), |r| r.words));
                        break;
                    };
                    let why = refusal.map(|r| r.words).unwrap_or_default();
                    drop_argument(&mut arguments, at, &why, &mut site.absent);
                }
            }
        }
        self.account.sites.push(site);
    }

    fn enable(&mut self, at: usize) {
        let site = &self.account.sites[at];
        if site.refused.is_some() {
            return;
        }
        let event = match site.name.split_once(':') {
            Some((system, event)) => format!("{system}/{event}"),
            None => format!("{GROUP}/{}", event_name(&site.name)),
        };
        if let Err(error) = self.write(&format!("events/{event}/enable"), "1") {
            self.account.sites[at].refused = Some(error.to_string());
        }
    }

    /// What the kernel said last of a definition that it refused.
    fn refusal(&self, definition: &str) -> Option<Refusal> {
        Refusal::last(&fs::read_to_string(self.root.join("error_log")).ok()?, definition)
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.root.join(file))?.write_all(text.as_bytes())
    }

    fn append(&self, file: &str, text: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(self.root.join(file))?;
        file.write_all(format!("{text}\n").as_bytes())
    }
}

fn site(name: &str, of_stack: bool) -> ProbeSite {
    ProbeSite { name: name.to_owned(), of_stack, absent: Vec::new(), refused: None }
}

/// Names of events are words; those of functions may have a `.constprop.0` behind them.
fn event_name(function: &str) -> String {
    function.replace('.', "_")
}

/// Those of `wanted` that the kernel lists, one per line, perhaps with a module behind it.
fn traceable(path: &Path, wanted: &BTreeSet<String>) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for line in BufReader::new(fs::File::open(path)?).lines() {
        let line = line?;
        let name = line.split_whitespace().next().unwrap_or_default();
        if wanted.contains(name) {
            found.insert(name.to_owned());
        }
    }
    Ok(found)
}

/// An entry of the kernel's `error_log`: why, and where in the command.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    words: String,
    column: usize,
}

impl Refusal {
    /// The last one about `definition`.
    ///
    /// ```text
    /// [    2.991353] trace_fprobe: error: This field is not found.
    ///   Command: f:ktstr/x enqueue_task_scx p->nosuch
    ///                                          ^
    /// ```
    fn last(log: &str, definition: &str) -> Option<Self> {
        const COMMAND: &str = "  Command: ";
        let lines: Vec<&str> = log.lines().collect();
        let about = |three: &&[&str]| three[1].strip_prefix(COMMAND) == Some(definition);
        let three = lines.windows(3).rfind(about)?;
        let words = three[0].split_once(" error: ")?.1.trim().to_owned();
        let column = three[2].find('^')?.checked_sub(COMMAND.len())?;
        Some(Self { words, column })
    }
}

/// Which argument stands at a column of the definition.
fn argument_at(head: &str, arguments: &[String], column: usize) -> Option<usize> {
    let mut start = head.len() + 1;
    for (at, argument) in arguments.iter().enumerate() {
        if (start..start + argument.len()).contains(&column) {
            return Some(at);
        }
        start += argument.len() + 1;
    }
    None
}

/// Leaves out an argument that the kernel does not know; with a variable that is none of this function's, all
/// of its fields, of which nothing is to be told.
fn drop_argument(arguments: &mut Vec<String>, at: usize, why: &str, absent: &mut Vec<String>) {
    let gone = arguments.remove(at);
    let variable = variable(&gone).map(str::to_owned);
    match variable.filter(|_| why.contains("variable")) {
        Some(name) => arguments.retain(|argument| variable_is_not(argument, &name)),
        None => absent.push(format!("{gone}: {}", why.trim_end_matches('.'))),
    }
}

fn variable_is_not(argument: &str, name: &str) -> bool {
    variable(argument) != Some(name)
}

/// The `p` of `p_slice=p->scx.slice` and of `p_cpus=+0(p->cpus_ptr):x64`.
fn variable(argument: &str) -> Option<&str> {
    let (_, place) = argument.split_once('=')?;
    let place = place.split_once('(').map_or(place, |(_, inner)| inner);
    place.split_once("->").map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[    2.99] trace_fprobe: error: This field is not found.\n  Command: f:ktstr/x \
                       enqueue_task_scx $arg* a=p->nosuch b=p->pid\n                                                     \
                       ^\n";

    #[test]
    fn a_refused_field_is_found_by_the_kernels_mark() {
        let head = "f:ktstr/x enqueue_task_scx";
        let arguments = ["$arg*", "a=p->nosuch", "b=p->pid"].map(str::to_owned);
        let definition = format!("{head} {}", arguments.join(" "));
        let marked = |word: &str| definition.find(word).unwrap();
        let log = format!(
            "[    1.0] trace_fprobe: error: Older.\n  Command: {definition}\n  {:>1$}\n{LOG}",
            "^",
            9 + 1
        );
        let refusal = Refusal::last(&log, &definition).unwrap();
        assert_eq!(refusal.words, "This field is not found.");
        assert_eq!(argument_at(head, &arguments, marked("nosuch")), Some(1));
        assert_eq!(argument_at(head, &arguments, marked("$arg*")), Some(0));
        assert_eq!(argument_at(head, &arguments, marked("p->pid")), Some(2));
        assert_eq!(argument_at(head, &arguments, marked("enqueue")), None, "the function itself");
        assert_eq!(argument_at(head, &arguments, 9000), None);
        assert_eq!(Refusal::last(&log, "f:another one"), None);
        assert_eq!(Refusal::last("", &definition), None);
    }

    #[test]
    fn an_absent_field_is_named_and_a_variable_that_is_not_there_takes_all_of_its_own() {
        let all =
            ["$arg*", "p_pid=p->pid", "p_cpus=+0(p->cpus_ptr):x64", "rq_cpu=rq->cpu"].map(str::to_owned);
        let (mut arguments, mut absent) = (all.to_vec(), Vec::new());
        drop_argument(&mut arguments, 2, "This field is not found.", &mut absent);
        assert_eq!(absent, ["p_cpus=+0(p->cpus_ptr):x64: This field is not found"]);
        assert_eq!(arguments, ["$arg*", "p_pid=p->pid", "rq_cpu=rq->cpu"]);
        let (mut arguments, mut absent) = (all.to_vec(), Vec::new());
        drop_argument(&mut arguments, 1, "This variable is not found at this probe point", &mut absent);
        assert_eq!((arguments.len(), absent.len()), (2, 0), "{arguments:?}");
    }

    #[test]
    fn a_kernel_without_tracing_is_said_to_be_one() {
        let mut probes = Probes { root: "/nonexistent".into(), cpus: 2, account: ProbeAccount::default() };
        let why = probes.begin(&Probing { stack: vec!["x".into()] }).unwrap_err();
        assert!(why.contains("available_filter_functions"), "{why}");
    }

    #[test]
    fn without_a_trigger_nothing_is_probed() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("available_filter_functions"), "enqueue_task_scx\nother [mod]\n").unwrap();
        let mut probes = Probes { root: root.path().into(), cpus: 2, account: ProbeAccount::default() };
        let why = probes.begin(&Probing { stack: vec!["other".into()] }).unwrap_err();
        assert!(why.starts_with("no trigger in this kernel"), "{why}");
        assert_eq!(probes.account.sites, []);
    }
}
