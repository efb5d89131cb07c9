//! A triple fault for people: which CPU, where it and the others stood, and what that probably means.

use ktstr_proto::{
    monitor::MonitorSummary,
    registers::{ControlRegisters, TripleFault, VcpuRegisters},
};

/// Protection enabled, in CR0.
const CR0_PE: u64 = 1;
/// Long mode active, in EFER.
const EFER_LMA: u64 = 1 << 10;
/// How far a push reaches below the stack pointer, and then some.
const BESIDE: u64 = 4096;

/// The monitor, if there was one, has named the places.
pub(super) fn told(fault: &TripleFault, monitor: Option<&MonitorSummary>) -> String {
    let cpu = fault.cpu as usize;
    let what =
        format!("CPU {cpu} ended in a triple fault (no handler for an exception, nor for a double fault)");
    let registers = match &fault.registers {
        Ok(registers) => registers,
        Err(why) => return format!("{what}; where it stood is not known: {why}"),
    };
    let place = |nth: usize, of: &VcpuRegisters| {
        let named = monitor.and_then(|monitor| monitor.stood.get(nth));
        named.map_or_else(|| format!("{:#x}", of.rip), |name| format!("{:#x}, {name}", of.rip))
    };
    let others: Vec<String> = registers
        .iter()
        .enumerate()
        .filter(|(nth, _)| *nth != cpu)
        .map(|(nth, of)| format!("CPU {nth} at {}", place(nth, of)))
        .collect();
    let others = if others.is_empty() { String::new() } else { format!("; then {}", others.join("; ")) };
    let (Some(of), Some(control)) = (registers.get(cpu), &fault.control) else {
        return format!("{what}; its registers could not be read{others}");
    };
    if is_initial(of, control) {
        return format!(
            "{what}; where it stood is lost: KVM puts the CPU back to its initial state first where the processor is AMD's \
             (the tracepoint kvm:kvm_exit of the host has guest_rip){others}"
        );
    }
    let stood = format!(
        "at {}; rsp {:#x} cs {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} gdt {:#x}+{:#x} idt {:#x}+{:#x}",
        place(cpu, of),
        of.rsp,
        of.cs,
        control.cr0,
        control.cr2,
        of.cr3,
        control.cr4,
        control.efer,
        control.gdt.base,
        control.gdt.limit,
        control.idt.base,
        control.idt.limit,
    );
    format!("{what} {stood}; {}{others}", meaning(of, control))
}

/// As KVM leaves it after INIT: at the reset vector, in real mode.
fn is_initial(of: &VcpuRegisters, control: &ControlRegisters) -> bool {
    of.rip == 0xfff0 && of.cs == 0xf000 && control.cr0 & CR0_PE == 0
}

/// What a CPU that stood so had probably come to.
fn meaning(of: &VcpuRegisters, control: &ControlRegisters) -> &'static str {
    if control.cr0 & CR0_PE == 0 {
        "it was in real mode, as a CPU is that is being started"
    } else if control.efer & EFER_LMA == 0 {
        "it was on its way to 64-bit code, as a CPU is that is being started"
    } else if control.idt.limit == 0 {
        "its interrupt table is empty: a kernel that resets by force (reboot=t) does that, and so do kexec and early boot"
    } else if control.cr2 == of.rip {
        "it could not fetch the instruction: a jump to nowhere, or page tables that were changed under it"
    } else if control.cr2.abs_diff(of.rsp) <= BESIDE {
        "the last fault was beside its stack pointer: a stack that ran over or is not mapped"
    } else {
        "interrupt table, stacks of the task state segment, or page tables are damaged or were changed under it"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: ControlRegisters = ControlRegisters {
        cr0: 0x8005_0033,
        cr2: 0x7f00_0000_1000,
        cr4: 0x6f0,
        efer: 0xd01,
        gdt: ktstr_proto::registers::DescriptorTable { base: 0xffff_fe00_0000_1000, limit: 0x7f },
        idt: ktstr_proto::registers::DescriptorTable { base: 0xffff_fe00_0000_0000, limit: 0xfff },
    };

    fn at(rip: u64, rsp: u64) -> VcpuRegisters {
        VcpuRegisters { rip, rsp, cs: 0x10, ..VcpuRegisters::default() }
    }

    fn fault(control: ControlRegisters, one: VcpuRegisters) -> TripleFault {
        TripleFault { cpu: 1, control: Some(control), registers: Ok(vec![at(0xabc, 1), one]) }
    }

    #[test]
    fn it_names_cpus_and_places() {
        let (rip, rsp) = (0xffff_ffff_8100_0010, 0xffff_c900_0000_0000);
        let told_by = MonitorSummary {
            stood: vec!["default_idle+0x9".into(), "start_secondary+0x10".into()],
            ..MonitorSummary::default()
        };
        let text = told(&fault(RUNS, at(rip, rsp)), Some(&told_by));
        for part in [
            "CPU 1 ended",
            "start_secondary+0x10",
            "idt 0xfffffe0000000000+0xfff",
            "CPU 0 at 0xabc, default_idle",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = told(&fault(RUNS, at(rip, rsp)), None);
        assert!(text.contains("at 0xffffffff81000010; rsp 0xffffc90000000000"), "{text}");
    }

    #[test]
    fn where_it_stood_says_what_it_had_come_to() {
        let (rip, rsp) = (0xffff_ffff_8100_0010, 0xffff_c900_0000_0000);
        let with = |change: fn(&mut ControlRegisters)| {
            let mut control = RUNS;
            change(&mut control);
            meaning(&at(rip, rsp), &control)
        };
        assert!(with(|c| c.cr0 = 0x10).contains("real mode"));
        assert!(with(|c| c.efer = 0).contains("on its way"));
        assert!(with(|c| c.idt.limit = 0).contains("empty"));
        assert!(with(|c| c.cr2 = 0xffff_ffff_8100_0010).contains("fetch"));
        assert!(with(|c| c.cr2 = 0xffff_c8ff_ffff_fff8).contains("stack pointer"));
        assert!(with(|_| {}).contains("damaged"));
    }

    #[test]
    fn what_kvm_has_forgotten_is_not_called_a_place() {
        let control = ControlRegisters { cr0: 0x6000_0010, efer: 0, ..RUNS };
        let initial = VcpuRegisters { rip: 0xfff0, cs: 0xf000, ..VcpuRegisters::default() };
        let text = told(&fault(control, initial), None);
        assert!(text.contains("is lost") && !text.contains("0xfff0"), "{text}");
        let unknown = TripleFault { registers: Err("why".into()), ..fault(control, initial) };
        assert!(told(&unknown, None).contains("not known: why"));
    }
}
