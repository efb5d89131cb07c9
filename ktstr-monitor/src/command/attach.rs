//! A terminal view of a live run: CPUs, dispatch queues, event rates, waiting tasks, chosen values.
//!
//! It asks the same questions as `query`, twice a second, and shows the answers; it holds no guest
//! memory. Its keys freeze the guest for each look, have a capture taken, or leave.

use std::time::{Duration, Instant};

use anyhow::Result;
use ktstr_proto::capture::{Query, Question, TakeCapture};
use ktstr_proto::channel::ChannelError;
use ktstr_proto::client::ClientLink;
use ktstr_proto::{Channel, Fds};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind};
use serde_json::Value;

use super::live::{PATIENCE, connect, find};
use super::screen::{Screen, draw};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Leave,
    Freeze,
    Capture,
}

/// Shows the run until a key or its end; `watched` are paths whose values are shown, too.
pub fn attach(run: Option<&str>, watched: &[String]) -> Result<()> {
    let run = find(run)?;
    let mut channel = connect(&run)?;
    let mut screen = Screen::new(&run.0, watched);
    look(&mut channel, &mut screen)?;
    let mut terminal = ratatui::try_init()?;
    let outcome = show(&mut terminal, &mut channel, &mut screen);
    ratatui::try_restore()?;
    outcome
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    channel: &mut Channel<ClientLink>,
    screen: &mut Screen,
) -> Result<()> {
    let mut next = Instant::now() + PERIOD;
    loop {
        terminal.draw(|frame| draw(frame, screen))?;
        match key(next.saturating_duration_since(Instant::now()))? {
            Some(Key::Leave) => return Ok(()),
            Some(Key::Freeze) => screen.freeze = !screen.freeze,
            Some(Key::Capture) => screen.said = capture(channel),
            None => {
                // A monitor that is busy, or a kernel that is not there yet, refuses for now.
                if let Err(error) = look(channel, screen) {
                    match error.downcast_ref::<ChannelError>() {
                        Some(refused @ ChannelError::Refused { .. }) => {
                            screen.said = ktstr_proto::link::chain(refused);
                        }
                        _ => return Err(error),
                    }
                }
                next = Instant::now() + PERIOD;
            }
        }
    }
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
            KeyCode::Char('f') => Some(Key::Freeze),
            KeyCode::Char('d') => Some(Key::Capture),
            _ => None,
        },
        _ => None,
    })
}

fn capture(channel: &mut Channel<ClientLink>) -> String {
    let wanted = TakeCapture { run: None, vmcore: false };
    match channel.call(wanted, Fds::default(), PATIENCE, |_, _| ()) {
        Ok((taken, _)) => format!("captured in {} us: {}.txt", taken.stood_us, taken.path.display()),
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
        values.push(value.map_or_else(|error| error.to_string(), |(value, _)| value.to_string()));
    }
    screen.update(Instant::now(), cpus, dsqs, scx, tasks, values, stood);
    Ok(())
}
