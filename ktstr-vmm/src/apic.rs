//! APIC ids: how both backends number the CPUs of an x86_64 machine.
//!
//! id = `llc << (core_bits + thread_bits) | core << thread_bits | thread`, every field as wide as its
//! largest value needs. Ids above 254 exist only in x2APIC mode: such a machine needs a way to send
//! interrupts to them. It refuses shapes that are no shapes. Next: `kvm::x86_64::cpuid` tells the guest,
//! `emulator::args` relies on the emulator numbering alike.

use crate::machine::Topology;
use ktstr_proto::topology::TopologyError;

/// Highest APIC id reachable without x2APIC (255 is the broadcast id).
pub const MAX_XAPIC_ID: u32 = 254;

/// APIC ids of one machine shape.
#[derive(Clone, Copy, Debug)]
pub struct ApicIds {
    topology: Topology,
    possible: u32,
    thread_bits: u32,
    core_bits: u32,
}

impl ApicIds {
    /// Works out the id fields. With at most 512 CPUs, ids stay below 4096.
    pub fn new(topology: Topology) -> Result<Self, TopologyError> {
        let topology = topology.checked()?;
        let bits = |n: u32| 32 - (n - 1).leading_zeros();
        let possible = topology.cpus();
        Ok(Self { topology, possible, thread_bits: bits(topology.threads), core_bits: bits(topology.cores) })
    }

    /// The same with ids for the CPUs of so many LLCs that are not there.
    pub fn with_absent(self, llcs: u32) -> Result<Self, TopologyError> {
        Ok(Self { possible: self.topology.possible_cpus(llcs)?, ..self })
    }

    /// CPUs that have an id, the first of which are present.
    #[must_use]
    pub fn possible(&self) -> u32 {
        self.possible
    }

    /// The APIC id of the CPU with this sequential number.
    #[must_use]
    pub fn of(&self, cpu: u32) -> u32 {
        let Topology { cores, threads, .. } = self.topology;
        let (thread, core, llc) = (cpu % threads, cpu / threads % cores, cpu / threads / cores);
        llc << self.package_shift() | core << self.thread_bits | thread
    }

    /// Whether some CPU can only be reached in x2APIC mode.
    #[must_use]
    pub fn need_x2apic(&self) -> bool {
        self.of(self.possible - 1) > MAX_XAPIC_ID
    }

    /// The shape that is numbered.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Bits that number threads of a core.
    #[must_use]
    pub fn thread_bits(&self) -> u32 {
        self.thread_bits
    }

    /// Bits that number cores of an LLC.
    #[must_use]
    pub fn core_bits(&self) -> u32 {
        self.core_bits
    }

    /// Bits below the number of the LLC, which is the package.
    #[must_use]
    pub fn package_shift(&self) -> u32 {
        self.core_bits + self.thread_bits
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ktstr_proto::topology::PRESETS;

    use super::*;

    #[test]
    fn presets_have_distinct_ids_and_two_need_x2apic() {
        let mut beyond = Vec::new();
        for preset in &PRESETS {
            let ids = ApicIds::new(preset.topology).unwrap();
            let seen: HashSet<_> = (0..preset.topology.cpus()).map(|cpu| ids.of(cpu)).collect();
            assert_eq!(seen.len() as u32, preset.topology.cpus());
            if ids.need_x2apic() {
                beyond.push(preset.name);
            }
        }
        assert_eq!(beyond, ["252cpu-14llc-smt", "252cpu-14llc-nosmt"]);
    }

    #[test]
    fn no_shape_has_ids_beyond_the_extended_destination() {
        for (llcs, cores, threads) in [(512, 1, 1), (18, 9, 3), (1, 257, 1), (34, 3, 5), (5, 5, 17)] {
            let ids = ApicIds::new(Topology { numa_nodes: 1, llcs, cores, threads }).unwrap();
            assert!((255..4096).contains(&ids.of(llcs * cores * threads - 1)));
        }
        assert!(ApicIds::new(Topology { numa_nodes: 1, llcs: u32::MAX, cores: 2, threads: 2 }).is_err());
    }
}
