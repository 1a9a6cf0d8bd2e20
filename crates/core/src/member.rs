//! A device from the moment it is named until it is removed, whether or not its IOMMU is there yet.

use crate::{
    device::{DeviceInner, DeviceSpec},
    error::{AddDeviceError, NotUp},
    ids::{DeviceId, InstanceId, SourceId},
    park::Depth,
    platform::{Platform, ShortLock},
};
use alloc::sync::Arc;
use portcullis_sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How far a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// No IOMMU stands before it. What it sends reaches memory as it is, and nothing can be attached.
    NoIommu,
    /// Its instance is not registered yet. The device comes up with it.
    Waiting {
        /// The instance.
        instance: InstanceId,
    },
    /// Its instance serves it.
    Ready {
        /// The instance.
        instance: InstanceId,
    },
    /// Its instance came up and could not take it; what the device sends is aborted.
    /// [`Iommu::retry_device`](crate::Iommu::retry_device) tries again.
    Refused {
        /// The instance.
        instance: InstanceId,
        /// Why.
        why: AddDeviceError,
    },
    /// It was removed.
    Removed,
}

/// One member of a group.
pub(crate) struct Member<P: Platform> {
    pub(crate) spec: Arc<DeviceSpec>,
    pub(crate) parked: Depth,
    /// So many of its ids its instance knows for it, from the first one on.
    pub(crate) entered: AtomicUsize,
    /// What is mapped for it where its group rests.
    pub(crate) direct: Direct,
    link: P::Lock<Link<P>>,
}

/// How far a member's direct regions are where its group rests.
#[derive(Default)]
pub(crate) struct Direct {
    /// There may be something of them. Until it is all taken out and invalidated.
    pub(crate) is_there: AtomicBool,
    /// They count among those that are pinned.
    pub(crate) pinned: AtomicBool,
}

enum Link<P: Platform> {
    NoIommu,
    Waiting,
    /// Somebody brings it up.
    Starting,
    Ready(Arc<DeviceInner<P>>),
    Refused(AddDeviceError),
    Removed,
}

impl<P: Platform> Member<P> {
    pub(crate) fn new(platform: &P, spec: DeviceSpec) -> Member<P> {
        let link = if spec.upstream().is_some() { Link::Waiting } else { Link::NoIommu };
        Member {
            spec: Arc::new(spec),
            parked: Depth::new(),
            entered: AtomicUsize::new(0),
            direct: Direct::default(),
            link: platform.lock(link),
        }
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.spec.id
    }

    /// Its ids that its instance knows for it.
    pub(crate) fn ids(&self) -> &[SourceId] {
        let all = self.spec.sources();
        all.get(..self.entered.load(Ordering::Acquire)).unwrap_or(all)
    }

    /// Whether its direct regions may be mapped where its group rests.
    pub(crate) fn rests(&self) -> bool {
        self.direct.is_there.load(Ordering::Acquire)
    }

    /// Whether hardware may know anything of it.
    pub(crate) fn is_known(&self) -> bool {
        !self.ids().is_empty() || self.rests()
    }

    pub(crate) fn upstream(&self) -> Option<InstanceId> {
        self.spec.upstream()
    }

    pub(crate) fn state(&self) -> DeviceState {
        let Some(instance) = self.upstream() else {
            let removed = self.link.with(|l| matches!(l, Link::Removed));
            return if removed { DeviceState::Removed } else { DeviceState::NoIommu };
        };
        self.link.with(|l| match l {
            Link::NoIommu => DeviceState::NoIommu,
            Link::Waiting | Link::Starting => DeviceState::Waiting { instance },
            Link::Ready(_) => DeviceState::Ready { instance },
            Link::Refused(why) => DeviceState::Refused { instance, why: *why },
            Link::Removed => DeviceState::Removed,
        })
    }

    /// The device as its instance serves it.
    pub(crate) fn up(&self) -> Result<Arc<DeviceInner<P>>, NotUp> {
        let device = self.id();
        let waiting = self.upstream().map(|instance| NotUp::Waiting { device, instance });
        self.link.with(|l| match l {
            Link::Ready(device) => Ok(device.clone()),
            Link::NoIommu => Err(NotUp::NoIommu(device)),
            Link::Waiting | Link::Starting => Err(waiting.unwrap_or(NotUp::NoIommu(device))),
            Link::Refused(_) => Err(NotUp::Refused(device)),
            Link::Removed => Err(NotUp::Removed(device)),
        })
    }

    pub(crate) fn is_up(&self) -> bool {
        self.link.with(|l| matches!(l, Link::Ready(_)))
    }

    /// Claims the right to bring it up. False where somebody has it, or it is up.
    pub(crate) fn begin(&self) -> bool {
        self.link.with(|l| {
            let begins = matches!(l, Link::Waiting | Link::Refused(_));
            if begins {
                *l = Link::Starting;
            }
            begins
        })
    }

    pub(crate) fn is_starting(&self) -> bool {
        self.link.with(|l| matches!(l, Link::Starting))
    }

    /// It is up, or was refused.
    pub(crate) fn came(&self, came: Result<Arc<DeviceInner<P>>, AddDeviceError>) {
        self.becomes(match came {
            Ok(device) => Link::Ready(device),
            Err(why) => Link::Refused(why),
        });
    }

    pub(crate) fn removed(&self) {
        self.becomes(Link::Removed);
    }

    fn becomes(&self, link: Link<P>) {
        let old = self.link.with(|l| core::mem::replace(l, link));
        drop(old);
    }
}
