//! Groups in the hands of callers that can only hold numbers: a program behind a system call, a
//! guest behind a queue.

use crate::{
    error::OutOfMemory,
    ids::{DeviceId, Key},
    platform::{Platform, ShortLock},
    resolver::{Deferred, Response},
    speck::{Block, Speck},
};
use alloc::{collections::VecDeque, vec::Vec};
use core::fmt;

/// Page-request groups that wait for somebody who knows them by a number.
///
/// A cookie names one group, once. Who has seen some cookies can tell nothing about others, and no
/// cookie comes again before the table has given out about as many as its width has numbers, so a
/// number that was not given out, was used before, or is brought by somebody it was not given to is
/// told apart and changes nothing. The groups themselves stay what they are: a deadline, a detach
/// or a reset answers them meanwhile, and dropping the table answers Invalid what is left in it.
///
/// One table serves one owner (a fault queue, a guest): a cookie of another table is forged here.
/// Allocates when it is made and never again. All methods may be called in any context: they hold a
/// short lock, and answer outside it.
///
/// ```
/// # use portcullis::{Claimant, CookieError, Cookies, Platform, Response};
/// /// A program wrote an answer: a cookie, and a code that its interface defines.
/// fn answered<P: Platform>(held: &Cookies<P>, cookie: u64, code: u32) -> Result<(), CookieError> {
///     let response = if code == 0 { Response::Success } else { Response::Invalid };
///     held.respond(cookie, Claimant::Holder, response)
/// }
/// ```
pub struct Cookies<P: Platform> {
    table: P::Lock<Table<P>>,
    speck: Speck,
    /// Bits of a place's number; the rest of a cookie is the generation of the place.
    place_bits: u32,
    capacity: usize,
}

/// How large a number the holder has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookieWidth {
    /// 32 bits, as in iommufd's records.
    Bits32,
    /// 64 bits.
    Bits64,
}

/// Who brings an answer, as far as the caller knows: a group of somebody else is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimant {
    /// Whoever holds the table, and may answer whatever is in it.
    Holder,
    /// Whoever speaks for one device: a guest that it was given to.
    OfDevice(DeviceId),
    /// Whoever speaks for one attachment.
    OfAttachment(Key),
}

/// Why a cookie answered nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CookieError {
    /// The table never gave it out. Nothing changed.
    #[error("cookie {0:#x} was never given out")]
    Forged(u64),
    /// It was used before, or its attachment was detached. Nothing changed.
    #[error("cookie {0:#x} names nothing any more")]
    Stale(u64),
    /// Its group belongs to somebody else than the claimant. Nothing changed.
    #[error("cookie {0:#x} belongs to another device or attachment")]
    Foreign(u64),
    /// A deadline, a detach or a reset answered the group first. The cookie is used up.
    #[error("the group of cookie {0:#x} has been answered already")]
    Answered(u64),
}

struct Table<P: Platform> {
    places: Vec<Place<P>>,
    /// Longest free first, so that generations advance evenly.
    free: VecDeque<u32>,
    /// Where the search for groups that somebody else answered goes on.
    searched: usize,
}

struct Place<P: Platform> {
    /// Of the last cookie given out; 0 before the first.
    generation: u64,
    group: Option<Deferred<P>>,
}

impl<P: Platform> Place<P> {
    fn new() -> Place<P> {
        Place { generation: 0, group: None }
    }
}

impl<P: Platform> Cookies<P> {
    /// Most groups in one table.
    pub const MAX: usize = 1 << 16;

