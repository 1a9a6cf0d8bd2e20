//! The accounts of the groups and requests that an instance keeps, in the hands of the one service
//! turn that runs: room, quotas, deadlines, counts. No lock is held.

use crate::{
    account::Account,
    assembly::{Assembly, Partial},
    attachment::Inner,
    driver::PageRequest,
    error::OutOfMemory,
    fault::Reason,
    flight::{Entry, Flight},
    ids::Key,
    instance::Instance,
    platform::{Platform, Time},
    record::{Chain, Record},
    slab::leave,
};
use core::time::Duration;
use portcullis_sync::slot::{Generation, State};

/// What the turn owns from one round to the next.
pub(crate) struct Ledger {
    pub(crate) flight: Flight,
    pub(crate) assembly: Assembly,
    /// Groups that wait for their attachment to be ready.
    pub(crate) waiting: u32,
    /// Slots that are still to be looked at, since answers were given outside a turn.
    to_look_at: u32,
    /// How soon the next try to send an answer is made.
    pub(crate) retry: Duration,
}

/// Slots that a round looks at for groups that are over.
const LOOK: u32 = 64;

/// How soon a round that left work behind is followed by another, and the longest pause between
/// tries to send.
pub(crate) const SOON: Duration = Duration::from_micros(10);
const LATE: Duration = Duration::from_millis(1);

impl Ledger {
    pub(crate) fn new(slots: usize) -> Result<Ledger, OutOfMemory> {
        let (flight, assembly) = (Flight::new(slots)?, Assembly::new(slots)?);
        Ok(Ledger { flight, assembly, waiting: 0, to_look_at: 0, retry: SOON })
    }
}

/// The ledger, open.
pub(crate) struct Books<'a, P: Platform> {
    pub(crate) instance: &'a Instance<P>,
    pub(crate) ledger: &'a mut Ledger,
    /// Every group that is over was looked for, in this round.
    searched: bool,
}

