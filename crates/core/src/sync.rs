//! From an unmap to memory that is free: entries cleared, a fence, the tags read, one batch per
//! instance invalidated, and only then tables given back.

use crate::{
    domain::DomainInner,
    driver::{Batch, HwLost},
    error::SyncError,
    op::{Op, block_on, hw},
    platform::{Platform, Sleep},
    tags::Chunk,
};
use alloc::sync::Arc;
use core::panic::Location;
use portcullis_pgtable::{Gather, Retired, Synced, UnmapError};

/// An unmap under way. What was taken out is gone from the table at once, and stays reachable for
/// devices that cached it until [`sync`](Unmapping::sync).
///
/// Dropped unsynced, it keeps the tables it took out until the domain's next full
/// [`flush`](crate::Domain::flush); nothing is freed early.
#[must_use = "what was unmapped stays visible to devices until it is synced"]
pub struct Unmapping<'d, P: Platform> {
    pub(crate) domain: &'d Arc<DomainInner<P>>,
    pub(crate) gather: Gather,
    #[cfg(feature = "planted")]
    pub(crate) early: crate::planted::EarlyTags<P>,
}

impl<'d, P: Platform> Unmapping<'d, P> {
    pub(crate) fn new(domain: &'d Arc<DomainInner<P>>) -> Self {
        Unmapping {
            domain,
            gather: Gather::new(),
            #[cfg(feature = "planted")]
            early: None,
        }
    }

    /// Takes out the mappings of `len` bytes at `iova`, which must consist of whole leaves. The
    /// caller owns the range for the time of the call, against an attach of a device that has a
    /// direct region there too. In a reserved range, the MSI window above all, nothing is the
    /// caller's, nor is what is mapped for the direct regions of a device.
    ///
    /// # Errors
    /// See [`UnmapError`]; nothing was taken out.
    #[track_caller]
    pub fn unmap(&mut self, iova: u64, len: u64) -> Result<(), UnmapError> {
        self.unmap_by(iova, len, Location::caller())
    }

    /// The same, in the name of whoever called.
    pub(crate) fn unmap_by(
        &mut self,
        iova: u64,
        len: u64,
        by: &'static Location<'static>,
    ) -> Result<(), UnmapError> {
        if let Some(r) = self.domain.touches_reserved(iova, iova.saturating_add(len.saturating_sub(1))) {
            return Err(UnmapError::NotMapped { iova: iova.max(r.start) });
        }
        if let Some(iova) = self.domain.pins.touches(iova, len) {
            return Err(UnmapError::NotMapped { iova });
        }
        #[cfg(feature = "planted")]
        self.read_tags_early();
        match self.domain.table() {
            Some(t) => {
                t.unmap(iova, len, &mut self.gather)?;
                self.domain.note_unmapped(iova, len, by);
                Ok(())
            }
            None => Err(UnmapError::NotMapped { iova }),
        }
    }

    /// Waits until no device can reach what was taken out. Sleeps for hardware only.
    ///
    /// # Errors
    /// See [`SyncError`]: the memory must be kept, since hardware may still reach it.
    pub fn sync(mut self, cx: &Sleep<'_>) -> Result<(), SyncError> {
        let hub = self.domain.shared.hub.clone();
        block_on(&hub, cx, self.run()).map_err(|_| SyncError::Shutdown)?.map_err(SyncError::Lost)
    }

    /// The step form of [`sync`](Unmapping::sync).
    pub fn start_sync(mut self) -> Op<'d, Result<(), HwLost>> {
        Op::new(async move { self.run().await })
    }

    pub(crate) async fn run(&mut self) -> Result<(), HwLost> {
        if self.gather.is_empty() {
            return Ok(());
        }
        #[cfg(feature = "planted")]
        if let Some(done) = self.invalidate_early().await {
            done?;
            self.retire();
            return Ok(());
        }
        invalidate(self.domain, self.gather.to_invalidate(), self.gather.non_leaf()).await?;
        self.retire();
        Ok(())
    }

    /// Frees the tables that were taken out, after the invalidation.
    fn retire(&mut self) {
        let gather = core::mem::take(&mut self.gather);
        if let Some(t) = self.domain.table() {
            t.retire(gather.into_retired(), Synced::after_completed_invalidation());
        }
    }
}

impl<P: Platform> Drop for Unmapping<'_, P> {
    fn drop(&mut self) {
        if let Some(t) = self.domain.table() {
            t.park(core::mem::take(&mut self.gather).into_retired());
        }
    }
}

/// Invalidates a range, or everything, on every cache that may hold it. One batch and one wait for
/// each instance (for each sixteen users of the domain there).
pub(crate) async fn invalidate<P: Platform>(
    domain: &DomainInner<P>,
    range: Option<(u64, u64)>,
    non_leaf: bool,
) -> Result<(), HwLost> {
    let before = domain.before_invalidation();
    domain.tags.fence_before_collect();
    let mut cursor = None;
    while let Some(chunk) = domain.tags.collect(cursor) {
        cursor = chunk.end();
        invalidate_chunk(domain, &chunk, range, non_leaf).await?;
    }
    domain.note_invalidated(range, before);
    Ok(())
}

pub(crate) async fn invalidate_chunk<P: Platform>(
    domain: &DomainInner<P>,
    chunk: &Chunk<P>,
    range: Option<(u64, u64)>,
    non_leaf: bool,
) -> Result<(), HwLost> {
    let Some(desc) = domain.desc() else { return Ok(()) };
    let instance = &chunk.instance;
    hw(instance, || {
        // A device that was cut off because it does not answer is not asked again.
        let mut tags = [chunk.tags()[0]; Batch::MAX_TAGS];
        for (tag, t) in tags.iter_mut().zip(chunk.tags()) {
            *tag = *t;
            tag.ats &= instance.may_cache(t.at);
        }
        let tags = &tags[..chunk.tags().len()];
        instance.driver().submit(&Batch { tags, desc, range, non_leaf })
    })
    .await
}

/// Invalidates everything and frees what was parked.
pub(crate) async fn flush<P: Platform>(domain: &DomainInner<P>) -> Result<(), HwLost> {
    // Taken before the invalidation: what is parked meanwhile waits for the next one.
    let parked = Taken { domain, tables: domain.table().map(|t| t.parked()) };
    invalidate(domain, None, true).await?;
    parked.free();
    Ok(())
}

/// Parked tables on their way to be freed; parked again if the flush fails.
struct Taken<'d, P: Platform> {
    domain: &'d DomainInner<P>,
    tables: Option<Retired>,
}

impl<P: Platform> Taken<'_, P> {
    fn free(mut self) {
        if let (Some(t), Some(tables)) = (self.domain.table(), self.tables.take()) {
            t.retire(tables, Synced::after_completed_invalidation());
        }
    }
}

impl<P: Platform> Drop for Taken<'_, P> {
    fn drop(&mut self) {
        if let (Some(t), Some(tables)) = (self.domain.table(), self.tables.take()) {
            t.park(tables);
        }
    }
}
