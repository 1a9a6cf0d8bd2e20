//! Golden values of VT-d's in-memory structures. The literals are worked out from the bit positions
//! in the tables and figures of `[V]`, never by the code under test.

use portcullis_spec::vtd::context::{ContextEntry, ScalableContext, ScalableContextEntry};
use portcullis_spec::vtd::page_req::{PageRequest, ResponseCode};
use portcullis_spec::vtd::pasid::{
    Fspm, PasidDirEntry, PasidEntry, PasidFirstStage, PasidHpt, PasidLow, Pgtt, dir_index,
    table_index,
};
use portcullis_spec::vtd::root::{RootEntry, ScalableRootEntry};
use portcullis_spec::vtd::{Agaw, in_interrupt_range, split};
use proptest::prelude::*;

/// The mask of these bit ranges, written as the manual writes them: high bit first.
fn bits(ranges: &[(u32, u32)]) -> u128 {
    ranges.iter().fold(0, |mask, &(high, low)| {
        mask | (u128::MAX >> (127 - high)) & (u128::MAX << low)
    })
}

#[test]
fn root_entry() {
    let entry = RootEntry::new().with_p(true).with_ctp(0x1234_5000);
    assert_eq!(split(entry.into_bits()), [0x1234_5001, 0]);
    assert_eq!(RootEntry::from_bits(0x1234_5001), entry);
    assert_eq!(RootEntry::RESERVED, bits(&[(127, 64), (11, 1)]));
}

#[test]
fn scalable_root_entry() {
    let entry = ScalableRootEntry::new()
        .with_lp(true)
        .with_lctp(0xABCD_E000)
        .with_up(true)
        .with_uctp(0x7_0000_1000);
    assert_eq!(split(entry.into_bits()), [0xABCD_E001, 0x7_0000_1001]);
    let read = ScalableRootEntry::from_bits(0x0000_0007_0000_1001_0000_0000_ABCD_E001);
    assert!(read.lp() && read.up());
    assert_eq!((read.lctp(), read.uctp()), (0xABCD_E000, 0x7_0000_1000));
    assert_eq!(ScalableRootEntry::RESERVED_LOWER, bits(&[(11, 1)]));
    assert_eq!(ScalableRootEntry::RESERVED_UPPER, bits(&[(75, 65)]));
}

#[test]
fn context_entry() {
    let entry = ContextEntry::new()
        .with_p(true)
        .with_tt(1)
        .with_ssptptr(0x8000_0000_0000)
        .with_aw(Agaw::Bits48.bits())
        .with_did(0xBEEF);
    assert_eq!(
        split(entry.into_bits()),
        [0x0000_8000_0000_0005, 0x00BE_EF02]
    );
    let read = ContextEntry::from_bits(0x0000_0000_00BE_EF02_0000_8000_0000_000A);
    assert!(!read.p() && read.fpd());
    assert_eq!(read.translation_type().map(|t| t.bits()), Some(2));
    assert_eq!(read.agaw(), Some(Agaw::Bits48));
    assert_eq!((read.did(), read.ssptptr()), (0xBEEF, 0x8000_0000_0000));
    assert_eq!(
        ContextEntry::RESERVED,
        bits(&[(127, 88), (71, 71), (11, 4)])
    );
}

#[test]
fn scalable_context_entry() {
    let low = ScalableContext::new()
        .with_p(true)
        .with_dte(true)
        .with_paside(true)
        .with_pre(true)
        .with_pdts(7)
        .with_pasiddirptr(0x4000_2000)
        .with_rid_pasid(0xA_BCDE)
        .with_rid_priv(true);
    let entry = ScalableContextEntry { low, reserved: 0 };
    let golden = [0x4000_2E1D, 0x001A_BCDE, 0, 0];
    assert_eq!(entry.into_qwords(), golden);
    assert_eq!(ScalableContextEntry::from_qwords(golden), entry);
    assert_eq!(low.pasid_count(), 1 << 20);
    let read = ScalableContext::from_bits(0x62);
    assert!(read.fpd() && read.hpte() && read.eptr() && !read.p() && !read.pre());
    assert_eq!(ScalableContext::RESERVED, bits(&[(127, 85), (8, 7)]));
    assert!(!entry.has_reserved());
    assert!(ScalableContextEntry::from_qwords([0, 0, 1, 0]).has_reserved());
    assert!(ScalableContextEntry::from_qwords([0x80, 0, 0, 0]).has_reserved());
}

#[test]
fn pasid_dir_entry() {
    let entry = PasidDirEntry::new()
        .with_p(true)
        .with_fpd(true)
        .with_smptblptr(0x9_8765_4000);
    assert_eq!(entry.into_bits(), 0x9_8765_4003);
    assert_eq!(PasidDirEntry::from_bits(0x9_8765_4003), entry);
    assert_eq!(u128::from(PasidDirEntry::RESERVED), bits(&[(11, 2)]));
}

