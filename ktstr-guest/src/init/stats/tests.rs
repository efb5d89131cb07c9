//! Schedulers that answer, are silent, lie, talk without end, go and come back.

use std::{
    io::{BufRead, BufReader},
    os::unix::net::UnixListener,
    thread,
};

use super::*;

const LENGTH: Duration = Duration::from_millis(1000);

/// A scheduler's end, and who asks it.
fn pair(snapshots: u32) -> (UnixListener, SchedulerStats, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut stats = SchedulerStats::new(snapshots, LENGTH);
    stats.path = dir.path().join("stats");
    (UnixListener::bind(&stats.path).unwrap(), stats, dir)
}

/// Turns at this time until there are answers; what others write may take a moment.
fn answers(stats: &mut SchedulerStats, now_ms: u64) -> Vec<Answer> {
    for _ in 0..10_000 {
        let answers = stats.turn(now_ms, || true);
        if !answers.is_empty() {
            return answers;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("no answer comes");
}

/// Asks at time 0 and lets the scheduler say `said`.
fn told(said: &[u8]) -> Stats {
    let (listener, mut stats, _dir) = pair(0);
    stats.ask(StatsOf::Question(3));
    assert_eq!(stats.due_in(7), Some(0));
    assert!(stats.turn(0, || true).is_empty());
    let (mut stream, _) = listener.accept().unwrap();
    let mut question = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut question).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&question).unwrap()["req"], "stats");
    // Who asks may have heard enough before all is said.
    let said = said.to_vec();
    let talker = thread::spawn(move || drop(stream.write_all(&said)));
    let [(StatsOf::Question(3), stats)] = <[Answer; 1]>::try_from(answers(&mut stats, 1)).unwrap() else {
        panic!("an answer for somebody else")
    };
    talker.join().unwrap();
    stats
}

#[test]
fn what_the_scheduler_says_is_passed_on_and_what_is_no_statistics_says_why() {
    assert_eq!(told(b"{\"errno\":0,\"args\":{\"resp\":{\"n\":1}}}\n"), Ok("{\"n\":1}".into()));
    let error = told(b"{\"errno\":22,\"args\":{\"resp\":\"unknown target\"}}\n");
    assert_eq!(error, Err(MissingStatsReason::SchedulerError { errno: 22, args: "unknown target".into() }));
    for no_statistics in ["{}", "[", "{\"errno\":0,\"args\":{}}", "null", "\u{0}"] {
        let said = told(format!("{no_statistics}\n").as_bytes());
        assert!(matches!(said, Err(MissingStatsReason::MissingResp { .. })), "{no_statistics}: {said:?}");
    }
    // Deeper than anybody needs, longer than there is room for, cut short.
    let deep = format!("{{\"errno\":0,\"args\":{{\"resp\":{}}}}}\n", "[".repeat(100_000));
    assert!(matches!(told(deep.as_bytes()), Err(MissingStatsReason::MissingResp { .. })));
    let long = format!("{{\"errno\":0,\"args\":{{\"resp\":\"{}\"}}}}\n", "x".repeat(MAX_STATS));
    assert_eq!(told(long.as_bytes()), Err(MissingStatsReason::TooLarge { limit: MAX_STATS }));
    assert_eq!(told(&vec![b'x'; 2 * MAX_STATS]), Err(MissingStatsReason::TooLarge { limit: MAX_STATS }));
    assert_eq!(told(b"{\"errno\":0,"), Err(MissingStatsReason::Cancelled));
    let words = format!("{{\"errno\":5,\"args\":{{\"resp\":\"{}\"}}}}\n", "ä".repeat(1000));
    let Err(MissingStatsReason::SchedulerError { args, .. }) = told(words.as_bytes()) else { panic!() };
    assert!(args.len() <= MAX_WORDS && args.starts_with('ä'));
}

#[test]
fn nobody_is_asked_where_nobody_schedules_or_listens() {
    let (listener, mut stats, _dir) = pair(0);
    stats.ask(StatsOf::Question(1));
    assert_eq!(stats.turn(0, || false), [(StatsOf::Question(1), Err(MissingStatsReason::NoScheduler))]);
    drop(listener);
    stats.ask(StatsOf::Question(2));
    let [(_, Err(MissingStatsReason::NoSocket { why }))] = &stats.turn(0, || true)[..] else { panic!() };
    assert!(why.contains("refused"), "{why}");
    stats.path = "/nowhere/stats".into();
    stats.ask(StatsOf::Question(3));
    assert!(matches!(stats.turn(0, || true)[..], [(_, Err(MissingStatsReason::NoSocket { .. }))]));
    assert_eq!(stats.due_in(0), None);
}

