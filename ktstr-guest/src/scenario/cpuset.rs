//! Which CPUs a cgroup may use, said in terms of the machine's shape.

use std::collections::BTreeSet;

use super::TestTopology;

/// Which CPUs a cgroup may use.
#[derive(Debug, Clone, PartialEq)]
pub enum CpusetSpec {
    /// All CPUs of one last-level cache, counted over the whole machine.
    Llc(u32),
    /// All CPUs of one NUMA node.
    Numa(u32),
    /// The CPUs between two fractions of the machine, from 0.0 to 1.0.
    Range {
        /// Where it begins.
        start_frac: f64,
        /// Where it ends.
        end_frac: f64,
    },
    /// The `index`th of `of` equal, disjoint parts; CPUs that are left over belong to the last.
    Disjoint {
        /// Which part, from 0.
        index: u32,
        /// How many parts.
        of: u32,
    },
    /// As [`Self::Disjoint`], but each part reaches into the next by `frac` of its own size; the last
    /// one reaches round to the first.
    Overlap {
        /// Which part, from 0.
        index: u32,
        /// How many parts.
        of: u32,
        /// How far it reaches, from 0.0 to 1.0.
        frac: f64,
    },
    /// Exactly these CPUs.
    Exact(BTreeSet<u32>),
}

/// Why a cpuset cannot be had on this machine.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CpusetError {
    /// No CPU would be left.
    #[error("cpuset {spec:?} is empty on a machine of {topology} ({cpus} CPUs)")]
    Empty {
        /// What was asked for.
        spec: CpusetSpec,
        /// The machine.
        topology: String,
        /// Its CPUs.
        cpus: u32,
    },
    /// It names what the machine does not have.
    #[error("cpuset {spec:?} names {what}, but a machine of {topology} has {has}")]
    OutOfRange {
        /// What was asked for.
        spec: CpusetSpec,
        /// The machine.
        topology: String,
        /// The CPU, cache or node named.
        what: String,
        /// What there is.
        has: String,
    },
    /// A fraction or part number makes no sense.
    #[error("cpuset {spec:?} makes no sense: {why}")]
    Nonsense {
        /// What was asked for.
        spec: CpusetSpec,
        /// Why.
        why: &'static str,
    },
}

impl CpusetSpec {
    /// Exactly these CPUs.
    pub fn exact(cpus: impl IntoIterator<Item = u32>) -> Self {
        Self::Exact(cpus.into_iter().collect())
    }

    /// All CPUs of one last-level cache.
    pub const fn llc(index: u32) -> Self {
        Self::Llc(index)
    }

    /// All CPUs of one NUMA node.
    pub const fn numa(index: u32) -> Self {
        Self::Numa(index)
    }

    /// The CPUs between two fractions of the machine.
    pub const fn range(start_frac: f64, end_frac: f64) -> Self {
        Self::Range { start_frac, end_frac }
    }

    /// One of several disjoint parts.
    pub const fn disjoint(index: u32, of: u32) -> Self {
        Self::Disjoint { index, of }
    }

    /// One of several parts that reach into each other.
    pub const fn overlap(index: u32, of: u32, frac: f64) -> Self {
        Self::Overlap { index, of, frac }
    }

    /// The CPUs on this machine, ascending.
    pub fn resolve(&self, topo: &TestTopology) -> Result<Vec<u32>, CpusetError> {
        let all = topo.all_cpus();
        let total = all.len();
        let mut cpus: Vec<u32> = match self {
            Self::Llc(llc) => self.group(topo, topo.llcs(), *llc, "LLC")?,
            Self::Numa(node) => self.group(topo, topo.nodes(), *node, "NUMA node")?,
            Self::Range { start_frac, end_frac } => {
                self.fraction(*start_frac)?;
                self.fraction(*end_frac)?;
                if start_frac >= end_frac {
                    return Err(self.nonsense("it must begin before it ends"));
                }
                let at = |frac: f64| (frac * total as f64).round() as usize;
                all[at(*start_frac).min(total)..at(*end_frac).min(total)].to_vec()
            }
            Self::Disjoint { index, of } => {
                let (from, to) = self.part(*index, *of, total)?;
                all[from..to].to_vec()
            }
            Self::Overlap { index, of, frac } => {
                self.fraction(*frac)?;
                let (from, to) = self.part(*index, *of, total)?;
                let more = ((to - from) as f64 * frac).ceil() as usize;
                (from..(to + more).min(from + total)).map(|at| all[at % total]).collect()
            }
            Self::Exact(cpus) => {
                if let Some(cpu) = cpus.iter().find(|cpu| !all.contains(cpu)) {
                    return Err(self.out_of_range(topo, format!("CPU {cpu}"), format!("{total} CPUs")));
                }
                cpus.iter().copied().collect()
            }
        };
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() {
            let topology = topo.to_string();
            return Err(CpusetError::Empty { spec: self.clone(), topology, cpus: topo.total_cpus() });
        }
        Ok(cpus)
    }

