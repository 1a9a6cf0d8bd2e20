//! What is not mapped is stopped, and the record says whose access it was, where, and why.

use portcullis::FaultKind;

use crate::deviations::Cause;
use crate::rig::{INSTANCE, Rig, Who};
use crate::stage::{PAGE, RW, Stage};

const IOVA: u64 = 0x100_0000;

/// A device that nobody added, before and after its bus has a context table.
pub fn unknown_device<R: Rig>(s: &mut Stage<R>) {
    s.write_stopped(Who::Teller, IOVA, 64, Cause::NoRoot);
    s.idle_read_stopped(Who::First, IOVA, 64, Cause::NoRoot);
    let device = s.add(Who::First);
    let space = s.space(&device);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let at = s.attach(&device, &space);
    s.lands(Who::First, IOVA, &[(page, 64)]);
    s.write_stopped(Who::Teller, IOVA, 64, Cause::NoContext);
    s.write_stopped(Who::Second, IOVA, 64, Cause::NoContext);
    s.idle_read_stopped(Who::Second, page.0, 64, Cause::NoContext);
    s.detach(at);
    // One that was taken away is as unknown.
    let removed = s.rig.iommu().remove_device(&s.cx, device);
    assert!(removed.is_ok());
    s.write_stopped(Who::First, IOVA, 64, Cause::NoContext);
}

/// Holes: beside a page, in a table that is there, and where no table is. After each the device goes
/// on.
pub fn unmapped<R: Rig>(s: &mut Stage<R>) {
    let (device, teller) = (s.add(Who::First), s.add(Who::Teller));
    let space = s.space(&device);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let (at, told) = (s.attach(&device, &space), s.attach(&teller, &space));
    for hole in [IOVA + PAGE, IOVA - PAGE, 0, 0x4000_0000, s.far(), page.0] {
        s.write_stopped(Who::First, hole + 0x40, 64, Cause::NotMapped);
        s.read_stopped(&at, hole + 0x80, 64, Cause::NotMapped);
        s.write_stopped(Who::Teller, hole + 0x100, 64, Cause::NotMapped);
        s.lands(Who::First, IOVA, &[(page, 64)]);
    }
    // A hole is not remembered as one.
    let late = s.page();
    s.map(&space, IOVA + PAGE, late, PAGE, RW);
    s.lands(Who::First, IOVA + PAGE, &[(late, 64)]);
    s.detach(told);
    s.detach(at);
}

/// An address with more bits than the table.
pub fn too_wide<R: Rig>(s: &mut Stage<R>) {
    let device = s.add(Who::Teller);
    let space = s.space(&device);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let at = s.attach(&device, &space);
    let first = u32::from(s.rig.shape().input_bits());
    for bit in [first, (first + 63) / 2, 63] {
        s.write_stopped(Who::Teller, 1 << bit | IOVA, 64, Cause::TooWide);
    }
    s.lands(Who::Teller, IOVA, &[(page, 64)]);
    s.detach(at);
}

/// Faults of two devices between two service turns: each has its record as long as there are
/// registers for it, and what finds none is told as lost.
pub fn faults_of_two_devices<R: Rig>(s: &mut Stage<R>) {
    let (first, second) = (s.add(Who::First), s.add(Who::Second));
    let space = s.space(&first);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let (at_first, at_second) = (s.attach(&first, &space), s.attach(&second, &space));
    for who in [Who::First, Who::Second] {
        s.rig.write(who, IOVA + PAGE, 4);
    }
    let told = s.all_faults();
    let sources: Vec<_> = told.iter().filter(|f| f.kind == FaultKind::Dma).map(|f| f.source).collect();
    let lost = told.iter().filter(|f| f.kind == FaultKind::Overflow && f.instance == INSTANCE).count();
    let both = [Some(Who::First.source()), Some(Who::Second.source())];
    if s.rig.fault_registers() > 1 {
        assert_eq!((sources.as_slice(), lost), (&both[..], 0), "{told:?}");
    } else {
        assert_eq!((sources.as_slice(), lost), (&both[..1], 1), "{told:?}");
    }
    // And recording goes on.
    s.write_stopped(Who::Second, IOVA + PAGE, 4, Cause::NotMapped);
    s.lands(Who::Second, IOVA, &[(page, 64)]);
    s.detach(at_first);
    s.detach(at_second);
}
