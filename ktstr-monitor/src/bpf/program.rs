//! Programs (`struct bpf_prog`, `struct bpf_prog_aux`): what they are, what they cost, what they are
//! made of.

use super::layout::Slot;
use super::reader::{BpfError, Reader, Walk};
use crate::addr::Kva;
use crate::types::{TypeId, TypeRef};

/// The verifier accepts a million.
const MAX_INSNS: u64 = 1_000_000;
const MAX_FUNCTIONS: u64 = 4096;
const MAX_MAPS: u64 = 256;

/// A program.
#[derive(Clone, Debug)]
pub struct ProgramInfo {
    /// Where its `struct bpf_prog` is.
    pub at: Kva,
    /// Its number.
    pub id: u32,
    /// Its name, at most 15 characters.
    pub name: String,
    /// `enum bpf_prog_type`, as the kernel calls it.
    pub kind: String,
    /// Its tag, as `bpftool` shows it.
    pub tag: [u8; 8],
    /// What it is attached to, where it says so.
    pub attached_to: Option<String>,
    /// Instructions after loading.
    pub insns: u32,
    /// Whether it was compiled.
    pub jited: bool,
    /// Whether it may sleep.
    pub sleepable: bool,
    /// Instructions that the verifier looked at.
    pub verified_insns: Result<u32, BpfError>,
    /// When it was loaded, in nanoseconds of the guest's boot clock.
    pub loaded_at: Result<u64, BpfError>,
    /// How often and how long it ran; counts only while the guest has `bpf_stats_enabled`, except
    /// for misses.
    pub stats: Result<RunStats, BpfError>,
    /// Where its functions begin.
    pub functions: Vec<Function>,
    /// Addresses of the maps it uses.
    pub maps: Vec<Kva>,
    /// What could not be read of the above.
    pub damage: Vec<BpfError>,
}

/// A function of a program.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its first instruction.
    pub start: u32,
    /// Its [`crate::types::Ty::Func`].
    pub ty: TypeRef,
}

/// Sums over all possible CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Times it ran.
    pub runs: u64,
    /// Nanoseconds it ran.
    pub nanos: u64,
    /// Times it was not run because it was running already.
    pub misses: u64,
}

