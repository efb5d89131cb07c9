//! A [`Value`] for machines. Every value is an object with a `kind`; the schema is in
//! `docs/bpf-state.md`. Numbers are JSON numbers of up to 64 bits, addresses strings in hexadecimal:
//! readers that know doubles only would round them.

use serde_json::{Value as Json, json};

use super::build::Space;
use super::value::{Pointer, Target, Value};

/// Converts `value`.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::Unsigned(value) => json!({"kind": "uint", "value": value}),
        Value::Signed(value) => json!({"kind": "int", "value": value}),
        Value::Bool(value) => json!({"kind": "bool", "value": value}),
        // JSON has no infinities.
        Value::Float(value) if value.is_finite() => json!({"kind": "float", "value": value}),
        Value::Float(value) => json!({"kind": "float", "value": value.to_string()}),
        Value::Char(byte) => json!({"kind": "char", "value": byte}),
        Value::Enum { raw, names } => match i64::try_from(*raw) {
            Ok(raw) => json!({"kind": "enum", "value": raw, "names": names}),
            Err(_) => json!({"kind": "enum", "value": *raw as u64, "names": names}),
        },
        Value::Text(text) => json!({"kind": "text", "value": text}),
        Value::Cpus(ranges) => json!({"kind": "cpus", "ranges": ranges}),
        Value::Bytes(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"kind": "bytes", "hex": hex})
        }
        Value::Pointer(pointer) => pointer_json(pointer),
        Value::Array { runs, left_off } => {
            let runs: Vec<Json> = runs
                .iter()
                .map(|run| json!({"first": run.first, "count": run.count, "value": to_json(&run.value)}))
                .collect();
            json!({"kind": "array", "runs": runs, "left_off": left_off})
        }
        Value::Composite { ty, union, members } => {
            let members: Vec<Json> =
                members.iter().map(|(name, value)| json!({"name": name, "value": to_json(value)})).collect();
            let kind = if *union { "union" } else { "struct" };
            json!({"kind": kind, "type": ty, "members": members})
        }
        Value::Missing(why) => json!({"kind": "missing", "why": why}),
    }
}

fn pointer_json(pointer: &Pointer) -> Json {
    let Pointer { raw, to, space, cast, slot, target } = pointer;
    let space = space.map(|space| match space {
        Space::Arena => "arena",
        Space::Kernel => "kernel",
    });
    let target = match target {
        Target::None => Json::Null,
        Target::Symbol(name) => json!({"symbol": name}),
        Target::Cycle => json!({"cycle": true}),
        Target::Lost(why) => json!({"lost": why}),
        Target::Value(value) => json!({"value": to_json(value)}),
    };
    json!({
        "kind": "pointer",
        "address": format!("{raw:#x}"),
        "to": to,
        "space": space,
        "cast": cast,
        "sdt_alloc": slot,
        "target": target,
    })
}
