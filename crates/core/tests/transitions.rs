//! Transitions of a group: one at a time at a place, none while the group changes as a whole.

use crate::common::*;
use portcullis::error::AttachError;
use portcullis::{At, DeviceSpec, GroupId, Membership, Op, ReservedRegion, SourceId};
use portcullis_pgtable::Phys;
use std::task::Poll;

/// Steps an operation to its end; nothing holds the hardware up any more.
fn end<T>(w: &World, mut op: Op<'_, T>) -> T {
    w.hw.state().hold = false;
    for _ in 0..100 {
        if let Poll::Ready(t) = op.step() {
            return t;
        }
        w.iommu.service(IOMMU);
    }
    panic!("the operation does not end");
}

/// A member of one group with a direct region, so that it takes the hardware some time to let it in.
fn member(w: &World, n: u32) -> DeviceSpec {
    let mut spec = w.spec(n);
    spec.trusted = false;
    spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
    spec.regions = vec![ReservedRegion::direct(u64::from(n) * 0x10_0000, 0x1000, RW)];
    spec
}

fn at(n: u32) -> At {
    At { source: SourceId(n), pasid: None }
}

#[test]
fn an_attach_waits_for_the_one_that_runs_and_finds_its_place_taken() {
    let w = World::new();
    let d = w.device(1);
    let (one, two) = (w.served(&d), w.served(&d));
    w.hw.state().hold = true;
    let mut first = w.iommu.start_attach(&one, &d, None, data());
    let mut second = w.iommu.start_attach(&two, &d, None, data());
    assert!(first.step().is_pending() && second.step().is_pending());
    let _a = end(&w, first).expect("it was first");
    assert!(matches!(end(&w, second), Err(AttachError::Occupied(_))));
    assert!(!one.is_unused() && two.is_unused());
}

#[test]
fn an_attach_waits_for_a_member_that_joins_and_includes_it() {
    let w = World::new();
    let d = w.iommu.add_device(&cx(), member(&w, 1)).unwrap();
    let dom = w.plain(&d);
    w.hw.state().hold = true;
    let mut joining = w.iommu.start_add_device(member(&w, 2));
    assert!(joining.step().is_pending());
    let mut attaching = w.iommu.start_attach(&dom, &d, None, data());
    assert!(attaching.step().is_pending());
    let _other = end(&w, joining).expect("nothing is attached yet");
    let a = end(&w, attaching).expect("both are up");
    assert!(a.places().eq([at(1), at(2)]));
}

#[test]
fn members_join_one_after_the_other() {
    let w = World::new();
    w.hw.state().hold = true;
    let mut first = w.iommu.start_add_device(member(&w, 1));
    let mut second = w.iommu.start_add_device(member(&w, 2));
    assert!(first.step().is_pending() && second.step().is_pending());
    assert!(!w.hw.knows(SourceId(2)), "the first one is on its way");
    let _first = end(&w, first).unwrap();
    let _second = end(&w, second).unwrap();
    assert!(w.hw.entry(at(1)).is_some() && w.hw.entry(at(2)).is_some());
}

#[test]
fn a_reset_waits_for_an_attach() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    w.hw.state().hold = true;
    let mut attaching = w.iommu.start_attach(&dom, &d, None, data());
    assert!(attaching.step().is_pending());
    let mut resetting = d.start_reset();
    assert!(resetting.step().is_pending());
    assert!(!w.hw.is_cut_off(SourceId(1)), "what is on its way would be lost");
    let _a = end(&w, attaching).unwrap();
    end(&w, resetting).unwrap();
    assert!(w.hw.entry(at(1)).is_some());
}

#[test]
fn the_end_of_a_reset_waits_for_a_detach() {
    let w = World::new();
    let d = w.device(1);
    let a = w.attach(&w.plain(&d), &d);
    let parked = d.park(&cx()).unwrap();
    w.hw.state().hold = true;
    let mut detaching = a.start_detach();
    assert!(detaching.step().is_pending());
    let mut ending = parked.start_end();
    assert!(ending.step().is_pending());
    assert!(w.hw.is_cut_off(SourceId(1)), "it would be shown what is on its way out");
    assert!(end(&w, detaching).is_gone());
    end(&w, ending).unwrap();
    assert_eq!((w.hw.entry(at(1)), w.hw.is_cut_off(SourceId(1))), (None, false));
}

#[test]
fn a_device_whose_translations_are_switched_off_in_a_reset_is_told_before() {
    let w = World::new();
    let d = w.device_with_direct(1, 0x8000);
    w.hw.take_log();
    let parked = d.park(&cx()).unwrap();
    let log = w.hw.take_log();
    let when = |call| log.iter().position(|c| *c == call);
    let (told, off) = (when(Call::Ats(SourceId(1), false)), when(Call::Features(SourceId(1), false)));
    assert!(told.is_some() && told < off, "{log:?}");
    parked.end(&cx()).unwrap();
    assert!(d.features().ats);
}

