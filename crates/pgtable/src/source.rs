//! Where the memory behind a range comes from: one piece, or a list of them.

use crate::mem::Phys;

/// A piece of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub phys: Phys,
    /// Its length in bytes.
    pub len: u64,
}

/// Memory that is contiguous on both sides.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// Its last position.
    pub(crate) last: u64,
    /// Physical address less position, modulo 2^64.
    delta: u64,
    /// Leaf sizes that the table may use and that suit both addresses.
    pub(crate) sizes: u64,
}

impl Piece {
    pub(crate) fn new(pos: u64, last: u64, phys: Phys, sizes: u64) -> Piece {
        let delta = phys.0.wrapping_sub(pos);
        // The sizes up to the largest power of two that divides the difference: all for 0.
        let aligned = delta ^ delta.wrapping_sub(1);
        Piece { last, delta, sizes: sizes & aligned }
    }

    /// A piece for which no leaf above the pages is large enough.
    pub(crate) const SMALL: Piece = Piece { last: 0, delta: 0, sizes: 0 };

    #[inline]
    pub(crate) fn phys(&self, pos: u64) -> Phys {
        Phys(pos.wrapping_add(self.delta))
    }
}

/// The pieces behind a range.
pub(crate) trait Source {
    /// Whether pieces may be as small as a page, so that work for each of them counts.
    const SCATTERED: bool;
    /// Whether no piece has 2^`bits` bytes.
    fn is_small(&self, bits: u32) -> bool;
    /// The piece that holds `pos`, which never goes back.
    fn piece(&mut self, pos: u64) -> Piece;
    /// The `n` segments from `pos` on, if all of the list are single pages that do not continue one
    /// another.
    fn pages(&self, pos: u64, n: usize) -> Option<&[Segment]>;
    /// Lets `pos` go back to the beginning.
    fn rewind(&mut self);
}

/// One piece.
pub(crate) struct Whole(pub(crate) Piece);

impl Source for Whole {
    const SCATTERED: bool = false;
    #[inline]
    fn is_small(&self, _: u32) -> bool {
        false
    }
    #[inline]
    fn piece(&mut self, _: u64) -> Piece {
        self.0
    }
    fn pages(&self, _: u64, _: usize) -> Option<&[Segment]> {
        None
    }
    fn rewind(&mut self) {}
}

/// What was learned of a list when it was checked.
#[derive(Clone, Copy, Default)]
pub(crate) struct Summary {
    /// The lengths of all segments.
    pub(crate) total: u64,
    /// The longest segment.
    pub(crate) longest: u64,
    /// Whether two neighbours are contiguous, in a place where that may matter.
    pub(crate) joins: bool,
}

/// A scatter list, its neighbours joined where they are contiguous.
pub(crate) struct List<'a> {
    start: u64,
    sizes: u64,
    granule: u32,
    summary: Summary,
    all: &'a [Segment],
    rest: &'a [Segment],
    piece: Piece,
}

impl<'a> List<'a> {
    /// The list of memory from position `start` on; no segment is empty and the sum is known not
    /// to overflow.
    pub(crate) fn new(
        start: u64,
        all: &'a [Segment],
        sizes: u64,
        granule: u32,
        summary: Summary,
    ) -> List<'a> {
        List { start, sizes, granule, summary, all, rest: all, piece: Piece::SMALL }
    }

    #[inline]
    fn next(&mut self, pos: u64) {
        let Some((first, mut rest)) = self.rest.split_first() else {
            return;
        };
        let mut last = pos + (first.len - 1);
        if self.summary.joins {
            let mut end = first.phys.0.wrapping_add(first.len);
            while let Some((next, more)) = rest.split_first()
                && next.phys.0 == end
            {
                last += next.len;
                end = end.wrapping_add(next.len);
                rest = more;
            }
        }
        self.rest = rest;
        self.piece = Piece::new(pos, last, first.phys, self.sizes);
    }
}

impl Source for List<'_> {
    const SCATTERED: bool = true;

    #[inline]
    fn is_small(&self, bits: u32) -> bool {
        !self.summary.joins && self.summary.longest < 1 << bits
    }

    #[inline]
    fn piece(&mut self, pos: u64) -> Piece {
        while self.piece.last < pos && !self.rest.is_empty() {
            self.next(self.piece.last + 1);
        }
        self.piece
    }

    #[inline]
    fn pages(&self, pos: u64, n: usize) -> Option<&[Segment]> {
        if self.summary.joins || self.summary.longest != 1 << self.granule {
            return None;
        }
        let first = ((pos - self.start) >> self.granule) as usize;
        self.all.get(first..first.checked_add(n)?)
    }

    fn rewind(&mut self) {
        self.rest = self.all;
        self.next(self.start);
    }
}
