//! The root complex: units, endpoints, fabric and the accesses in flight, as one step machine.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::access::Access;
use crate::adversary::{Adversary, Level};
use crate::bus::{Downstream, Msi, RequesterId, Upstream};
use crate::endpoint::{Endpoint, Tlp};
use crate::fabric::Lane;
use crate::iommu::{Cx, Iommu, Outbox, Width};
use crate::log::{AccessLog, Journal, What};
use crate::memory::Memory;
use crate::mutation::Mutations;

/// One possible step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// An endpoint issues what it has ready.
    Endpoint(usize),
    /// A request arrives at its IOMMU, which decides about it.
    Begin(u64),
    /// The bytes of a request move, or its refusal travels back.
    Finish(u64),
    /// The oldest message of an endpoint arrives at its IOMMU.
    Upstream(usize),
    /// The oldest message to an endpoint arrives there.
    Downstream(usize),
    /// A unit takes a step of its own; the number is the unit's business.
    Unit {
        /// Place of the unit.
        unit: usize,
        /// Which step.
        step: u32,
    },
}

/// What a step was, for a table of costs. The machine assigns the nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// The step was not possible any more: nothing happened.
    Nothing,
    /// An endpoint worked.
    Endpoint,
    /// A translation, with this many loads of table entries.
    Translate {
        /// Loads, 0 for a hit in all caches.
        table_reads: u32,
    },
    /// Bytes moved.
    Move {
        /// How many.
        bytes: u32,
    },
    /// A message travelled.
    Message,
    /// A unit took a step, with this many loads of table entries.
    Unit {
        /// Loads.
        table_reads: u32,
    },
}

/// The root complex and all that hangs on it.
pub struct Complex {
    world: World,
    units: Vec<Box<dyn Iommu>>,
    slots: Vec<Slot>,
    by_id: BTreeMap<RequesterId, usize>,
    accesses: BTreeMap<u64, Access>,
    next_access: u64,
}

/// What every step is lent.
struct World {
    mem: Arc<dyn Memory>,
    journal: Journal,
    outbox: Outbox,
    adversary: Adversary,
    mutations: Mutations,
}

impl World {
    fn cx(&mut self, now: u64, unit: usize) -> Cx<'_> {
        Cx {
            now,
            mem: &*self.mem,
            adversary: &mut self.adversary,
            mutations: self.mutations,
            table_reads: 0,
            unit,
            journal: &mut self.journal,
            outbox: &mut self.outbox,
        }
    }
}

/// An endpoint with its place in the fabric.
struct Slot {
    endpoint: Endpoint,
    /// Whether it wants a step, and until when that is so unless something happens to it: most
    /// endpoints are not touched by most steps.
    wants: Cell<Option<(bool, Option<u64>)>>,
    unit: Option<usize>,
    up: Lane<Upstream>,
    down: Lane<Downstream>,
}

impl Slot {
    /// The endpoint, to do something to it.
    fn endpoint_mut(&mut self) -> &mut Endpoint {
        self.wants.set(None);
        &mut self.endpoint
    }

    /// Whether the endpoint wants a step at `now`, and when that changes by itself.
    fn wants(&self, now: u64) -> (bool, Option<u64>) {
        if let Some(known) = self.wants.get()
            && known.1.is_none_or(|until| now < until)
        {
            debug_assert_eq!(known.0, self.endpoint.wants(now), "something happened to it unseen");
            return known;
        }
        let wants = (self.endpoint.wants(now), self.endpoint.deadline(now));
        self.wants.set(Some(wants));
        wants
    }
}

impl Complex {
    /// An empty complex in front of `mem`, with a log.
    pub fn new(mem: Arc<dyn Memory>, log: Box<dyn AccessLog>) -> Self {
        Complex {
            world: World {
                mem,
                journal: Journal::new(log),
                outbox: Outbox::default(),
                adversary: Adversary::new(Level::Off, 0),
                mutations: Mutations::default(),
            },
            units: Vec::new(),
            slots: Vec::new(),
            by_id: BTreeMap::new(),
            accesses: BTreeMap::new(),
            next_access: 1,
        }
    }

    /// Replaces the adversary; its counts start at zero.
    pub fn set_adversary(&mut self, adversary: Adversary) {
        self.world.adversary = adversary;
    }

    /// The adversary, for its counts.
    pub fn adversary(&self) -> &Adversary {
        &self.world.adversary
    }

    /// Plants faults. For tests.
    pub fn set_mutations(&mut self, mutations: Mutations) {
        self.world.mutations = mutations;
    }

    /// Adds an IOMMU and returns its place.
    pub fn add_unit(&mut self, unit: Box<dyn Iommu>) -> usize {
        self.units.push(unit);
        self.units.len() - 1
    }

