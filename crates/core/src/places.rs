//! What attaching, detaching, resetting and adding devices ask of the fault path. Everything that
//! names a requester or a place of one goes through here; sleepable context.

use crate::{
    attachment::Inner,
    driver::{Features, QueuePos},
    error::AddDeviceError,
    faultlog::FaultLog,
    ids::{At, DeviceId, GroupId, Key, SourceId},
    instance::Instance,
    platform::{Platform, ShortLock},
    quell::Weather,
    sources::{Counters, Phase, Slot, Source},
};
use alloc::sync::Arc;

impl<P: Platform> Instance<P> {
    /// Takes a requester in that nobody has. Allocates what the fault path needs for it.
    pub(crate) fn learn(
        &self,
        device: DeviceId,
        group: GroupId,
        id: SourceId,
        features: Features,
    ) -> Result<(), AddDeviceError> {
        let config = self.config();
        let share = config.credits_per_device as usize;
        let faults = FaultLog::new(config.last_faults)?;
        let places = config.attachments_per_device;
        let weather = Weather::new(&config.storms);
        let mut new = Some(Source::new(id, device, group, features, places, share, faults, weather)?);
        self.state.with(|s| {
            if s.sources.get(id).is_some() {
                return Err(AddDeviceError::Duplicate(device));
            }
            if s.sources.room() == 0 {
                return Err(AddDeviceError::TooMany(self.id()));
            }
            new.take().into_iter().for_each(|src| s.sources.insert(src));
            Ok(())
        })
    }

    /// One more device has a requester that is known.
    pub(crate) fn share(&self, source: SourceId, device: DeviceId) -> Result<(), AddDeviceError> {
        self.state.with(|s| {
            let src = s.sources.get_mut(source).ok_or(AddDeviceError::Duplicate(device))?;
            src.sharers += 1;
            Ok(())
        })
    }

    /// A requester belongs to one device less; `other` has it still.
    pub(crate) fn unshare(&self, source: SourceId, other: Option<DeviceId>) {
        self.with_source(source, |src| {
            src.sharers = src.sharers.saturating_sub(1);
            src.device = other.unwrap_or(src.device);
        });
    }

    /// Lets a requester go, after everything of it was made void.
    pub(crate) fn forget(&self, source: SourceId) {
        let gone = self.state.with(|s| s.sources.remove(source));
        drop(gone);
    }

    /// What is switched on for a requester.
    pub(crate) fn features(&self, source: SourceId) -> Features {
        self.state.with(|s| s.sources.get(source).map(|src| src.features)).unwrap_or_default()
    }

    /// Remembers what the driver has switched.
    pub(crate) fn set_features(&self, source: SourceId, features: Features) {
        self.with_source(source, |src| src.features = features);
    }

    /// What was counted of a device since it was added.
    pub(crate) fn counters(&self, source: SourceId) -> Counters {
        self.state.with(|s| s.sources.get(source).map(|src| src.counters)).unwrap_or_default()
    }

    /// Credits for a device that can have `wanted` requests outstanding; `None` when none are left.
    pub(crate) fn take_credits(&self, wanted: u32) -> Option<u32> {
        self.state.with(|s| s.credits.take(wanted))
    }

    /// Gives credits back.
    pub(crate) fn give_credits(&self, share: u32) {
        self.state.with(|s| s.credits.give_back(share));
    }

    /// Lets a requester have so many page requests outstanding; 0 while it may make none.
    pub(crate) fn set_share(&self, source: SourceId, share: u32) {
        self.with_source(source, |src| {
            src.share = share;
            src.asked |= share > 0;
        });
    }

    /// Between the block and the end of a reset what a requester sends is void.
    pub(crate) fn set_resetting(&self, source: SourceId, resetting: bool) {
        self.with_source(source, |src| src.resetting = resetting);
    }

    /// Whether a requester may have sent page requests that did not arrive. Also when they are off
    /// now: another attachment's end may have switched them off a moment ago.
    pub(crate) fn may_have_asked(&self, source: SourceId) -> bool {
        self.state.with(|s| s.sources.get(source).is_some_and(|src| src.features.pri || src.asked))
    }

    /// Whether the head of a service turn has passed a position of the page-request queue.
    pub(crate) fn has_passed(&self, tail: QueuePos) -> bool {
        self.state.with(|s| s.head >= tail)
    }

    /// Puts an attachment where the fault path finds it, in the place of one that it replaces.
    /// False when there is no room, or the requester is not known.
    pub(crate) fn show(&self, at: At, phase: Phase, inner: &Arc<Inner<P>>) -> bool {
        let (shown, old) = self.state.with(|s| {
            let Some(src) = s.sources.get_mut(at.source) else { return (false, None) };
            let new = Slot { pasid: at.pasid, phase, inner: inner.clone() };
            if let Some(slot) = src.slot(at.pasid) {
                return (true, Some(core::mem::replace(slot, new)));
            }
            if src.slots.len() == src.slots.capacity() {
                return (false, Some(new));
            }
            src.slots.push(new);
            (true, None)
        });
        drop(old);
        shown
    }

    /// What comes for an attachment from now on is answered Invalid. Nothing happens when another
    /// one stands at the place.
    pub(crate) fn set_draining(&self, at: At, key: Key) {
        self.with_source(at.source, |src| {
            if let Some(slot) = src.slot(at.pasid).filter(|slot| slot.inner.key == key) {
                slot.phase = Phase::Draining;
            }
        });
    }

    /// Takes an attachment out of a place, unless another one stands there.
    pub(crate) fn hide(&self, at: At, key: Key) {
        let slot = self.state.with(|s| {
            let src = s.sources.get_mut(at.source)?;
            let i = src.slots.iter().position(|slot| slot.pasid == at.pasid && slot.inner.key == key)?;
            Some(src.slots.swap_remove(i))
        });
        drop(slot);
    }

    /// The attachment at a requester's next place after `last`.
    pub(crate) fn attached_after(&self, source: SourceId, last: Option<At>) -> Option<(At, Arc<Inner<P>>)> {
        self.state.with(|s| {
            let slots = s.sources.get(source)?.slots.iter();
            let places = slots.map(|slot| (At { source, pasid: slot.pasid }, &slot.inner));
            let (at, inner) = places.filter(|(at, _)| Some(*at) > last).min_by_key(|(at, _)| *at)?;
            Some((at, inner.clone()))
        })
    }

    fn with_source(&self, source: SourceId, change: impl FnOnce(&mut Source<P>)) {
        self.state.with(|s| {
            if let Some(src) = s.sources.get_mut(source) {
                change(src);
            }
        });
    }
}
