//! Paths into values, as people write them: `exit_record.kind`, `points[1].x`, `[2].node->next->id`.
//!
//! A path starts with what selects the entry of a map: nothing for global variables, `[3]` for an
//! array, `[0x2a]` or `[{7,70}]` for a hash (the members of the key in order), `[PID]` for task and
//! `[ID]` for cgroup storage; `@2` after it picks a CPU. `->` and `.` mean the same: a pointer on the
//! way is followed.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::types::{Ty, TypeRef};

/// Steps of a path, at most.
const MAX_STEPS: usize = 64;

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// To a member or variable.
    Name(String),
    /// To an element.
    Index(u64),
}

/// What selects an entry, in numbers; more than one for a key that is a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(pub Vec<i128>);

/// A path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Which entry, in maps that have several.
    pub entry: Option<Selector>,
    /// Whose value.
    pub cpu: Option<u32>,
    /// Where in the value.
    pub steps: Vec<Step>,
}

/// Why a path leads nowhere.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// It cannot be read.
    #[error("`{text}` is no path: {what} at character {at}")]
    Syntax {
        /// The path.
        text: String,
        /// What is wrong.
        what: &'static str,
        /// Where, counted from 0.
        at: usize,
    },
    /// No such member.
    #[error("`{of}` has no member `{name}`")]
    NoMember {
        /// The type.
        of: String,
        /// The member.
        name: String,
    },
    /// An index into something else.
    #[error("`{of}` is no array")]
    NotArray {
        /// The type.
        of: String,
    },
    /// Past the end.
    #[error("`{of}` has no element {index}")]
    NoElement {
        /// The type.
        of: String,
        /// The index.
        index: u64,
    },
    /// Behind the end of the value.
    #[error("the path leads out of `{of}`")]
    Outside {
        /// The type.
        of: String,
    },
    /// The type information contradicts itself.
    #[error("the type information on `{of}` is damaged")]
    Damaged {
        /// The type.
        of: String,
    },
}

/// A part of a value.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its type.
    pub ty: TypeRef,
    /// Bytes from the start of the value.
    pub offset: u64,
    /// For bitfields: the first bit within the byte at `offset`, and how many bits.
    pub bits: Option<(u8, u8)>,
}

impl Place {
    /// A whole value of type `ty`.
    pub fn whole(ty: TypeRef) -> Self {
        Self { ty, offset: 0, bits: None }
    }

