//! From an unmap to memory that is free.

use crate::common::*;
use portcullis::error::DomainMapError;
use portcullis_pgtable::{MapError, UnmapError};

const BIG: u64 = 0x20_0000;

/// A domain attached to one device, with a table that an unmap of `BIG` at `BIG` takes out.
fn mapped(w: &World) -> (Dom, Att) {
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    w.map(&dom, 0x1000);
    for page in 0..512 {
        dom.map_range(BIG + page * 0x1000, portcullis_pgtable::Phys(0x70_0000), 0x1000, RW).unwrap();
    }
    w.hw.take_log();
    (dom, a)
}

#[test]
fn tables_are_given_back_after_the_sync_and_not_before() {
    let w = World::new();
    let (dom, _a) = mapped(&w);
    let frames = w.board.frames();
    let mut gone = dom.unmapping();
    gone.unmap(BIG, BIG).unwrap();
    assert_eq!(dom.lookup(BIG), None, "gone from the table at once");
    w.hw.state().hold = true;
    let mut sync = gone.start_sync();
    assert!(sync.step().is_pending());
    assert_eq!(w.board.frames(), frames, "a walker may still read them");
    w.hw.state().hold = false;
    assert!(sync.step().is_ready());
    assert_eq!(w.board.frames(), frames - 1);
    let range = Some((BIG, 2 * BIG - 1));
    assert_eq!(w.hw.take_log(), [Call::Submit { range, tags: 1, ats: 1 }]);
}

#[test]
fn pages_far_apart_are_one_flush_of_everything() {
    const FAR: u64 = 0x4000_0000;
    let w = World::new();
    let (dom, _a) = mapped(&w);
    dom.map_range(FAR, portcullis_pgtable::Phys(0x70_0000), 0x1000, RW).unwrap();
    let mut gone = dom.unmapping();
    gone.unmap(0x1000, 0x1000).unwrap();
    gone.unmap(FAR, 0x1000).unwrap();
    w.hw.take_log();
    gone.sync(&cx()).unwrap();
    let everything = Call::Submit { range: None, tags: 1, ats: 1 };
    assert_eq!(w.hw.take_log(), [everything], "and not a range of all that lies between them");
}

#[test]
fn a_gather_dropped_unsynced_is_freed_by_the_next_flush_only() {
    let w = World::new();
    let (dom, _a) = mapped(&w);
    let frames = w.board.frames();
    let mut gone = dom.unmapping();
    gone.unmap(BIG, BIG).unwrap();
    drop(gone);
    let mut other = dom.unmapping();
    other.unmap(0x1000, 0x1000).unwrap();
    other.sync(&cx()).unwrap();
    assert_eq!(w.board.frames(), frames, "another sync proves nothing about it");
    w.hw.take_log();
    dom.flush(&cx()).unwrap();
    assert_eq!(w.hw.take_log(), [Call::Submit { range: None, tags: 1, ats: 1 }]);
    assert_eq!(w.board.frames(), frames - 1);
}

#[test]
fn a_sync_that_is_given_up_parks_its_tables() {
    let w = World::new();
    let (dom, _a) = mapped(&w);
    let frames = w.board.frames();
    let mut gone = dom.unmapping();
    gone.unmap(BIG, BIG).unwrap();
    w.hw.state().hold = true;
    let mut sync = gone.start_sync();
    assert!(sync.step().is_pending());
    drop(sync);
    w.hw.state().hold = false;
    assert_eq!(w.board.frames(), frames);
    dom.flush(&cx()).unwrap();
    assert_eq!(w.board.frames(), frames - 1);
}

#[test]
fn a_flush_that_fails_frees_nothing() {
    let w = World::new();
    let (dom, a) = mapped(&w);
    let frames = w.board.frames();
    let mut gone = dom.unmapping();
    gone.unmap(BIG, BIG).unwrap();
    drop(gone);
    w.hw.state().lost = true;
    assert!(dom.flush(&cx()).is_err());
    assert_eq!(w.board.frames(), frames);
    drop(a.begin_detach(&cx()));
    drop(dom);
    assert_eq!(w.board.frames(), frames);
}

#[test]
fn one_sync_is_one_batch_for_every_sixteen_users() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let _all: Vec<Att> =
        (1..=20).map(|n| w.iommu.attach(&cx(), &dom, &d, pasid(n), data()).unwrap()).collect();
    w.map(&dom, 0x1000);
    w.map(&dom, 0x5000);
    w.hw.take_log();
    let mut gone = dom.unmapping();
    gone.unmap(0x1000, 0x1000).unwrap();
    gone.unmap(0x5000, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
    let range = Some((0x1000, 0x5fff));
    let batch = |n| Call::Submit { range, tags: n, ats: n };
    assert_eq!(w.hw.take_log(), [batch(16), batch(4)]);
}

#[test]
fn a_domain_that_nobody_uses_asks_no_hardware() {
    let w = World::new();
    let (dom, a) = mapped(&w);
    drop(a.begin_detach(&cx()));
    w.hw.take_log();
    let frames = w.board.frames();
    let mut gone = dom.unmapping();
    gone.unmap(BIG, BIG).unwrap();
    gone.sync(&cx()).unwrap();
    assert!(w.hw.take_log().is_empty());
    assert_eq!(w.board.frames(), frames - 1);
    drop(dom);
    assert!(w.board.frames() < frames - 2, "the last handle frees the tables");
}

#[test]
fn refusals_change_nothing() {
    let w = World::new();
    let (dom, _a) = mapped(&w);
    let again = dom.map_range(0x0, portcullis_pgtable::Phys(0), 0x3000, RW);
    assert!(matches!(again, Err(DomainMapError::Table(MapError::AlreadyMapped { iova: 0x1000, .. }))));
    assert_eq!(dom.lookup(0), None);
    let mut gone = dom.unmapping();
    assert_eq!(gone.unmap(0x1000, 0x2000), Err(UnmapError::NotMapped { iova: 0x2000 }));
    assert!(dom.lookup(0x1000).is_some());
    gone.sync(&cx()).unwrap();
    assert!(w.hw.take_log().is_empty());
}

#[test]
fn a_domain_that_goes_frees_tables_that_were_never_synced() {
    const M2: u64 = 1 << 21;
    let w = World::new();
    let d = w.device(1);
    let before = w.board.frames();
    let dom = w.plain(&d);
    dom.map_range(M2, portcullis_pgtable::Phys(0x3000), M2, RW).unwrap();
    let mapped = w.board.frames();
    // A table goes with its pages; until a flush, or the end of the domain, it is kept.
    dom.unmapping().unmap(M2, M2).unwrap();
    assert_eq!(w.board.frames(), mapped);
    drop(dom);
    assert_eq!(w.board.frames(), before);
}
