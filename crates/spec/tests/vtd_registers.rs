//! Golden values of VT-d's registers, and the table of fault reasons.

use portcullis_spec::vtd::fault::{Answer, FaultReason};
use portcullis_spec::vtd::qi::{CcGranularity, DescWidth, IotlbGranularity};
use portcullis_spec::vtd::regs::{
    AddressType, Cap, Ccmd, Ecap, EventAddress, EventControl, EventData, Frcd, FrcdType, Fsts,
    Gcmd, Gsts, Ics, IotlbReg, Iqa, Iqei, Iqercd, Iqh, Iqt, Irta, Iva, Pmen, Pqa, Pqh, Pqt, Prs,
    Rtaddr, Ttm, Ver, offset,
};
use portcullis_spec::vtd::{Agaw, split};
use proptest::prelude::*;

/// Each flag is at its bit, read and written.
macro_rules! flags {
    ($ty:ident: $($get:ident $with:ident $bit:literal,)+) => {$(
        let raw = 1 << $bit;
        assert!($ty::from_bits(raw).$get(), concat!(stringify!($get), " reads bit ", $bit));
        assert!(!$ty::from_bits(!raw).$get(), concat!(stringify!($get), " reads bit ", $bit));
        assert_eq!($ty::new().$with(true).into_bits(), raw, stringify!($with));
    )+};
}

#[test]
fn capability() {
    let golden = Cap::from_bits(0x99D2_078C_226F_0686);
    let built = Cap::new()
        .with_nd(6)
        .with_cm(true)
        .with_sagaw(0b00110)
        .with_mgaw(47)
        .with_zlr(true)
        .with_fro(0x22)
        .with_sslps(0b11)
        .with_psi(true)
        .with_nfr(7)
        .with_mamv(18)
        .with_dwd(true)
        .with_drd(true)
        .with_fs1gp(true)
        .with_pi(true)
        .with_fs5lp(true)
        .with_esrtps(true);
    assert_eq!(built, golden);
    assert_eq!(golden.domain_id_bits(), Some(16));
    assert_eq!(Cap::new().with_nd(7).domain_id_bits(), None);
    assert!(golden.supports(Agaw::Bits39) && golden.supports(Agaw::Bits48));
    assert!(!golden.supports(Agaw::Bits57));
    assert_eq!(
        (golden.guest_address_width(), golden.fault_records()),
        (48, 8)
    );
    assert_eq!(
        (golden.frcd_offset(0), golden.frcd_offset(2)),
        (0x220, 0x240)
    );
    assert!(golden.second_stage_2m() && golden.second_stage_1g());
    flags! { Cap:
        rwbf with_rwbf 4, plmr with_plmr 5, phmr with_phmr 6, cm with_cm 7, zlr with_zlr 22,
        dep with_dep 23, psi with_psi 39, dwd with_dwd 54, drd with_drd 55, fs1gp with_fs1gp 56,
        pi with_pi 59, fs5lp with_fs5lp 60, ecmds with_ecmds 61, esirtps with_esirtps 62,
        esrtps with_esrtps 63,
    }
}

#[test]
fn extended_capability() {
    let golden = Ecap::from_bits(0x4413_CF9A_A4F0_24C7);
    assert_eq!((golden.iro(), golden.mhmv(), golden.pss()), (0x24, 0xF, 19));
    assert_eq!((golden.iva_offset(), golden.iotlb_offset()), (0x240, 0x248));
    assert_eq!(golden.pasid_bits(), 20);
    assert_eq!(Ecap::new().with_pss(7).pasid_bits(), 8);
    assert_eq!(
        Ecap::new()
            .with_iro(0x24)
            .with_mhmv(0xF)
            .with_pss(19)
            .into_bits(),
        0x98_00F0_2400
    );
    flags! { Ecap:
        c with_c 0, qi with_qi 1, dt with_dt 2, ir with_ir 3, eim with_eim 4, pt with_pt 6,
        sc with_sc 7, mts with_mts 25, nest with_nest 26, prs with_prs 29, ers with_ers 30,
        srs with_srs 31, nwfs with_nwfs 33, eafs with_eafs 34, pasid with_pasid 40,
        dit with_dit 41, pds with_pds 42, smts with_smts 43, vcs with_vcs 44, ssads with_ssads 45,
        ssts with_ssts 46, fsts with_fsts 47, smpwcs with_smpwcs 48, rps with_rps 49,
        tdxcs with_tdxcs 50, pms with_pms 51, adms with_adms 52, rprivs with_rprivs 53,
        hpts with_hpts 55, ptrs with_ptrs 56, ssirws with_ssirws 57, sms with_sms 58,
        hpt1gps with_hpt1gps 59, rdts with_rdts 60, eimer with_eimer 61, irreq with_irreq 62,
    }
}

