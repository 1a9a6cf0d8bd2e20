//! What the engine must know of a page-table format.
//!
//! # Writing a format
//!
//! A format is a small `Copy` value: the constants of the walk, and the bits that [`Config`]
//! decides once for a whole table. Put it in a file of its own under `formats/`, with the section
//! of the manual at each constant, and implement [`Format`]:
//!
//! 1. `Word`, `MIN_LEVELS`, `MAX_LEVELS`, `GRANULE_BITS`, `TABLE_BITS`, `INPUT_BITS`,
//!    `OUTPUT_BITS` and `LEAF_SIZES` describe the walk. Levels count from 1, which holds the
//!    smallest leaves, up to the root. Every table below the root has 2^`TABLE_BITS` bytes;
//!    `ROOT_EXTRA_BITS` is for roots that are larger, `GROWS` for walks whose root may move up
//!    while the table is in use, `SPACES` for input addresses other than the lowest.
//! 2. [`Format::PRESENT`] and [`Format::decode`] say what an entry is. An entry that a walker
//!    treats as not present must decode as [`Entry::Empty`] whatever its other bits are; all-zero
//!    bits must be empty.
//! 3. [`Format::template`] turns permissions into the bits that all leaves of one map call share,
//!    or refuses: permissions that the format cannot express are never rounded.
//!    [`Format::leaf`] adds the address, [`Format::prot`] reads permissions back, and
//!    [`Format::attributes`] is the template of a leaf that is there.
//! 4. A leaf may take several entries of one table (Arm's contiguous hint, RISC-V's Svnapot,
//!    AMD's replicated entries): list its size in `LEAF_SIZES`. The engine sees that the size
//!    lies between two levels, writes that many entries with the same `size_bits`, and removes
//!    them only together.
//! 5. [`Format::parked`] and [`Format::settle`] need bits that the walker ignores.
//! 6. [`Format::in_place`] says what the manual lets software do to a leaf that is in use.
//!
//! Then write golden entries as literals from the manual in the file's tests, and in `tests/golden`
//! tables as lists of the manual's fields; write a walker for it in `tests/common`, and add the
//! format to the list in `tests/model.rs`: the random comparison against a plain map covers the rest.

use crate::{
    mem::{FRAME_SIZE, Phys, Word},
    table::{FormatId, Prot, Space},
};

/// What the walkers of one table can do, and how far its addresses reach. Decided by the driver
/// from the capabilities of the hardware that is going to read the table.
///
/// What is beyond the format is cut to the format's; [`crate::IoTable::desc`] tells the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Width in bits of the input address.
    pub input_bits: u8,
    /// Width in bits of the output address.
    pub output_bits: u8,
    /// Levels of the walk; 0 for the fewest that hold `input_bits`. For formats that grow, levels
    /// to begin with.
    pub levels: u8,
    /// Which input addresses the table translates.
    pub space: Space,
    /// Leaf sizes that may be used: bit n set means 2^n bytes. The format's smallest page is
    /// always used.
    pub page_sizes: u64,
    /// Whether the walkers snoop the CPU's caches. Where they do not, the table is cleaned as it
    /// is written, and accessed and dirty bits that walkers would set are preset.
    pub coherent: bool,
    /// Whether the walkers were told to maintain accessed bits, for formats in which that is a
    /// choice.
    pub accessed: bool,
    /// Whether the walkers were told to maintain dirty bits too, for formats in which that is a
    /// choice of its own.
    pub dirty: bool,
    /// Whether the walkers can be made to snoop on [`Prot::SNOOP`].
    pub snoop: bool,
    /// Whether the walkers read memory types from entries, for formats in which that is an
    /// extension.
    pub memory_types: bool,
    /// Whether the walkers check execute permission, for formats in which that is an extension.
    pub execute: bool,
    /// What the walkers stand without an invalid entry in between, for formats in which that is an
    /// extension.
    pub hitless: Hitless,
}

/// Changes of leaf sizes that walkers stand while they use the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hitless {
    /// None.
    No,
    /// A leaf of several entries may become leaves of one, entry after entry.
    Entries,
    /// A table may take the place of a leaf too.
    Tables,
}

