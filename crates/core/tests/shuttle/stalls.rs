//! Stalled transactions under random schedules: each that is held is resumed once, and none for ever.
//! The scripted hardware fails where something is resumed that it does not hold.

use super::*;
use portcullis::Verdict;

#[test]
fn transactions_stall_while_their_guard_comes_and_goes() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.soc_device(1);
        let dom = room.plain(&d);
        let (a, data) = room.attach(&dom, &d, None);
        let guard = room.enables(&dom, Verdict::Terminate).expect("it can stall");
        let device = room.spawn(move |r| r.faults(1, 0..3));
        let owner = room.spawn(move |r| {
            drop(guard);
            let again = r.enables(&dom, Verdict::Retry).expect("the first has ended");
            again.disable(&cx());
            assert!(r.hw.state().stalling.is_empty(), "it stalls no more when that returns");
        });
        owner.join();
        device.join();
        room.quiet();
        assert!(room.hw.state().held.is_empty(), "held behind its guard");
        room.detach(a, &data);
        room.close();
    });
}

/// What a decider elsewhere was given while its guard was dropped is ended with it. Few schedules meet
/// that moment.
#[test]
fn transactions_are_passed_on_while_their_guard_is_dropped() {
    explore(8 * schedules(), || {
        let room = Room::new(1);
        let d = room.soc_device(1);
        let (dom, guard, passed) = room.passes_on(&d);
        let data = Attached::new();
        let a = room.iommu.attach(&cx(), &dom, &d, None, data.clone()).expect("attached");
        let owner = room.board.spawn(move || drop(guard));
        room.faults(1, 0..1);
        owner.join();
        room.quiet();
        assert!(room.hw.state().held.is_empty(), "held behind its guard");
        for late in core::mem::take(&mut *passed.lock().unwrap()) {
            assert!(late.respond(Response::Success).is_err());
        }
        room.detach(a, &data);
        room.close();
    });
}

#[test]
fn a_deadline_a_verdict_a_detach_and_the_end_of_the_guard_at_once() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.soc_device(1);
        let dom = room.plain(&d);
        let (a, data) = room.attach(&dom, &d, None);
        let guard = room.enables(&dom, Verdict::Retry).expect("it can stall");
        let device = room.spawn(move |r| r.faults(1, 0..2));
        let clock = room.spawn(move |r| {
            r.board.pass(Duration::from_secs(2));
            r.iommu.tick();
        });
        let owner = room.board.spawn(move || drop(guard));
        let gone = room.begin_detach(a);
        {
            let hw = room.hw.state();
            assert!(hw.held.is_empty(), "held behind its detach: {:?}", hw.held);
            assert!(hw.stalling.is_empty(), "the place is left stalling");
        }
        assert_eq!(gone.wait(&cx(), None), Waited::Gone);
        data.is_gone();
        device.join();
        clock.join();
        owner.join();
        drop(gone);
        room.close();
    });
}

/// Whoever comes first, what is attached to a domain that stalls does.
#[test]
fn a_domain_is_made_to_stall_while_a_device_is_attached() {
    explore(schedules(), || {
        let room = Room::new(1);
        let d = room.soc_device(1);
        let dom = room.plain(&d);
        let domain = dom.clone();
        let other = room.spawn(move |r| {
            let guard = r.enables(&domain, Verdict::Retry).expect("it can stall");
            r.faults(1, 0..2);
            // Until the device has been attached, at least.
            r.quiet();
            assert_eq!(r.hw.state().stalling.len(), 1, "it was missed");
            drop(guard);
        });
        let (a, data) = room.attach(&dom, &d, None);
        other.join();
        room.detach(a, &data);
        room.close();
    });
}
