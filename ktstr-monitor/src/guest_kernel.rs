//! A guest's kernel and its BPF maps under one name each: for programs that read a core file or a memory
//! file themselves, as the command `query --core` does.
//!
//! What is found holds for the moment it was looked for; a running guest is asked through its
//! orchestrator instead, see [`crate::command_main`].

use std::time::Duration;

use ktstr_proto::capture::Question;

use crate::addr::{CpuId, Kva};
use crate::bpf::path::Path;
use crate::bpf::{
    BpfError, BpfLayout, Cell, Limits, MapInfo, Reader, WriteError, Writer, follow_all, the_map,
};
use crate::kernel::state::{KernelState, Parts};
use crate::kernel::{LiveKernel, NotReady, Profile, View};
use crate::mem::{GuestMem, GuestMemMut};
use crate::node::Node;
use crate::query::{self, QueryError};
use crate::render::{Options, Value};

/// A kernel found in guest memory.
#[derive(Debug)]
pub struct GuestKernel<'m> {
    profile: &'m Profile,
    live: LiveKernel,
    mem: &'m GuestMem,
    layout: BpfLayout,
}

impl<'m> GuestKernel<'m> {
    /// Looks for the kernel that `profile` describes.
    pub fn find(profile: &'m Profile, mem: &'m GuestMem) -> Result<Self, NotReady> {
        let live = LiveKernel::locate(profile, mem)?;
        Ok(Self { profile, live, mem, layout: BpfLayout::of(profile.types()) })
    }

    /// Its structures, as the walkers see them.
    pub fn view(&self) -> View<'_, '_> {
        View { profile: self.profile, live: &self.live, mem: self.live.view(self.mem) }
    }

    /// Its scheduler state.
    pub fn state(&self, parts: Parts) -> KernelState {
        KernelState::read(self.profile, &self.live, self.mem, parts)
    }

    /// The answer to a question, and how long reading took.
    pub fn answer(&self, question: &Question) -> Result<(Node, Duration), QueryError> {
        query::answer(self.profile, &self.live, self.mem, question)
    }
}

/// The BPF maps of a guest: array, per-CPU array and hash, typed by their programs' BTF.
#[derive(Debug)]
pub struct BpfMapAccessor<'k> {
    reader: Reader<'k>,
    maps: Vec<MapInfo>,
}

impl<'k> BpfMapAccessor<'k> {
    /// The maps that the guest has now.
    pub fn from_guest_kernel(kernel: &'k GuestKernel<'_>) -> Result<Self, BpfError> {
        let mem = kernel.live.view(kernel.mem);
        let reader = Reader::new(kernel.profile, &kernel.live, mem, &kernel.layout);
        let maps = reader.maps()?.items;
        Ok(Self { reader, maps })
    }

    /// All of them.
    pub fn maps(&self) -> &[MapInfo] {
        &self.maps
    }

    /// The map whose name is `name`, or ends with it where it begins with a dot; of several the running
    /// scheduler's.
    pub fn find_map(&self, name: &str) -> Result<Option<&MapInfo>, WriteError> {
        the_map(&self.reader, &self.maps, &self.reader.programs()?.items, name)
    }

    /// The value at `path` in `map`, pointers on the way followed.
    pub fn read_field(&self, map: &MapInfo, path: &str) -> Result<Value, WriteError> {
        let follow = follow_all(&self.reader, &self.reader.programs()?.items, &self.maps);
        let located = self.reader.locate(map, &path.parse::<Path>()?, &follow)?;
        Ok(self.reader.render(&located, &follow, Options::default()))
    }

    /// The bytes of element `index` of a per-CPU array, by CPU.
    pub fn read_percpu_array(
        &self,
        map: &MapInfo,
        index: u32,
    ) -> Result<Vec<(Option<CpuId>, Vec<u8>)>, BpfError> {
        let limits = Limits {
            entries: usize::try_from(index).unwrap_or(usize::MAX).saturating_add(1),
            bytes: 256 << 20,
        };
        let entries = self.reader.entries(map, limits)?.items;
        let cells = entries.into_iter().nth(index as usize).map_or_else(Vec::new, |entry| entry.cells);
        cells.into_iter().map(|Cell { cpu, bytes, .. }| Ok((cpu, bytes?))).collect()
    }

    /// Sets the number at `path` in `map`; `mem` is the same guest's memory, mapped for writing. Returns
    /// where it was.
    pub fn write_field(
        &self,
        mem: &GuestMemMut,
        map: &MapInfo,
        path: &str,
        value: i128,
    ) -> Result<Kva, WriteError> {
        let follow = follow_all(&self.reader, &self.reader.programs()?.items, &self.maps);
        let writer = Writer::new(&self.reader, mem);
        Ok(writer.write_field(map, &path.parse::<Path>()?, value, &follow)?.at)
    }
}
