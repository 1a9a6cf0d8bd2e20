//! Walkers: each reads a table from memory by what the manual says, and shares nothing with the
//! engine and its formats.

use super::Wide;
use portcullis_pgtable::{
    AmdV1, AmdV1Mock, AmdV2, ArmStage1, ArmStage2, Config, Format, IoTable, Phys, Prot, RiscvFirstStage,
    RiscvSecondStage, RockchipV2, Space, TableMem, VtdSecondStage, Word, X86FirstStage, testing::HeapMem,
};

/// A leaf as a walker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub start: u64,
    pub size: u64,
    pub phys: u64,
    pub prot: Prot,
    pub dirty: bool,
    /// Where its first entry is, and how many it has.
    pub table: Phys,
    pub index: usize,
    pub entries: usize,
}

/// Geometry of the tables.
#[derive(Clone, Copy)]
pub struct Shape {
    /// The smallest page is 2^granule bytes.
    pub granule: u32,
    /// A level translates so many bits.
    pub bits: u32,
    /// And the root so many more.
    pub extra: u32,
}

/// What an entry says.
pub enum Raw {
    Absent,
    Table(u64),
    Leaf {
        /// First address of the whole leaf.
        base: u64,
        /// The address that this entry has, where each of several has its own.
        own: Option<u64>,
        size_bits: u32,
        prot: Prot,
        dirty: bool,
    },
}

/// A format and its own walker.
pub trait Walked: Format {
    /// Geometry.
    const SHAPE: Shape;
    /// Permissions to choose from.
    const PROTS: &'static [Prot];
    /// Whether permissions may change in an entry that stays valid.
    const PROTECTS: bool = true;
    /// What an entry of a table at `level`, counted from 1 for the smallest pages, says.
    fn raw(config: &Config, level: u32, w: u64) -> Raw;
    /// What a walker that keeps accessed and dirty bits makes of a leaf that is written through.
    fn written(w: u64) -> u64;
}

/// All leaves of a table for the walkers of [`super::config`].
pub fn walk<F: Walked>(mem: &HeapMem, table: &dyn IoTable) -> Vec<Found> {
    walk_as::<F>(&super::config(), mem, table)
}

/// All leaves of a table, in order of IOVA.
pub fn walk_as<F: Walked>(config: &Config, mem: &HeapMem, table: &dyn IoTable) -> Vec<Found> {
    let (desc, top) = (table.desc(), table.top());
    let Shape { granule, bits, extra } = F::SHAPE;
    let mut found = Vec::new();
    let mut todo = vec![(top.root.0, top.levels as u32, 0u64)];
    while let Some((table, level, base)) = todo.pop() {
        let shift = granule + bits * (level - 1);
        let index_bits = if level as usize == top.levels {
            (bits + extra).min(u32::from(desc.input_bits) - shift)
        } else {
            bits
        };
        let words = read::<F::Word>(mem, table, 1 << index_bits);
        let load = |i: usize| words[i];
        let mut i = 0usize;
        while i < 1 << index_bits {
            let pos = base + ((i as u64) << shift);
            match F::raw(config, level, load(i)) {
                Raw::Absent => i += 1,
                Raw::Table(next) => {
                    todo.push((next, level - 1, pos));
                    i += 1;
                }
                Raw::Leaf { base: phys, size_bits, prot, .. } => {
                    assert!(desc.page_sizes & 1 << size_bits != 0, "a leaf of 2^{size_bits} bytes");
                    assert!(size_bits >= shift && size_bits < shift + bits, "2^{size_bits} at level {level}");
                    assert_eq!(phys % (1 << size_bits), 0, "reserved address bits");
                    let n = 1usize << (size_bits - shift);
                    assert_eq!(i % n, 0, "a leaf of {n} entries begins inside another");
                    let mut any_dirty = false;
                    for j in 0..n {
                        let Raw::Leaf { base, own, size_bits: size, prot: p, dirty } =
                            F::raw(config, level, load(i + j))
                        else {
                            panic!("entry {j} of {n} is no leaf");
                        };
                        assert_eq!((base, size, p), (phys, size_bits, prot), "entry {j} of {n}");
                        assert!(own.is_none_or(|own| own == phys + ((j as u64) << shift)));
                        any_dirty |= dirty;
                    }
                    let mask = u64::MAX >> (64 - desc.input_bits);
                    let start = match desc.space {
                        Space::Upper => pos | !mask,
                        Space::Signed if pos > mask >> 1 => pos | !mask,
                        _ => pos,
                    };
                    let (table, index) = (Phys(table), i);
                    let size = 1 << size_bits;
                    found.push(Found { start, size, phys, prot, dirty: any_dirty, table, index, entries: n });
                    i += n;
                }
            }
        }
    }
    found.sort_by_key(|l| l.start);
    found
}

