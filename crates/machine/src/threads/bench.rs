//! The hardware under its lock, the thread that steps it, and the interrupts on their way from it.

use super::Inner;
use crate::hardware::{Hardware, HwWork, INTERRUPTS_UNDER_WAY, Msi, Width};
use parking_lot::MutexGuard;
use portcullis::Window;

/// The hardware, and the interrupts that are on their way from it.
#[derive(Default)]
pub(super) struct Bench {
    hardware: Option<Box<dyn Hardware>>,
    /// It has nothing to do before it is accessed.
    idle: bool,
    pending: Vec<Msi>,
    /// Somebody takes the interrupts.
    delivered: bool,
    /// An interrupt's handler runs.
    served: bool,
    shutdown: bool,
}

impl Bench {
    pub(super) fn put(&mut self, hardware: Box<dyn Hardware>) {
        self.hardware = Some(hardware);
    }

    pub(super) fn take(&mut self) -> Option<Box<dyn Hardware>> {
        self.hardware.take()
    }

    /// The hardware, about to be accessed: it may have something to do then.
    pub(super) fn hardware(&mut self) -> Option<&mut dyn Hardware> {
        self.idle = false;
        self.hardware.as_deref_mut()
    }

    pub(super) fn deliver(&mut self) {
        self.delivered = true;
    }

    pub(super) fn shut_down(&mut self) {
        self.shutdown = true;
    }

    pub(super) fn is_quiet(&self) -> bool {
        (self.idle || self.hardware.is_none()) && self.pending.is_empty() && !self.served
    }

    /// Takes over what the hardware raised. True if there is something to deliver now.
    fn collect_interrupts(&mut self) -> bool {
        let Bench { hardware: Some(hardware), pending, delivered, .. } = self else { return false };
        let before = pending.len();
        hardware.take_interrupts(pending);
        if !*delivered {
            pending.clear();
            return false;
        }
        // As an interrupt controller does: one request bit for each vector.
        let mut i = before;
        while i < pending.len() {
            if pending[..i].contains(&pending[i]) {
                pending.remove(i);
            } else {
                i += 1;
            }
        }
        pending.len() > before
    }
}

impl Inner {
    pub(super) fn step_hardware(&self) {
        let mut work: Vec<HwWork> = Vec::new();
        let mut bench = self.hardware.lock();
        while !bench.shutdown {
            if bench.pending.len() >= INTERRUPTS_UNDER_WAY {
                self.touched.wait(&mut bench);
                continue;
            }
            let Some(hardware) = bench.hardware() else {
                return;
            };
            let now = self.now();
            work.clear();
            hardware.runnable(now, &mut work);
            for &step in &work {
                hardware.run(now, step);
            }
            let next = if work.is_empty() { hardware.next_deadline(now) } else { None };
            if bench.collect_interrupts() {
                self.raised.notify_one();
            }
            match next {
                // Registers can be accessed between two rounds.
                _ if !work.is_empty() => MutexGuard::bump(&mut bench),
                Some(t) => {
                    self.touched.wait_until(&mut bench, self.instant(t));
                }
                None => {
                    bench.idle = true;
                    self.calm.changed();
                    self.touched.wait(&mut bench);
                }
            }
        }
    }

    /// Waits for an interrupt; the handler of the one before has returned. `None` at the end.
    pub(super) fn next_interrupt(&self) -> Option<Msi> {
        let mut bench = self.hardware.lock();
        if bench.served {
            bench.served = false;
            self.calm.changed();
        }
        loop {
            if bench.shutdown {
                return None;
            }
            if !bench.pending.is_empty() {
                bench.served = true;
                self.touched.notify_one();
                return Some(bench.pending.remove(0));
            }
            self.raised.wait(&mut bench);
        }
    }

    /// Reads a register; where nothing answers, a bus reads ones. Nobody is woken by that.
    pub(super) fn read(&self, window: Window, offset: u32, width: Width) -> u64 {
        let mut bench = self.hardware.lock();
        let hardware = bench.hardware.as_deref_mut();
        hardware.map_or(u64::MAX, |h| h.mmio_read(self.now(), window, offset, width))
    }

    /// Writes a register; where nothing answers, nothing happens.
    pub(super) fn write(&self, window: Window, offset: u32, width: Width, value: u64) {
        let mut bench = self.hardware.lock();
        let Some(hardware) = bench.hardware() else { return };
        hardware.mmio_write(self.now(), window, offset, width, value);
        if bench.collect_interrupts() {
            self.raised.notify_one();
        }
        drop(bench);
        self.touched.notify_one();
    }
}
