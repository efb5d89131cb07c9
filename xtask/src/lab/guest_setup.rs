//! How the lab comes up: the agent's steps between the kernel and the first
//! command. Each returns `Result`; the agent reports the first failure on the
//! console and powers off.

use super::initrd::MODULES;
use super::shutdowns;
use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Root of the cgroup hierarchy.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const NEW_ROOT: &str = "/new-root";

/// All steps, in order.
pub fn bring_up() -> Result<()> {
    move_to_tmpfs_root().context("moving to a tmpfs root")?;
    mount_kernel_filesystems()?;
    load_modules()?;
    shutdowns::note();
    prepare_devices()?;
    prepare_user_space()?;
    prepare_cgroup().context("preparing cgroup2")
}

/// The initramfs root cannot be pivoted away from, which jails need to do.
fn move_to_tmpfs_root() -> Result<()> {
    let new_root = Path::new(NEW_ROOT);
    fs::create_dir(new_root)?;
    mount_fs("tmpfs", NEW_ROOT, "tmpfs", "mode=0755,size=80%")?;
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(new_root.join("usr").join(name))?;
        symlink(Path::new("usr").join(name), new_root.join(name))?;
    }
    for entry in fs::read_dir("/")? {
        let path = entry?.path();
        if path != new_root && path != Path::new("/dev") && path != Path::new("/root") {
            move_tree(&path, &new_root.join(path.strip_prefix("/")?))?;
        }
    }
    std::env::set_current_dir(new_root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

fn move_tree(from: &Path, to: &Path) -> Result<()> {
    if fs::symlink_metadata(from)?.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            move_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    fs::remove_file(from).with_context(|| format!("removing {}", from.display()))
}

fn mount_fs(source: &str, target: &str, kind: &str, options: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mounting {kind} on {target}"))
}

fn mount_kernel_filesystems() -> Result<()> {
    for dir in ["proc", "sys", "dev", "tmp", "run", "root", "etc", "var/tmp", "home"] {
        fs::create_dir_all(Path::new("/").join(dir)).with_context(|| format!("creating /{dir}"))?;
    }
    mount_fs("proc", "/proc", "proc", "")?;
    mount_fs("sysfs", "/sys", "sysfs", "")?;
    mount_fs("devtmpfs", "/dev", "devtmpfs", "mode=0755")?;
    for (dir, kind, options) in [
        ("/dev/pts", "devpts", "mode=0620,ptmxmode=0666"),
        ("/dev/shm", "tmpfs", "mode=1777"),
        ("/tmp", "tmpfs", "mode=1777,size=80%"),
    ] {
        fs::create_dir_all(dir).with_context(|| format!("creating {dir}"))?;
        mount_fs(kind, dir, kind, options)?;
    }
    mount_fs("cgroup2", "/sys/fs/cgroup", "cgroup2", "")?;
    // Wanted by tests that look at BPF or trace; a kernel may lack them.
    for (dir, kind) in
        [("/sys/kernel/debug", "debugfs"), ("/sys/kernel/tracing", "tracefs"), ("/sys/fs/bpf", "bpf")]
    {
        if let Err(err) = mount_fs(kind, dir, kind, "") {
            println!("lab: {err:#}");
        }
    }
    Ok(())
}

fn load_modules() -> Result<()> {
    let mut paths: Vec<PathBuf> = fs::read_dir(MODULES)
        .context("listing the modules")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .context("listing the modules")?;
    paths.sort();
    for path in paths {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        nix::kmod::finit_module(&file, c"", nix::kmod::ModuleInitFlags::empty())
            .with_context(|| format!("loading {}", path.display()))?;
    }
    fs::remove_dir_all(MODULES).context("removing the modules")
}

fn prepare_devices() -> Result<()> {
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, Path::new("/dev").join(link)).with_context(|| format!("linking /dev/{link}"))?;
    }
    if !Path::new("/dev/kvm").exists() {
        bail!("no /dev/kvm after loading kvm-amd: does the emulated CPU offer SVM?");
    }
    for device in ["/dev/kvm", "/dev/ptmx"] {
        fs::set_permissions(device, fs::Permissions::from_mode(0o666))
            .with_context(|| format!("opening up {device}"))?;
    }
    Ok(())
}

fn prepare_user_space() -> Result<()> {
    for (path, text) in [
        (
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        ),
        ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("/etc/hosts", "127.0.0.1 localhost\n"),
        ("/proc/sys/kernel/hostname", "kvm-lab"),
    ] {
        fs::write(path, text).with_context(|| format!("writing {path}"))?;
    }
    fs::set_permissions("/var/tmp", fs::Permissions::from_mode(0o1777)).context("opening up /var/tmp")?;
    // Absent where user namespaces are always allowed.
    let _ = fs::write("/proc/sys/kernel/unprivileged_userns_clone", "1");
    for argv in [&["--install", "-s", "/bin"][..], &["ip", "link", "set", "lo", "up"][..]] {
        let status = Command::new("/bin/busybox").args(argv).status().context("starting busybox")?;
        if !status.success() {
            bail!("busybox {argv:?}: {status}");
        }
    }
    Ok(())
}

fn prepare_cgroup() -> Result<()> {
    let available = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let enable: Vec<String> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", enable.join(" "))?;
    Ok(())
}

/// Waits for the virtio-serial port called `name`.
pub fn find_port(name: &str) -> Result<File> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            if fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim() == name) {
                let path = Path::new("/dev").join(entry.file_name());
                return File::options()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .with_context(|| format!("opening {}", path.display()));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("no virtio-serial port called {name} appeared within 20 s")
}
