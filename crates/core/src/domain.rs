//! Domains: one IOVA space, one owner, one table.
//!
//! The owner is a type and fixed when the domain is built; see [`owner`](crate::owner).

use crate::{
    device::Device,
    driver::{CacheTag, Target},
    error::{DomainError, DomainMapError, OutOfMemory},
    faultlog::FaultLog,
    ids::{At, DomainTag},
    instance::Instance,
    iommu::Shared,
    owner::{
        Owner,
        msi::{MsiWindow, Window},
        source::Foreign,
    },
    pins::Pins,
    platform::{Platform, ShortLock},
    provenance::History,
    quota::Quota,
    reserved::{Regions, ReservedRegion},
    resolver::Bind,
    stall::Seat,
    tags::TagList,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use portcullis_pgtable::{FormatDesc, IoTable, MapError, Phys, Prot};
use portcullis_sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a domain is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainOptions {
    /// The table wanted.
    pub table: crate::driver::TableRequest,
    /// Only PASIDs will be attached, so that ranges which only requester ids cannot translate
    /// (x86: the interrupt range) may be mapped.
    pub pasid_only: bool,
    /// Every device that is attached must be coherent: its DMA, and the walks of its IOMMU. For owners
    /// that clean and invalidate nothing.
    pub coherent: bool,
    /// Where the doorbells of interrupt controllers are mapped, on machines that translate MSIs.
    pub msi_window: Option<MsiWindow>,
    /// Page requests that all its attachments together may have outstanding, where that is not
    /// [`Config::credits_per_owner`](crate::Config::credits_per_owner).
    pub page_requests: Option<u32>,
}

/// A domain. A counted handle; the table lives until the last handle and the last attachment are
/// gone.
pub struct Domain<P: Platform, O: Owner> {
    pub(crate) inner: Arc<DomainInner<P>>,
    pub(crate) bind: Option<Arc<dyn Bind<P, O::Data>>>,
    /// Who decides what stalls.
    pub(crate) seat: Arc<Seat<P, O::Data>>,
    /// What the owner keeps with it.
    pub(crate) own: Arc<O::Own<P>>,
}

impl<P: Platform, O: Owner> Clone for Domain<P, O> {
    fn clone(&self) -> Self {
        let Domain { inner, bind, seat, own } = self;
        Domain { inner: inner.clone(), bind: bind.clone(), seat: seat.clone(), own: own.clone() }
    }
}

pub(crate) enum Kind<P: Platform> {
    Blocked,
    Identity,
    /// A table of the core's own.
    Table(Box<dyn IoTable>),
    /// Somebody else's.
    Foreign(Foreign<P>),
}

/// What a domain's owner needs its devices to snoop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coherence {
    NotNeeded,
    /// Of a DMA API that cleans and invalidates nothing.
    OfData,
    /// See [`DomainOptions::coherent`].
    OfDataAndWalks,
}

/// A tag that a domain has on an instance, while anything of it is attached there.
struct TagUse<P: Platform> {
    instance: Arc<Instance<P>>,
    tag: DomainTag,
    users: u32,
}

pub(crate) struct DomainInner<P: Platform> {
    pub(crate) id: u64,
    pub(crate) kind: Kind<P>,
    pub(crate) pasid_only: bool,
    pub(crate) coherence: Coherence,
    pub(crate) tags: TagList<P>,
    /// What all its attachments together may have outstanding.
    pub(crate) quota: Quota,
    pub(crate) pins: Pins<P>,
    pub(crate) shared: Arc<Shared<P>>,
    /// Faults of what is attached. Taken inside an instance's lock.
    pub(crate) faults: P::Lock<FaultLog>,
    /// What was mapped when, where that is kept.
    pub(crate) history: Option<P::Lock<History>>,
    uses: P::Lock<Vec<TagUse<P>>>,
    /// Attachments that the hardware may use, or that wait for it to stop.
    attachments: AtomicUsize,
    /// What faults is held until its verdict.
    stalls: AtomicBool,
    reserved: Vec<ReservedRegion>,
    pub(crate) window: Option<Window<P>>,
    never_output: Vec<(u64, u64)>,
    /// Lost hardware may still walk the table: it is never freed.
    kept: AtomicBool,
}

