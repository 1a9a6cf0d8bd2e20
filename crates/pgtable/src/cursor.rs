//! A position in a walk, kept so that a step to a neighbour does not start at the root.

use crate::{engine::MAX_LEVELS, format::Format, mem::Phys};
use core::marker::PhantomData;

/// The tables on the way to an IOVA, down to the level reached so far.
pub(crate) struct Cursor<F> {
    path: [Option<Phys>; MAX_LEVELS + 1],
    level: usize,
    pos: u64,
    format: PhantomData<F>,
}

impl<F: Format> Cursor<F> {
    pub(crate) fn at_root(root: Phys) -> Cursor<F> {
        const { assert!(F::LEVELS >= 1 && F::LEVELS <= MAX_LEVELS) }
        let mut path = [None; MAX_LEVELS + 1];
        path[F::LEVELS] = Some(root);
        Cursor {
            path,
            level: F::LEVELS,
            pos: 0,
            format: PhantomData,
        }
    }

    /// Moves to `pos`, up to the lowest known table that also covers it.
    #[inline]
    pub(crate) fn go(&mut self, pos: u64) {
        let moved = pos ^ self.pos;
        while self.level < F::LEVELS && moved >> F::shift(self.level + 1) != 0 {
            self.level += 1;
        }
        self.pos = pos;
    }

    /// Goes down to `table`, or into a table that does not exist yet.
    #[inline]
    pub(crate) fn enter(&mut self, table: Option<Phys>) {
        self.level -= 1;
        self.path[self.level] = table;
    }

    /// Goes up to the parent.
    pub(crate) fn leave(&mut self) {
        self.level += 1;
    }

    /// Level of the table that the cursor is in.
    #[inline]
    pub(crate) fn level(&self) -> usize {
        self.level
    }

    /// The table that the cursor is in; `None` for one that does not exist yet.
    #[inline]
    pub(crate) fn table(&self) -> Option<Phys> {
        self.path[self.level]
    }
}

/// Number of entries in a table at `level`.
#[inline]
pub(crate) fn entries<F: Format>(level: usize) -> usize {
    1 << (F::shift(level + 1) - F::shift(level))
}

/// Index of the entry of a table at `level` that translates `iova`.
#[inline]
pub(crate) fn index<F: Format>(level: usize, iova: u64) -> usize {
    (iova >> F::shift(level)) as usize & (entries::<F>(level) - 1)
}

/// The last address of the aligned block of 2^`bits` bytes that holds `iova`.
#[inline]
pub(crate) fn block_end(iova: u64, bits: u32) -> u64 {
    iova | low(bits)
}

/// The first address of the aligned block of 2^`bits` bytes that holds `iova`.
#[inline]
pub(crate) fn block_start(iova: u64, bits: u32) -> u64 {
    iova & !low(bits)
}

/// The lowest `bits` bits set.
#[inline]
pub(crate) fn low(bits: u32) -> u64 {
    1u64.checked_shl(bits).map_or(u64::MAX, |b| b - 1)
}
