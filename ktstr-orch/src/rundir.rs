//! The run's directory: everything a run leaves behind.
//!
//! | file | content |
//! |---|---|
//! | `spec.json` | what was asked |
//! | `guest.jsonl` | every message of the guest, with guest time only: equal for equal runs |
//! | `events.jsonl` | what the host saw, with host time: processes, samples, notices |
//! | `timeline.jsonl` | both and the console's lines on one clock, in its order |
//! | `console.log` | COM1 as it came |
//! | `com2.log` | COM2 as it came |
//! | `vmm.log`, `monitor.log` | standard error of those processes |
//! | `sidecar.json` | the report |
//! | `capture-N.json`, `.txt`, `.vmcore` | the guest's scheduler state at one moment, or all its memory |
//! | `replay` | the line that repeats the run |
//! | `auto-repro-…/` | the directory of the second run of a crash |

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use ktstr_proto::RunId;
use serde::Serialize;

/// Why the directory cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct RunDirError {
    /// What was to be written.
    pub path: PathBuf,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

/// An open run directory.
pub struct RunDir {
    /// The run.
    pub id: RunId,
    /// The directory.
    pub path: PathBuf,
    started: Instant,
    console: File,
    com2: File,
    guest: File,
    events: File,
}

impl RunDir {
    /// Creates a directory nobody else has.
    pub fn create(root: &Path, name: &str) -> Result<Self, RunDirError> {
        let safe: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' })
            .collect();
        let wrap = |path: &Path| {
            let path = path.to_path_buf();
            move |source| RunDirError { path, source }
        };
        fs::create_dir_all(root).map_err(wrap(root))?;
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let (id, path) = (0..)
            .find_map(|n: u32| {
                let id = format!(
                    "{safe}-{millis:x}-{:x}{}",
                    std::process::id(),
                    if n == 0 { String::new() } else { format!("-{n}") }
                );
                let path = root.join(&id);
                match fs::create_dir(&path) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
                    other => Some(other.map(|()| (id, path.clone())).map_err(wrap(&path))),
                }
            })
            .expect("the loop has no end")?;
        let file = |name: &str| File::create(path.join(name)).map_err(wrap(&path.join(name)));
        Ok(Self {
            console: file("console.log")?,
            com2: file("com2.log")?,
            guest: file("guest.jsonl")?,
            events: file("events.jsonl")?,
            id: RunId(id),
            started: Instant::now(),
            path,
        })
    }

    /// A new file in the directory, for a child's stderr.
    pub fn log_file(&self, name: &str) -> Option<File> {
        File::create(self.path.join(name)).ok()
    }

    /// Milliseconds since the run began.
    pub fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Writes a whole file as indented JSON.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), RunDirError> {
        let path = self.path.join(name);
        let write = || -> io::Result<()> {
            let mut file = io::BufWriter::new(File::create(&path)?);
            serde_json::to_writer_pretty(&mut file, value)?;
            file.write_all(b"\n")?;
            file.flush()
        };
        write().map_err(|source| RunDirError { path: path.clone(), source })
    }

    /// Writes a whole file of JSON lines.
    pub fn write_lines<T: Serialize>(&self, name: &str, values: &[T]) -> Result<(), RunDirError> {
        let path = self.path.join(name);
        let write = || -> io::Result<()> {
            let mut file = io::BufWriter::new(File::create(&path)?);
            values.iter().try_for_each(|value| file.write_all(&line(value)))?;
            file.flush()
        };
        write().map_err(|source| RunDirError { path: path.clone(), source })
    }

    /// Writes a whole text file.
    pub fn write_text(&self, name: &str, text: &str) -> Result<(), RunDirError> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(|source| RunDirError { path, source })
    }

    /// Appends kernel console bytes.
    pub fn console(&mut self, bytes: &[u8]) -> Result<(), RunDirError> {
        append(&mut self.console, &self.path, "console.log", bytes)
    }

    /// Appends COM2 bytes.
    pub fn com2(&mut self, bytes: &[u8]) -> Result<(), RunDirError> {
        append(&mut self.com2, &self.path, "com2.log", bytes)
    }

    /// Appends one message of the guest.
    pub fn guest<T: Serialize>(&mut self, message: &T) -> Result<(), RunDirError> {
        append(&mut self.guest, &self.path, "guest.jsonl", &line(message))
    }

    /// Appends one thing the host saw.
    pub fn event<T: Serialize>(&mut self, what: &str, value: &T) -> Result<(), RunDirError> {
        #[derive(Serialize)]
        struct Event<'a, T> {
            t_ms: u64,
            what: &'a str,
            value: &'a T,
        }
        let bytes = line(&Event { t_ms: self.elapsed_ms(), what, value });
        append(&mut self.events, &self.path, "events.jsonl", &bytes)
    }
}

fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("plain data always encodes as JSON");
    bytes.push(b'\n');
    bytes
}

fn append(file: &mut File, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), RunDirError> {
    file.write_all(bytes).map_err(|source| RunDirError { path: dir.join(name), source })
}
