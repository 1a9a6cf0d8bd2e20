//! Page requests: from the hardware's queue to the one answer of each group.

use crate::common::*;
use portcullis::driver::PageRequest;
use portcullis::error::AlreadyAnswered;
use portcullis::{Code, Config, Deferred, Platform, Reason, Response, Scope};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

type Kept = Arc<Mutex<Vec<Deferred<Board>>>>;

/// A device attached to a domain whose resolver keeps every group.
fn kept(w: &World) -> (Dev, Dom, Att, Kept) {
    let d = w.device(1);
    let kept = Kept::default();
    let keeps = kept.clone();
    let dom = w.resolved_by(&d, move |_, _, g| keeps.lock().unwrap().push(g.defer()));
    let a = w.attach(&dom, &d);
    w.hw.take_log();
    (d, dom, a, kept)
}

fn with_pasid(n: u32, r: PageRequest) -> PageRequest {
    PageRequest { pasid: pasid(n), ..r }
}

#[test]
fn a_group_arrives_whole_and_in_order() {
    let w = World::new();
    let (d, _dom, _a, kept) = kept(&w);
    w.sends(&[first(1, 9, 0xa000), first(1, 9, 0xb000), last(1, 9)]);
    w.work();
    let g = kept.lock().unwrap().pop().unwrap();
    assert_eq!((g.len(), g.index(), g.device(), g.pasid()), (3, 9, d.id(), None));
    let addresses: Vec<u64> = g.requests().map(|r| r.address).collect();
    assert_eq!(addresses, [0xa000, 0xb000, 0x9000]);
    assert_eq!(g.request(3), None);
    g.respond(Response::Success).unwrap();
    assert_eq!(w.hw.answers(), [sent(1, 9, Code::Success)], "one answer for the group");
    let c = d.counters();
    assert_eq!((c.requests, c.groups, c.success, c.invalid), (3, 1, 1, 0));
}

#[test]
fn the_same_index_of_different_pasids_does_not_mix() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    let (one, two) = (data(), data());
    let _a = w.iommu.attach(&cx(), &dom, &d, pasid(1), one.clone()).unwrap();
    let _b = w.iommu.attach(&cx(), &dom, &d, pasid(2), two.clone()).unwrap();
    w.sends(&[
        with_pasid(1, first(1, 5, 0xa000)),
        with_pasid(2, first(1, 5, 0xb000)),
        with_pasid(2, last(1, 5)),
        with_pasid(1, last(1, 5)),
    ]);
    w.work();
    assert_eq!(*one.lock().unwrap(), ["a000,5000"]);
    assert_eq!(*two.lock().unwrap(), ["b000,5000"]);
}

#[test]
fn a_group_that_is_dropped_is_invalid_and_a_late_answer_is_told() {
    let w = World::with(Config { group_deadline: Some(Duration::from_secs(2)), ..Config::default() });
    let (d, _dom, _a, kept) = kept(&w);
    w.sends(&[last(1, 1), last(1, 2)]);
    w.work();
    drop(kept.lock().unwrap().remove(0));
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
    let observer = w.iommu.observe(Scope::All, 8).unwrap();
    w.pass(Duration::from_secs(3));
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid), sent(1, 2, Code::Invalid)]);
    assert_eq!(observer.try_next().map(|r| (r.reason, r.device)), Some((Reason::Deadline, Some(d.id()))));
    let late = kept.lock().unwrap().pop().unwrap();
    assert_eq!(late.request(0), None, "it is somebody else's slot by now");
    assert_eq!(late.respond(Response::Success), Err(AlreadyAnswered));
    assert_eq!(w.hw.answers().len(), 2);
    assert_eq!((d.counters().deadline, d.counters().invalid), (1, 2));
}

#[test]
fn an_early_timer_does_not_swallow_the_next_deadline() {
    let w = World::with(Config { group_deadline: Some(Duration::from_secs(2)), ..Config::default() });
    let (_d, _dom, _a, _kept) = kept(&w);
    w.sends(&[last(1, 1)]);
    w.work();
    // Somebody else's timer replaces ours, fires, and finds nothing to do.
    w.board.timer_at(w.board.now() + Duration::from_micros(1));
    w.pass(Duration::from_millis(1));
    assert!(w.hw.answers().is_empty());
    w.pass(Duration::from_secs(3));
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
}

#[test]
fn partial_groups_end_at_their_deadline() {
    let w = World::new();
    let (d, _dom, _a, _kept) = kept(&w);
    let full: Vec<_> = (0..8).map(|i| first(1, i, 0x1000)).collect();
    w.sends(&full);
    w.sends(&[last(1, 9)]);
    assert_eq!(w.hw.answers(), [sent(1, 9, Code::Invalid)], "the share is used up");
    w.pass(Duration::from_secs(2));
    assert_eq!(d.counters().partials_dropped, 8);
    w.sends(&[last(1, 10)]);
    w.work();
    assert_eq!(w.hw.answers().len(), 1, "it waits for the resolver's answer");
}

