//! Hostile type information: the crate that parses it, and what is asked of it, neither panic nor
//! run without bound.

use std::time::{Duration, Instant};

use ktstr_monitor::btf::{BtfError, Field, FieldKind, FieldMissing, KernelTypes};
use proptest::prelude::*;

use crate::btf_writer::BtfWriter;
use crate::guest::{Shape, btf};

const BOUND: Duration = Duration::from_secs(5);

fn types(btf: &BtfWriter) -> KernelTypes {
    KernelTypes::parse(&btf.section()).unwrap()
}

#[test]
fn members_are_found_through_everything_that_c_allows() {
    let types = types(&btf(&Shape::default()));
    let field = |offset, kind| Ok(Field { offset, size: 4, bits: None, kind });
    assert_eq!(types.field("rq", "cpu"), field(64, FieldKind::Signed));
    assert_eq!(types.field("rq", "scx.local_dsq.nr"), field(24, FieldKind::Unsigned));
    let clock = types.field("rq", "clock").unwrap();
    assert_eq!((clock.offset, clock.size), (8, 8));
    assert_eq!(types.field("rq", "rd").unwrap().kind, FieldKind::Pointer);
    assert_eq!(types.size_of("cpumask"), Ok(8));
    assert_eq!(types.field("cpumask", "bits").unwrap().kind, FieldKind::Aggregate);
}

#[test]
fn what_is_not_there_is_missing_by_name() {
    let types = types(&btf(&Shape::default()));
    let member = |path: &str| Err(FieldMissing::Member { name: "rq", path: path.into() });
    assert_eq!(types.field("rq", "nope"), member("nope"));
    assert_eq!(types.field("rq", "scx.nope"), member("scx.nope"));
    assert_eq!(types.field("rq", "cpu.nope"), member("cpu.nope"));
    assert_eq!(types.field("rq", ""), member(""));
    assert_eq!(types.field("no_such", "x"), Err(FieldMissing::Struct { name: "no_such" }));
}

#[test]
fn bitfields_give_unit_and_bits() {
    let mut btf = BtfWriter::new();
    let u32_ = btf.int("unsigned int", 4, false);
    btf.bitfields("s", 8, &[("whole", u32_, 0), ("some", u32_, 5 << 24 | 35), ("over", u32_, 9 << 24 | 58)]);
    let types = types(&btf);
    assert_eq!(types.field("s", "whole").unwrap().bits, None);
    let some = types.field("s", "some").unwrap();
    assert_eq!((some.offset, some.size, some.bits), (4, 4, Some((3, 5))));
    assert!(matches!(types.field("s", "over"), Err(FieldMissing::Damaged { .. })));
}

#[test]
fn members_outside_their_structure_are_damage() {
    let mut btf = BtfWriter::new();
    let u32_ = btf.int("unsigned int", 4, false);
    btf.structure("s", 8, &[("late", u32_, 40), ("odd", u32_, 3), ("far", u32_, u32::MAX - 7)]);
    let types = types(&btf);
    for path in ["late", "odd", "far"] {
        let found = types.field("s", path);
        assert!(matches!(found, Err(FieldMissing::Damaged { .. })), "{path}: {found:?}");
    }
}

#[test]
fn cycles_end() {
    let mut btf = BtfWriter::new();
    let own = btf.next_id();
    btf.typedef("loop", own);
    let itself = btf.next_id();
    btf.structure("s", 8, &[("looped", own, 0), ("", itself, 0), ("", itself, 0), ("after", own, 0)]);
    let endless = btf.next_id();
    btf.array(endless, endless, u32::MAX);
    btf.structure("t", 8, &[("endless", endless, 0), ("void", 0, 0), ("none", 4000, 0)]);
    let types = types(&btf);
    let began = Instant::now();
    for (name, path) in
        [("s", "looped"), ("s", "nope"), ("s", "after"), ("t", "endless"), ("t", "void"), ("t", "none")]
    {
        let found = types.field(name, path);
        assert!(matches!(found, Err(FieldMissing::Damaged { .. })), "{name}.{path}: {found:?}");
    }
    assert!(began.elapsed() < BOUND);
}

#[test]
fn two_structures_of_one_name_must_agree() {
    let mut btf = BtfWriter::new();
    let u32_ = btf.int("unsigned int", 4, false);
    btf.structure("same", 8, &[("x", u32_, 0), ("y", u32_, 32)]);
    btf.structure("same", 8, &[("x", u32_, 0), ("y", u32_, 0)]);
    let types = types(&btf);
    assert!(types.field("same", "x").is_ok());
    let path = "y".to_owned();
    assert_eq!(types.field("same", "y"), Err(FieldMissing::Ambiguous { name: "same", path }));
}

#[test]
fn what_would_make_the_parser_work_for_ever_is_refused_before() {
    let parse = |section: &[u8]| KernelTypes::parse(section).map(|_| ());
    assert!(matches!(parse(&[]), Err(BtfError::Header { .. })));
    assert!(matches!(parse(&[0; 64]), Err(BtfError::Header { .. })));
    let mut btf = BtfWriter::new();
    // The parser would copy this name for each type that refers to it.
    btf.int(&"x".repeat(2000), 4, false);
    assert!(matches!(parse(&btf.section()), Err(BtfError::Header { .. })));
    let mut long = BtfWriter::new().section();
    long[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(parse(&long), Err(BtfError::Header { .. })));
    let mut far = BtfWriter::new().section();
    far[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(parse(&far), Err(BtfError::Header { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_mutation_is_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        is_cut in prop::bool::weighted(0.1),
    ) {
        let mut section = btf(&Shape::default()).section();
        for (at, value) in changes {
            let at = at.index(section.len());
            section[at] = value;
        }
        if is_cut {
            section.truncate(cut.index(section.len()));
        }
        let began = Instant::now();
        if let Ok(types) = KernelTypes::parse(&section) {
            for (name, path) in [
                ("rq", "nr_running"), ("rq", "clock"), ("rq", "scx.local_dsq.nr"), ("rq", "cpu"),
                ("scx_sched", "pcpu"), ("scx_sched_pcpu", "event_stats"), ("cpumask", "bits"),
            ] {
                if let (Ok(field), Ok(size)) = (types.field(name, path), types.size_of(name)) {
                    prop_assert!(field.offset + field.size <= size);
                }
            }
            types.members("scx_event_stats").ok();
        }
        prop_assert!(began.elapsed() < BOUND);
    }
}
