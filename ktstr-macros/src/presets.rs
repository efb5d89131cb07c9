//! Names of machines, for attributes that list some of them.
//!
//! The machines are in `ktstr-proto/src/topology/preset.rs`, which a macro cannot ask: a test compares the two.

use syn::{Error, Result};

use crate::attributes::{Attributes, near};

/// All names, then all aliases.
const NAMES: [&str; 49] = [
    "4cpu-1llc-nosmt",
    "4cpu-2llc-nosmt",
    "9cpu-3llc-nosmt",
    "15cpu-5llc-nosmt",
    "14cpu-7llc-nosmt",
    "8cpu-2llc-smt",
    "12cpu-3llc-smt",
    "32cpu-4llc-smt",
    "64cpu-8llc-smt",
    "128cpu-4llc-smt",
    "128cpu-8llc-smt",
    "240cpu-15llc-smt",
    "252cpu-14llc-smt",
    "32cpu-4llc-nosmt",
    "64cpu-8llc-nosmt",
    "128cpu-4llc-nosmt",
    "128cpu-8llc-nosmt",
    "240cpu-15llc-nosmt",
    "252cpu-14llc-nosmt",
    "2numa-16cpu-4llc-nosmt",
    "2numa-128cpu-8llc-smt",
    "2numa-128cpu-8llc-nosmt",
    "4numa-32cpu-8llc-nosmt",
    "4numa-192cpu-12llc-smt",
    "2numa-32cpu-2llc-smt",
    "tiny-1llc",
    "tiny-2llc",
    "odd-3llc",
    "odd-5llc",
    "odd-7llc",
    "smt-2llc",
    "smt-3llc",
    "medium-4llc",
    "medium-8llc",
    "large-4llc",
    "large-8llc",
    "near-max-llc",
    "max-cpu",
    "medium-4llc-nosmt",
    "medium-8llc-nosmt",
    "large-4llc-nosmt",
    "large-8llc-nosmt",
    "near-max-llc-nosmt",
    "max-cpu-nosmt",
    "numa2-4llc",
    "numa2-8llc",
    "numa2-8llc-nosmt",
    "numa4-8llc",
    "numa4-12llc",
];

/// Refuses a name in the list `key` that no machine has.
pub fn check(fields: &Attributes, key: &str) -> Result<()> {
    for text in fields.text_literals(key)? {
        let name = text.value();
        if !NAMES.contains(&name.as_str()) {
            let message = format!("unknown preset `{name}`{}", near(&name, &NAMES));
            return Err(Error::new(text.span(), message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_machines() {
        let source = include_str!("../../ktstr-proto/src/topology/preset.rs");
        let declared = source.split("preset(\"").skip(1).filter_map(|rest| rest.split_once(')'));
        let (mut names, mut aliases) = (Vec::new(), Vec::new());
        for (call, _) in declared {
            let mut texts = call.split('"').step_by(2);
            names.extend(texts.next());
            // One that has no earlier name has an empty one.
            aliases.extend(texts.next().filter(|alias| !alias.is_empty()));
        }
        assert_eq!([names, aliases].concat(), NAMES);
    }
}
