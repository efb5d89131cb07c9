//! The lab's state directory and its two locks.
//!
//! `alive.lock` is held by the keeper for as long as the emulator runs, so a
//! held lock means a live lab and a valid pid. `client.lock` is held by the one
//! client whose command runs. Files left by a dead lab mean nothing.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the keeper needs to start the emulator; written by the client.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Launch {
    /// Emulator and its arguments, paths relative to the state directory.
    pub argv: Vec<String>,
    /// What it is to find in its environment, in addition.
    pub environment: Vec<(String, String)>,
    /// Seconds without a client after which the lab ends.
    pub idle_seconds: u64,
    /// Fingerprint of kernel, initrd and options; another one means a reboot.
    pub inputs: String,
    /// Release of the lab's kernel, for people.
    pub kernel_release: String,
}

/// What the lab holds already: fingerprints by path, valid for one boot.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pushed {
    /// The boot this describes.
    pub boot_id: String,
    /// Destination path to fingerprint of what lies there.
    pub files: std::collections::BTreeMap<PathBuf, String>,
}

/// The state directory.
#[derive(Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Creates the directory when missing.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)
            .with_context(|| format!("creating the lab's state directory {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("resolving {}", path.display()))?;
        Ok(Self { path })
    }

    /// Path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.file(name);
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening lock {}", path.display()))
    }

    /// Waits for the right to use the lab.
    pub fn lock_for_client(&self) -> Result<File> {
        let file = self.lock_file("client.lock")?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                eprintln!("lab: another command runs there, waiting for it to end")
            }
            Err(TryLockError::Error(err)) => return Err(err).context("locking client.lock"),
        }
        file.lock().context("locking client.lock")?;
        Ok(file)
    }

    /// Whether a lock is held by somebody.
    pub fn is_held(&self, name: &str) -> Result<bool> {
        match self.lock_file(name)?.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(err)) => Err(err).with_context(|| format!("probing {name}")),
        }
    }

    /// Whether a keeper is there.
    pub fn is_alive(&self) -> Result<bool> {
        self.is_held("alive.lock")
    }

    /// Reads a JSON file; `None` when it is missing or of another version.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.file(name)).ok()?).ok()
    }

    /// Writes a JSON file whole or not at all.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let temporary = self.file(&format!("{name}.new"));
        let bytes = serde_json::to_vec_pretty(value).with_context(|| format!("encoding {name}"))?;
        fs::write(&temporary, bytes).with_context(|| format!("writing {}", temporary.display()))?;
        fs::rename(&temporary, self.file(name)).with_context(|| format!("renaming {}", temporary.display()))
    }

    /// Ends the lab and waits until the emulator is gone. True when one ran.
    pub fn stop(&self) -> Result<bool> {
        if !self.is_alive()? {
            return Ok(false);
        }
        let pid: i32 =
            self.read("keeper.pid").context("the lab is alive but its keeper.pid is unreadable")?;
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            // The held lock vouches for the pid. The emulator dies with its keeper.
            let _ = kill(Pid::from_raw(pid), signal);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(5) {
                if !self.is_alive()? {
                    return Ok(true);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        bail!("the lab's keeper (pid {pid}) survived SIGKILL for 5 s; look at it with `ps {pid}`")
    }

    /// The end of the lab's console, for error messages.
    pub fn console_tail(&self, lines: usize) -> String {
        let bytes = fs::read(self.file("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The line with which the lab's kernel died, if it did.
    pub fn kernel_death(&self) -> Option<String> {
        let bytes = fs::read(self.file("console.log")).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        text.lines()
            .find(|line| line.contains("Kernel panic") || line.contains("Oops: "))
            .map(|line| line.trim().to_owned())
    }
}
