//! Every interleaving, up to a bound on preemptions, of the engine's own install, unmap, retire
//! and lookup, on a format with two levels of four entries.
//!
//! Run with `RUSTFLAGS="--cfg portcullis_loom -C target-feature=+cmpxchg16b"
//! LOOM_MAX_PREEMPTIONS=2 cargo test --release -p portcullis-pgtable --test loom`.
#![cfg(portcullis_loom)]

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use portcullis_pgtable::{
    AccessBits, Config, Entry, Format, FormatId, Fresh, Gather, InPlace, IoTable, NoMem, Phys, Prot, Synced,
    Table, TableMem, Word,
};
use portcullis_sync::atomic::AtomicU64;
use std::{any::Any, ops::Range, sync::Mutex};

const PAGE: u64 = 4096;
const SPAN: u64 = 4 * PAGE;

/// Two levels of four entries. Bit 0: leaf, bit 1: table, bit 2: parked. With `GROWS` it begins with
/// one.
#[derive(Clone, Copy)]
struct Tiny<const GROWS: bool>;

impl<const G: bool> Format for Tiny<G> {
    type Word = u64;
    const ID: FormatId = FormatId("tiny");
    const MIN_LEVELS: usize = if G { 1 } else { 2 };
    const GROWS: bool = G;
    const MAX_LEVELS: usize = 2;
    const PRESENT: u64 = 3;
    const TABLE_BITS: u32 = 5;
    const GRANULE_BITS: u32 = 12;
    const INPUT_BITS: u8 = 16;
    const OUTPUT_BITS: u8 = 52;
    const LEAF_SIZES: u64 = 1 << 12;

    fn new(_: &Config) -> Self {
        Tiny
    }
    fn access_bits(&self) -> AccessBits {
        AccessBits::Ignored
    }
    fn in_place(&self) -> InPlace {
        InPlace::ALL
    }
    fn template(&self, _: Prot) -> Option<u64> {
        Some(1)
    }
    fn leaf(&self, template: u64, _: usize, phys: Phys, _: u32) -> u64 {
        template | phys.0
    }
    fn table(&self, _: usize, table: Phys) -> u64 {
        table.0 | 2
    }
    fn decode(&self, level: usize, w: u64) -> Entry {
        let base = Phys(w & !0xfff);
        match w & 3 {
            1 => Entry::Leaf { base, size_bits: Self::shift(level) },
            2 => Entry::Table(base),
            _ => Entry::Empty,
        }
    }
    fn prot(&self, _: u64) -> Prot {
        Prot::READ
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
        next.map_or(0, |p| p.0 | 4)
    }
    fn parked_next(w: u64) -> Option<Phys> {
        (w & 4 != 0).then_some(Phys(w & !0xfff))
    }
}

/// How table memory may go wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Compares and swaps in two steps.
    TornCas,
    /// Not of the memory: the table is freed without waiting for lookups.
    EagerReuse,
}

/// Frames of four entries. Accounting is outside the model, so that it adds no ordering.
struct Mem {
    frames: Vec<[AtomicU64; 4]>,
    free: Mutex<Vec<usize>>,
    fault: Fault,
}

/// A handle that clones, as loom's `Arc` does not implement foreign traits.
#[derive(Clone)]
struct Handle(loom::sync::Arc<Mem>);

impl Handle {
    fn new(frames: usize, fault: Fault) -> Handle {
        Handle(loom::sync::Arc::new(Mem {
            frames: (0..frames).map(|_| [0; 4].map(AtomicU64::new)).collect(),
            free: Mutex::new((0..frames).rev().collect()),
            fault,
        }))
    }

    fn in_use(&self) -> usize {
        self.0.frames.len() - self.0.free.lock().unwrap().len()
    }

    fn entry<W: Word>(&self, table: Phys, i: usize) -> &W::Atomic {
        let n = (table.0 / PAGE) as usize;
        assert!(!self.0.free.lock().unwrap().contains(&n), "use after free");
        let entry: &dyn Any = &self.0.frames[n][i];
        entry.downcast_ref().expect("entries of 64 bits")
    }
}

