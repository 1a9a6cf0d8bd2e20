//! Every protection has a mutation: the machine without it is caught by a named invariant in a
//! named scenario, and its unmutated twin passes with the same seeds.

use portcullis::{
    Answer, At, Intake, RawFault, SourceId, Turn,
    driver::{
        Batch, Caps, DrainEnd, Driver, Features, Incompatible, InvError, InvSeq, More, Offer, PageRequest,
        PrepareError, Prepared, QueuePos, Stall, Start, StartError, SubmitError, TableRequest, Taken, Target,
    },
};
use portcullis_machine::{
    oracle::Verdict,
    platform::AnyPlatform,
    scenario::{
        Scenario, caches,
        copy::{self, CopyConfig},
        migration, paging, private_data,
        stage::{Setting, Wrap},
        storms, units,
    },
    sim::Pool,
};
use portcullis_models::{mutation::Mutations, vtd::Config};
use portcullis_pgtable::{
    ChangeError, DirtyError, FormatDesc, Gather, IoTable, Leaf, MapError, NoAccessedBits, Phys, Prot, Reader,
    Retired, Segment, Synced, TableMem, Top, UnmapError,
};
use std::{sync::Arc, task::Poll};

/// Seeds for each mutation and its twin.
const SEEDS: u64 = 24;

/// An invariant of the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invariant {
    Isolation,
    SettledOnce,
    Quiescence,
}

impl Invariant {
    fn violations(self, verdict: &Verdict) -> u64 {
        match self {
            Invariant::Isolation => verdict.isolation.violations,
            Invariant::SettledOnce => verdict.settled_once.violations,
            Invariant::Quiescence => verdict.quiescence.violations,
        }
    }
}

/// Runs `scenario` as it is and mutated, over the same seeds. Every mutated run has to violate
/// `invariant`, and no other run anything.
#[track_caller]
fn caught(scenario: Scenario, invariant: Invariant, twin: &Setting, mutate: impl Fn(&mut Setting)) {
    let pool = Pool::default();
    for seed in 0..SEEDS {
        let twin = Setting { seed, pool: pool.clone(), ..twin.clone() };
        let mut mutated = twin.clone();
        mutate(&mut mutated);
        let ending = scenario(&twin);
        assert!(
            ending.ok(),
            "unmutated, seed {seed}: {:?} {:?} {:?}",
            ending.problems,
            ending.stuck,
            ending.verdict
        );
        let ending = scenario(&mutated);
        let found = invariant.violations(&ending.verdict);
        assert!(
            found > 0,
            "seed {seed}: {invariant:?} did not catch it in \"{}\": {:?}, {:?}",
            ending.scenario,
            ending.problems,
            ending.verdict
        );
        assert_eq!(ending.stuck, None, "seed {seed}");
    }
}

fn with(mutations: Mutations) -> impl Fn(&mut Setting) {
    move |s| s.mutations = mutations
}

#[test]
fn a_context_cache_that_is_not_invalidated() {
    let legacy = Setting { unit: Config::legacy(), ..Setting::new(0) };
    let mutation = Mutations { ignore_context_invalidation: true, ..Mutations::default() };
    caught(caches::domain_switch, Invariant::Isolation, &legacy, with(mutation));
}

#[test]
fn a_pasid_cache_that_is_not_invalidated() {
    let mutation = Mutations { ignore_pasid_invalidation: true, ..Mutations::default() };
    caught(caches::domain_switch, Invariant::Isolation, &Setting::new(0), with(mutation));
}

#[test]
fn an_iotlb_that_is_not_invalidated() {
    let mutation = Mutations { ignore_iotlb_invalidation: true, ..Mutations::default() };
    caught(caches::unmap, Invariant::Isolation, &Setting::new(0), with(mutation));
}

#[test]
fn a_device_tlb_that_is_not_invalidated() {
    let mutation = Mutations { ignore_device_tlb_invalidation: true, ..Mutations::default() };
    caught(caches::device_tlbs, Invariant::Isolation, &Setting::new(0), with(mutation));
}

