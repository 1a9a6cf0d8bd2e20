//! The IOTLB and the paging-structure caches (`[V]` 6.2.4, 6.2.5).
//!
//! Translations of large pages are kept in pieces of 4 KiB, as the manual allows (`[V]` 6.5.3.2): an
//! invalidation with too small an address mask then leaves the other pieces behind, and one probe
//! serves every look-up. Entries stay until an invalidation obliges the unit to drop them, which no
//! cache of a fixed shape can promise: it evicts. So what they are kept in is a map, and most look-ups
//! are served by the [software IOTLB](crate::iotlb) in front of it, which holds a part of the same
//! entries and loses each when the map does.

use crate::hash::Map;
use crate::iotlb::{self as fast, Space, Translation};

/// Which stage made an entry: the tables of `[V]` 6.5.2.3 and 6.5.2.4 tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    First,
    /// Legacy mode counts as second stage.
    Second,
    PassThrough,
}

/// PASID in the key of entries that requests without PASID have made.
pub(super) const NO_PASID: u32 = u32::MAX;

/// What a look-up goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) source: u16,
    /// [`NO_PASID`] for requests without PASID.
    pub(super) pasid: u32,
    /// Input address >> 12.
    pub(super) page: u64,
}

/// What invalidations go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) did: u16,
    /// The PASID of the PASID-table entry, RID_PASID included; 0 in legacy mode.
    pub(super) pasid: u32,
    pub(super) stage: Stage,
}

/// A cached translation of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) tag: Tag,
    /// Physical address of the 4 KiB.
    pub(super) phys: u64,
    /// log2 of the size of the page that this is a piece of.
    pub(super) bits: u8,
    pub(super) read: bool,
    pub(super) write: bool,
    /// A user request may use it.
    pub(super) user: bool,
    /// A write needs no update of a dirty bit.
    pub(super) dirty: bool,
    /// An FPD bit was met on the way.
    pub(super) fpd: bool,
}

/// Which pages an invalidation names: `base` is aligned to `4096 << am`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pages {
    pub(super) base: u64,
    pub(super) am: u8,
}

impl Pages {
    /// The pages that an address field and its mask name.
    pub(super) fn new(addr: u64, am: u8) -> Self {
        let am = am.min(52);
        let base = if am == 52 { 0 } else { addr >> (12 + am) << (12 + am) };
        Pages { base, am }
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        self.am >= 52 || page >> self.am == self.base >> 12 >> self.am
    }

    /// Whether the aligned region of `1 << shift` bytes with this number overlaps the pages.
    fn overlaps(&self, number: u64, shift: u32) -> bool {
        let bits = shift.max(12 + u32::from(self.am));
        let top = |a: u64| a.checked_shr(bits).unwrap_or(0);
        top(number.checked_shl(shift).unwrap_or(0)) == top(self.base)
    }
}

/// Key of a cached pointer to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PointerKey {
    did: u16,
    /// `None` for the second stage, which is tagged by domain alone (`[V]` table 17).
    pasid: Option<u32>,
    /// Level of the table pointed to: 1 holds entries of 4 KiB.
    level: u8,
    /// Input address above the bits that the table resolves.
    number: u64,
}

/// A cached pointer to a table, with the permissions gathered on the way to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pointer {
    pub(super) table: u64,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) user: bool,
}

/// Entries in front of the map at most.
const FRONT: usize = 4096;
/// Requesters and PASIDs that have some there.
const FRONT_SPACES: u16 = 512;

/// Both kinds of cache.
#[derive(Debug)]
pub(super) struct Iotlb {
    entries: Map<Key, Entry>,
    /// A part of the same entries, to be found faster.
    front: fast::Iotlb,
    /// The requesters and PASIDs in front, and the tag that all their entries there have.
    spaces: Map<(u16, u32), (Space, Tag)>,
    /// Requesters and PASIDs with an entry for a page of a domain.
    users: Map<(u16, u64), Vec<(u16, u32)>>,
    /// First-stage entries and pointers of a domain: page-selective second-stage invalidations have
    /// to drop them all, and mostly there are none.
    first_stage: Map<u16, usize>,
    pointers: Map<PointerKey, Pointer>,
    capacity: usize,
}

impl Iotlb {
    pub(super) fn new(capacity: usize) -> Self {
        Iotlb {
            entries: Map::default(),
            front: fast::Iotlb::new(capacity.min(FRONT), FRONT_SPACES),
            spaces: Map::default(),
            users: Map::default(),
            first_stage: Map::default(),
            pointers: Map::default(),
            capacity,
        }
    }

