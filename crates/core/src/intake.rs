//! What the core does with a record, in service context: file it, and say who must act. One turn
//! at a time runs for an instance; it holds no lock.

use crate::{
    account::Account,
    attachment::Inner,
    books::{Books, Ledger, SOON},
    driver::{More, PageRequest, QueuePos, Stall, Taken},
    fault::{Access, FaultKind, RawFault, Reason},
    filed::Filed,
    ids::SourceId,
    instance::Instance,
    platform::{Platform, Time},
    record::{Chain, Group, Record},
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
        self.file_first(request, wellformed)
    }

    #[inline(never)]
    fn file_first(&mut self, request: &PageRequest, wellformed: bool) -> Taken {
        let TurnIntake { books, spots, partial_until, .. } = self;
        let spot = spots.find(request);
        let Some(payer) = spot.payer() else { return self.drop_first(request, Reason::Blocked) };
        payer.account.counts.requests.add(1);
        if !(wellformed && payer.account.standing().is_good() && books.fits(&payer)) {
            return self.refuse_first(request, wellformed);
        }
        if !books.keep(request, spot, &payer, *partial_until) {
            payer.account.counts.quota.add(1);
            return self.drop_first(request, Reason::Quota);
        }
        Taken::Yes
    }

    /// The same of one that wants an answer: its group is complete, or it is a group of its own.
    #[inline(never)]
    fn file_last(&mut self, request: &PageRequest, wellformed: bool) -> Taken {
        let TurnIntake { instance, books, spots, group_until, .. } = self;
        if !books.has_room() {
            return Taken::NoRoom;
        }
        let spot = spots.find(request);
        let Some(payer) = spot.payer() else {
            return self.turn_down(request, Chain::default(), Some(Reason::Blocked));
        };
        let account = payer.account;
        account.counts.requests.add(1);
        account.counts.groups.add(1);
        let (standing, holder) = (account.standing(), account.holder());
        if !(wellformed && standing.is_good() && books.fits(&payer)) {
            return self.refuse_last(request, wellformed);
        }
        let (first, spoilt) = books.complete(request, spot);
        let (Some(device), Some((t, waits)), false) = (account.device(standing), spot.serving(), spoilt)
        else {
            return self.turn_down(request, first, spoilt.then_some(Reason::Quota));
        };
        let group = Group { last: request, first, device, owner: t.inner.key };
        let Some((slot, generation)) = books.put(|| group.to_words()) else { return Taken::NoRoom };
        let until = *group_until;
        let mut filed = Filed { books, spot, slot, holder, first, waits, until };
        if !waits && !hand_over(instance, t, slot, generation, group) {
            report(instance, request, Reason::Quota, self.now);
            instance.settle(slot, generation, request, Code::Invalid);
        }
        // Here and not in its drop, which is for a panic, so that it becomes part of this function.
        filed.leave();
        core::mem::forget(filed);
        Taken::Yes
    }

    /// A request that is not the last of its group is refused, with the whole group.
    #[cold]
    fn refuse_first(&mut self, request: &PageRequest, wellformed: bool) -> Taken {
        let spot = self.spots.find(request);
        let Some(payer) = spot.payer() else { return Taken::Yes };
        let Some(why) = refuse(payer.account, wellformed) else { return Taken::Yes };
        self.books.spoil(request, spot, self.partial_until);
        self.drop_first(request, why)
    }

    /// One that wants an answer is refused, with what was kept of its group.
    #[cold]
    fn refuse_last(&mut self, request: &PageRequest, wellformed: bool) -> Taken {
        let spot = self.spots.find(request);
        let Some((account, _)) = spot.account else { return Taken::Yes };
        let Some(why) = refuse(account, wellformed) else {
            account.counts.void.add(1);
            return Taken::Yes;
        };
        let (first, _) = self.books.complete(request, spot);
        self.turn_down(request, first, Some(why))
    }

    /// Answers a group that reaches no resolver, and tells why, unless its attachment is gone: what still
    /// comes out of the fabric is answered Invalid without a word.
    #[cold]
    fn turn_down(&mut self, request: &PageRequest, first: Chain, why: Option<Reason>) -> Taken {
        let TurnIntake { instance, books, spots, now, .. } = self;
        let spot = spots.find(request);
        // Where several devices have the id, nobody could say which one asks. None does: page requests need
        // ATS, an id with ATS is nobody else's (`Ids::enter`), and on a bus behind a bridge there are no such
        // messages.
        let device = spot.account.and_then(|(account, _)| account.device(account.standing()));
        let holder = spot.account.map_or(0, |(account, _)| account.holder());
        let resolves = spot.inner().is_none_or(Inner::resolves);
        let blocked = device.is_none() || spot.tenant.is_none() || !resolves;
        let record = Record { last: *request, first, device, owner: None };
        let Some((slot, generation)) = books.put(|| record.to_words()) else { return Taken::NoRoom };
        let _filed = Filed { books, spot, slot, holder, first, waits: false, until: None };
        if let Some(reason) = why.or(blocked.then_some(Reason::Blocked)) {
            report(instance, request, reason, *now);
        }
        instance.settle(slot, generation, request, Code::Invalid);
        Taken::Yes
    }

    /// One that wants no answer is not kept.
    #[cold]
    fn drop_first(&self, request: &PageRequest, why: Reason) -> Taken {
        report(self.instance, request, why, self.now);
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
                false => record.group().is_some_and(|g| hand_over(instance, t, slot, generation, g)),
                true => hand_over_stall(instance, t, slot, generation, record.group()).is_ok(),
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

/// Why a request is refused. `None` while the device is being reset: nobody waits for an answer.
fn refuse(account: &Account, wellformed: bool) -> Option<Reason> {
    let standing = account.standing();
    let (count, why) = match () {
        () if standing.is_resetting() => return None,
        () if account.share() == 0 || standing.is_quarantined() => {
            (&account.counts.unauthorised, Reason::RequestType)
        }
        () if !wellformed => (&account.counts.malformed, Reason::BadEntry),
        () => (&account.counts.quota, Reason::Quota),
    };
    count.add(1);
    Some(why)
}

/// Gives a group to its attachment's resolver, here or through its queue. False when that has no room.
#[inline]
fn hand_over<P: Platform>(
    instance: &Arc<Instance<P>>,
    tenant: &Tenant<P>,
    slot: u32,
    generation: Generation,
    group: Group<&PageRequest>,
) -> bool {
    if tenant.inner.resolves != Resolves::Immediately {
        return tenant.inner.enqueue(slot, generation);
    }
    let group = PageGroup::new(instance, slot, generation, group, true);
    tenant.handler.handle(group);
    true
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
