//! Questions to a live run, through its orchestrator.

use std::collections::BTreeSet;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ktstr_proto::capture::{DOOR_PREFIX, Query, Question, SetNumber, TakeCapture, door_name};
use ktstr_proto::channel::ChannelError;
use ktstr_proto::client::ClientLink;
use ktstr_proto::link::ErrorCode;
use ktstr_proto::{Call, Channel, Fds, RunId};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

/// How long an answer may take: others may have asked before, and a core file takes its time.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// How long a run that cannot be asked yet is waited for: it may be queued behind others, its guest has to boot.
const YET_LIMIT: Duration = Duration::from_secs(300);
/// Between two questions to a run that cannot be asked yet.
const AGAIN: Duration = Duration::from_millis(100);

/// No run that answers to the name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoRun(String);

/// Why a run that could not be asked yet was waited for in vain.
#[derive(Debug, thiserror::Error)]
enum Unasked {
    #[error("gave up after {} s: {why}", .limit.as_secs())]
    GaveUp { limit: Duration, why: String },
    #[error("the run ended before it could be asked; last it was: {why}")]
    Ended { why: String },
}

/// Asks; a run that cannot be asked yet is waited for, and what for is said once each.
fn ask<C: Call<Link = ClientLink> + Clone>(
    channel: &mut Channel<ClientLink>,
    what: &C,
    limit: Duration,
    mut waits_for: impl FnMut(&str),
) -> Result<C::Reply> {
    let began = Instant::now();
    let mut awaited: Option<String> = None;
    loop {
        match (channel.call(what.clone(), Fds::default(), PATIENCE, |_, _| ()), awaited.take()) {
            (Err(ChannelError::Refused { source, .. }), before) if source.code == ErrorCode::NotYet => {
                let why = source.message;
                if began.elapsed() >= limit {
                    return Err(Unasked::GaveUp { limit, why }.into());
                }
                if before.as_ref() != Some(&why) {
                    waits_for(&why);
                }
                awaited = Some(why);
                thread::sleep(AGAIN);
            }
            (Err(ChannelError::Closed { .. }), Some(why)) => return Err(Unasked::Ended { why }.into()),
            (answer, _) => return Ok(answer?.0),
        }
    }
}

/// Asks a run for as long as a user may be made to wait, who is told.
fn ask_run<C: Call<Link = ClientLink> + Clone>(run: Option<&str>, what: &C) -> Result<C::Reply> {
    let mut channel = connect(&find(run)?)?;
    ask(&mut channel, what, YET_LIMIT, |why| eprintln!("waiting: {why}"))
}

/// Asks and prints the answer.
pub fn query(run: Option<&str>, question: Question, freeze: bool, json: bool) -> Result<()> {
    let answer = ask_run(run, &Query { run: None, question, freeze })?;
    if json {
        super::say(answer.json)?;
    } else {
        super::say(answer.text.trim_start_matches('\n'))?;
        let stood = answer.stood_us.map_or(String::new(), |us| format!(", the guest stood for {us} us"));
        eprintln!("read in {} us{stood}", answer.read_us);
    }
    Ok(())
}

/// Sets a number in a BPF map and prints where it was.
pub fn write(run: Option<&str>, map: &str, path: &str, value: i64) -> Result<()> {
    let wanted = SetNumber { run: None, map: map.to_owned(), path: path.to_owned(), value };
    let set = ask_run(run, &wanted)?;
    super::say(set.what)?;
    eprintln!("the guest stood for {} us", set.stood_us);
    Ok(())
}

/// Has a capture taken and prints where it is.
pub fn capture(run: Option<&str>, vmcore: bool, json: bool) -> Result<()> {
    let taken = ask_run(run, &TakeCapture { run: None, vmcore })?;
    if json {
        super::say(serde_json::to_string(&taken)?)?;
        return Ok(());
    }
    super::say(taken.path.display())?;
    eprintln!(
        "{} tasks, {} DSQs, {} bytes copied, {} bytes of core file; copied in {} us, the guest stood for {} us",
        taken.read.tasks,
        taken.read.dsqs,
        taken.read.copied_bytes,
        taken.read.vmcore_bytes,
        taken.read.read_us,
        taken.stood_us
    );
    if let Some(why) = &taken.read.no_registers {
        eprintln!("the core file has no registers: {why}");
    }
    Ok(())
}

/// The orchestrator of a run, which may be asked.
pub fn connect(run: &RunId) -> Result<Channel<ClientLink>> {
    let address = SocketAddr::from_abstract_name(door_name(run))?;
    let socket = UnixStream::connect_addr(&address)
        .map_err(|e| NoRun(format!("the run {run} cannot be reached, it may be over: {e}")))?;
    // Names of this kind have no owner: anybody may have taken this one.
    let peer = getsockopt(&socket, PeerCredentials).context("cannot ask who serves the run")?;
    if peer.uid() != geteuid().as_raw() {
        return Err(NoRun(format!("the run {run} is one of another user")).into());
    }
    let mut channel = Channel::new(socket, "the orchestrator")?;
    channel.handshake("ktstr-monitor", PATIENCE)?;
    Ok(channel)
}

