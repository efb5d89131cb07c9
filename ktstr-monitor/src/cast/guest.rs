//! Programs as they are loaded in a guest.
//!
//! The kernel has rewritten them: map references are addresses, helper calls distances from
//! `__bpf_call_base`, look-ups partly inlined, arena accesses marked by a mode of their own.

use std::collections::HashMap;
use std::sync::Arc;

use super::code::{Callee, Code, CodeFunction, CodeMap, Meaning};
use super::insn::{CALL, Insn, LD_IMM64, PSEUDO_CALL, PSEUDO_KFUNC};
use super::signature;
use crate::addr::Kva;
use crate::bpf::{Casts, MapInfo, MapKind, ProgramInfo, Reader};
use crate::types::{Ty, TypeId, TypeRef, TypeSet};

/// Instructions analysed in all, at most: a few seconds' worth.
const MAX_INSNS: usize = 400_000;

/// What the programs of a running guest show, by BTF object.
pub fn of_guest(
    reader: &Reader<'_>,
    programs: &[ProgramInfo],
    maps: &[MapInfo],
) -> Vec<(Arc<TypeSet>, Casts)> {
    let mut objects: Vec<(Arc<TypeSet>, Vec<Code>)> = Vec::new();
    // A program that is left out may be the one that speaks against a pointer of its object.
    let mut incomplete: Vec<Arc<TypeSet>> = Vec::new();
    let guest = Guest::new(reader, maps);
    let mut insns = 0;
    for program in programs {
        insns += program.insns as usize;
        let code = if insns > MAX_INSNS { None } else { guest.code(program) };
        let Some(code) = code else {
            incomplete.extend(program.functions.first().map(|function| Arc::clone(&function.ty.set)));
            continue;
        };
        match objects.iter_mut().find(|(set, _)| Arc::ptr_eq(set, &code.types)) {
            Some((_, codes)) => codes.push(code),
            None => objects.push((Arc::clone(&code.types), vec![code])),
        }
    }
    let is_kernels = |name: &str| reader.kernel_types().composite(name).is_some();
    let resolve = |(set, codes): (Arc<TypeSet>, Vec<Code>)| {
        let casts = super::resolve(&set, &codes, &is_kernels).into_casts();
        (set, casts)
    };
    objects.retain(|(set, _)| !incomplete.iter().any(|left_out| Arc::ptr_eq(left_out, set)));
    objects.into_iter().map(resolve).collect()
}

struct Guest<'r, 'a> {
    reader: &'r Reader<'a>,
    maps: &'r [MapInfo],
    code_maps: HashMap<Kva, Arc<CodeMap>>,
    call_base: Option<Kva>,
    helpers: HashMap<Kva, Callee>,
    cpu_pointers: HashMap<u64, TypeRef>,
}

impl<'r, 'a> Guest<'r, 'a> {
    fn new(reader: &'r Reader<'a>, maps: &'r [MapInfo]) -> Self {
        let code_maps = maps.iter().map(|map| (map.at, Arc::new(code_map(reader, map)))).collect();
        let symbol = |name: &str| reader.profile().symbols().get(name).map(|link| reader.live().at(link));
        let mut guest = Self {
            reader,
            maps,
            code_maps,
            call_base: symbol("__bpf_call_base"),
            helpers: HashMap::new(),
            cpu_pointers: HashMap::new(),
        };
        let kernel = reader.kernel_types();
        let task = kernel.composite("task_struct").map(|(id, _)| TypeRef::new(kernel, id));
        if let (Some(at), Some(task)) = (symbol("current_task"), task.clone()) {
            guest.cpu_pointers.insert(at.0, task);
        }
        for (name, link) in reader.profile().symbols().iter() {
            if let Some(callee) = helper(name, task.as_ref()) {
                guest.helpers.insert(reader.live().at(link), callee);
            }
        }
        guest
    }

