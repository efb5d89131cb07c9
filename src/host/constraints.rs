//! Which machine shapes a test is meant for: what a gauntlet leaves out.

use ktstr_proto::Topology;

/// Bounds on the presets a test is run on; `None` is inherited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Fewest LLCs of the whole machine.
    pub min_llcs: Option<u32>,
    /// Most LLCs of the whole machine.
    pub max_llcs: Option<u32>,
    /// Fewest CPUs.
    pub min_cpus: Option<u32>,
    /// Most CPUs.
    pub max_cpus: Option<u32>,
    /// Fewest NUMA nodes.
    pub min_numa_nodes: Option<u32>,
    /// Most NUMA nodes.
    pub max_numa_nodes: Option<u32>,
    /// Only shapes with more than one thread per core.
    pub requires_smt: Option<bool>,
}

impl Constraints {
    /// No bound set.
    pub const NONE: Self = Self {
        min_llcs: None,
        max_llcs: None,
        min_cpus: None,
        max_cpus: None,
        min_numa_nodes: None,
        max_numa_nodes: None,
        requires_smt: None,
    };

    /// What holds when nobody says otherwise: one node, up to 12 LLCs and 192 CPUs.
    pub const fn defaults() -> Self {
        Self {
            min_llcs: Some(1),
            max_llcs: Some(12),
            min_cpus: Some(1),
            max_cpus: Some(192),
            min_numa_nodes: Some(1),
            max_numa_nodes: Some(1),
            requires_smt: Some(false),
        }
    }

    /// `self` overridden by what `later` sets.
    pub const fn merge(self, later: Self) -> Self {
        const fn or<T: Copy>(later: Option<T>, earlier: Option<T>) -> Option<T> {
            if later.is_some() { later } else { earlier }
        }
        Self {
            min_llcs: or(later.min_llcs, self.min_llcs),
            max_llcs: or(later.max_llcs, self.max_llcs),
            min_cpus: or(later.min_cpus, self.min_cpus),
            max_cpus: or(later.max_cpus, self.max_cpus),
            min_numa_nodes: or(later.min_numa_nodes, self.min_numa_nodes),
            max_numa_nodes: or(later.max_numa_nodes, self.max_numa_nodes),
            requires_smt: or(later.requires_smt, self.requires_smt),
        }
    }

    /// What holds for a test: the defaults overridden by what is asked for. A least number above the most
    /// that is usual lifts that, since nobody asked for it.
    pub const fn of_test(asked: Self) -> Self {
        const fn lifted(usual: Option<u32>, min: Option<u32>, max: Option<u32>) -> Option<u32> {
            match (usual, min, max) {
                (Some(usual), Some(min), None) if min > usual => Some(u32::MAX),
                _ => max,
            }
        }
        let usual = Self::defaults();
        usual.merge(Self {
            max_llcs: lifted(usual.max_llcs, asked.min_llcs, asked.max_llcs),
            max_cpus: lifted(usual.max_cpus, asked.min_cpus, asked.max_cpus),
            max_numa_nodes: lifted(usual.max_numa_nodes, asked.min_numa_nodes, asked.max_numa_nodes),
            ..asked
        })
    }

    /// A pair of bounds that no machine is within, with their names.
    pub fn contradiction(&self) -> Option<(&'static str, u32, &'static str, u32)> {
        let pairs = [
            ("min_llcs", self.min_llcs, "max_llcs", self.max_llcs),
            ("min_cpus", self.min_cpus, "max_cpus", self.max_cpus),
            ("min_numa_nodes", self.min_numa_nodes, "max_numa_nodes", self.max_numa_nodes),
        ];
        let wrong = |(low, min, high, max): (_, Option<u32>, _, Option<u32>)| {
            let (min, max) = (min?, max?);
            (min > max).then_some((low, min, high, max))
        };
        pairs.into_iter().find_map(wrong)
    }

