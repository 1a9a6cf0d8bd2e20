//! AMD's host tables (AMD 48882, 2.2.3, by what the implementations of it agree on).

use super::*;
use portcullis_pgtable::AmdV1;

const SHAPE: Shape = Shape { page: 12, stride: 9, more: 0, entry: 8, next: |w| bits(w, 51, 12) << 12 };

/// IW 62, IR 61, FC 60, U 59, reserved 58:52, Address 51:12, Next Level 11:9, D 6, A 5, PR 0. The
/// others are ignored.
fn entry(address: u64, next: u64, fields: &[Field]) -> u64 {
    word(&and(&[(51, 12, address >> 12), (11, 9, next), (0, 0, 1)], fields))
}

/// The leaf for an address that was mapped alone in a table of six levels; above it IW, IR and the
/// number of the next level.
fn one(c: Config, level: usize, (iova, phys, len, prot): (u64, u64, u64, Prot)) -> Vec<u64> {
    let mut mapped = Mapped::<AmdV1>::new(Config { levels: 6, ..c }, iova, phys, len, prot);
    let span = 1u64 << (12 + 9 * (level as u32 - 1));
    let entries = len / span;
    let mut leaves = Vec::new();
    for nth in if entries > 1 { vec![0, 1, entries / 2, entries - 1] } else { vec![0] } {
        mapped.iova = iova + nth * span;
        let mut words = mapped.walk(&SHAPE, level);
        leaves.push(words.pop().unwrap());
        for (n, w) in words.into_iter().enumerate() {
            assert_eq!(w, entry((SHAPE.next)(w), 5 - n as u64, &[(62, 61, 0b11)]), "level {}", 6 - n);
        }
    }
    leaves
}

/// One entry's span, which is Next Level 0, and every power of two between, which is 7: the lowest clear
/// bit of the address field is half the size, and all below it are set.
#[test]
fn a_leaf_of_every_size() {
    for n in 12..52u32 {
        let size = 1u64 << n;
        let level = (n as usize - 12) / 9 + 1;
        let span = 1u64 << (12 + 9 * (level as u32 - 1));
        let c = Config { page_sizes: 1 << 12 | span | size, ..Config::default() };
        let phys = if n < 51 { 1 << 51 | size } else { 1 << 51 };
        let want = if size == span {
            entry(phys, 0, &[(62, 61, 0b11)])
        } else {
            // Of 8 KiB bit 12 is clear; of 16 KiB bit 12 is set and 13 clear; and so on.
            let ones = (size / 2 - 1) & !0xfff;
            assert_eq!(phys & (size / 2), 0);
            entry(phys | ones, 7, &[(62, 61, 0b11)])
        };
        for got in one(c, level, (size, phys, size, RW)) {
            assert_eq!(got, want, "2^{n}");
        }
    }
    let all: Vec<u64> = (12..52).map(|n| 1 << n).collect();
    assert_eq!(sizes::<AmdV1>(Config::default()), all, "the highest level has none");
}

#[test]
fn permissions() {
    for (prot, fields) in [
        (READ, &[(62, 61, 0b01)][..]),
        (WRITE, &[(62, 61, 0b10)]),
        (RW, &[(62, 61, 0b11)]),
        (RW | Prot::SNOOP, &[(62, 61, 0b11), (60, 60, 1)]),
        // Ours, of the ignored ones.
        (RW | Prot::MMIO, &[(62, 61, 0b11), (2, 2, 1)]),
    ] {
        let got = one(Config::default(), 1, (0xffff_ffff_ffff_f000, 0xf_ffff_ffff_f000, 4 * KIB, prot));
        assert_eq!(got, [entry(0xf_ffff_ffff_f000, 0, fields)], "{prot:?}");
    }
}

/// HAD: A and D are the hardware's, or preset where it cannot write them.
#[test]
fn accessed_and_dirty() {
    for (accessed, dirty, coherent, da) in [
        (true, true, true, 0b00),
        (true, true, false, 0b11),
        (true, false, false, 0b01),
        (false, false, false, 0b00),
    ] {
        let c = Config { accessed, dirty, coherent, ..Config::default() };
        let mapped = Mapped::<AmdV1>::new(c, 0, 0x5000, 4 * KIB, RW);
        let got = mapped.leaf(&SHAPE, 1, 0);
        assert_eq!(got, entry(0x5000, 0, &[(62, 61, 0b11), (6, 5, da)]));
    }
}

/// A table that grows: each new root leads to the old one, whose level it names; mode is the number of
/// levels, up to six, the highest of which resolves 63:57.
#[test]
fn levels_that_grow() {
    for (levels, iova) in [(1, 0), (2, 2 * MIB), (3, GIB), (4, 512 * GIB), (5, 1 << 48), (6, 1 << 57)] {
        let mapped = Mapped::<AmdV1>::new(Config::default(), iova, 0x5000, 4 * KIB, RW);
        assert_eq!(mapped.table.top().levels, levels);
        let words = mapped.walk(&SHAPE, 1);
        for (n, w) in words.iter().enumerate() {
            let next = (levels - 1 - n) as u64;
            let address = if next == 0 { 0x5000 } else { (SHAPE.next)(*w) };
            assert_eq!(*w, entry(address, next, &[(62, 61, 0b11)]));
        }
    }
}
