//! Shows how a download goes: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use ktstr_orch::store::Event;

/// Where the events of a pull go. Dropping it leaves the terminal clean.
pub enum Progress {
    /// A terminal.
    Bar(ProgressBar),
    /// Anything else: one line a step.
    Lines,
}

impl Progress {
    /// By what stderr is.
    pub fn for_stderr() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::new(100);
        // The template is fixed; should it not parse, the default one serves.
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {wide_msg} {bar:30} {percent:>3}% {elapsed}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Self::Bar(bar)
    }

    /// Shows one event.
    pub fn show(&mut self, event: Event) {
        match (self, event) {
            (Self::Bar(bar), Event::Step(text)) => {
                bar.set_position(0);
                bar.set_message(text);
            }
            // Whole percents are precise enough, and 0..=100 fits.
            (Self::Bar(bar), Event::Percent(done)) => bar.set_position(done.clamp(0.0, 100.0) as u64),
            (Self::Lines, Event::Step(text)) => eprintln!("{text}"),
            (Self::Lines, Event::Percent(_)) => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
