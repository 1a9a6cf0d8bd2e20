//! The end of an attachment.

use crate::common::*;
use portcullis::error::{AlreadyAnswered, AttachError, Stale};
use portcullis::{At, Code, Config, Deferred, Platform, Response, SourceId, Waited};
use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

const AT: At = At { source: SourceId(1), pasid: None };

type Kept = Arc<Mutex<Vec<Deferred<Board>>>>;

fn keeper(w: &World, d: &Dev) -> (Dom, Kept) {
    let kept = Kept::default();
    let keeps = kept.clone();
    (w.resolved_by(d, move |_, _, g| keeps.lock().unwrap().push(g.defer())), kept)
}

#[test]
fn block_then_drain_then_answers_then_the_place_is_free() {
    let w = World::new();
    let d = w.device(1);
    let (dom, kept) = keeper(&w, &d);
    let a = w.attach(&dom, &d);
    w.sends(&[last(1, 1), last(1, 2)]);
    assert!(w.iommu.run_one(&cx()), "one is in the resolver's hands, the other waits");
    w.hw.state().in_fabric = vec![last(1, 3)];
    w.hw.take_log();
    let gone = a.begin_detach(&cx());
    let log = w.hw.take_log();
    let answer = |n| Call::Answer(sent(1, n, Code::Invalid));
    let position = |c: &Call| log.iter().position(|x| x == c).unwrap_or_else(|| panic!("{c:?} in {log:?}"));
    let order = [
        position(&Call::Block(AT)),
        position(&Call::Drain(AT)),
        position(&Call::DrainEnd(AT)),
        position(&answer(3)),
        position(&answer(1)),
        position(&answer(2)),
        log.iter().rposition(|c| *c == Call::Drain(AT)).unwrap(),
        position(&Call::Features(SourceId(1), false)),
    ];
    assert!(order.is_sorted(), "{log:?}");
    assert_eq!(log.iter().filter(|c| matches!(c, Call::Answer(_))).count(), 3, "each exactly once");
    assert!(gone.is_gone());
    let late = kept.lock().unwrap().pop().unwrap();
    assert_eq!(late.respond(Response::Success), Err(AlreadyAnswered));
    assert!(w.hw.answers().is_empty());
}

#[test]
fn what_comes_while_a_place_drains_is_invalid_and_is_out_before_the_place_is_free() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    let mut op = w.attach(&dom, &d).start_detach();
    w.hw.state().hold = true;
    assert!(op.step().is_pending());
    w.hw.state().responses_full = true;
    w.sends(&[last(1, 6)]);
    w.hw.state().hold = false;
    for _ in 0..5 {
        assert!(op.step().is_pending(), "an answer of the place is not out yet");
    }
    w.hw.state().responses_full = false;
    assert!(op.step().is_ready());
    assert_eq!(w.hw.answers(), [sent(1, 6, Code::Invalid)]);
    assert_eq!(d.counters().groups, 1);
}

#[test]
fn begin_detach_does_not_wait_for_a_sleeping_resolver_and_wait_has_a_deadline() {
    let w = World::new();
    let d = w.device(1);
    let (slept, held) = (w.board.event(), data());
    let board = w.board.clone();
    let woken = Arc::new(AtomicBool::new(false));
    let woke = woken.clone();
    let dom = w.resolved_by(&d, move |cx, data, g| {
        let seen = board.seen(&slept);
        board.wait(cx, &slept, seen, Some(board.now() + Duration::from_secs(5)));
        assert_eq!(Arc::strong_count(data), 2, "the data outlives the handler");
        woke.store(true, SeqCst);
        assert_eq!(g.respond(Response::Success), Err(AlreadyAnswered));
    });
    let a = w.iommu.attach(&cx(), &dom, &d, None, held.clone()).unwrap();
    w.sends(&[last(1, 1)]);
    // Another CPU detaches while the resolver sleeps.
    let (mut a, asleep, weak) = (Some(a), woken.clone(), Arc::downgrade(&held));
    let watch: Arc<Mutex<Option<portcullis::Detaching<Board>>>> = Arc::default();
    let (seen, other) = (watch.clone(), Mutex::new(held));
    let board = w.board.clone();
    w.board.on_wait(Some(Box::new(move || {
        let Some(a) = a.take() else { return };
        let gone = a.begin_detach(&cx());
        assert!(!asleep.load(SeqCst) && !gone.is_gone(), "the resolver still runs");
        let soon = board.now() + Duration::from_millis(3);
        assert_eq!(gone.wait(&cx(), Some(soon)), Waited::StillRunning);
        assert!(board.now() >= soon && board.now().0 < soon.0 + 10_000);
        *seen.lock().unwrap() = Some(gone);
        let _ = &other;
    })));
    w.work();
    let gone = watch.lock().unwrap().take().expect("detached");
    assert!(woken.load(SeqCst));
    assert_eq!(gone.wait(&cx(), None), Waited::Gone);
    w.board.on_wait(None);
    assert!(weak.upgrade().is_none(), "the core let go of the data");
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
}

