//! Unmapping: look at the whole range, then remove.

use crate::{
    cursor::{Cursor, block_end, block_start, entries, index, low},
    engine::{MAX_LEVELS, Table},
    format::{Entry, Format},
    gather::Gather,
    mem::{Phys, TableMem, Word},
    table::{Top, UnmapError},
};
use core::ops::Range;

/// Why leaves are not what a call needs, at a position.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    NotMapped(u64),
    PartialLeaf { at: u64, start: u64, size: u64 },
}

impl<F: Format, M: TableMem> Table<F, M> {
    /// Unmaps any range.
    pub(crate) fn unmap_any(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), UnmapError> {
        let granule = 1 << F::GRANULE_BITS;
        if len == 0 {
            return Err(UnmapError::ZeroLength { iova });
        }
        if (iova | len) & (granule - 1) != 0 {
            return Err(UnmapError::Unaligned { iova, len, granule });
        }
        let bits = self.input_bits;
        let (pos, last) = self.enter(iova, len).ok_or(UnmapError::InputRange { iova, len, bits })?;
        let stopped = |stop| match stop {
            Stop::NotMapped(at) => UnmapError::NotMapped { iova: self.iova(at) },
            Stop::PartialLeaf { at, start, size } => {
                UnmapError::PartialLeaf { iova: self.iova_after(at), start: self.iova(start), size }
            }
        };
        let mut sizes = 0;
        let whole = last - pos == low(F::shift(2));
        match self.leaf_table(pos, last) {
            Some(table) if !whole => {
                let first = index::<F>(1, pos);
                self.check_leaves(table, first, pos, last, &mut sizes).map_err(stopped)?;
                self.clear(table, first..index::<F>(1, last) + 1);
                self.clean_barrier();
            }
            _ => {
                let top = self.check_range(pos, last, &mut sizes).map_err(stopped)?;
                self.remove(&mut Cursor::at(top), pos, last, gather);
            }
        }
        gather.add_leaves(iova, iova + (len - 1), sizes);
        Ok(())
    }

    /// The IOVA at a position that may be one past the last.
    pub(crate) fn iova_after(&self, pos: u64) -> u64 {
        match pos.checked_sub(1) {
            Some(before) => self.iova(before).wrapping_add(1),
            None => self.iova(pos),
        }
    }

    /// Makes sure that the range consists of whole leaves, and notes their sizes; returns the top
    /// from which they were found.
    pub(crate) fn check_range(&self, pos: u64, last: u64, sizes: &mut u64) -> Result<Top, Stop> {
        let top = self.load_top();
        let mut cursor = Cursor::at(top);
        if self.reaches(top, last) {
            return self.check_mapped(&mut cursor, pos, last, sizes).map(|()| top);
        }
        // Of what lies beyond, nothing is mapped.
        let beyond = low(F::shift(top.levels + 1)).wrapping_add(1);
        if pos < beyond {
            self.check_mapped(&mut cursor, pos, beyond - 1, sizes)?;
        }
        Err(Stop::NotMapped(beyond.max(pos)))
    }

    /// Checks a range that a walk can reach.
    fn check_mapped(&self, cursor: &mut Cursor<F>, pos: u64, last: u64, sizes: &mut u64) -> Result<(), Stop> {
        let mut pos = pos;
        loop {
            cursor.go(pos);
            let level = cursor.level();
            let Some((entry, _)) = self.look(cursor, pos) else {
                return Err(Stop::NotMapped(pos));
            };
            let end = match (entry, cursor.table()) {
                (Entry::Table(child), _) => {
                    cursor.enter(Some(child));
                    continue;
                }
                (Entry::Leaf { .. }, Some(table)) if level == 1 => {
                    let end = last.min(cursor.table_end(pos));
                    self.check_leaves(table, cursor.index(pos), pos, end, sizes)?;
                    end
                }
                (Entry::Leaf { .. }, Some(table)) => {
                    let end = last.min(cursor.table_end(pos));
                    self.check_large(table, level, cursor.index(pos), pos, end, last, sizes)?
                }
                _ => return Err(Stop::NotMapped(pos)),
            };
            if end >= last {
                return Ok(());
            }
            pos = end + 1;
        }
    }

