//! Arm's VMSAv8-64 descriptors, stage 1 and stage 2, with granules of 4, 16 and 64 KiB (Arm DDI
//! 0487 issue M.a, D8.3.1), as an SMMUv3 walks them (`[S]` 3.4; `[S]` is Arm IHI 0070 issue G.b).
//!
//! Levels count from 1 here, which is Arm's level 3; Arm's level 0 is 4, and level -1 is 5.
//!
//! With output or input addresses of more than 48 bits, granules of 4 and 16 KiB take the 52-bit
//! form of the descriptors (DS set, FEAT_LPA2): it has blocks at one level more and no shareability
//! field, which the walker then takes from the table's own configuration. A driver sets CD.DS or
//! STE.S2DS where [`crate::FormatDesc`] has such a width (`[S]` 5.2, 5.4).
//!
//! The level that a walk begins with follows from the region size, TnSZ or S2T0SZ: at stage 1 from
//! that alone (tables D8-18, D8-28 and D8-37), at stage 2 within limits (tables D8-20 to D8-24, D8-30
//! to D8-33, D8-39 to D8-41). So leave the number of levels to the table. For a table of more, or of
//! so few input bits that TnSZ would pass 39 (`[S]` 5.4, T0SZ), program the region of a level's
//! first size, which is larger than the table's: the rest of it is never mapped.
//!
//! Memory is normal and write-back cacheable; [`Prot::UNCACHED`] makes it normal and non-cacheable,
//! [`Prot::MMIO`] Device-nGnRE. A stage 1 names types by index: the context descriptor's MAIR has
//! to be [`ARM_MAIR`]. It is for the regimes that have two privilege levels, with an ASID.

use super::arm_stages::{DBM, SH};
pub use super::arm_stages::{Stage, Stage1, Stage2};
use crate::{
    format::{AccessBits, Config, Entry, Format, Hitless, InPlace},
    mem::Phys,
    table::{FormatId, Prot, Space},
};
use core::marker::PhantomData;

/// Memory attributes by index, for stage 1 tables: 0 is normal non-cacheable, 1 normal write-back
/// with read and write allocation, 2 Device-nGnRE (Arm DDI 0487, MAIR_EL1; `[S]` 5.4, MAIR0).
pub const ARM_MAIR: u64 = 0x0004_ff44;

/// Bit 0: the descriptor is valid (table D8-48).
const VALID: u64 = 1;
/// Bit 1: a table above level 3, a page at level 3 (table D8-48).
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AF: Access flag (D8.5.1). Where nobody sets it, an entry without it faults.
const AF: u64 = 1 << 10;
/// Contiguous (D8.7.1).
const CONTIGUOUS: u64 = 1 << 52;
/// Ours, ignored in tables (58:51, tables D8-50 and D8-51): the entry was cleaned to memory.
const SW_SETTLED: u64 = 1 << 55;
/// Ours, left to software in leaves (58:56, tables D8-52 and D8-53): written through before write
/// permission was taken away, which is where the walker notes it.
const SW_DIRTY: u64 = 1 << 56;
/// Ours, in an invalid descriptor, of which 51:1 are ignored (tables D8-54 and D8-55): an address
/// is kept in it.
const SW_PARKED: u64 = 1 << 1;

/// Stage 1 with a granule of 2^`G` bytes: 12, 14 or 16.
pub type ArmStage1<const G: u32> = Vmsa<Stage1, G>;
/// Stage 2 with a granule of 2^`G` bytes: 12, 14 or 16. Up to 16 root tables are concatenated where
/// that saves a level (D8.2.2).
pub type ArmStage2<const G: u32> = Vmsa<Stage2, G>;

