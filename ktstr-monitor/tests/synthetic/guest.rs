//! Builds a guest: RAM in a memfd with an image, page tables, per-CPU areas and planted structures,
//! and the kernel file that describes it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ktstr_monitor::addr::CpuId;
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::kernel::Profile;
use ktstr_monitor::mem::{GuestMem, Layout};
use ktstr_monitor::sample::Sampler;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::btf_writer::BtfWriter;
use crate::kernel_file::{LINK, LOAD, elf};

pub const RAM: u64 = 12 << 20;
pub const BANNER: &[u8] = b"Linux version 9.9.9 (made up for a test) #1 SMP\n\0";
pub const COUNTERS: [&str; 3] = ["SCX_EV_SELECT_CPU_FALLBACK", "SCX_EV_DISPATCH_KEEP_LAST", "SCX_EV_MADE_UP"];
/// Offsets of the image's variables from its start.
pub const VARIABLES: [(&str, u64); 18] = [
    ("_text", 0),
    ("linux_banner", 0x100),
    ("phys_base", 0x200),
    ("page_offset_base", 0x208),
    ("pgdir_shift", 0x210),
    ("__cpu_possible_mask", 0x220),
    ("__cpu_online_mask", 0x240),
    ("scx_root", 0x260),
    ("map_idr", 0x280),
    ("prog_idr", 0x2a0),
    ("__per_cpu_offset", 0x300),
    ("init_task", INIT_TASK),
    ("jiffies_64", 0x268),
    ("__per_cpu_start", PER_CPU),
    ("runqueues", PER_CPU + RQ),
    ("__per_cpu_end", PER_CPU + 0x1000),
    ("init_top_pgt", 0x2000),
    ("_end", IMAGE),
];
/// Template of the per-CPU area in the image, and the run queue in it.
pub const PER_CPU: u64 = 0x4000;
const RQ: u64 = 0x40;
const STATS: u64 = 0x200;
const IMAGE: u64 = 0x6000;
/// Where `init_task` lies in the image.
const INIT_TASK: u64 = 0x3000;
/// Offsets in the made-up `struct task_struct` and `struct signal_struct`.
pub const TASK_TASKS: u64 = 0;
pub const TASK_THREAD_NODE: u64 = 16;
pub const TASK_SIGNAL: u64 = 32;
pub const TASK_PID: u64 = 40;
pub const TASK_COMM: u64 = 48;
pub const TASK_SCX: u64 = 64;
pub const SIGNAL_THREADS: u64 = 8;
/// Guest-physical address of the first task; each has its `signal_struct` at its end.
const TASKS: u64 = 0xb0_0000;
const TASK_STRIDE: u64 = 256;
const TASK_SIZE: u32 = 160;
pub const DSQ: u64 = 0xb8_0000;
/// Guest-physical addresses, outside every place the image may be moved to.
const TABLES: u64 = 0x10_0000;
const AREAS: u64 = 0x90_0000;
const AREA_SIZE: u64 = 0x1000;
pub const SCHED: u64 = 0xa0_0000;
pub const PAGE_OFFSET: u64 = 0xffff_8880_0000_0000;
pub const PAGE_OFFSET_L5: u64 = 0xff11_0000_0000_0000;

/// How the event counters are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// `scx_sched.pcpu → scx_sched_pcpu.event_stats`
    Pcpu,
    /// `scx_sched.event_stats_cpu`
    Direct,
}

/// What is to be built.
#[derive(Clone, Debug)]
pub struct Shape {
    pub cpus: u32,
    pub five_levels: bool,
    /// How far the image is moved physically.
    pub moved: u64,
    /// How far it is moved virtually.
    pub shift: u64,
    pub events: Events,
    /// Member of `rq.scx` that the kernel lacks.
    pub without: &'static str,
}

impl Default for Shape {
    fn default() -> Self {
        Self { cpus: 3, five_levels: false, moved: 0, shift: 0, events: Events::Pcpu, without: "" }
    }
}

