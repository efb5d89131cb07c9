//! What the terminal view shows, and how: a model of answers, drawn without any input or output.

use std::collections::BTreeMap;
use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table, Wrap};
use serde_json::Value;

/// Columns that a list needs to show its names in full.
const LIST_COLUMNS: u16 = 52;

/// What stands first below the table of CPUs, or in place of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Who waits, the longest first.
    #[default]
    Tasks,
    /// Dispatch queues, the fullest first.
    Queues,
    /// Counters of events, those that never counted last.
    Events,
    /// The table of CPUs alone.
    Cpus,
}

impl View {
    /// What Tab leads to.
    pub const fn next(self) -> Self {
        match self {
            Self::Tasks => Self::Queues,
            Self::Queues => Self::Events,
            Self::Events => Self::Cpus,
            Self::Cpus => Self::Tasks,
        }
    }

    /// The lists that stand side by side in that many columns, this one first.
    fn lists(self, columns: u16) -> impl Iterator<Item = Self> {
        const ALL: [View; 3] = [View::Tasks, View::Queues, View::Events];
        let first = ALL.iter().position(|view| *view == self);
        let fit = usize::from(columns / LIST_COLUMNS).clamp(1, ALL.len());
        first.into_iter().flat_map(move |first| (first..first + fit).map(|nth| ALL[nth % ALL.len()]))
    }
}

/// The last answers, and what is made of them.
#[derive(Debug)]
pub struct Screen {
    run: String,
    /// Paths whose values are shown.
    pub watched: Vec<String>,
    /// The guest is to stand for each look.
    pub freeze: bool,
    /// What is looked at.
    pub view: View,
    /// Numbers in maps may be written.
    pub rw: bool,
    /// The last thing that happened.
    pub said: String,
    /// It is why the last look came to nothing.
    pub refused: bool,
    /// The line that is being typed: what is to be written.
    pub typed: Option<String>,
    cpus: Value,
    dsqs: Value,
    scx: Value,
    tasks: Value,
    values: Vec<String>,
    stood_us: Option<u64>,
    counted: Option<(Instant, BTreeMap<String, i64>)>,
    rates: BTreeMap<String, f64>,
}

impl Screen {
    /// Nothing seen yet.
    pub fn new(run: &str, watched: &[String], rw: bool) -> Self {
        Self {
            run: run.to_owned(),
            watched: watched.to_vec(),
            freeze: false,
            view: View::default(),
            rw,
            said: String::new(),
            refused: false,
            typed: None,
            cpus: Value::Null,
            dsqs: Value::Null,
            scx: Value::Null,
            tasks: Value::Null,
            values: Vec::new(),
            stood_us: None,
            counted: None,
            rates: BTreeMap::new(),
        }
    }

    /// Takes the answers of one round.
    #[expect(clippy::too_many_arguments, reason = "one for each question of a round")]
    pub fn update(
        &mut self,
        now: Instant,
        cpus: Value,
        dsqs: Value,
        scx: Value,
        tasks: Value,
        values: Vec<String>,
        stood_us: Option<u64>,
    ) {
        let events = scx.get("events").and_then(Value::as_object);
        let counts: BTreeMap<String, i64> =
            events.into_iter().flatten().filter_map(|(n, v)| Some((n.clone(), v.as_i64()?))).collect();
        if let Some((before, last)) = &self.counted {
            let seconds = now.duration_since(*before).as_secs_f64().max(1e-3);
            let rate = |(name, count): (&String, &i64)| {
                Some((name.clone(), (count - last.get(name)?) as f64 / seconds))
            };
            self.rates = counts.iter().filter_map(rate).collect();
        }
        self.counted = Some((now, counts));
        (self.cpus, self.dsqs, self.scx, self.tasks) = (cpus, dsqs, scx, tasks);
        (self.values, self.stood_us) = (values, stood_us);
    }
}

