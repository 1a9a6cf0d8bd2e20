//! What a device wrote to is told, page by page, and told once.

use portcullis::Device;
use portcullis::driver::Incompatible;
use portcullis::error::{DirtyTrackingError, DomainError};
use portcullis_pgtable::{DirtyError, Phys};

use crate::rig::{Form, Kind, Rig, Who};
use crate::stage::{LARGE, PAGE, RW, Space, Stage};

const IOVA: u64 = 0x100_0000;
const LARGE_IOVA: u64 = IOVA + 2 * LARGE;

/// Writes to small and large pages, through cached translations too; or the reason why the hardware
/// cannot tell: legacy mode has no dirty bits (`[V]` 9.3), nor has a second stage without SSADS or a walk that does
/// not snoop (`[V]` 3.7.2, 3.10).
pub fn dirty_pages<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::First);
    let made = s.tracked_space(&device);
    // QEMU's unit announces neither SSADS nor SMPWCS.
    let keeps = s.rig.shape().form != Form::Legacy && s.rig.kind() == Kind::Model;
    let space = match made {
        Ok(space) if keeps => space,
        Err(DomainError::Table(e)) if !keeps => {
            assert_eq!(e, Incompatible::NoDirtyTracking.into());
            return without(s, &device);
        }
        other => panic!("dirty bits kept: {keeps}, and the domain: {:?}", other.err()),
    };
    let pages = [0, 1, 2].map(|n| {
        let page = s.page();
        s.map(&space, IOVA + n * PAGE, page, PAGE, RW);
        page
    });
    let large = s.large();
    s.map(&space, LARGE_IOVA, large, LARGE, RW);
    let at = s.attach(&device, &space);
    let off = DirtyTrackingError::NotTracked(DirtyError::Off);
    assert_eq!(told(s, &space), Err(off));
    // Cached as dirty before tracking begins.
    s.lands(Who::First, IOVA, &[(pages[0], 64)]);
    space.domain.set_dirty_tracking(&s.cx, true).expect("the hardware answers");
    assert_eq!(told(s, &space), Ok(vec![]));
    for _ in 0..3 {
        s.lands(Who::First, IOVA, &[(pages[0], 64)]);
        s.lands(Who::First, IOVA + 2 * PAGE, &[(pages[2], 8)]);
        assert_eq!(told(s, &space), Ok(vec![(IOVA, PAGE), (IOVA + 2 * PAGE, PAGE)]));
        assert_eq!(told(s, &space), Ok(vec![]), "once");
    }
    // One that was read is clean, and cached as such when it is written to.
    s.fetches(&at, IOVA + PAGE, pages[1], 64);
    assert_eq!(told(s, &space), Ok(vec![]));
    s.lands(Who::First, IOVA + PAGE, &[(pages[1], 64)]);
    assert_eq!(told(s, &space), Ok(vec![(IOVA + PAGE, PAGE)]));
    // A large page is dirty as a whole.
    s.lands(Who::First, LARGE_IOVA + 5 * PAGE, &[(Phys(large.0 + 5 * PAGE), 64)]);
    assert_eq!(told(s, &space), Ok(vec![(LARGE_IOVA, LARGE)]));
    // Looked at and left as it is.
    s.lands(Who::First, IOVA, &[(pages[0], 64)]);
    for _ in 0..2 {
        let mut seen = Vec::new();
        space.domain.read_dirty(IOVA, 3 * PAGE, |iova, len| seen.push((iova, len))).expect("it is on");
        assert_eq!(seen, [(IOVA, PAGE)]);
    }
    space.domain.set_dirty_tracking(&s.cx, false).expect("the hardware answers");
    assert_eq!(told(s, &space), Err(off));
    s.detach(at);
}

/// A device works as ever where nobody can tell what it wrote to.
fn without<R: Rig>(s: &mut Stage<R>, device: &Device<R::P>) {
    let space = s.space(device);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let at = s.attach(device, &space);
    s.lands(Who::First, IOVA, &[(page, 64)]);
    assert!(matches!(told(s, &space), Err(DirtyTrackingError::NotTracked(_))));
    s.detach(at);
}

/// What was written to below the outlet since the last time.
fn told<R: Rig>(s: &Stage<R>, space: &Space<R::P>) -> Result<Vec<(u64, u64)>, DirtyTrackingError> {
    let mut told = Vec::new();
    let len = LARGE_IOVA + LARGE - IOVA;
    space.domain.read_and_clear_dirty(&s.cx, IOVA, len, |iova, len| told.push((iova, len)))?;
    Ok(told)
}
