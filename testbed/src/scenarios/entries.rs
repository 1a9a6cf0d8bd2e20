//! The structures between a requester and its table: directories of every size, and single bits changed by
//! hand before the device's first access.

use portcullis::{Pasid, Platform, error::AttachError};
use portcullis_pgtable::{Phys, TableMem};
use portcullis_spec::vtd::regs::offset;
use std::sync::Arc;

use crate::deviations::{self, Cause};
use crate::platform::VTD;
use crate::rig::{Form, Rig, Who};
use crate::stage::{PAGE, RW, Stage};

const IOVA: u64 = 0x100_0000;

/// P of the PASID-table entry that a device's requests translate through: clear, nothing passes.
pub fn present_bit<R: Rig>(s: &mut Stage<R>) {
    let (device, other) = (s.add(Who::Teller), s.add(Who::First));
    let space = s.space(&device);
    let page = s.page();
    s.map(&space, IOVA, page, PAGE, RW);
    let (at, beside) = (s.attach(&device, &space), s.attach(&other, &space));
    s.lands(Who::Teller, IOVA, &[(page, 64)]);
    change_entry(s, Who::Teller, |low| low & !1);
    // What this invalidates is named by the domain and the PASID, and both have the same.
    s.detach(beside);
    if s.deviates(&deviations::PRESENT_BIT) {
        s.lands(Who::Teller, IOVA, &[(page, 64)]);
    } else {
        s.write_stopped(Who::Teller, IOVA, 64, Cause::Blocked);
    }
    change_entry(s, Who::Teller, |low| low | 1);
    s.lands(Who::Teller, IOVA, &[(page, 64)]);
    s.detach(at);
    s.write_stopped(Who::Teller, IOVA, 64, Cause::Blocked);
}

/// PASID directories of every size, which requests without PASID go through as well. Where the unit
/// has PASIDs, the last one of each size has an entry, and what lies beyond is refused.
pub fn pasid_directories<R: Rig>(s: &mut Stage<R>) {
    for bits in 13..=20 {
        let device = s.add_with_pasids(Who::Teller, bits);
        let served = device.features().pasid_bits;
        let space = s.space(&device);
        let page = s.page();
        s.map(&space, IOVA, page, PAGE, RW);
        let at = s.attach(&device, &space);
        s.lands(Who::Teller, IOVA, &[(page, 64)]);
        let attach = |n| s.rig.iommu().attach(&s.cx, &space.domain, &device, Pasid::new(n), Arc::new(()));
        let last = (1 << served) - 1;
        if served > 0 {
            let attached = attach(last).expect("it is the unit's and the device's");
            assert!(!attached.begin_detach(&s.cx).lost());
        }
        if served < Pasid::BITS {
            assert!(matches!(attach(last + 1).err(), Some(AttachError::Pasid(..))), "{bits} bits");
        }
        s.lands(Who::Teller, IOVA, &[(page, 64)]);
        s.detach(at);
        s.write_stopped(Who::Teller, IOVA, 64, Cause::Blocked);
        s.remove(device);
    }
}

/// A pass-through entry that is taken away: the PASID cache gives it up, and so must what the
/// hardware made of it.
pub fn end_of_pass_through<R: Rig>(s: &mut Stage<R>) {
    let (device, other) = (s.add(Who::Teller), s.add(Who::First));
    let page = s.page();
    let identity = s.identity();
    let (at, beside) = (s.attach(&device, &identity), s.attach(&other, &identity));
    s.lands(Who::Teller, page.0, &[(page, 64)]);
    let mut entry = 0;
    change_entry(s, Who::Teller, |low| {
        entry = low;
        0
    });
    s.detach(beside);
    if s.deviates(&deviations::PASS_THROUGH) {
        s.lands(Who::Teller, page.0, &[(page, 64)]);
    } else {
        s.write_stopped(Who::Teller, page.0, 64, Cause::Blocked);
    }
    change_entry(s, Who::Teller, |_| entry);
    s.detach(at);
    s.write_stopped(Who::Teller, page.0, 64, Cause::Blocked);
}

/// AW of a PASID-table entry with a first stage: it has no say.
pub fn address_width_of_a_first_stage<R: Rig>(s: &mut Stage<R>) {
    assert_eq!(s.rig.shape().form, Form::ScalableFirst);
    let device = s.add(Who::Teller);
    let space = s.space(&device);
    let (low, high) = (s.page(), s.page());
    s.map(&space, IOVA, low, PAGE, RW);
    s.map(&space, 1 << 29, high, PAGE, RW);
    let at = s.attach(&device, &space);
    change_entry(s, Who::Teller, |low| low & !(7 << 2));
    s.lands(Who::Teller, IOVA, &[(low, 64)]);
    if s.deviates(&deviations::FIRST_STAGE_WIDTH) {
        s.write_stopped(Who::Teller, 1 << 29, 64, Cause::TooWide);
    } else {
        s.lands(Who::Teller, 1 << 29, &[(high, 64)]);
    }
    s.detach(at);
}

/// Changes the first eight bytes of the PASID-table entry for the device's requests without PASID.
fn change_entry<R: Rig>(s: &Stage<R>, who: Who, change: impl FnOnce(u64) -> u64) {
    let p = s.rig.platform();
    let load = |at: u64| p.load::<u64>(Phys(at & !(PAGE - 1)), (at % PAGE / 8) as usize);
    let table = |entry: u64| entry & !(PAGE - 1);
    let root = table(p.read64(VTD, offset::RTADDR));
    let (bus, function) = (u64::from(who.source().0 >> 8), u64::from(who.source().0 & 0xff));
    // A root entry's upper half is for the upper half of the functions ([V] 9.2).
    let contexts = table(load(root + bus * 16 + (function >> 7) * 8));
    let directory = table(load(contexts + (function & 0x7f) * 32));
    let entry = Phys(table(load(directory)));
    p.store::<u64>(entry, 0, change(p.load(entry, 0)));
}
