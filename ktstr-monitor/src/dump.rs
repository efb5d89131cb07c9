//! A capture as text for people: what matters for a scheduler first, everything after.

use std::fmt::Write as _;

use ktstr_proto::link::chain;

use crate::kernel::cpu::Cpu;
use crate::kernel::dsq::{Dsq, DsqKind};
use crate::kernel::state::KernelState;
use crate::kernel::task::Task;
use crate::kernel::{Gap, Reading};
use crate::node::Node;

/// The whole dump. Every list is complete, or says why it is not.
pub fn text(why: &str, state: &KernelState) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "capture: {why}\nkernel: {}", state.version.trim());
    let hz = show(&state.hz);
    let _ =
        writeln!(out, "jiffies: {} (HZ {hz}), read in {} us", show(&state.jiffies), state.took.as_micros());
    heading(&mut out, "sched_ext");
    let scx = state.scx.node();
    for name in ["state", "bypass_depth", "watchdog_timeout_jiffies", "nr_rejected"] {
        let _ = writeln!(out, "{name}: {}", scx.get(name).map_or(String::new(), Node::leaf));
    }
    for name in ["scx_sched", "events"] {
        let _ = writeln!(out, "{name}: {}", scx.get(name).map_or(String::new(), Node::text).trim_end());
    }
    exit(&mut out, &scx);
    waiting(&mut out, state);
    heading(&mut out, "CPUs");
    for cpu in &state.cpus {
        cpu_line(&mut out, state, cpu);
    }
    heading(&mut out, "dispatch queues");
    for dsq in &state.dsqs.items {
        dsq_lines(&mut out, state, dsq);
    }
    cut(&mut out, state.dsqs.cut.as_ref());
    heading(&mut out, "control groups");
    for group in &state.cgroups.items {
        let usage = group.usage_ns.as_ref().map_or_else(why_not, |ns| format!("{} us", ns / 1000));
        let _ = writeln!(out, "{}: usage {usage}", show(&group.path));
    }
    cut(&mut out, state.cgroups.cut.as_ref());
    tasks(&mut out, state);
    out
}

fn heading(out: &mut String, title: &str) {
    let _ = writeln!(out, "\n== {title} ==");
}

fn cut(out: &mut String, cut: Option<&crate::kernel::list::Cut>) {
    if let Some(cut) = cut {
        let _ = writeln!(out, "(incomplete: {})", chain(cut));
    }
}

fn show<T: std::fmt::Display>(reading: &Reading<T>) -> String {
    reading.as_ref().map_or_else(why_not, T::to_string)
}

fn why_not(gap: &Gap) -> String {
    Node::gap(gap).leaf()
}

fn exit(out: &mut String, scx: &Node) {
    let Some(exit @ Node::Map(_)) = scx.get("exit") else { return };
    let _ = writeln!(out, "exit:");
    for name in ["kind", "exit_code", "exit_cpu", "reason", "msg"] {
        let _ = writeln!(out, "  {name}: {}", exit.get(name).map_or(String::new(), Node::leaf));
    }
    if let Some(Node::List(lines)) = exit.get("backtrace") {
        for line in lines {
            let _ = writeln!(out, "    {}", line.leaf());
        }
    }
    if let Some(Node::Text(dump)) = exit.get("dump") {
        let _ = writeln!(out, "  the kernel's own dump:\n{dump}");
    }
}

/// Tasks that are runnable and do not run, longest waiting first.
fn waiting(out: &mut String, state: &KernelState) {
    heading(out, "runnable tasks that wait");
    let age = |task: &Task| task.runnable_age.clone().ok().flatten();
    let mut waiting: Vec<_> = state.tasks.items.iter().filter_map(|task| Some((age(task)?, task))).collect();
    waiting.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
    for (age, task) in &waiting {
        let ms = state.jiffies_to_ms(*age).map_or_else(|_| format!("{age} jiffies"), |ms| format!("{ms} ms"));
        let _ = writeln!(out, "{ms:>10}  {}", task_line(task));
    }
    if waiting.is_empty() {
        let _ = writeln!(out, "none");
    }
}

fn name(state: &KernelState, at: crate::addr::Kva) -> String {
    match state.task_at(at) {
        Some(task) => format!("{}[{}]", show(&task.copy.comm), show(&task.copy.pid)),
        None => format!("task at {at}"),
    }
}

