//! What a test expects of its own end: a failure that must come, with the error it must come with, and a
//! scheduler that must stay.
//!
//! An infrastructure failure is never what was expected, and what was not run or stayed inconclusive
//! stays so.

use ktstr_proto::{
    run::Expectation,
    verdict::{AssertResult, Cause, DetailKind, Outcome},
};

use super::Judgement;

/// Weighs a judgement against what was expected. `said` is everything in which the scheduler's error can
/// stand, `detached` whether the scheduler was gone before the end.
pub fn apply(judgement: &mut Judgement, expect: &Expectation, said: &str, detached: bool) {
    if judgement.infrastructure {
        return;
    }
    // Doubt about what the workers showed is none about the scheduler; a scheduler whose end is the host's doing is
    // the cause itself.
    let in_doubt = judgement.outcome == Outcome::Inconclusive && judgement.cause == Some(Cause::Assertion);
    if expect.survives_storm && detached && (judgement.outcome == Outcome::Pass || in_doubt) {
        fail(judgement, "the scheduler did not stay attached all the time, which the test demands");
    }
    if !expect.err {
        return;
    }
    match judgement.outcome {
        Outcome::Pass => fail(judgement, "the run was expected to fail and passed"),
        Outcome::Fail => match own_fault(judgement, expect).or_else(|| missing(expect, said)) {
            Some(missing) => fail(judgement, &format!("it failed, but not as expected: {missing}")),
            None => {
                let how = judgement.cause.take().map_or_else(|| "a check failed".into(), |c| words(&c));
                let message = format!("failed as expected: {how}");
                judgement.outcome = Outcome::Pass;
                judgement.result = Some(AssertResult::expected(message, judgement.result.take()));
            }
        },
        Outcome::Inconclusive | Outcome::NotRun => {}
    }
}

fn fail(judgement: &mut Judgement, message: &str) {
    judgement.outcome = Outcome::Fail;
    judgement.cause.get_or_insert(Cause::Assertion);
    let result = judgement.result.get_or_insert_with(AssertResult::pass);
    result.push(DetailKind::Expectation, Outcome::Fail, message);
}

/// A failure of the test itself, or of the whole kernel, or of a scheduler that never scheduled: that says
/// nothing of what the test was to provoke, unless the very words of it are expected.
fn own_fault(judgement: &Judgement, expect: &Expectation) -> Option<String> {
    let by_its_words = expect.error_contains.is_some() || expect.error_matches.is_some();
    let error = judgement.result.iter().flat_map(|result| &result.details);
    match &judgement.cause {
        Some(cause @ (Cause::TestPanic { .. } | Cause::TestDied { .. })) => Some(words(cause)),
        Some(Cause::SchedulerNotAttached { reason }) if !by_its_words => Some(format!(
            "the scheduler was never in charge: {reason}; if that is what is expected, say with which words"
        )),
        Some(Cause::KernelPanic { message }) if !by_its_words => {
            Some(format!("the kernel panicked: {message}; if that is what is expected, say with which words"))
        }
        Some(Cause::Deadline { .. }) => Some("it did not come to its end in time".into()),
        Some(Cause::Assertion) => error
            .into_iter()
            .find(|detail| detail.kind == DetailKind::Error)
            .map(|detail| detail.message.clone()),
        _ => None,
    }
}

/// What the error lacks of what was expected of it.
fn missing(expect: &Expectation, said: &str) -> Option<String> {
    if let Some(words) = &expect.error_contains
        && !said.contains(words.as_str())
    {
        return Some(format!("neither the kernel nor the scheduler said `{words}`"));
    }
    let pattern = expect.error_matches.as_ref()?;
    match regex_lite::Regex::new(pattern) {
        Ok(regex) if regex.is_match(said) => None,
        Ok(_) => Some(format!("nothing the kernel or the scheduler said matches `{pattern}`")),
        Err(error) => Some(format!("`{pattern}` is no regular expression: {error}")),
    }
}

