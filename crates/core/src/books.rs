//! The accounts of the groups and requests that an instance keeps, in the hands of the one service
//! turn that runs: room, quotas, deadlines, counts. No lock is held.

use crate::{
    account::Account,
    assembly::{Assembly, GroupKey, Partial},
    attachment::Inner,
    driver::PageRequest,
    error::OutOfMemory,
    fault::Reason,
    flight::{Entry, Flight},
    ids::Key,
    instance::Instance,
    platform::{Platform, Time},
    record::{Chain, Record},
    slab::{Tenant, leave},
    spots::Spot,
    stall::ledger::Stalls,
};
use core::time::Duration;
use portcullis_sync::{
    slot::{Generation, State},
    tenants::Inside,
};

/// What the turn owns from one round to the next.
pub(crate) struct Ledger {
    pub(crate) flight: Flight,
    pub(crate) assembly: Assembly,
    pub(crate) stalls: Stalls,
    /// Groups that wait for their attachment to be ready.
    pub(crate) waiting: u32,
    /// Groups that are still to be looked at, since answers were given outside a turn.
    to_look_at: u32,
    /// How soon the next try to send an answer is made.
    pub(crate) retry: Duration,
}

/// Groups that a round looks at to see whether they are over.
const LOOK: u32 = 64;

/// How soon a round that left work behind is followed by another, and the longest pause between
/// tries to send.
pub(crate) const SOON: Duration = Duration::from_micros(10);
const LATE: Duration = Duration::from_millis(1);

impl Ledger {
    /// For so many groups and stalled transactions, of so many devices.
    pub(crate) fn new(groups: usize, stalls: usize, devices: usize) -> Result<Ledger, OutOfMemory> {
        let (flight, assembly) = (Flight::new(groups, stalls)?, Assembly::new(groups)?);
        let stalls = Stalls::new(stalls, devices)?;
        Ok(Ledger { flight, assembly, stalls, waiting: 0, to_look_at: 0, retry: SOON })
    }
}

/// The ledger, open.
pub(crate) struct Books<'a, P: Platform> {
    pub(crate) instance: &'a Instance<P>,
    pub(crate) ledger: &'a mut Ledger,
    /// Every group that is over was looked for, in this round.
    searched: bool,
    /// The attachment of the group that was found to be over last.
    late: Option<(Key, Inside<'a, Tenant<P>>)>,
}

impl<'a, P: Platform> Books<'a, P> {
    pub(crate) fn open(instance: &'a Instance<P>, ledger: &'a mut Ledger) -> Books<'a, P> {
        Books { instance, ledger, searched: false, late: None }
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
    pub(crate) fn charge(&mut self, account: &Account, tenant: Option<&Inner<P>>) -> bool {
        let free =
            account.outstanding.get() < account.share() && tenant.is_none_or(|t| t.lease.requests.charge());
        let fits = free || self.charge_more(account, tenant);
        if fits {
            account.outstanding.add(1);
        }
        fits
    }

    /// The same where more must be leased first, or found to be free.
    #[cold]
    fn charge_more(&mut self, account: &Account, tenant: Option<&Inner<P>>) -> bool {
        let most = self.instance.config().credits_per_attachment;
        let free = || {
            account.outstanding.get() < account.share()
                && tenant.is_none_or(|t| t.lease.requests.lease(&t.domain.quota.requests, most))
        };
        free() || (self.search_again() && free())
    }

    fn search_again(&mut self) -> bool {
        let first = !self.searched;
        self.search();
        first
    }

    /// Looks at every group that stayed, once a round.
    pub(crate) fn search(&mut self) {
        if !core::mem::replace(&mut self.searched, true) {
            self.look(self.ledger.flight.len());
        }
    }

    /// Looks at some groups, after answers were given outside a turn.
    pub(crate) fn look_around(&mut self) {
        if self.instance.take_ended() {
            self.ledger.to_look_at = self.ledger.flight.len();
        }
        let n = self.ledger.to_look_at.min(LOOK);
        self.ledger.to_look_at -= n;
        self.look(n);
    }

    fn look(&mut self, n: u32) {
        for _ in 0..n {
            let Some(slot) = self.ledger.flight.next_to_look_at() else { break };
            self.settled(slot);
        }
        self.leave_late();
    }

    /// Puts a group into the next free slot. `None` when there is none.
    #[inline]
    pub(crate) fn put(&mut self, record: &Record) -> Option<(u32, Generation)> {
        let slot = self.ledger.flight.next_free()?;
        self.put_into(slot, record)
    }

    /// The same of a stalled transaction.
    pub(crate) fn put_stall(&mut self, record: &Record) -> Option<(u32, Generation)> {
        let slot = self.ledger.flight.next_free_stall()?;
        self.put_into(slot, record)
    }

    #[inline]
    fn put_into(&self, slot: u32, record: &Record) -> Option<(u32, Generation)> {
        let generation = self.instance.records.arm(slot, &record.to_words())?;
        Some((slot, generation))
    }

