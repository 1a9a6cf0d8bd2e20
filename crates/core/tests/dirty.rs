//! Dirty tracking on a domain: what walkers mark is told once, and the caches know of it.

use crate::common::*;
use portcullis::driver::{HwLost, Target};
use portcullis::error::{DirtyTrackingError, SyncError};
use portcullis::{At, SourceId};
use portcullis_pgtable::{DirtyError, Phys, TableMem, VTD_SECOND_STAGE};

const AT: At = At { source: SourceId(1), pasid: None };
/// D of a second-stage leaf ([V] 9.8).
const D: u64 = 1 << 9;

/// A device writes a page through a walk that marks it.
fn device_writes(w: &World, iova: u64) {
    let Some(Target::Table { root, .. }) = w.hw.entry(AT) else { panic!("it translates") };
    let mut table = root;
    for shift in [39, 30, 21, 12] {
        let i = (iova >> shift & 0x1ff) as usize;
        let entry: u64 = w.board.load(table, i);
        assert_ne!(entry & 2, 0, "{iova:#x} may be written");
        if shift == 12 {
            w.board.store(table, i, entry | D);
        }
        table = Phys(entry & 0x000f_ffff_ffff_f000);
    }
}

struct Tracked {
    w: World,
    dom: Dom,
    _a: Att,
}

/// Three pages mapped, the device attached.
fn mapped() -> Tracked {
    let w = World::new();
    w.hw.state().marks = true;
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    for iova in [0x1000, 0x2000, 0x5000] {
        w.map(&dom, iova);
    }
    Tracked { w, dom, _a: a }
}

impl Tracked {
    fn read(&self, clear: bool) -> Vec<(u64, u64)> {
        let mut told = Vec::new();
        let visit = |iova, size| told.push((iova, size));
        match clear {
            true => self.dom.read_and_clear_dirty(&cx(), 0, 1 << 30, visit).unwrap(),
            false => self.dom.read_dirty(0, 1 << 30, visit).unwrap(),
        }
        told
    }

    fn batches(&self) -> Vec<Option<(u64, u64)>> {
        core::mem::take(&mut self.w.hw.state().batches).iter().map(|(_, range, _)| *range).collect()
    }
}

#[test]
fn what_was_written_is_told_once_and_its_caches_are_invalidated_before_the_call_returns() {
    let t = mapped();
    assert!(t.dom.can_track_dirty());
    device_writes(&t.w, 0x5000);
    t.batches();
    t.dom.set_dirty_tracking(&cx(), true).unwrap();
    assert_eq!(t.batches(), [Some((0x5000, 0x5fff))], "marks from before are cleared, and forgotten");
    assert_eq!(t.read(false), []);
    device_writes(&t.w, 0x2000);
    assert_eq!(t.read(false), [(0x2000, 0x1000)]);
    assert_eq!(t.batches(), [], "nothing was cleared");
    device_writes(&t.w, 0x1000);
    assert_eq!(t.read(true), [(0x1000, 0x1000), (0x2000, 0x1000)]);
    assert_eq!(t.batches(), [Some((0x1000, 0x2fff))]);
    assert_eq!(t.read(true), []);
    assert_eq!(t.batches(), [], "nothing was marked, so nothing can be cached as marked");
    device_writes(&t.w, 0x1000);
    let mut told = Vec::new();
    t.dom.read_and_clear_dirty(&cx(), 0x2000, 0x4000, |iova, _| told.push(iova)).unwrap();
    assert_eq!(told, [0_u64; 0], "it is outside of the range");
    assert_eq!(t.read(true), [(0x1000, 0x1000)]);
}

#[test]
fn what_is_not_tracked_says_so() {
    let t = mapped();
    let off = Err(DirtyTrackingError::NotTracked(DirtyError::Off));
    assert_eq!(t.dom.read_dirty(0, 0x1000, |_, _| panic!("nothing is told")), off);
    t.dom.set_dirty_tracking(&cx(), true).unwrap();
    t.dom.set_dirty_tracking(&cx(), false).unwrap();
    assert_eq!(t.dom.read_and_clear_dirty(&cx(), 0, 0x1000, |_, _| panic!("nothing is told")), off);
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let not_kept = Err(DirtyTrackingError::NotTracked(DirtyError::NotKept(VTD_SECOND_STAGE)));
    assert!(!dom.can_track_dirty());
    assert_eq!(dom.set_dirty_tracking(&cx(), true), not_kept);
    assert_eq!(dom.read_dirty(0, 0x1000, |_, _| panic!("nothing is told")), not_kept);
}

#[test]
fn a_clear_whose_invalidation_failed_is_an_error() {
    let t = mapped();
    t.dom.set_dirty_tracking(&cx(), true).unwrap();
    device_writes(&t.w, 0x1000);
    t.w.hw.state().lost = true;
    let lost = Err(DirtyTrackingError::Unsynced(SyncError::Lost(HwLost)));
    assert_eq!(t.dom.read_and_clear_dirty(&cx(), 0, 0x10000, |_, _| {}), lost);
}
