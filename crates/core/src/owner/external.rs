//! The caller as owner: a hypervisor's passthrough, a GPU driver's address spaces, memory
//! registration.

use super::{Attaches, Maps, Owner, Stalls, sealed};
use crate::{
    device::Device,
    domain::{Coherence, Domain, DomainInner, DomainOptions},
    driver::{Incompatible, TableRequest},
    error::DomainError,
    ids::DeviceId,
    iommu::{Iommu, Shared},
    platform::Platform,
    quota::Quota,
    resolver::{Bind, Bound, BoundImmediate, ImmediateResolver, Resolver},
};
use alloc::{boxed::Box, sync::Arc};
use core::marker::PhantomData;
use portcullis_pgtable::{FormatDesc, IoTable};

/// The caller owns the mappings and may decide page requests. `T` is what it hangs on attachments.
#[derive(Debug)]
pub struct External<T>(PhantomData<fn() -> T>);

impl<T: 'static> sealed::Sealed for External<T> {
    type Own<P: Platform> = ();
}

impl<T: Send + Sync + 'static> Owner for External<T> {
    type Data = T;
}

impl<T: Send + Sync + 'static> Maps for External<T> {}
impl<T: Send + Sync + 'static> Attaches for External<T> {}
impl<T: Send + Sync + 'static> Stalls for External<T> {}

impl<P: Platform> Iommu<P> {
    /// A domain whose mappings are the caller's, in a format that all of `devices` can walk, open
    /// to every other device that can walk it. With a resolver, page requests of what is attached
    /// go to it. Sleepable context.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn external_domain<T, R>(
        &self,
        devices: &[&Device<P>],
        options: DomainOptions,
        resolver: Option<R>,
    ) -> Result<Domain<P, External<T>>, DomainError>
    where
        T: Send + Sync + 'static,
        R: Resolver<P, T>,
    {
        let bind = resolver.map(|r| Arc::new(Bound(Arc::new(r))) as Arc<dyn Bind<P, T>>);
        Ok(Domain::new(mapped(&self.shared, devices, options)?, bind, ()))
    }

    /// The same with a resolver that never sleeps: it runs in service context, without a worker.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn external_domain_immediate<T, R>(
        &self,
        devices: &[&Device<P>],
        options: DomainOptions,
        resolver: R,
    ) -> Result<Domain<P, External<T>>, DomainError>
    where
        T: Send + Sync + 'static,
        R: ImmediateResolver<P, T>,
    {
        let bind = Arc::new(BoundImmediate(Arc::new(resolver)));
        Ok(Domain::new(mapped(&self.shared, devices, options)?, Some(bind), ()))
    }
}

/// What an owner that maps has below its type.
pub(crate) fn mapped<P: Platform>(
    shared: &Arc<Shared<P>>,
    devices: &[&Device<P>],
    options: DomainOptions,
) -> Result<Arc<DomainInner<P>>, DomainError> {
    let table = common_table(devices, options.table)?;
    let coherence = if options.coherent { Coherence::OfDataAndWalks } else { Coherence::NotNeeded };
    for device in devices {
        let why = |why| DomainError::Incompatible { device: device.id(), why };
        device.member.up()?.meets(coherence).map_err(why)?;
    }
    let mut inner = DomainInner::of_table(shared, table, options.pasid_only, devices)?;
    inner.coherence = coherence;
    if let Some(requests) = options.page_requests {
        inner.quota = Quota::new(requests, shared.hub.config.partials_per_owner);
    }
    if let Some(window) = options.msi_window {
        inner.open_window(window)?;
    }
    Ok(Arc::new(inner))
}

/// An empty table that all of `devices` can walk. A width that was left to the driver is that of the
/// narrowest of them, and leaf sizes are those that all know.
pub(crate) fn common_table<P: Platform>(
    devices: &[&Device<P>],
    mut request: TableRequest,
) -> Result<Box<dyn IoTable>, DomainError> {
    let first = devices.first().ok_or(DomainError::NoDevice)?.member.up()?;
    let any_width = request.input_bits == 0;
    loop {
        let table = first.instance.driver().new_table(request)?;
        let desc = table.desc();
        let Some((device, why)) = who_cannot(devices, &desc)? else { return Ok(table) };
        let less = match why {
            Incompatible::InputWidth { walker, .. } if any_width => {
                TableRequest { input_bits: walker, ..request }
            }
            Incompatible::PageSizes { walker, .. } => {
                TableRequest { page_sizes: request.page_sizes & desc.page_sizes & walker, ..request }
            }
            _ => request,
        };
        // Each round asks for less than the one before, whatever drivers answer.
        let narrower = less.input_bits.wrapping_sub(1) < request.input_bits.wrapping_sub(1);
        if !narrower && less.page_sizes == request.page_sizes {
            return Err(DomainError::Incompatible { device, why });
        }
        request = less;
    }
}

/// The first of `devices` that cannot walk such a table, and why.
fn who_cannot<P: Platform>(
    devices: &[&Device<P>],
    desc: &FormatDesc,
) -> Result<Option<(DeviceId, Incompatible)>, DomainError> {
    for d in devices {
        if let Err(why) = d.member.up()?.instance.driver().can_walk(desc) {
            return Ok(Some((d.id(), why)));
        }
    }
    Ok(None)
}
