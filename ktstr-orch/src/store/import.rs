//! Turns kernel files into store entries: package files, a bzImage, a bare
//! `vmlinux`.
//!
//! Everything is checked and decompressed in memory before the entry gets its
//! name. Imported entries are named by their content, so importing the same
//! file twice gives the same entry. No network, no package client.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::deb::{self, DebError};
use super::digest;
use super::entry::{Description, Metadata, ModuleRecord, Source, Store, StoreError};
use super::facts;
use super::image::{self, ImageError, KernelFile};
use super::modules::{self, Module, ModuleError};

/// Why files could not be made into an entry.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A package cannot be read.
    #[error(transparent)]
    Package(#[from] DebError),
    /// The packages hold no kernel.
    #[error(
        "no kernel image in {packages}: a kernel split over packages needs its linux-binary-… \
         (or linux-image-…) package too"
    )]
    NoImage {
        /// What was searched.
        packages: String,
    },
    /// The packages hold more than one kernel.
    #[error("these packages are of different kernels: {first} and {second}")]
    Mixed {
        /// One release.
        first: String,
        /// Another.
        second: String,
    },
    /// The image is unusable.
    #[error("{path} is no usable kernel image")]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// The ELF file is not a kernel.
    #[error("{path} is an ELF file, but no kernel of a known architecture: it has no 'Linux version' banner")]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// A module is unusable.
    #[error("the kernel's modules are unusable")]
    Modules(#[from] ModuleError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The files of one kernel, gathered from one or several packages.
#[derive(Default)]
struct Gathered {
    release: Option<String>,
    image: Option<(PathBuf, Vec<u8>)>,
    config: Option<Vec<u8>>,
    modules: BTreeMap<String, (String, Vec<u8>)>,
}

/// What a file in a package is to us, with the release its path names.
#[derive(Debug, PartialEq, Eq)]
enum Role<'a> {
    Image(&'a str),
    Config(&'a str),
    Module(&'a str, String),
}

fn role(path: &str) -> Option<Role<'_>> {
    if let Some(name) = path.strip_prefix("boot/") {
        return name
            .strip_prefix("vmlinuz-")
            .map(Role::Image)
            .or_else(|| name.strip_prefix("config-").map(Role::Config));
    }
    let below = path.strip_prefix("usr/").unwrap_or(path).strip_prefix("lib/modules/")?;
    let (release, file) = below.split_once('/')?;
    match file {
        "vmlinuz" => Some(Role::Image(release)),
        "config" => Some(Role::Config(release)),
        _ => modules::name_of(file).map(|name| Role::Module(release, name)),
    }
}

/// Imports a kernel from package files under a key made of their content.
pub fn import_packages(store: &Store, packages: &[PathBuf]) -> Result<Metadata, ImportError> {
    let mut digests = Vec::new();
    for path in packages {
        digests.push(
            digest::of_file(path).map_err(|source| ImportError::Read { path: path.clone(), source })?.0,
        );
    }
    digests.sort();
    let content = digest::of_parts(digests.iter().map(String::as_bytes));
    let suffix = format!("-{}", &content[..12]);
    if let Some(found) = already(store, "deb-", &suffix)? {
        return Ok(found);
    }
    let paths = packages.iter().map(|p| fs::canonicalize(p).unwrap_or_else(|_| p.clone())).collect();
    let source = Source::PackageFiles { paths };
    install_packages(store, packages, source, |release| format!("deb-{release}{suffix}"))
}

/// Imports a kernel from package files under a key the caller makes of the
/// release.
pub(super) fn install_packages(
    store: &Store,
    packages: &[PathBuf],
    source: Source,
    key: impl FnOnce(&str) -> String,
) -> Result<Metadata, ImportError> {
    let mut gathered = Gathered::default();
    for package in packages {
        gather(package, &mut gathered)?;
    }
    let Gathered { release: Some(release), image: Some((path, image)), config, modules } = gathered else {
        let packages = packages.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(ImportError::NoImage { packages });
    };
    let modules = modules::closure(modules::WANTED, |name| modules.get(name).cloned())?;
    let parts = Parts { path: &path, image: &image, config, modules, release: Some(release) };
    install(store, parts, source, key)
}

fn gather(package: &Path, into: &mut Gathered) -> Result<(), ImportError> {
    let mut second = None;
    deb::for_each_file(package, |path, reader| {
        let Some(role) = role(path) else { return Ok(()) };
        let (Role::Image(release) | Role::Config(release) | Role::Module(release, _)) = &role;
        let known = into.release.get_or_insert_with(|| (*release).to_owned());
        if known != release {
            second = Some((*release).to_owned());
            return Ok(());
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        match role {
            Role::Image(_) => into.image = Some((package.to_owned(), bytes)),
            Role::Config(_) => into.config = Some(bytes),
            Role::Module(_, name) => {
                into.modules.insert(name, (path.to_owned(), bytes));
            }
        }
        Ok(())
    })?;
    match (second, &into.release) {
        (Some(second), Some(first)) => Err(ImportError::Mixed { first: first.clone(), second }),
        _ => Ok(()),
    }
}

/// Imports a bzImage or `vmlinux` by path. A configuration and modules are
/// taken from where a running system keeps those of the same release, when
/// they are there: `config-RELEASE` beside the image, `/lib/modules/RELEASE`.
pub fn import_image(store: &Store, path: &Path) -> Result<Metadata, ImportError> {
    let read =
        |path: &Path| fs::read(path).map_err(|source| ImportError::Read { path: path.to_owned(), source });
    let image = read(path)?;
    let suffix = format!("-{}", &digest::of_parts([image.as_slice()])[..12]);
    if let Some(found) = already(store, "image-", &suffix)? {
        return Ok(found);
    }
    let canonical = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = canonical.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let named_release = name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-"));
    let config = named_release
        .and_then(|release| fs::read(canonical.with_file_name(format!("config-{release}"))).ok())
        // A kernel build tree keeps its configuration at the top.
        .or_else(|| canonical.ancestors().skip(1).take(4).find_map(|dir| fs::read(dir.join(".config")).ok()));
    let modules = match named_release {
        Some(release) => installed_modules(Path::new("/lib/modules"), release)?,
        None => Vec::new(),
    };
    let parts = Parts { path, image: &image, config, modules, release: None };
    install(store, parts, Source::Image { path: canonical.clone() }, |release| {
        format!("image-{release}{suffix}")
    })
}

fn installed_modules(root: &Path, release: &str) -> Result<Vec<Module>, ModuleError> {
    let mut files = BTreeMap::new();
    index_modules(&root.join(release).join("kernel"), &mut files);
    modules::closure(modules::WANTED, |name| {
        let path: &PathBuf = files.get(name)?;
        Some((path.display().to_string(), fs::read(path).ok()?))
    })
}

/// Directories that cannot be read hold no modules for us.
fn index_modules(dir: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for item in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = item.path();
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            index_modules(&path, files);
        } else if let Some(name) = modules::name_of(&path.to_string_lossy()) {
            files.insert(name, path);
        }
    }
}

/// An intact entry whose key has these ends: the middle is the release, which
/// is only known once the image was decompressed.
fn already(store: &Store, prefix: &str, suffix: &str) -> Result<Option<Metadata>, StoreError> {
    let key = fs::read_dir(store.root())
        .into_iter()
        .flatten()
        .flatten()
        .map(|item| item.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with(prefix) && name.ends_with(suffix));
    match key.map(|key| store.load(&key)) {
        Some(Ok(metadata)) => Ok(Some(metadata)),
        // Made anew below, under the same key.
        Some(Err(StoreError::Corrupt { .. })) | None => Ok(None),
        Some(Err(other)) => Err(other),
    }
}

struct Parts<'a> {
    path: &'a Path,
    image: &'a [u8],
    config: Option<Vec<u8>>,
    modules: Vec<Module>,
    release: Option<String>,
}

