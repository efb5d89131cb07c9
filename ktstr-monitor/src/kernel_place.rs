//! Places in the kernel that the test in the guest reads and writes by name: variables, addresses, members of per-CPU
//! variables and of tasks.
//!
//! A member has the size its BTF says, and is read and written with that size only. Code is not written. Who writes
//! while the guest runs races with it; the store itself is one of four or eight bytes where the place is aligned so.

use ktstr_proto::capture::Structure;
use ktstr_proto::kernel_place::{KernelTarget, KernelValue, KernelWidth, KernelWrite, MAX_PIECE, MAX_WRITES};
use thiserror::Error;

use crate::addr::Kva;
use crate::bpf::path::{Path, PathError};
use crate::bpf::{BpfLayout, Follow, Reader, WriteError};
use crate::kernel::{LiveKernel, Profile, View};
use crate::mem::{GuestMem, GuestMemMut};
use crate::node::Node;
use crate::paging::AccessError;
use crate::structure::{self, StructureError};
use crate::types::{Ty, TypeRef};

/// Types of per-CPU variables that a kernel without them in its BTF has, too.
const PER_CPU: [(&str, &str); 4] = [
    ("runqueues", "rq"),
    ("kernel_cpustat", "kernel_cpustat"),
    ("kstat", "kernel_stat"),
    ("tick_cpu_sched", "tick_sched"),
];

/// Why a place cannot be read or written.
#[derive(Debug, Error)]
pub enum KernelPlaceError {
    /// It is not there.
    #[error("{target}")]
    Place {
        /// What was asked for.
        target: KernelTarget,
        /// Why not.
        #[source]
        source: StructureError,
    },
    /// The type of a per-CPU variable is not known.
    #[error("the kernel's BTF has no variable `{symbol}` and no type of it")]
    Untyped {
        /// The variable.
        symbol: String,
    },
    /// There is no such member.
    #[error("`{field}` in {of}")]
    Field {
        /// The member.
        field: String,
        /// The type.
        of: String,
        /// Why not.
        #[source]
        source: WriteError,
    },
    /// The thread id is somebody else's now.
    #[error("task {pid} started at {found} ns, not at {expected}: it is another one")]
    OtherTask {
        /// The thread id.
        pid: i32,
        /// When the task that has it started.
        found: u64,
        /// When the one that is meant did.
        expected: u64,
    },
    /// A member has another size.
    #[error("{target} has {has} bytes, not {asked}")]
    Size {
        /// What was asked for.
        target: KernelTarget,
        /// Its size.
        has: String,
        /// What was to be read or written.
        asked: u32,
    },
    /// Nothing, or too much.
    #[error("1 to {MAX_PIECE} bytes are read or written at once, not {asked}")]
    Piece {
        /// What was asked for.
        asked: u32,
    },
    /// Too many writes, or none.
    #[error("1 to {MAX_WRITES} writes belong to one request, not {asked}")]
    Writes {
        /// How many there were.
        asked: usize,
    },
    /// Code is not written.
    #[error("{target} is code of the kernel, which is not written")]
    Code {
        /// What was asked for.
        target: KernelTarget,
    },
    /// Memory is not there.
    #[error("{target} at {at} cannot be read or written")]
    Memory {
        /// What was asked for.
        target: KernelTarget,
        /// Where it lies.
        at: Kva,
        /// Why not.
        #[source]
        source: AccessError,
    },
}

/// What finds places.
struct Finder<'a> {
    profile: &'a Profile,
    live: &'a LiveKernel,
    mem: &'a GuestMem,
}

/// Reads what is at a place.
pub fn read(
    profile: &Profile,
    live: &LiveKernel,
    mem: &GuestMem,
    target: &KernelTarget,
    width: KernelWidth,
) -> Result<Node, KernelPlaceError> {
    let finder = Finder { profile, live, mem };
    let at = finder.find(target, width.len())?;
    let bytes = finder.bytes(target, at, width.len())?;
    Ok(match width {
        KernelWidth::Bytes(_) => Node::Text(KernelValue::Bytes(bytes).to_string()),
        KernelWidth::U32 | KernelWidth::U64 => number(&bytes).into(),
    })
}

/// Writes all of them, or nothing where one of the places cannot be found; what was written, and where.
pub fn write(
    profile: &Profile,
    live: &LiveKernel,
    mem: &GuestMemMut,
    writes: &[KernelWrite],
) -> Result<String, KernelPlaceError> {
    if !(1..=MAX_WRITES).contains(&writes.len()) {
        return Err(KernelPlaceError::Writes { asked: writes.len() });
    }
    let finder = Finder { profile, live, mem: mem.read() };
    let mut found = Vec::new();
    for write in writes {
        let at = finder.find(&write.target, write.value.width().len())?;
        if finder.is_code(at) {
            return Err(KernelPlaceError::Code { target: write.target.clone() });
        }
        found.push((write, at));
    }
    let mut said = Vec::new();
    for (KernelWrite { target, value }, at) in found {
        let bytes = match value {
            KernelValue::U32(value) => value.to_le_bytes().to_vec(),
            KernelValue::U64(value) => value.to_le_bytes().to_vec(),
            KernelValue::Bytes(bytes) => bytes.clone(),
            KernelValue::OrU32(bits) => {
                let there = number(&finder.bytes(target, at, 4)?) as u32;
                (there | bits).to_le_bytes().to_vec()
            }
        };
        let memory = |source| KernelPlaceError::Memory { target: target.clone(), at, source };
        live.view(mem.read()).write_through(mem, at, &bytes).map_err(memory)?;
        said.push(format!("{target} is {value} now, at {at}"));
    }
    Ok(said.join("; "))
}

