//! Places with tenants that are used by reference, without a lock and without a count of their own,
//! and leave only when nobody is inside.
//!
//! One word a place holds its generation, its phase and how many are inside: this is the attachment
//! word of the core. The fault path goes in under the generation that it looked up, a detach closes
//! the word, and the tenant (the caller's data with it) is taken out once nobody is inside.
#![allow(unsafe_code, reason = "a value that is lent to those who are counted in its word")]

use crate::{
    atomic::{AtomicU64, Ordering},
    cell::UnsafeCell,
    mutate::{Line, unless, without},
    ring::AllocError,
};
use alloc::{boxed::Box, vec::Vec};
use core::{fmt, ops::Deref};

/// Nobody lives there.
const EMPTY: u64 = 0;
/// Somebody moves in or out.
const MOVING: u64 = 1;
/// There, and not ready: whoever goes in may look, and leave things for later.
const WAITING: u64 = 2;
const OPEN: u64 = 3;
/// Nobody goes in any more.
const CLOSED: u64 = 4;

const PHASE: u64 = 0b111 << 5;
const INSIDE: u64 = 0b1_1111;
const GENERATION: u64 = (1 << 56) - 1;

const fn word(generation: u64, phase: u64) -> u64 {
    generation << 8 | phase << 5
}

const fn phase(word: u64) -> u64 {
    (word & PHASE) >> 5
}

/// Where a tenant stands whom somebody went in to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There, and not ready.
    Waiting,
    /// Ready.
    Open,
    /// Closed since.
    Closed,
}

/// A fixed number of places.
pub struct Tenants<T> {
    places: Box<[Place<T>]>,
}

struct Place<T> {
    word: AtomicU64,
    tenant: UnsafeCell<Option<T>>,
}

// SAFETY: the cell is written only by who moved the word to MOVING by a compare-and-swap, which is
// refused while anybody is inside, and is shared only with those whom the word counts as inside,
// who went in while the phase was WAITING or OPEN. Going in acquires what moving in released, and
// moving out acquires what every one of those who left released. References go to several threads
// at once (T: Sync) and the value moves between them (T: Send).
unsafe impl<T: Send + Sync> Sync for Tenants<T> {}
// SAFETY: the places own their tenants, which are Send.
unsafe impl<T: Send> Send for Tenants<T> {}

impl<T> fmt::Debug for Tenants<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenants").field("places", &self.places.len()).finish_non_exhaustive()
    }
}

