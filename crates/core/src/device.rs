//! Devices: what the embedder says of them, and what the core does to them as a whole.

use crate::{
    attachment::Inner,
    detach::drain,
    domain::DomainInner,
    driver::{DeviceControl, Features, HwLost, Target},
    error::AttachError,
    group::{Group, MergedBy},
    ids::{At, DeviceId, DomainTag, InstanceId, Pasid, SourceId},
    instance::Instance,
    iommu::Shared,
    op::{block_on, hw},
    platform::{Platform, ShortLock, Sleep},
    slab::Slab,
    sources::Counters,
};
use alloc::{sync::Arc, vec::Vec};
use core::{future::poll_fn, task::Poll};
use portcullis_pgtable::Prot;

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
}

/// One IOMMU instance that a device's requests pass through, and the ids it is known by there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The instance.
    pub instance: InstanceId,
    /// Requester or stream ids.
    pub sources: Vec<SourceId>,
}

/// Memory that a device accesses at addresses equal to physical ones, whatever it is attached to
/// (RMRR and the like): mapped before every attach and never interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectRegion {
    /// First address, a multiple of the page size.
    pub start: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// What the device may do there.
    pub prot: Prot,
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
    /// Its direct regions.
    pub direct: Vec<DirectRegion>,
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
    pub(crate) direct: Vec<DirectRegion>,
    pub(crate) instance: Arc<Instance<P>>,
    pub(crate) group: Arc<Group<P>>,
    pub(crate) shared: Arc<Shared<P>>,
    /// Where the requester id goes while nothing is attached: a domain that maps exactly the
    /// direct regions. Without such regions it is blocked.
    pub(crate) direct_only: Option<(Arc<DomainInner<P>>, DomainTag)>,
    pri: P::Lock<Pri>,
}

/// Page requests of a device: on while some attachment needs them.
#[derive(Default)]
struct Pri {
    users: u32,
    share: u32,
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

    /// The members of its group, and the rule that merged them.
    pub fn group(&self) -> (DeviceId, MergedBy) {
        (self.inner.group.member, self.inner.group.merged_by)
    }

    /// What was counted since it was added.
    pub fn counters(&self) -> Counters {
        self.inner
            .instance
            .state
            .with(|s| s.sources.get(self.inner.source).map(|src| src.counters))
            .unwrap_or_default()
    }

    /// Which features are switched on now.
    pub fn features(&self) -> Features {
        self.inner
            .instance
            .state
            .with(|s| s.sources.get(self.inner.source).map(|src| src.features))
            .unwrap_or_default()
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
}

impl<P: Platform> DeviceInner<P> {
    pub(crate) fn new(
        spec: DeviceSpec,
        source: SourceId,
        instance: Arc<Instance<P>>,
        group: Arc<Group<P>>,
        shared: Arc<Shared<P>>,
        direct_only: Option<(Arc<DomainInner<P>>, DomainTag)>,
    ) -> Self {
        let pri = instance.platform().lock(Pri::default());
        DeviceInner {
            id: spec.id,
            source,
            trusted: spec.trusted,
            caps: spec.caps,
            control: spec.control,
            direct: spec.direct,
            instance,
            group,
            shared,
            direct_only,
            pri,
        }
    }

    pub(crate) fn shared_slab(&self) -> &Slab<P> {
        &self.shared.attachments
    }

    /// Whether a PASID is within what device and instance do.
    pub(crate) fn does_pasid(&self, pasid: Pasid) -> bool {
        let bits = self.caps.pasid_bits.min(self.instance.caps().pasid_bits).min(20);
        pasid.get() < 1u32 << bits
    }

    /// Makes an attachment point stop translating: blocked, or back to its direct regions.
    pub(crate) async fn block(&self, at: At) -> Result<(), HwLost> {
        let driver = self.instance.driver();
        if let (None, Some((domain, tag))) = (at.pasid, &self.direct_only) {
            let target = domain.target(*tag);
            return self.install(at, target).await;
        }
        hw(&self.instance, || driver.block(at)).await
    }

