//! What runs a machine: the simulation, or threads.

#[cfg(feature = "sim")]
use crate::sim::{self, Sim};
use crate::{
    hardware::{Hardware, Msi},
    platform::{AnyPlatform, MachinePlatform},
    threads::{self, Threads},
};
use parking_lot::Mutex;
use portcullis::{Platform, Time};
use std::{fmt, sync::Arc, time::Duration};

/// One run.
#[derive(Debug)]
pub enum Runner {
    /// A seed decides every step.
    #[cfg(feature = "sim")]
    Sim(Box<Sim>),
    /// The system's scheduler does.
    Threads {
        /// The threads.
        threads: Threads,
        /// How long the run may take, and its end once more.
        patience: Duration,
    },
}

/// A run that hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// The simulation, with every task that is left.
    #[cfg(feature = "sim")]
    Sim(sim::Stuck),
    /// Threads that took too long.
    Threads(threads::Late),
}

impl std::error::Error for Stuck {}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "sim")]
            Stuck::Sim(stuck) => stuck.fmt(f),
            Stuck::Threads(late) => late.fmt(f),
        }
    }
}

#[cfg(feature = "sim")]
impl From<sim::Stuck> for Stuck {
    fn from(stuck: sim::Stuck) -> Stuck {
        Stuck::Sim(stuck)
    }
}

impl From<threads::Late> for Stuck {
    fn from(late: threads::Late) -> Stuck {
        Stuck::Threads(late)
    }
}

/// Does the same on whichever it is.
macro_rules! on {
    ($any:expr, $r:ident => $e:expr) => {
        match $any {
            #[cfg(feature = "sim")]
            Runner::Sim($r) => $e,
            Runner::Threads { threads: $r, .. } => $e,
        }
    };
}

impl Runner {
    /// The platform's handle.
    pub fn platform(&self) -> AnyPlatform {
        match self {
            #[cfg(feature = "sim")]
            Runner::Sim(sim) => AnyPlatform::Sim(sim.platform().clone()),
            Runner::Threads { threads, .. } => AnyPlatform::Threads(threads.platform().clone()),
        }
    }

    /// Puts the hardware in.
    pub fn set_hardware(&mut self, hardware: impl Hardware) {
        on!(self, r => r.set_hardware(hardware));
    }

    /// Takes the hardware out, if it is an `H`; what is left answers nothing.
    pub fn take_hardware<H: Hardware>(&mut self) -> Option<Box<H>> {
        on!(self, r => r.take_hardware())
    }

    /// Has `handler` called, in interrupt context, when an interrupt arrives.
    pub fn on_interrupt(&mut self, handler: impl Fn(Msi) + Send + Sync + 'static) {
        on!(self, r => r.on_interrupt(move |_, msi| handler(msi)));
    }

    /// Has `handler` called, in service context, when a time asked for with `timer_at` has come.
    pub fn on_timer(&mut self, handler: impl Fn() + Send + Sync + 'static) {
        on!(self, r => r.on_timer(move |_| handler()));
    }

    /// Starts `n` workers, which call `work` after a kick until it returns false.
    pub fn workers(&mut self, n: usize, work: impl Fn() -> bool + Send + Sync + 'static) {
        on!(self, r => r.workers(n, move |_| work()));
    }

    /// Starts a task of the scenario.
    pub fn spawn(&mut self, name: impl Into<String>, task: impl FnOnce(&AnyPlatform) + Send + 'static) {
        self.platform().spawn(name, task);
    }

    /// Runs until every task of the scenario has ended.
    ///
    /// # Errors
    /// [`Stuck`].
    ///
    /// # Panics
    /// If a task does, with its name.
    pub fn run(&mut self) -> Result<(), Stuck> {
        match self {
            #[cfg(feature = "sim")]
            Runner::Sim(sim) => Ok(sim.run()?),
            Runner::Threads { threads, patience } => Ok(threads.run(*patience)?),
        }
    }

    /// Runs until nothing is possible but that a deadline or the timer's time comes.
    ///
    /// # Errors
    /// [`Stuck`].
    ///
    /// # Panics
    /// As [`Runner::run`].
    pub fn settle(&mut self) -> Result<(), Stuck> {
        match self {
            #[cfg(feature = "sim")]
            Runner::Sim(sim) => Ok(sim.settle()?),
            Runner::Threads { threads, patience } => Ok(threads.settle(*patience)?),
        }
    }

    /// Runs `task` as one of the scenario's, and all others, until they have ended; returns what it
    /// returns.
    ///
    /// # Errors
    /// [`Stuck`].
    ///
    /// # Panics
    /// As [`Runner::run`].
    pub fn call<R: Send + 'static>(
        &mut self,
        name: impl Into<String>,
        task: impl FnOnce(&AnyPlatform) -> R + Send + 'static,
    ) -> Result<R, Stuck> {
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        self.spawn(name, move |p| {
            let r = task(p);
            *slot.lock() = Some(r);
        });
        self.run()?;
        let r = result.lock().take();
        Ok(r.expect("a task that has ended left its result"))
    }

    /// Ends the run: every wait returns Shutdown, every task, worker and handler comes to its end.
    ///
    /// # Errors
    /// [`Stuck`] with what did not end.
    ///
    /// # Panics
    /// As [`Runner::run`].
    pub fn finish(self) -> Result<(), Stuck> {
        match self {
            #[cfg(feature = "sim")]
            Runner::Sim(sim) => Ok(sim.finish().map(|_| ())?),
            Runner::Threads { threads, .. } => Ok(threads.finish()?),
        }
    }

    /// The platform's clock.
    pub fn now(&self) -> Time {
        self.platform().now()
    }

    /// What the scheduler did, where it is a seed's.
    pub fn schedule(&self) -> Option<Schedule> {
        match self {
            #[cfg(feature = "sim")]
            Runner::Sim(sim) => Some(Schedule {
                strategy: sim.strategy().to_string(),
                hash: sim.schedule_hash(),
                steps: sim.stats().steps,
            }),
            Runner::Threads { .. } => None,
        }
    }
}

/// What a seed's scheduler did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How it chose.
    pub strategy: String,
    /// A hash of every choice and of its time.
    pub hash: u64,
    /// Choices made.
    pub steps: u64,
}
