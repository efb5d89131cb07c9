//! What a kernel file says about itself: release, architecture, whether BTF
//! is in it and whether sched_ext was compiled in.
//!
//! A configuration decides when there is one (a file beside the image or the
//! copy that `CONFIG_IKCONFIG` embeds). Without it, BTF is asked: the type
//! `sched_ext_ops` is described there exactly when the class was built. With
//! neither the answer stays unknown; nothing is guessed from version numbers.

use std::io::Read;

use object::{Object, ObjectSection};

/// Facts about one kernel. `None` means that the file does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `uname -r` of the kernel.
    pub release: Option<String>,
    /// `x86_64` or `aarch64`.
    pub arch: Option<String>,
    /// Whether `CONFIG_SCHED_CLASS_EXT` is on.
    pub sched_ext: Option<bool>,
    /// Whether a `.BTF` section is in the image.
    pub btf: bool,
}

/// Reads the facts out of a `vmlinux` ELF and, when known, its configuration.
/// `None` when the bytes are no readable ELF file.
pub(super) fn of_vmlinux(elf: &[u8], config: Option<&str>) -> Option<Facts> {
    let file = object::File::parse(elf).ok()?;
    let arch = match file.architecture() {
        object::Architecture::X86_64 => Some("x86_64".to_owned()),
        object::Architecture::Aarch64 => Some("aarch64".to_owned()),
        _ => None,
    };
    let btf =
        file.section_by_name(".BTF").and_then(|section| section.data().ok()).filter(|data| !data.is_empty());
    let sched_ext = match config {
        Some(text) => Some(config_enables(text, "CONFIG_SCHED_CLASS_EXT")),
        None => btf.and_then(|btf| btf_names(btf, b"sched_ext_ops")),
    };
    Some(Facts { release: banner_release(elf), arch, sched_ext, btf: btf.is_some() })
}

/// Whether a configuration file switches `option` on (`=y`).
pub(super) fn config_enables(config: &str, option: &str) -> bool {
    config.lines().any(|line| line.trim_end().strip_prefix(option) == Some("=y"))
}

/// The configuration that `CONFIG_IKCONFIG` embeds between its two markers.
pub(super) fn embedded_config(elf: &[u8]) -> Option<String> {
    let start = find(elf, b"IKCFG_ST")? + 8;
    let end = start + find(&elf[start..], b"IKCFG_ED")?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(&elf[start..end]).take(16 << 20).read_to_string(&mut text).ok()?;
    text.contains("CONFIG_").then_some(text)
}

/// The release in `linux_banner`: "Linux version RELEASE (builder…".
fn banner_release(elf: &[u8]) -> Option<String> {
    let marker = b"Linux version ";
    let mut from = 0;
    // The same words occur in format strings, so a digit must follow.
    while let Some(at) = find(&elf[from..], marker) {
        let text = &elf[from + at + marker.len()..];
        let end = text.iter().take(128).position(|&b| b == b' ' || b == 0);
        if let Some(end) = end.filter(|_| text[0].is_ascii_digit()) {
            return std::str::from_utf8(&text[..end]).ok().map(str::to_owned);
        }
        from += at + marker.len();
    }
    None
}

