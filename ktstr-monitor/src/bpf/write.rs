//! Writing into maps: one scalar, found by path.
//!
//! A [`Writer`] is made from memory that was mapped for writing, and only a read-write attach maps it
//! so: a read-only monitor has no value of this type and so no way to write. The guest must stand: what
//! is found in a hash map may be freed, and the other bits of a bitfield written, before the store.
//! `.rodata` of a frozen map can be written as well: the guest's page tables are not consulted for
//! permission.

use thiserror::Error;

use super::map::{Cell, Entries, Entry, Key, MapInfo, Owner};
use super::path::{Path, PathError, Place, Selector, Step};
use super::reader::{BpfError, Reader};
use crate::addr::Kva;
use crate::mem::GuestMemMut;
use crate::paging::AccessError;
use crate::render::{Deref, Found, may_hide_pointer};
use crate::types::{Ty, TypeRef};

/// Why a field cannot be found or written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The map has no such entry.
    #[error("map `{map}` has no entry {entry}")]
    NoEntry {
        /// The map.
        map: String,
        /// What was looked for.
        entry: String,
    },
    /// Several maps, none of them the running scheduler's or more than one.
    #[error("several maps are called `{name}`: say which by its number ({})", maps.join(", "))]
    Ambiguous {
        /// The name asked for.
        name: String,
        /// The maps with their numbers.
        maps: Vec<String>,
    },
    /// Some of the map's entries cannot be read; it may be among them.
    #[error("map `{map}` has no entry {entry} among those that can be read, and {damaged} cannot")]
    Hidden {
        /// The map.
        map: String,
        /// What was looked for.
        entry: String,
        /// How many places could not be read.
        damaged: usize,
        /// The first of the reasons.
        #[source]
        source: BpfError,
    },
    /// The path does not select one entry.
    #[error("map `{map}` has several entries: the path must begin with `[key]`")]
    NeedsEntry {
        /// The map.
        map: String,
    },
    /// The path does not select one CPU.
    #[error("map `{map}` has a value per CPU: say which with `@cpu` after the key")]
    NeedsCpu {
        /// The map.
        map: String,
    },
    /// The map's values have no type.
    #[error("the values of map `{map}` have no type, so no path leads into them")]
    Untyped {
        /// The map.
        map: String,
    },
    /// The path leads nowhere.
    #[error("the path leads nowhere")]
    Path(#[from] PathError),
    /// A pointer on the way cannot be followed.
    #[error("the path runs into `{of}`, which cannot be followed: {why}")]
    Follow {
        /// The type.
        of: String,
        /// Why not.
        why: String,
    },
    /// The map cannot be read.
    #[error("the map cannot be read")]
    Read(#[from] BpfError),
    /// Not a number.
    #[error("`{of}` is no scalar")]
    NotScalar {
        /// The type.
        of: String,
    },
    /// The value does not fit.
    #[error("{value} does not fit into `{of}`")]
    TooLarge {
        /// The value.
        value: i128,
        /// The type.
        of: String,
    },
    /// Memory is not there.
    #[error("cannot write at {at}")]
    Write {
        /// Where.
        at: Kva,
        /// Why not.
        #[source]
        source: AccessError,
    },
}

/// A part of a map's value, found in memory.
#[derive(Clone, Debug)]
pub struct Located {
    /// Where the byte with its first bit is.
    pub at: Kva,
    /// Its type and, for bitfields, its bits.
    pub place: Place,
}

impl Reader<'_> {
    /// Finds what `path` means in `map`, following pointers on the way.
    pub fn locate(&self, map: &MapInfo, path: &Path, deref: &dyn Deref) -> Result<Located, WriteError> {
        let cell = self.select(map, path)?;
        let untyped = || WriteError::Untyped { map: map.name.clone() };
        let ty = map.value_type.as_ref().ok_or_else(untyped)?;
        self.walk(cell.at, ty, Some(map.value_size.into()), &path.steps, deref)
    }

    /// Goes `steps` into the `ty` at `base`, following pointers on the way. What is found ends within
    /// `room` bytes, or within the type that the last pointer leads to, where that has a size.
    pub fn walk(
        &self,
        mut base: Kva,
        ty: &TypeRef,
        room: Option<u64>,
        steps: &[Step],
        deref: &dyn Deref,
    ) -> Result<Located, WriteError> {
        let mut place = Place::whole(ty.clone());
        let mut limit = room.or_else(|| ty.size());
        // The structure that the place is a member of, and where in it.
        let mut member: Option<(TypeRef, u64)> = None;
        for step in steps {
            if let Some(found) = self.follow(base, &place, member.as_ref(), deref)? {
                // A structure that ends in an array of no length has as many elements as it was given room for.
                limit = found.ty.size().filter(|_| !ends_open(&found.ty));
                (base, place) = (found.at, Place::whole(found.ty));
            }
            let next = place.step(step)?;
            member = place.ty.strip().and_then(|owner| {
                let named = matches!(owner.set.ty(owner.id)?, Ty::Composite(_) | Ty::Section { .. });
                named.then(|| (owner, next.offset - place.offset))
            });
            place = next;
        }
        let at = base.checked_add(place.offset).unwrap_or(Kva(u64::MAX));
        if limit.is_some_and(|limit| end_of(&place).is_none_or(|end| end > limit)) {
            return Err(PathError::Outside { of: ty.name() }.into());
        }
        Ok(Located { at, place })
    }

    /// Where the pointer at `place` leads, if it is one, be it only by what programs do with it.
    fn follow(
        &self,
        base: Kva,
        place: &Place,
        member: Option<&(TypeRef, u64)>,
        deref: &dyn Deref,
    ) -> Result<Option<Found>, WriteError> {
        let damaged = || PathError::Damaged { of: place.ty.name() };
        let (_, stripped) = place.ty.set.strip(place.ty.id).ok_or_else(damaged)?;
        let cast = member
            .filter(|_| may_hide_pointer(&place.ty))
            .and_then(|(owner, offset)| deref.cast(owner, *offset));
        let pointee = match (cast, stripped) {
            (Some(cast), _) => cast.to,
            (None, Ty::Ptr(to)) => place.ty.with(*to),
            (None, _) => return Ok(None),
        };
        let pointer = self.word(base.wrapping_add(place.offset), "a pointer on the path")?;
        let follow = |why: String| WriteError::Follow { of: place.ty.name(), why };
        deref.find(pointer, &pointee).map(Some).map_err(follow)
    }

    /// The one value that `path` begins with.
    pub fn select(&self, map: &MapInfo, path: &Path) -> Result<Cell, WriteError> {
        let entry = self.select_entry(map, path)?;
        let several = entry.cells.len() > 1;
        let name = || map.name.clone();
        let cell = match path.cpu {
            None if several => return Err(WriteError::NeedsCpu { map: name() }),
            None => entry.cells.into_iter().next(),
            Some(cpu) => entry.cells.into_iter().find(|cell| cell.cpu.is_some_and(|own| own.0 == cpu)),
        };
        let entry = path.cpu.map_or_else(String::new, |cpu| format!("@{cpu}"));
        cell.ok_or(WriteError::NoEntry { map: name(), entry })
    }

    fn select_entry(&self, map: &MapInfo, path: &Path) -> Result<Entry, WriteError> {
        let limits = super::Limits { entries: usize::MAX, bytes: 256 << 20 };
        let Entries { items: entries, damage, .. } = self.entries(map, limits)?;
        let Some(selector) = &path.entry else {
            return match <[Entry; 1]>::try_from(entries) {
                Ok([only]) => Ok(only),
                Err(_) => Err(WriteError::NeedsEntry { map: map.name.clone() }),
            };
        };
        let shown = Path { entry: Some(selector.clone()), ..Path::default() }.to_string();
        let no_entry = || match damage.first() {
            None => WriteError::NoEntry { map: map.name.clone(), entry: shown.clone() },
            Some(source) => WriteError::Hidden {
                map: map.name.clone(),
                entry: shown.clone(),
                damaged: damage.len(),
                source: source.clone(),
            },
        };
        let matches = |entry: &Entry| key_is(map, &entry.key, selector);
        entries.into_iter().find(matches).ok_or_else(no_entry)
    }
}

