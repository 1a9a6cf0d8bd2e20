//! Each granularity of invalidation drops what the manual obliges it to, and its neighbour's stale
//! entry still answers.

mod common;

use common::*;
use portcullis_models::adversary::{Adversary, Level};
use portcullis_models::bus::{AddressType, Operation};
use portcullis_models::complex::Work;
use portcullis_models::iommu::Width;
use portcullis_models::log::What;
use portcullis_models::mutation::Mutations;
use portcullis_models::vtd::{Config, step};
use portcullis_spec::vtd::fault::FaultReason;
use portcullis_spec::vtd::page_req::ResponseCode;
use portcullis_spec::vtd::qi::{
    CcInv, Desc, DevTlbInv, IotlbInv, PageGroupResponse, PasidCacheInv, PasidIotlbInv,
};
use portcullis_spec::vtd::regs::{Fsts, Iqei, Iqercd, offset};

const ABSENT: Result<u64, u8> = Err(FaultReason::Sss2.bits());

/// Device A in domain 5, device B in domain 6, both by second stage, two pages mapped and cached.
fn two_domains() -> (Rig, Tables, Tables) {
    let mut rig = Rig::scalable(Config::default());
    let (a, b) = (Tables::new(&rig.ram, 0, false), Tables::new(&rig.ram, 1, false));
    pasid_entry(&rig.ram, RID_A, 2, a.base, 5);
    pasid_entry(&rig.ram, RID_B, 2, b.base, 6);
    for (id, t) in [(A, a), (B, b)] {
        for page in [0x7000, 0x8000] {
            t.map(&rig.ram, page, DATA + page, true);
            assert_eq!(rig.load(id, page), Ok(DATA + page));
            t.unmap(&rig.ram, page);
        }
    }
    (rig, a, b)
}

/// Device A with PASIDs 9 and 10 by first stage in domain 5, two pages mapped and cached.
fn two_pasids() -> (Rig, Tables, Tables) {
    let mut rig = Rig::scalable(Config::default());
    let (a, b) = (Tables::new(&rig.ram, 0, true), Tables::new(&rig.ram, 1, true));
    for (pasid, t) in [(9, a), (10, b)] {
        pasid_entry(&rig.ram, pasid, 1, t.base, 5);
        for page in [0x7000, 0x8000] {
            t.map(&rig.ram, page, DATA + page, true);
            assert_eq!(rig.go(A, Some(pasid), page, Operation::Read(8)), Ok(DATA + page));
            t.unmap(&rig.ram, page);
        }
    }
    (rig, a, b)
}

fn pasid_load(rig: &mut Rig, pasid: u32, page: u64) -> bool {
    rig.go(A, Some(pasid), page, Operation::Read(8)).is_ok()
}

#[test]
fn page_selective_leaves_the_next_page_and_the_next_domain() {
    let (mut rig, ..) = two_domains();
    rig.invalidate(&[IotlbInv::pages(5, 0x7000, 0, true).desc()]);
    assert_eq!(rig.load(A, 0x7000), ABSENT);
    assert_eq!(rig.load(A, 0x8000), Ok(DATA + 0x8000), "the neighbour is stale");
    assert_eq!(rig.load(B, 0x7000), Ok(DATA + 0x7000), "the other domain is stale");
    rig.invalidate(&[IotlbInv::pages(5, 0x8000, 4, true).desc()]);
    assert_eq!(rig.load(A, 0x8000), ABSENT);
}

#[test]
fn an_address_mask_covers_its_aligned_region_only() {
    let (mut rig, ..) = two_domains();
    rig.invalidate(&[IotlbInv::pages(5, 0x8000, 3, true).desc()]);
    assert_eq!(rig.load(A, 0x7000), Ok(DATA + 0x7000));
    assert_eq!(rig.load(A, 0x8000), ABSENT);
}

#[test]
fn a_large_page_needs_the_mask_of_its_size() {
    let mut rig = Rig::scalable(Config::default());
    let t = Tables::new(&rig.ram, 0, false);
    pasid_entry(&rig.ram, RID_A, 2, t.base, 5);
    rig.ram.put64(t.base + 0x2008, 0x20_0000 | 0x83);
    for page in [0x20_0000, 0x20_1000] {
        assert_eq!(rig.load(A, page), Ok(page));
    }
    rig.ram.put64(t.base + 0x2008, 0);
    rig.invalidate(&[IotlbInv::pages(5, 0x20_0000, 0, true).desc()]);
    assert_eq!(rig.load(A, 0x20_0000), ABSENT);
    assert_eq!(rig.load(A, 0x20_1000), Ok(0x20_1000), "a piece of the page is left");
    rig.invalidate(&[IotlbInv::pages(5, 0x20_0000, 9, true).desc()]);
    assert_eq!(rig.load(A, 0x20_1000), ABSENT);
}

