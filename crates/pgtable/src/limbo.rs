//! Tables that nothing leads to any more, until the lookups that may have found them have ended.
//!
//! A lookup announces itself before it reads the first entry. A table gets here after its parent
//! entry was cleared and after the hardware's caches were proved clean. The list is taken off
//! *before* the announcements are counted, with a sequentially consistent fence on both sides in
//! between: either the count shows the lookup, and the list is put back, or the lookup began late
//! enough to see every parent entry cleared. Whoever ends last frees the list, so nothing waits
//! for anything. Lookups that overlap without any gap hold the list up; dropping the table ends
//! that.
//!
//! The list is chained through entry 0 of the waiting tables, by an entry that decodes as empty.

use crate::{
    format::Format,
    mem::{Phys, TableMem},
};
use core::marker::PhantomData;
use portcullis_sync::atomic::{AtomicU64, Ordering, fence};

/// No table: addresses of tables are aligned, so it is none of them.
const NONE: u64 = u64::MAX;

pub(crate) struct Limbo<F> {
    readers: AtomicU64,
    head: AtomicU64,
    format: PhantomData<F>,
}

impl<F: Format> Limbo<F> {
    pub(crate) fn new() -> Limbo<F> {
        Limbo {
            readers: AtomicU64::new(0),
            head: AtomicU64::new(NONE),
            format: PhantomData,
        }
    }

    /// Keeps the tables that a walk may meet from being freed until the pin is dropped.
    pub(crate) fn pin<'a, M: TableMem>(&'a self, mem: &'a M) -> Pin<'a, F, M> {
        self.readers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Pin { limbo: self, mem }
    }

    /// Adds a table that is unlinked and in no hardware cache.
    pub(crate) fn push<M: TableMem>(&self, mem: &M, table: Phys) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            mem.store(table, 0, F::parked(to_table(head)));
            match self.head.compare_exchange_weak(
                head,
                table.0,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(found) => head = found,
            }
        }
    }

    /// Frees everything here if no lookup runs.
    pub(crate) fn drain<M: TableMem>(&self, mem: &M) {
        loop {
            let taken = to_table(self.head.swap(NONE, Ordering::AcqRel));
            if taken.is_none() {
                return;
            }
            fence(Ordering::SeqCst);
            let idle = self.readers.load(Ordering::Acquire) == 0;
            let mut next = taken;
            while let Some(table) = next {
                next = F::parked_next(mem.load(table, 0));
                if idle {
                    mem.reclaim(table);
                } else {
                    self.push(mem, table);
                }
            }
            fence(Ordering::SeqCst);
            // The last lookup may have ended while the list was off its place.
            if idle || self.readers.load(Ordering::Acquire) != 0 {
                return;
            }
        }
    }
}

fn to_table(word: u64) -> Option<Phys> {
    (word != NONE).then_some(Phys(word))
}

/// A lookup that runs.
pub(crate) struct Pin<'a, F: Format, M: TableMem> {
    limbo: &'a Limbo<F>,
    mem: &'a M,
}

impl<F: Format, M: TableMem> Drop for Pin<'_, F, M> {
    fn drop(&mut self) {
        let before = self.limbo.readers.fetch_sub(1, Ordering::AcqRel);
        if before == 1 && self.limbo.head.load(Ordering::Relaxed) != NONE {
            self.limbo.drain(self.mem);
        }
    }
}
