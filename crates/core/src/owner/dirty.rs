//! Dirty tracking: which pages devices wrote to, as the walkers note it in the table's entries. What
//! live migration copies again.

use super::Maps;
use crate::{
    domain::Domain,
    error::{DirtyTrackingError, SyncError},
    platform::{Platform, Sleep},
    sync::Unmapping,
};
use portcullis_pgtable::{DirtyError, FormatId, Gather, IoTable};

impl<P: Platform, O: Maps> Domain<P, O> {
    /// Whether the table's format, and the walkers that it was made for, keep dirty bits.
    pub fn can_track_dirty(&self) -> bool {
        let mut gather = Gather::new();
        let asked = self.tracked().and_then(|t| t.read_dirty(0, 0, false, &mut gather, &mut |_, _| {}));
        !matches!(asked, Err(DirtyError::NotKept(_)))
    }

    /// Begins or ends dirty tracking. What was written before it began is forgotten. Sleeps.
    ///
    /// # Errors
    /// See [`DirtyTrackingError`].
    pub fn set_dirty_tracking(&self, cx: &Sleep<'_>, on: bool) -> Result<(), DirtyTrackingError> {
        let mut cleared = Unmapping::new(&self.inner);
        self.tracked()?.set_dirty_tracking(on, &mut cleared.gather)?;
        // Until then a device writes through what it cached, and marks nothing.
        Ok(cleared.sync(cx)?)
    }

    /// Calls `visit` with IOVA and bytes of each leaf that touches the range and was written to
    /// since its dirty bit was last cleared, in order; leaves it marked. A leaf that reaches beyond
    /// the range is told whole.
    ///
    /// # Errors
    /// See [`DirtyTrackingError`].
    pub fn read_dirty(
        &self,
        iova: u64,
        len: u64,
        mut visit: impl FnMut(u64, u64),
    ) -> Result<(), DirtyTrackingError> {
        Ok(self.tracked()?.read_dirty(iova, len, false, &mut Gather::new(), &mut visit)?)
    }

    /// The same, and clears the bits. Every cache that would let a device write without marking the
    /// leaf again is invalidated when this returns: a write is told by this call, by the next one, or
    /// by both, and never by none. Memory that was told is copied after this returns. Sleeps.
    ///
    /// # Errors
    /// See [`DirtyTrackingError`]. After [`DirtyTrackingError::Unsynced`] the bits are cleared, and later
    /// answers cannot be trusted.
    pub fn read_and_clear_dirty(
        &self,
        cx: &Sleep<'_>,
        iova: u64,
        len: u64,
        mut visit: impl FnMut(u64, u64),
    ) -> Result<(), DirtyTrackingError> {
        let mut cleared = Unmapping::new(&self.inner);
        self.tracked()?.read_dirty(iova, len, true, &mut cleared.gather, &mut visit)?;
        Ok(cleared.sync(cx)?)
    }

    fn tracked(&self) -> Result<&dyn IoTable, DirtyError> {
        self.inner.table().ok_or(DirtyError::NotKept(FormatId("none")))
    }
}

impl From<DirtyError> for DirtyTrackingError {
    fn from(e: DirtyError) -> Self {
        DirtyTrackingError::NotTracked(e)
    }
}

impl From<SyncError> for DirtyTrackingError {
    fn from(e: SyncError) -> Self {
        DirtyTrackingError::Unsynced(e)
    }
}
