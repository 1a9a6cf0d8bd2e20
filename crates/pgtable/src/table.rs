//! What a domain holds: a table behind one dynamic call, and the words its users speak.

use crate::{
    gather::{Gather, Retired, Synced},
    mem::Phys,
    source::Segment,
};
use bitflags::bitflags;
use core::{cell::Cell, fmt};

bitflags! {
    /// What a mapping allows and how it behaves.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u32 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 1 << 1;
        /// The device may fetch instructions (requests with PASID only).
        const EXEC = 1 << 2;
        /// Only privileged requests may use it (formats with a user/supervisor bit).
        const PRIV = 1 << 3;
        /// The target is device memory, not RAM.
        const MMIO = 1 << 4;
        /// Accesses snoop the CPU's caches even if the device asks them not to.
        const SNOOP = 1 << 5;
        /// Memory that the CPU maps without caching it: accesses do not look into caches. Without
        /// this and [`Prot::MMIO`], memory is write-back cacheable.
        const UNCACHED = 1 << 6;
        /// A bit of the format's own; its file says what it stands for.
        const FORMAT0 = 1 << 28;
        /// Another.
        const FORMAT1 = 1 << 29;
    }
}

/// The name of a format: two tables with the same id are read by the same walkers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FormatId(pub &'static str);

impl fmt::Debug for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Display for FormatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Which input addresses a table translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Those from 0 to 2^`input_bits`.
    Lower,
    /// The highest 2^`input_bits`, of which all bits above are set (Arm's TTBR1).
    Upper,
    /// Those whose bits above are copies of the input's highest (canonical addresses).
    Signed,
}

/// Where a walk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Top {
    /// Address of the root table.
    pub root: Phys,
    /// Levels of the walk, counted as the manual counts them.
    pub levels: usize,
}

/// What a walker must support to read a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatDesc {
    /// The format.
    pub id: FormatId,
    /// Levels of the walk, counted as the manual counts them. Of a format that grows, those it has
    /// now.
    pub levels: u8,
    /// Which input addresses it is for.
    pub space: Space,
    /// Width in bits of the input address (IOVA).
    pub input_bits: u8,
    /// Width in bits of the output address.
    pub output_bits: u8,
    /// Leaf sizes the table may contain: bit n set means 2^n bytes.
    pub page_sizes: u64,
    /// Whether the table relies on the walker snooping the CPU's caches.
    pub coherent: bool,
    /// Whether the table relies on the walker noting writes in its entries, where that is told to
    /// the walker.
    pub dirty: bool,
}

/// A leaf found by [`IoTable::lookup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Physical address that the looked-up IOVA translates to.
    pub phys: Phys,
    /// First IOVA of the leaf.
    pub start: u64,
    /// Size of the leaf in bytes.
    pub size: u64,
    /// What it allows.
    pub prot: Prot,
}

/// Why a range could not be mapped. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The length is zero.
    #[error("map of zero bytes at IOVA {iova:#x}")]
    ZeroLength {
        /// First IOVA asked for.
        iova: u64,
    },
    /// IOVA, physical address or length is not a multiple of the smallest page.
    #[error("map of {len:#x} bytes at IOVA {iova:#x} to {phys} is not aligned to {granule:#x}")]
    Unaligned {
        /// First IOVA asked for.
        iova: u64,
        /// Physical address asked for.
        phys: Phys,
        /// Bytes asked for.
        len: u64,
        /// The format's smallest page.
        granule: u64,
    },
    /// The IOVA range wraps or ends beyond the table's input width.
    #[error("IOVA range {iova:#x}+{len:#x} does not fit {bits} input bits")]
    InputRange {
        /// First IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        len: u64,
        /// Input width of the table.
        bits: u8,
    },
    /// The physical range wraps or ends beyond the table's output width.
    #[error("physical range {phys}+{len:#x} does not fit {bits} output bits")]
    OutputRange {
        /// First physical address asked for.
        phys: Phys,
        /// Bytes asked for.
        len: u64,
        /// Output width of the table.
        bits: u8,
    },
    /// A mapping is already there.
    #[error("IOVA {iova:#x} is already mapped to {phys}")]
    AlreadyMapped {
        /// The first IOVA of the range that is taken.
        iova: u64,
        /// What it translates to.
        phys: Phys,
    },
    /// The permissions allow nothing, or the format cannot express them.
    #[error("the format cannot express permissions {prot:?} at IOVA {iova:#x}")]
    Permissions {
        /// First IOVA asked for.
        iova: u64,
        /// Permissions asked for.
        prot: Prot,
    },
    /// A table frame could not be allocated.
    #[error("out of table memory while mapping IOVA {iova:#x}")]
    NoMem {
        /// First IOVA asked for.
        iova: u64,
    },
}

