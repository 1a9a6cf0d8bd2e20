//! What devices, attachments and owners may have outstanding, and for how long.

use crate::common::*;
use portcullis::error::ConfigError;
use portcullis::{Code, Config, Deferred, DomainOptions, Iommu, Reason, Response, Scope};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

type Kept = Arc<Mutex<Vec<Deferred<Board>>>>;

/// A domain whose resolver keeps every group.
fn keeps(w: &World, d: &Dev, options: DomainOptions) -> (Dom, Kept) {
    let kept = Kept::default();
    let keep = kept.clone();
    let resolver = move |_: &portcullis::Sleep<'_>, _: &Arc<Data>, g: portcullis::PageGroup<'_, Board>| {
        keep.lock().unwrap().push(g.defer());
    };
    (w.iommu.external_domain(&[d], options, Some(resolver)).unwrap(), kept)
}

fn with_pasid(n: u32, r: portcullis::driver::PageRequest) -> portcullis::driver::PageRequest {
    portcullis::driver::PageRequest { pasid: pasid(n), ..r }
}

#[test]
fn a_group_deadline_outside_its_bounds_is_refused() {
    let with = |d| {
        let config = Config { group_deadline: d, ..Config::default() };
        Iommu::new(Board::new(64), config).map(|_| ())
    };
    for d in [Duration::from_millis(999), Duration::from_secs(101)] {
        assert_eq!(with(Some(d)), Err(ConfigError::GroupDeadline(d)));
    }
    for d in [Some(Duration::from_secs(1)), Some(Duration::from_secs(100)), None] {
        assert_eq!(with(d), Ok(()));
    }
}

#[test]
fn one_pasid_does_not_use_up_its_device() {
    let w = World::with(Config { credits_per_attachment: 3, ..Config::default() });
    let d = w.device(1);
    let (dom, kept) = keeps(&w, &d, DomainOptions::default());
    let _one = w.iommu.attach(&cx(), &dom, &d, pasid(1), data()).unwrap();
    let _two = w.iommu.attach(&cx(), &dom, &d, pasid(2), data()).unwrap();
    let observer = w.iommu.observe(Scope::All, 8).unwrap();
    w.sends(&(1..=4).map(|i| with_pasid(1, last(1, i))).collect::<Vec<_>>());
    w.sends(&[with_pasid(2, last(1, 9))]);
    w.work();
    let mut indices: Vec<u16> = kept.lock().unwrap().iter().map(Deferred::index).collect();
    indices.sort_unstable();
    assert_eq!(indices, [1, 2, 3, 9], "the other PASID is served");
    assert_eq!(observer.try_next().map(|r| (r.reason, r.pasid)), Some((Reason::Quota, pasid(1))));
    // A decided answer makes room.
    kept.lock().unwrap().remove(0).respond(Response::Success).unwrap();
    w.sends(&[with_pasid(1, last(1, 5))]);
    w.work();
    assert_eq!(kept.lock().unwrap().len(), 4);
}

#[test]
fn an_owner_is_bounded_over_all_its_devices_and_nobody_else_is() {
    let w = World::new();
    let (d, e, f) = (w.device(1), w.device(2), w.device(3));
    let (dom, kept) = keeps(&w, &d, DomainOptions { page_requests: Some(5), ..DomainOptions::default() });
    let (other, others) = keeps(&w, &f, DomainOptions::default());
    let _a = w.attach(&dom, &d);
    let b = w.attach(&dom, &e);
    let _c = w.attach(&other, &f);
    w.sends(&[last(1, 1), last(1, 2), last(1, 3), last(2, 4), last(2, 5), last(2, 6), last(3, 7)]);
    w.work();
    assert_eq!((kept.lock().unwrap().len(), others.lock().unwrap().len()), (5, 1));
    assert_eq!(w.hw.answers(), [sent(2, 6, Code::Invalid)]);
    // What a device's detach leaves unused is the others' again.
    drop(b.begin_detach(&cx()));
    w.work();
    w.hw.take_log();
    w.sends(&[last(1, 8), last(1, 9), last(1, 10)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 10, Code::Invalid)], "three are out, and two more fit");
}

#[test]
fn an_owners_unused_lease_comes_back() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let (dom, kept) = keeps(&w, &d, DomainOptions { page_requests: Some(4), ..DomainOptions::default() });
    let _a = w.attach(&dom, &d);
    let _b = w.attach(&dom, &e);
    for source in [1, 2, 1, 2] {
        w.sends(&(1..=4).map(|i| last(source, i)).collect::<Vec<_>>());
        w.work();
        assert_eq!(kept.lock().unwrap().len(), 4, "the other device holds nothing back");
        kept.lock().unwrap().drain(..).for_each(|g| g.respond(Response::Success).unwrap());
        w.iommu.service(IOMMU);
    }
}

#[test]
fn partial_groups_are_bounded_per_device_and_per_owner() {
    let config = Config { partials_per_device: 2, partials_per_owner: 3, ..Config::default() };
    let w = World::with(config);
    let (d, e) = (w.device(1), w.device(2));
    let (dom, kept) = keeps(&w, &d, DomainOptions::default());
    let _a = w.attach(&dom, &d);
    let b = w.attach(&dom, &e);
    let observer = w.iommu.observe(Scope::All, 8).unwrap();
    let quota = || core::iter::from_fn(|| observer.try_next()).filter(|r| r.reason == Reason::Quota).count();
    w.sends(&[first(1, 1, 0xa000), first(1, 2, 0xa000), first(1, 3, 0xa000)]);
    assert_eq!(quota(), 1, "the device has two");
    w.sends(&[first(2, 1, 0xa000), first(2, 2, 0xa000)]);
    assert_eq!(quota(), 1, "the owner has three");
    w.sends(&[last(1, 1)]);
    w.work();
    assert_eq!(kept.lock().unwrap()[0].len(), 2);
    w.sends(&[first(2, 3, 0xa000)]);
    assert_eq!(quota(), 0, "one that is complete makes room");
    drop(b.begin_detach(&cx()));
    w.work();
    assert_eq!(e.counters().partials_dropped, 2);
    w.sends(&[first(1, 4, 0xa000)]);
    assert_eq!(quota(), 0, "what was dropped makes room");
}

#[test]
fn a_request_that_finds_no_room_stays_with_the_hardware_and_is_counted_once() {
    let w = World::made(Config::default(), 8);
    let d = w.device(1);
    // Nothing is attached: each is answered at once, and keeps its slot until that is sent.
    w.hw.state().responses_full = true;
    w.sends(&(1..=12).map(|i| last(1, i)).collect::<Vec<_>>());
    (0..3).for_each(|_| w.iommu.service(IOMMU));
    assert_eq!(w.hw.waiting(), 4);
    w.hw.state().responses_full = false;
    while w.hw.waiting() > 0 {
        w.iommu.service(IOMMU);
    }
    w.pass(Duration::from_millis(10));
    let c = d.counters();
    assert_eq!((c.requests, c.groups, c.unauthorised, c.invalid), (12, 12, 12, 12));
    assert_eq!(w.hw.answers().len(), 12);
}
