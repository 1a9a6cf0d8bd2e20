//! What is done about a device that faults too much: a ladder, climbed by how often and come down
//! again by calm.
//!
//! ```text
//! Log -> Coalesce -> Mask -> Quarantine -> AskReset
//! ```
//!
//! Pure: it counts what it is told, at the times it is told, and says what to do.

use crate::platform::Time;
use core::{fmt, time::Duration};

/// How far a device, or an instance, has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rung {
    /// Every record is told.
    #[default]
    Log,
    /// One record a window is told, with how many were not.
    Coalesce,
    /// No record is told; where the hardware can, it takes none. How many there were is told when
    /// that ends.
    Mask,
    /// The device is cut off, and everything it asked is answered. Until it is reset.
    Quarantine,
    /// That did not silence it: somebody should reset it.
    AskReset,
}

impl Rung {
    /// Every rung, from the lowest on.
    pub const ALL: [Rung; 5] = [Rung::Log, Rung::Coalesce, Rung::Mask, Rung::Quarantine, Rung::AskReset];
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rung::Log => "every record is told",
            Rung::Coalesce => "records are told together",
            Rung::Mask => "records are not told",
            Rung::Quarantine => "cut off",
            Rung::AskReset => "cut off and still faulting: reset it",
        })
    }
}

/// When a ladder is climbed. Counts are of events in one window, to which half of the count of the
/// window before is added, a quarter of that before it, and so on. A rung is left for the next lower
/// one when the count has fallen below half of its threshold; quarantine is left by a reset only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Length of a window; at least a microsecond.
    pub window: Duration,
    /// The count from which records are told together. `None` here and below: never.
    pub coalesce: Option<u32>,
    /// The count from which no record is told.
    pub mask: Option<u32>,
    /// The count at which the device is cut off.
    pub quarantine: Option<u32>,
    /// Events after the cut-off at which a reset is asked for.
    pub ask_reset: Option<u32>,
    /// Times that a device may be masked again soon after it was before; the next time it is cut
    /// off, if `quarantine` allows that at all.
    pub relapses: u32,
    /// What counts as soon.
    pub memory: Duration,
}

impl Thresholds {
    /// For the unrecoverable faults of a device. Ten in ten milliseconds cut it off.
    pub const FAULTS: Thresholds = Thresholds {
        window: Duration::from_millis(10),
        coalesce: Some(5),
        mask: Some(8),
        quarantine: Some(10),
        ask_reset: Some(10),
        relapses: 8,
        memory: Duration::from_secs(1),
    };

    /// For the page requests of a device that were refused: beyond its share, without a right to
    /// make any, malformed.
    pub const REQUESTS: Thresholds = Thresholds {
        coalesce: Some(8),
        mask: Some(64),
        quarantine: Some(512),
        ask_reset: Some(512),
        ..Thresholds::FAULTS
    };

    /// For an instance, which nothing can cut off: all faults and refused requests it reports.
    pub const INSTANCE: Thresholds = Thresholds {
        coalesce: Some(64),
        mask: Some(256),
        quarantine: None,
        ask_reset: None,
        ..Thresholds::FAULTS
    };

    /// No ladder: every record is told, and nobody is cut off.
    pub const NEVER: Thresholds =
        Thresholds { coalesce: None, mask: None, quarantine: None, ask_reset: None, ..Thresholds::FAULTS };

    fn of(&self, rung: Rung) -> Option<u32> {
        match rung {
            Rung::Log => Some(0),
            Rung::Coalesce => self.coalesce,
            Rung::Mask => self.mask,
            Rung::Quarantine => self.quarantine,
            Rung::AskReset => self.ask_reset,
        }
    }

    /// The window in nanoseconds.
    fn window(&self) -> u64 {
        u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX).max(1_000)
    }
}

/// The ladders of one [`Iommu`](crate::Iommu).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storms {
    /// Each device's, for its unrecoverable faults. What comes from a place that is being detached,
    /// or from a device that is being reset, is not counted, nor is that the IOMMU could not reach
    /// its own tables.
    pub faults: Thresholds,
    /// Each device's, for its page requests that were refused.
    pub requests: Thresholds,
    /// Each instance's, for what its devices' ladders let through and for what no device is known
    /// to have sent. `quarantine` has no meaning here.
    pub instance: Thresholds,
}

impl Storms {
    /// No ladders.
    pub const NEVER: Storms =
        Storms { faults: Thresholds::NEVER, requests: Thresholds::NEVER, instance: Thresholds::NEVER };
}

impl Default for Storms {
    fn default() -> Self {
        Storms { faults: Thresholds::FAULTS, requests: Thresholds::REQUESTS, instance: Thresholds::INSTANCE }
    }
}

/// What a ladder has seen since its device was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Storm {
    /// Where it stands.
    pub rung: Rung,
    /// Records that were not told one by one.
    pub untold: u64,
    /// Times that records began to be masked.
    pub masked: u64,
    /// Times that the device was cut off for its storm.
    pub quarantined: u64,
    /// Times that somebody was asked to reset it.
    pub resets_asked: u64,
}

impl Storm {
    /// Both together.
    pub(crate) fn and(self, other: Storm) -> Storm {
        Storm {
            rung: self.rung.max(other.rung),
            untold: self.untold + other.untold,
            masked: self.masked + other.masked,
            quarantined: self.quarantined + other.quarantined,
            resets_asked: self.resets_asked + other.resets_asked,
        }
    }
}

