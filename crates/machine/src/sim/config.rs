//! What a run starts from, what it did, and what it leaves to the next one.

use super::{stack::Stacks, strategy::Strategy};
use crate::memory::{MemoryError, Ram};
use parking_lot::Mutex;
use std::{fmt, sync::Arc};

/// A race put into the platform, to show that schedules find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A wait looks at the event itself instead of at what the caller saw: a notification between
    /// the caller's check and its wait is lost.
    LostWakeup,
}

/// What a run starts from.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// The seed: equal seeds give equal runs.
    pub seed: u64,
    /// How the steps are chosen; `None` leaves it to the seed.
    pub strategy: Option<Strategy>,
    /// Guest address of the memory.
    pub base: u64,
    /// Bytes of memory.
    pub memory: usize,
    /// Steps of the scheduler after which one call of [`Sim::run`](super::Sim::run) is given up as hanging.
    pub step_limit: u64,
    /// How far the clock may jump in all, in nanoseconds, while steps are possible. A deadline
    /// later than that passes only when nothing else can happen, or by honest work.
    pub jump_budget: u64,
    /// Whether waits return now and then without a reason, as the trait allows.
    pub spurious_wakeups: bool,
    /// A planted race.
    pub plant: Option<Plant>,
    /// Where stacks and memory come from and go back to.
    pub pool: Pool,
}

impl SimConfig {
    /// A run of `seed` with 64 MiB of memory at 256 MiB, so that no IOVA of a small number is an
    /// address by chance.
    pub fn new(seed: u64) -> SimConfig {
        SimConfig {
            seed,
            strategy: None,
            base: 0x1000_0000,
            memory: 64 << 20,
            step_limit: 50_000_000,
            jump_budget: 5_000_000,
            spurious_wakeups: true,
            plant: None,
            pool: Pool::default(),
        }
    }
}

/// Stacks and memory that runs leave to the next one: fresh pages are dear. A handle.
#[derive(Clone, Default)]
pub struct Pool {
    pub(super) stacks: Stacks,
    rams: Arc<Mutex<Vec<Ram>>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn ram(&self, base: u64, size: usize) -> Result<Ram, MemoryError> {
        let mut rams = self.rams.lock();
        while let Some(i) = rams.iter().position(|r| r.base() == base && r.size() == size) {
            let mut ram = rams.swap_remove(i);
            // A handle that outlived its run keeps its memory.
            if ram.renew() {
                return Ok(ram);
            }
        }
        Ram::new(base, size)
    }

    pub(super) fn give_ram(&self, ram: Ram) {
        self.rams.lock().push(ram);
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Choices made.
    pub steps: u64,
    /// Times a task, a worker or a handler went on.
    pub resumed: u64,
    /// Steps of the hardware.
    pub hardware: u64,
    /// Interrupts the hardware raised.
    pub interrupts_raised: u64,
    /// Interrupts delivered; equal ones that had not been delivered yet were merged.
    pub interrupts: u64,
    /// Times the timer's handler was called.
    pub ticks: u64,
    /// Times a short lock was found held.
    pub lock_waits: u64,
    /// Waits that ended by their deadline.
    pub deadlines: u64,
    /// Times the clock went to the next event because nothing else was possible.
    pub idle: u64,
    /// Times it did although steps were possible.
    pub jumps: u64,
    /// Waits that returned without a reason.
    pub spurious_wakeups: u64,
}
