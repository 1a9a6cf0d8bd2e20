//! Paging entries of the processor's 64-bit mode with four or five levels: VT-d's first stage
//! (`[V]` 3.6, 9.7) and AMD's guest tables, called v2 (AMD 48882, 2.2.6; AMD64 manual, volume 2,
//! 5.3).
//!
//! VT-d ignores bits 63:52, the processor's execute-disable bit among them, so [`Prot::EXEC`] is
//! refused. AMD checks NX where NXSup is set in the extended feature register, which
//! [`Config::execute`] stands for. Every valid entry may be read, so write-only is refused.

use super::size;
use crate::{
    format::{AccessBits, Config, Entry, Format, InPlace},
    mem::Phys,
    table::{FormatId, Prot, Space},
};

/// The name of [`X86FirstStage`].
pub const X86_FIRST_STAGE: FormatId = FormatId("x86-fs");
/// The name of [`AmdV2`].
pub const AMD_V2: FormatId = FormatId("amd-v2");

/// P: Present (`[V]` 9.7, tables 34 to 40).
const P: u64 = 1;
/// R/W: writes are allowed (`[V]` 9.7).
const RW: u64 = 1 << 1;
/// U/S: requests with user privilege are allowed (`[V]` 9.7, 3.6.1).
const US: u64 = 1 << 2;
/// PWT: Page-level Write Through, in leaves (`[V]` 3.11.1).
const PWT: u64 = 1 << 3;
/// PCD: Page-level Cache Disable, in leaves (`[V]` 3.11.1).
const PCD: u64 = 1 << 4;
/// A: Accessed (`[V]` 3.6.2).
const A: u64 = 1 << 5;
/// D: Dirty, in leaves (`[V]` 3.6.2).
const D: u64 = 1 << 6;
/// PS: Page Size, in a PDE or PDPE (`[V]` 9.7, tables 36 and 38). In a PTE the bit is PAT.
const PS: u64 = 1 << 7;
/// NX: no instruction fetches (AMD64 manual, volume 2, 5.4.1).
const XD: u64 = 1 << 63;
/// ADDR: bits 51:12; those from the host address width up are reserved (`[V]` 3.6).
const ADDR: u64 = 0x000f_ffff_ffff_f000;
/// Ours, among the ignored bits 63:52 (`[V]` 9.7): the entry was cleaned to memory.
const SW_SETTLED: u64 = 1 << 53;
/// Ours, in an entry that is not present: an address is kept in it.
const SW_PARKED: u64 = 1 << 54;

/// The first-stage format. [`Config::snoop`] says that the PASID-table entry has PGSNP set, which
/// makes every access snoop; entries have no bit for it (`[V]` 3.10, table 6).
///
/// A walker that uses an entry always sets its accessed bit (`[V]` 3.6.2), so [`Config::accessed`]
/// changes nothing: where walks do not snoop (SMPWC or PWSNP is 0) both bits are preset.
pub type X86FirstStage = X86<false>;

/// AMD's guest tables. A host that translates for itself points a device-table entry's GCR3 at one.
pub type AmdV2 = X86<true>;

/// The processor's entries, as Intel's or as AMD's units walk them.
#[derive(Clone, Copy, Debug)]
pub struct X86<const AMD: bool> {
    access: AccessBits,
    snoop: bool,
    execute: bool,
}

impl<const AMD: bool> Format for X86<AMD> {
    type Word = u64;
    const ID: FormatId = if AMD { AMD_V2 } else { X86_FIRST_STAGE };
    const MIN_LEVELS: usize = 4;
    const MAX_LEVELS: usize = 5;
    const GRANULE_BITS: u32 = 12;
    /// Bits above are copies of the highest (`[V]` 3.6): a table is for the lower half, or for both.
    const SPACES: &'static [Space] = &[Space::Lower, Space::Signed];
    const INPUT_BITS: u8 = 57;
    const OUTPUT_BITS: u8 = 52;
    const LEAF_SIZES: u64 = size::K4 | size::M2 | size::G1;
    const PRESENT: u64 = P;

