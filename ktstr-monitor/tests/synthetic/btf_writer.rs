//! Writes `.BTF` sections: just enough kinds for kernel structures.

/// A BTF section under construction. Type ids begin at 1.
#[derive(Clone)]
pub struct BtfWriter {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

/// A member as (name, type id, offset in bits).
pub type Member<'n> = (&'n str, u32, u32);

impl BtfWriter {
    pub fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], count: 0 }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// Appends a type from its raw words and returns its id.
    pub fn raw(&mut self, name: &str, info: u32, size_or_type: u32, rest: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, info, size_or_type].iter().chain(rest) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    pub fn int(&mut self, name: &str, size: u32, signed: bool) -> u32 {
        self.raw(name, 1 << 24, size, &[(u32::from(signed) << 24) | (size * 8)])
    }

    pub fn pointer(&mut self, to: u32) -> u32 {
        self.raw("", 2 << 24, to, &[])
    }

    pub fn array(&mut self, of: u32, index: u32, len: u32) -> u32 {
        self.raw("", 3 << 24, 0, &[of, index, len])
    }

    pub fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.raw(name, 8 << 24, of, &[])
    }

    pub fn structure(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        self.aggregate(name, 4 << 24, size, members)
    }

    pub fn union(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        self.aggregate(name, 5 << 24, size, members)
    }

    /// A structure whose member offsets carry a bitfield size in their upper byte.
    pub fn bitfields(&mut self, name: &str, size: u32, members: &[Member<'_>]) -> u32 {
        self.aggregate(name, (1 << 31) | (4 << 24), size, members)
    }

    fn aggregate(&mut self, name: &str, kind: u32, size: u32, members: &[Member<'_>]) -> u32 {
        let mut rest = Vec::new();
        for &(name, of, bit) in members {
            rest.extend([self.string(name), of, bit]);
        }
        self.raw(name, kind | members.len() as u32, size, &rest)
    }

    /// The id the next type will get: for types that refer to themselves.
    pub fn next_id(&self) -> u32 {
        self.count + 1
    }

    pub fn section(&self) -> Vec<u8> {
        let mut section = 0x0001_eb9fu32.to_le_bytes().to_vec();
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            section.extend_from_slice(&word.to_le_bytes());
        }
        section.extend_from_slice(&self.types);
        section.extend_from_slice(&self.strings);
        section
    }
}
