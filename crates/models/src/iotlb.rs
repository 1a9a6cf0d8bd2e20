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
//! tlb.invalidate(device, 0x12_3000, 0x12_3fff);
//! assert_eq!(tlb.lookup(device, 0x12_3456), None);
//! ```
//!
//! # How
//!
//! Four ways of a tag and a word of data are one line, a *set*. A set is written under its shard's
//! sequence, which is odd meanwhile: a reader that sees it odd or changed has missed. Each space has a
//! generation, and an entry counts only while it has its space's: a space, or a range too long to
//! look for page by page, is invalidated by one addition. Sizes above 4 KiB are looked for only
//! while the space has any.
//!
//! The atomics are not those of `portcullis-sync`, which are preemption points of a simulation:
//! hardware, of which this is a part there, takes a step as a whole.

#[cfg(portcullis_loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(portcullis_loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Ways of a set.
const WAYS: usize = 4;
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
/// Of a word of data: bits 51:12 of the address, the flags, the generation.
const FRAME_BITS: u32 = 40;
const FLAGS_AT: u32 = FRAME_BITS;
const GENERATION_AT: u32 = FLAGS_AT + 8;
/// Of a space's state: below, how often something was invalidated in it, so that no state comes
/// again; above, its generation.
const COUNT_BITS: u32 = 48;
const NEXT_GENERATION: u64 = (1 << COUNT_BITS) + 1;
/// The generation in which nothing is filled in, and so nothing found: entries of earlier rounds are
/// being taken out, before their generations come again.
const CLOSED: u64 = 0xffff;

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
    state: u64,
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
    state: AtomicU64,
    /// Bit n: lookups look for entries of size class n.
    sizes: AtomicU64,
}

impl Iotlb {
    /// An empty one for so many translations (rounded up to a power of two, four at least) of the
    /// spaces 0 to `spaces` - 1.
    pub fn new(entries: usize, spaces: u16) -> Iotlb {
        let sets = entries.div_ceil(WAYS).next_power_of_two();
        let words = |w: u64| std::array::from_fn(|_| AtomicU64::new(w));
        let space = || SpaceState { state: AtomicU64::new(0), sizes: AtomicU64::new(0) };
        Iotlb {
            sets: (0..sets).map(|_| Set { tags: words(EMPTY), data: words(0) }).collect(),
            shards: (0..sets.min(SHARDS)).map(|_| Shard(AtomicU64::new(0))).collect(),
            spaces: (0..spaces).map(|_| space()).collect(),
        }
    }

    /// The translation of an address, if it is here. Never waits.
    #[inline]
    pub fn lookup(&self, space: Space, iova: u64) -> Option<Translation> {
        let s = self.spaces.get(usize::from(space.0))?;
        // Before anything else: what is found must be of a generation that was current after the
        // call had begun.
        let generation = generation(s.state.load(Acquire));
        let sizes = s.sizes.load(Relaxed);
        if sizes > 1 {
            let large = self.probe(space, 1, iova, generation);
            if let Some(found) = large.or_else(|| self.probe(space, 2, iova, generation)) {
                return Some(found);
            }
        }
        self.probe(space, 0, iova, generation)
    }

    #[inline(always)]
    fn probe(&self, space: Space, size: usize, iova: u64, generation: u64) -> Option<Translation> {
        let tag = tag(space, size, iova)?;
        let at = self.place(space, size, iova);
        let (set, shard) = (self.sets.get(at)?, self.shard(at));
        let sequence = shard.0.load(Acquire);
        let mut way = WAYS;
        for (w, t) in set.tags.iter().enumerate() {
            if t.load(Acquire) == tag {
                way = w;
            }
        }
        let data = set.data.get(way)?.load(Acquire);
        // What a writer stored was released after it had made the sequence odd: who has read any of
        // it sees another sequence here.
        if sequence & 1 != 0 || shard.0.load(Acquire) != sequence {
            return None;
        }
        if data >> GENERATION_AT != generation {
            return None;
        }
        let bits = SIZES[size];
        let base = (data & low(FRAME_BITS)) << 12;
        Some(Translation { phys: base | iova & low(bits.into()), bits, flags: (data >> FLAGS_AT) as u8 })
    }

    /// Before a walk whose result will be filled in. `None` where there is no such space.
    pub fn begin(&self, space: Space) -> Option<Fill> {
        let s = self.spaces.get(usize::from(space.0))?;
        Some(Fill { space, state: s.state.load(Acquire) })
    }

