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
//! - *Grow.* Root and number of levels are one word. A new root that leads to the old one is built
//!   in private and swapped in; who holds the old word still walks a part of the same tree. Roots
//!   are never taken out.
//! - *Free.* A detached table goes to the gather, and from there through [`IoTable::retire`],
//!   which asks for the proof that no hardware can reach it, to a list that waits for
//!   lookups. Lookups announce themselves; maps and unmaps need not, by the second point.
//!
//! A mapping that could be a large leaf is written as small ones where an (empty) table is in the
//! way: walkers may have cached the way to it, and a map has nothing to invalidate with.
//!
//! What a call found on its way is kept as hints (see `hints.rs`), of which a detach clears those
//! to what it takes out.
//!
//! # Walkers that do not snoop
//!
//! A table's bytes are cleaned before its parent entry is written, a parent entry right after, and
//! leaves before the map returns. A mapper that finds a table which another has just installed
//! cannot know whether its parent entry has reached memory: an installed entry is therefore marked
//! as settled once it was cleaned, and who meets one without the mark cleans it too.
//!
//! # Positions
//!
//! Inside the engine an address is a position: the IOVA's low bits, as many as the input width.
//! What the other bits have to be is checked at the door and put back on the way out.

use crate::{
    chain::{self, Chain},
    cursor::{Cursor, index, low, root_index},
    format::{AccessBits, Config, Entry, Format},
    gather::{Gather, Retired, Synced},
    hints::Hints,
    limbo::Limbo,
    mem::{FRAME_SIZE, NoMem, Phys, TableMem, Word},
    single::Quick,
    source::Segment,
    table::{
        ChangeError, DirtyError, FormatDesc, IoTable, Leaf, MapError, Near, NoAccessedBits, Prot, Reader,
        Space, Top, UnmapError,
    },
};
use alloc::vec::Vec;
use core::{cell::Cell, ops::Range};
use portcullis_sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The deepest walk that the engine does.
pub const MAX_LEVELS: usize = 6;

/// A page table in format `F`, made of frames of `M`.
///
/// Dropping it gives all its frames back: nothing may walk it any more. Tables in a [`Gather`] or
/// [`Retired`] that did not come back through [`IoTable::retire`] or [`IoTable::park`] are not among them.
pub struct Table<F: Format, M: TableMem> {
    pub(crate) mem: M,
    pub(crate) format: F,
    /// Address of the root and, in its low bits, the number of levels.
    top: AtomicU64,
    /// The positions that the table translates: 0 to this.
    pub(crate) reach: u64,
    /// What takes an IOVA of the space, and no other, to 0 to `reach`.
    pub(crate) before_space: u64,
    pub(crate) page_sizes: u64,
    pub(crate) space: Space,
    pub(crate) input_bits: u8,
    pub(crate) output_bits: u8,
    /// The highest address that entries lead to.
    pub(crate) output_last: u64,
    coherent: bool,
    pub(crate) root_order: u32,
    /// Levels that the table began with.
    pub(crate) first_levels: usize,
    pub(crate) tracking: AtomicBool,
    pub(crate) quick: Quick<F>,
    pub(crate) hints: Hints<F>,
    pub(crate) limbo: Limbo<F>,
    /// Tables that were parked: walkers may have cached the way to them.
    unsynced: Chain<F>,
}

impl<F: Format, M: TableMem> Table<F, M> {
    /// Every table below the root is a run of 2^`TABLE_ORDER` frames.
    pub(crate) const TABLE_ORDER: u32 = F::TABLE_BITS.saturating_sub(FRAME_SIZE.ilog2());
    const PER_FRAME: usize = FRAME_SIZE / F::Word::BYTES;
    /// Whether a table may have more entries than fit into a frame.
    const LARGE: bool = Self::TABLE_ORDER > 0 || F::ROOT_EXTRA_BITS > 0;

