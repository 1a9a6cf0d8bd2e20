//! Tables read out of an image of memory.

use crate::common::config;
use portcullis_pgtable::{
    AmdV1, ArmStage2, Config, Format, IoTable, Phys, Prot, RiscvSecondStage, RockchipV2, Table, TableMem,
    Top, VtdSecondStage,
    dump::{self, Bytes, Finding, Mapped, Wrong},
    formats::size::{G1, K4, M2},
    testing::HeapMem,
};
use proptest::prelude::*;

const RW: Prot = Prot::READ.union(Prot::WRITE);
const FRAMES: usize = 32;

/// What memory holds, frame by frame; frames that nobody has are zero.
fn image(mem: &HeapMem, frames: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; FRAMES * 4096];
    for &frame in frames {
        for i in 0..512 {
            let w: u64 = mem.load(Phys(frame), i);
            let at = frame as usize + 8 * i;
            bytes[at..at + 8].copy_from_slice(&w.to_le_bytes());
        }
    }
    bytes
}

fn read<F: Format>(bytes: &[u8], top: Top, c: &Config) -> (Vec<Mapped>, Vec<Finding>) {
    let (mut mapped, mut wrong) = (Vec::new(), Vec::new());
    let image = Bytes { base: 0, bytes };
    dump::read::<F>(&image, top, c, &mut |m| mapped.push(m), &mut |w| wrong.push(w));
    (mapped, wrong)
}

/// A table with leaves of three sizes, and its image.
fn sample<F: Format>(c: &Config) -> (Vec<u8>, Top) {
    let mem = HeapMem::new(FRAMES);
    let t = Table::<F, _>::new(mem.clone(), *c).unwrap();
    t.map(M2 - 2 * K4, Phys(G1 - 2 * K4), 2 * K4 + M2, RW).unwrap();
    t.map(16 * M2, Phys(0), K4, Prot::READ).unwrap();
    let frames: Vec<u64> = (0..mem.in_use() as u64).map(|n| n * 4096).collect();
    (image(&mem, &frames), t.top())
}

fn sound<F: Format>(c: Config) {
    let (bytes, top) = sample::<F>(&c);
    let (mapped, wrong) = read::<F>(&bytes, top, &c);
    assert_eq!(wrong, []);
    let total: u64 = mapped.iter().map(|m| m.last - m.first + 1).sum();
    assert_eq!(total, 3 * K4 + M2);
    assert_eq!((mapped[0].first, mapped[0].phys), (M2 - 2 * K4, Phys(G1 - 2 * K4)));
    let last = mapped.last().unwrap();
    assert_eq!((last.first, last.last, last.prot), (16 * M2, 16 * M2 + K4 - 1, Prot::READ));
}

#[test]
fn a_sound_table_has_no_findings() {
    sound::<VtdSecondStage>(config());
    sound::<AmdV1>(Config { levels: 3, ..Config::default() });
    sound::<ArmStage2<12>>(Config { input_bits: 40, output_bits: 48, ..Config::default() });
    sound::<RiscvSecondStage>(Config { levels: 3, input_bits: 41, ..Config::default() });
    sound::<RockchipV2>(Config::default());
}

#[test]
fn text_and_json() {
    let (bytes, top) = sample::<VtdSecondStage>(&config());
    let (mapped, _) = read::<VtdSecondStage>(&bytes, top, &config());
    assert_eq!(mapped.len(), 3);
    let text = mapped[1].to_string();
    assert_eq!(text, "0x000000200000-0x0000003fffff -> 0x40000000 leaves of 0x200000 Prot(READ | WRITE)");
    let json = mapped[1].json().to_string();
    let want =
        r#"{"first":"0x200000","last":"0x3fffff","phys":"0x40000000","leaf_size":"0x200000","prot":3}"#;
    assert_eq!(json, want);
}

