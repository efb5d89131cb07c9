//! Files of memory that an emulator is given.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::running::{StartError, resource};

/// What the emulator reads the state of its devices from, or writes it to.
pub(super) fn state_file(state: &[u8]) -> Result<OwnedFd, StartError> {
    let file = memfd_create(c"device-state", MFdFlags::MFD_CLOEXEC)
        .map_err(resource("make a file for the devices' state"))?;
    let file = File::from(file);
    file.write_all_at(state, 0).map_err(resource("write the devices' state"))?;
    Ok(file.into())
}

/// Guest RAM, which nobody can shrink or grow.
pub(super) fn sealed_ram(bytes: u64) -> Result<OwnedFd, StartError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memfd = memfd_create(c"guest-ram", flags).map_err(resource("make the guest RAM file"))?;
    let file = File::from(memfd);
    file.set_len(bytes).map_err(resource("size the guest RAM file"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(resource("seal the guest RAM file"))?;
    Ok(file.into())
}

/// The emulator takes one file; several archives are joined, each padded to four bytes.
pub(super) fn one_initrd(archives: Vec<OwnedFd>) -> Result<OwnedFd, StartError> {
    let mut archives = archives;
    if archives.len() == 1 {
        return Ok(archives.remove(0));
    }
    let joined =
        memfd_create(c"initrd", MFdFlags::MFD_CLOEXEC).map_err(resource("make the joined initramfs"))?;
    let mut joined = File::from(joined);
    for archive in archives {
        let mut archive = File::from(archive);
        archive.seek(SeekFrom::Start(0)).map_err(resource("rewind an initramfs archive"))?;
        std::io::copy(&mut archive, &mut joined).map_err(resource("join the initramfs archives"))?;
        let end =
            joined.stream_position().map_err(resource("join the initramfs archives"))?.next_multiple_of(4);
        joined.set_len(end).map_err(resource("pad an initramfs archive"))?;
        joined.seek(SeekFrom::Start(end)).map_err(resource("pad an initramfs archive"))?;
    }
    Ok(joined.into())
}
