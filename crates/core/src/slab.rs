//! Attachments by key: an index and the generation that the key's holder saw.

use crate::{
    attachment::Inner,
    domain::DomainInner,
    error::OutOfMemory,
    ids::Key,
    platform::{Platform, ShortLock},
};
use alloc::{sync::Arc, vec::Vec};

pub(crate) struct Slab<P: Platform> {
    cells: P::Lock<Vec<Cell<P>>>,
}

struct Cell<P: Platform> {
    /// 56 bits, from a random start, so that a key of an earlier life is not valid by chance.
    generation: u64,
    state: Held<P>,
}

enum Held<P: Platform> {
    Free,
    /// Taken, by what has no name yet or none any more.
    Reserved,
    Attachment(Arc<Inner<P>>),
}

const GENERATION: u64 = (1 << 56) - 1;

impl<P: Platform> Slab<P> {
    pub(crate) fn new(platform: &P, capacity: usize) -> Result<Self, OutOfMemory> {
        let mut cells = Vec::new();
        cells.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
        let start = platform.random() & GENERATION;
        cells.resize_with(capacity, || Cell { generation: start, state: Held::Free });
        Ok(Slab { cells: platform.lock(cells) })
    }

    /// Takes a free place; it names nothing until [`Slab::fill`].
    pub(crate) fn reserve(&self) -> Option<Key> {
        self.cells.with(|cells| {
            let index = cells.iter().position(|c| matches!(c.state, Held::Free))?;
            let cell = &mut cells[index];
            cell.generation = (cell.generation + 1) & GENERATION;
            cell.state = Held::Reserved;
            Some(Key { index: u32::try_from(index).ok()?, generation: cell.generation })
        })
    }

    pub(crate) fn fill(&self, inner: Arc<Inner<P>>) {
        let key = inner.key;
        self.replace(key, Held::Attachment(inner));
    }

    /// Makes a key stale. Its place stays taken while anybody, the hub's queues above all, still
    /// holds the attachment. What was there is dropped by the caller's context, which may sleep.
    pub(crate) fn forget(&self, key: Key) {
        self.replace(key, Held::Reserved);
    }

    /// Frees a place for the next attachment.
    pub(crate) fn free(&self, key: Key) {
        self.replace(key, Held::Free);
    }

    pub(crate) fn get(&self, key: Key) -> Option<Arc<Inner<P>>> {
        self.cells.with(|cells| match cells.get(key.index as usize) {
            Some(Cell { generation, state: Held::Attachment(a) }) if *generation == key.generation => {
                Some(a.clone())
            }
            _ => None,
        })
    }

    /// The domain with an id, while something is attached to it.
    pub(crate) fn domain(&self, id: u64) -> Option<Arc<DomainInner<P>>> {
        self.cells.with(|cells| {
            cells.iter().find_map(|cell| match &cell.state {
                Held::Attachment(a) if a.domain.id == id => Some(a.domain.clone()),
                _ => None,
            })
        })
    }

    fn replace(&self, key: Key, state: Held<P>) {
        let old = self.cells.with(|cells| {
            let cell = cells.get_mut(key.index as usize).filter(|c| c.generation == key.generation)?;
            Some(core::mem::replace(&mut cell.state, state))
        });
        drop(old);
    }
}

/// So many attachments exist as there are places, those included that wait for a worker after
/// their detach: the hub's queues have room for each.
impl<P: Platform> Drop for Inner<P> {
    fn drop(&mut self) {
        self.device.shared_slab().free(self.key);
    }
}
