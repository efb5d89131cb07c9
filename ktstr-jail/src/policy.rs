//! System call filters: the files in `policy/`, read, checked and compiled.
//!
//! A role's policy is `common.json` plus its own files. Each rule has a reason. `allow` lists what the
//! process may do; `refuse` lists calls that libraries make and can live without, which get an error
//! number; anything else kills the process. A policy that allows nothing is an error, never a filter
//! that lets everything pass. `vmm-guest.json` is for threads of the VMM that work for the guest: it stands
//! before the process's, so what that one refuses passes here.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{BpfProgram, TargetArch};
use serde::Deserialize;
use serde_json::{Value as Json, json};

/// Whose filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The process that owns the machine, after its emulator, if any, was started.
    Vmm,
    /// The process that reads guest memory.
    Monitor,
    /// The emulator, including its start.
    Emulator,
    /// The process that serves disks and networks.
    Device,
    /// The emulator of a machine with networks, which connects to their servers.
    EmulatorWithNetworks,
}

const GUEST_THREADS: [(&str, &str); 1] = [("vmm-guest.json", include_str!("../policy/vmm-guest.json"))];

impl Role {
    /// Each role.
    pub const ALL: [Role; 5] =
        [Role::Vmm, Role::Monitor, Role::Emulator, Role::Device, Role::EmulatorWithNetworks];

    fn files(self) -> Vec<(&'static str, &'static str)> {
        let common = ("common.json", include_str!("../policy/common.json"));
        let emulator = ("emulator.json", include_str!("../policy/emulator.json"));
        let networks = ("emulator-networks.json", include_str!("../policy/emulator-networks.json"));
        match self {
            Role::Vmm => vec![common, ("vmm.json", include_str!("../policy/vmm.json"))],
            Role::Monitor => vec![common, ("monitor.json", include_str!("../policy/monitor.json"))],
            Role::Emulator => vec![common, emulator],
            Role::Device => vec![common, ("device.json", include_str!("../policy/device.json"))],
            Role::EmulatorWithNetworks => vec![common, emulator, networks],
        }
    }
}

/// What is wrong with a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not the format.
    #[error("read policy/{file}")]
    Parse {
        /// The file.
        file: &'static str,
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
    /// A rule without a reason.
    #[error("policy/{file}: the rule for {syscall} has no reason")]
    NoReason {
        /// The file.
        file: &'static str,
        /// The rule's system call.
        syscall: String,
    },
    /// A system call both allowed and refused, or allowed with and without conditions.
    #[error("policy/{file}: {syscall} has contradicting rules")]
    Contradiction {
        /// The file with the later rule.
        file: &'static str,
        /// The system call.
        syscall: String,
    },
    /// An error number that is not known by this name.
    #[error("policy/{file}: {syscall} is refused with the unknown error {errno}")]
    UnknownErrno {
        /// The file.
        file: &'static str,
        /// The system call.
        syscall: String,
        /// The name.
        errno: String,
    },
    /// A filter that lists nothing.
    #[error("the policy of {role:?} allows no system call on this architecture")]
    Empty {
        /// Whose.
        role: Role,
    },
    /// An architecture without filters.
    #[error("no system call filter for the architecture {arch}")]
    Arch {
        /// Its name.
        arch: &'static str,
    },
    /// The compiler's objection, such as an unknown system call.
    #[error("compile the filter of {role:?}")]
    Compile {
        /// Whose.
        role: Role,
        /// The objection.
        #[source]
        source: seccompiler::Error,
    },
}

