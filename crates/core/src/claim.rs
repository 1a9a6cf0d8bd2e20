//! Who has a group: kernel drivers, counted, or one owner outside the kernel; never both. And what
//! a group translates through while kernel drivers have it: its default domain.

use crate::{
    attach::attach,
    attachment::Attachment,
    detach::Detaching,
    device::Device,
    domain::Domain,
    error::{AddDeviceError, AttachError, ClaimError, OutOfMemory},
    group::Group,
    ids::{At, DeviceId, OwnerId},
    iommu::Iommu,
    op::{Op, block_on},
    owner::kernel_dma::{DmaOptions, KernelDma},
    platform::{Platform, ShortLock, Sleep},
};
use alloc::{sync::Arc, vec::Vec};
use core::{future::poll_fn, task::Poll};

/// What a group translates through while kernel drivers have it; the stricter, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DefaultKind {
    /// IOVA = physical address: fast, and no protection.
    Identity,
    /// A domain of the kernel's DMA API.
    Translating,
    /// Nothing: drivers attach what they need.
    Blocked,
}

/// A group's default domain, and who decided that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultChoice {
    /// What it is.
    pub kind: DefaultKind,
    /// Why.
    pub by: DecidedBy,
}

/// What decides about a default domain. Where members of a group differ, the strictest has its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// [`Config::default_domain`](crate::Config::default_domain).
    Config,
    /// [`DeviceSpec::default_domain`](crate::DeviceSpec::default_domain) of this member.
    Device(DeviceId),
    /// This member is not trusted, so that identity is out of the question.
    Untrusted(DeviceId),
}

/// Who has a group.
pub(crate) enum Claims<P: Platform> {
    Nobody,
    /// The first driver has its default domain attached.
    Making,
    Drivers {
        count: u32,
        default: Arc<Default<P>>,
        attachment: Option<Attachment<P>>,
    },
    Outside {
        owner: OwnerId,
        count: u32,
    },
}

/// What kernel drivers share.
pub(crate) struct Default<P: Platform> {
    choice: DefaultChoice,
    dma: Option<Domain<P, KernelDma>>,
}

impl<P: Platform> Group<P> {
    /// Whether somebody who holds a handle of this owner, or of none, may attach.
    pub(crate) fn lets(&self, owner: Option<OwnerId>) -> bool {
        self.outside_owner() == owner
    }

    /// The owner outside the kernel that has the group.
    pub(crate) fn outside_owner(&self) -> Option<OwnerId> {
        self.claims.with(|c| match c {
            Claims::Outside { owner, .. } => Some(*owner),
            _ => None,
        })
    }

    /// Whether the first driver chooses and attaches the default domain at this moment.
    pub(crate) fn is_being_used(&self) -> bool {
        self.claims.with(|c| matches!(c, Claims::Making))
    }

    /// Whether the default domain that drivers have is strict enough for all members, of which this is
    /// the latest.
    pub(crate) fn bears(&self, device: DeviceId) -> Result<(), AddDeviceError> {
        let wants = self.default_choice().kind;
        let has = self.claims.with(|c| match c {
            Claims::Drivers { default, .. } => Some(default.choice.kind),
            _ => None,
        });
        match has {
            Some(has) if has < wants => {
                Err(AddDeviceError::LaxDefault { device, group: self.id, has, wants })
            }
            _ => Ok(()),
        }
    }

    fn default_choice(&self) -> DefaultChoice {
        let config = self.hub.config.default_domain;
        let mut choice = DefaultChoice { kind: DefaultKind::Identity, by: DecidedBy::Config };
        for member in self.members() {
            let id = member.id();
            let mut of_it = match member.spec.default_domain {
                Some(kind) => DefaultChoice { kind, by: DecidedBy::Device(id) },
                None => DefaultChoice { kind: config, by: DecidedBy::Config },
            };
            if of_it.kind == DefaultKind::Identity && !member.spec.trusted {
                of_it = DefaultChoice { kind: DefaultKind::Translating, by: DecidedBy::Untrusted(id) };
            }
            if of_it.kind > choice.kind || (of_it.kind == choice.kind && choice.by == DecidedBy::Config) {
                choice = of_it;
            }
        }
        choice
    }

