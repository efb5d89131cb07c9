//! What a run gets of this host: nothing special, a budget of CPUs, or CPUs and memory of its own.
//!
//! It is decided when the run is planned and held until its machine is gone. While others hold what is
//! needed it waits, because a machine that has a cache for itself is not there for long.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ktstr_proto::{
    AccelKind,
    run::{Performance, RunSpec},
    topology::Topology,
};

use super::{
    HostTopology, Placement,
    budget::{self, Budget, BudgetError},
    effects,
    locks::{self, Claim, Held, Holder, LockDir, LockError},
    placement::{self, Machine, PagesInUse, Refusals},
    topology::{CpuSet, TopologyError},
};

/// How long others may hold what is needed.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often they are looked at.
const AGAIN: Duration = Duration::from_millis(200);

/// What a run gets.
#[derive(Debug, Default)]
pub struct Grant {
    /// How it is held to it.
    pub share: Share,
    held: Option<Held>,
}

/// Which part of the host.
#[derive(Debug, Default)]
pub enum Share {
    /// Whatever the host's scheduler gives.
    #[default]
    Usual,
    /// These CPUs, beside others.
    Budget(Budget),
    /// These CPUs and that memory alone.
    Isolated(Placement),
}

/// Why it gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// The host is not known.
    #[error("decide what of this host the machine gets")]
    Host(#[from] TopologyError),
    /// This process does not know its own CPUs.
    #[error("ask which CPUs this process may use")]
    Allowed(#[source] io::Error),
    /// Isolation where nothing is gained.
    #[error(
        "performance_mode: accelerator {accel} emulates every instruction, and a host CPU of its own makes it no real one; KTSTR_NO_PERF_MODE=1 runs the test without"
    )]
    Emulated {
        /// The accelerator.
        accel: AccelKind,
    },
    /// The host lacks something.
    #[error("this host gives a machine nothing of its own (KTSTR_NO_PERF_MODE=1 runs the test without)")]
    Refused(#[from] Refusals),
    /// The budget is more than there is.
    #[error("hold the machine to a number of host CPUs")]
    Budget(#[from] BudgetError),
    /// Contract and bypass at once.
    #[error(
        "resource contract: a CPU cap promises other runs that LLCs are shared fairly, and {}=1 breaks the promise; give one of them",
        locks::BYPASS
    )]
    Contract,
    /// Locks cannot be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Others do not go.
    #[error("LLC {llc} was held by others for {} s: {holders}", PATIENCE.as_secs())]
    Busy {
        /// One that was needed.
        llc: usize,
        /// Who, as far as is known.
        holders: String,
    },
    /// Others keep the memory.
    #[error(
        "hugepages: of {wanted} pages of 2 MiB wanted on host node {node} others left {free} for {} s",
        PATIENCE.as_secs()
    )]
    Pages {
        /// Host node.
        node: u32,
        /// Wanted there.
        wanted: u64,
        /// Free at last.
        free: u64,
    },
}

impl GrantError {
    /// Whether something is merely missing here, so that the run counts as not run.
    pub fn is_missing(&self) -> bool {
        !matches!(self, Self::Contract | Self::Budget(BudgetError::Zero))
    }
}

impl Grant {
    /// Decides, for a machine with so much memory.
    pub fn decide(
        spec: &RunSpec,
        accel: AccelKind,
        memory_mb: u32,
        notes: &mut Vec<String>,
    ) -> Result<Self, GrantError> {
        let bypass = env::var_os(locks::BYPASS).is_some_and(|value| value == "1");
        let wanted = match (spec.performance, spec.cpu_budget) {
            (Performance::Isolated, _) if accel != AccelKind::Kvm => {
                return Err(GrantError::Emulated { accel });
            }
            (Performance::Isolated, cap) => {
                let told =
                    "a CPU cap is not for a machine that has CPUs of its own; it is left out of account";
                notes.extend(cap.map(|_| told.to_owned()));
                Wanted::Isolation(Machine { topology: &spec.topology, numa: &spec.numa, memory_mb })
            }
            (_, Some(_)) if bypass => return Err(GrantError::Contract),
            (Performance::Unassisted, cap) => Wanted::Budget(cap),
            (Performance::Usual, Some(cap)) => Wanted::Budget(Some(cap)),
            (Performance::Usual, None) => return Ok(Self::default()),
        };
        let host = || HostTopology::read(Path::new("/sys"));
        let allowed = effects::allowed().map_err(GrantError::Allowed)?;
        let locks = (!bypass).then(LockDir::of_environment);
        let grant = wait(&host, &allowed, locks.as_ref(), &wanted, PATIENCE)?;
        if let (Share::Budget(budget), None, true) =
            (&grant.share, spec.cpu_budget, scarce(&spec.topology, &grant))
        {
            let count = budget.cpus.len();
            let told = format!(
                "no_perf_mode: {count} host CPUs run {} vCPUs; --cpu-cap gives more",
                spec.topology.cpus()
            );
            notes.push(told);
        }
        Ok(grant)
    }

