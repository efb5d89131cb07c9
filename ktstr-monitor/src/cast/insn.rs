//! BPF instructions (`Documentation/bpf/standardization/instruction-set.rst`), and the forms that the
//! kernel gives them on loading.

/// An instruction; the second half of a 16-byte one is one of its own with code 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination register.
    pub dst: u8,
    /// Source register.
    pub src: u8,
    /// Offset.
    pub off: i16,
    /// Immediate.
    pub imm: i32,
}

/// What an instruction belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Loads an immediate.
    Load,
    /// Loads from memory.
    LoadMem,
    /// Stores an immediate.
    Store,
    /// Stores a register, or does something atomic.
    StoreReg,
    /// Computes with 32 bits.
    Alu32,
    /// Jumps.
    Jump,
    /// Jumps on 32 bits.
    Jump32,
    /// Computes with 64 bits.
    Alu64,
}

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As any memory; the kernel may have made it survive faults.
    Plain,
    /// Through the arena's window.
    Arena,
    /// Atomic.
    Atomic,
    /// Atomic, in the arena.
    ArenaAtomic,
    /// Something else.
    Other,
}

pub(super) const EXIT: u8 = 0x95;
pub(super) const CALL: u8 = 0x85;
pub(super) const LD_IMM64: u8 = 0x18;
/// `src` of a call to another function of the program.
pub(super) const PSEUDO_CALL: u8 = 1;
/// `src` of a call to a function of the kernel by its BTF number.
pub(super) const PSEUDO_KFUNC: u8 = 2;

pub(super) const ADD: u8 = 0x00;
pub(super) const SUB: u8 = 0x10;
pub(super) const MUL: u8 = 0x20;
pub(super) const DIV: u8 = 0x30;
pub(super) const LSH: u8 = 0x60;
pub(super) const MOD: u8 = 0x90;
pub(super) const MOV: u8 = 0xb0;

impl Insn {
    /// Takes one apart.
    pub fn decode(bytes: [u8; 8]) -> Self {
        let [code, regs, off0, off1, imm @ ..] = bytes;
        Self {
            code,
            dst: regs & 15,
            src: regs >> 4,
            off: i16::from_le_bytes([off0, off1]),
            imm: i32::from_le_bytes(imm),
        }
    }

    /// Its class.
    pub fn class(self) -> Class {
        match self.code & 7 {
            0 => Class::Load,
            1 => Class::LoadMem,
            2 => Class::Store,
            3 => Class::StoreReg,
            4 => Class::Alu32,
            5 => Class::Jump,
            6 => Class::Jump32,
            _ => Class::Alu64,
        }
    }

    /// How it accesses memory.
    pub fn mode(self) -> Mode {
        match (self.code & 0xe0, self.class()) {
            // MEM, MEMSX and what the kernel makes of them for pointers that may be wild.
            (0x60 | 0x80 | 0x20 | 0x40, _) => Mode::Plain,
            (0xa0, _) | (0xc0, Class::LoadMem) => Mode::Arena,
            (0xc0, _) => Mode::Atomic,
            (0xe0, _) => Mode::ArenaAtomic,
            _ => Mode::Other,
        }
    }

    /// Bytes that it accesses.
    pub fn size(self) -> u64 {
        match self.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => 8,
        }
    }

    /// The arithmetic operation.
    pub fn op(self) -> u8 {
        self.code & 0xf0
    }

    /// Whether the second operand is a register.
    pub fn by_register(self) -> bool {
        self.code & 8 != 0
    }

    /// Where it may go on besides the next instruction, relative to that one.
    pub fn jump(self) -> Option<i64> {
        match (self.class(), self.op()) {
            (Class::Jump, 0x80 | 0x90) | (Class::Jump32, 0x80 | 0x90) => None,
            // `gotol` has its distance in the immediate.
            (Class::Jump32, 0x00) => Some(self.imm.into()),
            (Class::Jump | Class::Jump32, _) => Some(self.off.into()),
            _ => None,
        }
    }

    /// Whether the next instruction is never reached from it.
    pub fn ends(self) -> bool {
        self.code == EXIT || matches!(self.class(), Class::Jump | Class::Jump32) && self.op() == 0x00
    }
}
