//! Walks of 3, 4 and 5 levels (`[V]` 3.6, 3.7, 9.6, 11.4.2), over tables written by hand.

mod common;

use common::{A, DATA, Rig, pasid_entry};
use portcullis_models::bus::Operation;
use portcullis_models::memory::Memory;
use portcullis_models::vtd::Config;
use portcullis_spec::vtd::Agaw;
use portcullis_spec::vtd::fault::FaultReason;

/// Five tables, one page each, the deepest walk's root first.
const TABLES: u64 = 0x2_0000;
const DID: u64 = 5;
const FIRST: u64 = 1;
const SECOND: u64 = 2;

fn root(levels: u64) -> u64 {
    TABLES + (5 - levels) * 0x1000
}

fn entry(level: u64, iova: u64) -> u64 {
    root(level) + (iova >> (3 + 9 * level) & 0x1ff) * 8
}

/// Writes the way to `iova` and a leaf at `leaf_level` there.
fn map(rig: &Rig, stage: u64, levels: u64, leaf_level: u64, iova: u64, phys: u64) {
    let flags = if stage == FIRST { 7 } else { 3 };
    for level in leaf_level + 1..=levels {
        rig.ram.put64(entry(level, iova), root(level - 1) | flags);
    }
    let size = if leaf_level > 1 { 1 << 7 } else { 0 };
    rig.ram.put64(entry(leaf_level, iova), phys | size | flags);
}

/// PASID 9 of device A, with a table of so many levels.
fn attach(rig: &Rig, stage: u64, levels: u64) {
    pasid_entry(&rig.ram, 9, stage, root(levels), DID);
    let at = common::PASID_TABLE + 9 * 64;
    let low = rig.ram.load64(at).unwrap();
    if stage == SECOND {
        rig.ram.put64(at, low & !(7 << 2) | (levels - 2) << 2);
    } else {
        rig.ram.put64(at + 16, root(levels) | (levels - 4) << 2);
    }
}

fn load(rig: &mut Rig, iova: u64) -> Result<u64, u8> {
    rig.go(A, Some(9), iova, Operation::Read(8))
}

#[test]
fn a_second_stage_has_the_levels_of_aw() {
    for (levels, width) in [(3, Agaw::Bits39), (4, Agaw::Bits48), (5, Agaw::Bits57)] {
        let mut rig = Rig::scalable(Config::default().with_levels(width));
        attach(&rig, SECOND, levels);
        let last = (1 << width.width()) - 0x1000;
        for iova in [0x7000, 1 << 38, last] {
            map(&rig, SECOND, levels, 1, iova, DATA);
            assert_eq!(load(&mut rig, iova + 0x88), Ok(DATA + 0x88), "{levels} levels, {iova:#x}");
        }
        let beyond = load(&mut rig, last + 0x1000);
        assert_eq!(beyond, Err(FaultReason::Sgn5.bits()), "{levels} levels");
    }
}

#[test]
fn a_first_stage_has_the_levels_of_fspm() {
    let five = || Rig::scalable(Config::default().with_levels(Agaw::Bits57));
    for (levels, bits) in [(4u64, 48u32), (5, 57)] {
        let mut rig = five();
        attach(&rig, FIRST, levels);
        let lower = (1 << (bits - 1)) - 0x1000;
        let upper = u64::MAX << (bits - 1);
        for iova in [0x7000, lower, upper, u64::MAX - 0xfff] {
            map(&rig, FIRST, levels, 1, iova, DATA);
            assert_eq!(load(&mut rig, iova), Ok(DATA), "{levels} levels, {iova:#x}");
        }
        for iova in [lower + 0x1000, upper - 0x1000] {
            assert_eq!(load(&mut rig, iova), Err(FaultReason::Sgn1.bits()), "{levels} levels, {iova:#x}");
        }
    }
}

/// One address has other meanings under other depths: what is taken for the root decides.
#[test]
fn the_depth_is_the_entry_s_and_not_the_unit_s() {
    let mut unit = Config::default().with_levels(Agaw::Bits57);
    unit.widths = vec![Agaw::Bits39, Agaw::Bits48, Agaw::Bits57];
    for levels in [3, 4, 5] {
        let mut rig = Rig::scalable(unit.clone());
        attach(&rig, SECOND, levels);
        map(&rig, SECOND, levels, 1, 0x7000, DATA);
        assert_eq!(load(&mut rig, 0x7000), Ok(DATA));
        assert_eq!(load(&mut rig, 1 << (12 + 9 * levels)), Err(FaultReason::Sgn5.bits()));
    }
}

#[test]
fn a_depth_that_the_unit_does_not_announce_is_refused() {
    let mut rig = Rig::scalable(Config::default());
    attach(&rig, FIRST, 5);
    map(&rig, FIRST, 5, 1, 0x7000, DATA);
    assert_eq!(load(&mut rig, 0x7000), Err(FaultReason::Spt4.bits()), "FS5LP is clear");

    let mut rig = Rig::scalable(Config::default().with_levels(Agaw::Bits39));
    attach(&rig, SECOND, 4);
    map(&rig, SECOND, 4, 1, 0x7000, DATA);
    assert_eq!(load(&mut rig, 0x7000), Err(FaultReason::Spt4.bits()), "SAGAW has 39 bits only");
}

#[test]
fn leaves_of_1_gib_lie_at_level_3_whatever_the_depth() {
    let gib = 1 << 30;
    for (stage, depths) in [(SECOND, 3..=5u64), (FIRST, 4..=5)] {
        for levels in depths {
            let width = Agaw::from_bits(levels as u8 - 2).unwrap();
            let mut rig = Rig::scalable(Config::default().with_levels(width));
            attach(&rig, stage, levels);
            map(&rig, stage, levels, 3, gib, 0);
            let reached = load(&mut rig, gib + DATA + 0x1238);
            assert_eq!(reached, Ok(DATA + 0x1238), "stage {stage}, {levels} levels");
            // PS above that is reserved in both stages.
            let wrong = match stage {
                FIRST => FaultReason::Sfs3.bits(),
                _ => FaultReason::Sss3.bits(),
            };
            for level in 4..=levels {
                let mut rig = Rig::scalable(Config::default().with_levels(width));
                attach(&rig, stage, levels);
                map(&rig, stage, levels, level, gib, 0);
                assert_eq!(load(&mut rig, gib), Err(wrong), "stage {stage}, PS at level {level}");
            }
        }
    }
    let small = Config { second_stage_1g: false, first_stage_1g: false, ..Config::default() };
    for (stage, wrong) in [(SECOND, FaultReason::Sss3), (FIRST, FaultReason::Sfs3)] {
        let mut rig = Rig::scalable(small.clone());
        attach(&rig, stage, 4);
        map(&rig, stage, 4, 3, gib, 0);
        assert_eq!(load(&mut rig, gib), Err(wrong.bits()), "stage {stage}, no such pages");
    }
}
