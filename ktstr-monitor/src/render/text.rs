//! A [`Value`] for people: C-like, short things on one line, runs of equal elements written once.

use std::fmt::Write;

use super::build::Space;
use super::value::{Pointer, Run, Target, Value};

/// What is shorter than this goes on one line.
const WIDTH: usize = 100;

/// Writes `value`; lines after the first begin with `indent` spaces.
pub fn to_text(value: &Value, indent: usize) -> String {
    match value {
        Value::Composite { members, .. } if !members.is_empty() => {
            let parts = members.iter().map(|(name, value)| {
                let text = to_text(value, indent + 2);
                if name.is_empty() { text } else { format!("{name} = {text}") }
            });
            block(parts.collect(), '{', '}', indent)
        }
        Value::Composite { .. } => "{}".to_owned(),
        Value::Array { runs, left_off } => {
            let mut parts: Vec<String> = runs.iter().map(|run| element(run, runs, indent + 2)).collect();
            if *left_off > 0 {
                parts.push(format!("… {left_off} more left off"));
            }
            block(parts, '[', ']', indent)
        }
        Value::Pointer(pointer) => pointer_text(pointer, indent),
        _ => scalar(value),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Unsigned(value) if *value > 0xffff_ffff => format!("{value} ({value:#x})"),
        Value::Unsigned(value) => value.to_string(),
        Value::Signed(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Char(0) => "'\\0'".to_owned(),
        Value::Char(byte) if byte.is_ascii_graphic() || *byte == b' ' => format!("'{}'", char::from(*byte)),
        Value::Char(byte) => format!("'\\x{byte:02x}'"),
        Value::Enum { raw, names } if names.is_empty() => format!("{raw} (no such enumerator)"),
        Value::Enum { raw, names } => format!("{} ({raw})", names.join("|")),
        Value::Text(text) => format!("{text:?}"),
        Value::Cpus(ranges) => {
            let range = |(first, last): &(u32, u32)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            format!("cpus {{{}}}", ranges.iter().map(range).collect::<Vec<_>>().join(","))
        }
        Value::Bytes(bytes) => {
            let mut text = format!("{} bytes", bytes.len());
            for (nth, byte) in bytes.iter().enumerate() {
                let gap = if nth % 8 == 0 { " " } else { "" };
                write!(text, "{gap}{byte:02x}").expect("writing to a string");
            }
            text
        }
        Value::Missing(why) => format!("<{why}>"),
        Value::Composite { .. } | Value::Array { .. } | Value::Pointer(_) => to_text(value, 0),
    }
}

fn element(run: &Run, runs: &[Run], indent: usize) -> String {
    let text = to_text(&run.value, indent);
    let last = run.first + run.count - 1;
    match run.count {
        // Plain lists of single elements need no numbers.
        1 if runs.iter().all(|run| run.count == 1) && !text.contains('\n') => text,
        1 => format!("[{}] = {text}", run.first),
        _ => format!("[{}..{last}] = {text}", run.first),
    }
}

fn pointer_text(pointer: &Pointer, indent: usize) -> String {
    let Pointer { raw, to, space, cast, slot, target } = pointer;
    if *raw == 0 {
        return "NULL".to_owned();
    }
    let tag = match (cast, space) {
        (true, Some(Space::Arena)) => " (cast→arena)",
        (true, Some(Space::Kernel)) => " (cast→kernel)",
        (true, None) => " (cast)",
        (false, Some(Space::Arena)) => " (arena)",
        (false, _) => "",
    };
    let slot = slot.as_ref().map_or_else(String::new, |slot| format!(" (sdt_alloc {slot})"));
    let head = format!("({to} *) {raw:#x}{tag}{slot}");
    match target {
        Target::None => head,
        Target::Symbol(name) => format!("{head} <{name}>"),
        Target::Cycle => format!("{head} -> (shown above)"),
        Target::Lost(why) => format!("{head} <not followed: {why}>"),
        Target::Value(value) => format!("{head} -> {}", to_text(value, indent)),
    }
}

fn block(parts: Vec<String>, open: char, close: char, indent: usize) -> String {
    let len: usize = parts.iter().map(|part| part.chars().count() + 2).sum();
    if indent + len < WIDTH && parts.iter().all(|part| !part.contains('\n')) {
        return format!("{open}{}{close}", parts.join(", "));
    }
    let pad = " ".repeat(indent + 2);
    let mut text = String::from(open);
    for part in parts {
        write!(text, "\n{pad}{part}").expect("writing to a string");
    }
    write!(text, "\n{}{close}", " ".repeat(indent)).expect("writing to a string");
    text
}
