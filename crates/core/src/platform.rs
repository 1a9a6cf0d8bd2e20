//! What the embedder provides: memory, registers, time, locks, waiting, workers.
//!
//! A kernel, the simulation, the threaded machine and the QEMU testbed implement [`Platform`].
//! Everything is a `&self` method of a value that clones, never a static, so that two platforms
//! live in one process.

use crate::ids::Key;
use core::{fmt, marker::PhantomData, ops::Add, time::Duration};
use portcullis_pgtable::{Phys, TableMem};

/// Nanoseconds of the platform's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Time {
    /// Time from `earlier` to `self`, zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// What [`Platform::seen`] read from an event; [`Platform::wait`] returns at once when the event
/// was notified since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(pub u64);

/// Why a wait returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The event was notified (or may have been).
    Notified,
    /// The deadline passed.
    Deadline,
    /// The platform ends: the caller gives up its wait in an orderly way.
    Shutdown,
}

/// Which register window of the platform an instance's registers lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window(pub u32);

/// A lock for short stretches: safe to take with interrupts off, never held over a wait, an
/// allocation, a call out, or a hardware wait.
pub trait ShortLock<T>: Send + Sync {
    /// Runs `f` with the lock held.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
}

/// The witness that its holder runs in sleepable context.
///
/// It is not `Send`: a context does not move between stacks. Where the core calls a resolver, the
/// witness also knows whose resolver it is, so that a detach from inside does not wait for itself.
pub struct Sleep<'a> {
    pub(crate) inside: Option<Key>,
    _no_send: PhantomData<&'a *mut ()>,
}

impl fmt::Debug for Sleep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("inside", &self.inside).finish()
    }
}

impl Sleep<'_> {
    /// For the platform's threads and for a caller of the public interface: a promise that the
    /// current context may wait and allocate, and holds no short lock. A wrong promise shows as a
    /// deadlock, never as memory unsafety.
    pub fn in_sleepable_context() -> Sleep<'static> {
        Sleep { inside: None, _no_send: PhantomData }
    }

    pub(crate) fn in_resolver(of: Key) -> Sleep<'static> {
        Sleep { inside: Some(of), _no_send: PhantomData }
    }
}

/// What the embedder provides. A handle: clones name the same platform.
pub trait Platform: TableMem + Clone {
    /// A short lock around a `T`.
    type Lock<T: Send + 'static>: ShortLock<T> + 'static;
    /// Something to wait for.
    type Event: Send + Sync + 'static;

    /// Makes a lock. Called in sleepable context only.
    fn lock<T: Send + 'static>(&self, value: T) -> Self::Lock<T>;
    /// Makes an event. Called in sleepable context only.
    fn event(&self) -> Self::Event;
    /// Reads an event's state, before the condition that is about to be waited for is checked.
    fn seen(&self, event: &Self::Event) -> Seen;
    /// Waits until `event` is notified after `seen` was read, or `until` has passed. Runs no other
    /// work on the caller's stack. A spurious return as `Notified` is allowed.
    fn wait(&self, cx: &Sleep<'_>, event: &Self::Event, seen: Seen, until: Option<Time>) -> Woken;
    /// Wakes everyone who waits for `event`. Any context.
    fn notify(&self, event: &Self::Event);

    /// The monotonic clock. Any context.
    fn now(&self) -> Time;
    /// Asks that [`Iommu::tick`](crate::Iommu::tick) be called once `at` has passed; replaces a
    /// later one asked for before, and may be early. Any context.
    fn timer_at(&self, at: Time);
    /// Unpredictable bits, for generations and cookies. Any context.
    fn random(&self) -> u64;
    /// There is sleepable work: a worker should call [`Iommu::run`](crate::Iommu::run)
    /// until it returns false. Any context.
    fn kick(&self);

    /// Writes back what the CPU's caches hold of `len` bytes of ordinary memory at `phys`, so that a
    /// device that does not snoop them reads what the CPU wrote. Ordered before a later doorbell. The
    /// counterpart for tables is [`TableMem::clean`].
    ///
    /// Does nothing by default, which is right where every device snoops. Any context.
    fn clean_data(&self, phys: Phys, len: u64) {
        let _ = (phys, len);
    }
    /// Drops what the CPU's caches hold of `len` bytes of ordinary memory at `phys`, so that the CPU
    /// reads what a device that does not snoop wrote, and writes nothing over it later. A line that
    /// the range covers only in part is written back first: the rest of it is somebody else's.
    ///
    /// Does nothing by default, which is right where every device snoops. Any context.
    fn invalidate_data(&self, phys: Phys, len: u64) {
        let _ = (phys, len);
    }

    /// Reads a 32-bit register at a byte offset of a window. Any context.
    fn read32(&self, window: Window, offset: u32) -> u32;
    /// Writes a 32-bit register. Ordered after earlier stores to table memory. Any context.
    fn write32(&self, window: Window, offset: u32, value: u32);
    /// Reads a 64-bit register. Any context.
    fn read64(&self, window: Window, offset: u32) -> u64;
    /// Writes a 64-bit register. Ordered after earlier stores to table memory. Any context.
    fn write64(&self, window: Window, offset: u32, value: u64);
}