    /// Whether a machine of this shape is within all bounds that are set.
    pub fn admit(&self, shape: &Topology) -> bool {
        self.objection(shape).is_none()
    }

    /// What of this shape is outside of which bound, `2 CPUs, below `min_cpus = 4``.
    pub fn objection(&self, shape: &Topology) -> Option<String> {
        let pairs = [
            (shape.llcs, "LLCs", "llcs", self.min_llcs, self.max_llcs),
            (shape.cpus(), "CPUs", "cpus", self.min_cpus, self.max_cpus),
            (shape.numa_nodes, "NUMA nodes", "numa_nodes", self.min_numa_nodes, self.max_numa_nodes),
        ];
        for (size, name, key, min, max) in pairs {
            if let Some(min) = min.filter(|min| size < *min) {
                return Some(format!("{size} {name}, below `min_{key} = {min}`"));
            }
            if let Some(max) = max.filter(|max| size > *max) {
                return Some(format!("{size} {name}, above `max_{key} = {max}`"));
            }
        }
        let smt = self.requires_smt == Some(true) && shape.threads == 1;
        smt.then(|| "one thread per core, where `requires_smt` wants more".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_lifts_what_is_only_usual() {
        let nodes = Constraints { min_numa_nodes: Some(2), ..Constraints::NONE };
        assert!(Constraints::of_test(nodes).admit(&Topology {
            numa_nodes: 2,
            llcs: 4,
            cores: 4,
            threads: 1
        }));
        assert!(!Constraints::of_test(nodes).admit(&Topology {
            numa_nodes: 1,
            llcs: 4,
            cores: 4,
            threads: 1
        }));
        let asked = Constraints { min_llcs: Some(13), max_llcs: Some(14), ..Constraints::NONE };
        assert_eq!(Constraints::of_test(asked).max_llcs, Some(14));
        assert_eq!(Constraints::of_test(Constraints::NONE), Constraints::defaults());
        let cpus = Constraints { min_cpus: Some(193), ..Constraints::NONE };
        assert!(Constraints::of_test(cpus).max_cpus > Some(193));
        let wrong = Constraints { min_llcs: Some(4), max_llcs: Some(2), ..Constraints::NONE };
        assert_eq!(wrong.contradiction(), Some(("min_llcs", 4, "max_llcs", 2)));
        assert_eq!(Constraints::of_test(nodes).contradiction(), None);
    }

    #[test]
    fn each_bound_binds_alone() {
        let shape = Topology { numa_nodes: 2, llcs: 4, cores: 4, threads: 1 };
        assert!(Constraints::NONE.admit(&shape));
        assert!(!Constraints::defaults().admit(&shape), "two nodes must be asked for");
        let two_nodes = Constraints { max_numa_nodes: Some(2), ..Constraints::NONE };
        assert!(Constraints::defaults().merge(two_nodes).admit(&shape));
        for (out, said) in [
            (Constraints { min_llcs: Some(5), ..two_nodes }, "4 LLCs, below `min_llcs = 5`"),
            (Constraints { max_llcs: Some(3), ..two_nodes }, "4 LLCs, above `max_llcs = 3`"),
            (Constraints { min_cpus: Some(17), ..two_nodes }, "16 CPUs, below `min_cpus = 17`"),
            (Constraints { max_cpus: Some(15), ..two_nodes }, "16 CPUs, above `max_cpus = 15`"),
            (
                Constraints { min_numa_nodes: Some(3), ..Constraints::NONE },
                "2 NUMA nodes, below `min_numa_nodes = 3`",
            ),
            (
                Constraints { max_numa_nodes: Some(1), ..Constraints::NONE },
                "2 NUMA nodes, above `max_numa_nodes = 1`",
            ),
            (
                Constraints { requires_smt: Some(true), ..two_nodes },
                "one thread per core, where `requires_smt` wants more",
            ),
        ] {
            assert!(!out.admit(&shape), "{out:?}");
            assert_eq!(out.objection(&shape).as_deref(), Some(said));
        }
    }
}
