//! What a machine needs of its platform beyond what the core does, and the platform that is either
//! of the two.

#[cfg(feature = "sim")]
use crate::sim::{SimEvent, SimLock, SimPlatform};
use crate::{
    hardware::Hardware,
    memory::{Fresh, NoMem, Phys, Ram, TableMem, Word},
    threads::{ThreadEvent, ThreadLock, ThreadPlatform},
};
use portcullis::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
use std::{fmt, ops::Range};

/// A platform with memory and hardware that a scenario can reach.
pub trait MachinePlatform: Platform {
    /// The machine's memory.
    fn ram(&self) -> &Ram;

    /// Calls `f` with the hardware, if it is an `H`. The hardware does not step meanwhile, and `f`
    /// accesses no register and does not wait.
    fn hardware<H: Hardware, R>(&self, f: impl FnOnce(&mut H) -> R) -> Option<R>;

    /// Starts a task of the scenario: the run lasts until it ends. Any context on the simulation,
    /// sleepable context on threads.
    fn spawn(&self, name: impl Into<String>, task: impl FnOnce(&Self) + Send + 'static);

    /// Lets somebody else go on, if it is so chosen.
    fn yield_now(&self);

    /// Sleeps for nanoseconds of the platform's clock. Sleepable context.
    fn sleep(&self, cx: &Sleep<'_>, ns: u64) -> Woken {
        let event = self.event();
        let until = Time(self.now().0.saturating_add(ns));
        loop {
            match self.wait(cx, &event, self.seen(&event), Some(until)) {
                Woken::Notified => {}
                end => return end,
            }
        }
    }
}

#[cfg(feature = "sim")]
impl MachinePlatform for SimPlatform {
    fn ram(&self) -> &Ram {
        self.ram()
    }
    fn hardware<H: Hardware, R>(&self, f: impl FnOnce(&mut H) -> R) -> Option<R> {
        self.hardware(f)
    }
    fn spawn(&self, name: impl Into<String>, task: impl FnOnce(&Self) + Send + 'static) {
        self.spawn(name, task);
    }
    fn yield_now(&self) {
        self.yield_now();
    }
}

impl MachinePlatform for ThreadPlatform {
    fn ram(&self) -> &Ram {
        self.ram()
    }
    fn hardware<H: Hardware, R>(&self, f: impl FnOnce(&mut H) -> R) -> Option<R> {
        self.hardware(f)
    }
    fn spawn(&self, name: impl Into<String>, task: impl FnOnce(&Self) + Send + 'static) {
        self.spawn(name, task);
    }
    fn yield_now(&self) {
        std::thread::yield_now();
    }
}

/// The simulation or real threads: what a machine runs on is chosen when it is made, so that
/// scenarios are written once and compiled once.
#[derive(Clone)]
pub enum AnyPlatform {
    /// A seed decides every step, and the clock is virtual.
    #[cfg(feature = "sim")]
    Sim(SimPlatform),
    /// Real threads and the real clock.
    Threads(ThreadPlatform),
}

/// A short lock of either.
#[derive(Debug)]
pub enum AnyLock<T> {
    /// The simulation's.
    #[cfg(feature = "sim")]
    Sim(SimLock<T>),
    /// The threads'.
    Threads(ThreadLock<T>),
}

/// An event of either.
#[derive(Debug)]
pub enum AnyEvent {
    /// The simulation's.
    #[cfg(feature = "sim")]
    Sim(SimEvent),
    /// The threads'.
    Threads(ThreadEvent),
}

/// Does the same on whichever platform it is.
macro_rules! on {
    ($any:expr, $p:ident => $e:expr) => {
        match $any {
            #[cfg(feature = "sim")]
            AnyPlatform::Sim($p) => $e,
            AnyPlatform::Threads($p) => $e,
        }
    };
}

/// Does the same to an event, on the platform that made it.
macro_rules! with {
    ($any:expr, $event:expr, ($p:ident, $e:ident) => $do:expr) => {
        match ($any, $event) {
            #[cfg(feature = "sim")]
            (AnyPlatform::Sim($p), AnyEvent::Sim($e)) => $do,
            (AnyPlatform::Threads($p), AnyEvent::Threads($e)) => $do,
            // A machine has one platform, and everything of it is made by that.
            #[cfg(feature = "sim")]
            _ => unreachable!("an event of another platform"),
        }
    };
}

impl fmt::Debug for AnyPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        on!(self, p => p.fmt(f))
    }
}