    /// Fills in what a walk has found for `iova`. Returns whether it is there now: it is not where
    /// something of the space was invalidated since [`begin`](Iotlb::begin), where somebody else
    /// writes nearby, or where the address has more bits than a tag.
    pub fn insert(&self, fill: Fill, iova: u64, t: Translation) -> bool {
        let Fill { space, state } = fill;
        let Some(s) = self.spaces.get(usize::from(space.0)) else { return false };
        let Some(size) = SIZES.iter().position(|b| *b == t.bits) else { return false };
        let Some(tag) = tag(space, size, iova) else { return false };
        let frame = t.phys >> t.bits << t.bits >> 12;
        if generation(state) == CLOSED || frame >> FRAME_BITS != 0 {
            return false;
        }
        let data = frame | u64::from(t.flags) << FLAGS_AT | generation(state) << GENERATION_AT;
        if s.sizes.load(Relaxed) & 1 << size == 0 {
            s.sizes.fetch_or(1 << size, Relaxed);
        }
        let mut done = false;
        self.write(self.place(space, size, iova), |set, turn| {
            // Inside: an invalidation that counts up later looks into this set after us, and one that
            // looked before us has counted up.
            if s.state.load(Acquire) == state {
                let way = self.victim(set, tag, turn);
                set.data[way].store(data, Release);
                set.tags[way].store(tag, Release);
                done = true;
            }
        }) && done
    }

    /// The way of a tag, else one that holds nothing of use, else each in turn.
    fn victim(&self, set: &Set, tag: u64, turn: u64) -> usize {
        let tags = || set.tags.iter().map(|t| t.load(Relaxed));
        let useless = |way: usize, t: u64| {
            let s = self.spaces.get((t >> SPACE_AT) as usize);
            let current = s.map(|s| generation(s.state.load(Relaxed)));
            t == EMPTY || current != Some(set.data[way].load(Relaxed) >> GENERATION_AT)
        };
        let same = tags().position(|t| t == tag);
        let free = || tags().enumerate().position(|(way, t)| useless(way, t));
        same.or_else(free).unwrap_or(turn as usize % WAYS)
    }

    /// Forgets what touches `first` to `last`, both inclusive, of a space.
    pub fn invalidate(&self, space: Space, first: u64, last: u64) {
        let Some(s) = self.spaces.get(usize::from(space.0)) else { return };
        // Walks under way may have read what is no more.
        s.state.fetch_add(1, AcqRel);
        if (last >> SIZES[0]).saturating_sub(first >> SIZES[0]) >= LOOKED_FOR {
            return self.invalidate_space(space);
        }
        // Of every size: one that is being filled in may not show in `sizes` yet.
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
            for t in set.tags.iter().filter(|t| t.load(Relaxed) == tag) {
                t.store(EMPTY, Release);
            }
        })
    }

    /// Forgets all of a space.
    pub fn invalidate_space(&self, space: Space) {
        let Some(s) = self.spaces.get(usize::from(space.0)) else { return };
        s.sizes.store(0, Relaxed);
        let mut state = s.state.load(Relaxed);
        loop {
            // Nothing is found in a closed space, nor will anything be that is there now.
            let closed = generation(state) == CLOSED;
            let next = state.wrapping_add(if closed { 1 } else { NEXT_GENERATION });
            match s.state.compare_exchange_weak(state, next, AcqRel, Relaxed) {
                Ok(_) if !closed && generation(next) == CLOSED => break,
                Ok(_) => return,
                Err(now) => state = now,
            }
        }
        self.sweep();
        s.state.fetch_add(NEXT_GENERATION, AcqRel);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for n in 0..self.spaces.len() {
            self.invalidate_space(Space(n as u16));
        }
    }

    /// Takes everything out, so that generations may come again.
    fn sweep(&self) {
        for at in 0..self.sets.len() {
            let empty = |set: &Set, _| set.tags.iter().for_each(|t| t.store(EMPTY, Release));
            while !self.write(at, empty) {
                std::hint::spin_loop();
            }
        }
    }

    /// Calls `f` with a set and a number that changes each time, unless somebody else writes in the
    /// shard.
    fn write(&self, at: usize, f: impl FnOnce(&Set, u64)) -> bool {
        let (Some(set), shard) = (self.sets.get(at), self.shard(at)) else { return false };
        let sequence = shard.0.load(Relaxed);
        let free = sequence & 1 == 0;
        if !free || shard.0.compare_exchange(sequence, sequence + 1, Acquire, Relaxed).is_err() {
            return false;
        }
        f(set, sequence >> 1);
        shard.0.store(sequence.wrapping_add(2), Release);
        true
    }

    #[inline(always)]
    fn shard(&self, at: usize) -> &Shard {
        // There is a power of two of them.
        &self.shards[at & (self.shards.len() - 1)]
    }

    /// The set of a page. Neighbours go to neighbouring sets, and so do pages at strides of a power
    /// of two.
    #[inline(always)]
    fn place(&self, space: Space, size: usize, iova: u64) -> usize {
        let n = iova >> SIZES[size];
        let salt = u64::from(space.0).wrapping_mul(0x9e37_79b9) ^ (size as u64) << 7;
        ((n ^ n >> 9 ^ n >> 18).wrapping_add(salt) as usize) & (self.sets.len() - 1)
    }
}

impl std::fmt::Debug for Iotlb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (sets, spaces) = (self.sets.len(), self.spaces.len());
        f.debug_struct("Iotlb").field("sets", &sets).field("spaces", &spaces).finish()
    }
}

#[inline(always)]
fn generation(state: u64) -> u64 {
    state >> COUNT_BITS
}

#[inline(always)]
const fn low(bits: u32) -> u64 {
    (1 << bits) - 1
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
