//! Two at once: installs that collide, lookups beside unmaps, and what a walker that does not
//! snoop sees in the middle.

use crate::common::{Walked, config, walk};
use portcullis_pgtable::{
    Config, Gather, IoTable, Phys, Prot, Synced, Table, VtdSecondStage, X86FirstStage,
    formats::size::{G1, K4, M2},
    testing::{HeapMem, Moment},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn shared<F: Walked>(mem: &HeapMem, config: Config) -> Arc<Table<F, HeapMem>> {
    Arc::new(Table::new(mem.clone(), config).unwrap())
}

fn unmap_and_retire(table: &dyn IoTable, iova: u64, len: u64) {
    let mut gather = Gather::new();
    table.unmap(iova, len, &mut gather).unwrap();
    table.retire(gather.into_retired(), Synced::after_completed_invalidation());
}

#[test]
fn the_loser_of_an_install_uses_the_winners_table() {
    let mem = HeapMem::new(16);
    let t = shared::<VtdSecondStage>(&mem, config());
    let other = t.clone();
    mem.around_next_cas(Moment::Before, move || {
        other.map(K4, Phys(0x5000), K4, RW).unwrap();
    });
    t.map(0, Phys(0x4000), K4, RW).unwrap();
    assert_eq!(t.lookup(0).unwrap().phys, Phys(0x4000));
    assert_eq!(t.lookup(K4).unwrap().phys, Phys(0x5000));
    // One root and one table a level: every frame that lost went back.
    assert_eq!(mem.in_use(), 4);
    drop(t);
    assert_eq!(mem.in_use(), 0);
}

/// A walker that sees only what was cleaned, and what it finds for `iova`.
fn walker_sees(mem: &HeapMem, root: Phys, iova: u64) -> u64 {
    let mut table = root;
    for shift in [39, 30, 21] {
        let w = mem.walker_load(table, (iova >> shift & 511) as usize);
        if w & 1 == 0 || w & 0x80 != 0 {
            return w;
        }
        table = Phys(w & 0x000f_ffff_ffff_f000);
    }
    mem.walker_load(table, (iova >> 12 & 511) as usize)
}

fn incoherent() -> Config {
    Config { coherent: false, ..config() }
}

#[test]
fn what_a_map_wrote_is_visible_when_it_returns() {
    let mem = HeapMem::incoherent(64);
    let t = shared::<X86FirstStage>(&mem, incoherent());
    let filled = (8 * M2, K4, M2);
    for (iova, phys, len) in [(0, 0, K4), (M2, M2, M2), filled, (G1 + K4, 0, 2 * M2)] {
        t.map(iova, Phys(phys), len, RW).unwrap();
        assert_eq!(walker_sees(&mem, t.root(), iova) & 0xfff & !0x80, 0x67);
        assert_eq!(walker_sees(&mem, t.root(), iova + len - 1) & 0xfff & !0x80, 0x67);
    }
    unmap_and_retire(&*t, G1 + K4, 2 * M2);
    assert_eq!(walker_sees(&mem, t.root(), G1 + K4) & 1, 0);
    assert_eq!(walker_sees(&mem, t.root(), G1 + M2) & 1, 0);
    assert_eq!(walker_sees(&mem, t.root(), G1 + 2 * M2) & 1, 0);
}

#[test]
fn a_table_is_clean_before_its_parent_entry_can_be_seen() {
    let mem = HeapMem::incoherent(64);
    let t = shared::<VtdSecondStage>(&mem, incoherent());
    t.map(0, Phys(0), K4, RW).unwrap();
    // The next install is the leaf table of the second 2 MiB, filled before it is linked. Right
    // after the swap the walker may fetch the parent entry, and must then find clean entries.
    let (walker, root) = (mem.clone(), t.root());
    let seen = Arc::new(Mutex::new(None));
    let result = seen.clone();
    mem.around_next_cas(Moment::After, move || {
        let directory =
            Phys(walker.walker_load(Phys(walker.walker_load(root, 0) & !0xfff), 0) & 0x000f_ffff_ffff_f000);
        let entry: u64 = portcullis_pgtable::TableMem::load(&walker, directory, 1);
        let table = Phys(entry & 0x000f_ffff_ffff_f000);
        let first_and_last = [0, 511].map(|i| walker.walker_load(table, i));
        *result.lock().unwrap() = Some(first_and_last);
    });
    t.map(M2, Phys(K4), M2, RW).unwrap();
    let preset = 0x303;
    let want = [K4 | preset, M2 | preset];
    assert_eq!(*seen.lock().unwrap(), Some(want));
}

/// While the first mapper is between a swap and its clean, a second one maps `len` bytes at
/// `iova`. `before` is mapped already, so that the swap in question is at a chosen level.
fn meets_unsettled(before: Option<u64>, iova: u64, len: u64) {
    let mem = HeapMem::incoherent(64);
    let t = shared::<VtdSecondStage>(&mem, incoherent());
    if let Some(before) = before {
        t.map(before, Phys(0), K4, RW).unwrap();
    }
    let (other, walker) = (t.clone(), mem.clone());
    let seen = Arc::new(Mutex::new(0));
    let result = seen.clone();
    mem.around_next_cas(Moment::After, move || {
        other.map(iova, Phys(0x5000), len, RW).unwrap();
        *result.lock().unwrap() = walker_sees(&walker, other.root(), iova);
    });
    t.map(0, Phys(0x4000), K4, RW).unwrap();
    assert_eq!(*seen.lock().unwrap(), 0x5303);
    assert_eq!(walker_sees(&mem, t.root(), 0), 0x4303);
}

#[test]
fn a_mapper_that_meets_an_unsettled_table_cleans_the_way_to_it() {
    // The table that was just installed is at level 3, 2, 1; far enough from what is mapped
    // before that no cache line is shared.
    for before in [None, Some(64 * G1), Some(64 * M2)] {
        meets_unsettled(before, K4, K4);
        meets_unsettled(before, M2 - K4, 2 * K4);
    }
}

#[test]
fn a_lookup_keeps_retired_tables_from_being_freed() {
    let mem = HeapMem::new(64);
    let t = shared::<VtdSecondStage>(&mem, config());
    t.map(0, Phys(K4), 2 * M2, RW).unwrap();
    let full = mem.in_use();
    let mut visited = 0;
    t.leaves(0, u64::MAX, &mut |_| {
        if visited == 0 {
            unmap_and_retire(&*t, 0, M2);
            unmap_and_retire(&*t, M2, M2);
            assert_eq!(mem.in_use(), full);
        }
        visited += 1;
    });
    assert!(visited >= 1);
    assert_eq!(mem.in_use(), full - 2, "the end of the last lookup frees them");
}

/// A lookup that has begun and ends when it is told to.
struct Running {
    end: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Running {
    fn begin(t: &Arc<Table<VtdSecondStage, HeapMem>>) -> Running {
        let (began, wait) = mpsc::channel();
        let (end, told) = mpsc::channel();
        let t = t.clone();
        let thread = thread::spawn(move || {
            t.leaves(0, u64::MAX, &mut |_| {
                began.send(()).unwrap();
                told.recv().unwrap();
            });
        });
        wait.recv().unwrap();
        Running { end, thread }
    }

    fn end(self) {
        self.end.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

#[test]
fn overlapping_lookups_hold_nothing_up_for_ever() {
    let mem = HeapMem::new(64);
    let t = shared::<VtdSecondStage>(&mem, config());
    t.map(0, Phys(0), K4, RW).unwrap();
    let empty = mem.in_use();
    let mut running = Running::begin(&t);
    for _ in 0..20 {
        t.map(M2, Phys(K4), M2, RW).unwrap();
        unmap_and_retire(&*t, M2, M2);
        assert!(mem.in_use() > empty, "a lookup runs that may have seen the table");
        // At any time one lookup runs.
        let next = Running::begin(&t);
        running.end();
        running = next;
        assert!(mem.in_use() <= empty + 2);
    }
    running.end();
    assert_eq!(mem.in_use(), empty);
}

/// Each thread maps, looks up and unmaps in ranges of its own that share tables with the other's.
fn neighbours<F: Walked>(config: Config, mem: HeapMem) {
    let t = shared::<F>(&mem, config);
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        let workers = [0u64, 1].map(|me| {
            let t = &t;
            s.spawn(move || {
                for round in 0..400u64 {
                    // Interleaved pages of one table, then whole tables side by side.
                    for n in 0..8 {
                        let iova = (2 * n + me) * K4;
                        t.map(iova, Phys(iova + M2), K4, RW).unwrap();
                    }
                    let iova = G1 + (2 * (round % 3) + me) * M2;
                    t.map(iova, Phys(K4), M2, RW).unwrap();
                    assert_eq!(t.lookup(iova + M2 - 1).unwrap().phys, Phys(K4 + M2 - 1));
                    unmap_and_retire(&**t, iova, M2);
                    assert_eq!(t.lookup(iova), None);
                    for n in 0..8 {
                        let iova = (2 * n + me) * K4;
                        assert_eq!(t.lookup(iova).unwrap().phys, Phys(iova + M2));
                        unmap_and_retire(&**t, iova, K4);
                    }
                }
            })
        });
        s.spawn(|| {
            while !done.load(Relaxed) {
                for n in 0..6 {
                    if let Some(leaf) = t.lookup(G1 + n * M2) {
                        assert_eq!(leaf.phys, Phys(K4));
                    }
                }
            }
        });
        let results = workers.map(|w| w.join());
        done.store(true, Relaxed);
        for r in results {
            r.unwrap();
        }
    });
    assert_eq!(walk::<F>(&mem, &*t), []);
    drop(t);
    assert_eq!(mem.in_use(), 0);
}

#[test]
fn disjoint_ranges_need_no_lock() {
    // A lookup that is preempted holds back every table that is retired meanwhile.
    neighbours::<VtdSecondStage>(config(), HeapMem::new(1024));
    neighbours::<X86FirstStage>(config(), HeapMem::new(1024));
    neighbours::<X86FirstStage>(incoherent(), HeapMem::incoherent(1024));
}