/// What to do about an event, or after some calm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// The event's record is told.
    pub(crate) tell: bool,
    /// Records before it that were not told, to be told with it or with the change.
    pub(crate) untold: u64,
    /// It stands on another rung now.
    pub(crate) change: Option<Rung>,
}

/// The ladder of one device or instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ladder {
    thresholds: Thresholds,
    seen: Storm,
    /// Events of this window, and what is left of those before.
    count: u32,
    /// Begin of the window.
    since: Time,
    /// Not told since a record last was.
    untold: u64,
    /// A record was told in this window.
    told: bool,
    /// When it was masked last, and how often in a row soon after the time before.
    masked_at: Option<Time>,
    relapses: u32,
}

impl Ladder {
    pub(crate) fn new(thresholds: Thresholds) -> Ladder {
        Ladder {
            thresholds,
            seen: Storm::default(),
            count: 0,
            since: Time(0),
            untold: 0,
            told: false,
            masked_at: None,
            relapses: 0,
        }
    }

    pub(crate) fn seen(&self) -> Storm {
        self.seen
    }

    /// An event whose record would be told.
    pub(crate) fn event(&mut self, now: Time) -> Step {
        let before = self.seen.rung;
        self.pass(now);
        self.count = self.count.saturating_add(1);
        self.climb(now);
        let rung = self.seen.rung;
        let tell = match rung {
            Rung::Log => true,
            Rung::Coalesce => !core::mem::replace(&mut self.told, true),
            _ => false,
        };
        let change = (rung != before).then_some(rung);
        if !tell {
            self.untold += 1;
            self.seen.untold += 1;
        }
        // What is masked is told at the end.
        let untold = if tell { core::mem::take(&mut self.untold) } else { 0 };
        Step { tell, untold, change }
    }

    /// Records that another ladder held back, to be told with the next of this one.
    pub(crate) fn forward(&mut self, untold: u64) {
        self.untold += untold;
    }

    /// Time has passed without an event.
    pub(crate) fn calm(&mut self, now: Time) -> Step {
        let before = self.seen.rung;
        self.pass(now);
        let rung = self.seen.rung;
        let change = (rung != before).then_some(rung);
        let ended = change.is_some() && rung <= Rung::Coalesce;
        Step { tell: false, untold: if ended { core::mem::take(&mut self.untold) } else { 0 }, change }
    }

    /// When [`calm`](Self::calm) has something to say at the earliest, where no event comes.
    pub(crate) fn due(&self) -> Option<Time> {
        let comes_down = matches!(self.seen.rung, Rung::Coalesce | Rung::Mask);
        comes_down.then_some(Time(self.since.0.saturating_add(self.thresholds.window())))
    }

    /// The device was reset: it begins again, and what it did before is remembered as relapses.
    pub(crate) fn absolve(&mut self, now: Time) {
        self.since = now;
        (self.count, self.seen.rung, self.told) = (0, Rung::Log, false);
    }

    /// Lets the windows pass that ended before `now`.
    fn pass(&mut self, now: Time) {
        let window = self.thresholds.window();
        while let passed = now.0.saturating_sub(self.since.0) / window
            && passed > 0
        {
            if self.count == 0 || self.seen.rung >= Rung::Quarantine {
                self.since = Time(self.since.0 + passed * window);
                self.come_down();
                break;
            }
            self.since = Time(self.since.0 + window);
            self.count /= 2;
            self.told = false;
            self.come_down();
        }
    }

    /// Leaves rungs that the count has fallen far below.
    fn come_down(&mut self) {
        while let rung @ (Rung::Coalesce | Rung::Mask) = self.seen.rung {
            let holds = self.thresholds.of(rung).is_some_and(|t| self.count >= t.div_ceil(2).max(1));
            if holds {
                break;
            }
            let lower = if rung == Rung::Mask { Rung::Coalesce } else { Rung::Log };
            self.seen.rung = lower;
        }
    }

    /// Climbs as far as the count says.
    fn climb(&mut self, now: Time) {
        let reached = |rung: Rung| self.thresholds.of(rung).is_some_and(|t| self.count >= t.max(1));
        match self.seen.rung {
            Rung::AskReset => {}
            Rung::Quarantine => {
                if reached(Rung::AskReset) {
                    self.enter(Rung::AskReset);
                }
            }
            low => {
                let climbs = [Rung::Quarantine, Rung::Mask, Rung::Coalesce].into_iter().find(|r| reached(*r));
                match climbs.filter(|r| *r > low) {
                    Some(Rung::Mask) if self.relapsed(now) => self.enter(Rung::Quarantine),
                    Some(rung) => self.enter(rung),
                    None => {}
                }
            }
        }
    }

    /// Whether being masked now is once too often.
    fn relapsed(&mut self, now: Time) -> bool {
        let soon = self.masked_at.is_some_and(|t| now.since(t) <= self.thresholds.memory);
        self.relapses = if soon { self.relapses.saturating_add(1) } else { 0 };
        self.masked_at = Some(now);
        self.relapses > self.thresholds.relapses && self.thresholds.quarantine.is_some()
    }

    fn enter(&mut self, rung: Rung) {
        self.seen.rung = rung;
        match rung {
            Rung::Mask => self.seen.masked += 1,
            Rung::Quarantine => {
                self.seen.quarantined += 1;
                // What comes now is what the cut-off did not stop.
                self.count = 0;
            }
            Rung::AskReset => self.seen.resets_asked += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