    pub(crate) fn waits_no_more(&mut self, slot: u32) {
        if let Some(entry) = self.ledger.flight.get_mut(slot)
            && core::mem::take(&mut entry.waits)
        {
            self.ledger.waiting -= 1;
        }
    }

    /// A group that was just put into a slot comes to this: over already, or left behind.
    #[inline]
    pub(crate) fn filed(&mut self, slot: u32, entry: &mut Entry, tenant: Option<&Inner<P>>) {
        let state = self.state_of(slot);
        if state != State::Pending {
            entry.counted = true;
            entry.waits = false;
            self.count(slot, entry, state);
            if let Some(t) = tenant {
                t.lease.requests.uncharge(entry.tenant_charge, &t.domain.quota.requests);
            }
        }
        if state.is_free() {
            self.ledger.assembly.free_chain(entry.first, &self.instance.records);
        } else {
            self.ledger.waiting += u32::from(entry.waits);
            self.ledger.flight.stay(slot, *entry);
        }
    }

    /// A group that stayed may be over.
    pub(crate) fn settled(&mut self, slot: u32) {
        let Some(entry) = self.ledger.flight.get_mut(slot) else { return };
        let Some(word) = self.instance.records.word(slot) else { return };
        let (_, state) = word.peek();
        if state == State::Pending {
            return;
        }
        let before = *entry;
        entry.counted = true;
        if !before.counted {
            self.ledger.waiting -= u32::from(core::mem::take(&mut entry.waits));
            self.count(slot, &before, state);
            self.uncharge(before.tenant, before.tenant_charge);
        } else if state == State::Void {
            // Decided, and a reset came before it was sent.
            self.with_account(&before, |account| match self.is_stall(slot) {
                false => account.counts.void.add(1),
                true => account.counts.stalls_lost.add(1),
            });
        }
        if state.is_free() {
            self.ledger.assembly.free_chain(before.first, &self.instance.records);
            self.ledger.flight.leave(slot);
        }
    }

    #[inline]
    fn state_of(&self, slot: u32) -> State {
        self.instance.records.word(slot).map_or(State::Void, |word| word.peek().1)
    }

    /// Nobody answered a group in time.
    pub(crate) fn count_late(&self, slot: u32, entry: &Entry) {
        self.with_account(entry, |account| match self.is_stall(slot) {
            false => account.counts.deadline.add(1),
            true => account.counts.stalls_late.add(1),
        });
    }

    #[inline]
    fn is_stall(&self, slot: u32) -> bool {
        self.instance.is_stall(slot)
    }

    /// Does something to the account that a group is charged to, unless it is another device's now.
    #[inline]
    pub(crate) fn with_account(&self, entry: &Entry, f: impl FnOnce(&Account)) {
        if let Some((n, holder)) = entry.account
            && let Some(account) = self.instance.accounts.get(n as usize)
            && account.holder() == holder
        {
            f(account);
        }
    }

    /// The answer of a group is decided: it counts no longer against any quota, because the device
    /// may ask again as soon as it can see it.
    #[inline]
    fn count(&mut self, slot: u32, entry: &Entry, state: State) {
        if self.is_stall(slot) {
            return self.count_stall(entry, state);
        }
        let Some((n, holder)) = entry.account else { return };
        let Some(account) = self.instance.accounts.get(n as usize) else { return };
        if account.holder() == holder {
            let counts = &account.counts;
            match state {
                State::Sent(0) | State::Answered(0) => counts.success.add(1),
                State::Void => counts.void.add(1),
                _ => counts.invalid.add(1),
            }
        }
        account.outstanding.sub(entry.charge.into());
    }

    /// Takes charges back from an attachment, unless it is gone with all of them.
    fn uncharge(&mut self, tenant: Option<Key>, n: u32) {
        if let Some(key) = tenant.filter(|_| n > 0)
            && let Some(t) = self.late(key)
        {
            t.inner.lease.requests.uncharge(n, &t.inner.domain.quota.requests);
        }
    }