#[test]
fn the_invalidation_hint_keeps_pointers_to_tables() {
    let (mut rig, a, _) = two_domains();
    // The leaf table moves; the old one still maps the page.
    a.map(&rig.ram, 0x7000, DATA, true);
    rig.ram.put64(a.base + 0x2000, (DOMAIN + 0x3_0000) | 3);
    rig.invalidate(&[IotlbInv::pages(5, 0x7000, 0, true).desc()]);
    assert_eq!(rig.load(A, 0x7000), Ok(DATA), "through the cached pointer to the old table");
    rig.invalidate(&[IotlbInv::pages(5, 0x7000, 0, false).desc()]);
    assert_eq!(rig.load(A, 0x7000), ABSENT);
    assert_eq!(rig.load(A, 0x8000), Ok(DATA + 0x8000), "another page's leaf is stale still");
}

#[test]
fn domain_selective_leaves_the_other_domain() {
    let (mut rig, ..) = two_domains();
    rig.invalidate(&[IotlbInv::domain(5).desc()]);
    assert_eq!((rig.load(A, 0x7000), rig.load(A, 0x8000)), (ABSENT, ABSENT));
    assert_eq!(rig.load(B, 0x7000), Ok(DATA + 0x7000));
    rig.invalidate(&[IotlbInv::global().desc()]);
    assert_eq!(rig.load(B, 0x7000), ABSENT);
}

#[test]
fn pasid_page_selective_leaves_the_next_page_and_the_next_pasid() {
    let (mut rig, ..) = two_pasids();
    rig.invalidate(&[PasidIotlbInv::pages(5, 9, 0x7000, 0, true).desc()]);
    assert!(!pasid_load(&mut rig, 9, 0x7000));
    assert!(pasid_load(&mut rig, 9, 0x8000));
    assert!(pasid_load(&mut rig, 10, 0x7000));
}

#[test]
fn pasid_selective_leaves_the_next_pasid() {
    let (mut rig, ..) = two_pasids();
    rig.invalidate(&[PasidIotlbInv::pasid_within(5, 9).desc()]);
    assert!(!pasid_load(&mut rig, 9, 0x7000) && !pasid_load(&mut rig, 9, 0x8000));
    assert!(pasid_load(&mut rig, 10, 0x7000));
    assert!(pasid_load(&mut rig, 10, 0x8000));
}

#[test]
fn second_stage_invalidation_by_page_drops_all_of_the_first_stage() {
    let (mut rig, ..) = two_pasids();
    rig.invalidate(&[IotlbInv::pages(6, 0x7000, 0, true).desc()]);
    assert!(pasid_load(&mut rig, 9, 0x7000), "another domain");
    rig.invalidate(&[IotlbInv::pages(5, 0x10_0000, 0, true).desc()]);
    assert!(!pasid_load(&mut rig, 9, 0x7000) && !pasid_load(&mut rig, 10, 0x8000));
}

#[test]
fn pasid_page_selective_does_not_touch_second_stage_entries() {
    let (mut rig, ..) = two_domains();
    rig.invalidate(&[PasidIotlbInv::pages(5, RID_A, 0x7000, 0, false).desc()]);
    assert_eq!(rig.load(A, 0x7000), Ok(DATA + 0x7000));
    rig.invalidate(&[PasidIotlbInv::pasid_within(5, RID_A).desc()]);
    assert_eq!(rig.load(A, 0x7000), ABSENT);
}

/// Drops translations so that the context and PASID caches have to answer.
fn drop_iotlb(rig: &mut Rig) {
    rig.invalidate(&[IotlbInv::global().desc()]);
}

