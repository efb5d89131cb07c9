//! From what was asked to what will be started: kernel, accelerator, emulator, initramfs, memory,
//! command line. Slow (it reads files and probes the host), so it runs on a thread of its own.
//!
//! Everything the guest needs is packed before boot; nothing that differs between two runs that
//! should be equal goes into the initramfs or the command line.

mod accelerator;
mod cmdline;
mod error;
mod kaslr;
mod kernels;

use std::{
    env, fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use ktstr_proto::{
    AccelKind, codec,
    device::MAX_NETWORKS,
    guest::{BASE_PATH, ENTROPY_PATH, GuestBase, GuestJob, GuestScheduler, GuestTask, GuestTest},
    ring::{Mode, RingRegion},
    run::{Job, Performance, RunSpec, SchedulerJob, SchedulerSource},
    verdict::Assert,
    vmm::Emulator,
};

use crate::{
    children::find_executable,
    devices, disk,
    host::Grant,
    known::Known,
    pack::{self, Initramfs, LibraryPath, memory},
    store::{Kernel, Store, store_root},
    warm::{self, Likeness, WarmStore},
};

use accelerator::{SOUND_EMULATOR, choose_accelerator, find_emulator, sound_emulator_note};
pub use cmdline::instruction_shift;
use cmdline::{MOST_JITTER_US, SHIFTS, check_kernel_arg, clock_words, cmdline, kernel_hz};
pub use error::PlanError;
use kernels::check_kernel;

/// A run that can be started.
pub struct Plan {
    /// What runs the vCPUs.
    pub accel: AccelKind,
    /// The emulator, unless the accelerator is KVM.
    pub emulator: Option<Emulator>,
    /// Guest memory, MiB.
    pub memory_mb: u32,
    /// Kernel command line.
    pub cmdline: String,
    /// Where the ring lies.
    pub ring: RingRegion,
    /// Whether the guest gets an interactive console.
    pub interactive: bool,
    /// Wall time until PID 1 must have spoken.
    pub boot_limit: Duration,
    /// Wall time from then to the end.
    pub run_limit: Duration,
    /// Lines for people.
    pub notes: Vec<String>,
    /// What the machine gets of this host.
    pub grant: Grant,
    /// Where the machine may begin, if it waits for its job.
    pub warm: Option<Warm>,
    disk: Option<OwnedFd>,
    kernel: Kernel,
    /// By how many bytes it is moved when it boots, if it can be.
    kaslr: Option<u64>,
    archives: Archives,
}

/// What the guest is given.
struct Archives {
    /// At boot.
    initramfs: fs::File,
    /// Once it is ready, unless the initramfs holds everything.
    input: Option<fs::File>,
    /// Length of both together.
    size: u64,
    /// Name of the initramfs where the input comes later.
    base: String,
}

/// A machine that others may be like.
pub struct Warm {
    /// What it is.
    pub likeness: Likeness,
    /// Where such machines are kept.
    pub store: WarmStore,
    /// One that is.
    pub snapshot: Option<fs::File>,
}

impl Plan {
    /// The kernel's name in the store.
    pub fn kernel_key(&self) -> &str {
        self.kernel.key()
    }

    /// Where the decompressed kernel is.
    pub fn kernel_file(&self) -> PathBuf {
        self.kernel.vmlinux()
    }

    /// The decompressed kernel as it was linked.
    pub fn open_kernel(&self) -> Result<OwnedFd, PlanError> {
        open(&self.kernel.vmlinux()).map(OwnedFd::from)
    }

    /// The kernel that the machine boots, moved to where it is to lie.
    pub fn open_image(&self) -> Result<OwnedFd, PlanError> {
        let boots = self.warm.as_ref().is_none_or(|warm| warm.snapshot.is_none());
        let moved = match self.kaslr.filter(|_| boots) {
            Some(distance) => kaslr::moved_file(&self.kernel.vmlinux(), distance)?,
            None => None,
        };
        moved.map_or_else(|| self.open_kernel(), Ok)
    }

    /// The disk's image.
    pub fn open_disk(&self) -> Result<Option<OwnedFd>, PlanError> {
        let file = |source| PlanError::File { action: "use", path: "the disk's image".into(), source };
        self.disk.as_ref().map(OwnedFd::try_clone).transpose().map_err(file)
    }

    /// The initramfs, from its start.
    pub fn open_initramfs(&self) -> Result<OwnedFd, PlanError> {
        let file = |source| PlanError::File { action: "read", path: "the initramfs".into(), source };
        self.archives.initramfs.try_clone().map(OwnedFd::from).map_err(file)
    }

    /// The snapshot that was found is not to be used.
    pub fn boot_instead(&mut self) {
        if self.warm.as_mut().and_then(|warm| warm.snapshot.take()).is_some() {
            for word in clock_words(self.accel, kernel_hz(&self.kernel)) {
                self.cmdline.push(' ');
                self.cmdline.push_str(&word);
            }
        }
    }

    /// What the guest is given once it is ready.
    pub fn open_input(&self) -> Result<Option<OwnedFd>, PlanError> {
        let file = |source| PlanError::File { action: "read", path: "the guest's input".into(), source };
        let input = self.archives.input.as_ref().map(|input| input.try_clone().map(OwnedFd::from));
        input.transpose().map_err(file)
    }
}

fn open(path: &Path) -> Result<fs::File, PlanError> {
    fs::File::open(path).map_err(|source| PlanError::File { action: "open", path: path.into(), source })
}

/// Prepares a run.
pub fn plan(spec: &RunSpec) -> Result<Plan, PlanError> {
    let lookup = |name: &str| env::var_os(name);
    let root = store_root(lookup).map_err(PlanError::Root)?;
    // What is kept beside the kernels can be made again.
    let cache = |name: &str| root.with_file_name(name);
    let known = Known::new(cache("known"));
    let store = Store::open(&root).map_err(PlanError::Store)?;
    let kernel = store.discover(spec.kernel.as_deref(), lookup).map_err(PlanError::Kernel)?;
    if let Job::Test(test) = &spec.job
        && let Some(scheduler) = &test.scheduler
        && scheduler.source.program().is_some()
    {
        kernel
            .require_sched_ext()
            .map_err(|source| PlanError::Unfit { scheduler: scheduler.name.clone(), source })?;
    }
    spec.kernel_args.iter().try_for_each(|word| check_kernel_arg(word))?;
    let mut notes = Vec::new();
    check_kernel(&spec.job, kernel.release(), &mut notes)?;
    let accel = choose_accelerator(spec.accel, spec.jail, &mut notes)?;
    let interactive = matches!(&spec.job, Job::Shell(shell) if shell.exec.is_none());
    if interactive && accel == AccelKind::Det {
        return Err(PlanError::InteractiveDet);
    }
    check_devices(spec, accel, &kernel)?;
    match (spec.watchdog_ms, accel) {
        (Some(_), AccelKind::Det) => {
            return Err(PlanError::Watchdog { why: "under det nothing on the host may write there" });
        }
        (Some(_), _) if !spec.observe => {
            return Err(PlanError::Watchdog { why: "this run has no monitor (KTSTR_OBSERVE=0)" });
        }
        _ => {}
    }
    let emulator = match accel {
        AccelKind::Kvm => None,
        AccelKind::Tcg | AccelKind::Det => Some(find_emulator(accel, &known)?),
    };
    let kaslr = kaslr_distance(spec, accel, &kernel);
    // The rest of the machine is the same wherever the kernel lies.
    let kernel_end = image_end(&kernel.vmlinux())? + kaslr.map_or(0, |_| kaslr::FARTHEST);
    let ring = ring_region(kernel_end, accel);
    // What another process serves is not in a snapshot of the machine.
    let alone = spec.disk.is_none() && spec.networks.is_empty();
    // Who wants to read the kernel's console wants to see it boot.
    let reads_console = matches!(&spec.job, Job::Shell(shell) if shell.dmesg);
    // Large pages and memory on chosen nodes are had anew for each machine.
    let isolated = spec.performance == Performance::Isolated;
    let may_wait = spec.warm && accel != AccelKind::Det && !isolated;
    let may_wait = may_wait && !interactive && !reads_console && alone;
    let may_wait = may_wait && emulator.as_ref().is_none_or(|e| e.version.0 >= SOUND_EMULATOR);
    let base_dir = may_wait.then(|| cache("base"));
    let archives = pack_initramfs(spec, &kernel, (ring, accel), base_dir.as_deref(), &known, &mut notes)?;
    let load = memory::Load {
        kernel: kernel_end,
        initramfs: archives.size,
        reserved: ring.len,
        cpus: spec.topology.cpus(),
    };
    let may_wait = may_wait && archives.input.is_some();
    let memory_mb = memory_mb(spec, &load, may_wait)?;
    let grant = Grant::decide(spec, accel, memory_mb, &mut notes)?;
    notes.extend(sound_emulator_note(emulator.as_ref()));
    let (boot_limit, run_limit) = limits(spec, accel);
    let disks = store.root().parent().unwrap_or(store.root()).join("disks");
    let disk = spec.disk.as_ref().map(|config| disk::image(config, &disks)).transpose()?;
    let mut words = cmdline(spec, accel, ring);
    let warm = match may_wait {
        true => {
            let machine = Machine { ring, memory_mb, kaslr, cmdline: &words.join(" "), base: &archives.base };
            let likeness = likeness(spec, &kernel, emulator.as_ref(), &machine)?;
            let warm_dir = env::var_os(warm::DIR).map_or_else(|| cache("warm"), PathBuf::from);
            let said = env::var(warm::LIMIT).ok();
            let limit = said.as_ref().and_then(|mb| mb.parse().ok());
            if let (Some(said), None) = (said, limit) {
                notes.push(format!("{}={said} is no number of MiB and is left out of account", warm::LIMIT));
            }
            let store = WarmStore::new(warm_dir, limit);
            let (snapshot, removed) = store.find(&likeness);
            notes.extend(removed);
            Some(Warm { likeness, store, snapshot })
        }
        false => None,
    };
    if warm.as_ref().is_none_or(|warm| warm.snapshot.is_none()) {
        words.extend(clock_words(accel, kernel_hz(&kernel)));
    }
    Ok(Plan {
        grant,
        disk,
        cmdline: words.join(" "),
        warm,
        accel,
        emulator,
        memory_mb,
        ring,
        interactive,
        boot_limit,
        run_limit,
        notes,
        kernel,
        kaslr,
        archives,
    })
}

/// How far the kernel is moved: by the seed where a run can be had again, otherwise anew with each boot of the host,
/// as a machine that waits is begun from more than once.
fn kaslr_distance(spec: &RunSpec, accel: AccelKind, kernel: &Kernel) -> Option<u64> {
    let wanted = !spec.kernel_args.iter().any(|word| word == "nokaslr");
    let chance = match accel {
        AccelKind::Det => spec.seed.to_string(),
        AccelKind::Kvm | AccelKind::Tcg => host_boot(),
    };
    wanted.then(|| kaslr::distance(&[&chance, kernel.key()]))
}

fn host_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// What a machine is beside its shape and its kernel.
struct Machine<'a> {
    ring: RingRegion,
    memory_mb: u32,
    kaslr: Option<u64>,
    /// Without what was measured on this host.
    cmdline: &'a str,
    base: &'a str,
}

