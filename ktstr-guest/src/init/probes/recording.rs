//! What the probes recorded, read once the scheduler is gone.
//!
//! The kernel's text is read from its beginning, since the events of a task that was stalled are the oldest;
//! the last of all events and the last of that task's are kept. A line that is no event is passed over.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    io::{BufRead, BufReader},
};

use ktstr_proto::{
    guest::GuestFrame,
    repro::{EVENTS_PER_FRAME, MAX_EVENT_TEXT, ProbeEnd, ProbeEvent, blamed},
    ring::RingError,
};

use super::{Probes, event_name};
use crate::init::{clock, outbox::Outbox};

/// The last of all events.
const LAST: usize = 800;
/// The last that concern the task.
const LAST_OF_TASK: usize = 1200;
/// How long reading may take, milliseconds of guest time.
const LIMIT_MS: u64 = 20_000;

impl Probes {
    /// Ends the recording and sends what there is; `reason` is the kernel's for the scheduler's end.
    pub fn hand_in(&self, out: &mut Outbox, reason: Option<&str>) -> Result<(), RingError> {
        if self.account().impossible.is_some() {
            return Ok(());
        }
        let on = fs::read_to_string(self.root.join("tracing_on")).unwrap_or_default();
        let mut end = ProbeEnd { fired: on.trim() == "0", ..ProbeEnd::default() };
        end.trouble = self.write("tracing_on", "0").err().map(|e| format!("tracing_on: {e}"));
        end.lost = (0..self.cpus).map(|cpu| self.lost(cpu)).collect();
        let blamed = reason.and_then(blamed).map(|(_, pid)| pid);
        let mut kept = Kept::default();
        if let Err(error) = self.read(&mut kept, blamed) {
            end.trouble.get_or_insert(format!("trace: {error}"));
        }
        let late = kept.late;
        (end.recorded, end.oldest_ns) = (kept.read, kept.oldest_ns);
        let events = kept.in_order();
        end.sent = events.len() as u64;
        if late {
            end.trouble.get_or_insert(format!("reading took more than {LIMIT_MS} ms: the rest is missing"));
        }
        for piece in events.chunks(EVENTS_PER_FRAME) {
            out.send(GuestFrame::Probed(piece.to_vec()))?;
        }
        out.send(GuestFrame::ProbesEnded(end))
    }

    /// Events of a CPU that were overwritten or had no room.
    fn lost(&self, cpu: u32) -> u64 {
        let stats = fs::read_to_string(self.root.join(format!("per_cpu/cpu{cpu}/stats")));
        let count = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            ["overrun", "dropped events"].contains(&name).then(|| value.trim().parse().ok())?
        };
        stats.unwrap_or_default().lines().filter_map(count).fold(0, u64::saturating_add)
    }

    fn read(&self, kept: &mut Kept, blamed: Option<u32>) -> io::Result<()> {
        let names = self.account().sites.iter().map(|site| {
            let name = site.name.rsplit_once(':').map_or(site.name.as_str(), |(_, event)| event);
            (event_name(name), name.to_owned())
        });
        let names: BTreeMap<String, String> = names.collect();
        let begun = clock::now_ms();
        let mut reader = BufReader::with_capacity(64 << 10, fs::File::open(self.root.join("trace"))?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if let Some(mut event) = parse(String::from_utf8_lossy(&line).trim_end()) {
                if let Some(name) = names.get(&event.site) {
                    event.site.clone_from(name);
                }
                kept.add(event, blamed);
            }
            if kept.read.is_multiple_of(256) && clock::now_ms() > begun + LIMIT_MS {
                kept.late = true;
                return Ok(());
            }
        }
    }
}

/// What is kept of a recording.
#[derive(Default)]
struct Kept {
    read: u64,
    oldest_ns: u64,
    late: bool,
    last: VecDeque<(u64, ProbeEvent)>,
    of_task: VecDeque<(u64, ProbeEvent)>,
}

impl Kept {
    fn add(&mut self, event: ProbeEvent, blamed: Option<u32>) {
        if self.read == 0 {
            self.oldest_ns = event.t_ns;
        }
        self.read += 1;
        let at = self.read;
        if blamed.is_some_and(|pid| event.concerns(pid)) {
            push(&mut self.of_task, (at, event.clone()), LAST_OF_TASK);
        }
        push(&mut self.last, (at, event), LAST);
    }