    /// Others may have it.
    pub fn release(&mut self) {
        self.held = None;
    }
}

fn scarce(topology: &Topology, grant: &Grant) -> bool {
    matches!(&grant.share, Share::Budget(budget) if budget.cpus.len() < topology.cpus() as usize)
}

enum Wanted<'a> {
    Isolation(Machine<'a>),
    Budget(Option<u32>),
}

/// Why something cannot be had now.
enum Obstacle {
    /// Others hold this LLC.
    Llc(usize),
    /// Others use the memory.
    Pages(PagesInUse),
}

/// Takes what is wanted, or waits for those who hold it.
fn wait(
    host: &dyn Fn() -> Result<HostTopology, TopologyError>,
    allowed: &CpuSet,
    locks: Option<&LockDir>,
    wanted: &Wanted<'_>,
    patience: Duration,
) -> Result<Grant, GrantError> {
    let begun = Instant::now();
    // What the host lacks even when nobody is there is not waited for. Nothing is touched that another has.
    drop(Plan::of(&host()?, allowed, None, wanted, &BTreeSet::new())?);
    loop {
        let obstacle = match round(&host()?, allowed, locks, wanted)? {
            Ok(grant) => return Ok(grant),
            Err(obstacle) => obstacle,
        };
        if begun.elapsed() >= patience {
            return Err(match obstacle {
                Obstacle::Llc(llc) => {
                    let holders = locks.map(LockDir::holders).unwrap_or_default();
                    GrantError::Busy { llc, holders: describe(&holders, llc) }
                }
                Obstacle::Pages(PagesInUse { node, wanted, free }) => {
                    GrantError::Pages { node, wanted, free }
                }
            });
        }
        thread::sleep(AGAIN);
    }
}

/// Tries all places there are; the inner error is what was in the way of the first.
fn round(
    host: &HostTopology,
    allowed: &CpuSet,
    locks: Option<&LockDir>,
    wanted: &Wanted<'_>,
) -> Result<Result<Grant, Obstacle>, GrantError> {
    let mut held = BTreeSet::new();
    loop {
        let plan = match Plan::of(host, allowed, locks, wanted, &held) {
            Ok(plan) => plan,
            // Nothing else is left: those who hold these are waited for.
            Err(error) => return held.first().map(|&llc| Err(Obstacle::Llc(llc))).ok_or(error),
        };
        match plan.take(host, allowed, locks)? {
            // Another one may be free.
            Err(Obstacle::Llc(llc)) => drop(held.insert(llc)),
            result => return Ok(result),
        }
    }
}

/// What a run would get.
enum Plan {
    Isolated(Placement),
    Budget {
        /// The first choice.
        budget: Budget,
        /// How many hold each LLC.
        shared: BTreeMap<usize, usize>,
        /// LLCs to leave alone.
        held: BTreeSet<usize>,
    },
}

impl Plan {
    /// Decides, leaving `held` alone.
    fn of(
        host: &HostTopology,
        allowed: &CpuSet,
        locks: Option<&LockDir>,
        wanted: &Wanted<'_>,
        held: &BTreeSet<usize>,
    ) -> Result<Self, GrantError> {
        match wanted {
            Wanted::Isolation(machine) => Ok(Self::Isolated(placement::place(host, allowed, held, machine)?)),
            Wanted::Budget(cap) => {
                let shared = locks.map(LockDir::shared).unwrap_or_default();
                let number = budget::number(host, allowed, *cap)?;
                let allowed = without(host, allowed, held);
                let budget = budget::choose(host, &allowed, &shared, &CpuSet::new(), number)?;
                Ok(Self::Budget { budget, shared, held: held.clone() })
            }
        }
    }