/// Bytes from the start of the value to the end of the place.
fn end_of(place: &Place) -> Option<u64> {
    let len = match place.bits {
        Some((low, width)) => (u64::from(low) + u64::from(width)).div_ceil(8),
        None => place.ty.size()?,
    };
    place.offset.checked_add(len)
}

/// Whether it ends in a flexible array.
fn ends_open(ty: &TypeRef) -> bool {
    let last = ty.strip().and_then(|ty| match ty.set.ty(ty.id)? {
        Ty::Composite(composite) => Some(ty.with(composite.members.last()?.ty)),
        _ => None,
    });
    last.is_some_and(|last| matches!(last.set.strip(last.id), Some((_, Ty::Array { len: 0, .. }))))
}

/// Whether the key is what the selector says.
fn key_is(map: &MapInfo, key: &Key, Selector(numbers): &Selector) -> bool {
    let one = |value: i128| numbers[..] == [value];
    match key {
        Key::Only => one(0),
        Key::Index(index) => one((*index).into()),
        Key::Record { position, .. } => one((*position).into()),
        Key::Owner(Owner::Task { pid, .. }) => pid.as_ref().is_ok_and(|&pid| one(pid.into())),
        Key::Owner(Owner::Cgroup { id, .. }) => id.as_ref().is_ok_and(|&id| one(id.into())),
        Key::Owner(Owner::Object { at }) => one(at.0.into()),
        Key::Bytes(bytes) => encode_key(map, numbers).as_deref() == Some(&bytes[..]),
    }
}

