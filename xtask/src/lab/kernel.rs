//! Which kernel the lab boots, and the modules it needs from it.
//!
//! Takes a directory: an entry of ktstr's kernel store, or an unpacked
//! distribution package with `vmlinux` beside it. Refuses a kernel whose
//! `kvm-amd` is not a module found there: then the lab would have no `/dev/kvm`.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Modules the lab loads, with what they depend on.
const WANTED: [&str; 2] = ["virtio_blk", "kvm_amd"];

/// A kernel for the lab.
#[derive(Debug)]
pub struct LabKernel {
    /// Decompressed image (PVH entry).
    pub vmlinux: PathBuf,
    /// As in `uname -r`.
    pub release: String,
    /// Module files by name (underscores, no suffix).
    modules: BTreeMap<String, PathBuf>,
}

/// A decompressed module, in load order.
pub struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl LabKernel {
    /// `dir`, else `KTSTR_LAB_KERNEL`, else the newest fitting store entry.
    pub fn resolve(dir: Option<&Path>) -> Result<Self> {
        if let Some(dir) = dir {
            return Self::from_dir(dir);
        }
        if let Some(dir) = env::var_os("KTSTR_LAB_KERNEL") {
            return Self::from_dir(Path::new(&dir)).context("KTSTR_LAB_KERNEL");
        }
        let store = kernel_store()?;
        let mut entries: Vec<_> = fs::read_dir(&store)
            .into_iter()
            .flatten()
            .flatten()
            // Written last: without it an entry is not complete.
            .filter(|entry| entry.path().join("metadata.json").is_file())
            .filter_map(|entry| Self::from_dir(&entry.path()).ok())
            .collect();
        entries.sort_by_key(|kernel| version_key(&kernel.release));
        entries.pop().with_context(|| {
            format!(
                "no kernel for the lab: nothing under {} has vmlinux and the modules {WANTED:?}.\n\
                 Pull one (`cargo ktstr kernel pull debian`) or name a directory with --kernel or KTSTR_LAB_KERNEL",
                store.display()
            )
        })
    }

    /// Looks through one directory.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("kernel directory {}", dir.display()))?;
        let vmlinux = dir.join("vmlinux");
        if !vmlinux.is_file() {
            bail!("{} has no vmlinux (the decompressed image)", dir.display());
        }
        let mut modules = BTreeMap::new();
        index_modules(&dir, 12, &mut modules)?;
        for wanted in WANTED {
            if !modules.contains_key(wanted) {
                bail!("{} has no module {wanted}.ko, the lab needs it", dir.display());
            }
        }
        let probe = &modules[WANTED[0]];
        let release = release_of(&decompress(probe)?)
            .with_context(|| format!("{} has no vermagic: is it a kernel module?", probe.display()))?;
        Ok(Self { vmlinux, release, modules })
    }

    /// The wanted modules and their dependencies, dependencies first.
    pub fn modules_in_order(&self) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        for name in WANTED {
            self.append(name, &mut ordered, 0)?;
        }
        Ok(ordered)
    }

    fn append(&self, name: &str, ordered: &mut Vec<Module>, depth: u32) -> Result<()> {
        if ordered.iter().any(|module| module.name == name) {
            return Ok(());
        }
        if depth > 16 {
            bail!("module {name}: dependencies nest deeper than 16, or in a circle");
        }
        let path = self
            .modules
            .get(name)
            .with_context(|| format!("module {name}.ko is missing beside {}", self.vmlinux.display()))?;
        let bytes = decompress(path)?;
        for dependency in dependencies(&bytes) {
            self.append(&dependency, ordered, depth + 1)?;
        }
        ordered.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

/// `$KTSTR_CACHE_DIR`, else `$XDG_CACHE_HOME/ktstr/kernels`.
fn kernel_store() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("KTSTR_CACHE_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir));
    }
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(cache.join("ktstr/kernels"))
}

fn index_modules(dir: &Path, depth: u32, modules: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    if depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry.with_context(|| format!("listing {}", dir.display()))?;
        let path = entry.path();
        if entry.file_type().with_context(|| format!("looking at {}", path.display()))?.is_dir() {
            index_modules(&path, depth - 1, modules)?;
        } else if let Some((stem, suffix)) =
            entry.file_name().to_str().and_then(|name| name.split_once(".ko"))
            && ["", ".xz", ".zst", ".gz"].contains(&suffix)
        {
            modules.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn decompress(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|ext| ext.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let output = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting `{tool}` to decompress {}", path.display()))?;
    if !output.status.success() {
        bail!("`{tool} -dc {}` failed: {}", path.display(), output.status);
    }
    Ok(output.stdout)
}

/// The value of one key of a module's `.modinfo`.
fn modinfo(module: &[u8], key: &[u8]) -> Option<String> {
    let start = module.windows(key.len()).position(|window| window == key)?;
    let value = &module[start + key.len()..];
    let end = value.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&value[..end]).into_owned())
}

/// Names of the modules a module needs.
fn dependencies(module: &[u8]) -> Vec<String> {
    modinfo(module, b"\0depends=")
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// The release a module was built for.
fn release_of(module: &[u8]) -> Option<String> {
    modinfo(module, b"\0vermagic=")?.split(' ').next().map(str::to_owned)
}

/// Sort key: the numbers in front of a release.
fn version_key(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_come_from_modinfo() {
        assert_eq!(dependencies(b"x\0depends=kvm,irq-bypass\0y"), ["kvm", "irq_bypass"]);
        assert!(dependencies(b"x\0depends=\0y").is_empty());
        assert!(dependencies(b"nothing").is_empty());
        assert_eq!(release_of(b"\0vermagic=7.2.12+deb13 SMP\0").as_deref(), Some("7.2.12+deb13"));
    }

    #[test]
    fn newer_releases_sort_later() {
        assert!(version_key("7.2.12+deb13-cloud-amd64") > version_key("6.18.15+deb13-cloud-amd64"));
        assert!(version_key("6.18.1") > version_key("6.9.30"));
    }

    #[test]
    fn a_directory_without_kvm_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vmlinux"), b"").unwrap();
        fs::write(dir.path().join("virtio_blk.ko"), b"").unwrap();
        let err = LabKernel::from_dir(dir.path()).unwrap_err().to_string();
        assert!(err.contains("kvm_amd.ko"), "{err}");
    }
}
