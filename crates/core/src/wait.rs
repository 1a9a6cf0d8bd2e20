//! Waiting, in one place: every blocking operation is a loop over a step form.

use crate::platform::{Platform, Sleep, Time, Woken};
use core::{task::Poll, time::Duration};

/// Why a wait was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GaveUp {
    Deadline,
    Shutdown,
}

const FIRST_PAUSE: Duration = Duration::from_micros(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// Calls `step` until it is ready. Between calls it waits for `event`, and looks again by itself
/// after a growing pause, since hardware that completes something need not say so.
pub(crate) fn poll_until<P: Platform, T>(
    platform: &P,
    cx: &Sleep<'_>,
    event: &P::Event,
    until: Option<Time>,
    mut step: impl FnMut() -> Poll<T>,
) -> Result<T, GaveUp> {
    let mut pause = FIRST_PAUSE;
    loop {
        let seen = platform.seen(event);
        if let Poll::Ready(t) = step() {
            return Ok(t);
        }
        let now = platform.now();
        if until.is_some_and(|u| now >= u) {
            return Err(GaveUp::Deadline);
        }
        let look = now + pause;
        match platform.wait(cx, event, seen, Some(until.map_or(look, |u| u.min(look)))) {
            Woken::Notified => pause = FIRST_PAUSE,
            Woken::Deadline => pause = (pause * 2).min(LONGEST_PAUSE),
            Woken::Shutdown => return Err(GaveUp::Shutdown),
        }
    }
}

/// Waits for `event` alone, without looking in between: for conditions that only software makes
/// true.
pub(crate) fn wait_for<P: Platform, T>(
    platform: &P,
    cx: &Sleep<'_>,
    event: &P::Event,
    until: Option<Time>,
    mut step: impl FnMut() -> Poll<T>,
) -> Result<T, GaveUp> {
    loop {
        let seen = platform.seen(event);
        if let Poll::Ready(t) = step() {
            return Ok(t);
        }
        if until.is_some_and(|u| platform.now() >= u) {
            return Err(GaveUp::Deadline);
        }
        if platform.wait(cx, event, seen, until) == Woken::Shutdown {
            return Err(GaveUp::Shutdown);
        }
    }
}
