//! BTF objects of programs and modules, out of guest memory (`struct btf`, `kernel/bpf/btf.c`).
//!
//! The kernel has verified what lies there, the monitor has not: it goes through the same checks as a
//! file from anywhere. Objects are capped one by one and together.

use std::collections::HashMap;
use std::sync::Arc;

use thiserror::Error;

use super::reader::{BpfError, Reader};
use crate::addr::Kva;
use crate::btf::BtfError;
use crate::types::TypeSet;

/// A scheduler's BTF has some hundred KiB, a module's up to a few MiB.
const MAX_LEN: u64 = 16 << 20;
/// All objects that one reader parses.
const MAX_TOTAL: u64 = 64 << 20;

/// Why a BTF object is not usable.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// It says so itself.
    #[error("it claims {len} bytes, more than the {limit} that are read")]
    TooLarge {
        /// Its length.
        len: u64,
        /// What is read at most.
        limit: u64,
    },
    /// It builds on something else than the kernel's types.
    #[error("it builds on an object that is not the kernel's")]
    Base,
    /// Its bytes are not there.
    #[error("its bytes cannot be read")]
    Read(#[source] BpfError),
    /// It is only copied now, and parsed when the guest runs again.
    #[error("it is not parsed while the guest stands")]
    NotNow,
    /// Its bytes are no BTF.
    #[error("its bytes are no valid BTF")]
    Parse(#[from] BtfError),
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    known: HashMap<Kva, Result<Arc<TypeSet>, Arc<ObjectError>>>,
    total: u64,
}

impl Reader<'_> {
    /// The BTF object at `at`, a `struct btf`.
    pub fn object(&self, at: Kva) -> Result<Arc<TypeSet>, BpfError> {
        let known = self.objects.borrow().known.get(&at).cloned();
        let result = match known {
            Some(result) => result,
            None => {
                let result = self.parse_object(at).map_err(Arc::new);
                self.objects.borrow_mut().known.insert(at, result.clone());
                result
            }
        };
        result.map_err(|source| BpfError::Object { at, source })
    }

    /// The BTF objects of loaded modules: names and where each lies.
    pub fn module_objects(&self) -> Result<Vec<(String, Kva)>, BpfError> {
        let all = self.idr("btf_idr")?.items;
        let of_module = |at: Kva| {
            let base = self.get_kva(at, &self.layout.btf.base, "btf.base_btf").ok()?;
            let name = self.text(at, &self.layout.btf.name, "btf.name").ok()?;
            (!base.is_null() && !name.is_empty()).then_some((name, at))
        };
        Ok(all.into_iter().filter_map(of_module).collect())
    }

    fn parse_object(&self, at: Kva) -> Result<Arc<TypeSet>, ObjectError> {
        let layout = &self.layout.btf;
        let read = ObjectError::Read;
        let base = self.get_kva(at, &layout.base, "btf.base_btf").map_err(read)?;
        let name = self.text(at, &layout.name, "btf.name").map_err(read)?;
        let id = self.get_u32(at, &layout.id, "btf.id").map_err(read)?;
        if name == "vmlinux" {
            // Parsed already, from the kernel's file.
            return Ok(Arc::clone(self.kernel_types()));
        }
        let data = self.get_kva(at, &layout.data, "btf.data").map_err(read)?;
        let len = self.get(at, &layout.len, "btf.data_size").map_err(read)?;
        let total = self.objects.borrow().total;
        let limit = MAX_LEN.min(MAX_TOTAL - total.min(MAX_TOTAL));
        if len > limit {
            return Err(ObjectError::TooLarge { len, limit });
        }
        let bytes = self.bytes(data, len, "a BTF object").map_err(read)?;
        self.objects.borrow_mut().total = total + len;
        let of_base = match base.is_null() {
            true => None,
            false => Some(self.text(base, &layout.name, "btf.name").map_err(read)?),
        };
        if self.only_copies {
            return Err(ObjectError::NotNow);
        }
        if let Some(set) = self.memory.and_then(|memory| memory.object(id, &bytes)) {
            return Ok(set);
        }
        let set = match of_base.as_deref() {
            None => {
                let label = if name.is_empty() { format!("btf {id}") } else { name };
                Arc::new(TypeSet::parse(&label, &bytes)?)
            }
            Some("vmlinux") => Arc::new(TypeSet::parse_split(&name, &bytes, self.kernel_types())?),
            Some(_) => return Err(ObjectError::Base),
        };
        if let Some(memory) = self.memory {
            memory.keep_object(id, bytes, &set);
        }
        Ok(set)
    }
}
