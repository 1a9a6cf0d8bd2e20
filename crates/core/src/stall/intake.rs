//! What a service turn does with a stalled transaction: file it, and say who decides.

use crate::{
    attachment::Inner,
    books::Books,
    driver::{PageRequest, Stall, Taken},
    fault::{FaultKind, RawFault, Reason},
    flight::Entry,
    ids::SourceId,
    instance::Instance,
    intake::TurnIntake,
    platform::{Platform, Sleep},
    record::{Chain, Group, Record},
    resolver::{Deferred, Resolves},
    slab::Tenant,
    turn::Code,
};
use alloc::sync::Arc;
use portcullis_sync::slot::Generation;

impl<P: Platform> TurnIntake<'_, P> {
    /// Takes in one stalled transaction. Whatever becomes of it, it has a slot until it is resumed.
    pub(crate) fn file_stall(&mut self, stall: &Stall) -> Taken {
        let (instance, now) = (self.instance, self.now);
        let say = |kind, why| instance.report_at(stall.fault(kind, why), now);
        if !self.books.keeps_stalls() || self.books.is_held(stall.id) {
            // What its driver says contradicts itself: nobody could tell which one was resumed.
            say(FaultKind::Stall, Reason::BadEntry);
            return Taken::Yes;
        }
        if !self.books.has_room_for_stall() {
            return Taken::NoRoom;
        }
        let last = PageRequest::from(stall);
        let TurnIntake { books, spots, .. } = self;
        let spot = spots.find(&last);
        if let Some((account, _)) = spot.account {
            account.counts.stalls.add(1);
        }
        let blocked = Err(Some((FaultKind::Dma, Reason::Blocked)));
        let (mut charge, mut serves, mut device) = (0, blocked, None);
        if let Some((account, number)) = spot.account {
            let standing = account.standing();
            device = account.device(standing).or(spot.inner().map(|inner| inner.device.id));
            serves = match spot.tenant() {
                // Between the block and the end of a reset, or of a detach.
                _ if standing.is_resetting() => Err(None),
                None if spot.tenant.is_some() => Err(None),
                Some(t) if t.is_closed() => Err(None),
                _ if standing.is_quarantined() => blocked,
                None => blocked,
                Some(t) if !t.stalls() => Err(Some((FaultKind::Dma, stall.reason))),
                Some(t) => {
                    books.limit(number, account, stall.source, now);
                    if account.is_limited() {
                        Err(Some((FaultKind::Stall, Reason::Storm)))
                    } else if books.charge_stall(account, &t.inner) {
                        charge = 1;
                        Ok(t)
                    } else {
                        account.counts.stalls_over.add(1);
                        Err(Some((FaultKind::Stall, Reason::Quota)))
                    }
                }
            };
        }
        let owner = if serves.is_ok() { spot.tenant } else { None };
        let record = Record { last, first: Chain::default(), device, owner };
        let Some((slot, generation)) = books.put_stall(&record) else { return Taken::NoRoom };
        books.hold(slot, stall.id);
        let entry = Entry {
            generation,
            account: spot.account.map(|(account, n)| (n, account.holder())),
            tenant: spot.tenant,
            charge,
            tenant_charge: charge,
            first: Chain::default(),
            until: instance.config().stall_deadline.filter(|_| charge > 0).map(|d| now + d),
            waits: false,
            counted: false,
        };
        let mut filed = Filed { books, slot, entry, tenant: spot.inner() };
        let refused = match serves {
            Ok(t) => {
                let told =
                    RawFault { stalled: Some(stall.id), ..stall.fault(FaultKind::Stall, stall.reason) };
                instance.report_at(told, now);
                if t.is_waiting() {
                    filed.entry.waits = true;
                    return Taken::Yes;
                }
                let handed = hand_over_stall(instance, t, slot, generation, record.group());
                handed.err().map(|why| Some((FaultKind::Stall, why)))
            }
            Err(why) => Some(why),
        };
        if let Some(why) = refused {
            if let Some((kind, why)) = why {
                say(kind, why);
            }
            instance.settle(slot, generation, &last, Code::Invalid);
        }
        Taken::Yes
    }

    /// What a requester had stalled has ended without a verdict.
    pub(crate) fn lose_stalls(&mut self, source: SourceId) {
        self.instance.void_stalls_of(source);
        let raw = RawFault::new(FaultKind::Overflow, Reason::QueueOverflow);
        self.instance.report_at(RawFault { source: Some(source), ..raw }, self.now);
    }
}

/// A transaction that was put into a slot. On drop it is over or left behind, also after a decider
/// that panicked.
struct Filed<'b, 'a, P: Platform> {
    books: &'b mut Books<'a, P>,
    slot: u32,
    entry: Entry,
    /// The attachment that it is charged to.
    tenant: Option<&'b Inner<P>>,
}

impl<P: Platform> Drop for Filed<'_, '_, P> {
    fn drop(&mut self) {
        self.books.stalled(self.slot, &mut self.entry, self.tenant);
    }
}

/// Gives a stalled transaction to whoever decides it, here or through the attachment's queue.
pub(crate) fn hand_over_stall<P: Platform>(
    instance: &Arc<Instance<P>>,
    tenant: &Tenant<P>,
    slot: u32,
    generation: Generation,
    group: Option<Group<&PageRequest>>,
) -> Result<(), Reason> {
    let Some(handler) = &tenant.stalls else { return Err(Reason::Blocked) };
    match handler.resolves() {
        Resolves::Nothing => Err(Reason::Blocked),
        Resolves::Immediately => {
            let group = group.ok_or(Reason::Blocked)?.keep();
            let stalled = Deferred::new(instance, slot, generation, group, true);
            handler.handle(&Sleep::in_resolver(tenant.inner.key), stalled, true);
            Ok(())
        }
        Resolves::Sleeping if tenant.inner.enqueue(slot, generation) => Ok(()),
        Resolves::Sleeping => Err(Reason::Quota),
    }
}
