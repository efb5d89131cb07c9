//! What was read, as a tree: for queries by path, for JSON, and for people.
//!
//! Names are the kernel's own. What is missing is a node of its own kind with its reason; it is
//! never 0, never an empty text, never left out.

use std::borrow::Cow;
use std::fmt::Write as _;

use ktstr_proto::link::chain;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::addr::Kva;
use crate::kernel::{Gap, Reading};

/// A value, a list, a structure, or the reason why there is none of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Nothing, and that is what the kernel says: a NULL pointer.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number.
    Int(i128),
    /// A ratio.
    Float(f64),
    /// An address or flags, shown in hexadecimal.
    Hex(u64),
    /// A text.
    Text(String),
    /// In order.
    List(Vec<Node>),
    /// By name, in order.
    Map(Vec<(Cow<'static, str>, Node)>),
    /// This kernel has no such thing.
    Absent(String),
    /// It could not be read this time.
    Unreadable(String),
}

impl Node {
    /// A structure from paths and values: `a.b` becomes `b` in `a`.
    pub fn nested(entries: impl IntoIterator<Item = (&'static str, Node)>) -> Self {
        let mut root = Vec::new();
        for (path, value) in entries {
            insert(&mut root, path, value);
        }
        Self::Map(root)
    }

    /// A structure.
    pub fn map<const N: usize>(entries: [(&'static str, Node); N]) -> Self {
        Self::Map(entries.into_iter().map(|(name, node)| (Cow::Borrowed(name), node)).collect())
    }

    /// Adds a member to a structure; anything else stays what it is.
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: Node) -> Self {
        if let Self::Map(members) = &mut self {
            members.push((name.into(), value));
        }
        self
    }

    /// The reason for a gap.
    pub fn gap(gap: &Gap) -> Self {
        match gap {
            Gap::Absent(_) | Gap::NoSymbol { .. } | Gap::Off { .. } | Gap::Nothing { .. } => {
                Self::Absent(chain(gap))
            }
            _ => Self::Unreadable(chain(gap)),
        }
    }

    /// A reading through `shown`, or the reason why there is none.
    pub fn reading<T>(reading: &Reading<T>, shown: impl FnOnce(&T) -> Node) -> Self {
        match reading {
            Ok(value) => shown(value),
            Err(gap) => Self::gap(gap),
        }
    }

    /// The member of that name.
    pub fn get(&self, name: &str) -> Option<&Node> {
        let Self::Map(members) = self else { return None };
        members.iter().find(|(own, _)| own == name).map(|(_, node)| node)
    }

    /// The number, if it is one.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Hex(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    /// Indented text for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        // Writing to a String cannot fail.
        match self {
            Self::Map(members) if members.iter().all(|(_, node)| node.is_leaf()) && members.len() <= 4 => {
                let line: Vec<_> = members.iter().map(|(n, v)| format!("{n}={}", v.leaf())).collect();
                let _ = write!(out, "{}", line.join(" "));
            }
            Self::Map(members) => {
                for (name, node) in members {
                    let _ = write!(out, "\n{:1$}{name}: ", "", depth * 2);
                    node.write(out, depth + 1);
                }
            }
            Self::List(items) if items.iter().all(Node::is_leaf) => {
                let line: Vec<_> = items.iter().map(Node::leaf).collect();
                let _ = write!(out, "[{}]", line.join(", "));
            }
            Self::List(items) => {
                for item in items {
                    let _ = write!(out, "\n{:1$}- ", "", depth * 2);
                    item.write(out, depth + 1);
                }
            }
            leaf => out.push_str(&leaf.leaf()),
        }
    }

    fn is_leaf(&self) -> bool {
        !matches!(self, Self::Map(_) | Self::List(_))
    }

    /// A value that is no structure, in one line.
    pub fn leaf(&self) -> String {
        match self {
            Self::Null => "NULL".into(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => format!("{value:.3}"),
            Self::Hex(value) => format!("{value:#x}"),
            Self::Text(value) => shown(value),
            Self::Absent(reason) => format!("(absent: {reason})"),
            Self::Unreadable(reason) => format!("(unreadable: {reason})"),
            Self::List(_) | Self::Map(_) => self.text(),
        }
    }
}

/// Text of the guest on its way to a terminal: control characters, but for line ends and tabs, as escapes.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

fn insert(members: &mut Vec<(Cow<'static, str>, Node)>, path: &'static str, value: Node) {
    let Some((first, rest)) = path.split_once('.') else {
        members.push((Cow::Borrowed(path), value));
        return;
    };
    let at = members.iter().position(|(name, node)| name == first && matches!(node, Node::Map(_)));
    let at = at.unwrap_or_else(|| {
        members.push((Cow::Borrowed(first), Node::Map(Vec::new())));
        members.len() - 1
    });
    if let Node::Map(inner) = &mut members[at].1 {
        insert(inner, rest, value);
    }
}

impl From<&str> for Node {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Kva> for Node {
    fn from(kva: Kva) -> Self {
        if kva.is_null() { Self::Null } else { Self::Hex(kva.0) }
    }
}

macro_rules! from_int {
    ($($int:ty),*) => { $(impl From<$int> for Node {
        fn from(value: $int) -> Self {
            Self::Int(value as i128)
        }
    })* };
}

from_int!(u8, u16, u32, u64, i32, i64, usize);

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => serializer.serialize_i64(value),
                (_, Ok(value)) => serializer.serialize_u64(value),
                _ => serializer.serialize_str(&value.to_string()),
            },
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Hex(value) => serializer.serialize_str(&format!("{value:#x}")),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Map(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(name, node)| map.serialize_entry(name, node))?;
                map.end()
            }
            Self::Absent(reason) => missing(serializer, "absent", reason),
            Self::Unreadable(reason) => missing(serializer, "unreadable", reason),
        }
    }
}

fn missing<S: Serializer>(serializer: S, kind: &str, reason: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(kind, reason)?;
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Node {
        Node::nested([
            ("nr", Node::Int(3)),
            ("cfs.load.weight", Node::Int(1024)),
            ("cfs.nr", Node::Absent("no such member".into())),
            ("at", Node::Hex(0xffff)),
        ])
    }

    #[test]
    fn paths_become_structures_and_gaps_keep_their_reason() {
        let json = serde_json::to_value(sample()).unwrap();
        let expected = serde_json::json!({
            "nr": 3, "cfs": {"load": {"weight": 1024}, "nr": {"absent": "no such member"}}, "at": "0xffff",
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn text_names_everything() {
        let text = Node::List(vec![sample(), Node::Null]).text();
        for part in ["nr: 3", "weight=1024", "(absent: no such member)", "0xffff", "NULL"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_guest_cannot_speak_to_the_terminal() {
        let text = Node::map([("comm", Node::Text("a\u{1b}]52;c\u{7}\u{9b}b\n".into()))]).text();
        assert_eq!(text, "comm=a\\u{1b}]52;c\\u{7}\\u{9b}b\n");
    }

    #[test]
    fn numbers_beyond_64_bits_stay_whole() {
        let json = serde_json::to_string(&[Node::Int(i128::from(u64::MAX)), Node::Int(i128::MAX)]).unwrap();
        assert_eq!(json, format!("[{},\"{}\"]", u64::MAX, i128::MAX));
    }
}
