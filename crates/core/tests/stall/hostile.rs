//! What devices, hardware and a bad moment can do: strays, tags that come twice, records that come
//! late or not at all, a queue without room.

use super::*;
use portcullis::{Config, FaultKind, FaultRecord, Response, Scope, Subscription};
use std::time::Duration;

fn told(observer: &Subscription<Board>) -> Vec<FaultRecord> {
    std::iter::from_fn(|| observer.try_next()).map(|t| t.record).collect()
}

#[test]
fn what_nobody_decides_is_terminated_at_once() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let all = w.iommu.observe(Scope::All, 8).unwrap();
    // A stream that nobody added, a PASID that nothing is attached to, a place that does not stall.
    w.hw.reports_stall(stall(9, 1));
    w.hw.reports_stall(Stall { pasid: pasid(5), ..stall(1, 2) });
    let _a = w.attach(&w.plain(&d), &d);
    w.hw.reports_stall(stall(1, 3));
    w.iommu.service(IOMMU);
    let all_ended = [1, 2, 3].map(|n| ended(n, Verdict::Terminate));
    assert_eq!(w.hw.resumed(), all_ended);
    let kinds: Vec<_> = told(&all).iter().map(|r| (r.kind, r.reason, r.stalled)).collect();
    let dma = |reason| (FaultKind::Dma, reason, None);
    assert_eq!(kinds, [Reason::Blocked, Reason::Blocked, Reason::NotMapped].map(dma));
    assert_eq!((d.counters().stalls, d.counters().terminated), (2, 2));
    nothing_waits(&w);
}

#[test]
fn a_tag_that_comes_twice_is_resumed_once_and_may_come_again_after() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let _a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let (_guard, passed) = pass_on(&w, &dom);
    let all = w.iommu.observe(Scope::All, 8).unwrap();
    faults(&w, &[stall(1, 1)]);
    // Again, and by another requester.
    w.hw.reports_stall(Stall { address: 0x9000, ..stall(1, 1) });
    w.hw.reports_stall(stall(4, 1));
    w.iommu.service(IOMMU);
    assert_eq!((passed.lock().unwrap().len(), w.hw.resumed().len()), (1, 0));
    assert_eq!(told(&all).iter().filter(|r| r.reason == Reason::BadEntry).count(), 2);
    let first = passed.lock().unwrap().remove(0);
    // Decided and not out: still the same transaction.
    w.hw.state().resumes_full = true;
    assert_eq!(first.respond(Response::Success), Ok(()));
    w.hw.reports_stall(stall(1, 1));
    w.iommu.service(IOMMU);
    assert!(passed.lock().unwrap().is_empty() && w.hw.resumed().is_empty());
    w.hw.state().resumes_full = false;
    w.pass(Duration::from_millis(3));
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Retry)]);
    faults(&w, &[stall(1, 1)]);
    assert_eq!(passed.lock().unwrap().len(), 1, "the hardware has used the tag again");
    passed.lock().unwrap().clear();
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Retry), ended(1, Verdict::Terminate)]);
    nothing_waits(&w);
}

#[test]
fn more_than_there_is_room_for_waits_in_the_hardwares_queue() {
    let w = World::with(Config { stalls: 4, credit_reserve: 1, ..Config::default() });
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let _a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let (_guard, passed) = pass_on(&w, &dom);
    w.hw.state().resumes_full = true;
    faults(&w, &[1, 2, 3, 4, 5, 6].map(|n| stall(1, n)));
    // Three are asked about, the fourth slot has one that is terminated, the others wait.
    assert_eq!((passed.lock().unwrap().len(), w.hw.waiting()), (3, 2));
    assert_eq!(d.counters().stalls_over, 1);
    // Page requests of others have room of their own.
    let e = w.device(2);
    let served = w.served(&e);
    let _b = w.attach(&served, &e);
    w.sends(&[last(2, 1)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(2, 1, portcullis::Code::Success)]);
    w.hw.state().resumes_full = false;
    w.pass(Duration::from_millis(3));
    assert_eq!(w.hw.waiting(), 0);
    passed.lock().unwrap().clear();
    w.iommu.service(IOMMU);
    assert_eq!(w.hw.resumed().len(), 6);
    nothing_waits(&w);
}