/// VMSAv8-64 descriptors. [`Config::accessed`] stands for HA, [`Config::dirty`] for HD
/// (HTTU in IDR0), [`Config::hitless`] for the support level of changes of size (BBML in IDR3):
/// level 1 is [`Hitless::Entries`], level 2 [`Hitless::Tables`]; where other walkers share the
/// table, the lowest of all (`[S]` 3.21.1.1).
#[derive(Clone, Copy, Debug)]
pub struct Vmsa<S: Stage, const G: u32> {
    access: AccessBits,
    dirty: AccessBits,
    /// DS, or for the 64 KiB granule FEAT_LPA.
    wide: bool,
    hitless: Hitless,
    stage: PhantomData<S>,
}

impl<S: Stage, const G: u32> Vmsa<S, G> {
    /// Output address bits that are at their place.
    const ADDR: u64 = {
        assert!(G == 12 || G == 14 || G == 16, "granules are 4, 16 and 64 KiB");
        (1 << 48) - (1 << G)
    };
    /// Bits 49:48, where DS is set.
    const ADDR_49_48: u64 = 3 << 48;

    /// An address as descriptors have it.
    #[inline]
    fn encode(&self, phys: Phys) -> u64 {
        if !self.wide {
            phys.0
        } else if G == 16 {
            phys.0 & Self::ADDR | (phys.0 >> 48 & 0xf) << 12
        } else {
            phys.0 & (Self::ADDR | Self::ADDR_49_48) | (phys.0 >> 50 & 3) << 8
        }
    }

    #[inline]
    fn address(&self, w: u64) -> u64 {
        if !self.wide {
            w & Self::ADDR
        } else if G == 16 {
            w & Self::ADDR | (w >> 12 & 0xf) << 48
        } else {
            w & (Self::ADDR | Self::ADDR_49_48) | (w >> 8 & 3) << 50
        }
    }

    /// How many bits larger a contiguous leaf at a level is (table D8-104).
    #[inline]
    const fn contiguous_bits(level: usize) -> u32 {
        match (G, level) {
            (12, _) => 4,
            (14, 1) => 7,
            _ => 5,
        }
    }

    /// The shareability field, where there is one.
    #[inline]
    fn sh(&self) -> u64 {
        if self.wide && G != 16 { 0 } else { SH }
    }
}

impl<S: Stage, const G: u32> Format for Vmsa<S, G> {
    type Word = u64;
    const ID: FormatId = FormatId(match (S::SECOND, G) {
        (false, 12) => "arm-s1-4k",
        (false, 14) => "arm-s1-16k",
        (false, _) => "arm-s1-64k",
        (true, 12) => "arm-s2-4k",
        (true, 14) => "arm-s2-16k",
        (true, _) => "arm-s2-64k",
    });
    const MIN_LEVELS: usize = 2;
    const MAX_LEVELS: usize = if G == 12 {
        5
    } else if G == 14 {
        4
    } else {
        3
    };
    const GRANULE_BITS: u32 = G;
    const TABLE_BITS: u32 = G;
    const ROOT_EXTRA_BITS: u32 = if S::SECOND { 4 } else { 0 };
    const SPACES: &'static [Space] = if S::SECOND { &[Space::Lower] } else { &[Space::Lower, Space::Upper] };
    const INPUT_BITS: u8 = 52;
    const OUTPUT_BITS: u8 = 52;
    /// Pages, blocks, and contiguous runs of either (tables D8-17, D8-27, D8-36 and D8-104).
    const LEAF_SIZES: u64 = match G {
        12 => 1 << 12 | 1 << 16 | 1 << 21 | 1 << 25 | 1 << 30 | 1 << 34 | 1 << 39,
        14 => 1 << 14 | 1 << 21 | 1 << 25 | 1 << 30 | 1 << 36,
        _ => 1 << 16 | 1 << 21 | 1 << 29 | 1 << 34 | 1 << 42,
    };
    const PRESENT: u64 = VALID;