fn install(
    store: &Store,
    parts: Parts<'_>,
    source: Source,
    key: impl FnOnce(&str) -> String,
) -> Result<Metadata, ImportError> {
    let unusable = |source| ImportError::Image { path: parts.path.to_owned(), source };
    let (vmlinux, boot_image, header_release) = match image::inspect(parts.image).map_err(unusable)? {
        KernelFile::BzImage { vmlinux, release } => (std::borrow::Cow::Owned(vmlinux), true, release),
        KernelFile::Vmlinux => (std::borrow::Cow::Borrowed(parts.image), false, None),
    };
    let config = parts
        .config
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .or_else(|| facts::embedded_config(&vmlinux));
    let not_a_kernel = || ImportError::NotAKernel { path: parts.path.to_owned() };
    let facts = facts::of_vmlinux(&vmlinux, config.as_deref()).ok_or_else(not_a_kernel)?;
    let release = parts.release.or(header_release).or(facts.release).ok_or_else(not_a_kernel)?;
    let arch = facts.arch.ok_or_else(not_a_kernel)?;

    let staging = store.stage(&key(&release))?;
    staging.write("vmlinux", &vmlinux)?;
    if boot_image {
        staging.write("image", parts.image)?;
    }
    if let Some(config) = &config {
        staging.write("config", config.as_bytes())?;
    }
    let mut records = Vec::new();
    for Module { name, depends, bytes } in parts.modules {
        let file = format!("modules/{name}.ko");
        staging.write(&file, &bytes)?;
        records.push(ModuleRecord { name, file, depends });
    }
    let about =
        Description { release, arch, source, sched_ext: facts.sched_ext, btf: facts.btf, modules: records };
    Ok(staging.install(about)?)
}

#[cfg(test)]
mod tests {
    use super::super::deb::tests::write_deb;
    use super::super::facts::tests::{btf, elf};
    use super::super::image::tests::bzimage;
    use super::*;

    fn vmlinux(names: &[&str]) -> Vec<u8> {
        elf(&[(".rodata", b"Linux version 7.2.9-x (a@b)\0"), (".BTF", &btf(names))])
    }