    /// An empty table for the walkers that `config` describes. May be called wherever
    /// [`TableMem::frames`] may.
    ///
    /// # Errors
    /// [`NoMem`] when there are no frames for the root.
    pub fn new(mem: M, config: Config) -> Result<Table<F, M>, NoMem> {
        let space = if F::SPACES.contains(&config.space) { config.space } else { F::SPACES[0] };
        let (levels, input_bits) = extent::<F>(&config, space);
        let root_order = F::root_bits(input_bits, levels).saturating_sub(FRAME_SIZE.ilog2());
        let root = mem.frames(root_order)?;
        let format = F::new(&Config { input_bits, ..config });
        let output_last = low(config.output_bits.min(F::OUTPUT_BITS).into());
        let table = Table {
            format,
            top: AtomicU64::new(pack(Top { root: root.phys(), levels })),
            reach: low(input_bits.into()),
            before_space: match space {
                Space::Lower => 0,
                Space::Upper => low(input_bits.into()).wrapping_add(1),
                Space::Signed => (low(input_bits.into()) >> 1) + 1,
            },
            page_sizes: usable_sizes::<F>(config.page_sizes & format.leaf_sizes()),
            space,
            input_bits,
            output_bits: config.output_bits.min(F::OUTPUT_BITS),
            output_last,
            coherent: config.coherent,
            root_order,
            first_levels: levels,
            tracking: AtomicBool::new(false),
            quick: Quick::new(&format, config.coherent, low(input_bits.into()), output_last),
            hints: Hints::new(),
            limbo: Limbo::new(),
            unsynced: Chain::new(),
            mem,
        };
        table.clean(root.phys(), 0..Self::PER_FRAME << root_order);
        table.mem.barrier();
        root.publish();
        Ok(table)
    }

    /// The leaf sizes that begin at `level`.
    #[inline]
    pub(crate) fn sizes_at(&self, level: usize) -> u64 {
        self.page_sizes & level_sizes::<F>(level)
    }

    #[inline]
    pub(crate) fn load_top(&self) -> Top {
        unpack(self.top.load(Ordering::Acquire))
    }