fn cpu_line(out: &mut String, state: &KernelState, cpu: &Cpu) {
    let rq = match &cpu.rq {
        Ok(rq) => rq,
        Err(gap) => {
            let _ = writeln!(out, "CPU {}: {}", cpu.cpu, why_not(gap));
            return;
        }
    };
    let curr = rq.curr.as_ref().map_or_else(why_not, |at| name(state, *at));
    let flags = rq.scx_flags.as_ref().map_or_else(why_not, |flags| format!("{flags:#x}"));
    let _ = writeln!(
        out,
        "CPU {}: running {curr}; nr_running {} (cfs {}, rt {}, dl {}, scx {}), local DSQ {}, scx flags {flags}, clock {}",
        cpu.cpu,
        show(&rq.nr_running),
        show(&rq.cfs_h_nr_queued),
        show(&rq.rt_nr_running),
        show(&rq.dl_nr_running),
        show(&rq.scx_nr_running),
        show(&rq.scx_local_nr),
        show(&rq.clock),
    );
    let _ = writeln!(
        out,
        "    util_avg of 1024: cfs {}, rt {}, dl {}, irq {}",
        show(&rq.cfs_util_avg),
        show(&rq.avg_rt_util),
        show(&rq.avg_dl_util),
        show(&rq.avg_irq_util),
    );
    for at in &cpu.runnable.items {
        let _ =
            writeln!(out, "    runnable: {}", state.task_at(*at).map_or_else(|| at.to_string(), task_line));
    }
    cut(out, cpu.runnable.cut.as_ref());
    for domain in &cpu.domains.items {
        let kind = domain.name.as_ref().map_or_else(why_not, |name| name.clone().unwrap_or_default());
        let _ = writeln!(out, "    domain {kind}: CPUs {}", show(&domain.span));
    }
    cut(out, cpu.domains.cut.as_ref());
}

fn dsq_lines(out: &mut String, state: &KernelState, dsq: &Dsq) {
    let kind = match dsq.kind {
        DsqKind::Local(cpu) => format!("local of CPU {cpu}"),
        DsqKind::Bypass(cpu) => format!("bypass of CPU {cpu}"),
        DsqKind::Reject(cpu) => format!("rejected on CPU {cpu}"),
        DsqKind::Rescue(cpu) => format!("rescue of CPU {cpu}"),
        DsqKind::Global(node) => format!("global of node {node}"),
        DsqKind::User => "created by the scheduler".into(),
    };
    let (id, nr) = match &dsq.copy {
        Ok(copy) => (copy.id.as_ref().map_or_else(why_not, |id| format!("{id:#x}")), show(&copy.nr)),
        Err(gap) => (why_not(gap), String::new()),
    };
    let amid = match dsq.is_being_changed() {
        true => format!(", {} listed: a CPU stood while it changed the queue", dsq.queued.items.len()),
        false => String::new(),
    };
    let _ = writeln!(out, "{id} ({kind}): {nr} tasks{amid}");
    for at in &dsq.queued.items {
        let _ = writeln!(out, "    {}", state.task_at(*at).map_or_else(|| at.to_string(), task_line));
    }
    cut(out, dsq.queued.cut.as_ref());
}

fn task_line(task: &Task) -> String {
    let copy = &task.copy;
    let dsq = task.dsq.as_ref().map_or_else(why_not, |id| id.map_or("-".into(), |id| format!("{id:#x}")));
    format!(
        "{}[{}] class {} CPU {} allowed {} weight {} slice {} vtime {} dsq {dsq} cgroup {}",
        show(&copy.comm),
        show(&copy.pid),
        show(&task.class),
        show(&copy.cpu),
        show(&task.allowed),
        show(&copy.scx_weight),
        show(&copy.scx_slice),
        show(&copy.scx_dsq_vtime),
        show(&task.cgroup),
    )
}

fn tasks(out: &mut String, state: &KernelState) {
    heading(out, &format!("all {} tasks", state.tasks.items.len()));
    for task in &state.tasks.items {
        let _ = writeln!(
            out,
            "{} state {} on_cpu {} prio {} ran {} ns, waited {} ns in {} turns",
            task_line(task),
            task.copy.state.as_ref().map_or_else(why_not, |state| format!("{state:#x}")),
            show(&task.copy.on_cpu),
            show(&task.copy.prio),
            show(&task.copy.sum_exec_runtime),
            show(&task.copy.run_delay),
            show(&task.copy.pcount),
        );
    }
    for gap in &state.unreadable_tasks {
        let _ = writeln!(out, "one more: {}", why_not(gap));
    }
    cut(out, state.tasks.cut.as_ref());
}