    /// An attachment that is not gone, gone in to once for groups in a row.
    pub(crate) fn late(&mut self, key: Key) -> Option<&Inside<'a, Tenant<P>>> {
        if self.late.as_ref().is_none_or(|(k, _)| *k != key) {
            self.leave_late();
            self.late = Some((key, self.instance.hub.attachments.enter(key)?));
        }
        self.late.as_ref().map(|(_, inside)| inside)
    }

    fn leave_late(&mut self) {
        if let Some((_, inside)) = self.late.take() {
            inside.inner.announce();
            leave(inside);
        }
    }

    /// Keeps a request that is not the last of its group.
    #[inline]
    pub(crate) fn keep(
        &mut self,
        request: &PageRequest,
        account: (&Account, u32),
        spot: &Spot<'_, P>,
        until: Time,
        refused: Option<Reason>,
    ) -> Result<(), Reason> {
        let key = GroupKey { place: spot.key, index: request.index };
        let n = match self.ledger.assembly.find(key) {
            Some(n) if self.is_current(n, account, spot) => Some(n),
            other => self.begin(key, account, spot, until, other),
        };
        if refused.is_none()
            && n.is_some_and(|n| self.ledger.assembly.keep(n, request, &self.instance.records))
        {
            return Ok(());
        }
        Err(self.keep_not(n, account.0, spot, refused))
    }

    /// A request is not kept: its group, if there is one, is answered Invalid as a whole.
    #[cold]
    fn keep_not(
        &mut self,
        group: Option<u32>,
        account: &Account,
        spot: &Spot<'_, P>,
        refused: Option<Reason>,
    ) -> Reason {
        group.into_iter().for_each(|n| self.ledger.assembly.spoil(n));
        refused.unwrap_or_else(|| {
            account.counts.quota.add(1);
            account.outstanding.sub(1);
            if let Some(t) = spot.inner() {
                t.lease.requests.uncharge(1, &t.domain.quota.requests);
            }
            Reason::Quota
        })
    }

    /// Begins a group, in the place of one that the device does not mean any more.
    fn begin(
        &mut self,
        key: GroupKey,
        (account, number): (&Account, u32),
        spot: &Spot<'_, P>,
        until: Time,
        old: Option<u32>,
    ) -> Option<u32> {
        old.into_iter().for_each(|n| self.drop_partial(n));
        let most = self.instance.config().partials_per_device;
        if account.share() == 0 || account.partials.get() >= u64::from(most) {
            return None;
        }
        let lease = |t: &Inner<P>| t.lease.partials.lease(&t.domain.quota.partials, u32::MAX);
        if spot.inner().is_some_and(|t| !lease(t)) {
            return None;
        }
        let tenant = spot.inner().and(spot.tenant);
        let begun = self.ledger.assembly.begin(key, |key| Partial {
            key,
            account: number,
            life: account.life(),
            // Nobody whom it is charged to is known by a version.
            version: if tenant == spot.tenant { spot.version } else { u64::MAX },
            tenant,
            first: Chain::default(),
            spoilt: false,
            until,
        });
        match begun {
            Some(_) => account.partials.add(1),
            None => one_partial_less(spot),
        }
        begun
    }

    /// Whether a partial group is still what the device means, and meant for what is attached now.
    #[inline]
    fn is_current(&mut self, n: u32, account: (&Account, u32), spot: &Spot<'_, P>) -> bool {
        let Some(p) = self.ledger.assembly.get_mut(n) else { return false };
        p.life == account.0.life() && (p.version == spot.version || is_same(p, account.1, spot))
    }

    /// Takes the collected first requests of a group out, for its last one.
    #[inline]
    pub(crate) fn complete(
        &mut self,
        request: &PageRequest,
        account: (&Account, u32),
        spot: &Spot<'_, P>,
    ) -> Option<Partial> {
        let n = self.ledger.assembly.find(GroupKey { place: spot.key, index: request.index })?;
        if !self.is_current(n, account, spot) {
            self.drop_partial(n);
            return None;
        }
        let partial = self.ledger.assembly.end(n)?;
        account.0.partials.sub(1);
        one_partial_less(spot);
        Some(partial)
    }

    fn drop_partial(&mut self, n: u32) {
        let Some(partial) = self.ledger.assembly.end(n) else { return };
        let Chain { len, .. } = partial.first;
        if let Some(account) = self.instance.accounts.get(partial.account as usize) {
            account.partials.sub(1);
            account.outstanding.sub(len.into());
            account.counts.partials_dropped.add(len.into());
        }
        if let Some(t) = partial.tenant.and_then(|key| self.late(key)) {
            let (lease, quota) = (&t.inner.lease, &t.inner.domain.quota);
            lease.partials.uncharge(1, &quota.partials);
            lease.requests.uncharge(len, &quota.requests);
        }
        self.leave_late();
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
        let Ledger { flight, assembly, stalls, .. } = &*self.ledger;
        // Answered ones wait for nothing but room in the hardware's queue.
        let [group, stall] = flight.oldest().map(|mut oldest| {
            while let Some(n) = oldest
                && flight.get(n).is_some_and(|e| e.counted || e.until.is_none())
            {
                oldest = flight.after(n);
            }
            flight.get(oldest?)?.until
        });
        let partial = assembly.first().and_then(|n| Some(assembly.get(n)?.until));
        [group, stall, partial, stalls.due()].into_iter().flatten().min()
    }
}

impl<P: Platform> Drop for Books<'_, P> {
    fn drop(&mut self) {
        self.leave_late();
    }
}

#[inline]
fn one_partial_less<P: Platform>(spot: &Spot<'_, P>) {
    if let Some(t) = spot.inner() {
        t.lease.partials.uncharge(1, &t.domain.quota.partials);
    }
}

/// The table of places has changed since a partial group was last looked at: perhaps elsewhere.
#[cold]
fn is_same<P: Platform>(partial: &mut Partial, account: u32, spot: &Spot<'_, P>) -> bool {
    if partial.account != account {
        return false;
    }
    if partial.tenant == spot.tenant {
        partial.version = spot.version;
        return true;
    }
    partial.tenant.is_none() && spot.inner().is_none()
}