    fn new(config: &Config) -> Self {
        let access = AccessBits::choose(config.accessed, config.coherent);
        let wide = config.output_bits.min(Self::OUTPUT_BITS) > 48
            || (G != 16 && config.input_bits.min(Self::INPUT_BITS) > 48);
        Vmsa {
            access,
            dirty: if config.dirty { access } else { AccessBits::Ignored },
            wide,
            hitless: config.hitless,
            stage: PhantomData,
        }
    }

    fn root_bits(input_bits: u8, levels: usize) -> u32 {
        // A root of fewer entries is aligned to its own size, which a frame always is.
        (u32::from(input_bits).saturating_sub(Self::shift(levels)) + 3).max(12)
    }

    fn leaf_sizes(&self) -> u64 {
        // Blocks one level higher come with 52-bit descriptors, and are never contiguous.
        let largest = match G {
            12 => 1 << 39,
            14 => 1 << 36,
            _ => 1 << 42,
        };
        if self.wide { Self::LEAF_SIZES } else { Self::LEAF_SIZES & !largest }
    }

    #[inline]
    fn access_bits(&self) -> AccessBits {
        self.access
    }

    #[inline]
    fn dirty_bits(&self) -> AccessBits {
        self.dirty
    }

    /// A change of size goes through an invalid descriptor (D8.17.1), but that of the Contiguous bit
    /// from level 1 on (D8.17.2; `[S]` 3.21.1.2), and all from level 2 on (`[S]` 3.21.1.3). What level
    /// 1 has besides needs an invalidation half-way, between nT and the table. Contiguous entries
    /// that differ in permissions are used each for all from level 1 on (D8.7.1.1); below that a
    /// mixture of them is not excluded.
    fn in_place(&self) -> InPlace {
        let entries = self.hitless >= Hitless::Entries;
        InPlace { split: self.hitless >= Hitless::Tables, split_many: entries, permissions_of_many: entries }
    }

    #[inline]
    fn template(&self, prot: Prot) -> Option<u64> {
        let w = S::template(prot, self.dirty == AccessBits::Kept)?;
        let accessed = if self.access == AccessBits::Kept { 0 } else { AF };
        Some(w & (!SH | self.sh()) | accessed)
    }

    #[inline]
    fn leaf(&self, template: u64, level: usize, phys: Phys, size_bits: u32) -> u64 {
        let kind = if level == 1 { VALID | TABLE_OR_PAGE } else { VALID };
        let contiguous = if size_bits > Self::shift(level) { CONTIGUOUS } else { 0 };
        template | self.encode(phys) | kind | contiguous
    }

    /// The highest bits of 52 are not in their place.
    #[inline]
    fn linear_bits(&self) -> u32 {
        match (self.wide, G) {
            (false, _) => 64,
            (true, 16) => 48,
            (true, _) => 50,
        }
    }

    #[inline]
    fn only_leaves(&self, _level: usize, all: u64, any: u64) -> bool {
        all & VALID != 0 && any & TABLE_OR_PAGE == 0
    }

    #[inline]
    fn table(&self, _level: usize, table: Phys) -> u64 {
        self.encode(table) | VALID | TABLE_OR_PAGE
    }

    #[inline]
    fn decode(&self, level: usize, w: u64) -> Entry {
        if w & VALID == 0 {
            return Entry::Empty;
        }
        let address = self.address(w);
        match (level > 1, w & TABLE_OR_PAGE != 0) {
            (true, true) => return Entry::Table(Phys(address & !((1 << G) - 1))),
            // Reserved, treated as invalid (table D8-48).
            (false, false) => return Entry::Empty,
            _ => {}
        }
        let more = if w & CONTIGUOUS != 0 { Self::contiguous_bits(level) } else { 0 };
        let size_bits = Self::shift(level) + more;
        Entry::Leaf { base: Phys(address & !((1 << size_bits) - 1)), size_bits }
    }

