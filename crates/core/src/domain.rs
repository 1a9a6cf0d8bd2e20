//! Domains: one IOVA space, one owner, one table.
//!
//! The owner is a type and fixed when the domain is built; what an owner must not do does not
//! exist on its type.

use crate::{
    driver::{HwLost, Target},
    error::{DomainMapError, OutOfMemory, SyncError},
    faultlog::FaultLog,
    ids::{DomainTag, InstanceId},
    instance::Instance,
    iommu::Shared,
    op::{Op, block_on},
    platform::{Platform, ShortLock, Sleep},
    resolver::Bind,
    sync::{Parked, Unmapping, flush},
    tags::TagList,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{marker::PhantomData, mem::ManuallyDrop};
use portcullis_pgtable::{FormatDesc, IoTable, Leaf, NoAccessedBits, Phys, Prot};
use portcullis_sync::atomic::{AtomicBool, AtomicUsize, Ordering};

mod sealed {
    pub trait Sealed {}
}

/// Who owns the IOVA space of a domain.
pub trait Owner: sealed::Sealed + 'static {
    /// What the caller hangs on an attachment; handed to the resolver.
    type Data: Send + Sync + 'static;
}

/// Owners that map and unmap themselves.
pub trait Maps: Owner {}

/// Nothing passes. Always attachable.
#[derive(Debug)]
pub struct Blocked;
/// IOVA = physical address.
#[derive(Debug)]
pub struct Identity;
/// The caller owns the mappings and may decide page requests.
#[derive(Debug)]
pub struct External<T>(PhantomData<fn() -> T>);
/// The kernel's DMA API owns the mappings. Not in this version.
#[derive(Debug)]
pub struct KernelDma;
/// A CPU address space is shared. Not in this version.
#[derive(Debug)]
pub struct AddressSpace;
/// A user-space object decides. Not in this version.
#[derive(Debug)]
pub struct UserObject;
/// A guest owns the first stage. Not in this version.
#[derive(Debug)]
pub struct Nested;

impl sealed::Sealed for Blocked {}
impl sealed::Sealed for Identity {}
impl<T> sealed::Sealed for External<T> {}
impl sealed::Sealed for KernelDma {}
impl sealed::Sealed for AddressSpace {}
impl sealed::Sealed for UserObject {}
impl sealed::Sealed for Nested {}
impl Owner for Blocked {
    type Data = ();
}
impl Owner for Identity {
    type Data = ();
}
impl<T: Send + Sync + 'static> Owner for External<T> {
    type Data = T;
}
impl Owner for KernelDma {
    type Data = ();
}
impl Owner for AddressSpace {
    type Data = ();
}
impl Owner for UserObject {
    type Data = ();
}
impl Owner for Nested {
    type Data = ();
}
impl<T: Send + Sync + 'static> Maps for External<T> {}
impl Maps for KernelDma {}

/// What a domain is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainOptions {
    /// The table wanted.
    pub table: crate::driver::TableRequest,
    /// Only PASIDs will be attached, so that ranges which only requester ids cannot translate
    /// (x86: the interrupt range) may be mapped.
    pub pasid_only: bool,
}

/// A domain. A counted handle; the table lives until the last handle and the last attachment are
/// gone.
pub struct Domain<P: Platform, O: Owner> {
    pub(crate) inner: Arc<DomainInner<P>>,
    pub(crate) bind: Option<Arc<dyn Bind<P, O::Data>>>,
}

impl<P: Platform, O: Owner> Clone for Domain<P, O> {
    fn clone(&self) -> Self {
        Domain { inner: self.inner.clone(), bind: self.bind.clone() }
    }
}

pub(crate) enum Kind {
    Blocked,
    Identity,
    Table(ManuallyDrop<Box<dyn IoTable>>),
}

/// A tag that a domain has on an instance, while anything of it is attached there.
struct TagUse<P: Platform> {
    instance: Arc<Instance<P>>,
    tag: DomainTag,
    users: u32,
}