fn words(cause: &Cause) -> String {
    match cause {
        Cause::SchedulerStall { reason }
        | Cause::SchedulerError { reason }
        | Cause::SchedulerNotAttached { reason } => reason.clone(),
        Cause::SchedulerDied { how } => format!("the scheduler process {how}"),
        Cause::TestDied { how } => format!("the test process {how} without a result"),
        Cause::TestPanic { message, .. } => format!("the test panicked: {message}"),
        Cause::KernelPanic { message } => message.clone(),
        Cause::Assertion => "a check failed".into(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(outcome: Outcome, cause: Option<Cause>, infrastructure: bool) -> Judgement {
        Judgement { outcome, infrastructure, cause, result: None, exit_status: None }
    }

    fn after(mut judgement: Judgement, expect: Expectation, said: &str) -> (Outcome, String) {
        apply(&mut judgement, &expect, said, false);
        let details = judgement.result.map(|result| result.details).unwrap_or_default();
        (judgement.outcome, details.first().map(|d| d.message.clone()).unwrap_or_default())
    }

    fn failing(contains: Option<&str>, matches: Option<&str>) -> Expectation {
        let own = |text: Option<&str>| text.map(Into::into);
        let (error_contains, error_matches) = (own(contains), own(matches));
        Expectation { err: true, error_contains, error_matches, survives_storm: false }
    }

    #[test]
    fn an_expected_failure_passes_and_an_unexpected_pass_fails() {
        let stall = Cause::SchedulerStall { reason: "runnable task stall".into() };
        let stalled = || judged(Outcome::Fail, Some(stall.clone()), false);
        assert_eq!(
            after(stalled(), failing(Some("stall"), Some("task [a-z]+")), "runnable task stall"),
            (Outcome::Pass, "failed as expected: runnable task stall".into())
        );
        let (outcome, message) = after(stalled(), failing(Some("oops"), None), "runnable task stall");
        assert!(outcome == Outcome::Fail && message.contains("not as expected"), "{message}");
        let (outcome, message) = after(stalled(), failing(None, Some("^oops$")), "runnable task stall");
        assert!(outcome == Outcome::Fail && message.contains("matches `^oops$`"), "{message}");
        let (outcome, message) = after(judged(Outcome::Pass, None, false), failing(None, None), "");
        assert!(outcome == Outcome::Fail && message.contains("was expected to fail"), "{message}");
    }

    #[test]
    fn infrastructure_and_doubt_are_no_expected_failure() {
        let died = judged(Outcome::Fail, Some(Cause::Cancelled), true);
        assert_eq!(after(died, failing(None, None), "").0, Outcome::Fail);
        let unclear = judged(Outcome::Inconclusive, None, false);
        assert_eq!(after(unclear, failing(None, None), "").0, Outcome::Inconclusive);
    }

    #[test]
    fn a_failure_of_the_test_itself_is_not_what_was_expected() {
        let panic = Cause::TestPanic { message: "index out of bounds".into(), backtrace: String::new() };
        let late = Cause::Deadline { phase: "TestStarted".into(), waited_ms: 9 };
        for cause in [panic, late] {
            let (outcome, message) =
                after(judged(Outcome::Fail, Some(cause), false), failing(None, None), "");
            assert!(outcome == Outcome::Fail && message.contains("not as expected"), "{message}");
        }
        let found = |kind| Judgement {
            result: Some(AssertResult::fail(kind, "there is no cgroup `cg_9`")),
            ..judged(Outcome::Fail, Some(Cause::Assertion), false)
        };
        let apply_to = |mut judgement: Judgement| {
            apply(&mut judgement, &failing(None, None), "", false);
            judgement.outcome
        };
        assert_eq!(apply_to(found(DetailKind::Error)), Outcome::Fail);
        assert_eq!(apply_to(found(DetailKind::Gap)), Outcome::Pass);
    }

    #[test]
    fn a_scheduler_that_never_attached_is_expected_by_its_words_only() {
        let reason = "the verifier refused it".to_owned();
        for cause in [
            Cause::SchedulerNotAttached { reason: reason.clone() },
            Cause::KernelPanic { message: reason.clone() },
        ] {
            let failed = || judged(Outcome::Fail, Some(cause.clone()), false);
            let (outcome, message) = after(failed(), failing(None, None), &reason);
            assert!(outcome == Outcome::Fail && message.contains("the verifier refused it"), "{message}");
            assert_eq!(after(failed(), failing(Some("refused"), None), &reason).0, Outcome::Pass);
            assert_eq!(after(failed(), failing(Some("stall"), None), &reason).0, Outcome::Fail);
        }
    }

    #[test]
    fn a_scheduler_that_must_stay_must_stay() {
        let mut judgement = judged(Outcome::Pass, None, false);
        let expect = Expectation { survives_storm: true, ..Expectation::default() };
        apply(&mut judgement, &expect, "", false);
        assert_eq!(judgement.outcome, Outcome::Pass);
        apply(&mut judgement, &expect, "", true);
        assert_eq!((judgement.outcome, judgement.cause), (Outcome::Fail, Some(Cause::Assertion)));
        let weighed = |cause: Cause| {
            let mut judgement = judged(Outcome::Inconclusive, Some(cause), false);
            apply(&mut judgement, &expect, "", true);
            judgement.outcome
        };
        assert_eq!(weighed(Cause::Assertion), Outcome::Fail, "a doubtful gap excuses no scheduler that went");
        let by_host = Cause::SchedulerStall { reason: "runnable task stall".into() };
        assert_eq!(weighed(by_host), Outcome::Inconclusive);
    }
}
