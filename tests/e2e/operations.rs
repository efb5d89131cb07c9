//! Operations and attributes of workers, with the kernel as witness. The scenario stands still at each stop, a
//! program that it waits for, until the test has looked at what the kernel says; nothing hangs on time.

use std::{fs, path::Path, thread};

use ktstr::prelude::*;
use ktstr_proto::{Accel, verdict::Outcome};

use crate::harness::{run, spec};

declare_scheduler!(OPERATED, { name = "scx-ktstr", binary = "scx-ktstr", topology = (1, 2, 2, 1) });

/// Where the scenario says where it is and is let go from there.
const STOPS: &str = "/tmp/stops";

/// Stands until it is let go; its argument is the name of the stop.
const STOP: Payload = Payload::binary("stop", "sh").with_default_args(&[
    "-c",
    "mkdir -p /tmp/stops; : > /tmp/stops/at-$0; until [ -e /tmp/stops/go-$0 ]; do sleep 0.02; done",
]);

/// Runs until it is ended.
pub const SLEEPER: Payload = Payload::binary("sleeper", "sh").with_default_args(&["-c", "exec sleep 1000"]);

pub fn stop(name: &str) -> [Op; 2] {
    let args = vec![name.into()];
    let run = Op::RunPayload { payload: STOP, args, placement: Placement::RunnerCgroup };
    [run, Op::wait_payload("stop")]
}

/// Looks at each stop, in order, while the scenario stands there, and lets it go whatever was seen.
pub fn look(stops: &[(&str, &dyn Fn() -> Result<()>)]) -> Result<()> {
    let mut seen = Ok(());
    for (name, look) in stops {
        // On a host that is stopped for seconds it takes seconds.
        let arrived = (0..6000).any(|_| {
            let there = Path::new(STOPS).join(format!("at-{name}")).exists();
            if !there {
                thread::sleep(Duration::from_millis(10));
            }
            there
        });
        let found = if arrived { look() } else { Err(anyhow!("the scenario never came there")) };
        seen = seen.and(found.with_context(|| format!("at {name}")));
        fs::create_dir_all(STOPS)?;
        fs::write(Path::new(STOPS).join(format!("go-{name}")), "")?;
    }
    seen
}

pub fn text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    Ok(fs::read_to_string(path).with_context(|| path.display().to_string())?.trim().to_owned())
}

/// The first process of a cgroup as `/proc` has it.
struct Seen {
    status: String,
    /// Fields of `stat` after the name; the first is field 3 of proc(5).
    stat: Vec<String>,
}

impl Seen {
    fn of(ctx: &Ctx, cgroup: &str) -> Result<Self> {
        let pid = *ctx.cgroups.processes(cgroup)?.first().with_context(|| format!("{cgroup} is empty"))?;
        let stat = text(format!("/proc/{pid}/stat"))?;
        let rest = stat.rsplit(')').next().unwrap_or_default();
        let stat = rest.split_whitespace().map(Into::into).collect();
        Ok(Self { status: text(format!("/proc/{pid}/status"))?, stat })
    }

    fn status(&self, key: &str) -> String {
        let line = self.status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    /// A field of `stat` by its number in proc(5).
    fn stat(&self, number: usize) -> &str {
        self.stat.get(number - 3).map_or("", String::as_str)
    }
}

fn attributes(ctx: &Ctx) -> Result<()> {
    let ext = Seen::of(ctx, "ext")?;
    ensure!(ext.stat(41) == "7", "policy {} is not SCHED_EXT", ext.stat(41));
    let ids = Seen::of(ctx, "ids")?;
    ensure!(ids.status("Uid") == "1234\t1234\t1234\t1234", "uid {}", ids.status("Uid"));
    ensure!(ids.status("Gid") == "4321\t4321\t4321\t4321", "gid {}", ids.status("Gid"));
    ensure!(
        (ids.status("Name").as_str(), ids.stat(19)) == ("called", "5"),
        "{} {}",
        ids.status,
        ids.stat(19)
    );
    let node = Seen::of(ctx, "node")?.status("Cpus_allowed_list");
    let of_node = text("/sys/devices/system/node/node1/cpulist")?;
    ensure!(node == of_node && node != text("/sys/devices/system/cpu/online")?, "{node} is not {of_node}");
    for pid in ctx.cgroups.processes("pair")? {
        let status = text(format!("/proc/{pid}/status"))?;
        let own =
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap_or_default();
        let first = own.split(['-', ',']).next().unwrap_or_default();
        let siblings = text(format!("/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list"))?;
        ensure!(own == siblings && own != first, "{own} are not the siblings {siblings}");
    }
    for (cgroup, workers) in [("half", 1), ("more", 3)] {
        let seen = ctx.cgroups.processes(cgroup)?.len();
        ensure!(seen == workers, "{cgroup}: {seen} workers on 2 CPUs");
    }
    let pids = ctx.cgroups.processes("more")?;
    println!("seen in more: {}", pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    Ok(())
}

/// The scheduler's process, and how often one was enabled since boot.
fn scheduler() -> Result<(u32, u64)> {
    ensure!(text("/sys/kernel/sched_ext/state")? == "enabled", "no scheduler is enabled");
    let count = text("/sys/kernel/sched_ext/enable_seq")?.parse()?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with("/ktstr/")) && holds(pid)
        {
            return Ok((pid, count));
        }
    }
    bail!("no process holds the scheduler")
}

/// Whether a process has BPF programs or maps open, which the scheduler's has and no other.
fn holds(pid: u32) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).unwrap_or_default();
    descriptors.map(target).any(|target| target.to_string_lossy().starts_with("anon_inode:bpf"))
}