/// The clock of an emulated CPU is the host's, and what KVM gives is the host kernel's, so a machine does not
/// outlive the host's present boot.
fn likeness(
    spec: &RunSpec,
    kernel: &Kernel,
    emulator: Option<&Emulator>,
    machine: &Machine<'_>,
) -> Result<Likeness, PlanError> {
    let mut likeness = Likeness::default();
    likeness.add("kernel", kernel.key());
    likeness.add_file("kernel file", &kernel.vmlinux());
    likeness.add("command line", machine.cmdline);
    likeness.add("kernel moved by", machine.kaslr.unwrap_or_default());
    likeness.add("base initramfs", machine.base);
    likeness.add("topology", spec.topology);
    likeness.add("nodes", format!("{:?}", spec.numa));
    likeness.add("absent LLCs", spec.absent_llcs);
    likeness.add("memory", format!("{} MiB", machine.memory_mb));
    likeness.add("ring", format!("{:#x} {:#x}", machine.ring.gpa, machine.ring.len));
    match emulator {
        Some(emulator) => {
            likeness.add("emulator", format!("{}.{}", emulator.version.0, emulator.version.1));
            likeness.add_file("emulator file", &emulator.program);
            for firmware in &emulator.files {
                likeness.add_file("firmware", firmware);
            }
        }
        None => likeness.add("accelerator", AccelKind::Kvm),
    }
    likeness.add_file("VMM", &find_executable("ktstr-vmm")?);
    likeness.add("host boot", host_boot());
    Ok(likeness)
}

