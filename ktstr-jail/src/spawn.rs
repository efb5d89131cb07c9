//! Starting another program inside a jail.
//!
//! The child is made by `clone` with its namespaces, a process id namespace among them, and walks a
//! plan that was prepared before: between `clone` and the start of the program it makes system
//! calls and nothing else, so the caller may have threads. A failing step is reported through a pipe
//! that closes when the program starts; [`spawn`] returns after that.
//!
//! The program is executed by descriptor, under a number above the child's limit on descriptors: the
//! filter allows `execveat` for that number alone, and after the start no descriptor can get it.
//! The child is killed when the *thread* that called [`spawn`] ends.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use libc::{c_char, c_int};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::wait::WaitPidFlag;

use crate::enter::{forbids, makes_namespaces, step_failed};
use crate::error::JailError;
use crate::plan::{NAMESPACES, PID_TO_COME, Walker, c_string, map_identity, plan, user_namespace_flag};
use crate::spec::{JailSpec, Namespaces};
use crate::step::Step;

/// In the pipe's report, instead of a step's index: the program could not be executed.
const EXEC_FAILED: u32 = u32::MAX;
/// The parent was gone before the child could ask to be killed with it.
const PARENT_GONE: u32 = u32::MAX - 1;
const CHILD_FAILED: c_int = 127;
/// First in the pipe when the child is in its jail and only the program is left to be executed.
const STARTING: u8 = b's';

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// The executable, as the host sees it.
    pub path: &'a Path,
    /// Arguments after the program's name.
    pub args: &'a [String],
    /// All of its environment, `NAME=value`.
    pub environment: &'a [String],
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Further descriptors, which keep their numbers. No others are inherited.
    pub inherited: &'a [BorrowedFd<'a>],
}

