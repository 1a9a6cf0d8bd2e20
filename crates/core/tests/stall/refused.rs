//! What cannot stall is named, and nothing has changed; every driver call refused in turn.

use super::*;
use portcullis::error::{AttachError, StallError};
use portcullis::{Config, Gap, Replaced};
use std::time::Duration;

const OTHER: At = At { source: SourceId(2), pasid: None };

fn enabled(w: &World, dom: &Dom) -> Result<Stalling<Board>, StallError> {
    let never = |_: &Sleep<'_>, _: &Arc<Data>, _: &StalledAccess| Verdict::Retry;
    w.iommu.enable_stall(&cx(), dom, StallDecider::sleeping(never))
}

fn why(result: Result<Stalling<Board>, StallError>) -> StallError {
    result.err().expect("refused")
}

#[test]
fn a_pcie_function_does_not_stall_and_neither_does_what_nobody_vouches_for() {
    let w = World::new();
    let (pci, soc) = (w.device(1), soc_device(&w, 2));
    let mut spec = w.spec(3);
    spec.bus = Bus::Platform { may_stall: false };
    let plain = w.iommu.add_device(&cx(), spec).unwrap();
    let dom = w.plain(&pci);
    let (a, b) = (w.attach(&dom, &soc), w.attach(&dom, &pci));
    w.hw.take_log();
    assert_eq!(why(enabled(&w, &dom)), StallError::Pci(pci.id()));
    assert_eq!(w.hw.take_log(), [], "the hardware was asked nothing");
    drop(b);
    w.work();
    w.hw.take_log();
    let guard = enabled(&w, &dom).expect("what is left can");
    // A later attach of one that cannot is refused, and leaves it as it was.
    for (d, why) in [(&pci, StallError::Pci(pci.id())), (&plain, StallError::Device(plain.id()))] {
        let refused = w.iommu.attach(&cx(), &dom, d, None, data()).err();
        assert_eq!(refused, Some(AttachError::Stall(why)));
        assert_eq!(w.hw.entry(At { source: d.sources()[0], pasid: None }), None);
    }
    assert_eq!(w.hw.take_log(), [Call::Stall(OTHER, true)]);
    // Nor is anything replaced by a domain that stalls.
    let still = w.attach(&w.plain(&pci), &pci);
    let refused = w.iommu.replace(&cx(), still, &dom, data(), Gap::Allowed);
    let Err((Some(still), AttachError::Stall(StallError::Pci(_)))) = refused else {
        panic!("it was refused")
    };
    drop((guard, a, still));
    w.work();
}

#[test]
fn all_stall_or_none() {
    let w = World::new();
    let (d, e) = (soc_device(&w, 1), soc_device(&w, 2));
    let dom = w.plain(&d);
    let (a, b) = (w.attach(&dom, &d), w.attach(&dom, &e));
    w.hw.state().rigid.insert(OTHER);
    let refused = why(enabled(&w, &dom));
    assert!(matches!(refused, StallError::Place { at: OTHER, .. }), "{refused}");
    assert!(w.hw.state().stalling.is_empty(), "the first does not either");
    assert!(!w.hw.stalls(stall(1, 1)));
    // What the hardware cannot hold is refused at a later attach, before anything is installed.
    drop(b);
    w.work();
    let guard = enabled(&w, &dom).unwrap();
    let refused = w.iommu.attach(&cx(), &dom, &e, None, data()).err();
    assert!(matches!(refused, Some(AttachError::Stall(StallError::Place { at: OTHER, .. }))), "{refused:?}");
    assert_eq!((w.hw.entry(OTHER), w.hw.state().stalling.len()), (None, 1));
    assert!(w.hw.state().images.is_empty());
    let still = w.attach(&w.plain(&e), &e);
    let refused = w.iommu.replace(&cx(), still, &dom, data(), Gap::Allowed);
    let Err((Some(still), AttachError::Stall(_))) = refused else { panic!("it was refused") };
    drop((guard, a, still));
    w.work();
}

#[test]
fn one_guard_for_a_domain_of_this_iommu_over_hardware_that_stalls() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let guard = enabled(&w, &dom).expect("nothing is attached");
    assert_eq!(why(enabled(&w, &dom)), StallError::Already);
    let stranger = World::new();
    assert_eq!(why(enabled(&stranger, &dom)), StallError::Foreign);
    guard.disable(&cx());
    drop(enabled(&w, &dom).expect("it is free again"));
    let w = World::with(Config { stalls: 0, ..Config::default() });
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    assert_eq!(why(enabled(&w, &dom)), StallError::Instance(IOMMU));
}