#[test]
fn global() {
    assert_eq!(
        (Ver::from_bits(0x61).max(), Ver::from_bits(0x61).min()),
        (6, 1)
    );
    flags! { Gcmd:
        cfi with_cfi 23, sirtp with_sirtp 24, ire with_ire 25, qie with_qie 26, wbf with_wbf 27,
        srtp with_srtp 30, te with_te 31,
    }
    flags! { Gsts:
        cfis with_cfis 23, irtps with_irtps 24, ires with_ires 25, qies with_qies 26,
        wbfs with_wbfs 27, rtps with_rtps 30, tes with_tes 31,
    }
    // Of everything set, the commands that stay are TE, QIE, IRE and CFI.
    let command = Gsts::from_bits(0xCF80_0000).as_command();
    assert_eq!(command.into_bits(), 0x8680_0000);
    assert!(command.te() && command.qie() && command.ire() && command.cfi());

    let root = Rtaddr::new()
        .with_rta(0x1234_5678_9000)
        .with_ttm(Ttm::Scalable.bits());
    assert_eq!(root.into_bits(), 0x1234_5678_9400);
    assert_eq!(Rtaddr::from_bits(0x1234_5678_9C80).mode(), Some(Ttm::Abort));
    assert_eq!(Rtaddr::from_bits(0x800).mode(), None);
    assert!(Rtaddr::from_bits(0x80).ssirwe());

    assert_eq!(
        Irta::new()
            .with_irta(0x5000)
            .with_eime(true)
            .with_s(15)
            .into_bits(),
        0x580F
    );
    flags! { Pmen: prs with_prs 0, epm with_epm 31, }
}

#[test]
fn register_invalidation() {
    let context = Ccmd::new()
        .with_icc(true)
        .with_cirg(3)
        .with_fm(2)
        .with_sid(0x1A2B)
        .with_did(0xC);
    assert_eq!(context.into_bits(), 0xE000_0002_1A2B_000C);
    assert_eq!(context.requested(), Some(CcGranularity::Device));
    assert_eq!(
        Ccmd::from_bits(0x1000_0000_0000_0000).performed(),
        Some(CcGranularity::Domain)
    );
    assert_eq!(Ccmd::new().performed(), None);

    let iotlb = IotlbReg::new()
        .with_ivt(true)
        .with_iirg(2)
        .with_dr(true)
        .with_dw(true)
        .with_did(9);
    assert_eq!(iotlb.into_bits(), 0xA003_0009_0000_0000);
    assert_eq!(iotlb.requested(), Some(IotlbGranularity::Domain));
    assert_eq!(
        IotlbReg::from_bits(0x0600_0000_0000_0000).performed(),
        Some(IotlbGranularity::Page)
    );
    assert_eq!(
        Iva::new()
            .with_address(0x7000)
            .with_ih(true)
            .with_am(9)
            .into_bits(),
        0x7049
    );
}

