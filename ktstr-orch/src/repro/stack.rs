//! The kernel functions in the backtrace of a crash.
//!
//! The kernel writes it for the scheduler (`Backtrace:` in its dump, kernel/sched/ext.c `scx_dump_state()`) and
//! on the console after `BPF scheduler "…" disabled` (`scx_disable_workfn()`); the first is preferred. Programs,
//! trampolines and what every stack has are left away: they cannot be probed, or say nothing. The text
//! comes from the guest.

use ktstr_proto::repro::MAX_STACK;

/// Longest name that is taken for a function's.
const LONGEST: usize = 128;

/// How the names of functions begin that are not worth a probe: the exit's own, entries, the scheduler's way
/// to a switch, locks, programs and their trampolines, what dumps a stack.
const LEFT_AWAY: &[&str] = &[
    "__scx_exit",
    "scx_exit",
    "scx_vexit",
    "scx_claim_exit",
    "scx_finish_exit",
    "scx_error",
    "entry_",
    "do_syscall_",
    "x64_sys_",
    "__x64_sys_",
    "__do_sys_",
    "__se_sys_",
    "invoke_syscall",
    "el0",
    "el1",
    "asm_",
    "ret_from_",
    "kthread",
    "worker_thread",
    "process_one_work",
    "common_startup",
    "start_secondary",
    "start_kernel",
    "rest_init",
    "cpu_startup_entry",
    "do_idle",
    "_raw_spin",
    "__raw_spin",
    "__schedule",
    "schedule",
    "preempt_schedule",
    "bpf_prog_",
    "bpf_trampoline",
    "bpf__",
    "__bpf_",
    "dump_stack",
    "show_stack",
    "stack_trace",
    "handle_softirqs",
    "irq_exit",
    "__irq_exit",
    "sysvec_",
    "__sysvec_",
];

/// Functions of the backtrace, innermost first, each once.
pub fn crash_stack(scheduler: &[String], console: &[String]) -> Vec<String> {
    let after = |lines: &[String], mark: &str| {
        let start = lines.iter().rposition(|line| line.contains(mark))?;
        let frames = lines[start + 1..].iter().skip_while(|line| frame(line).is_none());
        let frames: Vec<&str> = frames.map_while(|line| frame(line)).collect();
        (!frames.is_empty()).then(|| frames.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let frames = after(scheduler, "Backtrace:").or_else(|| after(console, "sched_ext: BPF scheduler"));
    let mut stack: Vec<String> = Vec::new();
    for name in frames.unwrap_or_default() {
        let dull = LEFT_AWAY.iter().any(|start| name.starts_with(start));
        if !dull && !stack.contains(&name) && stack.len() < MAX_STACK {
            stack.push(name);
        }
    }
    stack
}

/// `   enqueue_task_scx+0x12/0x340`, with a time stamp before it or not, as the name.
fn frame(line: &str) -> Option<&str> {
    let word = line.split_whitespace().last()?;
    let (name, place) = word.split_once("+0x")?;
    let (offset, size) = place.split_once("/0x")?;
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let sane = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
    let named = !name.is_empty() && name.len() <= LONGEST && name.bytes().all(sane);
    (named && hex(offset) && hex(size)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_schedulers_backtrace_is_read_without_what_cannot_be_probed() {
        let log = lines(
            "a triggered exit kind 1025 on CPU 1:\n  scx_bpf_error (x)\n\nBacktrace:\n  __scx_exit+0x4f/0x70\n  \
             scx_bpf_error_bstr+0x91/0xd0\n  bpf_prog_36108b78e07ca228_check+0x121/0x136\n  \
             bpf__sched_ext_ops_dispatch+0x50/0xad\n  do_pick_task_scx+0x389/0xaa0\n  __schedule+0x65d/0x1070\n  \
             kdamond_fn+0x57b/0x2040\n  kthread+0xe4/0x120\n\nCPU states\n  other+0x1/0x2\n",
        );
        assert_eq!(crash_stack(&log, &[]), ["scx_bpf_error_bstr", "do_pick_task_scx", "kdamond_fn"]);
    }

    #[test]
    fn the_consoles_is_read_where_the_scheduler_says_nothing() {
        let console = lines(
            "[    6.0] sched_ext: BPF scheduler \"ktstr\" disabled (runtime error)\n\
             [    6.0] sched_ext: ktstr: it broke\n[    6.0]    ops_cpu_valid+0x1/0x20\n\
             [    6.0]    select_task_rq_scx+0x12/0x340\n[    7.1] reboot: Power down",
        );
        assert_eq!(crash_stack(&[], &console), ["ops_cpu_valid", "select_task_rq_scx"]);
    }

    #[test]
    fn whatever_a_guest_writes_is_bounded_and_clean() {
        let mut log = vec!["Backtrace:".to_owned()];
        log.extend((0..500).map(|n| format!("  f{n}+0x1/0x2")));
        assert_eq!(crash_stack(&log, &[]).len(), MAX_STACK);
        let log = lines("Backtrace:\n  rm;-rf+0x1/0x2\n  \n  ok+0xzz/0x1\n  +0x1/0x2\n");
        assert_eq!(crash_stack(&log, &[]), Vec::<String>::new());
        let log = lines(&format!("Backtrace:\n  {}+0x1/0x2", "a".repeat(500)));
        assert_eq!(crash_stack(&log, &[]), Vec::<String>::new());
    }
}
