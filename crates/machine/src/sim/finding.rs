//! What a run finds that is not a panic.

use portcullis::Time;
use std::fmt;

/// Why a run did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StuckBecause {
    /// Nothing is possible any more, now or later.
    Deadlock,
    /// The limit on steps was reached.
    StepLimit,
}

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Nothing: it could run.
    Processor,
    /// The event with this number.
    Event {
        /// Number of the event, in the order in which they were made.
        event: u64,
        /// Its deadline, if it has one.
        until: Option<Time>,
    },
    /// The short lock with this number.
    Lock(u64),
}

/// A task that did not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckTask {
    /// Its name.
    pub name: String,
    /// What it waits for.
    pub waits_for: WaitsFor,
}

/// A run that hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The run's seed.
    pub seed: u64,
    /// Why it was given up.
    pub because: StuckBecause,
    /// Steps taken.
    pub steps: u64,
    /// Virtual time.
    pub now: Time,
    /// Every task that is left, workers and handlers included.
    pub tasks: Vec<StuckTask>,
}

impl std::error::Error for Stuck {}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let because = match self.because {
            StuckBecause::Deadlock => "deadlock",
            StuckBecause::StepLimit => "step limit reached",
        };
        write!(f, "seed {}: {because} after {} steps at {}", self.seed, self.steps, self.now)?;
        for task in &self.tasks {
            write!(f, "\n  `{}` {}", task.name, task.waits_for)?;
        }
        Ok(())
    }
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitsFor::Processor => write!(f, "could run"),
            WaitsFor::Event { event, until: None } => write!(f, "waits for event {event}"),
            WaitsFor::Event { event, until: Some(t) } => write!(f, "waits for event {event} until {t}"),
            WaitsFor::Lock(lock) => write!(f, "waits for lock {lock}"),
        }
    }
}
