//! VT-d's second stage (`[V]` 9.8, tables 41 to 47) and first stage (`[V]` 9.7, tables 34 to 40); AMD's
//! guest tables, which are the processor's too.

use super::*;
use portcullis_pgtable::{AmdV2, Space, VtdSecondStage, X86FirstStage};

const SHAPE: Shape = Shape { page: 12, stride: 9, more: 0, entry: 8, next: |w| bits(w, 51, 12) << 12 };
const ALL: [u64; 3] = [4 * KIB, 2 * MIB, GIB];

fn five() -> Config {
    Config { levels: 5, snoop: true, ..Config::default() }
}

/// A leaf of each size with the highest address bits set: its level, its address, and PS (bit 7), which is
/// 1 in a directory's entry, and not there in a page table's.
fn leaves() -> impl Iterator<Item = (usize, u64, u64, Vec<Field>)> {
    ALL.into_iter().enumerate().map(|(n, size)| {
        let phys = (0xf_abcd_0000_0000 & !(size - 1)) + 7 * size;
        let ps = if n == 0 { vec![] } else { vec![(7, 7, 1)] };
        (n + 1, size, phys, and(&[(51, 12, phys >> 12)], &ps))
    })
}

/// W 1, R 0; SNP 11, which is reserved in entries that lead to a table. Bit 52 is ignored, and ours.
#[test]
fn vtd_second_stage() {
    assert_eq!(sizes::<VtdSecondStage>(five()), ALL);
    for (level, size, phys, address) in leaves() {
        for (prot, fields) in [
            (READ, &[(1, 0, 0b01)][..]),
            (WRITE, &[(1, 0, 0b10)]),
            (RW, &[(1, 0, 0b11)]),
            (RW | Prot::SNOOP, &[(11, 11, 1), (1, 0, 0b11)]),
            (READ | Prot::MMIO, &[(52, 52, 1), (1, 0, 0b01)]),
        ] {
            let at = (3 * size, phys, size, prot);
            let w = leaf::<VtdSecondStage>(five(), &SHAPE, (level, 0b11), at);
            assert_eq!(w, word(&and(&address, fields)), "{prot:?}");
        }
    }
    for (levels, width) in [(3, 39), (4, 48), (5, 57)] {
        let c = Config { levels, ..Config::default() };
        assert_eq!(root::<VtdSecondStage>(c), (levels.into(), 4096));
        let last = (1u64 << width) - 4 * KIB;
        assert_eq!(leaf::<VtdSecondStage>(c, &SHAPE, (1, 0b11), (last, 0x5000, 4 * KIB, RW)), 0x5003);
    }
}

/// `[V]` 3.7.2, 3.10: with SSADE, A (8) and D (9) are the hardware's, or preset where it cannot write
/// them. An entry that leads to a table has A only.
#[test]
fn vtd_second_stage_accessed_and_dirty() {
    for (level, size, phys, address) in leaves() {
        for (accessed, coherent, ad) in [(true, true, 0b00), (true, false, 0b11), (false, false, 0b00)] {
            let c = Config { accessed, coherent, ..five() };
            let tables = word(&[(8, 8, ad & 1), (1, 0, 0b11)]);
            let mapped = Mapped::<VtdSecondStage>::new(c, 0, phys, size, READ);
            // The library's own mark for entries that were cleaned is bit 53.
            let settled = if coherent { 0 } else { 1 << 53 };
            let w = mapped.leaf(&SHAPE, level, tables | settled);
            assert_eq!(w, word(&and(&address, &[(9, 8, ad), (1, 0, 0b01)])));
        }
    }
}

/// U/S 2, R/W 1, P 0; memory types by PCD 4 and PWT 3, with PAT 0 (7 in a PTE, else 12).
#[test]
fn first_stage() {
    assert_eq!(sizes::<X86FirstStage>(five()), ALL);
    for (level, size, phys, address) in leaves() {
        for (prot, fields) in [
            (READ, &[(2, 0, 0b101)][..]),
            (RW, &[(2, 0, 0b111)]),
            (READ | Prot::PRIV, &[(2, 0, 0b001)]),
            (RW | Prot::PRIV, &[(2, 0, 0b011)]),
            (RW | Prot::MMIO, &[(4, 3, 0b11), (2, 0, 0b111)]),
        ] {
            let at = (3 * size, phys, size, prot);
            let c = Config { snoop: false, ..five() };
            assert_eq!(leaf::<X86FirstStage>(c, &SHAPE, (level, 0b111), at), word(&and(&address, fields)));
            let c = five();
            let at = (3 * size, phys, size, prot | Prot::SNOOP);
            assert_eq!(leaf::<X86FirstStage>(c, &SHAPE, (level, 0b111), at), word(&and(&address, fields)));
        }
    }
}

/// `[V]` 3.6.2, 3.10: A (5) of every entry and D (6) of leaves are preset where walks do not snoop.
#[test]
fn first_stage_accessed_and_dirty() {
    for (level, size, phys, address) in leaves() {
        let c = Config { coherent: false, ..five() };
        let tables = word(&[(53, 53, 1), (5, 5, 1), (2, 0, 0b111)]);
        let w = leaf::<X86FirstStage>(c, &SHAPE, (level, tables), (0, phys, size, READ | Prot::SNOOP));
        assert_eq!(w, word(&and(&address, &[(6, 5, 0b11), (2, 0, 0b101)])));
    }
}

/// `[V]` 3.6: addresses are canonical; software is to stay below half of the space, unless both halves
/// are asked for.
#[test]
fn canonical_addresses() {
    for (levels, width) in [(4, 48), (5, 57)] {
        let c = Config { levels, space: Space::Signed, ..Config::default() };
        assert_eq!(root::<X86FirstStage>(c), (levels.into(), 4096));
        for iova in [0, (1 << (width - 1)) - 4 * KIB, u64::MAX << (width - 1), !0xfff] {
            let at = (iova, 0x5000, 4 * KIB, RW);
            assert_eq!(leaf::<X86FirstStage>(c, &SHAPE, (1, 0b111), at), 0x5007);
        }
        let lower = Config { levels, ..Config::default() };
        let table = Table::<X86FirstStage, _>::new(HeapMem::new(8), lower).unwrap();
        assert_eq!(u64::from(table.desc().input_bits), width - 1);
    }
}

/// The same with NX, bit 63, where the unit checks it.
#[test]
fn amd_guest_tables() {
    let c = Config { execute: true, levels: 5, ..Config::default() };
    assert_eq!(sizes::<AmdV2>(c), ALL);
    for (level, size, phys, address) in leaves() {
        for (prot, nx, flags) in [
            (READ, 1, 0b101),
            (RW, 1, 0b111),
            (RX, 0, 0b101),
            (RWX, 0, 0b111),
            (RW | Prot::PRIV, 1, 0b011),
            (RX | Prot::PRIV, 0, 0b001),
        ] {
            let w = leaf::<AmdV2>(c, &SHAPE, (level, 0b111), (3 * size, phys, size, prot));
            assert_eq!(w, word(&and(&address, &[(63, 63, nx), (2, 0, flags)])), "{prot:?}");
        }
    }
    let without = Config { levels: 5, ..Config::default() };
    assert_eq!(leaf::<AmdV2>(without, &SHAPE, (1, 0b111), (0, 0x5000, 4 * KIB, RW)), 0x5007);
}
