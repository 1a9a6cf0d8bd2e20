//! What a table should map, as a map of intervals.

use portcullis_pgtable::Prot;
use std::collections::BTreeMap;

/// What is mapped: last IOVA, physical address and permissions by first IOVA.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Intervals(pub BTreeMap<u64, (u64, u64, Prot)>);

impl Intervals {
    /// The interval that holds `at`, cut to begin there.
    pub fn at(&self, at: u64) -> Option<(u64, u64, Prot)> {
        let (&start, &(last, phys, prot)) = self.0.range(..=at).next_back()?;
        (at <= last).then(|| (last, phys + (at - start), prot))
    }

    /// The first address of `first..=last` that is mapped, and to what.
    pub fn first_mapped(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        if let Some((_, phys, _)) = self.at(first) {
            return Some((first, phys));
        }
        self.0.range(first..=last).next().map(|(start, (_, phys, _))| (*start, *phys))
    }

    /// The first address of `first..=last` that is not mapped.
    pub fn first_hole(&self, first: u64, last: u64) -> Option<u64> {
        let mut at = first;
        while let Some((end, ..)) = self.at(at) {
            if end >= last {
                return None;
            }
            at = end + 1;
        }
        Some(at)
    }

    pub fn insert(&mut self, first: u64, last: u64, phys: u64, prot: Prot) {
        self.0.insert(first, (last, phys, prot));
    }

    pub fn cut(&mut self, at: u64) {
        if let Some((last, phys, prot)) = self.at(at)
            && !self.0.contains_key(&at)
        {
            let start = *self.0.range(..at).next_back().unwrap().0;
            self.0.get_mut(&start).unwrap().0 = at - 1;
            self.0.insert(at, (last, phys, prot));
        }
    }

    pub fn remove(&mut self, first: u64, last: u64) {
        self.cut(first);
        if let Some(after) = last.checked_add(1) {
            self.cut(after);
        }
        self.0.retain(|at, _| *at < first || *at > last);
    }

    pub fn protect(&mut self, first: u64, last: u64, to: Prot) {
        self.cut(first);
        if let Some(after) = last.checked_add(1) {
            self.cut(after);
        }
        for (_, (_, _, prot)) in self.0.range_mut(first..=last) {
            *prot = to;
        }
    }

    /// Neighbours that continue one another are one.
    pub fn joined(&self) -> Vec<(u64, u64, u64, Prot)> {
        let mut all: Vec<(u64, u64, u64, Prot)> = Vec::new();
        for (&start, &(last, phys, prot)) in &self.0 {
            match all.last_mut() {
                Some((s, l, p, q))
                    if l.checked_add(1) == Some(start) && *p + (start - *s) == phys && *q == prot =>
                {
                    *l = last;
                }
                _ => all.push((start, last, phys, prot)),
            }
        }
        all
    }
}
