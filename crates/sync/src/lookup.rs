//! A fixed hash table that is read without a lock: from a requester, or a place of one, to what
//! stands for it.
//!
//! Its one writer ([`Writer`], kept under a short lock) marks the table as changing; a reader whose
//! copy may be torn tries again, and after a few tries says so: the caller then looks under the
//! writer's lock. So a reader in an interrupt never waits for a writer.

use crate::{
    atomic::{AtomicU64, Ordering, fence},
    mutate::{Line, without},
    ring::AllocError,
};
use alloc::{boxed::Box, vec::Vec};

/// Tries of a reader against changes.
const TRIES: usize = 4;

/// No key.
const NOTHING: u64 = u64::MAX;

/// The table.
#[derive(Debug)]
pub struct Lookup {
    /// Odd while the table changes.
    version: AtomicU64,
    entries: Box<[Entry]>,
}

#[derive(Debug)]
struct Entry {
    key: AtomicU64,
    value: [AtomicU64; 2],
}

/// What a reader found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The key's value.
    Value([u64; 2]),
    /// The key is not in the table.
    Nothing,
    /// The table changed too often meanwhile: look under the writer's lock.
    Changing,
}

/// The right to change the table; there is one for each.
#[derive(Debug)]
pub struct Writer {
    used: usize,
}

