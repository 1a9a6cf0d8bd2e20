//! VT-d second-stage paging entries with three to five levels (`[V]` 3.7, 9.8).
//!
//! The entries have no execute permission and no supervisor bit, so [`Prot::EXEC`] and
//! [`Prot::PRIV`] are refused. Memory types are left at 0: hardware ignores them unless EMTE is
//! set in the PASID-table entry.

use super::size;
use crate::{
    format::{AccessBits, Config, Entry, Format, InPlace},
    mem::Phys,
    table::{FormatId, Prot},
};

/// The name of [`VtdSecondStage`].
pub const VTD_SECOND_STAGE: FormatId = FormatId("vtd-ss");

/// R: Read, where the entries' IR and IW (bits 61 and 62) are not enabled (`[V]` 9.8, tables 41 to 47).
const R: u64 = 1;
/// W: Write (`[V]` 9.8, tables 41 to 47). With R and W both 0 the entry is not present (`[V]` 3.7).
const W: u64 = 1 << 1;
/// PS: Page Size, in an SS-PDE or SS-PDPE (`[V]` 9.8, tables 43 and 45).
const PS: u64 = 1 << 7;
/// A: Accessed, where SSADE is set (`[V]` 3.7.2).
const A: u64 = 1 << 8;
/// D: Dirty, where SSADE is set, in leaves (`[V]` 3.7.2).
const D: u64 = 1 << 9;
/// SNP: Snoop, in leaves, reserved where ECAP.SC is 0 and in entries that lead to a table (`[V]` 3.7, tables
/// 43, 45 and 47).
const SNP: u64 = 1 << 11;
/// ADDR: bits 51:12; those from the host address width up are reserved (`[V]` 3.7).
const ADDR: u64 = 0x000f_ffff_ffff_f000;
/// Ours, among the ignored bits 60:52 (`[V]` 9.8): the caller mapped device memory.
const SW_MMIO: u64 = 1 << 52;
/// Ours, among the ignored bits 60:52: the entry was cleaned to memory.
const SW_SETTLED: u64 = 1 << 53;
/// Ours, in an entry that is not present: an address is kept in it.
const SW_PARKED: u64 = 1 << 54;

/// The second-stage format. [`Config::accessed`] stands for SSADE, [`Config::snoop`] for ECAP.SC.
#[derive(Clone, Copy, Debug)]
pub struct VtdSecondStage {
    access: AccessBits,
    snoop: bool,
}

impl Format for VtdSecondStage {
    type Word = u64;
    const ID: FormatId = VTD_SECOND_STAGE;
    const MIN_LEVELS: usize = 3;
    const MAX_LEVELS: usize = 5;
    const GRANULE_BITS: u32 = 12;
    const INPUT_BITS: u8 = 57;
    const OUTPUT_BITS: u8 = 52;
    const LEAF_SIZES: u64 = size::K4 | size::M2 | size::G1;
    const PRESENT: u64 = R | W;

    fn new(config: &Config) -> Self {
        VtdSecondStage { access: AccessBits::choose(config.accessed, config.coherent), snoop: config.snoop }
    }

    #[inline]
    fn access_bits(&self) -> AccessBits {
        self.access
    }

    /// Where the page size of an address changes, either translation may be used until the
    /// invalidation, and both are the same (`[V]` 6.2.4.1).
    fn in_place(&self) -> InPlace {
        InPlace::ALL
    }

    #[inline]
    fn template(&self, prot: Prot) -> Option<u64> {
        const RW: Prot = Prot::READ.union(Prot::WRITE);
        const KNOWN: Prot = RW.union(Prot::SNOOP).union(Prot::MMIO);
        if !prot.intersects(RW) || !KNOWN.contains(prot) || (prot.contains(Prot::SNOOP) && !self.snoop) {
            return None;
        }
        let bit = |p: Prot, bits: u64| if prot.contains(p) { bits } else { 0 };
        let preset = if self.access == AccessBits::Preset { A | D } else { 0 };
        Some(
            bit(Prot::READ, R)
                | bit(Prot::WRITE, W)
                | bit(Prot::SNOOP, SNP)
                | bit(Prot::MMIO, SW_MMIO)
                | preset,
        )
    }