impl TableMem for Handle {
    #[expect(unsafe_code, reason = "table memory of the test")]
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        assert_eq!(order, 0, "tables are of one frame");
        let n = self.0.free.lock().unwrap().pop().ok_or(NoMem)?;
        let frame = Phys(n as u64 * PAGE);
        for i in 0..4 {
            self.store(frame, i, 0u64);
        }
        // SAFETY: the frame was on the free list, so nobody else has it.
        Ok(unsafe { Fresh::from_raw(frame, 0) })
    }
    fn release(&self, frame: Fresh) {
        self.reclaim(frame.publish());
    }
    fn reclaim_frames(&self, table: Phys, _: u32) {
        self.0.free.lock().unwrap().push((table.0 / PAGE) as usize);
    }
    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        W::load(self.entry::<W>(table, i))
    }
    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        W::store(self.entry::<W>(table, i), w);
    }
    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        if self.0.fault == Fault::TornCas {
            return match self.load(table, i) {
                found if found == old => {
                    self.store(table, i, new);
                    Ok(())
                }
                found => Err(found),
            };
        }
        W::cas(self.entry::<W>(table, i), old, new)
    }
    fn load128(&self, _: Phys, _: usize) -> u128 {
        unreachable!("page tables have no such entries")
    }
    fn store128(&self, _: Phys, _: usize, _: u128) {
        unreachable!("page tables have no such entries")
    }
    fn fill_private<W: Word>(
        &self,
        frame: &mut Fresh,
        range: Range<usize>,
        mut entry: impl FnMut(usize) -> W,
    ) {
        for i in range {
            self.store(frame.phys(), i, entry(i));
        }
    }
    fn run<W: Word>(&self, table: Phys, range: Range<usize>, mut visit: impl FnMut(usize, &W::Atomic)) {
        for i in range {
            visit(i, self.entry::<W>(table, i));
        }
    }
    fn barrier(&self) {}
    fn clean(&self, _: Phys, _: Range<usize>) {}
}

fn table<const GROWS: bool>(mem: &Handle) -> loom::sync::Arc<Table<Tiny<GROWS>, Handle>> {
    let config = Config { input_bits: 16, page_sizes: PAGE, ..Config::default() };
    loom::sync::Arc::new(Table::new(mem.clone(), config).unwrap())
}

fn unmap(table: &dyn IoTable, iova: u64, len: u64) -> Gather {
    let mut gather = Gather::new();
    table.unmap(iova, len, &mut gather).unwrap();
    gather
}

/// Two mappers need the same leaf table.
fn install(fault: Fault) {
    loom::model(move || {
        let mem = Handle::new(4, fault);
        let t = table::<false>(&mem);
        let other = t.clone();
        let mapper = thread::spawn(move || other.map(0, Phys(7 * PAGE), PAGE, Prot::READ));
        t.map(PAGE, Phys(8 * PAGE), PAGE, Prot::READ).unwrap();
        mapper.join().unwrap().unwrap();
        assert_eq!(t.lookup(0).map(|l| l.phys), Some(Phys(7 * PAGE)));
        assert_eq!(t.lookup(PAGE).map(|l| l.phys), Some(Phys(8 * PAGE)));
        assert_eq!(mem.in_use(), 2, "the root and one leaf table");
        drop(t);
        assert_eq!(mem.in_use(), 0);
    });
}

#[test]
fn two_mappers_install_one_table() {
    install(Fault::None);
}

#[test]
#[should_panic(expected = "the root and one leaf table")]
fn two_mappers_and_a_swap_in_two_steps() {
    install(Fault::TornCas);
}

/// A lookup beside an unmap whose table is freed and used again for something else.
fn reuse(fault: Fault) {
    loom::model(move || {
        let mem = Handle::new(2, fault);
        let t = table::<false>(&mem);
        t.map(0, Phys(7 * PAGE), SPAN, Prot::READ).unwrap();
        let other = t.clone();
        let reader = thread::spawn(move || other.lookup(2 * PAGE).map(|l| l.phys));
        let gather = unmap(&*t, 0, SPAN);
        if fault == Fault::EagerReuse {
            mem.reclaim(Phys(PAGE));
            std::mem::forget(gather);
        } else {
            t.retire(gather.into_retired(), Synced::after_completed_invalidation());
        }
        // Out of memory as long as the lookup keeps the table.
        let _ = t.map(SPAN, Phys(20 * PAGE), SPAN, Prot::READ);
        let found = reader.join().unwrap();
        assert!([None, Some(Phys(9 * PAGE))].contains(&found), "a translation of another range: {found:?}");
        drop(t);
        assert_eq!(mem.in_use(), 0);
    });
}

#[test]
fn a_lookup_meets_no_freed_table() {
    reuse(Fault::None);
}

#[test]
#[should_panic(expected = "a translation of another range")]
fn a_lookup_and_a_table_freed_at_once() {
    reuse(Fault::EagerReuse);
}

