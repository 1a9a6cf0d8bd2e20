//! What the core does with a record, in service context: file it, and say who must act. One turn
//! at a time runs for an instance; it holds no lock.

use crate::{
    books::{Books, Ledger, SOON},
    driver::{More, PageRequest, QueuePos, Taken},
    fault::{Access, FaultKind, RawFault, Reason},
    flight::Entry,
    ids::{Key, Pasid, SourceId},
    instance::Instance,
    platform::{Platform, Sleep, Time},
    record::{Chain, Record},
    resolver::{PageGroup, Resolves},
    slab::{Tenant, leave},
    turn::{Code, Intake},
};
use alloc::sync::Arc;
use portcullis_sync::{slot::Generation, slot::State as Slot, tenants::Inside};

/// One round of a service turn.
pub(crate) struct TurnIntake<'a, P: Platform> {
    instance: &'a Arc<Instance<P>>,
    books: Books<'a, P>,
    tenants: Used<'a, P>,
    /// The clock is read once a round.
    now: Time,
    /// Where the last request came from, and what was found there.
    last: Option<Hint>,
}

/// What stands for a place that requests come from.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The number of the device's account.
    pub(crate) account: u32,
    /// What is attached there.
    pub(crate) tenant: Option<Key>,
}

struct Hint {
    source: SourceId,
    pasid: Option<Pasid>,
    version: u64,
    place: Option<Place>,
}

/// Attachments that the round is inside of. Each is gone in to once, and left at the end of the
/// round, or before the head of the queue is told to have passed.
struct Used<'a, P: Platform> {
    instance: &'a Instance<P>,
    inside: [Option<(Key, Inside<'a, Tenant<P>>)>; USED],
}

/// Attachments that a round stays inside of at once.
const USED: usize = 8;

impl<'a, P: Platform> Used<'a, P> {
    fn enter(&mut self, key: Key) -> Option<&Inside<'a, Tenant<P>>> {
        let at = key.index as usize % USED;
        if self.inside[at].as_ref().is_none_or(|(k, _)| *k != key) {
            self.leave(at);
            let inside = self.instance.hub.attachments.enter(key)?;
            self.inside[at] = Some((key, inside));
        }
        self.inside[at].as_ref().map(|(_, inside)| inside)
    }

    fn leave(&mut self, at: usize) {
        if let Some((_, inside)) = self.inside[at].take() {
            inside.inner.lease.trim(&inside.inner.domain.quota);
            leave(inside);
        }
    }

    fn leave_all(&mut self) {
        (0..USED).for_each(|at| self.leave(at));
    }
}

impl<P: Platform> Drop for Used<'_, P> {
    fn drop(&mut self) {
        self.leave_all();
    }
}

impl<'a, P: Platform> TurnIntake<'a, P> {
    pub(crate) fn new(instance: &'a Arc<Instance<P>>, ledger: &'a mut Ledger) -> Self {
        TurnIntake {
            instance,
            books: Books::open(instance, ledger),
            tenants: Used { instance, inside: [const { None }; USED] },
            now: instance.platform().now(),
            last: None,
        }
    }

    /// What is due before the hardware's queues are read.
    pub(crate) fn begin(&mut self) {
        self.books.look_around();
        self.books.sweep();
        if self.instance.take_ready() && self.books.ledger.waiting > 0 {
            self.deliver_waiting();
        }
    }

    /// What is due after: answers that found no room, deadlines, and the timer for what comes next.
    pub(crate) fn end(mut self, more: More) {
        self.tenants.leave_all();
        let sent = self.send_unsent();
        self.books.drop_late(self.now);
        self.end_late();
        let soon = match (sent, more) {
            (_, More::Yes) => Some(self.now + SOON),
            (false, More::No) => Some(self.now + self.books.next_retry()),
            (true, More::No) => None,
        };
        if sent {
            self.books.ledger.retry = SOON;
        }
        // Asked for again in every round, since a timer that fired may have replaced it.
        let next = [soon, self.books.next_deadline()].into_iter().flatten().min();
        if let Some(t) = next {
            self.instance.platform().timer_at(t);
        }
    }