#[test]
fn a_group_that_is_answered_twice() {
    let mutation = Mutations { answer_twice: true, ..Mutations::default() };
    caught(paging::page_requests, Invariant::SettledOnce, &Setting::new(0), with(mutation));
}

#[test]
fn a_walker_that_gives_back_what_it_is_given() {
    let mutation = Mutations { identity_walk: true, ..Mutations::default() };
    caught(units::two_devices, Invariant::Isolation, &Setting::new(0), with(mutation));
}

/// The main scenario has teeth of its own: pages that went out are looked at again.
#[test]
fn evictions_that_are_not_invalidated() {
    let input: Arc<[u8]> = (0..600_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let iotlb = Mutations { ignore_iotlb_invalidation: true, ..Mutations::default() };
    let device_tlb = Mutations { ignore_device_tlb_invalidation: true, ..Mutations::default() };
    let pool = Pool::default();
    for seed in 0..SEEDS {
        let run = |mutations| {
            let config = CopyConfig { seed, mutations, pool: pool.clone(), ..CopyConfig::new(input.clone()) };
            copy::run(&config).expect("a run").report
        };
        assert!(run(Mutations::default()).ok, "unmutated, seed {seed}");
        for mutations in [iotlb, device_tlb] {
            let found = run(mutations).invariants.isolation.violations;
            assert!(found > 0, "seed {seed}: isolation did not catch {mutations:?}");
        }
    }
}

#[test]
fn a_table_that_is_freed_before_the_sync() {
    let wrap: Wrap = Arc::new(|platform, driver| {
        Box::new(Careless { driver, platform: platform.clone(), lacks: Lacks::TablesUntilTheSync })
    });
    let scenario = caches::tables_wait_for_the_sync;
    caught(scenario, Invariant::Isolation, &Setting::new(0), |s| s.wrap = Some(wrap.clone()));
}

/// Requests are on their way only in some schedules: not every seed can show that nobody waits for
/// them.
#[test]
fn a_drain_that_waits_for_nothing() {
    let wrap: Wrap = Arc::new(|platform, driver| {
        Box::new(Careless { driver, platform: platform.clone(), lacks: Lacks::Drain })
    });
    let pool = Pool::default();
    let mut found = 0;
    for seed in 0..10 * SEEDS {
        let twin = Setting { pool: pool.clone(), ..Setting::new(seed) };
        let mutated = Setting { wrap: Some(wrap.clone()), ..twin.clone() };
        let ending = paging::request_at_detach(&twin);
        assert!(ending.ok(), "unmutated, seed {seed}: {:?} {:?}", ending.problems, ending.verdict);
        let ending = paging::request_at_detach(&mutated);
        found += u64::from(Invariant::Quiescence.violations(&ending.verdict) > 0);
    }
    assert!(found > 0, "quiescence did not catch it in \"page request at detach\"");
}

/// A driver that keeps 127 of 128 bits.
#[test]
fn private_data_that_come_back_changed() {
    let wrap: Wrap = Arc::new(|platform, driver| {
        Box::new(Careless { driver, platform: platform.clone(), lacks: Lacks::PrivateData })
    });
    let scenario = private_data::private_data;
    caught(scenario, Invariant::SettledOnce, &Setting::new(0), |s| s.wrap = Some(wrap.clone()));
}

/// Where a dirty bit is cleared and a cache goes on without setting it, a write is told by nobody:
/// the hardware's invalidations that do nothing, each device's own, and none asked for.
#[test]
fn dirty_bits_that_are_cleared_and_not_invalidated() {
    let wrap: Wrap = Arc::new(|platform, driver| {
        Box::new(Careless { driver, platform: platform.clone(), lacks: Lacks::InvalidationOfDirty })
    });
    let iotlb = Mutations { ignore_iotlb_invalidation: true, ..Mutations::default() };
    let device_tlb = Mutations { ignore_device_tlb_invalidation: true, ..Mutations::default() };
    let pool = Pool::default();
    for seed in 0..SEEDS {
        let twin = Setting { pool: pool.clone(), ..Setting::new(seed) };
        let ending = migration::migration(&twin);
        assert!(ending.ok(), "unmutated, seed {seed}: {:?} {:?}", ending.problems, ending.verdict);
        for mutated in [
            Setting { mutations: iotlb, ..twin.clone() },
            Setting { mutations: device_tlb, ..twin.clone() },
            Setting { wrap: Some(wrap.clone()), ..twin.clone() },
        ] {
            let problems = migration::migration(&mutated).problems;
            let found = problems.iter().any(|p| p.contains("is not what a device wrote last"));
            assert!(found, "seed {seed}, {:?}: {problems:?}", mutated.mutations);
        }
    }
}

/// Without a device's share of the workers, four resolvers that take their time have them all.
#[test]
fn a_device_that_may_have_every_worker() {
    let pool = Pool::default();
    for seed in 0..3 {
        let twin = Setting { pool: pool.clone(), ..Setting::new(seed) };
        let mut mutated = twin.clone();
        mutated.core.workers_per_device = u32::MAX;
        let ending = storms::storm(&twin);
        assert!(ending.ok(), "unmutated, seed {seed}: {:?} {:?}", ending.problems, ending.verdict);
        let problems = storms::storm(&mutated).problems;
        assert!(problems.iter().any(|p| p.starts_with("99 of 100")), "seed {seed}: {problems:?}");
    }
}

/// What a careless driver does without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lacks {
    /// Its tables free the tables below them as soon as these are empty.
    TablesUntilTheSync,
    /// Nothing is invalidated where dirty bits were cleared.
    InvalidationOfDirty,
    /// One bit of the private data of each request.
    PrivateData,
    /// Its drain asks the hardware nothing and ends at the first position of the queue.
    Drain,
}

