//! VMSAv8-64 (Arm DDI 0487 issue M.a, D8.2 to D8.7).

use super::*;
use portcullis_pgtable::{ArmStage1, ArmStage2, Space};

/// The address that a Table descriptor with 48 bits leads to: 47:m (tables D8-50 and D8-51).
const fn shape(granule: u32, more: u32) -> Shape {
    let next: fn(u64) -> u64 = match granule {
        12 => |w| bits(w, 47, 12) << 12,
        14 => |w| bits(w, 47, 14) << 14,
        _ => |w| bits(w, 47, 16) << 16,
    };
    Shape { page: granule, stride: granule - 3, more, entry: 8, next }
}

/// Of a Table descriptor of a table below 2^48: bit 1 says that it is one, bit 0 that it is valid.
const TABLE: u64 = 0b11;

fn of(input_bits: u8, output_bits: u8) -> Config {
    Config { input_bits, output_bits, ..Config::default() }
}

/// What a stage 1 leaf says for reads and writes at any privilege: UXN and PXN (54:53), nG (11), AF
/// (10), SH inner (9:8), AP[2:1] (7:6) 01, AttrIndx (4:2) 1 (table D8-52, D8-63).
const S1: &[Field] = &[(54, 53, 0b11), (11, 11, 1), (10, 10, 1), (7, 6, 0b01), (4, 2, 1)];
/// What a stage 2 leaf says for reads and writes: XN (54:53) 10, AF (10), S2AP (7:6) 11, MemAttr (5:2)
/// 1111 (tables D8-53, D8-76, D8-78, D8-96).
const S2: &[Field] = &[(54, 53, 0b10), (10, 10, 1), (7, 6, 0b11), (5, 2, 0b1111)];
/// Inner shareable, where there is such a field (table D8-102 and its like in D8.6.2).
const INNER: &[Field] = &[(9, 8, 0b11)];

/// Maps one leaf of each size of `all`, given with Arm's level and whether it is contiguous, and
/// compares; `oab` gives the address fields of 4, 16 and 64 KiB granules of this width.
fn every_size<const G: u32>(c: Config, all: &[(u64, i32, bool)], oab: fn(u64) -> Vec<Field>, sh: &[Field]) {
    let list: Vec<u64> = all.iter().map(|(size, ..)| *size).collect();
    assert_eq!(sizes::<ArmStage1<G>>(c), list);
    assert_eq!(sizes::<ArmStage2<G>>(c), list);
    for &(size, level, contiguous) in all {
        // The largest leaf that is asked for; beside it only what it is made of.
        let entry = 1u64 << (G + (G - 3) * (3 - level) as u32);
        let c = Config { page_sizes: 1 << G | entry | size, ..c };
        // Highest bits of both addresses, and odd ones.
        let top = 1u64 << (c.output_bits.min(52) - 1) & !(size - 1);
        let phys = top.max(5 * size);
        let iova = 3 * size;
        // Bit 1 is 1 in a Page descriptor, 0 in a Block descriptor.
        let kind = [(52, 52, contiguous.into()), (1, 1, (level == 3).into()), (0, 0, 1)];
        let table = (usize::try_from(4 - level).unwrap(), TABLE);
        // Of a contiguous set every descriptor has the address of its own.
        for nth in if contiguous { vec![0, 1, size / entry - 1] } else { vec![0] } {
            let phys_of = phys + nth * entry;
            let mut one = Mapped::<ArmStage1<G>>::new(c, iova, phys, size, RW);
            one.iova += nth * entry;
            let want = word(&[&oab(phys_of)[..], S1, sh, &kind].concat());
            assert_eq!(one.leaf(&shape(G, 0), table.0, table.1), want, "{size:#x} at stage 1");
            let mut two = Mapped::<ArmStage2<G>>::new(c, iova, phys, size, RW);
            two.iova += nth * entry;
            let want = word(&[&oab(phys_of)[..], S2, sh, &kind].concat());
            assert_eq!(two.leaf(&shape(G, 4), table.0, table.1), want, "{size:#x} at stage 2");
        }
    }
}

