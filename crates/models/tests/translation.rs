//! Translation, faults and their records.

mod common;

use common::*;
use portcullis_models::bus::{AddressType, MsiSource, Operation, Status};
use portcullis_models::iommu::Width;
use portcullis_models::log::What;
use portcullis_models::memory::Memory;
use portcullis_models::mutation::Mutations;
use portcullis_models::vtd::Config;
use portcullis_spec::vtd::fault::FaultReason;
use portcullis_spec::vtd::qi::{CcInv, IotlbInv, PasidCacheInv};
use portcullis_spec::vtd::regs::{Frcd, FrcdType, Fsts, offset};

const FRCD: u32 = 0x1000;

fn record(rig: &mut Rig, n: u32) -> Frcd {
    let low = rig.read(FRCD + 16 * n, Width::Qword);
    let high = rig.read(FRCD + 16 * n + 8, Width::Qword);
    Frcd::from_bits(u128::from(high) << 64 | u128::from(low))
}

fn fsts(rig: &mut Rig) -> Fsts {
    Fsts::from_bits(rig.read(offset::FSTS, Width::Dword) as u32)
}

fn second_stage(config: Config) -> (Rig, Tables) {
    let rig = Rig::scalable(config);
    let t = Tables::new(&rig.ram, 0, false);
    pasid_entry(&rig.ram, RID_A, 2, t.base, 5);
    (rig, t)
}

#[test]
fn second_stage_hits_after_a_miss() {
    let (mut rig, t) = second_stage(Config::default());
    t.map(&rig.ram, 0x7000, DATA, true);
    assert_eq!(rig.load(A, 0x7010), Ok(DATA + 0x10));
    assert_eq!(rig.store(A, 0x7018), Ok(DATA + 0x18));
    let counts = rig.complex.unit(0).unwrap().lookups(A);
    assert_eq!((counts.hits, counts.misses), (1, 1));
}

#[test]
fn large_pages_translate_and_reserved_bits_fault() {
    let (mut rig, t) = second_stage(Config::default());
    rig.ram.put64(t.base + 0x2000 + 8, 0x20_0000 | 0x83);
    assert_eq!(rig.load(A, 0x20_5008), Ok(0x20_5008));
    rig.ram.put64(t.base + 0x2000 + 16, 0x20_1000 | 0x83);
    assert_eq!(rig.load(A, 0x40_0000), Err(FaultReason::Sss3.bits()));
    assert_eq!(rig.load(A, 1 << 48), Err(FaultReason::Sgn5.bits()));
}

#[test]
fn a_fault_is_recorded_with_its_request() {
    let (mut rig, t) = second_stage(Config::default());
    t.map(&rig.ram, 0x7000, DATA, false);
    rig.write(offset::FEADDR, Width::Dword, 0xfee0_0000);
    rig.write(offset::FEDATA, Width::Dword, 0x31);
    rig.write(offset::FECTL, Width::Dword, 0);
    assert_eq!(rig.store(A, 0x7008), Err(FaultReason::Sgn6.bits()));
    let r = record(&mut rig, 0);
    assert!(r.f());
    assert_eq!((r.fi(), r.sid(), r.pp()), (0x7000, A.0, false));
    assert_eq!(r.reason(), Some(FaultReason::Sgn6));
    assert_eq!(r.request_type(), FrcdType::Write);
    assert!(fsts(&mut rig).ppf());
    let sent = rig.complex.take_interrupts();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].addr, sent[0].data), (0xfee0_0000, 0x31));

    // A second requester is recorded, and raises no event while the first is unserved.
    assert_eq!(rig.load(B, 0x9000), Err(FaultReason::Spt2.bits()));
    assert_eq!(record(&mut rig, 1).sid(), B.0);
    assert!(rig.complex.take_interrupts().is_empty());
}

