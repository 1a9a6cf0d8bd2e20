//! A small IOVA allocator: a sorted list of the ranges that are in use, searched from the top.
//!
//! Its room is reserved when it is made, so that neither an allocation nor a free allocates. It
//! looks at each range once; a faster one may take its place behind the same five calls.

use crate::error::OutOfMemory;
use alloc::vec::Vec;

/// The IOVAs of one domain. Addresses are counted in bytes, ranges are whole granules.
pub(crate) struct Iovas {
    /// Sorted, disjoint.
    used: Vec<Used>,
    granule: u64,
    /// Ranges that are mapped or parked, and how many there may be.
    given: usize,
    most: usize,
    /// Counts the flushes that have begun.
    epoch: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    first: u64,
    last: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Never given out.
    Reserved,
    /// Somebody's mapping.
    Mapped,
    /// Unmapped before this flush; a device may still hold the translation.
    Parked(u64),
}

/// Why no IOVA was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoIova {
    /// There is no gap of that size below the limit.
    NoGap,
    /// As many ranges are given out as may be.
    TooMany,
}

impl Iovas {
    /// Gives out `most` ranges, and has room for `reserved` that it never gives out beside the
    /// first granule.
    pub(crate) fn new(granule: u64, most: usize, reserved: usize) -> Result<Iovas, OutOfMemory> {
        let mut used = Vec::new();
        let room = most.checked_add(reserved).and_then(|n| n.checked_add(1)).ok_or(OutOfMemory)?;
        used.try_reserve_exact(room).map_err(|_| OutOfMemory)?;
        used.push(Used { first: 0, last: granule - 1, state: State::Reserved });
        Ok(Iovas { used, granule, given: 0, most, epoch: 0 })
    }

    /// Never gives out an address of a range, which may overlap ranges that are reserved already.
    pub(crate) fn reserve(&mut self, first: u64, last: u64) -> Result<(), NoIova> {
        let (mut first, last) = (first & !(self.granule - 1), last | (self.granule - 1));
        while first <= last {
            let i = self.used.partition_point(|u| u.last < first);
            let end = match self.used.get(i) {
                Some(u) if u.first <= first => {
                    first = match u.last.checked_add(1) {
                        Some(next) => next,
                        None => return Ok(()),
                    };
                    continue;
                }
                Some(u) => last.min(u.first - 1),
                None => last,
            };
            self.insert(i, Used { first, last: end, state: State::Reserved })?;
            first = match end.checked_add(1) {
                Some(next) => next,
                None => return Ok(()),
            };
        }
        Ok(())
    }

    /// The highest free range of `len` bytes, whole granules, that ends at or below `limit`.
    pub(crate) fn alloc(&mut self, len: u64, limit: u64) -> Result<u64, NoIova> {
        if self.given == self.most {
            return Err(NoIova::TooMany);
        }
        let span = len.checked_sub(1).ok_or(NoIova::NoGap)?;
        // Addresses beyond the last whole granule are of no use.
        let mut top = match limit.checked_add(1) {
            Some(end) => (end & !(self.granule - 1)).checked_sub(1),
            None => Some(limit),
        };
        for i in (0..=self.used.len()).rev() {
            let below = i.checked_sub(1).and_then(|i| self.used.get(i));
            let bottom = below.map_or(Some(0), |u| u.last.checked_add(1));
            if let (Some(top), Some(bottom)) = (top, bottom)
                && let Some(first) = top.checked_sub(span)
                && first >= bottom
            {
                self.insert(i, Used { first, last: top, state: State::Mapped })?;
                self.given += 1;
                return Ok(first);
            }
            if let Some(u) = below {
                top = top.min(u.first.checked_sub(1));
            }
        }
        Err(NoIova::NoGap)
    }

    /// Gives a range back that no cache holds anything of.
    pub(crate) fn free(&mut self, first: u64) {
        if let Ok(i) = self.used.binary_search_by_key(&first, |u| u.first) {
            self.used.remove(i);
            self.given -= 1;
        }
    }

    /// Keeps a range that was unmapped, and that caches may still hold, until a flush that begins
    /// later is over.
    pub(crate) fn park(&mut self, first: u64) {
        let epoch = self.epoch;
        if let Ok(i) = self.used.binary_search_by_key(&first, |u| u.first) {
            self.used[i].state = State::Parked(epoch);
        }
    }

    /// A flush begins: what it covers is named by the number returned.
    pub(crate) fn flush_begins(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch - 1
    }

    /// Everything that was parked before that flush began is free.
    pub(crate) fn flushed(&mut self, epoch: u64) {
        let before = self.used.len();
        self.used.retain(|u| !matches!(u.state, State::Parked(e) if e <= epoch));
        self.given -= before - self.used.len();
    }

