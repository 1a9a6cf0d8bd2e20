//! The word that decides who answers a page-request group.
//!
//! A slot is armed when a group's last request arrives. From then on exactly one claimant
//! (resolver, deadline, detach, quarantine) moves it from Pending to Answered; sending is a second
//! step, done by whoever comes first inside the driver's queue lock. Deciding and sending are kept
//! apart because an answer that is decided, and sent later outside that lock, can go out after the
//! slot has a new owner.
//!
//! ```text
//! free --arm--> Pending --answer--> Answered(code) --take--> Sent(code), which is free
//!                  \---------------------\----void---------> Void, which is free
//! ```

use crate::{
    atomic::{AtomicU64, Ordering},
    mutate::{Line, without},
};

/// The generation of a slot: 56 bits, so that it does not wrap in the life of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u64);

impl Generation {
    /// The number.
    #[inline]
    pub fn get(self) -> u64 {
        self.0
    }

    /// A generation from a number that a caller kept; it names nothing unless it is current.
    #[inline]
    pub fn from_raw(n: u64) -> Generation {
        Generation(n & GENERATION_MASK)
    }
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Was never used.
    Unused,
    /// A group waits for its answer.
    Pending,
    /// The answer is decided (the code is the caller's, below 64), and not sent yet.
    Answered(u8),
    /// The answer was taken for sending: it is in the hardware's queue before that queue's lock is
    /// released.
    Sent(u8),
    /// The answer will never be needed.
    Void,
}

impl State {
    /// Whether the slot may be armed again.
    #[inline]
    pub fn is_free(self) -> bool {
        !matches!(self, State::Pending | State::Answered(_))
    }

    /// Whether nobody can decide the answer any more.
    #[inline]
    pub fn is_decided(self) -> bool {
        self != State::Pending
    }
}

const GENERATION_MASK: u64 = (1 << 56) - 1;
const UNUSED: u64 = 0;
const VOID: u64 = 1;
const SENT: u64 = 64;
/// Set while the slot is not free.
const LIVE: u64 = 128;
const PENDING: u64 = LIVE;
/// Taken for sending, an answer is live no more, and keeps its code.
const ANSWERED: u64 = LIVE | SENT;
const MOST: u8 = 63;

/// One slot's word: generation and state.
#[derive(Debug)]
pub struct SlotWord(AtomicU64);

impl Default for SlotWord {
    fn default() -> Self {
        SlotWord::new()
    }
}

#[inline]
fn state(word: u64) -> State {
    match word & 0xff {
        s if s >= ANSWERED => State::Answered((s - ANSWERED) as u8),
        s if s >= PENDING => State::Pending,
        s if s >= SENT => State::Sent((s - SENT) as u8),
        UNUSED => State::Unused,
        _ => State::Void,
    }
}

impl SlotWord {
    /// A slot that was never used.
    pub fn new() -> SlotWord {
        SlotWord(AtomicU64::new(UNUSED))
    }

    #[inline]
    fn word(generation: Generation, state: u64) -> u64 {
        generation.0 << 8 | state
    }