#[test]
fn invalidation_queue() {
    let queue = Iqa::new().with_iqa(0xABC_D000).with_dw(true).with_qs(3);
    assert_eq!(queue.into_bits(), 0xABC_D803);
    assert_eq!((queue.size(), queue.entries()), (0x8000, 1024));
    assert_eq!(queue.with_dw(false).entries(), 2048);
    assert_eq!(queue.width(), DescWidth::Bits256);
    assert_eq!(
        (DescWidth::Bits128.bytes(), DescWidth::Bits256.bytes()),
        (16, 32)
    );
    assert_eq!(Iqh::from_bits(0x7_FFFF).qh(), 0x7_FFF0);
    assert_eq!(Iqt::new().with_qt(0x7_FFF0).into_bits(), 0x7_FFF0);
    assert_eq!(Iqt::new().with_qt(0x8_0010).into_bits(), 0x10);
    flags! { Ics: iwc with_iwc 0, }

    let record = Iqercd::from_bits(0x1234_5678_0000_0004);
    assert_eq!((record.icesid(), record.itesid()), (0x1234, 0x5678));
    assert_eq!(record.error(), Some(Iqei::ReservedField));
    let codes: Vec<u8> = Iqei::ALL.iter().map(|e| e.bits()).collect();
    assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(Iqercd::from_bits(8).error(), None);
}

#[test]
fn page_request_queue() {
    let queue = Pqa::new().with_pqa(0xABC_D000).with_pqs(2);
    assert_eq!(queue.into_bits(), 0xABC_D002);
    assert_eq!((queue.size(), queue.entries()), (0x4000, 512));
    assert_eq!(Pqh::new().with_pqh(0x3FE0).into_bits(), 0x3FE0);
    assert_eq!(Pqt::from_bits(0x7_FFFF).pqt(), 0x7_FFE0);
    flags! { Prs: ppr with_ppr 0, pro with_pro 1, }
    assert_eq!(
        Prs::new().with_ppr(true).with_pro(true).into_bits(),
        Prs::W1C
    );
}

#[test]
fn events() {
    flags! { EventControl: ip with_ip 30, im with_im 31, }
    assert_eq!(EventControl::RESET.into_bits(), 0x8000_0000);
    assert_eq!(EventData::from_bits(0xFFFF_0041).imd(), 0x41);
    assert_eq!(
        EventAddress::new().with_ma(0xFEE0_100C).into_bits(),
        0xFEE0_100C
    );
    assert_eq!(EventAddress::from_bits(0xFEE0_100F).ma(), 0xFEE0_100C);
}

#[test]
fn fault_status() {
    flags! { Fsts:
        pfo with_pfo 0, ppf with_ppf 1, iqe with_iqe 4, ice with_ice 5, ite with_ite 6,
    }
    assert_eq!(Fsts::from_bits(0x1234).fri(), 0x12);
    let clearable = Fsts::new()
        .with_pfo(true)
        .with_iqe(true)
        .with_ice(true)
        .with_ite(true);
    assert_eq!(clearable.into_bits(), Fsts::W1C);
}

#[test]
fn fault_record() {
    let golden = [0xDEAD_B000, 0xD543_2171_C000_0210];
    let record = Frcd::new()
        .with_f(true)
        .with_request_type(FrcdType::Read)
        .with_at(AddressType::TranslationRequest.bits())
        .with_pv(0x5_4321)
        .with_fr(FaultReason::Sfs2.bits())
        .with_pp(true)
        .with_exe(true)
        .with_sid(0x0210)
        .with_fi(0xDEAD_B000);
    assert_eq!(split(record.into_bits()), golden);
    assert_eq!(record.reason(), Some(FaultReason::Sfs2));
    assert_eq!(record.address_type(), Some(AddressType::TranslationRequest));
    assert_eq!(Frcd::new().with_privileged(true).into_bits(), 1 << 93);
    for (ty, bits) in [
        (FrcdType::Write, 0),
        (FrcdType::PageRequest, 1 << 92),
        (FrcdType::Read, 1 << 126),
        (FrcdType::AtomicOp, 1 << 126 | 1 << 92),
    ] {
        assert_eq!(Frcd::new().with_request_type(ty).into_bits(), bits);
        assert_eq!(Frcd::from_bits(bits).request_type(), ty);
    }
    assert_eq!(
        Frcd::from_bits(0xABCD_0000_0000_0000).interrupt_index(),
        0xABCD
    );
}

