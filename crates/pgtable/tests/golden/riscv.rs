//! RISC-V's entries (privileged architecture, "Sv39", "Sv48", "Sv57", "Svnapot", "Svpbmt", "Guest
//! Physical Address Translation").

use super::*;
use portcullis_pgtable::{RiscvFirstStage, RiscvSecondStage, Space};

/// N 63, PBMT 62:61, reserved 60:54, PPN 53:10, RSW 9:8, D 7, A 6, G 5, U 4, X 3, W 2, R 1, V 0.
fn pte(phys: u64, fields: &[Field]) -> u64 {
    word(&and(&[(53, 10, phys >> 12), (0, 0, 1)], fields))
}

const fn shape(more: u32) -> Shape {
    Shape { page: 12, stride: 9, more, entry: 8, next: |w| bits(w, 53, 10) << 12 }
}

/// A pointer to the next level has V, and its PPN; its PPN lies elsewhere than an address does, so
/// what is left when the address is masked is not just V: all of it is checked.
fn one<F: Format>(config: Config, level: usize, (iova, phys, len, prot): (u64, u64, u64, Prot)) -> u64 {
    let shape = shape(if F::ID == portcullis_pgtable::RISCV_SECOND_STAGE { 2 } else { 0 });
    let mapped = Mapped::<F>::new(config, iova, phys, len, prot);
    let mut words = mapped.walk(&shape, level);
    let leaf = words.pop().unwrap();
    for w in words {
        assert_eq!(w, pte((shape.next)(w), &[]), "{w:#x}");
    }
    leaf
}

fn sv39(accessed: bool, memory_types: bool) -> Config {
    Config { levels: 3, accessed, memory_types, ..Config::default() }
}

/// A and D are the hardware's to set.
const CLEAN: &[Field] = &[(7, 7, 0), (6, 6, 0)];

#[test]
fn a_leaf_of_every_size_at_every_level() {
    let phys = 0x00ab_0000_0000_0000;
    let rw = &[(4, 4, 1), (3, 3, 0), (2, 2, 1), (1, 1, 1)];
    for (level, size) in [(1, 4 * KIB), (2, 2 * MIB), (3, GIB), (4, 512 * GIB), (5, 256 * TIB)] {
        let c = Config { levels: 5, accessed: true, page_sizes: size | 1 << 12, ..Config::default() };
        // PPN bits below the size are 0.
        let (iova, phys) = (size, phys + 3 * size);
        let want = pte(phys, &and(rw, CLEAN));
        assert_eq!(one::<RiscvSecondStage>(c, level, (iova, phys, size, RW)), want, "{size:#x}");
        assert_eq!(one::<RiscvFirstStage>(c, level, (iova, phys, size, RW)), want, "{size:#x}");
    }
    let all = [4 * KIB, 64 * KIB, 2 * MIB, GIB, 512 * GIB, 256 * TIB];
    assert_eq!(sizes::<RiscvFirstStage>(Config::default()), all);
    assert_eq!(sizes::<RiscvSecondStage>(Config::default()), all);
}

/// 64 KiB, the one size of Svnapot: N is 1 and ppn[0] is x xxxx 1000, in all sixteen entries.
#[test]
fn sixteen_entries_of_svnapot() {
    for page in 0..16 {
        let (iova, phys) = (0x7_0000, 0x1234_5670_0000);
        let mut mapped = Mapped::<RiscvSecondStage>::new(sv39(true, false), iova, phys, 64 * KIB, RW);
        mapped.iova += page * 4 * KIB;
        let w = *mapped.walk(&shape(2), 1).last().unwrap();
        let want = [
            (63, 63, 1),
            (53, 14, bits(phys, 55, 16)),
            (13, 10, 0b1000),
            (4, 4, 1),
            (2, 2, 1),
            (1, 1, 1),
            (0, 0, 1),
        ];
        assert_eq!(w, word(&want), "{page}");
    }
}

