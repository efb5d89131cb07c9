//! What the terminal view shows, and how: a model of answers, drawn without any input or output.

use std::collections::BTreeMap;
use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};
use serde_json::Value;

/// The last answers, and what is made of them.
#[derive(Debug)]
pub struct Screen {
    run: String,
    /// Paths whose values are shown.
    pub watched: Vec<String>,
    /// The guest is to stand for each look.
    pub freeze: bool,
    /// The last thing that happened.
    pub said: String,
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
    pub fn new(run: &str, watched: &[String]) -> Self {
        Self {
            run: run.to_owned(),
            watched: watched.to_vec(),
            freeze: false,
            said: "q leave, f freeze for each look, d capture".into(),
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
    let cpus = items(&screen.cpus).len() as u16;
    let watched = screen.watched.len() as u16;
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length((cpus + 3).min(frame.area().height / 3)),
        Constraint::Fill(1),
        Constraint::Length(if watched == 0 { 0 } else { watched + 2 }),
        Constraint::Length(1),
    ])
    .split(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let stood = screen.stood_us.map_or(String::new(), |us| format!("  frozen for {us} us each look"));
    let scheduler = text(&screen.scx, "/scx_sched/ops/name");
    let state = text(&screen.scx, "/state");
    let title = format!("{}  sched_ext {state} {scheduler}{stood}", screen.run);
    frame.render_widget(Line::styled(title, bold), rows[0]);
    frame.render_widget(cpu_table(screen), rows[1]);
    let columns =
        Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2), Constraint::Fill(3)]).split(rows[2]);
    frame.render_widget(dsq_table(screen), columns[0]);
    frame.render_widget(event_table(screen), columns[1]);
    frame.render_widget(task_table(screen), columns[2]);
    let lines =
        screen.watched.iter().zip(&screen.values).map(|(path, value)| Line::raw(format!("{path} = {value}")));
    let block = Block::bordered().title("watched");
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), rows[3]);
    let last = match &screen.typed {
        Some(line) => format!("write MAP PATH NUMBER (Enter, Esc): {line}"),
        None => screen.said.clone(),
    };
    frame.render_widget(Line::raw(last), rows[4]);
}

fn cpu_table(screen: &Screen) -> Table<'_> {
    let row = |cpu: &Value| {
        let running = format!("{}[{}]", text(cpu, "/running/comm"), text(cpu, "/running/pid"));
        let counts = ["/nr_running", "/cfs/h_nr_queued", "/rt/rt_nr_running", "/dl/dl_nr_running"];
        let scx = ["/scx/nr_running", "/scx/local_dsq/nr", "/nr_switches"];
        let cells = [text(cpu, "/cpu"), running].into_iter();
        Row::new(cells.chain(counts.into_iter().chain(scx).map(|path| text(cpu, path))).collect::<Vec<_>>())
    };
    let widths = [4, 24, 8, 6, 6, 6, 6, 6, 12].map(Constraint::Length);
    let head = ["CPU", "running", "runnable", "cfs", "rt", "dl", "scx", "local", "switches"];
    let block = Block::bordered().title("CPUs");
    Table::new(items(&screen.cpus).iter().map(row), widths).header(head_row(head)).block(block)
}

fn head_row<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

fn dsq_table(screen: &Screen) -> Table<'_> {
    let mut queues: Vec<&Value> = items(&screen.dsqs).iter().collect();
    queues.sort_by_key(|queue| std::cmp::Reverse(number(queue, "/nr")));
    let row = |queue: &Value| {
        let first = items(queue.get("tasks").unwrap_or(&Value::Null)).first();
        let first =
            first.map_or("-".into(), |task| format!("{}[{}]", text(task, "/comm"), text(task, "/pid")));
        let kind = format!("{} {}", text(queue, "/kind"), text(queue, "/of"));
        Row::new([text(queue, "/id"), kind, text(queue, "/nr"), first])
    };
    let widths = [Constraint::Length(18), Constraint::Length(10), Constraint::Length(5), Constraint::Fill(1)];
    let head = head_row(["DSQ", "kind", "tasks", "next"]);
    Table::new(queues.into_iter().map(row), widths).header(head).block(Block::bordered().title("queues"))
}

fn event_table(screen: &Screen) -> Table<'_> {
    let counts = screen.counted.iter().flat_map(|(_, counts)| counts);
    let row = |(name, count): (&String, &i64)| {
        let rate = screen.rates.get(name).map_or("-".into(), |rate| format!("{rate:.1}"));
        Row::new([name.trim_start_matches("SCX_EV_").to_owned(), count.to_string(), rate])
    };
    let widths = [Constraint::Fill(1), Constraint::Length(12), Constraint::Length(9)];
    let head = head_row(["event", "count", "per s"]);
    Table::new(counts.map(row), widths).header(head).block(Block::bordered().title("events"))
}

fn task_table(screen: &Screen) -> Table<'_> {
    // Of who does not wait the age is null, or absent with a reason.
    let mut tasks: Vec<&Value> =
        items(&screen.tasks).iter().filter(|t| t["runnable_age_jiffies"].is_i64()).collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(number(task, "/runnable_age_jiffies")));
    let row = |task: &Value| {
        let name = format!("{}[{}]", text(task, "/comm"), text(task, "/pid"));
        let rest = ["/cpu", "/weight", "/runnable_age_jiffies"].map(|path| text(task, path));
        Row::new([name].into_iter().chain(rest).collect::<Vec<_>>())
    };
    let widths = [Constraint::Fill(1), Constraint::Length(4), Constraint::Length(7), Constraint::Length(8)];
    let head = head_row(["waiting", "CPU", "weight", "jiffies"]);
    Table::new(tasks.into_iter().map(row), widths).header(head).block(Block::bordered().title("tasks by age"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn shown(screen: &Screen) -> String {
        let mut terminal = Terminal::new(TestBackend::new(130, 24)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_that_was_answered_is_on_the_screen() {
        let mut screen = Screen::new("demo-1", &["jiffies".into()]);
        let cpus = json!([{"cpu": 0, "running": {"comm": "sh", "pid": 7}, "nr_running": 3,
            "scx": {"nr_running": 2, "local_dsq": {"nr": 1}}, "cfs": {"h_nr_queued": {"absent": "x"}}}]);
        let task = json!({"comm": "late", "pid": 9, "cpu": 1, "weight": 100, "runnable_age_jiffies": 250});
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
        let text = shown(&screen);
        for part in ["demo-1", "enabled ktstr", "sh[7]", "0x6b74", "late[9]", "250", "10.0", "jiffies = 42"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("asleep") && !text.contains("idling"), "{text}");
    }

    #[test]
    fn nothing_answered_is_no_panic_on_the_smallest_terminal() {
        let mut terminal = Terminal::new(TestBackend::new(1, 1)).unwrap();
        terminal.draw(|frame| draw(frame, &Screen::new("r", &[]))).unwrap();
        assert!(shown(&Screen::new("r", &[])).contains("CPUs"));
    }
}
