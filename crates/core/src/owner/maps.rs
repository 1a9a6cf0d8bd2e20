//! The calls of owners that map ranges of their own choice.

use super::Maps;
use crate::{
    domain::Domain,
    driver::HwLost,
    error::{DomainMapError, SyncError},
    op::{Op, block_on},
    platform::{Platform, Sleep},
    sync::{Unmapping, flush},
};
use portcullis_pgtable::{Leaf, NoAccessedBits, Phys, Prot};

impl<P: Platform, O: Maps> Domain<P, O> {
    /// Maps `len` bytes at `iova` to `phys`. Devices see the mapping when this returns. The caller
    /// owns the IOVA range for the time of the call; disjoint ranges may be mapped at once.
    /// Allocates table frames.
    ///
    /// # Errors
    /// See [`DomainMapError`]; no leaf was written.
    #[track_caller]
    pub fn map_range(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), DomainMapError> {
        self.inner.map(iova, phys, len, prot)
    }

    /// Begins an unmap: ranges are taken out through the guard, and are free once it is synced.
    pub fn unmapping(&self) -> Unmapping<'_, P> {
        Unmapping::new(&self.inner)
    }

    /// What `iova` translates to.
    pub fn lookup(&self, iova: u64) -> Option<Leaf> {
        self.inner.table()?.lookup(iova)
    }

    /// Whether a device used a page of the range since its accessed bits were last cleared;
    /// `clear` clears them. A device that holds the translation in its own TLB, or in the IOMMU's,
    /// uses it without setting the bit again.
    ///
    /// # Errors
    /// [`NoAccessedBits`] when the format keeps none.
    pub fn accessed(&self, iova: u64, len: u64, clear: bool) -> Result<bool, NoAccessedBits> {
        match self.inner.table() {
            Some(t) => t.accessed(iova, len, clear),
            None => Err(NoAccessedBits(portcullis_pgtable::FormatId("none"))),
        }
    }

    /// Invalidates everything that any cache may hold of the domain, and frees the tables of
    /// gathers that were dropped unsynced. Sleeps.
    ///
    /// # Errors
    /// See [`SyncError`]; nothing was freed then.
    pub fn flush(&self, cx: &Sleep<'_>) -> Result<(), SyncError> {
        let hub = &self.inner.shared.hub;
        block_on(hub, cx, flush(&self.inner)).map_err(|_| SyncError::Shutdown)?.map_err(SyncError::Lost)
    }

    /// The step form of [`flush`](Domain::flush).
    pub fn start_flush(&self) -> Op<'_, Result<(), HwLost>> {
        Op::new(flush(&self.inner))
    }
}
