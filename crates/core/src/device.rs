//! Devices: what the embedder says of them, and what the core does to them as a whole.

use crate::{
    detach::drain,
    domain::DomainInner,
    driver::{Change, DeviceControl, Features, HwLost, PrepareError, Prepared, SubmitError, Target},
    error::{AttachError, OutOfMemory},
    group::Group,
    hub::Lane,
    ids::{At, DeviceId, DomainTag, InstanceId, Pasid, SourceId},
    instance::Instance,
    iommu::Shared,
    op::{Op, block_on, hw},
    owner::pasids::Pasids,
    platform::{Platform, ShortLock, Sleep},
    reserved::{RegionKind, Regions, ReservedRegion},
    slab::Slab,
    sources::Counters,
    topology::MergedBy,
};
use alloc::{sync::Arc, vec::Vec};
use core::{future::poll_fn, task::Poll};

/// What a device can do, as its PCIe capabilities say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCaps {
    /// Width of its PASIDs in bits; 0 without PASID.
    pub pasid_bits: u8,
    /// Address translation services.
    pub ats: bool,
    /// Depth of its invalidation queue (0 means 32).
    pub invalidate_queue_depth: u8,
    /// Page requests it can have outstanding; `None` without a page-request interface.
    pub page_requests: Option<u32>,
    /// Sends PASID stop markers.
    pub stop_markers: bool,
    /// Its DMA is coherent with the CPU's caches: PCIe without No Snoop, most else on x86.
    pub coherent_dma: bool,
    /// Its physical function, where it is a virtual function of another: device TLBs are asked with
    /// that one's queue depth (`[V]` 6.5.2.5, PFSID).
    pub physical_function: Option<SourceId>,
}

/// One IOMMU instance that a device's requests pass through, and the ids it is known by there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The instance.
    pub instance: InstanceId,
    /// Requester or stream ids.
    pub sources: Vec<SourceId>,
}

/// A device as the embedder describes it.
pub struct DeviceSpec {
    /// Its stable id.
    pub id: DeviceId,
    /// The instances it stands behind. This version serves exactly one, with one source id.
    pub upstreams: Vec<Upstream>,
    /// Whether the device is believed not to forge addresses. Only trusted devices get ATS and
    /// page requests: a translated request reaches any host address that the IOMMU does not check.
    pub trusted: bool,
    /// What it can do.
    pub caps: DeviceCaps,
    /// How its PCIe capabilities are switched.
    pub control: Arc<dyn DeviceControl>,
    /// Its reserved regions; those of its IOMMU need not be named.
    pub regions: Vec<ReservedRegion>,
}

impl DeviceSpec {
    /// A device that is not trusted, can do nothing special and has no reserved regions.
    pub fn new(id: DeviceId, upstreams: Vec<Upstream>, control: Arc<dyn DeviceControl>) -> DeviceSpec {
        DeviceSpec {
            id,
            upstreams,
            trusted: false,
            caps: DeviceCaps::default(),
            control,
            regions: Vec::new(),
        }
    }
}

/// A device that was added. A counted handle.
#[derive(Clone)]
pub struct Device<P: Platform> {
    pub(crate) inner: Arc<DeviceInner<P>>,
}

pub(crate) struct DeviceInner<P: Platform> {
    pub(crate) id: DeviceId,
    pub(crate) source: SourceId,
    pub(crate) trusted: bool,
    pub(crate) caps: DeviceCaps,
    pub(crate) control: Arc<dyn DeviceControl>,
    pub(crate) regions: Vec<ReservedRegion>,
    pub(crate) instance: Arc<Instance<P>>,
    pub(crate) group: Arc<Group<P>>,
    pub(crate) shared: Arc<Shared<P>>,
    /// Where the requester id goes while nothing is attached: a domain that maps exactly the
    /// direct regions. Without such regions it is blocked.
    pub(crate) direct_only: Option<(Arc<DomainInner<P>>, DomainTag)>,
    /// Its place among the devices whose resolvers share the workers.
    pub(crate) lane: Lane<P>,
    pub(crate) pasids: Arc<Pasids<P>>,
    pri: P::Lock<Pri>,
}

