//! The engine: one walk for every format, monomorphised.
//!
//! # Who may do what at the same time
//!
//! The caller owns the IOVA range that it maps or unmaps, so a leaf entry has one writer: leaves
//! are plain atomic stores. Entries that lead to tables are shared by neighbours:
//!
//! - *Install.* A table is installed by compare-and-swap. Who loses uses the winner's table and
//!   keeps its own frame for the next gap.
//! - *Detach.* An unmap takes a table out only if its range covers the table's whole span. Nobody
//!   else owns a page of that span, so no mapper is inside the table or on its way into it, and no
//!   one else writes the parent entry. A table that is covered in part stays, even if it is empty.
//! - *Free.* A detached table goes to the gather, and from there through [`IoTable::retire`],
//!   which asks for the proof that no hardware can reach it, to a list that waits for
//!   lookups. Lookups announce themselves; maps and unmaps need not, by the previous point.
//!
//! A mapping that could be a large leaf is written as small ones where an (empty) table is in the
//! way: walkers may have cached the way to it, and a map has nothing to invalidate with.
//!
//! # Walkers that do not snoop
//!
//! A table's bytes are cleaned before its parent entry is written, a parent entry right after, and
//! leaves before the map returns. A mapper that finds a table which another has just installed
//! cannot know whether its parent entry has reached memory: an installed entry is therefore marked
//! as settled once it was cleaned, and who meets one without the mark cleans it too.

use crate::{
    cursor::{Cursor, block_end, entries, index, low},
    format::{Config, Entry, Format},
    gather::{Gather, Retired, Synced},
    limbo::Limbo,
    mem::{FRAME_SIZE, NoMem, Phys, TableMem, Word},
    table::{DirtyError, FormatDesc, IoTable, Leaf, MapError, NoAccessedBits, Prot, UnmapError},
};
use core::ops::Range;
use portcullis_sync::atomic::AtomicBool;

/// The deepest walk that the engine does.
pub const MAX_LEVELS: usize = 6;

/// A page table in format `F`, made of frames of `M`.
///
/// Dropping it gives all its frames back: nothing may walk it any more. Tables in a [`Gather`] or
/// [`Retired`] that did not come back through [`IoTable::retire`] are not among them.
pub struct Table<F: Format, M: TableMem> {
    pub(crate) mem: M,
    pub(crate) format: F,
    pub(crate) root: Phys,
    pub(crate) page_sizes: u64,
    pub(crate) input_bits: u8,
    output_bits: u8,
    coherent: bool,
    pub(crate) tracking: AtomicBool,
    pub(crate) limbo: Limbo<F>,
}

impl<F: Format, M: TableMem> Table<F, M> {
    /// An empty table for the walkers that `config` describes. May be called wherever
    /// [`TableMem::frame`] may.
    ///
    /// # Errors
    /// [`NoMem`] when there is no frame for the root.
    pub fn new(mem: M, config: Config) -> Result<Table<F, M>, NoMem> {
        let root = mem.frame()?;
        if !config.coherent {
            mem.clean(root.phys(), 0..FRAME_SIZE);
        }
        mem.barrier();
        Ok(Table {
            format: F::new(&config),
            root: root.publish(),
            page_sizes: usable_sizes::<F>(config.page_sizes),
            input_bits: config.input_bits.min(F::INPUT_BITS),
            output_bits: config.output_bits.min(F::OUTPUT_BITS),
            coherent: config.coherent,
            tracking: AtomicBool::new(false),
            limbo: Limbo::new(),
            mem,
        })
    }

    /// The leaf sizes that begin at `level`.
    pub(crate) fn sizes_at(&self, level: usize) -> u64 {
        self.page_sizes & level_sizes::<F>(level)
    }

    pub(crate) fn cursor(&self) -> Cursor<F> {
        Cursor::at_root(self.root)
    }

    #[inline]
    pub(crate) fn load(&self, table: Phys, level: usize, iova: u64) -> F::Word {
        self.mem.load(table, index::<F>(level, iova))
    }

