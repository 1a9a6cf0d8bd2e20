//! The word that counts who is inside, and lets nobody in once it is closed.

use crate::atomic::{AtomicU64, Ordering};

const CLOSED: u64 = 1 << 63;

/// Counts handlers that run with an attachment, so that a detach knows when none does.
#[derive(Debug)]
pub struct Gate(AtomicU64);

impl Default for Gate {
    fn default() -> Self {
        Gate::new()
    }
}

impl Gate {
    /// An open gate with nobody inside.
    pub fn new() -> Gate {
        Gate(AtomicU64::new(0))
    }

    /// Goes in, unless the gate is closed.
    #[must_use]
    pub fn enter(&self) -> bool {
        let mut w = self.0.load(Ordering::Acquire);
        loop {
            if w & CLOSED != 0 {
                return false;
            }
            match self.0.compare_exchange(w, w + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => w = now,
            }
        }
    }

    /// Goes out. True if the gate is closed and this was the last one inside: whoever waits for an
    /// empty gate is to be woken.
    pub fn leave(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1
    }

    /// Closes the gate for good. True if nobody is inside.
    pub fn close(&self) -> bool {
        self.0.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED == 0
    }

    /// Whether the gate is closed.
    pub fn is_closed(&self) -> bool {
        self.0.load(Ordering::Acquire) & CLOSED != 0
    }

    /// How many are inside.
    pub fn inside(&self) -> u64 {
        self.0.load(Ordering::Acquire) & !CLOSED
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_out_of_a_closed_gate_hears_of_it() {
        let gate = Gate::new();
        assert!(gate.enter() && gate.enter());
        assert!(!gate.leave(), "an open gate tells nobody");
        assert!(!gate.close(), "one is inside");
        assert!(!gate.enter() && gate.is_closed());
        assert_eq!(gate.inside(), 1);
        assert!(gate.leave());
        assert!(gate.close(), "closing again is harmless");
    }
}
