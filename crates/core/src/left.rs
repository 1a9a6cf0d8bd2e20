//! Devices that were left behind: an operation that had told the hardware of them was given up. A worker
//! takes back what the hardware knows, a device whose removal had begun is removed, and one that was
//! parked half-way is parked.

use crate::{
    device::Device,
    iommu::Shared,
    op::block_on,
    park::stop_left,
    platform::{Platform, ShortLock, Sleep},
    registry::{Known, Roster},
    requesters::Ids,
};
use core::future::poll_fn;

/// What becomes of a device that was left behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It stays, parked or refused, and can be reset or tried again.
    Stays,
    /// Nobody has it: it is forgotten.
    Goes,
}

/// A device that must not be left as it is. Dropped, it is left to a worker.
pub(crate) struct Leaving<'a, P: Platform> {
    shared: &'a Shared<P>,
    device: &'a Device<P>,
    then: Then,
    done: bool,
}

impl<'a, P: Platform> Leaving<'a, P> {
    pub(crate) fn new(shared: &'a Shared<P>, device: &'a Device<P>, then: Then) -> Self {
        Leaving { shared, device, then, done: false }
    }

    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl<P: Platform> Drop for Leaving<'_, P> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.leave_behind(self.device, self.then);
        }
    }
}

impl<P: Platform> Shared<P> {
    /// Has a worker take back what hardware knows of a device. Allocates nothing, waits for nothing.
    pub(crate) fn leave_behind(&self, device: &Device<P>, then: Then) {
        self.devices.leave_behind(device, then);
        self.hub.ask_to_clear();
    }

    /// Does that for each device that was left behind. Sleepable context.
    pub(crate) fn clear_left(&self, cx: &Sleep<'_>) {
        while let Some((device, then)) = self.devices.next_left() {
            if block_on(&self.hub, cx, clear(self, &device, then)).is_err() {
                // The platform ends: blocked, or where it rests, it stays.
                return self.devices.leave_behind(&device, then);
            }
        }
    }
}

async fn clear<P: Platform>(shared: &Shared<P>, device: &Device<P>, then: Then) {
    let Device { member, group, .. } = device;
    let _frozen = poll_fn(|_| group.freeze()).await;
    if member.is_up() {
        // Of hardware that is lost, it stays where it is.
        let _ = stop_left(device).await;
        return;
    }
    if member.is_starting() {
        // It is tried again.
        return;
    }
    let instance = member.upstream().and_then(|id| shared.instances.get(id));
    if let Some(instance) = instance {
        // Of hardware that is lost, what it may still reach is kept.
        let _ = Ids { group, member, instance: &instance }.take_back().await;
    }
    if then == Then::Goes {
        shared.forget(device);
    }
}

impl<P: Platform> Shared<P> {
    /// Nobody has the device any more.
    pub(crate) fn forget(&self, device: &Device<P>) {
        device.member.removed();
        device.group.leave(&device.member);
        self.devices.forget(&device.member);
    }
}

impl<P: Platform> Roster<P> {
    /// Keeps a device until a worker has seen to it.
    fn leave_behind(&self, device: &Device<P>, then: Then) {
        let mut left = Some((device.clone(), then));
        self.known.with(|list| {
            let of_it = |k: &&mut Known<P>| core::ptr::eq(k.member.as_ptr(), &*device.member);
            if let Some(known) = list.iter_mut().find(of_it) {
                core::mem::swap(&mut known.left, &mut left);
            }
        });
        // Not under the lock.
        drop(left);
    }

    /// One that was left behind, now the caller's to see to.
    fn next_left(&self) -> Option<(Device<P>, Then)> {
        self.known.with(|list| list.iter_mut().find_map(|known| known.left.take()))
    }
}
