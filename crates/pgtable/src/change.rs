//! Changing leaves that walkers use: other permissions, smaller leaves.
//!
//! Only what the manual lets software do without an invalid entry in between is done; the rest is
//! [`ChangeError::NeedsBreak`]. Every entry goes from its old value to its new one by
//! compare-and-swap, because a walker may set accessed and dirty bits meanwhile.

use crate::{
    cursor::{Cursor, block_start, entries, low},
    engine::Table,
    format::{Entry, Format},
    gather::Gather,
    mem::{Phys, TableMem},
    table::{ChangeError, Prot},
    unmap::Stop,
};
use portcullis_sync::atomic::Ordering;

/// A leaf, and where its entry for a position is.
struct Found<F: Format> {
    table: Phys,
    level: usize,
    index: usize,
    start: u64,
    base: Phys,
    size_bits: u32,
    word: F::Word,
}

impl<F: Format, M: TableMem> Table<F, M> {
    pub(crate) fn change_prot(
        &self,
        iova: u64,
        len: u64,
        prot: Prot,
        gather: &mut Gather,
    ) -> Result<(), ChangeError> {
        let (pos, last) = self.change_range(iova, len)?;
        let template = self.format.template(prot).ok_or(ChangeError::Permissions { iova, prot })?;
        let mut sizes = 0;
        self.check_range(pos, last, &mut sizes).map_err(|stop| match stop {
            Stop::NotMapped(at) => ChangeError::NotMapped { iova: self.iova(at) },
            Stop::PartialLeaf { at, start, size } => {
                ChangeError::PartialLeaf { iova: self.iova_after(at), start: self.iova(start), size }
            }
        })?;
        let many = self.format.in_place().permissions_of_many;
        self.each_leaf(pos, last, |found| {
            let one = found.size_bits == F::shift(found.level);
            match self.format.protect(found.word, template) {
                Some(_) if one || many => Ok(()),
                _ => Err(self.needs_break(&found)),
            }
        })?;
        self.each_leaf(pos, last, |found| {
            let n = 1 << (found.size_bits - F::shift(found.level));
            for i in found.index..found.index + n {
                self.replace(found.table, i, |w| self.format.protect(w, template).unwrap_or(w));
            }
            self.clean(found.table, found.index..found.index + n);
            Ok(())
        })?;
        self.mem.barrier();
        gather.add_leaves(iova, iova + (len - 1), sizes);
        Ok(())
    }

    pub(crate) fn split_at_ends(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), ChangeError> {
        let (pos, last) = self.change_range(iova, len)?;
        self.split_at(pos, gather)?;
        if last < self.reach {
            self.split_at(last + 1, gather)?;
        }
        self.mem.barrier();
        Ok(())
    }

    fn change_range(&self, iova: u64, len: u64) -> Result<(u64, u64), ChangeError> {
        let granule = 1 << F::GRANULE_BITS;
        if len == 0 {
            return Err(ChangeError::ZeroLength { iova });
        }
        if (iova | len) & (granule - 1) != 0 {
            return Err(ChangeError::Unaligned { iova, len, granule });
        }
        let bits = self.input_bits;
        self.enter(iova, len).ok_or(ChangeError::InputRange { iova, len, bits })
    }

    /// Cuts leaves until one begins at `pos`, if anything is mapped there.
    fn split_at(&self, pos: u64, gather: &mut Gather) -> Result<(), ChangeError> {
        while let Some(found) = self.leaf_of(pos) {
            if found.start == pos {
                return Ok(());
            }
            if self.tracking.load(Ordering::Acquire) {
                return Err(ChangeError::Tracking);
            }
            let many = found.size_bits > F::shift(found.level);
            let in_place = self.format.in_place();
            match (many, in_place.split_many, in_place.split) {
                (true, true, _) => self.split_many(&found),
                (false, _, true) => self.split_one(&found)?,
                _ => return Err(self.needs_break(&found)),
            }
            let start = self.iova(found.start);
            gather.add_leaves(start, start + low(found.size_bits), 1 << found.size_bits);
            gather.add_non_leaf();
        }
        Ok(())
    }

    fn needs_break(&self, found: &Found<F>) -> ChangeError {
        ChangeError::NeedsBreak { iova: self.iova(found.start), size: 1 << found.size_bits }
    }

