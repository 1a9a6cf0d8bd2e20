//! What an unmap leaves to be done: ranges to invalidate, and tables to free after that.

use crate::mem::Phys;
use alloc::vec::Vec;

/// Collects what one or several unmaps removed.
///
/// A gather is turned into invalidations by the domain; its tables are freed only with a
/// [`Synced`], so nothing a walker may still read is reused.
#[derive(Debug)]
#[must_use = "what was unmapped stays visible to devices until the gather is synced"]
pub struct Gather {
    /// First and last address of what was removed; the other way round as long as there is nothing.
    start: u64,
    end: u64,
    tables: Vec<Phys>,
    leaf_sizes: u64,
    non_leaf: bool,
    #[cfg(feature = "testing")]
    room: Option<usize>,
}

impl Default for Gather {
    fn default() -> Gather {
        Gather::new()
    }
}

/// Leaves of unknown sizes are taken for pages of 4 KiB.
const PAGE_BITS: u32 = 12;

impl Gather {
    /// More leaves than a device's or an IOMMU's TLB holds entries. To invalidate as many takes out
    /// all that the TLB has of a table in any case, one command after the other where hardware has
    /// no ranges; one command for everything does the same.
    pub const MOST_LEAVES: u64 = 1 << 16;

    /// An empty gather. Allocates nothing.
    #[inline]
    pub const fn new() -> Gather {
        Gather {
            start: u64::MAX,
            end: 0,
            tables: Vec::new(),
            leaf_sizes: 0,
            non_leaf: false,
            #[cfg(feature = "testing")]
            room: None,
        }
    }

    /// A gather that has memory for `tables` tables and no more.
    #[cfg(feature = "testing")]
    pub const fn with_room_for(tables: usize) -> Gather {
        let mut gather = Gather::new();
        gather.room = Some(tables);
        gather
    }

    /// Adds removed leaves of unknown sizes: `start` to `end`, both inclusive.
    #[inline]
    pub fn add_range(&mut self, start: u64, end: u64) {
        self.add_leaves(start, end, u64::MAX);
    }

    /// Adds removed or changed leaves, `start` to `end`, both inclusive, of 2^n bytes for the bits
    /// n of `sizes`.
    #[inline]
    pub fn add_leaves(&mut self, start: u64, end: u64, sizes: u64) {
        self.leaf_sizes |= sizes;
        self.start = self.start.min(start);
        self.end = self.end.max(end);
    }

    /// Notes that entries which are no leaves changed in the range added.
    pub fn add_non_leaf(&mut self) {
        self.non_leaf = true;
    }

    /// Makes room to remember one more table. The engine leaves an empty table linked when this
    /// says no: that costs a frame and is otherwise harmless.
    #[inline]
    pub fn reserve_table(&mut self) -> bool {
        #[cfg(feature = "testing")]
        if self.room.is_some_and(|room| self.tables.len() >= room) {
            return false;
        }
        self.tables.try_reserve(1).is_ok()
    }

    /// Adds a table whose parent entry was cleared. Walkers may have cached the way to it, so the
    /// invalidation must reach non-leaf entries too.
    #[inline]
    pub fn add_table(&mut self, table: Phys) {
        self.non_leaf = true;
        self.tables.push(table);
    }

    /// The smallest range (inclusive) that covers everything removed.
    pub fn range(&self) -> Option<(u64, u64)> {
        (self.start <= self.end).then_some((self.start, self.end))
    }

    /// The range to invalidate, `None` for everything that there is of the table: a range of more
    /// leaves than [`Gather::MOST_LEAVES`] is not worth naming.
    pub fn to_invalidate(&self) -> Option<(u64, u64)> {
        let (start, end) = self.range()?;
        // Where sizes are unknown they are taken for pages.
        let shift = self.leaf_sizes.trailing_zeros().clamp(PAGE_BITS, 63);
        ((end - start) >> shift < Self::MOST_LEAVES).then_some((start, end))
    }

    /// The sizes that leaves in the range may have had, bit n for 2^n bytes, for hints of size and
    /// level.
    pub fn leaf_sizes(&self) -> u64 {
        self.leaf_sizes
    }

    /// Whether non-leaf entries changed, so that an invalidation hint for leaves only is wrong.
    pub fn non_leaf(&self) -> bool {
        self.non_leaf
    }

    /// Whether there is nothing to invalidate and nothing to free.
    pub fn is_empty(&self) -> bool {
        self.range().is_none() && self.tables.is_empty()
    }

    /// Takes over what `other` holds. On allocation failure `other` keeps its tables.
    ///
    /// # Errors
    /// `other`, unchanged, when there was no memory to take its tables.
    pub fn absorb(&mut self, mut other: Gather) -> Result<(), Gather> {
        if self.tables.try_reserve(other.tables.len()).is_err() {
            return Err(other);
        }
        if let Some((s, e)) = other.range() {
            self.add_leaves(s, e, other.leaf_sizes);
        }
        self.non_leaf |= other.non_leaf;
        self.tables.append(&mut other.tables);
        Ok(())
    }

    /// The tables that wait for a sync, leaving the gather empty.
    #[inline]
    pub fn into_retired(self) -> Retired {
        Retired { tables: self.tables, parked: None }
    }
}

/// Tables that are unlinked but may still be read by a walker.
#[derive(Debug, Default)]
#[must_use = "tables are freed by IoTable::retire, or kept by IoTable::park, else they leak"]
pub struct Retired {
    pub(crate) tables: Vec<Phys>,
    /// The first of those that were parked.
    pub(crate) parked: Option<Phys>,
}

impl Retired {
    /// Number of tables, but for those that were parked in between.
    pub fn len(&self) -> usize {
        self.tables.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.parked.is_none()
    }
}

/// Proof that every cache which could hold what a gather removed has been invalidated, and that
/// the accesses begun before have ended.
#[derive(Debug)]
pub struct Synced(());

impl Synced {
    /// Made by whoever has seen the invalidations of a gather complete on every instance and
    /// device TLB that could use the table, or knows that none can. Nobody else has a reason to
    /// call it: a wrong claim frees tables that hardware still reads.
    pub fn after_completed_invalidation() -> Synced {
        Synced(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_more_leaves_than_a_tlb_holds_is_everything() {
        let range = |pages: u64, sizes: u64| {
            let mut gather = Gather::new();
            gather.add_leaves(0x1000, pages << 12, sizes);
            assert_eq!(gather.range(), Some((0x1000, pages << 12)));
            gather.to_invalidate()
        };
        let most = Gather::MOST_LEAVES;
        assert_eq!(Gather::new().to_invalidate(), None);
        assert_eq!(range(most, 1 << 12), Some((0x1000, most << 12)));
        assert_eq!(range(most + 1, 1 << 12), None);
        assert_eq!(range(most + 1, 1 << 21), Some((0x1000, (most + 1) << 12)), "few leaves, if large ones");
        assert_eq!(range(most + 1, 1 << 12 | 1 << 21), None);
        assert_eq!(range(most + 1, u64::MAX), None);
        let mut apart = Gather::new();
        apart.add_leaves(0, 0xfff, 1 << 12);
        apart.add_leaves(1 << 40, (1 << 40) + 0xfff, 1 << 12);
        assert_eq!(apart.to_invalidate(), None, "two pages, and all that lies between them");
        let mut all = Gather::new();
        all.add_leaves(0, u64::MAX, 1 << 63);
        assert_eq!(all.to_invalidate(), Some((0, u64::MAX)));
    }
}
