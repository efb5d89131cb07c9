//! A running kernel as the walkers see it: what its file says, where it lies, its memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use super::list;
use super::locate::{CpuArea, LiveKernel};
use super::mirror::CpuMask;
use super::profile::Profile;
use super::value::{Gap, Reading};
use crate::addr::Kva;
use crate::btf::{FieldMissing, KernelTypes};
use crate::paging::KernelMem;

/// Names and values, in the kernel's order.
pub type Enumerators = Arc<[(String, i64)]>;

/// A structure and a member of it.
type Path = (&'static str, &'static str);

/// Answers of the type information, remembered: a walk asks the same thing for each node.
#[derive(Debug, Default)]
pub struct Known {
    offsets: RefCell<HashMap<Path, Result<u64, FieldMissing>>>,
    enumerations: RefCell<HashMap<&'static str, Result<Enumerators, FieldMissing>>>,
}

impl Known {
    fn offset(
        &self,
        types: &KernelTypes,
        name: &'static str,
        path: &'static str,
    ) -> Result<u64, FieldMissing> {
        let find = || types.field(name, path).map(|field| field.offset);
        self.offsets.borrow_mut().entry((name, path)).or_insert_with(find).clone()
    }

    fn enumerators(&self, types: &KernelTypes, of: &'static str) -> Result<Enumerators, FieldMissing> {
        let find = || types.enumerators(of).map(Arc::from);
        self.enumerations.borrow_mut().entry(of).or_insert_with(find).clone()
    }
}

/// One kernel at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'k, 'm> {
    /// What its file says.
    pub profile: &'k Profile,
    /// Where it lies.
    pub live: &'k LiveKernel,
    /// Its address space.
    pub mem: KernelMem<'m>,
}

impl View<'_, '_> {
    /// Where the variable lies now.
    pub fn symbol(&self, symbol: &'static str) -> Reading<Kva> {
        let link = self.profile.symbols().get(symbol).ok_or(Gap::NoSymbol { symbol })?;
        Ok(self.live.at(link))
    }

    /// Where the per-CPU variable of one CPU lies.
    pub fn per_cpu(&self, symbol: &'static str, cpu: CpuArea) -> Reading<Kva> {
        let link = self.profile.symbols().get(symbol).ok_or(Gap::NoSymbol { symbol })?;
        Ok(self.live.per_cpu(link, cpu))
    }

    /// A variable of 64 bits, a pointer for instance.
    pub fn word(&self, symbol: &'static str) -> Reading<u64> {
        list::pointer(&self.mem, self.symbol(symbol)?, symbol).map(|word| word.0)
    }

    /// A variable of 32 bits.
    pub fn half(&self, symbol: &'static str) -> Reading<u32> {
        let at = self.symbol(symbol)?;
        self.mem.read_u32(at).map_err(|source| Gap::Unreadable { what: symbol, source })
    }

    /// A mask of CPUs at `at`, cut to those that are possible: a kernel that supports thousands
    /// allocates masks for as many as there can be, and what lies behind them is something else.
    pub fn cpu_mask(&self, at: Kva, what: &'static str) -> Reading<CpuMask> {
        let possible = self.possible();
        let mut bytes = vec![0; possible.len()];
        self.mem.read(at, &mut bytes).map_err(|source| Gap::Unreadable { what, source })?;
        Ok(CpuMask::new(bytes).within(&possible))
    }

    /// The CPUs there can be.
    pub fn possible(&self) -> CpuMask {
        let last = self.live.cpus().last().map_or(0, |area| area.cpu.0 as usize);
        let mut bytes = vec![0; (last / 64 + 1) * 8];
        for area in self.live.cpus() {
            bytes[area.cpu.0 as usize / 8] |= 1 << (area.cpu.0 % 8);
        }
        CpuMask::new(bytes)
    }

    /// The offset of a member in its structure.
    pub fn offset(&self, name: &'static str, path: &'static str) -> Reading<u64> {
        Ok(self.profile.state.known.offset(self.profile.types(), name, path)?)
    }

    /// The value of an enumerator of this kernel.
    pub fn enumerator(&self, of: &'static str, name: &str) -> Reading<i64> {
        let all = self.profile.state.known.enumerators(self.profile.types(), of)?;
        let missing = || FieldMissing::Member { name: of, path: name.to_owned() };
        Ok(all.iter().find(|(own, _)| own == name).ok_or_else(missing)?.1)
    }

    /// The names and values of an enumeration of this kernel.
    pub fn enumerators(&self, of: &'static str) -> Reading<Enumerators> {
        Ok(self.profile.state.known.enumerators(self.profile.types(), of)?)
    }

    /// A pointer, or none where the kernel has NULL.
    pub fn string(&self, at: Kva, limit: usize, what: &'static str) -> Reading<Option<String>> {
        if at.is_null() {
            return Ok(None);
        }
        self.mem.read_string(at, limit).map(Some).map_err(|source| Gap::Unreadable { what, source })
    }
}
