//! Values in a capture's JSON, with the place they came from.

use std::sync::LazyLock;

use serde_json::Value as Json;

use super::error::{SnapshotError, near};

/// Pointers followed along one path.
const MAX_HOPS: u32 = 16;

/// A value and where it is.
#[derive(Debug, Clone)]
pub struct Field<'s> {
    place: String,
    json: &'s Json,
    /// JSON that means nothing but itself: what the scheduler said, not what the monitor rendered.
    plain: bool,
}

/// A BPF map.
#[derive(Debug, Clone, Copy)]
pub struct MapView<'s> {
    name: &'s str,
    entries: &'s [Json],
    left_off: u64,
    damage: &'s [Json],
}

/// An entry of a map; in per-CPU maps with a value for each CPU.
#[derive(Debug, Clone)]
pub struct Entry<'s> {
    place: String,
    key: &'s str,
    cells: Vec<&'s Json>,
}

/// A name or an index of a path.
enum Step<'p> {
    Name(&'p str),
    Index(u64),
}

fn steps(path: &str) -> Result<Vec<Step<'_>>, SnapshotError> {
    let wrong = || SnapshotError::EmptyPathComponent { path: path.to_owned() };
    let mut steps = Vec::new();
    for (nth, part) in path.split('.').enumerate() {
        let (name, mut rest) = part.split_at(part.find('[').unwrap_or(part.len()));
        match name {
            "" if rest.is_empty() || nth > 0 => return Err(wrong()),
            "" => {}
            name => steps.push(Step::Name(name)),
        }
        while !rest.is_empty() {
            let inside = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).ok_or_else(wrong)?;
            steps.push(Step::Index(inside.0.parse().map_err(|_| wrong())?));
            rest = inside.1;
        }
    }
    Ok(steps)
}

/// Why there is no value, where the monitor said so.
fn missing(json: &Json) -> Option<&str> {
    let object = json.as_object().filter(|object| object.len() == 1)?;
    object.get("unreadable").or_else(|| object.get("absent"))?.as_str()
}

/// What a followed pointer leads to.
fn pointee(json: &Json) -> Option<&Json> {
    let object = json.as_object()?;
    if object.contains_key("address") && object.contains_key("to") { object.get("value") } else { None }
}

impl<'s> Field<'s> {
    pub(super) fn new(place: String, json: &'s Json) -> Self {
        Self { place, json, plain: false }
    }

    /// JSON that nobody has rendered: `null` is no pointer, an object with an address no pointee.
    pub(super) fn plain(json: &'s Json) -> Self {
        Self { place: String::new(), json, plain: true }
    }

