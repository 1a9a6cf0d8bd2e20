//! Golden values of the invalidation queue's descriptors, and what their decoder accepts.

use portcullis_spec::vtd::page_req::ResponseCode;
use portcullis_spec::vtd::qi::{
    CcInv, Desc, DescType, DescWidth, Descriptor, DevTlbInv, HptInv, IecInv, InvWait, IotlbInv,
    PageGroupResponse, PasidCacheInv, PasidDevTlbInv, PasidIotlbInv, Rules, address_mask,
    dev_tlb_range, dev_tlb_size, masked_base,
};
use portcullis_spec::vtd::regs::{Cap, Ecap, Iqei, Rtaddr, Ttm};
use proptest::prelude::*;

/// Rules of a unit with every capability that a descriptor depends on.
fn rules(mode: Ttm, width: DescWidth) -> Rules {
    let ecap = Ecap::new()
        .with_smts(true)
        .with_adms(true)
        .with_dt(true)
        .with_prs(true)
        .with_pds(true)
        .with_dit(true)
        .with_hpts(true);
    Rules {
        mode,
        width,
        cap: Cap::new().with_psi(true),
        ecap,
    }
}

fn scalable() -> Rules {
    rules(Ttm::Scalable, DescWidth::Bits256)
}

/// Every descriptor type with all its fields in use, beside its quadwords worked out by hand.
fn golden() -> [(Descriptor, Desc); 10] {
    [
        (
            Descriptor::ContextCache(CcInv::device(0x11, 0x0203).with_fm(3)),
            [0x0003_0203_0011_0031, 0, 0, 0],
        ),
        (
            Descriptor::PasidCache(PasidCacheInv::pasid_within(0x22, 0xF_FFFF)),
            [0x000F_FFFF_0022_0017, 0, 0, 0],
        ),
        (
            Descriptor::Iotlb(
                IotlbInv::pages(0x33, 0x20_0000, 9, true)
                    .with_dr(true)
                    .with_dw(true),
            ),
            [0x0033_00F2, 0x20_0049, 0, 0],
        ),
        (
            Descriptor::PasidIotlb(PasidIotlbInv::pages(
                0x44,
                5,
                0xFFFF_8000_0000_1000,
                0,
                false,
            )),
            [0x0000_0005_0044_0036, 0xFFFF_8000_0000_1000, 0, 0],
        ),
        (
            Descriptor::DevTlb(
                DevTlbInv::pages(0x0300, 0x4000_0000, 9)
                    .with_mip(0x1F)
                    .with_pfsid(0xABC1),
            ),
            [0xABC0_0300_001F_1003, 0x400F_F001, 0, 0],
        ),
        (
            Descriptor::PasidDevTlb(
                PasidDevTlbInv::all(0x0300, 0x77)
                    .with_mip(1)
                    .with_gi(true)
                    .with_pfsid(0xABC1),
            ),
            [0xABC0_0077_0300_1018, 0x7FFF_FFFF_FFFF_F801, 0, 0],
        ),
        (
            Descriptor::Hpt(
                HptInv::new()
                    .with_g(2)
                    .with_hptdid(0x55)
                    .with_am(18)
                    .with_ih(3)
                    .with_address(0x4000_0000),
            ),
            [0x0055_002A, 0x4000_00D2, 0, 0],
        ),
        (
            Descriptor::InterruptEntryCache(IecInv::new().with_g(true).with_im(4).with_iidx(0x99)),
            [0x0000_0099_2000_0014, 0, 0, 0],
        ),
        (
            Descriptor::Wait(
                InvWait::status(0x1234_5678, 0xCAFE_F00D)
                    .with_interrupt(true)
                    .with_fence(true)
                    .with_pd(true),
            ),
            [0xCAFE_F00D_0000_00F5, 0x1234_5678, 0, 0],
        ),
        (
            Descriptor::PageGroupResponse(PageGroupResponse::respond(
                0x0108,
                Some(0x1_2345),
                0x155,
                ResponseCode::InvalidRequest,
            )),
            [0x0001_2345_0108_1019, 0xAA8, 0, 0],
        ),
    ]
}

#[test]
fn golden_descriptors() {
    for (descriptor, desc) in golden() {
        assert_eq!(descriptor.desc(), desc, "{descriptor:?}");
        assert_eq!(Descriptor::decode(&desc, &scalable()), Ok(descriptor));
    }
}

#[test]
fn short_forms() {
    assert_eq!(CcInv::global().desc(), [0x11, 0, 0, 0]);
    assert_eq!(CcInv::domain(7).desc(), [0x7_0021, 0, 0, 0]);
    assert_eq!(PasidCacheInv::global().desc(), [0x37, 0, 0, 0]);
    assert_eq!(PasidCacheInv::domain(7).desc(), [0x7_0007, 0, 0, 0]);
    assert_eq!(IotlbInv::global().desc(), [0x12, 0, 0, 0]);
    assert_eq!(IotlbInv::domain(7).desc(), [0x7_0022, 0, 0, 0]);
    assert_eq!(
        PasidIotlbInv::pasid_within(7, 9).desc(),
        [0x0000_0009_0007_0026, 0, 0, 0]
    );
    assert_eq!(
        DevTlbInv::all(2).desc(),
        [0x0000_0002_0000_0003, 0x7FFF_FFFF_FFFF_F001, 0, 0]
    );
    assert_eq!(InvWait::fence_only().desc(), [0x45, 0, 0, 0]);
    let response = PageGroupResponse::respond(0x0108, None, 3, ResponseCode::ResponseFailure);
    assert_eq!(response.desc(), [0x0108_F009, 0x18, 0, 0]);
}

