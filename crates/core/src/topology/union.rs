//! Sets that are joined, with the reasons kept.

use super::{error::TopologyError, merge::MergedBy};
use alloc::vec::Vec;

/// Disjoint sets of the numbers below a bound. The reasons kept form a forest: one joins two sets
/// that were apart, so each set has one fewer than it has members.
pub(super) struct Union {
    parent: Vec<u32>,
    pub(super) joined: Vec<(u32, u32, MergedBy)>,
}

impl Union {
    pub(super) fn new(count: u32) -> Result<Self, TopologyError> {
        let (mut parent, mut joined) = (Vec::new(), Vec::new());
        let failed = |_| TopologyError::OutOfMemory;
        parent.try_reserve_exact(count as usize).map_err(failed)?;
        joined.try_reserve_exact(count as usize).map_err(failed)?;
        parent.extend(0..count);
        Ok(Self { parent, joined })
    }

    /// The lowest number of the set.
    pub(super) fn find(&mut self, mut i: u32) -> u32 {
        while let Some(&up) = self.parent.get(i as usize)
            && up != i
        {
            let above = self.parent.get(up as usize).copied().unwrap_or(up);
            if let Some(parent) = self.parent.get_mut(i as usize) {
                *parent = above;
            }
            i = above;
        }
        i
    }

    pub(super) fn join(&mut self, a: u32, b: u32, by: MergedBy) {
        let (root_a, root_b) = (self.find(a), self.find(b));
        if root_a == root_b {
            return;
        }
        let (low, high) = (root_a.min(root_b), root_a.max(root_b));
        if let Some(parent) = self.parent.get_mut(high as usize) {
            *parent = low;
        }
        self.joined.push((a.min(b), a.max(b), by));
    }
}