/// The interrupt of ACPI's events is there on every machine.
const STEERED: &str = "acpi";

fn steered_to() -> Result<String> {
    let table = text("/proc/interrupts")?;
    let line = table.lines().find(|line| line.contains(STEERED)).context("no such interrupt")?;
    let number = line.split(':').next().unwrap_or_default().trim();
    // The hardware follows at the next interrupt.
    text(format!("/proc/irq/{number}/smp_affinity_list"))
}

fn refused_forks(ctx: &Ctx) -> Result<u64> {
    let events = text(ctx.cgroups.path("forks").join("pids.events"))?;
    let max = events.lines().find_map(|line| line.strip_prefix("max "));
    Ok(max.context("no count of refused forks")?.parse()?)
}

/// Whether the cgroup comes to have so many processes.
fn populated(ctx: &Ctx, processes: usize) -> Result<()> {
    let there = (0..6000).any(|_| {
        let there = ctx.cgroups.processes("half").is_ok_and(|pids| pids.len() == processes);
        if !there {
            thread::sleep(Duration::from_millis(10));
        }
        there
    });
    ensure!(there, "it has the processes {:?}, not {processes}", ctx.cgroups.processes("half")?);
    Ok(())
}

#[ktstr_test(
    scheduler = OPERATED,
    numa_nodes = 2,
    llcs = 2,
    cores = 1,
    threads = 2,
    memory_mb = 1024,
    duration_s = 1,
    ignore
)]
fn operations_and_attributes(ctx: &Ctx) -> Result<AssertResult> {
    let one = |name: &str| CgroupDef::named(name).workers(1).work_type(WorkType::bursty());
    let share = |name: &str, pct| {
        CgroupDef::named(name)
            .workers_pct(pct)
            .work_type(WorkType::bursty())
            .cpuset(CpusetSpec::exact([0, 1]))
    };
    let backdrop = Backdrop::from_cgroups(vec![
        one("ext").sched_policy(SchedPolicy::Ext),
        one("ids").uid(1234).gid(4321).comm("called").nice(5),
        one("node").numa_node(1),
        one("pair").workers(2).affinity(AffinityIntent::SmtSiblingPair),
        share("half", 0.5),
        share("more", 1.5),
        CgroupDef::named("forks").workers(1).work_type(WorkType::ForkExit).pids_unlimited(),
    ]);
    let few = Limits { pids_max: Some(Limit::At(1)), ..Limits::default() };
    let ops = [
        stop("attributes").to_vec(),
        vec![Op::CaptureCgroupProcs { tag: "seen".into(), cgroup: "more".into() }],
        vec![Op::SteerIrq { irq: Irq::Label(STEERED.into()), cpu: 0 }],
        stop("steered").to_vec(),
        vec![Op::SteerIrq { irq: Irq::Label(STEERED.into()), cpu: 3 }],
        stop("steered-again").to_vec(),
        vec![Op::set_limits("forks", few)],
        stop("limited").to_vec(),
        vec![Op::run_payload_in(&SLEEPER, "half")],
        stop("payload").to_vec(),
        vec![Op::kill_payload("sleeper")],
        stop("killed").to_vec(),
        vec![Op::RestartScheduler],
        stop("restarted").to_vec(),
    ];
    let before = scheduler()?;
    ensure!(ctx.sched_pid() == Some(before.0), "{:?} is not {before:?}", ctx.sched_pid());
    let result = thread::scope(|scope| {
        let scenario = scope.spawn(|| {
            let steps = vec![Step::new(ops.concat(), HoldSpec::FULL)];
            execute_scenario(ctx, backdrop, steps)
        });
        let seen = look(&[
            ("attributes", &|| attributes(ctx)),
            ("steered", &|| Ok(ensure!(steered_to()? == "0", "it goes to {}", steered_to()?))),
            ("steered-again", &|| Ok(ensure!(steered_to()? == "3", "it goes to {}", steered_to()?))),
            ("limited", &|| {
                let patience = 0..6000;
                let refused = patience.into_iter().any(|_| {
                    thread::sleep(Duration::from_millis(10));
                    refused_forks(ctx).is_ok_and(|count| count > 0)
                });
                Ok(ensure!(refused, "no fork was refused"))
            }),
            // A worker and the program.
            ("payload", &|| populated(ctx, 2)),
            ("killed", &|| populated(ctx, 1)),
            ("restarted", &|| {
                let after = scheduler()?;
                Ok(ensure!(
                    after.0 != before.0 && after.1 > before.1,
                    "{before:?} is not followed by {after:?}"
                ))
            }),
        ]);
        let result = scenario.join().map_err(|_| anyhow!("the scenario panicked"))?;
        seen.and(result)
    })?;
    let stopped = result.stats.payload("stop").context("the stops were programs")?;
    ensure!(stopped.exit_code == Some(0), "{stopped:?}");
    Ok(result)
}

#[test]
fn operations_and_attributes_have_their_effect_in_the_kernel() {
    let report = run(spec("operations_and_attributes", Accel::Tcg));
    let errors: Vec<_> = report.result.iter().flat_map(|result| &result.details).collect();
    assert!(
        !report.infrastructure && report.cause.is_none() || report.outcome != Outcome::Fail,
        "{errors:#?}"
    );
    let said = |what: &str| report.timeline.iter().find(|mark| mark.what.contains(what));
    let procs = said("seen: processes of more: ").expect("the processes are in the timeline");
    let pids = procs.what.rsplit(": ").next().unwrap_or_default();
    assert_eq!(pids.split(' ').count(), 3, "{}", procs.what);
    assert!(said("restart").is_some(), "{:#?}", report.timeline);
}