/// What is planted in a run queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlantedRq {
    pub nr_running: u32,
    pub clock: u64,
    pub scx_nr_running: u32,
    pub scx_flags: u32,
    pub local_dsq_nr: u32,
}

/// A made-up guest.
pub struct Guest {
    pub shape: Shape,
    pub ram: File,
    pub kernel: Vec<u8>,
    next_table: u64,
}

impl Guest {
    /// A guest whose kernel is up, with empty run queues and no BPF scheduler.
    pub fn new(shape: Shape) -> Self {
        let ram = ram(RAM);
        let kernel = kernel(&shape, true);
        let mut guest = Self { shape, ram, kernel, next_table: TABLES };
        guest.write_image();
        guest.map_all();
        for cpu in 0..guest.shape.cpus {
            guest.set_up_cpu(cpu);
        }
        guest
    }

    pub fn mem(&self) -> GuestMem {
        GuestMem::map_sealed(&self.ram, Layout::flat(RAM).unwrap()).unwrap()
    }

    pub fn sampler(&self) -> Sampler {
        let image = KernelImage::parse(self.kernel.clone()).unwrap();
        Sampler::new(Profile::of(&image).unwrap())
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, gpa).unwrap();
    }

    pub fn write_u64(&self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }

    /// Guest-physical address of a variable of the image.
    pub fn variable(&self, name: &str) -> u64 {
        let (_, into) = VARIABLES.iter().find(|(n, _)| *n == name).unwrap();
        LOAD + self.shape.moved + into
    }

    /// Where the direct map of a four-level guest begins.
    pub fn direct_map() -> u64 {
        PAGE_OFFSET
    }

    pub fn page_offset(&self) -> u64 {
        if self.shape.five_levels { PAGE_OFFSET_L5 } else { PAGE_OFFSET }
    }

    /// Guest-physical address of a CPU's run queue.
    pub fn rq(&self, cpu: u32) -> u64 {
        area(cpu) + RQ
    }

    /// Guest-physical address of a CPU's `scx_event_stats`.
    pub fn stats(&self, cpu: u32) -> u64 {
        let into = if self.shape.events == Events::Pcpu { 8 } else { 0 };
        area(cpu) + STATS + into
    }

    pub fn plant_rq(&self, cpu: CpuId, planted: PlantedRq) {
        let at = self.rq(cpu.0);
        self.write(at, &planted.nr_running.to_le_bytes());
        self.write_u64(at + 8, planted.clock);
        self.write(at + 16 + 8, &planted.local_dsq_nr.to_le_bytes());
        self.write(at + 16 + 16, &planted.scx_nr_running.to_le_bytes());
        self.write(at + 16 + 20, &planted.scx_flags.to_le_bytes());
    }

    /// Loads a BPF scheduler whose counter `n` of CPU `c` is `counts(c)[n]`.
    pub fn load_scheduler(&self, counts: impl Fn(u32) -> [i64; 3]) {
        for cpu in 0..self.shape.cpus {
            for (n, count) in counts(cpu).into_iter().enumerate() {
                self.write(self.stats(cpu) + n as u64 * 8, &count.to_le_bytes());
            }
        }
        let percpu_pointer = LINK + self.shape.shift + PER_CPU + STATS;
        self.write_u64(SCHED + 16, percpu_pointer);
        self.write_u64(self.variable("scx_root"), self.page_offset() + SCHED);
    }

    /// Kernel-virtual address of task `nth`; number 0 is `init_task`.
    pub fn task(&self, nth: u64) -> u64 {
        match nth {
            0 => LINK + self.shape.shift + INIT_TASK,
            _ => self.page_offset() + TASKS + nth * TASK_STRIDE,
        }
    }

    /// Guest-physical address of task `nth`.
    pub fn task_gpa(&self, nth: u64) -> u64 {
        if nth == 0 { self.variable("init_task") } else { TASKS + nth * TASK_STRIDE }
    }

    /// Plants `count` processes of one thread each, `init_task` included, with pids from 0 on.
    pub fn plant_tasks(&self, count: u64) {
        for nth in 0..count {
            let at = self.task_gpa(nth);
            let signal = self.task(nth) + u64::from(TASK_SIZE);
            self.write_u64(at + TASK_TASKS, self.task((nth + 1) % count) + TASK_TASKS);
            self.write_u64(at + TASK_THREAD_NODE, signal + SIGNAL_THREADS);
            self.write_u64(at + TASK_SIGNAL, signal);
            self.write(at + TASK_PID, &(nth as u32).to_le_bytes());
            self.write(at + TASK_COMM, format!("task-{nth}\0").as_bytes());
            self.write_u64(at + u64::from(TASK_SIZE) + SIGNAL_THREADS, self.task(nth) + TASK_THREAD_NODE);
        }
    }

    /// Plants a DSQ with the given tasks and returns its address.
    pub fn plant_dsq(&self, tasks: &[u64]) -> u64 {
        let head = self.page_offset() + DSQ + 16;
        let node = |nth: &u64| self.task(*nth) + TASK_SCX + 16;
        let nodes: Vec<u64> = std::iter::once(head).chain(tasks.iter().map(node)).collect();
        for nth in 0..nodes.len() {
            let gpa = if nth == 0 { DSQ + 16 } else { self.task_gpa(tasks[nth - 1]) + TASK_SCX + 16 };
            self.write_u64(gpa, nodes[(nth + 1) % nodes.len()]);
        }
        self.write(DSQ + 8, &(tasks.len() as u32).to_le_bytes());
        self.write_u64(DSQ + 32, 0x6b74);
        self.page_offset() + DSQ
    }

    fn write_image(&self) {
        let base = LOAD + self.shape.moved;
        self.write(base, &image());
        self.write_u64(self.variable("phys_base"), self.shape.moved.wrapping_sub(self.shape.shift));
        self.write_u64(self.variable("page_offset_base"), self.page_offset());
        let pgdir_shift: u32 = if self.shape.five_levels { 48 } else { 39 };
        self.write(self.variable("pgdir_shift"), &pgdir_shift.to_le_bytes());
        let mask = (1u64 << self.shape.cpus) - 1;
        self.write_u64(self.variable("__cpu_possible_mask"), mask);
        self.write_u64(self.variable("__cpu_online_mask"), mask);
    }

    fn set_up_cpu(&self, cpu: u32) {
        let kva = self.page_offset() + area(cpu);
        let offset = kva.wrapping_sub(LINK + self.shape.shift + PER_CPU);
        self.write_u64(self.variable("__per_cpu_offset") + u64::from(cpu) * 8, offset);
        self.write(self.rq(cpu) + 64, &(cpu as i32).to_le_bytes());
        self.write_u64(self.rq(cpu) + 72, self.page_offset() + 0x1000);
    }

    fn map_all(&mut self) {
        for page in (0..IMAGE).step_by(0x1000) {
            self.map(LINK + self.shape.shift + page, LOAD + self.shape.moved + page, 1);
        }
        for page in (0..RAM).step_by(2 << 20) {
            self.map(self.page_offset() + page, page, 2);
        }
    }

    /// Enters a page of the given level into the tables.
    fn map(&mut self, kva: u64, gpa: u64, page_level: u32) {
        let top = if self.shape.five_levels { 5 } else { 4 };
        let mut table = self.variable("init_top_pgt");
        for level in (page_level..=top).rev() {
            let entry = table + ((kva >> (12 + 9 * (level - 1))) & 511) * 8;
            if level == page_level {
                self.write_u64(entry, gpa | 1 | if level > 1 { 0x80 } else { 0 });
                return;
            }
            let mut bytes = [0; 8];
            self.ram.read_exact_at(&mut bytes, entry).unwrap();
            table = u64::from_le_bytes(bytes) & !0xfff;
            if table == 0 {
                table = self.next_table;
                self.next_table += 0x1000;
                self.write_u64(entry, table | 1);
            }
        }
    }
}

