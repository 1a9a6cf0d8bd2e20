//! A guest as owner of the first stage: its table translates to addresses of a parent domain, which
//! translates them again.

use super::{Attaches, Defers, Maps, Owner, Stalls, sealed, source::Foreign};
use crate::{
    device::Device,
    domain::{Domain, DomainInner, Kind},
    driver::HwLost,
    error::{DomainError, SyncError},
    iommu::Iommu,
    op::{Op, block_on},
    owner::source::TableSource,
    platform::{Platform, Sleep},
    resolver::{Bind, Bound, Resolver},
    sync::invalidate,
};
use alloc::sync::Arc;
use core::marker::PhantomData;

/// A guest writes the table; its hypervisor passes on what the guest invalidates, and faults to the
/// guest, whose answer may come late. `T` is what the caller hangs on attachments.
#[derive(Debug)]
pub struct Nested<T>(PhantomData<fn() -> T>);

impl<T: 'static> sealed::Sealed for Nested<T> {
    type Own<P: Platform> = ();
}

impl<T: Send + Sync + 'static> Owner for Nested<T> {
    type Data = T;
}

impl<T: Send + Sync + 'static> Attaches for Nested<T> {}
impl<T: Send + Sync + 'static> Stalls for Nested<T> {}
impl<T: Send + Sync + 'static> Defers for Nested<T> {}

impl<P: Platform> Iommu<P> {
    /// A domain over a guest's table, for `devices` and every other device that can walk it on top
    /// of `parent`. The parent lives at least as long, and what is unmapped there is invalidated
    /// here too. Sleepable context.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn nested_domain<O, T, R>(
        &self,
        parent: &Domain<P, O>,
        devices: &[&Device<P>],
        table: Arc<dyn TableSource>,
        resolver: Option<R>,
    ) -> Result<Domain<P, Nested<T>>, DomainError>
    where
        O: Maps,
        T: Send + Sync + 'static,
        R: Resolver<P, T>,
    {
        if devices.is_empty() {
            return Err(DomainError::NoDevice);
        }
        if !Arc::ptr_eq(&self.shared, &parent.inner.shared) {
            return Err(DomainError::Foreign);
        }
        let mut foreign = Foreign::new(table);
        foreign.parent = Some(parent.inner.clone());
        for d in devices {
            let fits = foreign.fits(d.member.up()?.instance.driver());
            fits.map_err(|why| DomainError::Incompatible { device: d.id(), why })?;
        }
        let kind = Kind::Foreign(foreign);
        let inner = DomainInner::new(&self.shared, kind, parent.inner.pasid_only)?;
        let bind = resolver.map(|r| Arc::new(Bound(Arc::new(r))) as Arc<dyn Bind<P, T>>);
        Ok(Domain::new(Arc::new(inner), bind, ()))
    }
}

impl<P: Platform, T: Send + Sync + 'static> Domain<P, Nested<T>> {
    /// Invalidates what caches may hold of the guest's table: a range of its input addresses, both
    /// ends inclusive, or everything. With `leaves_only` the guest says that it changed no entry that
    /// leads to another table. Sleeps.
    ///
    /// # Errors
    /// See [`SyncError`]: hardware may still use what the guest took out.
    pub fn invalidate(
        &self,
        cx: &Sleep<'_>,
        range: Option<(u64, u64)>,
        leaves_only: bool,
    ) -> Result<(), SyncError> {
        let hub = &self.inner.shared.hub;
        block_on(hub, cx, invalidate(&self.inner, range, !leaves_only))
            .map_err(|_| SyncError::Shutdown)?
            .map_err(SyncError::Lost)
    }

    /// The step form of [`invalidate`](Self::invalidate).
    pub fn start_invalidate(
        &self,
        range: Option<(u64, u64)>,
        leaves_only: bool,
    ) -> Op<'_, Result<(), HwLost>> {
        Op::new(invalidate(&self.inner, range, !leaves_only))
    }
}
