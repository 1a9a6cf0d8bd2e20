//! Whether there is anybody in a list, asked without its lock by those who change what the members
//! of the list look at.
//!
//! A member enters the list before it begins to look; whoever changes something asks afterwards
//! whom to tell. With a full fence on either side one of the two sees the other: the member sees
//! the change, or the change's author sees the member.

use crate::{
    atomic::{AtomicUsize, Ordering, fence},
    mutate::{Line, without},
};

/// The number of members of a list that is kept under a lock.
#[derive(Debug, Default)]
pub struct Census(AtomicUsize);

impl Census {
    /// Nobody.
    pub fn new() -> Census {
        Census(AtomicUsize::new(0))
    }

    /// The list has `members`: said under its lock, before a new member begins to look.
    pub fn publish(&self, members: usize) {
        self.0.store(members, Ordering::Release);
        if !without(Line::CensusPublishFence) {
            fence(Ordering::SeqCst);
        }
    }

    /// Orders the changes made so far before the answers of [`anybody`](Self::anybody) that follow.
    pub fn fence(&self) {
        if !without(Line::CensusCollectFence) {
            fence(Ordering::SeqCst);
        }
    }

    /// Whether the list has members. Those who are not counted see every change that was made
    /// before the [`fence`](Self::fence) that came before.
    pub fn anybody(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}
