//! What the fault path costs in read-modify-writes, each of which costs as much as a lock: counted in
//! the words that cores share, quotas, deadlines and the arbitration of answers on.

use crate::common::*;
use portcullis::{DomainOptions, PageGroup, Response, driver::PageRequest};
use portcullis_sync::hook::{self, Op};
use std::{cell::Cell, sync::Arc};

thread_local! {
    static UPDATES: Cell<u32> = const { Cell::new(0) };
}

fn count(op: Op) {
    if op == Op::Update {
        UPDATES.set(UPDATES.get() + 1);
    }
}

/// Read-modify-writes that `f` does on this thread.
fn updates(f: impl FnOnce()) -> u32 {
    hook::register(count);
    let before = UPDATES.get();
    f();
    UPDATES.get() - before
}

fn world() -> (World, Dev) {
    let w = World::new();
    let d = w.device(1);
    (w, d)
}

fn immediate(w: &World, d: &Dev) -> Att {
    let yes = |_: &Arc<Data>, g: PageGroup<'_, Board>| g.respond(Response::Success).unwrap();
    let dom = w.iommu.external_domain_immediate(&[d], DomainOptions::default(), yes).unwrap();
    w.attach(&dom, d)
}

/// A turn over requests that were taken before it begins.
fn turn(w: &World, requests: &[PageRequest]) -> u32 {
    w.hw.take_log();
    w.hw.sends(requests);
    updates(|| w.iommu.service(IOMMU))
}

const FIRST: u32 = 1;

fn singles(n: u16) -> Vec<PageRequest> {
    (0..n).map(|i| last(1, i)).collect()
}

fn group(len: u16) -> Vec<PageRequest> {
    let firsts = (1..u64::from(len)).map(|n| first(FIRST, 1, n << 12));
    firsts.chain([last(FIRST, 1)]).collect()
}

/// Two for a group: its answer is decided, and taken to be sent. Four for a turn: it begins, goes in to
/// the attachment, out, and ends. So a turn with a single group has six.
#[test]
fn a_group_of_one_costs_six_updates_and_the_next_one_in_a_turn_two() {
    let (w, d) = world();
    let _a = immediate(&w, &d);
    turn(&w, &singles(1));
    for n in [1, 2, 8] {
        assert_eq!(turn(&w, &singles(n)), 4 + 2 * u32::from(n), "with {n} groups");
        assert_eq!(w.hw.answers().len(), usize::from(n));
    }
}

/// What is kept of a group costs none.
#[test]
fn a_group_of_eight_costs_no_more() {
    let (w, d) = world();
    let _a = immediate(&w, &d);
    turn(&w, &group(8));
    assert_eq!(turn(&w, &group(8)), 6);
    assert_eq!(w.hw.answers().len(), 1);
}

/// By a worker: one announcement for all groups of a turn, and for the worker one way in, one out, two
/// counts of what runs, one of what is done; two for each answer.
#[test]
fn groups_for_a_worker_are_handed_over_together() {
    let (w, d) = world();
    let dom = w.resolved_by(&d, |_, _, g| g.respond(Response::Success).unwrap());
    let _a = w.attach(&dom, &d);
    let work = || updates(|| while w.iommu.run(&cx()) {});
    turn(&w, &singles(8));
    work();
    turn(&w, &[]);
    for n in [1, 2, 8] {
        assert_eq!(turn(&w, &singles(n)), 5, "with {n} groups");
        assert_eq!(work(), 5 + 2 * u32::from(n), "with {n} groups");
        // What they were charged is taken back by a turn that goes in for all of them.
        assert_eq!(turn(&w, &[]), 5, "with {n} groups");
    }
}
