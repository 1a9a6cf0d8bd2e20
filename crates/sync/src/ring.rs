//! A bounded ring for any number of producers and consumers that never waits and, once made, never
//! allocates: for records that leave service context.
//!
//! Each cell carries a sequence number that says whose turn it is (the scheme is Dmitry Vyukov's
//! bounded queue). A producer that is preempted between claiming a cell and filling it hides the
//! entries behind it until it goes on: a consumer then finds the ring empty, it does not wait.
#![allow(unsafe_code, reason = "a cell is plain memory, owned by whom its sequence number names")]

use crate::{
    atomic::{AtomicUsize, Ordering},
    cell::UnsafeCell,
    mutate::{Line, unless, without},
};
use alloc::vec::Vec;
use core::{fmt, mem::MaybeUninit};

/// A bounded queue of copies.
pub struct Ring<T> {
    cells: Vec<Cell<T>>,
    mask: usize,
    head: AtomicUsize,
    tail: AtomicUsize,
}

/// No memory for a ring, or a roster, of the wanted capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocError;

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory for a ring or a roster")
    }
}

impl core::error::Error for AllocError {}

struct Cell<T> {
    /// The position whose producer may fill the cell, or that position plus one once it is filled.
    turn: AtomicUsize,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: a value is copied in by one thread and out by another (T: Send); no reference to a cell's
// value leaves this module, and `turn` lets one thread at a time touch it: a producer after it
// moved `tail` past a cell whose turn is that position, a consumer after it moved `head` past one
// whose turn is the position plus one. The release store of `turn` by one and the acquire load by
// the next order their accesses.
unsafe impl<T: Copy + Send> Sync for Ring<T> {}
// SAFETY: the ring owns its values, which are Send.
unsafe impl<T: Copy + Send> Send for Ring<T> {}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("capacity", &self.cells.len()).finish_non_exhaustive()
    }
}

impl<T: Copy + Send> Ring<T> {
    /// An empty ring with room for `capacity` entries, rounded up to a power of two, at least two.
    ///
    /// # Errors
    /// [`AllocError`] when there is no memory for it.
    pub fn with_capacity(capacity: usize) -> Result<Ring<T>, AllocError> {
        let capacity = capacity.max(2).checked_next_power_of_two().ok_or(AllocError)?;
        let mut cells = Vec::new();
        cells.try_reserve_exact(capacity).map_err(|_| AllocError)?;
        cells.extend(
            (0..capacity)
                .map(|i| Cell { turn: AtomicUsize::new(i), value: UnsafeCell::new(MaybeUninit::uninit()) }),
        );
        Ok(Ring { cells, mask: capacity - 1, head: AtomicUsize::new(0), tail: AtomicUsize::new(0) })
    }

    /// How many entries fit.
    pub fn capacity(&self) -> usize {
        self.cells.len()
    }

    /// Appends a copy of `value`. Any context.
    ///
    /// # Errors
    /// The value, when the ring is full.
    pub fn push(&self, value: T) -> Result<(), T> {
        let Some((cell, at)) = self.claim(&self.tail, 0) else {
            return Err(value);
        };
        cell.value.with_mut(|v| {
            // SAFETY: the cell's turn was this position and we moved `tail` past it: nobody else
            // touches the value until `turn` changes below.
            unsafe { v.write(MaybeUninit::new(value)) }
        });
        cell.turn.store(at.wrapping_add(1), unless(Line::RingPushReleases, Ordering::Release));
        Ok(())
    }

    /// Takes the oldest entry; `None` when there is none, or the oldest is not filled in yet. Any
    /// context.
    pub fn pop(&self) -> Option<T> {
        let (cell, at) = self.claim(&self.head, 1)?;
        let value = cell.value.with(|v| {
            // SAFETY: the cell's turn was this position plus one, stored by the producer after it
            // had written the value; we moved `head` past it: nobody else touches the value until
            // `turn` changes below. T is Copy, so reading it out leaves nothing to drop.
            unsafe { (*v).assume_init() }
        });
        cell.turn.store(at.wrapping_add(self.cells.len()), unless(Line::RingPopReleases, Ordering::Release));
        Some(value)
    }

    /// Moves `end` past the position it stands at, if that position's cell has `turn` equal to the
    /// position plus `ready`.
    fn claim(&self, end: &AtomicUsize, ready: usize) -> Option<(&Cell<T>, usize)> {
        let mut at = end.load(Ordering::Relaxed);
        loop {
            let cell = &self.cells[at & self.mask];
            let turn = cell.turn.load(Ordering::Acquire);
            let mine = turn.wrapping_sub(at.wrapping_add(ready)).cast_signed();
            if without(Line::RingClaimSwaps) && mine == 0 {
                end.store(at.wrapping_add(1), Ordering::Relaxed);
                return Some((cell, at));
            }
            match if without(Line::RingChecksTurn) { 0 } else { mine } {
                0 => match end.compare_exchange_weak(
                    at,
                    at.wrapping_add(1),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some((cell, at)),
                    Err(now) => at = now,
                },
                behind if behind < 0 => return None,
                _ => at = end.load(Ordering::Relaxed),
            }
        }
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_and_bounded() {
        let ring = Ring::with_capacity(3).unwrap();
        assert_eq!(ring.capacity(), 4);
        for round in 0..10 {
            for n in 0..4 {
                ring.push(round * 4 + n).unwrap();
            }
            assert_eq!(ring.push(99), Err(99));
            for n in 0..4 {
                assert_eq!(ring.pop(), Some(round * 4 + n));
            }
            assert_eq!(ring.pop(), None);
        }
    }

    #[test]
    fn positions_may_wrap() {
        let ring = Ring::with_capacity(2).unwrap();
        let start = usize::MAX - 1;
        ring.head.store(start, Ordering::Relaxed);
        ring.tail.store(start, Ordering::Relaxed);
        for (i, cell) in ring.cells.iter().enumerate() {
            cell.turn.store(start.wrapping_add(i), Ordering::Relaxed);
        }
        for n in 0..6 {
            ring.push(n).unwrap();
            assert_eq!(ring.pop(), Some(n));
        }
    }

    #[test]
    fn a_capacity_nobody_has_is_refused() {
        assert_eq!(Ring::<u64>::with_capacity(usize::MAX).unwrap_err(), AllocError);
        assert_eq!(Ring::<u64>::with_capacity(1 << 60).unwrap_err(), AllocError);
    }
}
