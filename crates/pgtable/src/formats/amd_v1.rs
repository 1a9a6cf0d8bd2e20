//! AMD's host tables, called v1: one to six levels, leaves of any power of two (AMD 48882, 2.2.3,
//! which was not at hand: the bits are those in which Linux, Xen, QEMU and VirtualBox agree).
//!
//! Every entry says the level of the table that it leads to, so the root may move up while the
//! table is in use: a driver writes root and mode of the device-table entry when
//! [`crate::IoTable::top`] changed. Levels are never skipped.
//!
//! A leaf that is larger than an entry's span is written into every entry that it covers, each with
//! the leaf's address and size. There is no execute permission and no privilege, so [`Prot::EXEC`]
//! and [`Prot::PRIV`] are refused. [`Config::accessed`] and [`Config::dirty`] stand for the
//! device-table entry's HAD. Linux leaves out leaves of 512 GiB because of an erratum: a driver
//! takes them out of [`Config::page_sizes`].

use crate::{
    format::{AccessBits, Config, Entry, Format, Hitless, InPlace},
    mem::Phys,
    table::{FormatId, Prot},
};

/// The name of [`AmdV1`].
pub const AMD_V1: FormatId = FormatId("amd-v1");

/// PR: Present (2.2.3, "I/O Page Translation Entry").
const PR: u64 = 1;
/// Ours, among the ignored bits 4:1: the entry was cleaned to memory. (So are 8:7 and 63; 58:52 are
/// reserved, and 60:52 in entries that lead to a table.)
const SW_SETTLED: u64 = 1 << 1;
/// Ours, among the ignored bits 4:1: the caller mapped device memory.
const SW_MMIO: u64 = 1 << 2;
/// A: Accessed.
const A: u64 = 1 << 5;
/// D: Dirty.
const D: u64 = 1 << 6;
/// Next Level: the level of the table that the entry leads to, 0 for a leaf of one entry, 7 for a
/// leaf whose size is in the address. The highest level, 6, has no leaves.
const NEXT_LEVEL: u64 = 7 << 9;
const SIZED: u64 = 7 << 9;
/// Address: bits 51:12. Where it says the size, the lowest clear bit stands for half of it, and all
/// bits below are set.
const ADDR: u64 = (1 << 52) - (1 << 12);
/// FC: Force Coherent, in leaves: accesses snoop whatever the request asks for.
const FC: u64 = 1 << 60;
/// IR and IW: reads and writes are allowed, which the entries of all levels and the device-table
/// entry have to agree on.
const IR: u64 = 1 << 61;
const IW: u64 = 1 << 62;
/// Ours, in an entry that is not present: an address is kept in it.
const SW_PARKED: u64 = 1 << 3;

/// AMD's host tables.
pub type AmdV1 = Amd<12>;
/// The same with pages and tables of 2 KiB, and addresses counted in such pages. No hardware walks
/// it: it is there to find code that takes the page size for granted.
pub type AmdV1Mock = Amd<11>;

/// AMD's host tables, with pages and tables of 2^`G` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Amd<const G: u32> {
    access: AccessBits,
    dirty: AccessBits,
    hitless: Hitless,
}

impl<const G: u32> Amd<G> {
    /// An address as entries have it: counted in pages, from bit 12 on.
    #[inline]
    fn encode(phys: u64) -> u64 {
        phys >> G << 12
    }

    #[inline]
    fn address(w: u64) -> u64 {
        (w & ADDR) >> 12 << G
    }
}

impl<const G: u32> Format for Amd<G> {
    type Word = u64;
    const ID: FormatId = if G == 12 { AMD_V1 } else { FormatId("amd-v1-mock") };
    const MIN_LEVELS: usize = 1;
    const MAX_LEVELS: usize = 6;
    const GRANULE_BITS: u32 = G;
    const TABLE_BITS: u32 = G;
    const GROWS: bool = true;
    const INPUT_BITS: u8 = 64;
    const OUTPUT_BITS: u8 = (40 + G) as u8;
    const LEAF_SIZES: u64 = (1 << Self::OUTPUT_BITS) - (1 << G);
    const PRESENT: u64 = PR;

    fn new(config: &Config) -> Self {
        let access = AccessBits::choose(config.accessed, config.coherent);
        Amd {
            access,
            dirty: if config.dirty { access } else { AccessBits::Ignored },
            hitless: config.hitless,
        }
    }

    #[inline]
    fn access_bits(&self) -> AccessBits {
        self.access
    }

    #[inline]
    fn dirty_bits(&self) -> AccessBits {
        self.dirty
    }

    /// Nothing promises that page sizes can change under a walker.
    fn in_place(&self) -> InPlace {
        InPlace {
            split: self.hitless >= Hitless::Tables,
            split_many: self.hitless >= Hitless::Entries,
            permissions_of_many: true,
        }
    }

