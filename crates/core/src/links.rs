//! Lists through places of fixed number, in order of arrival: no allocation, and a place leaves
//! from the middle at once.

use crate::error::OutOfMemory;
use alloc::vec::Vec;

const END: u32 = u32::MAX;

/// One list through places 0 to n - 1.
#[derive(Debug)]
pub(crate) struct List {
    links: Vec<Link>,
    first: u32,
    last: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
}

impl List {
    pub(crate) fn new(places: usize) -> Result<List, OutOfMemory> {
        let mut links = Vec::new();
        links.try_reserve_exact(places).map_err(|_| OutOfMemory)?;
        links.resize(places, Link { before: END, after: END });
        Ok(List { links, first: END, last: END })
    }

    #[inline]
    pub(crate) fn first(&self) -> Option<u32> {
        (self.first != END).then_some(self.first)
    }

    #[inline]
    pub(crate) fn after(&self, place: u32) -> Option<u32> {
        let after = self.links[place as usize].after;
        (after != END).then_some(after)
    }

    /// Appends a place that is not in the list.
    #[inline]
    pub(crate) fn push(&mut self, place: u32) {
        self.links[place as usize] = Link { before: self.last, after: END };
        match self.last {
            END => self.first = place,
            last => self.links[last as usize].after = place,
        }
        self.last = place;
    }

    /// Takes out a place that is in the list.
    #[inline]
    pub(crate) fn remove(&mut self, place: u32) {
        let Link { before, after } = self.links[place as usize];
        match before {
            END => self.first = after,
            b => self.links[b as usize].after = after,
        }
        match after {
            END => self.last = before,
            a => self.links[a as usize].before = before,
        }
    }
}
