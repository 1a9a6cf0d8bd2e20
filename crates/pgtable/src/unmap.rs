//! Unmapping: look at the whole range, then remove.

use crate::{
    cursor::{Cursor, block_end, block_start, index, low},
    engine::{MAX_LEVELS, Table},
    format::{Entry, Format},
    gather::Gather,
    mem::{Phys, TableMem, Word},
    table::UnmapError,
};

impl<F: Format, M: TableMem> Table<F, M> {
    /// Unmaps `iova..=last`, which was checked to be aligned and in range.
    pub(crate) fn unmap_range(
        &self,
        iova: u64,
        last: u64,
        gather: &mut Gather,
    ) -> Result<(), UnmapError> {
        let mut cursor = self.cursor();
        self.check_mapped(&mut cursor, iova, last)?;
        self.remove(&mut cursor, iova, last, gather);
        gather.add_range(iova, last);
        Ok(())
    }

    /// Makes sure that the range consists of whole leaves.
    fn check_mapped(&self, cursor: &mut Cursor<F>, iova: u64, last: u64) -> Result<(), UnmapError> {
        let mut pos = iova;
        loop {
            cursor.go(pos);
            let level = cursor.level();
            let Some((entry, _)) = self.at(cursor, pos) else {
                return Err(UnmapError::NotMapped { iova: pos });
            };
            let end = match (entry, cursor.table()) {
                (Entry::Table(child), _) => {
                    cursor.enter(Some(child));
                    continue;
                }
                (Entry::Leaf { .. }, Some(table)) => self.check_run(table, level, pos, last)?,
                _ => return Err(UnmapError::NotMapped { iova: pos }),
            };
            if end >= last {
                return Ok(());
            }
            pos = end + 1;
        }
    }

    /// Checks leaves of one table from `pos` on; returns the last address that was checked.
    fn check_run(&self, table: Phys, level: usize, pos: u64, last: u64) -> Result<u64, UnmapError> {
        let shift = F::shift(level);
        let table_start = block_start(pos, F::shift(level + 1));
        let end = last.min(block_end(pos, F::shift(level + 1)));
        let range = index::<F>(level, pos)..index::<F>(level, end) + 1;
        let mut next = range.start;
        let mut stop = None;
        self.mem.run::<F::Word>(table, range, |i, a| {
            if stop.is_some() || i < next {
                return;
            }
            // The range may begin inside its first entry.
            let at = pos.max(table_start + ((i as u64) << shift));
            match self.format.decode(level, F::Word::load(a)) {
                Entry::Leaf { size_bits, .. } => {
                    let start = block_start(at, size_bits);
                    if start != at || block_end(at, size_bits) > last {
                        let iova = if start != at { at } else { last + 1 };
                        let size = low(size_bits) + 1;
                        stop = Some(Err(UnmapError::PartialLeaf { iova, start, size }));
                    }
                    next = i + (1 << (size_bits - shift));
                }
                Entry::Empty => stop = Some(Err(UnmapError::NotMapped { iova: at })),
                Entry::Table(_) => stop = Some(Ok(at - 1)),
            }
        });
        stop.unwrap_or(Ok(end))
    }

    /// Removes what was checked.
    fn remove(&self, cursor: &mut Cursor<F>, iova: u64, last: u64, gather: &mut Gather) {
        // Whether the table at a level keeps a child and so must stay.
        let mut keeps = [false; MAX_LEVELS + 1];
        let mut pos = iova;
        loop {
            cursor.go(pos);
            let level = cursor.level();
            let (Some((entry, _)), Some(table)) = (self.at(cursor, pos), cursor.table()) else {
                return;
            };
            let end = match entry {
                Entry::Table(child) => {
                    // Leaf tables go with everything in them; others when their last child went.
                    let end = block_end(pos, F::shift(level));
                    let covered = block_start(pos, F::shift(level)) >= iova && end <= last;
                    if covered && level == 2 && gather.reserve_table() {
                        self.detach(table, level, pos, child, gather);
                        end
                    } else {
                        cursor.enter(Some(child));
                        keeps[cursor.level()] = false;
                        continue;
                    }
                }
                Entry::Leaf { size_bits, .. } => {
                    let end = match level {
                        1 => last.min(block_end(pos, F::shift(2))),
                        _ => block_end(pos, size_bits),
                    };
                    self.clear(table, index::<F>(level, pos)..index::<F>(level, end) + 1);
                    end
                }
                Entry::Empty => block_end(pos, F::shift(level)),
            };
            self.detach_finished(cursor, iova, end, &mut keeps, gather);
            if end >= last {
                break;
            }
            pos = end + 1;
        }
        self.clean_barrier();
    }

    /// Takes out the tables whose span lies in the range from `iova` on and ends at `end`.
    fn detach_finished(
        &self,
        cursor: &mut Cursor<F>,
        iova: u64,
        end: u64,
        keeps: &mut [bool; MAX_LEVELS + 1],
        gather: &mut Gather,
    ) {
        while cursor.level() < F::LEVELS {
            let span = F::shift(cursor.level() + 1);
            if end != block_end(end, span) || block_start(end, span) < iova {
                return;
            }
            let kept = keeps[cursor.level()];
            let child = cursor.table();
            cursor.leave();
            match (cursor.table(), child) {
                (Some(table), Some(child)) if !kept && gather.reserve_table() => {
                    self.detach(table, cursor.level(), end, child, gather);
                }
                _ => keeps[cursor.level()] = true,
            }
        }
    }

    /// Clears the entry for `pos`, which leads to `child`. The gather has room for it.
    fn detach(&self, table: Phys, level: usize, pos: u64, child: Phys, gather: &mut Gather) {
        let i = index::<F>(level, pos);
        self.clear(table, i..i + 1);
        gather.add_table(child);
    }
}