/// Tables D8-17 and D8-104: 4 KiB, sixteen entries a set, level 0 blocks with DS only and never
/// contiguous.
#[test]
fn leaves_of_the_4_kib_granule() {
    let mut all = vec![
        (4 * KIB, 3, false),
        (64 * KIB, 3, true),
        (2 * MIB, 2, false),
        (32 * MIB, 2, true),
        (GIB, 1, false),
        (16 * GIB, 1, true),
    ];
    every_size::<12>(of(48, 48), &all, |a| vec![(47, 12, bits(a, 47, 12))], INNER);
    all.push((512 * GIB, 0, false));
    // DS: OAB[49:48] in 49:48, OAB[51:50] in 9:8, no SH.
    let oab = |a| vec![(49, 12, bits(a, 49, 12)), (9, 8, bits(a, 51, 50))];
    every_size::<12>(of(52, 52), &all, oab, &[]);
    every_size::<12>(of(52, 48), &all, oab, &[]);
    every_size::<12>(of(48, 52), &all, oab, &[]);
}

/// Tables D8-27 and D8-104: 16 KiB, 128 pages or 32 blocks a set, level 1 blocks with DS only and
/// never contiguous.
#[test]
fn leaves_of_the_16_kib_granule() {
    let mut all = vec![(16 * KIB, 3, false), (2 * MIB, 3, true), (32 * MIB, 2, false), (GIB, 2, true)];
    every_size::<14>(of(48, 48), &all, |a| vec![(47, 14, bits(a, 47, 14))], INNER);
    all.push((64 * GIB, 1, false));
    let oab = |a| vec![(49, 14, bits(a, 49, 14)), (9, 8, bits(a, 51, 50))];
    every_size::<14>(of(52, 52), &all, oab, &[]);
}

/// Tables D8-36 and D8-104: 64 KiB, 32 entries a set, level 1 blocks with FEAT_LPA only and never
/// contiguous. The descriptors have SH also with 52 bits.
#[test]
fn leaves_of_the_64_kib_granule() {
    let mut all = vec![(64 * KIB, 3, false), (2 * MIB, 3, true), (512 * MIB, 2, false), (16 * GIB, 2, true)];
    every_size::<16>(of(48, 48), &all, |a| vec![(47, 16, bits(a, 47, 16))], INNER);
    all.push((4 * TIB, 1, false));
    let oab = |a| vec![(47, 16, bits(a, 47, 16)), (15, 12, bits(a, 51, 48))];
    every_size::<16>(of(52, 52), &all, oab, INNER);
}

/// Table D8-50 and D8-51: the next-level table's address.
#[test]
fn tables_that_lie_high() {
    let at = Phys(0xd_4321_0fed_0000);
    let valid = &[(1, 0, 0b11)];
    let four = ArmStage1::<12>::new(&of(48, 52)).table(3, at);
    assert_eq!(four, word(&and(&[(49, 12, bits(at.0, 49, 12)), (9, 8, bits(at.0, 51, 50))], valid)));
    let sixteen = ArmStage2::<14>::new(&of(48, 52)).table(2, at);
    assert_eq!(sixteen, word(&and(&[(49, 14, bits(at.0, 49, 14)), (9, 8, bits(at.0, 51, 50))], valid)));
    let large = ArmStage2::<16>::new(&of(48, 52)).table(2, at);
    assert_eq!(large, word(&and(&[(47, 16, bits(at.0, 47, 16)), (15, 12, bits(at.0, 51, 48))], valid)));
}

fn page<F: Format>(config: Config, more: u32, prot: Prot) -> u64 {
    let at = (0xa_b000, 0x1234_5678_9000, 4 * KIB, prot);
    // Bit 55, ignored in Table descriptors, is the library's mark for those that were cleaned.
    let table = TABLE | if config.coherent { 0 } else { 1 << 55 };
    leaf::<F>(config, &shape(12, more), (1, table), at)
}

fn page_fields(fields: &[Field]) -> u64 {
    word(&and(&[(47, 12, 0x1_2345_6789), (1, 0, 0b11)], fields))
}

