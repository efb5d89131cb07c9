//! Which member lies at an offset of a type.

use crate::types::{Composite, Ty, TypeRef};

/// A number of 64 bits in a structure or section, or a pointer to `void` or to a structure that the
/// object only declares: what may hide a pointer to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The structure or section, a type of the program's object.
    pub owner: crate::types::TypeId,
    /// Bytes into it.
    pub offset: u64,
}

/// What lies at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// A number of 64 bits in a structure, or a pointer that does not say what it points at.
    Slot(TypeRef, u64),
    /// A pointer to this.
    Pointer(TypeRef),
    /// A number of another size, or one that is in no structure.
    Number,
}

/// Structures and arrays within each other, at most.
const MAX_DEPTH: usize = 16;
/// Types looked at for one place, at most.
const MAX_VISITS: usize = 4096;

/// The scalar of `size` bytes at `offset` of `ty`; `None` where there is none, or unions disagree.
pub fn leaf_at(ty: &TypeRef, offset: u64, size: u64) -> Option<Leaf> {
    let mut visits = MAX_VISITS;
    leaf_within(ty, offset, size, &mut visits)
}

fn leaf_within(ty: &TypeRef, offset: u64, size: u64, visits: &mut usize) -> Option<Leaf> {
    let mut here = ty.strip()?;
    let mut offset = offset;
    let mut owner: Option<(TypeRef, u64)> = None;
    for _ in 0..MAX_DEPTH {
        *visits = visits.checked_sub(1)?;
        match here.set.ty(here.id)? {
            Ty::Composite(composite) if composite.union => {
                return in_union(&here, composite, offset, size, visits);
            }
            Ty::Composite(composite) => {
                let holds = |at: u64, len: u64| offset >= at && offset - at < len;
                let member = composite.members.iter().find(|member| {
                    member.width.is_none()
                        && here.set.size(member.ty).is_some_and(|len| holds(member.bit / 8, len))
                })?;
                let at = member.bit / 8;
                owner = Some((here.clone(), at));
                here = here.with(member.ty).strip()?;
                offset -= at;
            }
            Ty::Section { vars, .. } => {
                let var = *vars.iter().find(|v| offset >= v.offset && offset - v.offset < v.size)?;
                let Ty::Var(of) = here.set.ty(var.var)? else { return None };
                owner = Some((here.clone(), var.offset));
                here = here.with(*of).strip()?;
                offset -= var.offset;
            }
            Ty::Array { elem, len } => {
                let each = here.set.size(*elem).filter(|&each| each > 0)?;
                if *len != 0 && offset / each >= *len {
                    return None;
                }
                here = here.with(*elem).strip()?;
                offset %= each;
                // An element of an array of numbers has no name of its own.
                if !matches!(here.set.ty(here.id)?, Ty::Composite(_) | Ty::Array { .. }) {
                    owner = None;
                }
            }
            Ty::Ptr(to) if offset == 0 && size == 8 => {
                let to = here.with(*to);
                return Some(match owner {
                    Some((owner, at)) if is_opaque(&to) => Leaf::Slot(owner, at),
                    _ => Leaf::Pointer(to),
                });
            }
            Ty::Int { size: 8, .. } if offset == 0 && size == 8 => {
                return Some(owner.map_or(Leaf::Number, |(owner, at)| Leaf::Slot(owner, at)));
            }
            Ty::Int { size: len, .. } if offset == 0 && *len == size => return Some(Leaf::Number),
            Ty::Enum(values) if offset == 0 && values.size == size => return Some(Leaf::Number),
            _ => return None,
        }
    }
    None
}

/// Whether a pointer to it says nothing about what is there.
pub fn is_opaque(to: &TypeRef) -> bool {
    let Some((id, ty)) = to.set.strip(to.id) else { return true };
    match ty {
        Ty::Void => true,
        Ty::Forward { .. } => to.set.get(id).is_none_or(|entry| to.set.composite(&entry.name).is_none()),
        _ => false,
    }
}

/// A union says something only where all its members that reach so far agree.
fn in_union(here: &TypeRef, union: &Composite, offset: u64, size: u64, visits: &mut usize) -> Option<Leaf> {
    // Unions within unions multiply, and one that holds itself has no end.
    *visits /= 2;
    let mut agreed: Option<Leaf> = None;
    for member in &union.members {
        if member.width.is_some() || here.set.size(member.ty).is_none_or(|len| offset >= len) {
            continue;
        }
        let inner = here.with(member.ty).strip()?;
        let leaf = match inner.set.ty(inner.id)? {
            Ty::Int { size: 8, .. } if offset == 0 && size == 8 => Leaf::Slot(here.clone(), 0),
            _ => leaf_within(&inner, offset, size, visits)?,
        };
        match &agreed {
            Some(other) if *other != leaf => return None,
            _ => agreed = Some(leaf),
        }
    }
    agreed
}

/// The first byte of the innermost array element at `offset`, if elements repeat every `step` bytes
/// or a divisor of it: what `base + i * step` points at, whatever `i` is.
pub fn repeats(ty: &TypeRef, offset: u64, step: u64) -> bool {
    let Some(mut here) = ty.strip() else { return false };
    let mut offset = offset;
    for _ in 0..MAX_DEPTH {
        let Some(ty) = here.set.ty(here.id) else { return false };
        let next = match ty {
            Ty::Composite(composite) if !composite.union => composite.members.iter().find_map(|member| {
                let at = member.bit / 8;
                let len = here.set.size(member.ty)?;
                (offset >= at && offset - at < len).then_some((member.ty, at))
            }),
            Ty::Section { vars, .. } => vars.iter().find_map(|v| {
                let holds = offset >= v.offset && offset - v.offset < v.size;
                let Some(Ty::Var(of)) = here.set.ty(v.var) else { return None };
                holds.then_some((*of, v.offset))
            }),
            Ty::Array { elem, .. } => {
                let Some(each) = here.set.size(*elem).filter(|&each| each > 0) else { return false };
                if step.is_multiple_of(each) {
                    return true;
                }
                Some((*elem, offset / each * each))
            }
            _ => None,
        };
        let Some((inner, at)) = next else { return false };
        offset -= at;
        match here.with(inner).strip() {
            Some(inner) => here = inner,
            None => return false,
        }
    }
    false
}