#[test]
fn a_device_that_is_removed_gives_back_the_credits_of_an_attach_that_was_given_up() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    let credits = || w.iommu.instance_usage(IOMMU).expect("it is there").credits;
    w.hw.state().hold = true;
    let mut attaching = w.iommu.start_attach(&dom, &d, None, data());
    assert!(attaching.step().is_pending());
    drop(attaching);
    w.hw.state().hold = false;
    w.work();
    assert_eq!(credits(), 8, "the hardware may have switched page requests on");
    w.iommu.remove_device(&cx(), d).map_err(|(_, e)| e).unwrap();
    assert_eq!(credits(), 0);
}

#[test]
fn a_device_has_so_many_places_and_no_more() {
    let w = World::with(portcullis::Config { attachments_per_device: 2, ..Default::default() });
    let d = w.device(1);
    let dom = w.plain(&d);
    let attach = |n| w.iommu.attach(&cx(), &dom, &d, pasid(n), data());
    let (one, _two) = (attach(1).unwrap(), attach(2).unwrap());
    assert!(matches!(attach(3), Err(AttachError::TooMany(id)) if id == d.id()));
    assert_eq!(w.hw.entry(At { source: SourceId(1), pasid: pasid(3) }), None);
    assert!(one.begin_detach(&cx()).is_gone());
    drop(attach(3).expect("there is room again"));
}

#[test]
fn an_attach_that_finds_no_room_for_its_last_place_has_shown_none() {
    let w = World::with(portcullis::Config { devices: 8, attachments: 6, ..Default::default() });
    let mut spec = w.spec(1);
    spec.trusted = false;
    spec.upstreams[0].sources.extend((10..17).map(SourceId));
    let d = w.iommu.add_device(&cx(), spec).unwrap();
    let dom = w.plain(&d);
    let places = || w.iommu.instance_usage(IOMMU).expect("it is there").places;
    let attach = |n| w.iommu.attach(&cx(), &dom, &d, pasid(n), data());
    // Eight places in each, of two for each attachment that there may be.
    let _one = attach(1).unwrap();
    let before = places();
    assert!(matches!(attach(2), Err(AttachError::TooMany(_))));
    assert_eq!(places(), before);
}

#[test]
fn requesters_take_no_room_from_attachments() {
    let w = World::with(portcullis::Config { devices: 8, attachments: 1, ..Default::default() });
    let devices: Vec<Dev> = (1..=8).map(|n| w.device(n)).collect();
    let _a = w.attach(&w.plain(&devices[0]), &devices[7]);
}

#[test]
fn a_direct_region_that_meets_a_mapping_of_the_owner_is_taken_back() {
    let w = World::new();
    let (d, other) = (w.device_with_direct(1, 0x8000), w.device(2));
    let dom = w.plain(&other);
    // In the way of the second page.
    dom.map_range(0x9000, Phys(0x7_0000), 0x1000, RW).unwrap();
    let refused = w.iommu.attach(&cx(), &dom, &d, None, data());
    assert!(matches!(refused, Err(AttachError::Direct { start: 0x8000, .. })));
    assert_eq!(dom.lookup(0x8000), None, "the first page");
    let mut gone = dom.unmapping();
    gone.unmap(0x9000, 0x1000).expect("it is the owner's as before");
    gone.sync(&cx()).unwrap();
    let _a = w.attach(&dom, &d);
    assert!(dom.lookup(0x8000).is_some() && dom.lookup(0x9000).is_some());
}

#[test]
fn a_direct_region_takes_as_few_entries_as_its_size_lets_it() {
    let w = World::new();
    let mut spec = w.spec(1);
    // What firmware says is as large as it likes: page by page, this takes more tables than there are.
    spec.regions = vec![ReservedRegion::direct(0x4000_0000 - 0x1000, 0x10_0000_1000, RW)];
    let d = w.iommu.add_device(&cx(), spec).unwrap();
    let dom = w.plain(&d);
    dom.map_range(0x8000_1000, Phys(0x8000_1000), 0x1000, RW).expect("just as the device needs it");
    let frames = w.board.frames();
    let a = w.attach(&dom, &d);
    let end = 0x4000_0000u64 + 0x10_0000_0000;
    for at in [0x4000_0000 - 0x1000, 0x4000_0000, 0x8000_0000, 0x8000_1000, 0x8000_2000, end - 0x1000] {
        assert_eq!(dom.lookup(at).map(|leaf| leaf.phys), Some(Phys(at)), "{at:#x}");
    }
    assert!(dom.lookup(0x4000_0000 - 0x2000).is_none() && dom.lookup(end).is_none());
    assert!(a.begin_detach(&cx()).is_gone());
    assert!(dom.lookup(0x4000_0000).is_none() && dom.lookup(end - 0x1000).is_none());
    assert!(dom.lookup(0x8000_1000).is_some(), "the owner's");
    assert!(w.board.frames() <= frames + 80, "{} tables", w.board.frames() - frames);
}

#[test]
fn an_attach_to_hardware_that_is_lost_changes_nothing() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let dom = w.plain(&d);
    w.hw.state().lost = true;
    assert!(matches!(w.iommu.attach(&cx(), &dom, &d, None, data()), Err(AttachError::Lost(_))));
    w.work();
    // Now it is known.
    let other = w.plain(&e);
    assert!(matches!(w.iommu.attach(&cx(), &other, &e, None, data()), Err(AttachError::Lost(_))));
    assert!(other.is_unused() && !e.is_quarantined());
}
