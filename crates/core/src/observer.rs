//! Observers: told about faults, never asked.
//!
//! A subscription is a bounded lock-free ring: filling it costs the service context no allocation
//! and no wait, and what finds it full is counted as lost, for the observer itself to see. It can
//! be read from any context, or waited on from a sleepable one.

use crate::{
    error::OutOfMemory,
    fault::FaultRecord,
    hub::Hub,
    ids::{DeviceId, InstanceId},
    platform::{Platform, Sleep, Time},
    wait::wait_for,
};
use alloc::sync::Arc;
use core::task::Poll;
use portcullis_sync::{
    atomic::{AtomicU64, Ordering},
    ring::Ring,
};

/// Whose faults an observer wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Every record of every instance.
    All,
    /// The records of an instance.
    Instance(InstanceId),
    /// The records that name a device.
    Device(DeviceId),
    /// The records of whatever is attached to a domain, given by its [`id`](crate::Domain::id).
    Domain(u64),
}

pub(crate) struct Observer {
    scope: Scope,
    ring: Ring<FaultRecord>,
    lost: AtomicU64,
}

impl Observer {
    /// Offers a record; `domain` is what the faulting attachment point was attached to.
    pub(crate) fn tell(&self, record: &FaultRecord, domain: Option<u64>) {
        let wanted = match self.scope {
            Scope::All => true,
            Scope::Instance(i) => record.instance == i,
            Scope::Device(d) => record.device == Some(d),
            Scope::Domain(d) => domain == Some(d),
        };
        if wanted && self.ring.push(*record).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An observer's end. Dropping it ends the observation.
pub struct Subscription<P: Platform> {
    hub: Arc<Hub<P>>,
    observer: Arc<Observer>,
}

impl<P: Platform> Subscription<P> {
    pub(crate) fn new(hub: &Arc<Hub<P>>, scope: Scope, capacity: usize) -> Result<Self, OutOfMemory> {
        let ring = Ring::with_capacity(capacity).map_err(|_| OutOfMemory)?;
        let observer = Arc::new(Observer { scope, ring, lost: AtomicU64::new(0) });
        hub.subscribe(observer.clone())?;
        Ok(Subscription { hub: hub.clone(), observer })
    }

    /// The oldest record that was not read yet. Any context.
    pub fn try_next(&self) -> Option<FaultRecord> {
        self.observer.ring.pop()
    }

    /// Waits for a record, until the deadline or the platform's end. Sleeps.
    pub fn next(&self, cx: &Sleep<'_>, until: Option<Time>) -> Option<FaultRecord> {
        let read = || self.try_next().map_or(Poll::Pending, Poll::Ready);
        wait_for(&self.hub.platform, cx, &self.hub.told, until, read).ok()
    }

    /// Records that found no room since the subscription began.
    pub fn lost(&self) -> u64 {
        self.observer.lost.load(Ordering::Relaxed)
    }
}

impl<P: Platform> Drop for Subscription<P> {
    fn drop(&mut self) {
        self.hub.unsubscribe(&self.observer);
    }
}
