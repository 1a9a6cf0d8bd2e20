//! A CPU address space as owner (shared virtual addressing): devices use the table that the CPU
//! walks, under a PASID that stands for it everywhere.
//!
//! Nobody maps here. Who changes the address space tells the domain what went
//! ([`Domain::invalidate`]), and that all of it is about to go ([`Domain::exit`]).

use super::{
    Owner,
    bond::Bonds,
    sealed,
    source::{Foreign, TableSource},
};
use crate::{
    domain::{Domain, DomainInner, Kind},
    driver::HwLost,
    error::{DomainError, NoPasid, SyncError},
    ids::Pasid,
    iommu::Iommu,
    op::{Op, block_on},
    owner::spaces,
    platform::{Platform, Sleep},
    resolver::{self, PageGroup, Request, Resolver, Response},
    sync::invalidate,
};
use alloc::sync::Arc;
use core::{marker::PhantomData, ops::Range};
use portcullis_sync::atomic::{AtomicBool, Ordering};

/// An address space of the CPU, as a kernel describes it. Its [`TableSource`] is the table that the
/// CPU walks, which coherent walkers only can share.
pub trait AddressSpace: TableSource {
    /// Makes a page present that a device asks for, as a fault of the CPU would. Runs in a resolver:
    /// it may sleep. It can still be called while [`Domain::exit`] runs, not after.
    fn fault(&self, cx: &Sleep<'_>, request: &Request) -> Faulted;
}

/// What became of a device's page fault in an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faulted {
    /// The page is there, with the permissions asked for.
    Handled,
    /// There is no such mapping.
    NotMapped,
}

/// The address space `A` owns the mappings and decides the faults.
#[derive(Debug)]
pub struct Sva<A>(PhantomData<fn() -> A>);

impl<A: AddressSpace> sealed::Sealed for Sva<A> {
    type Own<P: Platform> = Bound<P, A>;
}

impl<A: AddressSpace> Owner for Sva<A> {
    type Data = A;
}

/// What a domain of an address space keeps.
pub struct Bound<P: Platform, A> {
    pub(crate) space: Arc<A>,
    pub(crate) bonds: Arc<Bonds<P>>,
}

/// From so many bytes on an invalidation covers everything, in one command: the time that it takes
/// does not grow with the range.
const FULL_FROM: u64 = 512 * PAGE;
const PAGE: u64 = 0x1000;

impl<P: Platform> Iommu<P> {
    /// The domain of an address space. There is one for each: other users of it clone the handle.
    /// Its PASID is its own on all devices until the domain is gone. Sleepable context.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn address_space_domain<A: AddressSpace>(
        &self,
        space: Arc<A>,
    ) -> Result<Domain<P, Sva<A>>, DomainError> {
        let pasid = self.shared.spaces.pasids.take_for_all().map_err(|e| match e {
            NoPasid::NoneLeft => DomainError::NoPasid,
            NoPasid::OutOfMemory(e) => e.into(),
            NoPasid::NotUp(e) => e.into(),
        })?;
        let number = pasid.get();
        let mut foreign = Foreign::new(space.clone());
        foreign.pasid = Some(pasid);
        let faults = Arc::new(Faults { ended: foreign.ended().clone() });
        let bonds = Arc::new(Bonds::new(&self.shared.hub, number)?);
        let inner = Arc::new(DomainInner::new(&self.shared, Kind::Foreign(foreign), true)?);
        let identity = Arc::as_ptr(&space).cast::<()>() as usize;
        self.shared.spaces.add(identity, &inner)?;
        Ok(Domain::new(inner, Some(Arc::new(resolver::Bound(faults))), Bound { space, bonds }))
    }

    /// Invalidates what walkers may have cached of the kernel's part of the address spaces that are
    /// bound: called after entries of kernel page tables were cleared, before the tables that they
    /// led to are freed. A table of the CPU contains the kernel's, so that a walk by a device may
    /// have passed through them. Sleeps.
    ///
    /// # Errors
    /// See [`SyncError`]: hardware may still read those tables.
    pub fn invalidate_kernel_walks(&self, cx: &Sleep<'_>) -> Result<(), SyncError> {
        block_on(&self.shared.hub, cx, spaces::invalidate_all(&self.shared))
            .map_err(|_| SyncError::Shutdown)?
            .map_err(SyncError::Lost)
    }

    /// The step form of [`invalidate_kernel_walks`](Iommu::invalidate_kernel_walks).
    pub fn start_invalidate_kernel_walks(&self) -> Op<'_, Result<(), HwLost>> {
        Op::new(spaces::invalidate_all(&self.shared))
    }
}

impl<P: Platform, A: AddressSpace> Domain<P, Sva<A>> {
    /// The address space.
    pub fn address_space(&self) -> &Arc<A> {
        &self.own.space
    }

    /// The PASID that stands for the address space.
    pub fn pasid(&self) -> Pasid {
        self.own.bonds.pasid()
    }

    /// Invalidates what caches may hold of a range of addresses, its end exclusive, as the CPU side
    /// counts: called after the entries were changed, before the pages or tables behind them are
    /// used for something else. Sleeps.
    ///
    /// # Errors
    /// See [`SyncError`]: devices may still reach what was there.
    pub fn invalidate(&self, cx: &Sleep<'_>, range: Range<u64>) -> Result<(), SyncError> {
        block_on(&self.inner.shared.hub, cx, self.invalidate_range(range))
            .map_err(|_| SyncError::Shutdown)?
            .map_err(SyncError::Lost)
    }

    /// The step form of [`invalidate`](Self::invalidate).
    pub fn start_invalidate(&self, range: Range<u64>) -> Op<'_, Result<(), HwLost>> {
        Op::new(self.invalidate_range(range))
    }

    /// The one place where an exclusive end becomes an inclusive one.
    async fn invalidate_range(&self, range: Range<u64>) -> Result<(), HwLost> {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return Ok(());
        };
        let (first, last) = (range.start & !(PAGE - 1), last | (PAGE - 1));
        let range = if last - first >= FULL_FROM - 1 { None } else { Some((first, last)) };
        // Tables may have gone with what they held.
        invalidate(&self.inner, range, true).await
    }

    /// The address space is about to go, while devices may still use it: no walker reads the table
    /// when this returns. Devices stay bound; what they do from now on is refused without a record
    /// for each access, and page requests are answered Invalid. Sleeps for hardware; a second call
    /// does nothing new.
    ///
    /// # Errors
    /// See [`SyncError`]: the table must be kept, since hardware may still read it.
    pub fn exit(&self, cx: &Sleep<'_>) -> Result<(), SyncError> {
        block_on(&self.inner.shared.hub, cx, self.own.bonds.exit(&self.inner))
            .map_err(|_| SyncError::Shutdown)?
            .map_err(SyncError::Lost)
    }

    /// The step form of [`exit`](Self::exit).
    pub fn start_exit(&self) -> Op<'_, Result<(), HwLost>> {
        Op::new(self.own.bonds.exit(&self.inner))
    }
}

/// Takes the page requests of a bound device to its address space.
struct Faults {
    ended: Arc<AtomicBool>,
}

impl<P: Platform, A: AddressSpace> Resolver<P, A> for Faults {
    fn resolve(&self, cx: &Sleep<'_>, space: &Arc<A>, group: PageGroup<'_, P>) {
        let handled =
            |r: Request| !self.ended.load(Ordering::Acquire) && space.fault(cx, &r) == Faulted::Handled;
        let response = if group.requests().all(handled) { Response::Success } else { Response::Invalid };
        // A detach or a deadline may have been faster.
        let _ = group.respond(response);
    }
}
