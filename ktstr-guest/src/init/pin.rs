//! Maps of BPF programs that outlive their scheduler because the test wants to look into them: PID 1 holds them open.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use super::bpf::{self, MAP_GET_FD_BY_ID, MAP_GET_NEXT_ID, OBJ_GET_INFO_BY_FD, bpf};

/// Bytes of a name, the last of which is a NUL.
const NAME_LEN: usize = 16;
/// Where it lies in `struct bpf_map_info`.
const NAME_AT: usize = 24;
/// More maps than this are not gone through.
const MAX_MAPS: usize = 4096;

/// Why a map is not held.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// None is called so.
    #[error("no BPF map is called `{name}`; there are: {}", known.join(", "))]
    NoMap {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// Several are.
    #[error("several BPF maps end in `{name}`: {}", known.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// Their names.
        known: Vec<String>,
    },
    /// The kernel refuses.
    #[error("the kernel does not tell of its BPF maps")]
    System(#[source] io::Error),
}

/// A map as the kernel lists it.
struct Map {
    id: u32,
    name: String,
    fd: OwnedFd,
}

/// Maps that are held until the guest ends.
#[derive(Debug, Default)]
pub struct Pinned(Vec<OwnedFd>);

impl Pinned {
    /// Holds the map of this name, or the one whose name ends so; of several of one name the youngest, which is the
    /// running scheduler's. Its number.
    pub fn pin(&mut self, name: &str) -> Result<u32, PinError> {
        let chosen = choose(all_maps().map_err(PinError::System)?, name)?;
        self.0.push(chosen.fd);
        Ok(chosen.id)
    }
}

fn choose(maps: Vec<Map>, name: &str) -> Result<Map, PinError> {
    // The kernel keeps the beginning of a longer name.
    let whole = name.char_indices().nth(NAME_LEN - 1).map_or(name, |(end, _)| &name[..end]);
    let mut known: Vec<String> = maps.iter().map(|map| map.name.clone()).collect();
    let (exact, rest): (Vec<Map>, Vec<Map>) = maps.into_iter().partition(|map| map.name == whole);
    let mut meant = if exact.is_empty() {
        rest.into_iter().filter(|map| map.name.ends_with(name)).collect()
    } else {
        exact
    };
    meant.sort_by_key(|map| map.id);
    known.sort();
    known.dedup();
    let Some(youngest) = meant.pop() else { return Err(PinError::NoMap { name: name.into(), known }) };
    if meant.iter().any(|map| map.name != youngest.name) {
        known.retain(|known| known.ends_with(name));
        return Err(PinError::Ambiguous { name: name.into(), known });
    }
    Ok(youngest)
}

fn all_maps() -> io::Result<Vec<Map>> {
    let mut maps = Vec::new();
    let mut id = 0;
    while maps.len() < MAX_MAPS {
        let mut next = [id, 0, 0];
        match bpf(MAP_GET_NEXT_ID, &mut next) {
            Ok(_) => id = next[1],
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error),
        }
        let fd = match bpf::descriptor(MAP_GET_FD_BY_ID, [id, 0, 0]) {
            Ok(fd) => fd,
            // It went meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        let name = name_of(&fd)?;
        maps.push(Map { id, name, fd });
    }
    Ok(maps)
}

fn name_of(fd: &OwnedFd) -> io::Result<String> {
    let mut info = [0u8; 128];
    let [low, high] = bpf::address(info.as_mut_ptr());
    bpf(OBJ_GET_INFO_BY_FD, &mut [fd.as_raw_fd() as u32, info.len() as u32, low, high])?;
    let name = &info[NAME_AT..NAME_AT + NAME_LEN];
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], wanted: &str) -> Result<u32, String> {
        let fd = || std::fs::File::open("/dev/null").unwrap().into();
        let map = |(at, name): (usize, &&str)| Map { id: at as u32 + 1, name: (*name).into(), fd: fd() };
        let maps = names.iter().enumerate().map(map).collect();
        choose(maps, wanted).map(|map| map.id).map_err(|error| error.to_string())
    }

    #[test]
    fn a_map_is_found_by_its_name_or_the_end_of_it() {
        let names = ["main_bpf.bss", "main_bpf.data", "task_vtime", "main_bpf.bss", "other.data"];
        assert_eq!(chosen(&names, "task_vtime"), Ok(3));
        assert_eq!(chosen(&names, ".bss"), Ok(4), "the youngest of one name");
        assert_eq!(chosen(&names, "main_bpf.data"), Ok(2));
        assert_eq!(chosen(&["a_long_name_is_"], "a_long_name_is_cut_by_the_kernel"), Ok(1));
        let several = chosen(&names, ".data").unwrap_err();
        assert_eq!(several, "several BPF maps end in `.data`: main_bpf.data, other.data");
        assert!(
            chosen(&names, "bsss")
                .unwrap_err()
                .contains("there are: main_bpf.bss, main_bpf.data, other.data")
        );
    }
}