/// The first `n` entries of a table.
fn read<W: Word>(mem: &HeapMem, table: u64, n: usize) -> Vec<u64> {
    let per_frame = 4096 / W::BYTES;
    let mut words = Vec::with_capacity(n);
    while words.len() < n {
        let frame = Phys(table + (words.len() * W::BYTES) as u64);
        let range = 0..per_frame.min(n - words.len());
        mem.run::<W>(frame, range, |_, a| words.push(W::load(a).into()));
    }
    words
}

const NONE: Prot = Prot::empty();
const READ: Prot = Prot::READ;
const WRITE: Prot = Prot::WRITE;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const RX: Prot = Prot::READ.union(Prot::EXEC);

fn prot(bits: &[(u64, Prot)]) -> Prot {
    bits.iter().fold(NONE, |all, (set, p)| if *set != 0 { all | *p } else { all })
}

const FOUR_K: Shape = Shape { granule: 12, bits: 9, extra: 0 };

impl Walked for VtdSecondStage {
    const SHAPE: Shape = FOUR_K;
    const PROTS: &'static [Prot] = &[READ, WRITE, RW];

    fn raw(_: &Config, level: u32, w: u64) -> Raw {
        let address = w & 0x000f_ffff_ffff_f000;
        if w & 3 == 0 {
            Raw::Absent
        } else if level > 1 && w & 0x80 == 0 {
            Raw::Table(address)
        } else {
            let size_bits = 12 + 9 * (level - 1);
            let prot = prot(&[(w & 1, READ), (w & 2, WRITE)]);
            Raw::Leaf { base: address, own: None, size_bits, prot, dirty: w & 0x200 != 0 }
        }
    }

    fn written(w: u64) -> u64 {
        w | 0x300
    }
}

fn x86(w: u64, level: u32, exec: bool) -> Raw {
    let address = w & 0x000f_ffff_ffff_f000;
    if w & 1 == 0 {
        Raw::Absent
    } else if level > 1 && w & 0x80 == 0 {
        assert_eq!(w & 7, 7, "a table takes permissions away");
        Raw::Table(address)
    } else {
        assert!(level == 1 || w & 0x80 != 0);
        let exec = if exec { !w & 1 << 63 } else { 0 };
        let prot = prot(&[(1, READ), (w & 2, WRITE), (!w & 4, Prot::PRIV), (exec, Prot::EXEC)]);
        let size_bits = 12 + 9 * (level - 1);
        Raw::Leaf { base: address, own: None, size_bits, prot, dirty: w & 0x40 != 0 }
    }
}

impl Walked for X86FirstStage {
    const SHAPE: Shape = FOUR_K;
    const PROTS: &'static [Prot] = &[READ, RW, RW.union(Prot::PRIV)];

    fn raw(_: &Config, level: u32, w: u64) -> Raw {
        x86(w, level, false)
    }

    fn written(w: u64) -> u64 {
        w | 0x60
    }
}

impl Walked for AmdV2 {
    const SHAPE: Shape = FOUR_K;
    const PROTS: &'static [Prot] = &[READ, RW, RX];

    fn raw(config: &Config, level: u32, w: u64) -> Raw {
        x86(w, level, config.execute)
    }

    fn written(w: u64) -> u64 {
        w | 0x60
    }
}