    /// Adds an endpoint behind a unit (or behind none) and returns its place. A later endpoint with
    /// the same requester id does not receive messages.
    pub fn add_endpoint(&mut self, endpoint: Endpoint, unit: Option<usize>) -> usize {
        let place = self.slots.len();
        self.by_id.entry(endpoint.id()).or_insert(place);
        let (up, down) = (Lane::default(), Lane::default());
        self.slots.push(Slot { endpoint, wants: Cell::new(None), unit, up, down });
        place
    }

    /// The endpoint at a place.
    pub fn endpoint(&self, place: usize) -> Option<&Endpoint> {
        self.slots.get(place).map(|s| &s.endpoint)
    }

    /// The endpoint at a place, to configure it or to give it a job.
    pub fn endpoint_mut(&mut self, place: usize) -> Option<&mut Endpoint> {
        self.slots.get_mut(place).map(Slot::endpoint_mut)
    }

    /// Place of the endpoint with this requester id.
    pub fn place_of(&self, id: RequesterId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// How many endpoints there are: their places are `0..endpoints()`.
    pub fn endpoints(&self) -> usize {
        self.slots.len()
    }

    /// The unit at a place.
    pub fn unit(&self, place: usize) -> Option<&dyn Iommu> {
        self.units.get(place).map(|u| &**u)
    }

    /// Reads a register. A unit that does not exist reads as all ones, as a missing device does.
    pub fn mmio_read(&mut self, unit: usize, off: u64, width: Width) -> u64 {
        match self.units.get_mut(unit) {
            Some(u) => u.mmio_read(off, width),
            None => u64::MAX,
        }
    }

    /// Writes a register. Nothing is delivered and no endpoint runs before a later step.
    pub fn mmio_write(&mut self, unit: usize, off: u64, width: Width, value: u64) {
        if let Some(u) = self.units.get_mut(unit) {
            u.mmio_write(off, width, value);
        }
    }

    /// Interrupts raised since the last call, in order. Delivering them is the machine's part.
    pub fn take_interrupts(&mut self) -> Vec<Msi> {
        std::mem::take(&mut self.world.outbox.interrupts)
    }

    /// Accesses of a requester that are begun and not finished.
    pub fn in_flight(&self, source: RequesterId) -> usize {
        self.accesses.values().filter(|a| a.is_begun() && a.source() == source).count()
    }

    /// Resets an endpoint as a function-level reset does: pending page groups become void, caches
    /// and capabilities are cleared. What it has already sent stays in the fabric (`[V]` 7.9).
    pub fn reset(&mut self, now: u64, place: usize) {
        self.world.journal.now = now;
        if let Some(slot) = self.slots.get_mut(place) {
            self.world.journal.note(What::Reset { source: slot.endpoint.id() });
            slot.endpoint_mut().reset(&mut self.world.journal);
        }
    }

    /// Whether an access that an endpoint issued before its last reset has not ended. Software
    /// waits for that before it uses the function again; PCIe gives it 100 ms.
    pub fn pending_from_before(&self, place: usize) -> bool {
        let epoch = self.endpoint(place).map(Endpoint::epoch);
        self.accesses.values().any(|a| a.endpoint == place && Some(a.epoch) != epoch)
    }

    /// Appends every step that is possible at `now`, in a fixed order.
    pub fn runnable(&self, now: u64, out: &mut Vec<Work>) {
        for (i, slot) in self.slots.iter().enumerate() {
            if slot.wants(now).0 && !slot.up.is_full() {
                out.push(Work::Endpoint(i));
            }
            if slot.up.is_ready(now) {
                out.push(Work::Upstream(i));
            }
            if slot.down.is_ready(now) {
                out.push(Work::Downstream(i));
            }
        }
        for (&id, access) in &self.accesses {
            if access.not_before() <= now {
                out.push(if access.is_begun() { Work::Finish(id) } else { Work::Begin(id) });
            }
        }
        let reorder = self.world.adversary.level() != Level::Off;
        for (unit, model) in self.units.iter().enumerate() {
            model.runnable(now, reorder, &mut |step| out.push(Work::Unit { unit, step }));
        }
    }

    /// The next time at which a step becomes possible that [`runnable`](Self::runnable) does not
    /// name at `now`.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let mut next = None;
        let mut consider = |t: Option<u64>| {
            if let Some(t) = t.filter(|t| *t > now && next.is_none_or(|n| *t < n)) {
                next = Some(t);
            }
        };
        for slot in &self.slots {
            consider(slot.up.deadline());
            consider(slot.down.deadline());
            consider(slot.wants(now).1);
        }
        self.accesses.values().for_each(|a| consider(Some(a.not_before())));
        self.units.iter().for_each(|u| consider(u.next_deadline()));
        next
    }

