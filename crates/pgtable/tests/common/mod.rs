//! What the tests of the engine share: walkers that know nothing of the engine, and a format with
//! 32-bit entries and leaves of several of them.
#![allow(dead_code, reason = "each test file uses a part")]

use portcullis_pgtable::{
    AccessBits, Config, Entry, Format, FormatId, InPlace, Phys, Prot, TableMem, VtdSecondStage,
    X86FirstStage, testing::HeapMem,
};

/// A leaf as a walker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub start: u64,
    pub size: u64,
    pub phys: u64,
    pub prot: Prot,
}

/// A format and its own walker.
pub trait Walked: Format {
    /// All leaves below `root`, read from memory by what the manual says.
    fn walk(mem: &HeapMem, root: Phys) -> Vec<Found>;
    /// Permissions to choose from.
    const PROTS: &'static [Prot];
}

const READ: Prot = Prot::READ;
const WRITE: Prot = Prot::WRITE;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Walks four levels of 64-bit entries; `prot` reads the permissions of a leaf.
fn walk4(mem: &HeapMem, root: u64, present: fn(u64) -> bool, prot: fn(u64) -> Prot) -> Vec<Found> {
    let mut found = Vec::new();
    let mut todo = vec![(root, 39u32, 0u64)];
    while let Some((table, shift, base)) = todo.pop() {
        for i in 0..512 {
            let w: u64 = mem.load(Phys(table), i);
            let start = base + ((i as u64) << shift);
            let addr = w & 0x000f_ffff_ffff_f000;
            if !present(w) {
                continue;
            }
            if shift > 12 && w & 0x80 == 0 {
                todo.push((addr, shift - 9, start));
            } else {
                assert!(shift <= 30, "a leaf in the root");
                assert_eq!(addr % (1 << shift), 0, "reserved address bits");
                found.push(Found { start, size: 1 << shift, phys: addr, prot: prot(w) });
            }
        }
    }
    found.sort_by_key(|l| l.start);
    found
}

impl Walked for VtdSecondStage {
    const PROTS: &'static [Prot] = &[READ, WRITE, RW];

    fn walk(mem: &HeapMem, root: Phys) -> Vec<Found> {
        let prot = |w| {
            let mut p = Prot::empty();
            p.set(READ, w & 1 != 0);
            p.set(WRITE, w & 2 != 0);
            p
        };
        walk4(mem, root.0, |w| w & 3 != 0, prot)
    }
}

impl Walked for X86FirstStage {
    const PROTS: &'static [Prot] = &[READ, RW];

    fn walk(mem: &HeapMem, root: Phys) -> Vec<Found> {
        let prot = |w| {
            assert_ne!(w & 4, 0, "not a user page");
            if w & 2 != 0 { RW } else { READ }
        };
        walk4(mem, root.0, |w| w & 1 != 0, prot)
    }
}

/// Two levels of 1024 entries of 32 bits; 4 KiB, 64 KiB (sixteen entries) and 4 MiB.
#[derive(Clone, Copy, Debug)]
pub struct Wide;

const LEAF: u32 = 1;
const TABLE: u32 = 2;
const MANY: u32 = 4;
const WRITABLE: u32 = 8;
const USED: u32 = 16;
const PARKED: u32 = 32;
const SETTLED: u32 = 64;
const DIRTY: u32 = 128;

impl Format for Wide {
    type Word = u32;
    const ID: FormatId = FormatId("wide");
    const MIN_LEVELS: usize = 2;
    const MAX_LEVELS: usize = 2;
    const PRESENT: u32 = LEAF | TABLE;
    const GRANULE_BITS: u32 = 12;
    const INPUT_BITS: u8 = 32;
    const OUTPUT_BITS: u8 = 32;
    const LEAF_SIZES: u64 = 1 << 12 | 1 << 16 | 1 << 22;