struct Careless {
    driver: Box<dyn Driver>,
    platform: AnyPlatform,
    lacks: Lacks,
}

/// A table of a careless driver.
struct CarelessTable {
    table: Box<dyn IoTable>,
    platform: AnyPlatform,
    lacks: Lacks,
}

impl IoTable for CarelessTable {
    fn desc(&self) -> FormatDesc {
        self.table.desc()
    }

    fn top(&self) -> Top {
        self.table.top()
    }

    fn map(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), MapError> {
        self.table.map(iova, phys, len, prot)
    }

    fn map_sg(&self, iova: u64, segments: &[Segment], prot: Prot) -> Result<(), MapError> {
        self.table.map_sg(iova, segments, prot)
    }

    fn unmap(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), UnmapError> {
        if self.lacks != Lacks::TablesUntilTheSync {
            return self.table.unmap(iova, len, gather);
        }
        let mut early = Gather::new();
        self.table.unmap(iova, len, &mut early)?;
        if let Some((start, end)) = early.range() {
            gather.add_range(start, end);
        }
        if early.non_leaf() {
            // A frame of no use takes the place of those that go, so that the invalidation is the
            // one that it would be.
            let frame = self.platform.frame().expect("a frame").publish();
            gather.add_table(frame);
        }
        self.table.retire(early.into_retired(), Synced::after_completed_invalidation());
        Ok(())
    }

    fn lookup(&self, iova: u64) -> Option<Leaf> {
        self.table.lookup(iova)
    }

    fn reader(&self) -> Reader<'_> {
        self.table.reader()
    }

    fn leaves(&self, iova: u64, len: u64, visit: &mut dyn FnMut(Leaf)) {
        self.table.leaves(iova, len, visit);
    }

    fn protect(&self, iova: u64, len: u64, prot: Prot, gather: &mut Gather) -> Result<(), ChangeError> {
        self.table.protect(iova, len, prot, gather)
    }

    fn split(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), ChangeError> {
        self.table.split(iova, len, gather)
    }

    fn accessed(&self, iova: u64, len: u64, clear: bool) -> Result<bool, NoAccessedBits> {
        self.table.accessed(iova, len, clear)
    }

    fn set_dirty_tracking(&self, on: bool, gather: &mut Gather) -> Result<(), DirtyError> {
        self.table.set_dirty_tracking(on, gather)
    }

    fn read_dirty(
        &self,
        iova: u64,
        len: u64,
        clear: bool,
        gather: &mut Gather,
        visit: &mut dyn FnMut(u64, u64),
    ) -> Result<(), DirtyError> {
        match self.lacks {
            Lacks::InvalidationOfDirty => self.table.read_dirty(iova, len, clear, &mut Gather::new(), visit),
            _ => self.table.read_dirty(iova, len, clear, gather, visit),
        }
    }

    fn park(&self, tables: Retired) {
        self.table.park(tables)
    }

    fn parked(&self) -> Retired {
        self.table.parked()
    }

    fn retire(&self, tables: Retired, synced: Synced) {
        self.table.retire(tables, synced);
    }
}