impl<'a, P: Platform> Books<'a, P> {
    pub(crate) fn open(instance: &'a Instance<P>, ledger: &'a mut Ledger) -> Books<'a, P> {
        Books { instance, ledger, searched: false }
    }

    /// Whether another group can wait for its answer.
    #[inline]
    pub(crate) fn has_room(&mut self) -> bool {
        if self.ledger.flight.is_full() {
            self.search();
        }
        !self.ledger.flight.is_full()
    }

    /// Charges one more request to a device and to what is attached at the place it came from.
    #[inline]
    pub(crate) fn charge(&mut self, account: &Account, share: u64, tenant: Option<&Inner<P>>) -> bool {
        let free = |account: &Account| {
            account.outstanding.get() < share
                && tenant.is_none_or(|t| {
                    t.lease.charge(&t.domain.quota, self.instance.config().credits_per_attachment)
                })
        };
        let fits = free(account) || (self.search_again() && free(account));
        if fits {
            account.outstanding.add(1);
        }
        fits
    }

    fn search_again(&mut self) -> bool {
        let first = !self.searched;
        self.search();
        first
    }

    /// Looks at every slot for groups that are over, once a round.
    pub(crate) fn search(&mut self) {
        if !core::mem::replace(&mut self.searched, true) {
            self.look(self.ledger.flight.slots());
        }
    }

    /// Looks at some slots, after answers were given outside a turn.
    pub(crate) fn look_around(&mut self) {
        if self.instance.take_ended() {
            self.ledger.to_look_at = self.ledger.flight.slots();
        }
        let n = self.ledger.to_look_at.min(LOOK);
        self.ledger.to_look_at -= n;
        self.look(n);
    }

    fn look(&mut self, n: u32) {
        for _ in 0..n {
            let slot = self.ledger.flight.cursor;
            self.ledger.flight.cursor = (slot + 1) % self.ledger.flight.slots();
            self.settled(slot);
        }
    }

    /// Puts a group into a free slot. `None` when there is none.
    #[inline]
    pub(crate) fn put(
        &mut self,
        record: &Record,
        entry: impl FnOnce(Generation) -> Entry,
    ) -> Option<(u32, Generation)> {
        let slot = self.ledger.flight.next_free()?;
        let generation = self.instance.records.arm(slot, &record.to_words())?;
        self.ledger.flight.enter(entry(generation));
        Some((slot, generation))
    }

    /// A group waits until its attachment is ready.
    pub(crate) fn wait(&mut self, slot: u32) {
        if let Some(entry) = self.ledger.flight.get_mut(slot) {
            entry.waits = true;
            self.ledger.waiting += 1;
        }
    }

    pub(crate) fn waits_no_more(&mut self, slot: u32) {
        if let Some(entry) = self.ledger.flight.get_mut(slot)
            && core::mem::take(&mut entry.waits)
        {
            self.ledger.waiting -= 1;
        }
    }

    /// A group that stayed may be over.
    pub(crate) fn settled(&mut self, slot: u32) {
        if self.is_over(slot) {
            self.ledger.flight.leave_late(slot);
        }
    }

    /// Nobody answered a group in time.
    pub(crate) fn count_late(&self, entry: &Entry) {
        self.with_account(entry, |account| account.counts.deadline.add(1));
    }

    /// Does something to the account that a group is charged to, unless it is another device's now.
    #[inline]
    fn with_account(&self, entry: &Entry, f: impl FnOnce(&Account)) {
        if let Some((n, holder)) = entry.account
            && let Some(account) = self.instance.accounts.get(n as usize)
            && account.holder() == holder
        {
            f(account);
        }
    }

    /// What a group that was just filed comes to: over already, or left behind.
    #[inline]
    pub(crate) fn filed(&mut self, slot: u32) {
        if self.is_over(slot) {
            self.ledger.flight.leave(slot);
        } else {
            self.ledger.flight.stays(slot);
        }
    }

    /// Counts a group's answer once it is decided. True when its slot is free again.
    #[inline]
    fn is_over(&mut self, slot: u32) -> bool {
        let Some(entry) = self.ledger.flight.get_mut(slot) else { return false };
        let Some(word) = self.instance.records.word(slot) else { return false };
        let (_, state) = word.peek();
        if state == State::Pending {
            return false;
        }
        let before = *entry;
        entry.counted = true;
        if !before.counted {
            if core::mem::take(&mut entry.waits) {
                self.ledger.waiting -= 1;
            }
            self.count(&before, state);
        } else if state == State::Void {
            // Decided, and a reset came before it was sent.
            self.with_account(&before, |account| account.counts.void.add(1));
        }
        if !state.is_free() {
            return false;
        }
        if before.first.len > 0 {
            self.ledger.assembly.free_chain(before.first, &self.instance.records);
        }
        true
    }

    /// The answer of a group is decided: it counts no longer against any quota, because the device
    /// may ask again as soon as it can see it.
    #[inline]
    fn count(&mut self, entry: &Entry, state: State) {
        self.with_account(entry, |account| {
            let counts = &account.counts;
            match state {
                State::Sent(0) | State::Answered(0) => counts.success.add(1),
                State::Void => counts.void.add(1),
                _ => counts.invalid.add(1),
            }
        });
        if let Some(account) = entry.account.and_then(|(n, _)| self.instance.accounts.get(n as usize)) {
            account.outstanding.sub(entry.charge.into());
        }
        self.uncharge(entry.tenant, entry.tenant_charge);
    }

    /// Takes charges back from an attachment, unless it is gone with all of them.
    fn uncharge(&self, tenant: Option<Key>, n: u32) {
        if n > 0 {
            self.with_tenant(tenant, |t| {
                t.lease.uncharge(n);
                t.lease.trim(&t.domain.quota);
            });
        }
    }

    /// Does something to an attachment that is not gone.
    fn with_tenant(&self, tenant: Option<Key>, f: impl FnOnce(&Inner<P>)) {
        if let Some(inside) = tenant.and_then(|key| self.instance.hub.attachments.enter(key)) {
            f(&inside.inner);
            leave(inside);
        }
    }

    /// Keeps a request that is not the last of its group.
    pub(crate) fn keep(
        &mut self,
        request: &PageRequest,
        account: (u32, &Account),
        tenant: Option<(Key, &Inner<P>)>,
        until: Time,
        refused: Option<Reason>,
    ) -> Result<(), Reason> {
        let (number, account) = account;
        let n = match self.ledger.assembly.find(request) {
            Some(n) if self.is_current(n, tenant.map(|(key, _)| key)) => Some(n),
            Some(n) => {
                self.drop_partial(n);
                None
            }
            None => None,
        };
        let n = match n {
            Some(n) => n,
            None => {
                let begun = self.begin(request, (number, account), tenant, until);
                let Some(n) = begun else {
                    account.counts.quota.add(refused.is_none().into());
                    self.uncharge_one(account, tenant.map(|(_, t)| t), refused.is_none());
                    return Err(refused.unwrap_or(Reason::Quota));
                };
                n
            }
        };
        if let Some(reason) = refused {
            self.ledger.assembly.spoil(n);
            return Err(reason);
        }
        if !self.ledger.assembly.keep(n, request, &self.instance.records) {
            self.ledger.assembly.spoil(n);
            account.counts.quota.add(1);
            self.uncharge_one(account, tenant.map(|(_, t)| t), true);
            return Err(Reason::Quota);
        }
        Ok(())
    }

    fn begin(
        &mut self,
        request: &PageRequest,
        (number, account): (u32, &Account),
        tenant: Option<(Key, &Inner<P>)>,
        until: Time,
    ) -> Option<u32> {
        let most = self.instance.config().partials_per_device;
        if account.standing().share == 0 || account.partials.get() >= u64::from(most) {
            return None;
        }
        if tenant.is_some_and(|(_, t)| !t.lease.take_partial(&t.domain.quota)) {
            return None;
        }
        let life = account.life();
        let key = tenant.map(|(key, _)| key);
        let begun = self.ledger.assembly.begin(request, (number, life), key, until);
        match begun {
            Some(_) => account.partials.add(1),
            None => tenant.iter().for_each(|(_, t)| t.lease.give_partial(&t.domain.quota)),
        }
        begun
    }

    fn uncharge_one(&self, account: &Account, tenant: Option<&Inner<P>>, charged: bool) {
        if charged {
            account.outstanding.sub(1);
            tenant.iter().for_each(|t| t.lease.uncharge(1));
        }
    }

    /// Whether a partial group is still what the device means, and meant for what is attached now.
    fn is_current(&self, n: u32, tenant: Option<Key>) -> bool {
        self.ledger.assembly.get(n).is_some_and(|p| {
            let account = self.instance.accounts.get(p.account as usize);
            p.tenant == tenant && account.is_some_and(|a| a.life() == p.life)
        })
    }

    /// Takes the collected first requests of a group out, for its last one.
    #[inline]
    pub(crate) fn complete(&mut self, request: &PageRequest, tenant: Option<Key>) -> Option<Partial> {
        let n = self.ledger.assembly.find(request)?;
        if !self.is_current(n, tenant) {
            self.drop_partial(n);
            return None;
        }
        let partial = self.ledger.assembly.end(n)?;
        self.one_partial_less(&partial);
        Some(partial)
    }

    fn one_partial_less(&self, partial: &Partial) {
        if let Some(account) = self.instance.accounts.get(partial.account as usize) {
            account.partials.sub(1);
        }
        self.with_tenant(partial.tenant, |t| t.lease.give_partial(&t.domain.quota));
    }

    fn drop_partial(&mut self, n: u32) {
        let Some(partial) = self.ledger.assembly.end(n) else { return };
        self.one_partial_less(&partial);
        let Chain { len, .. } = partial.first;
        if let Some(account) = self.instance.accounts.get(partial.account as usize) {
            account.outstanding.sub(len.into());
            account.counts.partials_dropped.add(len.into());
        }
        self.uncharge(partial.tenant, len);
        self.ledger.assembly.free_chain(partial.first, &self.instance.records);
    }

    /// Drops the partial groups that `goes` says.
    pub(crate) fn drop_partials(&mut self, goes: impl Fn(&Partial) -> bool) {
        let mut next = self.ledger.assembly.first();
        while let Some(n) = next {
            next = self.ledger.assembly.after(n);
            if self.ledger.assembly.get(n).is_some_and(&goes) {
                self.drop_partial(n);
            }
        }
    }

    /// Drops the partial groups of devices and attachments that will not complete them.
    pub(crate) fn sweep(&mut self) {
        if !self.instance.take_sweep() {
            return;
        }
        let instance = self.instance;
        self.drop_partials(|p| {
            let account = instance.accounts.get(p.account as usize);
            account.is_none_or(|a| a.life() != p.life)
                || p.tenant.is_some_and(|key| !instance.hub.attachments.is_there(key))
        });
    }

    /// Drops the partial groups whose last request is late.
    pub(crate) fn drop_late(&mut self, now: Time) {
        while let Some(n) = self.ledger.assembly.first()
            && self.ledger.assembly.get(n).is_some_and(|p| p.until <= now)
        {
            self.drop_partial(n);
        }
    }

    /// Doubles the pause between tries to send.
    pub(crate) fn next_retry(&mut self) -> Duration {
        let pause = self.ledger.retry;
        self.ledger.retry = (pause * 2).min(LATE);
        pause
    }

    /// When the oldest group or partial group is late.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let flight = &self.ledger.flight;
        let mut group = flight.first();
        // Answered ones wait for nothing but room in the hardware's queue.
        while let Some(n) = group
            && flight.get(n).is_some_and(|e| e.counted || e.until.is_none())
        {
            group = flight.after(n);
        }
        let group = group.and_then(|n| flight.get(n)?.until);
        let assembly = &self.ledger.assembly;
        let partial = assembly.first().and_then(|n| Some(assembly.get(n)?.until));
        [group, partial].into_iter().flatten().min()
    }
}
