//! A terminal view of a live run: CPUs, dispatch queues, event rates, waiting tasks, chosen values.
//!
//! It asks the same questions as `query`, twice a second, and shows the answers; it holds no guest
//! memory. Its keys show another list, freeze the guest for each look, have a capture taken, or leave; where the
//! user said so (`--rw`), one begins a line that sets a number in a map. The run's end, and a signal that asks for
//! its own, give the terminal back.

use std::io::{IsTerminal, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crossterm::event::{self, Event, KeyCode, KeyEventKind};
use ktstr_proto::capture::{Query, Question, SetNumber, TakeCapture};
use ktstr_proto::channel::ChannelError;
use ktstr_proto::client::ClientLink;
use ktstr_proto::{Channel, Fds};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGTERM};

use super::live::{PATIENCE, connect, find};
use super::screen::{Screen, draw};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// Bytes of a line that is typed.
const MAX_LINE: usize = 400;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Leave,
    View,
    Freeze,
    Capture,
    Write,
}

/// Why the view was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Asked,
    Over,
}

/// Shows the run until a key or its end; `watched` are paths whose values are shown, too, and `rw` says that
/// numbers may be written.
pub fn attach(run: Option<&str>, watched: &[String], rw: bool) -> Result<()> {
    let run = find(run)?;
    let mut channel = connect(&run)?;
    ensure!(
        stdin().is_terminal() && stdout().is_terminal(),
        "attach needs a terminal: query answers without one"
    );
    let asked_to_end = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&asked_to_end)).context("cannot watch for signals")?;
    }
    let mut screen = Screen::new(&run.0, watched, rw);
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let outcome = show(&mut terminal, &mut channel, &mut screen, &asked_to_end);
    ratatui::try_restore()?;
    if outcome? == Left::Over {
        super::say(format_args!("the run {run} is over"))?;
    }
    Ok(())
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    channel: &mut Channel<ClientLink>,
    screen: &mut Screen,
    asked_to_end: &AtomicBool,
) -> Result<Left> {
    let mut next = Instant::now();
    while !asked_to_end.load(Ordering::Relaxed) {
        terminal.draw(|frame| draw(frame, screen))?;
        // Keys are looked for however late it is.
        let limit = next.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        // No key of a line that is typed means anything else, however slowly it comes.
        let asked = match screen.typed {
            None => key(limit)?,
            Some(_) => match pressed(limit)? {
                None => None,
                Some(code) => {
                    type_on(channel, screen, code);
                    continue;
                }
            },
        };
        match asked {
            Some(Key::Leave) => return Ok(Left::Asked),
            Some(Key::View) => screen.view = screen.view.next(),
            Some(Key::Freeze) => screen.freeze = !screen.freeze,
            Some(Key::Capture) => screen.said = capture(channel),
            Some(Key::Write) if screen.rw => screen.typed = Some(String::new()),
            Some(Key::Write) => screen.said = "attached for reading: begin with --rw to write".into(),
            None => {
                // A monitor that is busy, or a kernel that is not there yet, refuses for now.
                match look(channel, screen) {
                    Ok(()) if screen.refused => {
                        screen.refused = false;
                        screen.said.clear();
                    }
                    Ok(()) => {}
                    Err(error) => match error.downcast_ref::<ChannelError>() {
                        Some(refused @ ChannelError::Refused { .. }) => {
                            screen.said = ktstr_proto::link::chain(refused);
                            screen.refused = true;
                        }
                        Some(ChannelError::Closed { .. }) => return Ok(Left::Over),
                        _ => return Err(error),
                    },
                }
                next = Instant::now() + PERIOD;
            }
        }
    }
    Ok(Left::Asked)
}

/// The key pressed within `limit`; none when there was none that means something.
fn key(limit: Duration) -> Result<Option<Key>> {
    if !event::poll(limit)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Key::Leave),
            // Raw mode hands the interrupt over as a key.
            KeyCode::Char('c') if key.modifiers.contains(event::KeyModifiers::CONTROL) => Some(Key::Leave),
            KeyCode::Tab => Some(Key::View),
            KeyCode::Char('f') => Some(Key::Freeze),
            KeyCode::Char('d') => Some(Key::Capture),
            KeyCode::Char('w') => Some(Key::Write),
            _ => None,
        },
        _ => None,
    })
}

/// The next key within `limit`, whatever it means.
fn pressed(limit: Duration) -> Result<Option<KeyCode>> {
    if !event::poll(limit)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => Some(match key.code {
            KeyCode::Char('c') if key.modifiers.contains(event::KeyModifiers::CONTROL) => KeyCode::Esc,
            code => code,
        }),
        _ => None,
    })
}

/// One more key of the line that says what is to be written.
fn type_on(channel: &mut Channel<ClientLink>, screen: &mut Screen, code: KeyCode) {
    let Some(line) = &mut screen.typed else { return };
    match code {
        KeyCode::Char(c) if line.len() < MAX_LINE => line.push(c),
        KeyCode::Backspace => drop(line.pop()),
        KeyCode::Esc => screen.typed = None,
        KeyCode::Enter => {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            screen.typed = None;
            screen.said = write(channel, &words).unwrap_or_else(|error| format!("not written: {error:#}"));
        }
        _ => {}
    }
}

fn write(channel: &mut Channel<ClientLink>, words: &[String]) -> Result<String> {
    let (map, path, value) = super::assignment(words)?;
    let wanted = SetNumber { run: None, map: map.to_owned(), path: path.to_owned(), value };
    let (set, _) = channel.call(wanted, Fds::default(), PATIENCE, |_, _| ())?;
    Ok(format!("{}; the guest stood for {} us", set.what, set.stood_us))
}

fn capture(channel: &mut Channel<ClientLink>) -> String {
    let wanted = TakeCapture { run: None, vmcore: false };
    match channel.call(wanted, Fds::default(), PATIENCE, |_, _| ()) {
        Ok((taken, _)) => {
            format!("captured, the guest stood for {} us: {}.txt", taken.stood_us, taken.path.display())
        }
        Err(error) => format!("no capture: {}", ktstr_proto::link::chain(&error)),
    }
}

/// One round of questions.
fn look(channel: &mut Channel<ClientLink>, screen: &mut Screen) -> Result<()> {
    let freeze = screen.freeze;
    let mut ask = |question| -> Result<(Value, Option<u64>)> {
        let query = Query { run: None, question, freeze };
        let (answer, _) = channel.call(query, Fds::default(), PATIENCE, |_, _| ())?;
        Ok((serde_json::from_str(&answer.json)?, answer.stood_us))
    };
    let (cpus, stood) = ask(Question::Path("rq".into()))?;
    let (dsqs, _) = ask(Question::Dsqs)?;
    let (scx, _) = ask(Question::Scx)?;
    let (tasks, _) = ask(Question::Tasks)?;
    let mut values = Vec::new();
    for path in &screen.watched {
        // What leads nowhere now may lead somewhere once the scheduler is loaded.
        let value = super::question(std::slice::from_ref(path), 0).and_then(&mut ask);
        values.push(value.map_or_else(|error| format!("{error:#}"), |(value, _)| value.to_string()));
    }
    screen.update(Instant::now(), cpus, dsqs, scx, tasks, values, stood);
    Ok(())
}
