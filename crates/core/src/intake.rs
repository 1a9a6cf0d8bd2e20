//! What the core does with a record, in service context: file it, and say who must act. One turn
//! at a time runs for an instance; it holds no lock.

use crate::{
    account::{Account, Standing},
    attachment::Inner,
    books::{Books, Ledger, SOON},
    driver::{More, PageRequest, QueuePos, Stall, Taken},
    fault::{Access, FaultKind, RawFault, Reason},
    flight::Entry,
    ids::SourceId,
    instance::Instance,
    platform::{Platform, Sleep, Time},
    record::{Chain, Record},
    resolver::{PageGroup, Resolves},
    slab::Tenant,
    spots::Spots,
    stall::hand_over_stall,
    turn::{Code, Intake},
};
use alloc::sync::Arc;
use portcullis_sync::slot::{Generation, State as Slot};

/// One round of a service turn.
pub(crate) struct TurnIntake<'a, P: Platform> {
    pub(crate) instance: &'a Arc<Instance<P>>,
    pub(crate) books: Books<'a, P>,
    pub(crate) spots: Spots<'a, P>,
    /// The clock is read once a round.
    pub(crate) now: Time,
    /// When a group that comes now is late, and one of which the last request does not come.
    group_until: Option<Time>,
    partial_until: Time,
}