#[test]
fn every_reserved_bit_is_refused() {
    let reserved: [(DescType, &[(u32, u32)]); 10] = [
        (DescType::ContextCache, &[(127, 50), (15, 12), (8, 6)]),
        (DescType::PasidCache, &[(127, 52), (15, 12), (8, 6)]),
        (DescType::Iotlb, &[(75, 71), (63, 32), (15, 12), (8, 8)]),
        (
            DescType::PasidIotlb,
            &[(75, 71), (63, 52), (15, 12), (8, 6)],
        ),
        (DescType::DevTlb, &[(75, 65), (51, 48), (31, 21), (8, 4)]),
        (DescType::PasidDevTlb, &[(74, 65)]),
        (DescType::Hpt, &[(75, 72), (63, 32), (15, 12), (8, 6)]),
        (
            DescType::InterruptEntryCache,
            &[(127, 48), (26, 12), (8, 5)],
        ),
        (DescType::Wait, &[(65, 64), (31, 12), (8, 8)]),
        (
            DescType::PageGroupResponse,
            &[(127, 76), (65, 64), (63, 52), (8, 5)],
        ),
    ];
    for ((descriptor, desc), (ty, ranges)) in golden().into_iter().flat_map(|g| {
        reserved
            .iter()
            .filter(move |r| r.0.bits() == DescType::field(&g.1))
            .map(move |r| (g, r))
    }) {
        let is_type = |bit| matches!(bit, 0..=3 | 9..=11);
        let is_granularity = |bit| matches!(bit, 4..=5);
        for bit in (0..256u32).filter(|&b| !is_type(b) && !is_granularity(b)) {
            let mut changed = desc;
            changed[bit as usize / 64] ^= 1 << (bit % 64);
            let expect_error = bit >= 128
                || ranges
                    .iter()
                    .any(|&(high, low)| (low..=high).contains(&bit));
            let result = Descriptor::decode(&changed, &scalable());
            assert_eq!(
                result.is_err(),
                expect_error,
                "{ty:?} bit {bit} of {descriptor:?}"
            );
            if expect_error {
                assert_eq!(result, Err(Iqei::ReservedField));
            }
        }
    }
}

#[test]
fn fields_reserved_by_capability() {
    let mut rules = scalable();
    rules.ecap = rules.ecap.with_pds(false).with_dit(false);
    rules.cap = Cap::new();
    let refused = |desc: Desc| Descriptor::decode(&desc, &rules) == Err(Iqei::ReservedField);
    assert!(refused([0x85, 0, 0, 0]), "PD");
    assert!(refused([0x1003, 0, 0, 0]), "PFSID low");
    assert!(refused([0x0010_0000_0000_0008, 0, 0, 0]), "PFSID high");
    assert!(refused([0x32, 0, 0, 0]), "page-selective without PSI");
    assert!(!refused([0x22, 0, 0, 0]));
}

#[test]
fn reserved_granularities() {
    for desc in [0x01, 0x02, 0x27, 0x06, 0x16, 0x0A] {
        let result = Descriptor::decode(&[desc, 0, 0, 0], &scalable());
        assert_eq!(result, Err(Iqei::ReservedField), "{desc:#x}");
    }
}

#[test]
fn types_by_mode() {
    let valid = |rules: &Rules| -> Vec<u64> {
        (0..128u64)
            .filter(|t| {
                rules
                    .descriptor_type(&[t >> 4 << 9 | t & 0xF, 0, 0, 0])
                    .is_ok()
            })
            .collect()
    };
    let short: Vec<u64> = (0x1..=0x5).collect();
    let all: Vec<u64> = (0x1..=0xA).collect();
    assert_eq!(valid(&rules(Ttm::Legacy, DescWidth::Bits128)), short);
    assert_eq!(valid(&rules(Ttm::Legacy, DescWidth::Bits256)), short);
    assert_eq!(valid(&scalable()), all);
    assert_eq!(valid(&rules(Ttm::Abort, DescWidth::Bits256)), all);
    let mut bare = scalable();
    bare.ecap = Ecap::new().with_smts(true);
    assert_eq!(valid(&bare), [0x1, 0x2, 0x4, 0x5, 0x6, 0x7]);
}