#[test]
fn context_cache_by_device_leaves_the_other_device() {
    let (mut rig, a, b) = two_domains();
    a.map(&rig.ram, 0x7000, DATA, true);
    b.map(&rig.ram, 0x7000, DATA, true);
    context_entry(&rig.ram, A, RID_A, 0);
    context_entry(&rig.ram, B, RID_B, 0);
    for id in [A, B] {
        rig.ram.put128(CONTEXTS + u64::from(id.0) * 32, 0);
    }
    drop_iotlb(&mut rig);
    assert_eq!(rig.load(A, 0x7000), Ok(DATA), "the context entry is cached");
    rig.invalidate(&[CcInv::device(5, A.0).desc(), IotlbInv::global().desc()]);
    assert_eq!(rig.load(A, 0x7000), Err(FaultReason::Sct2.bits()));
    assert_eq!(rig.load(B, 0x7000), Ok(DATA));
    rig.invalidate(&[CcInv::global().desc(), IotlbInv::global().desc()]);
    assert_eq!(rig.load(B, 0x7000), Err(FaultReason::Sct2.bits()));
}

#[test]
fn pasid_cache_by_pasid_and_by_domain_leaves_the_others() {
    let (mut rig, a, b) = two_domains();
    a.map(&rig.ram, 0x7000, DATA, true);
    b.map(&rig.ram, 0x7000, DATA, true);
    for pasid in [RID_A, RID_B] {
        rig.ram.put64(PASID_TABLE + u64::from(pasid) * 64, 0);
    }
    drop_iotlb(&mut rig);
    assert_eq!(rig.load(A, 0x7000), Ok(DATA), "the PASID entry is cached");
    rig.invalidate(&[PasidCacheInv::pasid_within(6, RID_A).desc(), IotlbInv::global().desc()]);
    assert_eq!(rig.load(A, 0x7000), Ok(DATA), "another domain's id obliges to nothing");
    rig.invalidate(&[PasidCacheInv::pasid_within(5, RID_A).desc(), IotlbInv::global().desc()]);
    assert_eq!(rig.load(A, 0x7000), Err(FaultReason::Spt2.bits()));
    assert_eq!(rig.load(B, 0x7000), Ok(DATA));
    rig.invalidate(&[PasidCacheInv::domain(6).desc(), IotlbInv::global().desc()]);
    assert_eq!(rig.load(B, 0x7000), Err(FaultReason::Spt2.bits()));
}

#[test]
fn what_was_not_present_is_not_cached() {
    let (mut rig, a, _) = two_domains();
    assert_eq!(rig.load(A, 0x9000), ABSENT);
    a.map(&rig.ram, 0x9000, DATA, true);
    assert_eq!(rig.load(A, 0x9000), Ok(DATA));
}

#[test]
fn root_pointer_without_esrtps_leaves_the_caches() {
    let config = Config { esrtps: false, ..Config::default() };
    for (esrtps, after) in [(false, Ok(DATA)), (true, ABSENT)] {
        let mut rig = Rig::scalable(Config { esrtps, ..config.clone() });
        let t = Tables::new(&rig.ram, 0, false);
        pasid_entry(&rig.ram, RID_A, 2, t.base, 5);
        t.map(&rig.ram, 0x7000, DATA, true);
        rig.load(A, 0x7000).unwrap();
        t.unmap(&rig.ram, 0x7000);
        rig.write(offset::GCMD, Width::Dword, 0xc400_0000);
        rig.settle();
        assert_eq!(rig.load(A, 0x7000), after);
    }
}

#[test]
fn a_wait_completes_after_the_accesses_that_began_before() {
    let finish = |w: &Work| matches!(w, Work::Finish(_));
    let (mut rig, ..) = two_domains();
    for (id, page) in [(A, 0x7000), (A, 0x8000), (B, 0x7000)] {
        rig.issue(id, None, AddressType::Untranslated, page, Operation::Read(8));
    }
    rig.settle_except(finish);
    let n = rig.submit_wait(&[IotlbInv::pages(5, 0x7000, 0, true).desc()], |w| w);
    rig.settle_except(finish);
    assert_ne!(rig.status(), n, "an access through the old translation is under way");
    let finishes: Vec<Work> = rig.works().into_iter().filter(finish).collect();
    rig.complex.run(0, finishes[0]);
    rig.settle_except(finish);
    assert_eq!(rig.status(), n, "the others are nothing to this invalidation");
    assert_eq!(rig.works().len(), 2);
}

#[test]
fn ignored_invalidations_complete_and_drop_nothing() {
    let (mut rig, ..) = two_domains();
    let ignore_iotlb_invalidation = true;
    rig.complex.set_mutations(Mutations { ignore_iotlb_invalidation, ..Mutations::default() });
    rig.invalidate(&[IotlbInv::global().desc()]);
    assert_eq!(rig.load(A, 0x7000), Ok(DATA + 0x7000));
}

