//! Who takes part in an attachment, and where: read as it is at the moment, since a device may join.

use crate::{
    device::{Device, DeviceInner},
    error::OutOfMemory,
    ids::At,
    platform::{Platform, ShortLock},
    reserved::ReservedRegion,
};
use alloc::{sync::Arc, vec::Vec};
use portcullis_sync::atomic::AtomicBool;

/// The roll of an attachment. Changed by whoever has the group frozen.
pub(crate) struct Rolls<P: Platform>(P::Lock<State<P>>);

struct State<P: Platform> {
    now: Arc<Roll<P>>,
    joining: Option<Arc<Joining<P>>>,
}

/// A join that is not over: of the last device of the roll.
pub(crate) struct Joining<P: Platform> {
    pub(crate) before: Arc<Roll<P>>,
    /// The domain maps the device's direct regions.
    pub(crate) pinned: AtomicBool,
}

impl<P: Platform> Rolls<P> {
    pub(crate) fn new(platform: &P, roll: Roll<P>) -> Rolls<P> {
        Rolls(platform.lock(State { now: Arc::new(roll), joining: None }))
    }

    pub(crate) fn now(&self) -> Arc<Roll<P>> {
        self.0.with(|s| s.now.clone())
    }

    pub(crate) fn joining(&self) -> Option<Arc<Joining<P>>> {
        self.0.with(|s| s.joining.clone())
    }

    pub(crate) fn begin(&self, now: Arc<Roll<P>>, joining: Arc<Joining<P>>) {
        self.set(now, Some(joining));
    }

    /// The device belongs to it.
    pub(crate) fn joined(&self) {
        self.set(self.now(), None);
    }

    /// It does not.
    pub(crate) fn parted(&self, before: Arc<Roll<P>>) {
        self.set(before, None);
    }

    fn set(&self, now: Arc<Roll<P>>, joining: Option<Arc<Joining<P>>>) {
        let old = self.0.with(|s| core::mem::replace(s, State { now, joining }));
        drop(old);
    }
}

/// In the order in which they came: a device that joins is appended.
pub(crate) struct Roll<P: Platform> {
    /// Every place of the group: each id of each member, once.
    pub(crate) places: Vec<At>,
    /// The members.
    pub(crate) devices: Vec<Arc<DeviceInner<P>>>,
}

impl<P: Platform> Roll<P> {
    /// The direct regions of all that take part, as far as the holder of this handle must map them.
    pub(crate) fn direct<'r>(
        &'r self,
        named: &'r Device<P>,
    ) -> impl Iterator<Item = &'r ReservedRegion> + Clone {
        self.devices.iter().flat_map(move |d| named.direct_of(&d.spec))
    }

    /// The places that were appended to another.
    pub(crate) fn after(&self, before: &Roll<P>) -> &[At] {
        self.places.get(before.places.len()..).unwrap_or(&[])
    }

    /// The same with one device more, at all of its ids that are not there yet.
    pub(crate) fn with(&self, device: &Arc<DeviceInner<P>>, at: At) -> Result<Roll<P>, OutOfMemory> {
        let (mut places, mut devices) = (Vec::new(), Vec::new());
        places.try_reserve_exact(self.places.len() + device.sources().len()).map_err(|_| OutOfMemory)?;
        places.extend_from_slice(&self.places);
        for source in device.sources() {
            let at = At { source: *source, ..at };
            if !places.contains(&at) {
                places.push(at);
            }
        }
        devices.try_reserve_exact(self.devices.len() + 1).map_err(|_| OutOfMemory)?;
        devices.extend(self.devices.iter().chain([device]).cloned());
        Ok(Roll { places, devices })
    }
}
