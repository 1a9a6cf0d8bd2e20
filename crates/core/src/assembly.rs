//! Groups of which the last request has not come: found by requester, PASID and index without a
//! search, ended in order of arrival. The service turn alone uses it.

use crate::{error::OutOfMemory, ids::Key, links::List, platform::Time, record::Chain};
use alloc::vec::Vec;

/// A group of which the last request has not come.
#[derive(Clone, Copy)]
pub(crate) struct Partial {
    pub(crate) key: GroupKey,
    /// The device's account, and its life then.
    pub(crate) account: u32,
    pub(crate) life: u32,
    /// The table of places had this version when account and tenant were found, or last compared.
    pub(crate) version: u64,
    /// What was attached when its first request came; its requests are charged there.
    pub(crate) tenant: Option<Key>,
    pub(crate) first: Chain,
    /// A request of it was refused: the group is answered Invalid as a whole.
    pub(crate) spoilt: bool,
    pub(crate) until: Time,
}

/// What tells groups apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupKey {
    /// The key of the place that it comes from.
    pub(crate) place: u64,
    /// Page request group index.
    pub(crate) index: u16,
}

impl GroupKey {
    #[inline]
    fn hash(self) -> usize {
        let mixed = (self.place ^ u64::from(self.index) << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize
    }
}

const NONE: u32 = u32::MAX;

/// All partial groups of an instance.
pub(crate) struct Assembly {
    partials: Vec<Option<Partial>>,
    free: Vec<u32>,
    order: List,
    /// Partials by hash; at least half of it is empty.
    index: Vec<u32>,
    len: usize,
}

impl Assembly {
    /// Room for so many groups.
    pub(crate) fn new(slots: usize) -> Result<Assembly, OutOfMemory> {
        let fits = |_| OutOfMemory;
        let (mut partials, mut index) = (Vec::new(), Vec::new());
        let mut free = Vec::new();
        let hashes = slots.max(1).checked_mul(2).and_then(usize::checked_next_power_of_two);
        let hashes = hashes.ok_or(OutOfMemory)?;
        partials.try_reserve_exact(slots).map_err(fits)?;
        index.try_reserve_exact(hashes).map_err(fits)?;
        free.try_reserve_exact(slots).map_err(fits)?;
        partials.resize(slots, None);
        index.resize(hashes, NONE);
        free.extend((0..slots as u32).rev());
        Ok(Assembly { partials, free, order: List::new(slots)?, index, len: 0 })
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The partial group with a key.
    #[inline]
    pub(crate) fn find(&mut self, key: GroupKey) -> Option<&mut Partial> {
        let n = self.number(key)?;
        self.get_mut(n)
    }

    /// The number of the partial group with a key.
    #[inline]
    pub(crate) fn number(&self, key: GroupKey) -> Option<u32> {
        let mask = self.index.len() - 1;
        let mut at = key.hash() & mask;
        loop {
            match self.index[at] {
                NONE => return None,
                n if self.get(n).is_some_and(|p| p.key == key) => return Some(n),
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// Begins a group that is not found. False when there is no room.
    #[inline(always)]
    pub(crate) fn begin(&mut self, partial: Partial) -> bool {
        let Some(n) = self.free.pop() else { return false };
        let mask = self.index.len() - 1;
        let mut at = partial.key.hash() & mask;
        self.partials[n as usize] = Some(partial);
        while self.index[at] != NONE {
            at = (at + 1) & mask;
        }
        self.index[at] = n;
        self.order.push(n);
        self.len += 1;
        true
    }

    #[inline]
    pub(crate) fn get(&self, n: u32) -> Option<&Partial> {
        self.partials.get(n as usize)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, n: u32) -> Option<&mut Partial> {
        self.partials.get_mut(n as usize)?.as_mut()
    }

    /// Takes a partial group out. Its pages are the caller's.
    #[inline]
    pub(crate) fn end(&mut self, n: u32) {
        let Some(place) = self.partials.get_mut(n as usize) else { return };
        let Some(Partial { key, .. }) = *place else { return };
        *place = None;
        self.unhash(key, n);
        self.order.remove(n);
        self.free.push(n);
        self.len -= 1;
    }

    /// The oldest partial group.
    pub(crate) fn first(&self) -> Option<u32> {
        self.order.first()
    }

    /// The next younger one.
    pub(crate) fn after(&self, n: u32) -> Option<u32> {
        self.order.after(n)
    }

    #[inline]
    fn unhash(&mut self, key: GroupKey, n: u32) {
        let mask = self.index.len() - 1;
        let mut hole = key.hash() & mask;
        while self.index[hole] != n {
            hole = (hole + 1) & mask;
        }
        let mut next = (hole + 1) & mask;
        while let Some(p) = self.partials.get(self.index[next] as usize) {
            // The partial taken out is the only hole in the list of what is hashed.
            let home = p.as_ref().map_or(next, |p| p.key.hash() & mask);
            if next.wrapping_sub(home) & mask >= next.wrapping_sub(hole) & mask {
                self.index[hole] = self.index[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.index[hole] = NONE;
    }
}