#[test]
fn an_overflow_drops_partial_groups_and_tells() {
    let w = World::new();
    let (d, _dom, _a, kept) = kept(&w);
    let observer = w.iommu.observe(Scope::Instance(IOMMU), 8).unwrap();
    w.sends(&[first(1, 1, 0xa000)]);
    w.hw.overflows();
    w.iommu.service(IOMMU);
    assert_eq!(d.counters().partials_dropped, 1);
    assert_eq!(observer.try_next().map(|r| r.reason), Some(Reason::QueueOverflow));
    w.sends(&[last(1, 1)]);
    w.work();
    assert_eq!(kept.lock().unwrap()[0].len(), 1);
}

#[test]
fn a_device_over_its_share_is_refused_and_an_answer_makes_room() {
    let w = World::new();
    let (d, _dom, _a, kept) = kept(&w);
    let observer = w.iommu.observe(Scope::Device(d.id()), 8).unwrap();
    w.sends(&(1..=9).map(|i| last(1, i)).collect::<Vec<_>>());
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 9, Code::Invalid)]);
    assert_eq!(observer.try_next().map(|r| r.reason), Some(Reason::Quota));
    assert_eq!(d.counters().quota, 1);
    let g = kept.lock().unwrap().remove(0);
    g.respond(Response::Success).unwrap();
    w.sends(&[last(1, 10)]);
    w.work();
    assert_eq!(kept.lock().unwrap().len(), 8, "the tenth reached the resolver");
}

#[test]
fn a_decided_answer_no_longer_counts_against_the_share() {
    let w = World::new();
    let (d, _dom, _a, kept) = kept(&w);
    w.sends(&(1..=8).map(|i| last(1, i)).collect::<Vec<_>>());
    w.work();
    w.hw.state().responses_full = true;
    kept.lock().unwrap().remove(0).respond(Response::Success).unwrap();
    w.sends(&[last(1, 9)]);
    assert_eq!(d.counters().quota, 0, "the device may ask again as soon as it can see the answer");
}

#[test]
fn a_group_with_a_refused_request_is_invalid_as_a_whole() {
    let w = World::new();
    let (d, _dom, _a, kept) = kept(&w);
    w.sends(&[first(1, 1, 0xa000)]);
    w.hw.sends_malformed(first(1, 1, 0xb000));
    w.sends(&[last(1, 1)]);
    w.work();
    assert!(kept.lock().unwrap().is_empty());
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
    assert_eq!(d.counters().malformed, 1);
}

#[test]
fn malformed_and_unauthorised_last_requests_are_invalid_and_reach_nobody() {
    let w = World::new();
    let (d, _dom, _a, kept) = kept(&w);
    let observer = w.iommu.observe(Scope::All, 16).unwrap();
    w.hw.sends_malformed(last(1, 1));
    let idle = w.device(2);
    w.sends(&[last(2, 2), last(77, 3), with_pasid(4, last(1, 4)), first(77, 5, 0)]);
    w.work();
    assert!(kept.lock().unwrap().is_empty());
    let mut four = sent(1, 4, Code::Invalid);
    four.pasid = pasid(4);
    let expected = [sent(1, 1, Code::Invalid), sent(2, 2, Code::Invalid), sent(77, 3, Code::Invalid), four];
    assert_eq!(w.hw.answers(), expected);
    let told: Vec<_> = core::iter::from_fn(|| observer.try_next()).map(|r| (r.reason, r.device)).collect();
    let expected = [
        (Reason::BadEntry, Some(d.id())),
        (Reason::RequestType, Some(idle.id())),
        (Reason::Blocked, None),
        (Reason::Blocked, Some(d.id())),
        (Reason::Blocked, None),
    ];
    assert_eq!(told, expected);
    assert_eq!((d.counters().malformed, idle.counters().unauthorised), (1, 1));
}

#[test]
fn full_response_queue_answers_go_out_later_once() {
    let w = World::new();
    let (_d, _dom, _a, kept) = kept(&w);
    w.sends(&[last(1, 1), last(1, 2)]);
    w.work();
    w.hw.state().responses_full = true;
    for g in kept.lock().unwrap().drain(..) {
        g.respond(Response::Success).expect("decided, though not sent");
    }
    assert!(w.hw.answers().is_empty());
    w.hw.state().responses_full = false;
    // No interrupt announces room: the core asked for a turn itself.
    w.pass(Duration::from_millis(1));
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success), sent(1, 2, Code::Success)]);
    w.pass(Duration::from_secs(60));
    assert_eq!(w.hw.answers().len(), 2);
}

#[test]
fn no_room_leaves_requests_in_the_hardware_queue_and_loses_none() {
    // Four groups can wait for an answer.
    let w = World::made(Config { credit_reserve: 1, ..Config::default() }, 4);
    w.hw.state().responses_full = true;
    w.sends(&(1..=6).map(|i| last(77, i)).collect::<Vec<_>>());
    assert_eq!(w.hw.waiting(), 2);
    w.hw.state().responses_full = false;
    w.pass(Duration::from_millis(1));
    assert_eq!(w.hw.waiting(), 0);
    assert_eq!(w.hw.answers(), (1..=6).map(|i| sent(77, i, Code::Invalid)).collect::<Vec<_>>());
}