#[test]
fn a_resolver_detaches_itself_by_key() {
    let w = World::new();
    let d = w.device(1);
    let iommu = w.iommu.clone();
    let outcome: Arc<Mutex<Vec<Waited>>> = Arc::default();
    let (told, late) = (outcome.clone(), Arc::new(Mutex::new(None)));
    let keeps = late.clone();
    let dom = w.resolved_by(&d, move |cx, _, g| {
        let key = g.attachment();
        let gone = iommu.begin_detach_by_key(cx, key).expect("still attached");
        told.lock().unwrap().push(gone.wait(cx, None));
        assert!(!gone.is_gone());
        assert_eq!(g.respond(Response::Success), Err(AlreadyAnswered));
        assert_eq!(iommu.begin_detach_by_key(cx, key).err(), Some(Stale(key)));
        *keeps.lock().unwrap() = Some(gone);
    });
    let a = w.attach(&dom, &d);
    w.sends(&[last(1, 1)]);
    w.work();
    assert_eq!(*outcome.lock().unwrap(), [Waited::InsideResolver]);
    assert!(late.lock().unwrap().take().unwrap().is_gone(), "gone when it returned");
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
    let key = a.key();
    assert!(a.begin_detach(&cx()).is_gone(), "the owner finds it detached");
    assert_eq!(w.iommu.begin_detach_by_key(&cx(), key).err(), Some(Stale(key)));
    let _again = w.attach(&w.plain(&d), &d);
}

#[test]
fn a_resolver_may_detach_itself_before_attach_has_returned() {
    let w = World::new();
    let d = w.device(1);
    let _pri_is_on = w.iommu.attach(&cx(), &w.served(&d), &d, pasid(1), data()).unwrap();
    let iommu = w.iommu.clone();
    let ran = Arc::new(AtomicU32::new(0));
    let count = ran.clone();
    let dom = w.resolved_by(&d, move |cx, _, g| {
        count.fetch_add(1, SeqCst);
        let gone = iommu.begin_detach_by_key(cx, g.attachment()).expect("its key is known");
        assert_eq!(gone.wait(cx, None), Waited::InsideResolver);
    });
    w.hw.state().hold = true;
    let mut op = w.iommu.start_attach(&dom, &d, None, data());
    assert!(op.step().is_pending());
    w.sends(&[last(1, 1)]);
    w.hw.state().hold = false;
    let worker = w.iommu.clone();
    w.board.on_next_kick(move || assert!(worker.run_one(&cx())));
    let Poll::Ready(Ok(a)) = op.step() else { panic!("attached") };
    assert_eq!(ran.load(SeqCst), 1, "before the attach returned");
    assert_eq!(w.hw.entry(AT), None);
    assert!(a.begin_detach(&cx()).is_gone(), "its owner finds it detached");
}

#[test]
fn a_request_during_attach_waits_for_the_resolver() {
    let w = World::new();
    let d = w.device(1);
    // Page requests are on already, through a PASID.
    let other = w.iommu.attach(&cx(), &w.served(&d), &d, pasid(1), data()).unwrap();
    let dom = w.served(&d);
    w.hw.state().hold = true;
    let mut op = w.iommu.start_attach(&dom, &d, None, data());
    assert!(op.step().is_pending());
    assert!(w.hw.entry(AT).is_some(), "committed, and its invalidation is under way");
    w.sends(&[last(1, 1)]);
    w.work();
    assert!(w.hw.answers().is_empty(), "neither refused nor resolved yet");
    w.hw.state().hold = false;
    let Poll::Ready(Ok(a)) = op.step() else { panic!("attached") };
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success)]);
    drop((a, other));
}

