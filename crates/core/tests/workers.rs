//! Resolvers that take their time, and who waits for them.

use crate::common::*;
use portcullis::driver::PageRequest;
use portcullis::{Config, Load, Response};
use std::sync::{Arc, Mutex};

/// The groups that resolvers began with, by index, and the load at the time.
type Begun = Arc<Mutex<Vec<(u16, Load)>>>;

fn with_pasid(n: u32, r: PageRequest) -> PageRequest {
    PageRequest { pasid: pasid(n), ..r }
}

/// A domain whose resolvers hand their worker's stack to the next one, `depth` deep: so many
/// workers. What began is written down, with the load that was seen then.
fn nested(w: &World, device: &Dev, depth: u32) -> (Dom, Begun) {
    let begun = Begun::default();
    let (seen, iommu) = (begun.clone(), w.iommu.clone());
    let dom = w.resolved_by(device, move |_, _, g| {
        let index = g.index();
        seen.lock().unwrap().push((index, iommu.load()));
        if iommu.load().running < depth {
            iommu.run_one(&cx());
        }
        g.respond(Response::Success).unwrap();
    });
    (dom, begun)
}

#[test]
fn a_device_takes_no_more_than_its_share_of_the_workers() {
    let w = World::with(Config { workers_per_device: 2, ..Config::default() });
    let (greedy, other) = (w.device(1), w.device(2));
    let (dom, begun) = nested(&w, &greedy, 4);
    let attach = |d, n| w.iommu.attach(&cx(), &dom, d, pasid(n), data()).unwrap();
    let _held: Vec<Att> = (1..=4).map(|n| attach(&greedy, n)).collect();
    let _other = w.attach(&dom, &other);
    // Its four attachments all ask before the other device does.
    w.sends(&(1..=4).map(|n| with_pasid(n, last(1, n as u16))).collect::<Vec<_>>());
    w.sends(&[last(2, 9)]);
    assert_eq!(w.iommu.load(), Load { running: 0, waiting: 5, held_back: 0 });
    assert!(w.iommu.run_one(&cx()));
    let order: Vec<_> = begun.lock().unwrap().iter().map(|(index, _)| *index).collect();
    assert_eq!(order, [1, 9, 2], "the other device has the second turn, and nobody the fourth worker");
    let (_, load) = begun.lock().unwrap()[2];
    assert_eq!(load, Load { running: 3, waiting: 2, held_back: 1 });
    w.work();
    assert_eq!(begun.lock().unwrap().len(), 5);
    assert_eq!(w.iommu.load(), Load { running: 0, waiting: 0, held_back: 0 });
}

#[test]
fn a_resolver_that_panics_gives_its_turn_back() {
    let w = World::with(Config { workers_per_device: 1, ..Config::default() });
    let d = w.device(1);
    let dom = w.resolved_by(&d, |_, data, g| {
        let mut told = data.lock().unwrap_or_else(|e| e.into_inner());
        told.push(String::new());
        assert!(told.len() > 1, "a resolver's own fault");
        g.respond(Response::Success).unwrap();
    });
    let _a = w.attach(&dom, &d);
    w.sends(&[last(1, 1), last(1, 2)]);
    let worker = std::panic::AssertUnwindSafe(|| w.work());
    assert!(std::panic::catch_unwind(worker).is_err());
    w.work();
    assert_eq!(w.hw.answers().len(), 2);
}

/// A worker that works in a row goes on with an attachment's groups, but not while others wait.
#[test]
fn a_worker_goes_on_with_an_attachment_while_nobody_else_waits() {
    let w = World::new();
    let (busy, other) = (w.device(1), w.device(2));
    let (dom, begun) = nested(&w, &busy, 0);
    let (_a, _b) = (w.attach(&dom, &busy), w.attach(&dom, &other));
    w.sends(&[last(1, 1), last(1, 2), last(1, 3), last(2, 9)]);
    let mut order = Vec::new();
    while w.iommu.run(&cx()) {
        order.push(begun.lock().unwrap().drain(..).map(|(index, _)| index).collect::<Vec<_>>());
    }
    assert_eq!(order, [vec![1], vec![9], vec![2, 3]]);
}

/// What waits for a resolver that detaches its own attachment meanwhile is not handed to it.
#[test]
fn a_worker_does_not_go_on_with_an_attachment_that_is_closed() {
    let w = World::new();
    let d = w.device(1);
    let begun = Begun::default();
    let (seen, iommu) = (begun.clone(), w.iommu.clone());
    let dom = w.resolved_by(&d, move |cx, _, g| {
        seen.lock().unwrap().push((g.index(), iommu.load()));
        let detaching = iommu.begin_detach_by_key(cx, g.attachment()).unwrap();
        assert!(g.respond(Response::Success).is_err(), "the detach has answered");
        drop(detaching);
    });
    let _a = w.attach(&dom, &d);
    w.sends(&[last(1, 1), last(1, 2)]);
    while w.iommu.run(&cx()) {}
    assert_eq!(begun.lock().unwrap().len(), 1);
    assert_eq!(w.hw.answers().len(), 2);
}