    /// An empty table for `capacity` groups: 1 to [`MAX`](Self::MAX), and the nearest of these for
    /// any other number. Sleepable context: allocates.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(platform: &P, capacity: usize, width: CookieWidth) -> Result<Cookies<P>, OutOfMemory> {
        let capacity = capacity.clamp(1, Self::MAX);
        let (mut places, mut free) = (Vec::new(), VecDeque::new());
        places.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
        free.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
        places.resize_with(capacity, Place::new);
        free.extend(0..capacity as u32);
        let block = match width {
            CookieWidth::Bits32 => Block::Bits32,
            CookieWidth::Bits64 => Block::Bits64,
        };
        let (a, b) = (platform.random(), platform.random());
        let key = match block {
            Block::Bits32 => [a, a >> 16, a >> 32, a >> 48],
            Block::Bits64 => [a, a >> 32, b, b >> 32],
        };
        Ok(Cookies {
            table: platform.lock(Table { places, free, searched: 0 }),
            speck: Speck::new(block, key),
            place_bits: usize::BITS - (capacity - 1).leading_zeros(),
            capacity,
        })
    }

    /// Keeps a group, and returns the number by which it can be answered: never 0. Where the table
    /// is full, a group that somebody else answered meanwhile gives up its place.
    ///
    /// # Errors
    /// The group, when the table is full of groups that still wait.
    pub fn hold(&self, group: Deferred<P>) -> Result<u64, Deferred<P>> {
        // What gives up its place is dropped outside the lock, like any group.
        let (cookie, _answered) = self.table.with(|t| {
            let Some((at, answered)) = t.room() else { return Err(group) };
            let place = &mut t.places[at];
            let cookie = loop {
                place.generation = (place.generation + 1) & self.last_generation();
                // 0 stands for a place of which no cookie was given out.
                let cookie = self.speck.seal(place.generation << self.place_bits | at as u64);
                if place.generation != 0 && cookie != 0 {
                    break cookie;
                }
            };
            place.group = Some(group);
            Ok((cookie, answered))
        })?;
        Ok(cookie)
    }

    /// Answers the group that a cookie names, and uses the cookie up.
    ///
    /// # Errors
    /// See [`CookieError`].
    pub fn respond(&self, cookie: u64, claimant: Claimant, response: Response) -> Result<(), CookieError> {
        let (at, generation) = self.open(cookie).ok_or(CookieError::Forged(cookie))?;
        let group = self.table.with(|t| {
            let place = t.places.get_mut(at).ok_or(CookieError::Forged(cookie))?;
            if generation > place.generation {
                return Err(CookieError::Forged(cookie));
            }
            let current = generation == place.generation;
            let group = place.group.take_if(|g| current && claimant.may_answer(g));
            match group {
                Some(group) => {
                    t.free.push_back(at as u32);
                    Ok(group)
                }
                None if current && place.group.is_some() => Err(CookieError::Foreign(cookie)),
                None => Err(CookieError::Stale(cookie)),
            }
        })?;
        group.respond(response).map_err(|_| CookieError::Answered(cookie))
    }

    /// Answers Invalid what is left of an attachment, and makes its cookies stale. Returns how many
    /// groups that were. For after a detach, which has answered them itself: what this frees is
    /// their places.
    pub fn release(&self, attachment: Key) -> usize {
        self.release_all(|group| group.attachment() == attachment)
    }

    /// Answers Invalid everything in the table.
    pub fn clear(&self) -> usize {
        self.release_all(|_| true)
    }

    fn release_all(&self, which: impl Fn(&Deferred<P>) -> bool) -> usize {
        let mut released = 0;
        for at in 0..self.capacity {
            let group = self.table.with(|t| {
                let group = t.places[at].group.take_if(|g| which(g))?;
                t.free.push_back(at as u32);
                Some(group)
            });
            released += usize::from(group.is_some());
            // Dropped here, outside the lock: that answers it.
            drop(group);
        }
        released
    }

    /// Groups in the table, those included that somebody else answered meanwhile.
    pub fn len(&self) -> usize {
        self.capacity - self.table.with(|t| t.free.len())
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The place and the generation that a cookie stands for. `None` where no cookie does.
    fn open(&self, cookie: u64) -> Option<(usize, u64)> {
        let bits = self.speck.block().bits();
        if cookie == 0 || cookie.checked_shr(bits).is_some_and(|high| high != 0) {
            return None;
        }
        let plain = self.speck.open(cookie);
        let generation = plain >> self.place_bits;
        (generation != 0).then_some(((plain & !(u64::MAX << self.place_bits)) as usize, generation))
    }

    fn last_generation(&self) -> u64 {
        u64::MAX >> (64 - self.speck.block().bits() + self.place_bits)
    }
}

impl<P: Platform> Table<P> {
    /// A place for another group, and the answered one that has to leave it.
    fn room(&mut self) -> Option<(usize, Option<Deferred<P>>)> {
        if let Some(at) = self.free.pop_front() {
            return Some((at as usize, None));
        }
        for _ in 0..self.places.len() {
            let at = self.searched;
            self.searched = (at + 1) % self.places.len();
            if let Some(answered) = self.places[at].group.take_if(|g| !g.is_pending()) {
                return Some((at, Some(answered)));
            }
        }
        None
    }
}

impl Claimant {
    fn may_answer<P: Platform>(self, group: &Deferred<P>) -> bool {
        match self {
            Claimant::Holder => true,
            Claimant::OfDevice(device) => group.device() == device,
            Claimant::OfAttachment(key) => group.attachment() == key,
        }
    }
}

impl<P: Platform> fmt::Debug for Cookies<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cookies").field("len", &self.len()).field("capacity", &self.capacity).finish()
    }
}