    /// Where it is: its map and its path.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// As it stands in the capture.
    pub fn raw(&self) -> &'s Json {
        self.json
    }

    /// A part of it: members by name, elements by index, pointers followed.
    pub fn get(&self, path: &str) -> Result<Self, SnapshotError> {
        let mut here = self.clone();
        let mut hops = 0;
        for step in steps(path)? {
            while let Some(to) = pointee(here.json).filter(|_| hops < MAX_HOPS && !here.plain) {
                here.json = to;
                hops += 1;
            }
            if let Some(why) = here.missing() {
                return Err(SnapshotError::NoRendered { of: here.place, why: why.to_owned() });
            }
            here = match step {
                Step::Name(name) => here.member(name)?,
                Step::Index(index) => here.element(index)?,
            };
        }
        Ok(here)
    }

    fn missing(&self) -> Option<&'s str> {
        if self.plain { None } else { missing(self.json) }
    }

    /// The member of that name, in which dots and brackets mean nothing.
    pub fn key(&self, name: &str) -> Result<Self, SnapshotError> {
        self.clone().member(name)
    }

    fn member(self, name: &str) -> Result<Self, SnapshotError> {
        let Some(object) = self.json.as_object() else {
            let found = brief(self.json);
            return Err(SnapshotError::NotAStruct { of: self.place, field: name.to_owned(), found });
        };
        match object.get(name) {
            Some(json) if self.place.is_empty() => Ok(Self { place: name.to_owned(), json, ..self }),
            Some(json) => Ok(Self { place: format!("{}.{name}", self.place), json, ..self }),
            None => {
                let there = near(name, object.keys().map(String::as_str));
                Err(SnapshotError::FieldNotFound { field: name.to_owned(), of: self.place, there })
            }
        }
    }

    /// Arrays are lists, long ones objects of runs: `{"[0..99]": 4, "[100]": 5}`.
    fn element(self, index: u64) -> Result<Self, SnapshotError> {
        let place = format!("{}[{index}]", self.place);
        let out = |len| SnapshotError::IndexOutOfRange { of: self.place.clone(), index, len };
        let found = match self.json {
            Json::Array(items) => {
                let item = usize::try_from(index).ok().and_then(|index| items.get(index));
                item.ok_or_else(|| out(items.len() as u64))?
            }
            Json::Object(runs)
                if !self.plain && runs.keys().all(|name| name.starts_with('[') || name == "left_off") =>
            {
                let ranges = || runs.iter().filter_map(|(name, value)| Some((range(name)?, value)));
                let holds = |((first, last), _): &((u64, u64), &Json)| (*first..=*last).contains(&index);
                let len = || ranges().map(|((_, last), _)| last + 1).max().unwrap_or(0);
                ranges().find(holds).map(|(_, value)| value).ok_or_else(|| out(len()))?
            }
            other => {
                let found = brief(other);
                return Err(SnapshotError::TypeMismatch { of: self.place, wanted: "array", found });
            }
        };
        Ok(Self { place, json: found, plain: self.plain })
    }

    fn scalar<T>(&self, wanted: &'static str, read: impl Fn(&Json) -> Option<T>) -> Result<T, SnapshotError> {
        if let Some(why) = self.missing() {
            return Err(SnapshotError::NoRendered { of: self.place.clone(), why: why.to_owned() });
        }
        read(self.json).ok_or_else(|| SnapshotError::TypeMismatch {
            of: self.place.clone(),
            wanted,
            found: brief(self.json),
        })
    }

    /// A number without sign; a pointer's address.
    pub fn as_u64(&self) -> Result<u64, SnapshotError> {
        self.scalar("u64", |json| match json {
            json if self.plain => json.as_u64(),
            // Only pointers are written so: what has no value says why.
            Json::Null => Some(0),
            Json::Object(object) => address(object.get("address")?.as_str()?),
            Json::String(text) => address(text),
            json => json.as_u64(),
        })
    }

    /// A number.
    pub fn as_i64(&self) -> Result<i64, SnapshotError> {
        self.scalar("i64", Json::as_i64)
    }

    /// A number as a floating-point one.
    pub fn as_f64(&self) -> Result<f64, SnapshotError> {
        self.scalar("number", Json::as_f64)
    }

    /// A truth value; a number is true unless it is 0.
    pub fn as_bool(&self) -> Result<bool, SnapshotError> {
        self.scalar("bool", |json| json.as_bool().or_else(|| json.as_f64().map(|number| number != 0.0)))
    }

    /// A text; the name of an enumerator.
    pub fn as_str(&self) -> Result<&'s str, SnapshotError> {
        let json = self.json;
        self.scalar("text", |_| json.as_str())
    }
}

fn address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn range(name: &str) -> Option<(u64, u64)> {
    let inside = name.strip_prefix('[')?.strip_suffix(']')?;
    match inside.split_once("..") {
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
        None => inside.parse().ok().map(|index| (index, index)),
    }
}

