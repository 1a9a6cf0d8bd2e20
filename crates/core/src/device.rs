//! Devices: what the embedder says of them, and the handles that stand for them.

use crate::{
    claim::DefaultKind,
    domain::Coherence,
    driver::{DeviceControl, Features, Incompatible},
    error::{AttachError, OutOfMemory, StallError},
    features::Pri,
    group::Group,
    hub::Lane,
    ids::{DeviceId, GroupId, InstanceId, OwnerId, Pasid, SourceId},
    instance::Instance,
    iommu::Shared,
    member::{DeviceState, Member},
    op::{Op, block_on},
    owner::pasids::Pasids,
    park,
    platform::{Platform, Sleep},
    reserved::{RegionKind, Regions, ReservedRegion},
    slab::Slab,
    sources::Counters,
    topology::{Grouping, Merge},
};
use alloc::{sync::Arc, vec::Vec};

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

/// What bus a device is on, as far as that matters to its IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bus {
    /// PCI or PCIe: never stalled.
    #[default]
    Pci,
    /// The machine's own interconnect.
    Platform {
        /// Whether the device bears it that a transaction waits without a bound, and nothing that
        /// is needed to decide the wait stands behind it: its firmware node or its driver says so.
        may_stall: bool,
    },
}

impl Bus {
    pub(crate) fn may_stall(self, device: DeviceId) -> Result<(), StallError> {
        match self {
            Bus::Pci => Err(StallError::Pci(device)),
            Bus::Platform { may_stall: false } => Err(StallError::Device(device)),
            Bus::Platform { may_stall: true } => Ok(()),
        }
    }
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
    /// The instances it stands behind: none for a device without an IOMMU. This version serves
    /// one. Of the ids there the first is the device's own: page requests, ATS and their
    /// invalidations go by it. The others are aliases (a bridge's, phantom functions', further
    /// stream ids): what is attached is attached to each.
    pub upstreams: Vec<Upstream>,
    /// Whether the device is believed not to forge addresses. Only trusted devices get ATS and
    /// page requests: a translated request reaches any host address that the IOMMU does not check.
    pub trusted: bool,
    /// What it can do.
    pub caps: DeviceCaps,
    /// What bus it is on.
    pub bus: Bus,
    /// How its PCIe capabilities are switched.
    pub control: Arc<dyn DeviceControl>,
    /// Its reserved regions; those of its IOMMU need not be named.
    pub regions: Vec<ReservedRegion>,
    /// The group of devices that it cannot be isolated from; `None` for a device that stands alone.
    pub group: Option<Membership>,
    /// The default domain that it asks for; `None` leaves that to the configuration.
    pub default_domain: Option<DefaultKind>,
}

/// A device's place in a group of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group.
    pub group: GroupId,
    /// Which rules put the device together with which others.
    pub merges: Vec<Merge>,
}

impl DeviceSpec {
    /// A device that stands alone, is not trusted, can do nothing special and has no reserved
    /// regions.
    pub fn new(id: DeviceId, upstreams: Vec<Upstream>, control: Arc<dyn DeviceControl>) -> DeviceSpec {
        DeviceSpec {
            id,
            upstreams,
            trusted: false,
            caps: DeviceCaps::default(),
            bus: Bus::Pci,
            control,
            regions: Vec::new(),
            group: None,
            default_domain: None,
        }
    }

    /// The same device with the ids and the group that a topology gives it. One that the topology
    /// does not name stays as it is. Allocates.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn placed(mut self, grouping: &Grouping) -> Result<DeviceSpec, OutOfMemory> {
        if let Some(upstreams) = grouping.upstreams(self.id) {
            self.upstreams = collected(upstreams.len(), |list| {
                for Upstream { instance, sources } in upstreams {
                    let sources = collected(sources.len(), |copy| {
                        copy.extend_from_slice(sources);
                        Ok(())
                    })?;
                    list.push(Upstream { instance: *instance, sources });
                }
                Ok(())
            })?;
        }
        if let Some(group) = grouping.group_of(self.id)
            && let [first, _, ..] = group.members()
        {
            let of_it = |m: &&Merge| m.first == self.id || m.second == self.id;
            let merges = || group.merges().iter().filter(of_it);
            let merges = collected(merges().count(), |list| {
                list.extend(merges());
                Ok(())
            })?;
            self.group = Some(Membership { group: GroupId(first.0), merges });
        }
        Ok(self)
    }

    pub(crate) fn group_id(&self) -> GroupId {
        self.group.as_ref().map_or(GroupId(self.id.0), |m| m.group)
    }

    /// The instance that serves it, if any.
    pub(crate) fn upstream(&self) -> Option<InstanceId> {
        self.upstreams.first().map(|u| u.instance)
    }

    /// The ids it is known by there, its own first.
    pub(crate) fn sources(&self) -> &[SourceId] {
        self.upstreams.first().map_or(&[], |u| &u.sources)
    }

    /// The regions that must be mapped one to one wherever its requester ids are attached.
    pub(crate) fn direct(&self) -> impl Iterator<Item = &ReservedRegion> + Clone {
        self.regions.iter().filter(|r| r.kind.is_direct())
    }

    pub(crate) fn has_direct(&self) -> bool {
        self.direct().next().is_some()
    }
}