/// A running jailed program. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Jailed {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Jailed {
    /// Its process id on this side.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Readable once it has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.reap(WaitPidFlag::WNOHANG);
        self.status
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.reap(WaitPidFlag::empty());
        self.status.unwrap_or_default()
    }

    /// Kills and reaps it.
    pub fn kill(&mut self) {
        if self.try_wait().is_some() {
            return;
        }
        // It fails only for a process that has ended.
        let _ = self.signal(libc::SIGKILL);
        self.wait();
    }

    /// Stops every thread of it, and waits until they stand or `limit` has passed.
    pub fn freeze(&mut self, limit: Duration) -> std::io::Result<()> {
        self.signal(libc::SIGSTOP)?;
        let deadline = Instant::now() + limit;
        while !self.stands()? {
            if Instant::now() > deadline {
                self.thaw()?;
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            // A stop has no descriptor to wait on.
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Lets it go on.
    pub fn thaw(&mut self) -> std::io::Result<()> {
        self.signal(libc::SIGCONT)
    }

    /// Whether it has stopped since this was last asked; a process that has ended stands, too.
    fn stands(&mut self) -> std::io::Result<bool> {
        // SAFETY: an all-zero siginfo_t is a valid one.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WSTOPPED | libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the kernel writes to `info`. Nobody else reaps this child, so the id is its own.
        let result = unsafe { libc::waitid(libc::P_PID, self.pid.unsigned_abs(), &raw mut info, flags) };
        if result < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: waitid has filled it in, or left it zero when there is nothing to tell.
        Ok(unsafe { info.si_pid() } != 0)
    }

    fn signal(&self, signal: c_int) -> std::io::Result<()> {
        // SAFETY: numbers and a null pointer.
        let result = unsafe {
            let none = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), signal, none, 0)
        };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }

    fn reap(&mut self, flags: WaitPidFlag) {
        while self.status.is_none() {
            let mut raw: c_int = 0;
            // SAFETY: the kernel writes to `raw`. Nobody else reaps this child, so the id is its own.
            let result = unsafe { libc::waitpid(self.pid, &raw mut raw, flags.bits()) };
            match Errno::result(result) {
                Ok(0) => return,
                Ok(_) => self.status = Some(ExitStatus::from_raw(raw)),
                Err(Errno::EINTR) => {}
                // Reaped behind our back, by a handler of SIGCHLD for one.
                Err(_) => self.status = Some(ExitStatus::default()),
            }
        }
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts `program` in the jail that `spec` describes and returns once it runs.
pub fn spawn(spec: &JailSpec, program: &Program<'_>) -> Result<Jailed, JailError> {
    let child = Child::prepare(spec, program)?;
    let flags = match spec.namespaces {
        Namespaces::Forgone => 0,
        _ => user_namespace_flag(spec) | NAMESPACES | libc::CLONE_NEWPID,
    };
    give_birth(child, flags, program.path)
}

/// A program of ours, which will confine itself.
#[derive(Debug)]
pub struct Cell<'a> {
    /// The executable. Its environment is the caller's.
    pub path: &'a Path,
    /// Arguments after the program's name.
    pub args: &'a [&'a str],
    /// Standard input, output and error and its one socket, which become descriptors 0 to 3. No others are
    /// inherited.
    pub descriptors: [BorrowedFd<'a>; 4],
    /// Whether it gets a process id namespace.
    pub namespace: bool,
}

/// Starts a program that is to confine itself. The namespace comes with a user namespace, or by privilege;
/// where both are forbidden it has none, and its jail will refuse or do without.
pub fn start(cell: &Cell<'_>) -> Result<Jailed, JailError> {
    let ways = [libc::CLONE_NEWUSER | libc::CLONE_NEWPID, libc::CLONE_NEWPID, 0];
    let ways = if cell.namespace { &ways[..] } else { &ways[2..] };
    let mut outcome = Err(JailError::UserNamespaceForbidden { errno: libc::EPERM });
    for &flags in ways {
        outcome = give_birth(Child::of_ours(cell, flags)?, flags, cell.path);
        if !matches!(outcome, Err(JailError::UserNamespaceForbidden { .. })) {
            break;
        }
    }
    outcome
}

/// Makes the process; returns when its program runs.
fn give_birth(mut child: Child, flags: c_int, program: &Path) -> Result<Jailed, JailError> {
    let pipe = |source| JailError::Pipe { source };
    let (mut report, report_writer) = std::io::pipe().map_err(pipe)?;
    let (alive, alive_writer) = std::io::pipe().map_err(pipe)?;
    // The lowest numbers are where the child's own descriptors go.
    let above = |fd: OwnedFd| -> Result<OwnedFd, JailError> {
        let number =
            fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(PLACED as RawFd)).map_err(|errno| pipe(errno.into()))?;
        // SAFETY: the kernel has just made this descriptor, for us.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    };
    let (report_writer, alive) = (above(report_writer.into())?, above(alive.into())?);
    let ends = Ends {
        report: report_writer.as_raw_fd(),
        alive: alive.as_raw_fd(),
        parents: [alive_writer.as_raw_fd(), report.as_raw_fd()],
    };
    // SAFETY: the child's branch only makes system calls on what was prepared, and never returns.
    let (pid, pidfd) = match unsafe { clone(flags) } {
        // SAFETY: this is that child.
        Ok(Cloned::Child) => unsafe { child.run(&ends) },
        Ok(Cloned::Parent { pid, pidfd }) => (pid, pidfd),
        Err(errno) if flags != 0 && forbids(errno) => {
            return Err(JailError::UserNamespaceForbidden { errno: errno as i32 });
        }
        Err(errno) => {
            return Err(JailError::Step { step: "create namespaces".to_owned(), source: errno.into() });
        }
    };
    let mut jailed = Jailed { pid, pidfd, status: None };
    drop(report_writer);
    let mut bytes = Vec::new();
    report.read_to_end(&mut bytes).map_err(pipe)?;
    drop(alive_writer);
    match bytes.strip_prefix(&[STARTING]) {
        Some([]) => Ok(jailed),
        failed => {
            let status = jailed.wait();
            match <[u8; 8]>::try_from(failed.unwrap_or(&bytes)) {
                Ok(report) => Err(child.failure(program, report)),
                Err(_) => Err(JailError::ChildEnded { status }),
            }
        }
    }
}

/// Pipe ends as numbers; the child must close the parent's, or it would keep itself company.
struct Ends {
    report: RawFd,
    alive: RawFd,
    parents: [RawFd; 2],
}

/// All that the child needs, allocated beforehand.
struct Child {
    steps: Vec<Step>,
    start: Start,
    /// What becomes descriptors 0, 1, 2 and so on.
    descriptors: Vec<RawFd>,
    _words: Vec<CString>,
    argv: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

/// How its program is executed.
enum Start {
    /// By descriptor, under another number.
    Descriptor { executable: File, exec_fd: RawFd },
    /// By path: it looks at its own name.
    Path(CString),
}

/// Descriptors that are placed at most.
const PLACED: usize = 4;

impl Child {
    fn prepare(spec: &JailSpec, program: &Program<'_>) -> Result<Self, JailError> {
        let file = File::open(program.path)
            .map_err(|source| JailError::OpenProgram { path: program.path.to_path_buf(), source })?;
        // The highest number that the current limit allows; the jail's limit is lower.
        let (soft, _) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_err(|errno| {
                JailError::Step { step: "read the limit on descriptors".into(), source: errno.into() }
            })?;
        let exec_fd = u32::try_from(soft).unwrap_or(u32::MAX).min(1024).saturating_sub(1);
        let mut spec = spec.clone();
        spec.limits.open_files = spec.limits.open_files.min(exec_fd.into());
        let mut keep: Vec<RawFd> = program.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        keep.extend(0..3);
        keep.sort_unstable();
        keep.dedup();
        let steps = plan(&spec, &Walker::Child { keep: &keep, program: file.as_raw_fd(), exec_fd })?;
        let mut args = vec![c_string("program", program.path.as_os_str().as_bytes().to_vec())?];
        for arg in program.args {
            args.push(c_string("argument", arg.clone().into_bytes())?);
        }
        let argv = pointers(&args);
        let variables = program.environment.iter().map(|v| c_string("variable", v.clone().into_bytes()));
        let variables = variables.collect::<Result<Vec<CString>, _>>()?;
        let environment = pointers(&variables);
        args.extend(variables);
        Ok(Self {
            steps,
            start: Start::Descriptor { executable: file, exec_fd: exec_fd as RawFd },
            descriptors: program.stdio.iter().map(AsRawFd::as_raw_fd).collect(),
            argv,
            environment,
            _words: args,
        })
    }

    fn of_ours(cell: &Cell<'_>, flags: c_int) -> Result<Self, JailError> {
        let mut steps = Vec::new();
        if flags & libc::CLONE_NEWUSER != 0 {
            map_identity(&mut steps);
        }
        steps.extend([Step::DieWithParent, Step::KeepOnly { sorted: (0..4).collect() }]);
        let path = c_string("program", cell.path.as_os_str().as_bytes().to_vec())?;
        let mut words = vec![path.clone()];
        for arg in cell.args {
            words.push(c_string("argument", arg.as_bytes().to_vec())?);
        }
        let argv = pointers(&words);
        let variables: Vec<CString> = std::env::vars_os()
            .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
            .map(|variable| c_string("variable", variable))
            .collect::<Result<_, _>>()?;
        let environment = pointers(&variables);
        words.extend(variables);
        let descriptors = cell.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        Ok(Self { steps, start: Start::Path(path), descriptors, _words: words, argv, environment })
    }

    /// The child's life up to the program's start.
    ///
    /// # Safety
    /// Only in the child of [`clone`].
    unsafe fn run(&mut self, ends: &Ends) -> ! {
        self.name_itself();
        let (at, errno) = match self.walk(ends) {
            Err(failure) => failure,
            Ok(()) => {
                // SAFETY: the buffer lives until the call returns. Unread, it is a child that ended early.
                unsafe { libc::write(ends.report, [STARTING].as_ptr().cast(), 1) };
                let empty: &CStr = c"";
                let (argv, environment) = (self.argv.as_ptr(), self.environment.as_ptr());
                // SAFETY: the arrays end in null and point to strings that `self` owns.
                unsafe {
                    match &self.start {
                        Start::Path(path) => {
                            libc::c_long::from(libc::execve(path.as_ptr(), argv, environment))
                        }
                        Start::Descriptor { exec_fd, .. } => libc::syscall(
                            libc::SYS_execveat,
                            *exec_fd,
                            empty.as_ptr(),
                            argv,
                            environment,
                            libc::AT_EMPTY_PATH,
                        ),
                    }
                };
                (EXEC_FAILED, Errno::last())
            }
        };
        let mut report = [0_u8; 8];
        report[..4].copy_from_slice(&at.to_ne_bytes());
        report[4..].copy_from_slice(&(errno as i32).to_ne_bytes());
        // SAFETY: the buffer lives until the call returns. A failed write leaves the exit status.
        unsafe {
            libc::write(ends.report, report.as_ptr().cast(), report.len());
            libc::_exit(CHILD_FAILED)
        }
    }

    /// Puts the own id into the filters that were made before there was one.
    fn name_itself(&mut self) {
        // SAFETY: no arguments.
        let pid = unsafe { libc::getpid() };
        for step in &mut self.steps {
            let Step::Filter { program } = step else { continue };
            for instruction in program.iter_mut().filter(|instruction| instruction.k == PID_TO_COME) {
                instruction.k = pid.cast_unsigned();
            }
        }
    }

    fn walk(&self, ends: &Ends) -> Result<(), (u32, Errno)> {
        let start = |errno| (EXEC_FAILED, errno);
        for fd in ends.parents {
            // SAFETY: a copy of the descriptor that belongs to this process alone.
            unsafe { libc::close(fd) };
        }
        self.reset_signals();
        self.place_descriptors().map_err(start)?;
        for (index, step) in self.steps.iter().enumerate() {
            step.run().map_err(|errno| (index as u32, errno))?;
            // It may have gone before it could be asked for.
            if matches!(step, Step::DieWithParent) && parent_is_gone(ends.alive) {
                return Err((PARENT_GONE, Errno::ESRCH));
            }
        }
        Ok(())
    }

    /// The program starts with the default handlers and nothing blocked, whatever the caller has.
    fn reset_signals(&self) {
        // SAFETY: a zeroed sigset is the empty set; SIGPIPE is ignored by Rust programs.
        unsafe {
            let none: libc::sigset_t = std::mem::zeroed();
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
    }

    /// Standard streams to 0, 1, 2 and the executable to its number. The sources are moved out of
    /// the way first: one of them may be 0, 1 or 2.
    fn place_descriptors(&self) -> Result<(), Errno> {
        // SAFETY: numbers only.
        unsafe {
            if let Start::Descriptor { executable, exec_fd } = &self.start {
                Errno::result(libc::dup3(executable.as_raw_fd(), *exec_fd, libc::O_CLOEXEC))?;
            }
            let mut moved = [0; PLACED];
            let count = self.descriptors.len().min(PLACED);
            for (to, from) in moved.iter_mut().zip(&self.descriptors) {
                *to = Errno::result(libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, PLACED as c_int))?;
            }
            for (number, from) in (0..).zip(moved.into_iter().take(count)) {
                Errno::result(libc::dup2(from, number))?;
                libc::close(from);
            }
        }
        Ok(())
    }

    fn failure(&self, program: &Path, report: [u8; 8]) -> JailError {
        let [a, b, c, d, e, f, g, h] = report;
        let at = u32::from_ne_bytes([a, b, c, d]);
        let errno = Errno::from_raw(i32::from_ne_bytes([e, f, g, h]));
        match self.steps.get(at as usize) {
            Some(step) if makes_namespaces(step) && forbids(errno) => {
                JailError::UserNamespaceForbidden { errno: errno as i32 }
            }
            Some(step) => step_failed(step, errno),
            None => JailError::Step {
                step: format!("start {} in the jail", program.display()),
                source: errno.into(),
            },
        }
    }
}

/// Ends in null.
fn pointers(words: &[CString]) -> Vec<*const c_char> {
    words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
}

fn parent_is_gone(alive: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: alive, events: 0, revents: 0 };
    // SAFETY: one structure, which lives until the call returns.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLHUP != 0
}

enum Cloned {
    Child,
    Parent { pid: libc::pid_t, pidfd: OwnedFd },
}

/// `fork` with namespaces and a descriptor of the child. By `clone`, not `clone3`: containers refuse the
/// latter whatever its flags, because a filter cannot look at them.
///
/// # Safety
/// The child may only make async-signal-safe calls until it executes a program or exits.
unsafe fn clone(flags: c_int) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    let flags = libc::c_ulong::from((flags | libc::CLONE_PIDFD | libc::SIGCHLD).cast_unsigned());
    // Flags, stack, where the parent finds the descriptor; the others, whose order differs, are unused.
    // SAFETY: without a stack the child continues on a copy of ours; the descriptor has its place.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match Errno::result(result)? {
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: pid as libc::pid_t,
            // SAFETY: the kernel has just stored a new descriptor, owned by nobody else.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}
