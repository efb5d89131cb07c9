//! Walks over planted lists: what is sound is found whole and in order, what is corrupt ends in a
//! typed reason with what was read before it.

use std::time::{Duration, Instant};

use ktstr_monitor::addr::Kva;
use ktstr_monitor::freeze::Freeze;
use ktstr_monitor::kernel::dsq::{self, DsqKind};
use ktstr_monitor::kernel::list::Cut;
use ktstr_monitor::kernel::state::{KernelState, Parts};
use ktstr_monitor::kernel::{Gap, Profile, View};
use ktstr_monitor::mem::GuestMem;
use proptest::prelude::*;

use crate::guest::{
    DSQ, Guest, RAM, SIGNAL_THREADS, Shape, TASK_SCX, TASK_SIGNAL, TASK_TASKS, TASK_THREAD_NODE,
};

fn state(guest: &Guest) -> KernelState {
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    sampler.sample(&mem).unwrap();
    KernelState::read(sampler.profile(), sampler.live().unwrap(), &mem, Parts::ALL)
}

fn pids(state: &KernelState) -> Vec<i32> {
    state.tasks.items.iter().map(|task| task.copy.pid.clone().unwrap()).collect()
}

#[test]
fn all_tasks_are_found_once_with_their_threads() {
    let guest = Guest::new(Shape { shift: 2 << 20, ..Shape::default() });
    guest.plant_tasks(5);
    // Task 4 becomes a second thread of task 3.
    guest.write_u64(guest.task_gpa(3) + TASK_TASKS, guest.task(0) + TASK_TASKS);
    let head = guest.task(3) + 160 + SIGNAL_THREADS;
    guest.write_u64(guest.task_gpa(3) + TASK_THREAD_NODE, guest.task(4) + TASK_THREAD_NODE);
    guest.write_u64(guest.task_gpa(4) + TASK_THREAD_NODE, head);
    let state = state(&guest);
    assert_eq!((pids(&state), &state.tasks.cut), (vec![0, 1, 2, 3, 4], &None));
    assert_eq!(state.tasks.items[4].copy.comm, Ok("task-4".into()));
    // A member this made-up kernel lacks is absent, and says so in the tree.
    assert!(matches!(state.tasks.items[4].copy.prio, Err(Gap::Absent(_))));
    let json = serde_json::to_value(state.node()).unwrap();
    assert_eq!(json.pointer("/tasks/4/comm").unwrap(), "task-4");
    assert!(json.pointer("/tasks/4/prio/absent").is_some());
}

#[test]
fn what_is_read_after_the_guest_went_on_is_what_was_copied_while_it_stood() {
    let guest = Guest::new(Shape::default());
    guest.plant_tasks(2000);
    guest.load_scheduler(|cpu| [i64::from(cpu), 2, 3]);
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    sampler.sample(&mem).unwrap();
    let (profile, live) = (sampler.profile(), sampler.live().unwrap());
    let direct = KernelState::read(profile, live, &mem, Parts::ALL);
    let freeze = Freeze::default();
    for _ in 0..2 {
        let copied = freeze.touch(profile, live, &mem);
        println!("{copied:?}");
        assert_eq!(copied.tasks, 2000);
        guest.write(guest.task_gpa(7) + 48, b"changed\0");
        let captured = freeze.read(profile, live, &mem);
        assert_eq!(captured.state.node(), direct.node());
        guest.write(guest.task_gpa(7) + 48, b"task-7\0\0");
        freeze.end();
    }
}

/// Breaks the list of processes at task 2 and returns what is found and why no more.
fn broken(next: impl Fn(&Guest) -> u64) -> (Vec<i32>, Cut) {
    let guest = Guest::new(Shape::default());
    guest.plant_tasks(5);
    guest.write_u64(guest.task_gpa(2) + TASK_TASKS, next(&guest));
    let state = state(&guest);
    (pids(&state), state.tasks.cut.expect("the list is broken"))
}

