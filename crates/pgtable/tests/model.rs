//! Random maps, unmaps and lookups against a plain map of pages, for every format; after each
//! step a walker of the test's own reads the table from memory.
#![cfg(not(any(portcullis_loom, portcullis_shuttle)))]

mod common;

use common::{Walked, Wide, config};
use portcullis_pgtable::{
    Gather, IoTable, Leaf, MapError, Phys, Prot, Synced, Table, UnmapError, VtdSecondStage, X86FirstStage,
    testing::HeapMem,
};
use proptest::{prelude::*, test_runner::TestCaseResult};
use std::collections::BTreeMap;

const PAGE: u64 = 4096;

#[derive(Clone, Debug)]
enum Step {
    Map { at: u64, pages: u64, phys: u64, prot: usize },
    Unmap { at: u64, pages: u64 },
    Lookup { at: u64 },
}

/// Places where something changes in one of the formats: the start, the borders of leaves and
/// tables, the end. `top` is the number of pages of the input space.
fn place() -> impl Strategy<Value = u64> {
    let near = prop_oneof![Just(0u64), Just(512), Just(1024), Just(0x4_0000), Just(u64::MAX)];
    (near, 0..40u64, prop_oneof![Just(0u64), Just(496)])
        .prop_map(|(base, near, more)| base.wrapping_add(near + more).wrapping_sub(20))
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![1..4u64, 14..36u64, Just(512), Just(1024), 500..1700u64]
}

fn step() -> impl Strategy<Value = Step> {
    let phys = prop_oneof![Just(0u64), Just(512), Just(0x8_0000), 1..0x9_0000u64];
    prop_oneof![
        4 => (place(), pages(), phys, 0..8usize)
            .prop_map(|(at, pages, phys, prot)| Step::Map { at, pages, phys, prot }),
        4 => (place(), pages()).prop_map(|(at, pages)| Step::Unmap { at, pages }),
        1 => place().prop_map(|at| Step::Lookup { at }),
    ]
}

struct Both<F: Walked> {
    mem: HeapMem,
    table: Table<F, HeapMem>,
    pages: BTreeMap<u64, (u64, Prot)>,
}

impl<F: Walked> Both<F> {
    fn new() -> Both<F> {
        let mem = HeapMem::new(64);
        Both { table: Table::new(mem.clone(), config()).unwrap(), mem, pages: BTreeMap::new() }
    }

    fn run(mut self, steps: Vec<Step>) -> TestCaseResult {
        // The last place of the input space, whatever its width, and past it.
        let top = 1 << (self.table.desc().input_bits - 12);
        let at = |at: u64| {
            if at > 1 << 60 || at > top { at.wrapping_add(top) } else { at }
        };
        for step in steps {
            match step {
                Step::Map { at: a, pages, phys, prot } => {
                    let prot = F::PROTS[prot % F::PROTS.len()];
                    self.map(at(a).wrapping_mul(PAGE), pages, phys * PAGE, prot)?;
                }
                Step::Unmap { at: a, pages } => {
                    self.unmap(at(a).wrapping_mul(PAGE), pages)?;
                }
                Step::Lookup { at: a } => self.lookup(at(a).wrapping_mul(PAGE) | 0x123)?,
            }
            self.compare()?;
        }
        let leaves = F::walk(&self.mem, self.table.root());
        for leaf in leaves {
            self.unmap(leaf.start, leaf.size / PAGE)?;
        }
        prop_assert!(self.pages.is_empty());
        drop(self.table);
        prop_assert_eq!(self.mem.in_use(), 0);
        Ok(())
    }

    fn in_range(&self, iova: u64, pages: u64) -> bool {
        let bits = self.table.desc().input_bits;
        iova.checked_add(pages * PAGE - 1).is_some_and(|last| last >> bits == 0)
    }

