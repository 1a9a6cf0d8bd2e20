//! The requesters of one instance and what is attached to them, under the instance's short lock.
//! What the fault path needs of them is published beside, where it is read without the lock.

use crate::{
    attachment::Inner,
    driver::Features,
    error::OutOfMemory,
    fault::FaultRecord,
    faultlog::FaultLog,
    ids::{DeviceId, GroupId, Pasid, SourceId},
    platform::{Platform, ShortLock},
    quell::Weather,
    stall::switch::Switch,
};
use alloc::{sync::Arc, vec::Vec};

/// Counts of one device. All since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Page requests taken from the hardware's queue.
    pub requests: u64,
    /// Groups whose last request was taken, and requests that are answered by themselves.
    pub groups: u64,
    /// Groups answered with Success.
    pub success: u64,
    /// Groups answered with Invalid, for whatever reason.
    pub invalid: u64,
    /// Of these, the ones that nobody answered before the deadline.
    pub deadline: u64,
    /// Groups that a reset made void.
    pub void: u64,
    /// Requests refused because the device exceeded its share.
    pub quota: u64,
    /// Requests of a device that has no right to make any.
    pub unauthorised: u64,
    /// Requests that violate the protocol.
    pub malformed: u64,
    /// First requests of groups that were dropped: their last one never came, or was answered by
    /// the hardware.
    pub partials_dropped: u64,
    /// Fault records.
    pub faults: u64,
    /// Stalled transactions taken.
    pub stalls: u64,
    /// Of these, the ones that were retried.
    pub retried: u64,
    /// The ones that were terminated, for whatever reason.
    pub terminated: u64,
    /// Of these, the ones that nobody decided before the deadline.
    pub stalls_late: u64,
    /// Stalled transactions that nobody was asked about, since too many waited.
    pub stalls_over: u64,
    /// Stalled transactions that were not resumed, decided or not: the hardware, or the whole stream,
    /// was stopped.
    pub stalls_lost: u64,
    /// Times that the device was not let stall for a while, since it did too much.
    pub stall_storms: u64,
}

/// Where an attachment stands for the fault path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The entry is being installed: groups are kept, the resolver is not called yet.
    Attaching,
    /// Groups go to the resolver.
    Attached,
}

pub(crate) struct Slot<P: Platform> {
    pub(crate) pasid: Option<Pasid>,
    pub(crate) inner: Arc<Inner<P>>,
    /// Whether the hardware holds what faults here.
    pub(crate) stall: Switch,
    /// It is to hold nothing, whatever the attachment asks for.
    pub(crate) leaving: bool,
}

pub(crate) struct Source<P: Platform> {
    pub(crate) id: SourceId,
    /// One of the devices that have it.
    pub(crate) device: DeviceId,
    /// How many others have it too.
    pub(crate) sharers: u32,
    pub(crate) group: GroupId,
    pub(crate) features: Features,
    /// It is to be cut off, or was.
    pub(crate) quarantined: bool,
    /// The IOMMU refuses whatever it sends.
    pub(crate) cut: bool,
    /// It let a time-out pass when it was asked for its own TLB.
    pub(crate) silent: bool,
    /// Between the block and the end of a reset.
    pub(crate) resetting: bool,
    /// Page requests were on at some time: there may be some on their way, even if they are off.
    pub(crate) asked: bool,
    /// The number of the device's account.
    pub(crate) account: u32,
    /// Fault records, all that came and the last ones.
    pub(crate) fault_count: u64,
    pub(crate) faults: FaultLog,
    pub(crate) weather: Weather,
    pub(crate) slots: Vec<Slot<P>>,
}

impl<P: Platform> Source<P> {
    pub(crate) fn new(
        id: SourceId,
        device: DeviceId,
        group: GroupId,
        features: Features,
        attachments: usize,
        faults: FaultLog,
        weather: Weather,
    ) -> Result<Self, OutOfMemory> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(attachments).map_err(|_| OutOfMemory)?;
        Ok(Source {
            id,
            device,
            sharers: 0,
            group,
            features,
            quarantined: false,
            cut: false,
            silent: false,
            resetting: false,
            asked: false,
            account: 0,
            fault_count: 0,
            faults,
            weather,
            slots,
        })
    }

    /// The device, where no other has this id: else nobody can say which it was.
    pub(crate) fn named(&self) -> Option<DeviceId> {
        (self.sharers == 0).then_some(self.device)
    }

    /// Completes a record of this requester, and keeps it with the requester and with what it is
    /// attached to.
    pub(crate) fn note(&mut self, record: &mut FaultRecord) {
        let slot = self.slots.iter().find(|s| s.pasid == record.pasid);
        let domain = slot.map(|s| &s.inner.domain);
        (record.device, record.group) = (self.named(), Some(self.group));
        record.domain = domain.map(|d| d.id);
        self.fault_count += 1;
        self.faults.note(record);
        if let Some(domain) = domain {
            domain.faults.with(|log| log.note(record));
        }
    }
}

/// The requesters of an instance, sorted by id.
pub(crate) struct Sources<P: Platform>(Vec<Source<P>>);

impl<P: Platform> Sources<P> {
    pub(crate) fn new(capacity: usize) -> Result<Self, OutOfMemory> {
        let mut list = Vec::new();
        list.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
        Ok(Sources(list))
    }

    pub(crate) fn get(&self, id: SourceId) -> Option<&Source<P>> {
        self.0.binary_search_by_key(&id, |s| s.id).ok().map(|i| &self.0[i])
    }

    pub(crate) fn get_mut(&mut self, id: SourceId) -> Option<&mut Source<P>> {
        self.0.binary_search_by_key(&id, |s| s.id).ok().map(|i| &mut self.0[i])
    }

    /// Adds a requester whose id is not known yet, while there is room: see
    /// [`room`](Self::room).
    pub(crate) fn insert(&mut self, source: Source<P>) {
        if let Err(i) = self.0.binary_search_by_key(&source.id, |s| s.id) {
            self.0.insert(i, source);
        }
    }

    pub(crate) fn remove(&mut self, id: SourceId) -> Option<Source<P>> {
        self.0.binary_search_by_key(&id, |s| s.id).ok().map(|i| self.0.remove(i))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many more fit.
    pub(crate) fn room(&self) -> usize {
        self.0.capacity() - self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Source<P>> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Source<P>> {
        self.0.iter_mut()
    }
}