/// VMSAv8-64; `wide` is DS, or FEAT_LPA with the 64 KiB granule.
fn arm(config: &Config, granule: u32, second: bool, level: u32, w: u64) -> Raw {
    let wide = config.output_bits > 48 || (granule != 16 && config.input_bits > 48);
    if w & 1 == 0 {
        return Raw::Absent;
    }
    let mut address = w & (0x0000_ffff_ffff_ffff & !((1 << granule) - 1));
    if wide && granule == 16 {
        address |= (w >> 12 & 15) << 48;
    } else if wide {
        address |= w & 3 << 48 | (w >> 8 & 3) << 50;
    }
    if level > 1 && w & 2 != 0 {
        return Raw::Table(address);
    }
    assert!(level > 1 || w & 2 != 0, "a block where pages are");
    let span = granule + (granule - 3) * (level - 1);
    let contiguous = match (w >> 52 & 1, granule, level) {
        (0, ..) => 0,
        (_, 12, _) => 4,
        (_, 14, 1) => 7,
        _ => 5,
    };
    let size_bits = span + contiguous;
    let dbm = w >> 51 & 1;
    let (prot, writable) = if second {
        let prot = prot(&[(w & 0x40, READ), (w & 0x80 | dbm, WRITE), (!w & 1 << 54, Prot::EXEC)]);
        (prot, w & 0x80 != 0)
    } else {
        assert_ne!(w & 1 << 11, 0, "global");
        let exec = !w & 1 << 53;
        let prot = prot(&[(1, READ), (!w & 0x80 | dbm, WRITE), (!w & 0x40, Prot::PRIV), (exec, Prot::EXEC)]);
        (prot, w & 0x80 == 0)
    };
    assert!(config.accessed || w & 1 << 10 != 0, "an access flag that nobody sets");
    let base = address & !((1 << size_bits) - 1);
    // Bit 56 is the library's: written through before it became read-only.
    let dirty = dbm != 0 && writable || w >> 56 & 1 != 0;
    Raw::Leaf { base, own: Some(address), size_bits, prot, dirty }
}

impl<const G: u32> Walked for ArmStage1<G> {
    const SHAPE: Shape = Shape { granule: G, bits: G - 3, extra: 0 };
    const PROTS: &'static [Prot] = &[READ, RW, RX, RW.union(Prot::PRIV)];

    fn raw(config: &Config, level: u32, w: u64) -> Raw {
        arm(config, G, false, level, w)
    }

    fn written(w: u64) -> u64 {
        if w >> 51 & 1 != 0 { w & !0x80 | 1 << 10 } else { w | 1 << 10 }
    }
}

impl<const G: u32> Walked for ArmStage2<G> {
    const SHAPE: Shape = Shape { granule: G, bits: G - 3, extra: 4 };
    const PROTS: &'static [Prot] = &[READ, WRITE, RW, RX];

    fn raw(config: &Config, level: u32, w: u64) -> Raw {
        arm(config, G, true, level, w)
    }

    fn written(w: u64) -> u64 {
        if w >> 51 & 1 != 0 { w | 0x480 } else { w | 0x400 }
    }
}

fn riscv(level: u32, w: u64, second: bool) -> Raw {
    let ppn = w >> 10 & ((1 << 44) - 1);
    if w & 1 == 0 {
        return Raw::Absent;
    }
    if w & 0xe == 0 {
        assert!(level > 1, "a pointer where pages are");
        assert_eq!(w & (0xd0 | 7 << 61), 0, "reserved in a pointer");
        return Raw::Table(ppn << 12);
    }
    assert_ne!(w & 6, 4, "writable but not readable");
    assert!(!second || w & 16 != 0, "not for user mode");
    let prot = prot(&[(w & 2, READ), (w & 4, WRITE), (w & 8, Prot::EXEC), (!w & 16, Prot::PRIV)]);
    let dirty = w & 0x80 != 0;
    if w >> 63 != 0 {
        assert_eq!((level, ppn & 15), (1, 8), "the only size that is defined");
        return Raw::Leaf { base: (ppn & !15) << 12, own: None, size_bits: 16, prot, dirty };
    }
    Raw::Leaf { base: ppn << 12, own: None, size_bits: 12 + 9 * (level - 1), prot, dirty }
}

impl Walked for RiscvFirstStage {
    const SHAPE: Shape = FOUR_K;
    const PROTS: &'static [Prot] = &[READ, RW, RX, RW.union(Prot::PRIV)];
    const PROTECTS: bool = false;

