//! The registers of an emulated machine's vCPUs, as the emulator's monitor prints them (`info registers`).
//!
//! It has no form for machines. What is printed is `NAME=value` with the value in hexadecimal; a segment has
//! its base behind it. Outside of 64-bit code the names and values are those of 32 bits.

use std::collections::HashMap;

use ktstr_proto::registers::VcpuRegisters;
use serde_json::json;

use super::qmp::{Qmp, QmpError};
use super::running::CONTROL_LIMIT;

/// Why there are no registers.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// The process stands, and nobody is asked.
    #[error(
        "accelerator det tells no registers: its machine stands with the emulator's process, which asked would go on"
    )]
    Det,
    /// The machine is gone.
    #[error("the machine has ended")]
    Ended,
    /// The emulator does not answer.
    #[error("ask the emulator for the registers of vCPU {cpu}")]
    Control {
        /// Which.
        cpu: u32,
        /// The reason.
        #[source]
        source: QmpError,
    },
    /// It prints something else.
    #[error("the emulator printed no {register} of vCPU {cpu}")]
    Missing {
        /// Which.
        cpu: u32,
        /// The register.
        register: String,
    },
}

/// Those of the vCPUs from 0 to `cpus` - 1. The machine stands.
pub fn ask(qmp: &mut Qmp, cpus: u32) -> Result<Vec<VcpuRegisters>, RegistersError> {
    let one = |cpu| {
        // One at a time: the answer is a line, and lines are bounded.
        let arguments = json!({ "command-line": "info registers", "cpu-index": cpu });
        let answer = qmp.call_with("human-monitor-command", arguments, CONTROL_LIMIT);
        let answer = answer.map_err(|source| RegistersError::Control { cpu, source })?;
        let missing = |register| RegistersError::Missing { cpu, register };
        parse(cpu, answer.as_str().unwrap_or_default()).map_err(missing)
    };
    (0..cpus).map(one).collect()
}

