//! Corrupt guests: every answer is a typed error or a value, in bounded time, never a panic.

use std::time::{Duration, Instant};

use ktstr_monitor::addr::{CpuId, Gpa, Kva};
use ktstr_monitor::kernel::Gap;
use ktstr_monitor::kernel::scx::Scx;
use ktstr_monitor::mem::{GuestMem, Layout, Region};
use ktstr_monitor::paging::{AccessError, PageError};
use proptest::prelude::*;

use crate::guest::{Guest, RAM, SCHED, Shape};

/// Far more than a sample of any memory may take in an unoptimised build on a busy machine.
const BOUND: Duration = Duration::from_secs(10);

fn scx(breaks: impl Fn(&Guest)) -> Scx {
    let guest = Guest::new(Shape::default());
    guest.load_scheduler(|_| [1, 2, 3]);
    breaks(&guest);
    guest.sampler().sample(&guest.mem()).unwrap().scx
}

fn events_gap(scx: Scx) -> Gap {
    let Scx::Loaded { events, .. } = scx else { panic!("{scx:?}") };
    let counter = events.into_iter().find(|e| e.name == "SCX_EV_DISPATCH_KEEP_LAST").unwrap();
    counter.count.unwrap_err()
}

#[test]
fn a_wild_scheduler_pointer_is_an_unreadable_counter() {
    for (wild, expected) in
        [(0x0000_8000_0000_0000, None), (0xffff_c900_0000_0000, Some(4)), (u64::MAX - 7, None)]
    {
        let gap = events_gap(scx(|g| g.write_u64(g.variable("scx_root"), wild)));
        let Gap::Unreadable { source, .. } = gap else { panic!("{gap:?}") };
        if let Some(level) = expected {
            let kva = Kva(wild + 16);
            let source_expected = PageError::NotPresent { kva, level };
            assert_eq!(source, AccessError::Translate { kva, source: source_expected });
        }
    }
}

#[test]
fn a_wild_per_cpu_pointer_is_an_unreadable_counter() {
    for wild in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
        let gap = events_gap(scx(|g| g.write_u64(SCHED + 16, wild)));
        assert!(matches!(gap, Gap::Unreadable { what: "scx_event_stats", .. }), "{gap:?}");
    }
}

#[test]
fn counters_that_overflow_are_implausible() {
    let guest = Guest::new(Shape::default());
    guest.load_scheduler(|_| [1, i64::MAX, 3]);
    let gap = events_gap(guest.sampler().sample(&guest.mem()).unwrap().scx);
    assert!(matches!(gap, Gap::Implausible { .. }), "{gap:?}");
}

#[test]
fn a_run_queue_that_vanishes_is_an_error_and_the_others_stay() {
    let guest = Guest::new(Shape::default());
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    sampler.sample(&mem).unwrap();
    guest.write(guest.rq(1) + 64, &77i32.to_le_bytes());
    let sample = sampler.sample(&mem).unwrap();
    let foreign = Gap::ForeignRq { cpu: CpuId(1), found: 77 };
    assert_eq!(sample.cpus[1].rq.nr_running, Err(foreign.clone()));
    assert_eq!(sample.cpus[1].rq.clock, Err(foreign));
    assert!(sample.cpus[0].rq.clock.is_ok() && sample.cpus[2].rq.clock.is_ok());
}

#[test]
fn page_tables_that_point_outside_ram_are_unreadable() {
    let guest = Guest::new(Shape::default());
    let layout = Layout::new(vec![Region { start: Gpa(0), len: RAM, offset: 0 }]).unwrap();
    let mem = GuestMem::map(&guest.ram, layout).unwrap();
    let mut sampler = guest.sampler();
    sampler.sample(&mem).unwrap();
    let top = guest.variable("init_top_pgt");
    guest.write_u64(top + ((guest.page_offset() >> 39) & 511) * 8, 0x000f_ffff_ffff_f001);
    let obstacle = sampler.sample(&mem);
    // The image is still mapped: the offsets hold, the run queues are gone.
    let sample = obstacle.unwrap();
    let gap = sample.cpus[0].rq.clock.clone().unwrap_err();
    let Gap::Unreadable { source: AccessError::Translate { source, .. }, .. } = gap else {
        panic!("{gap:?}")
    };
    assert!(matches!(source, PageError::TableUnreadable { level: 3, .. }), "{source:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_corruption_ends_in_time(
        writes in prop::collection::vec((0u64..RAM / 8, any::<u64>(), any::<bool>()), 1..400),
        focus in prop::sample::select(vec!["init_top_pgt", "linux_banner", "__per_cpu_offset"]),
        while_running in any::<bool>(),
    ) {
        let guest = Guest::new(Shape::default());
        guest.load_scheduler(|_| [1, 2, 3]);
        let (mem, mut sampler) = (guest.mem(), guest.sampler());
        if while_running {
            sampler.sample(&mem).unwrap();
        }
        for (n, (word, value, plausible)) in writes.into_iter().enumerate() {
            let at = if n % 2 == 0 { guest.variable(focus) + word % 512 * 8 } else { word * 8 };
            // Half of the values look like page-table entries.
            let entry = ((value % RAM) & !0xfff) | (value & 0xff) | 1;
            guest.write_u64(at, if plausible { entry } else { value });
        }
        let began = Instant::now();
        for _ in 0..3 {
            if let Ok(sample) = sampler.sample(&mem) {
                prop_assert!(!sample.cpus.is_empty() && sample.cpus.len() <= 64);
            }
        }
        prop_assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    }
}
