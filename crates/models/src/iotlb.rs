//! A software IOTLB: the answer to most device accesses of a virtual machine, in one cache line.
//!
//! A lookup never waits and never writes; fills and invalidations may go on meanwhile on other
//! threads. What it promises is this: **a lookup that begins after an invalidation has returned does
//! not find what was invalidated**, and neither does it find a translation that was walked before
//! the invalidation and is filled in after it. An access that looked up before may still be at it:
//! whoever invalidates waits for those as for real hardware's, by a drain of its own.
//!
//! ```
//! use portcullis_models::iotlb::{Iotlb, Space, Translation};
//!
//! let tlb = Iotlb::new(4096, 16);
//! let device = Space(3);
//! assert_eq!(tlb.lookup(device, 0x12_3456), None);
//! let fill = tlb.begin(device).expect("one of the 16"); // before the tables are walked
//! let walked = Translation { phys: 0x8000_0000, bits: 12, flags: 3 };
//! assert!(tlb.insert(fill, 0x12_3456, walked));
//! assert_eq!(tlb.lookup(device, 0x12_3456).map(|t| t.phys), Some(0x8000_0456));
//! let reader = tlb.reader(device).expect("one of the 16"); // what a device's thread keeps
//! assert_eq!(reader.lookup(0x12_3456).map(|t| t.flags), Some(3));
//! tlb.invalidate(device, 0x12_3000, 0x12_3fff);
//! assert_eq!(reader.lookup(0x12_3456), None);
//! ```
//!
//! # How
//!
//! Four ways of a tag and a word of data are one line, a *set*: four neighbours, unless somebody else
//! was there before, each in the way of its own number. Each space has a word that its lookups read
//! first and last, its *view*. Who takes a tag out of a way counts in the view of the tag's space
//! before anything else is put there: a reader that has found its tag, and the view as it was, has
//! read the data that belong to it. An entry counts only while it has the generation in its space's
//! view: a space, or a range too long to look for page by page, is invalidated by one store. Sizes
//! above 4 KiB are looked for only while the view says that there are any. Who writes a set has its
//! shard's lock; readers know nothing of it.
//!
//! The atomics are not those of `portcullis-sync`, which are preemption points of a simulation:
//! hardware, of which this is a part there, takes a step as a whole.

#[cfg(portcullis_loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(portcullis_loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Ways of a set, and bits of their numbers.
const WAYS: usize = 1 << WAY_BITS;
const WAY_BITS: u32 = 2;
/// Most shards. Each has a line of its own.
const SHARDS: usize = 64;
/// Bits of the pages of each size class, and one that stands for nothing.
const SIZES: [u8; 3] = [12, 21, 30];
const NO_SIZE: u64 = 3;
/// A tag that no address has.
const EMPTY: u64 = NO_SIZE << SIZE_AT;

/// Of a tag: the page's number, a sign bit above 57 bits of address; the size class; the space.
const PAGE_BITS: u32 = 46;
const SIZE_AT: u32 = PAGE_BITS;
const SPACE_AT: u32 = SIZE_AT + 2;
/// Of a word of data: the generation, the flags, bits 51:12 of the address.
const FLAGS_AT: u32 = 16;
const FRAME_AT: u32 = FLAGS_AT + 8;
const FRAME_BITS: u32 = 40;
/// Of a view: the generation, where data have it too; which sizes above 4 KiB there are; how many
/// tags were taken out.
const LARGE_AT: u32 = 16;
const LARGE: u64 = 3 << LARGE_AT;
const TAKEN_OUT: u64 = 1 << (LARGE_AT + 2);
/// The generation in which nothing is filled in, and so nothing found: entries of earlier rounds are
/// being taken out, before their generations come again.
const CLOSED: u16 = u16::MAX;

/// Pages that an invalidation looks for one by one at most.
const LOOKED_FOR: u64 = 64;

/// An address space: a requester, or a PASID of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Space(pub u16);

/// A translation of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Where it leads: in [`Iotlb::insert`] any address of the page, in what [`Iotlb::lookup`] gives
    /// the one that was looked up.
    pub phys: u64,
    /// log2 of the page's size: 12, 21 or 30.
    pub bits: u8,
    /// The caller's: permissions, or whatever else it must know.
    pub flags: u8,
}