/// AP[2:1], UXN and PXN by tables D8-63 and D8-65. AttrIndx is an index into `ARM_MAIR`.
#[test]
fn attributes_of_stage_1() {
    let mair = |n: u32| bits(portcullis_pgtable::ARM_MAIR, 8 * n + 7, 8 * n);
    // MAIR_EL1: 0100_0100 is normal non-cacheable, 1111_1111 normal write-back, 0000_0100
    // Device-nGnRE.
    assert_eq!((mair(0), mair(1), mair(2)), (0b0100_0100, 0b1111_1111, 0b0000_0100));
    let p = Prot::PRIV;
    for (prot, ap, xn, index, sh) in [
        (READ, 0b11, 0b11, 1, 0b11),
        (RW, 0b01, 0b11, 1, 0b11),
        (RX, 0b11, 0b00, 1, 0b11),
        (RWX, 0b01, 0b00, 1, 0b11),
        (READ | p, 0b10, 0b11, 1, 0b11),
        (RW | p, 0b00, 0b11, 1, 0b11),
        (RX | p, 0b10, 0b10, 1, 0b11),
        (RW | Prot::UNCACHED, 0b01, 0b11, 0, 0b10),
        (RW | Prot::MMIO, 0b01, 0b11, 2, 0b10),
    ] {
        let want = [(54, 53, xn), (11, 11, 1), (10, 10, 1), (9, 8, sh), (7, 6, ap), (5, 5, 0), (4, 2, index)];
        assert_eq!(page::<ArmStage1<12>>(of(48, 48), 0, prot), page_fields(&want), "{prot:?}");
    }
}

/// S2AP by table D8-76, XN by tables D8-77 and D8-78, MemAttr by table D8-96.
#[test]
fn attributes_of_stage_2() {
    for (prot, s2ap, xn, attr, sh) in [
        (READ, 0b01, 0b10, 0b1111, 0b11),
        (WRITE, 0b10, 0b10, 0b1111, 0b11),
        (RW, 0b11, 0b10, 0b1111, 0b11),
        (RX, 0b01, 0b00, 0b1111, 0b11),
        (RWX, 0b11, 0b00, 0b1111, 0b11),
        (RW | Prot::UNCACHED, 0b11, 0b10, 0b0101, 0b10),
        (RW | Prot::MMIO, 0b11, 0b10, 0b0001, 0b10),
    ] {
        let want = [(54, 53, xn), (11, 11, 0), (10, 10, 1), (9, 8, sh), (7, 6, s2ap), (5, 2, attr)];
        assert_eq!(page::<ArmStage2<12>>(of(48, 48), 4, prot), page_fields(&want), "{prot:?}");
    }
}

/// D8.5.1.2 and D8.5.2.1: with HA the walker sets AF; with HD too a writable leaf begins
/// writable-clean, DBM 1 and AP[2] 1 or S2AP[1] 0.
#[test]
fn access_flag_and_dirty_state() {
    for (accessed, dirty, coherent) in
        [(true, false, true), (true, true, true), (true, true, false), (false, true, true)]
    {
        let c = Config { accessed, dirty, coherent, ..of(48, 48) };
        // A walker that does not snoop cannot update; without HA, HD means nothing.
        let (af, kept) = match (accessed, coherent) {
            (true, true) => (0, dirty),
            _ => (1, false),
        };
        for (prot, write) in [(READ, false), (RW, true)] {
            let dbm = (kept && write).into();
            let ap = if write && !kept { 0b01 } else { 0b11 };
            let want =
                [(54, 53, 0b11), (51, 51, dbm), (11, 11, 1), (10, 10, af), (9, 8, 3), (7, 6, ap), (4, 2, 1)];
            assert_eq!(page::<ArmStage1<12>>(c, 0, prot), page_fields(&want), "{c:?}");
            let s2ap = if write && !kept { 0b11 } else { 0b01 };
            let want = [(54, 53, 2), (51, 51, dbm), (10, 10, af), (9, 8, 3), (7, 6, s2ap), (5, 2, 15)];
            assert_eq!(page::<ArmStage2<12>>(c, 4, prot), page_fields(&want), "{c:?}");
        }
    }
}

