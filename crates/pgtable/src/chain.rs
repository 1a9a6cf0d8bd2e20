//! A list of tables that nothing leads to. It needs no memory: they are chained through their entry 0, by
//! an entry that decodes as empty.

use crate::{
    format::Format,
    mem::{Phys, TableMem},
};
use core::marker::PhantomData;
use portcullis_sync::atomic::{AtomicU64, Ordering};

/// No table: addresses of tables are aligned, so it is none of them.
const NONE: u64 = u64::MAX;

/// The list: tables are added one by one, and taken out all at once.
pub(crate) struct Chain<F> {
    first: AtomicU64,
    format: PhantomData<F>,
}

impl<F: Format> Chain<F> {
    pub(crate) fn new() -> Chain<F> {
        Chain { first: AtomicU64::new(NONE), format: PhantomData }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed) == NONE
    }

    /// Adds a table.
    pub(crate) fn push<M: TableMem>(&self, mem: &M, table: Phys) {
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            mem.store(table, 0, F::parked(to_table(first)));
            match self.first.compare_exchange(first, table.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(found) => first = found,
            }
        }
    }

    /// Takes all of them out: the first one.
    pub(crate) fn take(&self) -> Option<Phys> {
        to_table(self.first.swap(NONE, Ordering::AcqRel))
    }
}

/// Visits what was taken out of a chain, each table when the next one is known already.
pub(crate) fn each<F: Format, M: TableMem>(mem: &M, first: Option<Phys>, mut visit: impl FnMut(Phys)) {
    let mut next = first;
    while let Some(table) = next {
        next = F::parked_next(mem.load(table, 0));
        visit(table);
    }
}

fn to_table(word: u64) -> Option<Phys> {
    (word != NONE).then_some(Phys(word))
}
