//! How many and which host CPUs a machine without claims may use.
//!
//! LLCs are taken whole, in an order that keeps nodes together and prefers those that others already use
//! (so that the rest stays quiet); of the last one only as many CPUs are taken as make the number exact.
//! The locks are on whole LLCs all the same.

use std::collections::{BTreeMap, BTreeSet};

use super::topology::{CpuSet, HostTopology, format_list};

/// Share of the allowed CPUs where no number is given, percent.
pub const DEFAULT_SHARE_PCT: usize = 30;

/// A budget that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// No CPU at all.
    #[error("a CPU cap of 0 leaves nothing to run on: give at least 1")]
    Zero,
    /// More than there are.
    #[error(
        "a CPU cap of {wanted} where this process may use {allowed} CPUs ({cpus}): give at most {allowed}"
    )]
    TooMany {
        /// Asked for.
        wanted: u32,
        /// Host CPUs in the affinity mask.
        allowed: usize,
        /// Which.
        cpus: String,
    },
}

/// Host CPUs that a run may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Exactly as many as were asked for.
    pub cpus: CpuSet,
    /// The LLCs they are in, to be locked whole.
    pub llcs: BTreeSet<usize>,
}

/// How many CPUs: as many as were asked for, or a share of those allowed, rounded up.
pub fn number(host: &HostTopology, allowed: &CpuSet, cap: Option<u32>) -> Result<u32, BudgetError> {
    let count = host.cpus().intersection(allowed).count();
    match cap {
        Some(0) => Err(BudgetError::Zero),
        Some(wanted) => Ok(wanted),
        None => Ok((count * DEFAULT_SHARE_PCT).div_ceil(100).max(1) as u32),
    }
}

/// Chooses. `shared` says how many others hold each LLC with a budget of theirs; CPUs of such budgets are
/// `busy` and taken only where nothing else is left.
pub fn choose(
    host: &HostTopology,
    allowed: &CpuSet,
    shared: &BTreeMap<usize, usize>,
    busy: &CpuSet,
    number: u32,
) -> Result<Budget, BudgetError> {
    let allowed: CpuSet = host.cpus().intersection(allowed).copied().collect();
    if number as usize > allowed.len() {
        let (count, cpus) = (allowed.len(), format_list(&allowed));
        return Err(BudgetError::TooMany { wanted: number, allowed: count, cpus });
    }
    let number = number as usize;
    let usable = |llc: usize| -> Vec<u32> {
        // Threads of one core stay together.
        host.llcs[llc].cores.iter().flatten().copied().filter(|cpu| allowed.contains(cpu)).collect()
    };
    let mut nodes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (number, llc) in host.llcs.iter().enumerate() {
        nodes.entry(llc.node).or_default().push(number);
    }
    let in_use = |llc: &usize| shared.get(llc).copied().unwrap_or(0);
    let mut order: Vec<(u32, Vec<usize>)> = nodes.into_iter().collect();
    // A node that holds it all comes before one that does not, then the one most in use.
    order.sort_by_key(|(node, llcs)| {
        let room: usize = llcs.iter().map(|llc| usable(*llc).len()).sum();
        (room < number, std::cmp::Reverse(llcs.iter().map(in_use).sum::<usize>()), *node)
    });
    let mut budget = Budget { cpus: CpuSet::new(), llcs: BTreeSet::new() };
    for (_, llcs) in &mut order {
        llcs.sort_by_key(|llc| (std::cmp::Reverse(in_use(llc)), *llc));
    }
    for of_others in [false, true] {
        for &llc in order.iter().flat_map(|(_, llcs)| llcs) {
            let cpus = usable(llc).into_iter().filter(|cpu| busy.contains(cpu) == of_others);
            let taken: Vec<u32> = cpus.take(number - budget.cpus.len()).collect();
            if !taken.is_empty() {
                budget.cpus.extend(taken);
                budget.llcs.insert(llc);
            }
        }
    }
    Ok(budget)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::{
        super::topology::recorded::{self, DESKTOP, SERVER, TWO_CORES},
        *,
    };

    fn chosen(host: &HostTopology, cap: Option<u32>) -> Budget {
        choose(host, &host.cpus(), &BTreeMap::new(), &CpuSet::new(), number(host, &host.cpus(), cap).unwrap())
            .unwrap()
    }

    #[test]
    fn without_a_number_it_is_three_tenths_and_at_least_one() {
        for (host, expected) in
            [(recorded::host(TWO_CORES), 1), (recorded::written(DESKTOP), 5), (recorded::written(SERVER), 39)]
        {
            assert_eq!(chosen(&host, None).cpus.len(), expected);
        }
        let one = recorded::host("devices/system/cpu/online\t0\n");
        assert_eq!(chosen(&one, None).cpus.len(), 1);
    }

    #[test]
    fn llcs_are_taken_whole_and_the_last_in_part() {
        let host = recorded::written(SERVER);
        let budget = chosen(&host, Some(20));
        assert_eq!(format_list(&budget.cpus), "0-9,64-73");
        assert_eq!(budget.llcs, BTreeSet::from([0, 1]));
        assert_eq!(chosen(&host, Some(3)).cpus, CpuSet::from([0, 1, 64]), "threads of a core together");
    }

    #[test]
    fn what_others_share_already_comes_first_and_nodes_are_not_mixed_needlessly() {
        let host = recorded::written(SERVER);
        let shared = BTreeMap::from([(6, 2), (1, 1)]);
        let budget = choose(&host, &host.cpus(), &shared, &CpuSet::new(), 16).unwrap();
        assert_eq!(budget.llcs, BTreeSet::from([6]));
        let budget = choose(&host, &host.cpus(), &shared, &CpuSet::new(), 32).unwrap();
        assert_eq!(budget.llcs, BTreeSet::from([4, 6]));
        // Only the first node has room for all of it within the mask.
        let allowed: CpuSet = (0..40).collect();
        let budget = choose(&host, &allowed, &shared, &CpuSet::new(), 20).unwrap();
        assert_eq!(budget.llcs, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn too_much_and_nothing_are_refused() {
        let host = recorded::host(TWO_CORES);
        assert_eq!(number(&host, &host.cpus(), Some(0)), Err(BudgetError::Zero));
        let error = choose(&host, &host.cpus(), &BTreeMap::new(), &CpuSet::new(), 3).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a CPU cap of 3 where this process may use 2 CPUs (0-1): give at most 2"
        );
    }

    proptest! {
        #[test]
        fn the_number_is_exact_whatever_may_be_used(
            mask in proptest::collection::btree_set(0u32..128, 1..128),
            share in 0u32..100,
            shared in proptest::collection::btree_map(0usize..8, 1usize..4, 0..8),
        ) {
            static HOST: LazyLock<HostTopology> = LazyLock::new(|| recorded::written(SERVER));
            let host = &*HOST;
            let cap = 1 + share * (mask.len() as u32 - 1) / 99;
            let budget = choose(host, &mask, &shared, &CpuSet::new(), cap).unwrap();
            prop_assert_eq!(budget.cpus.len(), cap as usize);
            prop_assert!(budget.cpus.is_subset(&mask));
            prop_assert_eq!(&budget.llcs, &host.llcs_of(&budget.cpus));
            // All but one of them are used as far as they may be.
            let partly = budget.llcs.iter().filter(|llc| {
                host.llcs[**llc].cpus().intersection(&mask).any(|cpu| !budget.cpus.contains(cpu))
            });
            prop_assert!(partly.count() <= 1);
        }
    }
}
