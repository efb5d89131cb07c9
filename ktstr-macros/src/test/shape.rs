//! The machine that a test asks for: whether it can be built, and whether it is within the test's own bounds.
//!
//! What the test does not say is its scheduler's, which a macro does not see; without one it is the default.

use proc_macro2::Span;
use syn::{Error, Result};

use super::checks::{key_span, value_span};
use crate::{
    attributes::Attributes,
    limits::{MAX_CPUS, too_many_cpus, too_many_nodes, uneven},
};

/// Nodes, LLCs, cores, threads of a test that says neither them nor a scheduler;
/// `ktstr::host::KtstrTestEntry::DEFAULT_SHAPE`.
const DEFAULT_SHAPE: [u32; 4] = [1, 1, 2, 1];

pub fn check(attributes: &Attributes) -> Result<()> {
    let default = attributes.find("scheduler").is_none().then_some(DEFAULT_SHAPE);
    let mut shape = [None; 4];
    for (at, key) in super::SHAPE.iter().enumerate() {
        shape[at] = attributes.positive_u32(key)?.or(default.map(|default| default[at]));
    }
    let [nodes, llcs, cores, threads] = shape;
    if let (Some(llcs), Some(nodes)) = (llcs, nodes)
        && let Some(message) = uneven(llcs, nodes, "`llcs`")
    {
        return Err(Error::new(said_span(attributes, &["llcs", "numa_nodes"]), message));
    }
    if let Some((largest, message)) = too_many_cpus([llcs, cores, threads]) {
        return Err(Error::new(value_span(attributes, ["llcs", "cores", "threads"][largest]), message));
    }
    if let Some(message) = nodes.and_then(too_many_nodes) {
        return Err(Error::new(value_span(attributes, "numa_nodes"), message));
    }
    absent(attributes, llcs, cores, threads)?;
    bounds(attributes, shape)
}

/// Those that are not there count among the CPUs that may be.
fn absent(
    attributes: &Attributes,
    llcs: Option<u32>,
    cores: Option<u32>,
    threads: Option<u32>,
) -> Result<()> {
    let Some(absent) = attributes.positive_u32("absent_llcs")? else { return Ok(()) };
    let [llcs, cores, threads] = [llcs, cores, threads].map(|size| u128::from(size.unwrap_or(1)));
    let possible = (llcs + u128::from(absent)) * cores * threads;
    let most = u128::from(MAX_CPUS);
    if possible <= most {
        return Ok(());
    }
    let advice = match most / (cores * threads) - llcs {
        0 => "there is room for none".to_owned(),
        fit => format!("take at most {fit}"),
    };
    let message = format!(
        "with {absent} absent LLCs {possible} CPUs are possible, more than the {most} a machine can have: {advice}"
    );
    Err(Error::new(value_span(attributes, "absent_llcs"), message))
}

/// A machine that is known must be within the test's own bounds.
fn bounds(attributes: &Attributes, [nodes, llcs, cores, threads]: [Option<u32>; 4]) -> Result<()> {
    let cpus = match (llcs, cores, threads) {
        // It is small enough.
        (Some(llcs), Some(cores), Some(threads)) => Some(llcs * cores * threads),
        _ => None,
    };
    for (what, size, name) in
        [("llcs", llcs, "LLCs"), ("cpus", cpus, "CPUs"), ("numa_nodes", nodes, "NUMA nodes")]
    {
        let Some(size) = size else { continue };
        for (prefix, wrong, advice) in
            [("min", "below", "larger or the bound smaller"), ("max", "above", "smaller or the bound larger")]
        {
            let key = format!("{prefix}_{what}");
            let Some(limit) = attributes.positive_u32(&key)? else { continue };
            if (prefix == "min" && size < limit) || (prefix == "max" && size > limit) {
                let message = format!(
                    "the test's own machine has {size} {name}, {wrong} `{key} = {limit}`: make it {advice}"
                );
                return Err(Error::new(value_span(attributes, &key), message));
            }
        }
    }
    if attributes.flag("requires_smt")? == Some(true) && threads == Some(1) {
        let message = "the test's own machine has one thread per core, and `requires_smt` wants more: say `threads = 2`";
        let span = match attributes.find("threads") {
            Some(_) => value_span(attributes, "threads"),
            None => key_span(attributes, "requires_smt"),
        };
        return Err(Error::new(span, message));
    }
    Ok(())
}

/// The first of these that the test says.
fn said_span(attributes: &Attributes, keys: &[&str]) -> Span {
    let said = keys.iter().find(|key| attributes.find(key).is_some());
    said.map_or_else(Span::call_site, |key| key_span(attributes, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_that_of_the_tests() {
        let source = include_str!("../../../src/host/entry.rs");
        let [nodes, llcs, cores, threads] = DEFAULT_SHAPE;
        let declared = format!(
            "Topology = Topology {{ numa_nodes: {nodes}, llcs: {llcs}, cores: {cores}, threads: {threads} }}"
        );
        assert!(source.contains(&declared), "{declared}");
    }
}