    fn sets_claims(&self, claims: Claims<P>) {
        let old = self.claims.with(|c| core::mem::replace(c, claims));
        drop(old);
        self.hub.progressed();
    }
}

impl<P: Platform> Device<P> {
    /// What the group translates through while kernel drivers have it, as policy says: the
    /// configuration, the devices' own wishes, and trust.
    pub fn default_domain(&self) -> DefaultChoice {
        self.group.default_choice()
    }

    /// Takes the group for a kernel driver. With the first driver, all members are attached to the
    /// group's default domain; further drivers, of any member, share it. Sleeps.
    ///
    /// # Errors
    /// See [`ClaimError`]; the group is as it was.
    pub fn use_by_driver(&self, cx: &Sleep<'_>) -> Result<DriverUse<P>, ClaimError> {
        block_on(&self.group.hub, cx, use_by_driver(self)).map_err(|_| AttachError::Shutdown)?
    }

    /// The step form of [`use_by_driver`](Device::use_by_driver). Dropped unfinished, nobody has the group,
    /// and a worker detaches what was attached.
    pub fn start_use_by_driver(&self) -> Op<'_, Result<DriverUse<P>, ClaimError>> {
        Op::new(use_by_driver(self))
    }

    /// Takes the group for an owner outside the kernel (a VMM, a user-space driver): exclusive, except
    /// that the same owner may claim it again. Nothing may be attached: from here to the owner's first
    /// attach, and from its last detach to the end of the claim, the group is blocked but for direct
    /// regions. Attaching takes [`Claim::device`].
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub fn claim(&self, owner: OwnerId) -> Result<Claim<P>, ClaimError> {
        let device = self.member.up().map_err(AttachError::from)?;
        let nested = self.group.claims.with(|c| match c {
            Claims::Outside { owner: has, count } if *has == owner => {
                *count += 1;
                Ok(true)
            }
            Claims::Outside { owner, .. } => Err(ClaimError::Owned(self.group.id, *owner)),
            Claims::Making | Claims::Drivers { .. } => Err(ClaimError::Drivers(self.group.id)),
            Claims::Nobody => {
                *c = Claims::Outside { owner, count: 1 };
                Ok(false)
            }
        })?;
        let claim = Claim { device: Device { owner: Some(owner), ..self.clone() } };
        // Claimed first and looked at after, as an attach takes its place first: one sees the other.
        match self.group.occupied() {
            Some(pasid) if !nested => Err(ClaimError::Attached(At { source: device.source, pasid })),
            _ => Ok(claim),
        }
    }
}

async fn use_by_driver<P: Platform>(device: &Device<P>) -> Result<DriverUse<P>, ClaimError> {
    let group = &device.group;
    let shared = device.member.up().map_err(AttachError::from)?.shared.clone();
    let mine = |default: &Arc<Default<P>>| DriverUse {
        group: group.clone(),
        default: default.clone(),
        ended: false,
    };
    let earlier = poll_fn(|_| {
        group.claims.with(|c| match c {
            Claims::Making => Poll::Pending,
            Claims::Outside { owner, .. } => Poll::Ready(Err(ClaimError::Owned(group.id, *owner))),
            Claims::Drivers { count, default, .. } => {
                *count += 1;
                Poll::Ready(Ok(Some(mine(default))))
            }
            Claims::Nobody => {
                *c = Claims::Making;
                Poll::Ready(Ok(None))
            }
        })
    });
    if let Some(shared) = earlier.await? {
        return Ok(shared);
    }
    let making = Making { group, done: false };
    let choice = group.default_choice();
    let iommu = Iommu { shared };
    let (dma, attachment) = match choice.kind {
        DefaultKind::Blocked => (None, None),
        DefaultKind::Identity => {
            let identity = iommu.identity_domain()?;
            (None, Some(attach(Iommu::wanted(&identity, device, None, Arc::new(()))).await?))
        }
        DefaultKind::Translating => {
            let dma = dma_domain(&iommu, device)?;
            let attachment = attach(Iommu::wanted(&dma, device, None, Arc::new(()))).await?;
            (Some(dma), Some(attachment))
        }
    };
    let default = Arc::new(Default { choice, dma });
    let first = mine(&default);
    making.done(default, attachment);
    Ok(first)
}

