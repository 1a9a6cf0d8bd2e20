//! How many levels tables have, and what the entries say of it.

use super::{
    attach::{legacy_context, pasid_entry},
    *,
};
use portcullis::driver::{Incompatible, PrepareError, Stage, TableRequest};

const ALL_WIDTHS: u8 = 0b01110;

/// A unit with these widths, as wide as they are.
fn wide(sagaw: u8) -> Cap {
    cap().with_sagaw(sagaw).with_mgaw(56).with_fs5lp(true)
}

fn made(vtd: &Vtd<Fake>, stage: Stage, input_bits: u8) -> Result<(u8, u8), PrepareError> {
    let made = vtd.new_table(TableRequest { stage, input_bits, ..TableRequest::default() });
    made.map(|t| {
        assert_eq!(vtd.can_walk(&t.desc()), Ok(()));
        (t.desc().levels, t.desc().input_bits)
    })
}

fn too_wide(table: u8, walker: u8) -> PrepareError {
    Incompatible::InputWidth { table, walker }.into()
}

#[test]
fn a_table_has_the_fewest_levels_that_hold_its_width() {
    let (_, vtd) = running(wide(ALL_WIDTHS), scalable_ecap());
    for (asked, levels) in [(32, 3), (39, 3), (40, 4), (48, 4), (49, 5), (57, 5)] {
        assert_eq!(made(&vtd, Stage::Second, asked), Ok((levels, asked)));
    }
    assert_eq!(made(&vtd, Stage::Second, 58), Err(too_wide(58, 57)));
    // The lower canonical half ([V] 3.6).
    for (asked, levels) in [(39, 4), (47, 4), (48, 5), (56, 5)] {
        assert_eq!(made(&vtd, Stage::First, asked), Ok((levels, asked)));
    }
    assert_eq!(made(&vtd, Stage::First, 57), Err(too_wide(57, 56)));
    assert_eq!(made(&vtd, Stage::Any, 57), Ok((5, 57)), "the second stage");
}

#[test]
fn a_width_that_nobody_asked_for_is_the_usual_one_or_what_there_is() {
    for (sagaw, mgaw, expected) in [
        (ALL_WIDTHS, 56, (4, 48)),
        (0b00110, 47, (4, 48)),
        (0b00010, 38, (3, 39)),
        (0b01000, 56, (5, 48)),
        // MGAW is narrower than a table could be.
        (0b00110, 38, (3, 39)),
        (0b00100, 41, (4, 42)),
    ] {
        let (_, vtd) = running(cap().with_sagaw(sagaw).with_mgaw(mgaw), scalable_ecap());
        assert_eq!(made(&vtd, Stage::Second, 0), Ok(expected), "SAGAW {sagaw:#b}, MGAW {mgaw}");
    }
    let (_, vtd) = running(cap().with_mgaw(41), scalable_ecap());
    assert_eq!(made(&vtd, Stage::First, 0), Ok((4, 42)), "MGAW limits the first stage too");
    let (_, vtd) = running(cap(), scalable_ecap());
    assert_eq!(made(&vtd, Stage::First, 48), Err(too_wide(48, 47)), "FS5LP is clear");
    assert_eq!(made(&vtd, Stage::Any, 48), Ok((4, 48)), "which the second stage holds");
}

#[test]
fn where_only_the_first_stage_is_wide_enough_it_is_taken() {
    let cap = cap().with_sagaw(0b00010).with_mgaw(56).with_fs5lp(true);
    let (_, vtd) = running(cap, scalable_ecap());
    assert_eq!(made(&vtd, Stage::Any, 39), Ok((3, 39)));
    assert_eq!(made(&vtd, Stage::Any, 50), Ok((5, 50)));
    assert_eq!(made(&vtd, Stage::Second, 50), Err(too_wide(50, 39)));
}