pub(crate) struct DomainInner<P: Platform> {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) pasid_only: bool,
    pub(crate) tags: TagList<P>,
    pub(crate) parked: Parked<P>,
    pub(crate) shared: Arc<Shared<P>>,
    /// Faults of what is attached. Taken inside an instance's lock.
    pub(crate) faults: P::Lock<FaultLog>,
    uses: P::Lock<Vec<TagUse<P>>>,
    /// Attachments that the hardware may use, or that wait for it to stop.
    attachments: AtomicUsize,
    reserved: Vec<(u64, u64)>,
    never_output: Vec<(u64, u64)>,
    /// Lost hardware may still walk the table: it is never freed.
    kept: AtomicBool,
}

impl<P: Platform> DomainInner<P> {
    pub(crate) fn new(
        shared: &Arc<Shared<P>>,
        kind: Kind,
        pasid_only: bool,
        served_by: &[Arc<Instance<P>>],
    ) -> Result<Self, OutOfMemory> {
        let platform = &shared.hub.platform;
        let mut reserved = Vec::new();
        let mut never_output = Vec::new();
        for instance in served_by {
            let caps = instance.caps();
            if !pasid_only {
                reserved.try_reserve(caps.reserved.len()).map_err(|_| OutOfMemory)?;
                reserved.extend_from_slice(caps.reserved);
            }
            never_output.try_reserve(caps.never_output.len()).map_err(|_| OutOfMemory)?;
            never_output.extend_from_slice(caps.never_output);
        }
        Ok(DomainInner {
            id: shared.next_domain(),
            kind,
            pasid_only,
            tags: TagList::new(platform),
            parked: Parked::new(platform),
            shared: shared.clone(),
            faults: platform.lock(FaultLog::new(shared.hub.config.last_faults)?),
            uses: platform.lock(Vec::new()),
            attachments: AtomicUsize::new(0),
            reserved,
            never_output,
            kept: AtomicBool::new(false),
        })
    }

    pub(crate) fn table(&self) -> Option<&dyn IoTable> {
        match &self.kind {
            Kind::Table(t) => Some(&***t),
            _ => None,
        }
    }

    pub(crate) fn desc(&self) -> Option<FormatDesc> {
        self.table().map(|t| t.desc())
    }

    /// What an attachment point translates through that uses the domain under `tag`.
    pub(crate) fn target(&self, tag: DomainTag) -> Option<Target> {
        match &self.kind {
            Kind::Blocked => None,
            Kind::Identity => Some(Target::Identity { tag }),
            Kind::Table(t) => Some(Target::Table { desc: t.desc(), root: t.root(), tag }),
        }
    }

    /// The domain's tag on an instance, one more user of it. `None` when the instance has none left.
    pub(crate) fn acquire_tag(&self, instance: &Arc<Instance<P>>) -> Result<Option<DomainTag>, OutOfMemory> {
        let Some(fresh) = instance.take_tag() else {
            // A tag that exists already can still be shared.
            return Ok(self.uses.with(|uses| {
                let u = uses.iter_mut().find(|u| u.instance.id() == instance.id())?;
                u.users += 1;
                Some(u.tag)
            }));
        };
        let mut room = Vec::new();
        loop {
            let (answer, old) = self.uses.with(|uses| {
                if let Some(u) = uses.iter_mut().find(|u| u.instance.id() == instance.id()) {
                    u.users += 1;
                    return (Some(u.tag), None);
                }
                if uses.len() == uses.capacity() {
                    if room.capacity() <= uses.len() {
                        return (None, None);
                    }
                    room.append(uses);
                    core::mem::swap(uses, &mut room);
                }
                uses.push(TagUse { instance: instance.clone(), tag: fresh, users: 1 });
                (Some(fresh), Some(core::mem::take(&mut room)))
            });
            if let Some(tag) = answer {
                if tag != fresh {
                    instance.give_tag(fresh);
                }
                drop(old);
                return Ok(Some(tag));
            }
            if room.try_reserve_exact(room.capacity() + 4).is_err() {
                instance.give_tag(fresh);
                return Err(OutOfMemory);
            }
        }
    }

