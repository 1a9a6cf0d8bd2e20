//! Owners: who decides what a domain translates to. A domain has exactly one, fixed when it is
//! built and visible in its type.
//!
//! | owner | maps | page requests | attached by |
//! |---|---|---|---|
//! | [`Blocked`], [`Identity`] | nobody | nobody | hand |
//! | [`KernelDma`] | its DMA calls | nobody: a correct driver makes none | hand |
//! | [`External`] | the caller | the caller's resolver | hand |
//! | [`UserObject`] | the caller, for a user-space object | the same, or whoever it defers to | hand |
//! | [`Sva`] | the CPU's memory management | the [`AddressSpace`] | [`bind`](Domain::bind) |
//! | [`Nested`] | a guest | the guest, late | hand |
//!
//! What an owner must not do does not exist on its type: there is no way to give a kernel-DMA
//! domain a resolver, and no call that changes an owner or a resolver later.

pub(crate) mod bond;
mod dirty;
pub(crate) mod external;
mod given;
mod iova;
pub(crate) mod kernel_dma;
mod maps;
pub(crate) mod msi;
pub(crate) mod nested;
pub(crate) mod pasids;
pub(crate) mod source;
pub(crate) mod spaces;
pub(crate) mod sva;
pub(crate) mod user_object;

#[allow(unused_imports, reason = "named in the documentation")]
use crate::{AddressSpace, External, KernelDma, Nested, Sva, UserObject};
use crate::{
    domain::{Domain, DomainInner, Kind},
    error::OutOfMemory,
    iommu::Iommu,
    platform::Platform,
};
use alloc::sync::Arc;

pub(crate) mod sealed {
    use crate::platform::Platform;

    pub trait Sealed {
        /// What the owner keeps with the domain.
        type Own<P: Platform>: Send + Sync + 'static;
    }
}

/// Who owns the IOVA space of a domain.
pub trait Owner: sealed::Sealed + 'static {
    /// What the caller hangs on an attachment; handed to the resolver.
    type Data: Send + Sync + 'static;
}

/// Owners that map and unmap ranges of their own choice, and may have an
/// [MSI window](crate::MsiWindow).
pub trait Maps: Owner {}

/// Owners whose domains are attached by [`Iommu::attach`]. An address space is bound instead.
pub trait Attaches: Owner {}

/// Owners that control the mappings and may have faulting transactions stalled
/// ([`Iommu::enable_stall`]).
pub trait Stalls: Owner {}

/// Owners whose decider lives elsewhere (a user-space process, a guest): only their resolvers may
/// leave a stalled transaction to be decided later. All owners with a resolver may do so with page
/// requests.
pub trait Defers: Owner {}

/// Nothing passes. Always attachable.
#[derive(Debug)]
pub struct Blocked;

/// IOVA = physical address.
#[derive(Debug)]
pub struct Identity;

impl sealed::Sealed for Blocked {
    type Own<P: Platform> = ();
}

impl sealed::Sealed for Identity {
    type Own<P: Platform> = ();
}

impl Owner for Blocked {
    type Data = ();
}

impl Owner for Identity {
    type Data = ();
}

impl Attaches for Blocked {}
impl Attaches for Identity {}

impl<P: Platform> Iommu<P> {
    /// A domain through which nothing passes.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn blocked_domain(&self) -> Result<Domain<P, Blocked>, OutOfMemory> {
        let inner = DomainInner::new(&self.shared, Kind::Blocked, false)?;
        Ok(Domain::new(Arc::new(inner), None, ()))
    }

    /// A domain in which IOVA equals physical address.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn identity_domain(&self) -> Result<Domain<P, Identity>, OutOfMemory> {
        let inner = DomainInner::new(&self.shared, Kind::Identity, false)?;
        Ok(Domain::new(Arc::new(inner), None, ()))
    }
}
