//! A user-space object as owner, as iommufd's page tables are.

use super::{Attaches, Defers, Maps, Owner, Stalls, external::mapped, sealed};
use crate::{
    device::Device,
    domain::{Domain, DomainOptions},
    error::DomainError,
    iommu::Iommu,
    platform::Platform,
    resolver::{Bind, Bound, BoundImmediate, ImmediateResolver, Resolver},
};
use alloc::sync::Arc;
use core::marker::PhantomData;

/// The caller maps on behalf of a user-space object, and the process behind it decides: its
/// resolver need not know the answer when it returns. `T` is what the caller hangs on attachments.
#[derive(Debug)]
pub struct UserObject<T>(PhantomData<fn() -> T>);

impl<T: 'static> sealed::Sealed for UserObject<T> {
    type Own<P: Platform> = ();
}

impl<T: Send + Sync + 'static> Owner for UserObject<T> {
    type Data = T;
}

impl<T: Send + Sync + 'static> Maps for UserObject<T> {}
impl<T: Send + Sync + 'static> Attaches for UserObject<T> {}
impl<T: Send + Sync + 'static> Stalls for UserObject<T> {}
impl<T: Send + Sync + 'static> Defers for UserObject<T> {}

impl<P: Platform> Iommu<P> {
    /// A domain whose mappings are a user-space object's, in a format that all of `devices` can
    /// walk, open to every other device that can walk it. Sleepable context.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn user_object_domain<T, R>(
        &self,
        devices: &[&Device<P>],
        options: DomainOptions,
        resolver: Option<R>,
    ) -> Result<Domain<P, UserObject<T>>, DomainError>
    where
        T: Send + Sync + 'static,
        R: Resolver<P, T>,
    {
        let bind = resolver.map(|r| Arc::new(Bound(Arc::new(r))) as Arc<dyn Bind<P, T>>);
        Ok(Domain::new(mapped(&self.shared, devices, options)?, bind, ()))
    }

    /// The same with a resolver that never sleeps, such as one that puts every group into a queue
    /// that the process reads.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn user_object_domain_immediate<T, R>(
        &self,
        devices: &[&Device<P>],
        options: DomainOptions,
        resolver: R,
    ) -> Result<Domain<P, UserObject<T>>, DomainError>
    where
        T: Send + Sync + 'static,
        R: ImmediateResolver<P, T>,
    {
        let bind = Arc::new(BoundImmediate(Arc::new(resolver)));
        Ok(Domain::new(mapped(&self.shared, devices, options)?, Some(bind), ()))
    }
}
