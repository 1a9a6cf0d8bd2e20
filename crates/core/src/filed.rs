//! A group on its way through the turn that brought its last request: over when the turn is done with
//! it, or left behind in its slot.

use crate::{
    books::Books,
    flight::Entry,
    platform::{Platform, Time},
    record::Chain,
    spots::Spot,
};
use portcullis_sync::slot::{Generation, SlotWord, State};

/// A group that was put into a slot. What becomes of it is seen on drop, also after a resolver that
/// panicked.
pub(crate) struct Filed<'b, 'a, P: Platform> {
    pub(crate) books: &'b mut Books<'a, P>,
    /// Where it came from: there it is charged.
    pub(crate) spot: &'b Spot<'a, P>,
    pub(crate) slot: u32,
    /// The holder of the device's account.
    pub(crate) holder: u32,
    /// What was kept of it is charged until it is settled; the last request, for which there is room, is
    /// charged when the group stays.
    pub(crate) first: Chain,
    /// The attachment is not ready.
    pub(crate) waits: bool,
    pub(crate) until: Option<Time>,
}

impl<P: Platform> Filed<'_, '_, P> {
    /// The turn goes on: the group is over, or stays.
    #[inline(always)]
    pub(crate) fn leave(&mut self) {
        let instance = self.books.instance;
        let Some(word) = instance.records.word(self.slot) else { return };
        match word.sent() {
            Some(code) => self.is_over(State::Sent(code)),
            None => self.is_left(word),
        }
    }

    #[inline]
    fn is_over(&mut self, state: State) {
        self.count(state);
        self.books.ledger.pages.free(self.first, &self.books.instance.records);
    }

    /// Not sent: as a rule somebody answers it later.
    #[inline(never)]
    fn is_left(&mut self, word: &SlotWord) {
        match word.peek() {
            (generation, State::Pending) => self.stay(generation, true),
            // The answer found no room.
            (generation, state @ State::Answered(_)) => {
                self.count(state);
                self.stay(generation, false);
            }
            (_, state) => self.is_over(state),
        }
    }

    /// It is answered: what was charged is taken back at once, since the device may ask again.
    #[inline]
    fn count(&self, state: State) {
        let Some((account, _)) = self.spot.account else { return };
        if account.holder() == self.holder {
            account.counts.ended(state);
        }
        if let (Some(payer), 1..) = (self.spot.payer(), self.first.len) {
            payer.uncharge(self.first.len);
        }
    }

    fn stay(&mut self, generation: Generation, pending: bool) {
        let Filed { books, spot, slot, holder, first, until, .. } = self;
        if let (Some(payer), true) = (spot.payer(), pending) {
            payer.charge();
        }
        let charge = first.len + u32::from(pending);
        let waits = self.waits && pending;
        books.ledger.waiting += u32::from(waits);
        let entry = Entry {
            generation,
            account: spot.account.map(|(_, number)| (number, *holder)),
            tenant: spot.tenant,
            charge,
            tenant_charge: if spot.inner().is_some() { charge } else { first.len },
            first: *first,
            until: *until,
            waits,
            counted: !pending,
        };
        books.ledger.flight.stay(*slot, entry);
    }
}

impl<P: Platform> Drop for Filed<'_, '_, P> {
    #[cold]
    fn drop(&mut self) {
        self.leave();
    }
}
