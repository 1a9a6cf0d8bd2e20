//! Stalled transactions: held until a verdict, resumed by the core alone, each once, whatever happens
//! in between and in whatever order.

mod hostile;
mod life;
mod limits;
mod orders;
mod random;
mod refused;

use crate::common::*;
use portcullis::driver::Stall;
use portcullis::{
    Access, At, Bus, Deferred, Domain, DomainOptions, PageGroup, Reason, Sleep, SourceId, StallDecider,
    StallId, StalledAccess, Stalling, UserObject, Verdict,
};
use std::sync::{Arc, Mutex};

type Never = fn(&Sleep<'_>, &Arc<Data>, PageGroup<'_, Board>);
type User = Domain<Board, UserObject<Data>>;
/// Transactions that were passed on.
type Passed = Arc<Mutex<Vec<Deferred<Board>>>>;

const AT: At = At { source: SourceId(1), pasid: None };

/// A device that is on no PCIe, and bears stalls.
fn soc_device(w: &World, n: u32) -> Dev {
    w.iommu.add_device(&cx(), soc(n, w.hw.control(SourceId(n)))).expect("added")
}

fn user(w: &World, d: &Dev) -> User {
    w.iommu.user_object_domain(&[d], DomainOptions::default(), None::<Never>).expect("made")
}

/// Has the domain's stalls passed on to a list.
fn pass_on(w: &World, domain: &User) -> (Stalling<Board>, Passed) {
    let passed = Passed::default();
    let list = passed.clone();
    let forward = move |_: &Arc<Data>, stalled: Deferred<Board>| list.lock().unwrap().push(stalled);
    let decider = StallDecider::elsewhere(forward);
    (w.iommu.enable_stall(&cx(), domain, decider).expect("all stall"), passed)
}

/// Has each decided by a resolver that gives this verdict, and writes down the address.
fn decide<O>(w: &World, domain: &Domain<Board, O>, verdict: Verdict) -> Stalling<Board>
where
    O: portcullis::Stalls<Data = Data>,
{
    let resolver = move |_: &Sleep<'_>, data: &Arc<Data>, stalled: &StalledAccess| {
        data.lock().unwrap().push(format!("{:x}", stalled.address));
        verdict
    };
    w.iommu.enable_stall(&cx(), domain, StallDecider::sleeping(resolver)).expect("all stall")
}

/// Transactions fault, and a service turn reads their records.
fn faults(w: &World, stalls: &[Stall]) {
    stalls.iter().for_each(|s| assert!(w.hw.stalls(*s), "{:?} is held", s.id));
    w.iommu.service(IOMMU);
}

/// Nothing is held, and nothing waits anywhere.
fn nothing_waits(w: &World) {
    assert!(w.hw.state().held.is_empty(), "held: {:?}", w.hw.state().held);
    assert_eq!(w.hw.waiting(), 0);
    assert_eq!((w.iommu.load().running, w.iommu.load().waiting), (0, 0));
}

fn ended(tag: u64, verdict: Verdict) -> (StallId, Verdict) {
    (StallId(tag), verdict)
}