/// The state of a space before its tables were walked. A fill with one that is out of date fills in
/// nothing.
#[derive(Debug, Clone, Copy)]
#[must_use = "a walk ends with an insert"]
pub struct Fill {
    space: Space,
    invalidations: u64,
    generation: u16,
}

/// The IOTLB. Shared by reference.
pub struct Iotlb {
    sets: Box<[Set]>,
    shards: Box<[Shard]>,
    spaces: Box<[SpaceState]>,
}

/// One line.
#[repr(align(64))]
struct Set {
    tags: [AtomicU64; WAYS],
    data: [AtomicU64; WAYS],
}

/// Odd while one of its sets is written.
#[repr(align(64))]
struct Shard(AtomicU64);

#[repr(align(16))]
struct SpaceState {
    view: AtomicU64,
    /// How often something was invalidated.
    invalidations: AtomicU64,
}

/// Looks up in one space.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    sets: &'a [Set],
    view: &'a AtomicU64,
    space: Space,
}

impl Reader<'_> {
    /// The translation of an address, if it is here. Never waits.
    #[inline]
    pub fn lookup(&self, iova: u64) -> Option<Translation> {
        // Before anything else: what is found must be of a generation that was current after the
        // call had begun.
        let view = self.view.load(Acquire);
        if view & LARGE != 0
            && let Some(found) = self.lookup_large(view, iova)
        {
            return Some(found);
        }
        self.probe(0, view, iova)
    }

    #[inline(never)]
    fn lookup_large(&self, view: u64, iova: u64) -> Option<Translation> {
        self.probe(1, view, iova).or_else(|| self.probe(2, view, iova))
    }

    #[inline(always)]
    fn probe(&self, size: usize, view: u64, iova: u64) -> Option<Translation> {
        let tag = tag(self.space, size, iova)?;
        let set = self.sets.get(place(self.sets.len(), self.space, size, iova))?;
        let mut way = home(size, iova);
        if set.tags[way].load(Acquire) != tag {
            way = elsewhere(set, tag)?;
        }
        let data = set.data[way].load(Acquire);
        // Data that another tag's writer stored were released after it had counted: who has read them
        // sees another view here than before the tag.
        if self.view.load(Relaxed) != view || generation(data) != generation(view) {
            return None;
        }
        let bits = SIZES[size];
        let base = data >> FRAME_AT << 12;
        Some(Translation { phys: base | iova & low(bits.into()), bits, flags: (data >> FLAGS_AT) as u8 })
    }
}

/// The way of a tag that is not in its home.
#[inline(never)]
fn elsewhere(set: &Set, tag: u64) -> Option<usize> {
    set.tags.iter().position(|t| t.load(Acquire) == tag)
}

impl Iotlb {
    /// An empty one for so many translations (rounded up to a power of two, four at least) of the
    /// spaces 0 to `spaces` - 1.
    pub fn new(entries: usize, spaces: u16) -> Iotlb {
        let sets = entries.div_ceil(WAYS).next_power_of_two();
        let words = |w: u64| std::array::from_fn(|_| AtomicU64::new(w));
        let space = || SpaceState { view: AtomicU64::new(0), invalidations: AtomicU64::new(0) };
        Iotlb {
            sets: (0..sets).map(|_| Set { tags: words(EMPTY), data: words(0) }).collect(),
            shards: (0..sets.min(SHARDS)).map(|_| Shard(AtomicU64::new(0))).collect(),
            spaces: (0..spaces).map(|_| space()).collect(),
        }
    }

