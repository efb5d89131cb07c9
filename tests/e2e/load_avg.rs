//! Average load of classes other than fair: a CPU that a FIFO task keeps is told from one that has none.

use ktstr::prelude::*;
use ktstr_proto::Accel;
use serde_json::Value;

use crate::harness::{Live, PATIENCE, end_machine, reached, spec, wait_for};
use crate::observe::{ask, at, int};

/// What `util_avg` comes to on a CPU that is always busy, about (`SCHED_CAPACITY_SCALE`).
const ALWAYS: i64 = 1024;

/// CPU 1 belongs to one FIFO task; the machine ends when it is told to.
#[ktstr_test(llcs = 1, cores = 2, threads = 1, duration_s = 600, ignore)]
fn one_cpu_is_kept(ctx: &Ctx) -> Result<AssertResult> {
    let keeper = CgroupDef::named("keeper")
        .workers(1)
        .sched_policy(SchedPolicy::Fifo(1))
        .affinity(AffinityIntent::exact([1]));
    execute_defs(ctx, vec![keeper])
}

/// Of both CPUs in a capture's text: `util_avg` of the classes as they stand behind their names.
fn in_text(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.trim_start().strip_prefix("util_avg of 1024: ")).collect()
}

fn shows_who_is_kept_busy(kernel: Option<&str>) {
    let root = tempfile::tempdir().unwrap();
    let mut spec = spec("one_cpu_is_kept", Accel::Tcg);
    spec.kernel = kernel.map(str::to_owned).or(spec.kernel);
    let live = Live::start(spec, root.path());
    let run = live.dir.to_str().unwrap().to_owned();
    assert!(reached(&live.dir, "ScenarioStarted"), "the scenario begins");
    let util = |of: &str| -> Vec<i64> {
        let answer = ask(&["query", &run, &format!("rq[*].{of}.util_avg"), "--json"]);
        println!("{of}: {answer}");
        let cpus = answer.as_array().expect("one per CPU").clone();
        cpus.iter().map(|util| util.as_i64().expect("a number")).collect()
    };
    // It approaches the whole with a half-life of 32 ms of the guest's time, however long that takes here.
    wait_for("a CPU that real-time tasks keep", PATIENCE, || {
        let of_rt = util("avg_rt");
        assert!(of_rt.iter().all(|util| *util <= ALWAYS * 9 / 8), "{of_rt:?}");
        (of_rt[1] > ALWAYS * 3 / 4 && of_rt[0] * 2 < of_rt[1]).then_some(())
    });

    let path = at(&ask(&["capture", &run, "--json"]), "/path").as_str().unwrap().to_owned();
    let capture: Value = serde_json::from_slice(&std::fs::read(format!("{path}.json")).unwrap()).unwrap();
    let text = std::fs::read_to_string(format!("{path}.txt")).unwrap();
    let shown = in_text(&text);
    println!("{shown:#?}");
    assert_eq!(shown.len(), 2);
    for (rq, line) in at(&capture, "/rq").as_array().unwrap().iter().zip(shown) {
        for avg in ["/avg_rt", "/avg_dl", "/cfs/avg"] {
            for member in ["last_update_time", "load_avg", "runnable_avg", "util_avg"] {
                assert!(int(rq, &format!("{avg}/{member}")) >= 0, "{avg}/{member}");
            }
        }
        let told = ["cfs/avg", "avg_rt", "avg_dl"].map(|avg| int(rq, &format!("/{avg}/util_avg")));
        let [cfs, rt, dl] = told;
        assert!(line.starts_with(&format!("cfs {cfs}, rt {rt}, dl {dl}, irq ")), "{line}");
        // Nothing tells this machine's kernel of heat, and it has no such member.
        assert!(
            at(rq, "/avg_hw/util_avg")["absent"].as_str().is_some_and(|why| why.contains("avg_hw")),
            "{rq}"
        );
        // A number, or the word that this kernel does not account interrupts.
        let irq = at(rq, "/avg_irq/util_avg");
        assert!(irq.is_i64() || irq["absent"].is_string(), "{irq}");
    }
    end_machine(live);
}

#[test]
fn a_cpu_that_a_fifo_task_keeps_is_told_by_its_average() {
    shows_who_is_kept_busy(None);
}

#[test]
fn a_cpu_that_a_fifo_task_keeps_is_told_by_its_average_on_an_older_series() {
    shows_who_is_kept_busy(Some("6.16"));
}
