//! The kallsyms decoder on tables as the kernel's build writes them, and on damaged ones.

use ktstr_monitor::addr::Kva;
use ktstr_monitor::image::KernelImage;
use ktstr_monitor::symbols::kallsyms::{Encoding, KallsymsError, decode};
use ktstr_monitor::symbols::{SymbolError, SymbolSource, Symbols};
use proptest::prelude::*;

use crate::guest::{Shape, btf};
use crate::kallsyms_writer::{TABLES, image, symbols};
use crate::kernel_file::{LINK, elf};

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