/// Steps in which machines that others may be like are sized, MiB. What is not used costs nothing.
const ALIKE_MB: u32 = 512;

/// Memory of the whole machine in MiB. A guest must be able to boot without the nodes of memory alone.
/// Machines that others may be like have a size that does not depend much on what they will be given.
fn memory_mb(spec: &RunSpec, load: &memory::Load, alike: bool) -> Result<u32, PlanError> {
    let mib = |mb: u64| u32::try_from(mb).unwrap_or(u32::MAX);
    let alone = mib(spec.numa.memory_only_mb(&spec.topology));
    let wanted = spec.memory_mb.or(spec.numa.memory_mb().map(mib));
    let chosen = load.choose(wanted.map(|mb| mb.saturating_sub(alone)))?;
    let chosen = if alike && wanted.is_none() { chosen.next_multiple_of(ALIKE_MB) } else { chosen };
    let memory_mb = chosen.saturating_add(alone);
    spec.numa.shares_mb(&spec.topology, memory_mb)?;
    Ok(memory_mb)
}

/// What the guest needs for its disk and networks beside what it always gets.
fn device_modules(spec: &RunSpec) -> Vec<&'static str> {
    let disk = spec.disk.iter().flat_map(|disk| [Some("virtio_blk"), disk.filesystem.kind()]);
    let network = spec.networks.iter().take(1).map(|_| Some("virtio_net"));
    disk.chain(network).flatten().collect()
}