    pub(super) fn lookup(&self, key: &Key) -> Option<Entry> {
        let space = self.spaces.get(&(key.source, key.pasid));
        if let Some((space, tag)) = space
            && let Some(found) = self.front.lookup(*space, key.page << 12)
        {
            return Some(from_front(*tag, &found));
        }
        let entry = *self.entries.get(key)?;
        if let Some((space, tag)) = space
            && *tag == entry.tag
        {
            self.show(*space, key.page, &entry);
        }
        Some(entry)
    }

    /// Puts an entry of the map in front.
    fn show(&self, space: Space, page: u64, entry: &Entry) {
        if let (Some(fill), Some(t)) = (self.front.begin(space), to_front(entry)) {
            self.front.insert(fill, page << 12, t);
        }
    }

    /// The space of an entry that is new in the map. If it has another tag than those in front, these
    /// go.
    fn space(&mut self, key: &Key, tag: Tag) -> Option<Space> {
        let next = Space(u16::try_from(self.spaces.len()).ok().filter(|n| *n < FRONT_SPACES)?);
        let (space, old) = self.spaces.entry((key.source, key.pasid)).or_insert((next, tag));
        if std::mem::replace(old, tag) != tag {
            self.front.invalidate_space(*space);
        }
        Some(*space)
    }

    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        if self.entries.contains_key(&key) {
            self.remove(&key);
        } else if self.entries.len() >= self.capacity {
            return;
        }
        let users = self.users.entry((entry.tag.did, key.page)).or_default();
        users.push((key.source, key.pasid));
        if entry.tag.stage == Stage::First {
            *self.first_stage.entry(entry.tag.did).or_default() += 1;
        }
        self.entries.insert(key, entry);
        if let Some(space) = self.space(&key, entry.tag) {
            self.show(space, key.page, &entry);
        }
    }

    /// The cached pointer closest to the leaf.
    pub(super) fn pointer(&self, did: u16, pasid: Option<u32>, addr: u64, top: u8) -> Option<(u8, Pointer)> {
        (1..top).find_map(|level| {
            let key = PointerKey { did, pasid, level, number: addr >> table_shift(level) };
            self.pointers.get(&key).map(|p| (level, *p))
        })
    }

    pub(super) fn keep_pointer(&mut self, did: u16, pasid: Option<u32>, addr: u64, level: u8, p: Pointer) {
        let key = PointerKey { did, pasid, level, number: addr >> table_shift(level) };
        let bounded = self.pointers.len() < self.capacity || self.pointers.contains_key(&key);
        if bounded && self.pointers.insert(key, p).is_none() && pasid.is_some() {
            *self.first_stage.entry(did).or_default() += 1;
        }
    }

    /// Global: `[V]` 6.5.2.3.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.spaces.values().for_each(|(space, _)| self.front.invalidate_space(*space));
        self.users.clear();
        self.first_stage.clear();
        self.pointers.clear();
    }

    /// Domain-selective: `[V]` 6.5.2.3.
    pub(super) fn drop_domain(&mut self, did: u16) {
        self.drop_entries(|_, e| e.tag.did == did);
        self.drop_pointers(|k| k.did == did);
    }

    /// Page-selective within domain: `[V]` table 23.
    pub(super) fn drop_domain_pages(&mut self, did: u16, pages: Pages, hint: bool) {
        if self.first_stage.contains_key(&did) {
            self.drop_entries(|_, e| e.tag.did == did && e.tag.stage == Stage::First);
            self.drop_pointers(|k| k.did == did && k.pasid.is_some());
        }
        self.drop_pages(did, pages, |t| t.stage != Stage::First);
        if !hint {
            self.drop_pointers(|k| {
                k.did == did && k.pasid.is_none() && pages.overlaps(k.number, table_shift(k.level))
            });
        }
    }

    /// PASID-selective: `[V]` table 24.
    pub(super) fn drop_pasid(&mut self, did: u16, pasid: u32) {
        self.drop_entries(|_, e| e.tag.did == did && e.tag.pasid == pasid);
        self.drop_pointers(|k| k.did == did && k.pasid == Some(pasid));
    }

    /// Page-selective within PASID: `[V]` table 24.
    pub(super) fn drop_pasid_pages(&mut self, did: u16, pasid: u32, pages: Pages, hint: bool) {
        self.drop_pages(did, pages, |t| t.stage == Stage::First && t.pasid == pasid);
        if !hint {
            self.drop_pointers(|k| {
                let same = k.did == did && k.pasid == Some(pasid);
                same && pages.overlaps(k.number, table_shift(k.level))
            });
        }
    }

    /// Forgets one entry, chosen by `pick`. Returns whether there was one.
    pub(super) fn evict(&mut self, pick: u64) -> bool {
        let total = (self.entries.len() + self.pointers.len()) as u64;
        let Some(i) = pick.checked_rem(total).map(|i| i as usize) else {
            return false;
        };
        if let Some(key) = self.entries.keys().nth(i).copied() {
            self.remove(&key);
        } else if let Some(key) = self.pointers.keys().nth(i - self.entries.len()).copied() {
            self.drop_pointers(|k| *k == key);
        }
        true
    }

    fn drop_pages(&mut self, did: u16, pages: Pages, which: impl Fn(&Tag) -> bool) {
        let count = 1u64.checked_shl(u32::from(pages.am)).unwrap_or(u64::MAX);
        if count > self.entries.len() as u64 {
            self.drop_entries(|k, e| e.tag.did == did && pages.contains(k.page) && which(&e.tag));
            return;
        }
        let first = pages.base >> 12;
        for page in first..first + count {
            for (source, pasid) in self.users.get(&(did, page)).cloned().unwrap_or_default() {
                let key = Key { source, pasid, page };
                if self.entries.get(&key).is_some_and(|e| which(&e.tag)) {
                    self.remove(&key);
                }
            }
        }
    }

    fn drop_entries(&mut self, which: impl Fn(&Key, &Entry) -> bool) {
        let keys: Vec<Key> = self.entries.iter().filter(|(k, e)| which(k, e)).map(|(k, _)| *k).collect();
        for key in keys {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        if let Some((space, _)) = self.spaces.get(&(key.source, key.pasid)) {
            self.front.invalidate(*space, key.page << 12, key.page << 12);
        }
        let place = (entry.tag.did, key.page);
        if let Some(users) = self.users.get_mut(&place) {
            users.retain(|u| *u != (key.source, key.pasid));
            if users.is_empty() {
                self.users.remove(&place);
            }
        }
        if entry.tag.stage == Stage::First {
            self.forget_first(entry.tag.did);
        }
    }

    fn drop_pointers(&mut self, which: impl Fn(&PointerKey) -> bool) {
        let mut gone = Vec::new();
        self.pointers.retain(|k, _| {
            let drop = which(k);
            if drop && k.pasid.is_some() {
                gone.push(k.did);
            }
            !drop
        });
        for did in gone {
            self.forget_first(did);
        }
    }

    fn forget_first(&mut self, did: u16) {
        if let Some(n) = self.first_stage.get_mut(&did) {
            *n -= 1;
            if *n == 0 {
                self.first_stage.remove(&did);
            }
        }
    }
}

