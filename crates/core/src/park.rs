//! Parking: a device that is about to be reset reaches nothing but its direct regions until that is
//! over, and then has what is attached at that time.
//!
//! Parking is per id: devices that have one in common are in the dark together, and an id comes back
//! when the last of those that parked it is done.

use crate::{
    detach::{by_deadline, drain},
    device::{Device, DeviceInner},
    driver::HwLost,
    error::AttachError,
    group::Group,
    ids::{At, SourceId},
    left::Then,
    member::Member,
    op::{Op, block_on, hw},
    platform::{Platform, Sleep},
    requesters::features,
};
use alloc::sync::Arc;
use core::future::poll_fn;
use portcullis_sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// How deep a device is parked.
pub(crate) struct Depth {
    depth: AtomicU32,
    /// A guard was dropped: until the next one ends in order, the device stays where it is.
    left: AtomicBool,
    /// It reaches nothing else.
    stopped: AtomicBool,
}

impl Depth {
    pub(crate) fn new() -> Depth {
        Depth { depth: AtomicU32::new(0), left: AtomicBool::new(false), stopped: AtomicBool::new(false) }
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.depth.load(Ordering::Acquire) > 0 || self.left.load(Ordering::Acquire)
    }
}

/// A device that is parked, as often as there are guards. It reaches nothing but its direct regions;
/// what it had outstanding is void. Attaches to its group wait or are refused
/// ([`Config::during_reset`](crate::Config::during_reset)), detaches go on.
///
/// Dropped, it leaves the device parked until it is reset, or parked and ended, the next time: only
/// who knows that the device is quiet may let it go on. Where parking, or its end, was given up half-way,
/// a worker parks it to the end.
#[must_use = "a device that is parked stays so until the guard is ended"]
pub struct Parked<P: Platform> {
    device: Device<P>,
    ended: bool,
}

impl<P: Platform> Drop for Parked<P> {
    fn drop(&mut self) {
        if !self.ended {
            let depth = &self.device.member.parked;
            depth.left.store(true, Ordering::Release);
            depth.depth.fetch_sub(1, Ordering::AcqRel);
            if !depth.stopped.load(Ordering::Acquire)
                && let Ok(served) = self.device.member.up()
            {
                served.shared.leave_behind(&self.device, Then::Stays);
            }
        }
    }
}

impl<P: Platform> Parked<P> {
    /// The device goes on, unless it is parked by somebody else too: with what is attached now. What
    /// it sent before is discarded. Sleeps.
    ///
    /// # Errors
    /// [`AttachError::Lost`], [`AttachError::Shutdown`]: the device stays parked.
    pub fn end(self, cx: &Sleep<'_>) -> Result<(), AttachError> {
        let hub = self.device.group.hub.clone();
        block_on(&hub, cx, end(self)).map_err(|_| AttachError::Shutdown)?
    }

    /// The step form of [`end`](Parked::end). Dropped unfinished, the device stays parked.
    pub fn start_end(self) -> Op<'static, Result<(), AttachError>>
    where
        P: 'static,
    {
        Op::new(end(self))
    }
}

impl<P: Platform> Device<P> {
    /// Parks the device, for a reset that somebody else does (the bus's, the slot's). Nests. Sleeps.
    ///
    /// # Errors
    /// [`AttachError::NotUp`], [`AttachError::Lost`], [`AttachError::Shutdown`].
    pub fn park(&self, cx: &Sleep<'_>) -> Result<Parked<P>, AttachError> {
        block_on(&self.group.hub, cx, park(self)).map_err(|_| AttachError::Shutdown)?
    }

    /// The step form of [`park`](Device::park). Dropped unfinished after it began, it is as if the guard
    /// had been dropped.
    pub fn start_park(&self) -> Op<'_, Result<Parked<P>, AttachError>> {
        Op::new(park(self))
    }
}

/// Parks a device, resets it, and lets it go on.
pub(crate) async fn reset<P: Platform>(device: &Device<P>) -> Result<(), AttachError> {
    let parked = park(device).await?;
    device.member.spec.control.reset();
    end(parked).await
}

async fn park<P: Platform>(device: &Device<P>) -> Result<Parked<P>, AttachError> {
    let group = &device.group;
    // Nothing attached is changed by others meanwhile. That comes before the turn, as tokens do
    // everywhere.
    let _frozen = poll_fn(|_| group.freeze()).await;
    let served = device.member.up()?;
    let _turn = served.turn().await;
    // From here on it is parked, however far this comes.
    let before = device.member.parked.depth.fetch_add(1, Ordering::AcqRel);
    let parked = Parked { device: device.clone(), ended: false };
    if before == 0 {
        stop_all(group, &served).await?;
        device.member.parked.stopped.store(true, Ordering::Release);
    }
    Ok(parked)
}