    fn code(&self, program: &ProgramInfo) -> Option<Code> {
        let types = Arc::clone(&program.functions.first()?.ty.set);
        let insns = self.reader.instructions(program).ok()?;
        let insns: Vec<Insn> = insns.into_iter().map(Insn::decode).collect();
        let mut functions: Vec<CodeFunction> = program
            .functions
            .iter()
            .map(|function| CodeFunction {
                start: function.start as usize,
                takes: takes(&function.ty),
                static_takes: signature::of_static(&function.ty).unwrap_or_default(),
                context: Vec::new(),
            })
            .collect();
        if let Some(entry) = functions.first_mut() {
            entry.context = self.context(program);
        }
        let mut code = Code {
            name: program.name.clone(),
            functions,
            types,
            constants: HashMap::new(),
            calls: HashMap::new(),
            cpu_pointers: self.cpu_pointers.clone(),
            insns,
        };
        for at in 0..code.insns.len() {
            let insn = code.insns[at];
            if insn.code == LD_IMM64 {
                let high = code.insns.get(at + 1).map_or(0, |insn| insn.imm);
                let value = u64::from(insn.imm as u32) | u64::from(high as u32) << 32;
                if let Some(meaning) = self.meaning(value) {
                    code.constants.insert(at, meaning);
                }
            } else if insn.code == CALL {
                let callee = self.callee(program, &code, at, insn);
                code.calls.insert(at, callee);
            }
        }
        signature::believe(&mut code);
        Some(code)
    }

    fn meaning(&self, value: u64) -> Option<Meaning> {
        if let Some(map) = self.code_maps.get(&Kva(value)) {
            return Some(Meaning::Map(Arc::clone(map)));
        }
        let in_section = self.maps.iter().filter(|map| map.is_section()).find_map(|map| {
            let (0, offset) = self.reader.array_place(map, value)? else { return None };
            (offset < map.value_size.into()).then(|| (map.value_type.clone(), offset))
        });
        match in_section {
            Some((Some(section), offset)) => Some(Meaning::Global { section, offset }),
            _ => ((value as i64) < 0).then_some(Meaning::Address),
        }
    }

    fn callee(&self, program: &ProgramInfo, code: &Code, at: usize, insn: Insn) -> Callee {
        match insn.src {
            PSEUDO_CALL if program.jited => called_after_jit(code, at, insn),
            PSEUDO_CALL => {
                let start = usize::try_from(at as i64 + 1 + i64::from(insn.imm)).unwrap_or(usize::MAX);
                match code.functions.iter().any(|function| function.start == start) {
                    true => Callee::Function(start),
                    false => Callee::Unknown,
                }
            }
            PSEUDO_KFUNC if insn.off == 0 => {
                let kernel = self.reader.kernel_types();
                let function = TypeRef::new(kernel, TypeId(insn.imm as u32));
                match kernel.get(function.id).is_some_and(|entry| entry.name == "bpf_rdonly_cast") {
                    true => Callee::KernelCast(Arc::clone(kernel)),
                    false => kernel_function(&function),
                }
            }
            0 => {
                let at = self.call_base.map(|base| base.wrapping_add(insn.imm as i64 as u64));
                at.and_then(|at| self.helpers.get(&at)).cloned().unwrap_or(Callee::Unknown)
            }
            _ => Callee::Unknown,
        }
    }

    /// The arguments of the scheduler's operation that the program is.
    fn context(&self, program: &ProgramInfo) -> Vec<Option<TypeRef>> {
        let kernel = self.reader.kernel_types();
        let arguments = || {
            if program.kind != "struct_ops" {
                return None;
            }
            let (ops, _) = kernel.composite("sched_ext_ops")?;
            let member = kernel.member(ops, program.attached_to.as_deref()?)?;
            let (_, Ty::Ptr(proto)) = kernel.strip(member.ty)? else { return None };
            let (_, Ty::Proto { takes, .. }) = kernel.strip(*proto)? else { return None };
            Some(takes.iter().map(|(_, ty)| pointee(&TypeRef::new(kernel, *ty))).collect())
        };
        arguments().unwrap_or_default()
    }
}

