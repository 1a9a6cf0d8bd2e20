//! Random maps, scatter lists, unmaps, splits, changes of permissions, dirty reads and lookups
//! against a map of intervals, for every format; after each step a walker of the test's own reads
//! the table from memory.

use crate::common::{Found, Intervals, Walked, Wide, walk_as};
use portcullis_pgtable::{
    AmdV1, AmdV1Mock, AmdV2, ArmStage1, ArmStage2, ChangeError, Config, DirtyError, Gather, Hitless, IoTable,
    Leaf, MapError, Phys, Prot, RiscvFirstStage, RiscvSecondStage, RockchipV2, Segment, Space, Synced, Table,
    TableMem, UnmapError, VtdSecondStage, X86FirstStage, testing::HeapMem,
};
use proptest::{prelude::*, test_runner::TestCaseResult};

/// A place in an address space: near a border of leaves or tables, or on it.
#[derive(Clone, Copy, Debug)]
struct Place {
    border: usize,
    times: u64,
    off: i64,
}

/// A number of pages.
#[derive(Clone, Copy, Debug)]
enum Length {
    Pages(u64),
    Border(usize),
}

#[derive(Clone, Debug)]
enum Step {
    Map {
        at: Place,
        len: Length,
        to: Place,
        prot: usize,
    },
    /// Pages of a list, each with how many follow it contiguously.
    List {
        at: Place,
        pieces: Vec<(Place, u64)>,
        prot: usize,
    },
    Unmap {
        at: Place,
        len: Length,
    },
    Protect {
        at: Place,
        len: Length,
        prot: usize,
    },
    Split {
        at: Place,
        len: Length,
    },
    Write {
        nth: usize,
    },
    Dirty {
        at: Place,
        len: Length,
        clear: bool,
    },
    Track {
        on: bool,
    },
    Lookup {
        at: Place,
    },
}

fn place() -> impl Strategy<Value = Place> {
    let off = prop_oneof![3 => Just(0i64), 2 => -20..20i64];
    (0..16usize, 0..4u64, off).prop_map(|(border, times, off)| Place { border, times, off })
}

