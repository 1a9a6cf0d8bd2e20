//! Observers: who is told what, and what a full queue loses.

mod common;

use common::*;
use portcullis::{Access, FaultKind, Platform, RawFault, Reason, Scope, SourceId};
use std::{sync::Arc, time::Duration};

fn fault(source: u32, address: u64) -> RawFault {
    RawFault {
        source: Some(SourceId(source)),
        pasid: None,
        kind: FaultKind::Dma,
        access: Access::Write,
        privileged: false,
        address: Some(address),
        reason: Reason::NotMapped,
        code: 5,
    }
}

#[test]
fn each_scope_sees_its_own_also_on_a_blocked_domain() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let blocked = w.iommu.blocked_domain().unwrap();
    let dom = w.plain(&e);
    let _a = w.iommu.attach(&cx(), &blocked, &d, None, Arc::new(())).unwrap();
    let b = w.attach(&dom, &e);
    let scopes = [
        Scope::All,
        Scope::Instance(IOMMU),
        Scope::Instance(portcullis::InstanceId(99)),
        Scope::Device(d.id()),
        Scope::Domain(blocked.id()),
        Scope::Domain(dom.id()),
    ];
    let observers = scopes.map(|s| w.iommu.observe(s, 8).unwrap());
    w.hw.faults(fault(1, 0x1000));
    w.hw.faults(fault(2, 0x2000));
    w.hw.faults(fault(77, 0x3000));
    w.iommu.service(IOMMU);
    let seen = observers.each_ref().map(|o| core::iter::from_fn(|| o.try_next()).count());
    assert_eq!(seen, [3, 3, 0, 1, 1, 1]);
    drop(b.begin_detach(&cx()));
    w.hw.faults(fault(2, 0x2000));
    w.iommu.service(IOMMU);
    assert!(observers[5].try_next().is_none(), "after the detach a fault is not the domain's");
    assert_eq!(observers[0].try_next().map(|r| (r.device, r.sequence)), Some((Some(e.id()), 4)));
    assert_eq!(e.counters().faults, 2);
}

#[test]
fn a_full_observer_loses_and_counts_and_holds_nobody_up() {
    let w = World::new();
    let slow = w.iommu.observe(Scope::All, 4).unwrap();
    let quick = w.iommu.observe(Scope::All, 16).unwrap();
    (0..10).for_each(|n| w.hw.faults(fault(1, n)));
    w.iommu.service(IOMMU);
    assert_eq!((slow.lost(), quick.lost()), (6, 0));
    let kept: Vec<_> = core::iter::from_fn(|| slow.try_next()).map(|r| r.address).collect();
    assert_eq!(kept, [Some(0), Some(1), Some(2), Some(3)]);
}

#[test]
fn observers_are_bounded_and_a_dropped_one_makes_room() {
    let w = World::new();
    let all: Vec<_> = (0..64).map(|_| w.iommu.observe(Scope::All, 2).unwrap()).collect();
    assert!(w.iommu.observe(Scope::All, 2).is_err());
    drop(all);
    assert!(w.iommu.observe(Scope::All, 2).is_ok());
    assert!(w.iommu.observe(Scope::All, usize::MAX).is_err());
}

#[test]
fn waiting_for_a_record_ends_with_it_or_at_the_deadline() {
    let w = World::new();
    let o = w.iommu.observe(Scope::All, 2).unwrap();
    let until = w.board.now() + Duration::from_millis(1);
    assert!(o.next(&cx(), Some(until)).is_none());
    assert_eq!(w.board.now(), until);
    let (hw, iommu) = (w.hw.clone(), w.iommu.clone());
    w.board.on_wait(Some(Box::new(move || {
        hw.faults(fault(1, 0x1000));
        iommu.service(IOMMU);
    })));
    let record = o.next(&cx(), None).expect("told");
    assert_eq!((record.reason, record.access, record.code), (Reason::NotMapped, Access::Write, 5));
}
