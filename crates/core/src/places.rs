//! What attaching, detaching, resetting and adding devices ask of the fault path. Everything that
//! names a requester or a place of one goes through here; sleepable context.

use crate::{
    account::Account,
    attachment::Inner,
    driver::Features,
    error::AddDeviceError,
    faultlog::FaultLog,
    ids::{At, DeviceId, GroupId, Key, Pasid, SourceId},
    instance::Instance,
    platform::{Platform, ShortLock},
    quell::Weather,
    sources::{Counters, Phase, Slot, Source},
    stall::switch::Switch,
};
use alloc::sync::Arc;
use portcullis_sync::lookup::Found;

/// What stands for a place that requests come from.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The number of the device's account.
    pub(crate) account: u32,
    /// What is attached there.
    pub(crate) tenant: Option<Key>,
}

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
        let faults = FaultLog::new(config.last_faults)?;
        let weather = Weather::new(&config.storms);
        let places = config.attachments_per_device;
        let mut new = Some(Source::new(id, device, group, features, places, faults, weather)?);
        self.state.with(|s| {
            if s.sources.get(id).is_some() {
                return Err(AddDeviceError::Duplicate(device));
            }
            let used = |n: u32| s.sources.iter().any(|src| src.account == n);
            let account = (0..self.accounts.len() as u32).find(|n| !used(*n));
            let (Some(account), true) = (account, s.sources.room() > 0) else {
                return Err(AddDeviceError::TooMany(self.id()));
            };
            self.accounts[account as usize].open(Some(device));
            // The table has places enough for every requester.
            s.places.set(&self.places, source_key(id), [value(account, 0), 0]);
            if let Some(mut source) = new.take() {
                source.account = account;
                s.sources.insert(source);
            }
            Ok(())
        })
    }

    /// One more device has a requester that is known.
    pub(crate) fn share(&self, source: SourceId, device: DeviceId) -> Result<(), AddDeviceError> {
        self.state.with(|s| {
            let src = s.sources.get_mut(source).ok_or(AddDeviceError::Duplicate(device))?;
            src.sharers += 1;
            self.account_of(src).name(src.named());
            Ok(())
        })
    }

    /// A requester belongs to one device less; `other` has it still.
    pub(crate) fn unshare(&self, source: SourceId, other: Option<DeviceId>) {
        self.with_source(source, |src| {
            src.sharers = src.sharers.saturating_sub(1);
            src.device = other.unwrap_or(src.device);
            self.account_of(src).name(src.named());
        });
    }

    /// Lets a requester go, after everything of it was made void.
    pub(crate) fn forget(&self, source: SourceId) {
        let gone = self.state.with(|s| {
            s.places.remove(&self.places, source_key(source));
            s.sources.remove(source)
        });
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
        self.tidy();
        let known = self.state.with(|s| s.sources.get(source).map(|src| (src.account, src.fault_count)));
        let mut counters = Counters::default();
        if let Some((account, faults)) = known {
            self.accounts[account as usize].read(&mut counters);
            counters.faults = faults;
        }
        counters
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
            self.account_of(src).set_share(share);
            src.asked |= share > 0;
        });
    }

    /// Between the block and the end of a reset what a requester sends is void.
    pub(crate) fn set_resetting(&self, source: SourceId, resetting: bool) {
        self.with_source(source, |src| {
            src.resetting = resetting;
            self.account_of(src).set_resetting(resetting);
        });
    }

    /// Whether a requester may have sent page requests, or stalled, and that did not arrive. Also when
    /// they are off now: another attachment's end may have switched them off a moment ago.
    pub(crate) fn may_have_asked(&self, source: SourceId) -> bool {
        self.state.with(|s| s.sources.get(source).is_some_and(|src| src.features.pri || src.asked))
    }

    /// Puts an attachment where the fault path finds it, in the place of one that it replaces.
    /// False when there is no room, or the requester is not known.
    pub(crate) fn show(&self, at: At, phase: Phase, inner: &Arc<Inner<P>>) -> bool {
        let attachments = &self.hub.attachments;
        attachments.fill(inner);
        let (shown, old) = self.state.with(|s| {
            let requesters = s.sources.len();
            let Some(src) = s.sources.get_mut(at.source) else { return (false, None) };
            let new = Slot { pasid: at.pasid, inner: inner.clone(), stall: Switch::Off, leaving: false };
            let slot = src.slots.iter().position(|s| s.pasid == at.pasid);
            if slot.is_none() && src.slots.len() == src.slots.capacity() {
                return (false, Some(new));
            }
            let Key { index, generation } = inner.key;
            let found = [value(src.account, index), generation];
            // What else the table has room for is the requesters'.
            let taken = s.places.len().saturating_sub(requesters);
            let full = taken >= self.config().attachments.saturating_mul(2);
            if full && slot.is_none() || !s.places.set(&self.places, place_key(at.source, at.pasid), found) {
                return (false, Some(new));
            }
            match slot {
                Some(n) => {
                    // The hardware's switch is the place's, whoever is attached.
                    let new = Slot { stall: src.slots[n].stall, ..new };
                    (true, Some(core::mem::replace(&mut src.slots[n], new)))
                }
                None => {
                    src.slots.push(new);
                    (true, None)
                }
            }
        });
        drop(old);
        if shown && phase == Phase::Attached {
            attachments.open(inner.key);
        }
        shown
    }

    /// A place is about to be hidden, while its attachment goes on elsewhere: nothing stalls there.
    pub(crate) fn set_leaving(&self, at: At) {
        self.with_source(at.source, |src| {
            src.slots.iter_mut().filter(|s| s.pasid == at.pasid).for_each(|s| s.leaving = true);
        });
    }

    /// What comes for an attachment from now on is answered Invalid. Nothing happens when another
    /// one stands at the place.
    pub(crate) fn set_draining(&self, _: At, key: Key) {
        self.hub.attachments.close(key);
    }

    /// Takes an attachment out of a place, unless another one stands there.
    pub(crate) fn hide(&self, at: At, key: Key) {
        let slot = self.state.with(|s| {
            let src = s.sources.get_mut(at.source)?;
            let i = src.slots.iter().position(|slot| slot.pasid == at.pasid && slot.inner.key == key)?;
            s.places.remove(&self.places, place_key(at.source, at.pasid));
            Some(src.slots.swap_remove(i))
        });
        drop(slot);
    }

    /// What stands for the place that a request came from. `None` for a requester that nobody
    /// knows. Service context.
    pub(crate) fn place(&self, source: SourceId, pasid: Option<Pasid>) -> Option<Place> {
        let found = |key| match self.places.find(key) {
            Found::Value(v) => Some(v),
            Found::Nothing => None,
            Found::Changing => self.state.with(|s| s.places.get(&self.places, key)),
        };
        let (numbers, generation) = match found(place_key(source, pasid)) {
            Some([numbers, generation]) => (numbers, Some(generation)),
            None => (found(source_key(source))?[0], None),
        };
        let tenant = generation.map(|generation| Key { index: numbers as u32, generation });
        Some(Place { account: (numbers >> 32) as u32, tenant })
    }

    pub(crate) fn account_of(&self, source: &Source<P>) -> &Account {
        &self.accounts[source.account as usize]
    }

    pub(crate) fn account(&self, source: SourceId) -> Option<&Account> {
        let n = self.state.with(|s| s.sources.get(source).map(|src| src.account))?;
        self.accounts.get(n as usize)
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

/// The key of a requester in the table of places: beside what no PASID has.
fn source_key(source: SourceId) -> u64 {
    place_key(source, None) | 1 << 31
}

/// The key of a place. Never all ones: a PASID has 20 bits.
#[inline]
pub(crate) fn place_key(source: SourceId, pasid: Option<Pasid>) -> u64 {
    u64::from(source.0) << 32 | u64::from(pasid.map_or(0, Pasid::get))
}

fn value(account: u32, index: u32) -> u64 {
    u64::from(account) << 32 | u64::from(index)
}
