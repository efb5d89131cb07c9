//! What a test reads and writes of the kernel it runs on, through its host: `hot` while the guest runs, `cold` while all
//! of its CPUs stand. Not under `det`, where nothing on the host reaches the guest.

use ktstr_proto::{
    guest::HostRequest,
    kernel_place::{KernelTarget, KernelValue, KernelWidth, KernelWrite, MAX_PIECE, MAX_WRITES},
};

use super::{Ctx, HostError};

impl Ctx {
    /// Has the host read a place of the kernel while the guest runs.
    pub fn read_kernel_hot(
        &self,
        target: KernelTarget,
        width: KernelWidth,
    ) -> Result<KernelValue, HostError> {
        self.read_kernel(target, width, false)
    }

    /// Has the host read a place of the kernel while all CPUs of the guest stand.
    pub fn read_kernel_cold(
        &self,
        target: KernelTarget,
        width: KernelWidth,
    ) -> Result<KernelValue, HostError> {
        self.read_kernel(target, width, true)
    }

    /// Has the host write values at places of the kernel while the guest runs; where one is not found, none is written.
    pub fn write_kernel_hot(&self, writes: impl IntoIterator<Item = KernelWrite>) -> Result<(), HostError> {
        self.write_kernel(writes.into_iter().collect(), false)
    }

    /// As [`Self::write_kernel_hot`] while all CPUs of the guest stand.
    pub fn write_kernel_cold(&self, writes: impl IntoIterator<Item = KernelWrite>) -> Result<(), HostError> {
        self.write_kernel(writes.into_iter().collect(), true)
    }

    pub(super) fn read_kernel(
        &self,
        target: KernelTarget,
        width: KernelWidth,
        cold: bool,
    ) -> Result<KernelValue, HostError> {
        check_width(width)?;
        let json = self.ask_host(HostRequest::ReadKernel { target, width, cold })?;
        let value: serde_json::Value = serde_json::from_str(&json).map_err(HostError::Answer)?;
        value_of(&value, width)
            .ok_or_else(|| HostError::Refused(format!("the host answered {value}, which is no {width:?}")))
    }

    pub(super) fn write_kernel(&self, writes: Vec<KernelWrite>, cold: bool) -> Result<(), HostError> {
        check_writes(&writes)?;
        self.ask_host(HostRequest::WriteKernel { writes, cold }).map(drop)
    }
}

pub(super) fn check_width(width: KernelWidth) -> Result<(), HostError> {
    match width.len() {
        1..=MAX_PIECE => Ok(()),
        asked => Err(HostError::Refused(format!(
            "1 to {MAX_PIECE} bytes are read or written at once, not {asked}"
        ))),
    }
}

pub(super) fn check_writes(writes: &[KernelWrite]) -> Result<(), HostError> {
    if !(1..=MAX_WRITES).contains(&writes.len()) {
        let asked = writes.len();
        return Err(HostError::Refused(format!("1 to {MAX_WRITES} writes belong together, not {asked}")));
    }
    writes.iter().try_for_each(|write| check_width(write.value.width()))
}

/// What the host answered, as it was asked for: bytes are hexadecimal digits.
fn value_of(value: &serde_json::Value, width: KernelWidth) -> Option<KernelValue> {
    match width {
        KernelWidth::U32 => value.as_u64()?.try_into().ok().map(KernelValue::U32),
        KernelWidth::U64 => value.as_u64().map(KernelValue::U64),
        KernelWidth::Bytes(len) => {
            let digits = value.as_str()?.as_bytes();
            let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
            let byte = |at: usize| u8::try_from(digit(2 * at)? << 4 | digit(2 * at + 1)?).ok();
            (digits.len() == 2 * len as usize)
                .then(|| (0..len as usize).map(byte).collect::<Option<_>>())?
                .map(KernelValue::Bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_what_was_asked_for() {
        let read = |json: &str, width| value_of(&serde_json::from_str(json).unwrap(), width);
        assert_eq!(read("7", KernelWidth::U32), Some(KernelValue::U32(7)));
        assert_eq!(read("18446744073709551615", KernelWidth::U64), Some(KernelValue::U64(u64::MAX)));
        assert_eq!(read("18446744073709551615", KernelWidth::U32), None);
        let bytes = KernelValue::Bytes(vec![0x00, 0xff, 0x1a]);
        assert_eq!(bytes.to_string(), "00ff1a");
        assert_eq!(read("\"00ff1a\"", KernelWidth::Bytes(3)), Some(bytes));
        for wrong in ["\"00ff\"", "\"00ff1\"", "\"00fx1a\"", "7"] {
            assert_eq!(read(wrong, KernelWidth::Bytes(3)), None, "{wrong}");
        }
    }

    #[test]
    fn nothing_and_too_much_are_refused_before_the_host_is_asked() {
        let write = |len: usize| KernelWrite::new(KernelTarget::Kva(0), KernelValue::Bytes(vec![0; len]));
        assert!(check_writes(&[]).is_err() && check_writes(&vec![write(1); MAX_WRITES + 1]).is_err());
        assert!(check_writes(&[write(1), write(0)]).is_err());
        assert!(check_writes(&[write(MAX_PIECE as usize + 1)]).is_err());
        assert!(check_writes(&[write(MAX_PIECE as usize)]).is_ok());
        assert!(check_width(KernelWidth::Bytes(0)).is_err() && check_width(KernelWidth::U64).is_ok());
    }
}