    /// Looks up in a space again and again, faster than by its number. `None` where there is no such
    /// space.
    #[inline]
    pub fn reader(&self, space: Space) -> Option<Reader<'_>> {
        let view = &self.spaces.get(usize::from(space.0))?.view;
        Some(Reader { sets: &self.sets, view, space })
    }

    /// The translation of an address, if it is here. Never waits.
    #[inline]
    pub fn lookup(&self, space: Space, iova: u64) -> Option<Translation> {
        self.reader(space)?.lookup(iova)
    }

    /// Before a walk whose result will be filled in. `None` where there is no such space.
    pub fn begin(&self, space: Space) -> Option<Fill> {
        let s = self.spaces.get(usize::from(space.0))?;
        let invalidations = s.invalidations.load(Acquire);
        Some(Fill { space, invalidations, generation: generation(s.view.load(Acquire)) })
    }

    /// Fills in what a walk has found for `iova`. Returns whether it is there now: it is not where
    /// something of the space was invalidated since [`begin`](Iotlb::begin), where somebody else
    /// writes nearby, or where the address has more bits than a tag.
    pub fn insert(&self, fill: Fill, iova: u64, t: Translation) -> bool {
        let Some(s) = self.spaces.get(usize::from(fill.space.0)) else { return false };
        let Some(size) = SIZES.iter().position(|b| *b == t.bits) else { return false };
        let Some(tag) = tag(fill.space, size, iova) else { return false };
        let frame = t.phys >> t.bits << t.bits >> 12;
        if fill.generation == CLOSED || frame >> FRAME_BITS != 0 {
            return false;
        }
        let data = frame << FRAME_AT | u64::from(t.flags) << FLAGS_AT | u64::from(fill.generation);
        let large = (1 << size >> 1) << LARGE_AT;
        if s.view.load(Relaxed) & large != large {
            s.view.fetch_or(large, Relaxed);
        }
        let mut done = false;
        self.write(self.place(fill.space, size, iova), |set, turn| {
            // Inside: an invalidation that counts up later looks into this set after us, and one that
            // looked before us has counted up. Who takes everything out has closed the space before.
            let generation = generation(s.view.load(Acquire));
            if s.invalidations.load(Acquire) == fill.invalidations && generation == fill.generation {
                let way = self.way_for(set, tag, home(size, iova), turn);
                set.data[way].store(data, Release);
                set.tags[way].store(tag, Release);
                done = true;
            }
        }) && done
    }

    /// The way that a tag has, else one that holds nothing of use, its home first, else each in turn.
    /// There is no other tag in it any more.
    fn way_for(&self, set: &Set, tag: u64, home: usize, turn: u64) -> usize {
        let read = |way: usize| set.tags[way].load(Relaxed);
        if let Some(way) = (0..WAYS).find(|way| read(*way) == tag) {
            return way;
        }
        let useless = |way: &usize| {
            let s = self.spaces.get((read(*way) >> SPACE_AT) as usize);
            let current = s.map(|s| generation(s.view.load(Relaxed)));
            read(*way) == EMPTY || current != Some(generation(set.data[*way].load(Relaxed)))
        };
        let way = (0..WAYS).map(|n| home ^ n).find(useless).unwrap_or(turn as usize % WAYS);
        self.take_out(set, way);
        way
    }

    /// Takes the tag out of a way, and tells who reads in its space.
    fn take_out(&self, set: &Set, way: usize) {
        let tag = set.tags[way].load(Relaxed);
        if tag != EMPTY {
            set.tags[way].store(EMPTY, Release);
            if let Some(s) = self.spaces.get((tag >> SPACE_AT) as usize) {
                s.view.fetch_add(TAKEN_OUT, AcqRel);
            }
        }
    }

    /// Forgets what touches `first` to `last`, both inclusive, of a space.
    pub fn invalidate(&self, space: Space, first: u64, last: u64) {
        let Some(s) = self.spaces.get(usize::from(space.0)) else { return };
        // Walks under way may have read what is no more.
        s.invalidations.fetch_add(1, AcqRel);
        if (last >> SIZES[0]).saturating_sub(first >> SIZES[0]) >= LOOKED_FOR {
            return self.invalidate_space(space);
        }
        // Of every size: one that is being filled in may not show in the view yet.
        for (size, bits) in SIZES.iter().enumerate() {
            for n in first >> bits..=last >> bits {
                if !self.forget(space, size, n << bits) {
                    // Somebody writes there: this takes no turn.
                    return self.invalidate_space(space);
                }
            }
        }
    }

    fn forget(&self, space: Space, size: usize, iova: u64) -> bool {
        let Some(tag) = tag(space, size, iova) else { return true };
        self.write(self.place(space, size, iova), |set, _| {
            if let Some(way) = elsewhere(set, tag) {
                self.take_out(set, way);
            }
        })
    }

    /// Forgets all of a space.
    pub fn invalidate_space(&self, space: Space) {
        let Some(s) = self.spaces.get(usize::from(space.0)) else { return };
        s.invalidations.fetch_add(1, AcqRel);
        let mut view = s.view.load(Relaxed);
        loop {
            // Nothing is found in a closed space, nor will anything be that is there now. It is
            // written to all the same: fills that see it open again see what was counted above.
            let closed = generation(view) == CLOSED;
            let next = if closed {
                view.wrapping_add(TAKEN_OUT)
            } else {
                (view & !LARGE & !u64::from(CLOSED)) | u64::from(generation(view) + 1)
            };
            match s.view.compare_exchange_weak(view, next, AcqRel, Relaxed) {
                Ok(_) if !closed && generation(next) == CLOSED => return self.reopen(s),
                Ok(_) => return,
                Err(now) => view = now,
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for n in 0..self.spaces.len() {
            self.invalidate_space(Space(n as u16));
        }
    }

    /// Takes everything out, so that the generations of a closed space may come again.
    fn reopen(&self, s: &SpaceState) {
        for at in 0..self.sets.len() {
            let empty = |set: &Set, _| (0..WAYS).for_each(|way| self.take_out(set, way));
            while !self.write(at, empty) {
                std::hint::spin_loop();
            }
        }
        s.view.fetch_and(!u64::from(CLOSED), AcqRel);
    }

    /// Calls `f` with a set and a number that changes each time, unless somebody else writes in the
    /// shard.
    fn write(&self, at: usize, f: impl FnOnce(&Set, u64)) -> bool {
        // There is a power of two of them.
        let (Some(set), shard) = (self.sets.get(at), &self.shards[at & (self.shards.len() - 1)]) else {
            return false;
        };
        let turn = shard.0.load(Relaxed);
        let free = turn & 1 == 0;
        if !free || shard.0.compare_exchange(turn, turn + 1, Acquire, Relaxed).is_err() {
            return false;
        }
        f(set, turn >> 1);
        shard.0.store(turn.wrapping_add(2), Release);
        true
    }

    fn place(&self, space: Space, size: usize, iova: u64) -> usize {
        place(self.sets.len(), space, size, iova)
    }
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("space", &self.space).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Iotlb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sets, spaces) = (self.sets.len(), self.spaces.len());
        f.debug_struct("Iotlb").field("sets", &sets).field("spaces", &spaces).finish()
    }
}

