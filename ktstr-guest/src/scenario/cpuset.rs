//! Which CPUs a cgroup may use, said in terms of the machine's shape.

use ktstr_proto::Topology;

/// Which CPUs a cgroup may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpusetSpec {
    /// All CPUs of one LLC, counted over the whole machine.
    Llc(u32),
    /// The `index`th of `of` equal, disjoint parts; CPUs that are left over belong to the last.
    Disjoint {
        /// Which part, from 0.
        index: u32,
        /// How many parts.
        of: u32,
    },
    /// CPUs from the first up to but not including the second.
    Range(u32, u32),
    /// Exactly these CPUs.
    Exact(Vec<u32>),
}

/// Why a cpuset cannot be had on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpusetError {
    /// No CPU would be left.
    #[error("cpuset {spec:?} is empty on {topology} ({cpus} CPUs)", cpus = topology.cpus())]
    Empty {
        /// What was asked for.
        spec: CpusetSpec,
        /// The machine.
        topology: Topology,
    },
    /// It names what the machine does not have.
    #[error("cpuset {spec:?} names {what}, but {topology} has {has}")]
    OutOfRange {
        /// What was asked for.
        spec: CpusetSpec,
        /// The machine.
        topology: Topology,
        /// The CPU or LLC named.
        what: String,
        /// How many there are.
        has: String,
    },
}

impl CpusetSpec {
    /// Exactly these CPUs.
    pub fn exact(cpus: impl IntoIterator<Item = u32>) -> Self {
        Self::Exact(cpus.into_iter().collect())
    }

    /// The CPUs on a machine of shape `topology`, ascending.
    pub fn resolve(&self, topology: &Topology) -> Result<Vec<u32>, CpusetError> {
        let total = topology.cpus();
        let mut cpus: Vec<u32> = match self {
            Self::Llc(llc) => {
                if *llc >= topology.llcs {
                    return Err(self.out_of_range(
                        topology,
                        format!("LLC {llc}"),
                        format!("{} LLCs", topology.llcs),
                    ));
                }
                let each = topology.cpus_per_llc();
                (llc * each..(llc + 1) * each).collect()
            }
            Self::Disjoint { index, of } if index < of => {
                let each = total / of;
                let end = if index + 1 == *of { total } else { (index + 1) * each };
                if each == 0 { Vec::new() } else { (index * each..end).collect() }
            }
            Self::Disjoint { .. } => Vec::new(),
            Self::Range(from, to) => (*from..*to).take(total as usize + 1).collect(),
            Self::Exact(cpus) => cpus.clone(),
        };
        cpus.sort_unstable();
        cpus.dedup();
        if let Some(cpu) = cpus.iter().find(|cpu| **cpu >= total) {
            return Err(self.out_of_range(topology, format!("CPU {cpu}"), format!("{total} CPUs")));
        }
        if cpus.is_empty() {
            return Err(CpusetError::Empty { spec: self.clone(), topology: *topology });
        }
        Ok(cpus)
    }

    fn out_of_range(&self, topology: &Topology, what: String, has: String) -> CpusetError {
        CpusetError::OutOfRange { spec: self.clone(), topology: *topology, what, has }
    }
}

/// The kernel's list notation: `0-3,6`.
pub fn cpu_list(cpus: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let text = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Topology {
        Topology::new(1, 2, 2, 2).unwrap()
    }

    #[test]
    fn specs_become_cpus() {
        let resolve = |spec: CpusetSpec| spec.resolve(&shape()).unwrap();
        assert_eq!(resolve(CpusetSpec::Llc(1)), [4, 5, 6, 7]);
        assert_eq!(resolve(CpusetSpec::Disjoint { index: 0, of: 3 }), [0, 1]);
        assert_eq!(resolve(CpusetSpec::Disjoint { index: 2, of: 3 }), [4, 5, 6, 7]);
        assert_eq!(resolve(CpusetSpec::Range(2, 4)), [2, 3]);
        assert_eq!(resolve(CpusetSpec::exact([5, 1, 5])), [1, 5]);
    }

    #[test]
    fn what_the_machine_lacks_is_named() {
        let message = |spec: CpusetSpec| spec.resolve(&shape()).unwrap_err().to_string();
        assert!(message(CpusetSpec::Llc(2)).contains("names LLC 2, but 1n2l2c2t has 2 LLCs"));
        assert!(message(CpusetSpec::exact([8])).contains("names CPU 8"));
        assert!(message(CpusetSpec::Range(0, u32::MAX)).contains("names CPU 8"));
        assert!(message(CpusetSpec::Range(3, 3)).contains("is empty"));
        assert!(message(CpusetSpec::Disjoint { index: 1, of: 9 }).contains("is empty"));
        assert!(message(CpusetSpec::Disjoint { index: 3, of: 3 }).contains("is empty"));
    }

    #[test]
    fn lists_are_written_as_the_kernel_writes_them() {
        assert_eq!(cpu_list(&[0, 1, 2, 3, 6, 8, 9]), "0-3,6,8-9");
        assert_eq!(cpu_list(&[]), "");
    }
}