fn brief(json: &Json) -> String {
    match json {
        Json::Null => "NULL".to_owned(),
        Json::Object(object) => format!("a structure of {} members", object.len()),
        Json::Array(items) => format!("an array of {} elements", items.len()),
        json => {
            let text = json.to_string();
            match text.char_indices().nth(60) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}

impl<'s> MapView<'s> {
    pub(super) fn new(name: &'s str, map: &'s Json) -> Self {
        let entries = map.get("entries").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let left_off = map.get("left_off").and_then(Json::as_u64).unwrap_or(0);
        let damage = map.get("damage").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        Self { name, entries, left_off, damage }
    }

    /// Entries that the capture does not hold: a map's first 4096 are read.
    pub fn left_off(&self) -> u64 {
        self.left_off
    }

    /// An error where entries are missing: what is not found among those that are there may be among these.
    fn complete(&self) -> Result<(), SnapshotError> {
        if self.left_off == 0 && self.damage.is_empty() {
            return Ok(());
        }
        let damage = self.damage.iter().filter_map(missing).next().unwrap_or_default();
        let damage = damage.to_owned();
        Err(SnapshotError::Incomplete { map: self.name.to_owned(), left_off: self.left_off, damage })
    }

    /// Its name in the kernel.
    pub fn name(&self) -> &'s str {
        self.name
    }

    /// Its entries, those of one key together.
    pub fn entries(&self) -> Vec<Entry<'s>> {
        let mut all: Vec<Entry<'s>> = Vec::new();
        for cell in self.entries {
            let key = cell.get("key").and_then(Json::as_str).unwrap_or_default();
            let of_a_cpu = cell.get("cpu").is_some_and(|cpu| !cpu.is_null());
            match all.last_mut().filter(|last| of_a_cpu && last.key == key) {
                Some(last) => last.cells.push(cell),
                None => all.push(Entry { place: format!("{}{key}", self.name), key, cells: vec![cell] }),
            }
        }
        all
    }

    /// The entry at that position: the index of an array, the order of walking of other maps.
    pub fn at(&self, nth: usize) -> Result<Entry<'s>, SnapshotError> {
        let all = self.entries();
        let (of, len) = (self.name.to_owned(), all.len() as u64);
        let out = SnapshotError::IndexOutOfRange { of, index: nth as u64, len };
        let found = all.into_iter().nth(nth);
        found.ok_or_else(|| self.complete().err().unwrap_or(out))
    }

    /// The first entry that `wanted` holds of.
    pub fn find(&self, wanted: impl Fn(&Entry<'s>) -> bool) -> Result<Entry<'s>, SnapshotError> {
        self.entries().into_iter().find(wanted).ok_or_else(|| self.no_match())
    }

    /// All entries that `wanted` holds of; an error where the capture does not hold all entries.
    pub fn filter(&self, wanted: impl Fn(&Entry<'s>) -> bool) -> Result<Vec<Entry<'s>>, SnapshotError> {
        self.complete()?;
        Ok(self.entries().into_iter().filter(|entry| wanted(entry)).collect())
    }

    /// The entry of which `measure` gives the most; those it gives nothing for are left out. An error where the
    /// capture does not hold all entries.
    pub fn max_by(
        &self,
        measure: impl Fn(&Entry<'s>) -> Result<f64, SnapshotError>,
    ) -> Result<Entry<'s>, SnapshotError> {
        self.complete()?;
        let measured = self.entries().into_iter().filter_map(|entry| Some((measure(&entry).ok()?, entry)));
        measured.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, entry)| entry).ok_or_else(|| self.no_match())
    }

    fn no_match(&self) -> SnapshotError {
        let none = SnapshotError::NoMatch { map: self.name.to_owned(), entries: self.entries().len() };
        self.complete().err().unwrap_or(none)
    }
}

impl<'s> Entry<'s> {
    /// Its key, as the capture writes it: `[3]`, `[1412] "name"`.
    pub fn key(&self) -> &'s str {
        self.key
    }

    /// Its value, where there is one for all CPUs.
    pub fn value(&self) -> Result<Field<'s>, SnapshotError> {
        match self.cells[..] {
            [cell] => Ok(self.field(cell)),
            _ => Err(SnapshotError::PerCpuNotNarrowed { of: self.place.clone(), cpus: self.cells.len() }),
        }
    }

    /// The value of one CPU.
    pub fn cpu(&self, cpu: u32) -> Result<Field<'s>, SnapshotError> {
        let is_it = |cell: &&&Json| cell.get("cpu").and_then(Json::as_u64) == Some(cpu.into());
        match self.cells.iter().find(is_it) {
            Some(cell) => Ok(self.field(cell)),
            None => {
                let cpus = self.cells.len();
                Err(SnapshotError::PerCpuSlot { of: self.place.clone(), cpu, cpus })
            }
        }
    }

    /// The values of all CPUs, in their order.
    pub fn cpus(&self) -> impl Iterator<Item = Field<'s>> + '_ {
        self.cells.iter().map(|cell| self.field(cell))
    }

    fn field(&self, cell: &'s Json) -> Field<'s> {
        static NOTHING: LazyLock<Json> =
            LazyLock::new(|| serde_json::json!({"unreadable": "the capture has no value here"}));
        Field::new(self.place.clone(), cell.get("value").unwrap_or(&NOTHING))
    }

    /// A part of its value.
    pub fn get(&self, path: &str) -> Result<Field<'s>, SnapshotError> {
        self.value()?.get(path)
    }

    /// Its value as a number.
    pub fn as_u64(&self) -> Result<u64, SnapshotError> {
        self.value()?.as_u64()
    }
}
