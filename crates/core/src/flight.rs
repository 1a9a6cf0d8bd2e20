//! Groups whose last request has come and that are not accounted for yet: what the service turn
//! alone knows of each slot.

use crate::{error::OutOfMemory, ids::Key, links::List, platform::Time, record::Chain};
use alloc::vec::Vec;
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

/// The slots: free ones on a stack, those of groups that a turn left behind in order of arrival.
pub(crate) struct Flight {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    order: List,
    /// How many stayed.
    len: u32,
    /// Where the search for groups that are over goes on; at the oldest where this is none.
    cursor: Option<u32>,
}

impl Flight {
    pub(crate) fn new(slots: usize) -> Result<Flight, OutOfMemory> {
        let (mut entries, mut free) = (Vec::new(), Vec::new());
        entries.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        free.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        entries.resize(slots, None);
        free.extend((0..slots as u32).rev());
        Ok(Flight { entries, free, order: List::new(slots)?, len: 0, cursor: None })
    }

    /// How many groups stayed behind.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The slot that the next group goes through; it is [`stay`](Self::stay)'s if the group stays, and
    /// else the next one's too.
    #[inline]
    pub(crate) fn next_free(&self) -> Option<u32> {
        self.free.last().copied()
    }

    /// The group in the slot that [`next_free`](Self::next_free) named stays behind when the turn goes
    /// on.
    pub(crate) fn stay(&mut self, entry: Entry) {
        if let Some(slot) = self.free.pop() {
            self.entries[slot as usize] = Some(entry);
            self.order.push(slot);
            self.len += 1;
        }
    }

    /// Frees the slot of a group that stayed.
    pub(crate) fn leave(&mut self, slot: u32) {
        if self.cursor == Some(slot) {
            self.cursor = self.order.after(slot);
        }
        self.order.remove(slot);
        self.len -= 1;
        self.entries[slot as usize] = None;
        self.free.push(slot);
    }

    /// The next one that a search looks at, round and round.
    pub(crate) fn next_to_look_at(&mut self) -> Option<u32> {
        let slot = self.cursor.or(self.order.first())?;
        self.cursor = self.order.after(slot);
        Some(slot)
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<Entry> {
        *self.entries.get(slot as usize)?
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    /// The oldest that stayed.
    pub(crate) fn first(&self) -> Option<u32> {
        self.order.first()
    }

    /// The next younger one.
    pub(crate) fn after(&self, slot: u32) -> Option<u32> {
        self.order.after(slot)
    }
}
