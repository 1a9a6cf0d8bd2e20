//! Step forms: what a platform without threads calls between its service turns.

use crate::common::*;
use portcullis::driver::{Start, Target};
use portcullis::error::{AttachError, RegisterError};
use portcullis::{
    At, Code, Config, DeviceState, DuringReset, Gap, GroupId, InstanceId, Iommu, Membership, Op, Replaced,
    ReservedRegion, SourceId,
};
use std::task::Poll;

/// Steps an operation to its end, with service turns in between.
fn steps<T>(w: &World, mut op: Op<'_, T>) -> T {
    for _ in 0..1000 {
        if let Poll::Ready(t) = op.step() {
            return t;
        }
        w.iommu.service(IOMMU);
    }
    panic!("the operation does not end");
}

#[test]
fn every_operation_of_a_life_has_a_step_form() {
    let w = World::new();
    let d = steps(&w, w.iommu.start_add_device(w.spec(1))).unwrap();
    let (one, two) = (w.served(&d), w.served(&d));
    w.hw.state().full = 3;
    let a = steps(&w, w.iommu.start_attach(&one, &d, None, data())).unwrap();
    w.hw.state().full = 3;
    let (b, old, how) =
        steps(&w, w.iommu.start_replace(a, &two, data(), Gap::Allowed)).map_err(|(_, e)| e).unwrap();
    assert_eq!((old.is_gone(), how), (true, Replaced::Hitless));
    let iova = w.map(&two, 0x5000);
    let mut unmapping = two.unmapping();
    unmapping.unmap(iova, 0x1000).unwrap();
    drop(unmapping);
    w.hw.state().full = 3;
    steps(&w, two.start_flush()).unwrap();
    w.sends(&[last(1, 4)]);
    w.hw.state().full = 3;
    steps(&w, d.start_reset()).unwrap();
    w.work();
    assert_eq!(w.hw.answers(), [], "the reset made the group void");
    w.sends(&[last(1, 5)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 5, Code::Success)], "the device is as it was");
    assert!(matches!(steps(&w, w.iommu.start_remove_device(&d)), Err(AttachError::Occupied(_))));
    assert!(steps(&w, b.start_detach()).is_gone());
    steps(&w, w.iommu.start_remove_device(&d)).unwrap();
}

#[test]
fn an_id_is_taken_while_its_instance_is_started() {
    let board = Board::new(64);
    let (one, two) = (Hardware::new(&board, 64), Hardware::new(&board, 64));
    let iommu = Iommu::new(board, Config::default()).unwrap();
    let id = InstanceId(7);
    one.state().slow_start = 1;
    let mut first = iommu.start_register(id, one.driver(), Start::Fresh);
    assert!(first.step().is_pending());
    let second = iommu.register(&cx(), id, two.driver(), Start::Fresh);
    assert_eq!(second.unwrap_err(), RegisterError::Duplicate(id), "its hardware is not touched");
    assert_eq!(two.state().starts, 0);
    drop(first);
    iommu.register(&cx(), id, two.driver(), Start::Fresh).unwrap();
}

#[test]
fn a_replace_given_up_half_way_is_ended_by_a_worker() {
    let w = World::new();
    let d = w.device(1);
    let (one, two) = (w.served(&d), w.served(&d));
    let a = w.attach(&one, &d);
    w.hw.state().hold = true;
    let mut op = w.iommu.start_replace(a, &two, data(), Gap::Allowed);
    assert!(op.step().is_pending());
    drop(op);
    w.hw.state().hold = false;
    w.work();
    assert!(w.hw.entry(At { source: SourceId(1), pasid: None }).is_none(), "nothing is attached");
    assert!(one.is_unused() && two.is_unused());
    let _again = w.attach(&one, &d);
}

