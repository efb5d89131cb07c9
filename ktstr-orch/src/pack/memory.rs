//! How much memory a guest needs for its kernel and initramfs.
//!
//! The archive is in memory twice while it is extracted: as the boot loader
//! placed it, and as files of the root file system, which may take half of
//! what the kernel manages. A guest below the floor dies with a truncated root
//! or without killable processes, so it is refused before boot.

/// Kernel data, per-CPU areas and a user space that runs a test, in bytes.
const BASE: u64 = 112 << 20;
const PER_CPU: u64 = 3 << 20;
/// Guests are sized in steps of this many MiB.
const STEP: u64 = 16;
/// The smallest guest that is offered at all, in MiB.
pub const SMALLEST_MB: u32 = 128;

/// What must fit into a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Bytes of the kernel image once loaded (the ELF file's size is close).
    pub kernel: u64,
    /// Bytes of the initramfs.
    pub initramfs: u64,
    /// Bytes reserved for the host's channel.
    pub reserved: u64,
    /// Number of CPUs.
    pub cpus: u32,
}

/// The memory asked for does not suffice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given} MB of guest memory are too little: {required} MB are required (kernel {} MB, initramfs {} MB \
     held twice while it is unpacked); give at least --memory-mb {required} or include less",
    load.kernel >> 20,
    load.initramfs >> 20
)]
pub struct TooLittleMemory {
    /// Given, in MiB.
    pub given: u32,
    /// Needed, in MiB.
    pub required: u32,
    /// Why.
    pub load: Load,
}

impl Load {
    /// The least memory in MiB such a guest boots with.
    pub fn floor_mb(&self) -> u32 {
        let fixed = self.kernel.saturating_add(self.reserved);
        let cpus = u64::from(self.cpus).saturating_mul(PER_CPU);
        // Once as placed, and the files may take half of the rest.
        let files = self.initramfs.saturating_mul(3);
        let bytes = fixed.saturating_add(files).saturating_add(cpus).saturating_add(BASE);
        // The kernel's page descriptors: 64 bytes for every 4096.
        let with_descriptors = bytes.saturating_add(bytes / 64);
        let mb = with_descriptors.div_ceil(1 << 20).div_ceil(STEP) * STEP;
        u32::try_from(mb).unwrap_or(u32::MAX).max(SMALLEST_MB)
    }

    /// The memory to use: `given`, or twice the floor when nothing is given,
    /// so that a test has room to work.
    pub fn choose(&self, given: Option<u32>) -> Result<u32, TooLittleMemory> {
        let required = self.floor_mb();
        match given {
            Some(given) if given < required => Err(TooLittleMemory { given, required, load: *self }),
            Some(given) => Ok(given),
            None => Ok(required.saturating_mul(2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load { kernel: 60 << 20, initramfs: 20 << 20, reserved: 4 << 20, cpus: 2 };

    #[test]
    fn grows_with_everything() {
        let floor = LOAD.floor_mb();
        assert!(floor.is_multiple_of(16) && (192..=320).contains(&floor), "{floor}");
        for more in [
            Load { kernel: LOAD.kernel + (32 << 20), ..LOAD },
            Load { initramfs: LOAD.initramfs + (32 << 20), ..LOAD },
            Load { reserved: LOAD.reserved + (32 << 20), ..LOAD },
            Load { cpus: 32, ..LOAD },
        ] {
            assert!(more.floor_mb() > floor, "{more:?}");
        }
        assert_eq!(Load { kernel: 0, initramfs: 0, reserved: 0, cpus: 1 }.floor_mb(), SMALLEST_MB);
        assert_eq!(Load { initramfs: u64::MAX, ..LOAD }.floor_mb(), u32::MAX);
    }

    #[test]
    fn too_little_says_what_is_required() {
        let error = LOAD.choose(Some(128)).unwrap_err();
        let text = error.to_string();
        let hint = format!("--memory-mb {}", LOAD.floor_mb());
        for part in ["128 MB", "kernel 60 MB", "initramfs 20 MB", &hint] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(LOAD.choose(Some(4096)), Ok(4096));
        assert_eq!(LOAD.choose(None), Ok(2 * LOAD.floor_mb()));
    }
}
