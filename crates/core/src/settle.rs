//! How a group, or a stalled transaction, ends: an answer is decided first and sent second, or a reset
//! makes it void. A reset does not end what is stalled: the IOMMU holds that, not the device. Any
//! context; what it costs the quotas is the service turn's to take back.

use crate::{
    driver::{Offer, PageRequest},
    ids::{At, Key, SourceId},
    instance::Instance,
    platform::Platform,
    record::Record,
    turn::{Answer, Code, Resume},
};
use portcullis_sync::slot::{Generation, SlotWord, State};

impl<P: Platform> Instance<P> {
    /// Decides a group's answer and sends it if the hardware has room. False if somebody decided
    /// before.
    #[inline(never)]
    pub(crate) fn settle(&self, slot: u32, generation: Generation, last: &PageRequest, code: Code) -> bool {
        let Some(word) = self.records.word(slot) else { return false };
        let decided = word.answer(generation, code.to_bits());
        if decided {
            self.offer_of(word, slot, generation, last);
        }
        decided
    }

    /// Sends a decided answer: whoever comes first. False when the hardware has no room: the next
    /// turn tries again.
    pub(crate) fn offer(&self, slot: u32, generation: Generation, last: &PageRequest) -> bool {
        self.records.word(slot).is_none_or(|word| self.offer_of(word, slot, generation, last))
    }

    #[inline]
    fn offer_of(&self, word: &SlotWord, slot: u32, generation: Generation, last: &PageRequest) -> bool {
        #[cfg(feature = "planted")]
        if self.config().plant == Some(crate::planted::Plant::AnswerTakenEarly) {
            return self.offer_taken_early(generation, word, last);
        }
        let offer = match self.is_lost() {
            true => Offer::Lost,
            false if self.is_stall(slot) => self.driver().resume(&Resume::new(last, word, generation)),
            false => self.driver().page_response(&Answer::new(last, word, generation)),
        };
        match offer {
            Offer::Done => true,
            Offer::Full => {
                self.leave_unsent();
                false
            }
            Offer::Lost => {
                self.lose(word, generation);
                true
            }
        }
    }

    #[cold]
    fn lose(&self, word: &SlotWord, generation: Generation) {
        self.declare_lost();
        word.void(generation);
    }

    /// Answers Invalid whatever of an attachment still waits, and offers what is decided and not
    /// sent of it and of its place: what came while it drained belongs to nobody. True when
    /// nothing is left.
    pub(crate) fn settle_all_of(&self, key: Key, at: At) -> bool {
        let mut left = false;
        self.each_live(|slot, generation, _, r| {
            if r.owner.map_or(r.last.at() == at, |owner| owner == key) {
                self.settle(slot, generation, &r.last, Code::Invalid);
                left |= !self.offer(slot, generation, &r.last);
            }
        });
        self.say_ended();
        !left
    }

    /// Answers Invalid what a device that was cut off still waits for.
    pub(crate) fn settle_source(&self, source: SourceId) {
        self.each_live(|slot, generation, state, r| {
            if r.last.source == source && state == State::Pending {
                self.settle(slot, generation, &r.last, Code::Invalid);
            }
        });
        self.drop_partials_of(source);
    }

    /// Makes everything void that a device had outstanding, and terminates what it has stalled: no
    /// answer goes out.
    pub(crate) fn void_all_of(&self, source: SourceId) {
        self.each_live(|slot, generation, _, r| {
            if r.last.source != source {
            } else if self.is_stall(slot) {
                self.settle(slot, generation, &r.last, Code::Invalid);
            } else if let Some(word) = self.records.word(slot) {
                word.void(generation);
            }
        });
        self.drop_partials_of(source);
    }

    pub(crate) fn each_live(&self, mut f: impl FnMut(u32, Generation, State, &Record)) {
        for slot in 0..self.records.len() as u32 {
            if let Some((generation, state, words)) = self.records.live(slot) {
                f(slot, generation, state, &Record::from_words(&words));
            }
        }
    }

    /// Drops the first requests of groups that a detached attachment point will not complete.
    pub(crate) fn drop_partials_at(&self, _: At) {
        self.ask_sweep();
        self.tidy();
    }

    /// Drops the first requests of groups that a device will not complete.
    pub(crate) fn drop_partials_of(&self, source: SourceId) {
        if let Some(account) = self.account(source) {
            account.end_life();
        }
        self.say_ended();
        self.ask_sweep();
        self.tidy();
    }
}