    fn map(&mut self, iova: u64, pages: u64, phys: u64, prot: Prot) -> TestCaseResult {
        let got = self.table.map(iova, Phys(phys), pages * PAGE, prot);
        if !self.in_range(iova, pages) {
            let (len, bits) = (pages * PAGE, self.table.desc().input_bits);
            prop_assert_eq!(got, Err(MapError::InputRange { iova, len, bits }));
            return Ok(());
        }
        let last = iova + (pages * PAGE - 1);
        if let Some((&iova, &(phys, _))) = self.pages.range(iova..=last).next() {
            let phys = Phys(phys);
            prop_assert_eq!(got, Err(MapError::AlreadyMapped { iova, phys }));
            return Ok(());
        }
        prop_assert_eq!(got, Ok(()));
        for n in (0..pages).map(|n| n * PAGE) {
            self.pages.insert(iova + n, (phys + n, prot));
        }
        Ok(())
    }

    fn unmap(&mut self, iova: u64, pages: u64) -> TestCaseResult {
        let leaves = F::walk(&self.mem, self.table.root());
        let mut gather = Gather::new();
        let got = self.table.unmap(iova, pages * PAGE, &mut gather);
        if !self.in_range(iova, pages) {
            let (len, bits) = (pages * PAGE, self.table.desc().input_bits);
            prop_assert_eq!(got, Err(UnmapError::InputRange { iova, len, bits }));
            return Ok(());
        }
        let last = iova + (pages * PAGE - 1);
        let inside = |at: u64| {
            leaves.iter().find(|l| l.start < at && at - l.start < l.size).map(|l| UnmapError::PartialLeaf {
                iova: at,
                start: l.start,
                size: l.size,
            })
        };
        let hole = (0..pages)
            .map(|n| iova + n * PAGE)
            .find(|at| !self.pages.contains_key(at))
            .map(|iova| UnmapError::NotMapped { iova });
        let want = inside(iova).or(hole).or_else(|| inside(last.checked_add(1)?));
        prop_assert_eq!(got, want.map_or(Ok(()), Err));
        if got.is_ok() {
            prop_assert_eq!(gather.range(), Some((iova, last)));
            self.pages.retain(|at, _| *at < iova || *at > last);
        } else {
            prop_assert!(gather.is_empty());
        }
        self.table.retire(gather.into_retired(), Synced::after_completed_invalidation());
        Ok(())
    }

    fn lookup(&self, iova: u64) -> TestCaseResult {
        let got = self.table.lookup(iova).map(|l| (l.phys.0, l.prot));
        let want =
            self.pages.get(&(iova & !(PAGE - 1))).map(|(phys, prot)| (phys | (iova & (PAGE - 1)), *prot));
        prop_assert_eq!(got, want);
        Ok(())
    }

    /// The table in memory, the engine's own view and the model agree.
    fn compare(&self) -> TestCaseResult {
        let walked = F::walk(&self.mem, self.table.root());
        let pages = walked.iter().flat_map(|l| {
            let page = |n| (l.start + n, (l.phys + n, l.prot));
            (0..l.size).step_by(PAGE as usize).map(page)
        });
        prop_assert!(pages.eq(self.pages.iter().map(|(at, to)| (*at, *to))));
        let mut seen = Vec::new();
        self.table.leaves(0, u64::MAX, &mut |l| seen.push(l));
        let as_leaf =
            |l: &common::Found| Leaf { phys: Phys(l.phys), start: l.start, size: l.size, prot: l.prot };
        prop_assert_eq!(seen, walked.iter().map(as_leaf).collect::<Vec<_>>());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vtd_second_stage(steps in prop::collection::vec(step(), 1..24)) {
        Both::<VtdSecondStage>::new().run(steps)?;
    }

    #[test]
    fn x86_first_stage(steps in prop::collection::vec(step(), 1..24)) {
        Both::<X86FirstStage>::new().run(steps)?;
    }

    #[test]
    fn leaves_of_several_entries(steps in prop::collection::vec(step(), 1..24)) {
        Both::<Wide>::new().run(steps)?;
    }
}