#[test]
fn the_queue_wraps() {
    let mut rig = Rig::scalable(Config::default());
    for _ in 0..200 {
        rig.invalidate(&[IotlbInv::global().desc(), CcInv::global().desc()]);
    }
    assert_eq!(rig.read(offset::IQH, Width::Qword), rig.read(offset::IQT, Width::Qword));
}

fn fsts(rig: &mut Rig) -> Fsts {
    Fsts::from_bits(rig.read(offset::FSTS, Width::Dword) as u32)
}

fn iqercd(rig: &mut Rig) -> Iqercd {
    Iqercd::from_bits(rig.read(offset::IQERCD, Width::Qword))
}

#[test]
fn a_bad_descriptor_stops_the_queue_until_it_is_mended() {
    let mut rig = Rig::scalable(Config::default());
    let bad: Desc = [0xb, 0, 0, 0];
    let n = rig.submit_wait(&[IotlbInv::global().desc(), bad], |w| w);
    rig.settle();
    assert!(fsts(&mut rig).iqe());
    assert_eq!(iqercd(&mut rig).error(), Some(Iqei::InvalidType));
    assert_eq!(rig.read(offset::IQH, Width::Qword), 32, "the head names the descriptor");
    for (i, word) in (0..).zip(IotlbInv::global().desc()) {
        rig.ram.put64(QUEUE + 32 + i * 8, word);
    }
    rig.settle();
    assert_ne!(rig.status(), n);
    rig.write(offset::FSTS, Width::Dword, 1 << 4);
    rig.settle();
    assert_eq!(rig.status(), n);
}

#[test]
fn an_odd_tail_stops_the_queue() {
    let mut rig = Rig::scalable(Config::default());
    rig.write(offset::IQT, Width::Qword, 0x30);
    rig.settle();
    assert!(fsts(&mut rig).iqe());
    assert_eq!(iqercd(&mut rig).error(), Some(Iqei::TailUnaligned));
}

#[test]
fn a_wait_can_interrupt_and_is_masked_at_first() {
    let mut rig = Rig::scalable(Config::default());
    rig.write(offset::IEDATA, Width::Dword, 0x55);
    rig.submit_wait(&[], |w| w.with_interrupt(true));
    rig.settle();
    assert_eq!(rig.read(offset::ICS, Width::Dword), 1);
    assert!(rig.complex.take_interrupts().is_empty());
    rig.write(offset::IECTL, Width::Dword, 0);
    assert!(rig.complex.take_interrupts().is_empty(), "a register write delivers nothing itself");
    rig.settle();
    assert_eq!(rig.complex.take_interrupts()[0].data, 0x55);
}

#[test]
fn a_silent_device_times_out_and_is_named() {
    let config = Config { device_tlb_timeout: 1000, ..Config::default() };
    let mut rig = Rig::scalable(config);
    let place = rig.complex.place_of(B).unwrap();
    rig.complex.endpoint_mut(place).unwrap().set_deaf(true);
    let respond = PageGroupResponse::respond(A.0, None, 3, ResponseCode::Success);
    let n = rig.submit_wait(&[DevTlbInv::all(B.0).desc(), respond.desc()], |w| w);
    rig.settle();
    assert_ne!(rig.status(), n);
    assert_eq!(rig.complex.next_deadline(rig.now), Some(1000));
    rig.now = 1000;
    rig.settle();
    assert!(fsts(&mut rig).ite());
    assert_eq!(iqercd(&mut rig).itesid(), B.0);
    rig.write(offset::FSTS, Width::Dword, 1 << 6);
    rig.settle();
    assert_ne!(rig.status(), n, "the wait was aborted for good");
    rig.invalidate(&[DevTlbInv::all(A.0).desc()]);

    // The late completion is for a tag that is free again.
    rig.complex.endpoint_mut(place).unwrap().set_deaf(false);
    rig.settle();
    assert!(fsts(&mut rig).ice());
    assert_eq!(iqercd(&mut rig).icesid(), B.0);
}