    /// Puts `new` in the place of `old`; whether that was the top.
    pub(crate) fn swap_top(&self, old: Top, new: Top) -> bool {
        self.top.compare_exchange(pack(old), pack(new), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether a walk from `top` on can reach `pos`.
    #[inline]
    pub(crate) fn reaches(&self, top: Top, pos: u64) -> bool {
        !F::GROWS || pos <= low(F::shift(top.levels + 1))
    }

    /// The table of the smallest leaves that holds all of `pos..=last`, if there is one. Most
    /// calls stay within one such table, and find it without a cursor.
    #[inline]
    pub(crate) fn leaf_table(&self, pos: u64, last: u64) -> Option<Phys> {
        if (pos ^ last) & !low(F::shift(2)) != 0 {
            return None;
        }
        self.table_at::<1>(pos)
    }

    /// The table at level `TO`, 1 or 2, that holds `pos`, if there is one. The caller owns a part
    /// of what it spans.
    #[inline(always)]
    pub(crate) fn table_at<const TO: usize>(&self, pos: u64) -> Option<Phys> {
        match self.hints.find(TO, pos) {
            Some(table) => Some(table),
            None => self.walk_to::<TO>(pos),
        }
    }

    #[inline(never)]
    fn walk_to<const TO: usize>(&self, pos: u64) -> Option<Phys> {
        let top = self.load_top();
        let table = self.walk_from::<TO>(top, pos)?;
        self.hints.set(TO, pos, table);
        Some(table)
    }

    #[inline]
    fn walk_from<const TO: usize>(&self, top: Top, pos: u64) -> Option<Phys> {
        if !self.coherent && self.reaches(top, pos) {
            return self.settled_table(top, TO, pos);
        }
        self.descend_to::<TO>(top, pos)
    }

    /// The table at level `TO` that holds `pos`, if there is one and no format makes a secret of it.
    #[inline(always)]
    pub(crate) fn descend_to<const TO: usize>(&self, top: Top, pos: u64) -> Option<Phys> {
        if !self.reaches(top, pos) {
            return None;
        }
        // Four levels are what most tables have.
        if top.levels == 4 {
            return self.down::<4, TO>(top.root, pos);
        }
        match top.levels {
            3 => self.down::<3, TO>(top.root, pos),
            5 => self.down::<5, TO>(top.root, pos),
            2 => self.down::<2, TO>(top.root, pos),
            6 => self.down::<6, TO>(top.root, pos),
            _ => self.down::<1, TO>(top.root, pos),
        }
    }

    /// A walk written out, because compilers keep the loop.
    #[inline(always)]
    fn down<const LEVELS: usize, const TO: usize>(&self, root: Phys, pos: u64) -> Option<Phys> {
        if LEVELS < F::MIN_LEVELS || LEVELS > F::MAX_LEVELS || LEVELS < TO {
            return None;
        }
        let mut table = root;
        table = self.step::<LEVELS, 6, TO>(table, pos)?;
        table = self.step::<LEVELS, 5, TO>(table, pos)?;
        table = self.step::<LEVELS, 4, TO>(table, pos)?;
        table = self.step::<LEVELS, 3, TO>(table, pos)?;
        self.step::<LEVELS, 2, TO>(table, pos)
    }

    /// From a table at `LEVEL` to the next, if that is among the levels of a walk from `LEVELS` to
    /// `TO`.
    #[inline(always)]
    fn step<const LEVELS: usize, const LEVEL: usize, const TO: usize>(
        &self,
        table: Phys,
        pos: u64,
    ) -> Option<Phys> {
        if LEVEL > LEVELS || LEVEL <= TO {
            return Some(table);
        }
        let i = if LEVEL == LEVELS { root_index::<F>(LEVEL, pos) } else { index::<F>(LEVEL, pos) };
        self.format.child(LEVEL, self.load(table, i))
    }

    /// [`Table::table_at`], seeing to it that walkers which do not snoop find the way too.
    #[cold]
    fn settled_table(&self, top: Top, to: usize, pos: u64) -> Option<Phys> {
        let mut table = top.root;
        let mut level = top.levels;
        if level < to {
            return None;
        }
        while level > to {
            let i = if level == top.levels { root_index::<F>(level, pos) } else { index::<F>(level, pos) };
            let w = self.load(table, i);
            let Entry::Table(next) = self.format.decode(level, w) else {
                return None;
            };
            self.settle(table, i, w);
            table = next;
            level -= 1;
        }
        Some(table)
    }

    /// Index of the entry for `pos` in the table at `LEVEL`, which may be a root.
    #[inline]
    pub(crate) fn index_at<const LEVEL: usize>(&self, pos: u64) -> usize {
        if F::ROOT_EXTRA_BITS > 0 && LEVEL >= F::MIN_LEVELS && self.load_top().levels == LEVEL {
            root_index::<F>(LEVEL, pos)
        } else {
            index::<F>(LEVEL, pos)
        }
    }

    /// The positions of `len` bytes at `iova`, first and last, if they lie in the input space.
    #[inline]
    pub(crate) fn enter(&self, iova: u64, len: u64) -> Option<(u64, u64)> {
        let last = iova.checked_add(len.checked_sub(1)?)?;
        if F::SPACES.len() == 1 || self.space == Space::Lower {
            return (last <= self.reach).then_some((iova, last));
        }
        let (first, end) = (iova & self.reach, last & self.reach);
        // A range that comes back as it was, and no shorter, has not crossed a hole.
        let same = self.iova(first) == iova && self.iova(end) == last && end.wrapping_sub(first) == len - 1;
        same.then_some((first, end))
    }

    /// The IOVA at a position.
    #[inline]
    pub(crate) fn iova(&self, pos: u64) -> u64 {
        if F::SPACES.len() == 1 {
            return pos;
        }
        match self.space {
            Space::Lower => pos,
            Space::Upper => pos | !self.reach,
            Space::Signed if pos & !(self.reach >> 1) != 0 => pos | !self.reach,
            Space::Signed => pos,
        }
    }

    /// The part of `len` bytes at `iova` that the table translates, as positions.
    pub(crate) fn clip(&self, iova: u64, len: u64) -> Option<(u64, u64)> {
        let last = iova.saturating_add(len.checked_sub(1)?);
        let (start, end) = match self.space {
            Space::Lower => (0, self.reach),
            Space::Upper => (!self.reach, u64::MAX),
            // What lies on both sides of the hole is one range of positions.
            Space::Signed => {
                let upper = !(self.reach >> 1);
                let first = if iova < upper && iova > self.reach >> 1 { upper } else { iova };
                let last = if last < upper && last > self.reach >> 1 { self.reach >> 1 } else { last };
                return (first <= last).then_some((first & self.reach, last & self.reach));
            }
        };
        let (first, last) = (iova.max(start), last.min(end));
        (first <= last).then_some((first & self.reach, last & self.reach))
    }

    #[inline]
    fn locate(table: Phys, i: usize) -> (Phys, usize) {
        if !Self::LARGE {
            return (table, i);
        }
        (Phys(table.0 + (i / Self::PER_FRAME * FRAME_SIZE) as u64), i % Self::PER_FRAME)
    }

    /// Entry `i` of a table.
    #[inline]
    pub(crate) fn load(&self, table: Phys, i: usize) -> F::Word {
        let (frame, i) = Self::locate(table, i);
        self.mem.load(frame, i)
    }

    /// Writes entry `i` of a table.
    #[inline]
    pub(crate) fn store(&self, table: Phys, i: usize, w: F::Word) {
        let (frame, i) = Self::locate(table, i);
        self.mem.store(frame, i, w);
    }

    /// Replaces entry `i` of a table if it is `old`.
    pub(crate) fn cas(&self, table: Phys, i: usize, old: F::Word, new: F::Word) -> Result<(), F::Word> {
        let (frame, i) = Self::locate(table, i);
        self.mem.cas(frame, i, old, new)
    }

    /// Visits entries of a table.
    #[inline]
    pub(crate) fn run(
        &self,
        table: Phys,
        range: Range<usize>,
        mut visit: impl FnMut(usize, &<F::Word as Word>::Atomic),
    ) {
        // Within a frame, as most are: what `visit` adds up may then stay in registers.
        let (frame, i) = Self::locate(table, range.start);
        if !Self::LARGE || i + range.len() <= Self::PER_FRAME {
            let before = range.start - i;
            return self.mem.run::<F::Word>(frame, i..i + range.len(), |j, a| visit(before + j, a));
        }
        let mut at = range.start;
        while at < range.end {
            let (frame, i) = Self::locate(table, at);
            let n = (Self::PER_FRAME - i).min(range.end - at);
            let before = at - i;
            self.mem.run::<F::Word>(frame, i..i + n, |j, a| visit(before + j, a));
            at += n;
        }
    }

    /// Makes entries visible to walkers that do not snoop.
    #[inline]
    pub(crate) fn clean(&self, table: Phys, entries: Range<usize>) {
        if !self.coherent {
            self.clean_now(table, entries);
        }
    }

    #[cold]
    fn clean_now(&self, table: Phys, entries: Range<usize>) {
        let mut at = entries.start;
        while at < entries.end {
            let (frame, i) = Self::locate(table, at);
            let n = (Self::PER_FRAME - i).min(entries.end - at);
            self.mem.clean(frame, i * F::Word::BYTES..(i + n) * F::Word::BYTES);
            at += n;
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
        self.store(table, i, self.format.settle(w));
    }

    /// Clears entries.
    #[inline]
    pub(crate) fn clear(&self, table: Phys, entries: Range<usize>) {
        let empty = F::Word::default();
        match entries.len() {
            1 => self.store(table, entries.start, empty),
            _ => self.run(table, entries.clone(), |_, a| F::Word::store(a, empty)),
        }
        self.clean(table, entries);
    }

    #[inline]
    pub(crate) fn is_present(w: F::Word) -> bool {
        w & F::PRESENT != F::Word::default()
    }

    /// The entry for `pos` in the table that the cursor is in.
    #[inline]
    pub(crate) fn look(&self, cursor: &Cursor<F>, pos: u64) -> Option<(Entry, F::Word)> {
        let w = self.load(cursor.table()?, cursor.index(pos));
        Some((self.format.decode(cursor.level(), w), w))
    }

    /// Gives the tables below an entry of a table at `level` back.
    fn free_below(&self, table: Phys, level: usize, entries: usize) {
        if level == 1 {
            return;
        }
        self.run(table, 0..entries, |_, a| {
            if let Entry::Table(child) = self.format.decode(level, F::Word::load(a)) {
                self.free_below(child, level - 1, crate::cursor::entries::<F>());
                self.mem.reclaim_frames(child, Self::TABLE_ORDER);
            }
        });
    }
}

impl<F: Format, M: TableMem> IoTable for Table<F, M> {
    fn desc(&self) -> FormatDesc {
        FormatDesc {
            id: F::ID,
            levels: self.load_top().levels as u8,
            space: self.space,
            input_bits: self.input_bits,
            output_bits: self.output_bits,
            page_sizes: self.page_sizes,
            coherent: self.coherent,
            dirty: self.format.dirty_bits() == AccessBits::Kept,
        }
    }

    fn top(&self) -> Top {
        self.load_top()
    }

    #[inline]
    fn map(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), MapError> {
        if (len == 1 << F::GRANULE_BITS && self.map_leaf::<1, false>(iova, phys, prot))
            || (len == 1 << F::shift(2) && self.map_leaf::<2, false>(iova, phys, prot))
        {
            return Ok(());
        }
        self.map_other(iova, phys, len, prot)
    }

    fn map_sg(&self, iova: u64, segments: &[Segment], prot: Prot) -> Result<(), MapError> {
        self.map_segments(iova, segments, prot)
    }

    #[inline]
    fn unmap(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), UnmapError> {
        if (len == 1 << F::GRANULE_BITS && self.unmap_leaf::<1, false>(iova, gather))
            || (len == 1 << F::shift(2) && self.unmap_leaf::<2, false>(iova, gather))
        {
            return Ok(());
        }
        self.unmap_other(iova, len, gather)
    }

    fn lookup(&self, iova: u64) -> Option<Leaf> {
        let _pin = self.limbo.pin(&self.mem);
        self.find(iova, &Cell::new(Near::NONE), |found| self.leaf(found))
    }

    fn reader(&self) -> Reader<'_> {
        Reader::new(self, self.limbo.enter())
    }

    fn leaves(&self, iova: u64, len: u64, visit: &mut dyn FnMut(Leaf)) {
        self.visit_leaves(iova, len, visit);
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

    fn protect(&self, iova: u64, len: u64, prot: Prot, gather: &mut Gather) -> Result<(), ChangeError> {
        self.change_prot(iova, len, prot, gather)
    }

    fn split(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), ChangeError> {
        self.split_at_ends(iova, len, gather)
    }

    fn retire(&self, tables: Retired, _synced: Synced) {
        self.each(tables, |table| self.limbo.push(&self.mem, table));
        self.limbo.drain(&self.mem);
    }

    fn park(&self, tables: Retired) {
        self.each(tables, |table| self.unsynced.push(&self.mem, table));
    }

    fn parked(&self) -> Retired {
        Retired { tables: Vec::new(), parked: self.unsynced.take() }
    }
}

impl<F: Format, M: TableMem> Table<F, M> {
    fn each(&self, retired: Retired, mut visit: impl FnMut(Phys)) {
        retired.tables.into_iter().for_each(&mut visit);
        chain::each::<F, M>(&self.mem, retired.parked, visit);
    }
}

impl<F: Format, M: TableMem> Drop for Table<F, M> {
    fn drop(&mut self) {
        // Nobody looks anything up any more, and no walker reads it.
        self.retire(self.parked(), Synced::after_completed_invalidation());
        let top = self.load_top();
        let bytes = F::root_bits(self.input_bits, top.levels);
        self.free_below(top.root, top.levels, (1usize << bytes) / F::Word::BYTES);
        self.mem.reclaim_frames(top.root, self.root_order);
    }
}

fn pack(top: Top) -> u64 {
    top.root.0 | top.levels as u64
}

#[inline]
fn unpack(word: u64) -> Top {
    Top { root: Phys(word & !0xfff), levels: (word & 0xfff) as usize }
}

/// Levels and input width of a table.
fn extent<F: Format>(config: &Config, space: Space) -> (usize, u8) {
    // Where the format sign-extends, a table for the lower addresses has half of them.
    let half = u32::from(space == Space::Lower && F::SPACES.contains(&Space::Signed));
    let reach = |levels| F::shift(levels + 1) + F::ROOT_EXTRA_BITS - half;
    let asked = u32::from(config.input_bits.min(F::INPUT_BITS));
    let mut levels = usize::from(config.levels).clamp(F::MIN_LEVELS, F::MAX_LEVELS);
    while config.levels == 0 && !F::GROWS && reach(levels) < asked && levels < F::MAX_LEVELS {
        levels += 1;
    }
    let most = if F::GROWS { reach(F::MAX_LEVELS) } else { reach(levels) };
    let bits = if space == Space::Signed { most } else { asked.min(most) };
    (levels, bits.min(64) as u8)
}

/// The bits of the leaf sizes that are made of entries of a table at `level`.
fn level_sizes<F: Format>(level: usize) -> u64 {
    low(F::shift(level + 1)) & !low(F::shift(level))
}

/// What is left of `asked`: the smallest page in any case, and leaves of several entries only where
/// one entry can be a leaf too.
fn usable_sizes<F: Format>(asked: u64) -> u64 {
    let mut sizes = asked | 1 << F::GRANULE_BITS;
    for level in 1..=F::MAX_LEVELS {
        if sizes & 1 << F::shift(level) == 0 {
            sizes &= !level_sizes::<F>(level);
        }
    }
    sizes
}
