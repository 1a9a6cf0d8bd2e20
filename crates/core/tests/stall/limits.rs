//! Quotas, deadlines, and devices that stall too much.

use super::*;
use portcullis::{Config, DomainOptions, FaultKind, Response, Scope, StallLimit, Storms};
use std::time::Duration;

#[test]
fn what_is_over_a_quota_is_terminated_at_once_and_others_have_theirs() {
    // Of a requester, of an attachment, of an owner.
    let all = Config { stalls_per_device: 9, ..Config::default() };
    let of_device = (Config { stalls_per_device: 2, ..all }, None);
    let of_attachment = (Config { credits_per_attachment: 2, ..all }, None);
    for (config, requests) in [of_device, of_attachment, (all, Some(2))] {
        let w = World::with(Config { credit_reserve: 0, ..config });
        let (d, e) = (soc_device(&w, 1), soc_device(&w, 2));
        let options = DomainOptions { page_requests: requests, ..DomainOptions::default() };
        let dom = w.iommu.user_object_domain(&[&d], options, None::<Never>).unwrap();
        let other = user(&w, &d);
        let _a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
        let _b = w.iommu.attach(&cx(), &other, &e, None, data()).unwrap();
        let ((_one, passed), (_two, others)) = (pass_on(&w, &dom), pass_on(&w, &other));
        faults(&w, &[stall(1, 1), stall(1, 2), stall(1, 3), stall(2, 4), stall(2, 5)]);
        assert_eq!(w.hw.resumed(), [ended(3, Verdict::Terminate)], "{requests:?}");
        assert_eq!((passed.lock().unwrap().len(), others.lock().unwrap().len()), (2, 2));
        assert_eq!((d.counters().stalls_over, d.counters().terminated), (1, 1));
        // What is decided makes room again, without a search for it.
        passed.lock().unwrap().remove(0).respond(Response::Success).unwrap();
        faults(&w, &[stall(1, 6)]);
        assert_eq!(passed.lock().unwrap().len(), 2);
        passed.lock().unwrap().clear();
        others.lock().unwrap().clear();
        w.iommu.service(IOMMU);
        nothing_waits(&w);
    }
}

#[test]
fn each_has_its_own_deadline_and_page_requests_have_theirs() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let _a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let (_guard, passed) = pass_on(&w, &dom);
    let told = w.iommu.observe(Scope::Device(d.id()), 8).unwrap();
    faults(&w, &[stall(1, 1)]);
    w.pass(Duration::from_millis(600));
    faults(&w, &[stall(1, 2)]);
    w.pass(Duration::from_millis(600));
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Terminate)]);
    w.pass(Duration::from_millis(600));
    assert_eq!(w.hw.resumed()[1..], [ended(2, Verdict::Terminate)]);
    assert!(passed.lock().unwrap().drain(..).all(|late| late.respond(Response::Success).is_err()));
    let c = d.counters();
    assert_eq!((c.stalls_late, c.terminated, c.deadline), (2, 2, 0));
    let late = std::iter::from_fn(|| told.try_next()).filter(|r| r.reason == Reason::Deadline);
    assert!(late.map(|r| (r.kind, r.stalled)).eq([(FaultKind::Stall, None); 2]));
}

#[test]
fn without_a_deadline_a_verdict_may_take_for_ever() {
    let w = World::with(Config { stall_deadline: None, ..Config::default() });
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let _a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let (_guard, passed) = pass_on(&w, &dom);
    faults(&w, &[stall(1, 1)]);
    w.pass(Duration::from_secs(10_000));
    passed.lock().unwrap().remove(0).respond(Response::Success).unwrap();
    assert_eq!(w.hw.resumed(), [ended(1, Verdict::Retry)]);
}

/// A device that faults as fast as it can, every millisecond a few times.
fn storms(w: &World, tag: &mut u64, times: u32) -> u32 {
    let mut held = 0;
    for _ in 0..times {
        for _ in 0..4 {
            *tag += 1;
            held += u32::from(w.hw.stalls(stall(1, *tag)));
        }
        w.iommu.service(IOMMU);
        w.work();
        w.pass(Duration::from_millis(1));
    }
    held
}

