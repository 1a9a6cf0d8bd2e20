//! RISC-V: Sv39, Sv48 and Sv57 for the first stage, their x4 forms for the second, with Svnapot and
//! Svpbmt. Names in quotation marks are sections of the privileged architecture's chapters on the
//! supervisor level and the hypervisor extension; `[I]` is the RISC-V IOMMU specification.
//!
//! Every unit has Svnapot (`[I]` "IOMMU capabilities"), so leaves of 64 KiB are always there.
//! [`Config::memory_types`] stands for Svpbmt in the capabilities; without it memory types are
//! those of the address, and [`Prot::UNCACHED`] is refused. [`Config::accessed`] stands for SADE or
//! GADE of the device context, which need AMO_HWAD.

use super::size;
use crate::{
    format::{AccessBits, Config, Entry, Format, InPlace},
    mem::Phys,
    table::{FormatId, Prot, Space},
};

/// The name of [`RiscvFirstStage`].
pub const RISCV_FIRST_STAGE: FormatId = FormatId("riscv-fs");
/// The name of [`RiscvSecondStage`].
pub const RISCV_SECOND_STAGE: FormatId = FormatId("riscv-ss");

/// V: valid (privileged architecture, "Sv39").
const V: u64 = 1;
/// R, W, X: with all three clear a valid entry leads to a table; W without R is reserved.
const R: u64 = 1 << 1;
const W: u64 = 1 << 2;
const X: u64 = 1 << 3;
/// U: for user mode, as which every access of the second stage is checked ("Guest Physical Address
/// Translation").
const U: u64 = 1 << 4;
/// A and D, in leaves: without A, or written through without D, an entry faults where the unit does
/// not set them (`[I]` "Translation control"). In entries that lead to a table they are reserved, and
/// so is U ("Addressing and Memory Protection" of Sv32).
const A: u64 = 1 << 6;
const D: u64 = 1 << 7;
/// Ours, the lower bit of RSW, which is ignored: the entry was cleaned to memory.
const SW_SETTLED: u64 = 1 << 8;
/// Ours, the upper bit of RSW: the caller mapped device memory.
const SW_MMIO: u64 = 1 << 9;
/// PPN: bits 53:10. Bits 60:54 are reserved, and fault ("Sv39").
const PPN: u64 = (1 << 54) - (1 << 10);
/// PBMT ("Svpbmt"): 1 is NC, non-cacheable main memory; 2 is IO; 3 is reserved. Only in leaves.
const PBMT: u64 = 3 << 61;
const PBMT_NC: u64 = 1 << 61;
const PBMT_IO: u64 = 2 << 61;
/// N ("Svnapot"): part of a larger leaf, whose size is in the low bits of PPN.
const N: u64 = 1 << 63;
/// 64 KiB: PPN[3:0] is 8, the only size that is defined, and only where pages are.
const NAPOT_64K: u64 = 8 << 10;
const NAPOT_BITS: u64 = 15 << 10;
/// Ours, in an entry that is not valid, of which all other bits are software's and which no unit
/// caches (`[I]` "Caching in-memory data structures"): an address is kept in it.
const SW_PARKED: u64 = R;

/// Sv39, Sv48 and Sv57: three, four and five levels. Addresses are sign-extended: a table is for
/// the lower half of them, or for both.
pub type RiscvFirstStage = Riscv<false>;
/// Sv39x4, Sv48x4 and Sv57x4: their roots have four times as many entries.
pub type RiscvSecondStage = Riscv<true>;

/// RISC-V's entries.
#[derive(Clone, Copy, Debug)]
pub struct Riscv<const SECOND: bool> {
    access: AccessBits,
    memory_types: bool,
}

impl<const SECOND: bool> Format for Riscv<SECOND> {
    type Word = u64;
    const ID: FormatId = if SECOND { RISCV_SECOND_STAGE } else { RISCV_FIRST_STAGE };
    const MIN_LEVELS: usize = 3;
    const MAX_LEVELS: usize = 5;
    const GRANULE_BITS: u32 = 12;
    const ROOT_EXTRA_BITS: u32 = if SECOND { 2 } else { 0 };
    const SPACES: &'static [Space] = if SECOND { &[Space::Lower] } else { &[Space::Lower, Space::Signed] };
    const INPUT_BITS: u8 = if SECOND { 59 } else { 57 };
    const OUTPUT_BITS: u8 = 56;
    const LEAF_SIZES: u64 = size::K4 | 1 << 16 | size::M2 | size::G1 | 1 << 39 | 1 << 48;
    const PRESENT: u64 = V;

    fn new(config: &Config) -> Self {
        let kept = config.accessed && config.coherent;
        Riscv {
            access: if kept { AccessBits::Kept } else { AccessBits::Preset },
            memory_types: config.memory_types,
        }
    }

    #[inline]
    fn access_bits(&self) -> AccessBits {
        self.access
    }

