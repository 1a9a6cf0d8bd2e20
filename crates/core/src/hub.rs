//! What all instances of one [`Iommu`](crate::Iommu) share: observers, and the sleepable work.

use crate::{
    attachment::Inner,
    config::Config,
    error::OutOfMemory,
    fault::FaultRecord,
    observer::Observer,
    platform::{Platform, ShortLock},
};
use alloc::{collections::VecDeque, sync::Arc, vec::Vec};
use portcullis_sync::atomic::{AtomicU32, Ordering};

/// Subscriptions that can exist at once.
const OBSERVERS: usize = 64;

pub(crate) struct Hub<P: Platform> {
    pub(crate) platform: P,
    pub(crate) config: Config,
    /// Notified after a record was offered to observers.
    pub(crate) told: P::Event,
    /// Notified when a service turn read requests, an invalidation completed, an answer went out,
    /// or a transition ended: whatever a blocking operation may be waiting for.
    pub(crate) progress: P::Event,
    running: AtomicU32,
    observers: P::Lock<Vec<Arc<Observer>>>,
    work: P::Lock<Work<P>>,
}

/// Sleepable work. An attachment stands in each queue at most once, so neither outgrows the number
/// of attachments.
struct Work<P: Platform> {
    handlers: VecDeque<Arc<Inner<P>>>,
    dropped: VecDeque<Arc<Inner<P>>>,
}

/// How busy the workers are. With `waiting` above zero while `running` equals the embedder's number
/// of workers, every worker sits in a resolver and further faults wait for one to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Resolvers that run now.
    pub running: u32,
    /// Attachments whose resolver, or whose clean-up, waits for a worker.
    pub waiting: usize,
}

/// One piece of sleepable work.
pub(crate) enum Job<P: Platform> {
    /// An attachment has page-request groups for its resolver.
    Handle(Arc<Inner<P>>),
    /// An attachment was dropped without being detached.
    Reap(Arc<Inner<P>>),
}

impl<P: Platform> Hub<P> {
    pub(crate) fn new(platform: P, config: Config) -> Result<Hub<P>, OutOfMemory> {
        let mut observers = Vec::new();
        observers.try_reserve_exact(OBSERVERS).map_err(|_| OutOfMemory)?;
        let mut work = Work { handlers: VecDeque::new(), dropped: VecDeque::new() };
        for queue in [&mut work.handlers, &mut work.dropped] {
            queue.try_reserve_exact(config.attachments).map_err(|_| OutOfMemory)?;
        }
        Ok(Hub {
            told: platform.event(),
            progress: platform.event(),
            running: AtomicU32::new(0),
            observers: platform.lock(observers),
            work: platform.lock(work),
            platform,
            config,
        })
    }

    pub(crate) fn subscribe(&self, observer: Arc<Observer>) -> Result<(), OutOfMemory> {
        self.observers.with(|list| {
            if list.len() == list.capacity() {
                return Err(OutOfMemory);
            }
            list.push(observer);
            Ok(())
        })
    }

    pub(crate) fn unsubscribe(&self, observer: &Arc<Observer>) {
        let gone = self.observers.with(|list| {
            let i = list.iter().position(|o| Arc::ptr_eq(o, observer))?;
            Some(list.swap_remove(i))
        });
        drop(gone);
    }

    /// Offers a record to every observer.
    pub(crate) fn tell(&self, record: &FaultRecord, domain: Option<u64>) {
        self.observers.with(|list| list.iter().for_each(|o| o.tell(record, domain)));
        self.platform.notify(&self.told);
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
        Load {
            running: self.running.load(Ordering::Relaxed),
            waiting: self.work.with(|w| w.handlers.len() + w.dropped.len()),
        }
    }

    /// Queues an attachment whose resolver has work. The caller has set its `scheduled` mark.
    pub(crate) fn schedule(&self, inner: Arc<Inner<P>>) {
        self.work.with(|w| w.handlers.push_back(inner));
        self.platform.kick();
    }

    /// Queues an attachment that was dropped.
    pub(crate) fn reap(&self, inner: Arc<Inner<P>>) {
        self.work.with(|w| w.dropped.push_back(inner));
        self.platform.kick();
    }

    pub(crate) fn next_job(&self) -> Option<Job<P>> {
        self.work.with(|w| {
            w.dropped.pop_front().map(Job::Reap).or_else(|| w.handlers.pop_front().map(Job::Handle))
        })
    }
}
