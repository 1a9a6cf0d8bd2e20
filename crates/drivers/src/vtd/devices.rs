//! The requesters that were made known, and what they may do.

use super::directory::Directory;
use alloc::vec::Vec;
use portcullis::{
    Pasid, Platform, ShortLock, SourceId,
    driver::{Features, InvSeq},
};
use portcullis_pgtable::NoMem;

/// A known requester.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) source: SourceId,
    pub(super) features: Features,
    /// Its PASID directory, in scalable mode.
    pub(super) directory: Option<Directory>,
    /// Everything it sends is stopped at its context entry.
    pub(super) cut_off: bool,
    pub(super) drains: Drains,
}

impl Device {
    pub(super) fn new(source: SourceId, features: Features, directory: Option<Directory>) -> Device {
        Device { source, features, directory, cut_off: false, drains: Drains::default() }
    }
}

/// The youngest drain of each attachment point, of the few that are drained at once. Further ones
/// wait until one of these is complete, and one that is not found any more is repeated.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drains([Option<(Option<Pasid>, InvSeq)>; 4]);

impl Drains {
    /// Whether one more can be noted while submissions up to `resolved` are complete. One that is
    /// under way is not displaced: its owner would have to begin again, and displace the next.
    pub(super) fn has_room(&self, pasid: Option<Pasid>, resolved: InvSeq) -> bool {
        self.0.iter().any(|d| d.is_none_or(|(p, seq)| p == pasid || seq <= resolved))
    }

    pub(super) fn note(&mut self, pasid: Option<Pasid>, seq: InvSeq) {
        let same = self.0.iter().position(|d| d.is_some_and(|(p, _)| p == pasid));
        let place = same.or_else(|| (0..self.0.len()).min_by_key(|i| self.0[*i].map(|(_, s)| s)));
        if let Some(place) = place {
            self.0[place] = Some((pasid, seq));
        }
    }

    pub(super) fn find(&self, pasid: Option<Pasid>) -> Option<InvSeq> {
        let found = self.0.iter().flatten().find(|(p, _)| *p == pasid);
        found.map(|(_, seq)| *seq)
    }

    /// The drain has told where it ends.
    pub(super) fn forget(&mut self, pasid: Option<Pasid>) {
        for d in &mut self.0 {
            if d.is_some_and(|(p, _)| p == pasid) {
                *d = None;
            }
        }
    }
}

/// The known requesters, sorted.
pub(super) struct Devices<P: Platform>(P::Lock<Vec<Device>>);

/// Why a requester was not added.
pub(super) enum AddError {
    NoMem,
    Known,
}

impl<P: Platform> Devices<P> {
    pub(super) fn new(platform: &P) -> Devices<P> {
        Devices(platform.lock(Vec::new()))
    }

    pub(super) fn get(&self, source: SourceId) -> Option<Device> {
        self.0.with(|d| find(d, source).ok().map(|i| d[i]))
    }

    /// Changes what is known of a requester; `None` if it is not known.
    pub(super) fn update<R>(&self, source: SourceId, f: impl FnOnce(&mut Device) -> R) -> Option<R> {
        self.0.with(|d| find(d, source).ok().map(|i| f(&mut d[i])))
    }

    /// Adds a requester. Allocates outside the lock, so that it may have to look again.
    pub(super) fn add(&self, device: Device) -> Result<(), AddError> {
        let mut spare: Vec<Device> = Vec::new();
        loop {
            let outcome = self.0.with(|d| {
                let Err(at) = find(d, device.source) else {
                    return Some(Err(AddError::Known));
                };
                if d.len() == d.capacity() {
                    if spare.capacity() <= d.len() {
                        return None;
                    }
                    spare.extend_from_slice(d);
                    core::mem::swap(d, &mut spare);
                }
                d.insert(at, device);
                Some(Ok(()))
            });
            if let Some(outcome) = outcome {
                return outcome;
            }
            let wanted = self.0.with(|d| d.len() * 2 + 4);
            spare = Vec::new();
            spare.try_reserve_exact(wanted).map_err(|_| AddError::NoMem)?;
        }
    }

    pub(super) fn remove(&self, source: SourceId) -> Option<Device> {
        self.0.with(|d| find(d, source).ok().map(|i| d.remove(i)))
    }
}

impl From<NoMem> for AddError {
    fn from(_: NoMem) -> AddError {
        AddError::NoMem
    }
}

fn find(devices: &[Device], source: SourceId) -> Result<usize, usize> {
    devices.binary_search_by_key(&source, |d| d.source)
}
