//! The scheduler's counters for whoever asks at the unix socket where published schedulers are asked:
//! one request per line, `{"req":"stats","args":{}}`, one answer per line, `{"errno":0,"args":{"resp":{…}}}`.
//!
//! Served from the loader's one loop, never blocking. Refuses long lines, many clients and everything but
//! `stats`, with the error number that schedulers of the kind use.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::libc::EINVAL;
use serde_json::{Value, json};

/// Where schedulers of the whole machine listen.
pub const SOCKET: &str = "/var/run/scx/root/stats";
/// Longest request.
const MAX_LINE: usize = 4096;
/// Clients at a time.
const MAX_CLIENTS: usize = 16;

/// Everybody who asks or may ask.
pub struct StatsServer {
    path: PathBuf,
    listener: UnixListener,
    clients: Vec<Client>,
    mute: bool,
}

struct Client {
    stream: UnixStream,
    got: Vec<u8>,
}

impl StatsServer {
    /// Listens at `path`, in the place of whoever listened there before; `mute` hears and never answers.
    pub fn bind(path: &Path, mute: bool) -> std::io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { path: path.to_owned(), listener, clients: Vec::new(), mute })
    }

    /// What becomes readable when somebody asks.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let clients = self.clients.iter().map(|client| client.stream.as_fd());
        std::iter::once(self.listener.as_fd()).chain(clients)
    }

    /// Answers what can be answered now.
    pub fn serve(&mut self, stats: impl Fn() -> Value) {
        while let Ok((stream, _)) = self.listener.accept() {
            // Who is refused sees the connection end.
            if self.clients.len() < MAX_CLIENTS && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, got: Vec::new() });
            }
        }
        let mute = self.mute;
        self.clients.retain_mut(|client| client.serve(mute, &stats));
    }
}

impl Drop for StatsServer {
    fn drop(&mut self) {
        // Who cannot remove it leaves a socket at which nobody listens.
        let _ = fs::remove_file(&self.path);
    }
}

impl Client {
    /// Whether it stays.
    fn serve(&mut self, mute: bool, stats: &impl Fn() -> Value) -> bool {
        let mut piece = [0; MAX_LINE];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return false,
                Ok(read) => self.got.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return false,
            }
            while let Some(end) = self.got.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.got.drain(..=end).collect();
                // An answer fits into the socket's buffer, or its client reads none.
                let answer = format!("{}\n", answer(&line, stats));
                if !mute && self.stream.write_all(answer.as_bytes()).is_err() {
                    return false;
                }
            }
            if self.got.len() > MAX_LINE {
                return false;
            }
        }
    }
}

fn answer(line: &[u8], stats: &impl Fn() -> Value) -> Value {
    let refused = |why: String| json!({"errno": EINVAL, "args": {"resp": why}});
    let request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return refused(error.to_string()),
    };
    let target = request.pointer("/args/target").and_then(Value::as_str).unwrap_or("top");
    match (request.get("req").and_then(Value::as_str), target) {
        (Some("stats"), "top") => json!({"errno": 0, "args": {"resp": stats()}}),
        (Some("stats"), _) => refused(format!("unknown stat target {target:?}")),
        (Some(other), _) => refused(format!("unknown command {other:?}")),
        (None, _) => refused("no `req`".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn questions_have_answers_and_others_an_error() {
        let dir = std::env::temp_dir().join(format!("scx-ktstr-stats-{}", std::process::id()));
        let path = dir.join("root/stats");
        let mut server = StatsServer::bind(&path, false).unwrap();
        // Whoever was there before is replaced.
        drop(server);
        server = StatsServer::bind(&path, false).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        let mut ask = |question: &str| -> Value {
            client.write_all(format!("{question}\n").as_bytes()).unwrap();
            server.serve(|| json!({"nr": 3}));
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
        };
        let good = json!({"errno": 0, "args": {"resp": {"nr": 3}}});
        assert_eq!(ask("{\"req\":\"stats\",\"args\":{}}"), good);
        assert_eq!(ask("{\"req\":\"stats\",\"args\":{\"target\":\"top\"}}"), good);
        for wrong in ["{\"req\":\"stats\",\"args\":{\"target\":\"x\"}}", "{\"req\":\"dance\"}", "{}", "["] {
            assert_eq!(ask(wrong)["errno"], EINVAL, "{wrong}");
        }
        let mut long = UnixStream::connect(&path).unwrap();
        long.write_all(&[b'x'; MAX_LINE + 1]).unwrap();
        server.serve(|| json!({}));
        assert_eq!(long.read(&mut [0]).unwrap_or(0), 0, "nobody listens to a line without end");
        assert_eq!(server.fds().count(), 2);
        drop(server);
        assert!(!path.exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
