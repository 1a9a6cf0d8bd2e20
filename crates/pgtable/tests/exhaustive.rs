//! Every pair of operations over a format so small that they can be counted: three levels of four
//! entries, leaves of one, two, four and sixteen pages.

use portcullis_pgtable::{
    AccessBits, ChangeError, Config, Entry, Format, FormatId, Gather, InPlace, IoTable, MapError, Phys, Prot,
    Segment, Synced, Table, TableMem, UnmapError, testing::HeapMem,
};

const PAGE: u64 = 4096;
const PAGES: u64 = 64;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Three levels of four entries. Bit 0: leaf, bit 1: table, bit 2: one of two entries.
#[derive(Clone, Copy)]
struct Tiny;

impl Format for Tiny {
    type Word = u64;
    const ID: FormatId = FormatId("tiny");
    const MIN_LEVELS: usize = 3;
    const MAX_LEVELS: usize = 3;
    const GRANULE_BITS: u32 = 12;
    const TABLE_BITS: u32 = 5;
    const INPUT_BITS: u8 = 18;
    const OUTPUT_BITS: u8 = 40;
    const LEAF_SIZES: u64 = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 16;
    const PRESENT: u64 = 3;

    fn new(_: &Config) -> Tiny {
        Tiny
    }
    fn access_bits(&self) -> AccessBits {
        AccessBits::Ignored
    }
    fn in_place(&self) -> InPlace {
        InPlace::ALL
    }
    fn template(&self, prot: Prot) -> Option<u64> {
        (prot == RW).then_some(1)
    }
    fn leaf(&self, template: u64, level: usize, phys: Phys, size_bits: u32) -> u64 {
        template | phys.0 | if size_bits > Self::shift(level) { 4 } else { 0 }
    }
    fn table(&self, _: usize, table: Phys) -> u64 {
        table.0 | 2
    }
    fn decode(&self, level: usize, w: u64) -> Entry {
        let size_bits = Self::shift(level) + (w >> 2 & 1) as u32;
        match w & 3 {
            0 => Entry::Empty,
            2 => Entry::Table(Phys(w & !0xfff)),
            _ => Entry::Leaf { base: Phys(w & !0xfff & !((1 << size_bits) - 1)), size_bits },
        }
    }
    fn prot(&self, _: u64) -> Prot {
        RW
    }
    fn attributes(&self, _: usize, _: u64) -> u64 {
        1
    }
    fn protect(&self, w: u64, _: u64) -> Option<u64> {
        Some(w)
    }
    fn accessed(&self, _: u64) -> bool {
        false
    }
    fn clear_accessed(&self, w: u64) -> u64 {
        w
    }
    fn dirty(&self, _: u64) -> bool {
        false
    }
    fn clear_dirty(&self, w: u64) -> u64 {
        w
    }
    fn settled(&self, _: u64) -> bool {
        true
    }
    fn settle(&self, w: u64) -> u64 {
        w
    }
    fn parked(next: Option<Phys>) -> u64 {
        next.map_or(0, |p| p.0 | 8)
    }
    fn parked_next(w: u64) -> Option<Phys> {
        (w & 8 != 0).then_some(Phys(w & !0xfff))
    }
}

/// What each page is mapped to.
type Pages = [Option<u64>; PAGES as usize];
/// The first page and the size of the leaf that each page is part of.
type Leaves = [Option<(u64, u64)>; PAGES as usize];