    fn new(config: &Config) -> Self {
        X86 {
            access: AccessBits::choose(true, config.coherent),
            snoop: config.snoop && !AMD,
            execute: config.execute && AMD,
        }
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
        const RWX: Prot = Prot::READ.union(Prot::WRITE).union(Prot::EXEC);
        const KNOWN: Prot = RWX.union(Prot::PRIV).union(Prot::MMIO).union(Prot::SNOOP);
        if !prot.contains(Prot::READ)
            || !KNOWN.contains(prot)
            || (prot.contains(Prot::EXEC) && !self.execute)
            || (prot.contains(Prot::SNOOP) && !self.snoop)
        {
            return None;
        }
        let mut w = P;
        if prot.contains(Prot::WRITE) {
            w |= RW;
        }
        if !prot.contains(Prot::PRIV) {
            w |= US;
        }
        if prot.contains(Prot::MMIO) {
            // Entry 3 of the page attribute table: uncacheable unless the driver changed it.
            w |= PCD | PWT;
        }
        if self.execute && !prot.contains(Prot::EXEC) {
            w |= XD;
        }
        if self.access == AccessBits::Preset {
            w |= A | D;
        }
        Some(w)
    }

    #[inline]
    fn leaf(&self, template: u64, level: usize, phys: Phys, _size_bits: u32) -> u64 {
        template | phys.0 | if level > 1 { PS } else { 0 }
    }

    #[inline]
    fn table(&self, _level: usize, table: Phys) -> u64 {
        let preset = if self.access == AccessBits::Preset { A } else { 0 };
        table.0 | P | RW | US | preset
    }

    #[inline]
    fn decode(&self, level: usize, w: u64) -> Entry {
        if w & P == 0 {
            Entry::Empty
        } else if level > 1 && w & PS == 0 {
            Entry::Table(Phys(w & ADDR))
        } else {
            let size_bits = Self::shift(level);
            // Bit 12 of a large leaf is PAT, which we never set, and not part of the address.
            let base = Phys(w & ADDR & !((1 << size_bits) - 1));
            Entry::Leaf { base, size_bits }
        }
    }

    #[inline]
    fn only_leaves(&self, _level: usize, all: u64, _any: u64) -> bool {
        all & P != 0 && all & PS != 0
    }

    #[inline]
    fn child(&self, _level: usize, w: u64) -> Option<Phys> {
        (w & (P | PS) == P).then_some(Phys(w & ADDR))
    }

    #[inline]
    fn prot(&self, w: u64) -> Prot {
        let mut prot = Prot::READ;
        prot.set(Prot::WRITE, w & RW != 0);
        prot.set(Prot::PRIV, w & US == 0);
        prot.set(Prot::MMIO, w & (PCD | PWT) == PCD | PWT);
        prot.set(Prot::SNOOP, self.snoop);
        prot.set(Prot::EXEC, self.execute && w & XD == 0);
        prot
    }

    #[inline]
    fn attributes(&self, _level: usize, w: u64) -> u64 {
        w & (P | RW | US | PWT | PCD | A | D | XD)
    }

