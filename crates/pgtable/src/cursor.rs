//! A position in a walk, kept so that a step to a neighbour does not start at the root.

use crate::{engine::MAX_LEVELS, format::Format, mem::Phys, table::Top};
use core::marker::PhantomData;

/// The tables on the way to a position, down to the level reached so far.
pub(crate) struct Cursor<F> {
    path: [Option<Phys>; MAX_LEVELS + 1],
    top: usize,
    level: usize,
    pos: u64,
    format: PhantomData<F>,
}

impl<F: Format> Cursor<F> {
    pub(crate) fn at(top: Top) -> Cursor<F> {
        const { assert!(F::MIN_LEVELS >= 1 && F::MAX_LEVELS <= MAX_LEVELS) }
        let mut path = [None; MAX_LEVELS + 1];
        path[top.levels] = Some(top.root);
        Cursor { path, top: top.levels, level: top.levels, pos: 0, format: PhantomData }
    }

    /// Moves to `pos`, up to the lowest known table that also covers it.
    #[inline]
    pub(crate) fn go(&mut self, pos: u64) {
        let moved = pos ^ self.pos;
        while self.level < self.top && moved >> F::shift(self.level + 1) != 0 {
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

    /// Whether the cursor is in the root.
    #[inline]
    pub(crate) fn is_top(&self) -> bool {
        self.level == self.top
    }

    /// The table that the cursor is in; `None` for one that does not exist yet.
    #[inline]
    pub(crate) fn table(&self) -> Option<Phys> {
        self.path[self.level]
    }

    /// Index of the entry for `pos` in the table that the cursor is in.
    #[inline]
    pub(crate) fn index(&self, pos: u64) -> usize {
        if self.is_top() { root_index::<F>(self.top, pos) } else { index::<F>(self.level, pos) }
    }

    /// The last position that the table covers which the cursor is in.
    #[inline]
    pub(crate) fn table_end(&self, pos: u64) -> u64 {
        if self.is_top() { u64::MAX } else { block_end(pos, F::shift(self.level + 1)) }
    }
}

/// Number of entries in a table below the root.
#[inline]
pub(crate) fn entries<F: Format>() -> usize {
    1 << (F::shift(2) - F::shift(1))
}

/// Index of the entry of a table at `level`, below the root, that translates `pos`.
#[inline]
pub(crate) fn index<F: Format>(level: usize, pos: u64) -> usize {
    (pos >> F::shift(level)) as usize & (entries::<F>() - 1)
}

/// Index of the entry of a root at `level`, which may have more entries than other tables.
#[inline]
pub(crate) fn root_index<F: Format>(level: usize, pos: u64) -> usize {
    (pos >> F::shift(level)) as usize & ((entries::<F>() << F::ROOT_EXTRA_BITS) - 1)
}

/// The last address of the aligned block of 2^`bits` bytes that holds `pos`.
#[inline]
pub(crate) fn block_end(pos: u64, bits: u32) -> u64 {
    pos | low(bits)
}

/// The first address of the aligned block of 2^`bits` bytes that holds `pos`.
#[inline]
pub(crate) fn block_start(pos: u64, bits: u32) -> u64 {
    pos & !low(bits)
}

/// The lowest `bits` bits set.
#[inline]
pub(crate) fn low(bits: u32) -> u64 {
    1u64.checked_shl(bits).map_or(u64::MAX, |b| b - 1)
}
