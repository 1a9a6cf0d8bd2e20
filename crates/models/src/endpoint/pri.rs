//! Outstanding page request groups of an endpoint.

use std::collections::{BTreeMap, BTreeSet};

use crate::bus::{Pasid, PrivateData, ResponseCode};

/// A group whose last request has been sent and whose responses are awaited.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// Number over the life of the complex.
    pub(crate) number: u64,
    /// Accesses that wait for it.
    pub(crate) tickets: Vec<u64>,
    /// Page requests in it: the credits it holds.
    pub(crate) requests: u32,
    /// When its last request was sent.
    pub(crate) sent: u64,
    /// The private data of each request that awaits a response; `None` for a last one without.
    pub(crate) awaits: Vec<Option<PrivateData>>,
    /// The worst response so far.
    pub(crate) code: ResponseCode,
}

/// Key of a group on the wire.
pub(crate) type Key = (Option<Pasid>, u16);

/// Groups by PASID and index.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    open: BTreeMap<Key, Group>,
    /// Made void by a reset; a response may still come.
    void: BTreeSet<(Key, Option<PrivateData>)>,
    next_index: u16,
    next_number: u64,
}

impl Groups {
    /// Group indices are 9 bits.
    pub(crate) const INDICES: u16 = 512;

    /// Numbers of different endpoints differ: `base` goes into the upper half.
    pub(crate) fn new(base: u16) -> Self {
        Groups { next_number: (u64::from(base) << 40) + 1, ..Groups::default() }
    }

    /// A fresh number for a group.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// A free index for this PASID, if there is one. Indices that a reset made void are used last.
    pub(crate) fn free_index(&mut self, pasid: Option<Pasid>) -> Option<u16> {
        let start = self.next_index;
        let round = (0..Self::INDICES).map(|i| (start + i) % Self::INDICES);
        let free = |i: &u16| !self.open.contains_key(&(pasid, *i));
        let clean = round.clone().find(|i| free(i) && !self.void.iter().any(|(key, _)| *key == (pasid, *i)));
        let index = clean.or_else(|| round.clone().find(free))?;
        self.next_index = (index + 1) % Self::INDICES;
        Some(index)
    }

    pub(crate) fn open(&mut self, key: Key, group: Group) {
        self.open.insert(key, group);
    }

    /// Requests outstanding.
    pub(crate) fn requests(&self) -> u32 {
        self.open.values().map(|g| g.requests).sum()
    }

    /// True where a free index is not certain.
    pub(crate) fn is_full(&self) -> bool {
        self.open.len() >= usize::from(Self::INDICES)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// A response has come. Returns the number of the group that waited for it, and the group
    /// itself if it was the last it waited for.
    pub(crate) fn answered(
        &mut self,
        key: Key,
        private: Option<PrivateData>,
        code: ResponseCode,
    ) -> Option<(u64, Option<Group>)> {
        let group = self.open.get_mut(&key)?;
        let at = group.awaits.iter().position(|p| *p == private)?;
        group.awaits.swap_remove(at);
        group.code = group.code.max(code);
        let number = group.number;
        let ended = group.awaits.is_empty().then(|| self.open.remove(&key)).flatten();
        Some((number, ended))
    }

    /// A response has come that no open group waits for: true where a reset explains it. It is
    /// explained once.
    pub(crate) fn was_void(&mut self, key: Key, private: Option<PrivateData>) -> bool {
        self.void.remove(&(key, private))
    }

    /// Makes everything void, and says what.
    pub(crate) fn void_all(&mut self) -> Vec<(Key, Group)> {
        let open = std::mem::take(&mut self.open);
        self.void.extend(open.iter().flat_map(|(key, g)| g.awaits.iter().map(|p| (*key, *p))));
        open.into_iter().collect()
    }
}
