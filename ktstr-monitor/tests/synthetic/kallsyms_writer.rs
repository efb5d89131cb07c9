//! Writes kallsyms tables as the kernel's build does.

use ktstr_monitor::symbols::kallsyms::Encoding;

use crate::kernel_file::LINK;

/// Where the tables begin in the image.
pub const TABLES: usize = 0x800;

/// Symbols in ascending order as (type and name, address).
pub fn symbols(count: u64) -> Vec<(String, u64)> {
    let mut all = vec![("T_text".to_owned(), LINK), ("T_stext".to_owned(), LINK)];
    all.extend((0..count).map(|n| (format!("tsymbol_{n}_{}", "x".repeat(n as usize % 200)), LINK + n * 16)));
    all
}

fn token(value: u8) -> Vec<u8> {
    if value.is_ascii_graphic() { vec![value] } else { format!("~{value:02X}").into_bytes() }
}

/// An image with tables for `symbols`, aligned to `align`.
pub fn image(symbols: &[(String, u64)], encoding: Encoding, align: usize) -> Vec<u8> {
    let mut image = vec![0xcc; TABLES];
    let pad = |image: &mut Vec<u8>, to: usize| image.resize(image.len().next_multiple_of(to), 0);
    image.extend((symbols.len() as u32).to_le_bytes());
    pad(&mut image, align);
    let names = image.len();
    let mut markers = Vec::new();
    for (nth, (name, _)) in symbols.iter().enumerate() {
        if nth % 256 == 0 {
            markers.push((image.len() - names) as u32);
        }
        match name.len() {
            len @ 0..0x80 => image.push(len as u8),
            len => image.extend([len as u8 & 0x7f | 0x80, (len >> 7) as u8]),
        }
        image.extend_from_slice(name.as_bytes());
    }
    pad(&mut image, align);
    image.extend(markers.iter().flat_map(|marker| marker.to_le_bytes()));
    pad(&mut image, align);
    let table = image.len();
    let mut index = Vec::new();
    for value in 0..=255 {
        index.push((image.len() - table) as u16);
        image.extend(token(value));
        image.push(0);
    }
    pad(&mut image, align);
    image.extend(index.iter().flat_map(|start| start.to_le_bytes()));
    pad(&mut image, align);
    for (_, address) in symbols {
        let here = LINK + image.len() as u64;
        let offset = match encoding {
            Encoding::Base(base) => address - base.0,
            Encoding::BaseOrAbsolute(base) if *address >= base.0 => base.0.wrapping_sub(1 + address),
            Encoding::BaseOrAbsolute(_) => *address,
            Encoding::PlaceRelative => address.wrapping_sub(here),
        };
        image.extend((offset as u32).to_le_bytes());
    }
    if let Encoding::Base(base) | Encoding::BaseOrAbsolute(base) = encoding {
        pad(&mut image, 8);
        image.extend(base.0.to_le_bytes());
    }
    image.resize(image.len().next_multiple_of(0x1000).max(symbols.len() * 16), 0);
    image
}