    /// The table of the smallest leaves that holds all of `iova..=last`, if there is one. Most
    /// calls stay within one such table, and find it without a cursor.
    #[inline]
    pub(crate) fn leaf_table(&self, iova: u64, last: u64) -> Option<Phys> {
        if (iova ^ last) & !low(F::shift(2)) != 0 {
            return None;
        }
        let mut table = self.root;
        for level in (2..=F::LEVELS).rev() {
            let i = index::<F>(level, iova);
            let w = self.mem.load(table, i);
            let Entry::Table(next) = self.format.decode(level, w) else {
                return None;
            };
            self.settle(table, i, w);
            table = next;
        }
        Some(table)
    }

    /// The last address of `len` bytes at `iova`, if they lie within the input width.
    fn last(&self, iova: u64, len: u64) -> Option<u64> {
        let last = iova.checked_add(len.checked_sub(1)?)?;
        (last <= low(self.input_bits.into())).then_some(last)
    }

    /// Like [`Table::last`], cut to the input width.
    pub(crate) fn clip(&self, iova: u64, len: u64) -> Option<u64> {
        let end = low(self.input_bits.into());
        let last = iova.saturating_add(len.checked_sub(1)?).min(end);
        (iova <= end).then_some(last)
    }

    /// Makes entries visible to walkers that do not snoop.
    #[inline]
    pub(crate) fn clean(&self, table: Phys, entries: Range<usize>) {
        if !self.coherent {
            let bytes = F::Word::BYTES;
            self.mem.clean(table, entries.start * bytes..entries.end * bytes);
        }
    }

    /// Orders what was cleaned before what is cleaned next.
    #[inline]
    pub(crate) fn clean_barrier(&self) {
        if !self.coherent {
            self.mem.barrier();
        }
    }

    /// Sees to it that the table entry `w` is visible to walkers that do not snoop.
    #[inline]
    pub(crate) fn settle(&self, table: Phys, i: usize, w: F::Word) {
        if self.coherent || self.format.settled(w) {
            return;
        }
        self.clean(table, i..i + 1);
        self.mem.barrier();
        // Nobody else changes the entry to anything but this: a detach would own our range.
        self.mem.store(table, i, self.format.settle(w));
    }

    /// Clears entries.
    pub(crate) fn clear(&self, table: Phys, entries: Range<usize>) {
        let empty = F::Word::default();
        match entries.len() {
            1 => self.mem.store(table, entries.start, empty),
            _ => self.mem.run::<F::Word>(table, entries.clone(), |_, a| {
                F::Word::store(a, empty);
            }),
        }
        self.clean(table, entries);
    }

    /// Calls `visit` with every leaf, in order of IOVA. Leaves that change meanwhile may be seen
    /// or not.
    pub fn leaves(&self, mut visit: impl FnMut(Leaf)) {
        let _pin = self.limbo.pin(&self.mem);
        let last = low(self.input_bits.into());
        let mut cursor = self.cursor();
        let mut pos = 0;
        loop {
            cursor.go(pos);
            let Some((entry, w)) = self.at(&cursor, pos) else {
                return;
            };
            let end = match entry {
                Entry::Table(t) => {
                    cursor.enter(Some(t));
                    continue;
                }
                Entry::Empty => block_end(pos, F::shift(cursor.level())),
                Entry::Leaf { base, size_bits } => {
                    visit(self.leaf_at(pos, base, size_bits, w));
                    block_end(pos, size_bits)
                }
            };
            if end >= last {
                return;
            }
            pos = end + 1;
        }
    }

    /// The entry for `pos` in the table that the cursor is in.
    #[inline]
    pub(crate) fn at(&self, cursor: &Cursor<F>, pos: u64) -> Option<(Entry, F::Word)> {
        let w = self.load(cursor.table()?, cursor.level(), pos);
        Some((self.format.decode(cursor.level(), w), w))
    }

    fn leaf_at(&self, iova: u64, base: Phys, size_bits: u32, w: F::Word) -> Leaf {
        let offset = iova & low(size_bits);
        Leaf {
            phys: Phys(base.0 | offset),
            start: iova - offset,
            size: 1 << size_bits,
            prot: self.format.prot(w),
        }
    }
}

impl<F: Format, M: TableMem> IoTable for Table<F, M> {
    fn desc(&self) -> FormatDesc {
        FormatDesc {
            id: F::ID,
            levels: F::LEVELS as u8,
            input_bits: self.input_bits,
            output_bits: self.output_bits,
            page_sizes: self.page_sizes,
            coherent: self.coherent,
        }
    }

