//! Anything at any time: forged and repeated tags, strays, answers, guards, detaches and resets in
//! random order. The scripted hardware fails where something is resumed that it does not hold.

use super::*;
use portcullis::{Config, Gap, Response, Storms};
use proptest::prelude::*;
use std::{collections::btree_map::Entry, time::Duration};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A transaction faults at a place, unless its tag is taken.
    Faults {
        pasid: u32,
        tag: u64,
    },
    /// A record, whether its tag is taken or not.
    Forged(u64),
    /// One more is on its way.
    Late(u64),
    Answer {
        nth: usize,
        retry: bool,
        drops: bool,
    },
    Work,
    Guard(bool),
    Attach(bool),
    Replace,
    Reset,
    Room(bool),
    HardwareEnds,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let tag = 0..12u64;
    prop_oneof![
        8 => (0..2u32, tag.clone()).prop_map(|(pasid, tag)| Step::Faults { pasid, tag }),
        2 => tag.clone().prop_map(Step::Forged),
        1 => tag.prop_map(Step::Late),
        6 => (any::<usize>(), any::<bool>(), any::<bool>())
            .prop_map(|(nth, retry, drops)| Step::Answer { nth, retry, drops }),
        2 => Just(Step::Work),
        2 => any::<bool>().prop_map(Step::Guard),
        2 => any::<bool>().prop_map(Step::Attach),
        1 => Just(Step::Replace),
        1 => Just(Step::Reset),
        2 => any::<bool>().prop_map(Step::Room),
        1 => Just(Step::HardwareEnds),
        2 => (0..700_000u64).prop_map(Step::Pass),
    ]
}

/// Whose a tag is: one of two devices', or one's that nobody knows.
fn of(tag: u64) -> u32 {
    1 + (tag % 3) as u32
}

/// Runs the steps, and then ends everything.
fn run(steps: &[Step], tight: bool) {
    let few = if tight { 3 } else { 8 };
    let config = Config {
        devices: 4,
        attachments: 16,
        stalls: few,
        stalls_per_device: few - 1,
        credit_reserve: 1,
        storms: Storms::NEVER,
        ..Config::default()
    };
    let w = World::on(Board::new(64), config, 4);
    let (d, e) = (soc_device(&w, 1), soc_device(&w, 2));
    let (one, two) = (user(&w, &d), user(&w, &d));
    let attach = |dom: &User, d: &Dev, pasid| w.iommu.attach(&cx(), dom, d, pasid, data()).expect("attached");
    let mut a = Some(attach(&one, &d, None));
    let _others = [attach(&one, &d, pasid(1)), attach(&two, &e, None)];
    let passed = Passed::default();
    let mut guards: [Option<Stalling<Board>>; 2] = [None, None];
    for step in steps {
        match *step {
            Step::Faults { pasid: p, tag } => {
                let at = Stall { pasid: (p > 0).then(|| pasid(p)).flatten(), ..stall(of(tag), tag) };
                if !w.hw.state().held.contains_key(&at.id) {
                    w.hw.stalls(at);
                }
                w.iommu.service(IOMMU);
            }
            Step::Forged(tag) => {
                w.hw.reports_stall(stall(of(tag), tag));
                w.iommu.service(IOMMU);
            }
            Step::Late(tag) => {
                let mut s = w.hw.state();
                if let Entry::Vacant(free) = s.held.entry(StallId(tag)) {
                    free.insert(SourceId(of(tag)));
                    s.late_stalls.push(stall(of(tag), tag));
                }
            }
            Step::Answer { nth, retry, drops } => {
                let mut passed = passed.lock().unwrap();
                if !passed.is_empty() {
                    let n = nth % passed.len();
                    let stalled = passed.swap_remove(n);
                    drop(passed);
                    let response = if retry { Response::Success } else { Response::Invalid };
                    if !drops {
                        // Somebody else may have been first.
                        let _ = stalled.respond(response);
                    }
                }
            }
            Step::Work => w.work(),
            Step::Guard(first) => {
                let (guard, dom) = if first { (&mut guards[0], &one) } else { (&mut guards[1], &two) };
                *guard = match guard.take() {
                    Some(guard) => {
                        drop(guard);
                        None
                    }
                    None if first => {
                        let list = passed.clone();
                        let forward =
                            move |_: &Arc<Data>, stalled: Deferred<Board>| list.lock().unwrap().push(stalled);
                        w.iommu.enable_stall(&cx(), dom, StallDecider::elsewhere(forward)).ok()
                    }
                    None => Some(decide(&w, dom, Verdict::Retry)),
                };
            }
            Step::Attach(first) => {
                w.hw.state().resumes_full = false;
                a = match a.take() {
                    Some(a) => {
                        assert!(!a.begin_detach(&cx()).lost());
                        None
                    }
                    None => Some(attach(if first { &one } else { &two }, &d, None)),
                };
            }
            Step::Replace => {
                w.hw.state().resumes_full = false;
                if let Some(old) = a.take() {
                    let replaced = w.iommu.replace(&cx(), old, &two, data(), Gap::Allowed);
                    a = Some(replaced.map_err(|(_, e)| e).expect("replaced").0);
                }
            }
            Step::Reset => {
                w.hw.state().resumes_full = false;
                d.reset(&cx()).expect("reset");
            }
            Step::Room(full) => w.hw.state().resumes_full = full,
            Step::HardwareEnds => {
                w.hw.ends_stalls(SourceId(2));
                w.iommu.service(IOMMU);
            }
            Step::Pass(us) => w.pass(Duration::from_micros(us)),
        }
        let (held, slots) = (w.hw.state().held.len(), few as usize);
        assert!(held <= 12 && passed.lock().unwrap().iter().filter(|s| s.is_pending()).count() < slots);
    }
    w.hw.state().resumes_full = false;
    drop((guards, a));
    w.work();
    w.pass(Duration::from_millis(1500));
    w.work();
    // What is on its way and never comes is the hardware's.
    let late: Vec<_> = w.hw.state().late_stalls.iter().map(|s| s.id).collect();
    w.hw.state().held.retain(|id, _| !late.contains(id));
    nothing_waits(&w);
    assert!(w.hw.state().stalling.is_empty());
    let c = d.counters();
    // What is decided and then lost is both.
    let decided = c.retried + c.terminated;
    assert!((decided..=decided + c.stalls_lost).contains(&c.stalls), "{c:?}");
    for stalled in core::mem::take(&mut *passed.lock().unwrap()) {
        assert!(stalled.respond(Response::Success).is_err(), "everything has ended");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_is_ended_once(steps in prop::collection::vec(step(), 1..60), tight in any::<bool>()) {
        run(&steps, tight);
    }
}
