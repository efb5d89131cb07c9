//! Asking the kernel for what was decided, and reading back what it did.
//!
//! Threads are found and known by name, as [`crate::host_time`] knows them. Nothing is done from inside the
//! machine's process: its jail lets it neither choose a class nor see `/proc`.

use std::{fs, io, path::Path};

use nix::{
    sched::{CpuSet as Mask, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::{
    placement::{Placement, Refusal, Refusals},
    topology::CpuSet,
};

/// Real-time priority of vCPUs: above everything of the ordinary classes, below whoever wants more.
const PRIORITY: i32 = 1;

/// How far the kernel has done what was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Some vCPU has no thread yet.
    Partly,
    /// Everything was set and read back.
    Wholly,
}

/// CPUs that this process may use.
pub fn allowed() -> io::Result<CpuSet> {
    affinity(0)
}

fn affinity(tid: u32) -> io::Result<CpuSet> {
    let mask = sched_getaffinity(Pid::from_raw(tid as i32))?;
    Ok((0..Mask::count() as u32).filter(|cpu| mask.is_set(*cpu as usize).unwrap_or(false)).collect())
}

/// Lets a thread use these CPUs only.
pub fn confine(tid: u32, cpus: &CpuSet) -> io::Result<()> {
    let mut mask = Mask::new();
    for cpu in cpus {
        mask.set(*cpu as usize)?;
    }
    sched_setaffinity(Pid::from_raw(tid as i32), &mask)?;
    match affinity(tid)? {
        now if now == *cpus => Ok(()),
        _ => Err(io::Error::other("it was set and is not so: a cpuset of a control group forbids it")),
    }
}

/// Makes a thread SCHED_FIFO.
fn realtime(tid: u32) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: a system call that reads the given structure.
    if unsafe { libc::sched_setscheduler(tid as i32, libc::SCHED_FIFO, &parameter) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call on an integer.
    match unsafe { libc::sched_getscheduler(tid as i32) } {
        libc::SCHED_FIFO => Ok(()),
        other => Err(io::Error::other(format!("it was set and the class is {other}"))),
    }
}

fn pinned(tid: u32, cpu: u32) -> Result<(), Refusal> {
    confine(tid, &CpuSet::from([cpu])).map_err(|why| Refusal::Pin { cpu, why: why.to_string() })
}

/// Tries on a thread of its own, which ends at once, what the vCPUs will need.
pub fn trial(placement: &Placement) -> Vec<Refusal> {
    let attempt = || {
        let cpus = placement.cpus.iter().copied().chain([placement.service]);
        let mut refusals: Vec<Refusal> = cpus.filter_map(|cpu| pinned(0, cpu).err()).collect();
        refusals.extend(realtime(0).map_err(|why| Refusal::Realtime { why: why.to_string() }).err());
        refusals
    };
    std::thread::scope(|scope| match scope.spawn(attempt).join() {
        Ok(refusals) => refusals,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Pins the vCPU threads of a process and makes them real-time, and keeps its other threads off their CPUs.
pub fn apply(pid: u32, placement: &Placement) -> Result<Applied, Refusals> {
    let tasks = format!("/proc/{pid}/task");
    let mut found = 0;
    let mut refusals = Vec::new();
    for (tid, name) in threads(Path::new(&tasks)) {
        let vcpu = name.strip_prefix("vcpu").and_then(|number| number.parse::<usize>().ok());
        let outcome = match vcpu.and_then(|number| placement.cpus.get(number)) {
            Some(&cpu) => {
                found += 1;
                let class = |_| realtime(tid).map_err(|why| Refusal::Realtime { why: why.to_string() });
                pinned(tid, cpu).and_then(class)
            }
            None => pinned(tid, placement.service),
        };
        refusals.extend(outcome.err().filter(|_| is_there(pid, tid)));
    }
    match (refusals.is_empty(), found == placement.cpus.len()) {
        (false, _) => Err(Refusals(refusals)),
        (true, true) => Ok(Applied::Wholly),
        (true, false) => Ok(Applied::Partly),
    }
}

/// Keeps all threads of a process on these CPUs, and those that they will make.
pub fn confine_process(pid: u32, cpus: &CpuSet) -> io::Result<()> {
    for (tid, _) in threads(Path::new(&format!("/proc/{pid}/task"))) {
        match confine(tid, cpus) {
            Err(error) if is_there(pid, tid) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_there(pid: u32, tid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

fn threads(tasks: &Path) -> Vec<(u32, String)> {
    let named = |entry: fs::DirEntry| {
        let tid = entry.file_name().to_str()?.parse().ok()?;
        Some((tid, fs::read_to_string(entry.path().join("comm")).ok()?.trim_end().to_owned()))
    };
    fs::read_dir(tasks).into_iter().flatten().flatten().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        process::{Child, Command},
    };

    use super::*;

    fn placement(cpus: Vec<u32>, service: u32) -> Placement {
        Placement { cpus, service, llcs: vec![0], nodes: vec![0], large_pages: BTreeMap::new() }
    }

    /// A process whose only thread has the name of a vCPU.
    struct Named(Child);

    impl Named {
        fn vcpu0() -> Self {
            let script = "echo vcpu0 > /proc/self/comm; read _";
            let mut command = Command::new("sh");
            let child = command.args(["-c", script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
            let comm = format!("/proc/{}/comm", child.id());
            while fs::read_to_string(&comm).unwrap().trim_end() != "vcpu0" {
                std::thread::yield_now();
            }
            Self(child)
        }
    }

    impl Drop for Named {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn threads_are_pinned_and_real_time_or_the_refusal_is_named() {
        let cpu = *allowed().unwrap().last().unwrap();
        let process = Named::vcpu0();
        let pid = process.0.id();
        match apply(pid, &placement(vec![cpu], cpu)) {
            Ok(applied) => {
                assert_eq!(applied, Applied::Wholly);
                // SAFETY: a system call on an integer.
                assert_eq!(unsafe { libc::sched_getscheduler(pid as i32) }, libc::SCHED_FIFO);
            }
            // Not everybody may; the pinning was done before.
            Err(refusals) => assert!(refusals.to_string().contains("SCHED_FIFO: "), "{refusals}"),
        }
        assert_eq!(affinity(pid).unwrap(), CpuSet::from([cpu]));
        assert_eq!(trial(&placement(vec![cpu], cpu)).is_empty(), realtime_is_granted());
        assert!(allowed().unwrap().contains(&cpu), "the trial leaves this thread as it was");
    }

    fn realtime_is_granted() -> bool {
        std::thread::spawn(|| realtime(0).is_ok()).join().unwrap()
    }

    #[test]
    fn a_vcpu_without_a_thread_is_waited_for() {
        let cpu = *allowed().unwrap().first().unwrap();
        let process = Command::new("sleep").arg("60").spawn().unwrap();
        let mut process = Named(process);
        assert_eq!(apply(process.0.id(), &placement(vec![cpu], cpu)), Ok(Applied::Partly));
        assert_eq!(
            affinity(process.0.id()).unwrap(),
            CpuSet::from([cpu]),
            "what is no vCPU is out of the way"
        );
        confine_process(process.0.id(), &allowed().unwrap()).unwrap();
        assert_eq!(affinity(process.0.id()).unwrap(), allowed().unwrap());
        assert!(process.0.try_wait().unwrap().is_none());
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_by_number() {
        let refusals = trial(&placement(vec![1023], 1023));
        assert!(refusals[0].to_string().starts_with("pinning to CPU 1023: "), "{refusals:?}");
    }
}
