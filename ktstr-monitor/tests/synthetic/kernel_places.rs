//! Places of a kernel that are named from outside: what is planted there is read, what is written is there, and what
//! is no such place is refused in words.

use ktstr_monitor::addr::CpuId;
use ktstr_monitor::kernel_place::{read, write};
use ktstr_monitor::mem::{GuestMemMut, Layout};
use ktstr_proto::kernel_place::{KernelTarget, KernelValue, KernelWidth, KernelWrite, MAX_PIECE, MAX_WRITES};

use crate::guest::{Guest, PlantedRq, RAM, Shape};

fn guest() -> Guest {
    let guest = Guest::new(Shape { cpus: 2, shift: 2 << 20, ..Shape::default() });
    for cpu in 0..2 {
        let planted = PlantedRq {
            nr_running: 10 + cpu,
            clock: 70 + u64::from(cpu),
            scx_nr_running: 0,
            scx_flags: 0,
            local_dsq_nr: 0,
        };
        guest.plant_rq(CpuId(cpu), planted);
    }
    guest.plant_tasks(5);
    guest
}

fn of_queue(cpu: u32, field: &str) -> KernelTarget {
    KernelTarget::PerCpuField { symbol: "runqueues".into(), field: field.into(), cpu }
}

fn of_task(pid: i32, field: &str) -> KernelTarget {
    KernelTarget::TaskField { pid, expected_start_time_ns: None, field: field.into() }
}

fn chain(error: impl std::error::Error) -> String {
    ktstr_proto::link::chain(&error)
}

fn asked(guest: &Guest, target: &KernelTarget, width: KernelWidth) -> Result<String, String> {
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    sampler.sample(&mem).unwrap();
    let node = read(sampler.profile(), sampler.live().unwrap(), &mem, target, width).map_err(chain)?;
    Ok(serde_json::to_string(&node).unwrap())
}

fn set(guest: &Guest, writes: &[KernelWrite]) -> Result<String, String> {
    let (mem, mut sampler) = (guest.mem(), guest.sampler());
    sampler.sample(&mem).unwrap();
    let writable = GuestMemMut::map(&guest.ram, Layout::flat(RAM).unwrap()).unwrap();
    write(sampler.profile(), sampler.live().unwrap(), &writable, writes).map_err(chain)
}

#[test]
fn members_are_read_with_the_size_they_have() {
    let guest = guest();
    let read = |target: KernelTarget, width| asked(&guest, &target, width);
    assert_eq!(read(of_queue(1, "nr_running"), KernelWidth::U32).unwrap(), "11");
    assert_eq!(read(of_queue(0, "clock"), KernelWidth::U64).unwrap(), "70");
    let comm = format!("\"{}\"", "7461736b2d3300".to_owned() + &"00".repeat(9));
    assert_eq!(read(of_task(3, "comm"), KernelWidth::Bytes(16)).unwrap(), comm);
    let jiffies = KernelTarget::Symbol("jiffies_64".into());
    assert!(read(jiffies, KernelWidth::U64).is_ok());
    for (target, width, why) in [
        (of_queue(1, "nr_running"), KernelWidth::U64, "has 4 bytes, not 8"),
        (of_queue(1, "scx"), KernelWidth::U64, "has 32 bytes, not 8"),
        (of_queue(1, "nr_walking"), KernelWidth::U32, "nr_walking"),
        (of_queue(7, "nr_running"), KernelWidth::U32, "no CPU 7"),
        (of_queue(1, "[3]"), KernelWidth::U32, "[3]"),
        (of_task(99, "pid"), KernelWidth::U32, "no task 99"),
        (KernelTarget::Symbol("runqueues".into()), KernelWidth::U32, "is per CPU"),
        (KernelTarget::Symbol("no_such".into()), KernelWidth::U32, "no variable `no_such`"),
        (KernelTarget::Kva(0xdead_0000_0000_0100), KernelWidth::U32, "cannot be read"),
        (KernelTarget::Kva(u64::MAX), KernelWidth::Bytes(MAX_PIECE), "cannot be read"),
        (of_queue(1, "nr_running"), KernelWidth::Bytes(0), "not 0"),
        (of_queue(1, "nr_running"), KernelWidth::Bytes(MAX_PIECE + 1), "not 1025"),
    ] {
        let said = read(target.clone(), width).unwrap_err();
        assert!(said.contains(why), "{target}: {said}");
    }
}

#[test]
fn another_task_of_the_same_number_is_refused() {
    let guest = guest();
    let target = KernelTarget::TaskField { pid: 3, expected_start_time_ns: Some(1), field: "comm".into() };
    // This made-up kernel does not know when a task started, so it cannot be the one that is meant.
    let said = asked(&guest, &target, KernelWidth::Bytes(16)).unwrap_err();
    assert!(said.contains("start_time"), "{said}");
}

#[test]
fn all_is_written_or_nothing() {
    let guest = guest();
    let number = |cpu| asked(&guest, &of_queue(cpu, "nr_running"), KernelWidth::U32).unwrap();
    let to = |cpu, value| KernelWrite::new(of_queue(cpu, "nr_running"), value);
    let said = set(&guest, &[to(0, KernelValue::U32(7)), to(1, KernelValue::OrU32(0x100))]).unwrap();
    assert!(said.contains("runqueues@0 nr_running is 7 now"), "{said}");
    assert_eq!((number(0), number(1)), ("7".into(), (11 | 0x100).to_string()));
    let nowhere = KernelWrite::new(of_queue(1, "nr_walking"), KernelValue::U32(1));
    assert!(set(&guest, &[to(0, KernelValue::U32(8)), nowhere]).is_err());
    assert_eq!(number(0), "7", "nothing was written");
    let bytes = KernelValue::Bytes(vec![1, 2, 0, 0]);
    set(&guest, &[to(0, bytes)]).unwrap();
    assert_eq!(number(0), 0x201.to_string());
    for wrong in [vec![], vec![to(0, KernelValue::U32(1)); MAX_WRITES + 1]] {
        assert!(set(&guest, &wrong).unwrap_err().contains("1 to 64 writes"), "{}", wrong.len());
    }
}