    /// Takes it, and asks the kernel for what can be tried without a machine.
    fn take(
        self,
        host: &HostTopology,
        allowed: &CpuSet,
        locks: Option<&LockDir>,
    ) -> Result<Result<Grant, Obstacle>, GrantError> {
        match self {
            Self::Isolated(placement) => {
                let llcs = placement.llcs.iter().copied().collect();
                let taken = locks.map(|locks| locks.take(&llcs, Claim::Exclusive)).transpose()?.transpose();
                let held = match taken {
                    Ok(held) => held,
                    Err(llc) => return Ok(Err(Obstacle::Llc(llc))),
                };
                // Not before: a thread of ours would run where another machine wants to be alone.
                let refusals = effects::trial(&placement);
                if !refusals.is_empty() {
                    return Err(Refusals(refusals).into());
                }
                match placement.pages_in_use(host) {
                    Some(pages) => Ok(Err(Obstacle::Pages(pages))),
                    None => Ok(Ok(Grant { share: Share::Isolated(placement), held })),
                }
            }
            Self::Budget { budget, shared, held } => {
                let Some(locks) = locks else {
                    return Ok(Ok(Grant { share: Share::Budget(budget), held: None }));
                };
                let allowed = without(host, allowed, &held);
                share(host, &allowed, locks, &shared, budget)
            }
        }
    }
}

/// Takes a budget; of an LLC that it shares with others, CPUs that they do not have, as long as there are any.
fn share(
    host: &HostTopology,
    allowed: &CpuSet,
    locks: &LockDir,
    shared: &BTreeMap<usize, usize>,
    mut budget: Budget,
) -> Result<Result<Grant, Obstacle>, GrantError> {
    let number = budget.cpus.len() as u32;
    let mut busy = CpuSet::new();
    loop {
        let llcs = match locks.take(&budget.llcs, Claim::Shared)? {
            Ok(llcs) => llcs,
            Err(llc) => return Ok(Err(Obstacle::Llc(llc))),
        };
        match locks.take_cpus(&budget.cpus.difference(&busy).copied().collect())? {
            Ok(cpus) => return Ok(Ok(Grant { share: Share::Budget(budget), held: Some(llcs.and(cpus)) })),
            Err(cpu) => drop(busy.insert(cpu)),
        }
        budget = budget::choose(host, allowed, shared, &busy, number)?;
    }
}

/// CPUs that are in none of these LLCs.
fn without(host: &HostTopology, allowed: &CpuSet, llcs: &BTreeSet<usize>) -> CpuSet {
    let free = |cpu: &&u32| !llcs.iter().any(|llc| host.llcs[*llc].cpus().contains(*cpu));
    allowed.iter().filter(free).copied().collect()
}