#[test]
fn a_detach_waits_until_what_it_ends_is_out() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let (_guard, passed) = pass_on(&w, &dom);
    faults(&w, &[stall(1, 1)]);
    // One more is on its way, and comes with the drain.
    w.hw.state().held.insert(StallId(2), SourceId(1));
    w.hw.state().late_stalls.push(stall(1, 2));
    w.hw.state().resumes_full = true;
    let mut op = a.start_detach();
    for _ in 0..5 {
        assert!(op.step().is_pending());
        w.pass(Duration::from_micros(50));
    }
    assert!(passed.lock().unwrap().iter().all(|s| !s.is_pending()), "it is decided already");
    w.hw.state().resumes_full = false;
    while op.step().is_pending() {
        w.pass(Duration::from_micros(50));
    }
    let mut resumed = w.hw.resumed();
    resumed.sort_by_key(|(id, _)| *id);
    assert_eq!(resumed, [ended(1, Verdict::Terminate), ended(2, Verdict::Terminate)]);
    nothing_waits(&w);
}

#[test]
fn what_comes_during_a_reset_is_terminated_and_what_was_held_too() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let _a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let (_guard, passed) = pass_on(&w, &dom);
    faults(&w, &[stall(1, 1)]);
    // There is no room to say so at first.
    w.hw.state().resumes_full = true;
    let (hw, mut waits) = (w.hw.clone(), 0);
    w.board.on_wait(Some(Box::new(move || {
        waits += 1;
        hw.state().resumes_full = waits < 5;
    })));
    let parked = d.park(&cx()).unwrap();
    w.board.on_wait(None);
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Terminate)], "before the device is reset");
    w.hw.reports_stall(stall(1, 2));
    w.iommu.service(IOMMU);
    assert_eq!(w.hw.resumed()[1..], [ended(2, Verdict::Terminate)]);
    w.hw.state().held.insert(StallId(3), SourceId(1));
    w.hw.state().late_stalls.push(stall(1, 3));
    parked.end(&cx()).unwrap();
    assert_eq!(w.hw.resumed()[2..], [ended(3, Verdict::Terminate)]);
    faults(&w, &[stall(1, 4)]);
    assert_eq!(passed.lock().unwrap().iter().filter(|s| s.is_pending()).count(), 1, "it stalls as before");
}

#[test]
fn what_the_hardware_ended_by_itself_is_counted_and_never_resumed() {
    let w = World::new();
    let (d, e) = (soc_device(&w, 1), soc_device(&w, 2));
    let dom = user(&w, &d);
    let _a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let _b = w.iommu.attach(&cx(), &dom, &e, None, data()).unwrap();
    let (_guard, passed) = pass_on(&w, &dom);
    let all = w.iommu.observe(Scope::Device(d.id()), 8).unwrap();
    faults(&w, &[stall(1, 1), stall(1, 2), stall(2, 3)]);
    let first = passed.lock().unwrap().remove(0);
    w.hw.state().resumes_full = true;
    first.respond(Response::Success).unwrap();
    w.hw.ends_stalls(SourceId(1));
    w.hw.state().resumes_full = false;
    w.iommu.service(IOMMU);
    let second = passed.lock().unwrap().remove(0);
    assert!(second.respond(Response::Success).is_err());
    assert!(told(&all).iter().any(|r| r.kind == FaultKind::Overflow && r.source == Some(SourceId(1))));
    let others = passed.lock().unwrap().remove(0);
    others.respond(Response::Success).unwrap();
    w.pass(Duration::from_millis(3));
    assert_eq!(w.hw.resumed(), [ended(3, Verdict::Retry)]);
    assert_eq!(d.counters().stalls_lost, 2);
    nothing_waits(&w);
}

/// What a service turn files while the guard is dropped is ended by the next one.
#[test]
fn a_guard_dropped_while_a_turn_files_leaves_nothing_behind() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    let guard = decide(&w, &dom, Verdict::Retry);
    let seat = Arc::new(Mutex::new(Some(guard)));
    // The record of the stall is told when it is in its slot already, and not handed over yet.
    let mine = seat.clone();
    let drops = move |r: &FaultRecord| {
        if r.stalled.is_some() {
            drop(mine.lock().unwrap().take());
        }
    };
    let _observer = w.iommu.observe_immediate(Scope::All, drops).unwrap();
    faults(&w, &[stall(1, 1), stall(1, 2)]);
    w.pass(Duration::from_millis(1));
    w.work();
    assert!(seat.lock().unwrap().is_none());
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Terminate), ended(2, Verdict::Terminate)]);
    nothing_waits(&w);
}

#[test]
fn a_removed_device_leaves_nothing_stalled() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    let _guard = decide(&w, &dom, Verdict::Retry);
    faults(&w, &[stall(1, 1)]);
    drop(a);
    w.work();
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Terminate)]);
    assert!(w.iommu.remove_device(&cx(), d).is_ok());
    nothing_waits(&w);
}
