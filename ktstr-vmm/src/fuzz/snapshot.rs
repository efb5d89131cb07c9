//! The file of a snapshot, whoever wrote it: its header, its table, RAM and the devices' state.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use ktstr_proto::snapshot::{ENTRY, HEADER, Header, MAGIC, VERSION};

use super::{Input, tempfile_of};
use crate::kvm::state::MachineState;
use crate::snapshot::SnapshotFile;

/// RAM of the machine that would go on from it.
const RAM: u64 = 1 << 20;
/// Bytes of the header before the description.
const FIELDS: usize = 64;

/// A snapshot's file: refused with a reason, or RAM of the same length and a state of the announced one.
///
/// The header's page is made of the first 64 bytes. As checksums would end most inputs at the first step, the
/// first byte says which of them are made to fit.
pub fn snapshot(data: &[u8]) {
    let mut input = Input(data);
    let fit = input.byte();
    let mut header: Vec<u8> = input.take::<FIELDS>().to_vec();
    let mut rest = input.0.to_vec();
    if fit & 1 != 0 {
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        // The machine's own RAM, and descriptions that have room.
        header[16..24].copy_from_slice(&RAM.to_le_bytes());
        header[14..16].fill(0);
    }
    header.resize(HEADER - 4, b'x');
    if fit & 2 != 0 {
        make_fit(&mut header, &mut rest, fit);
    }
    let crc = crc32fast::hash(&header);
    let crc = if fit & 4 != 0 { crc } else { !crc };
    let mut file = tempfile_of(&header);
    file.write_all(&crc.to_le_bytes()).and_then(|()| file.write_all(&rest)).expect("room");
    file.seek(SeekFrom::Start(0)).expect("a file");
    let Ok(snapshot) = SnapshotFile::open(file, RAM) else { return };
    assert!(fit & 4 != 0, "a header whose checksum does not fit was taken");
    if let Ok(state) = snapshot.state() {
        assert!(state.len() <= rest.len());
        if let Ok(machine) = MachineState::decode(&state) {
            // What a machine asks it for without KVM.
            let _ = (machine.ioapic(), machine.ports());
        }
    }
    let ram: File = tempfile_of(b"");
    ram.set_len(RAM).expect("room");
    let _ = snapshot.fill(&ram);
    assert_eq!(ram.metadata().expect("its size").len(), RAM);
}

/// Writes the checksums of table and state, and of pieces, as far as these parts are there.
fn make_fit(header: &mut [u8], rest: &mut [u8], fit: u8) {
    let whole = [&*header, &crc32fast::hash(header).to_le_bytes()].concat();
    let Ok(mut parsed) = Header::decode(&whole) else { return };
    let within = |at: u64, len: u64| {
        let start = usize::try_from(at.checked_sub(HEADER as u64)?).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        Some(start..end)
    };
    let Some(table) = within(parsed.table_at(), u64::from(parsed.pieces) * ENTRY as u64) else { return };
    if fit & 8 != 0 && rest.len() >= table.end {
        let mut content = 0;
        for at in table.clone().step_by(ENTRY) {
            let len =
                u64::from(u32::from_le_bytes([rest[at + 8], rest[at + 9], rest[at + 10], rest[at + 11]]));
            let piece = within(HEADER as u64 + content, len).and_then(|piece| rest.get(piece));
            let Some(crc) = piece.map(crc32fast::hash) else { break };
            rest[at + 12..at + ENTRY].copy_from_slice(&crc.to_le_bytes());
            content += len;
        }
    }
    if let Some(bytes) = rest.get(table) {
        parsed.table_crc = crc32fast::hash(bytes);
    }
    if let Some(bytes) = within(parsed.state_at(), parsed.state).and_then(|state| rest.get(state)) {
        parsed.state_crc = crc32fast::hash(bytes);
    }
    let encoded = parsed.encode().expect("it was decoded");
    header.copy_from_slice(&encoded[..HEADER - 4]);
}