#[test]
fn faults_collapse_by_source_and_overflow() {
    let config = Config { fault_records: 1, ..Config::default() };
    let (mut rig, _) = second_stage(config);
    for _ in 0..2 {
        assert_eq!(rig.load(A, 0x9000), Err(FaultReason::Sss2.bits()));
    }
    assert!(!fsts(&mut rig).pfo(), "the same source collapses");
    rig.load(B, 0x9000).unwrap_err();
    assert!(fsts(&mut rig).pfo());

    rig.write(FRCD + 12, Width::Dword, 1 << 31);
    rig.load(B, 0x9000).unwrap_err();
    assert!(!fsts(&mut rig).ppf(), "nothing is recorded while PFO is set");
    rig.write(offset::FSTS, Width::Dword, 1);
    rig.load(B, 0x9000).unwrap_err();
    assert_eq!(record(&mut rig, 0).sid(), B.0);
}

#[test]
fn the_first_pending_record_stays_named_until_none_is_pending() {
    let (mut rig, _) = second_stage(Config::default());
    rig.write(offset::FECTL, Width::Dword, 0);
    for id in [A, B] {
        rig.load(id, 0x9000).unwrap_err();
    }
    rig.write(FRCD + 12, Width::Dword, 1 << 31);
    assert_eq!((fsts(&mut rig).ppf(), fsts(&mut rig).fri()), (true, 0), "record 1 is the one pending");
    rig.complex.take_interrupts();
    rig.load(A, 0x9000).unwrap_err();
    assert!(rig.complex.take_interrupts().is_empty(), "PPF was set all the time");
    for n in [1, 2] {
        rig.write(FRCD + 16 * n + 12, Width::Dword, 1 << 31);
    }
    assert!(!fsts(&mut rig).ppf());
    rig.load(A, 0x9000).unwrap_err();
    assert_eq!(fsts(&mut rig).fri(), 3);
    assert_eq!(rig.complex.take_interrupts().len(), 1);
}

#[test]
fn fault_processing_disable_silences_qualified_faults_only() {
    let (mut rig, t) = second_stage(Config::default());
    context_entry(&rig.ram, A, RID_A, ALL_FLAGS | 2);
    assert_eq!(t.entry(0x9000), t.base + 0x3048);
    rig.load(A, 0x9000).unwrap_err();
    assert!(!fsts(&mut rig).ppf());
    rig.ram.put64(ROOT, 0);
    rig.load(B, 0x9000).unwrap_err();
    assert!(fsts(&mut rig).ppf(), "a missing root entry is not qualified");
}

#[test]
fn first_stage_sets_accessed_and_dirty_if_it_may() {
    let mut rig = Rig::scalable(Config::default());
    let t = Tables::new(&rig.ram, 0, true);
    pasid_entry(&rig.ram, 9, 1, t.base, 5);
    t.map(&rig.ram, 0x7000, DATA, true);
    let entry = |rig: &Rig| rig.ram.load64(t.entry(0x7000)).unwrap();
    assert_eq!(rig.go(A, Some(9), 0x7000, Operation::Read(4)), Ok(DATA));
    assert_eq!(entry(&rig) & 0x60, 0x20, "accessed, not dirty");
    assert_eq!(rig.go(A, Some(9), 0x7000, Operation::Write(vec![1])), Ok(DATA));
    assert_eq!(entry(&rig) & 0x60, 0x60, "a write through a cached entry sets dirty too");
    assert_eq!(rig.go(A, Some(9), 1 << 47, Operation::Read(4)), Err(FaultReason::Sgn1.bits()));
    assert_eq!(rig.go(A, Some(9), 0x8000, Operation::Read(4)), Err(FaultReason::Sfs2.bits()));

    // Without PWSNP flags cannot be set: the walk faults.
    rig.ram.put64(PASID_TABLE + 9 * 64 + 8 + 64, 6);
    rig.ram.put64(PASID_TABLE + 10 * 64 + 16, t.base);
    rig.ram.put64(PASID_TABLE + 10 * 64, 1 << 6 | 1);
    t.map(&rig.ram, 0xa000, DATA, true);
    assert_eq!(rig.go(A, Some(10), 0xa000, Operation::Read(4)), Err(FaultReason::Sfs9.bits()));
}

