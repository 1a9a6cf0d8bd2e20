//! Attachments by key: an index and the generation that the key's holder saw.
//!
//! The fault path uses them by reference, counted in one word each; see
//! [`Tenants`](portcullis_sync::tenants::Tenants).

use crate::{
    attachment::Inner,
    domain::DomainInner,
    error::OutOfMemory,
    ids::Key,
    platform::{Platform, ShortLock},
    resolver::Handler,
    stall::StallHandler,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use portcullis_sync::tenants::{Inside, Tenants};

/// An attachment that was shown, with its handler, which holds the caller's data.
pub(crate) struct Tenant<P: Platform> {
    pub(crate) inner: Arc<Inner<P>>,
    pub(crate) handler: Box<dyn Handler<P>>,
    /// What its stalled transactions go to, where its devices may stall.
    pub(crate) stalls: Option<Arc<dyn StallHandler<P>>>,
}

impl<P: Platform> Tenant<P> {
    /// Whether its stalled transactions are decided by somebody.
    pub(crate) fn stalls(&self) -> bool {
        self.stalls.is_some() && self.inner.domain.stalls()
    }
}

pub(crate) struct Slab<P: Platform> {
    tenants: Tenants<Tenant<P>>,
    free: P::Lock<Vec<u32>>,
}

impl<P: Platform> Slab<P> {
    pub(crate) fn new(platform: &P, capacity: usize) -> Result<Self, OutOfMemory> {
        // From a random start, so that a key of an earlier life is not valid by chance.
        let tenants = Tenants::new(capacity, platform.random()).map_err(|_| OutOfMemory)?;
        let mut free = Vec::new();
        free.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
        free.extend((0..u32::try_from(capacity).map_err(|_| OutOfMemory)?).rev());
        Ok(Slab { tenants, free: platform.lock(free) })
    }

    /// Takes a free place; it names nothing until [`Slab::fill`].
    pub(crate) fn reserve(&self) -> Option<Key> {
        let index = self.free.with(Vec::pop)?;
        let generation = self.tenants.renew(index)?;
        Some(Key { index, generation })
    }

    /// Moves an attachment in, unless it is in already; the resolver is not called yet.
    pub(crate) fn fill(&self, inner: &Arc<Inner<P>>) {
        if let Some((handler, stalls)) = inner.take_handlers() {
            let tenant = Tenant { inner: inner.clone(), handler, stalls };
            // Refused, it would have nobody who needs it.
            drop(self.tenants.fill(inner.key.index, inner.key.generation, tenant));
        }
    }

    /// The hardware translates: the resolver may be called.
    pub(crate) fn open(&self, key: Key) {
        self.tenants.open(key.index, key.generation);
    }

    /// Makes a key stale: nobody begins to use the attachment any more.
    pub(crate) fn close(&self, key: Key) {
        self.tenants.close(key.index, key.generation);
    }

    #[inline]
    pub(crate) fn enter(&self, key: Key) -> Option<Inside<'_, Tenant<P>>> {
        self.tenants.enter(key.index, key.generation)
    }

    /// Whether the key is not stale.
    pub(crate) fn is_there(&self, key: Key) -> bool {
        self.tenants.is_there(key.index, key.generation)
    }

    /// Takes a closed attachment out, once nobody is inside. Its handler is dropped by the caller's
    /// context, which may sleep. Its place stays taken while anybody, the hub's queues above all,
    /// still holds the attachment.
    pub(crate) fn empty(&self, key: Key) -> Option<Tenant<P>> {
        self.tenants.empty(key.index, key.generation)
    }

    /// Frees a place for the next attachment.
    pub(crate) fn free(&self, key: Key) {
        self.free.with(|list| list.push(key.index));
    }

    /// Places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.tenants.len() - self.free.with(|list| list.len())
    }

    /// The domain with an id, while something is attached to it.
    pub(crate) fn domain(&self, id: u64) -> Option<Arc<DomainInner<P>>> {
        (0..self.tenants.len() as u32).find_map(|index| {
            let inside = self.tenants.enter(index, self.tenants.generation(index)?)?;
            let found = (inside.inner.domain.id == id).then(|| inside.inner.domain.clone());
            leave(inside);
            found
        })
    }

    pub(crate) fn get(&self, key: Key) -> Option<Arc<Inner<P>>> {
        let inside = self.enter(key)?;
        let inner = inside.inner.clone();
        leave(inside);
        Some(inner)
    }
}

/// Goes out, and has a worker end the attachment if this was the last one inside of a closed one:
/// the caller's data is let go of in sleepable context only.
pub(crate) fn leave<P: Platform>(inside: Inside<'_, Tenant<P>>) {
    if let Some(inner) = inside.leave(|tenant| tenant.inner.clone()) {
        inner.schedule();
    }
}

/// So many attachments exist as there are places, those included that wait for a worker after
/// their detach: the hub's queues have room for each.
impl<P: Platform> Drop for Inner<P> {
    fn drop(&mut self) {
        self.lease.end(&self.domain.quota);
        self.device.shared_slab().free(self.key);
    }
}
