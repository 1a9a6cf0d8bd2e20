//! The end of an attachment, in the order that makes it safe: block; invalidate; run the vendor's
//! drain fence; read the tail, and wait until a service turn has passed it; answer what is left.

use crate::{
    attachment::Inner,
    driver::{DrainEnd, HwLost},
    group::Going,
    ids::At,
    instance::Instance,
    op::hw,
    pins::unpin,
    platform::{Platform, ShortLock, Sleep, Time},
    stall::switched,
    wait::{GaveUp, wait_for},
};
use alloc::sync::Arc;
use core::{future::poll_fn, task::Poll};
use portcullis_sync::atomic::Ordering;

/// An attachment that the hardware has let go of; handlers may still run with it.
#[must_use = "handlers may still run: wait for them, or let go"]
pub struct Detaching<P: Platform> {
    inner: Arc<Inner<P>>,
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
        Detaching { inner }
    }

    /// Whether the hardware was lost on the way. What it may still reach is kept for ever.
    pub fn lost(&self) -> bool {
        self.inner.lost.load(Ordering::Acquire)
    }

    /// Waits until no handler runs with the attachment. From inside its own resolver it returns at
    /// once and says so.
    pub fn wait(&self, cx: &Sleep<'_>, until: Option<Time>) -> Waited {
        let inner = &self.inner;
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
        self.inner.is_gone()
    }
}

/// Detaches. May be given up and begun again at any point.
pub(crate) async fn detach<P: Platform>(inner: Arc<Inner<P>>) {
    let (instance, group) = (&inner.instance, &inner.named.group);
    let Ok(token) = poll_fn(|_| group.begin(inner.at.pasid, Some(inner.key), Going::Out)).await else {
        // Somebody else's transition ended it: a replace, or an earlier try of this detach.
        inner.finish();
        return;
    };
    let roll = inner.roll();
    roll.places.iter().for_each(|at| instance.set_draining(*at, inner.key));
    let drained = to_rest(&inner).await;
    settle_rest(&inner).await;
    // Nothing that is attached there later stalls by the way. Hardware that is lost, or cannot, is
    // no reason to stay.
    let _ = switched(&inner).await;
    // What a replacement that was given up half-way would have ended.
    let replaced = inner.replaces.with(|r| r.clone());
    if let Some(old) = &replaced {
        settle_rest(old).await;
    }
    // Responses must have left the queue before the place is used again ([V] 7.8).
    let drained = match drained {
        Ok(()) => fence(&inner).await,
        lost => lost,
    };
    roll.places.iter().for_each(|at| instance.drop_partials_at(*at));
    if let Some(old) = replaced {
        // Where the new one was not shown yet, it is what stands there.
        old.roll().places.iter().for_each(|at| instance.hide(*at, old.key));
        let_go(&old, drained).await;
        inner.replaces.with(Option::take);
        old.finish();
    }
    roll.places.iter().for_each(|at| instance.hide(*at, inner.key));
    let_go(&inner, drained).await;
    token.finish(None);
    inner.finish();
}

/// Every place goes where the group rests, and nothing that was sent before is on its way.
async fn to_rest<P: Platform>(inner: &Inner<P>) -> Result<(), HwLost> {
    let (instance, roll) = (&inner.instance, inner.roll());
    for at in &roll.places {
        instance.switch(*at, inner.named.group.rest_of(*at)).await?;
    }
    for at in &roll.places {
        drain(instance, *at).await?;
    }
    Ok(())
}

/// Answers what is left of an attachment, and waits until the answers are in the hardware's queue.
pub(crate) async fn settle_rest<P: Platform>(inner: &Inner<P>) {
    let instance = &inner.instance;
    for at in &inner.roll().places {
        by_deadline(instance, || instance.settle_all_of(inner.key, *at)).await;
    }
}

/// Gives back what an attachment holds. The hardware does not use it any more, unless it was lost:
/// then its domain is kept for ever. May be given up and begun again until it is done.
pub(crate) async fn let_go<P: Platform>(inner: &Inner<P>, drained: Result<(), HwLost>) {
    let roll = inner.roll();
    while let Some(n) = inner.holds_pri.load(Ordering::Acquire).checked_sub(1) {
        if let Some(device) = roll.devices.get(n) {
            device.release_pri().await;
        }
        inner.holds_pri.store(n, Ordering::Release);
    }
    if drained.is_ok() {
        let published = inner.published.swap(0, Ordering::AcqRel);
        for (at, tag) in roll.places.iter().take(published).zip(inner.tag.iter().cycle()) {
            inner.domain.withdraw(&inner.instance, *at, *tag);
        }
    }
    // The others that use the domain may have been there too, and are asked.
    let drained = match drained {
        Ok(()) if inner.at.pasid.is_none() => {
            unpin(&inner.domain, roll.direct(&inner.named), &inner.pinned).await
        }
        drained => drained,
    };
    match drained {
        Ok(()) if inner.tag.is_some() => inner.domain.release_tag(&inner.instance),
        Ok(()) => {}
        Err(HwLost) => {
            inner.lost.store(true, Ordering::Release);
            inner.domain.keep_for_ever();
        }
    }
    inner.domain.count_attachment(false);
    inner.close();
}

/// Runs service turns until `done`. Hardware that does not let it come to that in time is lost,
/// which ends it too.
pub(crate) async fn by_deadline<P: Platform>(instance: &Arc<Instance<P>>, mut done: impl FnMut() -> bool) {
    let since = instance.platform().now();
    poll_fn(|_| {
        if done() {
            return Poll::Ready(());
        }
        if instance.platform().now().since(since) > instance.config().hardware_deadline {
            instance.declare_lost();
        }
        instance.service();
        Poll::Pending
    })
    .await;
}

/// Proves that no request that was sent before the block is still on its way.
pub(crate) async fn drain<P: Platform>(instance: &Arc<Instance<P>>, at: At) -> Result<(), HwLost> {
    if !instance.may_have_asked(at.source) {
        return Ok(());
    }
    // A queue that others keep full lets no fence prove anything: it is tried as long as the
    // hardware has time, and emptied in between.
    let since = instance.platform().now();
    while instance.platform().now().since(since) <= instance.config().hardware_deadline {
        hw(instance, || instance.driver().drain(at)).await?;
        match instance.driver().drain_end(at) {
            DrainEnd::At(tail) => {
                by_deadline(instance, || instance.is_lost() || instance.has_passed(tail)).await;
                return if instance.is_lost() { Err(HwLost) } else { Ok(()) };
            }
            DrainEnd::Again => instance.service(),
        }
        look_again().await;
    }
    instance.declare_lost();
    Err(HwLost)
}

/// Lets the caller wait once.
pub(crate) async fn look_again() {
    let mut waited = false;
    poll_fn(|_| match core::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

async fn fence<P: Platform>(inner: &Inner<P>) -> Result<(), HwLost> {
    let instance = &inner.instance;
    for at in inner.roll().places.iter().filter(|at| instance.may_have_asked(at.source)) {
        hw(instance, || instance.driver().drain(*at)).await?;
    }
    Ok(())
}