    #[inline]
    fn template(&self, prot: Prot) -> Option<u64> {
        const RW: Prot = Prot::READ.union(Prot::WRITE);
        const KNOWN: Prot = RW.union(Prot::SNOOP).union(Prot::MMIO);
        if !prot.intersects(RW) || !KNOWN.contains(prot) {
            return None;
        }
        let bit = |p: Prot, bits: u64| if prot.contains(p) { bits } else { 0 };
        let preset = |bits: AccessBits, bit| if bits == AccessBits::Preset { bit } else { 0 };
        Some(
            PR | bit(Prot::READ, IR)
                | bit(Prot::WRITE, IW)
                | bit(Prot::SNOOP, FC)
                | bit(Prot::MMIO, SW_MMIO)
                | preset(self.access, A)
                | preset(self.dirty, D),
        )
    }

    #[inline]
    fn leaf(&self, template: u64, level: usize, phys: Phys, size_bits: u32) -> u64 {
        if size_bits > Self::shift(level) {
            // The lowest clear bit of the address says the size: the bits below it are set.
            let base = phys.0 & !((1 << size_bits) - 1);
            let size = ((1u64 << (size_bits - 1)) - 1) >> G << 12;
            template | Self::encode(base) | size | SIZED
        } else {
            template | Self::encode(phys.0)
        }
    }

    #[inline]
    fn table(&self, level: usize, table: Phys) -> u64 {
        Self::encode(table.0) | (level as u64 - 1) << 9 | IR | IW | PR
    }

    #[inline]
    fn decode(&self, level: usize, w: u64) -> Entry {
        if w & PR == 0 {
            return Entry::Empty;
        }
        let shift = Self::shift(level);
        let address = Self::address(w);
        let next = w & NEXT_LEVEL;
        let size_bits = if next == (level as u64 - 1) << 9 && level > 1 {
            return Entry::Table(Phys(address));
        } else if next == SIZED {
            let bits = (address >> G).trailing_ones() + G + 1;
            // What does not belong to this level was not written by this library.
            bits.clamp(shift, shift + (G - 4))
        } else if next == 0 {
            shift
        } else {
            // Up, sideways, or past a level, which this library does not write.
            return Entry::Empty;
        };
        Entry::Leaf { base: Phys(address & !((1 << size_bits) - 1)), size_bits }
    }

    #[inline]
    fn only_leaves(&self, _level: usize, all: u64, any: u64) -> bool {
        all & PR != 0 && (any & NEXT_LEVEL == 0 || all & NEXT_LEVEL == SIZED)
    }

    #[inline]
    fn prot(&self, w: u64) -> Prot {
        let mut prot = Prot::empty();
        prot.set(Prot::READ, w & IR != 0);
        prot.set(Prot::WRITE, w & IW != 0);
        prot.set(Prot::SNOOP, w & FC != 0);
        prot.set(Prot::MMIO, w & SW_MMIO != 0);
        prot
    }

    #[inline]
    fn attributes(&self, _level: usize, w: u64) -> u64 {
        w & (PR | IR | IW | FC | A | D | SW_MMIO)
    }

    #[inline]
    fn protect(&self, w: u64, template: u64) -> Option<u64> {
        const PROT: u64 = IR | IW | FC | SW_MMIO;
        Some(w & !PROT | template & PROT)
    }

    #[inline]
    fn accessed(&self, w: u64) -> bool {
        w & A != 0
    }

    #[inline]
    fn clear_accessed(&self, w: u64) -> u64 {
        w & !A
    }

    #[inline]
    fn dirty(&self, w: u64) -> bool {
        w & D != 0
    }

    #[inline]
    fn clear_dirty(&self, w: u64) -> u64 {
        w & !D
    }

    #[inline]
    fn settled(&self, w: u64) -> bool {
        w & SW_SETTLED != 0
    }

    #[inline]
    fn settle(&self, w: u64) -> u64 {
        w | SW_SETTLED
    }

    fn parked(next: Option<Phys>) -> u64 {
        next.map_or(0, |p| Self::encode(p.0) | SW_PARKED)
    }

    fn parked_next(w: u64) -> Option<Phys> {
        (w & SW_PARKED != 0).then_some(Phys(Self::address(w)))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{empty, golden, golden_table},
        *,
    };

    const RW: Prot = Prot::READ.union(Prot::WRITE);

    fn format<const G: u32>(accessed: bool) -> Amd<G> {
        Amd::new(&Config { accessed, dirty: accessed, ..Config::default() })
    }

    #[test]
    fn golden_leaves() {
        let f = format::<12>(false);
        let phys = Phys(0x1234_5600_0000);
        assert_eq!(golden(&f, 1, 12, phys, RW), 0x6000_1234_5600_0001);
        assert_eq!(golden(&f, 1, 12, phys, Prot::READ), 0x2000_1234_5600_0001);
        assert_eq!(golden(&f, 1, 12, phys, Prot::WRITE), 0x4000_1234_5600_0001);
        assert_eq!(golden(&f, 1, 12, phys, RW | Prot::SNOOP), 0x7000_1234_5600_0001);
        assert_eq!(golden(&f, 1, 12, phys, RW | Prot::MMIO), 0x6000_1234_5600_0005);
        assert_eq!(golden(&f, 1, 12, Phys(0), RW), 0x6000_0000_0000_0001);
        assert_eq!(golden(&f, 1, 12, Phys((1 << 52) - 4096), RW), 0x600f_ffff_ffff_f001);
        assert_eq!(golden(&f, 2, 21, phys, RW), 0x6000_1234_5600_0001);
        assert_eq!(golden(&f, 3, 30, Phys(0x40_0000_0000), RW), 0x6000_0040_0000_0001);
    }