#[test]
fn a_device_that_stalls_too_much_does_not_until_it_is_quiet() {
    let limit = StallLimit { stalls: Some(20), ..StallLimit::default() };
    let config = Config { stall_limit: limit, storms: Storms::NEVER, ..Config::default() };
    let w = World::with(config);
    let (d, e) = (soc_device(&w, 1), soc_device(&w, 2));
    let dom = w.plain(&d);
    let (_a, _b) = (w.attach(&dom, &d), w.attach(&dom, &e));
    let _guard = decide(&w, &dom, Verdict::Retry);
    let told = w.iommu.observe(Scope::Device(d.id()), 4096).unwrap();
    let mut tag = 100;
    assert_eq!(storms(&w, &mut tag, 40), 20, "from then on it is refused by the hardware");
    assert!(!w.hw.state().stalling.contains(&AT));
    let c = d.counters();
    // The one too many was terminated, all before it were decided.
    assert_eq!((c.stalls, c.retried, c.terminated, c.stall_storms), (20, 19, 1, 1));
    // Its neighbour stalls as ever.
    faults(&w, &[stall(2, 1)]);
    w.work();
    assert_eq!(w.hw.resumed().last(), Some(&ended(1, Verdict::Retry)));
    // While it goes on, it stays off.
    for _ in 0..3 {
        w.pass(Duration::from_millis(450));
        assert_eq!(storms(&w, &mut tag, 1), 0);
    }
    w.pass(Duration::from_millis(498));
    assert!(!w.hw.state().stalling.contains(&AT), "not before half a second of calm");
    w.pass(Duration::from_millis(10));
    assert!(w.hw.state().stalling.contains(&AT));
    let switches: Vec<_> = std::iter::from_fn(|| told.try_next())
        .filter(|r| r.kind == FaultKind::StallLimit)
        .map(|r| (r.source, r.code))
        .collect();
    assert_eq!(switches, [(Some(SourceId(1)), 0), (Some(SourceId(1)), 1)]);
    faults(&w, &[stall(1, 2)]);
    w.work();
    assert_eq!(w.hw.resumed().last(), Some(&ended(2, Verdict::Retry)));
}

#[test]
fn what_is_terminated_again_and_again_is_too_much_sooner() {
    let limit = StallLimit { terminated: Some(3), ..StallLimit::default() };
    let w = World::with(Config { stall_limit: limit, ..Config::default() });
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    let guard = decide(&w, &dom, Verdict::Terminate);
    for n in 1..=4 {
        faults(&w, &[stall(1, n)]);
        w.work();
    }
    assert_eq!((w.hw.resumed().len(), d.counters().stall_storms), (4, 1));
    assert!(w.hw.state().stalling.is_empty());
    // Off, a detach and another attach find it off, and a guard does not bring it back.
    assert!(!a.begin_detach(&cx()).lost());
    let _a = w.attach(&dom, &d);
    guard.disable(&cx());
    let _guard = decide(&w, &dom, Verdict::Retry);
    assert!(w.hw.state().stalling.is_empty());
    w.pass(Duration::from_millis(510));
    assert!(w.hw.state().stalling.contains(&AT));
}

#[test]
fn what_was_on_its_way_when_it_was_switched_off_is_terminated() {
    let limit = StallLimit { stalls: Some(2), ..StallLimit::default() };
    let w = World::with(Config { stall_limit: limit, ..Config::default() });
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let _a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let (_guard, passed) = pass_on(&w, &dom);
    faults(&w, &[1, 2, 3, 4].map(|n| stall(1, n)));
    assert_eq!(w.hw.resumed(), [2, 3, 4].map(|n| ended(n, Verdict::Terminate)));
    assert_eq!(passed.lock().unwrap().len(), 1, "what was asked before is still to be decided");
    passed.lock().unwrap().remove(0).respond(Response::Success).unwrap();
    assert_eq!(w.hw.resumed().last(), Some(&ended(1, Verdict::Retry)));
}