#[test]
fn levels_that_the_unit_does_not_walk_are_named() {
    let (_, vtd) = running(wide(0b01010), scalable_ecap());
    assert_eq!(made(&vtd, Stage::Second, 40), Ok((5, 40)), "4 levels are not to be had");
    let foreign = FormatDesc { input_bits: 39, ..desc(VTD_SECOND_STAGE) };
    assert_eq!(vtd.can_walk(&foreign), Err(Incompatible::Levels(4)));
    assert_eq!(vtd.can_walk(&FormatDesc { levels: 3, ..foreign }), Ok(()));
    assert_eq!(vtd.can_walk(&FormatDesc { levels: 2, ..foreign }), Err(Incompatible::Levels(2)));
    let (_, narrow) = running(cap(), scalable_ecap());
    let five = FormatDesc { levels: 5, ..desc(X86_FIRST_STAGE) };
    assert_eq!(narrow.can_walk(&five), Err(Incompatible::Levels(5)), "FS5LP is clear");
    assert_eq!(vtd.can_walk(&five), Ok(()));
}

fn table(id: FormatId, levels: u8) -> Target {
    let desc = FormatDesc { levels, input_bits: 39, ..desc(id) };
    Target::Table { desc, root: Phys(0xabc_d000), tag: DomainTag(0x1234) }
}

#[test]
fn entries_have_the_width_of_the_table() {
    // AW: 001b is 3 levels, 010b is 4, 011b is 5 ([V] 9.3, 9.6).
    for (levels, aw) in [(3, 1), (4, 2), (5, 3)] {
        let (fake, vtd) = running(wide(ALL_WIDTHS), legacy_ecap());
        vtd.add_device(SOURCE, Features::default()).unwrap();
        let _ = attach(&vtd, rid(), table(VTD_SECOND_STAGE, levels));
        assert_eq!(legacy_context(&fake), [0x0abc_d001, 0x0012_3400 | aw]);

        let (fake, vtd) = running(wide(ALL_WIDTHS), scalable_ecap());
        vtd.add_device(SOURCE, Features::default()).unwrap();
        let _ = attach(&vtd, rid(), table(VTD_SECOND_STAGE, levels));
        // P, AW in 4:2, PGTT 010b in 8:6.
        assert_eq!(pasid_entry(&fake, 0)[0], 0x0abc_d081 | aw << 2);
    }
    // FSPM in 131:130: 00b is 4 levels, 01b is 5.
    for (levels, fspm) in [(4, 0), (5, 1)] {
        let (fake, vtd) = running(wide(ALL_WIDTHS), scalable_ecap());
        vtd.add_device(SOURCE, Features::default()).unwrap();
        let _ = attach(&vtd, rid(), table(X86_FIRST_STAGE, levels));
        let entry = pasid_entry(&fake, 0);
        assert_eq!((entry[0], entry[2]), (0x41, 0x0abc_d000 | fspm << 2));
    }
}

#[test]
fn dirty_tracking_sets_ssade_or_is_refused_with_the_reason() {
    let asks = |vtd: &Vtd<Fake>, stage| {
        vtd.new_table(TableRequest { stage, dirty: true, ..TableRequest::default() }).map(|t| t.desc())
    };
    let refused = Some(PrepareError::from(Incompatible::NoDirtyTracking));
    let (fake, vtd) = running(cap(), scalable_ecap().with_ssads(true));
    let desc = asks(&vtd, Stage::Second).unwrap();
    assert!(desc.dirty);
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let _ = attach(&vtd, rid(), Target::Table { desc, root: Phys(0xabc_d000), tag: DomainTag(3) });
    // P, AW 010b, PGTT 010b, SSADE in bit 9.
    assert_eq!(pasid_entry(&fake, 0)[0], 0x0abc_d289);
    let plain = vtd.new_table(TableRequest { stage: Stage::Second, ..TableRequest::default() }).unwrap();
    assert!(!plain.desc().dirty, "it costs nothing where nobody asked for it");

    let (_, without) = running(cap(), scalable_ecap());
    assert_eq!(asks(&without, Stage::Second).err(), refused);
    assert_eq!(without.can_walk(&desc), Err(Incompatible::NoDirtyTracking));
    assert_eq!(asks(&without, Stage::Any).unwrap().id, X86_FIRST_STAGE, "which always keeps them");
    // Without snooped walks no bit can be set ([V] 3.10), and legacy mode has no SSADE.
    let (_, stale) = running(cap(), scalable_ecap().with_ssads(true).with_smpwcs(false));
    assert_eq!(asks(&stale, Stage::Any).err(), refused);
    let (_, old) = running(cap(), legacy_ecap());
    assert_eq!(asks(&old, Stage::Any).err(), refused);
}