/// Page requests of a device: on while some attachment needs them.
#[derive(Default)]
struct Pri {
    users: u32,
    /// Credits that the device holds; kept when switching was given up half-way.
    share: u32,
    on: bool,
    turning: bool,
}

impl<P: Platform> Device<P> {
    /// Its stable id.
    pub fn id(&self) -> DeviceId {
        self.inner.id
    }

    /// Its requester id.
    pub fn source(&self) -> SourceId {
        self.inner.source
    }

    /// The members of its group, and the rule that merged them, if there are several.
    pub fn group(&self) -> (DeviceId, Option<MergedBy>) {
        (self.inner.group.member, self.inner.group.merged_by)
    }

    /// What of its IOVA space is reserved, by itself or by its IOMMU: sorted by start, what touches
    /// and is of one kind merged. Allocates.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn reserved_regions(&self) -> Result<Vec<ReservedRegion>, OutOfMemory> {
        let mut list = Regions::default();
        for region in &self.inner.regions {
            list.add(*region)?;
        }
        for (start, end) in self.inner.instance.caps().reserved {
            let len = (end - start).saturating_add(1);
            list.add(ReservedRegion::closed(*start, len, RegionKind::Msi))?;
        }
        Ok(list.finish())
    }

    /// What was counted since it was added.
    pub fn counters(&self) -> Counters {
        self.inner.instance.counters(self.inner.source)
    }

    /// Which features are switched on now.
    pub fn features(&self) -> Features {
        self.inner.instance.features(self.inner.source)
    }

    /// Whether it was cut off because its own TLB did not answer. A reset ends that.
    pub fn is_quarantined(&self) -> bool {
        self.inner.instance.is_quarantined(self.inner.source)
    }

    /// Resets the device. Everything it had outstanding is void: its page requests get no answer.
    /// It is cut off before, drained after, and has its attachments back at the end. Sleeps.
    ///
    /// # Errors
    /// [`AttachError::Lost`] when the IOMMU does not respond, [`AttachError::Shutdown`].
    pub fn reset(&self, cx: &Sleep<'_>) -> Result<(), AttachError> {
        let hub = &self.inner.instance.hub;
        block_on(hub, cx, self.inner.reset()).map_err(|_| AttachError::Shutdown)?.map_err(AttachError::Lost)
    }

    /// The step form of [`reset`](Device::reset). Dropped unfinished, the device stays cut off, and
    /// its page requests void, until it is reset again.
    pub fn start_reset(&self) -> Op<'_, Result<(), HwLost>> {
        Op::new(self.inner.reset())
    }
}

impl<P: Platform> DeviceInner<P> {
    pub(crate) fn new(
        spec: DeviceSpec,
        source: SourceId,
        instance: Arc<Instance<P>>,
        group: Arc<Group<P>>,
        shared: Arc<Shared<P>>,
        direct_only: Option<(Arc<DomainInner<P>>, DomainTag)>,
        lane: Lane<P>,
    ) -> Self {
        let pri = instance.platform().lock(Pri::default());
        let pasids = Arc::new(Pasids::new(instance.platform()));
        DeviceInner {
            id: spec.id,
            source,
            trusted: spec.trusted,
            caps: spec.caps,
            control: spec.control,
            regions: spec.regions,
            instance,
            group,
            shared,
            direct_only,
            lane,
            pasids,
            pri,
        }
    }

    /// The regions that must be mapped one to one wherever its requester id is attached.
    pub(crate) fn direct(&self) -> impl Iterator<Item = &ReservedRegion> {
        self.regions.iter().filter(|r| r.kind.is_direct())
    }

    pub(crate) fn has_direct(&self) -> bool {
        self.direct().next().is_some()
    }

    pub(crate) fn shared_slab(&self) -> &Slab<P> {
        &self.shared.attachments
    }

    /// Whether a PASID is within what device and instance do.
    pub(crate) fn does_pasid(&self, pasid: Pasid) -> bool {
        pasid.get() <= self.last_pasid()
    }