/// A mapper beside a lookup of what it maps and of what was there.
#[test]
fn a_lookup_sees_a_map_whole_or_not_at_all() {
    loom::model(|| {
        let mem = Handle::new(3, Fault::None);
        let t = table::<false>(&mem);
        t.map(0, Phys(7 * PAGE), PAGE, Prot::READ).unwrap();
        let other = t.clone();
        let mapper = thread::spawn(move || other.map(PAGE, Phys(8 * PAGE), SPAN, Prot::READ));
        let reader = t.reader();
        assert_eq!(reader.lookup(0).map(|l| l.phys), Some(Phys(7 * PAGE)));
        // Two tables are concerned: one that is there, and one that is filled and then linked.
        for page in [3, 4] {
            let found = reader.lookup(page * PAGE).map(|l| l.phys);
            assert!([None, Some(Phys((page + 7) * PAGE))].contains(&found), "{found:?}");
        }
        drop(reader);
        mapper.join().unwrap().unwrap();
        assert_eq!(t.lookup(4 * PAGE).map(|l| l.phys), Some(Phys(11 * PAGE)));
        drop(t);
        assert_eq!(mem.in_use(), 0);
    });
}

/// A lookup that remembers a table, beside an unmap that takes it out: what was unmapped before a
/// lookup begins is not found, and the table is not freed while it is remembered.
#[test]
fn a_reader_that_remembers_a_table_forgets_it_in_time() {
    loom::model(|| {
        let mem = Handle::new(3, Fault::None);
        let t = table::<false>(&mem);
        t.map(0, Phys(7 * PAGE), SPAN, Prot::READ).unwrap();
        let reader = t.reader();
        assert_eq!(reader.translate(0), Some(Phys(7 * PAGE)));
        let (other, gone) = (t.clone(), Arc::new(AtomicBool::new(false)));
        let flag = gone.clone();
        let unmapper = thread::spawn(move || {
            let mut gather = Gather::new();
            other.unmap(0, SPAN, &mut gather).unwrap();
            flag.store(true, Ordering::Release);
            other.retire(gather.into_retired(), Synced::after_completed_invalidation());
        });
        let unmapped = gone.load(Ordering::Acquire);
        let found = reader.translate(PAGE);
        assert!(found == Some(Phys(8 * PAGE)) && !unmapped || found.is_none(), "{found:?} {unmapped}");
        drop(reader);
        unmapper.join().unwrap();
        drop(t);
        assert_eq!(mem.in_use(), 0);
    });
}

/// Two mappers that both need another level, beside a lookup of what the old root leads to.
#[test]
fn two_mappers_grow_a_table() {
    loom::model(|| {
        let mem = Handle::new(6, Fault::None);
        let t = table::<true>(&mem);
        t.map(0, Phys(7 * PAGE), PAGE, Prot::READ).unwrap();
        assert_eq!(t.top().levels, 1);
        let other = t.clone();
        let mapper = thread::spawn(move || other.map(SPAN, Phys(8 * PAGE), PAGE, Prot::READ));
        t.map(2 * SPAN, Phys(9 * PAGE), PAGE, Prot::READ).unwrap();
        assert_eq!(t.lookup(0).map(|l| l.phys), Some(Phys(7 * PAGE)));
        mapper.join().unwrap().unwrap();
        assert_eq!(t.top().levels, 2);
        for (at, phys) in [(0, 7), (SPAN, 8), (2 * SPAN, 9)] {
            assert_eq!(t.lookup(at).map(|l| l.phys), Some(Phys(phys * PAGE)));
        }
        assert_eq!(mem.in_use(), 4, "the old root, one new one, and two tables");
        drop(t);
        assert_eq!(mem.in_use(), 0);
    });
}

/// Who holds the old root maps below it while another puts a new one above.
#[test]
fn a_mapper_below_the_old_root_of_a_table_that_grows() {
    loom::model(|| {
        let mem = Handle::new(5, Fault::None);
        let t = table::<true>(&mem);
        let other = t.clone();
        let mapper = thread::spawn(move || {
            other.map(PAGE, Phys(8 * PAGE), PAGE, Prot::READ).unwrap();
            other.lookup(PAGE).map(|l| l.phys)
        });
        t.map(SPAN, Phys(9 * PAGE), PAGE, Prot::READ).unwrap();
        assert_eq!(mapper.join().unwrap(), Some(Phys(8 * PAGE)));
        assert_eq!(t.lookup(PAGE).map(|l| l.phys), Some(Phys(8 * PAGE)));
        drop(unmap(&*t, PAGE, PAGE));
        assert_eq!(t.lookup(PAGE), None);
        drop(t);
        assert_eq!(mem.in_use(), 0);
    });
}
