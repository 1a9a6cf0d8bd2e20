//! Random page requests against a plain model: each last request is settled once, nobody exceeds
//! a share, and nothing is left over.

use crate::common::*;
use portcullis::driver::PageRequest;
use portcullis::{Config, Deferred, Response};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

const DEVICES: u32 = 3;
const SHARE: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// (device, PASID or 0, index, last, well-formed)
    Request(u32, u32, u16, bool, bool),
    Resolve,
    /// Answer the nth group that was kept.
    Answer(usize, bool),
    Overflow,
    Detach(u32, u32),
    Attach(u32, u32),
    Reset(u32),
    /// Milliseconds.
    Pass(u64),
    ResponsesFull(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let (device, pasid) = (1..=DEVICES + 1, 0..3u32);
    prop_oneof![
        12 => (device.clone(), pasid.clone(), 0..6u16, any::<bool>(), prop::bool::weighted(0.9))
            .prop_map(|(d, p, i, last, ok)| Step::Request(d, p, i, last, ok)),
        4 => Just(Step::Resolve),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(n, ok)| Step::Answer(n, ok)),
        1 => Just(Step::Overflow),
        1 => (1..=DEVICES, pasid.clone()).prop_map(|(d, p)| Step::Detach(d, p)),
        2 => (1..=DEVICES, pasid).prop_map(|(d, p)| Step::Attach(d, p)),
        1 => (1..=DEVICES).prop_map(Step::Reset),
        1 => (0..4000u64).prop_map(Step::Pass),
        2 => any::<bool>().prop_map(Step::ResponsesFull),
    ]
}

type Place = (u32, u32);

struct Run {
    w: World,
    devices: Vec<Dev>,
    dom: Dom,
    kept: Arc<Mutex<Vec<Deferred<Board>>>>,
    attached: BTreeMap<Place, Att>,
    /// Last requests sent: by device.
    lasts: BTreeMap<u32, u64>,
    /// Groups that reached the hands of a resolver, and that nobody has answered since.
    sent: u64,
}

impl Run {
    fn new() -> Run {
        let config = Config {
            credits_per_device: SHARE as u32,
            credit_reserve: 2,
            group_deadline: Some(Duration::from_secs(2)),
            hardware_deadline: Duration::from_secs(60),
            ..Config::default()
        };
        let w = World::made(config, SHARE as u32 * DEVICES + 2);
        let devices: Vec<Dev> = (1..=DEVICES).map(|n| w.device(n)).collect();
        let kept = Arc::default();
        let keeps: Arc<Mutex<Vec<Deferred<Board>>>> = Arc::clone(&kept);
        let dom = w.resolved_by(&devices[0], move |_, _, g| {
            assert!(g.len() <= SHARE, "a group within the share");
            keeps.lock().unwrap().push(g.defer());
        });
        Run { w, devices, dom, kept, attached: BTreeMap::new(), lasts: BTreeMap::new(), sent: 0 }
    }