impl Lookup {
    /// A table for `most` keys, empty, and its writer.
    ///
    /// # Errors
    /// [`AllocError`] when there is no memory for it.
    pub fn new(most: usize) -> Result<(Lookup, Writer), AllocError> {
        let n = most.max(1).checked_mul(2).and_then(usize::checked_next_power_of_two).ok_or(AllocError)?;
        let mut entries = Vec::new();
        entries.try_reserve_exact(n).map_err(|_| AllocError)?;
        entries.resize_with(n, || Entry {
            key: AtomicU64::new(NOTHING),
            value: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        let table = Lookup { version: AtomicU64::new(0), entries: entries.into_boxed_slice() };
        Ok((table, Writer { used: 0 }))
    }

    /// The value of a key other than `u64::MAX`. Any context; never waits.
    #[inline]
    pub fn find(&self, key: u64) -> Found {
        if key == NOTHING {
            return Found::Nothing;
        }
        for _ in 0..TRIES {
            let before = self.version.load(Ordering::Acquire);
            let found = self.search(key);
            if without(Line::LookupChecksChange) || (before & 1 == 0 && self.unchanged(before)) {
                return found.map_or(Found::Nothing, Found::Value);
            }
        }
        Found::Changing
    }

    /// The table's version; what was found under it stands as long as it is
    /// [`unchanged`](Self::unchanged).
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether nothing changed since [`version`](Self::version) returned this.
    #[inline]
    pub fn unchanged(&self, version: u64) -> bool {
        fence(Ordering::Acquire);
        self.version.load(Ordering::Relaxed) == version
    }

    #[inline]
    fn search(&self, key: u64) -> Option<[u64; 2]> {
        let mask = self.entries.len() - 1;
        let mut at = home(key) & mask;
        // At most once round: a torn table may have no end.
        for _ in 0..self.entries.len() {
            let entry = &self.entries[at];
            match entry.key.load(Ordering::Relaxed) {
                k if k == key => return Some(entry.load()),
                NOTHING => return None,
                _ => at = (at + 1) & mask,
            }
        }
        None
    }

    fn change(&self, f: impl FnOnce(&[Entry])) {
        let before = self.version.load(Ordering::Relaxed);
        if !without(Line::LookupMarksChange) {
            self.version.store(before.wrapping_add(1), Ordering::Relaxed);
            // Whoever reads something new sees the odd version when they look again.
            fence(Ordering::Release);
        }
        f(&self.entries);
        self.version.store(before.wrapping_add(2), Ordering::Release);
    }
}

/// Where a key belongs: Fibonacci hashing.
#[inline]
fn home(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

impl Entry {
    fn load(&self) -> [u64; 2] {
        [self.value[0].load(Ordering::Relaxed), self.value[1].load(Ordering::Relaxed)]
    }

    fn store(&self, key: u64, value: [u64; 2]) {
        self.value[0].store(value[0], Ordering::Relaxed);
        self.value[1].store(value[1], Ordering::Relaxed);
        self.key.store(key, Ordering::Relaxed);
    }
}

impl Writer {
    /// Sets the value of a key other than `u64::MAX`. False when the table is full.
    pub fn set(&mut self, table: &Lookup, key: u64, value: [u64; 2]) -> bool {
        if key == NOTHING {
            return false;
        }
        let mask = table.entries.len() - 1;
        let mut at = home(key) & mask;
        loop {
            match table.entries[at].key.load(Ordering::Relaxed) {
                k if k == key => break,
                // Half of it stays empty, so that every search ends soon.
                NOTHING if self.used >= table.entries.len() / 2 => return false,
                NOTHING => {
                    self.used += 1;
                    break;
                }
                _ => at = (at + 1) & mask,
            }
        }
        table.change(|entries| entries[at].store(key, value));
        true
    }

    /// How many keys the table has.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The value of a key, exactly.
    pub fn get(&self, table: &Lookup, key: u64) -> Option<[u64; 2]> {
        table.search(key)
    }

    /// Takes a key out, and moves back what stood behind it for want of a place.
    pub fn remove(&mut self, table: &Lookup, key: u64) {
        let mask = table.entries.len() - 1;
        let key_at = |i: usize| table.entries[i].key.load(Ordering::Relaxed);
        let mut hole = home(key) & mask;
        while key_at(hole) != key || key == NOTHING {
            if key_at(hole) == NOTHING {
                return;
            }
            hole = (hole + 1) & mask;
        }
        self.used -= 1;
        table.change(|entries| {
            let mut next = (hole + 1) & mask;
            while key_at(next) != NOTHING {
                let k = key_at(next);
                let belongs = home(k) & mask;
                // It may move back unless its home lies behind the hole.
                if (next.wrapping_sub(belongs) & mask) >= (next.wrapping_sub(hole) & mask) {
                    entries[hole].store(k, entries[next].load());
                    hole = next;
                }
                next = (next + 1) & mask;
            }
            entries[hole].key.store(NOTHING, Ordering::Relaxed);
        });
    }
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    #[test]
    fn it_is_the_map_that_a_tree_is() {
        let (table, mut writer) = Lookup::new(64).unwrap();
        let mut tree = BTreeMap::new();
        let mut random = 1u64;
        for n in 0..20_000u64 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Few keys, many collisions.
            let key = ((random >> 33) % 80) << 20;
            if random & 1 << 20 == 0 && tree.len() < 64 {
                assert!(writer.set(&table, key, [n, !n]));
                tree.insert(key, [n, !n]);
            } else {
                writer.remove(&table, key);
                tree.remove(&key);
            }
            for k in 0..80 {
                let expected = tree.get(&(k << 20)).map_or(Found::Nothing, |v| Found::Value(*v));
                assert_eq!(table.find(k << 20), expected);
            }
        }
    }

    #[test]
    fn a_full_table_refuses_and_a_changing_one_says_so() {
        let (table, mut writer) = Lookup::new(2).unwrap();
        assert!((0..2).all(|k| writer.set(&table, k, [k, k])));
        assert!(!writer.set(&table, 2, [2, 2]) && !writer.set(&table, u64::MAX, [0, 0]));
        assert!(writer.set(&table, 1, [7, 7]), "what is there may change");
        assert_eq!(table.find(1), Found::Value([7, 7]));
        assert_eq!(writer.get(&table, 1), Some([7, 7]));
        let version = table.version();
        table.change(|_| assert_eq!(table.find(1), Found::Changing));
        assert!(!table.unchanged(version));
    }
}
