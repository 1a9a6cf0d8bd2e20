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

/// The slots: free ones on a stack, the others in order of arrival once a turn left them behind.
pub(crate) struct Flight {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    order: List,
    /// Where the search for groups that are over goes on.
    pub(crate) cursor: u32,
}

impl Flight {
    pub(crate) fn new(slots: usize) -> Result<Flight, OutOfMemory> {
        let (mut entries, mut free) = (Vec::new(), Vec::new());
        entries.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        free.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        entries.resize(slots, None);
        free.extend((0..slots as u32).rev());
        Ok(Flight { entries, free, order: List::new(slots)?, cursor: 0 })
    }

    pub(crate) fn slots(&self) -> u32 {
        self.entries.len() as u32
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The slot that [`enter`](Self::enter) fills next.
    #[inline]
    pub(crate) fn next_free(&self) -> Option<u32> {
        self.free.last().copied()
    }

    /// Fills the slot that [`next_free`](Self::next_free) named.
    #[inline]
    pub(crate) fn enter(&mut self, entry: Entry) {
        if let Some(slot) = self.free.pop() {
            self.entries[slot as usize] = Some(entry);
        }
    }

    /// The slot's group stays behind when the turn goes on.
    pub(crate) fn stays(&mut self, slot: u32) {
        self.order.push(slot);
    }

    /// Frees a slot that did not stay.
    #[inline]
    pub(crate) fn leave(&mut self, slot: u32) {
        self.entries[slot as usize] = None;
        self.free.push(slot);
    }

    /// Frees a slot that stayed.
    pub(crate) fn leave_late(&mut self, slot: u32) {
        self.order.remove(slot);
        self.leave(slot);
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