#[test]
fn an_attach_that_is_given_up_is_detached_by_the_reaper() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    w.map(&dom, 0x1000);
    let held = data();
    for steps in 0..6 {
        w.hw.state().hold = true;
        let mut op = w.iommu.start_attach(&dom, &d, None, held.clone());
        for n in 0..steps {
            // One piece of work completes between steps.
            w.hw.state().hold = n == 0;
            let ready = op.step();
            w.hw.state().hold = true;
            if ready.is_ready() {
                break;
            }
        }
        drop(op);
        w.hw.state().hold = false;
        w.work();
        assert_eq!(w.hw.entry(AT), None, "given up after {steps} steps");
        assert!(dom.is_unused(), "given up after {steps} steps");
        assert_eq!(Arc::strong_count(&held), 1, "given up after {steps} steps");
        assert!(w.hw.state().images.is_empty());
        let whole = w.attach(&dom, &d);
        w.sends(&[last(1, 1)]);
        w.work();
        assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success)]);
        drop(whole.begin_detach(&cx()));
        w.hw.take_log();
    }
}

#[test]
fn a_detach_that_is_given_up_is_ended_by_the_reaper() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    let other = w.iommu.attach(&cx(), &dom, &d, pasid(1), data()).unwrap();
    for steps in 0..12 {
        let held = data();
        let a = w.iommu.attach(&cx(), &dom, &d, None, held.clone()).unwrap();
        let mut op = a.start_detach();
        for _ in 0..steps {
            w.hw.state().hold = true;
            let ready = op.step().is_ready();
            w.hw.state().hold = false;
            if ready {
                break;
            }
            let hw = w.hw.clone();
            hw.state().full = 1;
        }
        drop(op);
        w.work();
        assert_eq!(w.hw.entry(AT), None);
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(w.hw.entry(At { source: SourceId(1), pasid: pasid(1) }).is_some(), "the neighbour stands");
        assert!(d.features().pri, "the neighbour still needs them");
    }
    drop(other.begin_detach(&cx()));
    assert!(dom.is_unused() && !d.features().pri);
}

#[test]
fn a_dropped_attachment_is_detached_by_a_worker() {
    let w = World::new();
    let d = w.device(1);
    let (dom, kept) = keeper(&w, &d);
    let held = data();
    let a = w.iommu.attach(&cx(), &dom, &d, None, held.clone()).unwrap();
    w.sends(&[last(1, 1)]);
    w.work();
    w.hw.take_log();
    let kicks = w.board.kicks();
    let key = a.key();
    drop(a);
    assert!(w.hw.take_log().is_empty(), "a drop never waits, nor touches hardware");
    assert!(w.board.kicks() > kicks, "it wakes a worker");
    assert_eq!(w.iommu.begin_detach_by_key(&cx(), key).err(), Some(Stale(key)));
    assert_eq!(w.iommu.load().waiting, 1);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
    assert_eq!(w.hw.entry(AT), None);
    assert_eq!(Arc::strong_count(&held), 1);
    drop(kept);
}

#[test]
fn a_forgotten_attachment_frees_nothing_that_the_device_can_reach() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    w.map(&dom, 0x1000);
    core::mem::forget(w.attach(&dom, &d));
    let frames = w.board.frames();
    drop(dom);
    w.work();
    assert_eq!(w.board.frames(), frames);
}

#[test]
fn data_is_dropped_in_sleepable_context_before_gone() {
    struct Tells(Mutex<Option<Box<dyn Fn() + Send>>>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.lock().unwrap().as_ref().unwrap()();
        }
    }
    let w = World::new();
    let d = w.device(1);
    let dropped = Arc::new(AtomicBool::new(false));
    let tell = dropped.clone();
    let board = w.board.clone();
    let data = Arc::new(Tells(Mutex::new(Some(Box::new(move || {
        // Waiting is allowed here: no short lock is held.
        let e = board.event();
        board.wait(&cx(), &e, board.seen(&e), Some(board.now() + Duration::from_nanos(1)));
        tell.store(true, SeqCst);
    })))));
    let weak: Weak<Tells> = Arc::downgrade(&data);
    type Never = fn(&portcullis::Sleep<'_>, &Arc<Tells>, portcullis::PageGroup<'_, Board>);
    let dom: portcullis::Domain<Board, portcullis::External<Tells>> =
        w.iommu.external_domain(&[&d], Default::default(), None::<Never>).unwrap();
    let a = w.iommu.attach(&cx(), &dom, &d, None, data).unwrap();
    assert_eq!(weak.strong_count(), 1);
    let gone = a.begin_detach(&cx());
    assert!(gone.is_gone() && dropped.load(SeqCst));
}