/// Memory of that length, sealed as the real one is.
pub fn ram(len: u64) -> File {
    let fd = memfd_create("guest", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC).unwrap();
    let ram = File::from(fd);
    ram.set_len(len).unwrap();
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(&ram, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    ram
}

fn area(cpu: u32) -> u64 {
    AREAS + u64::from(cpu) * AREA_SIZE
}

/// The image as it is in the kernel file.
pub fn image() -> Vec<u8> {
    let mut image = vec![0; IMAGE as usize];
    image[0x100..0x100 + BANNER.len()].copy_from_slice(BANNER);
    image
}

/// The kernel file for a shape.
pub fn kernel(shape: &Shape, with_symbols: bool) -> Vec<u8> {
    let symbols: Vec<_> = VARIABLES.iter().map(|(name, into)| (*name, LINK + into)).collect();
    elf(&image(), &btf(shape).section(), if with_symbols { &symbols } else { &[] })
}

/// The kernel's types.
pub fn btf(shape: &Shape) -> BtfWriter {
    let mut btf = BtfWriter::new();
    let u32_ = btf.int("unsigned int", 4, false);
    let u64_ = btf.int("unsigned long", 8, false);
    let s32_ = btf.int("int", 4, true);
    let s64_ = btf.int("long long", 8, true);
    let words = btf.array(u64_, u32_, 1);
    btf.structure("cpumask", 8, &[("bits", words, 0)]);
    let alias = btf.typedef("u32", u32_);
    let list = btf.structure("list_head", 16, &[("next", u64_, 0), ("prev", u64_, 64)]);
    let members = [("nr", alias, 64), ("list", list, 128), ("id", u64_, 256)];
    btf.structure("scx_dispatch_q", 64, &members);
    let dsq = btf.structure("", 16, &[("nr", alias, 64)]);
    let char_ = btf.int("char", 1, true);
    let comm = btf.array(char_, u32_, 16);
    let node = btf.structure("scx_dsq_list_node", 24, &[("node", list, 0), ("flags", u32_, 128)]);
    let scx_entity = btf.structure("sched_ext_entity", 64, &[("dsq", u64_, 0), ("dsq_list", node, 128)]);
    btf.structure("signal_struct", 32, &[("thread_head", list, SIGNAL_THREADS as u32 * 8)]);
    btf.structure(
        "task_struct",
        TASK_SIZE,
        &[
            ("tasks", list, TASK_TASKS as u32 * 8),
            ("thread_node", list, TASK_THREAD_NODE as u32 * 8),
            ("signal", u64_, TASK_SIGNAL as u32 * 8),
            ("pid", s32_, TASK_PID as u32 * 8),
            ("comm", comm, TASK_COMM as u32 * 8),
            ("scx", scx_entity, TASK_SCX as u32 * 8),
        ],
    );
    let scx: Vec<_> = [("local_dsq", dsq, 0), ("nr_running", alias, 128), ("flags", alias, 160)]
        .into_iter()
        .filter(|(name, ..)| *name != shape.without)
        .collect();
    let scx = btf.structure("scx_rq", 32, &scx);
    let domain = btf.pointer(0);
    let anonymous = btf.union("", 8, &[("clock", u64_, 0)]);
    btf.structure(
        "rq",
        128,
        &[
            ("nr_running", u32_, 0),
            ("", anonymous, 64),
            ("scx", scx, 128),
            ("cpu", s32_, 512),
            ("rd", domain, 576),
        ],
    );
    let counters: Vec<_> =
        COUNTERS.iter().enumerate().map(|(n, name)| (*name, s64_, n as u32 * 64)).collect();
    let stats = btf.structure("scx_event_stats", 24, &counters);
    let (member, target) = match shape.events {
        Events::Pcpu => ("pcpu", btf.structure("scx_sched_pcpu", 32, &[("event_stats", stats, 64)])),
        Events::Direct => ("event_stats_cpu", stats),
    };
    let pointer = btf.pointer(target);
    btf.structure("scx_sched", 64, &[(member, pointer, 128)]);
    crate::bpf_types::add_types(&mut btf, u32_, u64_, char_);
    btf
}