impl Driver for Careless {
    fn new_table(&self, request: TableRequest) -> Result<Box<dyn IoTable>, PrepareError> {
        let table = self.driver.new_table(request)?;
        Ok(Box::new(CarelessTable { table, platform: self.platform.clone(), lacks: self.lacks }))
    }

    fn caps(&self) -> Caps {
        self.driver.caps()
    }

    fn start(&self, how: Start<'_>) -> Poll<Result<(), StartError>> {
        self.driver.start(how)
    }

    fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible> {
        self.driver.can_walk(desc)
    }

    fn add_device(&self, source: SourceId, features: Features) -> Result<u8, PrepareError> {
        self.driver.add_device(source, features)
    }

    fn set_features(&self, source: SourceId, features: Features) -> Result<InvSeq, SubmitError> {
        self.driver.set_features(source, features)
    }

    fn cut_off(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        self.driver.cut_off(source)
    }

    fn restore(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        self.driver.restore(source)
    }

    fn remove_device(&self, source: SourceId) {
        self.driver.remove_device(source);
    }

    fn prepare(&self, at: At, to: Target) -> Result<Prepared, PrepareError> {
        self.driver.prepare(at, to)
    }

    fn commit(&self, prepared: Prepared) -> Result<InvSeq, (Prepared, SubmitError)> {
        self.driver.commit(prepared)
    }

    fn abandon(&self, prepared: Prepared) {
        self.driver.abandon(prepared);
    }

    fn block(&self, at: At) -> Result<InvSeq, SubmitError> {
        self.driver.block(at)
    }

    fn submit(&self, batch: &Batch<'_>) -> Result<InvSeq, SubmitError> {
        self.driver.submit(batch)
    }

    fn done(&self, seq: InvSeq) -> Poll<Result<(), InvError>> {
        self.driver.done(seq)
    }

    fn drain(&self, at: At) -> Result<InvSeq, SubmitError> {
        if self.lacks == Lacks::Drain {
            return Ok(InvSeq(0));
        }
        self.driver.drain(at)
    }

    fn drain_end(&self, at: At) -> DrainEnd {
        if self.lacks == Lacks::Drain {
            return DrainEnd::At(QueuePos(0));
        }
        self.driver.drain_end(at)
    }

    fn page_response(&self, answer: &Answer<'_>) -> Offer {
        self.driver.page_response(answer)
    }

    fn interrupt(&self) -> bool {
        self.driver.interrupt()
    }

    fn service(&self, turn: &mut Turn<'_>) -> More {
        if self.lacks != Lacks::PrivateData {
            return self.driver.service(turn);
        }
        self.driver.service(&mut Turn::new(&mut Forgetful { turn }, 64))
    }
}

/// Hands everything on but one bit.
struct Forgetful<'a, 'b> {
    turn: &'a mut Turn<'b>,
}

impl Intake for Forgetful<'_, '_> {
    fn page_request(&mut self, mut request: PageRequest) -> Taken {
        request.vendor.0[3] ^= 1 << 63;
        self.turn.page_request(request)
    }

    fn malformed(&mut self, request: PageRequest) -> Taken {
        self.turn.malformed(request)
    }

    fn stalled(&mut self, stall: Stall) -> Taken {
        self.turn.stalled(stall)
    }

    fn stalls_ended(&mut self, source: SourceId) {
        self.turn.stalls_ended(source);
    }

    fn fault(&mut self, fault: RawFault) {
        self.turn.fault(fault);
    }

    fn passed(&mut self, head: QueuePos) {
        self.turn.passed(head);
    }

    fn overflow(&mut self) {
        self.turn.overflow();
    }

    fn completed(&mut self) {
        self.turn.completed();
    }
}