#[test]
fn a_reset_after_a_replace_that_was_given_up_shows_nothing() {
    let w = World::new();
    let d = w.device(1);
    let (one, two) = (w.plain(&d), w.served(&d));
    let a = w.attach(&one, &d);
    w.hw.state().hold = true;
    let mut op = w.iommu.start_replace(a, &two, data(), Gap::Allowed);
    assert!(op.step().is_pending(), "page requests are switched on");
    drop(op);
    w.hw.state().hold = false;
    w.work();
    let usage = w.iommu.instance_usage(IOMMU).expect("it is there");
    assert_eq!((one.is_unused(), usage.places), (true, 1), "the requester id alone");
    d.reset(&cx()).unwrap();
    assert_eq!(w.hw.entry(At { source: SourceId(1), pasid: None }), None, "nothing is attached");
}

#[test]
fn a_device_that_was_parked_half_way_is_parked_by_a_worker() {
    let w = World::with(Config { during_reset: DuringReset::Refuse, ..Config::default() });
    let d = w.device(1);
    let dom = w.plain(&d);
    let by_pasid = w.iommu.attach(&cx(), &dom, &d, pasid(5), data()).unwrap();
    let _a = w.attach(&dom, &d);
    w.hw.state().hold = true;
    let mut op = d.start_park();
    assert!(op.step().is_pending());
    drop(op);
    w.hw.state().hold = false;
    assert!(w.hw.entry(by_pasid.at()).is_some() && !w.hw.is_cut_off(SourceId(1)), "half-way");
    w.work();
    assert_eq!((w.hw.entry(by_pasid.at()), w.hw.is_cut_off(SourceId(1))), (None, true));
    assert!(matches!(w.iommu.attach(&cx(), &dom, &d, pasid(6), data()), Err(AttachError::Parked(_))));
    d.reset(&cx()).unwrap();
    assert!(w.hw.entry(by_pasid.at()).is_some() && !w.hw.is_cut_off(SourceId(1)));
}

#[test]
fn a_removal_that_was_given_up_is_ended_by_a_worker() {
    let w = World::new();
    let d = w.device(1);
    w.hw.state().hold = true;
    let mut op = w.iommu.start_remove_device(&d);
    assert!(op.step().is_pending());
    assert_eq!(d.state(), DeviceState::Removed);
    drop(op);
    w.hw.state().hold = false;
    w.work();
    assert!(!w.hw.knows(SourceId(1)));
    let _again = w.device(1);
}

#[test]
fn a_member_given_up_half_way_keeps_what_it_may_walk_when_the_other_leaves() {
    let w = World::new();
    let member = |n: u32| {
        let mut spec = w.spec(n);
        spec.trusted = false;
        spec.group = Some(Membership { group: GroupId(1), merges: Vec::new() });
        spec.regions = vec![ReservedRegion::direct(u64::from(n) * 0x10_0000, 0x2000, RW)];
        spec
    };
    let first = w.iommu.add_device(&cx(), member(1)).unwrap();
    w.hw.state().hold = true;
    let mut op = w.iommu.start_add_device(member(2));
    assert!(op.step().is_pending());
    drop(op);
    w.hw.state().hold = false;
    // Before a worker has come by.
    w.iommu.remove_device(&cx(), first).map_err(|(_, e)| e).unwrap();
    match w.hw.entry(At { source: SourceId(2), pasid: None }) {
        Some(Target::Table { root, .. }) => assert!(w.board.walk(root, 0x20_0000).is_some()),
        other => panic!("{other:?}"),
    }
    w.work();
    assert!(!w.hw.knows(SourceId(2)));
    let _again = w.iommu.add_device(&cx(), member(2)).unwrap();
}

#[test]
fn a_device_given_up_half_way_keeps_what_hardware_may_have_cached() {
    let w = World::new();
    let mut spec = w.spec(1);
    spec.regions = vec![ReservedRegion::direct(0x8000, 0x2000, RW)];
    w.hw.state().hold = true;
    let mut op = w.iommu.start_add_device(spec);
    assert!(op.step().is_pending());
    drop(op);
    w.hw.state().hold = false;
    let tag = |n| match w.hw.entry(At { source: SourceId(n), pasid: None }) {
        Some(Target::Table { tag, .. }) => tag,
        other => panic!("{other:?}"),
    };
    let first = tag(1);
    let d = w.device(2);
    let dom = w.served(&d);
    let _a = w.attach(&dom, &d);
    assert_ne!(tag(2), first, "the caches may hold something under it");
}