    fn new(_: &Config) -> Wide {
        Wide
    }
    fn access_bits(&self) -> AccessBits {
        AccessBits::Kept
    }
    fn in_place(&self) -> InPlace {
        InPlace::ALL
    }
    fn template(&self, prot: Prot) -> Option<u32> {
        match prot {
            READ => Some(LEAF),
            RW => Some(LEAF | WRITABLE),
            _ => None,
        }
    }
    fn leaf(&self, template: u32, level: usize, phys: Phys, size_bits: u32) -> u32 {
        let many = if size_bits == Self::shift(level) { 0 } else { MANY };
        template | many | phys.0 as u32
    }
    fn table(&self, _: usize, table: Phys) -> u32 {
        TABLE | table.0 as u32
    }
    fn decode(&self, level: usize, w: u32) -> Entry {
        let addr = u64::from(w & !0xfff);
        match w & (LEAF | TABLE) {
            0 => Entry::Empty,
            TABLE => Entry::Table(Phys(addr)),
            _ => {
                let size_bits = if w & MANY != 0 { 16 } else { Self::shift(level) };
                Entry::Leaf { base: Phys(addr & !((1 << size_bits) - 1)), size_bits }
            }
        }
    }
    fn prot(&self, w: u32) -> Prot {
        if w & WRITABLE != 0 { RW } else { READ }
    }
    fn attributes(&self, _: usize, w: u32) -> u32 {
        w & (LEAF | WRITABLE | USED | DIRTY)
    }
    fn protect(&self, w: u32, template: u32) -> Option<u32> {
        Some(w & !WRITABLE | template & WRITABLE)
    }
    fn accessed(&self, w: u32) -> bool {
        w & USED != 0
    }
    fn clear_accessed(&self, w: u32) -> u32 {
        w & !USED
    }
    fn dirty(&self, w: u32) -> bool {
        w & DIRTY != 0
    }
    fn clear_dirty(&self, w: u32) -> u32 {
        w & !DIRTY
    }
    fn settled(&self, w: u32) -> bool {
        w & SETTLED != 0
    }
    fn settle(&self, w: u32) -> u32 {
        w | SETTLED
    }
    fn parked(next: Option<Phys>) -> u32 {
        next.map_or(0, |p| p.0 as u32 | PARKED)
    }
    fn parked_next(w: u32) -> Option<Phys> {
        (w & PARKED != 0).then_some(Phys(u64::from(w & !0xfff)))
    }
}

impl Walked for Wide {
    const PROTS: &'static [Prot] = &[READ, RW];

    fn walk(mem: &HeapMem, root: Phys) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        let mut see = |start: u64, size: u64, w: u32| {
            let prot = if w & WRITABLE != 0 { RW } else { READ };
            let phys = u64::from(w & !0xfff);
            found.push(Found { start, size, phys, prot });
        };
        for i in 0..1024 {
            let upper: u32 = mem.load(root, i);
            let base = (i as u64) << 22;
            if upper & LEAF != 0 {
                see(base, 1 << 22, upper);
            } else if upper & TABLE != 0 {
                let table = Phys(u64::from(upper & !0xfff));
                let mut i = 0;
                while i < 1024 {
                    let w: u32 = mem.load(table, i);
                    let start = base + ((i as u64) << 12);
                    i += 1;
                    if w & LEAF == 0 {
                        continue;
                    }
                    if w & MANY == 0 {
                        see(start, 1 << 12, w);
                        continue;
                    }
                    assert_eq!(i % 16, 1, "a leaf of many begins inside another");
                    for n in 1..16 {
                        let same: u32 = mem.load(table, i + n - 1);
                        assert_eq!(same & !USED, (w & !USED) + ((n as u32) << 12));
                    }
                    see(start, 1 << 16, w);
                    i += 15;
                }
            }
        }
        found
    }
}

/// For walkers that snoop, with everything allowed.
pub fn config() -> Config {
    Config { levels: 4, accessed: true, ..Config::default() }
}