/// The function that a call leads to after the program was compiled. The kernel leaves the function's number and
/// its distance in the instruction; which is where has changed between versions, so both must agree.
fn called_after_jit(code: &Code, at: usize, insn: Insn) -> Callee {
    let start = |nth: i64| Some(code.functions.get(usize::try_from(nth).ok()?)?.start);
    let away = |start: usize| start as i64 - at as i64 - 1;
    let (off, imm) = (i64::from(insn.off), i64::from(insn.imm));
    // The offset has room for the lower half of a distance only.
    let by_imm = start(imm).filter(|start| away(*start) as i16 == insn.off);
    let by_off = start(off).filter(|start| away(*start) == imm);
    match (by_imm, by_off) {
        (Some(start), None) | (None, Some(start)) => Callee::Function(start),
        (Some(one), Some(other)) if one == other => Callee::Function(one),
        _ => Callee::Unknown,
    }
}

/// What a pointer to a structure points at.
pub(super) fn pointee(ty: &TypeRef) -> Option<TypeRef> {
    let (_, Ty::Ptr(to)) = ty.set.strip(ty.id)? else { return None };
    let to = ty.with(*to).strip()?;
    matches!(to.set.ty(to.id), Some(Ty::Composite(_) | Ty::Forward { .. })).then_some(to)
}

/// What the arguments of a global function point at; nothing for a static one.
pub(super) fn takes(function: &TypeRef) -> Vec<Option<TypeRef>> {
    let Some(Ty::Func { proto, global: true }) = function.set.ty(function.id) else { return Vec::new() };
    let Some((_, Ty::Proto { takes, .. })) = function.set.strip(*proto) else { return Vec::new() };
    takes.iter().take(5).map(|(_, ty)| pointee(&function.with(*ty))).collect()
}

/// What a function of the kernel takes and returns.
pub(super) fn kernel_function(function: &TypeRef) -> Callee {
    let proto = || {
        let Some(Ty::Func { proto, .. }) = function.set.ty(function.id) else { return None };
        function.set.strip(*proto)
    };
    let Some((_, Ty::Proto { returns, takes })) = proto() else { return Callee::Unknown };
    Callee::Kernel {
        takes: takes.iter().take(5).map(|(_, ty)| pointee(&function.with(*ty))).collect(),
        returns: pointee(&function.with(*returns)),
    }
}

/// What a helper's name means here.
pub(super) fn helper(name: &str, task: Option<&TypeRef>) -> Option<Callee> {
    let is_map = name.contains("map_");
    Some(match name {
        "__htab_map_lookup_elem" => Callee::HashElement,
        _ if is_map && name.ends_with("map_lookup_elem") => Callee::MapValue,
        _ if is_map && name.ends_with("map_lookup_percpu_elem") => Callee::MapValue,
        _ if is_map && name.ends_with("map_update_elem") => Callee::MapUpdate,
        _ if is_map && name.ends_with("map_delete_elem") => Callee::Reader,
        "bpf_task_storage_get" | "bpf_task_storage_get_recur" => Callee::MapValue,
        "bpf_cgrp_storage_get" | "bpf_inode_storage_get" | "bpf_sk_storage_get" => Callee::MapValue,
        "bpf_get_current_task_btf" => Callee::returning(task?.clone()),
        "bpf_kptr_xchg" => Callee::Exchange,
        "bpf_ktime_get_ns" | "bpf_get_smp_processor_id" | "bpf_get_prandom_u32" => Callee::Reader,
        "bpf_ringbuf_output" | "bpf_trace_printk" => Callee::Reader,
        _ => return None,
    })
}

fn code_map(reader: &Reader<'_>, map: &MapInfo) -> CodeMap {
    let places = reader.places();
    let in_element = places.key.map(|key| key + u64::from(map.key_size).next_multiple_of(8));
    let is = |kinds: &[MapKind]| kinds.contains(&map.kind);
    let hash = is(&[MapKind::Hash, MapKind::LruHash, MapKind::PerCpuHash, MapKind::LruPerCpuHash]);
    CodeMap {
        value: map.value_type.clone().filter(|_| map.kind != MapKind::StructOps),
        per_cpu: is(&[MapKind::PerCpuArray, MapKind::PerCpuHash, MapKind::LruPerCpuHash]),
        stride: u64::from(map.value_size).next_multiple_of(8),
        first: places.value.filter(|_| map.kind == MapKind::Array),
        pointers: places.pointers.filter(|_| map.kind == MapKind::PerCpuArray),
        in_element: in_element.filter(|_| hash),
    }
}
