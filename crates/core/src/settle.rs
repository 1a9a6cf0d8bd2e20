//! How a group ends: an answer is decided first and sent second, or a reset makes it void.

use crate::{
    driver::Offer,
    fault::{Access, FaultKind, RawFault, Reason},
    ids::{At, Key, SourceId},
    instance::{Instance, State},
    platform::{Platform, ShortLock, Time},
    requests::Group,
    sources::{Partial, Source},
    turn::{Answer, Code},
};
use portcullis_sync::slot::{Generation, SlotWord, State as Slot};

/// Groups looked at under one hold of the short lock.
const BATCH: usize = 16;

type Batch = ([(u32, Option<Generation>); BATCH], usize);

fn batch<'a>(groups: impl Iterator<Item = (u32, &'a Group)>) -> Batch {
    let mut out = [(0, None); BATCH];
    let mut n = 0;
    for (slot, g) in groups.take(BATCH) {
        out[n] = (slot, Some(g.generation));
        n += 1;
    }
    (out, n)
}

impl<P: Platform> State<P> {
    /// Gives a group's requests back to the device's share: when its answer is decided, which is
    /// before the device can see it and ask again.
    fn uncharge(&mut self, slot: u32, generation: Generation) -> Option<&mut Source<P>> {
        let group = self.requests.group(slot, generation)?;
        let charge = core::mem::take(&mut group.charge);
        let source = self.sources.get_mut(group.last.source)?;
        source.outstanding = source.outstanding.saturating_sub(charge);
        Some(source)
    }
}

impl<P: Platform> Instance<P> {
    /// Decides a group's answer and sends it if the hardware has room. False if somebody decided
    /// before. Any context.
    pub(crate) fn settle(&self, slot: u32, generation: Generation, code: Code) -> bool {
        let Some(word) = self.words.get(slot as usize) else { return false };
        let decided = self.state.with(|s| {
            if !word.answer(generation, code.to_bits()) {
                return false;
            }
            if let Some(src) = s.uncharge(slot, generation) {
                match code {
                    Code::Success => src.counters.success += 1,
                    Code::Invalid | Code::Failure => src.counters.invalid += 1,
                }
            }
            true
        });
        if decided {
            self.offer(slot, generation);
        }
        decided
    }

    /// Sends a decided answer. Whoever comes first sends it, and whoever saw it sent frees the slot.
    pub(crate) fn offer(&self, slot: u32, generation: Generation) -> bool {
        let Some(word) = self.words.get(slot as usize) else { return true };
        let Some(last) = self.state.with(|s| s.requests.group(slot, generation).map(|g| g.last)) else {
            return true;
        };
        #[cfg(feature = "planted")]
        if self.config().plant == Some(crate::planted::Plant::AnswerTakenEarly) {
            return self.offer_taken_early(slot, generation, word, &last);
        }
        let offer = match self.is_lost() {
            true => Offer::Lost,
            false => self.driver().page_response(&Answer::new(&last, word, generation)),
        };
        match offer {
            Offer::Done => {}
            Offer::Full => {
                self.state.with(|s| {
                    let State { requests, .. } = s;
                    let newly = requests
                        .group(slot, generation)
                        .is_some_and(|g| !core::mem::replace(&mut g.unsent, true));
                    requests.unsent += u32::from(newly);
                });
                // Nothing says when the queue has room again.
                self.turn_soon();
                return false;
            }
            Offer::Lost => {
                self.declare_lost();
                word.void(generation);
            }
        }
        self.release(slot, generation);
        true
    }

    /// Frees a slot whose answer went out or is void: word and record together, so that nobody
    /// finds a record whose word is free.
    pub(crate) fn release(&self, slot: u32, generation: Generation) {
        let freed = self.state.with(|s| {
            let freed = self.words.get(slot as usize).is_some_and(|w| w.free(generation));
            if freed {
                s.uncharge(slot, generation);
                s.requests.vacate(slot, generation);
            }
            freed
        });
        if freed {
            self.hub.progressed();
        }
    }

    /// Sends what found no room before. False if some still finds none.
    pub(crate) fn send_unsent(&self) -> bool {
        loop {
            let (found, n) = self.state.with(|s| match s.requests.unsent {
                0 => batch(core::iter::empty()),
                _ => batch(s.requests.groups().filter(|(_, g)| g.unsent)),
            });
            if n == 0 {
                return true;
            }
            for (slot, generation) in &found[..n] {
                if !generation.is_none_or(|g| self.offer(*slot, g)) {
                    return false;
                }
            }
        }
    }

