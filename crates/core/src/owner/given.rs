//! Which PASIDs of a number space are given out: a bit for each, up to the highest that ever was, so
//! that all 2^20 take 130 KiB, and the lowest free one is found in a few hundred words.

use crate::{error::OutOfMemory, ids::Pasid};
use alloc::vec::Vec;

const MOST_WORDS: usize = (Pasid::MAX as usize + 1) / 64;
const FEWEST_WORDS: usize = 4;

/// The numbers that are given out.
#[derive(Default)]
pub(super) struct Given {
    /// A bit for each number.
    words: Vec<u64>,
    /// A bit for each word that has no clear one.
    full: Vec<u64>,
    count: usize,
}

impl Given {
    /// The lowest number from `from` on that is not given out; beyond [`Pasid::MAX`] where there is
    /// none.
    pub(super) fn lowest_free(&self, from: u32) -> u32 {
        let (word, bit) = place(from);
        let free = self.words.get(word).map_or(u64::MAX, |w| !w) & u64::MAX << bit;
        if free != 0 {
            return number(word, free);
        }
        let word = lowest_clear(&self.full, word + 1);
        number(word, self.words.get(word).map_or(u64::MAX, |w| !w))
    }

    /// Gives a number out, for which there is room.
    pub(super) fn set(&mut self, n: u32) {
        let (word, bit) = place(n);
        if let Some(w) = self.words.get_mut(word).filter(|w| **w >> bit & 1 == 0) {
            *w |= 1 << bit;
            self.count += 1;
            if *w == u64::MAX {
                self.full[word / 64] |= 1 << (word % 64);
            }
        }
    }

    /// Takes a number back.
    pub(super) fn clear(&mut self, n: u32) {
        let (word, bit) = place(n);
        if let Some(w) = self.words.get_mut(word).filter(|w| **w >> bit & 1 != 0) {
            *w &= !(1 << bit);
            self.count -= 1;
            self.full[word / 64] &= !(1 << (word % 64));
        }
    }

    /// How many are given out.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The room without which a number cannot be given out; `None` where it can be.
    pub(super) fn lacks(&self, n: u32) -> Option<usize> {
        let (word, _) = place(n);
        let doubled = (self.words.len() * 2).clamp(FEWEST_WORDS, MOST_WORDS);
        (word >= self.words.len()).then(|| doubled.max(word + 1))
    }

    /// Moves into larger room, and leaves the old in its place. Allocates nothing.
    pub(super) fn move_into(&mut self, room: &mut Room) {
        if room.words.len() > self.words.len() {
            room.words[..self.words.len()].copy_from_slice(&self.words);
            room.full[..self.full.len()].copy_from_slice(&self.full);
            core::mem::swap(&mut self.words, &mut room.words);
            core::mem::swap(&mut self.full, &mut room.full);
        }
    }
}

/// Room for more numbers, which is made where one may allocate.
#[derive(Default)]
pub(super) struct Room {
    words: Vec<u64>,
    full: Vec<u64>,
}

impl Room {
    /// For so many words. Allocates.
    pub(super) fn new(words: usize) -> Result<Room, OutOfMemory> {
        Ok(Room { words: zeros(words)?, full: zeros(words.div_ceil(64))? })
    }

    pub(super) fn words(&self) -> usize {
        self.words.len()
    }
}

fn zeros(n: usize) -> Result<Vec<u64>, OutOfMemory> {
    let mut words = Vec::new();
    words.try_reserve_exact(n).map_err(|_| OutOfMemory)?;
    words.resize(n, 0);
    Ok(words)
}

/// The word that a number is in, and its bit there.
fn place(n: u32) -> (usize, u32) {
    (n as usize / 64, n % 64)
}

/// The lowest number whose bit is set in `bits`, those of a word.
fn number(word: usize, bits: u64) -> u32 {
    word as u32 * 64 + bits.trailing_zeros()
}

/// The lowest index from `from` on whose bit is not set.
fn lowest_clear(bits: &[u64], from: usize) -> usize {
    let mut mask = u64::MAX << (from % 64);
    for (i, word) in bits.iter().enumerate().skip(from / 64) {
        let clear = !word & core::mem::replace(&mut mask, u64::MAX);
        if clear != 0 {
            return i * 64 + clear.trailing_zeros() as usize;
        }
    }
    from.max(bits.len() * 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    extern crate std;

    fn take(given: &mut Given, from: u32) -> u32 {
        let n = given.lowest_free(from);
        if let Some(words) = given.lacks(n) {
            given.move_into(&mut Room::new(words).unwrap());
        }
        given.set(n);
        n
    }

    #[test]
    fn all_of_them_and_no_more_words_than_they_need() {
        let mut given = Given::default();
        for n in 1..=Pasid::MAX {
            assert_eq!(take(&mut given, 1), n);
        }
        assert_eq!(given.count(), Pasid::MAX as usize);
        assert!(given.lowest_free(1) > Pasid::MAX);
        assert_eq!((given.words.len(), given.full.len()), (MOST_WORDS, MOST_WORDS / 64));
        for n in [Pasid::MAX, 4096, 4095, 1] {
            given.clear(n);
            assert_eq!(given.lowest_free(1), n);
        }
        assert_eq!(take(&mut given, 2), 4095);
    }

    proptest! {
        /// Against a plain set.
        #[test]
        fn as_a_set_has_it(steps in proptest::collection::vec((0..3u8, 1..5000u32), 0..300)) {
            let (mut given, mut set) = (Given::default(), BTreeSet::new());
            for (what, n) in steps {
                if what == 0 {
                    given.clear(n);
                    set.remove(&n);
                } else {
                    // Most from the bottom, so that words fill up.
                    let from = if what == 1 { n } else { 1 };
                    let free = (from..).find(|n| !set.contains(n)).unwrap();
                    prop_assert_eq!(take(&mut given, from), free);
                    set.insert(free);
                }
                prop_assert_eq!(given.count(), set.len());
            }
        }
    }
}
