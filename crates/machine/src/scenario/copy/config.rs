//! What a copy starts from, and why it does not begin.

use crate::{
    machine::{MachineError, On, OnThreads},
    pager::PAGE,
    sim::{Pool, SimConfig, Strategy},
    trace::Trace,
};
use portcullis_models::{adversary::Level, mutation::Mutations, vtd};
use std::{sync::Arc, time::Duration};

/// Bytes of the machine's memory.
const MEMORY: usize = 64 << 20;
/// Frames of memory kept for tables and queues.
const TABLE_FRAMES: usize = 2048;
/// Engines at most: each needs a share of the page-request queue.
pub const MOST_ENGINES: usize = 64;
/// Bytes that the input and its copies may take together on the host.
const HELD: u64 = 1 << 30;
/// Steps of the scheduler beyond which a run hangs: so many to begin with, and so many a page of
/// each copy.
const STEPS: u64 = 50_000_000;
const STEPS_A_PAGE: u64 = 20_000;
/// The same in real time, on threads.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_A_PAGE: Duration = Duration::from_millis(20);
/// Nanoseconds.
const DEVICE_TLB_TIMEOUT_ON_THREADS: u64 = 60_000_000_000;
/// Threads that can be asked for.
pub const MOST_THREADS: usize = 64;

/// What to run.
#[derive(Clone)]
pub struct CopyConfig {
    /// The bytes to copy.
    pub input: Arc<[u8]>,
    /// Copy engines: the first works with its requester id, the second inside a PASID, and so on.
    pub engines: usize,
    /// Frames for pages, of all engines together; `None` for an eighth of the input's pages.
    pub frames: Option<usize>,
    /// The seed.
    pub seed: u64,
    /// The adversary's level.
    pub adversary: Level,
    /// Real threads, so many of them workers that run resolvers; the seed then picks the
    /// adversary's choices, and the system's scheduler the steps. `None` for the simulation.
    pub threads: Option<usize>,
    /// How steps are chosen; `None` leaves it to the seed.
    pub strategy: Option<Strategy>,
    /// Faults planted in the model, for tests.
    pub mutations: Mutations,
    /// The unit, but for its time-outs on threads.
    pub unit: vtd::Config,
    /// Memory and stacks to use again from run to run.
    pub pool: Pool,
    /// Is told of everything that happens.
    pub trace: Option<Trace>,
    /// Called now and then with the bytes that all engines together have written so far.
    pub progress: Option<Progress>,
}

/// Is told how far a run is. Must not use the platform.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

impl CopyConfig {
    /// The default run over these bytes.
    pub fn new(input: Arc<[u8]>) -> CopyConfig {
        CopyConfig {
            input,
            engines: 2,
            frames: None,
            seed: 0,
            adversary: Level::Off,
            threads: None,
            strategy: None,
            unit: vtd::Config::default(),
            mutations: Mutations::default(),
            pool: Pool::default(),
            trace: None,
            progress: None,
        }
    }

    /// What the machine runs on, for so many pages of all copies together.
    pub(super) fn on(&self, pages: u64) -> On {
        match self.threads {
            Some(_) => On::Threads(OnThreads {
                memory: MEMORY,
                patience: PATIENCE + PATIENCE_A_PAGE * u32::try_from(pages).unwrap_or(u32::MAX),
                ..OnThreads::default()
            }),
            None => On::Sim(SimConfig {
                strategy: self.strategy,
                pool: self.pool.clone(),
                memory: MEMORY,
                step_limit: STEPS + pages * STEPS_A_PAGE,
                ..SimConfig::new(self.seed)
            }),
        }
    }

    /// The unit. A processor that does not get to step the hardware for a while must not look like a
    /// device that does not answer.
    pub(super) fn unit(&self) -> vtd::Config {
        let unit = self.unit.clone();
        match self.threads {
            Some(_) => vtd::Config { device_tlb_timeout: DEVICE_TLB_TIMEOUT_ON_THREADS, ..unit },
            None => unit,
        }
    }

    /// Frames that a run would have: those asked for, else an eighth of the input's pages, at least
    /// two an engine, at most what memory has.
    ///
    /// # Errors
    /// As [`run`](super::run), for what can be told before it begins.
    pub fn budget(&self) -> Result<usize, CopyError> {
        if self.threads.is_some_and(|n| n == 0 || n > MOST_THREADS) {
            return Err(CopyError::Threads(self.threads.unwrap_or(0)));
        }
        let engines = self.engines;
        let (given, most) = (self.input.len() as u64, most_input(engines)?);
        if given > most {
            return Err(CopyError::BigInput { given, engines, most });
        }
        let pages = self.input.len().div_ceil(PAGE as usize);
        let least = 2 * engines;
        let most = MEMORY / PAGE as usize - TABLE_FRAMES;
        match self.frames {
            None => Ok((pages / 8).max(least).min(most)),
            Some(given) if given < least => Err(CopyError::FewFrames { given, least }),
            Some(given) if given > most => Err(CopyError::ManyFrames { given, most }),
            Some(given) => Ok(given),
        }
    }
}

/// Why a run did not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// Fewer than two frames for an engine.
    #[error("{given} frames are too few: each engine needs two, so {least} at least")]
    FewFrames {
        /// Frames asked for.
        given: usize,
        /// What the engines need.
        least: usize,
    },
    /// More frames than memory has.
    #[error("{given} frames are too many: memory has room for {most}")]
    ManyFrames {
        /// Frames asked for.
        given: usize,
        /// What there is.
        most: usize,
    },
    /// No engine, or too many.
    #[error("{0} engines: at least 1, at most {MOST_ENGINES}")]
    Engines(usize),
    /// No thread, or too many.
    #[error("{0} threads: at least 1, at most {MOST_THREADS}")]
    Threads(usize),
    /// More bytes than should be held.
    #[error("{given} bytes are too many to hold with their copies: with {engines} engines at most {most}")]
    BigInput {
        /// Bytes given.
        given: u64,
        /// Engines.
        engines: usize,
        /// What they may have.
        most: u64,
    },
    /// The machine could not be made.
    #[error("{0}")]
    Machine(#[from] MachineError),
}

/// Bytes that an input may have. It is held in memory, and so is what each engine writes.
///
/// # Errors
/// [`CopyError::Engines`].
pub fn most_input(engines: usize) -> Result<u64, CopyError> {
    match engines {
        1..=MOST_ENGINES => Ok(HELD / (engines as u64 + 1)),
        _ => Err(CopyError::Engines(engines)),
    }
}