fn check_devices(spec: &RunSpec, accel: AccelKind, kernel: &Kernel) -> Result<(), PlanError> {
    if !devices::wanted(spec) {
        return Ok(());
    }
    let device = |device, reason: &str| PlanError::Device { device, reason: reason.into() };
    if let Some(why) = spec.disk.and_then(|disk| disk.objection()) {
        return Err(device("disk", why));
    }
    if let Some(why) = spec.networks.iter().find_map(|network| network.objection()) {
        return Err(device("network", why));
    }
    if spec.networks.len() > MAX_NETWORKS {
        return Err(device("network", "it has at most four"));
    }
    let mut addresses: Vec<_> = spec.networks.iter().map(|network| network.mac).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.len() != spec.networks.len() {
        return Err(device("network", "two have the same address"));
    }
    if accel == AccelKind::Det {
        return Err(PlanError::DeviceDet);
    }
    let options = kernel.config().and_then(|config| fs::read_to_string(config).ok()).unwrap_or_default();
    for module in device_modules(spec) {
        // Without a configuration nothing is known, and the guest says what it lacks.
        let option = match module {
            "btrfs" | "ext4" => format!("CONFIG_{}_FS=m", module.to_uppercase()),
            other => format!("CONFIG_{}=m", other.to_uppercase()),
        };
        let is_module = options.lines().any(|line| line == option);
        if is_module && kernel.modules(&[module]).is_empty() {
            return Err(PlanError::NoModule { kernel: kernel.key().to_owned(), module });
        }
    }
    Ok(())
}

/// End of the loaded kernel image in guest-physical space.
fn image_end(vmlinux: &Path) -> Result<u64, PlanError> {
    use object::read::elf::{FileHeader, ProgramHeader};
    let image = |reason: String| PlanError::Image { path: vmlinux.into(), reason };
    let broken = |error: object::read::Error| image(error.to_string());
    // No more than the headers is read.
    let data = object::ReadCache::new(open(vmlinux)?);
    let header = object::elf::FileHeader64::<object::Endianness>::parse(&data).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let segments = header.program_headers(endian, &data).map_err(broken)?;
    segments
        .iter()
        .filter(|header| header.p_type(endian) == object::elf::PT_LOAD)
        .map(|header| header.p_paddr(endian).saturating_add(header.p_memsz(endian)))
        .max()
        .filter(|end| *end < 1 << 30)
        .ok_or_else(|| image("its segments end nowhere sensible".into()))
}

