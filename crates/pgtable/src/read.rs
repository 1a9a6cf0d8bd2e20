//! Lookups.

use crate::{
    cursor::{Cursor, block_end, index, low, root_index},
    engine::Table,
    format::{Entry, Format},
    mem::{Phys, TableMem},
    table::{Leaf, Near, Top, Walk},
};
use core::cell::Cell;

/// The leaf entry that a walk for `pos` came to.
pub(crate) struct Found<F: Format> {
    pos: u64,
    base: Phys,
    size_bits: u32,
    w: F::Word,
}

impl<F: Format> Found<F> {
    #[inline(always)]
    fn phys(&self) -> Phys {
        Phys(self.base.0 | (self.pos & low(self.size_bits)))
    }
}

impl<F: Format, M: TableMem> Table<F, M> {
    /// What `tell` makes of the leaf that `iova` translates through. The caller is pinned, and has
    /// been since `near` was noted.
    #[inline(always)]
    pub(crate) fn find<R>(&self, iova: u64, near: &Cell<Near>, tell: impl Fn(Found<F>) -> R) -> Option<R> {
        let (pos, _) = self.enter(iova, 1)?;
        let span = pos >> F::shift(2);
        let detached = self.limbo.detached();
        let known = near.get();
        let table = if known.span == span && known.detached == detached {
            known.table
        } else {
            let top = self.load_top();
            let Some(table) = self.descend_to::<1>(top, pos) else {
                return self.find_large(top, pos, tell);
            };
            near.set(Near { span, table, detached });
            table
        };
        let w = self.load(table, self.index_at::<1>(pos));
        let Entry::Leaf { base, size_bits } = self.format.decode(1, w) else {
            return None;
        };
        Some(tell(Found { pos, base, size_bits, w }))
    }

    /// [`Table::find`] where the walk ends above the smallest leaves.
    #[inline(never)]
    fn find_large<R>(&self, top: Top, pos: u64, tell: impl Fn(Found<F>) -> R) -> Option<R> {
        if !self.reaches(top, pos) {
            return None;
        }
        let mut table = top.root;
        for level in (1..=top.levels).rev() {
            let i = if level == top.levels { root_index::<F>(level, pos) } else { index::<F>(level, pos) };
            let w = self.load(table, i);
            match self.format.decode(level, w) {
                Entry::Table(next) => table = next,
                Entry::Leaf { base, size_bits } => return Some(tell(Found { pos, base, size_bits, w })),
                Entry::Empty => break,
            }
        }
        None
    }

    #[inline(always)]
    pub(crate) fn leaf(&self, found: Found<F>) -> Leaf {
        let start = found.pos & !low(found.size_bits);
        Leaf {
            phys: found.phys(),
            start: self.iova(start),
            size: 1 << found.size_bits,
            prot: self.format.prot(found.w),
        }
    }

    pub(crate) fn visit_leaves(&self, iova: u64, len: u64, visit: &mut dyn FnMut(Leaf)) {
        let Some((first, last)) = self.clip(iova, len) else {
            return;
        };
        let _pin = self.limbo.pin(&self.mem);
        let top = self.load_top();
        let last = if F::GROWS { last.min(low(F::shift(top.levels + 1))) } else { last };
        let mut cursor = Cursor::<F>::at(top);
        let mut pos = first;
        while pos <= last {
            cursor.go(pos);
            let Some((entry, w)) = self.look(&cursor, pos) else {
                return;
            };
            let end = match entry {
                Entry::Table(t) => {
                    cursor.enter(Some(t));
                    continue;
                }
                Entry::Empty => block_end(pos, F::shift(cursor.level())),
                Entry::Leaf { base, size_bits } => {
                    let start = pos & !low(size_bits);
                    visit(self.leaf(Found { pos: start, base, size_bits, w }));
                    block_end(pos, size_bits)
                }
            };
            if end >= last {
                return;
            }
            pos = end + 1;
        }
    }
}

impl<F: Format, M: TableMem> Walk for Table<F, M> {
    fn find_pinned(&self, iova: u64, near: &Cell<Near>) -> Option<Leaf> {
        self.find(iova, near, |found| self.leaf(found))
    }

    fn translate_pinned(&self, iova: u64, near: &Cell<Near>) -> Option<Phys> {
        self.find(iova, near, |found| found.phys())
    }

    fn leave(&self, counter: usize) {
        self.limbo.leave(&self.mem, counter);
    }
}
