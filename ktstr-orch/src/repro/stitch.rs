//! From what the probes saw to what is told of it: the events of the task that the kernel blames, or else of
//! the CPU on which the scheduler was sent away, in order of time, up to that moment.
//!
//! Everything comes from the guest: lengths are bounded, control characters taken out, and a number that
//! does not fit is a number that is not understood.

use ktstr_proto::repro::{
    MAX_EVENT_TEXT, MAX_STACK, ProbeAccount, ProbeEnd, ProbeEvent, ProbeSite, Seen, SeenKind, blamed,
};

use super::decode;

/// Events that are told; the guest's words of all that were sent are in the second run's `guest.jsonl`.
pub const TOLD: usize = 200;
/// Places of which an account tells.
const SITES: usize = MAX_STACK + 100;
/// CPUs of which an account tells.
const CPUS: usize = 4096;
/// Longest word that is taken.
const WORD: usize = 200;

/// What concerns the crash.
#[derive(Debug, Default, PartialEq)]
pub struct Stitched {
    /// The task that the kernel blames.
    pub task: Option<String>,
    /// Where the scheduler was sent away.
    pub cpu: Option<u32>,
    /// The events.
    pub seen: Vec<Seen>,
    /// How many more there were.
    pub left_out: u64,
    /// Remarks.
    pub notes: Vec<String>,
}

/// Chooses; `reason` is the kernel's.
pub fn stitch(events: &[ProbeEvent], triggers: &[String], reason: &str) -> Stitched {
    let mut events: Vec<&ProbeEvent> = events.iter().collect();
    events.sort_by_key(|event| event.t_ns);
    let is_exit = |event: &ProbeEvent| triggers.contains(&event.site);
    let exit = events.iter().rposition(|event| is_exit(event));
    // What came after it is the scheduler's removal.
    events.truncate(exit.map_or(events.len(), |at| at + 1));
    let Some(last) = events.last().copied() else { return Stitched::default() };
    let cpu = exit.map(|_| last.cpu);
    let blamed = blamed(reason);
    let mut notes = Vec::new();
    let of_task = |pid: u32| -> Vec<&ProbeEvent> {
        events
            .iter()
            .copied()
            .filter(|event| event.concerns(pid) || exit.is_some() && *event == last)
            .collect()
    };
    let of_cpu = || events.iter().copied().filter(|event| event.cpu == last.cpu).collect::<Vec<_>>();
    let chosen = match &blamed {
        Some((name, pid)) => {
            let of_task = of_task(*pid);
            let own = of_task.len() - usize::from(exit.is_some() && !last.concerns(*pid));
            if own == 0 {
                let back_ms = (last.t_ns - events[0].t_ns) / 1_000_000;
                notes.push(format!(
                    "no event of {name}[{pid}] is among those sent, which go back {back_ms} ms: these are of cpu{}",
                    last.cpu
                ));
                of_cpu()
            } else {
                of_task
            }
        }
        None => of_cpu(),
    };
    let left_out = chosen.len().saturating_sub(TOLD);
    let seen = chosen[left_out..].iter().map(|event| told(event, last.t_ns, is_exit(event))).collect();
    Stitched {
        task: blamed.map(|(name, pid)| format!("{name}[{pid}]")),
        cpu,
        seen,
        left_out: left_out as u64,
        notes,
    }
}

/// How tasks stand in events: their id, their name, and what both are told as.
const TASKS: [(&str, &str, &str); 4] = [
    ("p_pid", "p_comm", "p.task"),
    ("pid", "comm", "task"),
    ("prev_pid", "prev_comm", "prev"),
    ("next_pid", "next_comm", "next"),
];

/// `a=1 b=some words c="x"`, each name before a `=` and after a blank.
fn words(text: &str) -> Vec<(&str, &str)> {
    let named = |word: &str| {
        let name = word.split_once('=').map(|(name, _)| name).unwrap_or_default();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.bytes().all(plain)
    };
    // Where words with a name begin.
    let mut starts: Vec<usize> = Vec::new();
    let mut at = 0;
    for word in text.split(' ') {
        if named(word) {
            starts.push(at);
        }
        at += word.len() + 1;
    }
    let ends = starts.iter().skip(1).copied().chain([text.len() + 1]);
    let pieces = starts.iter().zip(ends).map(|(start, end)| &text[*start..end - 1]);
    pieces
        .filter_map(|piece| piece.split_once('='))
        .map(|(name, value)| (name, value.trim().trim_end_matches("==>").trim().trim_matches('"')))
        .collect()
}