fn describe(holders: &[Holder], llc: usize) -> String {
    let of = holders.iter().filter(|holder| holder.llc == llc);
    let texts: Vec<_> = of.map(|holder| format!("process {} ({})", holder.pid, holder.command)).collect();
    if texts.is_empty() { "by whom cannot be seen from here".into() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests {
    use ktstr_proto::topology::Numa;

    use super::{
        super::topology::recorded::{self, SERVER},
        *,
    };

    const NOW: Duration = Duration::ZERO;

    fn directory() -> (tempfile::TempDir, LockDir) {
        let dir = tempfile::tempdir().unwrap();
        let locks = LockDir::at(&dir.path().canonicalize().unwrap());
        (dir, locks)
    }

    #[test]
    fn budgets_are_shared_and_keep_away_from_who_is_alone() {
        let host = recorded::written(SERVER);
        let (_dir, locks) = directory();
        let read = || Ok(host.clone());
        let granted = |cap| wait(&read, &host.cpus(), Some(&locks), &Wanted::Budget(Some(cap)), NOW);
        let alone = locks.take(&BTreeSet::from([0]), Claim::Exclusive).unwrap().unwrap();
        let cpus = |grant: &Grant| match &grant.share {
            Share::Budget(budget) => budget.clone(),
            other => panic!("{other:?}"),
        };
        let first = granted(20).unwrap();
        assert_eq!((cpus(&first).cpus.len(), cpus(&first).llcs), (20, BTreeSet::from([1, 2])));
        let beside = granted(20).unwrap();
        assert!(cpus(&beside).cpus.is_disjoint(&cpus(&first).cpus), "CPUs that the first does not have");
        drop(beside);
        let beside = granted(100).unwrap();
        assert!(!cpus(&beside).llcs.contains(&0));
        drop(first);
        drop(beside);
        // All CPUs are more than those that nobody has alone.
        let error = granted(128).unwrap_err();
        assert!(matches!(error, GrantError::Busy { llc: 0, .. }), "{error}");
        drop(alone);
        assert_eq!(cpus(&granted(128).unwrap()).cpus, host.cpus());
        assert!(matches!(granted(129), Err(GrantError::Budget(BudgetError::TooMany { .. }))));
    }

    #[test]
    fn a_grant_that_is_released_is_free_and_one_that_waits_gets_it() {
        let host = recorded::written(SERVER);
        let (_dir, locks) = directory();
        let everything = || Wanted::Budget(Some(128));
        let read = || Ok(host.clone());
        let alone = locks.take(&BTreeSet::from([3]), Claim::Exclusive).unwrap().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&read, &host.cpus(), Some(&locks), &everything(), PATIENCE));
            drop(alone);
            let mut grant = waiting.join().unwrap().unwrap();
            assert!(locks.take(&BTreeSet::from([3]), Claim::Exclusive).unwrap().is_err());
            grant.release();
            locks.take(&BTreeSet::from([3]), Claim::Exclusive).unwrap().unwrap();
        });
    }

    /// The kernel is asked only for CPUs that nobody else has, and pages in use are waited for.
    #[test]
    fn a_machine_alone_waits_for_caches_and_pages() {
        let pages = |free: u64| {
            let text = recorded::TWO_CORES.replace("nr_hugepages\t0", "nr_hugepages\t128");
            recorded::host(&text.replace("free_hugepages\t0", &format!("free_hugepages\t{free}")))
        };
        let (topology, numa) = ("1n1l1c1t".parse().unwrap(), Numa::default());
        let wanted = Wanted::Isolation(Machine { topology: &topology, numa: &numa, memory_mb: 256 });
        let (_dir, locks) = directory();
        let alone = locks.take(&BTreeSet::from([0]), Claim::Exclusive).unwrap().unwrap();
        let allowed = pages(0).cpus();
        let error = wait(&|| Ok(pages(0)), &allowed, Some(&locks), &wanted, NOW).unwrap_err();
        assert!(matches!(error, GrantError::Busy { llc: 0, .. }), "{error}");
        drop(alone);
        let calls = std::cell::Cell::new(0);
        let freed_later = || {
            calls.set(calls.get() + 1);
            Ok(pages(if calls.get() > 3 { 128 } else { 5 }))
        };
        match wait(&|| Ok(pages(5)), &allowed, Some(&locks), &wanted, NOW) {
            Err(GrantError::Pages { node: 0, wanted: 128, free: 5 }) => {
                let grant = wait(&freed_later, &allowed, Some(&locks), &wanted, PATIENCE).unwrap();
                assert!(matches!(grant.share, Share::Isolated(_)) && calls.get() > 3);
            }
            // Where this host neither pins nor grants a real-time class.
            Err(GrantError::Refused(refusals)) => assert!(refusals.0.iter().all(|refusal| {
                matches!(refusal, placement::Refusal::Pin { .. } | placement::Refusal::Realtime { .. })
            })),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_host_lacks_is_not_waited_for() {
        let host = recorded::host(recorded::TWO_CORES);
        let (topology, numa) = ("1n2l1c1t".parse().unwrap(), Numa::default());
        let machine = Machine { topology: &topology, numa: &numa, memory_mb: 256 };
        let (_dir, locks) = directory();
        let wanted = Wanted::Isolation(machine);
        let error = wait(&|| Ok(host.clone()), &host.cpus(), Some(&locks), &wanted, PATIENCE).unwrap_err();
        assert!(error.is_missing());
        let GrantError::Refused(refusals) = error else { panic!("{error}") };
        assert!(refusals.to_string().starts_with("performance mode: the host refuses CPUs: 2"));
        assert!(!GrantError::Contract.is_missing());
        assert!(GrantError::Contract.to_string().contains("resource contract"));
    }
}
