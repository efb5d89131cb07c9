//! `struct scx_sched` and its event counters (`kernel/sched/ext.c`, `ext_internal.h`).
//!
//! Two layouts are known, told apart by BTF only:
//! * `scx_sched.pcpu → scx_sched_pcpu.event_stats` (6.18, 6.17.7 and later);
//! * `scx_sched.event_stats_cpu → scx_event_stats` (6.16, 6.17 before).

use super::locate::LiveKernel;
use super::value::{Gap, Reading};
use crate::addr::Kva;
use crate::btf::{Field, FieldKind, FieldMissing, KernelTypes};
use crate::paging::{AccessError, KernelMem};

/// The counters known by name; a kernel may lack some and have others.
pub const EVENT_NAMES: [&str; 13] = [
    "SCX_EV_SELECT_CPU_FALLBACK",
    "SCX_EV_DISPATCH_LOCAL_DSQ_OFFLINE",
    "SCX_EV_DISPATCH_KEEP_LAST",
    "SCX_EV_ENQ_SKIP_EXITING",
    "SCX_EV_ENQ_SKIP_MIGRATION_DISABLED",
    "SCX_EV_REENQ_IMMED",
    "SCX_EV_REENQ_LOCAL_REPEAT",
    "SCX_EV_REFILL_SLICE_DFL",
    "SCX_EV_BYPASS_DURATION",
    "SCX_EV_BYPASS_DISPATCH",
    "SCX_EV_BYPASS_ACTIVATE",
    "SCX_EV_INSERT_NOT_OWNED",
    "SCX_EV_SUB_BYPASS_DISPATCH",
];

/// Counters of `struct scx_event_stats` are few; a damaged BTF may claim more.
const MAX_STATS_SIZE: u64 = 4096;

/// Where the event counters are.
#[derive(Debug)]
pub struct ScxLayout {
    stats: Result<StatsLayout, FieldMissing>,
    counters: Vec<(String, Result<Field, FieldMissing>)>,
}

#[derive(Debug)]
struct StatsLayout {
    /// The member of `scx_sched` that holds the per-CPU pointer.
    pointer: Field,
    /// Distance from what it points at to the `scx_event_stats`.
    into: u64,
    size: u64,
}

/// The sched_ext part of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scx {
    /// No BPF scheduler is loaded.
    NotLoaded,
    /// One is.
    Loaded {
        /// Address of its `scx_sched`: another one means another scheduler.
        instance: Kva,
        /// The known counters, in the order of [`EVENT_NAMES`], then any others this kernel has;
        /// each the sum over all possible CPUs, as `/sys/kernel/sched_ext/root/events` shows it.
        events: Vec<Event>,
    },
    /// It cannot be told.
    Unknown(Gap),
}

/// An event counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The kernel's name.
    pub name: String,
    /// Its value.
    pub count: Reading<i64>,
}

impl ScxLayout {
    /// Looks up which layout this kernel has.
    pub fn of(types: &KernelTypes) -> Self {
        let mut names: Vec<String> = EVENT_NAMES.iter().map(|&name| name.to_owned()).collect();
        let own = types.members("scx_event_stats").unwrap_or_default();
        names.extend(own.into_iter().filter(|name| !EVENT_NAMES.contains(&name.as_str())).take(64));
        let counters = names.into_iter().map(|name| {
            let field = types.field("scx_event_stats", &name);
            (name, field)
        });
        Self { counters: counters.collect(), stats: StatsLayout::of(types) }
    }

    /// The members this kernel lacks.
    pub fn absent(&self) -> impl Iterator<Item = &FieldMissing> {
        let counters = self.counters.iter().filter_map(|(_, field)| field.as_ref().err());
        self.stats.as_ref().err().into_iter().chain(counters)
    }