/// A domain of the DMA API that all members of a device's group can use.
fn dma_domain<P: Platform>(iommu: &Iommu<P>, device: &Device<P>) -> Result<Domain<P, KernelDma>, ClaimError> {
    let mut members: Vec<Device<P>> = Vec::new();
    for member in device.group.members() {
        members.try_reserve(1).map_err(|_| OutOfMemory)?;
        members.push(Device { member, group: device.group.clone(), owner: None });
    }
    let mut named = Vec::new();
    named.try_reserve_exact(members.len()).map_err(|_| OutOfMemory)?;
    named.extend(members.iter());
    Ok(iommu.kernel_dma_domain(&named, DmaOptions::default())?)
}

/// The first driver's way; given up, nobody has the group.
struct Making<'a, P: Platform> {
    group: &'a Group<P>,
    done: bool,
}

impl<P: Platform> Making<'_, P> {
    fn done(mut self, default: Arc<Default<P>>, attachment: Option<Attachment<P>>) {
        self.done = true;
        self.group.sets_claims(Claims::Drivers { count: 1, default, attachment });
    }
}

impl<P: Platform> Drop for Making<'_, P> {
    fn drop(&mut self) {
        if !self.done {
            self.group.sets_claims(Claims::Nobody);
        }
    }
}

/// A kernel driver has the group. With the last of them dropped, a worker detaches the default
/// domain; until it has, the group is occupied. [`end`](DriverUse::end) waits for that.
#[must_use = "a driver that is dropped lets go of the group"]
pub struct DriverUse<P: Platform> {
    group: Arc<Group<P>>,
    default: Arc<Default<P>>,
    ended: bool,
}

impl<P: Platform> DriverUse<P> {
    /// What the group translates through, and who decided that.
    pub fn default_domain(&self) -> DefaultChoice {
        self.default.choice
    }

    /// The domain to map in; `None` where it is identity or blocked.
    pub fn dma(&self) -> Option<&Domain<P, KernelDma>> {
        self.default.dma.as_ref()
    }

    /// Lets go of the group, and with the last driver detaches the default domain. Sleeps.
    pub fn end(mut self, cx: &Sleep<'_>) {
        self.ended = true;
        if let Some(Claims::Drivers { attachment: Some(attachment), .. }) = self.less() {
            drop(attachment.begin_detach(cx));
        }
    }

    /// The step form of [`end`](DriverUse::end). `None` while another driver has the group, and where nothing
    /// is attached for drivers. Dropped unfinished, it is ended by a worker.
    pub fn start_end(mut self) -> Option<Op<'static, Detaching<P>>>
    where
        P: 'static,
    {
        self.ended = true;
        match self.less() {
            Some(Claims::Drivers { attachment: Some(attachment), .. }) => Some(attachment.start_detach()),
            _ => None,
        }
    }

    /// One driver less. What they had, if it was the last.
    fn less(&self) -> Option<Claims<P>> {
        self.group.claims.with(|c| match c {
            Claims::Drivers { count, .. } if *count > 1 => {
                *count -= 1;
                None
            }
            Claims::Drivers { .. } => Some(core::mem::replace(c, Claims::Nobody)),
            _ => None,
        })
    }
}

impl<P: Platform> Drop for DriverUse<P> {
    fn drop(&mut self) {
        if !self.ended {
            drop(self.less());
            self.group.hub.progressed();
        }
    }
}

/// An owner outside the kernel has the group, as long as there is a claim. What it has attached
/// stays attached until that is dropped too.
#[must_use = "a claim that is dropped is given back"]
pub struct Claim<P: Platform> {
    device: Device<P>,
}

impl<P: Platform> Claim<P> {
    /// The device, as the owner's: what is attached through this handle is let through.
    pub fn device(&self) -> &Device<P> {
        &self.device
    }
}

impl<P: Platform> Drop for Claim<P> {
    fn drop(&mut self) {
        self.device.group.claims.with(|c| match c {
            Claims::Outside { count, .. } if *count > 1 => *count -= 1,
            Claims::Outside { .. } => *c = Claims::Nobody,
            _ => {}
        });
        self.device.group.hub.progressed();
    }
}