    fn group(
        &self,
        topo: &TestTopology,
        groups: &[Vec<u32>],
        index: u32,
        what: &str,
    ) -> Result<Vec<u32>, CpusetError> {
        groups.get(index as usize).cloned().ok_or_else(|| {
            self.out_of_range(topo, format!("{what} {index}"), format!("{} of them", groups.len()))
        })
    }

    /// First and one past the last place of a part.
    fn part(&self, index: u32, of: u32, total: usize) -> Result<(usize, usize), CpusetError> {
        if index >= of {
            return Err(self.nonsense("parts are counted from 0 and stay below their number"));
        }
        let (index, of) = (index as usize, of as usize);
        let each = total / of;
        let end = if index + 1 == of && each > 0 { total } else { (index + 1) * each };
        Ok((index * each, end))
    }

    fn fraction(&self, frac: f64) -> Result<(), CpusetError> {
        if (0.0..=1.0).contains(&frac) { Ok(()) } else { Err(self.nonsense("fractions go from 0.0 to 1.0")) }
    }

    fn nonsense(&self, why: &'static str) -> CpusetError {
        CpusetError::Nonsense { spec: self.clone(), why }
    }

    fn out_of_range(&self, topo: &TestTopology, what: String, has: String) -> CpusetError {
        CpusetError::OutOfRange { spec: self.clone(), topology: topo.to_string(), what, has }
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
    use ktstr_proto::Topology;

    use super::*;

    fn topo() -> TestTopology {
        TestTopology::of_shape(Topology::new(2, 2, 2, 2).unwrap())
    }

    #[test]
    fn specs_become_cpus() {
        let resolve = |spec: CpusetSpec| spec.resolve(&topo()).unwrap();
        assert_eq!(resolve(CpusetSpec::Llc(1)), [4, 5, 6, 7]);
        assert_eq!(resolve(CpusetSpec::Numa(0)), [0, 1, 2, 3]);
        assert_eq!(resolve(CpusetSpec::disjoint(0, 3)), [0, 1]);
        assert_eq!(resolve(CpusetSpec::disjoint(2, 3)), [4, 5, 6, 7]);
        assert_eq!(resolve(CpusetSpec::overlap(0, 2, 0.5)), [0, 1, 2, 3, 4, 5]);
        assert_eq!(resolve(CpusetSpec::overlap(1, 2, 0.5)), [0, 1, 4, 5, 6, 7]);
        assert_eq!(resolve(CpusetSpec::overlap(1, 2, 1.0)), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(resolve(CpusetSpec::range(0.25, 0.5)), [2, 3]);
        assert_eq!(resolve(CpusetSpec::exact([5, 1, 5])), [1, 5]);
    }

    #[test]
    fn what_the_machine_lacks_is_named() {
        let message = |spec: CpusetSpec| spec.resolve(&topo()).unwrap_err().to_string();
        assert!(message(CpusetSpec::Llc(2)).contains("names LLC 2, but a machine of 2n2l2c2t has 2 of them"));
        assert!(message(CpusetSpec::Numa(2)).contains("names NUMA node 2"));
        assert!(message(CpusetSpec::exact([8])).contains("names CPU 8"));
        assert!(message(CpusetSpec::exact([])).contains("is empty"));
        assert!(message(CpusetSpec::range(0.5, 0.51)).contains("is empty"));
        assert!(message(CpusetSpec::range(0.5, 0.5)).contains("begin before it ends"));
        assert!(message(CpusetSpec::range(0.5, 1.5)).contains("from 0.0 to 1.0"));
        assert!(message(CpusetSpec::overlap(0, 2, f64::NAN)).contains("from 0.0 to 1.0"));
        assert!(message(CpusetSpec::disjoint(1, 9)).contains("is empty"));
        assert!(message(CpusetSpec::disjoint(8, 9)).contains("is empty"));
        assert!(message(CpusetSpec::disjoint(3, 3)).contains("stay below their number"));
    }

    #[test]
    fn lists_are_written_as_the_kernel_writes_them() {
        assert_eq!(cpu_list(&[0, 1, 2, 3, 6, 8, 9]), "0-3,6,8-9");
        assert_eq!(cpu_list(&[]), "");
    }
}
