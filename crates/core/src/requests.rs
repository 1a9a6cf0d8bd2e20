//! Records of page requests: fixed when the instance is registered, so that nothing a device sends
//! allocates.

use crate::{
    driver::PageRequest,
    error::OutOfMemory,
    ids::{DeviceId, Key, SourceId},
    platform::Time,
};
use alloc::vec::Vec;
use portcullis_sync::slot::Generation;

/// A group whose last request has come. Its index is that of its slot word.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub(crate) generation: Generation,
    pub(crate) last: PageRequest,
    pub(crate) first: Chain,
    pub(crate) device: Option<DeviceId>,
    /// The attachment whose resolver it waits for.
    pub(crate) owner: Option<Key>,
    /// The answer is decided and found no room in the hardware's queue.
    pub(crate) unsent: bool,
    /// How many of its requests count against the device's share.
    pub(crate) charge: u32,
    pub(crate) until: Option<Time>,
}

/// A list of stored requests, first to last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chain {
    ends: Option<(u32, u32)>,
    pub(crate) len: u32,
}

struct Stored {
    request: PageRequest,
    next: Option<u32>,
}

pub(crate) struct Requests {
    groups: Vec<Option<Group>>,
    free_groups: Vec<u32>,
    stored: Vec<Stored>,
    free_stored: Option<u32>,
    /// The earliest deadline of a group or a partial; late by design when it was met early.
    pub(crate) next_deadline: Option<Time>,
    pub(crate) unsent: u32,
}

impl Requests {
    /// Room for `slots` groups, and as many requests that wait for the last of their group.
    pub(crate) fn new(slots: usize) -> Result<Self, OutOfMemory> {
        let mut groups = Vec::new();
        let mut free_groups = Vec::new();
        let mut stored = Vec::new();
        groups.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        free_groups.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        stored.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        groups.resize(slots, None);
        free_groups.extend((0..slots as u32).rev());
        Ok(Requests { groups, free_groups, stored, free_stored: None, next_deadline: None, unsent: 0 })
    }

    pub(crate) fn free_slot(&self) -> Option<u32> {
        self.free_groups.last().copied()
    }

    /// Puts a group into the slot that [`Requests::free_slot`] named.
    pub(crate) fn occupy(&mut self, group: Group) {
        if let Some(slot) = self.free_groups.pop() {
            self.sooner(group.until);
            self.groups[slot as usize] = Some(group);
        }
    }

    pub(crate) fn sooner(&mut self, until: Option<Time>) {
        if let Some(t) = until {
            self.next_deadline = Some(self.next_deadline.map_or(t, |n| n.min(t)));
        }
    }

    pub(crate) fn group(&mut self, slot: u32, generation: Generation) -> Option<&mut Group> {
        self.groups.get_mut(slot as usize)?.as_mut().filter(|g| g.generation == generation)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = (u32, &Group)> {
        self.groups.iter().enumerate().filter_map(|(i, g)| Some((i as u32, g.as_ref()?)))
    }

    pub(crate) fn groups_of(&self, source: SourceId) -> impl Iterator<Item = (u32, &Group)> {
        self.groups().filter(move |(_, g)| g.last.source == source)
    }

    /// Empties a slot and frees what was stored for it.
    pub(crate) fn vacate(&mut self, slot: u32, generation: Generation) -> Option<Group> {
        let group = *self.group(slot, generation)?;
        self.groups[slot as usize] = None;
        self.free_groups.push(slot);
        self.drop_chain(group.first);
        if group.unsent {
            self.unsent -= 1;
        }
        Some(group)
    }

    /// Appends a request to a chain. False when there is no room.
    pub(crate) fn store(&mut self, chain: &mut Chain, request: PageRequest) -> bool {
        let item = Stored { request, next: None };
        let at = match self.free_stored {
            Some(i) => {
                self.free_stored = self.stored[i as usize].next;
                self.stored[i as usize] = item;
                i
            }
            None if self.stored.len() < self.stored.capacity() => {
                self.stored.push(item);
                (self.stored.len() - 1) as u32
            }
            None => return false,
        };
        chain.ends = Some(match chain.ends {
            Some((first, last)) => {
                self.stored[last as usize].next = Some(at);
                (first, at)
            }
            None => (at, at),
        });
        chain.len += 1;
        true
    }

    pub(crate) fn drop_chain(&mut self, chain: Chain) {
        if let Some((first, last)) = chain.ends {
            self.stored[last as usize].next = self.free_stored;
            self.free_stored = Some(first);
        }
    }

    /// The `n`th request of a group, the last one included.
    pub(crate) fn request(&mut self, slot: u32, generation: Generation, n: u32) -> Option<PageRequest> {
        let group = *self.group(slot, generation)?;
        if n >= group.first.len {
            return (n == group.first.len).then_some(group.last);
        }
        let (mut at, _) = group.first.ends?;
        for _ in 0..n {
            at = self.stored[at as usize].next?;
        }
        Some(self.stored[at as usize].request)
    }
}
