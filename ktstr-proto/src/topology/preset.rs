//! Machine shapes with names: the 25 that a gauntlet runs over.
//!
//! A name says what matters of a shape (`12cpu-3llc-smt`); the names of earlier versions
//! (`smt-3llc`) stay valid as aliases. Next: `super::Topology` reads both wherever it reads a shape.

use super::Topology;
use crate::word::edits;

/// A shape with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Its name in earlier versions; empty where those had no such shape.
    pub alias: &'static str,
    /// The shape.
    pub topology: Topology,
}

impl Preset {
    /// Whether the shape can be had on aarch64, whose CPUs have one thread per core.
    pub fn on_aarch64(&self) -> bool {
        self.topology.threads == 1
    }
}

const fn preset(name: &'static str, alias: &'static str, shape: [u32; 4]) -> Preset {
    let [numa_nodes, llcs, cores, threads] = shape;
    Preset { name, alias, topology: Topology { numa_nodes, llcs, cores, threads } }
}

/// All of them.
pub const PRESETS: [Preset; 25] = [
    preset("4cpu-1llc-nosmt", "tiny-1llc", [1, 1, 4, 1]),
    preset("4cpu-2llc-nosmt", "tiny-2llc", [1, 2, 2, 1]),
    preset("9cpu-3llc-nosmt", "odd-3llc", [1, 3, 3, 1]),
    preset("15cpu-5llc-nosmt", "odd-5llc", [1, 5, 3, 1]),
    preset("14cpu-7llc-nosmt", "odd-7llc", [1, 7, 2, 1]),
    preset("8cpu-2llc-smt", "smt-2llc", [1, 2, 2, 2]),
    preset("12cpu-3llc-smt", "smt-3llc", [1, 3, 2, 2]),
    preset("32cpu-4llc-smt", "medium-4llc", [1, 4, 4, 2]),
    preset("64cpu-8llc-smt", "medium-8llc", [1, 8, 4, 2]),
    preset("128cpu-4llc-smt", "large-4llc", [1, 4, 16, 2]),
    preset("128cpu-8llc-smt", "large-8llc", [1, 8, 8, 2]),
    preset("240cpu-15llc-smt", "near-max-llc", [1, 15, 8, 2]),
    preset("252cpu-14llc-smt", "max-cpu", [1, 14, 9, 2]),
    preset("32cpu-4llc-nosmt", "medium-4llc-nosmt", [1, 4, 8, 1]),
    preset("64cpu-8llc-nosmt", "medium-8llc-nosmt", [1, 8, 8, 1]),
    preset("128cpu-4llc-nosmt", "large-4llc-nosmt", [1, 4, 32, 1]),
    preset("128cpu-8llc-nosmt", "large-8llc-nosmt", [1, 8, 16, 1]),
    preset("240cpu-15llc-nosmt", "near-max-llc-nosmt", [1, 15, 16, 1]),
    preset("252cpu-14llc-nosmt", "max-cpu-nosmt", [1, 14, 18, 1]),
    preset("2numa-16cpu-4llc-nosmt", "numa2-4llc", [2, 4, 4, 1]),
    preset("2numa-128cpu-8llc-smt", "numa2-8llc", [2, 8, 8, 2]),
    preset("2numa-128cpu-8llc-nosmt", "numa2-8llc-nosmt", [2, 8, 16, 1]),
    preset("4numa-32cpu-8llc-nosmt", "numa4-8llc", [4, 8, 4, 1]),
    preset("4numa-192cpu-12llc-smt", "numa4-12llc", [4, 12, 8, 2]),
    preset("2numa-32cpu-2llc-smt", "", [2, 2, 8, 2]),
];

/// The preset with this name or alias.
pub fn find(name: &str) -> Option<&'static Preset> {
    let known = PRESETS.iter().filter(|_| !name.is_empty());
    known.into_iter().find(|preset| preset.name == name || preset.alias == name)
}

/// The name or alias that `name` was most likely meant to be.
pub fn nearest(name: &str) -> &'static str {
    // Names are short; of anything longer than this the end does not matter.
    let given: String = name.chars().take(64).collect();
    let names = PRESETS.iter().flat_map(|preset| [preset.name, preset.alias]);
    names.filter(|name| !name.is_empty()).min_by_key(|known| edits(&given, known)).expect("there are presets")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_says_what_the_shape_is() {
        let mut names = HashSet::new();
        for preset in &PRESETS {
            let shape = preset.topology.checked().unwrap();
            let smt = if shape.threads > 1 { "smt" } else { "nosmt" };
            let mut name = format!("{}cpu-{}llc-{smt}", shape.cpus(), shape.llcs);
            if shape.numa_nodes > 1 {
                name = format!("{}numa-{name}", shape.numa_nodes);
            }
            assert_eq!(preset.name, name);
            let both = [preset.name, preset.alias].into_iter().filter(|name| !name.is_empty());
            for name in both {
                assert!(names.insert(name), "{name} names two shapes");
                assert_eq!(name.parse(), Ok(shape));
            }
        }
        assert_eq!(PRESETS.iter().filter(|preset| preset.on_aarch64()).count(), 14);
    }

    #[test]
    fn no_name_is_no_shape() {
        assert!(find("").is_none() && !nearest("").is_empty());
    }

    #[test]
    fn a_slip_of_the_pen_is_understood() {
        assert_eq!(nearest("12cpu-3lcc-smt"), "12cpu-3llc-smt");
        assert_eq!(nearest("numa4-8llx"), "numa4-8llc");
        assert_eq!(nearest("max-cpus"), "max-cpu");
        nearest("");
        nearest(&"x".repeat(1 << 20));
    }
}
