//! Memory policies as `set_mempolicy(2)` takes them (`include/uapi/linux/mempolicy.h`).

use std::{collections::BTreeSet, ops::BitOr};

use nix::{errno::Errno, libc};

/// Where the memory of a worker comes from; numbers are NUMA nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MemPolicy {
    /// The system's default.
    #[default]
    Default,
    /// These nodes and no others.
    Bind(BTreeSet<u32>),
    /// This node as long as it has room.
    Preferred(u32),
    /// Page by page from these nodes in turn.
    Interleave(BTreeSet<u32>),
    /// The node of the CPU that asks.
    Local,
    /// These nodes as long as they have room; Linux 5.15 and later.
    PreferredMany(BTreeSet<u32>),
    /// Interleaved by the weights of the system; Linux 6.9 and later.
    WeightedInterleave(BTreeSet<u32>),
}

/// How the nodes of a [`MemPolicy`] are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MpolFlags(u32);

impl MpolFlags {
    /// Follow the cpuset.
    pub const NONE: Self = Self(0);
    /// `MPOL_F_STATIC_NODES`: the nodes named, whatever the cpuset becomes.
    pub const STATIC_NODES: Self = Self(1 << 15);
    /// `MPOL_F_RELATIVE_NODES`: counted within the cpuset's nodes.
    pub const RELATIVE_NODES: Self = Self(1 << 14);
    /// `MPOL_F_NUMA_BALANCING`: let the kernel move pages towards their users.
    pub const NUMA_BALANCING: Self = Self(1 << 13);

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for MpolFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A policy no kernel could accept on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemPolicyError {
    /// No node is named.
    #[error("memory policy {policy:?} names no node")]
    Empty {
        /// What was asked.
        policy: MemPolicy,
    },
    /// Two flags exclude each other.
    #[error("STATIC_NODES and RELATIVE_NODES exclude each other")]
    Contradiction,
    /// The machine has no such node.
    #[error("memory policy {policy:?} names node {node}, but the machine has {nodes}")]
    NoSuchNode {
        /// What was asked.
        policy: MemPolicy,
        /// The node.
        node: u32,
        /// How many there are.
        nodes: u32,
    },
    /// The cpuset's CPUs are elsewhere.
    #[error(
        "memory policy {policy:?} names node {node}, which cgroup `{cgroup}` cannot use (it has {allowed})"
    )]
    Unreachable {
        /// What was asked.
        policy: MemPolicy,
        /// The node.
        node: u32,
        /// The cgroup.
        cgroup: String,
        /// Nodes it may use.
        allowed: String,
    },
}

const MPOL_DEFAULT: i32 = 0;
const MPOL_PREFERRED: i32 = 1;
const MPOL_BIND: i32 = 2;
const MPOL_INTERLEAVE: i32 = 3;
const MPOL_LOCAL: i32 = 4;
const MPOL_PREFERRED_MANY: i32 = 5;
const MPOL_WEIGHTED_INTERLEAVE: i32 = 6;
/// Highest node number that can be named.
const MAX_NODES: u32 = 64;

impl MemPolicy {
    /// The nodes it names.
    pub fn nodes(&self) -> BTreeSet<u32> {
        match self {
            Self::Default | Self::Local => BTreeSet::new(),
            Self::Preferred(node) => BTreeSet::from([*node]),
            Self::Bind(nodes)
            | Self::Interleave(nodes)
            | Self::PreferredMany(nodes)
            | Self::WeightedInterleave(nodes) => nodes.clone(),
        }
    }

    /// What is wrong with it on a machine of `nodes` NUMA nodes.
    pub fn check(&self, flags: MpolFlags, nodes: u32) -> Result<(), MemPolicyError> {
        if flags.contains(MpolFlags::STATIC_NODES | MpolFlags::RELATIVE_NODES) {
            return Err(MemPolicyError::Contradiction);
        }
        let named = self.nodes();
        if named.is_empty() && !matches!(self, Self::Default | Self::Local) {
            return Err(MemPolicyError::Empty { policy: self.clone() });
        }
        match named.into_iter().find(|node| *node >= nodes.min(MAX_NODES)) {
            Some(node) if !flags.contains(MpolFlags::RELATIVE_NODES) => {
                Err(MemPolicyError::NoSuchNode { policy: self.clone(), node, nodes })
            }
            _ => Ok(()),
        }
    }

