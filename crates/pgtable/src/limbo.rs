//! Tables that nothing leads to any more, until the lookups that may have found them have ended.
//!
//! A lookup announces itself in one of two counters before it reads the first entry. A table gets
//! here after its parent entry was cleared and after the hardware's caches were proved clean. It
//! is freed when each counter was seen at zero at some time since: sequentially consistent fences
//! on both sides see to it that a lookup which is not in the count reads no parent entry from
//! before it was cleared. One of the counters takes no new lookups, so it does come to zero, and
//! then they change places: overlapping lookups hold nothing up for longer than the longest of
//! them runs.
//!
//! Nobody waits: who retires a table or ends a lookup takes the steps that are possible then.

use crate::{
    chain::{Chain, each},
    format::Format,
    mem::{FRAME_SIZE, Phys, TableMem},
};
use portcullis_sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// No table: addresses of tables are aligned, so it is none of them.
const NONE: u64 = u64::MAX;

/// Values of [`Limbo::turn`].
const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and the holder has to go round once more.
const AGAIN: u32 = 2;

pub(crate) struct Limbo<F> {
    lookups: [AtomicU64; 2],
    /// Which counter takes new lookups, modulo 2.
    epoch: AtomicU64,
    /// How many tables were taken out.
    detached: AtomicU64,
    /// Tables that came since the batch was closed.
    fresh: Chain<F>,
    /// Who holds it may use `batch` and `seen`.
    turn: AtomicU32,
    /// Tables that are waited for.
    batch: AtomicU64,
    /// Counters that were at zero since the batch was closed, a bit each.
    seen: AtomicU32,
}

impl<F: Format> Limbo<F> {
    pub(crate) fn new() -> Limbo<F> {
        Limbo {
            lookups: [AtomicU64::new(0), AtomicU64::new(0)],
            epoch: AtomicU64::new(0),
            detached: AtomicU64::new(0),
            fresh: Chain::new(),
            turn: AtomicU32::new(FREE),
            batch: AtomicU64::new(NONE),
            seen: AtomicU32::new(0),
        }
    }

    /// Keeps the tables that a walk may meet from being freed until the pin is dropped.
    pub(crate) fn pin<'a, M: TableMem>(&'a self, mem: &'a M) -> Pin<'a, F, M> {
        Pin { limbo: self, mem, counter: self.enter() }
    }

    /// Announces lookups, which [`Limbo::leave`] ends with what this returns.
    #[inline]
    pub(crate) fn enter(&self) -> usize {
        let counter = self.active();
        if cfg!(all(target_arch = "x86_64", not(any(portcullis_loom, portcullis_shuttle)))) {
            // A locked instruction is a full fence there, and a second one would double the price.
            self.lookups[counter].fetch_add(1, Ordering::SeqCst);
        } else {
            self.lookups[counter].fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
        counter
    }

    /// Ends lookups that [`Limbo::enter`] announced.
    #[inline]
    pub(crate) fn leave<M: TableMem>(&self, mem: &M, counter: usize) {
        let before = self.lookups[counter & 1].fetch_sub(1, Ordering::AcqRel);
        if before == 1 {
            self.drain(mem);
        }
    }

    /// Notes that nothing leads to some table any more: what a lookup remembers may be that table.
    #[inline]
    pub(crate) fn note_detached(&self) {
        self.detached.fetch_add(1, Ordering::Release);
    }

    /// How often that was noted.
    #[inline]
    pub(crate) fn detached(&self) -> u64 {
        self.detached.load(Ordering::Acquire)
    }

    /// Adds a table that is unlinked and in no hardware cache.
    pub(crate) fn push<M: TableMem>(&self, mem: &M, table: Phys) {
        self.fresh.push(mem, table);
    }

    /// Frees what can be freed now.
    pub(crate) fn drain<M: TableMem>(&self, mem: &M) {
        if self.is_empty() {
            return;
        }
        if self.turn.swap(AGAIN, Ordering::AcqRel) != FREE {
            return;
        }
        loop {
            self.turn.swap(TAKEN, Ordering::AcqRel);
            while self.close_batch() && self.lookups_ended() {
                self.free_batch(mem);
            }
            let left = self.turn.compare_exchange(TAKEN, FREE, Ordering::AcqRel, Ordering::Relaxed);
            if left.is_ok() {
                return;
            }
        }
    }

    /// Whether a batch waits; a new one is begun if there are tables for it.
    fn close_batch(&self) -> bool {
        if self.batch.load(Ordering::Relaxed) != NONE {
            return true;
        }
        let fresh = self.fresh.take();
        self.batch.store(fresh.map_or(NONE, |table| table.0), Ordering::Relaxed);
        self.seen.store(0, Ordering::Relaxed);
        fresh.is_some()
    }

    /// Whether every lookup that may have found a table of the batch has ended.
    fn lookups_ended(&self) -> bool {
        fence(Ordering::SeqCst);
        for _ in 0..2 {
            let idle = 1 - self.active();
            let seen = self.seen.load(Ordering::Relaxed);
            if seen & 1 << idle == 0 {
                if self.lookups[idle].load(Ordering::Acquire) != 0 {
                    return false;
                }
                self.seen.store(seen | 1 << idle, Ordering::Relaxed);
            }
            if self.seen.load(Ordering::Relaxed) == 0b11 {
                return true;
            }
            self.epoch.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    fn free_batch<M: TableMem>(&self, mem: &M) {
        let first = self.batch.swap(NONE, Ordering::Relaxed);
        each::<F, M>(mem, (first != NONE).then_some(Phys(first)), |table| {
            mem.reclaim_frames(table, F::TABLE_BITS.saturating_sub(FRAME_SIZE.ilog2()));
        });
    }

    fn active(&self) -> usize {
        (self.epoch.load(Ordering::Relaxed) & 1) as usize
    }

    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.batch.load(Ordering::Relaxed) == NONE
    }
}

/// A lookup that runs.
pub(crate) struct Pin<'a, F: Format, M: TableMem> {
    limbo: &'a Limbo<F>,
    mem: &'a M,
    counter: usize,
}

impl<F: Format, M: TableMem> Drop for Pin<'_, F, M> {
    fn drop(&mut self) {
        self.limbo.leave(self.mem, self.counter);
    }
}