impl<T> Tenants<T> {
    /// So many empty places, whose generations begin after `start`.
    ///
    /// # Errors
    /// [`AllocError`] when there is no memory for them.
    pub fn new(places: usize, start: u64) -> Result<Tenants<T>, AllocError> {
        let mut list = Vec::new();
        list.try_reserve_exact(places).map_err(|_| AllocError)?;
        list.resize_with(places, || Place {
            word: AtomicU64::new(word(start & GENERATION, EMPTY)),
            tenant: UnsafeCell::new(None),
        });
        Ok(Tenants { places: list.into_boxed_slice() })
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are no places.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The generation that a place has now.
    pub fn generation(&self, index: u32) -> Option<u64> {
        Some(self.place(index)?.word.load(Ordering::Acquire) >> 8)
    }

    /// Gives an empty place its next generation. `None` when it is not empty.
    pub fn renew(&self, index: u32) -> Option<u64> {
        let place = self.place(index)?;
        let was = place.word.load(Ordering::Acquire);
        let next = ((was >> 8) + 1) & GENERATION;
        (phase(was) == EMPTY && place.swap(was, word(next, EMPTY)).is_ok()).then_some(next)
    }

    /// Moves a tenant in; it waits until [`open`](Self::open).
    ///
    /// # Errors
    /// The tenant, when the place is not empty or has another generation.
    pub fn fill(&self, index: u32, generation: u64, tenant: T) -> Result<(), T> {
        let Some(place) = self.place(index) else { return Err(tenant) };
        if place.swap(word(generation, EMPTY), word(generation, MOVING)).is_err() {
            return Err(tenant);
        }
        place.tenant.with_mut(|t| {
            // SAFETY: we moved the word from EMPTY, where nobody is inside, to MOVING: nobody goes
            // in, and nobody else moves, until the store below.
            unsafe { *t = Some(tenant) }
        });
        place.word.store(word(generation, WAITING), Ordering::Release);
        Ok(())
    }

    /// A tenant that waits is ready.
    pub fn open(&self, index: u32, generation: u64) {
        self.advance(index, generation, |p| p == WAITING, OPEN);
    }

    /// Lets nobody in any more. Closing again is harmless.
    pub fn close(&self, index: u32, generation: u64) {
        self.advance(index, generation, |p| p == WAITING || p == OPEN, CLOSED);
    }

    fn advance(&self, index: u32, generation: u64, from: impl Fn(u64) -> bool, to: u64) {
        let Some(place) = self.place(index) else { return };
        let mut was = place.word.load(Ordering::Acquire);
        while was >> 8 == generation && from(phase(was)) {
            match place.swap(was, word(generation, to) | was & INSIDE) {
                Ok(_) => return,
                Err(now) => was = now,
            }
        }
    }

    /// Goes in to a tenant that waits or is open. `None` if it is closed, gone, or somebody else's
    /// place by now (or more than 30 are inside).
    #[inline]
    pub fn enter(&self, index: u32, generation: u64) -> Option<Inside<'_, T>> {
        let place = self.place(index)?;
        let mut was = place.word.load(Ordering::Acquire);
        loop {
            let closed = !matches!(phase(was), WAITING | OPEN);
            let other = was >> 8 != generation && !without(Line::EnterChecksGeneration);
            let full = was & INSIDE == INSIDE;
            if other || full || closed && !(without(Line::EnterChecksClosed) && phase(was) == CLOSED) {
                return None;
            }
            match place.swap(was, was + 1) {
                Ok(_) => return Some(Inside { place }),
                Err(now) => was = now,
            }
        }
    }

    /// Whether a tenant waits for [`open`](Self::open).
    pub fn is_waiting(&self, index: u32, generation: u64) -> bool {
        self.phase(index, generation) == Some(WAITING)
    }

    /// Whether a tenant can be gone in to: it waits or is open.
    #[inline]
    pub fn is_there(&self, index: u32, generation: u64) -> bool {
        matches!(self.phase(index, generation), Some(WAITING | OPEN))
    }

    #[inline]
    fn phase(&self, index: u32, generation: u64) -> Option<u64> {
        let w = self.place(index)?.word.load(Ordering::Acquire);
        (w >> 8 == generation).then_some(phase(w))
    }

    /// Takes a closed tenant out once nobody is inside: one of those who try gets it.
    pub fn empty(&self, index: u32, generation: u64) -> Option<T> {
        let place = self.place(index)?;
        let mut was = word(generation, CLOSED);
        if without(Line::EmptyWaitsForInside) {
            was = place.word.load(Ordering::Acquire);
        }
        place.swap(was, word(generation, MOVING)).ok()?;
        let tenant = place.tenant.with_mut(|t| {
            // SAFETY: we moved the word from CLOSED with nobody inside to MOVING: nobody goes in,
            // and nobody else moves, until the store below.
            unsafe { (*t).take() }
        });
        place.word.store(word(generation, EMPTY), Ordering::Release);
        tenant
    }

    #[inline]
    fn place(&self, index: u32) -> Option<&Place<T>> {
        self.places.get(index as usize)
    }
}

impl<T> Place<T> {
    #[inline]
    fn swap(&self, from: u64, to: u64) -> Result<u64, u64> {
        self.word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// Somebody who uses a tenant. Leaves on drop, and then hears of nothing: see
/// [`leave`](Inside::leave).
pub struct Inside<'a, T> {
    place: &'a Place<T>,
}

// SAFETY: it stands for a shared reference to the tenant (T: Sync); the word does not mind which
// thread leaves.
unsafe impl<T: Send + Sync> Send for Inside<'_, T> {}

impl<T> fmt::Debug for Inside<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").finish_non_exhaustive()
    }
}

