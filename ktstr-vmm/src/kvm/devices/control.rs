//! The control queue of an interface with several pairs of queues (virtio 1.2, section 5.1.6.5): the driver
//! says how many of them it uses.
//!
//! Nothing follows from what it says: its frames come back on the pair that they were sent on. But a number
//! that there is not is refused, and so is every command for which no feature was offered.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::device::buffers::{ChainError, Request};

/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const SET_PAIRS: [u8; 2] = [4, 0];
const OK: u8 = 0;
const ERR: u8 = 1;
/// Commands that are answered at once; a driver waits for each.
const MOST: usize = 256;

/// How the driver broke the rules of the queue.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A command's buffers.
    #[error("read a command of the control queue")]
    Chain(#[from] ChainError),
    /// The rings.
    #[error("work on the control queue")]
    Queue(#[from] virtio_queue::Error),
}

/// Answers what waits in the queue of an interface with so many `pairs`; whether there was anything.
pub fn answer(queue: &mut Queue, memory: &GuestMemoryMmap, pairs: u16) -> Result<bool, ControlError> {
    let mut answered = 0;
    loop {
        queue.disable_notification(memory)?;
        loop {
            if answered == MOST {
                return Ok(true);
            }
            let Some(chain) = queue.iter(memory)?.next() else { break };
            let head = chain.head_index();
            let command = Request::gather(memory, chain)?;
            let verdict = carry_out(&command, memory, pairs)?;
            command.writable.write(memory, "answer", 0, &[verdict])?;
            queue.add_used(memory, head, 1)?;
            answered += 1;
        }
        if !queue.enable_notification(memory)? {
            return Ok(answered > 0);
        }
    }
}

fn carry_out(command: &Request, memory: &GuestMemoryMmap, pairs: u16) -> Result<u8, ControlError> {
    let mut bytes = [0; 4];
    if command.readable.len() != bytes.len() as u64 {
        return Ok(ERR);
    }
    command.readable.read(memory, "command", 0, &mut bytes)?;
    let [class, what, low, high] = bytes;
    let wanted = u16::from_le_bytes([low, high]);
    Ok(if [class, what] == SET_PAIRS && (1..=pairs).contains(&wanted) { OK } else { ERR })
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const AVAIL: u64 = 0x100;
    const USED: u64 = 0x200;
    const COMMAND: u64 = 0x800;
    const ANSWER: u64 = 0x900;

    /// One command with its answer, in a queue of sixteen.
    fn asked(command: &[u8]) -> Result<u8, ControlError> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let descriptor = |address: u64, len: usize, flags: u16, next: u16| {
            let len = (len as u32).to_le_bytes();
            [&address.to_le_bytes()[..], &len, &flags.to_le_bytes(), &next.to_le_bytes()].concat()
        };
        put(COMMAND, command);
        put(0, &descriptor(COMMAND, command.len(), 1, 1));
        put(16, &descriptor(ANSWER, 1, 2, 0));
        put(ANSWER, &[0xff]);
        // Flags, one chain, and where it begins.
        put(AVAIL, &[0, 0, 1, 0, 0, 0]);
        let mut queue = Queue::new(16).unwrap();
        queue.set_desc_table_address(Some(0), None);
        queue.set_avail_ring_address(Some(AVAIL as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_event_idx(true);
        queue.set_ready(true);
        assert!(answer(&mut queue, &memory, 2)?);
        assert!(!answer(&mut queue, &memory, 2)?, "it is answered once");
        // The driver rings for the next one when this says so: behind the used ring's sixteen entries.
        let wanted: u16 = memory.read_obj(GuestAddress(USED + 4 + 16 * 8)).unwrap();
        assert_eq!(u16::from_le(wanted), 1);
        assert!(queue.iter(&memory).unwrap().next().is_none());
        Ok(memory.read_obj(GuestAddress(ANSWER)).unwrap())
    }

    #[test]
    fn as_many_pairs_as_there_are_and_nothing_else() {
        for (command, verdict) in [
            (&[4, 0, 1, 0][..], OK),
            (&[4, 0, 2, 0], OK),
            (&[4, 0, 3, 0], ERR),
            (&[4, 0, 0, 0], ERR),
            (&[4, 1, 2, 0], ERR),
            (&[0, 0, 2, 0], ERR),
            (&[4, 0, 2], ERR),
            (&[4, 0, 2, 0, 0], ERR),
        ] {
            assert_eq!(asked(command).unwrap(), verdict, "{command:?}");
        }
    }
}