    #[inline]
    fn swap(&self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Where the slot stands, and its generation.
    #[inline]
    pub fn peek(&self) -> (Generation, State) {
        let w = self.0.load(Ordering::Acquire);
        (Generation(w >> 8), state(w))
    }

    /// The answer that was taken for sending, if the slot was not armed since.
    #[inline]
    pub fn sent(&self) -> Option<u8> {
        let code = (self.0.load(Ordering::Acquire) & 0xff) ^ SENT;
        (code <= u64::from(MOST)).then_some(code as u8)
    }

    /// Whether the slot is still a group's whose answer was not sent.
    #[inline]
    pub fn is_live(&self, generation: Generation) -> bool {
        let w = self.0.load(Ordering::Acquire);
        (w ^ Self::word(generation, LIVE)) < LIVE
    }

    /// [`arm_with`](Self::arm_with) nothing to prepare.
    pub fn arm(&self) -> Option<Generation> {
        self.arm_with(|| ())
    }

    /// Free to Pending, under a new generation; what `prepare` wrote before is seen by whoever sees
    /// the slot pending. `None` if it is not free. Called by one at a time: a free slot is changed
    /// by nobody else, so that a store is enough.
    #[inline]
    pub fn arm_with(&self, prepare: impl FnOnce()) -> Option<Generation> {
        let w = self.0.load(Ordering::Acquire);
        if w & LIVE != 0 {
            return None;
        }
        let generation = Generation(((w >> 8) + 1) & GENERATION_MASK);
        prepare();
        self.0.store(Self::word(generation, PENDING), Ordering::Release);
        Some(generation)
    }

    /// Decides the answer: Pending to Answered. False if somebody else decided, or the slot
    /// belongs to another group by now.
    #[inline]
    pub fn answer(&self, generation: Generation, code: u8) -> bool {
        let answered = ANSWERED + u64::from(code.min(MOST));
        if without(Line::AnswerChecksGeneration) {
            let now = self.peek().0;
            return self.swap(Self::word(now, PENDING), Self::word(now, answered));
        }
        if without(Line::AnswerSwaps) {
            let pending = self.peek() == (generation, State::Pending);
            if pending {
                self.0.store(Self::word(generation, answered), Ordering::Release);
            }
            return pending;
        }
        self.swap(Self::word(generation, PENDING), Self::word(generation, answered))
    }

    /// Takes the decided answer for sending: Answered to Sent. Called inside the lock of the
    /// hardware's queue. `None` if it was taken before or is not decided.
    #[inline]
    pub fn take(&self, generation: Generation) -> Option<u8> {
        let w = self.0.load(Ordering::Acquire);
        let code = w ^ Self::word(generation, ANSWERED);
        if code > u64::from(MOST) {
            return None;
        }
        if without(Line::TakeSwaps) {
            self.0.store(Self::word(generation, SENT + code), Ordering::Release);
            return Some(code as u8);
        }
        self.swap(w, Self::word(generation, SENT + code)).then_some(code as u8)
    }

    /// The device forgot the group (reset, removal): Pending or Answered to Void, and nothing will
    /// be sent. False if it was sent already or belongs to another group.
    pub fn void(&self, generation: Generation) -> bool {
        loop {
            let w = self.0.load(Ordering::Acquire);
            if w >> 8 != generation.0 || w & LIVE == 0 {
                return false;
            }
            if self.swap(w, Self::word(generation, VOID)) {
                return true;
            }
        }
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn one_life_of_a_slot() {
        let slot = SlotWord::new();
        let g = slot.arm().unwrap();
        assert_eq!(slot.arm(), None);
        assert_eq!(slot.take(g), None, "nothing is decided");
        assert!(slot.answer(g, 2));
        assert!(!slot.answer(g, 1), "decided already");
        assert_eq!((slot.peek(), slot.sent()), ((g, State::Answered(2)), None));
        assert!(slot.is_live(g));
        assert_eq!(slot.take(g), Some(2));
        assert_eq!(slot.take(g), None);
        assert!(!slot.void(g), "sent already");
        assert_eq!((slot.peek(), slot.sent()), ((g, State::Sent(2)), Some(2)));
        let next = slot.arm().unwrap();
        assert_eq!(slot.sent(), None);
        assert!(slot.answer(next, u8::MAX));
        assert_eq!((slot.take(next), slot.sent()), (Some(63), Some(63)), "codes have six bits");
        assert!(!slot.is_live(g));
    }

    #[test]
    fn an_old_generation_moves_nothing() {
        let slot = SlotWord::new();
        let old = slot.arm().unwrap();
        assert!(slot.void(old));
        let new = slot.arm().unwrap();
        assert_ne!(old, new);
        assert!(!slot.answer(old, 0) && !slot.void(old));
        assert!(slot.answer(new, 0));
        assert_eq!(slot.take(old), None);
        assert_eq!(slot.peek(), (new, State::Answered(0)));
        assert_eq!(Generation::from_raw(new.get()), new);
    }
}
