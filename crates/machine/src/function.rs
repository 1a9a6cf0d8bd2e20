//! The configuration space of an endpoint, as the core switches it.

use crate::{board::Board, platform::MachinePlatform};
use portcullis::{Sleep, Woken, driver::DeviceControl};
use portcullis_models::endpoint::{Endpoint, Violation};

/// Width in bits of the PASIDs that a function is told to use.
const PASID_BITS: u8 = 20;

/// Nanoseconds between the first two looks at what a configuration write has to wait for.
const LOOK: u64 = 1_000;
/// Nanoseconds between two looks at most.
const LONGEST_LOOK: u64 = 1_000_000;
/// Nanoseconds that PCIe gives a reset.
const RESET: u64 = 100_000_000;
/// Nanoseconds until page requests are switched on although some have no answer: longer than the
/// core and a device that does not answer invalidations can hold one up.
const STOP: u64 = 15_000_000_000;

/// One endpoint's PCIe capabilities, reached through the platform's board.
pub struct Function<P> {
    platform: P,
    place: usize,
}

impl<P: MachinePlatform> Function<P> {
    /// The endpoint at `place` of the complex.
    pub fn new(platform: &P, place: usize) -> Function<P> {
        Function { platform: platform.clone(), place }
    }

    /// A write that PCIe's order forbids is ignored by the endpoint, which keeps a list of them:
    /// the verdict is read there at the end.
    fn write(&self, register: impl FnOnce(&mut Endpoint) -> Result<(), Violation>) {
        let _ = self.platform.hardware::<Board, _>(|b| b.complex.endpoint_mut(self.place).map(register));
    }

    /// Sleeps while the hardware is not ready, and not for ever.
    fn wait_while(&self, longest: u64, busy: impl Fn(&Board) -> bool) {
        let cx = Sleep::in_sleepable_context();
        let until = self.platform.now().0.saturating_add(longest);
        let mut pause = LOOK;
        while self.platform.hardware::<Board, _>(|b| busy(b)) == Some(true) && self.platform.now().0 < until {
            if self.platform.sleep(&cx, pause) == Woken::Shutdown {
                return;
            }
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    }
}

impl<P: MachinePlatform> DeviceControl for Function<P> {
    fn set_pasid(&self, on: bool) {
        self.write(|e| e.set_pasid(on.then_some(PASID_BITS)));
    }

    fn set_ats(&self, on: bool) {
        self.write(|e| e.set_ats(on.then_some(0)));
    }

    fn set_pri(&self, credits: Option<u32>) {
        if credits.is_some() {
            // PCIe: not before the interface has stopped, which it has when all is answered.
            self.wait_while(STOP, |b| {
                b.complex.endpoint(self.place).is_some_and(|e| e.pri_has_open_groups())
            });
            self.write(Endpoint::reset_pri);
        }
        self.write(|e| e.set_pri(credits));
    }

    fn reset(&self) {
        let now = self.platform.now();
        self.platform.hardware::<Board, _>(|b| b.complex.reset(now.0, self.place));
        // The function has forgotten what it sent, so no later invalidation waits for that.
        self.wait_while(RESET, |b| b.complex.pending_from_before(self.place));
    }
}