    fn vmlinuz(names: &[&str]) -> Vec<u8> {
        let plain = vmlinux(names);
        let mut payload = zstd::encode_all(plain.as_slice(), 1).unwrap();
        payload.extend((plain.len() as u32).to_le_bytes());
        bzimage(&payload, "7.2.9-x")
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("k")).unwrap();
        (dir, store)
    }

    #[test]
    fn roles() {
        assert_eq!(role("boot/vmlinuz-6.18"), Some(Role::Image("6.18")));
        assert_eq!(role("usr/lib/modules/7.2/vmlinuz"), Some(Role::Image("7.2")));
        assert_eq!(role("usr/lib/modules/7.2/config"), Some(Role::Config("7.2")));
        assert_eq!(
            role("lib/modules/7.2/kernel/a/kvm-amd.ko.xz"),
            Some(Role::Module("7.2", "kvm_amd".into()))
        );
        assert_eq!(role("usr/share/doc/x/copyright"), None);
        assert_eq!(role("boot/System.map-6.18"), None);
    }

    #[test]
    fn a_kernel_split_over_packages() {
        let (dir, store) = store();
        let module = elf(&[(".modinfo", b"depends=net-failover\0")]);
        let failover = elf(&[(".modinfo", b"depends=\0")]);
        let (binary, rest) = (dir.path().join("binary.deb"), dir.path().join("modules.deb"));
        write_deb(&binary, ".zst", &[("usr/lib/modules/7.2.9-x/vmlinuz", &vmlinuz(&["a"]))]);
        write_deb(
            &rest,
            "",
            &[
                ("usr/lib/modules/7.2.9-x/config", b"CONFIG_SCHED_CLASS_EXT=y\n"),
                ("usr/lib/modules/7.2.9-x/kernel/net/virtio_net.ko", &module),
                ("usr/lib/modules/7.2.9-x/kernel/net/net_failover.ko", &failover),
                ("usr/lib/modules/7.2.9-x/kernel/net/unrelated.ko", b"not even read"),
            ],
        );
        let files = [binary.clone(), rest.clone()];
        let metadata = import_packages(&store, &files).unwrap();
        assert_eq!((metadata.sched_ext, metadata.btf), (Some(true), true));
        let names: Vec<_> = metadata.modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["net_failover", "virtio_net"]);
        let path = store.path(&metadata.key);
        assert_eq!(fs::read(path.join("vmlinux")).unwrap(), vmlinux(&["a"]));
        assert!(path.join("image").is_file() && path.join("config").is_file());
        let again = import_packages(&store, &[rest.clone(), binary]).unwrap();
        assert_eq!(again, metadata, "same content, same entry");
        let alone = import_packages(&store, &[rest]).unwrap_err();
        assert!(alone.to_string().contains("linux-binary"), "{alone}");
    }

    #[test]
    fn packages_of_two_kernels_do_not_mix() {
        let (dir, store) = store();
        let (a, b) = (dir.path().join("a.deb"), dir.path().join("b.deb"));
        write_deb(&a, "", &[("boot/vmlinuz-7.2.9-x", &vmlinuz(&[]))]);
        write_deb(&b, "", &[("boot/config-6.18.1", b"")]);
        assert!(matches!(import_packages(&store, &[a, b]), Err(ImportError::Mixed { .. })));
    }

    #[test]
    fn images_by_path() {
        let (dir, store) = store();
        let path = dir.path().join("vmlinuz-7.2.9-x");
        fs::write(&path, vmlinuz(&["sched_ext_ops"])).unwrap();
        let metadata = import_image(&store, &path).unwrap();
        assert!(metadata.key.starts_with("image-7.2.9-x-"), "{}", metadata.key);
        assert_eq!(metadata.sched_ext, Some(true));
        assert_eq!(import_image(&store, &path).unwrap(), metadata);

        fs::write(dir.path().join("config-7.2.9-x"), "# CONFIG_SCHED_CLASS_EXT is not set\n").unwrap();
        let bare = dir.path().join("vmlinux-7.2.9-x");
        fs::write(&bare, vmlinux(&["sched_ext_ops"])).unwrap();
        let metadata = import_image(&store, &bare).unwrap();
        assert_eq!(metadata.sched_ext, Some(false), "the configuration beside it decides");
        assert!(!metadata.files.contains_key("image"));
    }

    #[test]
    fn what_is_refused() {
        let (dir, store) = store();
        let path = dir.path().join("x");
        assert!(matches!(import_image(&store, &path), Err(ImportError::Read { .. })));
        fs::write(&path, "text").unwrap();
        assert!(matches!(import_image(&store, &path), Err(ImportError::Image { .. })));
        fs::write(&path, elf(&[(".text", b"x")])).unwrap();
        assert!(matches!(import_image(&store, &path), Err(ImportError::NotAKernel { .. })));
        assert_eq!(store.list().unwrap(), [], "nothing half-made stays");
    }
}
