//! When a device that stalls too much is not let stall for a while. Pure: it counts what it is told,
//! at the times it is told.

use crate::{ids::SourceId, platform::Time};
use core::time::Duration;

/// When a device is not let stall any more, and for how long. What it does meanwhile is refused at
/// once; each fault makes the time begin anew, so that only a device that is quiet stalls again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallLimit {
    /// The time over which stalls are counted.
    pub window: Duration,
    /// Stalls in a window from which there are too many, however they end. `None` here and below:
    /// never.
    pub stalls: Option<u32>,
    /// The same of stalls that were terminated.
    pub terminated: Option<u32>,
    /// For how long, counted from the last fault.
    pub off: Duration,
}

impl StallLimit {
    /// No limit.
    pub const NEVER: StallLimit = StallLimit { stalls: None, terminated: None, ..StallLimit::DEFAULT };

    const DEFAULT: StallLimit = StallLimit {
        window: Duration::from_millis(10),
        stalls: Some(256),
        terminated: Some(16),
        off: Duration::from_millis(500),
    };
}

impl Default for StallLimit {
    fn default() -> Self {
        StallLimit::DEFAULT
    }
}

/// One requester's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limiter {
    pub(crate) source: SourceId,
    /// Of the account that it belongs to, when it began to count.
    pub(crate) holder: u32,
    since: Time,
    stalls: u32,
    terminated: u32,
    off: Option<Time>,
}

impl Limiter {
    pub(crate) fn new(source: SourceId, holder: u32) -> Limiter {
        Limiter { source, holder, since: Time(0), stalls: 0, terminated: 0, off: None }
    }

    /// When it may stall again; `None` while it may.
    pub(crate) fn due(&self) -> Option<Time> {
        self.off
    }

    /// A stall. True when there are too many with it.
    pub(crate) fn stalls(&mut self, now: Time, limit: &StallLimit) -> bool {
        if self.off.is_some() {
            self.faults(now, limit);
            return false;
        }
        if now.since(self.since) >= limit.window {
            (self.since, self.stalls, self.terminated) = (now, 0, 0);
        }
        self.stalls = self.stalls.saturating_add(1);
        let over = |n: u32, most: Option<u32>| most.is_some_and(|most| n >= most.max(1));
        if !over(self.stalls, limit.stalls) && !over(self.terminated, limit.terminated) {
            return false;
        }
        self.off = Some(now + limit.off);
        true
    }

    /// One of its stalls was terminated.
    pub(crate) fn was_terminated(&mut self) {
        self.terminated = self.terminated.saturating_add(1);
    }

    /// A fault, where it does not stall.
    pub(crate) fn faults(&mut self, now: Time, limit: &StallLimit) {
        if let Some(off) = &mut self.off {
            *off = (*off).max(now + limit.off);
        }
    }

    /// Whether it may stall again from now on.
    pub(crate) fn calms(&mut self, now: Time) -> bool {
        let over = self.off.is_some_and(|t| t <= now);
        if over {
            (self.off, self.since, self.stalls, self.terminated) = (None, now, 0, 0);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: StallLimit = StallLimit {
        window: Duration::from_millis(10),
        stalls: Some(4),
        terminated: Some(2),
        off: Duration::from_millis(500),
    };

    fn ms(n: u64) -> Time {
        Time(n * 1_000_000)
    }

    fn limiter() -> Limiter {
        Limiter::new(SourceId(1), 0)
    }

    #[test]
    fn too_many_in_a_window_and_not_over_two() {
        let mut l = limiter();
        for at in [0, 3, 6, 10, 13, 16] {
            assert!(!l.stalls(ms(at), &LIMIT), "at {at} ms");
        }
        assert!(l.stalls(ms(19), &LIMIT) && l.due() == Some(ms(519)));
        assert!(!l.stalls(ms(19), &LIMIT), "it is off already");
    }

    #[test]
    fn what_is_terminated_counts_for_more() {
        let mut l = limiter();
        for _ in 0..2 {
            assert!(!l.stalls(ms(1), &LIMIT));
            l.was_terminated();
        }
        assert!(l.stalls(ms(2), &LIMIT));
    }

    #[test]
    fn it_comes_back_after_calm_alone_and_begins_anew() {
        let mut l = limiter();
        assert!((0..4).any(|_| l.stalls(ms(0), &LIMIT)));
        l.faults(ms(499), &LIMIT);
        assert!(!l.calms(ms(998)), "the fault began the time anew");
        assert!(l.calms(ms(999)) && !l.calms(ms(999)) && l.due().is_none());
        assert!((0..3).all(|_| !l.stalls(ms(999), &LIMIT)));
        assert!(l.stalls(ms(999), &LIMIT));
    }

    #[test]
    fn no_limit_is_none() {
        let mut l = limiter();
        l.was_terminated();
        assert!((0..1000).all(|_| !l.stalls(ms(0), &StallLimit::NEVER)));
    }
}