/// A value at a JSON pointer in a few characters; what is missing is `-`.
fn text(value: &Value, path: &str) -> String {
    match value.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null | Value::Object(_)) | None => "-".into(),
        Some(other) => other.to_string(),
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value, path: &str) -> i64 {
    value.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let area = frame.area();
    let watched = screen.watched.len() as u16;
    let said = match &screen.typed {
        Some(line) => format!("write MAP PATH NUMBER (Enter, Esc): {line}"),
        None => screen.said.clone(),
    };
    // Words that are moved to the next line leave room behind: one line more than the characters fill.
    let columns = usize::from(area.width.max(1));
    let lines = said.chars().count().div_ceil(columns) as u16;
    let lines = if lines > 1 { lines + 1 } else { lines };
    let cpus = items(&screen.cpus).len() as u16 + 3;
    let rows = Layout::vertical([
        Constraint::Length(1),
        match screen.view {
            View::Cpus => Constraint::Fill(1),
            _ => Constraint::Length(cpus.min(area.height / 3)),
        },
        Constraint::Fill(u16::from(screen.view != View::Cpus)),
        Constraint::Length(if watched == 0 { 0 } else { watched + 2 }),
        Constraint::Length(lines.min(area.height / 4)),
        Constraint::Length(1),
    ])
    .split(area);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let stood = screen.stood_us.map_or(String::new(), |us| format!("  frozen for {us} us each look"));
    let scheduler = text(&screen.scx, "/scx_sched/ops/name");
    let state = text(&screen.scx, "/state");
    // The run is known to who attached: where a line is short, its end is missing.
    let title = format!("sched_ext {state} {scheduler}{stood}  {}", screen.run);
    frame.render_widget(Line::styled(title, bold), rows[0]);
    frame.render_widget(cpu_table(screen, rows[1]), rows[1]);
    let lists: Vec<_> = screen.view.lists(area.width).collect();
    let columns = Layout::horizontal(lists.iter().map(|_| Constraint::Fill(1))).split(rows[2]);
    for (list, area) in lists.iter().zip(columns.iter()) {
        let table = match list {
            View::Tasks => task_table(screen, *area),
            View::Queues => dsq_table(screen, *area),
            View::Events => event_table(screen, *area),
            View::Cpus => cpu_table(screen, *area),
        };
        frame.render_widget(table, *area);
    }
    let values =
        screen.watched.iter().zip(&screen.values).map(|(path, value)| Line::raw(format!("{path} = {value}")));
    let block = Block::bordered().title("watched");
    frame.render_widget(Paragraph::new(values.collect::<Vec<_>>()).block(block), rows[3]);
    frame.render_widget(Paragraph::new(said).wrap(Wrap { trim: false }), rows[4]);
    let write = if screen.rw { ", w write" } else { "" };
    let keys = format!("q leave, Tab next view, f freeze for each look, d capture{write}");
    frame.render_widget(Line::styled(keys, bold), rows[5]);
}

/// A table with a frame; its title says how many rows have no place in `area`.
fn table<'s, const N: usize>(
    title: &str,
    head: [&'static str; N],
    widths: [Constraint; N],
    rows: Vec<Row<'s>>,
    area: Rect,
) -> Table<'s> {
    let hidden = rows.len().saturating_sub(usize::from(area.height.saturating_sub(3)));
    let title = match hidden {
        0 => title.to_owned(),
        hidden => format!("{title}, {hidden} more below"),
    };
    let head = Row::new(head).style(Style::new().add_modifier(Modifier::BOLD));
    Table::new(rows, widths).header(head).block(Block::bordered().title(title))
}

fn cpu_table(screen: &Screen, area: Rect) -> Table<'_> {
    let row = |cpu: &Value| {
        let running = format!("{}[{}]", text(cpu, "/running/comm"), text(cpu, "/running/pid"));
        let counts = ["/nr_running", "/cfs/h_nr_queued", "/rt/rt_nr_running", "/dl/dl_nr_running"];
        let scx = ["/scx/nr_running", "/scx/local_dsq/nr", "/nr_switches"];
        let cells = [text(cpu, "/cpu"), running].into_iter();
        Row::new(cells.chain(counts.into_iter().chain(scx).map(|path| text(cpu, path))).collect::<Vec<_>>())
    };
    let widths = [4, 24, 8, 4, 4, 4, 4, 5, 12].map(Constraint::Length);
    let head = ["CPU", "running", "runnable", "cfs", "rt", "dl", "scx", "local", "switches"];
    table("CPUs", head, widths, items(&screen.cpus).iter().map(row).collect(), area)
}

fn dsq_table(screen: &Screen, area: Rect) -> Table<'_> {
    let mut queues: Vec<&Value> = items(&screen.dsqs).iter().collect();
    queues.sort_by_key(|queue| std::cmp::Reverse(number(queue, "/nr")));
    let row = |queue: &Value| {
        let first = items(queue.get("tasks").unwrap_or(&Value::Null)).first();
        let first =
            first.map_or("-".into(), |task| format!("{}[{}]", text(task, "/comm"), text(task, "/pid")));
        let kind = match text(queue, "/of") {
            of if of == "-" => text(queue, "/kind"),
            of => format!("{} {of}", text(queue, "/kind")),
        };
        Row::new([text(queue, "/id"), kind, text(queue, "/nr"), first])
    };
    let widths = [Constraint::Length(18), Constraint::Length(10), Constraint::Length(5), Constraint::Fill(1)];
    let rows = queues.into_iter().map(row).collect();
    table("queues", ["DSQ", "kind", "tasks", "next"], widths, rows, area)
}

