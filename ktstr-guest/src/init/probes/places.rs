//! Where probes are set and what is read there.
//!
//! Functions have other names in other kernels: of each group those are probed that the kernel has. The
//! fields are those of `struct task_struct`, `struct sched_ext_entity`, `struct rq` and
//! `struct scx_dispatch_q`.

/// By which the kernel sends a scheduler away, with the kind of exit as an argument `kind`: of each group the first
/// that there is. `scx_ops_exit_kind` up to 6.15; since 7.3 what the scheduler itself calls an error goes by a way
/// of its own.
pub const TRIGGERS: &[&[&str]] =
    &[&["scx_vexit", "scx_exit", "__scx_exit", "scx_ops_exit_kind"], &["scx_exit_bstr"]];

/// What is read beside a function's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fields {
    /// Nothing.
    None,
    /// Of the task which it is and what is left of its slice.
    Brief,
    /// Of the task what a scheduler decides by, and of the queues which they are.
    Full,
    /// As `Full`, and what comes packed in `args` (`struct scx_bpf_dsq_insert_vtime_args`).
    Packed,
}

impl Fields {
    /// As the kernel reads them.
    pub fn arguments(self, cpus: u32) -> Vec<String> {
        let names = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        match self {
            Self::None => Vec::new(),
            Self::Brief => names(&["p_pid=p->pid", "p_comm=p->comm:string", "p_slice=p->scx.slice"]),
            Self::Full => {
                let mut all = Self::Brief.arguments(cpus);
                all.push("p_cpus=+0(p->cpus_ptr):x64".into());
                let words = cpus.div_ceil(64).clamp(1, MASK_WORDS);
                all.extend((1..words).map(|word| format!("p_cpus{word}=+{}(p->cpus_ptr):x64", word * 8)));
                all.extend(names(&[
                    "p_vtime=p->scx.dsq_vtime",
                    "p_weight=p->scx.weight",
                    "p_ddsp_dsq=p->scx.ddsp_dsq_id",
                    "p_ddsp_flags=p->scx.ddsp_enq_flags",
                    "p_sticky=p->scx.sticky_cpu",
                    "p_scx_flags=p->scx.flags:x32",
                    "rq_cpu=rq->cpu",
                    "q_id=dsq->id",
                    "q_nr=dsq->nr",
                ]));
                all
            }
            Self::Packed => {
                let mut all = Self::Full.arguments(cpus);
                all.extend(names(&[
                    "args_dsq_id=args->dsq_id",
                    "args_slice=args->slice",
                    "args_vtime=args->vtime",
                    "args_enq_flags=args->enq_flags",
                ]));
                all
            }
        }
    }
}

/// Words of a cpumask that are read at most.
const MASK_WORDS: u32 = 4;

/// Functions that do the same in different kernels.
#[derive(Debug)]
pub struct Functions {
    /// Their names.
    pub functions: &'static [&'static str],
    /// What is read there.
    pub fields: Fields,
    /// Whether what they return is read, too.
    pub returns: bool,
}

const fn functions(functions: &'static [&'static str], fields: Fields, returns: bool) -> Functions {
    Functions { functions, fields, returns }
}

const GROUPS: &[Functions] = &[
    // Who calls the scheduler's callbacks: select_cpu, enqueue, dequeue, dispatch, running, stopping.
    functions(&["select_task_rq_scx"], Fields::Full, true),
    functions(&["enqueue_task_scx"], Fields::Full, false),
    functions(&["do_enqueue_task", "scx_do_enqueue_task"], Fields::Brief, false),
    functions(&["dequeue_task_scx"], Fields::Brief, false),
    functions(&["balance_one", "balance_scx", "do_pick_task_scx"], Fields::None, false),
    functions(&["set_next_task_scx"], Fields::Brief, false),
    functions(&["put_prev_task_scx"], Fields::Brief, false),
    // What its callbacks call.
    functions(&["scx_bpf_dsq_insert", "scx_bpf_dsq_insert___v2", "scx_bpf_dispatch"], Fields::Full, false),
    functions(
        &["scx_bpf_dsq_insert_vtime", "__scx_bpf_dsq_insert_vtime", "scx_bpf_dispatch_vtime"],
        Fields::Packed,
        false,
    ),
    functions(
        &["scx_bpf_dsq_move_to_local", "scx_bpf_dsq_move_to_local___v2", "scx_bpf_consume"],
        Fields::None,
        true,
    ),
    functions(&["scx_bpf_kick_cpu"], Fields::None, false),
    functions(&["scx_bpf_error_bstr", "scx_bpf_exit_bstr"], Fields::None, false),
    // What becomes of it.
    functions(&["dispatch_enqueue", "scx_dispatch_enqueue"], Fields::Full, false),
    functions(&["dispatch_to_local_dsq"], Fields::Brief, false),
];

/// All functions beside the triggers and the crash stack.
pub fn groups() -> impl Iterator<Item = &'static Functions> {
    GROUPS.iter()
}

/// The kernel's own events beside them.
pub fn tracepoints() -> &'static [&'static str] {
    &["sched:sched_switch", "sched:sched_wakeup", "sched:sched_wakeup_new", "sched:sched_migrate_task"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_a_word_for_every_64_cpus() {
        let masks = |cpus| {
            let all = Fields::Full.arguments(cpus);
            all.into_iter().filter(|argument| argument.starts_with("p_cpus")).collect::<Vec<_>>()
        };
        assert_eq!(masks(64), ["p_cpus=+0(p->cpus_ptr):x64"]);
        assert_eq!(masks(65)[1], "p_cpus1=+8(p->cpus_ptr):x64");
        assert_eq!(masks(4096).len(), MASK_WORDS as usize);
    }

    #[test]
    fn no_function_is_in_two_groups_and_none_is_a_trigger() {
        let mut all: Vec<&str> = groups().flat_map(|group| group.functions).copied().collect();
        all.extend(TRIGGERS.concat());
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
