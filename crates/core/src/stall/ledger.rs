//! The accounts of stalled transactions, in the hands of the one service turn that runs.

use crate::{
    account::Account,
    attachment::Inner,
    books::Books,
    error::OutOfMemory,
    fault::{FaultKind, RawFault, Reason},
    flight::Entry,
    ids::{SourceId, StallId},
    instance::Instance,
    platform::{Platform, Time},
    stall::limit::Limiter,
};
use alloc::vec::Vec;
use portcullis_sync::slot::State;

/// What the turn keeps of stalled transactions from one round to the next.
pub(crate) struct Stalls {
    /// The number of what is in each slot.
    ids: Vec<StallId>,
    /// Transactions that wait for a verdict.
    held: u32,
    /// By the number of the requester's account.
    limits: Vec<Limiter>,
    /// Requesters that are not let stall.
    limited: u32,
}

impl Stalls {
    pub(crate) fn new(slots: usize, devices: usize) -> Result<Stalls, OutOfMemory> {
        let (mut ids, mut limits) = (Vec::new(), Vec::new());
        ids.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        ids.resize(slots, StallId(0));
        if slots > 0 {
            limits.try_reserve_exact(devices).map_err(|_| OutOfMemory)?;
            limits.resize(devices, Limiter::new(SourceId(0), 0));
        }
        Ok(Stalls { ids, held: 0, limits, limited: 0 })
    }

    /// When the first of those that are not let stall may do so again.
    pub(crate) fn due(&self) -> Option<Time> {
        if self.limited == 0 {
            return None;
        }
        self.limits.iter().filter_map(Limiter::due).min()
    }
}

impl<P: Platform> Books<'_, P> {
    /// Whether the instance keeps stalled transactions at all.
    pub(crate) fn keeps_stalls(&self) -> bool {
        !self.ledger.stalls.ids.is_empty()
    }

    /// Whether another stalled transaction can wait for its verdict.
    pub(crate) fn has_room_for_stall(&mut self) -> bool {
        if self.ledger.flight.next_free_stall().is_none() {
            self.search();
        }
        self.ledger.flight.next_free_stall().is_some()
    }

    /// Whether a transaction of this number waits already.
    pub(crate) fn is_held(&mut self, id: StallId) -> bool {
        let first = self.instance.caps().page_requests;
        for n in 0..self.ledger.stalls.ids.len() {
            if self.ledger.stalls.ids[n] == id {
                let slot = first + n as u32;
                // Resumed, the number may come again at once.
                self.settled(slot);
                if self.ledger.flight.get(slot).is_some() {
                    return true;
                }
            }
        }
        false
    }

    pub(crate) fn hold(&mut self, slot: u32, id: StallId) {
        if let Some(place) = self.ledger.flight.stall(slot).and_then(|n| self.ledger.stalls.ids.get_mut(n)) {
            *place = id;
        }
    }

    /// Charges a stalled transaction to its requester and to what is attached. Some slots are kept
    /// for those that nobody is asked about.
    pub(crate) fn charge_stall(&mut self, account: &Account, tenant: &Inner<P>) -> bool {
        let fits = self.charge_one(account, tenant);
        fits || {
            self.search();
            self.charge_one(account, tenant)
        }
    }

    fn charge_one(&mut self, account: &Account, tenant: &Inner<P>) -> bool {
        let config = self.instance.config();
        let slots = self.ledger.stalls.ids.len() as u32;
        let most = slots - config.credit_reserve.min(slots / 2);
        let fits = account.stalled.get() < u64::from(config.stalls_per_device)
            && self.ledger.stalls.held < most
            && tenant.lease.requests.lease(&tenant.domain.quota.requests, config.credits_per_attachment);
        if fits {
            account.stalled.add(1);
            self.ledger.stalls.held += 1;
        }
        fits
    }

    /// A transaction that was just put into a slot comes to this: over already, or left behind.
    pub(crate) fn stalled(&mut self, slot: u32, entry: &mut Entry, tenant: Option<&Inner<P>>) {
        let Some(word) = self.instance.records.word(slot) else { return };
        let (_, state) = word.peek();
        if state.is_decided() {
            (entry.counted, entry.waits) = (true, false);
            self.count_stall(entry, state);
            if let Some(t) = tenant {
                t.lease.requests.uncharge(entry.tenant_charge, &t.domain.quota.requests);
            }
        }
        if !state.is_free() {
            self.ledger.waiting += u32::from(entry.waits);
            self.ledger.flight.stay(slot, *entry);
        }
    }

    /// The verdict of a stalled transaction is decided: it counts no longer against any quota.
    pub(crate) fn count_stall(&mut self, entry: &Entry, state: State) {
        self.ledger.stalls.held -= entry.charge;
        let mut number = None;
        self.with_account(entry, |account| {
            let counts = &account.counts;
            match state {
                State::Sent(0) | State::Answered(0) => counts.retried.add(1),
                State::Void => counts.stalls_lost.add(1),
                _ => {
                    counts.terminated.add(1);
                    number = entry.account.map(|(n, _)| n as usize);
                }
            }
        });
        if let Some((n, _)) = entry.account
            && let Some(account) = self.instance.accounts.get(n as usize)
        {
            account.stalled.sub(entry.charge.into());
        }
        if let (Some(limiter), true) =
            (number.and_then(|n| self.ledger.stalls.limits.get_mut(n)), entry.charge > 0)
        {
            limiter.was_terminated();
        }
    }

    /// One more stall of a requester. Where that is too much, it is not let stall for a while.
    pub(crate) fn limit(&mut self, n: u32, account: &Account, source: SourceId, now: Time) {
        let limit = &self.instance.config().stall_limit;
        let Stalls { limits, limited, .. } = &mut self.ledger.stalls;
        let Some(limiter) = limits.get_mut(n as usize) else { return };
        if (limiter.source, limiter.holder) != (source, account.holder()) {
            *limited -= u32::from(limiter.due().is_some());
            *limiter = Limiter::new(source, account.holder());
        }
        if limiter.stalls(now, limit) {
            *limited += 1;
            account.counts.stall_storms.add(1);
            say(self.instance, account, source, true, now);
        }
    }

    /// A fault that was not held. It begins the time anew that its device does not stall for.
    pub(crate) fn faulted(&mut self, source: Option<SourceId>, now: Time) {
        let limit = &self.instance.config().stall_limit;
        let Stalls { limits, limited, .. } = &mut self.ledger.stalls;
        if let (Some(source), true) = (source, *limited > 0) {
            limits.iter_mut().filter(|l| l.source == source).for_each(|l| l.faults(now, limit));
        }
    }

    /// Lets those stall again that were quiet.
    pub(crate) fn unlimit(&mut self, now: Time) {
        let instance: &Instance<P> = self.instance;
        let Stalls { limits, limited, .. } = &mut self.ledger.stalls;
        if *limited == 0 {
            return;
        }
        for (n, limiter) in limits.iter_mut().enumerate().filter(|(_, l)| l.due().is_some()) {
            if limiter.calms(now) {
                *limited -= 1;
                if let Some(account) = instance.accounts.get(n).filter(|a| a.holder() == limiter.holder) {
                    say(instance, account, limiter.source, false, now);
                }
            }
        }
    }
}

fn say<P: Platform>(instance: &Instance<P>, account: &Account, source: SourceId, off: bool, now: Time) {
    account.set_limited(off);
    let raw = RawFault::new(FaultKind::StallLimit, Reason::Storm);
    instance.report_at(RawFault { source: Some(source), code: u32::from(!off), ..raw }, now);
    instance.ask_for_stalls();
}
