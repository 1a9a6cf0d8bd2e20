//! Resolvers that never sleep: called in the service turn that brings the group.

use crate::common::*;
use portcullis::{Code, Config, Deferred, Detaching, DomainOptions, Op, PageGroup, Response};
use std::{
    cell::RefCell,
    sync::{Arc, Mutex, Weak},
};

type Groups = Arc<Mutex<Vec<Deferred<Board>>>>;

fn immediate<F>(w: &World, d: &Dev, f: F) -> Dom
where
    F: Fn(&Arc<Data>, PageGroup<'_, Board>) + Send + Sync + 'static,
{
    w.iommu.external_domain_immediate(&[d], DomainOptions::default(), f).unwrap()
}

#[test]
fn an_immediate_resolver_answers_without_a_worker_and_in_order() {
    let w = World::new();
    let d = w.device(1);
    let dom = immediate(&w, &d, |_, g| {
        let odd = g.index() % 2 == 1;
        g.respond(if odd { Response::Success } else { Response::Invalid }).unwrap();
    });
    let _a = w.attach(&dom, &d);
    w.sends(&[last(1, 1), last(1, 2), last(1, 3)]);
    let codes = [Code::Success, Code::Invalid, Code::Success];
    let expected: Vec<_> = (1..).zip(codes).map(|(n, code)| sent(1, n, code)).collect();
    assert_eq!(w.hw.answers(), expected, "no worker ran");
    assert!(!w.iommu.run_one(&cx()), "and none has anything to do");
}

#[test]
fn an_immediate_resolver_passes_groups_on_and_a_detach_answers_them() {
    let w = World::new();
    let d = w.device(1);
    let groups = Groups::default();
    let keep = groups.clone();
    let dom = immediate(&w, &d, move |_, g| keep.lock().unwrap().push(g.defer()));
    let a = w.attach(&dom, &d);
    w.sends(&[last(1, 1), last(1, 2)]);
    assert_eq!(w.hw.answers(), []);
    let first = groups.lock().unwrap().remove(0);
    first.respond(Response::Success).unwrap();
    assert!(a.begin_detach(&cx()).is_gone(), "nobody is inside");
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success), sent(1, 2, Code::Invalid)]);
    let late = groups.lock().unwrap().remove(0);
    assert!(late.respond(Response::Success).is_err());
}

/// Each group answers the one before, whose charge the turn takes back when it finds no room: the next
/// group goes to a slot that is free then, not to the one that was next before.
#[test]
fn a_turn_that_looks_for_room_goes_on_where_it_found_some() {
    let w = World::with(Config { credits_per_attachment: 2, ..Config::default() });
    let d = w.device(1);
    let kept = Mutex::new(None);
    let dom = immediate(&w, &d, move |_, g| {
        if let Some(before) = kept.lock().unwrap().replace(g.defer()) {
            Deferred::respond(before, Response::Success).unwrap();
        }
    });
    let _a = w.attach(&dom, &d);
    let mut sent = 0;
    for n in [3, 2, 2, 2] {
        w.sends(&(sent + 1..=sent + n).map(|i| last(1, i)).collect::<Vec<_>>());
        sent += n;
        assert_eq!((w.hw.waiting(), d.counters().quota), (0, 0), "each of {sent} has room");
        assert_eq!(w.hw.answers().len(), usize::from(sent) - 1);
    }
}

thread_local! {
    /// A detach that the resolver steps while it is inside.
    static DETACH: RefCell<Option<Op<'static, Detaching<Board>>>> = const { RefCell::new(None) };
}

#[test]
fn what_a_service_turn_leaves_last_is_let_go_of_by_a_worker() {
    let w = World::new();
    let d = w.device(1);
    let dom = immediate(&w, &d, |_, g| {
        // Another CPU begins to detach while this one is inside.
        DETACH.with_borrow_mut(|op| assert!(op.as_mut().unwrap().step().is_pending()));
        drop(g);
    });
    let data = data();
    let seen: Weak<Data> = Arc::downgrade(&data);
    let a = w.iommu.attach(&cx(), &dom, &d, None, data).unwrap();
    w.hw.state().hold = true;
    DETACH.set(Some(a.start_detach()));
    w.sends(&[last(1, 1)]);
    assert!(seen.upgrade().is_some(), "service context lets go of nobody's data");
    w.work();
    assert!(seen.upgrade().is_none(), "a worker does");
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
    w.hw.state().hold = false;
    drop(DETACH.take());
    w.work();
}

/// However many groups a turn brings, quotas, deadlines and the arbitration of answers on: one look
/// at the clock, and no short lock but that of the list of instances.
#[test]
fn a_turn_takes_no_lock_for_a_group_and_looks_at_the_clock_once() {
    let w = World::new();
    let (d, e) = (w.device(1), w.device(2));
    let dom = immediate(&w, &d, |_, g| g.respond(Response::Success).unwrap());
    let (_a, _b) = (w.attach(&dom, &d), w.attach(&dom, &e));
    for n in [1u16, 2, 8] {
        let singles = (0..n).map(|i| last(1 + u32::from(i) % 2, i));
        let pairs = (0..n).flat_map(|i| [first(1, 100 + i, 0xa000), last(1, 100 + i)]);
        let requests: Vec<_> = singles.chain(pairs).collect();
        w.hw.sends(&requests);
        w.hw.take_log();
        let (locks, looks) = w.board.costs();
        w.iommu.service(IOMMU);
        let (locks_after, looks_after) = w.board.costs();
        assert_eq!((locks_after - locks, looks_after - looks), (1, 1), "with {n} groups");
        assert_eq!(w.hw.answers().len(), 2 * usize::from(n));
        assert!(w.hw.answers().iter().all(|a| a.code == Code::Success));
    }
}