#[test]
fn offsets() {
    let listed = [
        offset::VER,
        offset::CAP,
        offset::ECAP,
        offset::GCMD,
        offset::GSTS,
        offset::RTADDR,
        offset::CCMD,
        offset::FSTS,
        offset::FECTL,
        offset::FEDATA,
        offset::FEADDR,
        offset::FEUADDR,
        offset::PMEN,
        offset::PLMBASE,
        offset::PLMLIMIT,
        offset::PHMBASE,
        offset::PHMLIMIT,
        offset::IQH,
        offset::IQT,
        offset::IQA,
        offset::ICS,
        offset::IECTL,
        offset::IEDATA,
        offset::IEADDR,
        offset::IEUADDR,
        offset::IQERCD,
        offset::IRTA,
        offset::PQH,
        offset::PQT,
        offset::PQA,
        offset::PRS,
        offset::PECTL,
        offset::PEDATA,
        offset::PEADDR,
        offset::PEUADDR,
    ];
    let manual = [
        0x00, 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28, 0x34, 0x38, 0x3C, 0x40, 0x44, 0x64, 0x68, 0x6C,
        0x70, 0x78, 0x80, 0x88, 0x90, 0x9C, 0xA0, 0xA4, 0xA8, 0xAC, 0xB0, 0xB8, 0xC0, 0xC8, 0xD0,
        0xDC, 0xE0, 0xE4, 0xE8, 0xEC,
    ];
    assert_eq!(listed, manual);
}

/// Table 30 and table 15: codes in the manual's order of conditions, and those not qualified.
#[test]
fn fault_reasons() {
    let families: [(&str, &[(u32, u8)]); 13] = [
        ("LRT", &[(1, 0x8), (2, 0x1), (3, 0xA)]),
        ("LCT", &[(1, 0x9), (2, 0x2), (3, 0xB), (4, 0x3), (5, 0xD)]),
        ("LSS", &[(1, 0x7), (2, 0xC)]),
        ("LGN", &[(1, 0x4), (2, 0x5), (3, 0x6), (4, 0xE)]),
        (
            "RTA",
            &[(1, 0x30), (2, 0x31), (3, 0x32), (4, 0x33), (5, 0x34)],
        ),
        ("SRT", &[(1, 0x38), (2, 0x39), (3, 0x3A)]),
        (
            "SCT",
            &[
                (1, 0x40),
                (2, 0x41),
                (3, 0x42),
                (4, 0x43),
                (5, 0x44),
                (6, 0x45),
                (7, 0x46),
                (8, 0x47),
                (9, 0x48),
                (10, 0x49),
            ],
        ),
        ("SPD", &[(1, 0x50), (2, 0x51), (3, 0x52)]),
        (
            "SPT",
            &[
                (1, 0x58),
                (2, 0x59),
                (3, 0x5A),
                (4, 0x5B),
                (5, 0x5C),
                (6, 0x5D),
                (9, 0x60),
            ],
        ),
        (
            "SFS",
            &[
                (1, 0x70),
                (2, 0x71),
                (3, 0x72),
                (4, 0x73),
                (5, 0x74),
                (6, 0x75),
                (7, 0x76),
                (8, 0x77),
                (9, 0x90),
                (10, 0x91),
            ],
        ),
        (
            "SSS",
            &[
                (1, 0x78),
                (2, 0x79),
                (3, 0x7A),
                (4, 0x7B),
                (5, 0x7C),
                (6, 0x7D),
            ],
        ),
        (
            "SGN",
            &[
                (1, 0x80),
                (2, 0x81),
                (4, 0x83),
                (5, 0x84),
                (6, 0x85),
                (7, 0x86),
                (8, 0x87),
                (10, 0x89),
            ],
        ),
        (
            "HPT",
            &[
                (1, 0xA0),
                (2, 0xA1),
                (3, 0xA2),
                (4, 0xA3),
                (5, 0xA4),
                (6, 0xA5),
            ],
        ),
    ];
    let interrupts = 0x20..=0x2B;
    let unqualified = [
        0x01, 0x08, 0x09, 0x0A, 0x20, 0x21, 0x23, 0x25, 0x29, 0x2A, 0x2B, 0x30, 0x31, 0x32, 0x33,
        0x34, 0x38, 0x39, 0x3A, 0x40, 0x50, 0x58,
    ];
    let mut seen: Vec<u8> = interrupts.collect();
    for (family, members) in families {
        for &(number, code) in members {
            let reason = FaultReason::from_bits(code).expect("a defined code");
            assert_eq!(reason.name(), format!("{family}.{number}"));
            assert!(!reason.is_interrupt());
            seen.push(code);
        }
    }
    seen.sort_unstable();
    let defined: Vec<u8> = (0..=255)
        .filter(|&c| FaultReason::from_bits(c).is_some())
        .collect();
    assert_eq!(defined, seen);
    let not_qualified: Vec<u8> = FaultReason::ALL
        .iter()
        .filter(|r| !r.is_qualified())
        .map(|r| r.bits())
        .collect();
    assert_eq!(not_qualified, unqualified);
    let interrupt: Vec<u8> = FaultReason::ALL
        .iter()
        .filter(|r| r.is_interrupt())
        .map(|r| r.bits())
        .collect();
    assert_eq!(interrupt, (0x20..=0x2B).collect::<Vec<u8>>());
}