/// The ring lies a little above the kernel image: initramfs and page tables are placed from the top.
fn ring_region(kernel_end: u64, accel: AccelKind) -> RingRegion {
    const ALIGN: u64 = 4 << 20;
    let gpa = (kernel_end + ALIGN).next_multiple_of(ALIGN);
    match accel {
        AccelKind::Det => RingRegion { gpa, len: 16 << 20, mode: Mode::Linear },
        AccelKind::Kvm | AccelKind::Tcg => RingRegion { gpa, len: 4 << 20, mode: Mode::Wrap },
    }
}

/// Wall-clock limits: to the guest's first word, and from there to the end.
fn limits(spec: &RunSpec, accel: AccelKind) -> (Duration, Duration) {
    let cpus = u64::from(spec.topology.cpus());
    let duration = match &spec.job {
        Job::Test(test) => test.duration_ms / 1000,
        Job::Shell(shell) if shell.exec.is_none() => 7 * 24 * 3600,
        Job::Shell(_) => 120,
    };
    let (boot, run) = match accel {
        // Where KVM itself is emulated, a kernel of 7.3 takes a minute to its first process on a loaded host.
        AccelKind::Kvm => (120 + 4 * cpus, 60 + 2 * duration),
        AccelKind::Tcg => (90 + 4 * cpus, 90 + 3 * duration + 2 * cpus),
        AccelKind::Det => (150 + 10 * cpus, 180 + duration * (2 + 3 * cpus)),
    };
    // The sums above hold a minute for attaching.
    let attaching = match &spec.job {
        Job::Test(test) if test.scheduler.is_some() => attach_limit(accel).as_secs() - 60,
        _ => 0,
    };
    let run = run + attaching;
    let within = |seconds| {
        let limit = Duration::from_secs(seconds);
        spec.deadline_ms.map_or(limit, |ms| limit.min(Duration::from_millis(ms)))
    };
    (within(boot), within(run))
}

fn pack_initramfs(
    spec: &RunSpec,
    kernel: &Kernel,
    (ring, accel): (RingRegion, AccelKind),
    base_dir: Option<&Path>,
    known: &Known,
    notes: &mut Vec<String>,
) -> Result<Archives, PlanError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let guest = find_executable("ktstr-guest")?;
    let mut archive =
        Initramfs::new(&guest, LibraryPath::of_host(env::var("LD_LIBRARY_PATH").ok().as_deref()))?;
    archive.busybox(&pack::in_path("busybox", &path).ok_or(PlanError::Busybox)?, known)?;
    let mut modules = vec!["virtio_mmio", "virtio_console"];
    modules.extend(device_modules(spec));
    archive.modules(&kernel.modules(&modules))?;
    archive.modules_on_demand(&kernel.modules(&["loop"]))?;
    if let Some(config) = kernel.config() {
        archive.kernel_config(kernel.release(), &config)?;
    }
    let base = match base_dir {
        Some(dir) => {
            let mut content = archive.clone();
            let base = codec::encode(&GuestBase { ring, topology: spec.topology });
            content.file(BASE_PATH, base.expect("a base is far below the size limit"))?;
            match pack::base(&content, dir) {
                Ok(base) => {
                    archive.file(ENTROPY_PATH, random_bytes()?)?;
                    Some((content, base))
                }
                // A cache that cannot be written costs time and nothing else.
                Err(error @ pack::BaseError::Keep { .. }) => {
                    notes.push(format!("the guest boots cold: {}", ktstr_proto::link::chain(&error)));
                    None
                }
                Err(pack::BaseError::Pack(error)) => return Err(error.into()),
            }
        }
        None => None,
    };
    let include = match &spec.job {
        Job::Test(test) => {
            archive.test(&test.binary)?;
            if let Some(program) = test.scheduler.as_ref().and_then(|scheduler| scheduler.source.program()) {
                archive.scheduler(program)?;
            }
            for (index, scheduler) in test.staged.iter().enumerate() {
                if let Some(program) = scheduler.source.program() {
                    archive.staged(index, program)?;
                }
            }
            for file in &test.files {
                archive.file(&file.guest_path, file.content.clone())?;
            }
            &test.include
        }
        Job::Shell(shell) => &shell.include,
    };
    archive.includes(include, &path)?;
    let job = codec::encode(&guest_job(spec, ring, accel)).expect("a job is far below the size limit");
    archive.job(job)?;
    let temporary = |source| PlanError::File { action: "create", path: env::temp_dir(), source };
    let file = tempfile::tempfile().map_err(temporary)?;
    let out = io::BufWriter::new(&file);
    let packed = match &base {
        Some((content, _)) => archive.write_beyond(content, out)?,
        None => archive.write(out)?,
    };
    notes.extend(packed.warnings);
    io::Seek::rewind(&mut &file).map_err(temporary)?;
    Ok(match base {
        Some((_, base)) => Archives {
            initramfs: base.file,
            input: Some(file),
            size: base.size + packed.size,
            base: base.digest,
        },
        None => Archives { initramfs: file, input: None, size: packed.size, base: String::new() },
    })
}

