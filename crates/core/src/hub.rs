//! What all instances of one [`Iommu`](crate::Iommu) share: observers, and the sleepable work.

use crate::{
    attachment::Inner,
    config::Config,
    error::OutOfMemory,
    fair::{Fair, Room},
    fault::FaultRecord,
    observer::{Desk, Listener},
    platform::{Platform, ShortLock},
    slab::Slab,
};
use alloc::{collections::VecDeque, sync::Arc};
use portcullis_sync::{
    atomic::{AtomicU32, AtomicUsize, Ordering},
    errand::Bell,
    roster::Roster,
};

pub(crate) struct Hub<P: Platform> {
    pub(crate) platform: P,
    pub(crate) config: Config,
    pub(crate) attachments: Slab<P>,
    /// Notified after a record was offered to observers.
    pub(crate) told: P::Event,
    /// Notified when a service turn read requests, an invalidation completed, an answer went out,
    /// or a transition ended: whatever a blocking operation may be waiting for.
    pub(crate) progress: P::Event,
    running: AtomicU32,
    /// Attachments that wait for a worker: written under the lock of the work, read without.
    waiting: AtomicUsize,
    pub(crate) observers: Roster<Listener>,
    /// A sleeping observer may have records to be handed to it.
    records_due: Bell,
    work: P::Lock<Work<P>>,
}

/// Sleepable work. An attachment stands in each queue at most once, so neither outgrows the number
/// of attachments.
struct Work<P: Platform> {
    handlers: Fair<Arc<Inner<P>>>,
    dropped: VecDeque<Arc<Inner<P>>>,
    /// Devices were left behind.
    left: bool,
}

impl<P: Platform> Work<P> {
    fn waiting(&self) -> usize {
        self.handlers.waiting() + self.dropped.len() + usize::from(self.left)
    }
}

/// How busy the workers are. With `waiting` above zero while `running` equals the embedder's number
/// of workers, every worker sits in a resolver and further faults wait for one to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Resolvers that run now.
    pub running: u32,
    /// Attachments whose resolver, or whose clean-up, waits for a worker; and one, where devices were
    /// left behind by an operation that was given up.
    pub waiting: usize,
    /// Devices of which some wait although a worker may be free: they have their share of the
    /// workers ([`Config::workers_per_device`]).
    pub held_back: usize,
}

/// A device's place among those that take turns. Given back when it is dropped.
pub(crate) struct Lane<P: Platform> {
    hub: Arc<Hub<P>>,
    number: u32,
}

impl<P: Platform> Drop for Lane<P> {
    fn drop(&mut self) {
        self.hub.work.with(|w| w.handlers.close(self.number));
    }
}

/// A worker runs a resolver for a lane. On drop the lane may have another turn, also after a
/// resolver that panicked.
pub(crate) struct Turn<'a, P: Platform> {
    hub: &'a Hub<P>,
    lane: u32,
}

impl<P: Platform> Drop for Turn<'_, P> {
    fn drop(&mut self) {
        if self.hub.work.with(|w| w.handlers.done(self.lane)) {
            self.hub.platform.kick();
        }
    }
}

/// One piece of sleepable work.
pub(crate) enum Job<'a, P: Platform> {
    /// An attachment has page-request groups for its resolver.
    Handle(Arc<Inner<P>>, Turn<'a, P>),
    /// An attachment was dropped without being detached.
    Reap(Arc<Inner<P>>),
    /// Devices were left behind.
    Clear,
    /// A sleeping observer has records.
    Tell(Arc<Desk>),
}

impl<P: Platform> Hub<P> {
    pub(crate) fn new(platform: P, config: Config) -> Result<Hub<P>, OutOfMemory> {
        let observers = Roster::with_capacity(config.observers).map_err(|_| OutOfMemory)?;
        let mut dropped = VecDeque::new();
        dropped.try_reserve_exact(config.attachments).map_err(|_| OutOfMemory)?;
        let work = Work {
            handlers: Fair::new(config.attachments, config.workers_per_device)?,
            dropped,
            left: false,
        };
        Ok(Hub {
            attachments: Slab::new(&platform, config.attachments)?,
            told: platform.event(),
            progress: platform.event(),
            running: AtomicU32::new(0),
            waiting: AtomicUsize::new(0),
            observers,
            records_due: Bell::new(),
            work: platform.lock(work),
            platform,
            config,
        })
    }