    /// Takes in one request: everything that a device sends is counted here.
    fn file(&mut self, request: &PageRequest, wellformed: bool) -> Taken {
        let wants_answer = request.wants_answer();
        if wants_answer && !self.books.has_room() {
            return Taken::NoRoom;
        }
        let instance = self.instance;
        let Some(place) = self.place(request) else { return self.stray(request) };
        let Some(account) = instance.accounts.get(place.account as usize) else { return Taken::Yes };
        account.counts.requests.add(1);
        let standing = account.standing();
        if standing.resetting {
            account.counts.groups.add(wants_answer.into());
            account.counts.void.add(wants_answer.into());
            return Taken::Yes;
        }
        let refused = if standing.share == 0 || standing.quarantined {
            account.counts.unauthorised.add(1);
            Some(Reason::RequestType)
        } else if !wellformed {
            account.counts.malformed.add(1);
            Some(Reason::BadEntry)
        } else {
            None
        };
        let TurnIntake { books, tenants, now, .. } = self;
        let tenant = place.tenant.and_then(|key| Some((key, tenants.enter(key)?)));
        let inner = tenant.as_ref().map(|(_, t)| &*t.inner);
        let refused = refused.or_else(|| {
            let fits = books.charge(account, standing.share, inner);
            account.counts.quota.add((!fits).into());
            (!fits).then_some(Reason::Quota)
        });
        if !wants_answer {
            let until = *now + instance.config().partial_deadline;
            let tenant = tenant.as_ref().map(|(key, t)| (*key, &*t.inner));
            if let Err(why) = books.keep(request, (place.account, account), tenant, until, refused) {
                instance.report_at(raw(request, why), *now);
            }
            return Taken::Yes;
        }
        let charged = u32::from(refused.is_none());
        // One that is answered by itself is a group of its own; the rest of its group goes on.
        let partial = if request.last { books.complete(request, place.tenant) } else { None };
        let first = partial.map_or(Chain::default(), |p| p.first);
        let refused = refused.or(partial.filter(|p| p.spoilt).map(|_| Reason::Quota));
        account.counts.groups.add(1);
        let entry = |generation| Entry {
            generation,
            account: Some((place.account, account.holder())),
            tenant: place.tenant,
            // What was kept for the group stays charged until it is settled.
            charge: first.len + charged,
            tenant_charge: first.len + if inner.is_some() { charged } else { 0 },
            first,
            until: instance.config().group_deadline.map(|d| *now + d),
            waits: false,
            counted: false,
        };
        let serves = match (&tenant, place.tenant) {
            _ if refused.is_some() => Err(refused),
            // Nobody could say which device asks.
            _ if standing.device.is_none() => Err(Some(Reason::Blocked)),
            (Some((_, t)), _) if !t.inner.resolves() => Err(Some(Reason::Blocked)),
            // The entry is gone: what still comes out of the fabric is answered Invalid.
            (Some((_, t)), _) if t.is_closed() => Err(None),
            (Some((key, t)), _) => Ok((*key, *t)),
            (None, Some(_)) => Err(None),
            (None, None) => Err(Some(Reason::Blocked)),
        };
        let owner = serves.ok().map(|(key, _)| key);
        let record = Record { last: *request, first, device: standing.device, owner };
        let Some((slot, generation)) = books.put(&record, entry) else { return Taken::NoRoom };
        let filed = Filed { books, slot };
        let refused = match serves {
            Ok((_, t)) if t.is_waiting() => {
                filed.books.wait(slot);
                return Taken::Yes;
            }
            Ok((key, t)) => hand_over(instance, t, key, slot, generation, &record).err().map(Some),
            Err(why) => Some(why),
        };
        if let Some(why) = refused {
            if let Some(reason) = why {
                instance.report_at(raw(request, reason), *now);
            }
            instance.settle(slot, generation, request, Code::Invalid);
        }
        Taken::Yes
    }

    /// Refuses a request of a requester that nobody knows.
    fn stray(&mut self, request: &PageRequest) -> Taken {
        self.instance.report_at(raw(request, Reason::Blocked), self.now);
        if !request.wants_answer() {
            return Taken::Yes;
        }
        let record = Record { last: *request, first: Chain::default(), device: None, owner: None };
        let entry = |generation| Entry {
            generation,
            account: None,
            tenant: None,
            charge: 0,
            tenant_charge: 0,
            first: Chain::default(),
            until: None,
            waits: false,
            counted: false,
        };
        let Some((slot, generation)) = self.books.put(&record, entry) else { return Taken::NoRoom };
        let _filed = Filed { books: &mut self.books, slot };
        self.instance.settle(slot, generation, request, Code::Invalid);
        Taken::Yes
    }

    /// What stands for the place that a request came from; looked up once for requests in a row.
    fn place(&mut self, request: &PageRequest) -> Option<Place> {
        let PageRequest { source, pasid, .. } = *request;
        match &self.last {
            Some(hint)
                if hint.source == source
                    && hint.pasid == pasid
                    && self.instance.places.unchanged(hint.version) =>
            {
                hint.place
            }
            _ => {
                let version = self.instance.places.version();
                let place = self.instance.place(source, pasid);
                self.last = Some(Hint { source, pasid, version, place });
                place
            }
        }
    }