#[test]
fn a_drain_whose_queue_was_full_is_repeated_however_often() {
    let w = World::new();
    let d = w.device(1);
    let a = w.attach(&w.served(&d), &d);
    w.hw.state().drain_again = 1000;
    let gone = a.begin_detach(&cx());
    assert!(!gone.lost(), "others' requests are no reason to give the hardware up");
    let drains = w.hw.take_log().iter().filter(|c| **c == Call::Drain(AT)).count();
    assert!(drains > 1000);
}

#[test]
fn a_detach_ends_when_the_hardware_never_takes_an_answer() {
    let patience = Duration::from_millis(200);
    let w = World::with(Config { group_deadline: None, hardware_deadline: patience, ..Config::default() });
    let d = w.device(1);
    let (dom, _kept) = keeper(&w, &d);
    w.map(&dom, 0x1000);
    let a = w.attach(&dom, &d);
    w.sends(&[last(1, 1)]);
    w.work();
    w.hw.state().responses_full = true;
    let start = w.board.now();
    let gone = a.begin_detach(&cx());
    assert!(gone.lost());
    let took = w.board.now().since(start);
    assert!(took >= patience && took < patience * 2);
    let frames = w.board.frames();
    drop(dom);
    assert_eq!(w.board.frames(), frames, "lost hardware may walk the tables for ever");
}

#[test]
fn shutdown_ends_every_wait_and_frees_nothing_early() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    w.map(&dom, 0x1000);
    let a = w.attach(&dom, &d);
    w.hw.state().hold = true;
    w.board.shut_down(true);
    let gone = a.begin_detach(&cx());
    assert_eq!(gone.wait(&cx(), None), Waited::Shutdown);
    w.work();
    let frames = w.board.frames();
    drop(dom);
    assert_eq!(w.board.frames(), frames);
    let again = w.iommu.attach(&cx(), &w.plain(&d), &d, None, data()).err();
    assert!(matches!(again, Some(AttachError::Shutdown | AttachError::Occupied(_))), "{again:?}");
}

#[test]
fn detach_and_attach_by_steps_need_no_thread() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    w.hw.state().full = 2;
    let mut op = w.iommu.start_attach(&dom, &d, None, data());
    let a = loop {
        if let Poll::Ready(r) = op.step() {
            break r.unwrap();
        }
        w.iommu.service(IOMMU);
    };
    w.sends(&[last(1, 1)]);
    w.work();
    let mut op = a.start_detach();
    let gone = loop {
        if let Poll::Ready(r) = op.step() {
            break r;
        }
        w.iommu.service(IOMMU);
    };
    assert!(gone.is_gone() && !gone.lost());
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success)]);
}

#[test]
fn only_one_of_two_detaches_of_one_attachment_works() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    let key = a.key();
    w.hw.state().hold = true;
    let mut first = a.start_detach();
    assert!(first.step().is_pending());
    assert_eq!(w.iommu.begin_detach_by_key(&cx(), key).err(), Some(Stale(key)));
    w.hw.state().hold = false;
    assert!(first.step().is_ready());
    assert_eq!(w.hw.take_log().iter().filter(|c| **c == Call::Block(AT)).count(), 1);
}

/// Attachments come and go while every worker sleeps. What waits for a worker after its detach
/// keeps its place, so that the queue never grows: service context must not allocate.
#[test]
fn what_waits_for_a_worker_counts_as_an_attachment() {
    let w = World::with(Config { attachments: 3, ..Config::default() });
    let d = w.device(1);
    let dom = w.served(&d);
    for n in 0..3 {
        let a = w.attach(&dom, &d);
        let key = a.key();
        w.sends(&[last(1, n)]);
        assert!(a.begin_detach(&cx()).is_gone());
        assert_eq!(w.iommu.begin_detach_by_key(&cx(), key).err(), Some(Stale(key)));
    }
    assert_eq!(w.iommu.load().waiting, 3);
    let refused = w.iommu.attach(&cx(), &dom, &d, None, data());
    assert!(matches!(refused, Err(AttachError::TooMany(id)) if id == d.id()));
    w.work();
    assert_eq!(w.iommu.load().waiting, 0);
    let _a = w.attach(&dom, &d);
    assert_eq!(w.hw.answers(), (0..3).map(|n| sent(1, n, Code::Invalid)).collect::<Vec<_>>());
}