/// Up to eight bytes as the number they are.
fn number(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    let len = bytes.len().min(8);
    all[..len].copy_from_slice(&bytes[..len]);
    u64::from_le_bytes(all)
}

impl Finder<'_> {
    /// Where `len` bytes of it lie.
    fn find(&self, target: &KernelTarget, len: u32) -> Result<Kva, KernelPlaceError> {
        if !(1..=MAX_PIECE).contains(&len) {
            return Err(KernelPlaceError::Piece { asked: len });
        }
        let place = |source| KernelPlaceError::Place { target: target.clone(), source };
        let at = |of: &str, at: String| {
            let asked = Structure { of: of.into(), at, path: None, follow: 0 };
            let view = View { profile: self.profile, live: self.live, mem: self.live.view(self.mem) };
            structure::find_place(&view, &asked, 0).map_err(place)
        };
        match target {
            KernelTarget::Kva(at) => Ok(Kva(*at)),
            KernelTarget::Symbol(name) => at("", name.clone()),
            KernelTarget::PerCpuField { symbol, field, cpu } => {
                let base = at("", format!("{symbol}@{cpu}"))?;
                let ty = self.type_of(symbol)?;
                self.member(target, base, &ty, field, len)
            }
            KernelTarget::TaskField { pid, expected_start_time_ns, field } => {
                let base = at("task_struct", pid.to_string())?;
                let untyped = || KernelPlaceError::Untyped { symbol: "task_struct".into() };
                let ty = self.composite("task_struct").ok_or_else(untyped)?;
                if let Some(expected) = *expected_start_time_ns {
                    let place = self.member(target, base, &ty, "start_time", 8)?;
                    let found = number(&self.bytes(target, place, 8)?);
                    if found != expected {
                        return Err(KernelPlaceError::OtherTask { pid: *pid, found, expected });
                    }
                }
                self.member(target, base, &ty, field, len)
            }
        }
    }

    fn composite(&self, name: &str) -> Option<TypeRef> {
        let types = self.profile.types().graph();
        types.composite(name).map(|(id, _)| TypeRef::new(types, id))
    }

    /// The type of a per-CPU variable.
    fn type_of(&self, symbol: &str) -> Result<TypeRef, KernelPlaceError> {
        let types = self.profile.types().graph();
        let declared = types.named(symbol).iter().find_map(|id| match types.ty(*id)? {
            Ty::Var(of) => Some(TypeRef::new(types, *of)),
            _ => None,
        });
        let known =
            || PER_CPU.iter().find(|(name, _)| *name == symbol).and_then(|(_, ty)| self.composite(ty));
        declared.or_else(known).ok_or_else(|| KernelPlaceError::Untyped { symbol: symbol.to_owned() })
    }

    fn member(
        &self,
        target: &KernelTarget,
        base: Kva,
        ty: &TypeRef,
        field: &str,
        len: u32,
    ) -> Result<Kva, KernelPlaceError> {
        let wrong = |source| KernelPlaceError::Field { field: field.to_owned(), of: ty.name(), source };
        let path: Path = field.parse().map_err(|error: PathError| wrong(error.into()))?;
        if path.entry.is_some() || path.cpu.is_some() {
            return Err(wrong(PathError::NotArray { of: ty.name() }.into()));
        }
        let layout = BpfLayout::of(self.profile.types());
        let reader = Reader::new(self.profile, self.live, self.live.view(self.mem), &layout);
        let follow = Follow::new(&reader, &[]);
        let found = reader.walk(base, ty, None, &path.steps, &follow).map_err(wrong)?;
        let size = |has: String| KernelPlaceError::Size { target: target.clone(), has, asked: len };
        match (found.place.bits, found.place.ty.size()) {
            (Some((_, bits)), _) => Err(size(format!("{bits} bits instead of"))),
            (None, Some(has)) if has == u64::from(len) => Ok(found.at),
            (None, has) => Err(size(has.map_or_else(|| "no known number of".into(), |has| has.to_string()))),
        }
    }

    fn bytes(&self, target: &KernelTarget, at: Kva, len: u32) -> Result<Vec<u8>, KernelPlaceError> {
        let mut bytes = vec![0; len as usize];
        let memory = |source| KernelPlaceError::Memory { target: target.clone(), at, source };
        self.live.view(self.mem).read(at, &mut bytes).map_err(memory)?;
        Ok(bytes)
    }

    fn is_code(&self, at: Kva) -> bool {
        let bound = |symbol| self.profile.symbols().get(symbol).map(|link| self.live.at(link));
        bound("_stext").zip(bound("_etext")).is_some_and(|(from, to)| (from..to).contains(&at))
    }
}