/// Parks a device to the end that was left parked half-way. For a worker, which has the group frozen.
pub(crate) async fn stop_left<P: Platform>(device: &Device<P>) -> Result<(), AttachError> {
    let Device { member, group, .. } = device;
    let (served, parked) = (member.up()?, &member.parked);
    let _turn = served.turn().await;
    if parked.is_parked() && !parked.stopped.load(Ordering::Acquire) {
        stop_all(group, &served).await?;
        parked.stopped.store(true, Ordering::Release);
    }
    Ok(())
}

/// Stops a device, but for its direct regions; what it had outstanding is void.
async fn stop_all<P: Platform>(group: &Group<P>, served: &Arc<DeviceInner<P>>) -> Result<(), HwLost> {
    let (instance, id) = (&served.instance, served.id);
    if served.sources().iter().any(|s| group.direct_of(*s).is_some()) {
        // It is told before its IOMMU is.
        served.disable();
    }
    for source in served.sources().iter().filter(|s| !group.is_parked_but_for(**s, id)) {
        instance.set_resetting(*source, true);
        stop(group, served, *source).await?;
    }
    for source in served.sources() {
        instance.void_all_of(*source);
        by_deadline(instance, || instance.end_stalls_of(*source)).await;
    }
    Ok(())
}

async fn end<P: Platform>(mut parked: Parked<P>) -> Result<(), AttachError> {
    let Device { member, group, .. } = &parked.device;
    let _frozen = poll_fn(|_| group.freeze()).await;
    let served = member.up()?;
    if member.parked.depth.load(Ordering::Acquire) == 1 {
        let _turn = served.turn().await;
        // Given up from here on, a worker stops it again.
        member.parked.stopped.store(false, Ordering::Release);
        go_on(group, member, &served).await?;
        member.parked.left.store(false, Ordering::Release);
    }
    member.parked.depth.fetch_sub(1, Ordering::AcqRel);
    group.hub.progressed();
    parked.ended = true;
    Ok(())
}

/// Stops an id, but for its direct regions.
async fn stop<P: Platform>(
    group: &Group<P>,
    served: &DeviceInner<P>,
    source: SourceId,
) -> Result<(), HwLost> {
    let instance = &served.instance;
    let at = At { source, pasid: None };
    let direct = group.direct_of(source);
    if direct.is_some() || instance.may_cache(at) {
        // A request that the device has translated itself is over when the device answers for its own
        // TLB. It is asked now: after the reset it answers at once, and knows of none.
        instance.switch(at, direct).await?;
        let mut last = None;
        while let Some((at, _)) = instance.attached_after(source, last) {
            if at.pasid.is_some() {
                instance.switch(at, None).await?;
            }
            last = Some(at);
        }
    }
    // From here on it may send nothing but plain requests, and is asked for nothing.
    let mut plain = instance.features(source);
    (plain.ats, plain.pri) = (false, false);
    if instance.features(source) != plain {
        hw(instance, || instance.driver().set_features(source, plain)).await?;
        instance.set_features(source, plain);
    }
    if direct.is_none() {
        hw(instance, || instance.driver().cut_off(source)).await?;
    }
    // Cut off, it would miss its direct regions. Plain requests reach nothing else.
    Ok(())
}

async fn go_on<P: Platform>(
    group: &Group<P>,
    member: &Member<P>,
    served: &Arc<DeviceInner<P>>,
) -> Result<(), HwLost> {
    let instance = &served.instance;
    // What the device sent before is still on its way: it comes out, and is discarded ([V] 7.9).
    for source in served.sources() {
        drain(instance, At { source: *source, pasid: None }).await?;
        instance.void_all_of(*source);
        by_deadline(instance, || instance.end_stalls_of(*source)).await;
    }
    for (n, source) in served.sources().iter().enumerate() {
        if group.is_parked_but_for(*source, member.id()) {
            continue;
        }
        instance.absolve(*source);
        hw(instance, || instance.driver().restore(*source)).await?;
        let (mut last, mut requester_id) = (None, false);
        while let Some((at, inner)) = instance.attached_after(*source, last) {
            instance.switch(at, inner.target()).await?;
            requester_id |= at.pasid.is_none();
            last = Some(at);
        }
        let at = At { source: *source, pasid: None };
        if let (Some(target), false) = (group.direct_of(*source), requester_id) {
            instance.switch(at, Some(target)).await?;
        }
        // Last, so that nothing was asked of a TLB that the device has not been told to use yet.
        let mut all = instance.features(*source);
        all.ats = features(&served.spec, instance, n == 0).ats;
        all.pri = n == 0 && served.pri_is_on();
        if instance.features(*source) != all {
            hw(instance, || instance.driver().set_features(*source, all)).await?;
            instance.set_features(*source, all);
        }
        instance.set_resetting(*source, false);
    }
    served.enable();
    served.enable_pri();
    Ok(())
}
