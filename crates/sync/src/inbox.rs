//! A bounded queue from one producer at a time to one consumer at a time, which also says when a
//! consumer must be sent: for groups on their way from service turns to an attachment's worker.
//!
//! Nothing is locked, and a push is a few stores. What was pushed is announced, many pushes at once:
//! the word of what is owed then counts units, one for each piece, and one for each call of a worker
//! without any. Who makes it more than nothing sends a worker; that worker takes a piece a unit, and
//! is the consumer until the word is nothing again. So a piece may be taken before it is announced,
//! its unit then finds nothing, and none is left behind.

use crate::{
    atomic::{AtomicU32, AtomicU64, Ordering},
    mutate::{Line, unless, without},
    ring::AllocError,
};
use alloc::{boxed::Box, vec::Vec};

/// The queue, and the word.
#[derive(Debug)]
pub struct Inbox {
    /// Units that were announced and are not done.
    owed: AtomicU32,
    /// Pushed and not announced: the producer's own.
    held: AtomicU32,
    /// The producer's position, and the consumer's: counts since the start.
    tail: AtomicU64,
    head: AtomicU64,
    /// Pieces that may wait.
    most: u64,
    /// A power of two of them.
    cells: Box<[[AtomicU64; 2]]>,
}

impl Inbox {
    /// An empty queue for `pieces`.
    ///
    /// # Errors
    /// [`AllocError`] when there is no memory for it.
    pub fn new(pieces: usize) -> Result<Inbox, AllocError> {
        let mut cells = Vec::new();
        let (most, room) = (pieces as u64, pieces.checked_next_power_of_two().ok_or(AllocError)?);
        cells.try_reserve_exact(room).map_err(|_| AllocError)?;
        cells.resize_with(room, || [AtomicU64::new(0), AtomicU64::new(0)]);
        Ok(Inbox {
            owed: AtomicU32::new(0),
            held: AtomicU32::new(0),
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            most,
            cells: cells.into_boxed_slice(),
        })
    }

    /// Appends a piece, to be announced later. False when there is no room. For the producer; any
    /// context.
    #[must_use]
    #[inline]
    pub fn push(&self, piece: [u64; 2]) -> bool {
        let tail = self.tail.load(Ordering::Relaxed);
        let used = tail.wrapping_sub(self.head.load(Ordering::Acquire));
        let room = used < self.most || without(Line::InboxHasRoom);
        if room && let Some(cell) = self.cell(tail) {
            cell[0].store(piece[0], Ordering::Relaxed);
            cell[1].store(piece[1], Ordering::Relaxed);
            self.tail.store(tail.wrapping_add(1), unless(Line::InboxPublishes, Ordering::Release));
            self.count_one();
        }
        room
    }

    /// Counts a piece that the producer keeps elsewhere among those that were pushed. For the producer; any
    /// context.
    pub fn count_one(&self) {
        self.held.store(self.held.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Announces what was pushed. True if the caller must send a worker. For the producer; any context.
    #[must_use]
    pub fn announce(&self) -> bool {
        let held = self.held.load(Ordering::Relaxed);
        if held == 0 {
            return false;
        }
        self.held.store(0, Ordering::Relaxed);
        self.owed.fetch_add(held, Ordering::AcqRel) == 0
    }

    /// Has a worker look, whether there are pieces or not. True if the caller must send it. For anybody;
    /// any context.
    #[must_use]
    pub fn call(&self) -> bool {
        self.owed.fetch_add(1, Ordering::AcqRel) == 0
    }

    /// Pieces that there is room for.
    pub fn room(&self) -> usize {
        self.cells.len()
    }

    /// Units that are owed: as many may be done, a piece at most for each. For the consumer.
    pub fn owed(&self) -> u32 {
        self.owed.load(Ordering::Acquire)
    }

    /// Takes the oldest piece. For the consumer.
    #[inline]
    pub fn pop(&self) -> Option<[u64; 2]> {
        let head = self.head.load(Ordering::Relaxed);
        if head == self.tail.load(Ordering::Acquire) {
            return None;
        }
        let cell = self.cell(head)?;
        let piece = [cell[0].load(Ordering::Relaxed), cell[1].load(Ordering::Relaxed)];
        // Read before the place is the producer's again.
        self.head.store(head.wrapping_add(1), Ordering::Release);
        Some(piece)
    }

    /// So many units are done, not more than were owed. True if some are left, and the caller is the
    /// consumer still, or sends another one; else it is no more.
    #[must_use]
    pub fn done(&self, units: u32) -> bool {
        if without(Line::InboxCountsDown) {
            self.owed.store(0, Ordering::Release);
            return false;
        }
        self.owed.fetch_sub(units, Ordering::AcqRel) != units
    }

    #[inline]
    fn cell(&self, position: u64) -> Option<&[AtomicU64; 2]> {
        self.cells.get(position as usize & (self.cells.len() - 1))
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_out_in_order_and_a_worker_is_sent_once() {
        let inbox = Inbox::new(3).unwrap();
        assert!(!inbox.announce(), "nothing to announce");
        for round in 0..10 {
            let piece = |n| [round, n];
            assert!((0..3).all(|n| inbox.push(piece(n))) && !inbox.push(piece(3)), "it is full");
            assert_eq!(inbox.owed(), 0, "not announced");
            assert!(inbox.announce() && !inbox.announce() && !inbox.call());
            assert_eq!(inbox.owed(), 4);
            assert_eq!(inbox.pop(), Some(piece(0)));
            assert!(inbox.done(1), "there is more");
            assert!(inbox.push(piece(3)) && !inbox.announce(), "the worker is there already");
            let rest: alloc::vec::Vec<_> = core::iter::from_fn(|| inbox.pop()).collect();
            assert_eq!(rest, [piece(1), piece(2), piece(3)]);
            assert!(!inbox.done(4));
        }
        assert!(inbox.call() && inbox.pop().is_none() && !inbox.done(1), "a call without a piece");
        inbox.count_one();
        assert!(inbox.announce() && inbox.owed() == 1 && inbox.pop().is_none(), "kept elsewhere");
    }

    #[test]
    fn an_inbox_without_room_takes_nothing() {
        let inbox = Inbox::new(0).unwrap();
        assert!(!inbox.push([1, 2]) && inbox.pop().is_none() && !inbox.announce());
    }
}