    /// Each event once, as they came.
    fn in_order(self) -> Vec<ProbeEvent> {
        let all: BTreeMap<u64, ProbeEvent> = self.of_task.into_iter().chain(self.last).collect();
        all.into_values().collect()
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, limit: usize) {
    if queue.len() == limit {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// `  comm-12  [001] d..2.  5.789196: site: a=1 b=2`, kernel/trace/trace_output.c.
fn parse(line: &str) -> Option<ProbeEvent> {
    let open = line.match_indices(" [").map(|(at, _)| at);
    let cpu_at = |at: usize| {
        let (cpu, rest) = line[at + 2..].split_once("] ")?;
        let cpu: u32 = cpu.parse().ok()?;
        let (_, rest) = rest.trim_start().split_once(' ')?;
        let (time, rest) = rest.trim_start().split_once(": ")?;
        Some((&line[..at], cpu, nanos(time)?, rest))
    };
    let (task, cpu, t_ns, rest) = open.into_iter().find_map(cpu_at)?;
    let (comm, pid) = task.trim().rsplit_once('-')?;
    let (site, text) = rest.split_once(':')?;
    let text = text.trim();
    let text = text[..text.floor_char_boundary(MAX_EVENT_TEXT)].to_owned();
    Some(ProbeEvent {
        t_ns,
        cpu,
        pid: pid.trim().parse().ok()?,
        comm: comm.to_owned(),
        site: site.trim().to_owned(),
        text,
    })
}

/// `5.789196` in nanoseconds.
fn nanos(text: &str) -> Option<u64> {
    let (seconds, micros) = text.split_once('.')?;
    let micros: u64 = (micros.len() == 6).then(|| micros.parse().ok())??;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(micros * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "      kcompactd0-33      [012] d..31     5.789173: consume_dispatch_q: \
                        (consume_dispatch_q+0x0/0x290) sch=0xffff888007221000 p_pid=7";

    #[test]
    fn the_kernels_lines_are_read() {
        let event = parse(LINE).unwrap();
        let site = (event.comm.as_str(), event.pid, event.cpu, event.t_ns, event.site.as_str());
        assert_eq!(site, ("kcompactd0", 33, 12, 5_789_173_000, "consume_dispatch_q"));
        assert!(
            event.text.starts_with("(consume_dispatch_q+0x0/0x290) sch=") && event.text.ends_with("p_pid=7")
        );
        let idle =
            parse("          <idle>-0       [000] dNs5.     5.788096: sched_wakeup: comm=a b pid=3 prio=1");
        assert_eq!(
            idle.map(|e| (e.comm, e.pid, e.text)),
            Some(("<idle>".into(), 0, "comm=a b pid=3 prio=1".into()))
        );
        let odd = parse("  my [x] t-ask-9  [001] d..2.  1.000001: s: a=1").unwrap();
        assert_eq!((odd.comm.as_str(), odd.pid, odd.cpu), ("my [x] t-ask", 9, 1));
        for none in [
            "",
            "# tracer: nop",
            "CPU:1 [LOST 12 EVENTS]",
            "a-1 [001] d..2. x: y: z",
            "a-1 [9999999999] f 1.000001: y: z",
        ] {
            assert_eq!(parse(none), None, "{none}");
        }
    }

    #[test]
    fn the_blamed_tasks_old_events_are_kept_beside_the_last_of_all() {
        let mut kept = Kept::default();
        for n in 0..5000u32 {
            let pid = if n < 10 { 7 } else { 1 };
            let text = match n {
                5 => "p_pid=99".into(),
                20 => "prev_comm=x prev_pid=1 next_pid=7".into(),
                _ => String::new(),
            };
            let event = ProbeEvent { t_ns: n.into(), cpu: 0, pid, comm: "c".into(), site: "s".into(), text };
            kept.add(event, Some(7));
        }
        assert_eq!(kept.read, 5000);
        let times: Vec<u64> = kept.in_order().iter().map(|event| event.t_ns).collect();
        assert_eq!(times[..10], [0, 1, 2, 3, 4, 6, 7, 8, 9, 20], "the sixth is about another task");
        assert_eq!((times.len(), times[10], times[times.len() - 1]), (LAST + 10, 4200, 4999));
    }
}