    /// Groups that waited for their attachments to be ready.
    fn deliver_waiting(&mut self) {
        let mut next = self.books.ledger.flight.first();
        while let Some(slot) = next {
            next = self.books.ledger.flight.after(slot);
            let Some(entry) = self.books.ledger.flight.get(slot).filter(|e| e.waits) else { continue };
            let generation = entry.generation;
            let record = self.instance.records.read(slot, generation).map(|w| Record::from_words(&w));
            let Some((record, key)) = record.and_then(|r| Some((r, r.owner?))) else { continue };
            let done = match self.tenants.enter(key) {
                Some(t) if t.is_waiting() => continue,
                Some(t) => {
                    self.books.waits_no_more(slot);
                    hand_over(self.instance, t, key, slot, generation, &record).is_ok()
                }
                None => false,
            };
            if !done {
                self.instance.settle(slot, generation, &record.last, Code::Invalid);
            }
            self.books.settled(slot);
        }
    }

    /// Sends what found no room before. False if some still finds none.
    fn send_unsent(&mut self) -> bool {
        if !self.instance.take_unsent() {
            return true;
        }
        let mut next = self.books.ledger.flight.first();
        while let Some(slot) = next {
            next = self.books.ledger.flight.after(slot);
            let live = self.instance.records.live(slot);
            let Some((generation, Slot::Answered(_), words)) = live else { continue };
            if !self.instance.offer(slot, generation, &Record::from_words(&words).last) {
                return false;
            }
            self.books.settled(slot);
        }
        true
    }

    /// Answers Invalid what nobody answered in time: the oldest groups, since all have the same
    /// time.
    fn end_late(&mut self) {
        let mut next = self.books.ledger.flight.first();
        while let Some(slot) = next {
            next = self.books.ledger.flight.after(slot);
            let Some(entry) = self.books.ledger.flight.get(slot) else { continue };
            let Some(until) = entry.until else { continue };
            if until > self.now {
                return;
            }
            let words = self.instance.records.read(slot, entry.generation);
            if let Some(last) = words.map(|w| Record::from_words(&w).last)
                && !entry.counted
                && self.instance.settle(slot, entry.generation, &last, Code::Invalid)
            {
                self.books.count_late(&entry);
                self.instance.report_at(raw(&last, Reason::Deadline), self.now);
            }
            self.books.settled(slot);
        }
    }
}

/// Gives a group to its attachment's resolver, here or through its queue.
fn hand_over<P: Platform>(
    instance: &Arc<Instance<P>>,
    tenant: &Tenant<P>,
    key: Key,
    slot: u32,
    generation: Generation,
    record: &Record,
) -> Result<(), Reason> {
    match tenant.inner.resolves {
        Resolves::Immediately => {
            if let Some(group) = PageGroup::new(instance, slot, generation, record, true) {
                tenant.handler.handle(&Sleep::in_resolver(key), group);
            }
            Ok(())
        }
        _ if tenant.inner.enqueue(slot, generation) => Ok(()),
        _ => Err(Reason::Quota),
    }
}

/// A group that was put into a slot. On drop it is over or left behind, also after a resolver that
/// panicked.
struct Filed<'b, 'a, P: Platform> {
    books: &'b mut Books<'a, P>,
    slot: u32,
}

impl<P: Platform> Drop for Filed<'_, '_, P> {
    fn drop(&mut self) {
        self.books.filed(self.slot);
    }
}

impl<P: Platform> Intake for TurnIntake<'_, P> {
    fn page_request(&mut self, request: PageRequest) -> Taken {
        self.file(&request, true)
    }

    fn malformed(&mut self, request: PageRequest) -> Taken {
        self.file(&request, false)
    }

    fn fault(&mut self, fault: RawFault) {
        self.instance.report_at(fault, self.now);
    }

    fn passed(&mut self, head: QueuePos) {
        // What is filed from now on is filed for what is attached then: a drain that sees the head
        // finds every group of the attachment that it closed.
        self.tenants.leave_all();
        self.instance.pass(head);
    }

    fn overflow(&mut self) {
        self.books.drop_partials(|_| true);
        self.instance.report_at(RawFault::new(FaultKind::Overflow, Reason::QueueOverflow), self.now);
    }

    fn completed(&mut self) {
        self.instance.hub.progressed();
    }
}

fn raw(request: &PageRequest, reason: Reason) -> RawFault {
    RawFault {
        source: Some(request.source),
        pasid: request.pasid,
        access: match (request.exec, request.write) {
            (true, _) => Access::Execute,
            (_, true) => Access::Write,
            _ => Access::Read,
        },
        privileged: request.privileged,
        address: Some(request.address),
        ..RawFault::new(FaultKind::PageRequest, reason)
    }
}