impl Default for Config {
    /// Everything that the format has, for walkers that snoop and have no extension.
    fn default() -> Config {
        Config {
            input_bits: 64,
            output_bits: 64,
            levels: 0,
            space: Space::Lower,
            page_sizes: u64::MAX,
            coherent: true,
            accessed: false,
            dirty: false,
            snoop: false,
            memory_types: false,
            execute: false,
            hitless: Hitless::No,
        }
    }
}

/// How a table treats the accessed and dirty bits of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessBits {
    /// The walker neither reads nor writes them.
    Ignored,
    /// The walker would write them but cannot: they are set from the start and say nothing.
    Preset,
    /// The walker sets them.
    Kept,
}

impl AccessBits {
    /// The treatment for walkers that do (`updated`) or do not update the bits. A walker that
    /// does not snoop cannot update them atomically (`[V]` 3.10).
    pub fn choose(updated: bool, coherent: bool) -> AccessBits {
        match (updated, coherent) {
            (false, _) => AccessBits::Ignored,
            (true, false) => AccessBits::Preset,
            (true, true) => AccessBits::Kept,
        }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Not present.
    Empty,
    /// Leads to the table at this address.
    Table(Phys),
    /// Maps memory, alone or together with its neighbours.
    Leaf {
        /// First address of the whole leaf.
        base: Phys,
        /// The leaf is 2^`size_bits` bytes.
        size_bits: u32,
    },
}

/// What software may do to a leaf that walkers use, without making it invalid in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPlace {
    /// Replace a leaf of one entry by a table that translates to the same.
    pub split: bool,
    /// Make a leaf of several entries as many leaves of one, one entry after the other.
    pub split_many: bool,
    /// Change permissions of a leaf of several entries, one entry after the other.
    pub permissions_of_many: bool,
}

impl InPlace {
    /// Everything.
    pub const ALL: InPlace = InPlace { split: true, split_many: true, permissions_of_many: true };
    /// Nothing but what [`Format::protect`] does to a single entry.
    pub const NONE: InPlace = InPlace { split: false, split_many: false, permissions_of_many: false };
}