impl<T> Inside<'_, T> {
    /// Where the tenant stands.
    #[inline]
    pub fn phase(&self) -> Phase {
        match phase(self.place.word.load(Ordering::Acquire)) {
            WAITING => Phase::Waiting,
            OPEN => Phase::Open,
            // Nobody moves while we are inside.
            _ => Phase::Closed,
        }
    }

    /// Whether the tenant waits for [`Tenants::open`].
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.phase() == Phase::Waiting
    }

    /// Whether the tenant was closed meanwhile.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.phase() == Phase::Closed
    }

    /// Goes out. The last one to leave a closed tenant calls `last` before: they are the one to see
    /// to it that the tenant is taken out.
    #[inline]
    pub fn leave<R>(self, last: impl FnOnce(&T) -> R) -> Option<R>
    where
        T: Sync,
    {
        let inside = core::mem::ManuallyDrop::new(self);
        let mut was = inside.place.word.load(Ordering::Acquire);
        let order = unless(Line::LeaveReleases, Ordering::AcqRel);
        loop {
            // Closed, and nobody but us: nobody can change that.
            if phase(was) == CLOSED && was & INSIDE == 1 && !without(Line::LastHears) {
                let said = last(&inside);
                inside.place.word.fetch_sub(1, order);
                return Some(said);
            }
            match inside.place.word.compare_exchange(was, was - 1, order, Ordering::Acquire) {
                Ok(_) => return None,
                Err(now) => was = now,
            }
        }
    }
}

impl<T: Sync> Deref for Inside<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        let tenant = self.place.tenant.with(|t| {
            // SAFETY: we are counted inside, so nobody moves the word to MOVING, and only then is
            // the cell written. The reference lives no longer than `self`, which leaves on drop.
            unsafe { (*t).as_ref() }
        });
        match tenant {
            Some(tenant) => tenant,
            // A place that is WAITING, OPEN or CLOSED has a tenant.
            None => unreachable!("a place without a tenant was gone in to"),
        }
    }
}

impl<T> Drop for Inside<'_, T> {
    fn drop(&mut self) {
        self.place.word.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn one_life_of_a_tenant() {
        let t = Tenants::new(1, 7).unwrap();
        let g = t.renew(0).unwrap();
        assert_eq!(g, 8);
        assert!(t.enter(0, g).is_none() && t.empty(0, g).is_none(), "nobody lives there");
        t.fill(0, g, 5).unwrap();
        assert_eq!((t.fill(0, g, 6), t.renew(0)), (Err(6), None), "it is taken");
        let inside = t.enter(0, g).unwrap();
        assert!(inside.is_waiting() && t.is_waiting(0, g) && t.is_there(0, g));
        t.open(0, g);
        assert!(!inside.is_waiting() && !inside.is_closed());
        assert_eq!(*inside, 5);
        assert_eq!(t.enter(0, g).unwrap().leave(|_| ()), None, "an open place tells nobody");
        t.close(0, g);
        t.open(0, g);
        assert!(inside.is_closed() && t.enter(0, g).is_none() && !t.is_there(0, g));
        assert_eq!(t.empty(0, g), None, "somebody is inside");
        assert_eq!(inside.leave(|five| *five), Some(5), "the last one hears of it");
        assert_eq!((t.empty(0, g), t.empty(0, g)), (Some(5), None));
        let next = t.renew(0).unwrap();
        t.fill(0, next, 6).unwrap();
        t.close(0, g);
        assert!(t.enter(0, g).is_none() && t.is_there(0, next), "an old key does nothing");
    }

    #[test]
    fn a_place_holds_no_more_than_its_word_counts() {
        let t = Tenants::new(1, 0).unwrap();
        let g = t.renew(0).unwrap();
        t.fill(0, g, ()).unwrap();
        let all: Vec<_> = core::iter::from_fn(|| t.enter(0, g)).collect();
        assert_eq!(all.len(), 31);
        drop(all);
        t.close(0, g);
        assert!(t.empty(0, g).is_some());
        assert!(t.enter(9, g).is_none() && t.fill(9, g, ()).is_err() && t.renew(9).is_none());
    }
}
