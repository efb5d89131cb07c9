//! Programs that run beside the workers: how they are declared, run, read and checked.
//!
//! A program is found in `PATH`, which in a guest begins with `/include-files`. What it prints goes to
//! memory files, so that neither a full pipe nor a reader of ours disturbs what is measured.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use ktstr_proto::{
    stats::{Metric, PayloadMetrics, Polarity},
    verdict::{AssertResult, DetailKind, Outcome},
};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Ctx;

/// Where a guest has the programs that were packed for it.
const PACKED: &str = "/include-files";
/// Longest output that is read, bytes.
const MAX_OUTPUT: u64 = 8 << 20;
/// How long a program may take to end once asked to.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a program's result is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PayloadOutput {
    /// Its exit status alone.
    #[default]
    ExitCode,
    /// Every number in the JSON it prints, on standard output or else on standard error.
    Json,
}

/// A check of a program's result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricCheck {
    /// At least so much.
    Min {
        /// Name of the number.
        metric: &'static str,
        /// The limit.
        value: f64,
    },
    /// At most so much.
    Max {
        /// Name of the number.
        metric: &'static str,
        /// The limit.
        value: f64,
    },
    /// Between two limits.
    Range {
        /// Name of the number.
        metric: &'static str,
        /// The lower.
        lo: f64,
        /// The upper.
        hi: f64,
    },
    /// It is there.
    Exists(&'static str),
    /// The exit status is this.
    ExitCodeEq(i32),
}

impl MetricCheck {
    /// The number it judges; none judges the exit status.
    fn metric(&self) -> Option<&'static str> {
        match *self {
            Self::Min { metric, .. } | Self::Max { metric, .. } | Self::Range { metric, .. } => Some(metric),
            Self::Exists(metric) => Some(metric),
            Self::ExitCodeEq(_) => None,
        }
    }
}

impl MetricCheck {
    /// At least so much.
    pub const fn min(metric: &'static str, value: f64) -> Self {
        Self::Min { metric, value }
    }

    /// At most so much.
    pub const fn max(metric: &'static str, value: f64) -> Self {
        Self::Max { metric, value }
    }

    /// Between two limits.
    pub const fn range(metric: &'static str, lo: f64, hi: f64) -> Self {
        Self::Range { metric, lo, hi }
    }

    /// It is there.
    pub const fn exists(metric: &'static str) -> Self {
        Self::Exists(metric)
    }

    /// The exit status is this.
    pub const fn exit_code_eq(code: i32) -> Self {
        Self::ExitCodeEq(code)
    }
}

/// What is known of a number before it is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricDef {
    /// Its name.
    pub name: &'static str,
    /// Whether more is better.
    pub polarity: Polarity,
    /// Its unit.
    pub unit: &'static str,
}

/// A program; made by `#[derive(Payload)]` or [`Payload::binary`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Payload {
    /// Name for people and for operations.
    pub name: &'static str,
    /// The executable: a bare name, or a path on the host.
    pub binary: &'static str,
    /// Arguments it is always given.
    pub default_args: &'static [&'static str],
    /// How its result is read.
    pub output: PayloadOutput,
    /// Checks of its result.
    pub checks: &'static [MetricCheck],
    /// What is known of its numbers.
    pub metrics: &'static [MetricDef],
    /// Files it needs in the guest; the executable itself goes without saying.
    pub include_files: &'static [&'static str],
}

impl Payload {
    /// A program that is judged by its exit status, which must be 0.
    pub const fn binary(name: &'static str, binary: &'static str) -> Self {
        Self {
            name,
            binary,
            default_args: &[],
            output: PayloadOutput::ExitCode,
            checks: &[],
            metrics: &[],
            include_files: &[],
        }
    }

