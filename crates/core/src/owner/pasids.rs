//! PASIDs that are given out: of one device, or for all devices at once.

use super::given::{Given, Room};
use crate::{
    device::Device,
    error::NoPasid,
    ids::Pasid,
    platform::{Platform, ShortLock},
};
use alloc::sync::Arc;
use core::fmt;

/// A number space of PASIDs.
pub(crate) struct Pasids<P: Platform> {
    given: P::Lock<Given>,
}

impl<P: Platform> Pasids<P> {
    pub(crate) fn new(platform: &P) -> Self {
        Pasids { given: platform.lock(Given::default()) }
    }

    /// The lowest PASID from `from` to `last` that is not given out. Allocates.
    fn take(self: &Arc<Self>, from: u32, last: u32) -> Result<OwnedPasid<P>, NoPasid> {
        let mut room = Room::default();
        loop {
            let taken: Result<_, NoPasid> = self.given.with(|given| {
                let free = given.lowest_free(from.max(1));
                let pasid = Pasid::new(free).filter(|p| p.get() <= last).ok_or(NoPasid::NoneLeft)?;
                match given.lacks(free) {
                    Some(words) if words > room.words() => return Ok(Err(words)),
                    Some(_) => given.move_into(&mut room),
                    None => {}
                }
                given.set(free);
                Ok(Ok(pasid))
            });
            match taken? {
                Ok(pasid) => return Ok(OwnedPasid { space: self.clone(), pasid }),
                Err(words) => room = Room::new(words)?,
            }
        }
    }

    /// How many are given out.
    pub(crate) fn len(&self) -> usize {
        self.given.with(|given| given.count())
    }

    /// A PASID of this space, for use with any device.
    pub(crate) fn take_for_all(self: &Arc<Self>) -> Result<OwnedPasid<P>, NoPasid> {
        self.take(1, Pasid::MAX)
    }
}

/// A PASID that nobody else is given. Dropped, it can be given out again: once nothing is attached
/// under it any more and no request of that life can arrive, which is when a detach is over.
///
/// What is attached under the number is no matter of its owner: it stays attached.
#[must_use = "a PASID that is dropped is given to somebody else"]
pub struct OwnedPasid<P: Platform> {
    space: Arc<Pasids<P>>,
    pasid: Pasid,
}

impl<P: Platform> OwnedPasid<P> {
    /// The number.
    pub fn get(&self) -> Pasid {
        self.pasid
    }
}

impl<P: Platform> Drop for OwnedPasid<P> {
    fn drop(&mut self) {
        self.space.given.with(|given| given.clear(self.pasid.get()));
    }
}

impl<P: Platform> fmt::Debug for OwnedPasid<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnedPasid({})", self.pasid)
    }
}

impl<P: Platform> Device<P> {
    /// A PASID for use with this device alone: the lowest that nobody owns here and that nothing is
    /// attached under. One that its owner dropped is in quarantine until the detach under it is
    /// over. Allocates.
    ///
    /// # Errors
    /// See [`NoPasid`].
    pub fn take_pasid(&self) -> Result<OwnedPasid<P>, NoPasid> {
        let device = self.member.up()?;
        let last = device.last_pasid();
        let mut from = 1;
        loop {
            // Taken first and looked at after: what is free then stays so.
            let taken = device.pasids.take(from, last)?;
            if !self.group.is_occupied(taken.get()) {
                return Ok(taken);
            }
            from = taken.get().get() + 1;
        }
    }
}
