//! `struct rq`: the run queue of a CPU (`kernel/sched/sched.h`).

use super::value::{Gap, Reading, read_field};
use crate::addr::{CpuId, Kva};
use crate::btf::{Field, FieldMissing, KernelTypes};
use crate::paging::KernelMem;

/// Where the members are; each may be missing by itself.
#[derive(Debug)]
pub struct RqLayout {
    cpu: Field,
    rd: Result<Field, FieldMissing>,
    nr_running: Result<Field, FieldMissing>,
    clock: Result<Field, FieldMissing>,
    scx_nr_running: Result<Field, FieldMissing>,
    scx_flags: Result<Field, FieldMissing>,
    local_dsq_nr: Result<Field, FieldMissing>,
}

/// What a sample holds of one run queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rq {
    /// Runnable tasks of all classes, the running one included.
    pub nr_running: Reading<u32>,
    /// `rq->clock` in nanoseconds of guest time.
    pub clock: Reading<u64>,
    /// Runnable tasks of the sched_ext class.
    pub scx_nr_running: Reading<u32>,
    /// `SCX_RQ_*` bits.
    pub scx_flags: Reading<u32>,
    /// Tasks queued on the CPU's local DSQ.
    pub local_dsq_nr: Reading<u32>,
}

impl RqLayout {
    /// Looks the members up. Without `rq.cpu` nothing can tell a run queue from other memory, so
    /// that one is required.
    pub fn of(types: &KernelTypes) -> Result<Self, FieldMissing> {
        let field = |path| types.field("rq", path);
        Ok(Self {
            cpu: field("cpu")?,
            rd: field("rd"),
            nr_running: field("nr_running"),
            clock: field("clock"),
            scx_nr_running: field("scx.nr_running"),
            scx_flags: field("scx.flags"),
            local_dsq_nr: field("scx.local_dsq.nr"),
        })
    }

    /// Reads the run queue at `at`, which should be that of `cpu`.
    pub fn read(&self, mem: &KernelMem<'_>, at: Kva, cpu: CpuId) -> Rq {
        if let Err(gap) = self.identify(mem, at, cpu) {
            return Rq::missing(&gap);
        }
        Rq {
            nr_running: scalar(mem, at, &self.nr_running, "rq.nr_running"),
            clock: scalar(mem, at, &self.clock, "rq.clock"),
            scx_nr_running: scalar(mem, at, &self.scx_nr_running, "rq.scx.nr_running"),
            scx_flags: scalar(mem, at, &self.scx_flags, "rq.scx.flags"),
            local_dsq_nr: scalar(mem, at, &self.local_dsq_nr, "rq.scx.local_dsq.nr"),
        }
    }

    /// The members this kernel lacks.
    pub fn absent(&self) -> impl Iterator<Item = &FieldMissing> {
        [&self.nr_running, &self.clock, &self.scx_nr_running, &self.scx_flags, &self.local_dsq_nr]
            .into_iter()
            .filter_map(|field| field.as_ref().err())
    }

    /// Whether `sched_init` has set the run queue at `at` up for `cpu`.
    pub fn is_set_up(&self, mem: &KernelMem<'_>, at: Kva, cpu: CpuId) -> Reading<()> {
        self.identify(mem, at, cpu)?;
        if let Ok(rd) = &self.rd {
            // A freshly cleared run queue says that it belongs to CPU 0; a root domain it has not.
            let what = "rq.rd";
            let value = read_field(mem, at, rd, what)?;
            if value == 0 {
                return Err(Gap::Implausible { what, value });
            }
        }
        Ok(())
    }

    /// Whether the memory at `at` says that it is the run queue of `cpu`.
    pub fn identify(&self, mem: &KernelMem<'_>, at: Kva, cpu: CpuId) -> Reading<()> {
        match read_field(mem, at, &self.cpu, "rq.cpu")? {
            found if found == i128::from(cpu.0) => Ok(()),
            // At most 64 bits were read.
            found => Err(Gap::ForeignRq { cpu, found: found as i64 }),
        }
    }
}

impl Rq {
    fn missing(gap: &Gap) -> Self {
        Self {
            nr_running: Err(gap.clone()),
            clock: Err(gap.clone()),
            scx_nr_running: Err(gap.clone()),
            scx_flags: Err(gap.clone()),
            local_dsq_nr: Err(gap.clone()),
        }
    }
}

fn scalar<T: TryFrom<i128>>(
    mem: &KernelMem<'_>,
    at: Kva,
    field: &Result<Field, FieldMissing>,
    what: &'static str,
) -> Reading<T> {
    let field = field.as_ref().map_err(|missing| Gap::Absent(missing.clone()))?;
    let value = read_field(mem, at, field, what)?;
    T::try_from(value).map_err(|_| Gap::Implausible { what, value })
}
