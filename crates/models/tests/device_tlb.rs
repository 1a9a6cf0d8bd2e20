//! Device TLBs: each granularity of their invalidation leaves the neighbour's stale entry.

mod common;

use common::*;
use portcullis_models::bus::Pasid;
use portcullis_models::complex::Work;
use portcullis_models::endpoint::Intent;
use portcullis_models::log::What;
use portcullis_models::mutation::Mutations;
use portcullis_models::vtd::Config;
use portcullis_spec::vtd::qi::{DevTlbInv, IotlbInv, PasidDevTlbInv};

const PAGES: [u64; 2] = [0x7000, 0x8000];

/// Device A translates for itself: two pages each of its requester id and of PASIDs 9 and 10, all in
/// its device TLB, none mapped any more.
fn cached() -> Rig {
    let mut rig = Rig::scalable(Config::default());
    let tables = [0, 1, 2].map(|n| Tables::new(&rig.ram, n, n > 0));
    pasid_entry(&rig.ram, RID_A, 2, tables[0].base, 5);
    pasid_entry(&rig.ram, 9, 1, tables[1].base, 6);
    pasid_entry(&rig.ram, 10, 1, tables[2].base, 6);
    let e = rig.complex.endpoint_mut(0).unwrap();
    e.set_pasid(Some(20)).unwrap();
    e.set_ats(Some(0)).unwrap();
    for (pasid, t) in [None, Some(9), Some(10)].into_iter().zip(tables) {
        for page in PAGES {
            t.map(&rig.ram, page, DATA + page, true);
            assert!(reaches(&mut rig, pasid, page));
            t.unmap(&rig.ram, page);
        }
    }
    rig.invalidate(&[IotlbInv::global().desc()]);
    rig
}

fn start(rig: &mut Rig, pasid: Option<u32>, page: u64) {
    let e = rig.complex.endpoint_mut(0).unwrap();
    e.work_in(pasid.and_then(Pasid::new));
    e.port_mut().access(page, Intent::Read(8));
}

fn reaches(rig: &mut Rig, pasid: Option<u32>, page: u64) -> bool {
    rig.news();
    start(rig, pasid, page);
    rig.settle();
    let moved = |w: &What| matches!(w, What::Finish(r) if r.translated && r.iova == page);
    rig.news().iter().any(|e| moved(&e.what))
}

/// Which of the six cached translations still answer.
fn left(rig: &mut Rig) -> Vec<(Option<u32>, u64)> {
    let all = [None, Some(9), Some(10)].into_iter().flat_map(|p| PAGES.map(|a| (p, a)));
    all.filter(|&(p, a)| reaches(rig, p, a)).collect()
}

fn all_but(gone: &[(Option<u32>, u64)]) -> Vec<(Option<u32>, u64)> {
    let all = [None, Some(9), Some(10)].into_iter().flat_map(|p| PAGES.map(|a| (p, a)));
    all.filter(|x| !gone.contains(x)).collect()
}

#[test]
fn without_pasid_only_entries_without_pasid_go() {
    let mut rig = cached();
    rig.invalidate(&[DevTlbInv::pages(A.0, 0x7000, 0).desc()]);
    assert_eq!(left(&mut rig), all_but(&[(None, 0x7000)]));
    rig.invalidate(&[DevTlbInv::all(A.0).desc()]);
    assert_eq!(left(&mut rig), all_but(&[(None, 0x7000), (None, 0x8000)]));
}

#[test]
fn with_pasid_the_next_page_and_the_next_pasid_stay() {
    let mut rig = cached();
    rig.invalidate(&[PasidDevTlbInv::pages(A.0, 9, 0x8000, 0).desc()]);
    assert_eq!(left(&mut rig), all_but(&[(Some(9), 0x8000)]));
    rig.invalidate(&[PasidDevTlbInv::all(A.0, 9).desc()]);
    assert_eq!(left(&mut rig), all_but(&[(Some(9), 0x7000), (Some(9), 0x8000)]));
}

#[test]
fn a_global_invalidation_takes_every_pasid_and_leaves_the_requester_id() {
    let mut rig = cached();
    rig.invalidate(&[PasidDevTlbInv::all(A.0, 9).with_gi(true).desc()]);
    assert_eq!(left(&mut rig), [(None, 0x7000), (None, 0x8000)]);
}

#[test]
fn another_device_keeps_its_entries() {
    let mut rig = cached();
    rig.invalidate(&[DevTlbInv::all(B.0).desc(), PasidDevTlbInv::all(B.0, 9).desc()]);
    assert_eq!(left(&mut rig), all_but(&[]));
}

#[test]
fn ignored_invalidations_complete_and_drop_nothing() {
    let mut rig = cached();
    let ignore_device_tlb_invalidation = true;
    rig.complex.set_mutations(Mutations { ignore_device_tlb_invalidation, ..Mutations::default() });
    rig.invalidate(&[DevTlbInv::all(A.0).desc()]);
    assert_eq!(left(&mut rig), all_but(&[]));
}

#[test]
fn a_translation_that_an_invalidation_has_overtaken_is_not_used() {
    let mut rig = Rig::scalable(Config::default());
    let t = Tables::new(&rig.ram, 0, false);
    pasid_entry(&rig.ram, RID_A, 2, t.base, 5);
    rig.complex.endpoint_mut(0).unwrap().set_ats(Some(0)).unwrap();
    t.map(&rig.ram, 0x7000, DATA, true);
    start(&mut rig, None, 0x7000);
    let finish = |w: &Work| matches!(w, Work::Finish(_));
    rig.settle_except(finish);
    t.unmap(&rig.ram, 0x7000);
    let stale = [IotlbInv::domain(5).desc(), DevTlbInv::all(A.0).desc()];
    let n = rig.submit_wait(&stale, |w| w);
    rig.settle_except(finish);
    assert_eq!(rig.status(), n, "a translation request holds nothing up");
    rig.news();
    rig.settle();
    let news = rig.news();
    assert!(!news.iter().any(|e| matches!(e.what, What::Begin(_))), "the device asked again");
    assert_eq!(news.iter().filter(|e| matches!(e.what, What::Translated { .. })).count(), 2);
}
