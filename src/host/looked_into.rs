//! What `expect_auto_repro` demands of a report: that the scheduler crashed, that the second run crashed in the same
//! way, and that its probes saw it. Then the test passes, whoever was to blame for the crash; everything else that
//! ran is a failure. It is weighed here because the second run comes after the orchestrator's judgement of the
//! first, which it must not change for other tests.

use ktstr_proto::{
    repro::{AutoRepro, Recurrence, SeenKind},
    verdict::{AssertResult, Cause, DetailKind, Outcome, RunReport},
};

use crate::render::headline;

/// The report with its outcome as the attribute wants it. What never ran stays, an infrastructure that failed, and a
/// run without a crash that proves nothing.
pub(super) fn weighed(mut report: RunReport) -> RunReport {
    let in_doubt = report.outcome == Outcome::Inconclusive && report.auto_repro.is_none();
    if report.infrastructure || report.outcome == Outcome::NotRun || in_doubt {
        return report;
    }
    let missing = match &report.auto_repro {
        Some(repro) => missing(repro),
        None => Some(match report.outcome {
            Outcome::Pass => "the scheduler did not crash".to_owned(),
            _ => "what failed is no crash of the scheduler".to_owned(),
        }),
    };
    match missing {
        Some(missing) => {
            let result = report.result.get_or_insert_with(AssertResult::pass);
            let message = format!("a crash was to be looked into by a second run: {missing}");
            result.push(DetailKind::Expectation, Outcome::Fail, message);
            report.outcome = Outcome::Fail;
            report.cause.get_or_insert(Cause::Assertion);
        }
        None => {
            let how = report.cause.take().map_or_else(String::new, |cause| headline(&cause));
            let seen = report.auto_repro.as_ref().map_or(0, |repro| repro.seen.len());
            let message = format!("looked into as expected, {seen} events up to the exit: {how}");
            report.outcome = Outcome::Pass;
            report.result = Some(AssertResult::expected(message, report.result.take()));
        }
    }
    report
}

/// What the second run lacks.
fn missing(repro: &AutoRepro) -> Option<String> {
    match &repro.recurrence {
        Recurrence::Again(_) => {}
        Recurrence::Otherwise(cause) => {
            return Some(format!("the second run failed in another way: {}", headline(cause)));
        }
        Recurrence::NotAgain => return Some("the crash did not come again in the second run".into()),
        Recurrence::NotRun(why) => return Some(format!("the second run came to no end of its own: {why}")),
    }
    let account = repro.account.as_ref();
    if let Some(why) = account.and_then(|account| account.impossible.as_ref()) {
        return Some(format!("the crash came again, and nothing could be probed: {why}"));
    }
    if !repro.end.as_ref().is_some_and(|end| end.fired) {
        return Some("the crash came again, and the probes' trigger did not fire".into());
    }
    let exit = repro.seen.iter().any(|seen| seen.kind == SeenKind::Exit);
    (!exit).then(|| "the crash came again, and no probe told of the scheduler's exit".into())
}

#[cfg(test)]
mod tests {
    use ktstr_proto::repro::{ProbeAccount, ProbeEnd, Seen};

    use super::*;
    use crate::render::tests::sample;

    fn stall() -> Cause {
        Cause::SchedulerStall { reason: "watchdog".into() }
    }

    fn fired() -> AutoRepro {
        let exit = Seen {
            at_us: 0,
            cpu: 1,
            task: "worker[7]".into(),
            site: "scx_exit".into(),
            kind: SeenKind::Exit,
            args: Vec::new(),
        };
        AutoRepro {
            recurrence: Recurrence::Again(stall()),
            account: Some(ProbeAccount::default()),
            end: Some(ProbeEnd { fired: true, ..ProbeEnd::default() }),
            seen: vec![exit],
            ..AutoRepro::not_run("")
        }
    }

    fn report(outcome: Outcome, cause: Option<Cause>, repro: Option<AutoRepro>) -> RunReport {
        RunReport { outcome, cause, auto_repro: repro.map(Box::new), result: None, ..sample() }
    }

    fn told(report: &RunReport) -> String {
        let last = report.result.as_ref().and_then(|result| result.details.last());
        last.map_or_else(String::new, |detail| detail.message.clone())
    }

    #[test]
    fn a_crash_that_was_looked_into_passes_and_says_what_it_was() {
        for outcome in [Outcome::Fail, Outcome::Inconclusive] {
            let found = AssertResult::fail(DetailKind::Gap, "stuck");
            let first = RunReport { result: Some(found), ..report(outcome, Some(stall()), Some(fired())) };
            let weighed = weighed(first);
            assert_eq!((weighed.outcome, &weighed.cause), (Outcome::Pass, &None));
            let result = weighed.result.expect("a result");
            assert!(!result.is_fail());
            assert_eq!(
                result.details[0].message,
                "looked into as expected, 1 events up to the exit: scheduler stall: watchdog"
            );
            assert_eq!(result.details[1].message, "stuck");
        }
    }

    #[test]
    fn whatever_a_second_run_lacks_is_a_failure_that_says_so() {
        for (repro, lack) in [
            (
                AutoRepro { recurrence: Recurrence::Otherwise(Cause::Cancelled), ..fired() },
                "another way: cancelled",
            ),
            (AutoRepro { recurrence: Recurrence::NotAgain, ..fired() }, "did not come again"),
            (AutoRepro::not_run("no room"), "came to no end of its own: no room"),
            (AutoRepro { end: None, ..fired() }, "trigger did not fire"),
            (AutoRepro { end: Some(ProbeEnd::default()), ..fired() }, "trigger did not fire"),
            (AutoRepro { seen: Vec::new(), ..fired() }, "no probe told of the scheduler's exit"),
            (
                AutoRepro {
                    account: Some(ProbeAccount {
                        impossible: Some("no trigger".into()),
                        ..Default::default()
                    }),
                    ..fired()
                },
                "nothing could be probed: no trigger",
            ),
        ] {
            let weighed = weighed(report(Outcome::Fail, Some(stall()), Some(repro)));
            assert_eq!((weighed.outcome, weighed.cause.clone()), (Outcome::Fail, Some(stall())));
            assert!(told(&weighed).contains(lack), "{lack}: {}", told(&weighed));
        }
    }

    #[test]
    fn without_a_crash_there_is_nothing_to_look_into() {
        let calm = weighed(report(Outcome::Pass, None, None));
        assert_eq!((calm.outcome, calm.cause.clone()), (Outcome::Fail, Some(Cause::Assertion)));
        assert!(told(&calm).contains("the scheduler did not crash"), "{}", told(&calm));
        let otherwise = weighed(report(Outcome::Fail, Some(Cause::Assertion), None));
        assert!(told(&otherwise).contains("no crash of the scheduler"), "{}", told(&otherwise));
    }

    #[test]
    fn what_never_ran_or_proves_nothing_stays_what_it_is() {
        let missing = Some(Cause::Missing { reason: "no emulator".into() });
        let left_out = report(Outcome::NotRun, missing, None);
        assert_eq!(weighed(left_out.clone()), left_out);
        let broken =
            RunReport { infrastructure: true, ..report(Outcome::Fail, Some(Cause::Cancelled), None) };
        assert_eq!(weighed(broken.clone()), broken);
        let starved = report(Outcome::Inconclusive, Some(Cause::Assertion), None);
        assert_eq!(weighed(starved.clone()), starved);
    }
}