    fn step(&mut self, step: &Step) {
        let w = &self.w;
        match *step {
            Step::Request(d, p, index, is_last, wellformed) => {
                let request = PageRequest { pasid: place(p), last: is_last, ..last(d, index) };
                match wellformed {
                    true => w.hw.sends(&[request]),
                    false => w.hw.sends_malformed(request),
                }
                self.sent += u64::from(is_last);
                *self.lasts.entry(d).or_default() += u64::from(is_last);
                w.iommu.service(IOMMU);
            }
            Step::Resolve => {
                w.iommu.run_one(&cx());
            }
            Step::Answer(n, ok) => {
                let mut kept = self.kept.lock().unwrap();
                if !kept.is_empty() {
                    let n = n % kept.len();
                    let group = kept.swap_remove(n);
                    drop(kept);
                    let _ = group.respond(if ok { Response::Success } else { Response::Invalid });
                }
            }
            Step::Overflow => {
                w.hw.overflows();
                w.iommu.service(IOMMU);
            }
            Step::Detach(d, p) => {
                if let Some(a) = self.attached.remove(&(d, p)) {
                    w.hw.state().responses_full = false;
                    assert!(a.begin_detach(&cx()).is_gone());
                }
            }
            Step::Attach(d, p) => {
                if !self.attached.contains_key(&(d, p)) {
                    let device = &self.devices[d as usize - 1];
                    let a = w.iommu.attach(&cx(), &self.dom, device, place(p), data()).expect("attached");
                    self.attached.insert((d, p), a);
                }
            }
            Step::Reset(d) => {
                w.hw.state().responses_full = false;
                self.devices[d as usize - 1].reset(&cx()).expect("reset");
            }
            Step::Pass(ms) => {
                // A full queue is looked at again very soon: not for seconds on end.
                let full = w.hw.state().responses_full;
                w.pass(Duration::from_millis(if full { ms % 20 } else { ms }));
            }
            Step::ResponsesFull(full) => w.hw.state().responses_full = full,
        }
        self.holds();
    }

    /// What holds at any time.
    fn holds(&self) {
        let mut by_device: BTreeMap<portcullis::DeviceId, usize> = BTreeMap::new();
        for g in self.kept.lock().unwrap().iter().filter(|g| g.request(0).is_some()) {
            *by_device.entry(g.device()).or_default() += g.len();
        }
        // A decided answer that is not out yet is no longer charged, so only pending ones count.
        let full = self.w.hw.state().responses_full;
        assert!(full || by_device.values().all(|n| *n <= SHARE), "{by_device:?}");
    }

    fn end(mut self) {
        self.w.hw.state().responses_full = false;
        self.w.pass(Duration::from_millis(10));
        for (_, a) in core::mem::take(&mut self.attached) {
            drop(a.begin_detach(&cx()));
        }
        self.w.work();
        assert_eq!(self.w.hw.waiting(), 0, "every request was taken");
        let void: u64 = self.devices.iter().map(|d| d.counters().void).sum();
        let answers = self.w.hw.answers();
        assert_eq!(answers.len() as u64 + void, self.sent, "each last request is settled once");
        for (i, d) in self.devices.iter().enumerate() {
            let c = d.counters();
            let source = d.sources()[0];
            let out = answers.iter().filter(|a| a.source == source).count() as u64;
            // A group is void after it was decided if the reset came before it was sent.
            assert!(c.success + c.invalid <= out + c.void, "{c:?}");
            assert!(c.success + c.invalid >= out, "{c:?}");
            let sent = self.lasts.get(&(i as u32 + 1)).copied().unwrap_or(0);
            assert_eq!((c.groups, out + c.void), (sent, sent), "{c:?}");
        }
        for g in self.kept.lock().unwrap().drain(..) {
            assert!(g.respond(Response::Success).is_err(), "nothing waits any more");
        }
        assert_eq!(self.w.hw.answers().len(), answers.len());
        // Every slot, every stored request and every share is free again.
        let all: Vec<Att> = self.devices.iter().map(|d| self.w.attach(&self.dom, d)).collect();
        for d in &self.devices {
            let n = d.sources()[0].0;
            let group = [first(n, 1, 0x1000), first(n, 1, 0x2000), first(n, 1, 0x3000), last(n, 1)];
            self.w.sends(&group);
        }
        self.w.work();
        let lens: Vec<usize> = self.kept.lock().unwrap().iter().map(Deferred::len).collect();
        assert_eq!(lens, [SHARE; DEVICES as usize]);
        drop(all);
        self.w.work();
    }
}

fn place(p: u32) -> Option<portcullis::Pasid> {
    portcullis::Pasid::new(p)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_last_request_is_settled_once_and_nothing_is_left(steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run::new();
        for d in 1..=DEVICES {
            run.step(&Step::Attach(d, d % 3));
        }
        steps.iter().for_each(|s| run.step(s));
        run.end();
    }
}