#[inline(always)]
fn generation(word: u64) -> u16 {
    word as u16
}

#[inline(always)]
const fn low(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// The way where a page is looked for first.
#[inline(always)]
fn home(size: usize, iova: u64) -> usize {
    (iova >> SIZES[size]) as usize & (WAYS - 1)
}

/// The set of a page, of so many, which is a power of two. Four neighbours are together, the next four
/// in the next set, and pages at strides of a power of two are not all in one.
#[inline(always)]
fn place(sets: usize, space: Space, size: usize, iova: u64) -> usize {
    let n = iova >> (u32::from(SIZES[size]) + WAY_BITS);
    let salt = u64::from(space.0).wrapping_mul(0x9e37_79b9) ^ (size as u64) << 7;
    ((n ^ n >> 9 ^ n >> 18).wrapping_add(salt) as usize) & (sets - 1)
}

/// The tag of an address; `None` for one that has more than 57 bits and is not in the upper half
/// either.
#[inline(always)]
fn tag(space: Space, size: usize, iova: u64) -> Option<u64> {
    let above = iova >> (12 + PAGE_BITS - 1);
    if above != 0 && above != u64::MAX >> (12 + PAGE_BITS - 1) {
        return None;
    }
    let number = iova >> SIZES[size] & low(PAGE_BITS);
    Some(number | (size as u64) << SIZE_AT | u64::from(space.0) << SPACE_AT)
}
