//! Observers: who is told what, and what a full queue loses.

use crate::common::*;
use portcullis::{
    Access, Config, FaultKind, FaultRecord, Observer, Platform, RawFault, Reason, Scope, Sleep, SourceId,
    Storms, Told, error::ObserveError,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

fn fault(source: u32, address: u64) -> RawFault {
    RawFault {
        source: Some(SourceId(source)),
        access: Access::Write,
        address: Some(address),
        code: 5,
        ..RawFault::new(FaultKind::Dma, Reason::NotMapped)
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
    let w = World::with(Config { observers: 100, ..Config::default() });
    let all: Vec<_> = (0..100).map(|_| w.iommu.observe(Scope::All, 2).unwrap()).collect();
    let refused = [
        w.iommu.observe(Scope::All, 2).err(),
        w.iommu.observe_immediate(Scope::All, |_: &FaultRecord| ()).err(),
        w.iommu.observe_sleeping(Scope::All, 2, |_: &Sleep<'_>, _: &Told| ()).err(),
    ];
    assert_eq!(refused, [Some(ObserveError::TooMany { limit: 100 }); 3]);
    drop(all);
    assert!(w.iommu.observe(Scope::All, 2).is_ok());
    assert_eq!(w.iommu.observe(Scope::All, usize::MAX).err(), Some(ObserveError::OutOfMemory));
}

#[test]
fn what_was_lost_is_told_with_the_next_record() {
    let w = World::new();
    let o = w.iommu.observe(Scope::All, 2).unwrap();
    let read = || o.try_next().map(|t| (t.record.address.unwrap(), t.lost));
    (0..5).for_each(|n| w.hw.faults(fault(1, n)));
    w.iommu.service(IOMMU);
    assert_eq!((read(), read(), read()), (Some((0, 0)), Some((1, 0)), None));
    (5..7).for_each(|n| w.hw.faults(fault(1, n)));
    w.iommu.service(IOMMU);
    assert_eq!((read(), read(), read()), (Some((5, 3)), Some((6, 0)), None));
    assert_eq!(o.lost(), 3);
}

#[test]
fn an_immediate_observer_is_called_within_the_turn_and_not_after_it_ended() {
    let w = World::new();
    let d = w.device(1);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    // It may look at what the core offers in any context: nothing is locked while it is called.
    let (iommu, device) = (w.iommu.clone(), d.clone());
    let o = w
        .iommu
        .observe_immediate(Scope::Device(d.id()), move |r: &FaultRecord| {
            let mut last = [None; 1];
            let counted = device.faults(&mut last).total();
            assert_eq!(last[0].map(|l| l.sequence), Some(r.sequence));
            kept.lock().unwrap().push((r.address.unwrap(), counted, iommu.load().waiting));
        })
        .unwrap();
    w.hw.faults(fault(1, 0x1000));
    w.hw.faults(fault(2, 0x2000));
    w.hw.faults(fault(1, 0x3000));
    w.iommu.service(IOMMU);
    assert_eq!(*seen.lock().unwrap(), [(0x1000, 1, 0), (0x3000, 2, 0)]);
    assert_eq!(Arc::strong_count(&seen), 2);
    drop(o);
    assert_eq!(Arc::strong_count(&seen), 1, "the observer is dropped with its observation");
    w.hw.faults(fault(1, 0x4000));
    w.iommu.service(IOMMU);
    assert_eq!(seen.lock().unwrap().len(), 2);
}

/// Writes down what it is told, in a sleepable context.
#[derive(Clone, Default)]
struct Diary(Arc<DiaryPages>);

#[derive(Default)]
struct DiaryPages {
    records: Mutex<Vec<(u64, u64)>>,
    lost: Mutex<u64>,
}

impl Observer for Diary {
    fn fault(&self, _: &Sleep<'_>, told: &Told) {
        self.0.records.lock().unwrap().push((told.address.unwrap(), told.lost));
    }
    fn lost(&self, _: &Sleep<'_>, records: u64) {
        *self.0.lost.lock().unwrap() += records;
    }
}

#[test]
fn a_sleeping_observer_is_called_by_a_worker_and_hears_of_its_losses() {
    let w = World::new();
    let diary = Diary::default();
    let o = w.iommu.observe_sleeping(Scope::All, 32, diary.clone()).unwrap();
    (0..40).for_each(|n| w.hw.faults(fault(1, n)));
    while w.hw.has_faults() {
        w.iommu.service(IOMMU);
    }
    assert!(diary.0.records.lock().unwrap().is_empty(), "not in service context");
    w.work();
    assert_eq!(*diary.0.records.lock().unwrap(), (0..32).map(|n| (n, 0)).collect::<Vec<_>>());
    assert_eq!((*diary.0.lost.lock().unwrap(), o.lost()), (8, 8), "no record followed the last losses");
    w.hw.faults(fault(1, 99));
    w.iommu.service(IOMMU);
    drop(o);
    w.work();
    assert_eq!(diary.0.records.lock().unwrap().len(), 32, "nothing is handed over after the end");
}

#[test]
fn the_last_records_and_the_counts_stay_with_device_domain_and_instance() {
    let w = World::with(Config { last_faults: 3, storms: Storms::NEVER, ..Config::default() });
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    (0..5).for_each(|n| w.hw.faults(fault(1, n)));
    w.hw.faults(fault(9, 0x9000));
    w.hw.faults(RawFault::new(FaultKind::Overflow, Reason::Other));
    w.iommu.service(IOMMU);
    let read = |last: &[Option<FaultRecord>]| -> Vec<u64> {
        last.iter().flatten().map(|r| r.address.unwrap_or(u64::MAX)).collect()
    };
    let mut last = [None; 4];
    assert_eq!((d.faults(&mut last).total(), read(&last)), (5, vec![4, 3, 2]));
    assert_eq!((dom.faults(&mut last).total(), read(&last)), (5, vec![4, 3, 2]));
    assert_eq!(last[0].unwrap().domain, Some(dom.id()));
    let counts = w.iommu.faults(IOMMU, &mut last).unwrap();
    assert_eq!(read(&last), [u64::MAX, 0x9000, 4]);
    assert_eq!(last[1].map(|r| (r.device, r.domain, r.sequence)), Some((None, None, 6)));
    let of = [FaultKind::Dma, FaultKind::Overflow, FaultKind::Quarantine].map(|k| counts.of(k));
    assert_eq!((counts.total(), of), (7, [6, 1, 0]));
    assert_eq!(counts.last_at(), Some(w.board.now()));
    assert!(w.iommu.faults(portcullis::InstanceId(99), &mut last).is_none());
    let mut one = [None; 1];
    w.iommu.faults(IOMMU, &mut one);
    assert_eq!(read(&one), [u64::MAX], "as many as the reader has room for");
    drop(a.begin_detach(&cx()));
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

#[test]
fn what_the_aliases_of_a_device_did_is_among_its_records() {
    let w = World::with(Config { last_faults: 2, ..Config::default() });
    let mut spec = w.spec(1);
    spec.upstreams[0].sources.push(SourceId(10));
    let d = w.iommu.add_device(&cx(), spec).unwrap();
    for (source, address) in [(1, 0x1000), (10, 0x2000), (1, 0x3000), (10, 0x4000), (10, 0x5000)] {
        w.hw.faults(fault(source, address));
    }
    w.iommu.service(IOMMU);
    let mut last = [None; 3];
    assert_eq!(d.faults(&mut last).total(), 5);
    let read = last.map(|r| r.map(|r| (r.source.unwrap().0, r.address.unwrap(), r.device)));
    let by = |source, address| Some((source, address, Some(d.id())));
    assert_eq!(read, [by(10, 0x5000), by(10, 0x4000), by(1, 0x3000)]);
}
