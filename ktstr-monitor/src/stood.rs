//! Where the vCPUs stood: their registers, told by what runs them, with the kernel's names; and as the
//! `NT_PRSTATUS` notes of a core file.
//!
//! A guest has registers as it likes: none of them is followed here.

use std::fmt::Write as _;

use ktstr_proto::registers::{Registers, VcpuRegisters};

use crate::addr::Kva;
use crate::kernel::{Gap, LiveKernel, Profile, Reading, View};
use crate::node::Node;

/// `NT_PRSTATUS` of include/uapi/linux/elf.h.
const NT_PRSTATUS: u32 = 1;
/// `sizeof(struct elf_prstatus)` on x86_64, include/linux/elfcore.h.
const PRSTATUS_LEN: usize = 336;
/// `pr_pid` in it.
const PR_PID: usize = 32;
/// `pr_reg` in it: 27 words.
const PR_REG: usize = 112;
/// The name of the notes, padded.
const CORE: &[u8; 8] = b"CORE\0\0\0\0";

/// As members of a capture: one for each vCPU.
pub fn node(profile: &Profile, live: &LiveKernel, registers: &Registers) -> Node {
    match registers {
        Ok(all) => {
            Node::List(all.iter().enumerate().map(|(cpu, one)| vcpu(profile, live, cpu, one)).collect())
        }
        Err(why) => Node::Absent(why.clone()),
    }
}

/// Of each vCPU.
pub fn places(profile: &Profile, live: &LiveKernel, registers: &[VcpuRegisters]) -> Vec<String> {
    let one = |of| place(profile, live, of).unwrap_or_else(|where_else| where_else.to_owned());
    registers.iter().map(one).collect()
}

/// For people.
pub fn text(profile: &Profile, live: &LiveKernel, registers: &Registers) -> String {
    let mut out = "\n== where CPUs stood ==\n".to_owned();
    // Writing to a String cannot fail.
    match registers {
        Ok(all) => {
            for ((cpu, one), at) in all.iter().enumerate().zip(places(profile, live, all)) {
                let _ = writeln!(
                    out,
                    "CPU {cpu}: {at}, rip {:#x}, rsp {:#x}, cr3 {:#x}",
                    one.rip, one.rsp, one.cr3
                );
            }
        }
        Err(why) => {
            let _ = writeln!(out, "unknown: {why}");
        }
    }
    out
}

fn vcpu(profile: &Profile, live: &LiveKernel, cpu: usize, of: &VcpuRegisters) -> Node {
    let at = match place(profile, live, of) {
        Ok(at) => Node::Text(at),
        Err(where_else) => Node::Absent(where_else.to_owned()),
    };
    let mut node = Node::map([("cpu", Node::from(cpu as u64)), ("at", at)]);
    let names = ["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    let words = [
        ("rip", of.rip),
        ("rsp", of.rsp),
        ("rbp", of.rbp),
        ("rax", of.rax),
        ("rbx", of.rbx),
        ("rcx", of.rcx),
        ("rdx", of.rdx),
        ("rsi", of.rsi),
        ("rdi", of.rdi),
    ];
    let rest = [
        ("rflags", of.rflags),
        ("cs", of.cs.into()),
        ("ss", of.ss.into()),
        ("ds", of.ds.into()),
        ("es", of.es.into()),
        ("fs", of.fs.into()),
        ("gs", of.gs.into()),
        ("fs_base", of.fs_base),
        ("gs_base", of.gs_base),
        ("cr3", of.cr3),
    ];
    for (name, value) in words.into_iter().chain(names.into_iter().zip(of.r8_to_r15)).chain(rest) {
        node = node.with(name, Node::Hex(value));
    }
    node
}

/// `function+0xoffset`, or what else it is.
fn place(profile: &Profile, live: &LiveKernel, of: &VcpuRegisters) -> Result<String, &'static str> {
    if of.cs & 3 == 3 {
        return Err("user space");
    }
    let link = Kva(of.rip.wrapping_sub(live.kaslr_shift()));
    let symbols = profile.symbols();
    let end = symbols.get("_einittext").or_else(|| symbols.get("_etext"));
    let text = symbols.get("_stext").zip(end).is_some_and(|(from, to)| from <= link && link < to);
    match symbols.at(link).filter(|_| text) {
        Some((name, offset)) => Ok(format!("{name}+{offset:#x}")),
        None => Err("outside of the kernel's image: a module, a compiled BPF program, or no kernel yet"),
    }
}