impl MachinePlatform for AnyPlatform {
    fn ram(&self) -> &Ram {
        on!(self, p => p.ram())
    }

    fn hardware<H: Hardware, R>(&self, f: impl FnOnce(&mut H) -> R) -> Option<R> {
        on!(self, p => p.hardware(f))
    }

    fn spawn(&self, name: impl Into<String>, task: impl FnOnce(&Self) + Send + 'static) {
        let this = self.clone();
        on!(self, p => p.spawn(name, move |_| task(&this)));
    }

    fn yield_now(&self) {
        on!(self, p => MachinePlatform::yield_now(p));
    }
}

impl<T: Send> ShortLock<T> for AnyLock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        match self {
            #[cfg(feature = "sim")]
            AnyLock::Sim(lock) => lock.with(f),
            AnyLock::Threads(lock) => lock.with(f),
        }
    }
}

impl Platform for AnyPlatform {
    type Lock<T: Send + 'static> = AnyLock<T>;
    type Event = AnyEvent;

    fn lock<T: Send + 'static>(&self, value: T) -> AnyLock<T> {
        match self {
            #[cfg(feature = "sim")]
            AnyPlatform::Sim(p) => AnyLock::Sim(p.lock(value)),
            AnyPlatform::Threads(p) => AnyLock::Threads(p.lock(value)),
        }
    }

    fn event(&self) -> AnyEvent {
        match self {
            #[cfg(feature = "sim")]
            AnyPlatform::Sim(p) => AnyEvent::Sim(p.event()),
            AnyPlatform::Threads(p) => AnyEvent::Threads(p.event()),
        }
    }

    fn seen(&self, event: &AnyEvent) -> Seen {
        with!(self, event, (p, e) => p.seen(e))
    }

    fn wait(&self, cx: &Sleep<'_>, event: &AnyEvent, seen: Seen, until: Option<Time>) -> Woken {
        with!(self, event, (p, e) => p.wait(cx, e, seen, until))
    }

    fn notify(&self, event: &AnyEvent) {
        with!(self, event, (p, e) => p.notify(e));
    }

    fn now(&self) -> Time {
        on!(self, p => p.now())
    }

    fn timer_at(&self, at: Time) {
        on!(self, p => p.timer_at(at));
    }

    fn random(&self) -> u64 {
        on!(self, p => p.random())
    }

    fn kick(&self) {
        on!(self, p => p.kick());
    }

    fn read32(&self, window: Window, offset: u32) -> u32 {
        on!(self, p => p.read32(window, offset))
    }

    fn write32(&self, window: Window, offset: u32, value: u32) {
        on!(self, p => p.write32(window, offset, value));
    }

    fn read64(&self, window: Window, offset: u32) -> u64 {
        on!(self, p => p.read64(window, offset))
    }

    fn write64(&self, window: Window, offset: u32, value: u64) {
        on!(self, p => p.write64(window, offset, value));
    }
}

impl TableMem for AnyPlatform {
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        on!(self, p => p.frames(order))
    }

    fn release(&self, frames: Fresh) {
        on!(self, p => p.release(frames));
    }

    fn reclaim_frames(&self, first: Phys, order: u32) {
        on!(self, p => p.reclaim_frames(first, order));
    }

    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        on!(self, p => p.load(table, i))
    }

    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        on!(self, p => p.store(table, i, w));
    }

    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        on!(self, p => p.cas(table, i, old, new))
    }

    fn load128(&self, table: Phys, i: usize) -> u128 {
        on!(self, p => p.load128(table, i))
    }

    fn store128(&self, table: Phys, i: usize, w: u128) {
        on!(self, p => p.store128(table, i, w));
    }

    fn fill_private<W: Word>(&self, frame: &mut Fresh, range: Range<usize>, entry: impl FnMut(usize) -> W) {
        on!(self, p => p.fill_private(frame, range, entry));
    }

    fn run<W: Word>(&self, table: Phys, range: Range<usize>, visit: impl FnMut(usize, &W::Atomic)) {
        on!(self, p => p.run::<W>(table, range, visit));
    }

    fn barrier(&self) {
        on!(self, p => p.barrier());
    }

    fn clean(&self, table: Phys, bytes: Range<usize>) {
        on!(self, p => p.clean(table, bytes));
    }
}
