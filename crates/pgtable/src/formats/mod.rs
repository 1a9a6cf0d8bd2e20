//! The formats, one a file.

pub mod amd_v1;
pub mod arm;
mod arm_stages;
pub mod riscv;
pub mod rockchip;
pub mod vtd_second_stage;
pub mod x86_first_stage;

pub use amd_v1::{AMD_V1, AmdV1, AmdV1Mock};
pub use arm::{ARM_MAIR, ArmStage1, ArmStage2};
pub use riscv::{RISCV_FIRST_STAGE, RISCV_SECOND_STAGE, RiscvFirstStage, RiscvSecondStage};
pub use rockchip::{ROCKCHIP_V2, RockchipV2};
pub use vtd_second_stage::{VTD_SECOND_STAGE, VtdSecondStage};
pub use x86_first_stage::{AMD_V2, AmdV2, X86_FIRST_STAGE, X86FirstStage};

/// Leaf sizes of formats with 4 KiB tables of 64-bit entries, for [`crate::Config::page_sizes`].
pub mod size {
    /// 4 KiB.
    pub const K4: u64 = 1 << 12;
    /// 2 MiB.
    pub const M2: u64 = 1 << 21;
    /// 1 GiB.
    pub const G1: u64 = 1 << 30;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Entry, Format, Phys, Prot, Word};

    /// The entry for `phys` of a leaf of 2^`size_bits` bytes, which is read back as what it is.
    pub(super) fn golden<F: Format>(f: &F, level: usize, size_bits: u32, phys: Phys, prot: Prot) -> F::Word {
        let template = f.template(prot).expect("permissions that the format has");
        let w = f.leaf(template, level, phys, size_bits);
        let base = Phys(phys.0 & !((1 << size_bits) - 1));
        assert_eq!(f.decode(level, w), Entry::Leaf { base, size_bits }, "{w:#x}");
        assert_eq!(f.prot(w), prot, "{w:#x}");
        assert!(w & F::PRESENT != F::Word::default(), "{w:#x}");
        assert_eq!(f.leaf(f.attributes(level, w), level, phys, size_bits), w);
        assert_eq!(f.protect(w, template), Some(w));
        w
    }

    /// The entry at `level` that leads to `table`, which is read back as that, settled or not.
    pub(super) fn golden_table<F: Format>(f: &F, level: usize, table: Phys) -> F::Word {
        let w = f.table(level, table);
        assert_eq!(f.decode(level, w), Entry::Table(table), "{w:#x}");
        assert_eq!(f.decode(level, f.settle(w)), Entry::Table(table));
        assert!(!f.settled(w));
        w
    }

    /// What [`Format::child`] says is a table is one, and it knows those that the format writes.
    fn children<F: Format>() {
        let mut word = 1u64;
        for config in [Config::default(), Config { output_bits: 48, input_bits: 48, ..Config::default() }] {
            let f = F::new(&config);
            for level in 2..=F::MAX_LEVELS {
                for _ in 0..4096 {
                    word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                    // All that is tested for lies in the lowest bits.
                    for low in [0, word >> 56] {
                        let w = F::Word::from_bits(word & !0xff | low);
                        if let Some(table) = f.child(level, w) {
                            assert_eq!(f.decode(level, w), Entry::Table(table), "{:?} {w:#x}", F::ID);
                        }
                    }
                }
                let table = Phys(0x1234_0000);
                for w in [f.table(level, table), f.settle(f.table(level, table))] {
                    assert_eq!(f.child(level, w), Some(table), "{:?}", F::ID);
                }
            }
        }
    }

    #[test]
    fn children_are_tables() {
        children::<VtdSecondStage>();
        children::<X86FirstStage>();
        children::<AmdV1>();
        children::<ArmStage1<12>>();
        children::<ArmStage2<14>>();
        children::<ArmStage1<16>>();
        children::<RiscvFirstStage>();
        children::<RiscvSecondStage>();
        children::<RockchipV2>();
    }

    /// Entries that are not present are empty, at every level, and those that are parked come back.
    pub(super) fn empty<F: Format>(f: &F, absent: &[F::Word], addresses: &[u64]) {
        for level in 1..=F::MAX_LEVELS {
            for &w in absent.iter().chain(&[F::Word::default()]) {
                assert_eq!(f.decode(level, w), Entry::Empty, "{w:#x}");
                assert!(w & F::PRESENT == F::Word::default(), "{w:#x}");
            }
            for next in addresses.iter().map(|a| Some(Phys(*a))).chain([None]) {
                let w = F::parked(next);
                assert_eq!(f.decode(level, w), Entry::Empty, "{w:#x}");
                assert_eq!(F::parked_next(w), next, "{w:#x}");
            }
        }
    }
}
