//! What the tests of the engine share: walkers that know nothing of the engine, and a format with
//! 32-bit entries and leaves of several of them.

mod intervals;
mod walkers;

pub use intervals::Intervals;
pub use walkers::{Found, Walked, walk, walk_as};

use portcullis_pgtable::{AccessBits, Config, Entry, Format, FormatId, InPlace, Phys, Prot};

const READ: Prot = Prot::READ;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// For walkers that snoop, with everything allowed, and four levels.
pub fn config() -> Config {
    Config { levels: 4, accessed: true, ..Config::default() }
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