fn length() -> impl Strategy<Value = Length> {
    prop_oneof![
        2 => (1..4u64).prop_map(Length::Pages),
        2 => (14..70u64).prop_map(Length::Pages),
        1 => (200..1700u64).prop_map(Length::Pages),
        4 => (0..16usize).prop_map(Length::Border),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let pieces = prop::collection::vec((place(), 1..40u64), 1..12);
    prop_oneof![
        8 => (place(), length(), place(), 0..8usize)
            .prop_map(|(at, len, to, prot)| Step::Map { at, len, to, prot }),
        3 => (place(), pieces, 0..8usize).prop_map(|(at, pieces, prot)| Step::List { at, pieces, prot }),
        6 => (place(), length()).prop_map(|(at, len)| Step::Unmap { at, len }),
        2 => (place(), length(), 0..8usize).prop_map(|(at, len, prot)| Step::Protect { at, len, prot }),
        3 => (place(), length()).prop_map(|(at, len)| Step::Split { at, len }),
        3 => (0..50usize).prop_map(|nth| Step::Write { nth }),
        2 => (place(), length(), any::<bool>()).prop_map(|(at, len, clear)| Step::Dirty { at, len, clear }),
        1 => any::<bool>().prop_map(|on| Step::Track { on }),
        1 => place().prop_map(|at| Step::Lookup { at }),
    ]
}

struct Both<F: Walked> {
    mem: HeapMem,
    table: Table<F, HeapMem>,
    config: Config,
    mapped: Intervals,
    tracking: bool,
}

impl<F: Walked> Both<F> {
    fn new(config: Config) -> Both<F> {
        let mem = HeapMem::new(4096);
        let table = Table::new(mem.clone(), config).unwrap();
        Both { table, mem, config, mapped: Intervals::default(), tracking: false }
    }

    fn page(&self) -> u64 {
        1 << F::SHAPE.granule
    }

    fn walk(&self) -> Vec<Found> {
        walk_as::<F>(&self.config, &self.mem, &self.table)
    }

    /// Sizes at which something changes, in pages, the whole space last.
    fn borders(&self, bits: u32) -> Vec<u64> {
        let shape = F::SHAPE;
        let mut bits_of: Vec<u32> = (0..64).filter(|b| self.table.desc().page_sizes >> b & 1 != 0).collect();
        bits_of.extend((1..6).map(|n| shape.granule + n * shape.bits));
        bits_of.sort_unstable();
        bits_of.dedup();
        bits_of.retain(|b| *b < bits);
        bits_of.push(bits);
        bits_of.iter().map(|b| 1 << (b - shape.granule)).collect()
    }

    fn pos(&self, place: Place, bits: u32) -> u64 {
        let borders = self.borders(bits);
        let border = borders[place.border % borders.len()];
        border.wrapping_mul(place.times).wrapping_add_signed(place.off).wrapping_mul(self.page())
    }

    fn iova(&self, place: Place) -> u64 {
        let desc = self.table.desc();
        let pos = self.pos(place, desc.input_bits.into());
        let mask = u64::MAX >> (64 - desc.input_bits);
        match desc.space {
            Space::Lower => pos,
            Space::Upper => pos.wrapping_add(!mask),
            // The upper half begins where the lower one ends.
            Space::Signed if pos & (mask ^ mask >> 1) != 0 && pos <= mask => pos | !mask,
            Space::Signed => pos,
        }
    }

    fn phys(&self, place: Place, len: u64) -> u64 {
        let desc = self.table.desc();
        let top = 1u64 << desc.output_bits;
        let phys = self.pos(place, desc.output_bits.into()) % top;
        phys.min(top - len.next_multiple_of(self.page()).min(top))
    }

    /// At most a few tables of small pages.
    fn len(&self, len: Length) -> u64 {
        let shape = F::SHAPE;
        let most = 3 << shape.bits;
        let pages = match len {
            Length::Pages(n) => n,
            Length::Border(n) => {
                let borders = self.borders(self.table.desc().input_bits.into());
                borders[n % borders.len()]
            }
        };
        // Larger ranges are for large leaves, and only one at a time.
        pages.min(most).max(if pages.is_power_of_two() { pages } else { 1 }).saturating_mul(self.page())
    }

    /// Whether the range lies in the input space.
    fn valid(&self, iova: u64, len: u64) -> bool {
        let desc = self.table.desc();
        let mask = u64::MAX >> (64 - desc.input_bits);
        let Some(last) = iova.checked_add(len - 1) else {
            return false;
        };
        match desc.space {
            Space::Lower => last <= mask,
            Space::Upper => iova >= !mask,
            Space::Signed => last <= mask >> 1 || iova >= !(mask >> 1),
        }
    }

    /// Whether mapping would take more tables than the test has memory for.
    fn too_many_tables(&self, iova: u64, phys: u64, len: u64) -> bool {
        let sizes = self.table.desc().page_sizes;
        let fits = (0..64).rev().find(|b| sizes >> b & 1 != 0 && (iova | phys | len).is_multiple_of(1 << b));
        len >> fits.unwrap_or(F::SHAPE.granule) > 3 << F::SHAPE.bits
    }

    fn run(mut self, steps: Vec<Step>) -> TestCaseResult {
        for step in steps {
            match step {
                Step::Map { at, len, to, prot } => {
                    let len = self.len(len);
                    let (iova, phys) = (self.iova(at), self.phys(to, len));
                    self.map(iova, phys, len, F::PROTS[prot % F::PROTS.len()])?;
                }
                Step::List { at, pieces, prot } => {
                    let page = self.page();
                    let segment = |(to, pages): &(Place, u64)| Segment {
                        phys: Phys(self.phys(*to, pages * page)),
                        len: pages * page,
                    };
                    let list: Vec<Segment> = pieces.iter().map(segment).collect();
                    let iova = self.iova(at);
                    self.map_list(iova, &list, F::PROTS[prot % F::PROTS.len()])?;
                }
                Step::Unmap { at, len } => self.unmap(self.iova(at), self.len(len))?,
                Step::Protect { at, len, prot } => {
                    self.protect(self.iova(at), self.len(len), F::PROTS[prot % F::PROTS.len()])?;
                }
                Step::Split { at, len } => self.split(self.iova(at), self.len(len))?,
                Step::Write { nth } => self.write(nth),
                Step::Dirty { at, len, clear } => self.dirty(self.iova(at), self.len(len), clear)?,
                Step::Track { on } => self.track(on)?,
                Step::Lookup { at } => self.lookup(self.iova(at) | 0x123)?,
            }
            self.compare()?;
        }
        for leaf in self.walk() {
            self.unmap(leaf.start, leaf.size)?;
        }
        prop_assert!(self.mapped.0.is_empty());
        drop(self.table);
        prop_assert_eq!(self.mem.in_use(), 0);
        Ok(())
    }

    fn map(&mut self, iova: u64, phys: u64, len: u64, prot: Prot) -> TestCaseResult {
        if !self.valid(iova, len) {
            let bits = self.table.desc().input_bits;
            let got = self.table.map(iova, Phys(phys), len, prot);
            prop_assert_eq!(got, Err(MapError::InputRange { iova, len, bits }));
            return Ok(());
        }
        if self.too_many_tables(iova, phys, len) {
            return Ok(());
        }
        let last = iova + (len - 1);
        let got = self.table.map(iova, Phys(phys), len, prot);
        if let Some((iova, phys)) = self.mapped.first_mapped(iova, last) {
            prop_assert_eq!(got, Err(MapError::AlreadyMapped { iova, phys: Phys(phys) }));
            return Ok(());
        }
        prop_assert_eq!(got, Ok(()));
        self.mapped.insert(iova, last, phys, prot);
        Ok(())
    }

    fn map_list(&mut self, iova: u64, list: &[Segment], prot: Prot) -> TestCaseResult {
        let len = list.iter().map(|s| s.len).sum();
        let got = self.table.map_sg(iova, list, prot);
        if !self.valid(iova, len) {
            let bits = self.table.desc().input_bits;
            prop_assert_eq!(got, Err(MapError::InputRange { iova, len, bits }));
            return Ok(());
        }
        if let Some((iova, phys)) = self.mapped.first_mapped(iova, iova + (len - 1)) {
            prop_assert_eq!(got, Err(MapError::AlreadyMapped { iova, phys: Phys(phys) }));
            return Ok(());
        }
        prop_assert_eq!(got, Ok(()));
        let mut at = iova;
        for s in list {
            self.mapped.insert(at, at + (s.len - 1), s.phys.0, prot);
            at = at.wrapping_add(s.len);
        }
        Ok(())
    }

    /// The leaf that `at` lies inside of.
    fn inside(leaves: &[Found], at: u64) -> Option<&Found> {
        leaves.iter().find(|l| l.start < at && at - l.start < l.size)
    }

    fn unmap(&mut self, iova: u64, len: u64) -> TestCaseResult {
        let leaves = self.walk();
        let mut gather = Gather::new();
        let got = self.table.unmap(iova, len, &mut gather);
        if !self.valid(iova, len) {
            let bits = self.table.desc().input_bits;
            prop_assert_eq!(got, Err(UnmapError::InputRange { iova, len, bits }));
            return Ok(());
        }
        let last = iova + (len - 1);
        let partial = |at: u64| {
            Self::inside(&leaves, at).map(|l| UnmapError::PartialLeaf {
                iova: at,
                start: l.start,
                size: l.size,
            })
        };
        let hole = self.mapped.first_hole(iova, last).map(|iova| UnmapError::NotMapped { iova });
        let want = partial(iova).or(hole).or_else(|| partial(last.checked_add(1)?));
        prop_assert_eq!(got, want.map_or(Ok(()), Err));
        if got.is_ok() {
            prop_assert_eq!(gather.range(), Some((iova, last)));
            let sizes =
                leaves.iter().filter(|l| l.start >= iova && l.start <= last).fold(0, |all, l| all | l.size);
            prop_assert_eq!(gather.leaf_sizes() & sizes, sizes, "sizes that an invalidation would miss");
            self.mapped.remove(iova, last);
        } else {
            prop_assert!(gather.is_empty());
        }
        self.table.retire(gather.into_retired(), Synced::after_completed_invalidation());
        Ok(())
    }

    fn protect(&mut self, iova: u64, len: u64, prot: Prot) -> TestCaseResult {
        let leaves = self.walk();
        let mut gather = Gather::new();
        let got = self.table.protect(iova, len, prot, &mut gather);
        if !self.valid(iova, len) {
            let bits = self.table.desc().input_bits;
            prop_assert_eq!(got, Err(ChangeError::InputRange { iova, len, bits }));
            return Ok(());
        }
        let last = iova + (len - 1);
        let partial = |at: u64| {
            Self::inside(&leaves, at).map(|l| ChangeError::PartialLeaf {
                iova: at,
                start: l.start,
                size: l.size,
            })
        };
        let hole = self.mapped.first_hole(iova, last).map(|iova| ChangeError::NotMapped { iova });
        let fixed = || {
            let many = F::new(&self.config).in_place().permissions_of_many;
            let mut range = leaves.iter().filter(|l| l.start >= iova && l.start <= last);
            let fixed = |l: &&Found| (l.entries > 1 && !many) || (l.prot != prot && !F::PROTECTS);
            let (iova, size) = range.find(fixed).map(|l| (l.start, l.size))?;
            Some(ChangeError::NeedsBreak { iova, size })
        };
        let want = partial(iova).or(hole).or_else(|| partial(last.checked_add(1)?)).or_else(fixed);
        prop_assert_eq!(got, want.map_or(Ok(()), Err));
        if got.is_ok() {
            prop_assert_eq!(gather.range(), Some((iova, last)));
            self.mapped.protect(iova, last, prot);
        }
        // Who was dirty stays dirty, even if it may not be written any more.
        let after = self.walk();
        prop_assert_eq!(after.len(), leaves.len());
        for (a, b) in leaves.iter().zip(&after) {
            prop_assert_eq!((a.start, a.dirty), (b.start, b.dirty));
        }
        Ok(())
    }

    fn split(&mut self, iova: u64, len: u64) -> TestCaseResult {
        let leaves = self.walk();
        let mut gather = Gather::new();
        let got = self.table.split(iova, len, &mut gather);
        if !self.valid(iova, len) {
            let bits = self.table.desc().input_bits;
            prop_assert_eq!(got, Err(ChangeError::InputRange { iova, len, bits }));
            return Ok(());
        }
        let last = iova + (len - 1);
        let ends = [Some(iova), last.checked_add(1)];
        let cut: Vec<&Found> = ends.iter().flatten().filter_map(|at| Self::inside(&leaves, *at)).collect();
        let in_place = F::new(&self.config).in_place();
        // What is left of a leaf at an end when all was done that may be.
        let stuck = |at: &u64| {
            let l = Self::inside(&leaves, *at)?;
            let entry = l.size / l.entries as u64;
            let (start, size) = if l.entries > 1 && in_place.split_many {
                (at & !(entry - 1), entry)
            } else {
                (l.start, l.size)
            };
            let one = size == entry;
            let done = start == *at || (one && in_place.split);
            (!done).then_some(ChangeError::NeedsBreak { iova: start, size })
        };
        let stuck = ends.iter().flatten().find_map(stuck);
        let after = self.walk();
        match cut.first() {
            None => prop_assert_eq!((got, gather.is_empty()), (Ok(()), true)),
            Some(_) if self.tracking => prop_assert_eq!(got, Err(ChangeError::Tracking)),
            Some(_) if stuck.is_some() => prop_assert_eq!(got, Err(stuck.unwrap())),
            Some(_) => {
                prop_assert_eq!(got, Ok(()));
                prop_assert!(ends.iter().flatten().all(|at| Self::inside(&after, *at).is_none()));
                prop_assert!(gather.non_leaf());
                let (first, end) = gather.range().unwrap();
                prop_assert!(cut.iter().all(|l| l.start >= first && l.start + (l.size - 1) <= end));
            }
        }
        // What was dirty stays so, in every part.
        for part in &after {
            let whole =
                leaves.iter().find(|l| l.start <= part.start && part.start - l.start < l.size).unwrap();
            prop_assert_eq!(part.dirty, whole.dirty);
        }
        Ok(())
    }

    /// A walker writes through a leaf.
    fn write(&mut self, nth: usize) {
        let leaves: Vec<Found> = self.walk();
        let writable: Vec<&Found> = leaves.iter().filter(|l| l.prot.contains(Prot::WRITE)).collect();
        if writable.is_empty() || !self.kept() {
            return;
        }
        let leaf = writable[nth % writable.len()];
        // Any of its entries.
        let index = leaf.index + nth % leaf.entries;
        let per_frame = 4096 / size_of::<F::Word>();
        let frame = Phys(leaf.table.0 + (index / per_frame * 4096) as u64);
        if size_of::<F::Word>() == 8 {
            let w: u64 = self.mem.load(frame, index % per_frame);
            self.mem.store(frame, index % per_frame, F::written(w));
        } else {
            let w: u32 = self.mem.load(frame, index % per_frame);
            self.mem.store(frame, index % per_frame, F::written(w.into()) as u32);
        }
    }

    fn kept(&self) -> bool {
        F::new(&self.config).dirty_bits() == portcullis_pgtable::AccessBits::Kept
    }

    fn track(&mut self, on: bool) -> TestCaseResult {
        let dirty: Vec<Found> = self.walk().into_iter().filter(|l| l.dirty).collect();
        let mut gather = Gather::new();
        let got = self.table.set_dirty_tracking(on, &mut gather);
        if !self.kept() {
            prop_assert_eq!(got, Err(DirtyError::NotKept(F::ID)));
            return Ok(());
        }
        prop_assert_eq!(got, Ok(()));
        self.tracking = on;
        if on {
            prop_assert!(self.walk().iter().all(|l| !l.dirty));
            let first = dirty.first().map(|l| l.start);
            prop_assert_eq!(gather.range().map(|(first, _)| first), first);
        }
        Ok(())
    }

    fn dirty(&mut self, iova: u64, len: u64, clear: bool) -> TestCaseResult {
        let last = iova.saturating_add(len - 1);
        let touches = |l: &Found| l.start <= last && l.start + (l.size - 1) >= iova;
        let before = self.walk();
        let want: Vec<(u64, u64)> =
            before.iter().filter(|l| l.dirty && touches(l)).map(|l| (l.start, l.size)).collect();
        let (mut seen, mut gather) = (Vec::new(), Gather::new());
        let got = self.table.read_dirty(iova, len, clear, &mut gather, &mut |at, size| seen.push((at, size)));
        if !self.kept() {
            prop_assert_eq!(got, Err(DirtyError::NotKept(F::ID)));
            return Ok(());
        }
        if !self.tracking {
            prop_assert_eq!(got, Err(DirtyError::Off));
            return Ok(());
        }
        prop_assert_eq!(got, Ok(()));
        prop_assert_eq!(&seen, &want);
        let expected = |l: &Found| Found { dirty: l.dirty && !(clear && touches(l)), ..*l };
        prop_assert_eq!(self.walk(), before.iter().map(expected).collect::<Vec<_>>());
        let span =
            clear.then(|| Some((want.first()?.0, want.last().map(|(at, size)| at + (size - 1))?))).flatten();
        prop_assert_eq!(gather.range(), span);
        Ok(())
    }

    fn lookup(&self, iova: u64) -> TestCaseResult {
        let want = self.mapped.at(iova).map(|(_, phys, prot)| (phys, prot));
        prop_assert_eq!(self.table.lookup(iova).map(|l| (l.phys.0, l.prot)), want);
        let reader = self.table.reader();
        prop_assert_eq!(reader.lookup(iova).map(|l| (l.phys.0, l.prot)), want);
        Ok(())
    }

    /// The table in memory, the engine's own view and the model agree.
    fn compare(&self) -> TestCaseResult {
        let walked = self.walk();
        let mut found = Intervals::default();
        for l in &walked {
            found.insert(l.start, l.start + (l.size - 1), l.phys, l.prot);
        }
        prop_assert_eq!(found.joined(), self.mapped.joined());
        let mut seen = Vec::new();
        let mut see = |l| seen.push(l);
        self.table.leaves(0, u64::MAX, &mut see);
        self.table.leaves(u64::MAX, 1, &mut see);
        seen.dedup();
        let leaf = |l: &Found| Leaf { phys: Phys(l.phys), start: l.start, size: l.size, prot: l.prot };
        prop_assert_eq!(seen, walked.iter().map(leaf).collect::<Vec<_>>());
        Ok(())
    }
}

fn kept() -> Config {
    Config { accessed: true, dirty: true, hitless: Hitless::Tables, ..Config::default() }
}

/// How many runs a format gets; a longer sweep asks for more by `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)
}