/// The live run that is meant: by its directory, or by a part of its id.
pub fn find(run: Option<&str>) -> Result<RunId> {
    if let Some(dir) = run.map(Path::new).filter(|dir| dir.is_dir()) {
        let dir = dir.canonicalize().with_context(|| format!("cannot open {}", dir.display()))?;
        return Ok(RunId(dir.file_name().unwrap_or_default().to_string_lossy().into_owned()));
    }
    if let Some(file) = run.filter(|run| Path::new(run).is_file()) {
        let how = "a core file is asked by query --core FILE --kernel VMLINUX";
        return Err(NoRun(format!("{file} is a file, not the directory of a live run; {how}")).into());
    }
    let sockets = std::fs::read_to_string("/proc/net/unix").context("cannot list sockets")?;
    let live: BTreeSet<&str> = listening(&sockets).collect();
    let mut meant: Vec<_> = live.into_iter().filter(|id| run.is_none_or(|run| id.contains(run))).collect();
    match (meant.len(), run) {
        (1, _) => Ok(RunId(meant.remove(0).to_owned())),
        (0, None) => Err(NoRun("no run is live".into()).into()),
        (0, Some(run)) => {
            Err(NoRun(format!("no live run has `{run}` in its name, and it is no directory")).into())
        }
        (_, _) => Err(NoRun(format!("several runs are live, name one: {}", meant.join(", "))).into()),
    }
}

/// Ids of runs from the lines of `/proc/net/unix`.
fn listening(sockets: &str) -> impl Iterator<Item = &str> {
    let names = sockets.lines().filter_map(|line| line.split_whitespace().nth(7));
    names.filter_map(|name| name.strip_prefix('@')?.strip_prefix(DOOR_PREFIX))
}

#[cfg(test)]
mod tests {
    use ktstr_proto::capture::QueryAnswer;
    use ktstr_proto::channel::Message;
    use ktstr_proto::client::ClientReply;
    use ktstr_proto::link::RemoteError;

    use super::*;

    type Replies = Vec<Result<ClientReply, RemoteError>>;

    /// A question to an orchestrator that replies with these, one after the other, and then closes; what was waited
    /// for.
    fn asked(replies: Replies, limit: Duration) -> (Result<QueryAnswer>, Vec<String>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = thread::spawn(move || {
            let mut channel = Channel::<ClientLink>::new(theirs, "the asker").unwrap();
            for reply in replies {
                let (Message::Request(frame), _) = channel.receive(PATIENCE).unwrap() else {
                    panic!("a request")
                };
                channel.queue_reply(frame.id, reply, Fds::default()).unwrap();
                channel.drain(PATIENCE).unwrap();
            }
        });
        let mut channel = Channel::new(ours, "the orchestrator").unwrap();
        let mut waited_for = Vec::new();
        let question = Query { run: None, question: Question::Tasks, freeze: false };
        let answer = ask(&mut channel, &question, limit, |why| waited_for.push(why.to_owned()));
        // A peer whose replies are not all asked for sees us go.
        drop(channel);
        peer.join().unwrap();
        (answer, waited_for)
    }

    fn refusal(code: ErrorCode, why: &str) -> Result<ClientReply, RemoteError> {
        Err(RemoteError { code, message: why.into() })
    }

    #[test]
    fn who_asks_too_early_waits_and_says_what_for() {
        let not_yet = |why| refusal(ErrorCode::NotYet, why);
        let answer = QueryAnswer { json: "7".into(), text: "seven".into(), read_us: 1, stood_us: None };
        let replies = vec![
            not_yet("boots"),
            not_yet("boots"),
            not_yet("reads"),
            Ok(ClientReply::Query(answer.clone())),
        ];
        let (found, waited_for) = asked(replies, PATIENCE);
        assert_eq!((found.unwrap(), waited_for), (answer, vec!["boots".to_owned(), "reads".to_owned()]));

        let (gave_up, waited_for) = asked(vec![not_yet("reads")], Duration::ZERO);
        assert_eq!(gave_up.unwrap_err().to_string(), "gave up after 0 s: reads");
        assert!(waited_for.is_empty());

        let (ended, _) = asked(vec![not_yet("boots"), not_yet("reads")], PATIENCE);
        assert_eq!(
            ended.unwrap_err().to_string(),
            "the run ended before it could be asked; last it was: reads"
        );
    }

    #[test]
    fn other_refusals_are_not_asked_again() {
        let (refused, waited_for) = asked(vec![refusal(ErrorCode::Unavailable, "nobody observes")], PATIENCE);
        assert!(format!("{:#}", refused.unwrap_err()).ends_with("nobody observes"));
        assert!(waited_for.is_empty());
    }

    #[test]
    fn live_runs_are_found_among_the_sockets() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 55 /run/dbus
0000000000000000: 00000002 00000000 00010000 0001 01 56
0000000000000000: 00000002 00000000 00010000 0001 01 57 @ktstr-run/demo-1
0000000000000000: 00000002 00000000 00010000 0001 01 58 @other/demo-2
";
        assert_eq!(listening(sockets).collect::<Vec<_>>(), ["demo-1"]);
    }
}