    /// The largest PASID that device and instance do; 0 without PASID.
    pub(crate) fn last_pasid(&self) -> u32 {
        let bits = self.caps.pasid_bits.min(self.instance.caps().pasid_bits).min(20);
        (1u32 << bits) - 1
    }

    /// Makes an attachment point stop translating: blocked, or back to its direct regions.
    pub(crate) async fn block(&self, at: At) -> Result<(), HwLost> {
        let driver = self.instance.driver();
        if let (None, Some((domain, tag))) = (at.pasid, &self.direct_only)
            && let Some(target) = domain.target(*tag)
        {
            return self.install(at, target).await;
        }
        hw(&self.instance, || driver.block(at)).await
    }

    /// Shows a translation to the hardware.
    pub(crate) async fn install(&self, at: At, target: Target) -> Result<(), HwLost> {
        self.install_prepared(at, target, None).await
    }

    /// Shows what was prepared, if it still is. Prepares anew for each further try, so that an
    /// invalidation that was dropped is queued again; where there is no memory for that at the
    /// moment, it is tried again like a full queue.
    pub(crate) async fn install_prepared(
        &self,
        at: At,
        target: Target,
        mut held: Option<Holding<'_, P>>,
    ) -> Result<(), HwLost> {
        let driver = self.instance.driver();
        hw(&self.instance, || {
            let prepared = match held.as_mut().and_then(Holding::take) {
                Some(prepared) => prepared,
                None => driver.prepare(at, target).map_err(|e| match e {
                    PrepareError::NoMem => SubmitError::Full,
                    _ => SubmitError::Lost(HwLost),
                })?,
            };
            driver.commit(prepared).map_err(|(prepared, e)| {
                driver.abandon(prepared);
                e
            })
        })
        .await
    }

    /// Page requests for one more attachment: switched on with the first, in PCIe's order.
    pub(crate) async fn acquire_pri(&self) -> Result<(), AttachError> {
        let limit = self.may_request_pages()?;
        poll_fn(|_| self.pri_turn()).await;
        let turn = Turning(self);
        if !self.pri.with(|p| p.on) {
            let share = self.take_share(limit).ok_or(AttachError::NoCredits(self.id))?;
            if let Err(lost) = self.set_features(|f| f.pri = true).await {
                self.give_share_back();
                return Err(lost.into());
            }
            self.instance.set_share(self.source, share);
            self.control.set_pri(Some(share));
        }
        self.pri.with(|p| {
            p.on = true;
            p.users += 1;
        });
        drop(turn);
        Ok(())
    }

    /// One attachment less: switched off with the last. Hardware that is lost stays as it is.
    pub(crate) async fn release_pri(&self) {
        poll_fn(|_| self.pri_turn()).await;
        let turn = Turning(self);
        if self.pri.with(|p| p.users <= 1) {
            self.control.set_pri(None);
            self.instance.set_share(self.source, 0);
            // The interface is reset before it is switched on again: nothing completes these.
            self.instance.drop_partials_of(self.source);
            self.pri.with(|p| p.on = false);
            if self.set_features(|f| f.pri = false).await.is_ok() {
                self.give_share_back();
            }
        }
        self.pri.with(|p| p.users = p.users.saturating_sub(1));
        drop(turn);
    }

    fn take_share(&self, limit: u32) -> Option<u32> {
        let held = self.pri.with(|p| p.share);
        if held > 0 {
            return Some(held);
        }
        let share = self.instance.take_credits(limit)?;
        self.pri.with(|p| p.share = share);
        Some(share)
    }

    /// Gives back the credits of a device that makes no page requests any more.
    pub(crate) fn give_share_back(&self) {
        let share = self.pri.with(|p| core::mem::take(&mut p.share));
        self.instance.give_credits(share);
    }

    /// The device's limit of outstanding page requests, if it may make any.
    fn may_request_pages(&self) -> Result<u32, AttachError> {
        let caps = self.instance.caps();
        let refuse = |why| Err(AttachError::NoPageRequests(self.id, why));
        let Some(limit) = self.caps.page_requests else { return refuse("it has no page-request interface") };
        if !self.trusted {
            return refuse("it is not trusted, and page requests need ATS");
        }
        if !self.caps.ats || !caps.ats {
            return refuse("it has no ATS, which page requests need");
        }
        if caps.page_requests == 0 {
            return refuse("its IOMMU has no page requests");
        }
        if self.caps.stop_markers && !caps.stop_markers {
            return refuse("it sends stop markers, which its IOMMU does not take");
        }
        Ok(limit)
    }