/// A test for each format and configuration.
macro_rules! formats {
    ($($name:ident: $format:ty, $config:expr;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]
            $(
                #[test]
                fn $name(steps in prop::collection::vec(step(), 1..20)) {
                    Both::<$format>::new($config).run(steps)?;
                }
            )*
        }
    };
}

formats! {
    vtd_second_stage_of_three_levels: VtdSecondStage, Config { levels: 3, ..kept() };
    vtd_second_stage_of_four_levels: VtdSecondStage, Config { levels: 4, ..kept() };
    vtd_second_stage_of_five_levels: VtdSecondStage, Config { accessed: false, ..kept() };
    x86_first_stage_of_four_levels: X86FirstStage, Config { levels: 4, ..kept() };
    x86_first_stage_of_five_levels_in_both_halves: X86FirstStage, Config { space: Space::Signed, ..kept() };
    amd_v2_in_both_halves: AmdV2, Config { space: Space::Signed, levels: 4, execute: true, ..kept() };
    arm_stage_1_4k: ArmStage1<12>, Config { input_bits: 48, output_bits: 48, ..kept() };
    arm_stage_1_4k_of_52_bits: ArmStage1<12>, kept();
    arm_stage_1_4k_in_the_upper_half: ArmStage1<12>, Config { space: Space::Upper, input_bits: 39, output_bits: 44, ..kept() };
    arm_stage_1_16k: ArmStage1<14>, Config { input_bits: 47, output_bits: 48, hitless: Hitless::No, ..kept() };
    arm_stage_1_64k: ArmStage1<16>, Config { input_bits: 42, space: Space::Upper, ..kept() };
    arm_stage_2_4k: ArmStage2<12>, Config { input_bits: 40, output_bits: 40, hitless: Hitless::No, ..kept() };
    arm_stage_2_4k_of_48_bits: ArmStage2<12>, Config { input_bits: 48, output_bits: 48, accessed: false, ..kept() };
    arm_stage_2_16k: ArmStage2<14>, Config { input_bits: 40, output_bits: 48, hitless: Hitless::Entries, ..kept() };
    arm_stage_2_64k_of_52_bits: ArmStage2<16>, kept();
    amd_v1: AmdV1, kept();
    amd_v1_from_three_levels: AmdV1, Config { levels: 3, hitless: Hitless::No, ..kept() };
    amd_v1_of_40_bits: AmdV1, Config { input_bits: 40, accessed: false, ..kept() };
    amd_v1_mock: AmdV1Mock, Config { levels: 2, ..kept() };
    riscv_sv39: RiscvFirstStage, Config { levels: 3, space: Space::Signed, ..kept() };
    riscv_sv57: RiscvFirstStage, Config { accessed: false, ..kept() };
    riscv_sv39x4: RiscvSecondStage, Config { levels: 3, ..kept() };
    riscv_sv48x4: RiscvSecondStage, Config { levels: 4, ..kept() };
    rockchip_v2: RockchipV2, Config { coherent: false, ..Config::default() };
    leaves_of_several_entries: Wide, kept();
}