/// Tables D8-18, D8-28 and D8-37: the initial lookup level of stage 1, and how many bits it resolves.
#[test]
fn where_a_walk_of_stage_1_begins() {
    fn check<const G: u32>(all: &[(i32, u8, u8)]) {
        for &(level, most, least) in all {
            for width in least..=most {
                let below = G + (G - 3) * (3 - level) as u32;
                let bytes = 8usize << (u32::from(width) - below);
                let want = (usize::try_from(4 - level).unwrap(), bytes.max(4096));
                assert_eq!(root::<ArmStage1<G>>(of(width, 48)), want, "{width} bits");
            }
        }
    }
    check::<12>(&[(-1, 52, 49), (0, 48, 40), (1, 39, 31), (2, 30, 25)]);
    check::<14>(&[(0, 52, 48), (1, 47, 37), (2, 36, 26)]);
    check::<16>(&[(1, 52, 43), (2, 42, 30)]);
}

/// Tables D8-20 to D8-24, D8-30 to D8-33, D8-39 to D8-41: of stage 2, with up to sixteen tables
/// concatenated, which is what is chosen where it saves a level.
#[test]
fn where_a_walk_of_stage_2_begins() {
    fn check<const G: u32>(all: &[(i32, u8, u8)]) {
        for &(level, most, least) in all {
            for width in least..=most {
                let below = G + (G - 3) * (3 - level) as u32;
                let entries = 1usize << (u32::from(width) - below);
                assert!(entries <= 16 << (G - 3), "at most sixteen tables");
                let want = (usize::try_from(4 - level).unwrap(), (8 * entries).max(4096));
                assert_eq!(root::<ArmStage2<G>>(of(width, 48)), want, "{width} bits");
            }
        }
    }
    check::<12>(&[(0, 52, 44), (1, 43, 35), (2, 34, 25)]);
    check::<14>(&[(0, 52, 52), (1, 51, 41), (2, 40, 26)]);
    check::<16>(&[(1, 52, 47), (2, 46, 30)]);
}

/// The second of sixteen tables is reached by the bits above those of one table (D8.2.2).
#[test]
fn concatenated_tables() {
    let c = of(43, 48);
    for nth in 0..16 {
        let (iova, phys) = (nth << 39 | 0x12_3456_7000, 0xfeed_f000);
        let want = word(&[&[(47, 12, phys >> 12), (1, 0, 3)], S2, INNER].concat());
        let got = leaf::<ArmStage2<12>>(c, &shape(12, 4), (1, TABLE), (iova, phys, 4 * KIB, RW));
        assert_eq!(got, want, "{nth}");
    }
}

/// D8.2.4: a table for TTBR1 translates the highest addresses, and indexes by the bits below.
#[test]
fn the_upper_half() {
    let c = Config { space: Space::Upper, ..of(39, 48) };
    for iova in [0xffff_ff80_0000_0000, !0xfff] {
        let want = word(&[&[(47, 12, 7), (1, 0, 3)], S1, INNER].concat());
        assert_eq!(leaf::<ArmStage1<12>>(c, &shape(12, 0), (1, TABLE), (iova, 0x7000, 4 * KIB, RW)), want);
    }
    let table = Table::<ArmStage1<12>, _>::new(HeapMem::new(8), c).unwrap();
    assert!(table.map(0xffff_ff7f_ffff_f000, Phys(0), 4 * KIB, RW).is_err());
}

/// What a table is told to be read as does not depend on widths that it does not have: with 48 bits
/// in and out the descriptors have no DS, whatever was asked for.
#[test]
fn widths_that_were_cut() {
    let c = Config { levels: 4, ..of(64, 48) };
    let table = Table::<ArmStage1<12>, _>::new(HeapMem::new(8), c).unwrap();
    assert_eq!(table.desc().input_bits, 48);
    let want = word(&[&[(47, 12, 7), (1, 0, 3)], S1, INNER].concat());
    assert_eq!(leaf::<ArmStage1<12>>(c, &shape(12, 0), (1, TABLE), (0, 0x7000, 4 * KIB, RW)), want);
}