impl<'a, P: Platform> TurnIntake<'a, P> {
    pub(crate) fn new(instance: &'a Arc<Instance<P>>, ledger: &'a mut Ledger) -> Self {
        let (now, config) = (instance.platform().now(), instance.config());
        TurnIntake {
            instance,
            books: Books::open(instance, ledger),
            spots: Spots::new(instance),
            now,
            group_until: config.group_deadline.map(|d| now + d),
            partial_until: now + config.partial_deadline,
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
        self.spots.leave_all();
        let sent = self.send_unsent();
        self.books.drop_late(self.now);
        self.books.unlimit(self.now);
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
    #[inline]
    fn file(&mut self, request: &PageRequest, wellformed: bool) -> Taken {
        if request.wants_answer() {
            return self.file_last(request, wellformed);
        }
        let TurnIntake { instance, books, spots, now, partial_until, .. } = self;
        let spot = spots.find(request);
        let Some((account, number)) = spot.account else { return self.stray(request) };
        account.counts.requests.add(1);
        let standing = account.standing();
        let mut refused = None;
        if !(wellformed && standing.is_good() && books.charge(account, spot.inner())) {
            match refuse(account, standing, wellformed) {
                Verdict::Void => return Taken::Yes,
                Verdict::Refused(why) => refused = Some(why),
            }
        }
        if let Err(why) = books.keep(request, (account, number), spot, *partial_until, refused) {
            report(instance, request, why, *now);
        }
        Taken::Yes
    }

    /// The same of one that wants an answer: its group is complete, or it is a group of its own.
    #[inline]
    fn file_last(&mut self, request: &PageRequest, wellformed: bool) -> Taken {
        let TurnIntake { instance, books, spots, now, group_until, .. } = self;
        if !books.has_room() {
            return Taken::NoRoom;
        }
        let spot = spots.find(request);
        let Some((account, number)) = spot.account else { return self.stray(request) };
        account.counts.requests.add(1);
        account.counts.groups.add(1);
        let standing = account.standing();
        let mut refused = None;
        if !(wellformed && standing.is_good() && books.charge(account, spot.inner())) {
            match refuse(account, standing, wellformed) {
                Verdict::Void => {
                    account.counts.void.add(1);
                    return Taken::Yes;
                }
                Verdict::Refused(why) => refused = Some(why),
            }
        }
        let charged = u32::from(refused.is_none());
        // One that is answered by itself is a group of its own; the rest of its group goes on.
        let partial = if request.last { books.complete(request, (account, number), spot) } else { None };
        let mut first = Chain::default();
        if let Some(p) = partial {
            first = p.first;
            refused = refused.or(p.spoilt.then_some(Reason::Quota));
        }
        let device = account.device(standing);
        let serves = match (spot.tenant(), refused) {
            (_, Some(_)) => Err(refused),
            // Nobody could say which device asks. No device does: page requests need ATS, an id with ATS is
            // nobody else's (`Ids::enter`), and on a bus behind a bridge there are no such messages.
            _ if device.is_none() => Err(Some(Reason::Blocked)),
            (Some(t), _) if !t.inner.resolves() => Err(Some(Reason::Blocked)),
            // The entry is gone: what still comes out of the fabric is answered Invalid.
            (Some(t), _) if t.is_closed() => Err(None),
            (Some(t), _) => Ok(t),
            _ if spot.tenant.is_some() => Err(None),
            _ => Err(Some(Reason::Blocked)),
        };
        let owner = if serves.is_ok() { spot.tenant } else { None };
        let record = Record { last: *request, first, device, owner };
        let Some((slot, generation)) = books.put(&record) else { return Taken::NoRoom };
        let entry = Entry {
            generation,
            account: Some((number, account.holder())),
            tenant: spot.tenant,
            // What was kept for the group stays charged until it is settled.
            charge: first.len + charged,
            tenant_charge: first.len + if spot.inner().is_some() { charged } else { 0 },
            first,
            until: *group_until,
            waits: false,
            counted: false,
        };
        let mut filed = Filed { books, slot, entry, tenant: spot.inner() };
        let refused = match serves {
            Ok(t) if t.is_waiting() => {
                filed.entry.waits = true;
                return Taken::Yes;
            }
            Ok(t) => hand_over(instance, t, slot, generation, &record).err().map(Some),
            Err(why) => Some(why),
        };
        if let Some(why) = refused {
            if let Some(reason) = why {
                report(instance, request, reason, *now);
            }
            instance.settle(slot, generation, request, Code::Invalid);
        }
        Taken::Yes
    }

    /// Refuses a request of a requester that nobody knows.
    #[cold]
    fn stray(&mut self, request: &PageRequest) -> Taken {
        report(self.instance, request, Reason::Blocked, self.now);
        if !request.wants_answer() {
            return Taken::Yes;
        }
        let record = Record { last: *request, first: Chain::default(), device: None, owner: None };
        let Some((slot, generation)) = self.books.put(&record) else { return Taken::NoRoom };
        let entry = Entry {
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
        let _filed = Filed { books: &mut self.books, slot, entry, tenant: None };
        self.instance.settle(slot, generation, request, Code::Invalid);
        Taken::Yes
    }

    /// Groups and stalled transactions that waited for their attachments to be ready.
    fn deliver_waiting(&mut self) {
        self.books.ledger.flight.oldest().into_iter().for_each(|oldest| self.deliver_waiting_of(oldest));
    }

    fn deliver_waiting_of(&mut self, oldest: Option<u32>) {
        let mut next = oldest;
        while let Some(slot) = next {
            next = self.books.ledger.flight.after(slot);
            let Some(entry) = self.books.ledger.flight.get(slot).filter(|e| e.waits) else { continue };
            let generation = entry.generation;
            let record = self.instance.records.read(slot, generation).map(|w| Record::from_words(&w));
            let Some((record, key)) = record.and_then(|r| Some((r, r.owner?))) else { continue };
            if self.books.late(key).is_some_and(|t| t.is_waiting()) {
                continue;
            }
            self.books.waits_no_more(slot);
            let instance = self.instance;
            let tenant = self.books.late(key);
            let done = tenant.is_some_and(|t| match instance.is_stall(slot) {
                false => hand_over(instance, t, slot, generation, &record).is_ok(),
                true => hand_over_stall(instance, t, slot, generation, &record).is_ok(),
            });
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
        // What finds no room among the one kind need not find none among the other.
        let [groups, stalls] = self.books.ledger.flight.oldest().map(|oldest| self.send_unsent_of(oldest));
        groups && stalls
    }

    fn send_unsent_of(&mut self, oldest: Option<u32>) -> bool {
        let mut next = oldest;
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

    /// Answers Invalid what nobody answered in time: the oldest of each kind, since all of a kind have
    /// the same time.
    fn end_late(&mut self) {
        self.books.ledger.flight.oldest().into_iter().for_each(|oldest| self.end_late_of(oldest));
    }

    fn end_late_of(&mut self, oldest: Option<u32>) {
        let mut next = oldest;
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
                self.books.count_late(slot, &entry);
                let kind =
                    if self.instance.is_stall(slot) { FaultKind::Stall } else { FaultKind::PageRequest };
                self.instance.report_at(RawFault { kind, ..raw(&last, Reason::Deadline) }, self.now);
            }
            self.books.settled(slot);
        }
    }
}

/// What becomes of a request that is not served.
enum Verdict {
    /// The device is being reset: nobody waits for an answer.
    Void,
    Refused(Reason),
}

#[cold]
fn refuse(account: &Account, standing: Standing, wellformed: bool) -> Verdict {
    let (count, why) = match () {
        () if standing.is_resetting() => return Verdict::Void,
        () if account.share() == 0 || standing.is_quarantined() => {
            (&account.counts.unauthorised, Reason::RequestType)
        }
        () if !wellformed => (&account.counts.malformed, Reason::BadEntry),
        () => (&account.counts.quota, Reason::Quota),
    };
    count.add(1);
    Verdict::Refused(why)
}

/// Gives a group to its attachment's resolver, here or through its queue.
#[inline]
fn hand_over<P: Platform>(
    instance: &Arc<Instance<P>>,
    tenant: &Tenant<P>,
    slot: u32,
    generation: Generation,
    record: &Record,
) -> Result<(), Reason> {
    match tenant.inner.resolves {
        Resolves::Immediately => {
            if let Some(group) = PageGroup::new(instance, slot, generation, record, true) {
                tenant.handler.handle(&Sleep::in_resolver(tenant.inner.key), group);
            }
            Ok(())
        }
        _ if tenant.inner.enqueue(slot, generation) => Ok(()),
        _ => Err(Reason::Quota),
    }
}

/// A group that was put into a slot. On drop it is over or left behind, also after a resolver that
/// panicked.
pub(crate) struct Filed<'b, 'a, P: Platform> {
    pub(crate) books: &'b mut Books<'a, P>,
    pub(crate) slot: u32,
    pub(crate) entry: Entry,
    /// The attachment that it is charged to.
    pub(crate) tenant: Option<&'b Inner<P>>,
}

impl<P: Platform> Drop for Filed<'_, '_, P> {
    #[inline]
    fn drop(&mut self) {
        self.books.filed(self.slot, &mut self.entry, self.tenant);
    }
}

impl<P: Platform> Intake for TurnIntake<'_, P> {
    fn page_request(&mut self, request: PageRequest) -> Taken {
        self.file(&request, true)
    }

    fn malformed(&mut self, request: PageRequest) -> Taken {
        self.file(&request, false)
    }

    fn stalled(&mut self, stall: Stall) -> Taken {
        self.file_stall(&stall)
    }

    fn stalls_ended(&mut self, source: SourceId) {
        self.lose_stalls(source);
    }

    fn fault(&mut self, fault: RawFault) {
        self.books.faulted(fault.source, self.now);
        self.instance.report_at(fault, self.now);
    }

    fn passed(&mut self, head: QueuePos) {
        // What is filed from now on is filed for what is attached then: a drain that sees the head
        // finds every group of the attachment that it closed.
        self.spots.leave_all();
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

/// Tells of a request that is settled without reaching a resolver.
#[cold]
fn report<P: Platform>(instance: &Instance<P>, request: &PageRequest, why: Reason, now: Time) {
    instance.report_at(raw(request, why), now);
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