/// Numbers that a rule names and only the process to be confined knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnNumbers {
    /// Its process id, as it sees it.
    pub pid: u32,
    /// The descriptor it will execute.
    pub exec_fd: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    allow: Vec<Rule>,
    #[serde(default)]
    refuse: Vec<Refusal>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    syscall: String,
    reason: String,
    /// Absent means every architecture.
    arch: Option<String>,
    /// All must hold; several rules of one call are alternatives.
    #[serde(default)]
    args: Vec<Arg>,
    /// Shorthand for `ioctl` and `fcntl`: alternatives for the second argument, by name.
    #[serde(default)]
    requests: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arg {
    index: u8,
    /// Only the bits set here are compared.
    mask: Option<u64>,
    value: Value,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Value {
    Number(u64),
    Own(Own),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Own {
    Pid,
    ExecFd,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    syscall: String,
    errno: String,
    reason: String,
    arch: Option<String>,
}

/// A role's rules, merged.
#[derive(Default)]
struct Merged {
    /// Conditions per call; an empty list of alternatives means unconditional.
    allow: BTreeMap<String, Vec<Vec<Json>>>,
    refuse: BTreeMap<i32, BTreeSet<String>>,
}

/// The filters of a role in the order in which they must be loaded: each lets the loading of the next
/// one pass, the allow-list comes last.
pub(crate) fn compile(role: Role, own: OwnNumbers) -> Result<Vec<BpfProgram>, PolicyError> {
    let merged = merge(role, own)?;
    if merged.allow.is_empty() {
        return Err(PolicyError::Empty { role });
    }
    let mut filters = Vec::new();
    let mut allowed: Vec<Json> = Vec::new();
    for (errno, syscalls) in &merged.refuse {
        let rules: Vec<Json> = syscalls.iter().map(|name| json!({ "syscall": name })).collect();
        allowed.extend(rules.iter().cloned());
        filters.push(program(role, "allow", &json!({ "errno": errno }), &rules)?);
    }
    allowed.extend(rules_of(&merged));
    filters.push(program(role, "kill_process", &json!("allow"), &allowed)?);
    Ok(filters)
}

/// The filter of the VMM's threads that work for the guest, which come under that of the process as well.
pub(crate) fn compile_for_guest_threads(own: OwnNumbers) -> Result<BpfProgram, PolicyError> {
    let merged = merge_files(&GUEST_THREADS, own)?;
    let mut allowed = rules_of(&merged);
    // That a panic looks for its symbols in vain must not kill here either.
    let refused = merge(Role::Vmm, own)?.refuse;
    allowed.extend(refused.values().flatten().map(|name| json!({ "syscall": name })));
    program(Role::Vmm, "kill_process", &json!("allow"), &allowed)
}

fn rules_of(merged: &Merged) -> Vec<Json> {
    let rules = |(name, alternatives): (&String, &Vec<Vec<Json>>)| -> Vec<Json> {
        match alternatives.is_empty() {
            true => vec![json!({ "syscall": name })],
            false => alternatives.iter().map(|args| json!({ "syscall": name, "args": args })).collect(),
        }
    };
    merged.allow.iter().flat_map(rules).collect()
}

fn merge(role: Role, own: OwnNumbers) -> Result<Merged, PolicyError> {
    merge_files(&role.files(), own)
}

fn merge_files(files: &[(&'static str, &'static str)], own: OwnNumbers) -> Result<Merged, PolicyError> {
    let mut merged = Merged::default();
    for &(file, text) in files {
        let parsed: File =
            serde_json::from_str(text).map_err(|source| PolicyError::Parse { file, source })?;
        for rule in parsed.allow {
            check_reason(file, &rule.syscall, &rule.reason)?;
            if here(rule.arch.as_deref()) {
                allow(&mut merged, file, &rule, own)?;
            }
        }
        for refusal in parsed.refuse {
            check_reason(file, &refusal.syscall, &refusal.reason)?;
            if here(refusal.arch.as_deref()) {
                refuse(&mut merged, file, refusal)?;
            }
        }
    }
    Ok(merged)
}

fn check_reason(file: &'static str, syscall: &str, reason: &str) -> Result<(), PolicyError> {
    if reason.trim().is_empty() {
        return Err(PolicyError::NoReason { file, syscall: syscall.to_owned() });
    }
    Ok(())
}

fn here(arch: Option<&str>) -> bool {
    arch.is_none_or(|arch| arch == std::env::consts::ARCH)
}

fn allow(merged: &mut Merged, file: &'static str, rule: &Rule, own: OwnNumbers) -> Result<(), PolicyError> {
    let contradiction = || PolicyError::Contradiction { file, syscall: rule.syscall.clone() };
    if merged.refuse.values().any(|refused| refused.contains(&rule.syscall)) {
        return Err(contradiction());
    }
    let mut alternatives: Vec<Vec<Json>> =
        rule.requests.values().map(|request| vec![condition(1, None, *request)]).collect();
    if !rule.args.is_empty() {
        alternatives.push(rule.args.iter().map(|arg| condition_of(arg, own)).collect());
    }
    match merged.allow.get_mut(&rule.syscall) {
        Some(known) if known.is_empty() || alternatives.is_empty() => return Err(contradiction()),
        Some(known) => known.extend(alternatives),
        None => {
            merged.allow.insert(rule.syscall.clone(), alternatives);
        }
    }
    Ok(())
}

fn refuse(merged: &mut Merged, file: &'static str, refusal: Refusal) -> Result<(), PolicyError> {
    let Refusal { syscall, errno, .. } = refusal;
    let number = match errno.as_str() {
        "EACCES" => libc::EACCES,
        "ENOENT" => libc::ENOENT,
        "ENOSYS" => libc::ENOSYS,
        "ENOTTY" => libc::ENOTTY,
        "EPERM" => libc::EPERM,
        _ => {
            return Err(PolicyError::UnknownErrno { file, syscall, errno });
        }
    };
    let refused_before = merged.refuse.values().any(|refused| refused.contains(&syscall));
    if refused_before || merged.allow.contains_key(&syscall) {
        return Err(PolicyError::Contradiction { file, syscall });
    }
    merged.refuse.entry(number).or_default().insert(syscall);
    Ok(())
}

fn condition_of(arg: &Arg, own: OwnNumbers) -> Json {
    let value = match arg.value {
        Value::Number(number) => number,
        Value::Own(Own::Pid) => own.pid.into(),
        Value::Own(Own::ExecFd) => own.exec_fd.into(),
    };
    condition(arg.index, arg.mask, value)
}

/// The numbers compared here are C `int`s or flags in the low half; the kernel ignores the high half
/// of an `int` argument, so comparing it would only let a caller fail.
fn condition(index: u8, mask: Option<u64>, value: u64) -> Json {
    let op = match mask {
        Some(mask) => json!({ "masked_eq": mask }),
        None => json!("eq"),
    };
    json!({ "index": index, "type": "dword", "op": op, "val": value })
}

fn program(role: Role, mismatch: &str, matched: &Json, rules: &[Json]) -> Result<BpfProgram, PolicyError> {
    let arch = std::env::consts::ARCH;
    let target = TargetArch::try_from(arch).map_err(|_| PolicyError::Arch { arch })?;
    let text = json!({
        "filter": { "mismatch_action": mismatch, "match_action": matched, "filter": rules }
    });
    let mut programs = seccompiler::compile_from_json(text.to_string().as_bytes(), target)
        .map_err(|source| PolicyError::Compile { role, source })?;
    programs.remove("filter").ok_or(PolicyError::Empty { role })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: OwnNumbers = OwnNumbers { pid: 1, exec_fd: 1023 };

    #[test]
    fn every_role_compiles() {
        for role in Role::ALL {
            let filters = compile(role, OWN).unwrap_or_else(|e| panic!("{role:?}: {e:?}"));
            assert!(filters.len() >= 2, "{role:?}");
            assert!(filters.iter().all(|filter| !filter.is_empty()));
        }
    }

    #[test]
    fn no_role_may_reach_out() {
        let never = [
            "socket",
            "socketpair",
            "connect",
            "bind",
            "ptrace",
            "mount",
            "execve",
            "kill",
            "bpf",
            "keyctl",
            "perf_event_open",
            "setns",
            "unshare",
            "fork",
            "vfork",
            "process_vm_readv",
            "init_module",
            "userfaultfd",
            "pidfd_getfd",
            "open_by_handle_at",
        ];
        for role in Role::ALL {
            let merged = merge(role, OWN).unwrap();
            for syscall in never {
                // To a local server that it was given, by descriptor.
                let connects = role == Role::EmulatorWithNetworks && ["socket", "connect"].contains(&syscall);
                assert_eq!(merged.allow.contains_key(syscall), connects, "{role:?} and {syscall}");
            }
            let sockets = merged.allow.get("socket");
            assert!(sockets.is_none_or(|rules| rules.iter().all(|args| args.len() == 2)), "{role:?}");
        }
    }

    #[test]
    fn only_the_emulator_may_open_or_execute() {
        for (syscall, allowed) in
            ["openat", "execveat"].map(|syscall| (syscall, [false, false, true, false, true]))
        {
            let found = Role::ALL.map(|role| merge(role, OWN).unwrap().allow.contains_key(syscall));
            assert_eq!(found, allowed, "{syscall}");
        }
    }

    #[test]
    fn kvm_requests_belong_to_the_vmm_alone() {
        const KVM_RUN: u64 = 0xae80;
        let has_run = |role: Role| {
            let merged = merge(role, OWN).unwrap();
            merged.allow.get("ioctl").is_some_and(|rules| rules.iter().any(|args| args[0]["val"] == KVM_RUN))
        };
        assert_eq!(Role::ALL.map(has_run), [true, false, false, false, false]);
    }

    #[test]
    fn ioctl_and_fcntl_are_never_unconditional() {
        for (role, syscall) in Role::ALL.into_iter().flat_map(|role| [(role, "ioctl"), (role, "fcntl")]) {
            let merged = merge(role, OWN).unwrap();
            assert!(
                merged.allow.get(syscall).is_none_or(|rules| !rules.is_empty()),
                "{role:?} and {syscall}"
            );
        }
    }

    /// What the process may not do is not allowed to one of its threads in vain.
    #[test]
    fn threads_of_the_guest_may_do_a_part_of_what_the_vmm_may() {
        let (part, whole) = (merge_files(&GUEST_THREADS, OWN).unwrap(), merge(Role::Vmm, OWN).unwrap());
        assert!(part.refuse.is_empty());
        for (syscall, rules) in &part.allow {
            let known = whole.allow.get(syscall).unwrap_or_else(|| panic!("{syscall} is not the VMM's"));
            assert!(known.is_empty() || rules.iter().all(|rule| known.contains(rule)), "{syscall}");
        }
        for syscall in ["clone", "memfd_create", "pidfd_send_signal", "seccomp", "epoll_ctl", "pwrite64"] {
            assert!(!part.allow.contains_key(syscall), "{syscall}");
        }
        assert!(!compile_for_guest_threads(OWN).unwrap().is_empty());
    }

    #[test]
    fn a_call_cannot_be_allowed_and_refused() {
        let mut merged = Merged::default();
        let refusal = |errno: &str| Refusal {
            syscall: "openat".into(),
            errno: errno.into(),
            reason: "r".into(),
            arch: None,
        };
        let rule = Rule {
            syscall: "openat".into(),
            reason: "r".into(),
            arch: None,
            args: Vec::new(),
            requests: BTreeMap::new(),
        };
        assert!(matches!(refuse(&mut merged, "t", refusal("EWHAT")), Err(PolicyError::UnknownErrno { .. })));
        refuse(&mut merged, "t", refusal("ENOENT")).unwrap();
        assert!(matches!(allow(&mut merged, "t", &rule, OWN), Err(PolicyError::Contradiction { .. })));
    }

    #[test]
    fn a_rule_needs_a_reason() {
        assert!(matches!(check_reason("t", "read", " "), Err(PolicyError::NoReason { .. })));
    }
}