    #[inline]
    fn child(&self, _level: usize, w: u64) -> Option<Phys> {
        let table = w & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE;
        table.then_some(Phys(self.address(w) & !((1 << G) - 1)))
    }

    #[inline]
    fn prot(&self, w: u64) -> Prot {
        S::prot(w)
    }

    #[inline]
    fn attributes(&self, _level: usize, w: u64) -> u64 {
        w & (S::TYPE | S::PERMISSIONS | S::OTHER | self.sh() | AF | SW_DIRTY)
    }

    #[inline]
    fn protect(&self, w: u64, template: u64) -> Option<u64> {
        // A change of memory type goes through an invalid descriptor (D8.17.1).
        if (w ^ template) & (S::TYPE | self.sh()) != 0 {
            return None;
        }
        let new = w & !S::PERMISSIONS | template & S::PERMISSIONS;
        Some(match (self.dirty(w), template & DBM != 0) {
            (true, true) => S::set_writable(new, true),
            (true, false) => new | SW_DIRTY,
            (false, _) => new,
        })
    }

    #[inline]
    fn accessed(&self, w: u64) -> bool {
        w & AF != 0
    }

    #[inline]
    fn clear_accessed(&self, w: u64) -> u64 {
        w & !AF
    }

    /// Writable with DBM is dirty, not writable with DBM is clean (D8.5.2.1; `[S]` 3.13.3.1).
    #[inline]
    fn dirty(&self, w: u64) -> bool {
        w & SW_DIRTY != 0 || w & DBM != 0 && S::is_writable(w)
    }

    #[inline]
    fn clear_dirty(&self, w: u64) -> u64 {
        let w = w & !SW_DIRTY;
        if w & DBM != 0 { S::set_writable(w, false) } else { w }
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
        next.map_or(0, |p| p.0 | SW_PARKED)
    }

    fn parked_next(w: u64) -> Option<Phys> {
        (w & SW_PARKED != 0).then_some(Phys(w & !0xfff))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{empty, golden, golden_table},
        *,
    };

    const RW: Prot = Prot::READ.union(Prot::WRITE);
    const PHYS: Phys = Phys(0x1234_5600_0000);

    fn narrow() -> Config {
        Config { input_bits: 48, output_bits: 48, ..Config::default() }
    }

    fn format<S: Stage, const G: u32>(config: Config) -> Vmsa<S, G> {
        Vmsa::new(&config)
    }