    /// Checks the leaves for `pos..=last` in a table at level 1, of which `pos` is at `first`.
    ///
    /// What is present there is a leaf, and leaves between the first and the last are whole: that
    /// leaves two entries to decode.
    fn check_leaves(
        &self,
        table: Phys,
        first: usize,
        pos: u64,
        last: u64,
        sizes: &mut u64,
    ) -> Result<(), Stop> {
        let n = ((last - pos) >> F::GRANULE_BITS) as usize + 1;
        // A bit that all have in common says that all are present; most ranges have one.
        let mut common = F::PRESENT;
        self.run(table, first..first + n, |_, a| common = common & F::Word::load(a));
        let mut whole = Self::is_present(common);
        if !whole {
            whole = true;
            self.run(table, first..first + n, |_, a| whole &= Self::is_present(F::Word::load(a)));
        }
        let begin = self.size_of(table, 1, first).ok_or(Stop::NotMapped(pos))?;
        let start = block_start(pos, begin);
        if start != pos {
            return Err(Stop::PartialLeaf { at: pos, start, size: 1 << begin });
        }
        if !whole {
            let mut hole = None;
            self.run(table, first..first + n, |i, a| {
                if hole.is_none() && !Self::is_present(F::Word::load(a)) {
                    hole = Some(pos + (((i - first) as u64) << F::GRANULE_BITS));
                }
            });
            return Err(Stop::NotMapped(hole.unwrap_or(pos)));
        }
        let end = self.size_of(table, 1, first + n - 1).ok_or(Stop::NotMapped(last))?;
        if block_end(last, end) != last {
            let start = block_start(last, end);
            return Err(Stop::PartialLeaf { at: last.wrapping_add(1), start, size: 1 << end });
        }
        // In between there may be others, of which only the formats' sizes are known.
        *sizes |= match n {
            1 => 1 << begin,
            _ => self.sizes_at(1),
        };
        Ok(())
    }

    /// The size in bits of the leaf at entry `i`.
    fn size_of(&self, table: Phys, level: usize, i: usize) -> Option<u32> {
        match self.format.decode(level, self.load(table, i)) {
            Entry::Leaf { size_bits, .. } => Some(size_bits),
            _ => None,
        }
    }

    /// Checks leaves in a table at a higher level, from `pos`, at `first`, up to `end` or to the
    /// entry that is none; returns the last position that was checked. The call's range ends at
    /// `last`.
    #[expect(clippy::too_many_arguments, reason = "a place in a table and two ends")]
    fn check_large(
        &self,
        table: Phys,
        level: usize,
        first: usize,
        pos: u64,
        end: u64,
        last: u64,
        sizes: &mut u64,
    ) -> Result<u64, Stop> {
        let shift = F::shift(level);
        let n = ((end >> shift) - (pos >> shift)) as usize + 1;
        if self.only_leaves(table, level, first..first + n) {
            let whole = |at: u64, i: usize| {
                self.size_of(table, level, i).map(|b| (block_start(at, b), block_end(at, b)))
            };
            if let (Some((start, _)), Some((_, leaf_end))) = (whole(pos, first), whole(end, first + n - 1))
                && start == pos
                && leaf_end == end
            {
                *sizes |= self.sizes_at(level);
                return Ok(end);
            }
        }
        let first_start = block_start(pos, shift);
        let mut next = first;
        let mut stop = None;
        self.run(table, first..first + n, |i, a| {
            if stop.is_some() || i < next {
                return;
            }
            // The range may begin inside its first entry.
            let at = pos.max(first_start + (((i - first) as u64) << shift));
            match self.format.decode(level, F::Word::load(a)) {
                Entry::Leaf { size_bits, .. } => {
                    let (start, leaf_end) = (block_start(at, size_bits), block_end(at, size_bits));
                    if start != at || leaf_end > last {
                        let at = if start != at { at } else { last.wrapping_add(1) };
                        stop = Some(Err(Stop::PartialLeaf { at, start, size: 1 << size_bits }));
                    }
                    *sizes |= 1 << size_bits;
                    next = i + (1 << (size_bits - shift));
                }
                Entry::Empty => stop = Some(Err(Stop::NotMapped(at))),
                Entry::Table(_) => stop = Some(Ok(at - 1)),
            }
        });
        stop.unwrap_or(Ok(end))
    }

