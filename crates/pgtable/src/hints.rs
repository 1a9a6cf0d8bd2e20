//! Where tables were found last, so that a call near an earlier one does not walk.
//!
//! A hint says which table is at a level of the walk for a span of positions. It is one word, so
//! that it is read whole. Who owns a part of the span writes it, and whoever takes the table out
//! clears it first, and owns the whole span: ownership orders the two, and so no one who may map
//! or unmap there finds a table that is gone. Lookups own nothing and walk.

use crate::{format::Format, mem::Phys};
use core::marker::PhantomData;
use portcullis_sync::atomic::{AtomicU64, Ordering};

/// Enough for several mappers that each work through a range of their own.
const SLOTS: usize = if cfg!(any(portcullis_loom, portcullis_shuttle)) { 2 } else { 64 };

/// Tables by what they span: the upper half of a word has the table's frame, the lower one its key.
pub(crate) struct Hints<F> {
    slots: [AtomicU64; SLOTS],
    format: PhantomData<F>,
}

impl<F: Format> Hints<F> {
    pub(crate) fn new() -> Hints<F> {
        Hints { slots: core::array::from_fn(|_| AtomicU64::new(0)), format: PhantomData }
    }

    /// The table at `level`, 1 or 2, that holds `pos`.
    #[inline]
    pub(crate) fn find(&self, level: usize, pos: u64) -> Option<Phys> {
        let key = Self::key(level, pos);
        let word = self.slots[slot(key)].load(Ordering::Acquire);
        (word & 0xffff_ffff == key).then_some(Phys(word >> 32 << 12))
    }

    /// Notes it. The caller owns a part of what it spans.
    #[inline]
    pub(crate) fn set(&self, level: usize, pos: u64, table: Phys) {
        let key = Self::key(level, pos);
        if key >> 32 == 0 && table.0 >> 44 == 0 {
            self.slots[slot(key)].store(table.0 >> 12 << 32 | key, Ordering::Release);
        }
    }

    /// Forgets it. The caller owns all of what it spans.
    pub(crate) fn forget(&self, level: usize, pos: u64) {
        if level <= 2 {
            self.slots[slot(Self::key(level, pos))].store(0, Ordering::Release);
        }
    }

    /// Level and span, and never 0 in the lower half, which is no hint.
    #[inline]
    fn key(level: usize, pos: u64) -> u64 {
        (pos >> F::shift(level + 1) << 1 | (level as u64 - 1)) + 1
    }
}

#[inline]
fn slot(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % SLOTS
}