    /// Answers Invalid whatever of an attachment still waits, and offers what is decided and not
    /// sent of it and of its place: what came while it drained belongs to nobody. True when
    /// nothing is left.
    pub(crate) fn settle_all_of(&self, key: Key, at: At) -> bool {
        let of = |g: &Group| match g.owner {
            Some(owner) => owner == key,
            None => g.last.source == at.source && g.last.pasid == at.pasid,
        };
        loop {
            let (found, n) = self.state.with(|s| batch(s.requests.groups().filter(|(_, g)| of(g))));
            for (slot, generation) in &found[..n] {
                let Some(g) = *generation else { continue };
                self.settle(*slot, g, Code::Invalid);
                if !self.offer(*slot, g) {
                    return false;
                }
            }
            if n == 0 {
                return true;
            }
        }
    }

    /// Answers Invalid what a device that was cut off still waits for.
    pub(crate) fn settle_source(&self, source: SourceId) {
        loop {
            let (found, n) = self.state.with(|s| {
                let pending = |slot: u32, g: &Group| {
                    let word = self.words.get(slot as usize).map(SlotWord::peek);
                    word == Some((g.generation, Slot::Pending))
                };
                batch(s.requests.groups_of(source).filter(|(slot, g)| pending(*slot, g)))
            });
            for (slot, generation) in &found[..n] {
                generation.map(|g| self.settle(*slot, g, Code::Invalid));
            }
            if n == 0 {
                break;
            }
        }
        self.drop_partials_of(source);
    }

    /// Makes everything void that a device had outstanding: no answer goes out.
    pub(crate) fn void_all_of(&self, source: SourceId) {
        loop {
            let (found, n) = self.state.with(|s| batch(s.requests.groups_of(source)));
            for (slot, generation) in &found[..n] {
                let (Some(g), Some(word)) = (*generation, self.words.get(*slot as usize)) else { continue };
                self.state.with(|s| {
                    if word.void(g)
                        && let Some(src) = s.sources.get_mut(source)
                    {
                        src.counters.void += 1;
                    }
                });
                self.release(*slot, g);
            }
            if n == 0 {
                break;
            }
        }
        self.drop_partials_of(source);
    }

    /// Drops the first requests of groups that a detached attachment point will not complete.
    pub(crate) fn drop_partials_at(&self, at: At) {
        self.drop_partials(at.source, |p| p.pasid == at.pasid);
    }

    /// Drops the first requests of groups that a device will not complete.
    pub(crate) fn drop_partials_of(&self, source: SourceId) {
        self.drop_partials(source, |_| true);
    }

    fn drop_partials(&self, source: SourceId, which: impl Fn(&Partial) -> bool) {
        self.state.with(|s| {
            let State { sources, requests, .. } = s;
            if let Some(src) = sources.get_mut(source) {
                src.drop_partials(requests, which);
            }
        });
    }

    /// Ends what has waited too long: partials are dropped, groups are answered Invalid. Asks for
    /// the timer again, since the one that fired may have replaced the one for the next deadline.
    pub(crate) fn expire(&self) {
        let now = self.platform().now();
        let next = match self.state.with(|s| s.requests.next_deadline) {
            Some(t) if t <= now => self.end_late(now),
            next => next,
        };
        if let Some(t) = next {
            self.platform().timer_at(t);
        }
    }

    /// Returns the next deadline.
    fn end_late(&self, now: Time) -> Option<Time> {
        self.state.with(|s| {
            let State { sources, requests, .. } = s;
            sources.iter_mut().for_each(|src| src.drop_partials(requests, |p| p.until <= now));
        });
        loop {
            let (found, n) = self
                .state
                .with(|s| batch(s.requests.groups().filter(|(_, g)| g.until.is_some_and(|t| t <= now))));
            for (slot, generation) in &found[..n] {
                if let Some(g) = *generation {
                    self.expire_group(*slot, g);
                }
            }
            if n < BATCH {
                break;
            }
        }
        self.state.with(|s| {
            let partials = s.sources.iter_mut().flat_map(|src| src.partials.iter().map(|p| p.until)).min();
            let groups = s.requests.groups().filter_map(|(_, g)| g.until).min();
            s.requests.next_deadline = [partials, groups].into_iter().flatten().min();
            s.requests.next_deadline
        })
    }

    fn expire_group(&self, slot: u32, generation: Generation) {
        let group = self.state.with(|s| {
            let g = s.requests.group(slot, generation)?;
            g.until = None;
            Some(*g)
        });
        if !self.settle(slot, generation, Code::Invalid) {
            return;
        }
        if let Some(g) = group {
            self.state.with(|s| {
                if let Some(src) = s.sources.get_mut(g.last.source) {
                    src.counters.deadline += 1;
                }
            });
            self.report(RawFault {
                source: Some(g.last.source),
                pasid: g.last.pasid,
                access: if g.last.write { Access::Write } else { Access::Read },
                privileged: g.last.privileged,
                address: Some(g.last.address),
                ..RawFault::new(FaultKind::PageRequest, Reason::Deadline)
            });
        }
    }
}