    #[inline]
    fn leaf(&self, template: u64, level: usize, phys: Phys, _size_bits: u32) -> u64 {
        // Bit 7 is PS above the last level and ignored in an SS-PTE ([V] table 47).
        template | phys.0 | if level > 1 { PS } else { 0 }
    }

    #[inline]
    fn table(&self, _level: usize, table: Phys) -> u64 {
        let preset = if self.access == AccessBits::Preset { A } else { 0 };
        table.0 | R | W | preset
    }

    #[inline]
    fn decode(&self, level: usize, w: u64) -> Entry {
        let addr = Phys(w & ADDR);
        if w & (R | W) == 0 {
            Entry::Empty
        } else if level > 1 && w & PS == 0 {
            Entry::Table(addr)
        } else {
            let size_bits = Self::shift(level);
            Entry::Leaf { base: Phys(addr.0 & !((1 << size_bits) - 1)), size_bits }
        }
    }

    #[inline]
    fn only_leaves(&self, _level: usize, all: u64, _any: u64) -> bool {
        all & PS != 0 && all & (R | W) != 0
    }

    #[inline]
    fn child(&self, _level: usize, w: u64) -> Option<Phys> {
        (w & (R | W | PS) == R | W).then_some(Phys(w & ADDR))
    }

    #[inline]
    fn prot(&self, w: u64) -> Prot {
        // R and W are where `Prot` has them.
        const { assert!(R as u32 == Prot::READ.bits() && W as u32 == Prot::WRITE.bits()) }
        let bit = |bits: u64, prot: Prot| if w & bits != 0 { prot } else { Prot::empty() };
        Prot::from_bits_retain((w & (R | W)) as u32) | bit(SNP, Prot::SNOOP) | bit(SW_MMIO, Prot::MMIO)
    }

    #[inline]
    fn attributes(&self, _level: usize, w: u64) -> u64 {
        w & (R | W | A | D | SNP | SW_MMIO)
    }

    #[inline]
    fn protect(&self, w: u64, template: u64) -> Option<u64> {
        const PROT: u64 = R | W | SNP | SW_MMIO;
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
        next.map_or(0, |p| p.0 | SW_PARKED)
    }

    fn parked_next(w: u64) -> Option<Phys> {
        (w & SW_PARKED != 0).then_some(Phys(w & ADDR))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{golden, golden_table},
        *,
    };

    const PHYS: Phys = Phys(0x1234_5600_0000);

    fn format(coherent: bool, accessed: bool, snoop: bool) -> VtdSecondStage {
        VtdSecondStage::new(&Config {
            input_bits: 48,
            output_bits: 46,
            coherent,
            accessed,
            snoop,
            ..Config::default()
        })
    }

    fn leaf(f: VtdSecondStage, level: usize, phys: Phys, prot: Prot) -> u64 {
        let w = f.leaf(f.template(prot).unwrap(), level, phys, VtdSecondStage::shift(level));
        let size_bits = VtdSecondStage::shift(level);
        let base = phys;
        assert_eq!(f.decode(level, w), Entry::Leaf { base, size_bits });
        assert_eq!(f.prot(w), prot);
        w
    }