    fn root(&self) -> Phys {
        self.root
    }

    fn map(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), MapError> {
        let granule = 1 << F::GRANULE_BITS;
        if len == 0 {
            return Err(MapError::ZeroLength { iova });
        }
        if (iova | phys.0 | len) & (granule - 1) != 0 {
            return Err(MapError::Unaligned { iova, phys, len, granule });
        }
        let bits = self.input_bits;
        let last = self.last(iova, len).ok_or(MapError::InputRange { iova, len, bits })?;
        let bits = self.output_bits;
        if phys.0.checked_add(len - 1).is_none_or(|p| p > low(bits.into())) {
            return Err(MapError::OutputRange { phys, len, bits });
        }
        let template = self.format.template(prot).ok_or(MapError::Permissions { iova, prot })?;
        self.map_range(iova, last, phys, template)
    }

    fn unmap(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), UnmapError> {
        let granule = 1 << F::GRANULE_BITS;
        if len == 0 {
            return Err(UnmapError::ZeroLength { iova });
        }
        if (iova | len) & (granule - 1) != 0 {
            return Err(UnmapError::Unaligned { iova, len, granule });
        }
        let bits = self.input_bits;
        let last = self.last(iova, len).ok_or(UnmapError::InputRange { iova, len, bits })?;
        self.unmap_range(iova, last, gather)
    }

    fn lookup(&self, iova: u64) -> Option<Leaf> {
        if iova > low(self.input_bits.into()) {
            return None;
        }
        let _pin = self.limbo.pin(&self.mem);
        let mut table = self.root;
        for level in (1..=F::LEVELS).rev() {
            let w = self.load(table, level, iova);
            match self.format.decode(level, w) {
                Entry::Empty => return None,
                Entry::Table(next) => table = next,
                Entry::Leaf { base, size_bits } => {
                    return Some(self.leaf_at(iova, base, size_bits, w));
                }
            }
        }
        None
    }

    fn accessed(&self, iova: u64, len: u64, clear: bool) -> Result<bool, NoAccessedBits> {
        self.test_accessed(iova, len, clear)
    }

    fn set_dirty_tracking(&self, on: bool, gather: &mut Gather) -> Result<(), DirtyError> {
        self.track_dirty(on, gather)
    }

    fn read_dirty(
        &self,
        iova: u64,
        len: u64,
        clear: bool,
        gather: &mut Gather,
        visit: &mut dyn FnMut(u64, u64),
    ) -> Result<(), DirtyError> {
        self.visit_dirty(iova, len, clear, gather, visit)
    }

    fn retire(&self, tables: Retired, _synced: Synced) {
        for table in tables.tables {
            self.limbo.push(&self.mem, table);
        }
        self.limbo.drain(&self.mem);
    }
}

impl<F: Format, M: TableMem> Drop for Table<F, M> {
    fn drop(&mut self) {
        self.limbo.drain(&self.mem);
        let mut path = [self.root; MAX_LEVELS + 1];
        let mut next = [0; MAX_LEVELS + 1];
        let mut level = F::LEVELS;
        loop {
            let i = next[level];
            if level == 1 || i == entries::<F>(level) {
                self.mem.reclaim(path[level]);
                if level == F::LEVELS {
                    return;
                }
                level += 1;
                continue;
            }
            next[level] = i + 1;
            let w = self.mem.load(path[level], i);
            if let Entry::Table(child) = self.format.decode(level, w) {
                level -= 1;
                path[level] = child;
                next[level] = 0;
            }
        }
    }
}

/// The bits of the leaf sizes that are made of entries of a table at `level`.
fn level_sizes<F: Format>(level: usize) -> u64 {
    low(F::shift(level + 1)) & !low(F::shift(level))
}

/// What is left of `asked`: sizes of the format, the smallest page in any case, and leaves of
/// several entries only where one entry can be a leaf too.
fn usable_sizes<F: Format>(asked: u64) -> u64 {
    let mut sizes = (asked & F::LEAF_SIZES) | 1 << F::GRANULE_BITS;
    for level in 1..=F::LEVELS {
        if sizes & 1 << F::shift(level) == 0 {
            sizes &= !level_sizes::<F>(level);
        }
    }
    sizes
}