#[test]
fn permissions() {
    let phys = 0x00ff_ffff_ffff_f000;
    let at = |prot| one::<RiscvFirstStage>(sv39(true, false), 1, (0, phys, 4 * KIB, prot));
    for (prot, u, xwr) in [
        (READ, 1, 0b001),
        (RW, 1, 0b011),
        (Prot::EXEC, 1, 0b100),
        (RX, 1, 0b101),
        (RWX, 1, 0b111),
        (RW | Prot::PRIV, 0, 0b011),
        (Prot::EXEC | Prot::PRIV, 0, 0b100),
    ] {
        assert_eq!(at(prot), pte(phys, &[(4, 4, u), (3, 1, xwr)]), "{prot:?}");
    }
    // The second stage checks every access as user mode does: U is always 1.
    for (prot, xwr) in [(READ, 0b001), (RW, 0b011), (Prot::EXEC, 0b100), (RX, 0b101), (RWX, 0b111)] {
        let w = one::<RiscvSecondStage>(sv39(true, false), 1, (0, phys, 4 * KIB, prot));
        assert_eq!(w, pte(phys, &[(4, 4, 1), (3, 1, xwr)]), "{prot:?}");
    }
}

/// Where the unit faults on A and D that are 0 they are set, D where there is something to write.
#[test]
fn accessed_and_dirty() {
    for (prot, d, xwr) in [(READ, 0, 0b001), (RW, 1, 0b011)] {
        let w = one::<RiscvSecondStage>(sv39(false, false), 1, (0, 0x5000, 4 * KIB, prot));
        assert_eq!(w, pte(0x5000, &[(7, 7, d), (6, 6, 1), (4, 4, 1), (3, 1, xwr)]), "{prot:?}");
    }
}

/// PBMT: 0 as the physical memory attributes say, 1 NC, 2 IO. Bit 9 is software's.
#[test]
fn memory_types() {
    for (more, pbmt, rsw) in [(Prot::empty(), 0, 0), (Prot::UNCACHED, 1, 0), (Prot::MMIO, 2, 0b10)] {
        let w = one::<RiscvFirstStage>(sv39(true, true), 1, (0, 0x5000, 4 * KIB, RW | more));
        assert_eq!(w, pte(0x5000, &[(62, 61, pbmt), (9, 8, rsw), (4, 4, 1), (3, 1, 0b011)]), "{more:?}");
    }
    // Without Svpbmt the field is reserved.
    let w = one::<RiscvFirstStage>(sv39(true, false), 1, (0, 0x5000, 4 * KIB, RW | Prot::MMIO));
    assert_eq!(w, pte(0x5000, &[(62, 61, 0), (9, 8, 0b10), (4, 4, 1), (3, 1, 0b011)]));
}

/// Sv39, Sv48 and Sv57 translate 39, 48 and 57 bits, sign-extended; the x4 forms two bits more, by
/// a root of 16 KiB that is aligned to 16 KiB.
#[test]
fn roots() {
    for (levels, width) in [(3, 39), (4, 48), (5, 57)] {
        let c = Config { levels, accessed: true, ..Config::default() };
        assert_eq!(root::<RiscvFirstStage>(c), (levels.into(), 4096));
        assert_eq!(root::<RiscvSecondStage>(c), (levels.into(), 16384));
        let want = pte(0x5000, &[(4, 4, 1), (3, 1, 0b011)]);
        let last = (1u64 << (width + 2)) - 4 * KIB;
        assert_eq!(one::<RiscvSecondStage>(c, 1, (last, 0x5000, 4 * KIB, RW)), want);
        let c = Config { space: Space::Signed, ..c };
        assert_eq!(one::<RiscvFirstStage>(c, 1, (!0xfff, 0x5000, 4 * KIB, RW)), want);
        let lowest = u64::MAX << (width - 1);
        assert_eq!(one::<RiscvFirstStage>(c, 1, (lowest, 0x5000, 4 * KIB, RW)), want);
    }
}