impl ProgramInfo {
    /// The tag as the kernel prints it.
    pub fn tag_text(&self) -> String {
        self.tag.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Reader<'_> {
    /// All programs, by number.
    pub fn programs(&self) -> Result<Walk<ProgramInfo>, BpfError> {
        let found = self.idr("prog_idr")?;
        let mut walk = Walk { items: Vec::new(), damage: found.damage };
        for at in found.items {
            match self.program(at) {
                Ok(program) => walk.items.push(program),
                Err(error) => walk.damage.push(error),
            }
        }
        Ok(walk)
    }

    /// The program at `at`.
    pub fn program(&self, at: Kva) -> Result<ProgramInfo, BpfError> {
        let (prog, layout) = (&self.layout.prog, &self.layout.aux);
        let aux = self.get_kva(at, &prog.aux, "bpf_prog.aux")?;
        let raw = self.get_u32(at, &prog.kind, "bpf_prog.type")?;
        let tag = self.bytes(at.wrapping_add(Self::offset(&prog.tag)?), 8, "bpf_prog.tag")?;
        let attached = self.get_kva(aux, &layout.attach_name, "bpf_prog_aux.attach_func_name");
        let mut program = ProgramInfo {
            at,
            id: self.get_u32(aux, &layout.id, "bpf_prog_aux.id")?,
            name: self.text(aux, &layout.name, "bpf_prog_aux.name")?,
            kind: self.kernel_enum("bpf_prog_type", "BPF_PROG_TYPE_", raw),
            tag: tag.try_into().unwrap_or_default(),
            attached_to: attached
                .ok()
                .filter(|at| !at.is_null())
                .and_then(|at| self.text_at(at, "bpf_prog_aux.attach_func_name").ok()),
            insns: self.get_u32(at, &prog.len, "bpf_prog.len")?,
            jited: self.get(at, &prog.jited, "bpf_prog.jited")? != 0,
            sleepable: self.get(at, &prog.sleepable, "bpf_prog.sleepable").is_ok_and(|bit| bit != 0),
            verified_insns: self.get_u32(aux, &layout.verified, "bpf_prog_aux.verified_insns"),
            loaded_at: self.get(aux, &layout.load_time, "bpf_prog_aux.load_time"),
            stats: self.run_stats(at),
            functions: Vec::new(),
            maps: Vec::new(),
            damage: Vec::new(),
        };
        match self.functions(aux) {
            Ok(functions) => program.functions = functions,
            Err(error) => program.damage.push(error),
        }
        match self.used_maps(aux) {
            Ok(maps) => program.maps = maps,
            Err(error) => program.damage.push(error),
        }
        Ok(program)
    }

    /// The instructions of `program` as the kernel has rewritten them, eight bytes each.
    pub fn instructions(&self, program: &ProgramInfo) -> Result<Vec<[u8; 8]>, BpfError> {
        let len = u64::from(program.insns);
        if len > MAX_INSNS {
            let why = "it claims more instructions than the verifier accepts";
            return Err(BpfError::Damaged { what: "a program", at: program.at, why });
        }
        let at = program.at.wrapping_add(Self::offset(&self.layout.prog.insns)?);
        let bytes = self.bytes(at, len * 8, "bpf_prog.insnsi")?;
        Ok(bytes.chunks_exact(8).map(|eight| eight.try_into().unwrap_or_default()).collect())
    }

    fn run_stats(&self, at: Kva) -> Result<RunStats, BpfError> {
        let layout = &self.layout.stats;
        let cookie = self.get(at, &self.layout.prog.stats, "bpf_prog.stats")?;
        let mut sum = RunStats::default();
        for (_, here) in self.per_cpu(cookie) {
            let counter = |slot: &Slot, what| {
                // A `u64_stats_t` is a structure around the number.
                self.word(here.wrapping_add(Self::offset(slot)?), what)
            };
            sum.runs = sum.runs.wrapping_add(counter(&layout.count, "bpf_prog_stats.cnt")?);
            sum.nanos = sum.nanos.wrapping_add(counter(&layout.nanos, "bpf_prog_stats.nsecs")?);
            sum.misses = sum.misses.wrapping_add(counter(&layout.misses, "bpf_prog_stats.misses")?);
        }
        Ok(sum)
    }

    fn functions(&self, aux: Kva) -> Result<Vec<Function>, BpfError> {
        let layout = &self.layout.aux;
        let object = self.get_kva(aux, &layout.btf, "bpf_prog_aux.btf")?;
        let count = self.get(aux, &layout.func_info_cnt, "bpf_prog_aux.func_info_cnt")?;
        if object.is_null() || count == 0 {
            return Ok(Vec::new());
        }
        if count > MAX_FUNCTIONS {
            let why = "it claims an absurd number of functions";
            return Err(BpfError::Damaged { what: "a program", at: aux, why });
        }
        let set = self.object(object)?;
        let table = self.get_kva(aux, &layout.func_info, "bpf_prog_aux.func_info")?;
        // `struct bpf_func_info` is uapi: two numbers of four bytes.
        let bytes = self.bytes(table, count * 8, "bpf_prog_aux.func_info")?;
        let half =
            |eight: &[u8], at: usize| eight[at..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four));
        let each = bytes
            .chunks_exact(8)
            .map(|eight| Function { start: half(eight, 0), ty: TypeRef::new(&set, TypeId(half(eight, 4))) });
        Ok(each.collect())
    }

    fn used_maps(&self, aux: Kva) -> Result<Vec<Kva>, BpfError> {
        let layout = &self.layout.aux;
        let count = self.get(aux, &layout.used_map_cnt, "bpf_prog_aux.used_map_cnt")?;
        if count > MAX_MAPS {
            let why = "it claims an absurd number of maps";
            return Err(BpfError::Damaged { what: "a program", at: aux, why });
        }
        let table = self.get_kva(aux, &layout.used_maps, "bpf_prog_aux.used_maps")?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(table, count * 8, "bpf_prog_aux.used_maps")?;
        let pointer = |eight: &[u8]| Kva(u64::from_le_bytes(eight.try_into().unwrap_or_default()));
        Ok(bytes.chunks_exact(8).map(pointer).collect())
    }
}
