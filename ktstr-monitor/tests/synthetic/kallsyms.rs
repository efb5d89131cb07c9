//! The kallsyms decoder on tables as the kernel's build writes them, and on damaged ones.

use ktstr_monitor::addr::Kva;
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::symbols::kallsyms::{Encoding, KallsymsError, decode};
use ktstr_monitor::symbols::{SymbolError, SymbolSource, Symbols};
use proptest::prelude::*;

use crate::guest::{Shape, btf};
use crate::kernel_file::{LINK, elf};

/// Where the tables begin in the image.
const TABLES: usize = 0x800;

/// Symbols in ascending order as (type and name, address).
fn symbols(count: u64) -> Vec<(String, u64)> {
    let mut all = vec![("T_text".to_owned(), LINK), ("T_stext".to_owned(), LINK)];
    all.extend((0..count).map(|n| (format!("tsymbol_{n}_{}", "x".repeat(n as usize % 200)), LINK + n * 16)));
    all
}

fn token(value: u8) -> Vec<u8> {
    if value.is_ascii_graphic() { vec![value] } else { format!("~{value:02X}").into_bytes() }
}

/// An image with tables for `symbols`, aligned to `align`.
fn image(symbols: &[(String, u64)], encoding: Encoding, align: usize) -> Vec<u8> {
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

fn file(image: &[u8]) -> KernelImage {
    KernelImage::parse(elf(image, &btf(&Shape::default()).section(), &[])).unwrap()
}

#[test]
fn every_encoding_is_decoded() {
    for (encoding, align) in [
        (Encoding::PlaceRelative, 4),
        (Encoding::PlaceRelative, 8),
        (Encoding::Base(Kva(LINK)), 8),
        (Encoding::BaseOrAbsolute(Kva(LINK)), 8),
    ] {
        for count in [300, 510, 511, 1000] {
            let mut expected = symbols(count);
            if matches!(encoding, Encoding::BaseOrAbsolute(_)) {
                // Per-CPU symbols come first, at small absolute addresses.
                expected.insert(0, ("Drunqueues".to_owned(), 0x2_3000));
            }
            let decoded = decode(&file(&image(&expected, encoding, align)))
                .unwrap_or_else(|error| panic!("{encoding:?} {align} {count}: {error}"));
            assert_eq!(decoded.source(), SymbolSource::Kallsyms(encoding));
            assert_eq!(decoded.len(), expected.len());
            for (name, address) in &expected {
                assert_eq!(decoded.get(&name[1..]), Some(Kva(*address)), "{name}");
            }
        }
    }
}

#[test]
fn a_stripped_image_without_tables_says_so() {
    let image = file(&[0; 0x4000]);
    assert_eq!(decode(&image).unwrap_err(), KallsymsError::NoTokenTable);
    assert!(matches!(Symbols::of(&image), Err(SymbolError::NoTable(_))));
}

#[test]
fn one_lost_name_is_noticed() {
    let expected = symbols(600);
    let mut image = image(&expected, Encoding::Base(Kva(LINK)), 8);
    image[TABLES + 8] += 1;
    let error = decode(&file(&image)).unwrap_err();
    assert!(matches!(error, KallsymsError::Inconsistent { .. }), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn damage_is_an_error_or_harmless(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        relative in any::<bool>(),
    ) {
        let encoding = if relative { Encoding::PlaceRelative } else { Encoding::Base(Kva(LINK)) };
        let mut image = image(&symbols(300), encoding, 8);
        for (at, value) in changes {
            let at = TABLES + at.index(image.len() - TABLES);
            image[at] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()).max(0x900));
        }
        if let Ok(symbols) = decode(&file(&image)) {
            prop_assert_eq!(symbols.get("_text"), Some(Kva(LINK)));
        }
    }
}
