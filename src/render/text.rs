//! Lines of 80 columns, colours for who wants them, and nothing that steers a terminal.

use std::fmt::Write;

pub(super) const WIDTH: usize = 80;

/// The report in colours, if standard error is a terminal that wants them, or somebody says so: a test
/// whose output nextest reads cannot see the terminal, and `cargo ktstr test` tells it (`KTSTR_COLOR`).
pub fn for_terminal(text: &str) -> String {
    use std::io::IsTerminal;
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if ktstr_proto::colour::wanted(set, std::io::stderr().is_terminal()) {
        coloured(text)
    } else {
        text.into()
    }
}

/// The verdict by its colour, headings and the way to repeat it in bold.
pub(super) fn coloured(text: &str) -> String {
    const VERDICTS: [(&str, &str); 4] =
        [("FAILED", "31"), ("INCONCLUSIVE", "33"), ("NOT RUN", "36"), ("PASS", "32")];
    let mut out = String::new();
    for (number, text) in text.lines().enumerate() {
        let verdict = VERDICTS.iter().find_map(|(word, colour)| Some((text.find(word)?, word, colour)));
        match verdict.filter(|_| number < 2) {
            Some((at, word, colour)) => {
                let (before, after) = (&text[..at], &text[at + word.len()..]);
                line(&mut out, format_args!("{before}\x1b[1;{colour}m{word}\x1b[0m{after}"));
            }
            None if text.starts_with("--- ") || text.starts_with("replay: ") => {
                line(&mut out, format_args!("\x1b[1m{text}\x1b[0m"));
            }
            None => line(&mut out, format_args!("{text}")),
        }
    }
    out
}

/// What the guest wrote, without what would steer a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text.trim_end().chars();
    while let Some(c) = rest.next() {
        match c {
            '\t' => shown.push(' '),
            // ECMA-48: a control sequence ends with a byte from `@` to `~`.
            '\x1b' if rest.as_str().starts_with('[') => {
                let end = |c: char| ('@'..='~').contains(&c);
                rest.next();
                rest.find(|c| end(*c));
            }
            c if c.is_control() => {}
            c => shown.push(c),
        }
    }
    shown
}

/// Breaks `text` between words at the width; further lines are indented. Its own line ends are kept.
pub(crate) fn wrapped(out: &mut String, prefix: &str, text: &str) {
    let indent = " ".repeat(prefix.chars().take_while(|c| *c == ' ').count() + 2);
    for (number, part) in text.lines().enumerate() {
        let mut current = if number == 0 { prefix.to_owned() } else { indent.clone() };
        let mut empty = true;
        for word in part.split(' ') {
            let fits = current.chars().count() + usize::from(!empty) + word.chars().count() <= WIDTH;
            if !fits && !empty {
                line(out, format_args!("{}", current.trim_end()));
                current.clone_from(&indent);
                empty = true;
            }
            if !empty {
                current.push(' ');
            }
            current.push_str(word);
            empty = false;
        }
        line(out, format_args!("{}", current.trim_end()));
    }
}

pub(super) fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}
