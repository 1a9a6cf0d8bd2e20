//! Page tables of every format: operations against a map of intervals, and the parser of tables on
//! memory that no page-table code has written.

use crate::bytes::Bytes;
use portcullis_pgtable::dump::{self, Image};
use portcullis_pgtable::testing::HeapMem;
use portcullis_pgtable::{
    AmdV1, AmdV1Mock, AmdV2, ArmStage1, ArmStage2, ChangeError, Config, FRAME_SIZE, Format, Gather, Hitless,
    IoTable, MapError, Phys, Prot, RiscvFirstStage, RiscvSecondStage, RockchipV2, Segment, Synced, Table,
    Top, UnmapError, VtdSecondStage, X86FirstStage,
};
use std::collections::BTreeMap;

#[path = "../../crates/pgtable/tests/common/intervals.rs"]
#[allow(dead_code, missing_docs, reason = "shared with the engine's own tests")]
mod intervals;
use intervals::Intervals;

/// Few enough to run out now and then.
const FRAMES: usize = 256;

const RW: Prot = Prot::READ.union(Prot::WRITE);

/// The first byte is the format and what is done, the rest how.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let first = bytes.u8();
    let of = match first & 0x7f {
        0 => of::<VtdSecondStage>,
        1 => of::<X86FirstStage>,
        2 => of::<AmdV1>,
        3 => of::<AmdV2>,
        4 => of::<AmdV1Mock>,
        5 => of::<ArmStage1<12>>,
        6 => of::<ArmStage1<14>>,
        7 => of::<ArmStage1<16>>,
        8 => of::<ArmStage2<12>>,
        9 => of::<ArmStage2<14>>,
        10 => of::<ArmStage2<16>>,
        11 => of::<RiscvFirstStage>,
        12 => of::<RiscvSecondStage>,
        _ => of::<RockchipV2>,
    };
    of(first & 0x80 != 0, &mut bytes);
}

fn of<F: Format>(parse: bool, bytes: &mut Bytes<'_>) {
    if parse {
        return parsed::<F>(bytes);
    }
    let mem = HeapMem::new(FRAMES);
    let config = Config {
        input_bits: 30 + bytes.u8() % 19,
        output_bits: 44,
        page_sizes: if bytes.u8() & 1 == 0 { u64::MAX } else { 0 },
        hitless: [Hitless::No, Hitless::Entries, Hitless::Tables][usize::from(bytes.u8() % 3)],
        ..Config::default()
    };
    let Ok(table) = Table::<F, _>::new(mem.clone(), config) else { return };
    let mut both = Both { table, mem, config, mapped: Intervals::default() };
    while !bytes.is_empty() {
        both.step(bytes);
    }
    both.end();
}

/// A table, and what it should map.
struct Both<F: Format> {
    table: Table<F, HeapMem>,
    mem: HeapMem,
    config: Config,
    mapped: Intervals,
}

impl<F: Format> Both<F> {
    const PAGE: u64 = 1 << F::GRANULE_BITS;

    /// An address: some pages from a border of leaves or tables.
    fn address(bytes: &mut Bytes<'_>) -> u64 {
        let (level, times, off) = (usize::from(bytes.u8() % 3) + 1, bytes.u8(), bytes.u8() as i8);
        let border = u64::from(times % 16) << F::shift(level.min(F::MAX_LEVELS));
        border.wrapping_add_signed(i64::from(off) * Self::PAGE as i64) % (1 << 43)
    }

