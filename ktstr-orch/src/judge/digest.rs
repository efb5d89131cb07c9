//! What of a scheduler's log is shown: all of a short one; of one with the kernel's dump of sched_ext
//! (kernel/sched/ext.c, `scx_dump_state()`) why it was made, the task it was made for with its kernel
//! stack, and the CPU that task waits on. The whole log is in the run directory.

/// Lines that are shown at most.
pub const SHOWN: usize = 40;
/// Of the beginning of a dump, which says why it was made.
const WHY: usize = 12;
/// Of a task, with its stack.
const TASK: usize = 16;

/// At most [`SHOWN`] of `lines`.
pub fn digest(lines: &[String]) -> Vec<String> {
    if lines.len() <= SHOWN {
        return lines.to_vec();
    }
    digest_of_dump(lines).unwrap_or_else(|| lines[lines.len() - SHOWN..].to_vec())
}

fn digest_of_dump(lines: &[String]) -> Option<Vec<String>> {
    let said = |line: &String| !line.trim().is_empty();
    let start = lines.iter().position(|line| line.contains(" triggered exit kind "))?;
    let states = start + lines[start..].iter().position(|line| line.starts_with("CPU states"))?;
    let last = lines.iter().rev().find(|line| said(line))?;
    let own = start.saturating_sub(SHOWN - WHY - TASK - 6);
    let mut shown: Vec<String> = lines[own..start].to_vec();
    shown.extend(lines[start..states].iter().filter(|line| said(line)).take(WHY).cloned());
    let (dump, more) = (&lines[states..], lines.len() - states);
    if let Some(at) =
        stalled(&lines[start..states]).and_then(|task| dump.iter().position(|l| is_task(l, &task)))
    {
        let cpu = dump[..at].iter().rposition(|line| line.starts_with("CPU "));
        let of_cpu = cpu.into_iter().flat_map(|cpu| dump[cpu..at].iter().take(2));
        shown.extend(of_cpu.filter(|line| said(line)).cloned());
        shown.push(dump[at].clone());
        let rest = dump[at + 1..].iter().take_while(|line| !begins_another(line));
        shown.extend(rest.filter(|line| said(line)).take(TASK - 1).cloned());
    }
    shown.push(format!("… the dump goes on for {more} lines, which are in the run directory …"));
    shown.push(last.clone());
    Some(shown)
}

/// The task that the dump is about: `(worker[122] failed to run for 2.048s)`.
fn stalled(why: &[String]) -> Option<String> {
    why.iter().find_map(|line| {
        let before = line.split_once(" failed to run for ")?.0;
        let task = before.rsplit_once('(').map_or(before, |(_, task)| task).trim();
        (task.ends_with(']') && task.contains('[')).then(|| task.to_owned())
    })
}

/// ` *R worker[122] *root -2048ms`: state, name and how long it waits or has run.
fn is_task(line: &str, task: &str) -> bool {
    line.contains(&format!(" {task} ")) && line.trim_end().ends_with("ms")
}

fn begins_another(line: &str) -> bool {
    line.starts_with("CPU ")
        || line.starts_with("Event counters")
        || (line.trim_end().ends_with("ms") && line.contains("] "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(tasks: usize) -> Vec<String> {
        let mut text = "scx: attached\nscx: exit kind=stall\nworker[9] triggered exit kind 1026 on CPU 0:\n  \
                        runnable task stall (test[122] failed to run for 2.048s)\n\nBacktrace:\n  \
                        scx_watchdog_workfn+0x18e/0x240\n\nCPU states\n----------\n\nCPU 1   : nr_run=2\n          \
                        curr=swapper/0[0] class=idle_sched_class\n"
            .to_owned();
        for pid in (123 - tasks)..=122 {
            text.push_str(&format!(
                "\n  R test[{pid}] *root -2048ms\n      scx_state/flags=4/0xb\n\n    nanosleep_of_{pid}+0x41/0xa0\n"
            ));
        }
        text.push_str("\nEvent counters\n--------------\n  SCX_EV_X:  0\nscx: dump end\n");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_dump_is_shown_by_why_it_was_made_and_by_the_task_it_is_about() {
        let shown = digest(&dump(30));
        assert_eq!(
            shown,
            [
                "scx: attached",
                "scx: exit kind=stall",
                "worker[9] triggered exit kind 1026 on CPU 0:",
                "  runnable task stall (test[122] failed to run for 2.048s)",
                "Backtrace:",
                "  scx_watchdog_workfn+0x18e/0x240",
                "CPU 1   : nr_run=2",
                "          curr=swapper/0[0] class=idle_sched_class",
                "  R test[122] *root -2048ms",
                "      scx_state/flags=4/0xb",
                "    nanosleep_of_122+0x41/0xa0",
                "… the dump goes on for 160 lines, which are in the run directory …",
                "scx: dump end",
            ]
        );
    }

    #[test]
    fn a_short_log_is_shown_whole_and_a_long_one_by_its_end() {
        let short = dump(2);
        assert_eq!(digest(&short), short);
        let long: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
        assert_eq!(digest(&long), long[60..]);
        let cut: Vec<String> = dump(30).split_off(40);
        assert_eq!(digest(&cut).len(), SHOWN, "its beginning is lost");
        let broken: Vec<String> = std::iter::repeat_n("x triggered exit kind 1".to_owned(), 50).collect();
        assert!(digest(&broken).len() <= SHOWN);
        let mut wide = dump(30);
        wide.splice(0..2, (0..90).map(|n| format!("own {n}")));
        wide.splice(95..95, (0..60).map(|n| format!("  frame_{n}")));
        assert!(digest(&wide).len() <= SHOWN, "{}", digest(&wide).len());
    }
}
