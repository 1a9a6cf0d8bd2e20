//! Lookups.

use crate::{
    cursor::{Cursor, block_end, index, low, root_index},
    engine::Table,
    format::{Entry, Format},
    mem::{Phys, TableMem},
    table::{Leaf, Walk},
};

impl<F: Format, M: TableMem> Table<F, M> {
    /// What `iova` translates to. The caller is pinned.
    #[inline(always)]
    pub(crate) fn find(&self, iova: u64) -> Option<Leaf> {
        let (pos, _) = self.enter(iova, 1)?;
        let top = self.load_top();
        if !self.reaches(top, pos) {
            return None;
        }
        match top.levels {
            4 => self.find_below::<4>(top.root, pos),
            3 => self.find_below::<3>(top.root, pos),
            5 => self.find_below::<5>(top.root, pos),
            2 => self.find_below::<2>(top.root, pos),
            6 => self.find_below::<6>(top.root, pos),
            _ => self.find_below::<1>(top.root, pos),
        }
    }

    #[inline(always)]
    fn find_below<const LEVELS: usize>(&self, root: Phys, pos: u64) -> Option<Leaf> {
        if LEVELS < F::MIN_LEVELS || LEVELS > F::MAX_LEVELS {
            return None;
        }
        let mut table = root;
        let mut level = LEVELS;
        loop {
            let i = if level == LEVELS { root_index::<F>(level, pos) } else { index::<F>(level, pos) };
            let w = self.load(table, i);
            match self.format.decode(level, w) {
                Entry::Table(next) if level > 1 => table = next,
                Entry::Leaf { base, size_bits } => return Some(self.leaf_at(pos, base, size_bits, w)),
                _ => return None,
            }
            level -= 1;
        }
    }

    #[inline]
    fn leaf_at(&self, pos: u64, base: Phys, size_bits: u32, w: F::Word) -> Leaf {
        let offset = pos & low(size_bits);
        Leaf {
            phys: Phys(base.0 | offset),
            start: self.iova(pos - offset),
            size: 1 << size_bits,
            prot: self.format.prot(w),
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
                    visit(self.leaf_at(start, base, size_bits, w));
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
    fn find_pinned(&self, iova: u64) -> Option<Leaf> {
        self.find(iova)
    }

    fn leave(&self, counter: usize) {
        self.limbo.leave(&self.mem, counter);
    }
}