    fn insert(&mut self, i: usize, new: Used) -> Result<(), NoIova> {
        if self.used.len() == self.used.capacity() {
            return Err(NoIova::TooMany);
        }
        self.used.insert(i, new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const K4: u64 = 0x1000;

    #[test]
    fn page_0_and_reserved_ranges_are_never_given_out() {
        let mut iovas = Iovas::new(K4, 16, 4).unwrap();
        iovas.reserve(0x3000, 0x3fff).unwrap();
        assert_eq!(iovas.alloc(K4, 0x4fff), Ok(0x4000));
        assert_eq!(iovas.alloc(K4, 0x4fff), Ok(0x2000));
        assert_eq!(iovas.alloc(K4, 0x4fff), Ok(0x1000));
        assert_eq!(iovas.alloc(K4, 0x4fff), Err(NoIova::NoGap));
        iovas.free(0x2000);
        assert_eq!(iovas.alloc(2 * K4, 0x4fff), Err(NoIova::NoGap));
        assert_eq!(iovas.alloc(K4, 0x4fff), Ok(0x2000));
    }

    #[test]
    fn the_whole_address_space_is_no_special_case() {
        let mut iovas = Iovas::new(K4, 16, 4).unwrap();
        assert_eq!(iovas.alloc(K4, u64::MAX), Ok(u64::MAX - 0xfff));
        iovas.reserve(u64::MAX - 0x1fff, u64::MAX).unwrap();
        assert_eq!(iovas.alloc(K4, u64::MAX), Ok(u64::MAX - 0x2fff));
        assert_eq!(iovas.alloc(u64::MAX, u64::MAX), Err(NoIova::NoGap));
        assert_eq!(iovas.alloc(K4, 0xffe), Err(NoIova::NoGap), "a limit below the first granule");
        assert_eq!(iovas.alloc(K4, 0x1ffe), Err(NoIova::NoGap), "half a granule is none");
    }

    #[test]
    fn what_is_parked_is_free_after_a_flush_that_began_later() {
        let mut iovas = Iovas::new(K4, 16, 4).unwrap();
        let (a, b) = (iovas.alloc(K4, 0x2fff).unwrap(), iovas.alloc(K4, 0x2fff).unwrap());
        iovas.park(a);
        let flush = iovas.flush_begins();
        iovas.park(b);
        assert_eq!(iovas.alloc(K4, 0x2fff), Err(NoIova::NoGap), "the flush is not over");
        iovas.flushed(flush);
        assert_eq!(iovas.alloc(K4, 0x2fff), Ok(a));
        assert_eq!(iovas.alloc(K4, 0x2fff), Err(NoIova::NoGap), "the other was parked too late for it");
        let flush = iovas.flush_begins();
        iovas.flushed(flush);
        assert_eq!(iovas.alloc(K4, 0x2fff), Ok(b));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Alloc(u64),
        Free(usize),
        Park(usize),
        Flush,
        Reserve(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..5u64).prop_map(Step::Alloc),
            2 => any::<usize>().prop_map(Step::Free),
            2 => any::<usize>().prop_map(Step::Park),
            1 => Just(Step::Flush),
            1 => (0..24u64, 0..3u64).prop_map(|(a, n)| Step::Reserve(a, n)),
        ]
    }

    proptest! {
        /// Against a map of granules.
        #[test]
        fn ranges_are_disjoint_and_come_back_only_when_they_may(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            const GRANULES: u64 = 24;
            let mut iovas = Iovas::new(K4, 6, 6).unwrap();
            let mut taken = [false; GRANULES as usize];
            taken[0] = true;
            let mut live: Vec<(u64, u64)> = Vec::new();
            let mut parked: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Alloc(n) => match iovas.alloc(n * K4, GRANULES * K4 - 1) {
                        Ok(first) => {
                            for g in first / K4..first / K4 + n {
                                prop_assert!(!core::mem::replace(&mut taken[g as usize], true));
                            }
                            live.push((first, n));
                        }
                        Err(NoIova::NoGap) => {
                            let n = n as usize;
                            prop_assert!(!taken.windows(n).any(|w| w.iter().all(|t| !t)), "a gap was missed");
                        }
                        Err(NoIova::TooMany) => {
                            prop_assert!(live.len() + parked.len() == 6 || iovas.used.len() == 13);
                        }
                    },
                    Step::Free(i) if !live.is_empty() => {
                        let (first, n) = live.swap_remove(i % live.len());
                        iovas.free(first);
                        (first / K4..first / K4 + n).for_each(|g| taken[g as usize] = false);
                    }
                    Step::Park(i) if !live.is_empty() => {
                        let gone = live.swap_remove(i % live.len());
                        iovas.park(gone.0);
                        parked.push(gone);
                    }
                    Step::Flush => {
                        let epoch = iovas.flush_begins();
                        iovas.flushed(epoch);
                        for (first, n) in parked.drain(..) {
                            (first / K4..first / K4 + n).for_each(|g| taken[g as usize] = false);
                        }
                    }
                    Step::Reserve(a, n) => {
                        if iovas.reserve(a * K4, (a + n) * K4 + 1).is_ok() {
                            (a..=a + n).filter(|g| *g < GRANULES).for_each(|g| taken[g as usize] = true);
                        } else {
                            return Ok(());
                        }
                        // What was live there stays its owner's to free.
                        let meets = |&(first, m): &(u64, u64)| first / K4 <= a + n && a < first / K4 + m;
                        if live.iter().chain(&parked).any(meets) {
                            return Ok(());
                        }
                    }
                    _ => {}
                }
                prop_assert!(iovas.used.is_sorted_by(|a, b| a.last < b.first));
            }
        }
    }
}
