//! Observers: told about faults, never asked.
//!
//! In which context one is told is its type: an [`ImmediateObserver`] is called in service context,
//! an [`Observer`] by a worker, which takes the records from a bounded queue; a [`Subscription`] is
//! such a queue alone, read from any context or waited on. Filling a queue costs the service
//! context no allocation and no wait. What finds it full is counted, and the next record that
//! finds room says how many are missing before it.

use crate::{
    error::ObserveError,
    fault::FaultRecord,
    hub::Hub,
    ids::{DeviceId, InstanceId},
    platform::{Platform, Sleep, Time},
    wait::wait_for,
};
use alloc::{boxed::Box, sync::Arc};
use core::{fmt, ops::Deref, task::Poll};
use portcullis_sync::{
    atomic::{AtomicBool, AtomicU64, Ordering},
    errand::Errand,
    ring::Ring,
    roster::Membership,
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
    /// The records of whatever is attached to a domain, given by its [`id`](crate::Domain::id):
    /// of any owner, blocked ones too.
    Domain(u64),
}

impl Scope {
    fn wants(self, record: &FaultRecord) -> bool {
        match self {
            Scope::All => true,
            Scope::Instance(i) => record.instance == i,
            Scope::Device(d) => record.device == Some(d),
            Scope::Domain(d) => record.domain == Some(d),
        }
    }
}

/// An observer that is called where the record is taken: in service context, perhaps with
/// interrupts off, by several instances at once. It may not allocate, wait, or take a lock but a
/// short one, and may call what the core allows in service context.
pub trait ImmediateObserver: Send + Sync + 'static {
    /// Hears of a fault.
    fn fault(&self, record: &FaultRecord);
}

impl<F: Fn(&FaultRecord) + Send + Sync + 'static> ImmediateObserver for F {
    fn fault(&self, record: &FaultRecord) {
        self(record);
    }
}

