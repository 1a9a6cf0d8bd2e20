//! RISC-V: Sv39, Sv48 and Sv57 for the first stage, their x4 forms for the second (RISC-V
//! privileged architecture, "Supervisor-Level ISA" and "Hypervisor Extension"; RISC-V IOMMU
//! specification, 3.3), with Svnapot and Svpbmt.
//!
//! A leaf of 64 KiB needs Svnapot (Svnapot in the unit's capabilities): a driver takes that size
//! out of [`Config::page_sizes`] where it is missing. [`Config::memory_types`] stands for Svpbmt;
//! without it memory types are those of the address, and [`Prot::UNCACHED`] is refused.
//! [`Config::accessed`] stands for SADE or GADE of the device context.

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
/// U: for user mode, which everything at the second stage is ("Two-Stage Address Translation").
const U: u64 = 1 << 4;
/// A and D: an entry without A, or written through without D, faults where nobody sets them.
const A: u64 = 1 << 6;
const D: u64 = 1 << 7;
/// Ours, the lower bit of RSW: the entry was cleaned to memory.
const SW_SETTLED: u64 = 1 << 8;
/// Ours, the upper bit of RSW: the caller mapped device memory.
const SW_MMIO: u64 = 1 << 9;
/// PPN: bits 53:10.
const PPN: u64 = (1 << 54) - (1 << 10);
/// PBMT ("Svpbmt"): 1 is NC, non-cacheable main memory; 2 is IO.
const PBMT: u64 = 3 << 61;
const PBMT_NC: u64 = 1 << 61;
const PBMT_IO: u64 = 2 << 61;
/// N ("Svnapot"): part of a larger leaf, whose size is in the low bits of PPN.
const N: u64 = 1 << 63;
/// 64 KiB: PPN[3:0] is 8, the only size that is defined.
const NAPOT_64K: u64 = 8 << 10;
/// Ours, in an entry that is not valid: an address is kept in it.
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

    /// Old and new translations may be used side by side until the invalidation, and they are the
    /// same ("Supervisor Memory-Management Fence Instruction").
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
            Entry::Empty
        } else if level > 1 && w & (R | W | X) == 0 {
            Entry::Table(Phys(address))
        } else {
            let size_bits = if level == 1 && w & N != 0 { 16 } else { Self::shift(level) };
            Entry::Leaf { base: Phys(address & !((1 << size_bits) - 1)), size_bits }
        }
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
        w & !(PPN | N)
    }

    #[inline]
    fn protect(&self, w: u64, template: u64) -> Option<u64> {
        const PROT: u64 = R | W | X | U;
        // Preset bits follow what is allowed now.
        let preset = if self.access == AccessBits::Kept { 0 } else { template & (A | D) };
        ((w ^ template) & (PBMT | SW_MMIO) == 0).then_some(w & !PROT | template & PROT | preset)
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
        let w = golden(&f, 1, 12, PHYS, RW);
        assert_eq!(f.protect(w, f.template(RW | Prot::UNCACHED).unwrap()), None);
        assert_eq!(f.protect(w | A | D, f.template(Prot::READ).unwrap()), Some(0x0000_0004_8d15_80d3));
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
        let w = golden(&f, 1, 12, PHYS, Prot::READ);
        let rw = f.template(RW).unwrap();
        assert_eq!(f.protect(w, rw), Some(0x0000_0004_8d15_80d7), "a write would fault without D");
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
}
