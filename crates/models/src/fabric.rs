//! The fabric between endpoints and units: posted messages in flight, in order, possibly late.

use std::collections::VecDeque;

use crate::adversary::Adversary;

/// Posted messages of one endpoint in one direction. They arrive in order; the adversary decides
/// how late.
#[derive(Debug)]
pub struct Lane<T> {
    queue: VecDeque<(u64, T)>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Lane { queue: VecDeque::new() }
    }
}

impl<T> Lane<T> {
    /// Messages a lane holds before flow control stops its sender.
    pub const CREDITS: usize = 8192;

    /// Sends a message at `now`.
    pub(crate) fn push(&mut self, now: u64, adversary: &mut Adversary, message: T) {
        let not_before = adversary.not_before(now);
        self.queue.push_back((not_before, message));
    }

    /// True where the sender has to wait.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= Self::CREDITS
    }

    /// Messages in flight.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// True where nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// True where a message can arrive at `now`.
    pub(crate) fn is_ready(&self, now: u64) -> bool {
        self.queue.front().is_some_and(|(t, _)| *t <= now)
    }

    /// When the next message can arrive.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.queue.front().map(|(t, _)| *t)
    }

    /// The next message, if it can arrive at `now`.
    pub(crate) fn pop(&mut self, now: u64) -> Option<T> {
        if !self.is_ready(now) {
            return None;
        }
        self.queue.pop_front().map(|(_, m)| m)
    }
}