/// Why a range could not be unmapped. Nothing was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnmapError {
    /// The length is zero.
    #[error("unmap of zero bytes at IOVA {iova:#x}")]
    ZeroLength {
        /// First IOVA asked for.
        iova: u64,
    },
    /// IOVA or length is not a multiple of the smallest page.
    #[error("unmap of {len:#x} bytes at IOVA {iova:#x} is not aligned to {granule:#x}")]
    Unaligned {
        /// First IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        len: u64,
        /// The format's smallest page.
        granule: u64,
    },
    /// The range wraps or ends beyond the table's input width.
    #[error("IOVA range {iova:#x}+{len:#x} does not fit {bits} input bits")]
    InputRange {
        /// First IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        len: u64,
        /// Input width of the table.
        bits: u8,
    },
    /// Part of the range is not mapped.
    #[error("IOVA {iova:#x} is not mapped")]
    NotMapped {
        /// The first IOVA of the range that has no mapping.
        iova: u64,
    },
    /// The range begins or ends inside a larger leaf, and splitting was not asked for.
    #[error("IOVA {iova:#x} lies inside a leaf of {size:#x} bytes that starts at {start:#x}")]
    PartialLeaf {
        /// The end of the range that lies inside the leaf.
        iova: u64,
        /// First IOVA of the leaf.
        start: u64,
        /// Size of the leaf.
        size: u64,
    },
}

/// The format keeps no accessed bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the format {0} keeps no accessed bits")]
pub struct NoAccessedBits(pub FormatId);

/// Why dirty bits could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyError {
    /// The format has no dirty bits, or the table was built for walkers that do not keep them.
    #[error("the format {0} keeps no dirty bits")]
    NotKept(FormatId),
    /// [`IoTable::set_dirty_tracking`] did not begin it.
    #[error("dirty tracking is off")]
    Off,
}

/// Why permissions could not be changed or a leaf not be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The length is zero.
    #[error("change of zero bytes at IOVA {iova:#x}")]
    ZeroLength {
        /// First IOVA asked for.
        iova: u64,
    },
    /// IOVA or length is not a multiple of the smallest page.
    #[error("change of {len:#x} bytes at IOVA {iova:#x} is not aligned to {granule:#x}")]
    Unaligned {
        /// First IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        len: u64,
        /// The format's smallest page.
        granule: u64,
    },
    /// The range wraps or ends beyond the table's input width.
    #[error("IOVA range {iova:#x}+{len:#x} does not fit {bits} input bits")]
    InputRange {
        /// First IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        len: u64,
        /// Input width of the table.
        bits: u8,
    },
    /// Part of the range is not mapped.
    #[error("IOVA {iova:#x} is not mapped")]
    NotMapped {
        /// The first IOVA of the range that has no mapping.
        iova: u64,
    },
    /// The range begins or ends inside a larger leaf.
    #[error("IOVA {iova:#x} lies inside a leaf of {size:#x} bytes that starts at {start:#x}")]
    PartialLeaf {
        /// The end of the range that lies inside the leaf.
        iova: u64,
        /// First IOVA of the leaf.
        start: u64,
        /// Size of the leaf.
        size: u64,
    },
    /// The permissions allow nothing, or the format cannot express them.
    #[error("the format cannot express permissions {prot:?} at IOVA {iova:#x}")]
    Permissions {
        /// First IOVA asked for.
        iova: u64,
        /// Permissions asked for.
        prot: Prot,
    },
    /// The hardware may not see this leaf change without an invalid entry in between: unmap it,
    /// sync, and map again.
    #[error("the leaf of {size:#x} bytes at IOVA {iova:#x} cannot be changed while it is in use")]
    NeedsBreak {
        /// First IOVA of the leaf.
        iova: u64,
        /// Its size.
        size: u64,
    },
    /// Leaves are not split while dirty bits are read: what a walker notes in the old one would
    /// be lost.
    #[error("dirty tracking is on")]
    Tracking,
    /// A table frame could not be allocated.
    #[error("out of table memory while splitting at IOVA {iova:#x}")]
    NoMem {
        /// First IOVA asked for.
        iova: u64,
    },
}