    /// Offers a record to every observer: one load when there is none. Service context, no lock
    /// held.
    pub(crate) fn tell(&self, record: &FaultRecord) {
        if self.observers.is_empty() {
            return;
        }
        let mut due = false;
        self.observers.visit(|o| due |= o.tell(record));
        self.platform.notify(&self.told);
        if due {
            self.ask_for_telling();
        }
    }

    /// Has a worker hand records to sleeping observers.
    pub(crate) fn ask_for_telling(&self) {
        self.records_due.ring();
        self.platform.kick();
    }

    /// A sleeping observer with records, now the caller's to run.
    fn next_desk(&self) -> Option<Arc<Desk>> {
        if !self.records_due.is_rung() || !self.records_due.heard() {
            return None;
        }
        let mut found = None;
        self.observers.visit(|o| {
            if found.is_none()
                && let Some(desk) = o.desk()
                && desk.take()
            {
                found = Some(desk.clone());
            }
        });
        if found.is_some() {
            // There may be another one.
            self.records_due.ring();
        }
        found
    }

    pub(crate) fn progressed(&self) {
        self.platform.notify(&self.progress);
    }

    pub(crate) fn resolver_runs(&self, change: i32) {
        if change > 0 {
            self.running.fetch_add(1, Ordering::Relaxed);
        } else {
            self.running.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn load(&self) -> Load {
        let running = self.running.load(Ordering::Relaxed);
        self.work.with(|w| Load { running, waiting: w.waiting(), held_back: w.handlers.held_back() })
    }

    /// A place for a device among those that take turns. Sleepable context.
    pub(crate) fn open_lane(self: &Arc<Self>) -> Result<Lane<P>, OutOfMemory> {
        loop {
            match self.work.with(|w| w.handlers.open()) {
                Ok(number) => return Ok(Lane { hub: self.clone(), number }),
                Err(lanes) => {
                    let room = Room::new(lanes)?;
                    drop(self.work.with(|w| w.handlers.widen(room)));
                }
            }
        }
    }

    /// Queues an attachment whose resolver has work. The caller has set its `scheduled` mark.
    pub(crate) fn schedule(&self, inner: Arc<Inner<P>>) {
        self.work.with(|w| {
            w.handlers.push(inner.device.lane.number, inner.key.index, inner);
            self.note_waiting(w);
        });
        self.platform.kick();
    }

    /// Queues an attachment that was dropped.
    pub(crate) fn reap(&self, inner: Arc<Inner<P>>) {
        self.work.with(|w| {
            w.dropped.push_back(inner);
            self.note_waiting(w);
        });
        self.platform.kick();
    }

    /// Has a worker see to the devices that were left behind.
    pub(crate) fn ask_to_clear(&self) {
        self.work.with(|w| {
            w.left = true;
            self.note_waiting(w);
        });
        self.platform.kick();
    }

    /// The next piece of work. Two loads when there is none: who left some since kicks a worker.
    pub(crate) fn next_job(&self) -> Option<Job<'_, P>> {
        if !self.is_wanted() {
            return None;
        }
        let first = self.work.with(|w| {
            let first = match w.dropped.pop_front() {
                Some(inner) => Some(Job::Reap(inner)),
                None if core::mem::take(&mut w.left) => Some(Job::Clear),
                None => w.handlers.pop().map(|(lane, inner)| Job::Handle(inner, Turn { hub: self, lane })),
            };
            self.note_waiting(w);
            first
        });
        first.or_else(|| self.next_desk().map(Job::Tell))
    }

    /// Whether anything waits for a worker. One that asks after its own piece of work goes on with the
    /// same attachment's next one if nothing does; what it misses waits for no more than one resolver.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 || self.records_due.is_rung()
    }

    fn note_waiting(&self, work: &Work<P>) {
        self.waiting.store(work.waiting(), Ordering::Relaxed);
    }
}