    #[inline]
    fn protect(&self, w: u64, template: u64) -> Option<u64> {
        const PROT: u64 = RW | US | XD;
        // A memory type does not change under those who use it.
        ((w ^ template) & (PWT | PCD) == 0).then_some(w & !PROT | template & PROT)
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
    use super::{super::tests::golden, *};

    const PHYS: Phys = Phys(0x1234_5600_0000);

    fn format(coherent: bool, snoop: bool) -> X86FirstStage {
        X86FirstStage::new(&Config { input_bits: 47, output_bits: 46, coherent, snoop, ..Config::default() })
    }

    fn leaf(f: X86FirstStage, level: usize, phys: Phys, prot: Prot) -> u64 {
        let size_bits = X86FirstStage::shift(level);
        let w = f.leaf(f.template(prot).unwrap(), level, phys, size_bits);
        let base = phys;
        assert_eq!(f.decode(level, w), Entry::Leaf { base, size_bits });
        assert_eq!(f.prot(w), prot);
        w
    }

    #[test]
    fn golden_leaves() {
        let f = format(true, false);
        let rw = Prot::READ | Prot::WRITE;
        assert_eq!(leaf(f, 1, PHYS, rw), 0x0000_1234_5600_0007);
        assert_eq!(leaf(f, 1, PHYS, Prot::READ), 0x0000_1234_5600_0005);
        assert_eq!(leaf(f, 1, PHYS, rw | Prot::PRIV), 0x0000_1234_5600_0003);
        assert_eq!(leaf(f, 1, PHYS, Prot::READ | Prot::PRIV), 0x0000_1234_5600_0001);
        assert_eq!(leaf(f, 1, PHYS, rw | Prot::MMIO), 0x0000_1234_5600_001f);
        assert_eq!(leaf(f, 1, Phys(0), rw), 0x7);
        assert_eq!(leaf(f, 2, PHYS, rw), 0x0000_1234_5600_0087);
        assert_eq!(leaf(f, 3, Phys(0x1234_4000_0000), rw), 0x0000_1234_4000_0087);
        assert_eq!(leaf(f, 1, Phys(ADDR), rw), 0x000f_ffff_ffff_f007);
    }

    #[test]
    fn accessed_and_dirty_are_preset_where_walks_do_not_snoop() {
        let f = format(false, false);
        assert_eq!(leaf(f, 1, PHYS, Prot::READ | Prot::WRITE), 0x0000_1234_5600_0067);
        assert_eq!(leaf(f, 2, PHYS, Prot::READ), 0x0000_1234_5600_00e5);
        assert_eq!(f.table(2, Phys(0x7000)), 0x7027);
        assert_eq!(format(true, false).table(2, Phys(0x7000)), 0x7007);
        assert_eq!(format(true, false).clear_accessed(0x67), 0x47);
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let f = format(true, false);
        for prot in [Prot::empty(), Prot::WRITE, Prot::READ | Prot::EXEC, Prot::READ | Prot::SNOOP] {
            assert_eq!(f.template(prot), None, "{prot:?}");
        }
        let snooping = format(true, true);
        let w = leaf(snooping, 1, PHYS, Prot::READ | Prot::SNOOP);
        assert_eq!(w, 0x0000_1234_5600_0005);
    }

    #[test]
    fn amd_says_where_no_instructions_are() {
        let f = AmdV2::new(&Config { execute: true, ..Config::default() });
        let rw = Prot::READ | Prot::WRITE;
        assert_eq!(golden(&f, 1, 12, PHYS, rw), 0x8000_1234_5600_0007);
        assert_eq!(golden(&f, 1, 12, PHYS, rw | Prot::EXEC), 0x0000_1234_5600_0007);
        assert_eq!(golden(&f, 2, 21, PHYS, Prot::READ | Prot::PRIV), 0x8000_1234_5600_0081);
        let without = AmdV2::new(&Config { snoop: true, ..Config::default() });
        assert_eq!(golden(&without, 1, 12, PHYS, rw), 0x0000_1234_5600_0007);
        assert_eq!(without.template(rw | Prot::EXEC), None);
        assert_eq!(without.template(rw | Prot::SNOOP), None);
        let w = golden(&f, 1, 12, PHYS, rw) | A | D;
        let read = f.template(Prot::READ | Prot::EXEC).unwrap();
        assert_eq!(f.protect(w, read), Some(0x0000_1234_5600_0065));
        let device = f.template(rw | Prot::MMIO).unwrap();
        assert_eq!(f.protect(w, device), None, "a memory type does not change in place");
    }

    #[test]
    fn entries_that_are_not_present_are_empty() {
        let f = format(true, false);
        for w in [0, ADDR, PS | ADDR, !P] {
            assert_eq!(f.decode(2, w), Entry::Empty, "{w:#x}");
        }
        for next in [None, Some(Phys(0)), Some(PHYS)] {
            let w = X86FirstStage::parked(next);
            assert_eq!(f.decode(1, w), Entry::Empty);
            assert_eq!(X86FirstStage::parked_next(w), next);
        }
        let w = f.settle(f.table(2, PHYS));
        assert!(f.settled(w) && !f.settled(f.table(2, PHYS)));
        assert_eq!(f.decode(2, w), Entry::Table(PHYS));
    }
}
