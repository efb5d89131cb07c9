//! The shell's conversation with an orchestrator that this file plays, on a
//! terminal that this file owns: output, exit codes, and the terminal's state
//! after every way a session can end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ktstr_proto::channel::Message;
use ktstr_proto::client::{Cancelled, ClientEvent, ClientLink, ClientReply, ClientRequest, Submitted};
use ktstr_proto::guest::LogSource;
use ktstr_proto::run::{Job, RunSpec};
use ktstr_proto::verdict::{Cause, Outcome, RunReport};
use ktstr_proto::vmm::ConsoleSockets;
use ktstr_proto::{Channel, Fds, RunId};
use nix::pty::OpenptyResult;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{self, LocalFlags};
use nix::unistd::Pid;

use crate::commands::report;

const PATIENCE: Duration = Duration::from_secs(20);

/// A kernel entry that satisfies the store; nothing boots it.
pub fn plant_kernel(home: &Path, key: &str, release: &str) {
    let dir = home.join(".cache/ktstr/kernels").join(key);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("vmlinux"), "elf").unwrap();
    let metadata = serde_json::json!({
        "format": 1, "key": key, "release": release, "version": release, "series": "",
        "arch": std::env::consts::ARCH, "source": {"kind": "package_files", "paths": ["/x"]},
        "sched_ext": true, "btf": true, "modules": [], "created": "", "ktstr": "",
        "files": {"vmlinux": {"size": 3, "sha256": ""}},
    });
    fs::write(dir.join("metadata.json"), metadata.to_string()).unwrap();
}

/// A running `ktstr shell` and our end of everything it is connected to.
struct Session {
    _home: tempfile::TempDir,
    pty: OpenptyResult,
    child: Child,
    channel: Channel<ClientLink>,
    spec: RunSpec,
    /// Where the shell says how large its terminal is.
    size: Option<UnixStream>,
}