#[test]
fn second_stage_keeps_flags_where_the_entry_asks_for_it() {
    for (walks_coherent, expected) in [(true, Ok(DATA)), (false, Err(FaultReason::Sss5.bits()))] {
        let (mut rig, t) = second_stage(Config { walks_coherent, ..Config::default() });
        let low = PASID_TABLE + u64::from(RID_A) * 64;
        rig.ram.put64(low, t.base | 1 << 9 | 2 << 2 | 2 << 6 | 1);
        rig.ram.put64(low + 8, 5 | u64::from(walks_coherent) << 23);
        t.map(&rig.ram, 0x7000, DATA, true);
        assert_eq!(rig.store(A, 0x7000), expected);
        let entry = |rig: &Rig| rig.ram.load64(t.entry(0x7000)).unwrap();
        assert_eq!(entry(&rig) & 0x300, if walks_coherent { 0x300 } else { 0 });
        // What is cached without need of an update does none, until it is invalidated.
        if walks_coherent {
            rig.ram.put64(t.entry(0x7000), entry(&rig) & !0x200);
            assert_eq!(rig.store(A, 0x7000), Ok(DATA));
            assert_eq!(entry(&rig) & 0x200, 0, "the dirty translation is in the IOTLB");
            rig.invalidate(&[IotlbInv::pages(5, 0x7000, 0, true).desc()]);
            assert_eq!(rig.load(A, 0x7000), Ok(DATA));
            assert_eq!(entry(&rig) & 0x200, 0, "a read is no write");
            assert_eq!(rig.store(A, 0x7000), Ok(DATA));
            assert_eq!(entry(&rig) & 0x200, 0x200, "a clean translation in the IOTLB is walked again");
        }
    }
}

#[test]
fn a_table_out_of_reach_faults() {
    let (mut rig, t) = second_stage(Config::default());
    rig.ram.put64(t.base + 0x2000, 0x100_0000 | 3);
    assert_eq!(rig.load(A, 0x7000), Err(FaultReason::Sss1.bits()));
    rig.ram.put64(ROOT, 0x100_0000 | 1);
    assert_eq!(rig.load(B, 0x7000), Err(FaultReason::Sct1.bits()));
}

#[test]
fn pasid_checks_come_in_order() {
    let (mut rig, _) = second_stage(Config::default());
    let mut go = |pasid| rig.go(A, Some(pasid), 0x7000, Operation::Read(4));
    assert_eq!(go(RID_A), Err(FaultReason::Sct9.bits()));
    assert_eq!(go(1 << 13), Err(FaultReason::Sct7.bits()));
    assert_eq!(go(1 << 7), Err(FaultReason::Spd2.bits()));
    assert_eq!(go(60), Err(FaultReason::Spt2.bits()));
}

#[test]
fn pdts_says_where_a_directory_ends() {
    for pdts in 0..8u64 {
        let (mut rig, _) = second_stage(Config::default());
        let f = Tables::new(&rig.ram, 1, true);
        f.map(&rig.ram, 0x7000, DATA, true);
        pasid_entry(&rig.ram, 63, 1, f.base, 6);
        // The directory is followed by memory that would do as more of it.
        let directory = 0x20_0000;
        for entry in 0..=0x4000 {
            rig.ram.put64(directory + entry * 8, PASID_TABLE | 1);
        }
        let context = u128::from(directory | pdts << 9 | ALL_FLAGS) | u128::from(RID_A) << 64;
        rig.ram.put128(CONTEXTS + u64::from(A.0) * 32, context);
        let size = 1 << (13 + pdts);
        let mut go = |pasid| rig.go(A, Some(pasid), 0x7000, Operation::Read(4));
        assert_eq!(go(size - 1), Ok(DATA), "PDTS {pdts}");
        if pdts == 7 {
            // PASIDs have 20 bits: there is none beyond.
            continue;
        }
        assert_eq!(go(size + 63), Err(FaultReason::Sct7.bits()), "PDTS {pdts}");
        assert_eq!(go(0xf_ffff), Err(FaultReason::Sct7.bits()), "PDTS {pdts}");
        // RID_PASID has to be inside too.
        let beyond = context & !(0xf_ffff << 64) | u128::from(size) << 64;
        rig.ram.put128(CONTEXTS + u64::from(A.0) * 32, beyond);
        rig.invalidate(&[CcInv::global().desc(), PasidCacheInv::global().desc(), IotlbInv::global().desc()]);
        assert_eq!(rig.load(A, 0x7000), Err(FaultReason::Sct4.bits()), "PDTS {pdts}");
    }
}

