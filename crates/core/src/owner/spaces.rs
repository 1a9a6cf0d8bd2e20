//! The address spaces that have a domain, for what concerns all of them.

use super::pasids::Pasids;
use crate::{
    domain::DomainInner,
    driver::HwLost,
    error::{DomainError, OutOfMemory},
    iommu::Shared,
    platform::{Platform, ShortLock},
    sync::invalidate,
};
use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};

/// The domains of address spaces, oldest first, and the PASIDs that stand for them.
pub(crate) struct Spaces<P: Platform> {
    pub(crate) pasids: Arc<Pasids<P>>,
    list: P::Lock<Vec<Space<P>>>,
}

struct Space<P: Platform> {
    /// Where the address space is: nobody else is there while the domain lives.
    identity: usize,
    domain: Weak<DomainInner<P>>,
    number: u64,
}

impl<P: Platform> Spaces<P> {
    pub(crate) fn new(platform: &P) -> Self {
        Spaces { pasids: Arc::new(Pasids::new(platform)), list: platform.lock(Vec::new()) }
    }

    /// Notes a domain. Allocates.
    pub(crate) fn add(&self, identity: usize, domain: &Arc<DomainInner<P>>) -> Result<(), DomainError> {
        let mut room = Vec::new();
        loop {
            let new = Space { identity, domain: Arc::downgrade(domain), number: domain.id };
            let (added, old) = self.list.with(|list| {
                list.retain(|s| s.domain.strong_count() > 0);
                if list.iter().any(|s| s.identity == identity) {
                    return (Some(Err(DomainError::SharedAlready)), Vec::new());
                }
                if list.len() == list.capacity() {
                    if room.capacity() <= list.len() {
                        return (None, Vec::new());
                    }
                    room.append(list);
                    core::mem::swap(list, &mut room);
                }
                list.push(new);
                (Some(Ok(())), core::mem::take(&mut room))
            });
            drop(old);
            if let Some(added) = added {
                return added;
            }
            room = Vec::new();
            let wanted = self.list.with(|list| list.len()) + 8;
            room.try_reserve_exact(wanted).map_err(|_| OutOfMemory)?;
        }
    }

    fn after(&self, number: u64) -> Option<(u64, Option<Arc<DomainInner<P>>>)> {
        self.list.with(|list| {
            let next = list.iter().filter(|s| s.number > number).min_by_key(|s| s.number)?;
            Some((next.number, next.domain.upgrade()))
        })
    }
}

/// Everything that caches hold of any address space.
pub(crate) async fn invalidate_all<P: Platform>(shared: &Shared<P>) -> Result<(), HwLost> {
    let mut last = 0;
    while let Some((number, domain)) = shared.spaces.after(last) {
        last = number;
        if let Some(domain) = domain {
            invalidate(&domain, None, true).await?;
        }
    }
    Ok(())
}
