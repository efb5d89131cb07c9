//! What becomes of a scenario that cannot be carried out to its end, and where workers count as having been.

use std::{io::Read, os::unix::net::UnixStream};

use ktstr_proto::guest::{GuestFrame, HostRefusal, HostReply};

use super::*;
use crate::report::{self, Inbox, Reporter};

/// A PID 1 behind which no host can do anything.
fn without_host() -> Reporter {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let (mut inbox, mut piece) = (Inbox::default(), [0; 4096]);
        while let Ok(length @ 1..) = theirs.read(&mut piece) {
            inbox.push(&piece[..length]);
            while let Ok(Some(frame)) = inbox.next_frame() {
                if let GuestFrame::AskHost { .. } = frame {
                    let refusal = HostRefusal { not_here: true, reason: "nobody looks".into() };
                    let answer = report::answer(&HostReply::Err(refusal)).unwrap();
                    std::io::Write::write_all(&mut theirs, &answer).unwrap();
                }
            }
        }
    });
    Reporter::new(ours)
}

#[test]
fn what_failed_before_the_rest_cannot_be_carried_out_has_failed() {
    const SHELL: Payload = Payload::binary("shell", "sh").with_default_args(&["-c"]);
    let with_status = |status: &str| {
        let mut ctx = Ctx::on_host("t", Duration::from_millis(20), 1).unwrap();
        ctx.reporter = without_host();
        let placement = crate::scenario::Placement::RunnerCgroup;
        let run = Op::RunPayload { payload: SHELL, args: vec![format!("exit {status}")], placement };
        let steps = vec![
            Step::new(vec![run, Op::wait_payload("shell")], HoldSpec::frac(0.5)),
            // Who begins with the step that is cut short has no time to show anything.
            Step::new(
                vec![Op::spawn_host(Default::default()), Op::read_map("t", ".bss", "x")],
                HoldSpec::frac(0.5),
            ),
        ];
        let result = run_it(&ctx, steps);
        assert!(result.details.iter().any(|detail| detail.message.contains("nobody looks")), "{result:?}");
        (result, ctx.not_here("something else".into()))
    };
    let (sound, test) = with_status("0");
    assert!(sound.is_skip() && test.is_skip(), "{sound:?}");
    let (failed, test) = with_status("3");
    let said: Vec<&str> = failed.failure_details().collect();
    assert!(failed.is_fail() && said.len() == 1 && said[0].contains("exit status: 3"), "{failed:?}");
    assert!(test.is_fail() && test.failure_details().eq(said), "{test:?}");
}

fn run_it(ctx: &Ctx, steps: Vec<Step>) -> AssertResult {
    run(ctx, Backdrop::new(), steps, &ctx.assert).unwrap()
}

#[test]
fn a_cpu_counts_by_what_was_allowed_when_the_worker_was_there() {
    let set = |cpus: &[u32]| cpus.iter().copied().collect::<BTreeSet<u32>>();
    let (wide, narrow) = (set(&[0, 1, 2]), set(&[1]));
    let moved = [Some(&wide), Some(&narrow)];
    assert_eq!(places(&moved, &[vec![0, 2], vec![1]]), (vec![0, 1, 2], vec![]));
    assert_eq!(places(&moved, &[vec![0], vec![1, 2]]), (vec![0, 1, 2], vec![2]));
    // Unrestricted for a while: that says nothing about the time before and after.
    assert_eq!(places(&[Some(&narrow), None], &[vec![1], vec![0, 3]]), (vec![], vec![]));
    assert_eq!(places(&[None, Some(&narrow)], &[vec![3], vec![3]]), (vec![], vec![3]));
}