    /// One step further. Does not follow pointers: `ty` must be the thing itself.
    pub fn step(&self, step: &Step) -> Result<Self, PathError> {
        let damaged = || PathError::Damaged { of: self.ty.name() };
        let (id, ty) = self.ty.set.strip(self.ty.id).ok_or_else(damaged)?;
        match (step, ty) {
            (Step::Name(name), Ty::Composite(_)) => {
                let no_member = || PathError::NoMember { of: self.ty.name(), name: name.clone() };
                let member = self.ty.set.member(id, name).ok_or_else(no_member)?;
                let offset = self.offset.checked_add(member.bit / 8).ok_or_else(damaged)?;
                let bits = member.width.map(|width| ((member.bit % 8) as u8, width));
                Ok(Self { ty: self.ty.with(member.ty), offset, bits })
            }
            (Step::Name(name), Ty::Section { vars, .. }) => {
                let found = vars.iter().find(|v| self.ty.set.get(v.var).is_some_and(|e| e.name == *name));
                let var =
                    found.ok_or_else(|| PathError::NoMember { of: self.ty.name(), name: name.clone() })?;
                let Some(Ty::Var(of)) = self.ty.set.ty(var.var) else { return Err(damaged()) };
                let offset = self.offset.checked_add(var.offset).ok_or_else(damaged)?;
                Ok(Self { ty: self.ty.with(*of), offset, bits: None })
            }
            (Step::Name(name), _) => Err(PathError::NoMember { of: self.ty.name(), name: name.clone() }),
            (Step::Index(index), Ty::Array { elem, len }) => {
                let no_element = || PathError::NoElement { of: self.ty.name(), index: *index };
                // A flexible array member says 0 and has as many as the value has room for.
                if *len != 0 && index >= len {
                    return Err(no_element());
                }
                let size = self.ty.set.size(*elem).ok_or_else(damaged)?;
                let into = index.checked_mul(size).ok_or_else(no_element)?;
                let offset = self.offset.checked_add(into).ok_or_else(no_element)?;
                Ok(Self { ty: self.ty.with(*elem), offset, bits: None })
            }
            (Step::Index(_), _) => Err(PathError::NotArray { of: self.ty.name() }),
        }
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let mut parser = Parser { text, bytes: text.as_bytes(), at: 0 };
        let mut path = Self::default();
        if parser.peek() == Some(b'[') {
            path.entry = Some(parser.selector()?);
        }
        if parser.eat("@") {
            let cpu = parser.number()?;
            path.cpu = Some(u32::try_from(cpu).map_err(|_| parser.error("no CPU number"))?);
        }
        let mut first = path.entry.is_none() && path.cpu.is_none();
        while parser.peek().is_some() {
            if path.steps.len() >= MAX_STEPS {
                return Err(parser.error("too many steps"));
            }
            if parser.peek() == Some(b'[') {
                let Selector(numbers) = parser.selector()?;
                let [index] = numbers[..] else { return Err(parser.error("an index is one number")) };
                let index = u64::try_from(index).map_err(|_| parser.error("a negative index"))?;
                path.steps.push(Step::Index(index));
            } else {
                if !parser.eat("->") && !parser.eat(".") && !first {
                    return Err(parser.error("`.`, `->` or `[` expected"));
                }
                path.steps.push(Step::Name(parser.name()?));
            }
            first = false;
        }
        Ok(path)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry.as_ref().map(|Selector(numbers)| &numbers[..]) {
            Some([one]) => write!(f, "[{one}]")?,
            Some(many) => {
                let many: Vec<String> = many.iter().map(i128::to_string).collect();
                write!(f, "[{{{}}}]", many.join(","))?;
            }
            None => {}
        }
        if let Some(cpu) = self.cpu {
            write!(f, "@{cpu}")?;
        }
        for (nth, step) in self.steps.iter().enumerate() {
            match step {
                Step::Name(name) if nth == 0 && self.entry.is_none() && self.cpu.is_none() => {
                    f.write_str(name)?;
                }
                Step::Name(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

struct Parser<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, word: &str) -> bool {
        let is_next = self.bytes[self.at..].starts_with(word.as_bytes());
        self.at += if is_next { word.len() } else { 0 };
        is_next
    }

    fn error(&self, what: &'static str) -> PathError {
        PathError::Syntax { text: self.text.to_owned(), what, at: self.at }
    }

    fn word(&mut self, belongs: impl Fn(u8) -> bool) -> &str {
        let len = self.bytes[self.at..].iter().take_while(|&&byte| belongs(byte)).count();
        let word = &self.text[self.at..self.at + len];
        self.at += len;
        word
    }

    fn name(&mut self) -> Result<String, PathError> {
        let name = self.word(|byte| byte.is_ascii_alphanumeric() || b"_$".contains(&byte)).to_owned();
        if name.is_empty() { Err(self.error("a name expected")) } else { Ok(name) }
    }

    fn number(&mut self) -> Result<i128, PathError> {
        let negative = self.eat("-");
        let hex = self.eat("0x") || self.eat("0X");
        let digits = self.word(|byte| byte.is_ascii_hexdigit()).to_owned();
        let value = u64::from_str_radix(&digits, if hex { 16 } else { 10 });
        let value = i128::from(value.map_err(|_| self.error("a number expected"))?);
        Ok(if negative { -value } else { value })
    }

    fn selector(&mut self) -> Result<Selector, PathError> {
        if !self.eat("[") {
            return Err(self.error("`[` expected"));
        }
        let mut numbers = Vec::new();
        if self.eat("{") {
            loop {
                numbers.push(self.number()?);
                if !self.eat(",") {
                    break;
                }
            }
            if !self.eat("}") {
                return Err(self.error("`}` expected"));
            }
        } else {
            numbers.push(self.number()?);
        }
        if self.eat("]") { Ok(Selector(numbers)) } else { Err(self.error("`]` expected")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        let path: Path = "[{7,-1}]@3.points[1]->x".parse().unwrap();
        assert_eq!(path.entry, Some(Selector(vec![7, -1])));
        assert_eq!(path.cpu, Some(3));
        let names = [Step::Name("points".into()), Step::Index(1), Step::Name("x".into())];
        assert_eq!(path.steps, names);
        assert_eq!(path.to_string(), "[{7,-1}]@3.points[1].x");
        assert_eq!("a".parse::<Path>().unwrap().steps, [Step::Name("a".into())]);
        assert_eq!("[0x10]".parse::<Path>().unwrap().entry, Some(Selector(vec![16])));
    }

    #[test]
    fn says_where_it_stops_understanding() {
        for (text, at) in [("a..b", 2), ("[", 1), ("[1", 2), ("[{1,]", 4), ("a b", 1), ("a[-1]", 5)] {
            let Err(PathError::Syntax { at: found, .. }) = text.parse::<Path>() else { panic!("{text}") };
            assert_eq!(found, at, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_path_or_an_error(text in "[\\[\\]{}@a-c0-9x.,>\\-]{0,24}|\\PC{0,12}") {
            if let Ok(path) = text.parse::<Path>() {
                prop_assert_eq!(path.to_string().parse::<Path>().unwrap(), path);
            }
        }
    }
}
