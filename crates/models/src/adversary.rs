//! What the manuals let go wrong, done by seed.
//!
//! Every action stays within what a manual or PCIe allows real hardware to do, and each is counted
//! by its kind, so that a run can prove that it met them.

use std::fmt;

/// How much goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Nothing.
    #[default]
    Off,
    /// A little.
    Mild,
    /// Often.
    Hostile,
}

/// One kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// A request, message or completion is held back in the fabric.
    Delay,
    /// Independent steps of the invalidation queue are taken out of order (`[V]` 6.5.2.12).
    Reorder,
    /// A cached translation, table pointer or device-TLB entry is forgotten.
    Evict,
    /// A request that nobody needed: a page request for a page that is mapped, or a second
    /// translation request.
    Spurious,
    /// A burst of page requests beyond what was granted, to make the queue overflow.
    Overflow,
    /// An access of the IOMMU to a table fails while it serves a page request (`[V]` table 30).
    TableFault,
}

impl Action {
    /// All kinds, in the order of [`Adversary::counts`].
    pub const ALL: [Action; 6] = [
        Action::Delay,
        Action::Reorder,
        Action::Evict,
        Action::Spurious,
        Action::Overflow,
        Action::TableFault,
    ];

    /// One in so many chances is taken, at each level. Reordering is the scheduler's choice: at any
    /// level but off the steps that may overtake others are among those it is offered.
    const fn odds(self, level: Level) -> u32 {
        let (mild, hostile) = match self {
            Action::Delay => (64, 8),
            Action::Reorder => (1, 1),
            Action::Evict => (256, 24),
            Action::Spurious => (256, 24),
            Action::Overflow => (512, 32),
            Action::TableFault => (512, 48),
        };
        match level {
            Level::Off => 0,
            Level::Mild => mild,
            Level::Hostile => hostile,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Delay => "delay",
            Action::Reorder => "reorder",
            Action::Evict => "evict",
            Action::Spurious => "spurious request",
            Action::Overflow => "queue overflow",
            Action::TableFault => "table fault",
        })
    }
}

/// The seeded adversary.
#[derive(Debug, Clone)]
pub struct Adversary {
    level: Level,
    rng: fastrand::Rng,
    counts: [u64; Action::ALL.len()],
}

impl Adversary {
    /// The longest delay of one message, in nanoseconds. Much shorter than a device-TLB time-out.
    pub const MAX_DELAY: u64 = 20_000;

    /// An adversary of this level. With [`Level::Off`] the seed is without effect.
    pub fn new(level: Level, seed: u64) -> Self {
        Adversary { level, rng: fastrand::Rng::with_seed(seed), counts: [0; Action::ALL.len()] }
    }

    /// Its level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// How often each kind of action was taken.
    pub fn counts(&self) -> [(Action, u64); Action::ALL.len()] {
        std::array::from_fn(|i| (Action::ALL[i], self.counts[i]))
    }

    /// Whether to take an action now, where taking it has an effect for certain. Counts it.
    pub(crate) fn strikes(&mut self, action: Action) -> bool {
        let taken = self.considers(action);
        if taken {
            self.count(action);
        }
        taken
    }

    /// Whether to try an action whose effect is not certain yet; [`count`](Self::count) it once it
    /// is.
    pub(crate) fn considers(&mut self, action: Action) -> bool {
        match action.odds(self.level) {
            0 => false,
            odds => self.rng.u32(..odds) == 0,
        }
    }

    pub(crate) fn count(&mut self, action: Action) {
        self.counts[action as usize] += 1;
    }

    /// A number below `bound` (which is at least 1).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.rng.u64(..bound.max(1))
    }

    /// The time before which a message sent at `now` does not arrive.
    pub(crate) fn not_before(&mut self, now: u64) -> u64 {
        if self.strikes(Action::Delay) { now.saturating_add(1 + self.below(Self::MAX_DELAY)) } else { now }
    }
}
