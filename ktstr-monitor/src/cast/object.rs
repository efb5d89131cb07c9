//! Programs of an object file, as the compiler wrote them and before libbpf and the kernel did.
//!
//! Map references and calls are relocations here, helpers have their uapi numbers, look-ups are not
//! inlined, arena accesses follow a cast between address spaces. A scheduler's executable carries its
//! object inside: [`embedded`] finds it. Everything is looked up by name; what is not understood is
//! unknown to the analysis, which then finds less.

use std::collections::HashMap;
use std::sync::Arc;

use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget};
use object::{SectionIndex, SectionKind, SymbolKind};
use thiserror::Error;

use super::code::{Callee, Code, CodeFunction, CodeMap, Meaning};
use super::guest::{kernel_function, pointee, takes};
use super::insn::{CALL, Insn, LD_IMM64, PSEUDO_CALL};
use super::signature;
use crate::btf::BtfError;
use crate::types::{Ty, TypeId, TypeRef, TypeSet};

const EM_BPF: u16 = 247;
/// `R_BPF_64_NODYLD32`: a number of 32 bits in `.BTF`.
const RELOCATE_BTF: u32 = 4;
/// More than any scheduler has.
const MAX_INSNS: usize = 400_000;

/// Why an object cannot be analysed.
#[derive(Debug, Error)]
pub enum ObjectFileError {
    /// Not an ELF file, or a damaged one.
    #[error("the object is no 64-bit ELF")]
    Elf(#[source] object::Error),
    /// For another machine.
    #[error("the object is for ELF machine {machine}, not BPF")]
    Machine {
        /// `e_machine`.
        machine: u16,
    },
    /// Compiled without `-g`.
    #[error("the object has no .BTF section")]
    NoBtf,
    /// Its BTF is damaged.
    #[error("the object's BTF is not usable")]
    Btf(#[from] BtfError),
    /// Too large.
    #[error("the object has more than {MAX_INSNS} instructions")]
    TooLarge,
}

/// The BPF objects inside an executable.
pub fn embedded(bytes: &[u8]) -> Vec<&[u8]> {
    const MAGIC: &[u8] = b"\x7fELF\x02\x01";
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(next) = memchr(&bytes[from..], MAGIC) {
        let at = from + next;
        let rest = &bytes[at..];
        if rest.get(18..20) == Some(&EM_BPF.to_le_bytes()[..]) {
            found.push(rest);
        }
        from = at + 1;
    }
    found
}

fn memchr(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Takes an object apart: its types, and all its functions as one program.
pub fn parse(name: &str, bytes: &[u8]) -> Result<Code, ObjectFileError> {
    let elf = ElfFile64::<Endianness>::parse(bytes).map_err(ObjectFileError::Elf)?;
    let machine = elf.elf_header().e_machine(elf.endian());
    if machine.0 != EM_BPF {
        return Err(ObjectFileError::Machine { machine: machine.0 });
    }
    let types = Arc::new(TypeSet::parse(name, &relocated_btf(&elf)?)?);
    let mut code = Code {
        name: name.to_owned(),
        insns: Vec::new(),
        functions: Vec::new(),
        types,
        constants: HashMap::new(),
        calls: HashMap::new(),
        cpu_pointers: HashMap::new(),
    };
    // Where each section's instructions begin in the whole.
    let mut bases: HashMap<SectionIndex, usize> = HashMap::new();
    for section in elf.sections().filter(|section| section.kind() == SectionKind::Text) {
        let Ok(data) = section.data() else { continue };
        bases.insert(section.index(), code.insns.len());
        code.insns
            .extend(data.chunks_exact(8).map(|eight| Insn::decode(eight.try_into().unwrap_or_default())));
        if code.insns.len() > MAX_INSNS {
            return Err(ObjectFileError::TooLarge);
        }
    }
    let reader = Reader { elf: &elf, bases, types: Arc::clone(&code.types) };
    reader.functions(&mut code);
    reader.relocations(&mut code);
    reader.calls(&mut code);
    signature::believe(&mut code);
    Ok(code)
}

/// `.BTF` with the places of variables filled in: the compiler leaves them to the linker.
fn relocated_btf(elf: &ElfFile64<'_, Endianness>) -> Result<Vec<u8>, ObjectFileError> {
    let section = elf.section_by_name(".BTF").ok_or(ObjectFileError::NoBtf)?;
    let mut bytes = section.data().map_err(ObjectFileError::Elf)?.to_vec();
    for (offset, relocation) in section.relocations() {
        let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
        let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
        let (Ok(symbol), Ok(at)) = (elf.symbol_by_index(symbol), usize::try_from(offset)) else { continue };
        if r_type.0 == RELOCATE_BTF
            && let Some(place) = at.checked_add(4).and_then(|end| bytes.get_mut(at..end))
        {
            let addend = u32::from_le_bytes(place.try_into().unwrap_or_default());
            place.copy_from_slice(&addend.wrapping_add(symbol.address() as u32).to_le_bytes());
        }
    }
    Ok(bytes)
}

struct Reader<'e, 'd> {
    elf: &'e ElfFile64<'d, Endianness>,
    bases: HashMap<SectionIndex, usize>,
    types: Arc<TypeSet>,
}

impl Reader<'_, '_> {
    fn named(&self, name: &str, is: impl Fn(&Ty) -> bool) -> Option<TypeRef> {
        let ids = self.types.named(name).iter();
        ids.map(|&id| TypeRef::new(&self.types, id)).find(|ty| self.types.ty(ty.id).is_some_and(&is))
    }

    fn function_type(&self, name: &str) -> Option<TypeRef> {
        self.named(name, |ty| matches!(ty, Ty::Func { .. }))
    }

    fn functions(&self, code: &mut Code) {
        let operations = self.operations();
        for symbol in self.elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
            let (Ok(name), Some(section)) = (symbol.name(), symbol.section_index()) else { continue };
            let Some(base) = self.bases.get(&section) else { continue };
            let function = self.function_type(name);
            code.functions.push(CodeFunction {
                start: base + (symbol.address() / 8) as usize,
                // The entry points take a context, whatever their types say.
                takes: match operations.contains_key(name) {
                    true => Vec::new(),
                    false => function.as_ref().map(takes).unwrap_or_default(),
                },
                static_takes: function.as_ref().and_then(signature::of_static).unwrap_or_default(),
                context: operations.get(name).cloned().unwrap_or_default(),
            });
        }
        code.functions.sort_by_key(|function| function.start);
        code.functions.dedup_by_key(|function| function.start);
    }

    /// The arguments of functions that are operations of a `struct_ops`, by name.
    fn operations(&self) -> HashMap<String, Vec<Option<TypeRef>>> {
        let mut found = HashMap::new();
        for section in self.elf.sections() {
            let Ok(name) = section.name() else { continue };
            if !name.starts_with(".struct_ops") {
                continue;
            }
            let Some(ty) = self.named(name, |ty| matches!(ty, Ty::Section { .. })) else { continue };
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
                let Ok(function) = self.elf.symbol_by_index(symbol).and_then(|symbol| symbol.name()) else {
                    continue;
                };
                if let Some(takes) = self.operation(&ty, offset) {
                    found.insert(function.to_owned(), takes);
                }
            }
        }
        found
    }

    /// What the function pointer at `offset` of a section of operations takes.
    fn operation(&self, section: &TypeRef, offset: u64) -> Option<Vec<Option<TypeRef>>> {
        let Ty::Section { vars, .. } = self.types.ty(section.id)? else { return None };
        let var = vars.iter().find(|v| offset >= v.offset && offset - v.offset < v.size)?;
        let Ty::Var(of) = self.types.ty(var.var)? else { return None };
        let (_, Ty::Composite(ops)) = self.types.strip(*of)? else { return None };
        let member = ops.members.iter().find(|member| member.bit / 8 == offset - var.offset)?;
        let (_, Ty::Ptr(proto)) = self.types.strip(member.ty)? else { return None };
        let (_, Ty::Proto { takes, .. }) = self.types.strip(*proto)? else { return None };
        Some(takes.iter().map(|(_, ty)| pointee(&TypeRef::new(&self.types, *ty))).collect())
    }

    fn relocations(&self, code: &mut Code) {
        for (index, base) in &self.bases {
            let Ok(section) = self.elf.section_by_index(*index) else { continue };
            for (offset, relocation) in section.relocations() {
                let at = base + (offset / 8) as usize;
                let Some(&insn) = code.insns.get(at) else { continue };
                let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
                let Ok(symbol) = self.elf.symbol_by_index(symbol) else { continue };
                let target = symbol.section_index();
                if insn.code == LD_IMM64 {
                    let into = symbol.address().wrapping_add(insn.imm as i64 as u64);
                    let name = symbol.name().unwrap_or_default();
                    let meaning = target.and_then(|section| self.meaning(section, name, into));
                    code.constants.insert(at, meaning.unwrap_or(Meaning::Address));
                } else if insn.code == CALL {
                    let callee = match target.and_then(|section| self.bases.get(&section)) {
                        Some(base) => {
                            let into = (symbol.address() / 8) as i64 + i64::from(insn.imm) + 1;
                            Callee::Function((*base as i64 + into).max(0) as usize)
                        }
                        None => self.kfunc(symbol.name().unwrap_or_default()),
                    };
                    code.calls.insert(at, callee);
                }
            }
        }
    }

    fn meaning(&self, section: SectionIndex, symbol: &str, into: u64) -> Option<Meaning> {
        let section = self.elf.section_by_index(section).ok()?;
        let name = section.name().ok()?;
        let ty = self.named(name, |ty| matches!(ty, Ty::Section { .. }))?;
        if name != ".maps" {
            return Some(Meaning::Global { section: ty, offset: into });
        }
        let var = self.named(symbol, |ty| matches!(ty, Ty::Var(_)))?;
        let Ty::Var(of) = self.types.ty(var.id)? else { return None };
        let value = self.types.member(*of, "value").and_then(|member| {
            let (_, Ty::Ptr(to)) = self.types.strip(member.ty)? else { return None };
            Some(TypeRef::new(&self.types, *to))
        });
        let map = CodeMap { value, per_cpu: false, stride: 0, first: None, pointers: None, in_element: None };
        Some(Meaning::Map(Arc::new(map)))
    }

    fn kfunc(&self, name: &str) -> Callee {
        let name = name.rsplit_once("___").map_or(name, |(name, _)| name);
        self.function_type(name).map_or(Callee::Unknown, |ty| kernel_function(&ty))
    }

    /// Calls without relocation: within a section, and helpers by their uapi numbers.
    fn calls(&self, code: &mut Code) {
        let task =
            self.types.composite("task_struct").map(|(id, _): (TypeId, _)| TypeRef::new(&self.types, id));
        for at in 0..code.insns.len() {
            let insn = code.insns[at];
            if insn.code != CALL || code.calls.contains_key(&at) {
                continue;
            }
            let callee = match (insn.src, insn.imm) {
                (PSEUDO_CALL, by) => {
                    Callee::Function(usize::try_from(at as i64 + 1 + i64::from(by)).unwrap_or(usize::MAX))
                }
                // map_lookup_elem, map_lookup_percpu_elem, {sk,inode,task,cgrp}_storage_get
                (0, 1 | 195 | 107 | 145 | 156 | 210) => Callee::MapValue,
                (0, 2) => Callee::MapUpdate,
                (0, 158) => task.clone().map_or(Callee::Unknown, Callee::returning),
                (0, 194) => Callee::Exchange,
                // map_delete_elem, ktime_get_ns, get_prandom_u32, get_smp_processor_id, ringbuf_output
                (0, 3 | 5 | 7 | 8 | 130) => Callee::Reader,
                _ => Callee::Unknown,
            };
            code.calls.insert(at, callee);
        }
    }
}