    /// Whether the entries of a table at a higher level are leaves, all of them; may say no where
    /// each has to be looked at.
    fn only_leaves(&self, table: Phys, level: usize, range: Range<usize>) -> bool {
        let mut all = self.load(table, range.start);
        let mut any = F::Word::default();
        self.run(table, range, |_, a| {
            let w = F::Word::load(a);
            all = all & w;
            any = any | w;
        });
        self.format.only_leaves(level, all, any)
    }

    /// Removes what was checked.
    fn remove(&self, cursor: &mut Cursor<F>, first: u64, last: u64, gather: &mut Gather) {
        // Whether the table at a level keeps a child and so must stay.
        let mut keeps = [false; MAX_LEVELS + 1];
        let mut pos = first;
        loop {
            cursor.go(pos);
            let level = cursor.level();
            let (Some((entry, _)), Some(table)) = (self.look(cursor, pos), cursor.table()) else {
                return;
            };
            let end = match entry {
                Entry::Table(child) => {
                    // Tables of nothing but leaves go with everything in them; others when their last
                    // child went.
                    let end = block_end(pos, F::shift(level));
                    let covered = block_start(pos, F::shift(level)) >= first && end <= last;
                    let leaves = || self.only_leaves(child, level - 1, 0..entries::<F>());
                    let removable =
                        covered && (level == 2 || level == 3 && leaves()) && !self.was_root(level - 1, pos);
                    if removable && gather.reserve_table() {
                        self.detach(table, cursor, pos, child, gather);
                        end
                    } else {
                        cursor.enter(Some(child));
                        keeps[cursor.level()] = false;
                        continue;
                    }
                }
                Entry::Leaf { .. } => {
                    let end = last.min(cursor.table_end(pos));
                    self.clear_leaves(table, level, cursor.index(pos), pos, end)
                }
                Entry::Empty => block_end(pos, F::shift(level)),
            };
            self.detach_finished(cursor, first, end, &mut keeps, gather);
            if end >= last {
                break;
            }
            pos = end + 1;
        }
        self.clean_barrier();
    }

    /// Clears the leaves from `pos`, at `first`, up to `end` or to the entry that is none; returns
    /// the last position that was cleared.
    fn clear_leaves(&self, table: Phys, level: usize, first: usize, pos: u64, end: u64) -> u64 {
        let n = ((end - pos) >> F::shift(level)) as usize + 1;
        if level == 1 || self.only_leaves(table, level, first..first + n) {
            self.clear(table, first..first + n);
            return end;
        }
        let (mut cleared, mut more) = (0, true);
        self.run(table, first..first + n, |_, a| {
            more &= matches!(self.format.decode(level, F::Word::load(a)), Entry::Leaf { .. });
            if more {
                F::Word::store(a, F::Word::default());
                cleared += 1;
            }
        });
        self.clean(table, first..first + cleared);
        pos + (((cleared as u64) << F::shift(level)) - 1)
    }

    /// Takes out the tables whose span lies in the range from `first` on and ends at `end`.
    fn detach_finished(
        &self,
        cursor: &mut Cursor<F>,
        first: u64,
        end: u64,
        keeps: &mut [bool; MAX_LEVELS + 1],
        gather: &mut Gather,
    ) {
        while !cursor.is_top() {
            let span = F::shift(cursor.level() + 1);
            if end != block_end(end, span) || block_start(end, span) < first {
                return;
            }
            let kept = keeps[cursor.level()];
            let child = cursor.table();
            cursor.leave();
            match (cursor.table(), child) {
                (Some(table), Some(child))
                    if !kept && !self.was_root(cursor.level() - 1, end) && gather.reserve_table() =>
                {
                    self.detach(table, cursor, end, child, gather);
                }
                _ => keeps[cursor.level()] = true,
            }
        }
    }

    /// Whether the table at `level` that covers `pos` may have been a root: hardware that was not
    /// told of a new one still begins there.
    fn was_root(&self, level: usize, pos: u64) -> bool {
        F::GROWS && level >= self.first_levels && pos >> F::shift(level + 1) == 0
    }

    /// Clears the entry for `pos` of the table that the cursor is in, which leads to `child`. The
    /// gather has room for it.
    fn detach(&self, table: Phys, cursor: &Cursor<F>, pos: u64, child: Phys, gather: &mut Gather) {
        let i = cursor.index(pos);
        self.hints.forget(cursor.level() - 1, pos);
        self.clear(table, i..i + 1);
        self.limbo.note_detached();
        gather.add_table(child);
    }
}
