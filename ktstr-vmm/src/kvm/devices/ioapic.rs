//! An I/O APIC in this process, for machines with CPUs that the one inside KVM cannot name.
//!
//! Interrupt lines are KVM's own (irqfd); this device only decides which message each line sends, so
//! nothing passes through here when an interrupt is raised. A destination has 15 bits, of which the
//! upper seven lie where KVM's extended destination id puts them. Registers are those of the 82093AA.
//! It refuses nothing: what the guest writes to other registers is dropped. Only edges are sent, as
//! every device here makes them. Next: `machine` chooses between this one and KVM's.

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi,
};
use serde::{Deserialize, Serialize};

/// Interrupt lines.
pub const PINS: usize = 24;
/// Bytes of device memory.
pub const SIZE: u64 = 0x1000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;
/// Version 1.1, and the number of the last line.
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;
/// Delivery status and remote IRR belong to the device.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;
const MASKED: u64 = 1 << 16;

/// The message a line sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which line.
    pub pin: u32,
    /// Address, low half.
    pub address_lo: u32,
    /// Address, high half: destination bits from the ninth on.
    pub address_hi: u32,
    /// Vector and delivery mode.
    pub data: u32,
}

/// Its registers as they are saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    select: u8,
    id: u32,
    table: [u64; PINS],
}

/// Its registers.
#[derive(Debug)]
pub struct Ioapic {
    select: u8,
    id: u32,
    table: [u64; PINS],
}

impl Default for Ioapic {
    fn default() -> Self {
        Self { select: 0, id: 0, table: [MASKED; PINS] }
    }
}

impl Ioapic {
    /// What it is.
    #[must_use]
    pub fn registers(&self) -> Registers {
        Registers { select: self.select, id: self.id, table: self.table }
    }

    /// One that is so; KVM is to be told the [`Self::routing`].
    #[must_use]
    pub fn from_registers(registers: &Registers) -> Self {
        Self { select: registers.select, id: registers.id, table: registers.table }
    }

    fn entry(select: u8) -> Option<(usize, u32)> {
        let at = usize::from(select.checked_sub(REG_TABLE)?);
        (at / 2 < PINS).then_some((at / 2, 32 * (at as u32 % 2)))
    }

    /// The guest reads.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match (offset, self.select) {
            (SELECT, select) => select.into(),
            (WINDOW, REG_ID | REG_ARBITRATION) => self.id,
            (WINDOW, REG_VERSION) => VERSION,
            (WINDOW, select) => {
                Self::entry(select).map_or(0, |(pin, shift)| (self.table[pin] >> shift) as u32)
            }
            _ => 0,
        };
        data.fill(0);
        let len = data.len().min(4);
        data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// The guest writes. True when some line now sends another message.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Some(Ok(value)) = data.get(..4).map(<[u8; 4]>::try_from) else { return false };
        let value = u32::from_le_bytes(value);
        match (offset, self.select) {
            (SELECT, _) => self.select = value as u8,
            (WINDOW, REG_ID) => self.id = value & 0x0f00_0000,
            (WINDOW, select) => {
                let Some((pin, shift)) = Self::entry(select) else { return false };
                let before = self.table[pin];
                let written = before & !(0xffff_ffff << shift) | u64::from(value) << shift;
                self.table[pin] = written & !READ_ONLY | before & READ_ONLY;
                return self.table[pin] != before && (self.table[pin] & before & MASKED) == 0;
            }
            _ => {}
        }
        false
    }

    /// What the lines that are not masked send.
    pub fn messages(&self) -> impl Iterator<Item = Message> + '_ {
        let open = self.table.iter().enumerate().filter(|(_, entry)| *entry & MASKED == 0);
        open.map(|(pin, entry)| {
            let bits = |from: u32, count: u32| (entry >> from) as u32 & ((1 << count) - 1);
            let destination = bits(56, 8) | bits(49, 7) << 8;
            let (logical, mode) = (bits(11, 1), bits(8, 3));
            Message {
                pin: pin as u32,
                // Lowest priority needs the redirection hint.
                address_lo: 0xfee0_0000
                    | (destination & 0xff) << 12
                    | u32::from(mode == 1) << 3
                    | logical << 2,
                address_hi: destination & !0xff,
                data: bits(0, 8) | mode << 8,
            }
        })
    }

    /// The same for KVM.
    #[must_use]
    pub fn routing(&self) -> Option<KvmIrqRouting> {
        let entries: Vec<_> = self
            .messages()
            .map(|message| kvm_irq_routing_entry {
                gsi: message.pin,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 {
                    msi: kvm_irq_routing_msi {
                        address_lo: message.address_lo,
                        address_hi: message.address_hi,
                        data: message.data,
                        ..Default::default()
                    },
                },
                ..Default::default()
            })
            .collect();
        KvmIrqRouting::from_entries(&entries).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ioapic: &mut Ioapic, register: u8, value: u32) -> bool {
        assert!(!ioapic.write(SELECT, &u32::from(register).to_le_bytes()));
        ioapic.write(WINDOW, &value.to_le_bytes())
    }

    fn get(ioapic: &mut Ioapic, register: u8) -> u32 {
        assert!(!ioapic.write(SELECT, &u32::from(register).to_le_bytes()));
        let mut data = [0; 4];
        ioapic.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_line_reaches_a_cpu_beyond_255() {
        let mut ioapic = Ioapic::default();
        assert_eq!(get(&mut ioapic, 1) >> 16 & 0xff, 23);
        assert_eq!(ioapic.messages().count(), 0);
        // Line 4, vector 0x31, destination 433 = 1 * 256 + 177, as Linux writes it.
        assert!(!set(&mut ioapic, 0x10 + 9, 177 << 24 | 1 << 17), "still masked");
        assert!(set(&mut ioapic, 0x10 + 8, 0x31));
        let message = Message { pin: 4, address_lo: 0xfee0_0000 | 177 << 12, address_hi: 256, data: 0x31 };
        assert_eq!(ioapic.messages().collect::<Vec<_>>(), [message]);
        assert!(!set(&mut ioapic, 0x10 + 8, 0x31), "nothing new");
        assert_eq!(get(&mut ioapic, 0x10 + 8), 0x31);
        let same = Ioapic::from_registers(&ioapic.registers());
        assert_eq!(same.messages().collect::<Vec<_>>(), [message]);
        assert!(set(&mut ioapic, 0x10 + 8, 1 << 16 | 0x31));
        assert_eq!(ioapic.messages().count(), 0);
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let mut ioapic = Ioapic::default();
        for offset in [0, 1, 4, 0x10, 0x11, 0x40, 0xfff] {
            for len in 0..9 {
                assert!(!ioapic.write(offset, &vec![0xff; len]) || offset == WINDOW);
                ioapic.read(offset, &mut vec![0; len]);
            }
        }
        assert!(!set(&mut ioapic, 0x10 + 48, 0));
        assert_eq!(get(&mut ioapic, 0xff), 0);
        assert!(set(&mut ioapic, 0x10, 0x5000), "read-only bits aside, the mask goes");
        assert_eq!(get(&mut ioapic, 0x10), 0);
    }
}
