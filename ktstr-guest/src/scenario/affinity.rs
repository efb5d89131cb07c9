//! Which CPUs each worker of a group may use, said as an intent.

use std::collections::BTreeSet;

use super::{Random, TestTopology};

/// Which CPUs each worker may use, within its cgroup's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AffinityIntent {
    /// Whatever the cgroup allows.
    #[default]
    Inherit,
    /// A random choice of its own for each worker.
    RandomSubset {
        /// To choose from; empty means the cgroup's CPUs.
        from: BTreeSet<u32>,
        /// How many.
        count: u32,
    },
    /// The CPUs of one last-level cache; workers take the caches in turn.
    LlcAligned,
    /// All CPUs of the machine, those of other cgroups too; the kernel keeps what the cpuset allows.
    CrossCgroup,
    /// One CPU; workers take the cgroup's CPUs in turn.
    SingleCpu,
    /// Exactly these CPUs.
    Exact(BTreeSet<u32>),
    /// The hardware threads of one core; workers take the cores in turn, two by two.
    SmtSiblingPair,
}

/// Why an intent cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AffinityError {
    /// None of the CPUs meant is allowed.
    #[error("affinity {intent:?} leaves no CPU: the cgroup allows {allowed}")]
    Nothing {
        /// What was asked for.
        intent: AffinityIntent,
        /// What the cgroup allows.
        allowed: String,
    },
    /// No core has two threads.
    #[error("affinity SmtSiblingPair needs a core with two hardware threads within CPUs {allowed}")]
    NoSiblings {
        /// What the cgroup allows.
        allowed: String,
    },
}

impl AffinityIntent {
    /// `count` CPUs of the cgroup's, chosen for each worker.
    pub const fn random_subset(count: u32) -> Self {
        Self::RandomSubset { from: BTreeSet::new(), count }
    }

    /// Exactly these CPUs.
    pub fn exact(cpus: impl IntoIterator<Item = u32>) -> Self {
        Self::Exact(cpus.into_iter().collect())
    }

    /// The CPUs of worker number `worker`, ascending; empty when nothing is restricted. `allowed` is
    /// what the cgroup allows.
    pub fn resolve(
        &self,
        topo: &TestTopology,
        allowed: &[u32],
        worker: usize,
        random: &mut Random,
    ) -> Result<Vec<u32>, AffinityError> {
        let within =
            |cpus: &[u32]| -> Vec<u32> { cpus.iter().copied().filter(|cpu| allowed.contains(cpu)).collect() };
        let turn = |groups: &[Vec<u32>], worker: usize| -> Vec<u32> {
            let usable: Vec<_> = groups.iter().map(|g| within(g)).filter(|g| !g.is_empty()).collect();
            if usable.is_empty() { Vec::new() } else { usable[worker % usable.len()].clone() }
        };
        let cpus = match self {
            Self::Inherit => return Ok(Vec::new()),
            Self::RandomSubset { from, count } => {
                let from: Vec<u32> = from.iter().copied().collect();
                let pool = if from.is_empty() { allowed.to_vec() } else { within(&from) };
                random.subset(&pool, *count as usize)
            }
            Self::LlcAligned => turn(topo.llcs(), worker),
            Self::CrossCgroup => topo.all_cpus().to_vec(),
            Self::SingleCpu if allowed.is_empty() => Vec::new(),
            Self::SingleCpu => vec![allowed[worker % allowed.len()]],
            Self::Exact(cpus) => within(&cpus.iter().copied().collect::<Vec<_>>()),
            Self::SmtSiblingPair => {
                let pairs: Vec<Vec<u32>> =
                    topo.cores().iter().map(|core| within(core)).filter(|core| core.len() > 1).collect();
                if pairs.is_empty() {
                    return Err(AffinityError::NoSiblings { allowed: super::cpu_list(allowed) });
                }
                pairs[worker / 2 % pairs.len()][..2].to_vec()
            }
        };
        if cpus.is_empty() {
            return Err(AffinityError::Nothing { intent: self.clone(), allowed: super::cpu_list(allowed) });
        }
        Ok(cpus)
    }
}

#[cfg(test)]
mod tests {
    use ktstr_proto::Topology;

    use super::*;

    fn resolve(intent: &AffinityIntent, allowed: &[u32], worker: usize) -> Result<Vec<u32>, AffinityError> {
        let topo = TestTopology::of_shape(Topology::new(1, 2, 1, 2).unwrap());
        intent.resolve(&topo, allowed, worker, &mut Random::new(worker as u64))
    }

    #[test]
    fn intents_become_cpus() {
        let all = [0, 1, 2, 3];
        assert_eq!(resolve(&AffinityIntent::Inherit, &all, 0), Ok(vec![]));
        assert_eq!(resolve(&AffinityIntent::LlcAligned, &all, 0), Ok(vec![0, 1]));
        assert_eq!(resolve(&AffinityIntent::LlcAligned, &all, 3), Ok(vec![2, 3]));
        assert_eq!(resolve(&AffinityIntent::LlcAligned, &[3], 0), Ok(vec![3]));
        assert_eq!(resolve(&AffinityIntent::SingleCpu, &[1, 3], 3), Ok(vec![3]));
        assert_eq!(resolve(&AffinityIntent::CrossCgroup, &[0], 0), Ok(all.to_vec()));
        assert_eq!(resolve(&AffinityIntent::exact([2, 0]), &[2, 3], 0), Ok(vec![2]));
        assert_eq!(resolve(&AffinityIntent::SmtSiblingPair, &all, 2), Ok(vec![2, 3]));
        let random = AffinityIntent::random_subset(2);
        assert_eq!(resolve(&random, &all, 1), resolve(&random, &all, 1));
        assert!((0..20).any(|worker| resolve(&random, &all, worker) != resolve(&random, &all, 1)));
    }

    #[test]
    fn what_cannot_be_had_says_why() {
        let message = |intent: AffinityIntent, allowed| resolve(&intent, allowed, 0).unwrap_err().to_string();
        assert!(message(AffinityIntent::exact([0]), &[1]).contains("the cgroup allows 1"));
        assert!(message(AffinityIntent::SmtSiblingPair, &[0, 2]).contains("two hardware threads"));
    }
}