#[test]
fn a_silent_scheduler_is_waited_for_no_longer_and_its_late_answer_is_not_the_next_one() {
    let (listener, mut stats, _dir) = pair(0);
    stats.ask(StatsOf::Question(1));
    assert!(stats.turn(10, || true).is_empty());
    assert_eq!(stats.due_in(10), Some(ANSWER_LIMIT_MS));
    let (mut first, _) = listener.accept().unwrap();
    let late = MissingStatsReason::Late { limit_ms: ANSWER_LIMIT_MS };
    assert_eq!(stats.turn(10 + ANSWER_LIMIT_MS, || true), [(StatsOf::Question(1), Err(late))]);
    let _ = first.write_all(b"{\"errno\":0,\"args\":{\"resp\":1}}\n");
    stats.ask(StatsOf::Question(2));
    assert!(stats.turn(600, || true).is_empty());
    let (mut second, _) = listener.accept().unwrap();
    second.write_all(b"{\"errno\":0,\"args\":{\"resp\":2}}\n").unwrap();
    assert_eq!(answers(&mut stats, 601), [(StatsOf::Question(2), Ok("2".into()))]);
}

#[test]
fn a_scheduler_that_accepts_nobody_is_no_obstacle() {
    let (listener, mut stats, _dir) = pair(0);
    // The queue of those who wait is full at some point; nobody may wait there.
    let mut full = Vec::new();
    while let Ok(stream) = connected(&stats.path) {
        full.push(stream);
        assert!(full.len() < 100_000, "there is no end to it");
    }
    stats.ask(StatsOf::Question(1));
    assert!(matches!(stats.turn(0, || true)[..], [(_, Err(MissingStatsReason::NoSocket { .. }))]));
    drop(listener);
}

#[test]
fn snapshots_are_asked_for_when_they_are_due_over_one_connection() {
    let (listener, mut stats, _dir) = pair(2);
    stats.scenario_began(5000);
    stats.scenario_began(5001);
    let scheduler = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let questions = BufReader::new(stream.try_clone().unwrap()).lines();
        let answer = |nth| format!("{{\"errno\":0,\"args\":{{\"resp\":{nth}}}}}\n");
        questions
            .take(3)
            .enumerate()
            .map(|(nth, _)| stream.write_all(answer(nth).as_bytes()).unwrap())
            .count()
    });
    // The first question is nobody's; with it the scheduler begins to count.
    while stats.turn(5001, || true).is_empty() && stats.due_in(5001) != Some(365) {
        thread::sleep(Duration::from_millis(1));
    }
    let due = [boundary(0, 2, LENGTH), boundary(1, 2, LENGTH)].map(|at| 5000 + at.as_millis() as u64);
    assert_eq!(due, [5366, 5633]);
    assert_eq!(answers(&mut stats, due[0]), [(StatsOf::Snapshot(0), Ok("1".into()))]);
    assert!(stats.turn(due[1] - 1, || true).is_empty());
    assert_eq!(answers(&mut stats, due[1]), [(StatsOf::Snapshot(1), Ok("2".into()))]);
    assert_eq!(stats.due_in(6000), None);
    drop(stats);
    assert_eq!(scheduler.join().unwrap(), 3);
}

#[test]
fn who_goes_is_asked_anew_when_somebody_listens_again() {
    let (listener, mut stats, _dir) = pair(0);
    let answer = b"{\"errno\":0,\"args\":{\"resp\":0}}\n";
    for id in 0..2 {
        stats.ask(StatsOf::Question(id));
        assert!(stats.turn(0, || true).is_empty());
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(answer).unwrap();
        assert_eq!(answers(&mut stats, 0), [(StatsOf::Question(id), Ok("0".into()))]);
        drop(stream);
        while stats.fd().is_some() {
            assert!(stats.turn(0, || true).is_empty());
        }
    }
}

#[test]
fn all_answers_together_have_a_limit() {
    let (listener, mut stats, _dir) = pair(0);
    stats.room = 10;
    for (id, said, expected) in [
        (0, "\"1234567\"", Ok("\"1234567\"".to_owned())),
        (1, "12", Err(MissingStatsReason::TooLarge { limit: 1 })),
    ] {
        stats.ask(StatsOf::Question(id));
        assert!(stats.turn(0, || true).is_empty());
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(format!("{{\"errno\":0,\"args\":{{\"resp\":{said}}}}}\n").as_bytes()).unwrap();
        assert_eq!(answers(&mut stats, 0), [(StatsOf::Question(id), expected)]);
        stats.connection = None;
    }
}