#[test]
fn pasid_entry() {
    let entry = PasidEntry {
        low: PasidLow::new()
            .with_p(true)
            .with_aw(Agaw::Bits48.bits())
            .with_pgtt(Pgtt::Nested.bits())
            .with_ssade(true)
            .with_ssptptr(0x12_3456_7000)
            .with_did(0x1234)
            .with_pwsnp(true)
            .with_pgsnp(true)
            .with_cd(true)
            .with_emte(true)
            .with_pat(0x0007_0406),
        first_stage: PasidFirstStage::new()
            .with_sre(true)
            .with_fspm(Fspm::Level5.bits())
            .with_wpe(true)
            .with_eafe(true)
            .with_fsptptr(0xFEDC_B000),
        hpt: PasidHpt::new()
            .with_hptsz(2)
            .with_hptpfd(true)
            .with_hptptr(0x5_5000)
            .with_hptdid(0x4321),
        reserved: 0,
    };
    let golden = [
        0x12_3456_72C9,
        0x0007_0406_0780_1234,
        0xFEDC_B095,
        0,
        0x5_5006,
        0x4321,
        0,
        0,
    ];
    assert_eq!(entry.into_qwords(), golden);
    assert_eq!(PasidEntry::from_qwords(golden), entry);
    assert_eq!(entry.low.translation_type(), Some(Pgtt::Nested));
    assert_eq!(entry.first_stage.paging_mode(), Some(Fspm::Level5));
    assert_eq!(
        PasidLow::RESERVED,
        bits(&[(95, 91), (86, 80), (11, 10), (5, 5)])
    );
    assert_eq!(
        PasidFirstStage::RESERVED,
        bits(&[(127, 64), (11, 8), (1, 1)])
    );
    assert_eq!(PasidHpt::RESERVED, bits(&[(127, 80), (11, 3)]));
    assert!(!entry.has_reserved());
    for qword in [0, 1, 2, 3, 4, 5, 6, 7] {
        let mut raw = [0; 8];
        raw[qword] = u64::MAX;
        assert!(PasidEntry::from_qwords(raw).has_reserved(), "qword {qword}");
    }
}

#[test]
fn pasid_indices() {
    assert_eq!((dir_index(0xF_FFFF), table_index(0xF_FFFF)), (0x3FFF, 0x3F));
    assert_eq!((dir_index(0x41), table_index(0x41)), (1, 1));
}

#[test]
fn page_request() {
    let request = PageRequest::new()
        .with_pp(true)
        .with_rid(0x0108)
        .with_pasid(0x1_2345)
        .with_exr(true)
        .with_pmr(true)
        .with_rdr(true)
        .with_wrr(true)
        .with_lpig(true)
        .with_prgi(0x155)
        .with_address(0x7FFF_1234_5000);
    let golden = [0x0031_2345_0108_0101, 0x7FFF_1234_5AAF, 0, 0];
    assert_eq!(request.into_qwords(), golden);
    assert_eq!(PageRequest::from_qwords(golden), request);
    assert!(!request.is_stop_marker());
    assert_eq!(PageRequest::RESERVED, bits(&[(63, 54), (15, 9)]));
}

#[test]
fn stop_marker() {
    let marker = |flags| PageRequest::from_qwords([0x0000_0007_0108_0101, flags, 0, 0]);
    assert!(marker(0b100).is_stop_marker());
    for flags in [0b000, 0b001, 0b010, 0b011, 0b101, 0b110, 0b111] {
        assert!(!marker(flags).is_stop_marker(), "{flags:03b}");
    }
}

#[test]
fn response_codes() {
    let defined: Vec<u8> = (0..16)
        .filter(|&c| ResponseCode::from_bits(c).is_some())
        .collect();
    assert_eq!(defined, [0, 1, 15]);
}

#[test]
fn reserved_encodings() {
    let aw: Vec<_> = (0..8)
        .map(|c| Agaw::from_bits(c).map(Agaw::width))
        .collect();
    assert_eq!(
        aw,
        [None, Some(39), Some(48), Some(57), None, None, None, None]
    );
    assert_eq!(
        Agaw::ALL.iter().map(|a| a.levels()).collect::<Vec<_>>(),
        [3, 4, 5]
    );
    let pgtt: Vec<u8> = (0..8).filter(|&c| Pgtt::from_bits(c).is_some()).collect();
    assert_eq!(pgtt, [1, 2, 3, 4]);
    assert_eq!(Fspm::from_bits(2), None);
}

#[test]
fn interrupt_range() {
    assert!(in_interrupt_range(0xFEE0_0000) && in_interrupt_range(0xFEEF_FFFF));
    assert!(!in_interrupt_range(0xFEDF_FFFF) && !in_interrupt_range(0xFEF0_0000));
}

#[test]
fn narrow_values_are_cut_not_refused() {
    assert_eq!(PageRequest::new().with_pasid(u32::MAX).pasid(), 0xF_FFFF);
    assert_eq!(PageRequest::new().with_prgi(u16::MAX).prgi(), 0x1FF);
    assert_eq!(
        PageRequest::new().with_address(u64::MAX).address(),
        u64::MAX << 12
    );
    assert!(!PageRequest::new().with_pasid(u32::MAX).exr());
}

proptest! {
    #[test]
    fn entries_keep_every_bit(raw: [u64; 8]) {
        let half = [raw[0], raw[1], raw[2], raw[3]];
        prop_assert_eq!(PasidEntry::from_qwords(raw).into_qwords(), raw);
        prop_assert_eq!(ScalableContextEntry::from_qwords(half).into_qwords(), half);
        let [q0, q1, ..] = half;
        prop_assert_eq!(PageRequest::from_qwords(half).into_qwords(), [q0, q1, 0, 0]);
    }

    #[test]
    fn page_request_fields_cover_all_but_the_reserved_bits(raw: [u64; 2]) {
        let read = PageRequest::from_qwords([raw[0], raw[1], 0, 0]);
        let written = PageRequest::new()
            .with_ty(read.ty())
            .with_pp(read.pp())
            .with_rid(read.rid())
            .with_pasid(read.pasid())
            .with_exr(read.exr())
            .with_pmr(read.pmr())
            .with_rdr(read.rdr())
            .with_wrr(read.wrr())
            .with_lpig(read.lpig())
            .with_prgi(read.prgi())
            .with_address(read.address());
        prop_assert_eq!(written.into_bits(), read.into_bits() & !PageRequest::RESERVED);
    }
}
