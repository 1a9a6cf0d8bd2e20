//! Slots with what they stand for: written by one while a slot is free, read by anybody, whole or
//! not at all.
//!
//! Words of a record are plain atomics without ordering of their own. A reader's copy counts only
//! if the slot's word still names the same generation afterwards, as with a sequence lock; a
//! reader never waits, it is told that the slot is somebody else's.

use crate::{
    atomic::{AtomicU32, AtomicU64, Ordering, fence},
    mutate::{Line, without},
    ring::AllocError,
    slot::{Generation, SlotWord, State},
};
use alloc::{boxed::Box, vec::Vec};
use core::array;

/// A fixed number of slots with records of `W` words, and of pages that records may refer to.
#[derive(Debug)]
pub struct Records<const W: usize> {
    slots: Box<[Slot<W>]>,
    pages: Box<[Page]>,
}

/// One word and its record, on cache lines of its own: neighbours are answered by other cores.
#[derive(Debug)]
#[repr(align(64))]
struct Slot<const W: usize> {
    word: SlotWord,
    record: [AtomicU64; W],
}

#[derive(Debug)]
struct Page {
    value: AtomicU64,
    note: AtomicU32,
    next: AtomicU32,
}

fn boxed<T>(n: usize, new: impl Fn(u32) -> T) -> Result<Box<[T]>, AllocError> {
    let mut list = Vec::new();
    list.try_reserve_exact(n).map_err(|_| AllocError)?;
    list.extend((0..u32::try_from(n).map_err(|_| AllocError)?).map(new));
    Ok(list.into_boxed_slice())
}

impl<const W: usize> Records<W> {
    /// So many free slots, and pages, each linked to the one after it.
    ///
    /// # Errors
    /// [`AllocError`] when there is no memory for them.
    pub fn new(slots: usize, pages: usize) -> Result<Records<W>, AllocError> {
        let slot = |_| Slot { word: SlotWord::new(), record: array::from_fn(|_| AtomicU64::new(0)) };
        let page =
            |n| Page { value: AtomicU64::new(0), note: AtomicU32::new(0), next: AtomicU32::new(n + 1) };
        Ok(Records { slots: boxed(slots, slot)?, pages: boxed(pages, page)? })
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no slots.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The word of a slot.
    #[inline]
    pub fn word(&self, slot: u32) -> Option<&SlotWord> {
        self.slots.get(slot as usize).map(|s| &s.word)
    }

    /// Arms a free slot for a record. Called by one at a time, as [`SlotWord::arm_with`].
    #[inline]
    pub fn arm(&self, slot: u32, record: impl FnOnce() -> [u64; W]) -> Option<Generation> {
        let slot = self.slots.get(slot as usize)?;
        slot.word.arm_with(|| {
            write_fence();
            for (word, value) in slot.record.iter().zip(record()) {
                word.store(value, Ordering::Relaxed);
            }
        })
    }

    /// A slot's record, if it is still that generation's and its answer was not sent.
    #[inline]
    pub fn read(&self, slot: u32, generation: Generation) -> Option<[u64; W]> {
        let slot = self.slots.get(slot as usize)?;
        if !slot.word.is_live(generation) {
            return None;
        }
        let record = array::from_fn(|i| slot.record[i].load(Ordering::Relaxed));
        still(&slot.word, generation).then_some(record)
    }

    /// A slot that waits for an answer or for sending, with its record.
    pub fn live(&self, slot: u32) -> Option<(Generation, State, [u64; W])> {
        let (generation, state) = self.word(slot)?.peek();
        if state.is_free() {
            return None;
        }
        Some((generation, state, self.read(slot, generation)?))
    }

    /// Writes a page that no live record refers to, but for its link, and returns the page that it is
    /// linked to. `None` for a page that is none. Called by one at a time, after the slot whose record
    /// referred to it last was seen free.
    #[inline]
    pub fn write_page(&self, page: u32, value: u64, note: u32) -> Option<u32> {
        let p = self.pages.get(page as usize)?;
        write_fence();
        p.value.store(value, Ordering::Relaxed);
        p.note.store(note, Ordering::Relaxed);
        Some(p.next.load(Ordering::Relaxed))
    }

    /// Links a page that no live record refers to yet to another one, by the one who writes pages.
    #[inline]
    pub fn link_page(&self, page: u32, next: u32) {
        if let Some(p) = self.pages.get(page as usize) {
            p.next.store(next, Ordering::Relaxed);
        }
    }

    /// What is written in a page, for the one who writes pages, or as long as
    /// [`still_live`](Self::still_live) says so afterwards.
    #[inline]
    pub fn page(&self, page: u32) -> Option<(u64, u32)> {
        let p = self.pages.get(page as usize)?;
        Some((p.value.load(Ordering::Relaxed), p.note.load(Ordering::Relaxed)))
    }

    /// The page that a page is linked to, for the same readers. `None` for a page that is none.
    #[inline]
    pub fn next_page(&self, page: u32) -> Option<u32> {
        Some(self.pages.get(page as usize)?.next.load(Ordering::Relaxed))
    }

    /// Whether what was read of a slot's pages before was its record's.
    #[inline]
    pub fn still_live(&self, slot: u32, generation: Generation) -> bool {
        self.word(slot).is_some_and(|w| still(w, generation))
    }
}

/// Before a free slot's record is written: whoever reads a new word sees, when they look again,
/// that the slot was freed.
#[inline]
fn write_fence() {
    if !without(Line::RecordBehindFence) {
        fence(Ordering::Release);
    }
}

#[inline]
fn still(word: &SlotWord, generation: Generation) -> bool {
    fence(Ordering::Acquire);
    without(Line::RecordReadAgain) || word.is_live(generation)
}

#[cfg(all(test, not(portcullis_loom), not(portcullis_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_under_its_own_generation_only() {
        let r = Records::<3>::new(2, 1).unwrap();
        assert_eq!(r.live(0), None);
        let g = r.arm(0, || [1, 2, 3]).unwrap();
        assert_eq!(r.arm(0, || [9, 9, 9]), None, "it is not free");
        assert_eq!(r.read(0, g), Some([1, 2, 3]));
        assert_eq!(r.live(0), Some((g, State::Pending, [1, 2, 3])));
        assert!(r.word(0).unwrap().void(g));
        assert_eq!((r.read(0, g), r.live(0)), (None, None));
        let next = r.arm(0, || [4, 5, 6]).unwrap();
        assert_eq!(r.read(0, g), None);
        assert_eq!(r.read(0, next), Some([4, 5, 6]));
        assert!(r.still_live(0, next) && !r.still_live(0, g) && !r.still_live(9, g));
    }

    #[test]
    fn pages_outside_are_nobodys() {
        let r = Records::<1>::new(1, 1).unwrap();
        assert_eq!(r.write_page(7, 1, 1), None);
        r.link_page(7, 1);
        assert_eq!(r.write_page(0, 5, 6), Some(1));
        assert_eq!(r.next_page(0), Some(1), "linked to the one after it, whether that is there or not");
        r.link_page(0, 7);
        assert_eq!((r.page(0), r.next_page(0)), (Some((5, 6)), Some(7)));
        assert_eq!((r.page(7), r.next_page(7)), (None, None));
        assert!(r.word(1).is_none() && r.arm(1, || [0]).is_none());
        assert_eq!((r.len(), r.is_empty()), (1, false));
    }
}