    fn pri_turn(&self) -> Poll<()> {
        let taken = self.pri.with(|p| !core::mem::replace(&mut p.turning, true));
        if taken { Poll::Ready(()) } else { Poll::Pending }
    }

    async fn set_features(&self, change: impl FnOnce(&mut Features)) -> Result<(), HwLost> {
        let mut features = self.instance.features(self.source);
        change(&mut features);
        hw(&self.instance, || self.instance.driver().set_features(self.source, features)).await?;
        self.instance.set_features(self.source, features);
        Ok(())
    }

    async fn reset(&self) -> Result<(), HwLost> {
        // Nothing attached is changed by others meanwhile. That comes before the turn, as tokens do
        // everywhere.
        let frozen = poll_fn(|_| self.group.freeze()).await;
        poll_fn(|_| self.pri_turn()).await;
        let turn = Turning(self);
        let instance = &self.instance;
        instance.set_resetting(self.source, true);
        hw(instance, || instance.driver().cut_off(self.source)).await?;
        instance.void_all_of(self.source);
        self.control.reset();
        // What the device sent before is still on its way: it comes out, and is discarded ([V] 7.9).
        drain(instance, At { source: self.source, pasid: None }).await?;
        instance.void_all_of(self.source);
        instance.absolve(self.source);
        hw(instance, || instance.driver().restore(self.source)).await?;
        let mut last = None;
        let mut requester_id = false;
        while let Some((at, inner)) = instance.attached_after(self.source, last) {
            if let Some(target) = inner.target() {
                self.install(at, target).await?;
            }
            requester_id |= at.pasid.is_none();
            last = Some(at);
        }
        if let (Some((domain, tag)), false) = (&self.direct_only, requester_id)
            && let Some(target) = domain.target(*tag)
        {
            self.install(At { source: self.source, pasid: None }, target).await?;
        }
        self.enable();
        let (on, share) = self.pri.with(|p| (p.on, p.share));
        if on {
            self.control.set_pri(Some(share));
        }
        instance.set_resetting(self.source, false);
        drop(turn);
        drop(frozen);
        Ok(())
    }

    /// PASID, then ATS: the order that PCIe asks for.
    pub(crate) fn enable(&self) {
        let f = self.instance.features(self.source);
        if f.pasid {
            self.control.set_pasid(true);
        }
        if f.ats {
            self.control.set_ats(true);
        }
    }

    /// Page requests, ATS, PASID off: the reverse order.
    pub(crate) fn disable(&self) {
        self.control.set_pri(None);
        self.control.set_ats(false);
        self.control.set_pasid(false);
    }
}

/// A prepared entry in the core's hands; abandoned on drop.
pub(crate) struct Holding<'a, P: Platform> {
    instance: &'a Instance<P>,
    prepared: Option<Prepared>,
}

impl<'a, P: Platform> Holding<'a, P> {
    pub(crate) fn prepare(
        instance: &'a Instance<P>,
        at: At,
        target: Target,
    ) -> Result<(Self, Change), PrepareError> {
        let prepared = instance.driver().prepare(at, target)?;
        let change = prepared.change;
        Ok((Holding { instance, prepared: Some(prepared) }, change))
    }

    fn take(&mut self) -> Option<Prepared> {
        self.prepared.take()
    }
}

impl<P: Platform> Drop for Holding<'_, P> {
    fn drop(&mut self) {
        if let Some(p) = self.prepared.take() {
            self.instance.driver().abandon(p);
        }
    }
}

/// The right to switch a device's page requests; given back on drop.
struct Turning<'a, P: Platform>(&'a DeviceInner<P>);

impl<P: Platform> Drop for Turning<'_, P> {
    fn drop(&mut self) {
        self.0.pri.with(|p| p.turning = false);
        self.0.instance.hub.progressed();
    }
}
