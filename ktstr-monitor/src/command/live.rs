//! Questions to a live run, through its orchestrator.

use std::collections::BTreeSet;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use ktstr_proto::capture::{DOOR_PREFIX, Query, Question, SetNumber, TakeCapture, door_name};
use ktstr_proto::client::ClientLink;
use ktstr_proto::{Channel, Fds, RunId};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

/// How long an answer may take: others may have asked before, and a core file takes its time.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// No run that answers to the name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoRun(String);

/// Asks and prints the answer.
pub fn query(run: Option<&str>, question: Question, freeze: bool, json: bool) -> Result<()> {
    let mut channel = connect(&find(run)?)?;
    let call = Query { run: None, question, freeze };
    let (answer, _) = channel.call(call, Fds::default(), PATIENCE, |_, _| ())?;
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
    let mut channel = connect(&find(run)?)?;
    let wanted = SetNumber { run: None, map: map.to_owned(), path: path.to_owned(), value };
    let (set, _) = channel.call(wanted, Fds::default(), PATIENCE, |_, _| ())?;
    super::say(set.what)?;
    eprintln!("the guest stood for {} us", set.stood_us);
    Ok(())
}

/// Has a capture taken and prints where it is.
pub fn capture(run: Option<&str>, vmcore: bool, json: bool) -> Result<()> {
    let mut channel = connect(&find(run)?)?;
    let (taken, _) = channel.call(TakeCapture { run: None, vmcore }, Fds::default(), PATIENCE, |_, _| ())?;
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
    use super::*;

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