    #[test]
    fn golden_pages_of_stage_1() {
        let f = format::<Stage1, 12>(narrow());
        // PXN and UXN, nG, AF, inner shareable, AP[1], AttrIndx 1.
        assert_eq!(golden(&f, 1, 12, PHYS, RW), 0x0060_1234_5600_0f47);
        assert_eq!(golden(&f, 1, 12, PHYS, Prot::READ), 0x0060_1234_5600_0fc7);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::PRIV), 0x0060_1234_5600_0f07);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::EXEC), 0x0000_1234_5600_0f47);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::EXEC | Prot::PRIV), 0x0040_1234_5600_0f07);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::UNCACHED), 0x0060_1234_5600_0e43);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::MMIO), 0x0060_1234_5600_0e4b);
    }

    #[test]
    fn golden_pages_of_stage_2() {
        let f = format::<Stage2, 12>(narrow());
        // XN, AF, inner shareable, S2AP, MemAttr 15.
        assert_eq!(golden(&f, 1, 12, PHYS, RW), 0x0040_1234_5600_07ff);
        assert_eq!(golden(&f, 1, 12, PHYS, Prot::READ), 0x0040_1234_5600_077f);
        assert_eq!(golden(&f, 1, 12, PHYS, Prot::WRITE), 0x0040_1234_5600_07bf);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::EXEC), 0x0000_1234_5600_07ff);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::UNCACHED), 0x0040_1234_5600_06d7);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::MMIO), 0x0040_1234_5600_06c7);
    }

    #[test]
    fn golden_leaves_of_every_size() {
        let f = format::<Stage2, 12>(narrow());
        let at = |level, size_bits| golden(&f, level, size_bits, Phys(1 << 40), RW);
        assert_eq!(at(1, 16), 0x0050_0100_0000_07ff);
        assert_eq!(at(2, 21), 0x0040_0100_0000_07fd);
        assert_eq!(at(2, 25), 0x0050_0100_0000_07fd);
        assert_eq!(at(3, 30), 0x0040_0100_0000_07fd);
        assert_eq!(at(3, 34), 0x0050_0100_0000_07fd);
        let f = format::<Stage1, 14>(narrow());
        let at = |level, size_bits| golden(&f, level, size_bits, Phys(1 << 40), RW);
        assert_eq!(at(1, 14), 0x0060_0100_0000_0f47);
        assert_eq!(at(1, 21), 0x0070_0100_0000_0f47);
        assert_eq!(at(2, 25), 0x0060_0100_0000_0f45);
        assert_eq!(at(2, 30), 0x0070_0100_0000_0f45);
        let f = format::<Stage1, 16>(narrow());
        let at = |level, size_bits| golden(&f, level, size_bits, Phys(1 << 40), RW);
        assert_eq!(at(1, 16), 0x0060_0100_0000_0f47);
        assert_eq!(at(1, 21), 0x0070_0100_0000_0f47);
        assert_eq!(at(2, 29), 0x0060_0100_0000_0f45);
        assert_eq!(at(2, 34), 0x0070_0100_0000_0f45);
        // The entries of a contiguous leaf have addresses of their own.
        let f = format::<Stage2, 12>(narrow());
        assert_eq!(golden(&f, 1, 16, Phys(0x5_3000), RW), 0x0050_0000_0005_37ff);
    }

    #[test]
    fn golden_addresses_of_52_bits() {
        let wide = Config::default();
        let top = Phys((1 << 52) - (1 << 16));
        // Granules of 4 and 16 KiB: 51:50 in place of the shareability, 49:48 in their place.
        let f = format::<Stage2, 12>(wide);
        assert_eq!(golden(&f, 1, 12, top, RW), 0x0043_ffff_ffff_07ff);
        assert_eq!(golden(&f, 4, 39, Phys(0xc_0000_0000_0000), RW), 0x0040_0000_0000_07fd);
        assert_eq!(golden_table(&f, 2, top), 0x0003_ffff_ffff_0303);
        let f = format::<Stage1, 14>(wide);
        assert_eq!(golden(&f, 1, 14, Phys(0x4_0000_0000_4000), RW), 0x0060_0000_0000_4d47);
        assert_eq!(golden(&f, 3, 36, Phys(0x1_0000_0000_0000), RW), 0x0061_0000_0000_0c45);
        // 64 KiB: 51:48 in bits 15:12.
        let f = format::<Stage1, 16>(wide);
        assert_eq!(golden(&f, 1, 16, top, RW), 0x0060_ffff_ffff_ff47);
        assert_eq!(golden(&f, 3, 42, Phys(0x9_0000_0000_0000), RW), 0x0060_0000_0000_9f45);
        assert_eq!(golden_table(&f, 2, Phys(0xa_0000_0007_0000)), 0x0000_0000_0007_a003);
    }

    #[test]
    fn blocks_of_the_next_level_come_with_52_bits() {
        let leaves = |c| format::<Stage1, 12>(c).leaf_sizes() >> 39;
        assert_eq!((leaves(narrow()), leaves(Config::default())), (0, 1));
        let leaves = |c| format::<Stage2, 16>(c).leaf_sizes() >> 42;
        assert_eq!((leaves(narrow()), leaves(Config::default())), (0, 1));
    }

    #[test]
    fn golden_tables() {
        for level in 2..=4 {
            assert_eq!(golden_table(&format::<Stage1, 12>(narrow()), level, Phys(0x7000)), 0x7003);
            assert_eq!(golden_table(&format::<Stage2, 16>(narrow()), level, Phys(0x7_0000)), 0x7_0003);
        }
    }

    #[test]
    fn dirty_is_writable_with_the_modifier() {
        let c = Config { accessed: true, dirty: true, ..narrow() };
        let f = format::<Stage1, 12>(c);
        let w = golden(&f, 1, 12, PHYS, RW);
        assert_eq!(w, 0x0068_1234_5600_0bc7, "DBM, read-only, no AF");
        assert!(!f.dirty(w) && !f.accessed(w));
        let written = 0x0068_1234_5600_0f47;
        assert!(f.dirty(written) && f.accessed(written));
        assert_eq!((f.prot(written), f.clear_dirty(written)), (RW, w | AF));
        let read = f.template(Prot::READ).unwrap();
        let revoked = 0x0160_1234_5600_0fc7;
        assert_eq!(f.protect(written, read), Some(revoked), "what was written stays known");
        assert!(f.dirty(revoked));
        assert_eq!(f.clear_dirty(revoked), revoked & !SW_DIRTY);
        assert_eq!(f.protect(revoked, f.template(RW).unwrap()), Some(0x0168_1234_5600_0f47));
        let privileged = f.template(RW | Prot::PRIV).unwrap();
        assert_eq!(f.protect(written, privileged), Some(0x0068_1234_5600_0f07), "it stays dirty");

        let f = format::<Stage2, 12>(c);
        let w = golden(&f, 1, 12, PHYS, RW);
        assert_eq!(w, 0x0048_1234_5600_037f);
        assert!(f.dirty(w | 0x80) && !f.dirty(w));
        assert_eq!(f.clear_dirty(w | 0x80), w);
        // Read-only pages are never dirty, and a walker that only keeps AF is no reason for DBM.
        assert!(!f.dirty(golden(&f, 1, 12, PHYS, Prot::READ)));
        let f = format::<Stage2, 12>(Config { accessed: true, ..narrow() });
        assert_eq!(golden(&f, 1, 12, PHYS, RW), 0x0040_1234_5600_03ff);
        assert_eq!(f.dirty_bits(), AccessBits::Ignored);
    }

    #[test]
    fn memory_types_do_not_change_in_place() {
        let f = format::<Stage2, 12>(narrow());
        let w = golden(&f, 1, 12, PHYS, RW);
        assert_eq!(f.protect(w, f.template(RW | Prot::MMIO).unwrap()), None);
        assert_eq!(f.in_place(), InPlace::NONE);
        let level = |hitless| format::<Stage2, 12>(Config { hitless, ..narrow() }).in_place();
        assert_eq!(level(Hitless::Tables), InPlace::ALL);
        assert_eq!(level(Hitless::Entries), InPlace { split: false, ..InPlace::ALL });
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let f = format::<Stage1, 12>(narrow());
        for prot in [Prot::empty(), Prot::WRITE, RW | Prot::SNOOP, RW | Prot::FORMAT1] {
            assert_eq!(f.template(prot), None, "{prot:?}");
        }
        let f = format::<Stage2, 12>(narrow());
        for prot in [Prot::empty(), Prot::EXEC, RW | Prot::SNOOP, RW | Prot::PRIV] {
            assert_eq!(f.template(prot), None, "{prot:?}");
        }
    }

    #[test]
    fn invalid_descriptors_are_empty() {
        empty(&format::<Stage1, 12>(narrow()), &[!VALID, TABLE_OR_PAGE], &[0, 0x7000, (1 << 52) - 4096]);
        empty(&format::<Stage2, 16>(Config::default()), &[!VALID], &[0, 0x7_0000]);
        // A block where pages are.
        assert_eq!(format::<Stage1, 12>(narrow()).decode(1, 0x0060_1234_5600_0f45), Entry::Empty);
    }
}