fn event_table(screen: &Screen, area: Rect) -> Table<'_> {
    let mut counts: Vec<_> = screen.counted.iter().flat_map(|(_, counts)| counts).collect();
    counts.sort_by_key(|(name, count)| (**count == 0, *name));
    let row = |(name, count): (&String, &i64)| {
        let rate = screen.rates.get(name).map_or("-".into(), |rate| format!("{rate:.1}"));
        Row::new([name.trim_start_matches("SCX_EV_").to_owned(), count.to_string(), rate])
    };
    let widths = [Constraint::Fill(1), Constraint::Length(12), Constraint::Length(9)];
    table("events", ["event", "count", "per s"], widths, counts.into_iter().map(row).collect(), area)
}

fn task_table(screen: &Screen, area: Rect) -> Table<'_> {
    // Of who does not wait the age is null, or absent with a reason.
    let mut tasks: Vec<&Value> =
        items(&screen.tasks).iter().filter(|t| t["runnable_age_jiffies"].is_i64()).collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(number(task, "/runnable_age_jiffies")));
    let row = |task: &Value| {
        let name = format!("{}[{}]", text(task, "/comm"), text(task, "/pid"));
        let rest = ["/cpu", "/weight", "/runnable_age_ms"].map(|path| text(task, path));
        Row::new([name].into_iter().chain(rest).collect::<Vec<_>>())
    };
    let widths = [Constraint::Fill(1), Constraint::Length(4), Constraint::Length(7), Constraint::Length(8)];
    let rows = tasks.into_iter().map(row).collect();
    table("tasks by runnable age", ["waiting", "CPU", "weight", "ms"], widths, rows, area)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn shown(screen: &Screen, columns: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, 24)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_that_was_answered_is_on_the_screen() {
        let mut screen = Screen::new("demo-1", &["jiffies".into()], true);
        let cpus = json!([{"cpu": 0, "running": {"comm": "sh", "pid": 7}, "nr_running": 3,
            "scx": {"nr_running": 2, "local_dsq": {"nr": 1}}, "cfs": {"h_nr_queued": {"absent": "x"}}}]);
        let task = json!({"comm": "late", "pid": 9, "cpu": 1, "weight": 100, "runnable_age_jiffies": 250,
            "runnable_age_ms": 1000});
        let idle = json!({"comm": "asleep", "pid": 8, "runnable_age_jiffies": null});
        let dsqs = json!([{"id": "0x6b74", "kind": "user", "of": null, "nr": 1, "tasks": [task]}]);
        let scx = |n: i64| {
            json!({"state": "enabled", "scx_sched": {"ops": {"name": "ktstr"}},
            "events": {"SCX_EV_DISPATCH_KEEP_LAST": n}})
        };
        let start = Instant::now();
        for (second, count) in [(0, 10), (2, 30)] {
            let now = start + Duration::from_secs(second);
            let never = json!({"comm": "idling", "runnable_age_jiffies": {"absent": "sched_ext is off"}});
            let tasks = json!([idle, task, never]);
            screen.update(now, cpus.clone(), dsqs.clone(), scx(count), tasks, vec!["42".into()], None);
        }
        let text = shown(&screen, 160);
        for part in ["demo-1", "enabled ktstr", "sh[7]", "0x6b74", "late[9]", "1000", "10.0", "jiffies = 42"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.contains("w write") && !text.contains("asleep") && !text.contains("idling"), "{text}");

        // Where there is no place for all, Tab leads from one to the next.
        let parts = [("tasks by runnable age", "waiting"), ("queues", "0x6b74"), ("events", "KEEP_LAST")];
        for nth in 0..3 {
            let text = shown(&screen, 80);
            for (of, (title, part)) in parts.iter().enumerate() {
                assert_eq!((text.contains(title), text.contains(part)), (of == nth, of == nth), "{text}");
            }
            screen.view = screen.view.next();
        }
        assert_eq!(screen.view, View::Cpus);
        let text = shown(&screen, 80);
        assert!(text.contains("sh[7]") && parts.iter().all(|(title, _)| !text.contains(title)), "{text}");
    }

    #[test]
    fn what_has_no_place_is_counted_and_what_is_long_goes_on() {
        let mut screen = Screen::new("r", &[], false);
        let cpus = (0..64).map(|cpu| json!({"cpu": cpu})).collect();
        let [dsqs, scx, tasks] = [(); 3].map(|()| Value::Null);
        screen.update(Instant::now(), cpus, dsqs, scx, tasks, vec![], None);
        screen.said = format!("captured: /{}/end.txt", "x".repeat(90));
        let text = shown(&screen, 80);
        assert!(text.contains("CPUs, 59 more below") && text.contains("end.txt"), "{text}");
        assert!(!text.contains("w write"), "{text}");
    }

    #[test]
    fn nothing_answered_is_no_panic_on_the_smallest_terminal() {
        let mut terminal = Terminal::new(TestBackend::new(1, 1)).unwrap();
        terminal.draw(|frame| draw(frame, &Screen::new("r", &[], false))).unwrap();
        assert!(shown(&Screen::new("r", &[], false), 130).contains("CPUs"));
    }
}
