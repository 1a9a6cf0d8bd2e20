//! Time since power-on, by the HPET: a counter whose first register tells its own period.

use core::time::Duration;

/// Where PC chipsets have it.
const HPET: *mut u64 = 0xfed0_0000 as *mut u64;

/// Registers, by offset.
const CAPABILITIES: usize = 0x00;
const CONFIGURATION: usize = 0x10;
const COUNTER: usize = 0xf0;

/// Configuration: the counter runs.
const ENABLE: u64 = 1;

const FEMTOSECONDS_PER_NANOSECOND: u128 = 1_000_000;

/// A running clock.
#[derive(Clone, Copy)]
pub struct Clock {
    /// Femtoseconds a tick; at most 10^8 by the HPET's own specification.
    period: u64,
}

impl Clock {
    /// Starts the counter; `None` if there is none.
    pub fn start() -> Option<Self> {
        let period = read(CAPABILITIES) >> 32;
        if !(1..=100_000_000).contains(&period) {
            return None;
        }
        // SAFETY: the HPET's configuration register, mapped uncached; its counter is no memory.
        unsafe { HPET.byte_add(CONFIGURATION).write_volatile(ENABLE) };
        Some(Self { period })
    }

    /// Time since the counter started.
    pub fn now(self) -> Duration {
        let ticks = u128::from(read(COUNTER));
        let nanoseconds = ticks * u128::from(self.period) / FEMTOSECONDS_PER_NANOSECOND;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Polls `done` until it holds, for at most `limit`; whether it came to hold.
    pub fn wait_for(self, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        let start = self.now();
        loop {
            if done() {
                return true;
            }
            if self.now().saturating_sub(start) > limit {
                return false;
            }
            core::hint::spin_loop();
        }
    }
}

fn read(register: usize) -> u64 {
    // SAFETY: a register of the HPET's page, mapped uncached; all ones where there is no HPET.
    unsafe { HPET.byte_add(register).read_volatile() }
}
