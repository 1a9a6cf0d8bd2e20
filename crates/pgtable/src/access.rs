//! Reading and clearing what walkers noted in leaves: accessed and dirty bits.
//!
//! Entries change under a scan: a walker sets bits, an unmap of somebody else clears the entry. So
//! a bit is cleared by compare-and-swap, and a scan is pinned as a lookup is.

use crate::{
    cursor::{Cursor, block_end, block_start, low},
    engine::Table,
    format::{AccessBits, Entry, Format},
    gather::Gather,
    mem::{TableMem, Word},
    table::{DirtyError, NoAccessedBits},
};
use portcullis_sync::atomic::Ordering;

/// A bit that a walker sets in leaves, and whether a scan clears it.
struct Bit<F: Format> {
    is_set: fn(&F, F::Word) -> bool,
    cleared: fn(&F, F::Word) -> F::Word,
    clear: bool,
}

impl<F: Format, M: TableMem> Table<F, M> {
    pub(crate) fn test_accessed(&self, iova: u64, len: u64, clear: bool) -> Result<bool, NoAccessedBits> {
        if self.format.access_bits() != AccessBits::Kept {
            return Err(NoAccessedBits(F::ID));
        }
        let bit = Bit { is_set: F::accessed, cleared: F::clear_accessed, clear };
        let mut used = false;
        if let Some((first, last)) = self.clip(iova, len) {
            self.scan(first, last, &bit, |_, _| {
                used = true;
                clear
            });
        }
        Ok(used)
    }

    pub(crate) fn track_dirty(&self, on: bool, gather: &mut Gather) -> Result<(), DirtyError> {
        if self.format.dirty_bits() != AccessBits::Kept {
            return Err(DirtyError::NotKept(F::ID));
        }
        if on {
            let bit = Bit { is_set: F::dirty, cleared: F::clear_dirty, clear: true };
            self.scan(0, self.reach, &bit, |start, size| {
                let start = self.iova(start);
                gather.add_leaves(start, start + (size - 1), size);
            });
        }
        self.tracking.store(on, Ordering::Release);
        Ok(())
    }

    pub(crate) fn visit_dirty(
        &self,
        iova: u64,
        len: u64,
        clear: bool,
        gather: &mut Gather,
        visit: &mut dyn FnMut(u64, u64),
    ) -> Result<(), DirtyError> {
        if self.format.dirty_bits() != AccessBits::Kept {
            return Err(DirtyError::NotKept(F::ID));
        }
        if !self.tracking.load(Ordering::Acquire) {
            return Err(DirtyError::Off);
        }
        let Some((first, last)) = self.clip(iova, len) else {
            return Ok(());
        };
        let bit = Bit { is_set: F::dirty, cleared: F::clear_dirty, clear };
        // A leaf of several entries may be marked in several of them.
        let mut before = None;
        self.scan(first, last, &bit, |start, size| {
            if before.replace(start) != Some(start) {
                let start = self.iova(start);
                visit(start, size);
                if clear {
                    gather.add_leaves(start, start + (size - 1), size);
                }
            }
        });
        Ok(())
    }

    /// Calls `found` with position and size of the leaf at every entry that is marked and belongs
    /// to a leaf which touches `first..=last`, until it answers no.
    fn scan<C: Continue>(&self, first: u64, last: u64, bit: &Bit<F>, mut found: impl FnMut(u64, u64) -> C) {
        let _pin = self.limbo.pin(&self.mem);
        let top = self.load_top();
        let last = if F::GROWS { last.min(low(F::shift(top.levels + 1))) } else { last };
        let mut cursor = Cursor::<F>::at(top);
        let mut pos = first;
        let mut go_on = true;
        while pos <= last && go_on {
            cursor.go(pos);
            let (Some((entry, _)), Some(table)) = (self.look(&cursor, pos), cursor.table()) else {
                return;
            };
            let level = cursor.level();
            let end = match entry {
                Entry::Table(t) => {
                    cursor.enter(Some(t));
                    continue;
                }
                Entry::Leaf { size_bits, .. } => {
                    let shift = F::shift(level);
                    // A walker may mark any entry of a leaf of several: look at all of them. Above level 1
                    // a table may stand beside the leaf, so what is looked at ends with the leaf.
                    let (start, end) = match level {
                        1 => {
                            let widest = self.sizes_at(level).checked_ilog2().unwrap_or(shift).max(size_bits);
                            let last = last.min(cursor.table_end(pos));
                            (block_start(pos, widest), block_end(last, widest))
                        }
                        _ => (block_start(pos, size_bits), block_end(pos, size_bits)),
                    };
                    let i = cursor.index(start);
                    let n = ((end - start) >> shift) as usize + 1;
                    self.run(table, i..i + n, |j, a| {
                        let at = start + (((j - i) as u64) << shift);
                        let Entry::Leaf { size_bits, .. } = self.format.decode(level, F::Word::load(a))
                        else {
                            return;
                        };
                        let (start, end) = (block_start(at, size_bits), block_end(at, size_bits));
                        if go_on && start <= last && end >= first && self.take(a, bit) {
                            go_on = found(start, 1 << size_bits).go_on();
                        }
                    });
                    end
                }
                Entry::Empty => block_end(pos, F::shift(level)),
            };
            if end >= last {
                return;
            }
            pos = end + 1;
        }
    }

    /// Whether the entry is marked; clears the mark if that was asked for.
    fn take(&self, a: &<F::Word as Word>::Atomic, bit: &Bit<F>) -> bool {
        let mut w = F::Word::load(a);
        if !(bit.is_set)(&self.format, w) {
            return false;
        }
        // The walker may set another bit between the load and the swap. An entry that was unmapped
        // meanwhile is not marked any more, which ends the loop.
        while bit.clear && (bit.is_set)(&self.format, w) {
            match F::Word::cas(a, w, (bit.cleared)(&self.format, w)) {
                Ok(()) => break,
                Err(now) => w = now,
            }
        }
        true
    }
}

/// What a visitor answers.
trait Continue {
    fn go_on(self) -> bool;
}

impl Continue for () {
    fn go_on(self) -> bool {
        true
    }
}

impl Continue for bool {
    fn go_on(self) -> bool {
        self
    }
}
