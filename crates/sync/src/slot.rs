//! The word that decides who answers a page-request group.
//!
//! A slot is armed when a group's last request arrives. From then on exactly one claimant
//! (resolver, deadline, detach, quarantine) moves it from Pending to Answered; sending is a second
//! step, done by whoever comes first inside the driver's queue lock. Deciding and sending are kept
//! apart because an answer that is decided, and sent later outside that lock, can go out after the
//! slot has a new owner.
//!
//! ```text
//! Free --arm--> Pending --answer--> Answered(code) --take--> Sent --free--> Free
//!                  \----------------void------------------------^
//! ```

use crate::atomic::{AtomicU64, Ordering};

/// The generation of a slot: 56 bits, so that it does not wrap in the life of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u64);

impl Generation {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// A generation from a number that a caller kept; it names nothing unless it is current.
    pub fn from_raw(n: u64) -> Generation {
        Generation(n & GENERATION_MASK)
    }
}

/// Where a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In nobody's hands.
    Free,
    /// A group waits for its answer.
    Pending,
    /// The answer is decided (the code is the caller's, below 64), and not sent yet.
    Answered(u8),
    /// The answer is in the hardware's queue, or will never be needed.
    Sent,
}

const GENERATION_MASK: u64 = (1 << 56) - 1;
const FREE: u64 = 0;
const PENDING: u64 = 1;
const SENT: u64 = 2;
const ANSWERED: u64 = 64;

/// One slot's word: generation and state, changed by compare-and-swap only.
#[derive(Debug)]
pub struct SlotWord(AtomicU64);

impl Default for SlotWord {
    fn default() -> Self {
        SlotWord::new()
    }
}

impl SlotWord {
    /// A free slot of generation 0.
    pub fn new() -> SlotWord {
        SlotWord(AtomicU64::new(0))
    }

    fn word(generation: Generation, state: u64) -> u64 {
        generation.0 << 8 | state
    }

    fn swap(&self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Where the slot stands, and its generation.
    pub fn peek(&self) -> (Generation, State) {
        let w = self.0.load(Ordering::Acquire);
        let state = match w & 0xff {
            FREE => State::Free,
            PENDING => State::Pending,
            SENT => State::Sent,
            a => State::Answered((a - ANSWERED) as u8),
        };
        (Generation(w >> 8), state)
    }

    /// Free to Pending, under a new generation. `None` if the slot is not free.
    pub fn arm(&self) -> Option<Generation> {
        let w = self.0.load(Ordering::Acquire);
        if w & 0xff != FREE {
            return None;
        }
        let generation = Generation(((w >> 8) + 1) & GENERATION_MASK);
        self.swap(w, Self::word(generation, PENDING)).then_some(generation)
    }

    /// Decides the answer: Pending to Answered. False if somebody else decided, or the slot
    /// belongs to another group by now.
    pub fn answer(&self, generation: Generation, code: u8) -> bool {
        let code = u64::from(code.min(63));
        self.swap(Self::word(generation, PENDING), Self::word(generation, ANSWERED + code))
    }

    /// Takes the decided answer for sending: Answered to Sent. Called inside the lock of the
    /// hardware's queue. `None` if it was taken before or is not decided.
    pub fn take(&self, generation: Generation) -> Option<u8> {
        let w = self.0.load(Ordering::Acquire);
        if w >> 8 != generation.0 || w & 0xff < ANSWERED {
            return None;
        }
        self.swap(w, Self::word(generation, SENT)).then_some(((w & 0xff) - ANSWERED) as u8)
    }

    /// The device forgot the group (reset, removal): Pending or Answered to Sent, and nothing will
    /// be sent. False if it was sent already or belongs to another group.
    pub fn void(&self, generation: Generation) -> bool {
        loop {
            let w = self.0.load(Ordering::Acquire);
            if w >> 8 != generation.0 || matches!(w & 0xff, FREE | SENT) {
                return false;
            }
            if self.swap(w, Self::word(generation, SENT)) {
                return true;
            }
        }
    }

    /// Sent to Free. False if it was not sent, or belongs to another group.
    pub fn free(&self, generation: Generation) -> bool {
        self.swap(Self::word(generation, SENT), Self::word(generation, FREE))
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
        assert!(!slot.free(g), "nothing is sent");
        assert!(slot.answer(g, 2));
        assert!(!slot.answer(g, 1), "decided already");
        assert_eq!(slot.peek(), (g, State::Answered(2)));
        assert_eq!(slot.take(g), Some(2));
        assert_eq!(slot.take(g), None);
        assert!(!slot.void(g), "sent already");
        assert!(slot.free(g));
        assert_eq!(slot.peek(), (g, State::Free));
    }

    #[test]
    fn an_old_generation_moves_nothing() {
        let slot = SlotWord::new();
        let old = slot.arm().unwrap();
        assert!(slot.void(old) && slot.free(old));
        let new = slot.arm().unwrap();
        assert_ne!(old, new);
        assert!(!slot.answer(old, 0) && !slot.void(old) && !slot.free(old));
        assert!(slot.answer(new, 0));
        assert_eq!(slot.take(old), None);
        assert_eq!(slot.peek(), (new, State::Answered(0)));
        assert_eq!(Generation::from_raw(new.get()), new);
    }
}