#[test]
fn pss_says_which_pasids_are_translated() {
    for bits in [1, 8, 13, 15, 16, 20] {
        let mut rig = Rig::scalable(Config { pasid_bits: bits, ..Config::default() });
        let f = Tables::new(&rig.ram, 1, true);
        f.map(&rig.ram, 0x7000, DATA, true);
        for pasid in [1, 63] {
            pasid_entry(&rig.ram, pasid, 1, f.base, 6);
        }
        let directory = 0x20_0000;
        for entry in 0..0x4000 {
            rig.ram.put64(directory + entry * 8, PASID_TABLE | 1);
        }
        let context = u128::from(directory | 7 << 9 | ALL_FLAGS);
        rig.ram.put128(CONTEXTS + u64::from(A.0) * 32, context);
        let last = (1 << bits) - 1;
        let mut go = |pasid| rig.go(A, Some(pasid), 0x7000, Operation::Read(4));
        assert_eq!(go(last), Ok(DATA), "{bits} bits");
        if bits < 20 {
            assert_eq!(go(last + 1), Err(FaultReason::Sgn10.bits()), "{bits} bits");
        }
    }
}

#[test]
fn interrupt_range_with_and_without_pasid() {
    let (mut rig, t) = second_stage(Config::default());
    rig.issue(A, None, AddressType::Untranslated, 0xfee0_1000, Operation::Write(vec![0x41, 0, 0, 0]));
    rig.settle();
    let sent = rig.complex.take_interrupts();
    assert_eq!((sent[0].addr, sent[0].data), (0xfee0_1000, 0x41));
    assert_eq!(sent[0].from, MsiSource::Requester(A));
    for op in [Operation::Write(vec![0; 8]), Operation::Read(4)] {
        assert_eq!(rig.go(A, None, 0xfee0_1000, op), Err(FaultReason::Ir29.bits()));
    }
    rig.news();
    rig.issue(A, None, AddressType::Untranslated, 0xfee0_1000, Operation::ZeroLengthRead);
    rig.settle();
    assert!(rig.news().is_empty(), "a zero-length read completes and touches nothing");

    // With a PASID the range is like any other; pass-through is blocked.
    let f = Tables::new(&rig.ram, 1, true);
    pasid_entry(&rig.ram, 9, 1, f.base, 6);
    pasid_entry(&rig.ram, 10, 4, 0, 6);
    rig.ram.put64(f.base + 0x1000 + 3 * 8, (f.base + 0x2000) | 0x27);
    rig.ram.put64(f.base + 0x2000 + (0xfee0_0000u64 >> 21 & 511) * 8, (f.base + 0x3000) | 0x27);
    rig.ram.put64(f.base + 0x3000, DATA | 7);
    assert_eq!(rig.go(A, Some(9), 0xfee0_0000, Operation::Write(vec![1, 2, 3, 4])), Ok(DATA));
    assert!(rig.complex.take_interrupts().is_empty());
    assert_eq!(rig.go(A, Some(10), 0xfee0_0000, Operation::Read(4)), Err(FaultReason::Sgn8.bits()));
    // Nor may a page lead there.
    t.map(&rig.ram, 0x7000, 0xfee0_0000, true);
    assert_eq!(rig.store(A, 0x7000), Err(FaultReason::Sgn8.bits()));
}

