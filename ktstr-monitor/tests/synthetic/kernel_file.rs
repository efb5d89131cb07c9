//! Writes a minimal `vmlinux`: one segment, `.BTF`, and a symbol table if wanted.

pub const LINK: u64 = 0xffff_ffff_8020_0000;
pub const LOAD: u64 = 0x20_0000;
/// Where the segment begins in the file.
pub const OFFSET: u64 = 0x1000;

/// An x86_64 ELF file with `image` as its segment.
pub fn elf(image: &[u8], btf: &[u8], symbols: &[(&str, u64)]) -> Vec<u8> {
    let mut strings = vec![0u8];
    let mut symtab = vec![0u8; 24];
    for (name, at) in symbols {
        symtab.extend((strings.len() as u32).to_le_bytes());
        // STB_GLOBAL, STT_OBJECT, section 1
        symtab.extend([0x11, 0, 1, 0]);
        symtab.extend(at.to_le_bytes());
        symtab.extend(0u64.to_le_bytes());
        strings.extend_from_slice(name.as_bytes());
        strings.push(0);
    }
    let names = b"\0.text\0.BTF\0.symtab\0.strtab\0.shstrtab\0";
    let mut file = vec![0; OFFSET as usize];
    let mut headers = vec![[0u64; 8]];
    let mut section = |file: &mut Vec<u8>, name: u64, kind: u64, bytes: &[u8], link: u64, entry: u64| {
        let at = file.len() as u64;
        file.extend_from_slice(bytes);
        file.resize(file.len().next_multiple_of(8), 0);
        headers.push([name, kind, at, bytes.len() as u64, link, entry, u64::from(kind == 2), 0]);
    };
    section(&mut file, 1, 1, image, 0, 0);
    section(&mut file, 7, 1, btf, 0, 0);
    if !symbols.is_empty() {
        section(&mut file, 12, 2, &symtab, 4, 24);
        section(&mut file, 20, 3, &strings, 0, 0);
    }
    section(&mut file, 28, 3, names, 0, 0);
    let table = file.len() as u64;
    for [name, kind, at, len, link, entry, info, _] in &headers {
        let address = if *name == 1 { LINK } else { 0 };
        file.extend((*name as u32).to_le_bytes());
        file.extend((*kind as u32).to_le_bytes());
        for word in [0, address, *at, *len] {
            file.extend(word.to_le_bytes());
        }
        file.extend((*link as u32).to_le_bytes());
        file.extend((*info as u32).to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.extend(entry.to_le_bytes());
    }
    let count = headers.len() as u16;
    write_headers(&mut file, image.len() as u64, table, count);
    file
}

fn write_headers(file: &mut [u8], image: u64, table: u64, sections: u16) {
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_X86_64, version, entry, program headers, section headers
    head.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [LOAD, 64, table] {
        head.extend(word.to_le_bytes());
    }
    head.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0]);
    head.extend(sections.to_le_bytes());
    head.extend((sections - 1).to_le_bytes());
    // PT_LOAD, R+W+X
    head.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [OFFSET, LINK, LOAD, image, image, 0x20_0000] {
        head.extend(word.to_le_bytes());
    }
    file[..head.len()].copy_from_slice(&head);
}
