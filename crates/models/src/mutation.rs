//! Faults planted on purpose, to show that a protection is looked at. Used by test code only; the
//! default is none.

/// Which parts of the model misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mutations {
    /// Context-cache invalidations complete at once and remove nothing, as if the driver had not
    /// submitted them.
    pub ignore_context_invalidation: bool,
    /// The same for the PASID cache.
    pub ignore_pasid_invalidation: bool,
    /// The same for the IOTLB and the paging-structure caches. Nothing is drained either.
    pub ignore_iotlb_invalidation: bool,
    /// The same for device TLBs: no endpoint is asked.
    pub ignore_device_tlb_invalidation: bool,
    /// Each page group response that software submits is sent to the endpoint twice.
    pub answer_twice: bool,
    /// A successful walk returns the input address.
    pub identity_walk: bool,
}