/// One note for each CPU that is online, in order: so does the kernel in its own dumps, and `crash` counts on it.
pub fn notes(view: &View<'_, '_>, registers: &[VcpuRegisters]) -> Reading<Vec<u8>> {
    let mask = view.profile.online_mask();
    let online = view.cpu_mask(view.live.at(mask), "__cpu_online_mask")?;
    let mut notes = Vec::new();
    for area in view.live.cpus() {
        if !online.cpus().any(|cpu| cpu == area.cpu.0) {
            continue;
        }
        let why = "those of a CPU that is online are missing";
        let of = registers.get(area.cpu.0 as usize).ok_or(Gap::Nothing { why })?;
        let curr = view.live.per_cpu(view.profile.runqueues(), *area);
        // It names the note; the registers are no less true without it.
        notes.extend(note(running(view, curr).unwrap_or(-1), of));
    }
    Ok(notes)
}

/// The thread id of the task that runs there.
fn running(view: &View<'_, '_>, rq: Kva) -> Reading<i32> {
    let unreadable = |what| move |source| Gap::Unreadable { what, source };
    let curr = rq.wrapping_add(view.offset("rq", "curr")?);
    let task = Kva(view.mem.read_u64(curr).map_err(unreadable("rq.curr"))?);
    let pid = task.wrapping_add(view.offset("task_struct", "pid")?);
    Ok(view.mem.read_u32(pid).map_err(unreadable("task_struct.pid"))? as i32)
}

/// `struct elf_prstatus` of one CPU as a note.
fn note(pid: i32, of: &VcpuRegisters) -> Vec<u8> {
    let [r8, r9, r10, r11, r12, r13, r14, r15] = of.r8_to_r15;
    // `struct user_regs_struct`, arch/x86/include/asm/user_64.h. No system call is under way: orig_ax is -1.
    let registers = [
        r15,
        r14,
        r13,
        r12,
        of.rbp,
        of.rbx,
        r11,
        r10,
        r9,
        r8,
        of.rax,
        of.rcx,
        of.rdx,
        of.rsi,
        of.rdi,
        u64::MAX,
        of.rip,
        of.cs.into(),
        of.rflags,
        of.rsp,
        of.ss.into(),
        of.fs_base,
        of.gs_base,
        of.ds.into(),
        of.es.into(),
        of.fs.into(),
        of.gs.into(),
    ];
    let mut status = [0; PRSTATUS_LEN];
    status[PR_PID..PR_PID + 4].copy_from_slice(&pid.to_le_bytes());
    for (word, value) in status[PR_REG..].chunks_exact_mut(8).zip(registers) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    let header = [5, PRSTATUS_LEN as u32, NT_PRSTATUS].map(u32::to_le_bytes).concat();
    [&header[..], CORE, &status].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_each_register_where_readers_look() {
        let of = VcpuRegisters {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            rsi: 5,
            rdi: 6,
            rbp: 7,
            rsp: 8,
            r8_to_r15: [18, 19, 110, 111, 112, 113, 114, 115],
            rip: 20,
            rflags: 21,
            cs: 22,
            ss: 23,
            ds: 24,
            es: 25,
            fs: 26,
            gs: 27,
            fs_base: 28,
            gs_base: 29,
            cr3: 30,
        };
        let note = note(77, &of);
        assert_eq!(note.len(), 12 + 8 + 336);
        let half = |at: usize| u32::from_le_bytes(note[at..at + 4].try_into().unwrap());
        assert_eq!([half(0), half(4), half(8)], [5, 336, 1]);
        assert_eq!(&note[12..17], b"CORE\0");
        assert_eq!(half(20 + 32), 77);
        let word = |nth: usize| u64::from_le_bytes(note[20 + 112 + nth * 8..][..8].try_into().unwrap());
        let found: Vec<u64> = (0..27).map(word).collect();
        // The order of `gdb`'s and the kernel's headers.
        let expected =
            [115, 114, 113, 112, 7, 2, 111, 110, 19, 18, 1, 3, 4, 5, 6, u64::MAX, 20, 22, 21, 8, 23, 28, 29];
        assert_eq!(found[..23], expected);
        assert_eq!(found[23..], [24, 25, 26, 27]);
    }
}
