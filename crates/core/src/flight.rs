//! Groups whose last request has come, and stalled transactions, that are not accounted for yet: what
//! the service turn alone knows of each slot.

use crate::{error::OutOfMemory, ids::Key, links::List, platform::Time, record::Chain};
use alloc::vec::Vec;
use core::ops::Range;
use portcullis_sync::slot::Generation;

/// What the turn keeps of a slot's group.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) generation: Generation,
    /// The device's account, and its holder then.
    pub(crate) account: Option<(u32, u32)>,
    /// The attachment that it is charged to.
    pub(crate) tenant: Option<Key>,
    /// How many of its requests are charged to the device, and to the attachment.
    pub(crate) charge: u32,
    pub(crate) tenant_charge: u32,
    pub(crate) first: Chain,
    pub(crate) until: Option<Time>,
    /// Kept for an attachment that is still being made.
    pub(crate) waits: bool,
    /// Its answer is counted, and its charge taken back.
    pub(crate) counted: bool,
}

/// The slots: those of groups first, then those of stalled transactions, which take no room from one
/// another.
pub(crate) struct Flight {
    entries: Vec<Option<Entry>>,
    groups: Yard,
    stalls: Yard,
    /// The first slot that is for a stalled transaction.
    first_stall: u32,
    /// How many stayed, of both.
    len: u32,
    /// Where the search for those that are over goes on; at the oldest where this is none.
    cursor: Option<u32>,
}

/// Slots of one kind: free ones on a stack, the others in order of arrival once a turn left them
/// behind.
struct Yard {
    free: Vec<u32>,
    order: List,
}

impl Yard {
    fn new(slots: Range<u32>) -> Result<Yard, OutOfMemory> {
        let mut free = Vec::new();
        free.try_reserve_exact(slots.len()).map_err(|_| OutOfMemory)?;
        let order = List::new(slots.end as usize)?;
        free.extend(slots.rev());
        Ok(Yard { free, order })
    }
}

impl Flight {
    pub(crate) fn new(groups: usize, stalls: usize) -> Result<Flight, OutOfMemory> {
        let mut entries = Vec::new();
        let (first_stall, slots) = (groups as u32, (groups + stalls) as u32);
        entries.try_reserve_exact(slots as usize).map_err(|_| OutOfMemory)?;
        entries.resize(slots as usize, None);
        let (groups, stalls) = (Yard::new(0..first_stall)?, Yard::new(first_stall..slots)?);
        Ok(Flight { entries, groups, stalls, first_stall, len: 0, cursor: None })
    }

    #[inline]
    fn yard(&mut self, slot: u32) -> &mut Yard {
        if slot < self.first_stall { &mut self.groups } else { &mut self.stalls }
    }

    /// The number of a stalled transaction's slot among those.
    pub(crate) fn stall(&self, slot: u32) -> Option<usize> {
        slot.checked_sub(self.first_stall).map(|n| n as usize)
    }

    /// How many groups stayed behind.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The slot that the next group goes through; it is [`stay`](Self::stay)'s if the group stays, and
    /// else the next one's too.
    #[inline]
    pub(crate) fn next_free(&self) -> Option<u32> {
        self.groups.free.last().copied()
    }

    /// The same of the next stalled transaction.
    pub(crate) fn next_free_stall(&self) -> Option<u32> {
        self.stalls.free.last().copied()
    }

    /// What is in the slot that is the next free one of its kind stays behind when the turn goes on.
    #[inline(always)]
    pub(crate) fn stay(&mut self, slot: u32, entry: Entry) {
        let yard = self.yard(slot);
        yard.free.pop();
        yard.order.push(slot);
        self.entries[slot as usize] = Some(entry);
        self.len += 1;
    }

    /// Frees the slot of one that stayed.
    #[inline]
    pub(crate) fn leave(&mut self, slot: u32) {
        if self.cursor == Some(slot) {
            self.cursor = self.looked_at_after(slot);
        }
        let yard = self.yard(slot);
        yard.order.remove(slot);
        yard.free.push(slot);
        self.entries[slot as usize] = None;
        self.len -= 1;
    }

    /// The next one that a search looks at, round and round.
    #[inline]
    pub(crate) fn next_to_look_at(&mut self) -> Option<u32> {
        let slot = match self.cursor {
            Some(slot) => slot,
            None => self.groups.order.first().or(self.stalls.order.first())?,
        };
        self.cursor = self.looked_at_after(slot);
        Some(slot)
    }

    fn looked_at_after(&self, slot: u32) -> Option<u32> {
        let stalls = || if slot < self.first_stall { self.stalls.order.first() } else { None };
        self.after(slot).or_else(stalls)
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<Entry> {
        *self.entries.get(slot as usize)?
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    /// The oldest group that stayed, and the oldest stalled transaction.
    pub(crate) fn oldest(&self) -> [Option<u32>; 2] {
        [self.groups.order.first(), self.stalls.order.first()]
    }

    /// The next younger one of its kind.
    pub(crate) fn after(&self, slot: u32) -> Option<u32> {
        let yard = if slot < self.first_stall { &self.groups } else { &self.stalls };
        yard.order.after(slot)
    }
}