/// A device that was added. A counted handle; keep one as long as the device is there. Without any,
/// its ids stay with the IOMMU, blocked or attached as they are, and cannot be added again.
#[derive(Clone)]
pub struct Device<P: Platform> {
    pub(crate) member: Arc<Member<P>>,
    pub(crate) group: Arc<Group<P>>,
    /// Whose it is, where it came from a claim.
    pub(crate) owner: Option<OwnerId>,
}

/// A group, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub id: GroupId,
    /// Its members that were added, the lowest id first.
    pub members: Vec<DeviceId>,
    /// Which rules put them together, as they were told of it.
    pub merges: Vec<Merge>,
}

/// A device as its instance serves it.
pub(crate) struct DeviceInner<P: Platform> {
    pub(crate) id: DeviceId,
    /// Its own id.
    pub(crate) source: SourceId,
    pub(crate) spec: Arc<DeviceSpec>,
    pub(crate) caps: DeviceCaps,
    pub(crate) instance: Arc<Instance<P>>,
    pub(crate) shared: Arc<Shared<P>>,
    /// Its place among the devices whose resolvers share the workers.
    pub(crate) lane: Lane<P>,
    pub(crate) pasids: Arc<Pasids<P>>,
    /// Bits of the PASIDs that it can say and that its instance translates, for each of its ids.
    pasid_bits: u8,
    pub(crate) pri: P::Lock<Pri>,
}

impl<P: Platform> Device<P> {
    /// Its stable id.
    pub fn id(&self) -> DeviceId {
        self.member.id()
    }

    /// How far it is.
    pub fn state(&self) -> DeviceState {
        self.member.state()
    }

    /// Whether an IOMMU stands before it, there already or not. One without is no error, and
    /// nothing can be attached to it.
    pub fn has_iommu(&self) -> bool {
        self.member.upstream().is_some()
    }

    /// The requester ids it is known by, its own first; none without an IOMMU.
    pub fn sources(&self) -> &[SourceId] {
        self.member.spec.sources()
    }

    /// Its group. Allocates.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn group(&self) -> Result<GroupInfo, OutOfMemory> {
        let (mut members, mut merges) = (Vec::new(), Vec::new());
        for member in self.group.members() {
            members.try_reserve(1).map_err(|_| OutOfMemory)?;
            members.push(member.id());
            for merge in member.spec.group.iter().flat_map(|m| &m.merges) {
                if !merges.contains(merge) {
                    merges.try_reserve(1).map_err(|_| OutOfMemory)?;
                    merges.push(*merge);
                }
            }
        }
        Ok(GroupInfo { id: self.group.id, members, merges })
    }

    /// What of its IOVA space is reserved, by itself or by its IOMMU: sorted by start, what touches
    /// and is of one kind merged. Allocates.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn reserved_regions(&self) -> Result<Vec<ReservedRegion>, OutOfMemory> {
        let mut list = Regions::default();
        regions_of(&self.member, &mut list)?;
        Ok(list.finish())
    }

    /// The same of all members of its group together: what somebody must leave alone who is
    /// attached to the group. Allocates.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn group_regions(&self) -> Result<Vec<ReservedRegion>, OutOfMemory> {
        let mut list = Regions::default();
        for member in self.group.members() {
            regions_of(&member, &mut list)?;
        }
        Ok(list.finish())
    }

    /// The direct regions of a member that this handle's holder must map: an owner outside the
    /// kernel drops the relaxable ones.
    pub(crate) fn direct_of<'s>(
        &self,
        spec: &'s DeviceSpec,
    ) -> impl Iterator<Item = &'s ReservedRegion> + Clone + use<'s, P> {
        let relaxed = self.owner.is_some();
        spec.direct().filter(move |r| r.kind == RegionKind::Direct || !relaxed)
    }

    pub(crate) fn keeps_direct(&self, spec: &DeviceSpec) -> bool {
        self.direct_of(spec).next().is_some()
    }

    /// What was counted since it was added: of its own id, and the faults of its aliases.
    pub fn counters(&self) -> Counters {
        let Ok(device) = self.member.up() else { return Counters::default() };
        let mut counters = device.instance.counters(device.source);
        for alias in device.spec.sources().iter().skip(1) {
            counters.faults += device.instance.counters(*alias).faults;
        }
        counters
    }

    /// Which features are switched on now.
    pub fn features(&self) -> Features {
        self.member.up().map(|d| d.instance.features(d.source)).unwrap_or_default()
    }

    /// Whether it was cut off because its own TLB did not answer, or because the hardware was lost
    /// while its group was switched. A reset ends that.
    pub fn is_quarantined(&self) -> bool {
        self.member.up().is_ok_and(|d| d.is_quarantined())
    }

    /// Resets the device. Everything it had outstanding is void: its page requests get no answer.
    /// It is parked before, with all devices that have an id in common with it, drained after, and
    /// has what is attached then at the end. Its direct regions stay in reach all the time. Sleeps.
    ///
    /// # Errors
    /// [`AttachError::NotUp`], [`AttachError::Lost`] when the IOMMU does not respond,
    /// [`AttachError::Shutdown`].
    pub fn reset(&self, cx: &Sleep<'_>) -> Result<(), AttachError> {
        block_on(&self.group.hub, cx, park::reset(self)).map_err(|_| AttachError::Shutdown)?
    }

    /// The step form of [`reset`](Device::reset). Dropped unfinished, the device stays parked, and
    /// its page requests void, until it is reset again.
    pub fn start_reset(&self) -> Op<'_, Result<(), AttachError>> {
        Op::new(park::reset(self))
    }
}

