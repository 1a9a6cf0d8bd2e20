//! A bounded list of members that are visited without a lock while others join and leave: for
//! observers, who are called in service context.
//!
//! Each place carries a word that counts who visits it and says whether it is open. A visit never
//! waits and never frees anything: a member who leaves while it is visited is handed out, or
//! dropped, by whoever joins or leaves in a context that may do so.
#![allow(unsafe_code, reason = "a member's memory is owned by whom its place's word names")]

use crate::{
    atomic::{AtomicU64, AtomicUsize, Ordering},
    cell::UnsafeCell,
    mutate::{Line, unless, without},
    ring::AllocError,
};
use alloc::vec::Vec;
use core::fmt;

/// Nobody begins a visit.
const CLOSED: u64 = 1 << 63;
/// There is a member in the place.
const HELD: u64 = 1 << 62;
/// The member's owner has gone: whoever wants the place drops what is left in it.
const LEFT: u64 = 1 << 61;
/// One thread fills or empties the place.
const BUSY: u64 = 1 << 60;

/// A bounded list of `T`.
pub struct Roster<T> {
    places: Vec<Place<T>>,
    members: AtomicUsize,
    /// Places from here on were never used.
    end: AtomicUsize,
}

struct Place<T> {
    /// The bits above, and in the rest how many visit.
    word: AtomicU64,
    value: UnsafeCell<Option<T>>,
}

/// The right to take one's member out again. Dropped, the member stays for ever.
#[derive(Debug)]
#[must_use = "a membership that is dropped can never be ended"]
pub struct Membership(usize);

// SAFETY: a shared reference to a value is given to visitors only, and to several at once (T:
// Sync); the value moves in and out by the thread that made the place's word BUSY, on whatever
// thread that is (T: Send). The word goes to BUSY only from CLOSED with no visitor, and opens only
// after the value was written, so no visit overlaps a move; release on leaving and opening, acquire
// on entering and taking order them.
unsafe impl<T: Send + Sync> Sync for Roster<T> {}
// SAFETY: the roster owns its values, which are Send.
unsafe impl<T: Send> Send for Roster<T> {}

impl<T> fmt::Debug for Roster<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster").field("capacity", &self.places.len()).finish_non_exhaustive()
    }
}

impl<T: Send + Sync> Roster<T> {
    /// An empty roster with room for `capacity` members.
    ///
    /// # Errors
    /// [`AllocError`] when there is no memory for it.
    pub fn with_capacity(capacity: usize) -> Result<Roster<T>, AllocError> {
        let mut places = Vec::new();
        places.try_reserve_exact(capacity).map_err(|_| AllocError)?;
        places.resize_with(capacity, || Place { word: AtomicU64::new(CLOSED), value: UnsafeCell::new(None) });
        Ok(Roster { places, members: AtomicUsize::new(0), end: AtomicUsize::new(0) })
    }