#[test]
fn what_was_asked_before_a_time_out_may_still_run_out() {
    for named in [true, false] {
        let config = Config { device_tlb_timeout: 1000, names_suspects: named, ..Config::default() };
        let mut rig = Rig::scalable(config);
        rig.write(offset::FECTL, Width::Dword, 0);
        for (id, now) in [(A, 0), (B, 400)] {
            let place = rig.complex.place_of(id).unwrap();
            rig.complex.endpoint_mut(place).unwrap().set_deaf(true);
            rig.now = now;
            rig.submit(&[DevTlbInv::all(id.0).desc()]);
            rig.settle();
        }
        for (id, now) in [(A, 1000), (B, 1400)] {
            rig.now = now;
            rig.settle();
            assert!(fsts(&mut rig).ite());
            assert_eq!(iqercd(&mut rig).itesid(), if named { id.0 } else { 0 });
            assert_eq!(rig.complex.take_interrupts().len(), 1);
            rig.write(offset::FSTS, Width::Dword, 1 << 6);
            rig.settle();
        }
    }
}

/// All bits of the fault status share one event.
#[test]
fn a_time_out_beside_an_unserved_fault_has_no_event() {
    let mut rig = Rig::scalable(Config { device_tlb_timeout: 1000, ..Config::default() });
    rig.write(offset::FECTL, Width::Dword, 0);
    let place = rig.complex.place_of(B).unwrap();
    rig.complex.endpoint_mut(place).unwrap().set_deaf(true);
    rig.submit_wait(&[DevTlbInv::all(B.0).desc()], |w| w);
    rig.settle();
    rig.load(A, 0x7000).unwrap_err();
    assert_eq!(rig.complex.take_interrupts().len(), 1);
    rig.now = 1000;
    rig.settle();
    assert!(fsts(&mut rig).ite() && fsts(&mut rig).ppf());
    // Nor when the fault has been served, and the time-out has not.
    rig.write(0x100c, Width::Dword, 1 << 31);
    rig.settle();
    rig.load(A, 0x7000).unwrap_err();
    assert!(rig.complex.take_interrupts().is_empty());
}

#[test]
fn a_fence_holds_back_what_follows() {
    let mut rig = Rig::scalable(Config::default());
    let respond = PageGroupResponse::respond(A.0, None, 3, ResponseCode::Success).desc();
    let held = |w: &Work| matches!(w, Work::Downstream(_));
    for fence in [false, true] {
        rig.submit_wait(&[DevTlbInv::all(A.0).desc()], |w| w.with_fence(fence));
        rig.submit(&[respond]);
        rig.news();
        // With an adversary about, a response may pass a wait, and never a fence.
        rig.complex.set_adversary(Adversary::new(Level::Mild, 1));
        for _ in 0..50 {
            let works = rig.works();
            let next = works.iter().rev().find(|w| !held(w) && !matches!(w, Work::Upstream(_)));
            let Some(&work) = next else { break };
            rig.complex.run(rig.now, work);
        }
        let sent = rig.news().iter().any(|e| matches!(e.what, What::ResponseSent { .. }));
        assert_eq!(sent, !fence);
        rig.now += 1_000_000;
        rig.settle();
    }
}

#[test]
fn a_wait_may_overtake_another_where_the_unit_keeps_to_the_letter() {
    for waits_in_order in [true, false] {
        let mut rig = Rig::scalable(Config { waits_in_order, ..Config::default() });
        let place = rig.complex.place_of(B).unwrap();
        rig.complex.endpoint_mut(place).unwrap().set_deaf(true);
        rig.complex.set_adversary(Adversary::new(Level::Mild, 1));
        rig.submit_wait(&[DevTlbInv::all(B.0).desc()], |w| w);
        let second = rig.submit_wait(&[IotlbInv::global().desc()], |w| w);
        for _ in 0..100 {
            rig.now += 1000;
            rig.settle();
        }
        assert_eq!(rig.status() == second, !waits_in_order);
    }
}

#[test]
fn register_based_invalidation_is_refused_by_newer_units() {
    for (major, performed) in [(1u64, 1u64), (6, 0)] {
        let mut rig = Rig::bare(Config { major: major as u8, ..Config::legacy() });
        rig.write(offset::CCMD, Width::Qword, 1 << 63 | 1 << 61);
        let works = rig.works();
        assert!(works.contains(&Work::Unit { unit: 0, step: step::REGISTER_INVALIDATION }));
        rig.settle();
        assert_eq!(rig.read(offset::CCMD, Width::Qword), 1 << 61 | performed << 59);
    }
}
