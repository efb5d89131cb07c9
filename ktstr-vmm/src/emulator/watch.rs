//! Watching an emulated machine's memory for writes: the debugger's server is started when it is first
//! needed, so that a machine of which nothing is watched runs as if there were none.

use std::os::unix::net::UnixStream;

use ktstr_proto::capture::WatchPoint;
use serde_json::json;

use super::args::GDB;
use super::gdb::{Gdb, GdbError};
use super::qmp::{Qmp, QmpError};
use super::running::CONTROL_LIMIT;

/// Why places cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Under `det` it would change what follows.
    #[error(
        "accelerator det watches nothing: a place is set at a moment that the host chooses, and the run would not \
         replay; use tcg"
    )]
    Det,
    /// The server does not start.
    #[error("start the emulator's debugger interface")]
    Server {
        /// The reason.
        #[from]
        source: QmpError,
    },
    /// It says why it does not start in words only.
    #[error("the emulator does not start its debugger interface: {said}")]
    NoServer {
        /// Its words.
        said: String,
    },
    /// The conversation failed.
    #[error("set the places to watch")]
    Debugger {
        /// The reason.
        #[from]
        source: GdbError,
    },
}

/// The debugger's socket before and after its server runs.
#[derive(Debug)]
pub enum Debugger {
    /// There is none: `det`.
    Never,
    /// Nobody has needed it yet.
    Idle(UnixStream),
    /// Its server runs.
    Serving(Gdb),
}

impl Debugger {
    /// The connection, with its server started. The machine stands.
    pub fn serving(&mut self, qmp: &mut Qmp) -> Result<&mut Gdb, WatchError> {
        if let Self::Idle(socket) = self {
            let socket = socket.try_clone().map_err(|source| GdbError::Socket { source })?;
            let line = json!({ "command-line": format!("gdbserver chardev:{GDB}") });
            let answer = qmp.call_with("human-monitor-command", line, CONTROL_LIMIT)?;
            let said = answer.as_str().unwrap_or_default().trim().to_owned();
            // Nothing but its words tells success from failure.
            if !said.is_empty() && !said.starts_with("Waiting for gdb connection") {
                return Err(WatchError::NoServer { said });
            }
            *self = Self::Serving(Gdb::new(socket)?);
        }
        match self {
            Self::Serving(gdb) => Ok(gdb),
            Self::Never | Self::Idle(_) => Err(WatchError::Det),
        }
    }

    /// The connection on which writes are told, if anything is watched.
    pub fn watching(&mut self) -> Option<&mut Gdb> {
        match self {
            Self::Serving(gdb) if gdb.is_watching() => Some(gdb),
            _ => None,
        }
    }

    /// Sets the places; the machine stands.
    pub fn watch(&mut self, qmp: &mut Qmp, places: &[WatchPoint]) -> Result<(), WatchError> {
        Ok(self.serving(qmp)?.watch(places, CONTROL_LIMIT)?)
    }
}