/// An observer that may sleep: a worker calls it, one record at a time.
pub trait Observer: Send + Sync + 'static {
    /// Hears of a fault, and of how many were lost before it.
    fn fault(&self, cx: &Sleep<'_>, told: &Told);

    /// Hears of losses that no record has followed yet.
    fn lost(&self, _cx: &Sleep<'_>, _records: u64) {}
}

impl<F: Fn(&Sleep<'_>, &Told) + Send + Sync + 'static> Observer for F {
    fn fault(&self, cx: &Sleep<'_>, told: &Told) {
        self(cx, told);
    }
}

/// A record as it leaves a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The record.
    pub record: FaultRecord,
    /// How many records found the queue full since the one before this.
    pub lost: u64,
}

impl Deref for Told {
    type Target = FaultRecord;
    fn deref(&self) -> &FaultRecord {
        &self.record
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lost > 0 {
            write!(f, "{} lost; ", self.lost)?;
        }
        self.record.fmt(f)
    }
}

/// Records on their way out of service context.
pub(crate) struct Queue {
    ring: Ring<Told>,
    /// Lost, and not told yet.
    missing: AtomicU64,
    lost: AtomicU64,
}

impl Queue {
    fn new(capacity: usize) -> Result<Queue, ObserveError> {
        let ring = Ring::with_capacity(capacity).map_err(|_| ObserveError::OutOfMemory)?;
        Ok(Queue { ring, missing: AtomicU64::new(0), lost: AtomicU64::new(0) })
    }

    fn push(&self, record: &FaultRecord) {
        let lost = self.take_missing();
        if self.ring.push(Told { record: *record, lost }).is_err() {
            self.missing.fetch_add(lost + 1, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take_missing(&self) -> u64 {
        match self.missing.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.missing.swap(0, Ordering::Relaxed),
        }
    }
}

/// A queue and the observer that a worker calls for it.
pub(crate) struct Desk {
    queue: Queue,
    observer: Box<dyn Observer>,
    errand: Errand,
    closed: AtomicBool,
}

/// Records that one turn of a worker hands over at most.
const BATCH: usize = 16;

impl Desk {
    fn push(&self, record: &FaultRecord) -> bool {
        self.queue.push(record);
        self.errand.ask()
    }

    /// Makes the desk this worker's, if it has work and nobody is at it.
    pub(crate) fn take(&self) -> bool {
        self.errand.take()
    }

    /// Hands records over. True if there may be more. By who took the desk.
    pub(crate) fn run(&self, cx: &Sleep<'_>) -> bool {
        let open = || !self.closed.load(Ordering::Acquire);
        let mut left = BATCH;
        while left > 0
            && open()
            && let Some(told) = self.queue.ring.pop()
        {
            self.observer.fault(cx, &told);
            left -= 1;
        }
        if left > 0 && open() {
            match self.queue.take_missing() {
                0 => {}
                lost => self.observer.lost(cx, lost),
            }
        }
        // A batch that was used up may have left some.
        let more = left == 0 && self.errand.ask();
        self.errand.end() || more
    }
}

/// What the hub's roster holds for each observer.
pub(crate) struct Listener {
    scope: Scope,
    ear: Ear,
}

enum Ear {
    Call(Box<dyn ImmediateObserver>),
    Queue(Arc<Queue>),
    Desk(Arc<Desk>),
}

impl Listener {
    /// Offers a record. True if a worker must be asked to hand it on. Service context.
    pub(crate) fn tell(&self, record: &FaultRecord) -> bool {
        if !self.scope.wants(record) {
            return false;
        }
        match &self.ear {
            Ear::Call(observer) => observer.fault(record),
            Ear::Queue(queue) => queue.push(record),
            Ear::Desk(desk) => return desk.push(record),
        }
        false
    }

    pub(crate) fn desk(&self) -> Option<&Arc<Desk>> {
        match &self.ear {
            Ear::Desk(desk) => Some(desk),
            _ => None,
        }
    }
}

/// A place in the hub's roster. Dropped, no call begins any more.
struct Seat<P: Platform> {
    hub: Arc<Hub<P>>,
    membership: Option<Membership>,
}

impl<P: Platform> Seat<P> {
    fn new(hub: &Arc<Hub<P>>, scope: Scope, ear: Ear) -> Result<Seat<P>, ObserveError> {
        let membership = hub.observers.join(Listener { scope, ear });
        let limit = hub.config.observers;
        let membership = membership.map_err(|_| ObserveError::TooMany { limit })?;
        Ok(Seat { hub: hub.clone(), membership: Some(membership) })
    }
}

impl<P: Platform> Drop for Seat<P> {
    fn drop(&mut self) {
        if let Some(membership) = self.membership.take() {
            drop(self.hub.observers.abandon(membership));
        }
    }
}

/// A queue of records. Dropping it, in sleepable context, ends the observation.
pub struct Subscription<P: Platform> {
    seat: Seat<P>,
    queue: Arc<Queue>,
}

impl<P: Platform> Subscription<P> {
    pub(crate) fn new(hub: &Arc<Hub<P>>, scope: Scope, capacity: usize) -> Result<Self, ObserveError> {
        let queue = Arc::new(Queue::new(capacity)?);
        Ok(Subscription { seat: Seat::new(hub, scope, Ear::Queue(queue.clone()))?, queue })
    }

    /// The oldest record that was not read yet. Any context.
    pub fn try_next(&self) -> Option<Told> {
        self.queue.ring.pop()
    }

    /// Waits for a record, until the deadline or the platform's end. Sleeps.
    pub fn next(&self, cx: &Sleep<'_>, until: Option<Time>) -> Option<Told> {
        let hub = &self.seat.hub;
        let read = || self.try_next().map_or(Poll::Pending, Poll::Ready);
        wait_for(&hub.platform, cx, &hub.told, until, read).ok()
    }

    /// Records that found no room since the subscription began.
    pub fn lost(&self) -> u64 {
        self.queue.lost.load(Ordering::Relaxed)
    }
}

impl<P: Platform> fmt::Debug for Subscription<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

/// Keeps an observer observing. Dropped, in sleepable context, no call of it begins any more; one
/// that runs on another CPU comes to its end, and the observer is dropped after it.
#[must_use = "dropped, it ends the observation"]
pub struct Observation<P: Platform> {
    _seat: Seat<P>,
    desk: Option<Arc<Desk>>,
}

impl<P: Platform> Observation<P> {
    pub(crate) fn immediate(
        hub: &Arc<Hub<P>>,
        scope: Scope,
        observer: Box<dyn ImmediateObserver>,
    ) -> Result<Self, ObserveError> {
        Ok(Observation { _seat: Seat::new(hub, scope, Ear::Call(observer))?, desk: None })
    }

    pub(crate) fn sleeping(
        hub: &Arc<Hub<P>>,
        scope: Scope,
        capacity: usize,
        observer: Box<dyn Observer>,
    ) -> Result<Self, ObserveError> {
        let desk = Arc::new(Desk {
            queue: Queue::new(capacity)?,
            observer,
            errand: Errand::new(),
            closed: AtomicBool::new(false),
        });
        let seat = Seat::new(hub, scope, Ear::Desk(desk.clone()))?;
        Ok(Observation { _seat: seat, desk: Some(desk) })
    }

    /// Records that found no room since the observation began; an immediate observer loses none.
    pub fn lost(&self) -> u64 {
        self.desk.as_ref().map_or(0, |d| d.queue.lost.load(Ordering::Relaxed))
    }
}

impl<P: Platform> Drop for Observation<P> {
    fn drop(&mut self) {
        if let Some(desk) = &self.desk {
            desk.closed.store(true, Ordering::Release);
        }
    }
}

impl<P: Platform> fmt::Debug for Observation<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observation").field("lost", &self.lost()).finish_non_exhaustive()
    }
}