    #[test]
    fn golden_leaves_of_any_power_of_two() {
        let f = format::<12>(false);
        // The size is one more than the position of the lowest clear address bit.
        assert_eq!(golden(&f, 1, 13, Phys(0x8000), RW), 0x6000_0000_0000_8e01);
        assert_eq!(golden(&f, 1, 14, Phys(0x8000), RW), 0x6000_0000_0000_9e01);
        assert_eq!(golden(&f, 1, 15, Phys(0x8000), RW), 0x6000_0000_0000_be01);
        assert_eq!(golden(&f, 1, 20, Phys(0x10_0000), RW), 0x6000_0000_0017_fe01);
        assert_eq!(golden(&f, 2, 22, Phys(0x40_0000), RW), 0x6000_0000_005f_fe01);
        assert_eq!(golden(&f, 2, 29, Phys(0x2000_0000), RW), 0x6000_0000_2fff_fe01);
        assert_eq!(golden(&f, 5, 51, Phys(0x8_0000_0000_0000), RW), 0x600b_ffff_ffff_fe01);
        // Every entry of a leaf is the same.
        assert_eq!(golden(&f, 1, 14, Phys(0xb000), RW), 0x6000_0000_0000_9e01);
    }

    #[test]
    fn golden_tables_say_the_level_below() {
        let f = format::<12>(true);
        for (level, w) in [(2, 0x6000_0000_0000_7201), (3, 0x6000_0000_0000_7401), (6, 0x6000_0000_0000_7a01)]
        {
            assert_eq!(golden_table(&f, level, Phys(0x7000)), w);
        }
    }

    #[test]
    fn accessed_and_dirty() {
        let kept = format::<12>(true);
        let w = golden(&kept, 1, 12, Phys(0x5000), RW);
        assert_eq!(w, 0x6000_0000_0000_5001);
        assert!(!kept.accessed(w) && !kept.dirty(w));
        assert_eq!((kept.clear_accessed(w | 0x60), kept.clear_dirty(w | 0x60)), (w | 0x40, w | 0x20));
        let c = Config { accessed: true, dirty: true, coherent: false, ..Config::default() };
        let preset = AmdV1::new(&c);
        assert_eq!(golden(&preset, 1, 12, Phys(0x5000), RW), 0x6000_0000_0000_5061);
        assert_eq!(format::<12>(false).dirty_bits(), AccessBits::Ignored);
    }

    #[test]
    fn the_mock_counts_in_pages_of_2_kib() {
        let f = format::<11>(false);
        assert_eq!(golden(&f, 1, 11, Phys(0x800), RW), 0x6000_0000_0000_1001);
        assert_eq!(golden(&f, 1, 12, Phys(0x1000), RW), 0x6000_0000_0000_2e01);
        assert_eq!(golden(&f, 2, 19, Phys(0x8_0000), RW), 0x6000_0000_0010_0001);
        assert_eq!(golden_table(&f, 2, Phys(0x7000)), 0x6000_0000_0000_e201);
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let f = format::<12>(false);
        for prot in [Prot::empty(), Prot::SNOOP, RW | Prot::EXEC, RW | Prot::PRIV, RW | Prot::UNCACHED] {
            assert_eq!(f.template(prot), None, "{prot:?}");
        }
    }

    #[test]
    fn what_leads_to_another_level_than_the_next_is_nothing() {
        let f = format::<12>(true);
        for level in 1..=6 {
            for next in 1..=6 {
                let want = if next == level - 1 { Entry::Table(Phys(0x7000)) } else { Entry::Empty };
                assert_eq!(f.decode(level, 0x6000_0000_0000_7001 | (next as u64) << 9), want);
            }
        }
    }

    #[test]
    fn entries_that_are_not_present_are_empty() {
        empty(&format::<12>(true), &[!PR], &[0, 0x7000, (1 << 52) - 4096]);
        empty(&format::<11>(true), &[!PR], &[0, 0x7000]);
    }

    #[test]
    fn sizes_that_no_level_has_are_no_leaves_of_other_tables() {
        let f = format::<12>(true);
        // 2 MiB said in a table of pages, and all sizes at once.
        for w in [0x600f_ffff_ffff_fe01, 0x6000_0000_000f_fe01] {
            for level in 1..=6 {
                let Entry::Leaf { size_bits, .. } = f.decode(level, w) else { panic!("a leaf") };
                assert!(size_bits >= Amd::<12>::shift(level) && size_bits < Amd::<12>::shift(level + 1));
            }
        }
    }
}