#[test]
fn a_reserve_of_nothing_still_leaves_a_slot_for_the_unauthorised() {
    let w = World::made(Config { credit_reserve: 0, group_deadline: None, ..Config::default() }, 8);
    let (_d, _dom, _a, kept) = kept(&w);
    w.sends(&(1..=8).map(|i| last(1, i)).collect::<Vec<_>>());
    w.work();
    assert_eq!(kept.lock().unwrap().len(), 7);
    w.sends(&[last(77, 9)]);
    assert_eq!(w.hw.waiting(), 0, "it does not wait behind a resolver");
}

#[test]
fn a_turn_is_bounded_and_another_follows() {
    let w = World::with(Config { turn_budget: 4, ..Config::default() });
    w.sends(&(1..=10).map(|i| last(77, i)).collect::<Vec<_>>());
    assert_eq!(w.hw.answers().len(), 4);
    w.pass(Duration::from_micros(11));
    assert_eq!(w.hw.answers().len(), 8);
    w.pass(Duration::from_micros(11));
    assert_eq!(w.hw.answers().len(), 10);
}

#[test]
fn an_attachment_occupies_one_worker_and_another_is_served_meanwhile() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let (iommu, depth) = (w.iommu.clone(), Arc::new(AtomicU32::new(0)));
    let seen = depth.clone();
    let dom = w.resolved_by(&d, move |_, data, g| {
        // While this worker sits here, a second one looks for work.
        seen.fetch_add(1, SeqCst);
        assert_eq!(iommu.load().running, seen.load(SeqCst));
        data.lock().unwrap().push(format!("in {:?}", g.index()));
        while iommu.run_one(&cx()) {}
        data.lock().unwrap().push(format!("out {:?}", g.index()));
        seen.fetch_sub(1, SeqCst);
        g.respond(Response::Success).unwrap();
    });
    let (one, two) = (data(), data());
    let _a = w.iommu.attach(&cx(), &dom, &d, None, one.clone()).unwrap();
    let _b = w.iommu.attach(&cx(), &dom, &e, None, two.clone()).unwrap();
    w.sends(&[last(1, 1), last(1, 2), last(2, 3)]);
    assert_eq!(w.iommu.load().waiting, 2, "each attachment waits once");
    w.work();
    let nested: Vec<String> = one.lock().unwrap().clone();
    assert_eq!(nested, ["in 1", "out 1", "in 2", "out 2"], "never two at once");
    assert_eq!(*two.lock().unwrap(), ["in 3", "out 3"]);
    assert_eq!(
        w.hw.answers()[0],
        sent(2, 3, Code::Success),
        "served while the first one's resolver sat there"
    );
    assert_eq!(w.iommu.load(), portcullis::Load { running: 0, waiting: 0, held_back: 0 });
}

#[test]
fn a_resolver_that_panics_hangs_nothing() {
    let w = World::new();
    let d = w.device(1);
    let runs = AtomicU32::new(0);
    let dom = w.resolved_by(&d, move |_, _, g| {
        if runs.fetch_add(1, SeqCst) == 0 {
            panic!("a resolver's own fault");
        }
        g.respond(Response::Success).unwrap();
    });
    let a = w.attach(&dom, &d);
    w.sends(&[last(1, 1), last(1, 2)]);
    let worker = std::panic::AssertUnwindSafe(|| w.work());
    assert!(std::panic::catch_unwind(worker).is_err());
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
    w.work();
    assert_eq!(w.hw.answers()[1..], [sent(1, 2, Code::Success)]);
    assert_eq!(w.iommu.load().running, 0);
    assert!(a.begin_detach(&cx()).is_gone());
}

#[test]
fn a_deferred_group_outlives_neither_its_attachment_nor_its_device() {
    let w = World::new();
    let (d, _dom, a, kept) = kept(&w);
    w.sends(&[last(1, 1)]);
    w.work();
    drop(a.begin_detach(&cx()));
    w.iommu.remove_device(&cx(), d).map_err(|(_, e)| e).unwrap();
    let g = kept.lock().unwrap().pop().unwrap();
    assert_eq!(g.respond(Response::Success), Err(AlreadyAnswered));
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
}

#[test]
fn a_request_that_wants_an_answer_of_its_own_gets_one_and_leaves_its_group_alone() {
    let w = World::new();
    let (_d, _dom, a, kept) = kept(&w);
    let own = PageRequest { own_answer: true, ..first(1, 9, 0xb000) };
    w.sends(&[first(1, 9, 0xa000), own, last(1, 9), own]);
    w.work();
    let lens: Vec<usize> = kept.lock().unwrap().iter().map(|g| g.len()).collect();
    assert_eq!(lens, [1, 2, 1], "alone, then the first and the last, then alone");
    kept.lock().unwrap().remove(0).respond(Response::Success).unwrap();
    assert_eq!(w.hw.answers(), [sent(1, 9, Code::Success)]);
    drop(a.begin_detach(&cx()));
    let answers = [Code::Success, Code::Invalid, Code::Invalid].map(|code| sent(1, 9, code));
    assert_eq!(w.hw.answers(), answers, "a detach answers each of the others once");
}