impl<P: Platform> DomainInner<P> {
    /// A domain over a table of its own.
    pub(crate) fn of_table(
        shared: &Arc<Shared<P>>,
        table: Box<dyn IoTable>,
        pasid_only: bool,
        devices: &[&Device<P>],
    ) -> Result<Self, DomainError> {
        let mut inner = DomainInner::new(shared, Kind::Table(table), pasid_only)?;
        inner.keep_closed(devices)?;
        Ok(inner)
    }

    pub(crate) fn new(shared: &Arc<Shared<P>>, kind: Kind<P>, pasid_only: bool) -> Result<Self, OutOfMemory> {
        let platform = &shared.hub.platform;
        let config = &shared.hub.config;
        Ok(DomainInner {
            quota: Quota::new(config.credits_per_owner, config.partials_per_owner),
            id: shared.next_domain(),
            kind,
            pasid_only,
            coherence: Coherence::NotNeeded,
            tags: TagList::new(platform),
            pins: Pins::new(platform),
            shared: shared.clone(),
            faults: platform.lock(FaultLog::new(shared.hub.config.last_faults)?),
            history: History::new(shared.hub.config.provenance)?.map(|h| platform.lock(h)),
            uses: platform.lock(Vec::new()),
            attachments: AtomicUsize::new(0),
            stalls: AtomicBool::new(false),
            reserved: Vec::new(),
            window: None,
            never_output: Vec::new(),
            kept: AtomicBool::new(false),
        })
    }

    /// Closes to the owner what no member of the devices' groups, and none of their IOMMUs, takes for
    /// memory. Only what is closed here can be attached later: see [`lacks`](Self::lacks).
    fn keep_closed(&mut self, devices: &[&Device<P>]) -> Result<(), DomainError> {
        let mut closed = Regions::default();
        for device in devices {
            for region in device.group_regions()? {
                if region.kind.is_closed(self.pasid_only) {
                    closed.add(region)?;
                }
            }
            for range in device.member.up()?.instance.caps().never_output {
                if !self.never_output.contains(range) {
                    self.never_output.try_reserve(1).map_err(|_| OutOfMemory)?;
                    self.never_output.push(*range);
                }
            }
        }
        self.reserved = closed.finish();
        Ok(())
    }

