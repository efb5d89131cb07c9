//! The state of the emulated devices, in the emulator's own migration format: out of a machine that
//! stands and into one that has not run.
//!
//! Guest RAM is a file that both sides share (`x-ignore-shared`), so what goes through here is a few
//! hundred kilobytes. Only the very emulator that wrote a state reads it again; that this is so is the
//! orchestrator's business.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args;
use super::qmp::{Qmp, QmpError};

/// How long the emulator may take: on a busy host thousands of times what it needs.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it is asked whether it is done.
const LOOK: Duration = Duration::from_millis(1);

/// Why the state did not get across.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The conversation failed.
    #[error(transparent)]
    Control(#[from] QmpError),
    /// The emulator gave up.
    #[error("the emulator's migration {status}: {reason}")]
    Failed {
        /// Its word for it.
        status: String,
        /// Its reason.
        reason: String,
    },
    /// It does not end.
    #[error("the emulator's migration did not end within {} s", LIMIT.as_secs())]
    Endless,
    /// The file failed.
    #[error("read the state that the emulator wrote")]
    Read(#[source] std::io::Error),
}

/// Has the state written to `file` and returns it. The machine must stand; it may go on afterwards.
pub fn give_out(qmp: &mut Qmp, file: BorrowedFd<'_>) -> Result<Vec<u8>, MigrationError> {
    carry_out(qmp, "migrate", file)?;
    let read = || {
        let mut file = File::from(file.try_clone_to_owned()?);
        // What a jailed process may ask for a file's length.
        let mut state = vec![0; file.seek(SeekFrom::End(0))? as usize];
        file.read_exact_at(&mut state, 0)?;
        Ok(state)
    };
    read().map_err(MigrationError::Read)
}

/// Has the state read from `file`. The machine must have been started for it, and stands afterwards.
///
/// An emulator that was moved announces its network cards five times within 1.5 s of the host's time,
/// even if it has none, and each of these timers of the host's runs its event loop.
pub fn take_in(qmp: &mut Qmp, file: BorrowedFd<'_>) -> Result<(), MigrationError> {
    qmp.call_with("migrate-set-parameters", json!({ "announce-rounds": 0 }), LIMIT)?;
    carry_out(qmp, "migrate-incoming", file)
}

fn carry_out(qmp: &mut Qmp, command: &str, file: BorrowedFd<'_>) -> Result<(), MigrationError> {
    let shared = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    qmp.call_with("migrate-set-capabilities", shared, LIMIT)?;
    qmp.call_with(command, json!({ "uri": format!("file:{}", args::path(file)) }), LIMIT)?;
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        let answer = qmp.call("query-migrate", LIMIT)?;
        let word = |key: &str| answer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match word("status").as_str() {
            "completed" => return Ok(()),
            status @ ("failed" | "cancelled") => {
                return Err(MigrationError::Failed { status: status.to_owned(), reason: word("error-desc") });
            }
            _ => std::thread::sleep(LOOK),
        }
    }
    Err(MigrationError::Endless)
}