impl Session {
    /// Starts the shell and takes its submission.
    fn start(args: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        plant_kernel(home.path(), "k", "7.2.0");
        let socket = home.path().join("orch.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let pty = nix::pty::openpty(None, None).unwrap();
        let slave = |fd: &OwnedFd| Stdio::from(fd.as_fd().try_clone_to_owned().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_ktstr"))
            .arg("shell")
            .args(args)
            .env_clear()
            .env("HOME", home.path())
            .env("TERM", "xterm-test")
            .env("KTSTR_ORCH_SOCK", &socket)
            .stdin(slave(&pty.slave))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut channel = Channel::<ClientLink>::new(stream, "ktstr").unwrap();
        channel.handshake("ktstr-orch", PATIENCE).unwrap();
        let (message, _) = channel.receive(PATIENCE).unwrap();
        let Message::Request(request) = message else { panic!("{message:?}") };
        let ClientRequest::Submit(submit) = request.request else { panic!("no submission") };
        let submitted = Submitted { run_id: RunId("r".into()), run_dir: "/runs/r".into(), queued_behind: 0 };
        channel.queue_reply(request.id, Ok(ClientReply::Submit(submitted)), Fds::default()).unwrap();
        channel.drain(PATIENCE).unwrap();
        Self { _home: home, pty, child, channel, spec: submit.0, size: None }
    }

    fn send(&mut self, event: &ClientEvent, fds: Fds) {
        self.channel.queue_event(event, fds).unwrap();
        self.channel.drain(PATIENCE).unwrap();
    }

    /// Gives the shell a console and waits until its terminal is raw.
    fn console(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut fds = Fds::default();
        let (size, their_size) = UnixStream::pair().unwrap();
        size.set_read_timeout(Some(PATIENCE)).unwrap();
        self.size = Some(size);
        let sockets =
            ConsoleSockets { terminal: fds.attach(theirs.into()), size: fds.attach(their_size.into()) };
        self.send(&ClientEvent::ConsoleReady(sockets), fds);
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        // What is typed arrives only once the shell reads the raw terminal;
        // the key has no meaning to a terminal in any mode.
        self.type_keys(b"~");
        let mut key = [0];
        (&ours).read_exact(&mut key).unwrap();
        assert_eq!(&key, b"~");
        assert!(!self.canonical(), "raw while the console is open");
        ours
    }

    fn type_keys(&self, keys: &[u8]) {
        fs::File::from(self.pty.master.try_clone().unwrap()).write_all(keys).unwrap();
    }

    fn resize(&self, rows: u16, cols: u16) {
        let size = nix::pty::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and `size` outlives the call, which only reads it.
        let result =
            unsafe { nix::libc::ioctl(self.pty.master.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(result, 0);
    }

    fn canonical(&self) -> bool {
        termios::tcgetattr(&self.pty.slave)
            .unwrap()
            .local_flags
            .contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    fn report(&self, outcome: Outcome, cause: Option<Cause>, exit_status: Option<i32>) -> ClientEvent {
        let report = report("shell", outcome, cause);
        let topology = self.spec.topology;
        ClientEvent::Finished(RunReport { topology, exit_status, replay: String::new(), ..report })
    }

    /// Waits for the end: code, stdout, stderr, and whether the terminal is
    /// as it was.
    fn end(mut self) -> (Option<i32>, String, String, bool) {
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let code = self.child.wait().unwrap().code();
        (code, out, err, self.canonical())
    }

    /// Answers a cancellation as an orchestrator does.
    fn expect_cancel(&mut self) {
        let (message, _) = self.channel.receive(PATIENCE).unwrap();
        let Message::Request(request) = message else { panic!("{message:?}") };
        assert!(matches!(request.request, ClientRequest::Cancel(_)), "{request:?}");
        self.channel.queue_reply(request.id, Ok(ClientReply::Cancel(Cancelled)), Fds::default()).unwrap();
        let report = self.report(Outcome::Inconclusive, Some(Cause::Cancelled), None);
        self.send(&report, Fds::default());
    }
}

#[test]
fn a_command_passes_its_output_and_status_on() {
    let mut session =
        Session::start(&["--exec", "it's", "--topology", "1,2,2,1", "--memory-mb", "512", "--accel", "tcg"]);
    let Job::Shell(job) = &session.spec.job else { panic!("no shell job") };
    assert_eq!((job.exec.as_deref(), job.term.clone()), (Some("it's"), None));
    assert_eq!((session.spec.kernel.as_deref(), session.spec.memory_mb), (Some("k"), Some(512)));
    assert_eq!(session.spec.topology.to_string(), "1n2l2c1t");
    assert!(
        session.spec.replay.ends_with(r"--topology 1n2l2c1t --exec 'it'\''s'"),
        "{}",
        session.spec.replay
    );
    let output = |source, text: &str| ClientEvent::Output { source, text: text.into() };
    session.send(&ClientEvent::Notice("accelerator tcg".into()), Fds::default());
    session.send(&output(LogSource::Stdout, "out\n"), Fds::default());
    session.send(&output(LogSource::Stderr, "err\n"), Fds::default());
    session.send(&output(LogSource::Init, "not shown\n"), Fds::default());
    session.send(&session.report(Outcome::Fail, None, Some(42)), Fds::default());
    let (code, out, err, _) = session.end();
    assert_eq!((code, out.as_str(), err.as_str()), (Some(42), "out\n", "ktstr: accelerator tcg\nerr\n"));
}

#[test]
fn an_interactive_session_ends_with_the_guests_status() {
    let mut session = Session::start(&[]);
    let Job::Shell(job) = &session.spec.job else { panic!("no shell job") };
    assert_eq!(job.term.as_ref().unwrap().term, "xterm-test");
    let mut console = session.console();
    console.write_all(b"/ # ").unwrap();
    session.type_keys(b"\x03exit\r");
    let mut typed = [0; 6];
    console.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"\x03exit\r", "keys reach the guest as they are, Ctrl-C too");
    console.write_all(b"bye\r\n").unwrap();
    drop(console);
    session.send(&session.report(Outcome::Pass, None, Some(7)), Fds::default());
    let (code, out, _, restored) = session.end();
    assert_eq!((code, restored), (Some(7), true));
    assert_eq!(out, "/ # bye\r\n");
}

#[test]
fn the_guest_hears_of_every_size_of_the_terminal() {
    let mut session = Session::start(&[]);
    // The first may say no size: this terminal has none yet.
    session.resize(30, 100);
    let _console = session.console();
    let mut size = BufReader::new(session.size.take().unwrap());
    let mut told = || {
        let mut line = String::new();
        size.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(told(), "30 100\n", "what it is when the console is there");
    session.resize(50, 132);
    kill(Pid::from_raw(session.child.id() as i32), Signal::SIGWINCH).unwrap();
    while told() != "50 132\n" {}
    session.send(&session.report(Outcome::Pass, None, Some(0)), Fds::default());
    assert_eq!(session.end().0, Some(0));
}

#[test]
fn signals_restore_the_terminal_and_cancel_the_run() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut session = Session::start(&[]);
        let _console = session.console();
        kill(Pid::from_raw(session.child.id() as i32), signal).unwrap();
        session.expect_cancel();
        let (code, _, _, restored) = session.end();
        assert_eq!((code, restored), (Some(128 + signal as i32), true), "{signal}");
    }
}

#[test]
fn the_escape_key_ends_a_guest_that_does_not_listen() {
    let mut session = Session::start(&[]);
    let _console = session.console();
    session.type_keys(b"\x1d");
    session.expect_cancel();
    let (code, _, err, restored) = session.end();
    assert_eq!((code, restored), (Some(2), true));
    assert!(err.contains("machine ended"), "{err}");
}

#[test]
fn an_orchestrator_that_dies_is_infrastructure() {
    let mut session = Session::start(&[]);
    let _console = session.console();
    // Closing our only end is what the death of the process looks like.
    session.channel = Channel::new(UnixStream::pair().unwrap().0, "nobody").unwrap();
    let (code, _, err, restored) = session.end();
    assert_eq!((code, restored), (Some(4), true), "{err}");
    assert!(err.contains("closed the connection"), "{err}");
}

#[test]
fn a_guest_that_panics_is_explained() {
    let mut session = Session::start(&["--exec", "true"]);
    let cause = Cause::KernelPanic { message: "Attempted to kill init".into() };
    session.send(&session.report(Outcome::Fail, Some(cause), None), Fds::default());
    let (code, _, err, _) = session.end();
    assert_eq!(code, Some(1));
    let expected = "error: the guest kernel panicked: Attempted to kill init\n  console: the last line\nrun directory: /runs/shell-1\n";
    assert_eq!(err, expected);
}
