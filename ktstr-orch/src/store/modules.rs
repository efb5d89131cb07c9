//! Kernel modules: which ones a guest may need, what they depend on, and the
//! order to load them in.
//!
//! Packages ship no `modules.dep` (it is made at installation), so the
//! dependencies are read from each module's own `.modinfo`. Only the closure
//! of `WANTED` is kept, decompressed. A module the kernel has built in, or
//! does not have at all, is left out without complaint: what needs it asks for
//! it by name later and gets its error there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use object::{Object, ObjectSection};

/// Modules that guests, the shell's disk and the KVM lab may want.
pub(super) const WANTED: &[&str] = &[
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "kvm_amd",
    "kvm_intel",
    "ext4",
    "btrfs",
    "loop",
];

const LARGEST_MODULE: u64 = 256 << 20;

/// Why the modules of a kernel could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A compressed module is damaged.
    #[error("cannot decompress module {file}")]
    Decompress {
        /// File name in the package.
        file: String,
        /// What the decompressor said.
        #[source]
        source: io::Error,
    },
    /// A module is no ELF file with a `.modinfo` section.
    #[error("module {file} has no readable .modinfo section")]
    NoModinfo {
        /// File name in the package.
        file: String,
    },
    /// A dependency is not among the modules.
    #[error("module {module} depends on {needs}, which is not among the kernel's modules")]
    DependencyMissing {
        /// Who needs it.
        module: String,
        /// What is missing.
        needs: String,
    },
    /// Modules that depend on each other in a circle cannot be loaded.
    #[error("module {module} depends on itself through others")]
    Circle {
        /// A member of the circle.
        module: String,
    },
}

/// A decompressed module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// The kernel's name for it, with underscores.
    pub name: String,
    /// Names of the modules that must be loaded before.
    pub depends: Vec<String>,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

/// `kernel/arch/x86/kvm/kvm-amd.ko.xz` → `kvm_amd`; `None` when it is no module.
pub(super) fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (stem, suffix) = file.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

/// The wanted modules and all they depend on, in an order to load them.
/// `fetch` gives a module file by its name, as packed, with its file name.
pub(super) fn closure(
    wanted: &[&str],
    mut fetch: impl FnMut(&str) -> Option<(String, Vec<u8>)>,
) -> Result<Vec<Module>, ModuleError> {
    let mut found = BTreeMap::new();
    let mut queue: Vec<(Option<String>, String)> = wanted.iter().map(|w| (None, (*w).to_owned())).collect();
    while let Some((needed_by, name)) = queue.pop() {
        if found.contains_key(&name) {
            continue;
        }
        match (fetch(&name), needed_by) {
            (Some((file, packed)), _) => {
                let module = open(name.clone(), &file, packed)?;
                queue.extend(module.depends.iter().map(|d| (Some(name.clone()), d.clone())));
                found.insert(name, module);
            }
            (None, Some(module)) => return Err(ModuleError::DependencyMissing { module, needs: name }),
            (None, None) => {}
        }
    }
    load_order(found)
}

fn load_order(mut modules: BTreeMap<String, Module>) -> Result<Vec<Module>, ModuleError> {
    let mut ordered: Vec<Module> = Vec::new();
    let mut loaded = BTreeSet::new();
    while !modules.is_empty() {
        let ready: Vec<String> = modules
            .values()
            .filter(|module| module.depends.iter().all(|name| loaded.contains(name)))
            .map(|module| module.name.clone())
            .collect();
        if ready.is_empty() {
            let module = modules.into_keys().next().unwrap_or_default();
            return Err(ModuleError::Circle { module });
        }
        for name in ready {
            ordered.extend(modules.remove(&name));
            loaded.insert(name);
        }
    }
    Ok(ordered)
}

fn open(name: String, file: &str, packed: Vec<u8>) -> Result<Module, ModuleError> {
    let bytes = unpack(packed).map_err(|source| ModuleError::Decompress { file: file.to_owned(), source })?;
    let info = object::File::parse(&*bytes)
        .ok()
        .and_then(|elf| elf.section_by_name(".modinfo")?.data().ok().map(<[u8]>::to_vec))
        .ok_or_else(|| ModuleError::NoModinfo { file: file.to_owned() })?;
    Ok(Module { name, depends: depends(&info), bytes })
}

fn depends(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|&b| b == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn unpack(packed: Vec<u8>) -> io::Result<Vec<u8>> {
    let reader: Box<dyn Read + '_> = match packed.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(liblzma::read::XzDecoder::new(packed.as_slice())),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::new(packed.as_slice())?),
        [0x1f, 0x8b, ..] => Box::new(flate2::read::GzDecoder::new(packed.as_slice())),
        _ => return Ok(packed),
    };
    let mut out = Vec::new();
    reader.take(LARGEST_MODULE).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::elf;
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        elf(&[(".modinfo", format!("license=GPL\0depends={depends}\0name=x\0").as_bytes())])
    }

    fn tree(modules: &[(&str, &str)], wanted: &[&str]) -> Result<Vec<String>, ModuleError> {
        let fetch = |name: &str| {
            let (_, depends) = modules.iter().find(|(n, _)| *n == name)?;
            Some((format!("{name}.ko.zst"), zstd::encode_all(module(depends).as_slice(), 1).unwrap()))
        };
        closure(wanted, fetch).map(|list| list.into_iter().map(|m| m.name).collect())
    }

    #[test]
    fn dependencies_come_first() {
        let modules =
            [("kvm_amd", "kvm,ccp"), ("kvm", "irqbypass"), ("irqbypass", ""), ("ccp", ""), ("other", "")];
        let order = tree(&modules, &["kvm_amd", "not_there"]).unwrap();
        assert_eq!(order.len(), 4, "{order:?}");
        let at = |name: &str| order.iter().position(|n| n == name).unwrap();
        assert!(at("irqbypass") < at("kvm") && at("kvm") < at("kvm_amd") && at("ccp") < at("kvm_amd"));
    }

    #[test]
    fn a_missing_dependency_names_both() {
        let error = tree(&[("virtio_net", "net_failover")], &["virtio_net"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "module virtio_net depends on net_failover, which is not among the kernel's modules"
        );
    }

    #[test]
    fn a_circle_is_an_error() {
        let error = tree(&[("a", "b"), ("b", "a")], &["a"]).unwrap_err();
        assert!(matches!(error, ModuleError::Circle { .. }));
    }

    #[test]
    fn damage_is_named() {
        let broken = closure(&["a"], |_| Some(("a.ko.xz".into(), b"\xfd7zXZ\0junk".to_vec())));
        assert!(matches!(broken, Err(ModuleError::Decompress { .. })));
        let not_elf = closure(&["a"], |_| Some(("a.ko".into(), b"junk".to_vec())));
        assert!(matches!(not_elf, Err(ModuleError::NoModinfo { .. })));
    }

    #[test]
    fn names() {
        assert_eq!(name_of("./lib/x/kvm-amd.ko.xz").as_deref(), Some("kvm_amd"));
        assert_eq!(name_of("virtio_net.ko").as_deref(), Some("virtio_net"));
        assert_eq!(name_of("modules.order"), None);
        assert_eq!(name_of("x.ko.debug"), None);
    }
}