/// Whether `name` stands in the string table of a BTF section; `None` when
/// the header does not describe a table inside the section.
fn btf_names(btf: &[u8], name: &[u8]) -> Option<bool> {
    let word = |at: usize| btf.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    if btf.get(..2)? != [0x9f, 0xeb] {
        return None;
    }
    let start = word(4)?.checked_add(word(16)?)?;
    let strings = btf.get(start..start.checked_add(word(20)?)?)?;
    Some(strings.split(|&b| b == 0).any(|string| string == name))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A BTF section with the given strings and no types.
    pub(in crate::store) fn btf(strings: &[&str]) -> Vec<u8> {
        let mut table = vec![0u8];
        for string in strings {
            table.extend(string.as_bytes());
            table.push(0);
        }
        let mut section = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, 0, 0, table.len() as u32] {
            section.extend(word.to_le_bytes());
        }
        section.extend(table);
        section
    }

    /// A little-endian x86_64 ELF file with the given sections.
    pub(in crate::store) fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut names = vec![0u8];
        let mut body: Vec<u8> = Vec::new();
        let mut headers = vec![[0u8; 64]];
        let all: Vec<(&str, &[u8])> =
            sections.iter().copied().chain([(".shstrtab", [].as_slice())]).collect();
        for (name, data) in &all {
            let name_at = names.len() as u32;
            names.extend(name.as_bytes());
            names.push(0);
            let last = *name == ".shstrtab";
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name_at.to_le_bytes());
            header[4] = if last { 3 } else { 1 };
            header[24..32].copy_from_slice(&(64 + body.len() as u64).to_le_bytes());
            let size = if last { names.len() } else { data.len() } as u64;
            header[32..40].copy_from_slice(&size.to_le_bytes());
            body.extend(if last { &names[..] } else { data });
            headers.push(header);
        }
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        out.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        out.extend([0u8; 16]);
        out.extend((64 + body.len() as u64).to_le_bytes());
        out.extend([0, 0, 0, 0, 64, 0, 56, 0, 0, 0, 64, 0]);
        out.extend((headers.len() as u16).to_le_bytes());
        out.extend((headers.len() as u16 - 1).to_le_bytes());
        out.extend(body);
        out.extend(headers.concat());
        out
    }

    const BANNER: &[u8] = b"Linux version %s\0Linux version 7.2.12-test (me@here) #1 SMP\0";

    #[test]
    fn configuration_decides_over_btf() {
        let kernel = elf(&[(".rodata", BANNER), (".BTF", &btf(&["task_struct", "sched_ext_ops"]))]);
        let facts = of_vmlinux(&kernel, Some("# CONFIG_SCHED_CLASS_EXT is not set\n")).unwrap();
        assert_eq!(facts.sched_ext, Some(false));
        assert_eq!(facts.release.as_deref(), Some("7.2.12-test"));
        assert_eq!(facts.arch.as_deref(), Some("x86_64"));
        assert!(facts.btf);
    }

    #[test]
    fn btf_tells_when_there_is_no_configuration() {
        let with = elf(&[(".BTF", &btf(&["sched_ext_ops"]))]);
        assert_eq!(of_vmlinux(&with, None).unwrap().sched_ext, Some(true));
        let without = elf(&[(".BTF", &btf(&["sched_ext_ops_not", "x"]))]);
        assert_eq!(of_vmlinux(&without, None).unwrap().sched_ext, Some(false));
        let damaged = elf(&[(".BTF", &btf(&["sched_ext_ops"])[..30])]);
        assert_eq!(of_vmlinux(&damaged, None).unwrap().sched_ext, None);
    }

    #[test]
    fn nothing_known_stays_unknown() {
        let facts = of_vmlinux(&elf(&[(".text", b"x")]), None).unwrap();
        assert_eq!(facts, Facts { arch: Some("x86_64".into()), ..Facts::default() });
        assert_eq!(of_vmlinux(b"\x7fELF", None), None);
    }

    #[test]
    fn embedded_configuration() {
        use std::io::Write;
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"CONFIG_SCHED_CLASS_EXT=y\n").unwrap();
        let data = [b"IKCFG_ST".as_slice(), &gz.finish().unwrap(), b"IKCFG_ED"].concat();
        let text = embedded_config(&elf(&[(".rodata", &data)])).unwrap();
        assert!(config_enables(&text, "CONFIG_SCHED_CLASS_EXT"));
        assert!(!config_enables(&text, "CONFIG_SCHED_CLASS"));
        assert_eq!(embedded_config(b"IKCFG_STIKCFG_ED"), None);
    }
}
