//! How a seed chooses among the steps that are possible.
//!
//! One way of choosing misses races that another finds: a uniform choice rarely starves anyone for
//! long, changing priorities do, and a deadline passes in the middle of something only where the
//! clock may jump.

use std::fmt;

/// The order in which possible steps are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each with the same chance.
    Uniform,
    /// The one with the highest priority; now and then the highest becomes the lowest.
    Priorities {
        /// One choice in so many lowers the highest.
        change: u32,
    },
}

/// One way of choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Which step is taken.
    pub order: Order,
    /// One choice in so many lets the clock jump although steps are possible; 0: none.
    pub jump: u32,
    /// Preemption points that a task passes between two choices, on average; at least 1.
    pub slice: u32,
}

impl Strategy {
    /// The strategy of a seed.
    pub fn of_seed(seed: u64) -> Strategy {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5354_5241_5445_4759);
        let mut one_of = |values: [u32; 4]| values[rng.usize(..4)];
        let jump = one_of([0, 3, 8, 32]);
        let slice = one_of([1, 2, 3, 8]);
        let change = one_of([0, 0, 8, 60]);
        let order = match change {
            0 => Order::Uniform,
            change => Order::Priorities { change },
        };
        Strategy { order, jump, slice }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.order {
            Order::Uniform => write!(f, "uniform")?,
            Order::Priorities { change } => write!(f, "priorities changed 1 in {change}")?,
        }
        if self.jump != 0 {
            write!(f, ", clock jumps 1 in {}", self.jump)?;
        }
        write!(f, ", preempted 1 in {}", self.slice)
    }
}

/// What a step is to the strategy: who takes it, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// Steps with the same owner share a priority.
    pub(super) owner: u64,
    pub(super) item: u64,
}

/// Makes the choices of one run and keeps their hash.
pub(super) struct Chooser {
    rng: fastrand::Rng,
    strategy: Strategy,
    priorities: Priorities,
    /// Those of the labels of the last choice, and the place of the highest.
    ranks: Vec<u64>,
    highest: usize,
    lowest: u64,
    hash: u64,
}

impl Chooser {
    pub(super) fn new(seed: u64, strategy: Strategy) -> Chooser {
        Chooser {
            rng: fastrand::Rng::with_seed(seed),
            strategy,
            priorities: Priorities::default(),
            ranks: Vec::new(),
            highest: 0,
            lowest: u64::from(u32::MAX),
            hash: 0xcbf2_9ce4_8422_2325,
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether the clock jumps now although steps are possible.
    pub(super) fn jumps(&mut self) -> bool {
        self.strategy.jump != 0 && self.rng.u32(..self.strategy.jump) == 0
    }

    /// Chooses one of the labels, of which there is at least one. `new`: they are not those of the
    /// last choice.
    pub(super) fn choose(&mut self, labels: &[Label], new: bool) -> usize {
        match self.strategy.order {
            Order::Uniform => self.rng.usize(..labels.len()),
            Order::Priorities { change } => {
                if new {
                    self.rank(labels);
                }
                if self.rng.u32(..change.max(1)) == 0 {
                    self.lower(labels);
                }
                self.highest
            }
        }
    }

    /// Notes a choice in the hash of the schedule.
    pub(super) fn note(&mut self, label: Label, now: u64) {
        for word in [label.owner, label.item, now] {
            self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }

    /// Finds out the priorities of labels.
    fn rank(&mut self, labels: &[Label]) {
        self.ranks.clear();
        for label in labels {
            // Above all that were ever lowered.
            let fresh = || self.rng.u64(1 << 32..);
            self.ranks.push(self.priorities.of(label.owner, fresh));
        }
        self.find_highest();
    }

    /// Makes the highest priority the lowest.
    fn lower(&mut self, labels: &[Label]) {
        self.lowest -= 1;
        let owner = labels[self.highest].owner;
        self.priorities.set(owner, self.lowest);
        let ranks = self.ranks.iter_mut().zip(labels);
        ranks.filter(|(_, label)| label.owner == owner).for_each(|(rank, _)| *rank = self.lowest);
        self.find_highest();
    }

    /// The first of the highest priority.
    fn find_highest(&mut self) {
        let mut best = 0;
        for (i, rank) in self.ranks.iter().enumerate() {
            if *rank > best {
                (best, self.highest) = (*rank, i);
            }
        }
    }
}

/// The priorities of owners, by owner: there are few, and all that can run are asked for theirs at
/// every choice.
#[derive(Default)]
struct Priorities(Vec<(u64, u64)>);

impl Priorities {
    /// The priority of an owner, `fresh` if it has none yet.
    fn of(&mut self, owner: u64, fresh: impl FnOnce() -> u64) -> u64 {
        match self.0.binary_search_by_key(&owner, |known| known.0) {
            Ok(at) => self.0[at].1,
            Err(at) => {
                let priority = fresh();
                self.0.insert(at, (owner, priority));
                priority
            }
        }
    }

    fn set(&mut self, owner: u64, priority: u64) {
        match self.0.binary_search_by_key(&owner, |known| known.0) {
            Ok(at) => self.0[at].1 = priority,
            Err(at) => self.0.insert(at, (owner, priority)),
        }
    }
}
