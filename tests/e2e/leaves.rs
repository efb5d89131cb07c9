//! A scheduler that does not say that CPUs may come and go: the kernel sends it away at a hotplug, and it comes
//! back. That is noted, unless the test demands that it stays. Under `det`, where no other finding than these can be.

use std::{fs, thread};

use ktstr::prelude::*;
use ktstr_guest::cpu;
use ktstr_proto::{
    Accel,
    run::Job,
    verdict::{Detail, Outcome},
};

use crate::harness::{run, spec};

declare_scheduler!(LEAVING, {
    name = "scx-ktstr-leaving",
    binary = "scx-ktstr",
    topology = (1, 1, 2, 1),
    sched_args = ["--leave-at-hotplug"],
});

/// What the kernel says of the class of BPF schedulers.
fn said(name: &str) -> String {
    let text = fs::read_to_string(format!("/sys/kernel/sched_ext/{name}")).unwrap_or_default();
    text.trim().to_owned()
}

/// Until a scheduler is in charge that has been enabled after `before` others.
fn come_back(before: u64) -> Result<u64> {
    for _ in 0..6000 {
        let times = said("enable_seq").parse().context("how often one was enabled")?;
        if times > before && said("state") == "enabled" {
            return Ok(times);
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("it did not come back: {}", said("state"))
}

#[ktstr_test(scheduler = LEAVING, duration_s = 1, ignore)]
fn sent_away_at_hotplug(_ctx: &Ctx) -> Result<AssertResult> {
    let mut times = come_back(0)?;
    for online in [false, true] {
        cpu::set_online(1, online)?;
        times = come_back(times)?;
    }
    ensure!(times >= 3, "enabled {times} times");
    Ok(AssertResult::pass())
}

#[test]
fn a_scheduler_that_comes_back_after_a_hotplug_is_noted_and_a_demand_to_stay_is_not_met() {
    let report = run(spec("sent_away_at_hotplug", Accel::Det));
    assert_eq!((report.outcome, &report.cause), (Outcome::Pass, &None));
    let notes = |result: &AssertResult| {
        let went =
            |message: &str| message.contains("sent the scheduler away") && message.ends_with("it came back");
        result.details.iter().filter(|detail| went(&detail.message)).count()
    };
    assert_eq!(report.result.as_ref().map(notes), Some(2), "{:?}", report.result);

    let mut demanding = spec("sent_away_at_hotplug", Accel::Det);
    let Job::Test(job) = &mut demanding.job else { panic!("a test is asked for") };
    job.expect.survives_storm = true;
    let report = run(demanding);
    assert_eq!(report.outcome, Outcome::Fail, "{:?}", report.result);
    let mut details = report.result.iter().flat_map(|result| &result.details);
    let unmet = |detail: &Detail| {
        detail.kind == DetailKind::Expectation && detail.message.contains("did not stay attached")
    };
    assert!(details.any(unmet), "{:?}", report.result);
}
