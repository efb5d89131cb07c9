//! Drives PID 1 by hand, without the other processes: writes the job for an initramfs, and reads the
//! ring out of the file that was the guest's RAM.
//!
//! ```text
//! guest-bench job FILE key=value…     gpa, len, mode=wrap|linear, topology, seed, env=N=V,
//!                                     scheduler=NAME, arg=…, attach-ms, exec=CMD | test=NAME | shell=
//! guest-bench read RAM gpa=… len=… mode=…      follows the ring until the guest says PoweringOff,
//!                                              `follow=no` only reads what is there, `signal-after-ms=N`
//!                                              asks for the end after N ms
//! ```
//!
//! Placed at `/ktstr/test` it plays the test process: the test's name says how it behaves.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use ktstr_guest::{job::read_job, report::Reporter};
use ktstr_proto::{
    codec,
    guest::{
        CHANNEL_ENV, GuestFrame, GuestJob, GuestScheduler, GuestTask, GuestTest, JOB_PATH, Phase, TEST_ENV,
        TestEnd,
    },
    ring::{FrameDecoder, HostSignal, Mode, RingMemory, RingReader, RingRegion},
    topology::Topology,
    verdict::{Assert, AssertResult},
};

struct Ram {
    file: File,
    base: u64,
    len: u64,
}

impl RingMemory for Ram {
    fn len(&self) -> u64 {
        self.len
    }
    fn load_u32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
    fn load_u64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }
    fn store_u32(&mut self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
    fn store_u64(&mut self, offset: u64, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }
    fn read(&self, offset: u64, out: &mut [u8]) {
        self.file.read_exact_at(out, self.base + offset).expect("reading the RAM file");
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.base + offset).expect("writing the RAM file");
    }
}

fn main() -> Result<()> {
    if let Ok(test) = std::env::var(TEST_ENV) {
        return act(&test);
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [verb, file, pairs @ ..] = &args[..] else { bail!("guest-bench job|read FILE key=value…") };
    let pairs: Vec<(&str, &str)> =
        pairs.iter().map(|p| p.split_once('=').context("expected key=value")).collect::<Result<_>>()?;
    match verb.as_str() {
        "job" => Ok(std::fs::write(file, codec::encode(&job(&pairs)?)?)?),
        "read" => read(file, &pairs),
        other => bail!("unknown verb {other}"),
    }
}

/// The test process, well-behaved or not.
fn act(test: &str) -> Result<()> {
    let reporter = Reporter::from_env()?;
    let job = read_job(Path::new(JOB_PATH))?;
    println!("{test}: job of seed {} read, KTSTR_SEED={}", job.seed, std::env::var("KTSTR_SEED")?);
    reporter.send(&GuestFrame::Phase(Phase::ScenarioStarted))?;
    let end = || GuestFrame::TestEnded(TestEnd::Returned(AssertResult::pass()));
    match test {
        "pass" => reporter.send(&end())?,
        "flood" => {
            for iterations in 0..20_000 {
                reporter.send(&GuestFrame::Stimulus { what: "x".repeat(900), iterations })?;
            }
            reporter.send(&end())?;
        }
        "garbage" => {
            let fd: i32 = std::env::var(CHANNEL_ENV)?.parse()?;
            // SAFETY: the descriptor is open, the reporter above holds it for longer than this borrow.
            let channel = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            nix::unistd::write(channel, &[0xff; 64])?;
            std::thread::sleep(Duration::from_secs(1));
        }
        "die" => std::process::abort(),
        other => bail!("no behaviour {other}"),
    }
    Ok(())
}

fn region(pairs: &[(&str, &str)]) -> Result<RingRegion> {
    let mut region = RingRegion { gpa: 0x1000_0000, len: 4 << 20, mode: Mode::Wrap };
    for (key, value) in pairs {
        match *key {
            "gpa" => region.gpa = u64::from_str_radix(value.trim_start_matches("0x"), 16)?,
            "len" => region.len = value.parse()?,
            "mode" => region.mode = if *value == "linear" { Mode::Linear } else { Mode::Wrap },
            _ => {}
        }
    }
    Ok(region)
}

fn job(pairs: &[(&str, &str)]) -> Result<GuestJob> {
    let mut job = GuestJob {
        ring: region(pairs)?,
        topology: Topology::new(1, 1, 2, 1)?,
        seed: 1,
        jitter_us: 0,
        env: Vec::new(),
        scheduler: None,
        task: GuestTask::Exec("true".into()),
        disk: None,
        probing: None,
    };
    let mut scheduler = GuestScheduler {
        name: String::new(),
        args: Vec::new(),
        attach_timeout_ms: 20_000,
        cgroup_parent: None,
        builtin: None,
    };
    for (key, value) in pairs {
        match *key {
            "topology" => job.topology = value.parse()?,
            "seed" => job.seed = value.parse()?,
            "env" => {
                let (name, value) = value.split_once('=').context("env=NAME=VALUE")?;
                job.env.push((name.into(), value.into()));
            }
            "scheduler" => scheduler.name = (*value).into(),
            "arg" => scheduler.args.push((*value).into()),
            "attach-ms" => scheduler.attach_timeout_ms = value.parse()?,
            "exec" => job.task = GuestTask::Exec((*value).into()),
            "test" => {
                let (test, assert) = ((*value).into(), Assert::default_checks());
                job.task = GuestTask::Test(GuestTest {
                    test,
                    duration_ms: 1000,
                    assert,
                    staged: Vec::new(),
                    snapshots: 0,
                });
            }
            "shell" => job.task = GuestTask::Shell(None),
            "gpa" | "len" | "mode" => {}
            other => bail!("unknown key {other}"),
        }
    }
    job.scheduler = (!scheduler.name.is_empty()).then_some(scheduler);
    Ok(job)
}

fn read(file: &str, pairs: &[(&str, &str)]) -> Result<()> {
    let RingRegion { gpa, len, mode } = region(pairs)?;
    let value = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let mut signal_after = value("signal-after-ms").map(str::parse).transpose()?.map(Duration::from_millis);
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let mut ring = RingReader::new(Ram { file, base: gpa, len }, mode);
    let mut decoder = FrameDecoder::default();
    let start = Instant::now();
    loop {
        while let Some(bytes) = ring.take(64 << 10)? {
            decoder.push(&bytes);
        }
        while let Some(message) = decoder.next_message()? {
            println!(
                "{:>12.6} {:>8.3} {:?}",
                message.t_ns as f64 / 1e9,
                start.elapsed().as_secs_f64(),
                message.body
            );
            if message.body == GuestFrame::Phase(Phase::PoweringOff) {
                return Ok(());
            }
        }
        if value("follow") == Some("no") {
            println!("taken {} bytes, {} pending", ring.taken(), decoder.pending());
            return Ok(());
        }
        if signal_after.is_some_and(|after| start.elapsed() > after) {
            signal_after = None;
            println!("-- signal");
            ring.signal(HostSignal::Shutdown);
        }
        if start.elapsed() > Duration::from_secs(120) {
            bail!("the guest did not end within 120 s, {} bytes pending", decoder.pending());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
