//! What one look at the BPF state found out and the next need not find out again.
//!
//! Programs do not change once they are loaded, nor do their types: what is remembered is keyed by
//! the kernel's numbers, which are not given out twice in a row, and by the bytes themselves.

use std::cell::RefCell;
use std::sync::Arc;

use super::follow::Casts;
use super::program::ProgramInfo;
use crate::types::TypeSet;

/// Bytes of BTF objects remembered at most; then everything is forgotten.
const MAX_BYTES: usize = 64 << 20;

/// Number, tag and length of each program.
type Loaded = Vec<(u32, [u8; 8], u32)>;
/// Which numbers are pointers, for each BTF object.
pub(super) type AllCasts = Vec<(Arc<TypeSet>, Casts)>;

/// Remembered BTF objects and what programs showed about pointers.
#[derive(Debug, Default)]
pub struct Memory {
    objects: RefCell<Vec<(u32, Vec<u8>, Arc<TypeSet>)>>,
    casts: RefCell<Option<(Loaded, AllCasts)>>,
}

impl Memory {
    /// The object of that number, if it is made of these bytes.
    pub(super) fn object(&self, id: u32, bytes: &[u8]) -> Option<Arc<TypeSet>> {
        let objects = self.objects.borrow();
        let known = objects.iter().find(|(own, own_bytes, _)| *own == id && own_bytes == bytes)?;
        Some(Arc::clone(&known.2))
    }

    pub(super) fn keep_object(&self, id: u32, bytes: Vec<u8>, set: &Arc<TypeSet>) {
        let mut objects = self.objects.borrow_mut();
        let total: usize = objects.iter().map(|(_, bytes, _)| bytes.len()).sum();
        if total + bytes.len() > MAX_BYTES {
            objects.clear();
            // What is known of pointers is said in terms of objects.
            *self.casts.borrow_mut() = None;
        }
        objects.push((id, bytes, Arc::clone(set)));
    }

    /// What these programs show, from `find` if it is not known yet.
    pub(super) fn casts(&self, programs: &[ProgramInfo], find: impl FnOnce() -> AllCasts) -> AllCasts {
        let loaded: Loaded = programs.iter().map(|p| (p.id, p.tag, p.insns)).collect();
        if let Some((_, casts)) = self.casts.borrow().as_ref().filter(|(known, _)| *known == loaded) {
            return casts.clone();
        }
        let casts = find();
        *self.casts.borrow_mut() = Some((loaded, casts.clone()));
        casts
    }
}