    /// Sets the arguments it is always given.
    pub const fn with_default_args(mut self, args: &'static [&'static str]) -> Self {
        self.default_args = args;
        self
    }

    /// Sets how its result is read.
    pub const fn with_output(mut self, output: PayloadOutput) -> Self {
        self.output = output;
        self
    }

    /// Sets the checks of its result.
    pub const fn with_checks(mut self, checks: &'static [MetricCheck]) -> Self {
        self.checks = checks;
        self
    }

    /// Sets what is known of its numbers.
    pub const fn with_metrics(mut self, metrics: &'static [MetricDef]) -> Self {
        self.metrics = metrics;
        self
    }

    /// Sets the files it needs in the guest.
    pub const fn with_include_files(mut self, files: &'static [&'static str]) -> Self {
        self.include_files = files;
        self
    }

    /// What is started: in a guest the file that was packed, which goes by its name; on a host the file itself.
    fn executable(&self) -> &'static str {
        let name = self.binary.rsplit('/').next().unwrap_or(self.binary);
        let packed = Path::new(PACKED).join(name);
        if self.binary.contains('/') && !packed.exists() { self.binary } else { name }
    }
}

/// Why a program could not be run.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// It did not start.
    #[error(
        "payload `{name}` did not start: {program} is not there, in PATH unless it is a path, or its libraries are not"
    )]
    Start {
        /// The payload.
        name: &'static str,
        /// The executable.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Something else failed.
    #[error("cannot {action} payload `{name}`")]
    System {
        /// What was tried.
        action: &'static str,
        /// The payload.
        name: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A program about to be run.
#[derive(Debug)]
#[must_use]
pub struct PayloadRun<'a> {
    ctx: &'a Ctx,
    payload: Payload,
    args: Vec<String>,
    cgroup: Option<String>,
    timeout: Option<Duration>,
}

impl<'a> PayloadRun<'a> {
    pub(super) fn new(ctx: &'a Ctx, payload: Payload) -> Self {
        Self { ctx, payload, args: Vec::new(), cgroup: None, timeout: None }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Runs it in a workload cgroup, which must be there.
    pub fn in_cgroup(mut self, cgroup: impl Into<String>) -> Self {
        self.cgroup = Some(cgroup.into());
        self
    }

    /// How long it may take from its start: one that does not end by then has failed. It is ended when it is waited
    /// for that long, or found running later by [`PayloadHandle::stop`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Starts it and returns at once.
    pub fn spawn(self) -> Result<PayloadHandle, PayloadError> {
        let mut handle = PayloadHandle::spawn(self.ctx, self.payload, &self.args, self.cgroup.as_deref())?;
        handle.limit = self.timeout;
        Ok(handle)
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<(AssertResult, PayloadMetrics), PayloadError> {
        self.spawn()?.wait(None)
    }
}

/// A program that runs. Dropping it kills it.
#[derive(Debug)]
pub struct PayloadHandle {
    payload: Payload,
    cgroup: String,
    child: Child,
    stdout: File,
    stderr: File,
    started: Instant,
    /// How long it may take from then on.
    limit: Option<Duration>,
    reaped: bool,
}

impl PayloadHandle {
    pub(super) fn spawn(
        ctx: &Ctx,
        payload: Payload,
        args: &[String],
        cgroup: Option<&str>,
    ) -> Result<Self, PayloadError> {
        let name = payload.name;
        let system = |action, source: io::Error| PayloadError::System { action, name, source };
        let memory =
            || memfd_create(c"payload", MFdFlags::MFD_CLOEXEC).map(File::from).map_err(io::Error::from);
        let (stdout, stderr) = (
            memory().map_err(|e| system("make room for the output of", e))?,
            memory().map_err(|e| system("make room for the output of", e))?,
        );
        let copy =
            |file: &File| file.try_clone().map(Stdio::from).map_err(|e| system("share the output of", e));
        let program = payload.executable();
        let mut command = Command::new(program);
        command.args(payload.default_args).args(args);
        command.stdin(Stdio::null()).stdout(copy(&stdout)?).stderr(copy(&stderr)?).process_group(0);
        if let Some(cgroup) = cgroup {
            let procs = ctx.cgroups.path(cgroup).join("cgroup.procs");
            let procs = File::options().write(true).open(procs).map_err(|e| system("place", e))?;
            // SAFETY: one `write` between fork and exec, no allocation, no lock; 0 is the caller itself.
            unsafe { command.pre_exec(move || (&procs).write_all(b"0")) };
        }
        let child = command.spawn().map_err(|source| PayloadError::Start {
            name,
            program: program.into(),
            source,
        })?;
        let cgroup = cgroup.unwrap_or_default().into();
        let started = Instant::now();
        Ok(Self { payload, cgroup, child, stdout, stderr, started, limit: None, reaped: false })
    }

    /// The payload's name.
    pub fn name(&self) -> &'static str {
        self.payload.name
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is over.
    pub(super) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its end and judges it; at most `timeout` from its start, and no longer than [`PayloadRun::timeout`].
    pub fn wait(mut self, timeout: Option<Duration>) -> Result<(AssertResult, PayloadMetrics), PayloadError> {
        let name = self.payload.name;
        let system = |source| PayloadError::System { action: "wait for", name, source };
        let Some(limit) = timeout.into_iter().chain(self.limit).min() else {
            let status = self.child.wait().map_err(system)?;
            return self.conclude(status, None);
        };
        while self.started.elapsed() < limit {
            if let Some(status) = self.child.try_wait().map_err(system)? {
                return self.conclude(status, None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.end().map_err(system)?;
        self.conclude(status, Some(limit))
    }

    /// Ends it, keeps what it measured and judges that. That it was ended is no failure unless it had outlived
    /// [`PayloadRun::timeout`], and what it then did not come to report is in doubt.
    pub fn stop(mut self) -> Result<(AssertResult, PayloadMetrics), PayloadError> {
        let name = self.payload.name;
        let system = |source| PayloadError::System { action: "end", name, source };
        match self.child.try_wait().map_err(system)? {
            Some(status) => self.conclude(status, None),
            None => {
                let late = self.limit.filter(|limit| self.started.elapsed() >= *limit);
                let status = self.end().map_err(system)?;
                if late.is_some() {
                    return self.conclude(status, late);
                }
                self.reaped = true;
                let metrics = self.measured(None)?;
                let mut result = AssertResult::pass();
                for check in self.payload.checks.iter().filter(|check| check.metric().is_some()) {
                    let Some(message) = broken(check, &metrics) else { continue };
                    let reported = check.metric().is_some_and(|metric| metrics.get(metric).is_some());
                    let (outcome, why) = match reported {
                        true => (Outcome::Fail, ""),
                        false => {
                            (Outcome::Inconclusive, "; it still ran at the end of the scenario and was ended")
                        }
                    };
                    result.push(DetailKind::Payload, outcome, format!("payload {name}: {message}{why}"));
                }
                Ok((result, metrics))
            }
        }
    }

    /// Asks it to end, then forces it.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let group = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        // It may just have ended.
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
        let asked = Instant::now();
        while asked.elapsed() < FAREWELL {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        self.child.wait()
    }

    fn measured(&mut self, code: Option<i32>) -> Result<PayloadMetrics, PayloadError> {
        let name = self.payload.name;
        let system = |source| PayloadError::System { action: "read the output of", name, source };
        let mut numbers = BTreeMap::new();
        if self.payload.output == PayloadOutput::Json {
            numbers = json_numbers(&text(&mut self.stdout).map_err(system)?);
            if numbers.is_empty() {
                numbers = json_numbers(&text(&mut self.stderr).map_err(system)?);
            }
        }
        let metrics = numbers.into_iter().map(|(name, value)| {
            let known = self.payload.metrics.iter().find(|def| def.name == name);
            Metric {
                unit: known.map(|def| def.unit.to_owned()).filter(|unit| !unit.is_empty()),
                polarity: known.map_or(Polarity::Unknown, |def| def.polarity),
                name,
                value,
            }
        });
        Ok(PayloadMetrics {
            name: name.into(),
            cgroup: self.cgroup.clone(),
            exit_code: code,
            ran_ms: self.started.elapsed().as_millis() as u64,
            metrics: metrics.collect(),
        })
    }

    fn conclude(
        mut self,
        status: ExitStatus,
        timed_out: Option<Duration>,
    ) -> Result<(AssertResult, PayloadMetrics), PayloadError> {
        self.reaped = true;
        let metrics = self.measured(status.code())?;
        let mut result = AssertResult::pass();
        let mut fail = |message: String| result.push(DetailKind::Payload, Outcome::Fail, message);
        let name = self.payload.name;
        if let Some(limit) = timed_out {
            fail(format!("payload {name} did not end within {limit:?} and was ended"));
        }
        for check in self.payload.checks {
            if let Some(message) = broken(check, &metrics) {
                fail(format!("payload {name}: {message}"));
            }
        }
        let judges_exit = self.payload.checks.iter().any(|check| matches!(check, MetricCheck::ExitCodeEq(_)));
        if timed_out.is_none() && !judges_exit && !status.success() {
            let said = text(&mut self.stderr).unwrap_or_default();
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
            fail(format!("payload {name} ended with {status}; it said last: {last}"));
        }
        Ok((result, metrics))
    }
}

impl Drop for PayloadHandle {
    fn drop(&mut self) {
        if !self.reaped {
            let group = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// What a check finds wrong.
fn broken(check: &MetricCheck, measured: &PayloadMetrics) -> Option<String> {
    let number = |metric: &str| {
        measured.get(metric).ok_or_else(|| {
            let known: Vec<&str> = measured.metrics.iter().map(|m| m.name.as_str()).collect();
            let near = super::nearest(metric, &known).map_or(String::new(), |n| format!("; there is `{n}`"));
            format!("it reported no `{metric}`{near}")
        })
    };
    let within = |metric: &str, lo: f64, hi: f64| match number(metric) {
        Err(missing) => Some(missing),
        Ok(value) if value < lo => Some(format!("{metric} is {value}, below {lo}")),
        Ok(value) if value > hi => Some(format!("{metric} is {value}, above {hi}")),
        Ok(value) if value.is_nan() => Some(format!("{metric} is no number")),
        Ok(_) => None,
    };
    match *check {
        MetricCheck::Min { metric, value } => within(metric, value, f64::INFINITY),
        MetricCheck::Max { metric, value } => within(metric, f64::NEG_INFINITY, value),
        MetricCheck::Range { metric, lo, hi } => within(metric, lo, hi),
        MetricCheck::Exists(metric) => number(metric).err(),
        MetricCheck::ExitCodeEq(wanted) => (measured.exit_code != Some(wanted)).then(|| {
            let code =
                measured.exit_code.map_or("no exit status".into(), |code| format!("exit status {code}"));
            format!("it ended with {code}, {wanted} was expected")
        }),
    }
}

fn text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// All numbers of the JSON values in `text`; words before the first one are passed over.
fn json_numbers(text: &str) -> BTreeMap<String, f64> {
    let mut numbers = BTreeMap::new();
    let starts = text
        .char_indices()
        .filter(|(at, c)| matches!(c, '{' | '[') && (*at == 0 || text[..*at].ends_with(['\n', ' ', '\t'])));
    for (at, _) in starts.take(64) {
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<serde_json::Value>();
        while let Some(Ok(value)) = values.next() {
            flatten(&mut numbers, String::new(), &value);
        }
        if !numbers.is_empty() {
            break;
        }
    }
    numbers
}

fn flatten(numbers: &mut BTreeMap<String, f64>, path: String, value: &serde_json::Value) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        serde_json::Value::Number(number) => {
            numbers.extend(number.as_f64().map(|number| (path, number)));
        }
        serde_json::Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| flatten(numbers, below(&i.to_string()), item));
        }
        serde_json::Value::Object(fields) => {
            fields.iter().for_each(|(key, item)| flatten(numbers, below(key), item));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_the_json_is_found_wherever_it_begins() {
        let text = "fio: starting\n{\"jobs\": [{\"iops\": 12.5, \"name\": \"a\"}], \"n\": 3}\n";
        let numbers = json_numbers(text);
        assert_eq!(numbers, BTreeMap::from([("jobs.0.iops".into(), 12.5), ("n".into(), 3.0)]));
        assert!(json_numbers("no json {at all").is_empty());
    }

    fn run(payload: Payload, args: &[&str], timeout: Option<Duration>) -> (AssertResult, PayloadMetrics) {
        let ctx = Ctx::on_host("t", Duration::from_secs(1), 1).unwrap();
        ctx.payload(&payload)
            .args(args.iter().copied())
            .timeout(timeout.unwrap_or(Duration::from_secs(30)))
            .run()
            .unwrap()
    }

    fn messages(result: &AssertResult) -> Vec<&str> {
        result.failure_details().collect()
    }

    #[test]
    fn programs_are_judged_by_exit_status_and_numbers() {
        const SHELL: Payload = Payload::binary("shell", "sh").with_default_args(&["-c"]);
        assert!(run(SHELL, &["exit 0"], None).0.is_pass());
        let (result, metrics) = run(SHELL, &["echo out of tea >&2; exit 3"], None);
        assert_eq!(messages(&result), ["payload shell ended with exit status: 3; it said last: out of tea"]);
        assert_eq!(metrics.exit_code, Some(3));

        const JSON: Payload = SHELL.with_output(PayloadOutput::Json).with_checks(&[
            MetricCheck::exit_code_eq(1),
            MetricCheck::min("iops", 5.0),
            MetricCheck::max("lat.p99", 9.0),
            MetricCheck::exists("iop"),
        ]);
        let (result, metrics) = run(JSON, &["echo '{\"iops\": 4, \"lat\": {\"p99\": 7}}' >&2; exit 1"], None);
        assert_eq!(
            messages(&result),
            ["payload shell: iops is 4, below 5", "payload shell: it reported no `iop`; there is `iops`"]
        );
        assert_eq!(metrics.get("lat.p99"), Some(7.0));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        const SHELL: Payload = Payload::binary("shell", "sh").with_default_args(&["-c"]);
        let (result, metrics) = run(SHELL, &["sleep 60"], Some(Duration::from_millis(50)));
        assert!(messages(&result)[0].contains("did not end within 50ms"), "{result:?}");
        assert_eq!(metrics.exit_code, None);
    }

    #[test]
    fn a_program_that_was_only_started_has_its_limit_too() {
        let ctx = Ctx::on_host("t", Duration::from_secs(1), 1).unwrap();
        let sleeper = Payload::binary("sleeper", "sleep").with_default_args(&["60"]);
        let limited = |limit| ctx.payload(&sleeper).timeout(limit).spawn().unwrap();
        let limit = Duration::from_millis(20);
        let waited = limited(limit).wait(None).unwrap().0;
        assert!(messages(&waited)[0].contains("did not end within 20ms"), "{waited:?}");
        let late = limited(limit);
        std::thread::sleep(limit);
        let stopped = late.stop().unwrap().0;
        assert!(messages(&stopped)[0].contains("did not end within 20ms"), "{stopped:?}");
        assert!(limited(Duration::from_secs(600)).stop().unwrap().0.is_pass(), "it was in time");
    }

    #[test]
    fn a_program_that_is_not_there_says_so() {
        let ctx = Ctx::on_host("t", Duration::from_secs(1), 1).unwrap();
        let error = ctx.payload(&Payload::binary("x", "/no/such-program")).run().unwrap_err().to_string();
        assert!(error.contains("payload `x` did not start: /no/such-program is not there"), "{error}");
    }
}