/// What the random numbers of a guest begin with that may be one of several.
fn random_bytes() -> Result<Vec<u8>, PlanError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = vec![0; 64];
    let read = fs::File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    read.map_err(|source| PlanError::File { action: "read", path: path.into(), source })?;
    Ok(bytes)
}

/// Guest time that a scheduler may take to attach. Most of it is the kernel's verifier at work on its
/// programs, which an emulated CPU does many times slower.
fn attach_limit(accel: AccelKind) -> Duration {
    Duration::from_secs(match accel {
        AccelKind::Kvm => 60,
        AccelKind::Tcg | AccelKind::Det => 180,
    })
}

fn guest_scheduler(scheduler: &SchedulerJob, accel: AccelKind) -> GuestScheduler {
    GuestScheduler {
        name: scheduler.name.clone(),
        args: scheduler.args.clone(),
        cgroup_parent: scheduler.cgroup_parent.clone(),
        attach_timeout_ms: attach_limit(accel).as_millis() as u64,
        builtin: match &scheduler.source {
            SchedulerSource::Builtin(builtin) => Some(builtin.clone()),
            SchedulerSource::Program(_) => None,
        },
    }
}

/// How often the scheduler is asked for its statistics: for each snapshot that the run takes; under `det`, where what
/// is looked at from outside must leave no trace, for each that the test itself wants.
pub fn stats_asked(spec: &RunSpec, accel: AccelKind) -> u32 {
    match &spec.job {
        Job::Test(test) if accel == AccelKind::Det => test.snapshots,
        Job::Test(_) => spec.snapshots,
        Job::Shell(_) => 0,
    }
}

fn guest_job(spec: &RunSpec, ring: RingRegion, accel: AccelKind) -> GuestJob {
    let scheduler = match &spec.job {
        Job::Test(test) => test.scheduler.as_ref().map(|scheduler| guest_scheduler(scheduler, accel)),
        Job::Shell(_) => None,
    };
    let task = match &spec.job {
        Job::Test(test) => GuestTask::Test(GuestTest {
            test: test.test.clone(),
            duration_ms: test.duration_ms,
            assert: Assert::defaults_for(accel).merge(test.assert),
            staged: test.staged.iter().map(|scheduler| guest_scheduler(scheduler, accel)).collect(),
            snapshots: stats_asked(spec, accel),
        }),
        Job::Shell(shell) => match &shell.exec {
            Some(command) => GuestTask::Exec(command.clone()),
            None => GuestTask::Shell(shell.term.clone()),
        },
    };
    let jitter_us = if spec.vary { ((spec.seed / SHIFTS.len() as u64) % MOST_JITTER_US) as u32 } else { 0 };
    GuestJob {
        ring,
        topology: spec.topology,
        seed: spec.seed,
        jitter_us,
        env: spec.env.clone(),
        scheduler,
        task,
        disk: spec.disk,
        probing: spec.probing.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_never_touches_the_kernel_image() {
        for end in [0x100_0000, 0x480_0000, 0x47f_ffff, 0x480_0001] {
            let ring = ring_region(end, AccelKind::Tcg);
            assert!(ring.gpa > end && ring.gpa.is_multiple_of(4096) && ring.gpa - end <= 8 << 20);
        }
    }
}