    /// The first of a device's regions that must be closed and is open to the domain's owner.
    pub(crate) fn lacks<'r>(
        &self,
        mut regions: impl Iterator<Item = ReservedRegion> + 'r,
    ) -> Option<ReservedRegion> {
        regions.find(|r| r.kind.is_closed(self.pasid_only) && !r.is_covered_by(&self.reserved))
    }

    pub(crate) fn table(&self) -> Option<&dyn IoTable> {
        match &self.kind {
            Kind::Table(t) => Some(&**t),
            _ => None,
        }
    }

    pub(crate) fn desc(&self) -> Option<FormatDesc> {
        match &self.kind {
            Kind::Blocked | Kind::Identity => None,
            Kind::Table(t) => Some(t.desc()),
            Kind::Foreign(f) => Some(f.desc()),
        }
    }

    /// What an attachment point translates through that uses the domain under `tag`.
    pub(crate) fn target(&self, tag: DomainTag) -> Option<Target> {
        match &self.kind {
            Kind::Blocked => None,
            Kind::Identity => Some(Target::Identity { tag }),
            Kind::Table(t) => Some(Target::Table { desc: t.desc(), root: t.root(), tag }),
            Kind::Foreign(f) => f.target(tag),
        }
    }

    /// The domain below this one, if there is one.
    fn parent(&self) -> Option<&Arc<DomainInner<P>>> {
        match &self.kind {
            Kind::Foreign(f) => f.parent.as_ref(),
            _ => None,
        }
    }

    /// Tells everybody who takes something out of the tables on the way where it may be cached.
    pub(crate) fn publish(&self, instance: &Arc<Instance<P>>, tag: CacheTag) -> Result<(), OutOfMemory> {
        if let Some(parent) = self.parent() {
            parent.tags.publish(instance, CacheTag { nested: true, ..tag })?;
        }
        self.tags.publish(instance, tag).inspect_err(|_| self.withdraw(instance, tag.at, tag.tag))
    }

    /// Takes [`publish`](Self::publish) back, after the entry was cleared and invalidated.
    pub(crate) fn withdraw(&self, instance: &Instance<P>, at: At, tag: DomainTag) {
        self.tags.remove(instance.id(), at, tag);
        if let Some(parent) = self.parent() {
            parent.tags.remove(instance.id(), at, tag);
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

    pub(crate) fn stalls(&self) -> bool {
        self.stalls.load(Ordering::Acquire)
    }

    /// False if it was so already.
    pub(crate) fn set_stalls(&self, on: bool) -> bool {
        self.stalls.swap(on, Ordering::AcqRel) != on
    }

    fn is_unused(&self) -> bool {
        self.attachments.load(Ordering::Relaxed) == 0
    }

    /// Hardware that was lost may still read the table.
    pub(crate) fn keep_for_ever(&self) {
        self.kept.store(true, Ordering::Release);
        if let Some(parent) = self.parent() {
            parent.keep_for_ever();
        }
    }

    /// Keeps a range free from mappings. The range that it touches, if it does.
    pub(crate) fn reserve(&mut self, new: ReservedRegion) -> Result<Option<ReservedRegion>, OutOfMemory> {
        let touched = self.touches_reserved(new.start, new.last());
        if touched.is_none() {
            self.reserved.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.reserved.push(new);
        }
        Ok(touched)
    }

    pub(crate) fn reserved(&self) -> &[ReservedRegion] {
        &self.reserved
    }

    /// The first of the reserved ranges that `first..=last` touches.
    pub(crate) fn touches_reserved(&self, first: u64, last: u64) -> Option<ReservedRegion> {
        self.reserved.iter().find(|r| first <= r.last() && last >= r.start).copied()
    }

    /// Whether a physical range may be mapped to at all.
    pub(crate) fn check_output(&self, phys: Phys, len: u64) -> Result<(), DomainMapError> {
        let last = phys.0.saturating_add(len.saturating_sub(1));
        match self.never_output.iter().find(|r| phys.0 <= r.1 && last >= r.0) {
            Some(&(start, end)) => Err(DomainMapError::ReservedOutput { phys, len, start, end }),
            None => Ok(()),
        }
    }

    #[track_caller]
    pub(crate) fn map(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), DomainMapError> {
        if let Some(r) = self.touches_reserved(iova, iova.saturating_add(len.saturating_sub(1))) {
            return Err(DomainMapError::ReservedInput { iova, len, start: r.start, end: r.last() });
        }
        self.check_output(phys, len)?;
        Ok(self.map_anywhere(iova, phys, len, prot)?)
    }

    /// Maps without asking whether the range is reserved.
    #[track_caller]
    pub(crate) fn map_anywhere(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), MapError> {
        self.table().ok_or(MapError::Permissions { iova, prot })?.map(iova, phys, len, prot)?;
        self.note_mapped(iova, phys, len, prot);
        Ok(())
    }
}

impl<P: Platform> Drop for DomainInner<P> {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Acquire) {
            // The table, whoever's it is, and the PASID that late requests may carry.
            core::mem::forget(core::mem::replace(&mut self.kind, Kind::Blocked));
        }
        // Else nothing is attached (attachments count the domain), so no walker reads the table.
    }
}

impl<P: Platform, O: Owner> Domain<P, O> {
    pub(crate) fn new(
        inner: Arc<DomainInner<P>>,
        bind: Option<Arc<dyn Bind<P, O::Data>>>,
        own: O::Own<P>,
    ) -> Self {
        let seat = Arc::new(Seat::new(&inner.shared.hub.platform));
        Domain { inner, bind, seat, own: Arc::new(own) }
    }

    /// A number that names the domain among all of one [`Iommu`](crate::Iommu), for observers and
    /// logs.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// The table's format; `None` for blocked and identity.
    pub fn format(&self) -> Option<FormatDesc> {
        self.inner.desc()
    }

    /// The IOVAs that nobody maps in the domain: those that the devices it was made for, or their
    /// IOMMUs, do not take for memory, and its MSI window.
    pub fn reserved(&self) -> &[ReservedRegion] {
        self.inner.reserved()
    }

    /// Whether nothing is attached to the domain.
    pub fn is_unused(&self) -> bool {
        self.inner.is_unused()
    }
}
