//! Assembly of page-request groups, quotas and credits against a reference that keeps plain lists and
//! counts them: after every step the same groups were delivered, the same answers went out, and the
//! same is counted.

use crate::common::*;
use portcullis::driver::PageRequest;
use portcullis::{
    Code, Config, Counters, Deferred, DeviceId, DomainOptions, PageGroup, Pasid, Response, Sleep,
};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

const DEVICES: u32 = 2;
/// What a device may have outstanding, one attachment, and all attachments of each owner.
const SHARE: usize = 6;
const PER_ATTACHMENT: usize = 4;
const PER_OWNER: [usize; 2] = [5, 7];
const PARTIALS_PER_DEVICE: usize = 2;
const PARTIALS_PER_OWNER: usize = 3;
/// Milliseconds.
const PARTIAL_DEADLINE: u64 = 300;
const GROUP_DEADLINE: u64 = 1000;

/// A device, and a PASID of it; 0 stands for its requester id.
type Place = (u32, u32);

#[derive(Clone, Debug)]
enum Step {
    Request {
        place: Place,
        index: u16,
        last: bool,
        wellformed: bool,
    },
    /// Answers the nth group that was delivered.
    Answer(usize, bool),
    Attach(Place, usize),
    Detach(Place),
    Overflow,
    Reset(u32),
    /// Milliseconds.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let place = (1..=DEVICES, 0..3u32);
    prop_oneof![
        14 => (place.clone(), 0..4u16, prop::bool::weighted(0.4), prop::bool::weighted(0.95))
            .prop_map(|(place, index, last, wellformed)| Step::Request { place, index, last, wellformed }),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(n, ok)| Step::Answer(n, ok)),
        2 => (place.clone(), 0..2usize).prop_map(|(place, owner)| Step::Attach(place, owner)),
        1 => place.prop_map(Step::Detach),
        1 => Just(Step::Overflow),
        1 => (1..=DEVICES).prop_map(Step::Reset),
        2 => (0..700u64).prop_map(Step::Pass),
    ]
}

/// A group, whole or not.
#[derive(Clone, Debug, PartialEq)]
struct Group {
    place: Place,
    index: u16,
    addresses: Vec<u64>,
    /// What was attached when it began: the number of an attachment, and its owner.
    tenant: Option<(u32, usize)>,
    spoilt: bool,
    until: u64,
}

/// The reference.
#[derive(Default)]
struct Model {
    now: u64,
    partials: Vec<Group>,
    /// Delivered, and not answered.
    pending: BTreeMap<u32, Group>,
    attached: BTreeMap<Place, (u32, usize)>,
    counters: BTreeMap<u32, Counters>,
    answers: Vec<Sent>,
    attachments: u32,
    delivered: u32,
}

impl Model {
    fn counters(&mut self, device: u32) -> &mut Counters {
        self.counters.entry(device).or_default()
    }

    /// Requests that are out, of groups that are whole or not.
    fn out(&self, which: impl Fn(&Group) -> bool) -> usize {
        self.partials
            .iter()
            .chain(self.pending.values())
            .filter(|g| which(g))
            .map(|g| g.addresses.len())
            .sum()
    }

    fn may_ask(&self, device: u32) -> bool {
        self.attached.keys().any(|(d, _)| *d == device)
    }

    fn fits(&self, place: Place, tenant: Option<(u32, usize)>) -> bool {
        self.out(|g| g.place.0 == place.0) < SHARE
            && tenant.is_none_or(|(n, owner)| {
                self.out(|g| g.tenant.is_some_and(|t| t.0 == n)) < PER_ATTACHMENT
                    && self.out(|g| g.tenant.is_some_and(|t| t.1 == owner)) < PER_OWNER[owner]
            })
    }

    fn answer(&mut self, place: Place, index: u16, code: Code) {
        let c = self.counters(place.0);
        match code {
            Code::Success => c.success += 1,
            _ => c.invalid += 1,
        }
        self.answers.push(Sent { pasid: Pasid::new(place.1), ..sent(place.0, index, code) });
    }

    fn drop_partials(&mut self, goes: impl Fn(&Group) -> bool) {
        for i in (0..self.partials.len()).rev() {
            if goes(&self.partials[i]) {
                let gone = self.partials.remove(i);
                self.counters(gone.place.0).partials_dropped += gone.addresses.len() as u64;
            }
        }
    }