/// Fails with the name of what is not there.
fn parse(cpu: u32, printed: &str) -> Result<VcpuRegisters, String> {
    // Names of one or two letters are padded.
    let printed = printed.replace(" =", "=");
    let words: Vec<&str> = printed.split_whitespace().collect();
    if let Some(other) = words.iter().find_map(|word| word.strip_prefix("CPU#"))
        && other.parse() != Ok(cpu)
    {
        return Err("CPU#".into());
    }
    let named = words.iter().enumerate().filter_map(|(nth, word)| Some((word.split_once('=')?, nth)));
    // The first of a name: registers come before what is derived from them.
    let mut values = HashMap::new();
    for ((name, value), nth) in named {
        let base = words.get(nth + 1).copied().unwrap_or_default();
        values.entry(name).or_insert((value, base));
    }
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let find = |name: &str| values.get(name).copied();
    let number = |name: String| {
        let found = find(&name).and_then(|(value, _)| hex(value));
        found.ok_or(name)
    };
    let wide = find("RIP").is_some();
    let general = |name: &str| number(format!("{}{name}", if wide { 'R' } else { 'E' }));
    let segment = |name: &str| {
        let parts = find(name)
            .and_then(|(selector, base)| Some((u16::from_str_radix(selector, 16).ok()?, hex(base)?)));
        parts.ok_or(name.to_owned())
    };
    let mut r8_to_r15 = [0; 8];
    if wide {
        for (nth, register) in r8_to_r15.iter_mut().enumerate() {
            *register = number(format!("R{}", nth + 8))?;
        }
    }
    let ((fs, fs_base), (gs, gs_base)) = (segment("FS")?, segment("GS")?);
    Ok(VcpuRegisters {
        rax: general("AX")?,
        rbx: general("BX")?,
        rcx: general("CX")?,
        rdx: general("DX")?,
        rsi: general("SI")?,
        rdi: general("DI")?,
        rbp: general("BP")?,
        rsp: general("SP")?,
        r8_to_r15,
        rip: general("IP")?,
        rflags: general("FL")?,
        cs: segment("CS")?.0,
        ss: segment("SS")?.0,
        ds: segment("DS")?.0,
        es: segment("ES")?.0,
        fs,
        gs,
        fs_base,
        gs_base,
        cr3: number("CR3".into())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 10.0 prints of a vCPU that waits in the kernel, without its last lines.
    const WIDE: &str = "\r
CPU#1\r
RAX=000000000000abcd RBX=0000000000000001 RCX=0000000000000002 RDX=0000000000000003\r
RSI=0000000000000004 RDI=0000000000000005 RBP=0000000000000006 RSP=ffffc9000009bec8\r
R8 =0000000000000008 R9 =0000000000000009 R10=000000000000000a R11=000000000000000b\r
R12=000000000000000c R13=000000000000000d R14=000000000000000e R15=000000000000000f\r
RIP=ffffffff81fb12cf RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r
ES =0000 0000000000000000 ffffffff 00000000\r
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
DS =0000 0000000000000000 ffffffff 00000000\r
FS =0000 00007f0000000740 ffffffff 00000000\r
GS =0000 ffff88803ed00000 ffffffff 00000000\r
LDT=0000 0000000000000000 ffffffff 00000000\r
TR =0040 fffffe0000003000 00004087 00008b00 DPL=0 TSS64-busy\r
GDT=     fffffe0000001000 0000007f\r
IDT=     fffffe0000000000 00000fff\r
CR0=80050033 CR2=00007ffd3e7a1ff8 CR3=0000000100a3c000 CR4=000006f0\r
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \r
DR6=00000000ffff0ff0 DR7=0000000000000400\r
EFER=0000000000000d01\r
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\r
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000\r
XMM00=0000000000000000 0000000000000000\r
";

    #[test]
    fn registers_of_64_bit_code_are_those_printed() {
        let found = parse(1, WIDE).unwrap();
        let expected = VcpuRegisters {
            rax: 0xabcd,
            rbx: 1,
            rcx: 2,
            rdx: 3,
            rsi: 4,
            rdi: 5,
            rbp: 6,
            rsp: 0xffff_c900_0009_bec8,
            r8_to_r15: [8, 9, 10, 11, 12, 13, 14, 15],
            rip: 0xffff_ffff_81fb_12cf,
            rflags: 0x246,
            cs: 0x10,
            ss: 0x18,
            fs_base: 0x7f00_0000_0740,
            gs_base: 0xffff_8880_3ed0_0000,
            cr3: 0x1_00a3_c000,
            ..VcpuRegisters::default()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn registers_of_32_bit_code_have_other_names() {
        let printed = "CPU#0\r\nEAX=00000001 EBX=00000002 ECX=00000003 EDX=00000623\r
ESI=00000004 EDI=00000005 EBP=00000006 ESP=00000007\r
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\r
ES =0000 00000000 0000ffff 00009300\r\nCS =f000 ffff0000 0000ffff 00009b00\r
SS =0000 00000000 0000ffff 00009300\r\nDS =0000 00000000 0000ffff 00009300\r
FS =0000 00000000 0000ffff 00009300\r\nGS =0000 00000000 0000ffff 00009300\r
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000\r\n";
        let found = parse(0, printed).unwrap();
        assert_eq!((found.rip, found.cs, found.rdx, found.rsp), (0xfff0, 0xf000, 0x623, 7));
        assert_eq!(parse(1, printed), Err("CPU#".to_owned()), "of another vCPU");
    }

    #[test]
    fn what_is_not_printed_is_named() {
        for name in ["RIP=", "R15=", "GS =", "CR3="] {
            let printed = WIDE.replace(name, "XX=");
            let missing = parse(1, &printed).unwrap_err();
            // Without RIP it is taken for 32-bit code, whose first register is another.
            let expected = if name == "RIP=" { "EAX" } else { name.trim_end_matches(['=', ' ']) };
            assert!(missing == expected || name == "RIP=" && missing.starts_with('E'), "{missing}");
        }
        assert!(parse(0, "unknown command").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_registers_or_a_name(printed: String) {
            let _ = parse(0, &printed);
        }
    }
}