/// Columns of table 30, each as the list of codes that stand out in it.
#[test]
fn fault_answers() {
    let with = |pick: fn(FaultReason) -> Answer, answer: Answer| -> Vec<u8> {
        let dma = FaultReason::ALL.iter().filter(|r| !r.is_interrupt());
        dma.filter(|r| pick(**r) == answer)
            .map(|r| r.bits())
            .collect()
    };
    assert_eq!(
        with(FaultReason::on_untranslated, Answer::NotApplicable),
        [
            0x0D, 0x32, 0x44, 0x47, 0x49, 0x60, 0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0xA5
        ]
    );
    assert_eq!(
        with(FaultReason::on_translation, Answer::UnsupportedRequest),
        [
            0x01, 0x02, 0x0D, 0x31, 0x33, 0x34, 0x39, 0x41, 0x44, 0x45, 0x46, 0x48, 0x89
        ]
    );
    assert_eq!(
        with(FaultReason::on_translation, Answer::CompleterAbort),
        [
            0x03, 0x07, 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0E, 0x30, 0x38, 0x3A, 0x40, 0x42, 0x43,
            0x50, 0x52, 0x58, 0x5A, 0x5B, 0x78, 0x7A, 0x7B, 0x7C, 0x7D, 0x87,
        ]
    );
    assert_eq!(
        with(FaultReason::on_translation, Answer::SuccessEffective),
        [0x05, 0x06, 0x85, 0x86]
    );
    assert_eq!(
        with(FaultReason::on_translated, Answer::CompleterAbort),
        [0x50, 0x52, 0x58, 0x5A, 0x5B, 0xA0, 0xA1, 0xA2]
    );
    let page_request: Vec<u8> = FaultReason::ALL
        .iter()
        .filter(|r| r.on_page_request())
        .map(|r| r.bits())
        .collect();
    assert_eq!(
        page_request,
        [
            0x30, 0x32, 0x33, 0x38, 0x39, 0x3A, 0x40, 0x41, 0x42, 0x43, 0x45, 0x46, 0x47, 0x48,
            0x50, 0x51, 0x52, 0x58, 0x59, 0x5A, 0x5B,
        ]
    );
    assert!(FaultReason::Sfs10.reported_on_translation());
    assert!(!FaultReason::Spt2.reported_on_translation());
    assert!(FaultReason::Sct2.reported_on_translation());
}

proptest! {
    #[test]
    fn reading_any_register_is_harmless(low: u64, high: u64, index: u8) {
        let cap = Cap::from_bits(low);
        prop_assert!(cap.frcd_offset(index) <= 0x3FF * 16 + 255 * 16);
        prop_assert!(Ecap::from_bits(low).pasid_bits() <= 20);
        prop_assert!(Iqa::from_bits(low).entries().is_power_of_two());
        prop_assert!(Pqa::from_bits(low).entries().is_power_of_two());
        let record = Frcd::from_bits(u128::from(high) << 64 | u128::from(low));
        prop_assert_eq!(record.with_request_type(record.request_type()), record);
        prop_assert_eq!(record.reason().map(|r| r.bits()).unwrap_or(record.fr()), record.fr());
        prop_assert_eq!(Rtaddr::from_bits(low).mode().is_none(), low >> 10 & 3 == 2);
    }
}
