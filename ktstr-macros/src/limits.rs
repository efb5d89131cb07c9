//! How large a machine can be, for shapes that are written as numbers.
//!
//! The limits are those of `ktstr-proto/src/topology.rs`, which a macro cannot ask: a test compares the two.

/// Most CPUs.
pub const MAX_CPUS: u32 = 512;
/// Most NUMA nodes.
pub const MAX_NODES: u32 = 64;

/// Of LLCs, cores per LLC and threads per core, as far as they are known, more CPUs than there can be: which of the
/// three is the largest, and what to say.
pub fn too_many_cpus(known: [Option<u32>; 3]) -> Option<(usize, String)> {
    const NAMES: [&str; 3] = ["LLCs", "cores", "threads"];
    let sizes = known.map(|size| u128::from(size.unwrap_or(1)));
    let cpus: u128 = sizes.iter().product();
    if cpus <= MAX_CPUS.into() {
        return None;
    }
    let largest = (0..sizes.len()).max_by_key(|at| sizes[*at]).unwrap_or(0);
    let factors = (0..sizes.len()).filter(|at| known[*at].is_some());
    let factors: Vec<String> = factors.map(|at| format!("{} {}", sizes[at], NAMES[at])).collect();
    let fit = u128::from(MAX_CPUS) / (cpus / sizes[largest]);
    let advice = match fit {
        0 => "no number of one of them is small enough, so take fewer of two".to_owned(),
        fit => format!("take at most {fit} {}", NAMES[largest]),
    };
    let factors = factors.join(" × ");
    Some((
        largest,
        format!("{factors} are {cpus} CPUs, more than the {MAX_CPUS} a machine can have: {advice}"),
    ))
}

/// More nodes than there can be.
pub fn too_many_nodes(nodes: u32) -> Option<String> {
    let message = || format!("{nodes} NUMA nodes are more than the {MAX_NODES} a machine can have");
    (nodes > MAX_NODES).then(message)
}

/// LLCs that cannot be spread evenly; `counted` says where the whole machine's are counted.
pub fn uneven(llcs: u32, nodes: u32, counted: &str) -> Option<String> {
    if llcs.is_multiple_of(nodes) {
        return None;
    }
    let next = u64::from(llcs).next_multiple_of(nodes.into());
    Some(format!(
        "{llcs} LLCs cannot be divided evenly among {nodes} NUMA nodes; {counted} counts the whole machine: take {next}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_machines() {
        let cpus = include_str!("../../ktstr-proto/src/topology.rs");
        assert!(cpus.contains(&format!("pub const MAX_CPUS: u32 = {MAX_CPUS};")));
        let nodes = include_str!("../../ktstr-proto/src/topology/numa.rs");
        assert!(nodes.contains(&format!("pub const MAX_NODES: usize = {MAX_NODES};")));
    }

    #[test]
    fn what_is_advised_is_the_most_that_fits() {
        assert_eq!(too_many_cpus([Some(16), Some(16), Some(2)]), None);
        let (at, said) = too_many_cpus([Some(16), Some(17), Some(2)]).unwrap();
        assert_eq!(at, 1);
        assert!(said.ends_with("take at most 16 cores"), "{said}");
        // What is not known is one at least, and is not spoken of.
        let (at, said) = too_many_cpus([Some(600), None, None]).unwrap();
        assert_eq!(at, 0);
        assert!(
            said.starts_with("600 LLCs are 600 CPUs") && said.ends_with("take at most 512 LLCs"),
            "{said}"
        );
        let (_, said) = too_many_cpus([Some(u32::MAX); 3]).unwrap();
        assert!(said.contains("take fewer of two"), "{said}");
    }
}
