//! Work that arrives piece by piece and is done by one worker at a time, none of it left behind.

use crate::{
    atomic::{AtomicBool, Ordering},
    mutate::{Line, unless, without},
};

/// Says whether somebody must be sent, and keeps a second one from going.
///
/// Whoever leaves a piece of work calls [`ask`](Errand::ask) after that, and wakes a worker if told
/// to. A worker that gets [`take`](Errand::take) does what it finds, and asks for another if
/// [`end`](Errand::end) says that something came meanwhile.
#[derive(Debug)]
pub struct Errand {
    /// There may be work that nobody has been sent for.
    due: AtomicBool,
    /// A worker is at it.
    busy: AtomicBool,
}

impl Default for Errand {
    fn default() -> Self {
        Errand::new()
    }
}

impl Errand {
    /// Nothing to do, and nobody there.
    pub fn new() -> Errand {
        Errand { due: AtomicBool::new(false), busy: AtomicBool::new(false) }
    }

    /// There is work. True if nobody was asked since a worker last went: the caller wakes one.
    #[must_use]
    pub fn ask(&self) -> bool {
        !self.due.swap(true, unless(Line::ErrandAskReleases, Ordering::AcqRel))
    }

    /// Goes, if there is work and nobody is at it. What was asked for before this is now the
    /// caller's to do, until [`end`](Errand::end).
    #[must_use]
    pub fn take(&self) -> bool {
        // A worker that heard the bell sees that there was work when it was rung.
        let mine = self.due.load(Ordering::Acquire)
            && (!self.busy.swap(true, Ordering::AcqRel) || without(Line::ErrandExcludes));
        if mine {
            self.due.swap(false, Ordering::AcqRel);
        }
        mine
    }

    /// Comes back. True if there is work again: another worker may have been sent for it and have
    /// found this one still there, so the caller wakes one.
    #[must_use]
    pub fn end(&self) -> bool {
        // Not a store: a worker that found this one still there was sent for something, which the
        // load must not miss.
        match without(Line::ErrandEndSwaps) {
            true => self.busy.store(false, Ordering::Release),
            false => drop(self.busy.swap(false, Ordering::AcqRel)),
        }
        self.due.load(Ordering::Acquire) && !without(Line::ErrandLooksAtEnd)
    }
}

/// Whether anybody was sent since somebody last looked: one for many errands.
#[derive(Debug)]
pub struct Bell(AtomicBool);

impl Default for Bell {
    fn default() -> Self {
        Bell::new()
    }
}

impl Bell {
    /// Not rung.
    pub fn new() -> Bell {
        Bell(AtomicBool::new(false))
    }

    /// Rings: whoever hears it sees what came before. A store would not do: it may count as earlier
    /// than another ringing that is heard in its place.
    pub fn ring(&self) {
        match without(Line::BellSwaps) {
            true => self.0.store(true, Ordering::Release),
            false => drop(self.0.swap(true, Ordering::AcqRel)),
        }
    }

    /// Whether it was rung and nobody has heard it. Says nothing of what came before the ringing.
    #[inline]
    pub fn is_rung(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether it was rung since this was last asked.
    #[must_use]
    pub fn heard(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn one_worker_goes_and_hears_of_what_came_meanwhile() {
        let errand = Errand::new();
        assert!(!errand.take());
        assert!(errand.ask() && !errand.ask(), "the first one wakes a worker");
        assert!(errand.take() && !errand.take());
        assert!(errand.ask(), "the worker that is there may have looked already");
        assert!(!errand.take(), "it is still there");
        assert!(errand.end());
        assert!(errand.take() && !errand.end());
    }
}