/// The bytes of a key whose members, in order, have these values; members left out are 0.
fn encode_key(map: &MapInfo, numbers: &[i128]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; map.key_size as usize];
    let mut put = |offset: u64, size: u64, value: i128| {
        let at = usize::try_from(offset).ok()?;
        let size = usize::try_from(size).ok().filter(|size| *size <= 16)?;
        // A number that does not fit is another key.
        let bits = (size * 8) as u32;
        if bits < 128 && !(-(1i128 << (bits.max(1) - 1))..1i128 << bits).contains(&value) {
            return None;
        }
        bytes.get_mut(at..at.checked_add(size)?)?.copy_from_slice(&value.to_le_bytes()[..size]);
        Some(())
    };
    let composite = map.key_type.as_ref().and_then(|ty| {
        let Ty::Composite(composite) = ty.set.strip(ty.id)?.1 else { return None };
        Some((ty, composite))
    });
    match composite {
        None => {
            let [value] = numbers else { return None };
            put(0, u64::from(map.key_size).min(16), *value)?;
        }
        Some((ty, composite)) => {
            if numbers.len() > composite.members.len() {
                return None;
            }
            for (member, value) in composite.members.iter().zip(numbers) {
                put(member.bit / 8, ty.set.size(member.ty)?, *value)?;
            }
        }
    }
    Some(bytes)
}

/// Writes into the maps of a guest.
#[derive(Debug)]
pub struct Writer<'a> {
    reader: &'a Reader<'a>,
    mem: &'a GuestMemMut,
}

impl<'a> Writer<'a> {
    /// Writes to `mem`, of which `reader` must be a view.
    pub fn new(reader: &'a Reader<'a>, mem: &'a GuestMemMut) -> Self {
        Self { reader, mem }
    }

    /// Sets the scalar at `path` in `map`. Returns where it was.
    pub fn write_field(
        &self,
        map: &MapInfo,
        path: &Path,
        value: i128,
        deref: &dyn Deref,
    ) -> Result<Located, WriteError> {
        let located = self.reader.locate(map, path, deref)?;
        self.store(&located, value)?;
        Ok(located)
    }

    fn store(&self, located: &Located, value: i128) -> Result<(), WriteError> {
        let ty = &located.place.ty;
        let of = || ty.name();
        let (_, stripped) = ty.set.strip(ty.id).ok_or_else(|| WriteError::NotScalar { of: of() })?;
        let size = match stripped {
            Ty::Int { size, .. } => *size,
            Ty::Enum(values) => values.size,
            Ty::Ptr(_) => 8,
            _ => return Err(WriteError::NotScalar { of: of() }),
        };
        let width = located.place.bits.map_or(size * 8, |(_, width)| width.into());
        if !(1..=64).contains(&width) {
            return Err(WriteError::NotScalar { of: of() });
        }
        // Either reading of the bits is welcome: -1 and 0xff are the same byte.
        if value < -(1i128 << (width - 1)) || value >= 1i128 << width {
            return Err(WriteError::TooLarge { value, of: of() });
        }
        let at = located.at;
        let write = |bytes: &[u8]| self.write(at, bytes);
        let Some((low, width)) = located.place.bits else {
            return write(&value.to_le_bytes()[..size as usize]);
        };
        // Up to nine bytes hold 64 bits that begin within a byte.
        let len = (usize::from(low) + usize::from(width)).div_ceil(8);
        let mut bytes = [0; 16];
        let old = self.reader.bytes(at, len as u64, "a bitfield")?;
        bytes[..len].copy_from_slice(&old);
        let mask = ((1u128 << width) - 1) << low;
        let new = (u128::from_le_bytes(bytes) & !mask) | ((value as u128) << low & mask);
        write(&new.to_le_bytes()[..len])
    }

    fn write(&self, at: Kva, bytes: &[u8]) -> Result<(), WriteError> {
        let written = self.reader.mem().write_through(self.mem, at, bytes);
        written.map_err(|source| WriteError::Write { at, source })
    }
}
