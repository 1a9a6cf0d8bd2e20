//! What one service turn at a time owns: no lock is held while a turn runs, and whoever comes
//! meanwhile makes it go round again.
#![allow(unsafe_code, reason = "a value that belongs to whoever has the turn")]

use crate::{
    atomic::{AtomicU32, Ordering},
    cell::UnsafeCell,
    mutate::{Line, without},
};
use core::fmt;

const IDLE: u32 = 0;
const RUNNING: u32 = 1;
const AGAIN: u32 = 2;

/// A value and the turn that owns it.
pub struct Turnstile<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: a reference to the value exists only inside `InTurn::with`, and only one `InTurn` exists
// at a time: it is made where `word` leaves IDLE, by a compare-and-swap with acquire, and it ends
// where `word` goes back to IDLE with release. So the value moves between threads (T: Send) and is
// never shared by them.
unsafe impl<T: Send> Sync for Turnstile<T> {}

impl<T> fmt::Debug for Turnstile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turnstile").finish_non_exhaustive()
    }
}

impl<T> Turnstile<T> {
    /// Nobody has the turn.
    pub fn new(value: T) -> Turnstile<T> {
        Turnstile { word: AtomicU32::new(IDLE), value: UnsafeCell::new(value) }
    }

    /// Takes the turn. Where somebody has it, they are told to go round again, and this returns
    /// `None`: whatever the caller saw before is seen by that round.
    #[inline]
    pub fn enter(&self) -> Option<InTurn<'_, T>> {
        loop {
            if let Some(turn) = self.try_enter() {
                return Some(turn);
            }
            let asked = match self.word.load(Ordering::Relaxed) {
                IDLE => false,
                was => self.word.compare_exchange(was, AGAIN, Ordering::AcqRel, Ordering::Relaxed).is_ok(),
            };
            if asked {
                return None;
            }
        }
    }

    /// Takes the turn if nobody has it; asks nothing of somebody who does.
    #[inline]
    pub fn try_enter(&self) -> Option<InTurn<'_, T>> {
        if without(Line::TurnExcludes) {
            self.word.store(RUNNING, Ordering::Relaxed);
            return Some(InTurn { of: self });
        }
        let taken = self.word.compare_exchange(IDLE, RUNNING, Ordering::AcqRel, Ordering::Relaxed);
        taken.is_ok().then(|| InTurn { of: self })
    }
}

/// The turn, in its holder's hands. Dropped, it ends without another round.
#[derive(Debug)]
pub struct InTurn<'a, T> {
    of: &'a Turnstile<T>,
}

impl<T> InTurn<'_, T> {
    /// The value.
    #[inline]
    pub fn with<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> R {
        self.of.value.with_mut(|value| {
            // SAFETY: `self` is the only `InTurn` there is (see `Sync` above), it is borrowed
            // exclusively for the call, and the reference does not outlive it.
            f(unsafe { &mut *value })
        })
    }

    /// Ends the turn.
    ///
    /// # Errors
    /// The turn, when somebody asked for another round.
    #[inline]
    pub fn end(self) -> Result<(), Self> {
        let idle = self.of.word.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Relaxed);
        if idle.is_ok() {
            core::mem::forget(self);
            return Ok(());
        }
        if without(Line::TurnGoesAgain) {
            return Ok(());
        }
        // A swap, so that what was seen before the round was asked for is seen by the round.
        self.of.word.swap(RUNNING, Ordering::AcqRel);
        Err(self)
    }
}

impl<T> Drop for InTurn<'_, T> {
    fn drop(&mut self) {
        self.of.word.store(IDLE, Ordering::Release);
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_second_caller_makes_the_first_go_round() {
        let t = Turnstile::new(0);
        let mut turn = t.enter().unwrap();
        assert!(t.try_enter().is_none());
        turn.with(|v| *v += 1);
        assert!(t.enter().is_none() && t.enter().is_none());
        let mut turn = turn.end().unwrap_err();
        turn.with(|v| *v += 1);
        turn.end().unwrap();
        assert_eq!(t.enter().unwrap().with(|v| *v), 2, "and the turn was given up by a drop");
        assert!(t.try_enter().is_some());
    }
}