#[test]
fn an_enable_that_is_given_up_leaves_nothing_stalling() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    w.hw.state().hold = true;
    let never = |_: &Sleep<'_>, _: &Arc<Data>, _: &StalledAccess| Verdict::Retry;
    let mut op = w.iommu.start_enable_stall(&dom, StallDecider::sleeping(never));
    assert!(op.step().is_pending() && w.hw.state().stalling.len() == 1);
    drop(op);
    w.hw.state().hold = false;
    w.pass(Duration::from_millis(1));
    assert!(w.hw.state().stalling.is_empty());
    let guard = enabled(&w, &dom).expect("it is free again");
    let mut op = guard.start_disable();
    while op.step().is_pending() {
        w.pass(Duration::from_micros(20));
    }
    assert!(w.hw.state().stalling.is_empty());
}

#[test]
fn a_switch_that_somebody_elses_error_dropped_is_asked_for_again() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    w.hw.state().aborts = 2;
    w.hw.take_log();
    let _guard = enabled(&w, &dom).unwrap();
    let asked = w.hw.take_log().iter().filter(|c| **c == Call::Stall(AT, true)).count();
    assert_eq!(asked, 3);
}

#[test]
fn lost_hardware_ends_every_wait() {
    let w = World::new();
    let d = soc_device(&w, 1);
    let dom = user(&w, &d);
    let a = w.iommu.attach(&cx(), &dom, &d, None, data()).unwrap();
    let (guard, passed) = pass_on(&w, &dom);
    faults(&w, &[stall(1, 1), stall(1, 2)]);
    w.hw.state().lost = true;
    let first = passed.lock().unwrap().remove(0);
    let _ = first.respond(portcullis::Response::Success);
    w.iommu.service(IOMMU);
    assert!(passed.lock().unwrap().iter().all(|s| !s.is_pending()), "nobody will resume them");
    guard.disable(&cx());
    assert_eq!(w.iommu.load().waiting, 0);
    assert!(a.begin_detach(&cx()).lost());
    assert_eq!((d.counters().stalls_lost, w.hw.resumed().len()), (2, 0));
    let dom = w.plain(&d);
    assert!(enabled(&w, &dom).is_ok(), "nothing is attached there");
}

/// A whole life, with the `n`th call of the driver finding its queue full or no memory. Returns how
/// many calls there are.
fn life(n: Option<u32>) -> u32 {
    const MANY: u32 = 1 << 20;
    let w = World::new();
    let (d, e) = (soc_device(&w, 1), soc_device(&w, 2));
    let (dom, other) = (w.plain(&d), w.plain(&d));
    w.hw.state().fail_after = Some(n.unwrap_or(MANY));
    // Only prepare has an error to return; a full queue is waited for.
    let attach = |dom: &Dom, d: &Dev| {
        let again = |e| {
            assert!(matches!(e, AttachError::Prepare(_)), "call {n:?}: {e}");
            w.iommu.attach(&cx(), dom, d, None, data())
        };
        w.iommu.attach(&cx(), dom, d, None, data()).or_else(again).unwrap()
    };
    let a = attach(&dom, &d);
    let guard = decide(&w, &dom, Verdict::Retry);
    let b = attach(&dom, &e);
    faults(&w, &[stall(1, 1), stall(2, 2)]);
    w.work();
    assert!(w.hw.stalls(stall(2, 3)));
    d.reset(&cx()).unwrap();
    let replaced = w.iommu.replace(&cx(), b, &other, data(), Gap::Refused).or_else(|(old, e)| {
        assert!(matches!(e, AttachError::Prepare(_)), "call {n:?}: {e}");
        w.iommu.replace(&cx(), old.expect("it still stands"), &other, data(), Gap::Refused)
    });
    let (b, _, how) = replaced.map_err(|(_, e)| e).unwrap();
    assert_eq!(how, Replaced::Hitless);
    guard.disable(&cx());
    assert!(w.hw.state().stalling.is_empty(), "call {n:?}");
    assert!(!a.begin_detach(&cx()).lost() && !b.begin_detach(&cx()).lost(), "call {n:?}");
    let resumed = [ended(1, Verdict::Retry), ended(2, Verdict::Retry), ended(3, Verdict::Terminate)];
    assert_eq!(w.hw.resumed(), resumed, "call {n:?}");
    w.work();
    nothing_waits(&w);
    assert!(dom.is_unused() && other.is_unused() && w.hw.state().images.is_empty(), "call {n:?}");
    let left = w.hw.state().fail_after;
    left.map_or(0, |left| MANY - left)
}

#[test]
fn a_refused_driver_call_anywhere_in_a_life_ends_in_order() {
    let whole = life(None);
    (0..whole).for_each(|n| assert!(life(Some(n)) < whole + 20));
    assert!(whole >= 20, "{whole} calls");
}