    /// How many members fit.
    pub fn capacity(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody is a member: one load.
    pub fn is_empty(&self) -> bool {
        self.members.load(Ordering::Acquire) == 0
    }

    /// Takes a member in; every visit that begins after this sees it. May drop one that left while
    /// it was visited.
    ///
    /// # Errors
    /// The member, when every place is taken.
    pub fn join(&self, member: T) -> Result<Membership, T> {
        let Some((index, place)) = self.places.iter().enumerate().find(|(_, p)| p.claim()) else {
            return Err(member);
        };
        let old = place.replace(Some(member));
        self.end.fetch_max(index + 1, Ordering::AcqRel);
        place.word.store(HELD, unless(Line::JoinReleases, Ordering::Release));
        self.members.fetch_add(1, Ordering::AcqRel);
        drop(old);
        Ok(Membership(index))
    }

    /// Takes a member out: no visit of it begins after this, whatever the answer.
    ///
    /// # Errors
    /// The membership, while a visit that began before still runs: to be tried again, or given up
    /// by [`abandon`](Roster::abandon).
    pub fn leave(&self, membership: Membership) -> Result<Option<T>, Membership> {
        let Some(place) = self.places.get(membership.0) else { return Ok(None) };
        if place.word.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0 {
            self.members.fetch_sub(1, Ordering::AcqRel);
        }
        let mut from = CLOSED | HELD;
        if without(Line::LeaveWaitsForVisits) {
            from = place.word.load(Ordering::Acquire);
        }
        let taken = place.word.compare_exchange(from, CLOSED | BUSY, Ordering::AcqRel, Ordering::Acquire);
        if taken.is_err() {
            return Err(membership);
        }
        let value = place.replace(None);
        place.word.store(CLOSED, Ordering::Release);
        Ok(value)
    }

    /// Takes a member out as [`leave`](Roster::leave) does. One that is still visited is dropped
    /// by whoever gets its place, or with the roster.
    pub fn abandon(&self, membership: Membership) -> Option<T> {
        match self.leave(membership) {
            Ok(value) => value,
            Err(Membership(index)) => {
                if let Some(place) = self.places.get(index) {
                    place.word.fetch_or(LEFT, Ordering::AcqRel);
                }
                None
            }
        }
    }

    /// Calls `visit` with every member. Never waits. One load when there is nobody.
    pub fn visit(&self, mut visit: impl FnMut(&T)) {
        if self.is_empty() {
            return;
        }
        let end = self.end.load(Ordering::Acquire);
        for place in self.places.iter().take(end) {
            let Some(_inside) = place.enter() else { continue };
            place.value.with(|v| {
                // SAFETY: we are counted in the place's word, which was open: the value is there,
                // and nobody moves it before the count is zero again.
                if let Some(member) = unsafe { &*v } {
                    visit(member);
                }
            });
        }
    }
}

impl<T> Place<T> {
    /// Makes the place the caller's, if it is free or holds what nobody wants any more.
    fn claim(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        (word == CLOSED || word == CLOSED | HELD | LEFT)
            && self.word.compare_exchange(word, CLOSED | BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Puts something else into a place that is the caller's.
    fn replace(&self, value: Option<T>) -> Option<T> {
        self.value.with_mut(|v| {
            // SAFETY: the caller made the word BUSY, from a state without visitors; nobody enters
            // and nobody else claims the place before the caller stores the word again.
            unsafe { core::mem::replace(&mut *v, value) }
        })
    }

    /// Counts a visitor in, unless the place is closed.
    fn enter(&self) -> Option<Inside<'_>> {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & CLOSED == 0 || without(Line::VisitChecksClosed) && word & BUSY == 0 {
            match self.word.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(Inside(&self.word)),
                Err(now) => word = now,
            }
        }
        None
    }
}

/// A visitor, counted out when dropped, also by a panic.
struct Inside<'a>(&'a AtomicU64);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, unless(Line::VisitReleases, Ordering::AcqRel));
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;
    use alloc::{sync::Arc, vec};

    fn seen(roster: &Roster<Arc<u32>>) -> Vec<u32> {
        let mut all = vec![];
        roster.visit(|m| all.push(**m));
        all
    }

    #[test]
    fn members_join_leave_and_are_bounded() {
        let roster = Roster::with_capacity(2).unwrap();
        assert!(roster.is_empty());
        let one = roster.join(Arc::new(1)).unwrap();
        let two = roster.join(Arc::new(2)).unwrap();
        assert_eq!(roster.join(Arc::new(3)).unwrap_err(), Arc::new(3));
        assert_eq!(seen(&roster), [1, 2]);
        assert_eq!(roster.leave(one).unwrap(), Some(Arc::new(1)));
        let three = roster.join(Arc::new(3)).unwrap();
        assert_eq!(seen(&roster), [3, 2]);
        assert_eq!(roster.abandon(three), Some(Arc::new(3)));
        assert_eq!(roster.abandon(two), Some(Arc::new(2)));
        assert!(roster.is_empty() && seen(&roster).is_empty());
    }

    #[test]
    fn a_member_that_is_visited_stays_until_the_visit_is_over() {
        let roster = Roster::with_capacity(1).unwrap();
        let value = Arc::new(1);
        let mut membership = Some(roster.join(value.clone()).unwrap());
        roster.visit(|_| {
            let again = roster.leave(membership.take().unwrap()).expect_err("it is visited");
            assert!(roster.is_empty() && seen(&roster).is_empty(), "no new visit begins");
            assert!(roster.join(Arc::new(2)).is_err(), "the place is not free yet");
            membership = Some(again);
        });
        assert_eq!(roster.leave(membership.take().unwrap()).unwrap(), Some(value));

        let value = Arc::new(3);
        let mut membership = Some(roster.join(value.clone()).unwrap());
        roster.visit(|_| assert_eq!(roster.abandon(membership.take().unwrap()), None));
        assert_eq!(Arc::strong_count(&value), 2, "kept for whoever comes next");
        let next = roster.join(Arc::new(4)).unwrap();
        assert_eq!(Arc::strong_count(&value), 1);
        assert_eq!(seen(&roster), [4]);
        drop(roster.abandon(next));
    }

    #[test]
    fn a_capacity_nobody_has_is_refused() {
        assert_eq!(Roster::<u64>::with_capacity(usize::MAX).unwrap_err(), AllocError);
    }
}
