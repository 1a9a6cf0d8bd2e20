//! The end of an attachment, in the order that makes it safe: block; invalidate; run the vendor's
//! drain fence; read the tail, and wait until a service turn has passed it; answer what is left.

use crate::{
    attachment::Inner,
    driver::DrainEnd,
    ids::At,
    instance::Instance,
    op::hw,
    platform::{Platform, ShortLock, Sleep, Time},
    sources::Phase,
    wait::{GaveUp, wait_for},
};
use alloc::sync::Arc;
use core::{future::poll_fn, task::Poll};
use portcullis_sync::atomic::Ordering;

/// Fences tried before a queue that overflows all the time is given up.
const MOST_DRAINS: u32 = 256;

/// An attachment that the hardware has let go of; handlers may still run with it.
#[must_use = "handlers may still run: wait for them, or let go"]
pub struct Detaching<P: Platform> {
    inner: Option<Arc<Inner<P>>>,
}

/// How far a detach is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// No handler runs with the attachment and its data is dropped.
    Gone,
    /// The deadline passed and a handler still runs.
    StillRunning,
    /// The caller is that handler: the attachment is gone when it returns.
    InsideResolver,
    /// The platform ends.
    Shutdown,
}

impl<P: Platform> Detaching<P> {
    pub(crate) fn new(inner: Arc<Inner<P>>) -> Self {
        Detaching { inner: Some(inner) }
    }

    pub(crate) fn nothing() -> Self {
        Detaching { inner: None }
    }

    /// Whether the hardware was lost on the way. What it may still reach is kept for ever.
    pub fn lost(&self) -> bool {
        self.inner.as_ref().is_some_and(|i| i.lost.load(Ordering::Acquire))
    }

    /// Waits until no handler runs with the attachment. From inside its own resolver it returns at
    /// once and says so.
    pub fn wait(&self, cx: &Sleep<'_>, until: Option<Time>) -> Waited {
        let Some(inner) = &self.inner else { return Waited::Gone };
        if cx.inside == Some(inner.key) {
            return Waited::InsideResolver;
        }
        let hub = &inner.instance.hub;
        let gone = || if inner.is_gone() { Poll::Ready(()) } else { Poll::Pending };
        match wait_for(&hub.platform, cx, &hub.progress, until, gone) {
            Ok(()) => Waited::Gone,
            Err(GaveUp::Deadline) => Waited::StillRunning,
            Err(GaveUp::Shutdown) => Waited::Shutdown,
        }
    }

    /// Whether no handler runs with the attachment any more. Never waits.
    pub fn is_gone(&self) -> bool {
        self.inner.as_ref().is_none_or(|i| i.is_gone())
    }
}

/// Detaches. May be given up and begun again at any point.
pub(crate) async fn detach<P: Platform>(inner: Arc<Inner<P>>) {
    let (instance, at) = (&inner.instance, inner.at);
    let group = &inner.device.group;
    let Ok(token) = poll_fn(|_| group.begin(at.pasid, Some(inner.key))).await else {
        // Somebody else's transition ended it: a replace, or an earlier try of this detach.
        inner.finish();
        return;
    };
    instance.state.with(|s| {
        if let Some(slot) = s.sources.get_mut(at.source).and_then(|src| src.slot(at.pasid)) {
            slot.phase = Phase::Draining;
        }
    });
    inner.gate.close();
    let blocked = inner.device.block(at).await;
    let drained = match blocked {
        Ok(()) => drain(instance, at).await,
        lost => lost,
    };
    poll_fn(|_| {
        if instance.settle_all_of(inner.key) {
            return Poll::Ready(());
        }
        instance.service();
        Poll::Pending
    })
    .await;
    // Responses must have left the queue before the place is used again ([V] 7.8).
    let drained = match drained {
        Ok(()) => fence(instance, at).await,
        lost => lost,
    };
    instance.drop_partials_at(at);
    if drained.is_err() {
        inner.lost.store(true, Ordering::Release);
        inner.domain.keep_for_ever();
    }
    let slot = instance.state.with(|s| {
        let src = s.sources.get_mut(at.source)?;
        let i = src.slots.iter().position(|slot| slot.inner.key == inner.key)?;
        Some(src.slots.swap_remove(i))
    });
    drop(slot);
    if drained.is_ok() {
        inner.domain.tags.remove(instance.id(), at);
        inner.domain.release_tag(instance);
    }
    if inner.resolves() {
        inner.device.release_pri().await;
    }
    inner.device.shared_slab().remove(inner.key);
    token.finish(None);
    inner.finish();
}

/// Proves that no request that was sent before the block is still on its way.
pub(crate) async fn drain<P: Platform>(
    instance: &Arc<Instance<P>>,
    at: At,
) -> Result<(), crate::driver::HwLost> {
    if !makes_requests(instance, at) {
        return Ok(());
    }
    for _ in 0..MOST_DRAINS {
        hw(instance, || instance.driver().drain(at)).await?;
        match instance.driver().drain_end(at) {
            DrainEnd::At(tail) => {
                poll_fn(|_| {
                    if instance.is_lost() || instance.state.with(|s| s.head >= tail) {
                        return Poll::Ready(());
                    }
                    instance.service();
                    Poll::Pending
                })
                .await;
                return Ok(());
            }
            DrainEnd::Again => instance.service(),
        }
    }
    instance.declare_lost();
    Err(crate::driver::HwLost)
}

async fn fence<P: Platform>(instance: &Arc<Instance<P>>, at: At) -> Result<(), crate::driver::HwLost> {
    if !makes_requests(instance, at) {
        return Ok(());
    }
    hw(instance, || instance.driver().drain(at)).await
}

fn makes_requests<P: Platform>(instance: &Instance<P>, at: At) -> bool {
    instance.state.with(|s| s.sources.get(at.source).is_some_and(|src| src.features.pri))
}