    /// One user less; with the last, everything cached under the tag has been invalidated.
    pub(crate) fn release_tag(&self, instance: &Arc<Instance<P>>) {
        let gone = self.uses.with(|uses| {
            let i = uses.iter().position(|u| u.instance.id() == instance.id())?;
            uses[i].users -= 1;
            if uses[i].users == 0 { Some(uses.swap_remove(i)) } else { None }
        });
        if let Some(u) = gone {
            instance.give_tag(u.tag);
        }
    }

    /// One attachment more or less.
    pub(crate) fn count_attachment(&self, more: bool) {
        match more {
            true => self.attachments.fetch_add(1, Ordering::Relaxed),
            false => self.attachments.fetch_sub(1, Ordering::Relaxed),
        };
    }

    fn is_unused(&self) -> bool {
        self.attachments.load(Ordering::Relaxed) == 0
    }

    /// Hardware that was lost may still read the table.
    pub(crate) fn keep_for_ever(&self) {
        self.kept.store(true, Ordering::Release);
    }

    fn check(&self, iova: u64, phys: Phys, len: u64) -> Result<(), DomainMapError> {
        let touches =
            |start: u64, r: &&(u64, u64)| start <= r.1 && start.saturating_add(len.saturating_sub(1)) >= r.0;
        if let Some(&(start, end)) = self.reserved.iter().find(|r| touches(iova, r)) {
            return Err(DomainMapError::ReservedInput { iova, len, start, end });
        }
        if let Some(&(start, end)) = self.never_output.iter().find(|r| touches(phys.0, r)) {
            return Err(DomainMapError::ReservedOutput { phys, len, start, end });
        }
        Ok(())
    }

    pub(crate) fn map(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), DomainMapError> {
        self.check(iova, phys, len)?;
        match self.table() {
            Some(t) => Ok(t.map(iova, phys, len, prot)?),
            None => Err(DomainMapError::Table(portcullis_pgtable::MapError::Permissions { iova, prot })),
        }
    }
}

impl<P: Platform> Drop for DomainInner<P> {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Acquire) {
            return;
        }
        // Nothing is attached (attachments count the domain), so no walker reads the tables.
        if let Kind::Table(t) = &mut self.kind {
            self.parked.retire_all(&***t);
            drop(core::mem::replace(&mut self.kind, Kind::Blocked).into_table());
        }
    }
}

impl Kind {
    fn into_table(self) -> Option<Box<dyn IoTable>> {
        match self {
            Kind::Table(t) => Some(ManuallyDrop::into_inner(t)),
            _ => None,
        }
    }
}

impl<P: Platform, O: Owner> Domain<P, O> {
    /// A number that names the domain among all of one [`Iommu`](crate::Iommu), for observers and
    /// logs.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// The table's format; `None` for blocked and identity.
    pub fn format(&self) -> Option<FormatDesc> {
        self.inner.desc()
    }

    /// Whether nothing is attached to the domain.
    pub fn is_unused(&self) -> bool {
        self.inner.is_unused()
    }
}

impl<P: Platform, O: Maps> Domain<P, O> {
    /// Maps `len` bytes at `iova` to `phys`. Devices see the mapping when this returns. The caller
    /// owns the IOVA range for the time of the call; disjoint ranges may be mapped at once.
    /// Allocates table frames.
    ///
    /// # Errors
    /// See [`DomainMapError`]; no leaf was written.
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

/// The instances that a set of devices stands behind, each once.
pub(crate) fn instances_of<P: Platform>(
    devices: &[&crate::Device<P>],
) -> Result<Vec<Arc<Instance<P>>>, OutOfMemory> {
    let mut list: Vec<Arc<Instance<P>>> = Vec::new();
    list.try_reserve_exact(devices.len()).map_err(|_| OutOfMemory)?;
    for d in devices {
        let known = |i: &Arc<Instance<P>>| -> InstanceId { i.id() };
        if !list.iter().any(|i| known(i) == d.inner.instance.id()) {
            list.push(d.inner.instance.clone());
        }
    }
    Ok(list)
}
