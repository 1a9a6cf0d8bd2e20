//! How much is in use of what is bounded: for an embedder that wonders why something is refused, and
//! for tests that look for what was not given back.

use crate::{
    ids::InstanceId,
    iommu::Iommu,
    platform::{Platform, ShortLock},
};

/// What is in use of one [`Iommu`]. Counted one after the other, while others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Instances that are registered, of 64.
    pub instances: usize,
    /// Devices that were added, those without an IOMMU too.
    pub devices: usize,
    /// Attachments, those still detaching included, of [`Config::attachments`](crate::Config::attachments).
    pub attachments: usize,
    /// Observers, of [`Config::observers`](crate::Config::observers).
    pub observers: usize,
    /// PASIDs that stand for address spaces, of 2^20 - 1.
    pub pasids: usize,
}

/// What is in use of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceUsage {
    /// Requester ids, of [`Config::devices`](crate::Config::devices).
    pub requesters: usize,
    /// Domain tags, of [`Caps::tags`](crate::driver::Caps::tags).
    pub tags: usize,
    /// Entries of the page-request queue that are devices' shares.
    pub credits: u32,
    /// Requester ids, and places where something is attached.
    pub places: usize,
    /// Page requests that wait for an answer, or for the last of their group.
    pub requests: u64,
    /// Page-request groups of which the last has not come.
    pub partials: u64,
    /// Stalled transactions that wait for a verdict.
    pub stalls: u64,
}

impl<P: Platform> Iommu<P> {
    /// What is in use. Any context; takes the time of a look at each device and observer.
    pub fn usage(&self) -> Usage {
        let shared = &self.shared;
        let mut observers = 0;
        shared.hub.observers.visit(|_| observers += 1);
        Usage {
            instances: shared.instances.len(),
            devices: shared.devices.len(),
            attachments: shared.hub.attachments.taken(),
            observers,
            pasids: shared.spaces.pasids.len(),
        }
    }

    /// What is in use of an instance; `None` when there is none. Any context; takes the time of a look
    /// at each requester.
    pub fn instance_usage(&self, id: InstanceId) -> Option<InstanceUsage> {
        let instance = self.shared.instances.get(id)?;
        let accounts = || instance.accounts.iter();
        Some(instance.state.with(|s| InstanceUsage {
            requesters: s.sources.len(),
            tags: s.tags.iter().map(|word| word.count_ones() as usize).sum(),
            credits: s.credits.given(),
            places: s.places.len(),
            requests: accounts().map(|a| a.outstanding.get()).sum(),
            partials: accounts().map(|a| a.partials.get()).sum(),
            stalls: accounts().map(|a| a.stalled.get()).sum(),
        }))
    }
}