    /// Reads the counters of the scheduler that `root` (the address of `scx_root`) points at.
    pub fn read(&self, mem: &KernelMem<'_>, kernel: &LiveKernel, root: Kva) -> Scx {
        let read_root = || {
            let unreadable = |source| Gap::Unreadable { what: "scx_root", source };
            mem.read_u64(root).map(Kva).map_err(unreadable)
        };
        let instance = match read_root() {
            Ok(instance) if instance.is_null() => return Scx::NotLoaded,
            Ok(instance) => instance,
            Err(gap) => return Scx::Unknown(gap),
        };
        let totals = self.totals(mem, kernel, instance);
        // The scheduler may have gone, and its memory with it, while the counters were read.
        match read_root() {
            Ok(now) if now == instance => {}
            Ok(_) => return Scx::Unknown(Gap::Torn { what: "scx_root" }),
            Err(gap) => return Scx::Unknown(gap),
        }
        let events = self.counters.iter().enumerate().map(|(nth, (name, field))| Event {
            name: name.clone(),
            count: match (field, &totals) {
                (Err(missing), _) => Err(Gap::Absent(missing.clone())),
                (_, Err(gap)) => Err(gap.clone()),
                (_, Ok(totals)) => totals[nth].clone(),
            },
        });
        Scx::Loaded { instance, events: events.collect() }
    }

    /// Sums each counter over all possible CPUs.
    fn totals(&self, mem: &KernelMem<'_>, kernel: &LiveKernel, instance: Kva) -> Reading<Vec<Reading<i64>>> {
        let stats = self.stats.as_ref().map_err(|missing| Gap::Absent(missing.clone()))?;
        let what = "scx_sched's per-CPU pointer";
        let pointer = instance
            .checked_add(stats.pointer.offset)
            .ok_or(AccessError::Wraps { kva: instance, len: 8 })
            .and_then(|at| mem.read_u64(at))
            .map_err(|source| Gap::Unreadable { what, source })?;
        let mut totals = vec![Ok(0i64); self.counters.len()];
        let mut bytes = vec![0; stats.size as usize];
        for cpu in kernel.cpus() {
            let at = Kva(pointer).wrapping_add(cpu.offset).wrapping_add(stats.into);
            mem.read(at, &mut bytes).map_err(|source| Gap::Unreadable { what: "scx_event_stats", source })?;
            for (total, (_, field)) in totals.iter_mut().zip(&self.counters) {
                if let Ok(field) = field {
                    *total = add(total.clone(), counter(&bytes, field));
                }
            }
        }
        Ok(totals)
    }
}

impl StatsLayout {
    fn of(types: &KernelTypes) -> Result<Self, FieldMissing> {
        let size = types.size_of("scx_event_stats")?;
        if size > MAX_STATS_SIZE {
            return Err(FieldMissing::Damaged {
                name: "scx_event_stats",
                path: String::new(),
                what: "it is larger than any list of counters",
            });
        }
        let (pointer, path, into) = match types.field("scx_sched", "pcpu") {
            Ok(pointer) => (pointer, "pcpu", types.field("scx_sched_pcpu", "event_stats")?.offset),
            Err(_) => (types.field("scx_sched", "event_stats_cpu")?, "event_stats_cpu", 0),
        };
        if pointer.kind != FieldKind::Pointer {
            return Err(FieldMissing::Damaged {
                name: "scx_sched",
                path: path.to_owned(),
                what: "it is no pointer",
            });
        }
        Ok(Self { pointer, into, size })
    }
}

/// Cuts one counter out of the bytes of a `scx_event_stats`.
fn counter(bytes: &[u8], field: &Field) -> Reading<i64> {
    let no_scalar = Gap::NotScalar { what: "scx_event_stats counter", size: field.size };
    if field.size != 8 || field.bits.is_some() {
        return Err(no_scalar);
    }
    usize::try_from(field.offset)
        .ok()
        .and_then(|at| bytes.get(at..)?.first_chunk())
        .map(|eight| i64::from_le_bytes(*eight))
        .ok_or(no_scalar)
}

fn add(total: Reading<i64>, more: Reading<i64>) -> Reading<i64> {
    let (total, more) = (total?, more?);
    total.checked_add(more).ok_or(Gap::Implausible {
        what: "sum of an event counter",
        value: i128::from(total) + i128::from(more),
    })
}
