//! Where the running kernel has the symbols that the monitor depends on.
//!
//! Reading `/proc/kallsyms` to its end formats 200,000 names: 0.6 s under an emulator, 2 s of virtual time under `det`.
//! The kernel looks single names up in the same table for a BPF program of type `BPF_PROG_TYPE_SYSCALL`
//! (`bpf_kallsyms_lookup_name()`, kernel/bpf/syscall.c). So one small program asks for all of them, runs once and is
//! gone.

use std::{io, os::fd::AsRawFd};

use ktstr_proto::symbols::{COMPARED, SymbolsTold};

use super::bpf::{self, PROG_LOAD, PROG_TEST_RUN};

/// `BPF_PROG_TYPE_SYSCALL`.
const TYPE: u32 = 31;
/// `BPF_F_SLEEPABLE`, which programs of this type must be.
const SLEEPABLE: u32 = 1 << 4;
/// `BPF_FUNC_kallsyms_lookup_name`.
const LOOKUP: i32 = 179;
/// Where in the frame the answer is written, and the longest name with its NUL before it.
const ANSWER_AT: i16 = -8;
const NAME_AT: i16 = ANSWER_AT - 32;

/// Asks for all of them; the words say what the kernel refused.
pub fn ask() -> SymbolsTold {
    let said = |what: &str, error: io::Error| format!("{what}: {error}");
    let insns = program();
    let mut words = [0; 12];
    words[0] = TYPE;
    words[1] = insns.len() as u32;
    words[2..4].copy_from_slice(&bpf::address(insns.as_ptr()));
    words[4..6].copy_from_slice(&bpf::address(c"Dual MIT/GPL".as_ptr()));
    words[11] = SLEEPABLE; // prog_flags
    let program = bpf::descriptor(PROG_LOAD, words).map_err(|e| said("bpf(BPF_PROG_LOAD)", e))?;
    let mut answers = [0u64; COMPARED.len()];
    let mut words = [0; 14];
    words[0] = program.as_raw_fd() as u32;
    words[10] = size_of_val(&answers) as u32; // ctx_size_in
    words[12..14].copy_from_slice(&bpf::address(answers.as_mut_ptr())); // ctx_in
    bpf::bpf(PROG_TEST_RUN, &mut words).map_err(|e| said("bpf(BPF_PROG_TEST_RUN)", e))?;
    // Nothing of these kernels lies at 0; the answer for what they do not know is 0.
    Ok(answers.map(|at| (at != 0).then_some(at)))
}

/// For each name: written into the frame, looked up, and the answer stored in the context.
fn program() -> Vec<u64> {
    let [r0, r1, r2, r3, r4, r6, fp] = [0, 1, 2, 3, 4, 6, 10];
    let mut insns = vec![insn(MOV_REG, r6, r1, 0, 0)];
    for (nth, name) in COMPARED.iter().enumerate() {
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        let len = text.len() as i32;
        text.resize(text.len().next_multiple_of(4), 0);
        for (word, at) in text.chunks_exact(4).zip((NAME_AT..).step_by(4)) {
            let word = i32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            insns.push(insn(STORE_WORD, fp, 0, at, word));
        }
        insns.extend([
            insn(MOV_REG, r1, fp, 0, 0),
            insn(ADD, r1, 0, 0, NAME_AT.into()),
            insn(MOV, r2, 0, 0, len),
            insn(MOV, r3, 0, 0, 0),
            insn(MOV_REG, r4, fp, 0, 0),
            insn(ADD, r4, 0, 0, ANSWER_AT.into()),
            insn(CALL, 0, 0, 0, LOOKUP),
            insn(LOAD, r1, fp, ANSWER_AT, 0),
            insn(STORE_REG, r6, r1, nth as i16 * 8, 0),
        ]);
    }
    insns.extend([insn(MOV, r0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    insns
}

/// `BPF_ALU64 | BPF_MOV | BPF_X` and so on, by what they do with 64 bits unless they say otherwise.
const MOV_REG: u8 = 0xbf;
const MOV: u8 = 0xb7;
const ADD: u8 = 0x07;
const STORE_WORD: u8 = 0x62;
const STORE_REG: u8 = 0x7b;
const LOAD: u8 = 0x79;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// `struct bpf_insn`.
fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    u64::from(code)
        | u64::from(dst | src << 4) << 8
        | u64::from(off as u16) << 16
        | u64::from(imm as u32) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_room_in_the_frame() {
        for name in COMPARED {
            assert!(name.len() < usize::from((ANSWER_AT - NAME_AT) as u16), "{name}");
        }
        let mut names = COMPARED.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COMPARED.len());
    }

    #[test]
    fn the_program_asks_for_each_name_once_and_stores_each_answer_in_its_place() {
        let program = program();
        let code = |code: u8| program.iter().filter(move |insn| **insn as u8 == code);
        assert_eq!(code(CALL).count(), COMPARED.len());
        let places: Vec<u64> = code(STORE_REG).map(|insn| insn >> 16 & 0xffff).collect();
        let expected: Vec<u64> = (0..COMPARED.len() as u64).map(|nth| nth * 8).collect();
        assert_eq!(places, expected);
        assert_eq!(program.last().copied(), Some(EXIT.into()));
        // The first name, as it is written.
        let words = code(STORE_WORD).take(2).flat_map(|insn| ((insn >> 32) as u32).to_le_bytes());
        assert_eq!(words.collect::<Vec<_>>(), b"_text\0\0\0");
    }
}
