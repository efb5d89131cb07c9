//! A program to be analysed: instructions, functions, and what its constants and calls mean.
//!
//! Where it came from (a running guest, an object file) is settled before: addresses and relocations
//! are [`Meaning`]s here.

use std::collections::HashMap;
use std::sync::Arc;

use super::insn::Insn;
use crate::types::{TypeRef, TypeSet};

/// A program.
#[derive(Clone, Debug)]
pub struct Code {
    /// What it is called in messages.
    pub name: String,
    /// Its instructions.
    pub insns: Vec<Insn>,
    /// Its functions by ascending start; the first is the program's entry.
    pub functions: Vec<CodeFunction>,
    /// The types of its object.
    pub types: Arc<TypeSet>,
    /// What 64-bit constants mean, by instruction.
    pub constants: HashMap<usize, Meaning>,
    /// What calls mean, by instruction.
    pub calls: HashMap<usize, Callee>,
    /// What per-CPU variables of the kernel point at, by the address that the program names.
    pub cpu_pointers: HashMap<u64, TypeRef>,
}

/// A function of a program.
#[derive(Clone, Debug)]
pub struct CodeFunction {
    /// Its first instruction.
    pub start: usize,
    /// What its arguments point at; only where the compiler could not have changed them.
    pub takes: Vec<Option<TypeRef>>,
    /// What the source of a static function says of its arguments: see [`super::signature`].
    pub static_takes: Vec<Option<TypeRef>>,
    /// Of an entry point: the types of its context's words, the arguments of the kernel's function.
    pub context: Vec<Option<TypeRef>>,
}

/// A map, as far as it matters here.
#[derive(Clone, Debug)]
pub struct CodeMap {
    /// What its values are.
    pub value: Option<TypeRef>,
    /// Whether CPUs have values of their own.
    pub per_cpu: bool,
    /// Bytes from one value of an array to the next.
    pub stride: u64,
    /// How far from the map's address the kernel's inlined look-up finds the first value.
    pub first: Option<u64>,
    /// The same for the pointers of a per-CPU array.
    pub pointers: Option<u64>,
    /// How far from a hash's element its value is.
    pub in_element: Option<u64>,
}

impl Callee {
    /// A function of the kernel that gives a pointer to this.
    pub fn returning(to: TypeRef) -> Self {
        Self::Kernel { takes: Vec::new(), returns: Some(to) }
    }
}

/// What a 64-bit constant means.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// A map.
    Map(Arc<CodeMap>),
    /// A place in a global section.
    Global {
        /// The section's type.
        section: TypeRef,
        /// Bytes into it.
        offset: u64,
    },
    /// Something with an address.
    Address,
}

/// What a call means.
#[derive(Clone, Debug)]
pub enum Callee {
    /// Another function of the program.
    Function(usize),
    /// A value of the map in the first argument.
    MapValue,
    /// An element of the hash in the first argument.
    HashElement,
    /// Stores the third argument's bytes as a value of the map in the first.
    MapUpdate,
    /// A function of the kernel that takes and returns pointers to these.
    Kernel {
        /// Arguments.
        takes: Vec<Option<TypeRef>>,
        /// What it gives.
        returns: Option<TypeRef>,
    },
    /// Puts the pointer in the second argument where the first one leads, and gives what was there.
    Exchange,
    /// Says that the first argument points at the kernel's type whose number the second one is.
    KernelCast(Arc<TypeSet>),
    /// Nothing that matters, and it writes to no memory of the program's stack.
    Reader,
    /// Anything.
    Unknown,
}