    /// A change of page size is the one that a unit supports without an invalid entry in between: it
    /// uses the old translation or the new one, which are the same (`[I]` "Accessed (A)/Dirty (D) bit
    /// updates and page promotions"; for Svnapot's leaves the note at its table of encodings).
    fn in_place(&self) -> InPlace {
        InPlace::ALL
    }

    #[inline]
    fn template(&self, prot: Prot) -> Option<u64> {
        const KNOWN: Prot = Prot::READ
            .union(Prot::WRITE)
            .union(Prot::EXEC)
            .union(Prot::PRIV)
            .union(Prot::MMIO)
            .union(Prot::UNCACHED);
        let reserved = prot.contains(Prot::WRITE) && !prot.contains(Prot::READ);
        if !prot.intersects(Prot::READ | Prot::EXEC)
            || reserved
            || !KNOWN.contains(prot)
            || (prot.contains(Prot::PRIV) && SECOND)
            || (prot.contains(Prot::UNCACHED) && !self.memory_types)
        {
            return None;
        }
        let bit = |p: Prot, bits: u64| if prot.contains(p) { bits } else { 0 };
        let mut w = V | bit(Prot::READ, R) | bit(Prot::WRITE, W) | bit(Prot::EXEC, X);
        if !prot.contains(Prot::PRIV) {
            w |= U;
        }
        if self.access != AccessBits::Kept {
            w |= A | bit(Prot::WRITE, D);
        }
        if prot.contains(Prot::MMIO) {
            w |= SW_MMIO | if self.memory_types { PBMT_IO } else { 0 };
        } else if prot.contains(Prot::UNCACHED) {
            w |= PBMT_NC;
        }
        Some(w)
    }

    #[inline]
    fn leaf(&self, template: u64, level: usize, phys: Phys, size_bits: u32) -> u64 {
        if size_bits > Self::shift(level) {
            template | (phys.0 & !0xffff) >> 2 | NAPOT_64K | N
        } else {
            template | phys.0 >> 2
        }
    }

    #[inline]
    fn table(&self, _level: usize, table: Phys) -> u64 {
        table.0 >> 2 | V
    }

    #[inline]
    fn decode(&self, level: usize, w: u64) -> Entry {
        let address = (w & PPN) << 2;
        if w & V == 0 {
            return Entry::Empty;
        }
        if level > 1 && w & (R | W | X) == 0 {
            return Entry::Table(Phys(address));
        }
        let size_bits = match w & N {
            0 => Self::shift(level),
            _ if level == 1 && w & NAPOT_BITS == NAPOT_64K => 16,
            _ => return Entry::Empty,
        };
        // What is written but not read is reserved, so is type 3, and pages lead nowhere.
        if (w & R == 0 && w & (W | X) != X) || w & PBMT == PBMT {
            return Entry::Empty;
        }
        Entry::Leaf { base: Phys(address & !((1 << size_bits) - 1)), size_bits }
    }

    #[inline]
    fn only_leaves(&self, _level: usize, all: u64, _any: u64) -> bool {
        all & V != 0 && all & (R | W | X) != 0
    }

    #[inline]
    fn child(&self, _level: usize, w: u64) -> Option<Phys> {
        (w & (V | R | W | X) == V).then_some(Phys((w & PPN) << 2))
    }

    #[inline]
    fn prot(&self, w: u64) -> Prot {
        let mut prot = Prot::empty();
        prot.set(Prot::READ, w & R != 0);
        prot.set(Prot::WRITE, w & W != 0);
        prot.set(Prot::EXEC, w & X != 0);
        prot.set(Prot::PRIV, w & U == 0);
        prot.set(Prot::MMIO, w & SW_MMIO != 0);
        prot.set(Prot::UNCACHED, w & PBMT == PBMT_NC);
        prot
    }

    #[inline]
    fn attributes(&self, _level: usize, w: u64) -> u64 {
        // Without Svpbmt its bits are reserved.
        let types = if self.memory_types { PBMT } else { 0 };
        w & (V | R | W | X | U | A | D | SW_MMIO | types)
    }

    /// What a unit makes of other permissions in an entry that was not invalid in between is up to
    /// its implementation (`[I]` "Accessed (A)/Dirty (D) bit updates and page promotions"): nothing
    /// changes in place.
    #[inline]
    fn protect(&self, w: u64, template: u64) -> Option<u64> {
        ((w ^ template) & (R | W | X | U | PBMT | SW_MMIO) == 0).then_some(w)
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
        next.map_or(0, |p| p.0 >> 2 | SW_PARKED)
    }

    fn parked_next(w: u64) -> Option<Phys> {
        (w & SW_PARKED != 0).then_some(Phys((w & PPN) << 2))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{empty, golden, golden_table},
        *,
    };

    const RW: Prot = Prot::READ.union(Prot::WRITE);
    const PHYS: Phys = Phys(0x12_3456_0000);