/// A page-table format. See the module's documentation for how to write one.
pub trait Format: Copy + Send + Sync + 'static {
    /// One entry.
    type Word: Word;
    /// Its name.
    const ID: FormatId;
    /// The fewest levels of a walk.
    const MIN_LEVELS: usize;
    /// The most levels of a walk, at most [`crate::engine::MAX_LEVELS`].
    const MAX_LEVELS: usize;
    /// The smallest leaf is 2^`GRANULE_BITS` bytes.
    const GRANULE_BITS: u32;
    /// A table has 2^`TABLE_BITS` bytes. One that is smaller than a frame lies at its beginning.
    const TABLE_BITS: u32 = FRAME_SIZE.ilog2();
    /// How many more bits the root may translate than other tables.
    const ROOT_EXTRA_BITS: u32 = 0;
    /// Whether levels may be added above the root while the table is in use.
    const GROWS: bool = false;
    /// The input addresses that a table may be for. The first is the default.
    const SPACES: &'static [Space] = &[Space::Lower];
    /// The widest input address.
    const INPUT_BITS: u8;
    /// The widest output address.
    const OUTPUT_BITS: u8;
    /// Every leaf size that the format knows: bit n set means 2^n bytes.
    const LEAF_SIZES: u64;
    /// An entry with none of these bits is [`Entry::Empty`], any other is not.
    const PRESENT: Self::Word;

    /// The format with what `config` decides.
    fn new(config: &Config) -> Self;

    /// The leaf sizes that this table may have, of [`Format::LEAF_SIZES`].
    fn leaf_sizes(&self) -> u64 {
        Self::LEAF_SIZES
    }

    /// How this table treats accessed bits.
    fn access_bits(&self) -> AccessBits;

    /// How this table treats dirty bits, where that differs from accessed bits.
    #[inline]
    fn dirty_bits(&self) -> AccessBits {
        self.access_bits()
    }

    /// What may be done to leaves in use.
    fn in_place(&self) -> InPlace;

    /// An entry of a table at `level` spans 2^`shift(level)` bytes. Also asked for one level
    /// above the root, where it is the reach of the whole table.
    #[inline]
    fn shift(level: usize) -> u32 {
        Self::GRANULE_BITS + (level as u32 - 1) * (Self::TABLE_BITS - Self::Word::BYTES.ilog2())
    }

    /// The root of a walk with `levels` levels over `input_bits` bits has 2^`root_bits` bytes.
    fn root_bits(_input_bits: u8, _levels: usize) -> u32 {
        Self::TABLE_BITS + Self::ROOT_EXTRA_BITS
    }

    /// The bits that all leaves with permissions `prot` share; `None` where the format cannot
    /// express them.
    fn template(&self, prot: Prot) -> Option<Self::Word>;

    /// The entry at `level` that maps `phys` as part of a leaf of 2^`size_bits` bytes. For a leaf
    /// of several entries `phys` is what this one entry maps.
    fn leaf(&self, template: Self::Word, level: usize, phys: Phys, size_bits: u32) -> Self::Word;

    /// The entries of leaves of one entry each, for memory that continues, differ by the same number
    /// as long as the memory lies within an aligned block of 2^n bytes: then the engine adds where it
    /// would compose each.
    #[inline]
    fn linear_bits(&self) -> u32 {
        64
    }

    /// Whether entries of a table at `level`, above 1, are surely leaves, each of them: `all` has the
    /// bits that they have in common, `any` those that any has. Where this cannot tell, each is
    /// decoded.
    #[inline]
    fn only_leaves(&self, _level: usize, _all: Self::Word, _any: Self::Word) -> bool {
        false
    }

    /// The entry at `level` that leads to `table`.
    fn table(&self, level: usize, table: Phys) -> Self::Word;

    /// What the entry `w` of a table at `level` is.
    fn decode(&self, level: usize, w: Self::Word) -> Entry;

    /// The table that the entry `w` of a table at `level`, above 1, leads to. May say `None` of tables
    /// that this library does not write, where that is a test less than [`Format::decode`] takes:
    /// then that is asked.
    #[inline]
    fn child(&self, level: usize, w: Self::Word) -> Option<Phys> {
        match self.decode(level, w) {
            Entry::Table(table) => Some(table),
            _ => None,
        }
    }

    /// What the leaf entry `w` allows.
    fn prot(&self, w: Self::Word) -> Prot;

    /// The template of the leaf entry `w` of a table at `level`: what a leaf of the same
    /// permissions elsewhere begins with, together with the accessed and dirty bits that `w` has.
    fn attributes(&self, level: usize, w: Self::Word) -> Self::Word;

    /// The leaf entry `w` with the permissions of `template`: address, size, accessed and dirty
    /// bits stay. `None` where more than permissions would change and the manual wants an invalid
    /// entry in between.
    fn protect(&self, w: Self::Word, template: Self::Word) -> Option<Self::Word>;

    /// Whether a walker used the leaf entry `w`.
    fn accessed(&self, w: Self::Word) -> bool;

    /// `w` as if no walker had used it.
    fn clear_accessed(&self, w: Self::Word) -> Self::Word;

    /// Whether a walker wrote through the leaf entry `w`.
    fn dirty(&self, w: Self::Word) -> bool;

    /// `w` as if no walker had written through it.
    fn clear_dirty(&self, w: Self::Word) -> Self::Word;

    /// Whether the table entry `w` is known to be visible to walkers that do not snoop.
    fn settled(&self, w: Self::Word) -> bool;

    /// `w`, a table entry, marked as visible, by a bit that walkers ignore. A format that has no
    /// such bit gives back `w`: then every walk by software cleans the entry.
    fn settle(&self, w: Self::Word) -> Self::Word;

    /// An entry that decodes as empty and carries `next`. Tables that wait for the last lookup
    /// to end are chained through such entries.
    fn parked(next: Option<Phys>) -> Self::Word;

    /// What [`Format::parked`] stored.
    fn parked_next(w: Self::Word) -> Option<Phys>;
}