#[test]
fn widths_by_mode() {
    let unit = |ttm, width, ecap| Rules::new(Rtaddr::new().with_ttm(ttm), width, Cap::new(), ecap);
    let smts = Ecap::new().with_smts(true);
    let (narrow, wide) = (DescWidth::Bits128, DescWidth::Bits256);
    assert!(unit(0, narrow, Ecap::new()).is_ok());
    assert_eq!(unit(0, wide, Ecap::new()), Err(Iqei::InvalidWidth));
    assert!(unit(0, wide, smts).is_ok());
    assert_eq!(unit(1, narrow, smts), Err(Iqei::InvalidWidth));
    assert!(unit(1, wide, smts).is_ok());
    assert_eq!(unit(1, wide, Ecap::new()), Err(Iqei::InvalidTtm));
    assert_eq!(unit(2, wide, smts), Err(Iqei::InvalidTtm));
    assert_eq!(unit(3, wide, smts), Err(Iqei::InvalidTtm));
    assert!(unit(3, wide, Ecap::new().with_adms(true)).is_ok());
}

#[test]
fn upper_half_of_a_128_bit_descriptor_is_the_next_one() {
    let desc = [0x12, 0, 0x45, 0];
    let narrow = rules(Ttm::Legacy, DescWidth::Bits128);
    assert_eq!(
        Descriptor::decode(&desc, &narrow),
        Ok(Descriptor::Iotlb(IotlbInv::global()))
    );
    let wide = rules(Ttm::Legacy, DescWidth::Bits256);
    assert_eq!(Descriptor::decode(&desc, &wide), Err(Iqei::ReservedField));
}

#[test]
fn ranges() {
    assert_eq!(address_mask(0x1000, 0x1FFF), 0);
    assert_eq!(address_mask(0x1000, 0x2FFF), 2);
    assert_eq!(address_mask(0x20_0000, 0x3F_FFFF), 9);
    assert_eq!(address_mask(0, u64::MAX), 52);
    assert_eq!(masked_base(0x3F_F000, 9), 0x20_0000);
    assert_eq!(masked_base(u64::MAX, 52), 0);
    assert_eq!(dev_tlb_range(0x5678, 0), (0x5000, false));
    assert_eq!(dev_tlb_range(0x5678, 1), (0x4000, true));
    assert_eq!(dev_tlb_range(0x5678, 2), (0x5000, true));
    assert_eq!(dev_tlb_range(0x5678, 52), (0x7FFF_FFFF_FFFF_F000, true));
    assert_eq!(dev_tlb_size(0x7FFF_FFFF_FFFF_F000, true), (0, 52));
    assert_eq!(dev_tlb_size(0xFFFF_FFFF_FFFF_F000, true), (0, 52));
}

proptest! {
    #[test]
    fn decode_takes_anything(desc: [u64; 4], ty in 0u64..16, cap: u64, ecap: u64, ttm in 0u8..4, wide: bool) {
        let typed = [desc[0] & !0xE0F | ty, desc[1], desc[2], desc[3]];
        let width = if wide { DescWidth::Bits256 } else { DescWidth::Bits128 };
        let (cap, ecap) = (Cap::from_bits(cap), Ecap::from_bits(ecap));
        if let Ok(rules) = Rules::new(Rtaddr::new().with_ttm(ttm), width, cap, ecap) {
            for desc in [desc, typed] {
                if let Ok(read) = Descriptor::decode(&desc, &rules) {
                    prop_assert_eq!(read.desc()[..2].to_vec(), desc[..2].to_vec());
                }
            }
        }
    }

    #[test]
    fn reserved_bits_are_all_that_stops_a_descriptor(low: u64, high: u64, ty in 1u8..=10) {
        let ty = DescType::from_bits(ty).unwrap();
        let reserved = Descriptor::reserved(ty, scalable().ecap);
        let q0 = (low & !(reserved as u64) & !0xE0F) | u64::from(ty.bits());
        let desc = [q0, high & !((reserved >> 64) as u64), 0, 0];
        match Descriptor::decode(&desc, &scalable()) {
            Ok(read) => prop_assert_eq!(read.desc(), desc),
            Err(error) => {
                prop_assert_eq!(error, Iqei::ReservedField);
                let granular = [0x1, 0x2, 0x6, 0x7, 0xA].contains(&ty.bits());
                prop_assert!(granular, "{:?}", ty);
            }
        }
    }

    #[test]
    fn dev_tlb_ranges_invert(address: u64, log2 in 0u8..=52) {
        let (field, s) = dev_tlb_range(address, log2);
        prop_assert_eq!(dev_tlb_size(field, s), (masked_base(address, log2), log2));
    }

    #[test]
    fn any_dev_tlb_field_names_an_aligned_range(field: u64, s: bool) {
        let (base, log2) = dev_tlb_size(field, s);
        prop_assert_eq!(masked_base(base, log2), base);
        prop_assert!(log2 <= 52);
    }

    #[test]
    fn address_mask_covers_and_is_least(first: u64, last: u64) {
        let am = address_mask(first, last);
        prop_assert_eq!(masked_base(first, am), masked_base(last, am));
        if am > 0 {
            prop_assert_ne!(masked_base(first, am - 1), masked_base(last, am - 1));
        }
    }
}