    fn len(bytes: &mut Bytes<'_>) -> u64 {
        let pages = match bytes.u16() {
            n if n & 0x8000 != 0 => 1 << (F::shift(2) - F::GRANULE_BITS),
            n => u64::from(n % 2100),
        };
        pages * Self::PAGE
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let kind = bytes.u8();
        let prot = if kind & 0x80 == 0 { RW } else { Prot::READ };
        let iova = Self::address(bytes);
        match kind & 7 {
            0 | 1 => {
                let phys = Self::address(bytes);
                self.map(iova, &[Segment { phys: Phys(phys), len: Self::len(bytes) }], prot, false);
            }
            2 => {
                let segment = |bytes: &mut Bytes<'_>| Segment {
                    phys: Phys(Self::address(bytes)),
                    len: u64::from(bytes.u8() % 40) * Self::PAGE,
                };
                let list: Vec<Segment> = (0..bytes.u8() % 24).map(|_| segment(bytes)).collect();
                self.map(iova, &list, prot, true);
            }
            3 | 4 => self.unmap(iova, Self::len(bytes)),
            5 => self.protect(iova, Self::len(bytes), prot),
            6 => {
                let mut gather = Gather::new();
                // Changes nothing that can be seen, whatever it says.
                let _ = self.table.split(iova, Self::len(bytes), &mut gather);
                self.retire(gather);
            }
            _ => self.lookup(iova),
        }
    }

    fn retire(&self, gather: Gather) {
        self.table.retire(gather.into_retired(), Synced::after_completed_invalidation());
    }

    fn fits(&self, iova: u64, len: u64) -> bool {
        iova.checked_add(len).is_some_and(|end| end <= 1 << self.table.desc().input_bits)
    }

    fn map(&mut self, iova: u64, list: &[Segment], prot: Prot, as_list: bool) {
        let len: u64 = list.iter().map(|s| s.len).sum();
        let done = match list {
            [one] if !as_list => self.table.map(iova, one.phys, one.len, prot),
            _ => self.table.map_sg(iova, list, prot),
        };
        match done {
            Ok(()) => {
                assert!(len > 0 && list.iter().all(|s| s.len > 0) && self.fits(iova, len));
                assert_eq!(self.mapped.first_mapped(iova, iova + (len - 1)), None);
                let mut at = iova;
                for s in list {
                    self.mapped.insert(at, at + (s.len - 1), s.phys.0, prot);
                    at += s.len;
                }
            }
            Err(MapError::ZeroLength { .. }) => assert!(list.is_empty() || list.iter().any(|s| s.len == 0)),
            Err(MapError::InputRange { .. }) => assert!(!self.fits(iova, len)),
            Err(MapError::AlreadyMapped { iova: at, phys }) => {
                assert_eq!(self.mapped.first_mapped(iova, iova + (len - 1)), Some((at, phys.0)));
            }
            Err(MapError::OutputRange { phys, len, bits }) => assert!(phys.0 + len > 1 << bits),
            Err(MapError::NoMem { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn unmap(&mut self, iova: u64, len: u64) {
        let mut gather = Gather::new();
        match self.table.unmap(iova, len, &mut gather) {
            Ok(()) => {
                let last = iova + (len - 1);
                assert_eq!(self.mapped.first_hole(iova, last), None);
                assert_eq!(gather.range(), Some((iova, last)));
                self.mapped.remove(iova, last);
            }
            Err(UnmapError::ZeroLength { .. }) => assert_eq!(len, 0),
            Err(UnmapError::InputRange { .. }) => assert!(!self.fits(iova, len)),
            Err(UnmapError::NotMapped { iova: at }) => {
                assert!(at - iova < len && self.mapped.at(at).is_none());
            }
            Err(UnmapError::PartialLeaf { start, size, .. }) => {
                let leaf = self.table.lookup(start).expect("the leaf that is in the way");
                assert!((leaf.start, leaf.size) == (start, size) && size > Self::PAGE);
            }
            Err(other) => panic!("{other}"),
        }
        self.retire(gather);
    }

    fn protect(&mut self, iova: u64, len: u64, prot: Prot) {
        let mut gather = Gather::new();
        match self.table.protect(iova, len, prot, &mut gather) {
            Ok(()) => {
                assert_eq!(self.mapped.first_hole(iova, iova + (len - 1)), None);
                self.mapped.protect(iova, iova + (len - 1), prot);
            }
            Err(ChangeError::NotMapped { iova: at }) => {
                assert!(at - iova < len && self.mapped.at(at).is_none());
            }
            Err(ChangeError::InputRange { .. }) => assert!(!self.fits(iova, len)),
            Err(_) => {}
        }
        self.retire(gather);
    }

    fn lookup(&self, iova: u64) {
        let want = self.mapped.at(iova).map(|(_, phys, prot)| (phys, prot));
        let reader = self.table.reader();
        for _ in 0..2 {
            assert_eq!(reader.lookup(iova).map(|l| (l.phys.0, l.prot)), want);
            assert_eq!(reader.translate(iova).map(|p| p.0), want.map(|w| w.0));
        }
    }

    /// What another reader of the memory finds is what was mapped, and nothing is left in the end.
    fn end(mut self) {
        let desc = self.table.desc();
        let config = Config { input_bits: desc.input_bits, ..self.config };
        let mut found = Intervals::default();
        let mut mapped = |m: dump::Mapped| found.insert(m.first, m.last, m.phys.0, m.prot);
        let mut wrong = |f| panic!("{f}");
        dump::read::<F>(&Frames(&self.mem), self.table.top(), &config, &mut mapped, &mut wrong);
        assert_eq!(found.joined(), self.mapped.joined());
        for (first, last, ..) in self.mapped.joined() {
            self.unmap(first, last - first + 1);
        }
        assert!(self.mapped.0.is_empty(), "whole leaves are what was left");
        drop(self.table);
        assert_eq!(self.mem.in_use(), 0);
    }
}

/// The table memory as an image.
struct Frames<'a>(&'a HeapMem);

impl Image for Frames<'_> {
    fn load(&self, address: u64, bytes: usize) -> Option<u64> {
        let (frame, within) = (address & !(FRAME_SIZE as u64 - 1), address as usize % FRAME_SIZE);
        if frame >= (FRAMES * FRAME_SIZE) as u64 {
            return None;
        }
        let word = self.0.walker_load(Phys(frame), within / 8) >> (within % 8 * 8);
        Some(if bytes == 4 { word & u64::from(u32::MAX) } else { word })
    }
}

/// A few words in a few frames; all others are 0.
struct Sparse(BTreeMap<u64, u64>);

const SPARSE_FRAMES: u64 = 32;

impl Image for Sparse {
    fn load(&self, address: u64, bytes: usize) -> Option<u64> {
        if address >= SPARSE_FRAMES * FRAME_SIZE as u64 {
            return None;
        }
        let word = self.0.get(&(address & !7)).copied().unwrap_or(0) >> (address % 8 * 8);
        Some(if bytes == 4 { word & u64::from(u32::MAX) } else { word })
    }
}

fn parsed<F: Format>(bytes: &mut Bytes<'_>) {
    let root = Phys(u64::from(bytes.u8()) << 12);
    let top = Top { root, levels: usize::from(bytes.u8()) };
    let config = Config {
        input_bits: bytes.u8(),
        output_bits: bytes.u8(),
        levels: bytes.u8(),
        accessed: bytes.u8() & 1 == 0,
        memory_types: bytes.u8() & 1 == 0,
        ..Config::default()
    };
    let mut words = BTreeMap::new();
    while !bytes.is_empty() {
        let at = u64::from(bytes.u8()) % SPARSE_FRAMES * FRAME_SIZE as u64 + u64::from(bytes.u16() % 512) * 8;
        // Half of them lead to a frame that is there, which few words would by chance.
        let word = match bytes.u8() {
            n if n & 1 == 0 => {
                ((u64::from(bytes.u8()) % SPARSE_FRAMES) << 12) | u64::from(bytes.u16()) & 0xfff
            }
            _ => bytes.u64(),
        };
        words.insert(at, word);
    }
    let mut before = None;
    let mut mapped = |m: dump::Mapped| {
        assert!(m.first <= m.last && before.is_none_or(|b| b < m.first), "{m}");
        before = Some(m.last);
    };
    dump::read::<F>(&Sparse(words), top, &config, &mut mapped, &mut |f| _ = f.to_string());
}