    /// The number of the group that is delivered, if one is.
    fn request(
        &mut self,
        place: Place,
        index: u16,
        address: u64,
        last: bool,
        wellformed: bool,
    ) -> Option<u32> {
        let tenant = self.attached.get(&place).copied();
        let fits = self.fits(place, tenant);
        let authorised = self.may_ask(place.0);
        let c = self.counters(place.0);
        c.requests += 1;
        let counted = match (authorised, wellformed, fits) {
            (false, ..) => Some(&mut c.unauthorised),
            (_, false, _) => Some(&mut c.malformed),
            (_, _, false) => Some(&mut c.quota),
            _ => None,
        };
        let refused = counted.map(|n| *n += 1).is_some();
        // Somebody else is attached now: what came before is nobody's.
        self.drop_partials(|g| (g.place, g.index) == (place, index) && g.tenant != tenant);
        let found = self.partials.iter().position(|g| (g.place, g.index) == (place, index));
        if !last {
            self.keep(found, place, index, address, tenant, refused, authorised);
            return None;
        }
        self.counters(place.0).groups += 1;
        let mut group = match found {
            Some(i) => self.partials.remove(i),
            None => Group { place, index, addresses: Vec::new(), tenant, spoilt: false, until: 0 },
        };
        group.addresses.push(address);
        group.until = self.now + GROUP_DEADLINE;
        if refused || group.spoilt || tenant.is_none() {
            self.answer(place, index, Code::Invalid);
            return None;
        }
        self.delivered += 1;
        self.pending.insert(self.delivered, group);
        Some(self.delivered)
    }

    #[expect(clippy::too_many_arguments, reason = "what a request consists of")]
    fn keep(
        &mut self,
        found: Option<usize>,
        place: Place,
        index: u16,
        address: u64,
        tenant: Option<(u32, usize)>,
        refused: bool,
        authorised: bool,
    ) {
        let i = found.or_else(|| {
            let of_device = self.partials.iter().filter(|g| g.place.0 == place.0).count();
            let of_owner =
                |owner| self.partials.iter().filter(|g| g.tenant.is_some_and(|t| t.1 == owner)).count();
            let room = authorised
                && of_device < PARTIALS_PER_DEVICE
                && tenant.is_none_or(|(_, owner)| of_owner(owner) < PARTIALS_PER_OWNER);
            if !room {
                self.counters(place.0).quota += u64::from(!refused);
                return None;
            }
            let until = self.now + PARTIAL_DEADLINE;
            self.partials.push(Group { place, index, addresses: Vec::new(), tenant, spoilt: false, until });
            Some(self.partials.len() - 1)
        });
        let Some(group) = i.and_then(|i| self.partials.get_mut(i)) else { return };
        match refused {
            true => group.spoilt = true,
            false => group.addresses.push(address),
        }
    }

    /// A delivered group is answered, unless it is over.
    fn respond(&mut self, n: u32, code: Code) -> bool {
        let Some(group) = self.pending.remove(&n) else { return false };
        self.answer(group.place, group.index, code);
        true
    }

    fn attach(&mut self, place: Place, owner: usize) {
        self.attachments += 1;
        self.attached.insert(place, (self.attachments, owner));
    }

    fn detach(&mut self, place: Place) {
        let tenant = self.attached.remove(&place);
        let of_it: Vec<u32> =
            self.pending.iter().filter(|(_, g)| g.tenant == tenant).map(|(n, _)| *n).collect();
        of_it.into_iter().for_each(|n| assert!(self.respond(n, Code::Invalid)));
        let off = !self.may_ask(place.0);
        self.drop_partials(|g| g.tenant == tenant || off && g.place.0 == place.0);
    }

    fn reset(&mut self, device: u32) {
        let before = self.pending.len();
        self.pending.retain(|_, g| g.place.0 != device);
        self.counters(device).void += (before - self.pending.len()) as u64;
        self.drop_partials(|g| g.place.0 == device);
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        let now = self.now;
        self.drop_partials(|g| g.until <= now);
        let late: Vec<u32> = self.pending.iter().filter(|(_, g)| g.until <= now).map(|(n, _)| *n).collect();
        for n in late {
            let device = self.pending[&n].place.0;
            self.counters(device).deadline += 1;
            self.respond(n, Code::Invalid);
        }
    }
}

/// The real thing beside it.
struct Run {
    w: World,
    devices: Vec<Dev>,
    owners: [Dom; 2],
    /// What resolvers were given since the last step.
    given: Arc<Mutex<Vec<Deferred<Board>>>>,
    kept: BTreeMap<u32, Deferred<Board>>,
    attached: BTreeMap<Place, Att>,
    model: Model,
    address: u64,
}

impl Run {
    fn new() -> Run {
        let config = Config {
            credits_per_device: SHARE as u32,
            credits_per_attachment: PER_ATTACHMENT as u32,
            partials_per_device: PARTIALS_PER_DEVICE as u32,
            partials_per_owner: PARTIALS_PER_OWNER as u32,
            partial_deadline: Duration::from_millis(PARTIAL_DEADLINE),
            group_deadline: Some(Duration::from_millis(GROUP_DEADLINE)),
            ..Config::default()
        };
        let w = World::with(config);
        let devices: Vec<Dev> = (1..=DEVICES).map(|n| w.device(n)).collect();
        let given: Arc<Mutex<Vec<Deferred<Board>>>> = Arc::default();
        let owners = PER_OWNER.map(|most| {
            let given = given.clone();
            let keeps = move |_: &Sleep<'_>, _: &Arc<Data>, group: PageGroup<'_, Board>| {
                given.lock().unwrap().push(group.defer());
            };
            let options = DomainOptions { page_requests: Some(most as u32), ..DomainOptions::default() };
            w.iommu.external_domain(&[&devices[0]], options, Some(keeps)).expect("made")
        });
        let (kept, attached) = (BTreeMap::new(), BTreeMap::new());
        Run { w, devices, owners, given, kept, attached, model: Model::default(), address: 0 }
    }

