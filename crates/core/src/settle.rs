//! How a group ends: an answer is decided first and sent second, or a reset makes it void.

use crate::{
    driver::Offer,
    fault::{Access, FaultKind, RawFault, Reason},
    ids::{At, Key, SourceId},
    instance::{Instance, State},
    platform::{Platform, ShortLock, Time},
    requests::Group,
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

impl<P: Platform> Instance<P> {
    /// Decides a group's answer and sends it if the hardware has room. False if somebody decided
    /// before. Any context.
    pub(crate) fn settle(&self, slot: u32, generation: Generation, code: Code) -> bool {
        let Some(word) = self.words.get(slot as usize) else { return false };
        if !word.answer(generation, code.to_bits()) {
            return false;
        }
        self.state.with(|s| {
            let State { sources, requests, .. } = s;
            let source = requests.group(slot, generation).map(|g| g.last.source);
            if let Some(src) = source.and_then(|id| sources.get_mut(id)) {
                match code {
                    Code::Success => src.counters.success += 1,
                    Code::Invalid | Code::Failure => src.counters.invalid += 1,
                }
            }
        });
        self.offer(slot, generation);
        true
    }

    /// Sends a decided answer. Whoever comes first sends it, and whoever saw it sent frees the slot.
    pub(crate) fn offer(&self, slot: u32, generation: Generation) -> bool {
        let Some(word) = self.words.get(slot as usize) else { return true };
        let Some(last) = self.state.with(|s| s.requests.group(slot, generation).map(|g| g.last)) else {
            return true;
        };
        let offer = if self.config().answer_taken_early() {
            return self.offer_taken_early(slot, generation, word, &last);
        } else {
            self.driver().page_response(&Answer::new(&last, word, generation))
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
                return false;
            }
            Offer::Lost => {
                word.void(generation);
            }
        }
        self.release(slot, generation);
        true
    }

    /// The planted race: the code leaves the slot before the queue's lock is held.
    fn offer_taken_early(
        &self,
        slot: u32,
        generation: Generation,
        word: &SlotWord,
        last: &crate::driver::PageRequest,
    ) -> bool {
        let Some(code) = word.take(generation) else {
            self.release(slot, generation);
            return true;
        };
        self.release(slot, generation);
        let stale = SlotWord::new();
        if let Some(g) = stale.arm() {
            stale.answer(g, code);
            while self.driver().page_response(&Answer::new(last, &stale, g)) == Offer::Full {
                self.platform().now();
            }
        }
        true
    }

    /// Frees a slot whose answer went out or is void.
    fn release(&self, slot: u32, generation: Generation) {
        let freed = self.words.get(slot as usize).is_some_and(|w| w.free(generation));
        if !freed {
            return;
        }
        self.state.with(|s| {
            let State { sources, requests, .. } = s;
            if let Some(group) = requests.vacate(slot, generation)
                && let Some(src) = sources.get_mut(group.last.source)
            {
                let kept = group.first.len + u32::from(group.charged);
                src.outstanding = src.outstanding.saturating_sub(kept);
            }
        });
        self.hub.progressed();
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
    /// sent. True when nothing of it is left.
    pub(crate) fn settle_all_of(&self, key: Key) -> bool {
        loop {
            let (found, n) =
                self.state.with(|s| batch(s.requests.groups().filter(|(_, g)| g.owner == Some(key))));
            for (slot, generation) in &found[..n] {
                let Some(g) = *generation else { continue };
                self.settle(*slot, g, Code::Invalid);
                if !self.offer(*slot, g) {
                    return false;
                }
            }
            if n < BATCH {
                return n == 0
                    || self.state.with(|s| !s.requests.groups().any(|(_, g)| g.owner == Some(key)));
            }
        }
    }

    /// Makes everything void that a device had outstanding: no answer goes out.
    pub(crate) fn void_all_of(&self, source: SourceId) {
        loop {
            let (found, n) = self.state.with(|s| batch(s.requests.groups_of(source)));
            let mut progress = false;
            for (slot, generation) in &found[..n] {
                let (Some(g), Some(word)) = (*generation, self.words.get(*slot as usize)) else { continue };
                if word.void(g) {
                    self.state.with(|s| {
                        if let Some(src) = s.sources.get_mut(source) {
                            src.counters.void += 1;
                        }
                    });
                }
                self.release(*slot, g);
                progress |= word.peek() != (g, Slot::Sent);
            }
            if n < BATCH || !progress {
                break;
            }
        }
        self.state.with(|s| {
            let State { sources, requests, .. } = s;
            if let Some(src) = sources.get_mut(source) {
                while let Some(p) = src.partials.pop() {
                    src.counters.partials_dropped += u64::from(p.chain.len);
                    src.outstanding = src.outstanding.saturating_sub(p.chain.len);
                    requests.drop_chain(p.chain);
                }
            }
        });
    }

    /// Drops the first requests of groups that a detached attachment point will not complete.
    pub(crate) fn drop_partials_at(&self, at: At) {
        self.state.with(|s| {
            let State { sources, requests, .. } = s;
            let Some(src) = sources.get_mut(at.source) else { return };
            let mut i = 0;
            while let Some(p) = src.partials.get(i) {
                if p.pasid == at.pasid {
                    src.counters.partials_dropped += u64::from(p.chain.len);
                    src.outstanding = src.outstanding.saturating_sub(p.chain.len);
                    requests.drop_chain(p.chain);
                    src.partials.swap_remove(i);
                } else {
                    i += 1;
                }
            }
        });
    }

    /// Ends what has waited too long: partials are dropped, groups are answered Invalid.
    pub(crate) fn expire(&self) {
        let now = self.platform().now();
        if !self.state.with(|s| s.requests.next_deadline.is_some_and(|t| t <= now)) {
            return;
        }
        self.drop_late_partials(now);
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
        let next = self.state.with(|s| {
            let partials = s.sources.iter_mut().flat_map(|src| src.partials.iter().map(|p| p.until)).min();
            let groups = s.requests.groups().filter_map(|(_, g)| g.until).min();
            let next = [partials, groups].into_iter().flatten().min();
            s.requests.next_deadline = next;
            next
        });
        if let Some(t) = next {
            self.platform().timer_at(t);
        }
    }

    fn drop_late_partials(&self, now: Time) {
        self.state.with(|s| {
            let State { sources, requests, .. } = s;
            for src in sources.iter_mut() {
                let mut i = 0;
                while let Some(p) = src.partials.get(i) {
                    if p.until <= now {
                        src.counters.partials_dropped += u64::from(p.chain.len);
                        src.outstanding = src.outstanding.saturating_sub(p.chain.len);
                        requests.drop_chain(p.chain);
                        src.partials.swap_remove(i);
                    } else {
                        i += 1;
                    }
                }
            }
        });
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
                kind: FaultKind::PageRequest,
                access: if g.last.write { Access::Write } else { Access::Read },
                privileged: g.last.privileged,
                address: Some(g.last.address),
                reason: Reason::Deadline,
                code: 0,
            });
        }
    }
}