#[test]
fn translated_requests_need_the_right_and_nothing_else() {
    let (mut rig, _) = second_stage(Config::default());
    rig.news();
    rig.issue(A, None, AddressType::Translated, DATA, Operation::Read(8));
    rig.settle();
    let reach = rig.news().iter().find_map(|e| match e.what {
        What::Finish(r) => Some(r),
        _ => None,
    });
    assert_eq!(reach.map(|r| (r.phys, r.translated)), Some((DATA, true)), "the PASID entry has no say");
    context_entry(&rig.ram, B, RID_B, 1 | 1 << 3);
    rig.issue(B, None, AddressType::Translated, DATA, Operation::Read(8));
    rig.settle();
    let blocked = rig.news().into_iter().find_map(|e| match e.what {
        What::Blocked { status, reason, .. } => Some((status, reason)),
        _ => None,
    });
    assert_eq!(blocked, Some((Status::UnsupportedRequest, FaultReason::Sct5.bits())));
}

#[test]
fn legacy_mode_translates() {
    let mut rig = Rig::bare(Config::legacy());
    let t = Tables::new(&rig.ram, 0, false);
    rig.ram.put64(ROOT, CONTEXTS | 1);
    rig.ram.put128(CONTEXTS + u64::from(A.0) * 16, (2 | 5u128 << 8) << 64 | u128::from(t.base | 1));
    t.map(&rig.ram, 0x7000, DATA, false);
    assert_eq!(rig.load(A, 0x7000), Ok(0x7000), "translation is off");
    rig.write(offset::RTADDR, Width::Qword, ROOT);
    for command in [1 << 30, 1 << 31] {
        rig.write(offset::GCMD, Width::Dword, command);
        rig.settle();
    }
    assert_eq!(rig.load(A, 0x7004), Ok(DATA + 4));
    assert_eq!(rig.store(A, 0x7004), Err(FaultReason::Lgn2.bits()));
    assert_eq!(rig.load(A, 0x8000), Err(FaultReason::Lgn3.bits()));
    assert_eq!(rig.load(B, 0x7000), Err(FaultReason::Lct2.bits()));
    assert_eq!(rig.go(A, Some(3), 0x7000, Operation::Read(4)), Err(FaultReason::Rta2.bits()));
    // TT = 00b blocks translated requests.
    rig.news();
    rig.issue(A, None, AddressType::Translated, DATA, Operation::Read(4));
    rig.settle();
    let reason = FaultReason::Lct5.bits();
    assert!(rig.news().iter().any(|e| matches!(e.what, What::Blocked { reason: r, .. } if r == reason)));
}

#[test]
fn enabling_waits_for_accesses_that_bypass() {
    let mut rig = Rig::bare(Config::default());
    rig.issue(A, None, AddressType::Untranslated, DATA, Operation::Read(4));
    rig.settle_except(|w| matches!(w, portcullis_models::complex::Work::Finish(_)));
    rig.write(offset::GCMD, Width::Dword, 1 << 31);
    rig.settle_except(|w| matches!(w, portcullis_models::complex::Work::Finish(_)));
    assert_eq!(rig.read(offset::GSTS, Width::Dword), 0);
    rig.settle();
    assert_eq!(rig.read(offset::GSTS, Width::Dword), 1 << 31);
}

#[test]
fn the_identity_mutation_lets_a_device_leave_its_mapping() {
    let (mut rig, t) = second_stage(Config::default());
    t.map(&rig.ram, 0x7000, DATA, true);
    rig.complex.set_mutations(Mutations { identity_walk: true, ..Mutations::default() });
    assert_eq!(rig.load(A, 0x7000), Ok(0x7000));
}

#[test]
fn a_request_across_a_page_is_malformed() {
    let (mut rig, t) = second_stage(Config::default());
    t.map(&rig.ram, 0x7000, DATA, true);
    rig.news();
    assert_eq!(rig.go(A, None, 0x7ffc, Operation::Read(8)), Err(0));
}
