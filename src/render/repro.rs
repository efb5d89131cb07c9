//! The section about the second run of a crash: what became of it, of its probes, and what they saw.

use ktstr_proto::repro::{AutoRepro, ProbeAccount, ProbeEnd, ProbeSite, Recurrence, Seen, SeenKind};

use super::{headline, line, printable, wrapped};

/// Events shown; the report's JSON has more of them.
const EVENTS: usize = 40;
/// Names shown of a list.
const NAMES: usize = 8;

/// The whole section.
pub fn section(out: &mut String, repro: &AutoRepro) {
    line(out, format_args!("--- auto-repro ---"));
    wrapped(out, "", &recurrence(repro));
    if repro.run.is_some() {
        accounting(out, repro);
        events(out, repro);
    }
    for note in &repro.notes {
        wrapped(out, "  note: ", &printable(note));
    }
    if repro.run.is_some() {
        line(out, format_args!("  its directory: {}", repro.run_dir.display()));
    }
}

fn recurrence(repro: &AutoRepro) -> String {
    let took = repro.took_ms as f64 / 1000.0;
    match &repro.recurrence {
        Recurrence::Again(cause) => {
            format!("it came again in the second VM ({took:.1} s): {}", printable(&headline(cause)))
        }
        Recurrence::Otherwise(cause) => {
            format!("the second VM ({took:.1} s) failed in another way: {}", printable(&headline(cause)))
        }
        Recurrence::NotAgain => format!(
            "did not come again in the second VM ({took:.1} s): look for a race; try --seeds. The failure above \
             stands"
        ),
        Recurrence::NotRun(why) if repro.run.is_some() => {
            format!("the second VM ({took:.1} s) came to no end of its own: {}", printable(why))
        }
        Recurrence::NotRun(why) => format!("nothing from a second VM: {}", printable(why)),
    }
}

/// Where the way from the crash to what is shown ends, if it does.
fn accounting(out: &mut String, repro: &AutoRepro) {
    wrapped(out, "  crash stack: ", &names(&repro.stack, "no kernel functions in a backtrace"));
    if let Some(account) = &repro.account {
        probes(out, account);
    }
    if let Some(end) = &repro.end {
        wrapped(out, "  recorded: ", &recorded(end));
    }
}

fn probes(out: &mut String, account: &ProbeAccount) {
    let (refused, attached): (Vec<&ProbeSite>, Vec<_>) =
        account.sites.iter().partition(|site| site.refused.is_some());
    let asked = account.sites.len() + account.unknown.len();
    match &account.impossible {
        Some(why) => wrapped(out, "  not probed: ", &printable(why)),
        None => {
            let text = format!(
                "{asked} places asked for, {} attached, {} refused, {} not in this kernel",
                attached.len(),
                refused.len(),
                account.unknown.len()
            );
            wrapped(out, "  probes: ", &text);
        }
    }
    if !account.triggers.is_empty() {
        wrapped(out, "  trigger: ", &format!("{}, an exit with an error", names(&account.triggers, "")));
    }
    for site in refused.iter().take(NAMES) {
        let why = site.refused.as_deref().unwrap_or_default();
        wrapped(out, "  refused: ", &format!("{}: {}", printable(&site.name), printable(why)));
    }
    if !account.unknown.is_empty() {
        wrapped(out, "  not in this kernel: ", &names(&account.unknown, ""));
    }
    let mut absent: Vec<String> = attached.iter().flat_map(|site| site.absent.iter().cloned()).collect();
    absent.sort();
    absent.dedup();
    if !absent.is_empty() {
        wrapped(out, "  fields left out: ", &names(&absent, ""));
    }
}

fn recorded(end: &ProbeEnd) -> String {
    let lost: Vec<String> = end
        .lost
        .iter()
        .enumerate()
        .filter(|(_, lost)| **lost > 0)
        .map(|(cpu, lost)| format!("cpu{cpu} {lost}"))
        .collect();
    let lost = if lost.is_empty() { "none".to_owned() } else { names(&lost, "") };
    let fired = if end.fired { "trigger fired" } else { "the trigger did not fire" };
    let trouble = end.trouble.as_ref().map_or(String::new(), |why| format!("; {}", printable(why)));
    format!("{} events, {} sent, lost: {lost}; {fired}{trouble}", end.recorded, end.sent)
}

fn events(out: &mut String, repro: &AutoRepro) {
    if repro.seen.is_empty() {
        return;
    }
    let whose = match (&repro.task, repro.cpu) {
        (Some(task), _) => printable(task),
        (None, Some(cpu)) => format!("cpu{cpu}, where the scheduler was sent away"),
        (None, None) => "the last CPU seen".into(),
    };
    let hidden = repro.seen.len().saturating_sub(EVENTS);
    let earlier = hidden as u64 + repro.left_out;
    let more = if earlier > 0 { format!(" ({earlier} earlier ones are not shown)") } else { String::new() };
    wrapped(out, "  ", &format!("events of {whose}{more}:"));
    for seen in &repro.seen[hidden..] {
        wrapped(out, "    ", &event(seen));
    }
}