/// Flags of what is in front; above them is the number of the page's size.
const READ: u8 = 1;
const WRITE: u8 = 2;
const USER: u8 = 4;
const DIRTY: u8 = 8;
const FPD: u8 = 16;
const SIZE: u8 = 32;

/// What stands in front for an entry: 4 KiB with all that the entry says beside. `None` where it does
/// not fit.
fn to_front(e: &Entry) -> Option<Translation> {
    let size = [12, 21, 30].iter().position(|b| *b == e.bits)? as u8;
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    let flags = flag(e.read, READ)
        | flag(e.write, WRITE)
        | flag(e.user, USER)
        | flag(e.dirty, DIRTY)
        | flag(e.fpd, FPD)
        | (size * SIZE);
    Some(Translation { phys: e.phys, bits: 12, flags })
}

fn from_front(tag: Tag, t: &Translation) -> Entry {
    let has = |bit: u8| t.flags & bit != 0;
    Entry {
        tag,
        phys: t.phys,
        bits: 12 + 9 * (t.flags / SIZE),
        read: has(READ),
        write: has(WRITE),
        user: has(USER),
        dirty: has(DIRTY),
        fpd: has(FPD),
    }
}

/// Address bits that a table of this level and those below it resolve: 21 for level 1.
pub(super) fn table_shift(level: u8) -> u32 {
    12 + 9 * u32::from(level)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An invalidation, as a predicate of the manual's tables 23 and 24 on one entry.
    #[derive(Debug, Clone, Copy)]
    enum Drop {
        Global,
        Domain(u16),
        DomainPages(u16, u64, u8),
        Pasid(u16, u32),
        PasidPages(u16, u32, u64, u8),
    }

    impl Drop {
        fn obliges(self, page: u64, tag: &Tag) -> bool {
            let within = |first: u64, am: u8| page >> am == first >> am;
            let first_stage = tag.stage == Stage::First;
            match self {
                Drop::Global => true,
                Drop::Domain(did) => tag.did == did,
                Drop::DomainPages(did, p, am) => tag.did == did && (first_stage || within(p, am)),
                Drop::Pasid(did, pasid) => tag.did == did && tag.pasid == pasid,
                Drop::PasidPages(did, pasid, p, am) => {
                    tag.did == did && tag.pasid == pasid && first_stage && within(p, am)
                }
            }
        }

        fn apply(self, iotlb: &mut Iotlb) {
            match self {
                Drop::Global => iotlb.clear(),
                Drop::Domain(did) => iotlb.drop_domain(did),
                Drop::DomainPages(did, p, am) => {
                    iotlb.drop_domain_pages(did, Pages::new(p << 12, am), true);
                }
                Drop::Pasid(did, pasid) => iotlb.drop_pasid(did, pasid),
                Drop::PasidPages(did, pasid, p, am) => {
                    iotlb.drop_pasid_pages(did, pasid, Pages::new(p << 12, am), true);
                }
            }
        }
    }

    fn entries() -> impl Strategy<Value = (Key, Tag)> {
        let stage = prop_oneof![Just(Stage::First), Just(Stage::Second), Just(Stage::PassThrough)];
        (0u16..3, 0u32..3, 0u64..24, 0u16..3, stage).prop_map(|(source, pasid, page, did, stage)| {
            (Key { source, pasid, page }, Tag { did, pasid, stage })
        })
    }

    fn drops() -> impl Strategy<Value = Drop> {
        prop_oneof![
            1 => Just(Drop::Global),
            4 => (0u16..3).prop_map(Drop::Domain),
            8 => (0u16..3, 0u64..24, 0u8..6).prop_map(|(d, p, am)| Drop::DomainPages(d, p, am)),
            4 => (0u16..3, 0u32..3).prop_map(|(d, p)| Drop::Pasid(d, p)),
            8 => (0u16..3, 0u32..3, 0u64..24, 0u8..6)
                .prop_map(|(d, p, page, am)| Drop::PasidPages(d, p, page, am)),
        ]
    }

    proptest! {
        /// Exactly what an invalidation obliges to is dropped, and nothing else.
        #[test]
        fn drops_what_it_must_and_keeps_the_rest(
            rounds in proptest::collection::vec((proptest::collection::vec(entries(), 0..40), drops()), 1..6),
        ) {
            let mut iotlb = Iotlb::new(1 << 10);
            let mut expected = std::collections::HashMap::new();
            let (mut ever, mut serial) = (std::collections::HashSet::new(), 0u64);
            for (inserted, drop) in rounds {
                for (key, tag) in inserted {
                    // No two are the same, so that one taken for another shows.
                    serial += 1;
                    let entry = Entry {
                        tag,
                        phys: serial << 12,
                        bits: [12, 21, 30][serial as usize % 3],
                        read: serial & 1 != 0,
                        write: serial & 2 != 0,
                        user: serial & 4 != 0,
                        dirty: serial & 8 != 0,
                        fpd: serial & 16 != 0,
                    };
                    iotlb.insert(key, entry);
                    expected.insert(key, entry);
                    ever.insert(key);
                }
                drop.apply(&mut iotlb);
                expected.retain(|key, entry| !drop.obliges(key.page, &entry.tag));
                prop_assert_eq!(iotlb.entries.len(), expected.len());
                // Once from wherever it is, once more from the front.
                for _ in 0..2 {
                    for key in &ever {
                        prop_assert_eq!(iotlb.lookup(key), expected.get(key).copied());
                    }
                }
                let users: usize = iotlb.users.values().map(Vec::len).sum();
                prop_assert_eq!(users, expected.len());
                let first = expected.values().filter(|e| e.tag.stage == Stage::First).count();
                prop_assert_eq!(iotlb.first_stage.values().sum::<usize>(), first);
            }
        }
    }
}