/// Reads the table from memory.
fn walk(mem: &HeapMem, table: Phys, level: u32, base: u64, pages: &mut Pages, leaves: &mut Leaves) {
    let span = 4u64.pow(level - 1);
    for i in 0..4 {
        let w: u64 = mem.load(table, i);
        let first = base + i as u64 * span;
        match w & 3 {
            0 => {}
            2 => walk(mem, Phys(w & !0xfff), level - 1, first, pages, leaves),
            _ => {
                for n in 0..span {
                    let page = first + n;
                    pages[page as usize] = Some((w >> 12) + n);
                    let size = if w & 4 != 0 { 2 * span } else { span };
                    leaves[page as usize] = Some((page / size * size, size));
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Physical pages begin at the number.
    Map(u64),
    /// As a list of pieces of so many pages, of which each second one is elsewhere.
    List(u64),
    Unmap,
    Split,
}

struct World {
    mem: HeapMem,
    table: Table<Tiny, HeapMem>,
    pages: Pages,
}

impl World {
    fn new() -> World {
        let mem = HeapMem::new(40);
        let config = Config { input_bits: 18, ..Config::default() };
        World { table: Table::new(mem.clone(), config).unwrap(), mem, pages: [None; PAGES as usize] }
    }

    fn read(&self) -> (Pages, Leaves) {
        let (mut pages, mut leaves) = ([None; PAGES as usize], [None; PAGES as usize]);
        walk(&self.mem, self.table.root(), 3, 0, &mut pages, &mut leaves);
        (pages, leaves)
    }

    fn apply(&mut self, op: Op, first: u64, end: u64) {
        let (iova, len) = (first * PAGE, (end - first) * PAGE);
        let range = first as usize..end as usize;
        let (_, leaves) = self.read();
        let taken = range.clone().find(|p| self.pages[*p].is_some());
        let taken = taken.map(|p| (p as u64 * PAGE, Phys(self.pages[p].unwrap() * PAGE)));
        let inside =
            |page: u64| leaves.get(page as usize).copied().flatten().filter(|(start, _)| *start < page);
        match op {
            Op::Map(phys) => {
                let got = self.table.map(iova, Phys(phys * PAGE), len, RW);
                let want = taken.map(|(iova, phys)| MapError::AlreadyMapped { iova, phys });
                assert_eq!(got, want.map_or(Ok(()), Err));
                if got.is_ok() {
                    range.enumerate().for_each(|(n, p)| self.pages[p] = Some(phys + n as u64));
                }
            }
            Op::List(each) => {
                let mut list = Vec::new();
                let mut to = self.pages;
                let mut at = first;
                while at < end {
                    let n = each.min(end - at);
                    let phys = 256 + at + 100 * (at / each % 2);
                    list.push(Segment { phys: Phys(phys * PAGE), len: n * PAGE });
                    (0..n).for_each(|i| to[(at + i) as usize] = Some(phys + i));
                    at += n;
                }
                let got = self.table.map_sg(iova, &list, RW);
                let want = taken.map(|(iova, phys)| MapError::AlreadyMapped { iova, phys });
                assert_eq!(got, want.map_or(Ok(()), Err));
                if got.is_ok() {
                    self.pages = to;
                }
            }
            Op::Unmap => {
                let mut gather = Gather::new();
                let got = self.table.unmap(iova, len, &mut gather);
                let hole = range.clone().find(|p| self.pages[*p].is_none());
                let partial = |page: u64| {
                    let (start, size) = inside(page)?;
                    let (iova, start, size) = (page * PAGE, start * PAGE, size * PAGE);
                    Some(UnmapError::PartialLeaf { iova, start, size })
                };
                let hole = hole.map(|p| UnmapError::NotMapped { iova: p as u64 * PAGE });
                let want = partial(first).or(hole).or_else(|| partial(end));
                assert_eq!(got, want.map_or(Ok(()), Err), "{first}..{end}");
                if got.is_ok() {
                    range.for_each(|p| self.pages[p] = None);
                    assert_eq!(gather.range(), Some((iova, iova + len - 1)));
                }
                self.table.retire(gather.into_retired(), Synced::after_completed_invalidation());
            }
            Op::Split => {
                let mut gather = Gather::new();
                assert_eq!(self.table.split(iova, len, &mut gather), Ok::<(), ChangeError>(()));
                assert_eq!(gather.is_empty(), inside(first).is_none() && inside(end).is_none());
                let (_, leaves) = self.read();
                for page in [first, end].into_iter().filter(|p| *p < PAGES) {
                    assert!(leaves[page as usize].is_none_or(|(start, _)| start == page));
                }
            }
        }
        let (pages, leaves) = self.read();
        assert_eq!(pages, self.pages, "{op:?} {first}..{end}");
        for page in 0..PAGES {
            let want = pages[page as usize].map(|p| p * PAGE + 5);
            let found = self.table.lookup(page * PAGE + 5);
            assert_eq!(found.map(|l| l.phys.0), want);
            let leaf = leaves[page as usize].map(|(start, size)| (start * PAGE, size * PAGE));
            assert_eq!(found.map(|l| (l.start, l.size)), leaf);
        }
    }

    fn end(mut self) {
        // Runs of mapped pages go one by one.
        let mut page = 0;
        while page < PAGES {
            let n = (page..PAGES).take_while(|p| self.pages[*p as usize].is_some()).count() as u64;
            if n > 0 {
                self.apply(Op::Unmap, page, page + n);
            }
            page += n + 1;
        }
        drop(self.table);
        assert_eq!(self.mem.in_use(), 0);
    }
}

/// Both sides of every border, and the middle.
const BORDERS: [u64; 11] = [0, 1, 2, 3, 4, 8, 15, 16, 17, 48, 64];

fn ranges() -> impl Iterator<Item = (u64, u64)> {
    BORDERS.into_iter().flat_map(|a| BORDERS.into_iter().filter(move |b| *b > a).map(move |b| (a, b)))
}

#[test]
fn every_range_alone() {
    for first in 0..PAGES {
        for end in first + 1..=PAGES {
            // Congruent to nothing, to two, to four, to all.
            for phys in [first + 257, first + 258, first + 260, first + 256] {
                let mut world = World::new();
                world.apply(Op::Map(phys), first, end);
                world.end();
            }
        }
    }
}

#[test]
fn every_pair_of_operations() {
    let ops = [Op::Map(256), Op::Unmap, Op::Split, Op::List(3)];
    for (a, b) in ranges() {
        for before in [Op::Map(256 + a), Op::Map(257 + a), Op::List(2), Op::List(16)] {
            for op in ops {
                for (first, end) in ranges() {
                    let mut world = World::new();
                    world.apply(before, a, b);
                    world.apply(op, first, end);
                    world.end();
                }
            }
        }
    }
}
