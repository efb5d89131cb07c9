//! What is planted in a sound guest is what a sample says.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use ktstr_monitor::addr::{CpuId, Kva};
use ktstr_monitor::btf::FieldMissing;
use ktstr_monitor::kernel::scx::{EVENT_NAMES, Scx};
use ktstr_monitor::kernel::{Gap, NotReady};
use proptest::prelude::*;

use crate::guest::{COUNTERS, Events, Guest, PlantedRq, SCHED, Shape};

fn plant(guest: &Guest) {
    for cpu in 0..guest.shape.cpus {
        let planted = PlantedRq {
            nr_running: 10 + cpu,
            clock: u64::MAX - u64::from(cpu),
            scx_nr_running: 20 + cpu,
            scx_flags: 0x8000_0000 + cpu,
            local_dsq_nr: 30 + cpu,
        };
        guest.plant_rq(CpuId(cpu), planted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_sample_holds_what_was_planted(
        cpus in 1u32..9,
        five_levels in any::<bool>(),
        moved in prop::sample::select(vec![0u64, 2 << 20, 4 << 20]),
        shift in prop::sample::select(vec![0u64, 2 << 20, 512 << 20]),
        events in prop::sample::select(vec![Events::Pcpu, Events::Direct]),
    ) {
        let guest = Guest::new(Shape { cpus, five_levels, moved, shift, events, without: "" });
        plant(&guest);
        guest.load_scheduler(|cpu| [i64::from(cpu), 100, -1]);
        let (mem, mut sampler) = (guest.mem(), guest.sampler());
        let sample = sampler.sample(&mem).unwrap();

        let live = sampler.live().unwrap();
        prop_assert_eq!(live.kaslr_shift(), shift);
        prop_assert_eq!(live.page_offset(), Kva(guest.page_offset()));
        prop_assert_eq!(sample.cpus.len(), cpus as usize);
        for (n, cpu) in (0u32..).zip(&sample.cpus) {
            prop_assert_eq!((cpu.cpu, &cpu.online), (CpuId(n), &Ok(true)));
            prop_assert_eq!(&cpu.rq.nr_running, &Ok(10 + n));
            prop_assert_eq!(&cpu.rq.clock, &Ok(u64::MAX - u64::from(n)));
            prop_assert_eq!(&cpu.rq.scx_nr_running, &Ok(20 + n));
            prop_assert_eq!(&cpu.rq.scx_flags, &Ok(0x8000_0000 + n));
            prop_assert_eq!(&cpu.rq.local_dsq_nr, &Ok(30 + n));
        }
        let Scx::Loaded { instance, events } = sample.scx else { panic!("{:?}", sample.scx) };
        prop_assert_eq!(instance, Kva(guest.page_offset() + SCHED));
        let n = i64::from(cpus);
        for event in &events {
            let expected = match COUNTERS.iter().position(|name| *name == event.name) {
                Some(0) => Ok(n * (n - 1) / 2),
                Some(1) => Ok(n * 100),
                Some(_) => Ok(-n),
                None => Err(Gap::Absent(FieldMissing::Member {
                    name: "scx_event_stats",
                    path: event.name.clone(),
                })),
            };
            prop_assert_eq!(&event.count, &expected);
        }
        // The known ones in their order, then the one this kernel has besides.
        let names: Vec<_> = events.iter().map(|e| e.name.as_str()).collect();
        prop_assert_eq!(&names[..EVENT_NAMES.len()], &EVENT_NAMES[..]);
        prop_assert_eq!(&names[EVENT_NAMES.len()..], &["SCX_EV_MADE_UP"]);
    }
}

#[test]
fn a_member_the_kernel_lacks_is_absent_and_the_others_are_there() {
    let guest = Guest::new(Shape { without: "flags", ..Shape::default() });
    plant(&guest);
    let sample = guest.sampler().sample(&guest.mem()).unwrap();
    let missing = FieldMissing::Member { name: "rq", path: "scx.flags".into() };
    assert_eq!(sample.cpus[1].rq.scx_flags, Err(Gap::Absent(missing)));
    assert_eq!(sample.cpus[1].rq.scx_nr_running, Ok(21));
    assert_eq!(sample.scx, Scx::NotLoaded);
}

#[test]
fn an_offline_cpu_says_so() {
    let guest = Guest::new(Shape::default());
    guest.write_u64(guest.variable("__cpu_online_mask"), 0b101);
    let sample = guest.sampler().sample(&guest.mem()).unwrap();
    let online: Vec<_> = sample.cpus.iter().map(|c| c.online.clone()).collect();
    assert_eq!(online, [Ok(true), Ok(false), Ok(true)]);
}

/// Breaks one thing in a guest that is up and returns why the kernel is not found.
fn obstacle(shape: Shape, breaks: impl Fn(&Guest)) -> NotReady {
    let guest = Guest::new(shape);
    breaks(&guest);
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    let obstacle = sampler.sample(&mem).unwrap_err();
    // It stays unfound, and another try does no harm.
    assert_eq!(sampler.sample(&mem).unwrap_err(), obstacle);
    obstacle
}

#[test]
fn early_boot_is_told_step_by_step() {
    let shape = Shape::default;
    let zero = |name: &'static str| move |g: &Guest| g.write_u64(g.variable(name), 0);
    assert_eq!(obstacle(shape(), zero("linux_banner")), NotReady::NoImage);
    let tables = obstacle(shape(), |g| g.write(g.variable("init_top_pgt"), &[0; 4096]));
    assert!(matches!(tables, NotReady::Variable { symbol: "_text", .. }), "{tables:?}");
    let elsewhere = obstacle(Shape { shift: 2 << 20, moved: 4 << 20, ..shape() }, |g| {
        g.write_u64(g.variable("phys_base"), (2 << 20) + 0x1000);
    });
    assert!(
        matches!(elsewhere, NotReady::ImageElsewhere { .. } | NotReady::Variable { .. }),
        "{elsewhere:?}"
    );
    assert_eq!(obstacle(shape(), zero("page_offset_base")), NotReady::DirectMap { base: Kva(0) });
    assert_eq!(obstacle(shape(), zero("__cpu_possible_mask")), NotReady::NoCpus);
}

#[test]
fn per_cpu_areas_must_be_set_up_and_each_its_own() {
    let offset = |g: &Guest, cpu: u64| g.variable("__per_cpu_offset") + cpu * 8;
    let found = obstacle(Shape::default(), |g| g.write_u64(offset(g, 1), 0));
    let NotReady::PerCpuOffset { cpu: CpuId(1), offset: 0, .. } = found else { panic!("{found:?}") };
    let found = obstacle(Shape::default(), |g| {
        let mut same = [0; 8];
        g.ram.read_exact_at(&mut same, offset(g, 0)).unwrap();
        g.write(offset(g, 2), &same);
    });
    assert!(matches!(found, NotReady::PerCpuOffset { cpu: CpuId(2), .. }), "{found:?}");
    let found = obstacle(Shape::default(), |g| g.write_u64(offset(g, 1), 1 << 62));
    assert!(matches!(found, NotReady::PerCpuOffset { cpu: CpuId(1), .. }), "{found:?}");
    let found = obstacle(Shape::default(), |g| g.write_u64(g.rq(1) + 64, 2));
    let NotReady::RunQueue { cpu, source } = found else { panic!("{found:?}") };
    assert_eq!((cpu, *source), (CpuId(1), Gap::ForeignRq { cpu: CpuId(1), found: 2 }));
    let found = obstacle(Shape::default(), |g| g.write_u64(g.rq(0) + 72, 0));
    assert!(matches!(found, NotReady::RunQueue { cpu: CpuId(0), .. }), "{found:?}");
}

#[test]
fn a_guest_that_comes_up_is_found() {
    let guest = Guest::new(Shape::default());
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    let mask = guest.variable("__cpu_possible_mask");
    guest.write_u64(mask, 0);
    assert_eq!(sampler.sample(&mem), Err(NotReady::NoCpus));
    guest.write_u64(mask, 0b111);
    assert_eq!(sampler.sample(&mem).unwrap().cpus.len(), 3);
}

#[test]
fn another_kernel_in_the_same_memory_is_looked_for_anew() {
    let guest = Guest::new(Shape::default());
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    sampler.sample(&mem).unwrap();
    // As after kexec: the areas move, the CPUs are fewer.
    guest.write_u64(guest.variable("__per_cpu_offset") + 16, 0);
    guest.write_u64(guest.variable("__cpu_possible_mask"), 0b011);
    assert_eq!(sampler.sample(&mem).unwrap().cpus.len(), 2);
}

#[test]
fn aligned_members_are_never_torn() {
    let guest = Guest::new(Shape { cpus: 1, ..Shape::default() });
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    let stop = AtomicBool::new(false);
    let (low, high) = (0x1111_1111_1111_1111, 0xeeee_eeee_eeee_eeee);
    guest.write_u64(guest.rq(0) + 8, low);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: a private view of the shared file; the pointer stays inside the mapping and is
            // aligned, and it is only written through volatile stores.
            unsafe {
                let len = std::num::NonZeroUsize::new(crate::guest::RAM as usize).unwrap();
                let prot = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
                let flags = nix::sys::mman::MapFlags::MAP_SHARED;
                let at = nix::sys::mman::mmap(None, len, prot, flags, &guest.ram, 0).unwrap();
                let clock = at.as_ptr().cast::<u8>().add(guest.rq(0) as usize + 8).cast::<u64>();
                let mut next = high;
                while !stop.load(Ordering::Relaxed) {
                    clock.write_volatile(next);
                    next = !next;
                }
                nix::sys::mman::munmap(at, len.get()).unwrap();
            }
        });
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20_000 {
            seen.insert(sampler.sample(&mem).unwrap().cpus[0].rq.clock.clone().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(seen.iter().all(|&clock| clock == low || clock == high), "{seen:x?}");
    });
}