    /// Takes one step. One that is no longer possible does nothing.
    pub fn run(&mut self, now: u64, work: Work) -> Cost {
        self.world.journal.now = now;
        let cost = match work {
            Work::Endpoint(i) => self.run_endpoint(now, i),
            Work::Begin(id) => self.begin(now, id),
            Work::Finish(id) => self.finish(now, id),
            Work::Upstream(i) => self.upstream(now, i),
            Work::Downstream(i) => self.downstream(now, i),
            Work::Unit { unit, step } => self.step_unit(now, unit, step),
        };
        self.route(now);
        cost
    }

    fn run_endpoint(&mut self, now: u64, place: usize) -> Cost {
        let Some(slot) = self.slots.get_mut(place) else {
            return Cost::Nothing;
        };
        let queue = slot.unit.and_then(|u| self.units.get(u)).map_or(0, |u| u.page_queue_entries());
        let epoch = slot.endpoint.epoch();
        for tlp in slot.endpoint_mut().step(now, queue, &mut self.world.adversary) {
            match tlp {
                Tlp::Request { ticket, iova, pasid, request } => {
                    let id = self.next_access;
                    self.next_access += 1;
                    let mut access = Access::new(id, place, (ticket, epoch), (iova, pasid), request);
                    access.hold_until(self.world.adversary.not_before(now));
                    self.accesses.insert(id, access);
                }
                Tlp::Message(message) => {
                    if let Upstream::PageRequest(request) = message {
                        self.world.journal.note(What::PageRequested(request));
                    }
                    slot.up.push(now, &mut self.world.adversary, message);
                }
            }
        }
        Cost::Endpoint
    }

    fn begin(&mut self, now: u64, id: u64) -> Cost {
        let Some(access) = self.accesses.get_mut(&id).filter(|a| !a.is_begun()) else {
            return Cost::Nothing;
        };
        let unit = self.slots.get(access.endpoint).and_then(|s| s.unit);
        let mut cx = self.world.cx(now, unit.unwrap_or(usize::MAX));
        let model = unit.and_then(|u| self.units.get_mut(u));
        access.begin(&mut cx, model.map(|m| &mut **m as &mut dyn Iommu));
        let table_reads = cx.table_reads;
        access.hold_until(self.world.adversary.not_before(now));
        Cost::Translate { table_reads }
    }

    fn finish(&mut self, now: u64, id: u64) -> Cost {
        if !self.accesses.get(&id).is_some_and(Access::is_begun) {
            return Cost::Nothing;
        }
        let Some(access) = self.accesses.remove(&id) else {
            return Cost::Nothing;
        };
        let (place, ticket, epoch) = (access.endpoint, access.ticket, access.epoch);
        let bytes = access.len();
        let unit = self.slots.get(place).and_then(|s| s.unit);
        let mut cx = self.world.cx(now, unit.unwrap_or(usize::MAX));
        let completion = access.finish(&mut cx);
        if let Some(model) = unit.and_then(|u| self.units.get_mut(u)) {
            model.finished(id);
        }
        if let Some(slot) = self.slots.get_mut(place) {
            slot.endpoint_mut().complete(now, ticket, epoch, completion);
        }
        Cost::Move { bytes }
    }

    fn upstream(&mut self, now: u64, place: usize) -> Cost {
        let Some(slot) = self.slots.get_mut(place) else {
            return Cost::Nothing;
        };
        let Some(message) = slot.up.pop(now) else {
            return Cost::Nothing;
        };
        let Some(unit) = slot.unit else {
            return Cost::Message;
        };
        let Some(model) = self.units.get_mut(unit) else {
            return Cost::Message;
        };
        let mut cx = self.world.cx(now, unit);
        model.message(&mut cx, message);
        Cost::Message
    }

    fn downstream(&mut self, now: u64, place: usize) -> Cost {
        let Some(slot) = self.slots.get_mut(place) else {
            return Cost::Nothing;
        };
        let Some(message) = slot.down.pop(now) else {
            return Cost::Nothing;
        };
        slot.endpoint_mut().receive(now, message, &mut self.world.journal);
        Cost::Message
    }

    fn step_unit(&mut self, now: u64, unit: usize, step: u32) -> Cost {
        let Some(model) = self.units.get_mut(unit) else {
            return Cost::Nothing;
        };
        let mut cx = self.world.cx(now, unit);
        model.step(&mut cx, step);
        Cost::Unit { table_reads: cx.table_reads }
    }

    /// Puts what the units have sent into the fabric. What goes to nobody is lost, as on a bus.
    fn route(&mut self, now: u64) {
        for (to, message) in self.world.outbox.messages.drain(..) {
            let slot = self.by_id.get(&to).and_then(|&i| self.slots.get_mut(i));
            if let Some(slot) = slot {
                slot.down.push(now, &mut self.world.adversary, message);
            }
        }
    }
}