    #[test]
    fn golden_leaves() {
        let f = format(true, false, true);
        let rw = Prot::READ | Prot::WRITE;
        assert_eq!(leaf(f, 1, PHYS, rw), 0x0000_1234_5600_0003);
        assert_eq!(leaf(f, 1, PHYS, Prot::READ), 0x0000_1234_5600_0001);
        assert_eq!(leaf(f, 1, PHYS, Prot::WRITE), 0x0000_1234_5600_0002);
        assert_eq!(leaf(f, 1, PHYS, rw | Prot::SNOOP), 0x0000_1234_5600_0803);
        assert_eq!(leaf(f, 1, PHYS, rw | Prot::MMIO), 0x0010_1234_5600_0003);
        assert_eq!(leaf(f, 1, Phys(0), rw), 0x3);
        assert_eq!(leaf(f, 2, PHYS, rw), 0x0000_1234_5600_0083);
        assert_eq!(leaf(f, 3, Phys(0x1234_4000_0000), rw), 0x0000_1234_4000_0083);
        assert_eq!(leaf(f, 1, Phys(ADDR), rw), 0x000f_ffff_ffff_f003);
    }

    #[test]
    fn golden_tables() {
        assert_eq!(format(true, false, true).table(2, Phys(0x7000)), 0x0000_0000_0000_7003);
        assert_eq!(format(true, false, true).table(2, Phys(0)), 0x3);
        assert_eq!(format(true, true, true).table(2, Phys(0x7000)), 0x0000_0000_0000_7003);
        assert_eq!(format(false, true, true).table(2, Phys(0x7000)), 0x0000_0000_0000_7103);
    }

    #[test]
    fn accessed_and_dirty_are_preset_only_where_the_walker_cannot_set_them() {
        assert_eq!(leaf(format(false, true, false), 1, PHYS, Prot::READ), 0x0000_1234_5600_0301);
        assert_eq!(leaf(format(false, false, false), 1, PHYS, Prot::READ), 0x0000_1234_5600_0001);
        let kept = format(true, true, false);
        assert_eq!(leaf(kept, 1, PHYS, Prot::READ), 0x0000_1234_5600_0001);
        assert!(kept.accessed(0x0000_1234_5600_0101));
        assert_eq!(kept.clear_accessed(0x301), 0x201);
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let f = format(true, false, false);
        for prot in [
            Prot::empty(),
            Prot::SNOOP,
            Prot::READ | Prot::EXEC,
            Prot::READ | Prot::PRIV,
            // SNP is reserved without snoop control.
            Prot::READ | Prot::SNOOP,
        ] {
            assert_eq!(f.template(prot), None, "{prot:?}");
        }
    }

    #[test]
    fn entries_without_permissions_are_empty() {
        let f = format(true, false, true);
        for w in [0, ADDR, PS | ADDR, A | D | SNP, !(R | W)] {
            assert_eq!(f.decode(2, w), Entry::Empty, "{w:#x}");
        }
        for next in [None, Some(Phys(0)), Some(PHYS)] {
            let w = VtdSecondStage::parked(next);
            assert_eq!(f.decode(1, w), Entry::Empty);
            assert_eq!(VtdSecondStage::parked_next(w), next);
        }
        let w = f.settle(f.table(2, PHYS));
        assert!(f.settled(w) && !f.settled(f.table(2, PHYS)));
        assert_eq!(f.decode(2, w), Entry::Table(PHYS));
    }

    #[test]
    fn golden_entries_of_every_level_and_leaf() {
        let f = format(true, true, true);
        let rw = Prot::READ | Prot::WRITE;
        assert_eq!(golden(&f, 1, 12, PHYS, rw | Prot::SNOOP | Prot::MMIO), 0x0010_1234_5600_0803);
        assert_eq!(golden(&f, 2, 21, PHYS, Prot::WRITE), 0x0000_1234_5600_0082);
        assert_eq!(golden(&f, 3, 30, Phys(0x1234_4000_0000), Prot::READ), 0x0000_1234_4000_0081);
        for level in 2..=5 {
            assert_eq!(golden_table(&f, level, Phys(0x7000)), 0x7003);
        }
        let w = golden(&f, 1, 12, PHYS, rw) | A | D;
        let read = f.template(Prot::READ).unwrap();
        assert_eq!(f.protect(w, read), Some(0x0000_1234_5600_0301));
        assert_eq!(f.template(rw | Prot::UNCACHED), None);
        assert_eq!(f.template(rw | Prot::FORMAT0), None);
    }
}
