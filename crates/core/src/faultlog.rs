//! What is remembered of the faults of one device, domain or instance: counts, and the last few
//! records. Sized when it is made; noting a record allocates nothing.

use crate::{
    device::Device,
    domain::Domain,
    error::OutOfMemory,
    fault::{FaultKind, FaultRecord},
    ids::InstanceId,
    iommu::Iommu,
    owner::Owner,
    platform::{Platform, ShortLock, Time},
};
use alloc::vec::Vec;

/// How many fault records there were, since the device was added, the domain made or the instance
/// registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    kinds: [u64; FaultKind::ALL.len()],
    last_at: Option<Time>,
}

impl FaultCounts {
    /// All records.
    pub fn total(&self) -> u64 {
        self.kinds.iter().sum()
    }

    /// The records of one kind.
    pub fn of(&self, kind: FaultKind) -> u64 {
        self.kinds[kind as usize]
    }

    /// When the last one was taken.
    pub fn last_at(&self) -> Option<Time> {
        self.last_at
    }

    fn add(&mut self, other: &FaultCounts) {
        self.kinds.iter_mut().zip(other.kinds).for_each(|(mine, more)| *mine += more);
        self.last_at = self.last_at.max(other.last_at);
    }
}

impl<P: Platform> Device<P> {
    /// How many fault records named the device by any of its ids, and the newest of them, as far as
    /// `last` and [`Config::last_faults`](crate::Config::last_faults) have room: newest first. Any
    /// context.
    pub fn faults(&self, last: &mut [Option<FaultRecord>]) -> FaultCounts {
        last.fill(None);
        let Ok(device) = self.member.up() else { return FaultCounts::default() };
        device.instance.state.with(|s| {
            let mut counts = FaultCounts::default();
            for source in device.spec.sources().iter().filter_map(|id| s.sources.get(*id)) {
                counts.add(&source.faults.read(last));
            }
            counts
        })
    }
}

impl<P: Platform, O: Owner> Domain<P, O> {
    /// The same of what was attached to the domain when it faulted. Any context.
    pub fn faults(&self, last: &mut [Option<FaultRecord>]) -> FaultCounts {
        last.fill(None);
        self.inner.faults.with(|log| log.read(last))
    }
}

impl<P: Platform> Iommu<P> {
    /// The same of an instance: every record, also of requesters that nobody added, and those that
    /// name none. `None` when the instance is not registered. Any context.
    pub fn faults(&self, id: InstanceId, last: &mut [Option<FaultRecord>]) -> Option<FaultCounts> {
        last.fill(None);
        Some(self.shared.instances.get(id)?.state.with(|s| s.faults.read(last)))
    }
}

/// Counts and the last records.
pub(crate) struct FaultLog {
    counts: FaultCounts,
    /// Full, it is a ring, and `next` the place of the oldest.
    last: Vec<FaultRecord>,
    next: usize,
}

impl FaultLog {
    /// Keeps the last `keep` records.
    pub(crate) fn new(keep: usize) -> Result<FaultLog, OutOfMemory> {
        let mut last = Vec::new();
        last.try_reserve_exact(keep).map_err(|_| OutOfMemory)?;
        Ok(FaultLog { counts: FaultCounts::default(), last, next: 0 })
    }

    /// Counts a record and keeps it in place of the oldest. Service context.
    pub(crate) fn note(&mut self, record: &FaultRecord) {
        self.counts.kinds[record.kind as usize] += 1;
        self.counts.last_at = Some(record.at);
        if self.last.len() < self.last.capacity() {
            self.last.push(*record);
        } else if let Some(oldest) = self.last.get_mut(self.next) {
            *oldest = *record;
            self.next = (self.next + 1) % self.last.len();
        }
    }

    /// The counts; and puts copies of the last records among those that are in `last`, the newest
    /// first.
    fn read(&self, last: &mut [Option<FaultRecord>]) -> FaultCounts {
        for record in &self.last {
            let older =
                |l: &Option<FaultRecord>| l.is_none_or(|l| (l.at, l.sequence) < (record.at, record.sequence));
            if let Some(rest) = last.iter().position(older).and_then(|i| last.get_mut(i..)) {
                rest.rotate_right(1);
                rest[0] = Some(*record);
            }
        }
        self.counts
    }
}