/// What is found after `change` was made to the image of a sound VT-d table.
fn broken(change: impl FnOnce(&mut [u8], &dyn Fn(&[u8], u64, usize) -> u64)) -> Vec<Wrong> {
    let (mut bytes, top) = sample::<VtdSecondStage>(&config());
    let load = |b: &[u8], table: u64, i: usize| {
        let at = table as usize + 8 * i;
        u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
    };
    change(&mut bytes, &load);
    read::<VtdSecondStage>(&bytes, top, &config()).1.iter().map(|f| f.what).collect()
}

#[test]
fn what_is_wrong_is_said() {
    let store = |b: &mut [u8], table: u64, i: usize, w: u64| {
        let at = table as usize + 8 * i;
        b[at..at + 8].copy_from_slice(&w.to_le_bytes());
    };
    // The root is frame 0; the first entry of each table leads on.
    let directory = |b: &[u8], load: &dyn Fn(&[u8], u64, usize) -> u64| {
        let pdpt = load(b, 0, 0) & !0xfff;
        load(b, pdpt, 0) & !0xfff
    };
    assert_eq!(broken(|_, _| ()), []);
    let again = broken(|b, load| store(b, directory(b, load), 7, load(b, 0, 0)));
    assert!(matches!(again[..], [Wrong::Again(_)]), "{again:?}");
    let far = broken(|b, load| store(b, directory(b, load), 7, 0x7000_0000_0003));
    assert_eq!(far, [Wrong::Outside]);
    // Address bits below a leaf of 2 MiB, and a leaf of 512 GiB.
    let low = broken(|b, load| store(b, directory(b, load), 7, 0x4000_1083));
    assert_eq!(low, [Wrong::Bits(0x1000)]);
    let huge = broken(|b, _| store(b, 0, 3, 0x83));
    assert_eq!(huge, [Wrong::Size(1 << 39)]);
    let reserved = broken(|b, load| {
        let d = directory(b, load);
        store(b, d, 0, load(b, d, 0) | 1 << 61);
    });
    assert_eq!(reserved, [Wrong::Bits(1 << 61)]);
}

#[test]
fn a_torn_leaf_of_several_entries() {
    let c = Config { input_bits: 40, output_bits: 48, ..Config::default() };
    let mem = HeapMem::new(FRAMES);
    let t = Table::<ArmStage2<12>, _>::new(mem.clone(), c).unwrap();
    t.map(0, Phys(0), 1 << 16, RW).unwrap();
    let frames: Vec<u64> = (0..mem.in_use() as u64).map(|n| n * 4096).collect();
    let mut bytes = image(&mem, &frames);
    assert_eq!(read::<ArmStage2<12>>(&bytes, t.top(), &c).1, []);
    // The fourth page of it is taken out.
    let leaf = frames.iter().find(|f| mem.load::<u64>(Phys(**f), 3) & 3 == 3).copied().unwrap();
    bytes[leaf as usize + 24..leaf as usize + 32].fill(0);
    let (mapped, wrong) = read::<ArmStage2<12>>(&bytes, t.top(), &c);
    assert_eq!(mapped, []);
    assert_eq!(wrong.len(), 15);
    assert!(wrong.iter().all(|f| f.what == Wrong::Torn(1 << 16)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Arbitrary images end, and do not panic.
    #[test]
    fn arbitrary_images(words in prop::collection::vec(any::<u64>(), 1..4096), levels in 0..9usize) {
        // Half of all addresses lead back into the image.
        let near = |w: u64| if w >> 63 == 0 { w } else { w & 0x7fff };
        let bytes: Vec<u8> = words.iter().flat_map(|w| near(*w).to_le_bytes()).collect();
        let top = Top { root: Phys(0), levels };
        let c = Config::default();
        let n = |(a, b): (Vec<Mapped>, Vec<Finding>)| a.len() + b.len();
        let all = n(read::<VtdSecondStage>(&bytes, top, &c))
            + n(read::<AmdV1>(&bytes, top, &c))
            + n(read::<ArmStage2<12>>(&bytes, top, &c))
            + n(read::<RiscvSecondStage>(&bytes, top, &c))
            + n(read::<RockchipV2>(&bytes, top, &c));
        // Every word is read by each format a few times at most, as a part of overlapping roots.
        prop_assert!(all <= 100 * words.len() + 100);
    }
}
