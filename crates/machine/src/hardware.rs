//! What a platform asks of the hardware it drives: registers, steps, interrupts.
//!
//! The models are behind this trait; the platforms know nothing else of them.

use portcullis::{Time, Window};
use std::any::Any;

/// Width of a register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

/// One step that the hardware could take. Opaque to the platform, but for the hash of the schedule
/// and for priorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HwWork {
    /// Whose step it is: what shares a lane shares a priority, where a schedule has them.
    pub lane: u32,
    /// Which step.
    pub item: u64,
}

/// A message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Msi {
    /// Address of the write.
    pub address: u64,
    /// Data of the write.
    pub data: u32,
}

/// Interrupts under way at which the hardware is not stepped until some were delivered: writes
/// that raise interrupts wait in the fabric when the interrupt controller takes no more, and a
/// device that invents messages must not fill the memory.
pub const INTERRUPTS_UNDER_WAY: usize = 1024;

/// The hardware side of a machine: a state machine that acts when it is stepped or a register is
/// accessed. It never calls the platform, and a register write runs nothing from inside itself:
/// it makes a step runnable. What is runnable changes by that, and at the time it named, and by
/// nothing else.
pub trait Hardware: Any + Send {
    /// Appends every step that is possible at `now`, in an order that depends on nothing else.
    fn runnable(&mut self, now: Time, out: &mut Vec<HwWork>);
    /// Takes a step; one that is not possible any more does nothing. Returns its cost in
    /// nanoseconds.
    fn run(&mut self, now: Time, work: HwWork) -> u64;
    /// The next time after `now` at which a step becomes possible that is not possible yet.
    fn next_deadline(&mut self, now: Time) -> Option<Time>;
    /// Reads a register. Makes nothing runnable, and raises no interrupt.
    fn mmio_read(&mut self, now: Time, window: Window, offset: u32, width: Width) -> u64;
    /// Writes a register.
    fn mmio_write(&mut self, now: Time, window: Window, offset: u32, width: Width, value: u64);
    /// Moves the interrupts raised since the last call to the end of `out`, oldest first.
    fn take_interrupts(&mut self, out: &mut Vec<Msi>);
}