/// An event as it is told, at a time before `exit_ns`.
fn told(event: &ProbeEvent, exit_ns: u64, is_exit: bool) -> Seen {
    let (site, kind) = match event.site.strip_suffix("__return") {
        _ if is_exit => (event.site.as_str(), SeenKind::Exit),
        Some(function) => (function, SeenKind::Return),
        None if event.text.starts_with('(') => (event.site.as_str(), SeenKind::Entry),
        None => (event.site.as_str(), SeenKind::Trace),
    };
    let nanos = i64::try_from(event.t_ns).unwrap_or(i64::MAX).saturating_sub(exit_ns.cast_signed().max(0));
    Seen {
        at_us: nanos / 1000,
        cpu: event.cpu,
        task: format!("{}[{}]", event.comm, event.pid),
        site: site.to_owned(),
        kind,
        args: arguments(&event.text),
    }
}

/// Arguments and fields: a task's name and id as one, its mask as one, values by their names.
fn arguments(text: &str) -> Vec<(String, String)> {
    let words = words(text);
    let find = |name: &str| words.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let mut args: Vec<(String, String)> = Vec::new();
    for (name, value) in &words {
        match *name {
            name if TASKS.iter().any(|(_, comm, _)| *comm == name) => {}
            name if TASKS.iter().any(|(id, ..)| *id == name) => {
                let told = TASKS.iter().filter(|(id, ..)| *id == name);
                args.extend(told.map(|(_, comm, told)| {
                    ((*told).to_owned(), format!("{}[{value}]", find(comm).unwrap_or("?")))
                }));
            }
            more if more.strip_prefix("p_cpus").is_some_and(|n| n.parse::<u32>().is_ok()) => {}
            "p_cpus" => {
                let more = (1..).map_while(|n| find(&format!("p_cpus{n}")));
                let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
                let mask: Option<Vec<u64>> = std::iter::once(*value).chain(more).map(hex).collect();
                let told = mask.map_or_else(|| (*value).to_owned(), |mask| decode::cpus(&mask));
                args.push(("p.cpus".into(), told));
            }
            name => {
                let of = [("p_", "p"), ("rq_", "rq"), ("q_", "dsq"), ("args_", "args")];
                let field = of
                    .iter()
                    .find_map(|(start, of)| name.strip_prefix(start).map(|field| format!("{of}.{field}")));
                let name = field.unwrap_or_else(|| name.to_owned());
                let known = name.strip_prefix("args.").unwrap_or(&name);
                let told = decode::value(known, value);
                args.push((name, told));
            }
        }
    }
    // Who it is about, what the function was given, what was read beside it.
    args.sort_by_key(|(name, _)| if name == "p.task" { 0 } else { 1 + usize::from(name.contains('.')) });
    args
}

/// A text of the guest's without what a terminal would act upon, and not longer than `limit` characters.
fn clean(text: &str, limit: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(limit).collect()
}

/// An event, bounded.
pub fn plain(event: &ProbeEvent) -> ProbeEvent {
    ProbeEvent {
        comm: clean(&event.comm, 32),
        site: clean(&event.site, WORD),
        text: clean(&event.text, MAX_EVENT_TEXT),
        ..event.clone()
    }
}

/// An account, bounded.
pub fn bounded(account: &ProbeAccount) -> ProbeAccount {
    let words = |list: &[String]| list.iter().take(SITES).map(|text| clean(text, WORD)).collect::<Vec<_>>();
    let site = |site: &ProbeSite| ProbeSite {
        name: clean(&site.name, WORD),
        of_stack: site.of_stack,
        absent: words(&site.absent),
        refused: site.refused.as_ref().map(|why| clean(why, WORD)),
    };
    ProbeAccount {
        sites: account.sites.iter().take(SITES).map(site).collect(),
        unknown: words(&account.unknown),
        triggers: words(&account.triggers),
        impossible: account.impossible.as_ref().map(|why| clean(why, WORD)),
        buffer_kb: account.buffer_kb,
    }
}

/// A sum, bounded.
pub fn bounded_end(end: &ProbeEnd) -> ProbeEnd {
    let lost = end.lost.iter().take(CPUS).copied().collect();
    ProbeEnd { lost, trouble: end.trouble.as_ref().map(|why| clean(why, WORD)), ..end.clone() }
}