/// A page table as a domain holds it. Implemented once, by the engine, for every format.
///
/// All methods take `&self`. The caller owns the IOVA range it maps, unmaps or changes: operations
/// on disjoint ranges may run at once from several CPUs without a lock, operations on the same
/// range may not. Lookups, and reads of accessed and dirty bits, may run beside anything.
pub trait IoTable: Send + Sync {
    /// What a walker needs to read this table.
    fn desc(&self) -> FormatDesc;
    /// Where a walk begins, root and levels of the same moment. In a format that grows, a map may
    /// change it: until the hardware was told, it does not reach what was mapped beyond.
    fn top(&self) -> Top;
    /// Address of the root table.
    fn root(&self) -> Phys {
        self.top().root
    }
    /// Maps `len` bytes at `iova` to `phys` with the largest leaves that alignment allows and that
    /// no empty table is in the way of. Checks and allocates first and writes after.
    ///
    /// # Errors
    /// See [`MapError`]; no leaf was written and no frame kept.
    fn map(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), MapError>;
    /// Maps the segments one after the other from `iova` on, as one call of [`IoTable::map`] does:
    /// all or none. Segments that are contiguous are mapped as one.
    ///
    /// # Errors
    /// See [`MapError`]; no leaf was written and no frame kept. An empty list is
    /// [`MapError::ZeroLength`].
    fn map_sg(&self, iova: u64, segments: &[Segment], prot: Prot) -> Result<(), MapError>;
    /// Removes the mappings of `len` bytes at `iova`, which must consist of whole leaves, and adds
    /// what must be invalidated, and the tables that became unreachable, to `gather`. The range may
    /// be that of several maps, or part of one; [`IoTable::split`] cuts a leaf that is in the way.
    ///
    /// # Errors
    /// See [`UnmapError`]; nothing was removed.
    fn unmap(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), UnmapError>;
    /// What `iova` translates to.
    fn lookup(&self, iova: u64) -> Option<Leaf>;
    /// For many lookups at the price of one announcement.
    fn reader(&self) -> Reader<'_>;
    /// Calls `visit` with every leaf that touches the range, in order of IOVA. Leaves that change
    /// meanwhile may be seen or not.
    fn leaves(&self, iova: u64, len: u64, visit: &mut dyn FnMut(Leaf));
    /// Whether a device used a page of the range since its accessed bits were last cleared;
    /// `clear` clears them. The caller invalidates before it trusts a later answer.
    ///
    /// # Errors
    /// [`NoAccessedBits`] when the format has none.
    fn accessed(&self, iova: u64, len: u64, clear: bool) -> Result<bool, NoAccessedBits>;
    /// Begins or ends dirty tracking in this table. When it begins, dirty bits from before are
    /// cleared and their range is added to `gather`: until that is synced, a device may write
    /// through a cached translation without marking the leaf again. Telling the walkers to keep
    /// the bits is the driver's.
    ///
    /// # Errors
    /// [`DirtyError::NotKept`].
    fn set_dirty_tracking(&self, on: bool, gather: &mut Gather) -> Result<(), DirtyError>;
    /// Calls `visit` with IOVA and size of every leaf that was written through since its dirty bit
    /// was last cleared, in order, for leaves that touch the range: a leaf that reaches beyond it
    /// is told (and cleared) whole. With `clear` the bits are cleared and the range is added to
    /// `gather`; the caller has it synced before it trusts a later answer. May run beside anything.
    ///
    /// # Errors
    /// See [`DirtyError`]; nothing was visited.
    fn read_dirty(
        &self,
        iova: u64,
        len: u64,
        clear: bool,
        gather: &mut Gather,
        visit: &mut dyn FnMut(u64, u64),
    ) -> Result<(), DirtyError>;
    /// Gives the leaves of the range, which must be whole ones, other permissions. Translations do
    /// not stop meanwhile; accessed and dirty bits stay. What must be invalidated is added to
    /// `gather`.
    ///
    /// # Errors
    /// See [`ChangeError`]; nothing was changed.
    fn protect(&self, iova: u64, len: u64, prot: Prot, gather: &mut Gather) -> Result<(), ChangeError>;
    /// Cuts leaves, so that none reaches from inside the range to outside of it. Nothing that is
    /// translated changes or stops meanwhile. What must be invalidated before part of a leaf that
    /// was cut is unmapped is added to `gather`, so that both may share a sync.
    ///
    /// # Errors
    /// See [`ChangeError`]; translations are as before, though one end may have been cut.
    fn split(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), ChangeError>;
    /// Frees tables that [`IoTable::unmap`] took out, given proof that no walker can still read
    /// them.
    fn retire(&self, tables: Retired, synced: Synced);
    /// Keeps tables that [`IoTable::unmap`] took out, and that nobody invalidates for now, until
    /// somebody takes [all of them](IoTable::parked). Allocates nothing and loses none; a table that is
    /// dropped, which no walker reads then, frees its own.
    fn park(&self, tables: Retired);
    /// What was parked until now, for whoever is about to invalidate everything: to be
    /// [retired](IoTable::retire) after that, or parked again.
    fn parked(&self) -> Retired;
}

