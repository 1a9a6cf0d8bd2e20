//! The accounts of the groups and requests that an instance keeps, in the hands of the one service
//! turn that runs: room, quotas, deadlines, counts. No lock is held.

use crate::{
    account::Account,
    assembly::Assembly,
    error::OutOfMemory,
    flight::{Entry, Flight},
    ids::Key,
    instance::Instance,
    pages::Pages,
    platform::{Platform, Time},
    record::{Record, WORDS},
    slab::{Tenant, leave},
    spots::Payer,
    stall::ledger::Stalls,
};
use core::time::Duration;
use portcullis_sync::{
    slot::{Generation, SlotWord, State},
    tenants::Inside,
};

/// What the turn owns from one round to the next.
pub(crate) struct Ledger {
    pub(crate) flight: Flight,
    pub(crate) assembly: Assembly,
    pub(crate) pages: Pages,
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
        let (pages, stalls) = (Pages::new(), Stalls::new(stalls, devices)?);
        Ok(Ledger { flight, assembly, pages, stalls, waiting: 0, to_look_at: 0, retry: SOON })
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
        self.ledger.flight.next_free().is_some() || self.find_slot()
    }

    #[cold]
    fn find_slot(&mut self) -> bool {
        self.search();
        self.ledger.flight.next_free().is_some()
    }

    /// Whether there is room for one more request to be charged.
    #[inline]
    pub(crate) fn fits(&mut self, payer: &Payer<'_, P>) -> bool {
        let Payer { account, tenant } = payer;
        let free =
            account.outstanding.get() < account.share() && tenant.is_none_or(|t| t.lease.requests.has_room());
        free || self.make_room(payer)
    }

    /// The same where more must be leased first, or found to be free.
    #[cold]
    fn make_room(&mut self, payer: &Payer<'_, P>) -> bool {
        let Payer { account, tenant } = payer;
        let most = self.instance.config().credits_per_attachment;
        let free = || {
            account.outstanding.get() < account.share()
                && tenant.is_none_or(|t| t.lease.requests.make_room(&t.domain.quota.requests, most))
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

    /// Puts a group, as words, into the next free slot. `None` when there is none.
    #[inline]
    pub(crate) fn put(&mut self, record: impl FnOnce() -> [u64; WORDS]) -> Option<(u32, Generation)> {
        let slot = self.ledger.flight.next_free()?;
        Some((slot, self.instance.records.arm(slot, record)?))
    }

    /// The same of a stalled transaction.
    pub(crate) fn put_stall(&mut self, record: &Record) -> Option<(u32, Generation)> {
        let slot = self.ledger.flight.next_free_stall()?;
        Some((slot, self.instance.records.arm(slot, || record.to_words())?))
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
        let Some((_, state)) = self.instance.records.word(slot).map(SlotWord::peek) else { return };
        if state == State::Pending {
            return;
        }
        let Some(entry) = self.ledger.flight.get_mut(slot) else { return };
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
            self.ledger.pages.free(before.first, &self.instance.records);
            self.ledger.flight.leave(slot);
        }
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
            account.counts.ended(state);
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
    #[inline]
    pub(crate) fn late(&mut self, key: Key) -> Option<&Inside<'a, Tenant<P>>> {
        if self.late.as_ref().is_none_or(|(k, _)| *k != key) {
            self.enter_late(key);
        }
        self.late.as_ref().map(|(_, inside)| inside)
    }

    #[inline(never)]
    fn enter_late(&mut self, key: Key) {
        self.leave_late();
        self.late = self.instance.hub.attachments.enter(key).map(|inside| (key, inside));
    }

    pub(crate) fn leave_late(&mut self) {
        if let Some((_, inside)) = self.late.take() {
            inside.inner.announce();
            leave(inside);
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