    /// Sets it for the calling thread.
    pub fn apply(&self, flags: MpolFlags) -> nix::Result<()> {
        let mode = match self {
            Self::Default => MPOL_DEFAULT,
            Self::Preferred(_) => MPOL_PREFERRED,
            Self::Bind(_) => MPOL_BIND,
            Self::Interleave(_) => MPOL_INTERLEAVE,
            Self::Local => MPOL_LOCAL,
            Self::PreferredMany(_) => MPOL_PREFERRED_MANY,
            Self::WeightedInterleave(_) => MPOL_WEIGHTED_INTERLEAVE,
        };
        let mut mask = 0_u64;
        for node in self.nodes() {
            mask |= 1_u64.checked_shl(node).filter(|_| node < MAX_NODES).ok_or(Errno::EINVAL)?;
        }
        // The kernel takes one bit less than it is told, and of none with a mask it makes too many (`get_nodes` in
        // mm/mempolicy.c).
        let bits = u64::from(MAX_NODES) + 1;
        // SAFETY: the kernel reads at most `bits` bits from the mask: one word, since the last bit does
        // not count.
        let done =
            unsafe { libc::syscall(libc::SYS_set_mempolicy, mode | flags.0 as i32, &raw const mask, bits) };
        Errno::result(done).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_policies_say_why() {
        let check = |policy: MemPolicy, flags| policy.check(flags, 2).map_err(|e| e.to_string());
        assert_eq!(check(MemPolicy::Local, MpolFlags::NONE), Ok(()));
        assert_eq!(check(MemPolicy::Preferred(1), MpolFlags::STATIC_NODES), Ok(()));
        let empty = check(MemPolicy::Bind(BTreeSet::new()), MpolFlags::NONE).unwrap_err();
        assert!(empty.contains("names no node"), "{empty}");
        let beyond = check(MemPolicy::Bind([0, 2].into()), MpolFlags::NONE).unwrap_err();
        assert!(beyond.contains("names node 2, but the machine has 2"), "{beyond}");
        let both = MpolFlags::STATIC_NODES | MpolFlags::RELATIVE_NODES;
        assert!(check(MemPolicy::Local, both).unwrap_err().contains("exclude each other"));
    }

    /// The mode of a thread that has set a policy, as the kernel says.
    fn mode_after(policy: MemPolicy, flags: MpolFlags) -> nix::Result<i32> {
        let set = std::thread::spawn(move || {
            policy.apply(flags)?;
            let mut mode = -1_i32;
            // SAFETY: asks for the calling thread's mode alone; the kernel writes one int.
            let done = unsafe {
                libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, std::ptr::null::<u64>(), 0, 0, 0)
            };
            Errno::result(done)?;
            Ok(mode & 0xff)
        });
        set.join().unwrap()
    }

    #[test]
    fn policies_reach_the_kernel() {
        for (policy, flags, wanted) in [
            (MemPolicy::Default, MpolFlags::NONE, MPOL_DEFAULT),
            (MemPolicy::Local, MpolFlags::NONE, MPOL_LOCAL),
            (MemPolicy::Preferred(0), MpolFlags::NONE, MPOL_PREFERRED),
            (MemPolicy::Bind([0].into()), MpolFlags::STATIC_NODES, MPOL_BIND),
            (MemPolicy::Interleave([0].into()), MpolFlags::RELATIVE_NODES, MPOL_INTERLEAVE),
        ] {
            match mode_after(policy.clone(), flags) {
                // Kernels before 5.14 keep `Local` as a preference for no node.
                Ok(mode) if wanted == MPOL_LOCAL => assert!([MPOL_LOCAL, MPOL_PREFERRED].contains(&mode)),
                Ok(mode) => assert_eq!(mode, wanted, "{policy:?}"),
                // A container or a kernel without NUMA refuses the call itself.
                Err(errno) => assert!(matches!(errno, Errno::EPERM | Errno::ENOSYS), "{policy:?}: {errno}"),
            }
        }
    }
}