#[test]
fn a_list_that_is_broken_keeps_what_came_before_and_says_why() {
    let (found, cut) = broken(|g| g.task(1) + TASK_TASKS);
    assert_eq!(found, [0, 1, 2]);
    assert!(matches!(cut, Cut::Cycle { list: "init_task.tasks", after: 2, .. }), "{cut:?}");
    let (found, cut) = broken(|_| 0);
    assert_eq!((found, cut), (vec![0, 1, 2], Cut::Null { list: "init_task.tasks", after: 2 }));
    // A freed node: its list pointers are poisoned.
    let (found, cut) = broken(|_| 0xdead_0000_0000_0100);
    assert_eq!(found, [0, 1, 2], "the poisoned node cannot be read and is no task");
    assert!(matches!(cut, Cut::Broken { after: 3, .. }), "{cut:?}");
}

#[test]
fn a_process_without_signals_is_there_itself() {
    let guest = Guest::new(Shape::default());
    guest.plant_tasks(3);
    guest.write_u64(guest.task_gpa(1) + TASK_SIGNAL, 0);
    let state = state(&guest);
    assert_eq!((pids(&state), state.tasks.cut), (vec![0, 1, 2], None));
}

#[test]
fn a_dsq_holds_its_tasks_in_order_without_markers() {
    let guest = Guest::new(Shape::default());
    guest.plant_tasks(5);
    let at = Kva(guest.plant_dsq(&[3, 1, 4]));
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    sampler.sample(&mem).unwrap();
    let queue = |profile: &Profile, mem: &GuestMem| {
        let live = sampler.live().unwrap();
        dsq::read(&View { profile, live, mem: live.view(mem) }, at, DsqKind::User)
    };
    let found = queue(sampler.profile(), &mem);
    let expected: Vec<_> = [3, 1, 4].map(|nth| Kva(guest.task(nth))).into();
    assert_eq!((found.queued.items, found.queued.cut), (expected, None));
    let copy = found.copy.unwrap();
    assert_eq!((copy.id, copy.nr), (Ok(0x6b74), Ok(3)));
    // The second node leads to the first: a cycle that leaves the head out.
    guest.write_u64(guest.task_gpa(1) + TASK_SCX + 16, guest.task(3) + TASK_SCX + 16);
    let found = queue(sampler.profile(), &mem);
    assert_eq!(found.queued.items.len(), 2);
    assert!(matches!(found.queued.cut, Some(Cut::Cycle { .. })), "{:?}", found.queued.cut);
    guest.write_u64(DSQ + 16, 8);
    let found = queue(sampler.profile(), &mem);
    assert!(matches!(found.queued.cut, Some(Cut::Broken { after: 1, .. })), "{:?}", found.queued.cut);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever lies in memory, a capture ends soon and does not panic.
    #[test]
    fn any_memory_is_captured_in_bounded_time(
        places in prop::collection::vec((0x80_0000u64..RAM - 8, any::<u64>(), 0u64..8), 1..200),
    ) {
        let guest = Guest::new(Shape::default());
        guest.plant_tasks(50);
        guest.plant_dsq(&[3, 1, 4]);
        guest.load_scheduler(|_| [1, 2, 3]);
        let (mem, mut sampler) = (guest.mem(), guest.sampler());
        sampler.sample(&mem).unwrap();
        for (at, value, kind) in places {
            // Pointers into the tasks are the ones that do harm.
            let at = if kind < 6 { 0xb0_0000 + at % 0x3000 } else { at } & !7;
            let value = if kind < 4 { guest.page_offset() + 0xb0_0000 + (value % 0x3000) } else { value };
            guest.write_u64(at, value);
        }
        let began = Instant::now();
        let state = KernelState::read(sampler.profile(), sampler.live().unwrap(), &mem, Parts::ALL);
        serde_json::to_string(&state.node()).unwrap();
        prop_assert!(began.elapsed() < Duration::from_secs(20));
        prop_assert!(state.tasks.items.len() <= 100_000);
        // By way of the copy the same is found, whatever the guest does meanwhile.
        let freeze = Freeze::default();
        let live = sampler.live().unwrap();
        let copied = freeze.touch(sampler.profile(), live, &mem);
        guest.write(0xb0_0000, &[0xa5; 0x3000]);
        let later = freeze.read(sampler.profile(), live, &mem);
        prop_assert_eq!(later.state.node(), state.node());
        prop_assert!(copied.bytes < 16 << 20 && copied.tasks >= later.state.tasks.items.len());
    }
}