    fn raw(_: &Config, level: u32, w: u64) -> Raw {
        riscv(level, w, false)
    }

    fn written(w: u64) -> u64 {
        w | 0xc0
    }
}

impl Walked for RiscvSecondStage {
    const SHAPE: Shape = Shape { extra: 2, ..FOUR_K };
    const PROTS: &'static [Prot] = &[READ, RW, RX];
    const PROTECTS: bool = false;

    fn raw(_: &Config, level: u32, w: u64) -> Raw {
        riscv(level, w, true)
    }

    fn written(w: u64) -> u64 {
        w | 0xc0
    }
}

/// AMD's host tables; addresses count in pages of 2^`granule` bytes.
fn amd(granule: u32, level: u32, w: u64) -> Raw {
    if w & 1 == 0 {
        return Raw::Absent;
    }
    let page = w >> 12 & ((1 << 40) - 1);
    let next = (w >> 9 & 7) as u32;
    let prot = prot(&[(w >> 61 & 1, READ), (w >> 62 & 1, WRITE)]);
    let dirty = w & 0x40 != 0;
    match next {
        0 => {
            let size_bits = granule + (granule - 3) * (level - 1);
            Raw::Leaf { base: page << granule, own: None, size_bits, prot, dirty }
        }
        7 => {
            let zero = page.trailing_ones();
            let base = page & !((1 << zero) - 1);
            Raw::Leaf { base: base << granule, own: None, size_bits: granule + zero + 1, prot, dirty }
        }
        _ => {
            assert_eq!(next, level - 1, "levels are not skipped");
            assert_eq!(prot, RW, "a table takes permissions away");
            Raw::Table(page << granule)
        }
    }
}

impl Walked for AmdV1 {
    const SHAPE: Shape = FOUR_K;
    const PROTS: &'static [Prot] = &[READ, WRITE, RW];

    fn raw(_: &Config, level: u32, w: u64) -> Raw {
        amd(12, level, w)
    }

    fn written(w: u64) -> u64 {
        w | 0x60
    }
}

impl Walked for AmdV1Mock {
    const SHAPE: Shape = Shape { granule: 11, bits: 8, extra: 0 };
    const PROTS: &'static [Prot] = &[READ, WRITE, RW];

    fn raw(_: &Config, level: u32, w: u64) -> Raw {
        amd(11, level, w)
    }

    fn written(w: u64) -> u64 {
        w | 0x60
    }
}

impl Walked for RockchipV2 {
    const SHAPE: Shape = Shape { granule: 12, bits: 10, extra: 0 };
    const PROTS: &'static [Prot] = &[READ, WRITE, RW];

    fn raw(_: &Config, level: u32, w: u64) -> Raw {
        if w & 1 == 0 {
            return Raw::Absent;
        }
        let base = w & 0xffff_f000 | (w >> 8 & 15) << 32 | (w >> 4 & 15) << 36;
        if level == 2 {
            assert_eq!(w & 0xe, 0, "reserved");
            return Raw::Table(base);
        }
        assert_eq!(w & 8, 0, "reserved");
        Raw::Leaf {
            base,
            own: None,
            size_bits: 12,
            prot: prot(&[(w & 2, READ), (w & 4, WRITE)]),
            dirty: false,
        }
    }

    fn written(w: u64) -> u64 {
        w
    }
}

/// Bits as `Wide` has them: leaf, table, many, writable, used, -, -, dirty.
impl Walked for Wide {
    const SHAPE: Shape = Shape { granule: 12, bits: 10, extra: 0 };
    const PROTS: &'static [Prot] = &[READ, RW];

    fn raw(_: &Config, level: u32, w: u64) -> Raw {
        let address = w & 0xffff_f000;
        match w & 3 {
            0 => Raw::Absent,
            2 => Raw::Table(address),
            _ => {
                let size_bits = if w & 4 != 0 { 16 } else { 12 + 10 * (level - 1) };
                let base = address & !((1 << size_bits) - 1);
                let prot = prot(&[(1, READ), (w & 8, WRITE)]);
                Raw::Leaf { base, own: Some(address), size_bits, prot, dirty: w & 0x80 != 0 }
            }
        }
    }

    fn written(w: u64) -> u64 {
        w | 0x90
    }
}
