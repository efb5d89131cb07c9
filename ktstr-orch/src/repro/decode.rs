//! Numbers of sched_ext as the names that the kernel gives them (include/linux/sched/ext.h,
//! kernel/sched/ext_internal.h). Only what has meant the same in every kernel with sched_ext is named; other
//! bits stay numbers.

use crate::host::topology::{CpuSet, format_list};

const BUILTIN: u64 = 1 << 63;
const LOCAL_ON: u64 = 1 << 62;

const ENQ: &[(u64, &str)] = &[
    (1, "WAKEUP"),
    (1 << 32, "PREEMPT"),
    (1 << 40, "REENQ"),
    (1 << 41, "LAST"),
    (1 << 56, "CLEAR_OPSS"),
    (1 << 57, "DSQ_PRIQ"),
];
const TASK: &[(u64, &str)] = &[(1, "QUEUED"), (1 << 2, "RESET_RUNNABLE_AT"), (1 << 3, "DEQD_FOR_SLEEP")];

/// A value by the name of its argument or field; what is not known stays as the kernel wrote it.
pub fn value(name: &str, text: &str) -> String {
    let Some(number) = number(text) else { return text.to_owned() };
    match name {
        "dsq_id" | "p.ddsp_dsq" | "dsq.id" => dsq(number),
        "enq_flags" | "p.ddsp_flags" | "core_enq_flags" => flags(number, ENQ),
        "p.scx_flags" => flags(number, TASK),
        "p.cpus" => cpus(&[number]),
        "kind" => exit_kind(number).map_or_else(|| text.to_owned(), str::to_owned),
        "slice" | "p.slice" if number == u64::MAX => "INF".into(),
        "slice" | "p.slice" => format!("{}us", number / 1000),
        "p.sticky" | "sticky_cpu" if text == "-1" => "none".into(),
        _ => text.to_owned(),
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None if text.starts_with('-') => text.parse::<i64>().ok().map(i64::cast_unsigned),
        None => text.parse().ok(),
    }
}

/// `SCX_DSQ_…`, or the number of a queue of the scheduler's own.
fn dsq(id: u64) -> String {
    match id {
        _ if id & BUILTIN == 0 => format!("{id:#x}"),
        _ if id & LOCAL_ON != 0 => format!("LOCAL_ON|{}", id & 0xffff_ffff),
        _ => match id & !BUILTIN {
            0 => "INVALID".into(),
            1 => "GLOBAL".into(),
            2 => "LOCAL".into(),
            3 => "BYPASS".into(),
            other => format!("BUILTIN|{other:#x}"),
        },
    }
}

fn flags(bits: u64, names: &[(u64, &str)]) -> String {
    let mut rest = bits;
    let mut words: Vec<String> = Vec::new();
    for (bit, name) in names.iter().filter(|(bit, _)| bits & bit != 0) {
        words.push((*name).to_owned());
        rest &= !bit;
    }
    if rest != 0 || words.is_empty() {
        words.push(if rest == 0 { "0".into() } else { format!("{rest:#x}") });
    }
    words.join("|")
}

/// Words of a cpumask, lowest first, as ranges.
pub fn cpus(words: &[u64]) -> String {
    let is_set = |cpu: &u32| words[*cpu as usize / 64] & (1 << (cpu % 64)) != 0;
    let set: CpuSet = (0..words.len() as u32 * 64).filter(is_set).collect();
    if set.is_empty() { "none".into() } else { format_list(&set) }
}

/// `SCX_EXIT_…`.
fn exit_kind(kind: u64) -> Option<&'static str> {
    Some(match kind {
        64 => "UNREG",
        65 => "UNREG_BPF",
        66 => "UNREG_KERN",
        67 => "SYSRQ",
        1024 => "ERROR",
        1025 => "ERROR_BPF",
        1026 => "ERROR_STALL",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_flags_masks_and_kinds_have_their_names() {
        for (name, text, told) in [
            ("dsq_id", "9223372036854775810", "LOCAL"),
            ("dsq_id", "9223372036854775809", "GLOBAL"),
            ("p.ddsp_dsq", "9223372036854775808", "INVALID"),
            ("dsq_id", "0xc000000000000003", "LOCAL_ON|3"),
            ("dsq.id", "27508", "0x6b74"),
            ("enq_flags", "9", "WAKEUP|0x8"),
            ("enq_flags", "4294967297", "WAKEUP|PREEMPT"),
            ("enq_flags", "0", "0"),
            ("p.scx_flags", "0xd", "QUEUED|RESET_RUNNABLE_AT|DEQD_FOR_SLEEP"),
            ("p.cpus", "0xf", "0-3"),
            ("p.cpus", "0x8000000000000005", "0,2,63"),
            ("p.cpus", "0x0", "none"),
            ("kind", "1026", "ERROR_STALL"),
            ("kind", "4711", "4711"),
            ("slice", "20000000", "20000us"),
            ("p.slice", "18446744073709551615", "INF"),
            ("sticky_cpu", "-1", "none"),
            ("prev_cpu", "-1", "-1"),
            ("dsq_id", "(fault)", "(fault)"),
        ] {
            assert_eq!(value(name, text), told, "{name}={text}");
        }
        assert_eq!(cpus(&[1 << 63, 3]), "63-65");
        assert_eq!(cpus(&[u64::MAX, u64::MAX]), "0-127");
    }
}