    /// Makes a leaf of several entries as many leaves of one.
    fn split_many(&self, found: &Found<F>) {
        let (level, shift) = (found.level, F::shift(found.level));
        let n = 1 << (found.size_bits - shift);
        // The entry that was found need not be the leaf's first.
        let first = self.first_index(found);
        // A walker marks any entry for all of the leaf, so every part is as marked as the whole.
        let entries = || (first..first + n).map(|i| self.load(found.table, i));
        let marked = entries().find(|w| self.format.dirty(*w));
        let marked = marked.or_else(|| entries().find(|w| self.format.accessed(*w)));
        for i in first..first + n {
            let phys = Phys(found.base.0 + (((i - first) as u64) << shift));
            self.replace(found.table, i, |w| {
                let like = if self.format.dirty(w) { w } else { marked.unwrap_or(w) };
                self.format.leaf(self.format.attributes(level, like), level, phys, shift)
            });
        }
        self.clean(found.table, first..first + n);
        self.clean_barrier();
    }

    /// Puts a table of the largest leaves that fit into the place of a leaf of one entry.
    fn split_one(&self, found: &Found<F>) -> Result<(), ChangeError> {
        let below = found.level - 1;
        if below == 0 || self.page_sizes & 1 << F::shift(below) == 0 {
            return Err(self.needs_break(found));
        }
        let no_mem = |_| ChangeError::NoMem { iova: self.iova(found.start) };
        let mut frame = self.mem.frames_to_fill(Self::TABLE_ORDER).map_err(no_mem)?;
        let table = frame.phys();
        let mut word = found.word;
        loop {
            let attributes = self.format.attributes(found.level, word);
            self.mem.fill_private(&mut frame, 0..entries::<F>(), |i| {
                let phys = Phys(found.base.0 + ((i as u64) << F::shift(below)));
                self.format.leaf(attributes, below, phys, F::shift(below))
            });
            self.clean(table, 0..entries::<F>());
            self.clean_barrier();
            let to = self.format.table(found.level, table);
            match self.cas(found.table, found.index, word, to) {
                Ok(()) => {
                    frame.publish();
                    self.settle(found.table, found.index, to);
                    return Ok(());
                }
                // A walker marked the leaf: the mark goes to all that it becomes.
                Err(now) if Self::is_present(now) => word = now,
                // Not our range: somebody took the leaf out.
                Err(_) => {
                    self.mem.release(frame);
                    return Ok(());
                }
            }
        }
    }

    /// Index of the first entry of a leaf.
    fn first_index(&self, found: &Found<F>) -> usize {
        let n = 1usize << (found.size_bits - F::shift(found.level));
        found.index & !(n - 1)
    }

    /// The leaf that holds `pos`.
    fn leaf_of(&self, pos: u64) -> Option<Found<F>> {
        let top = self.load_top();
        if !self.reaches(top, pos) {
            return None;
        }
        let mut cursor = Cursor::<F>::at(top);
        loop {
            cursor.go(pos);
            let (entry, word) = self.look(&cursor, pos)?;
            match entry {
                Entry::Table(child) => cursor.enter(Some(child)),
                Entry::Empty => return None,
                Entry::Leaf { base, size_bits } => {
                    return Some(Found {
                        table: cursor.table()?,
                        level: cursor.level(),
                        index: cursor.index(pos),
                        start: block_start(pos, size_bits),
                        base,
                        size_bits,
                        word,
                    });
                }
            }
        }
    }

    /// Visits the leaves of a range that was checked to have nothing else.
    fn each_leaf(
        &self,
        first: u64,
        last: u64,
        mut visit: impl FnMut(Found<F>) -> Result<(), ChangeError>,
    ) -> Result<(), ChangeError> {
        let mut pos = first;
        while let Some(found) = self.leaf_of(pos) {
            let end = pos | low(found.size_bits);
            visit(found)?;
            if end >= last {
                break;
            }
            pos = end + 1;
        }
        Ok(())
    }

    /// Replaces a leaf entry by what `change` makes of it.
    fn replace(&self, table: Phys, i: usize, change: impl Fn(F::Word) -> F::Word) {
        let mut w = self.load(table, i);
        while Self::is_present(w) {
            match self.cas(table, i, w, change(w)) {
                Ok(()) => return,
                Err(now) => w = now,
            }
        }
    }
}