    fn format<const SECOND: bool>(accessed: bool, memory_types: bool) -> Riscv<SECOND> {
        Riscv::new(&Config { accessed, memory_types, ..Config::default() })
    }

    #[test]
    fn golden_leaves() {
        let f = format::<false>(true, false);
        assert_eq!(golden(&f, 1, 12, PHYS, RW), 0x0000_0004_8d15_8017);
        assert_eq!(golden(&f, 1, 12, PHYS, Prot::READ), 0x0000_0004_8d15_8013);
        assert_eq!(golden(&f, 1, 12, PHYS, Prot::EXEC), 0x0000_0004_8d15_8019);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::EXEC | Prot::PRIV), 0x0000_0004_8d15_800f);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::MMIO), 0x0000_0004_8d15_8217);
        assert_eq!(golden(&f, 2, 21, Phys(0x20_0000), RW), 0x8_0017);
        assert_eq!(golden(&f, 3, 30, Phys(0x4000_0000), RW), 0x1000_0017);
        assert_eq!(golden(&f, 4, 39, Phys(1 << 39), RW), 0x20_0000_0017);
        assert_eq!(golden(&f, 5, 48, Phys(1 << 48), RW), 0x4000_0000_0017);
        assert_eq!(golden(&f, 1, 12, Phys((1 << 56) - 4096), RW), 0x003f_ffff_ffff_fc17);
    }

    #[test]
    fn golden_leaves_of_64_kib() {
        let f = format::<true>(true, false);
        // Every entry of the leaf is the same: PPN[3:0] is 8.
        for page in [0, 3, 15] {
            let phys = Phys(0x12_3456_0000 + page * 4096);
            assert_eq!(golden(&f, 1, 16, phys, RW), 0x8000_0004_8d15_a017);
        }
    }

    #[test]
    fn golden_memory_types() {
        let f = format::<false>(true, true);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::UNCACHED), 0x2000_0004_8d15_8017);
        assert_eq!(golden(&f, 1, 12, PHYS, RW | Prot::MMIO), 0x4000_0004_8d15_8217);
    }

    #[test]
    fn nothing_but_the_page_size_changes_in_place() {
        let f = format::<false>(true, true);
        let w = golden(&f, 1, 12, PHYS, RW) | A | D;
        for prot in [Prot::READ, RW | Prot::EXEC, RW | Prot::PRIV, RW | Prot::UNCACHED, RW | Prot::MMIO] {
            assert_eq!(f.protect(w, f.template(prot).unwrap()), None, "{prot:?}");
        }
        assert_eq!(f.protect(w, f.template(RW).unwrap()), Some(w));
        assert_eq!(f.in_place(), InPlace::ALL);
    }

    #[test]
    fn golden_tables() {
        for level in 2..=5 {
            assert_eq!(golden_table(&format::<false>(true, true), level, Phys(0x7000)), 0x1c01);
            assert_eq!(golden_table(&format::<true>(false, false), level, Phys(1 << 40)), 0x40_0000_0001);
        }
    }

    #[test]
    fn accessed_and_dirty_are_preset_unless_somebody_sets_them() {
        let f = format::<true>(false, false);
        assert_eq!(golden(&f, 1, 12, PHYS, RW), 0x0000_0004_8d15_80d7);
        assert_eq!(golden(&f, 1, 12, PHYS, Prot::READ), 0x0000_0004_8d15_8053);
        assert_eq!(f.access_bits(), AccessBits::Preset);
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let f = format::<false>(true, false);
        let refused =
            [Prot::empty(), Prot::WRITE, Prot::WRITE | Prot::EXEC, RW | Prot::SNOOP, RW | Prot::UNCACHED];
        for prot in refused {
            assert_eq!(f.template(prot), None, "{prot:?}");
        }
        assert_eq!(format::<true>(true, false).template(RW | Prot::PRIV), None);
    }

    #[test]
    fn entries_that_are_not_valid_are_empty() {
        empty(&format::<false>(true, true), &[!V], &[0, 0x7000, (1 << 56) - 4096]);
    }

    #[test]
    fn what_is_reserved_is_no_leaf() {
        let f = format::<false>(true, true);
        for (level, w) in [
            // Writable but not readable, with X and without; a pointer where pages are.
            (1, 0x0000_0004_8d15_80d5),
            (2, 0x0000_0000_0008_00dd),
            (1, 0x0000_0004_8d15_8001),
            // N with 128 KiB, with 4 KiB, and in a megapage.
            (1, 0x8000_0004_8d15_c0d7),
            (1, 0x8000_0004_8d15_80d7),
            (2, 0x8000_0004_8d15_a0d7),
            // PBMT 3.
            (1, 0x6000_0004_8d15_80d7),
        ] {
            assert_eq!(f.decode(level, w), Entry::Empty, "{w:#x}");
        }
    }
}