    fn device(&self, n: u32) -> &Dev {
        &self.devices[n as usize - 1]
    }

    fn step(&mut self, step: &Step) {
        let mut delivered = None;
        match *step {
            Step::Request { place, index, last: is_last, wellformed } => {
                self.address += 0x1000;
                let (address, pasid) = (self.address, Pasid::new(place.1));
                let request = PageRequest { pasid, address, last: is_last, ..last(place.0, index) };
                match wellformed {
                    true => self.w.hw.sends(&[request]),
                    false => self.w.hw.sends_malformed(request),
                }
                delivered = self.model.request(place, index, address, is_last, wellformed);
            }
            Step::Answer(n, ok) => {
                let Some(n) = self.kept.keys().nth(n % self.kept.len().max(1)).copied() else { return };
                let group = self.kept.remove(&n).expect("its number was found");
                let (response, code) = match ok {
                    true => (Response::Success, Code::Success),
                    false => (Response::Invalid, Code::Invalid),
                };
                assert_eq!(group.respond(response).is_ok(), self.model.respond(n, code));
            }
            Step::Attach(place, owner) if !self.attached.contains_key(&place) => {
                let (dom, device) = (&self.owners[owner], self.device(place.0));
                let a = self.w.iommu.attach(&cx(), dom, device, Pasid::new(place.1), data());
                self.attached.insert(place, a.expect("attached"));
                self.model.attach(place, owner);
            }
            Step::Detach(place) => {
                let Some(a) = self.attached.remove(&place) else { return };
                drop(a.begin_detach(&cx()));
                self.model.detach(place);
            }
            Step::Attach(..) => return,
            Step::Overflow => {
                self.w.hw.overflows();
                self.model.drop_partials(|_| true);
            }
            Step::Reset(device) => {
                self.device(device).reset(&cx()).expect("reset");
                self.model.reset(device);
            }
            Step::Pass(ms) => {
                self.w.pass(Duration::from_millis(ms));
                self.model.pass(ms);
            }
        }
        self.w.iommu.service(IOMMU);
        self.w.work();
        // What was answered outside a turn is counted by the next one.
        self.w.iommu.service(IOMMU);
        self.compare(delivered);
    }

    fn compare(&mut self, delivered: Option<u32>) {
        let model = &mut self.model;
        let given: Vec<_> = self.given.lock().unwrap().drain(..).collect();
        assert_eq!(given.len(), usize::from(delivered.is_some()), "groups delivered");
        for (group, n) in given.into_iter().zip(delivered) {
            let expected = &model.pending[&n];
            let addresses: Vec<u64> = group.requests().map(|r| r.address).collect();
            assert_eq!(addresses, expected.addresses, "whole, and in order");
            let (device, index) = (DeviceId(expected.place.0.into()), expected.index);
            assert_eq!((group.device(), group.index()), (device, index));
            assert_eq!(group.attachment(), self.attached[&expected.place].key());
            self.kept.insert(n, group);
        }
        let sorted = |mut answers: Vec<Sent>| {
            answers.sort_by_key(|s| (s.source, s.pasid, s.index));
            answers
        };
        assert_eq!(sorted(self.w.hw.answers()), sorted(core::mem::take(&mut model.answers)));
        self.w.hw.take_log();
        for device in &self.devices {
            let n = device.sources()[0].0;
            let mut real = device.counters();
            real.faults = 0;
            assert_eq!(real, *model.counters(n), "of device {n}");
        }
        let usage = self.w.iommu.instance_usage(IOMMU).expect("it is there");
        assert_eq!(usage.requests, model.out(|_| true) as u64, "requests that are kept");
        assert_eq!(usage.partials, model.partials.len() as u64, "groups that are not whole");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn groups_and_quotas_are_what_plain_lists_say(steps in prop::collection::vec(step(), 1..150)) {
        let mut run = Run::new();
        for place in [(1, 0), (1, 1), (2, 0)] {
            run.step(&Step::Attach(place, place.1 as usize));
        }
        steps.iter().for_each(|s| run.step(s));
        for place in run.attached.keys().copied().collect::<Vec<_>>() {
            run.step(&Step::Detach(place));
        }
        run.step(&Step::Pass(GROUP_DEADLINE));
        prop_assert_eq!(run.model.out(|_| true), 0);
    }
}
