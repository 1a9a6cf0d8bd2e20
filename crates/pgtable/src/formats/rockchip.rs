//! Rockchip's IOMMU, second version (RK356x, RK3588): two levels of 1024 words of 32 bits, pages
//! of 4 KiB, physical addresses of 40 bits. There is no public manual; the layout is that of the
//! vendor's and Linux's drivers. Of the RK3568 it is reported that walks do not reach tables above
//! 4 GiB: there table memory has to come from below.
//!
//! Walks do not snoop. The directory's entries have no bit that is known to be ignored, so every
//! walk by software cleans the entry that it passes.

use crate::{
    format::{AccessBits, Config, Entry, Format, InPlace},
    mem::Phys,
    table::{FormatId, Prot},
};

/// The name of [`RockchipV2`].
pub const ROCKCHIP_V2: FormatId = FormatId("rockchip-v2");

/// Bit 0: the entry is valid.
const VALID: u32 = 1;
/// Bit 1 of a page's entry: reads are allowed.
const READABLE: u32 = 1 << 1;
/// Bit 2 of a page's entry: writes are allowed.
const WRITABLE: u32 = 1 << 2;
/// Bits 31:12: the same of the address; 11:8: bits 35:32; 7:4: bits 39:36.
const ADDR: u32 = !0xf;
/// Ours, in an entry that is not valid: an address is kept in it.
const SW_PARKED: u32 = 1 << 1;

/// The two-level table of Rockchip's second version.
#[derive(Clone, Copy, Debug)]
pub struct RockchipV2;

impl RockchipV2 {
    #[inline]
    fn encode(phys: Phys) -> u32 {
        let high = (phys.0 >> 32) as u32;
        phys.0 as u32 & !0xfff | (high & 0xf) << 8 | (high & 0xf0)
    }

    #[inline]
    fn address(w: u32) -> Phys {
        let high = u64::from(w >> 8 & 0xf | w & 0xf0);
        Phys(high << 32 | u64::from(w & !0xfff))
    }
}

impl Format for RockchipV2 {
    type Word = u32;
    const ID: FormatId = ROCKCHIP_V2;
    const MIN_LEVELS: usize = 2;
    const MAX_LEVELS: usize = 2;
    const GRANULE_BITS: u32 = 12;
    const INPUT_BITS: u8 = 32;
    const OUTPUT_BITS: u8 = 40;
    const LEAF_SIZES: u64 = 1 << 12;
    const PRESENT: u32 = VALID;

    fn new(_: &Config) -> Self {
        RockchipV2
    }

    #[inline]
    fn access_bits(&self) -> AccessBits {
        AccessBits::Ignored
    }

    fn in_place(&self) -> InPlace {
        InPlace::NONE
    }

    #[inline]
    fn template(&self, prot: Prot) -> Option<u32> {
        const RW: Prot = Prot::READ.union(Prot::WRITE);
        if !prot.intersects(RW) || !RW.contains(prot) {
            return None;
        }
        let bit = |p: Prot, bits: u32| if prot.contains(p) { bits } else { 0 };
        Some(VALID | bit(Prot::READ, READABLE) | bit(Prot::WRITE, WRITABLE))
    }

    #[inline]
    fn leaf(&self, template: u32, _level: usize, phys: Phys, _size_bits: u32) -> u32 {
        template | Self::encode(phys)
    }

    /// Address bits 39:32 are not in their place.
    #[inline]
    fn linear_bits(&self) -> u32 {
        32
    }

    #[inline]
    fn table(&self, _level: usize, table: Phys) -> u32 {
        Self::encode(table) | VALID
    }

    #[inline]
    fn decode(&self, level: usize, w: u32) -> Entry {
        match (w & VALID, level) {
            (0, _) => Entry::Empty,
            (_, 1) => Entry::Leaf { base: Self::address(w), size_bits: 12 },
            _ => Entry::Table(Self::address(w)),
        }
    }

    #[inline]
    fn prot(&self, w: u32) -> Prot {
        let mut prot = Prot::empty();
        prot.set(Prot::READ, w & READABLE != 0);
        prot.set(Prot::WRITE, w & WRITABLE != 0);
        prot
    }

    #[inline]
    fn attributes(&self, _level: usize, w: u32) -> u32 {
        w & (VALID | READABLE | WRITABLE)
    }

    #[inline]
    fn protect(&self, w: u32, template: u32) -> Option<u32> {
        Some(w & ADDR | template)
    }

    fn accessed(&self, _: u32) -> bool {
        false
    }

    fn clear_accessed(&self, w: u32) -> u32 {
        w
    }

    fn dirty(&self, _: u32) -> bool {
        false
    }

    fn clear_dirty(&self, w: u32) -> u32 {
        w
    }

    fn settled(&self, _: u32) -> bool {
        false
    }

    fn settle(&self, w: u32) -> u32 {
        w
    }

    fn parked(next: Option<Phys>) -> u32 {
        next.map_or(0, |p| Self::encode(p) | SW_PARKED)
    }

    fn parked_next(w: u32) -> Option<Phys> {
        (w & SW_PARKED != 0).then_some(Self::address(w))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{empty, golden},
        *,
    };

    const RW: Prot = Prot::READ.union(Prot::WRITE);

    #[test]
    fn golden_entries() {
        let f = RockchipV2;
        assert_eq!(golden(&f, 1, 12, Phys(0x1234_5000), RW), 0x1234_5007);
        assert_eq!(golden(&f, 1, 12, Phys(0x1234_5000), Prot::READ), 0x1234_5003);
        assert_eq!(golden(&f, 1, 12, Phys(0x1234_5000), Prot::WRITE), 0x1234_5005);
        // Bits 35:32 go to 11:8, bits 39:36 to 7:4.
        assert_eq!(golden(&f, 1, 12, Phys(0xab_1234_5000), RW), 0x1234_5ba7);
        assert_eq!(golden(&f, 1, 12, Phys(0xff_ffff_f000), RW), 0xffff_fff7);
        assert_eq!(f.table(2, Phys(0xab_1234_5000)), 0x1234_5ba1);
        assert_eq!(f.decode(2, 0x1234_5ba1), Entry::Table(Phys(0xab_1234_5000)));
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        for prot in [Prot::empty(), RW | Prot::EXEC, RW | Prot::MMIO, RW | Prot::SNOOP, RW | Prot::PRIV] {
            assert_eq!(RockchipV2.template(prot), None, "{prot:?}");
        }
    }

    #[test]
    fn entries_that_are_not_valid_are_empty() {
        empty(&RockchipV2, &[!VALID], &[0, 0x7000, 0xff_ffff_f000]);
    }
}