    /// Shows a translation to the hardware. Prepares anew for each try, so that an invalidation
    /// that was dropped is queued again.
    pub(crate) async fn install(&self, at: At, target: Target) -> Result<(), HwLost> {
        let driver = self.instance.driver();
        hw(&self.instance, || {
            let prepared = driver.prepare(at, target).map_err(|_| HwLost)?;
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
        let users = self.pri.with(|p| p.users);
        if users == 0 {
            let share = self.instance.state.with(|s| s.credits.take(limit));
            let Some(share) = share else { return Err(AttachError::NoCredits(self.id)) };
            let switched = self.set_features(|f| f.pri = true).await;
            if switched.is_err() {
                self.instance.state.with(|s| s.credits.give_back(share));
            }
            switched?;
            self.set_share(share);
            self.control.set_pri(Some(share));
            self.pri.with(|p| p.share = share);
        }
        self.pri.with(|p| p.users += 1);
        drop(turn);
        Ok(())
    }

    /// One attachment less: switched off with the last. Hardware that is lost stays as it is.
    pub(crate) async fn release_pri(&self) {
        poll_fn(|_| self.pri_turn()).await;
        let turn = Turning(self);
        let (users, share) = self.pri.with(|p| {
            p.users = p.users.saturating_sub(1);
            (p.users, p.share)
        });
        if users == 0 && share > 0 {
            self.control.set_pri(None);
            self.set_share(0);
            if self.set_features(|f| f.pri = false).await.is_ok() {
                self.instance.state.with(|s| s.credits.give_back(share));
                self.pri.with(|p| p.share = 0);
            }
        }
        drop(turn);
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

    fn set_share(&self, share: u32) {
        self.instance.state.with(|s| {
            if let Some(src) = s.sources.get_mut(self.source) {
                src.share = share;
            }
        });
    }

    async fn set_features(&self, change: impl FnOnce(&mut Features)) -> Result<(), HwLost> {
        let mut features = self
            .instance
            .state
            .with(|s| s.sources.get(self.source).map(|src| src.features).unwrap_or_default());
        change(&mut features);
        hw(&self.instance, || self.instance.driver().set_features(self.source, features)).await?;
        self.instance.state.with(|s| {
            if let Some(src) = s.sources.get_mut(self.source) {
                src.features = features;
            }
        });
        Ok(())
    }

    async fn reset(&self) -> Result<(), HwLost> {
        // Nothing attached is changed by others meanwhile. Tokens come before the turn, as
        // everywhere.
        let mut parked = Vec::new();
        for inner in self.attached() {
            let token = poll_fn(|_| self.group.begin(inner.at.pasid, Some(inner.key))).await;
            if let (Ok(token), true) = (token, parked.try_reserve(1).is_ok()) {
                parked.push((token, inner));
            }
        }
        poll_fn(|_| self.pri_turn()).await;
        let turn = Turning(self);
        let instance = &self.instance;
        instance.state.with(|s| {
            if let Some(src) = s.sources.get_mut(self.source) {
                src.resetting = true;
            }
        });
        hw(instance, || instance.driver().cut_off(self.source)).await?;
        instance.void_all_of(self.source);
        self.control.reset();
        // What the device sent before is still on its way: it comes out, and is discarded ([V] 7.9).
        drain(instance, At { source: self.source, pasid: None }).await?;
        instance.void_all_of(self.source);
        instance.state.with(|s| {
            if let Some(src) = s.sources.get_mut(self.source) {
                src.quarantined = false;
            }
        });
        hw(instance, || instance.driver().restore(self.source)).await?;
        if let Some((domain, tag)) = &self.direct_only {
            self.install(At { source: self.source, pasid: None }, domain.target(*tag)).await?;
        }
        for (_, inner) in &parked {
            if let Some(target) = inner.domain.maybe_target(inner.tag) {
                self.install(inner.at, target).await?;
            }
        }
        self.enable();
        let share = self.pri.with(|p| p.share);
        if share > 0 {
            self.control.set_pri(Some(share));
        }
        instance.state.with(|s| {
            if let Some(src) = s.sources.get_mut(self.source) {
                src.resetting = false;
            }
        });
        drop(turn);
        for (token, inner) in parked {
            token.finish(Some(inner.key));
        }
        Ok(())
    }

    /// PASID, then ATS: the order that PCIe asks for.
    pub(crate) fn enable(&self) {
        let f = self
            .instance
            .state
            .with(|s| s.sources.get(self.source).map(|src| src.features).unwrap_or_default());
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

    fn attached(&self) -> Vec<Arc<Inner<P>>> {
        let mut list = Vec::new();
        if list.try_reserve_exact(self.instance.config().attachments_per_device).is_ok() {
            self.instance.state.with(|s| {
                if let Some(src) = s.sources.get(self.source) {
                    list.extend(src.slots.iter().map(|slot| slot.inner.clone()));
                }
            });
        }
        list
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