/// Looks up many addresses behind one announcement: what was looked up is not freed while this
/// lives, so it should not live long. It remembers the last table of pages that it was in, which
/// makes neighbours cheap; what was unmapped before a lookup begins is not found all the same.
pub struct Reader<'a> {
    table: &'a dyn Walk,
    counter: usize,
    near: Cell<Near>,
}

/// The last table of pages that a [`Reader`] was in.
#[derive(Clone, Copy)]
pub(crate) struct Near {
    /// What the table spans, by number.
    pub(crate) span: u64,
    pub(crate) table: Phys,
    /// How many tables had been taken out before it was found.
    pub(crate) detached: u64,
}

impl Near {
    /// No table: there is no such span.
    pub(crate) const NONE: Near = Near { span: u64::MAX, table: Phys(0), detached: 0 };
}

/// What a [`Reader`] needs of the engine.
pub(crate) trait Walk: Sync {
    /// [`IoTable::lookup`], announced already.
    fn find_pinned(&self, iova: u64, near: &Cell<Near>) -> Option<Leaf>;
    /// [`Reader::translate`].
    fn translate_pinned(&self, iova: u64, near: &Cell<Near>) -> Option<Phys>;
    /// Ends what was announced.
    fn leave(&self, counter: usize);
}

impl<'a> Reader<'a> {
    pub(crate) fn new(table: &'a dyn Walk, counter: usize) -> Reader<'a> {
        Reader { table, counter, near: Cell::new(Near::NONE) }
    }

    /// What `iova` translates to.
    #[inline]
    pub fn lookup(&self, iova: u64) -> Option<Leaf> {
        self.table.find_pinned(iova, &self.near)
    }

    /// The physical address that `iova` translates to, and no more: cheaper than
    /// [`Reader::lookup`].
    #[inline]
    pub fn translate(&self, iova: u64) -> Option<Phys> {
        self.table.translate_pinned(iova, &self.near)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.table.leave(self.counter);
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