/// A list of at most `most`.
fn collected<T>(
    most: usize,
    fill: impl FnOnce(&mut Vec<T>) -> Result<(), OutOfMemory>,
) -> Result<Vec<T>, OutOfMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(most).map_err(|_| OutOfMemory)?;
    fill(&mut list)?;
    Ok(list)
}

fn regions_of<P: Platform>(member: &Member<P>, list: &mut Regions) -> Result<(), OutOfMemory> {
    match member.up() {
        Ok(device) => device.regions().try_for_each(|region| list.add(region)),
        Err(_) => member.spec.regions.iter().try_for_each(|region| list.add(*region)),
    }
}

impl<P: Platform> DeviceInner<P> {
    pub(crate) fn new(
        spec: Arc<DeviceSpec>,
        source: SourceId,
        instance: Arc<Instance<P>>,
        shared: Arc<Shared<P>>,
        lane: Lane<P>,
    ) -> Self {
        let pri = instance.platform().lock(Pri::default());
        let pasids = Arc::new(Pasids::new(instance.platform()));
        let served = spec.sources().iter().map(|s| instance.features(*s).pasid_bits);
        let pasid_bits = served.fold(spec.caps.pasid_bits, u8::min);
        let (id, caps) = (spec.id, spec.caps);
        DeviceInner { id, source, caps, spec, instance, shared, lane, pasids, pasid_bits, pri }
    }

    pub(crate) fn sources(&self) -> &[SourceId] {
        self.spec.sources()
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.sources().iter().any(|s| self.instance.is_quarantined(*s))
    }

    pub(crate) fn shared_slab(&self) -> &Slab<P> {
        &self.shared.hub.attachments
    }

    /// Whether its DMA and the walks of its IOMMU see what the CPU's caches hold.
    /// What of its IOVA space is reserved, by itself and by its IOMMU.
    pub(crate) fn regions(&self) -> impl Iterator<Item = ReservedRegion> {
        let msi = self.instance.caps().reserved.iter().map(|(start, end)| {
            ReservedRegion::closed(*start, (end - start).saturating_add(1), RegionKind::Msi)
        });
        self.spec.regions.iter().copied().chain(msi)
    }

    /// Whether it snoops what an owner needs it to.
    pub(crate) fn meets(&self, needed: Coherence) -> Result<(), Incompatible> {
        match needed {
            Coherence::OfDataAndWalks if !self.instance.caps().coherent => Err(Incompatible::NotCoherent),
            Coherence::OfData | Coherence::OfDataAndWalks if !self.caps.coherent_dma => {
                Err(Incompatible::NotCoherentDma)
            }
            _ => Ok(()),
        }
    }

    /// Whether a PASID is within what device and instance do.
    pub(crate) fn does_pasid(&self, pasid: Pasid) -> bool {
        pasid.get() <= self.last_pasid()
    }

    /// The largest PASID that device and instance do; 0 without PASID.
    pub(crate) fn last_pasid(&self) -> u32 {
        (1 << self.pasid_bits) - 1
    }
}