/// Values that say that there is nothing to say, and what nobody asks of a switch.
fn is_quiet(name: &str, value: &str) -> bool {
    const RESTING: [(&str, &str); 4] =
        [("p.ddsp_dsq", "INVALID"), ("p.ddsp_flags", "0"), ("p.sticky", "none"), ("sticky_cpu", "none")];
    let address = value.strip_prefix("0xffff").is_some_and(|rest| rest.len() == 12);
    address || RESTING.contains(&(name, value)) || ["prio", "prev_prio", "next_prio"].contains(&name)
}

/// `-1.200ms cpu1 idle[0] → enqueue_task_scx p.task=w[7]`; addresses and what rests are in the JSON.
fn event(seen: &Seen) -> String {
    let arrow = match seen.kind {
        SeenKind::Entry => "→",
        SeenKind::Return => "←",
        SeenKind::Trace => "·",
        SeenKind::Exit => "✗",
    };
    let args = seen.args.iter().filter(|(name, value)| !is_quiet(name, value));
    let args: String = args.map(|(name, value)| format!(" {name}={value}")).collect();
    let (sign, us) = (if seen.at_us < 0 { '-' } else { '+' }, seen.at_us.unsigned_abs());
    let at = format!("{sign}{}.{:03}ms", us / 1000, us % 1000);
    printable(&format!("{at} cpu{} {} {arrow} {}{args}", seen.cpu, seen.task, seen.site))
}

/// The first of a list, and how many more.
fn names(list: &[String], none: &str) -> String {
    if list.is_empty() {
        return none.to_owned();
    }
    let shown: Vec<String> = list.iter().take(NAMES).map(|name| printable(name)).collect();
    let more = list.len().saturating_sub(NAMES);
    let more = if more > 0 { format!(", {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use ktstr_proto::{run::RunId, verdict::Cause};

    use super::*;

    fn told(repro: &AutoRepro) -> String {
        let mut text = String::new();
        section(&mut text, repro);
        assert!(text.lines().filter(|l| !l.contains("directory")).all(|l| l.chars().count() <= 80), "{text}");
        text
    }

    fn repro() -> AutoRepro {
        let seen = |at_us, kind| Seen {
            at_us,
            cpu: 1,
            task: "<idle>[0]".into(),
            site: "enqueue_task_scx".into(),
            kind,
            args: vec![
                ("rq".into(), "0xffff88803d832100".into()),
                ("p.task".into(), "work\u{1b}[31mer[7]".into()),
                ("p.cpus".into(), "0-3".into()),
            ],
        };
        let site = |name: &str, refused: Option<&str>| ProbeSite {
            name: name.into(),
            of_stack: false,
            absent: vec!["a=p->b: This field is not found".into()],
            refused: refused.map(Into::into),
        };
        AutoRepro {
            run: Some(RunId("r".into())),
            run_dir: "/r".into(),
            recurrence: Recurrence::Again(Cause::SchedulerError { reason: "it broke".into() }),
            took_ms: 12_345,
            stack: (0..20).map(|n| format!("function_{n}")).collect(),
            account: Some(ProbeAccount {
                sites: vec![site("enqueue_task_scx", None), site("x", Some("Invalid argument"))],
                unknown: vec!["balance_one".into()],
                triggers: vec!["scx_vexit".into()],
                impossible: None,
                buffer_kb: 9,
            }),
            end: Some(ProbeEnd {
                fired: true,
                recorded: 900,
                sent: 50,
                lost: vec![0, 7],
                ..ProbeEnd::default()
            }),
            task: None,
            cpu: Some(1),
            seen: (0..50).map(|n| seen(n - 49, SeenKind::Entry)).chain([seen(0, SeenKind::Exit)]).collect(),
            left_out: 3,
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn the_section_tells_every_stage_and_the_events() {
        let text = told(&repro());
        for part in [
            "--- auto-repro ---\nit came again in the second VM (12.3 s): the scheduler failed",
            "crash stack: function_0, ",
            "12 more",
            "3 places asked for, 1 attached, 1 refused, 1 not in this kernel",
            "trigger: scx_vexit",
            "refused: x: Invalid argument",
            "fields left out: a=p->b: This field is not found\n",
            "900 events, 50 sent, lost: cpu1 7; trigger fired",
            "events of cpu1, where the scheduler was sent away (14 earlier ones are not",
            "+0.000ms cpu1 <idle>[0] ✗ enqueue_task_scx",
            "note: a note",
            "its directory: /r",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains("0xffff8880"), "{text}");
    }

    #[test]
    fn what_did_not_come_again_or_was_not_probed_says_so() {
        let text = told(&AutoRepro { recurrence: Recurrence::NotAgain, seen: Vec::new(), ..repro() });
        assert!(text.contains("did not come again in the second VM"), "{text}");
        assert!(text.contains("race; try --seeds"), "{text}");
        let account =
            ProbeAccount { impossible: Some("no trigger in this kernel".into()), ..Default::default() };
        let text = told(&AutoRepro { account: Some(account), end: None, seen: Vec::new(), ..repro() });
        assert!(text.contains("not probed: no trigger in this kernel"), "{text}");
        let died = Recurrence::NotRun("ktstr-vmm was killed by signal 9".into());
        let text = told(&AutoRepro { recurrence: died, ..repro() });
        assert!(text.contains("came to no end of its own: ktstr-vmm was killed"), "{text}");
        let text = told(&AutoRepro::not_run("no room"));
        assert_eq!(text, "--- auto-repro ---\nnothing from a second VM: no room\n");
    }
}
