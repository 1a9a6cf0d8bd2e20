//! The simulation as a platform.

use super::{
    one_thread::OneThread,
    shared::{Shared, SimEvent, Why},
    stack::Kind,
};
use crate::{
    costs,
    hardware::{Hardware, Width},
    memory::Ram,
};
use portcullis::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
use portcullis_pgtable::{Fresh, NoMem, Phys, TableMem, Word};
use std::{any::Any, cell::RefCell, fmt, ops::Range, sync::Arc};

/// The handle that drivers and core get. Clones name the same simulation.
#[derive(Clone)]
pub struct SimPlatform(Arc<Shared>);

impl fmt::Debug for SimPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimPlatform").field("now", &self.0.now()).finish_non_exhaustive()
    }
}

impl SimPlatform {
    pub(super) fn new(shared: Shared) -> SimPlatform {
        SimPlatform(Arc::new(shared))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    /// The machine's memory.
    pub fn ram(&self) -> &Ram {
        &self.0.ram
    }

    /// Starts a task of the scenario: the run lasts until it ends. Any context.
    pub fn spawn(&self, name: impl Into<String>, task: impl FnOnce(&SimPlatform) + Send + 'static) {
        self.0.spawn(name.into(), Kind::Task, Why::Spawned, Box::new(task));
    }

    /// Calls `f` with the hardware, if it is an `H`, without a preemption point inside.
    ///
    /// # Panics
    /// If `f` itself accesses hardware, or waits.
    pub fn hardware<H: Hardware, R>(&self, f: impl FnOnce(&mut H) -> R) -> Option<R> {
        let r = self.0.with_hardware(|hardware, _| {
            let hardware: &mut dyn Any = hardware;
            hardware.downcast_mut().map(f)
        });
        r.flatten()
    }

    /// Calls `f` without a preemption point inside: for the scenario's own bookkeeping, which is no
    /// part of what is tested. `f` must not wait.
    pub fn undisturbed<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.undisturbed(f)
    }

    /// A preemption point: the scheduler may choose somebody else here.
    pub fn yield_now(&self) {
        self.0.point(0);
    }

    /// What a worker does: `work` until there is none, then wait for more.
    pub(super) fn work_until_shutdown(&self, work: &(dyn Fn(&SimPlatform) -> bool + Send + Sync)) {
        let cx = Sleep::in_sleepable_context();
        loop {
            let seen = self.seen(&self.0.work);
            while work(self) {}
            if self.wait(&cx, &self.0.work, seen, None) == Woken::Shutdown {
                while work(self) {}
                return;
            }
            self.0.charge(costs::WORKER_DISPATCH);
        }
    }
}

impl Platform for SimPlatform {
    type Lock<T: Send + 'static> = SimLock<T>;
    type Event = SimEvent;

    fn lock<T: Send + 'static>(&self, value: T) -> SimLock<T> {
        self.0.check_may_allocate("making a lock");
        SimLock {
            shared: self.0.clone(),
            number: self.0.number(),
            value: OneThread::new(RefCell::new(value)),
        }
    }

    fn event(&self) -> SimEvent {
        self.0.check_may_allocate("making an event");
        SimEvent::new(self.0.number())
    }

    fn seen(&self, event: &SimEvent) -> Seen {
        self.0.point(costs::EVENT);
        Seen(event.seen())
    }

    fn wait(&self, _: &Sleep<'_>, event: &SimEvent, seen: Seen, until: Option<Time>) -> Woken {
        self.0.wait(event, seen.0, until)
    }

    fn notify(&self, event: &SimEvent) {
        self.0.notify(event);
    }

    fn now(&self) -> Time {
        self.0.now()
    }

    fn timer_at(&self, at: Time) {
        {
            let mut state = self.0.change();
            state.timer = Some(state.timer.map_or(at, |earlier| earlier.min(at)));
        }
        self.0.point(costs::EVENT);
    }

    fn random(&self) -> u64 {
        self.0.random()
    }

    fn kick(&self) {
        self.0.notify(&self.0.work);
    }

    fn read32(&self, window: Window, offset: u32) -> u32 {
        self.read(window, offset, Width::Dword) as u32
    }

    fn write32(&self, window: Window, offset: u32, value: u32) {
        self.write(window, offset, Width::Dword, value.into());
    }

    fn read64(&self, window: Window, offset: u32) -> u64 {
        self.read(window, offset, Width::Qword)
    }

    fn write64(&self, window: Window, offset: u32, value: u64) {
        self.write(window, offset, Width::Qword, value);
    }
}

impl SimPlatform {
    fn read(&self, window: Window, offset: u32, width: Width) -> u64 {
        self.0.point(costs::MMIO_READ);
        let read = |hardware: &mut dyn Hardware, now| hardware.mmio_read(now, window, offset, width);
        // Where nothing answers, a bus reads ones.
        self.0.look_at_hardware(read).unwrap_or(u64::MAX)
    }

    fn write(&self, window: Window, offset: u32, width: Width, value: u64) {
        self.0.point(costs::MMIO_WRITE);
        self.0.with_hardware(|hardware, now| {
            hardware.mmio_write(now, window, offset, width, value);
        });
    }
}

/// The entries themselves are atomics of `portcullis-sync`, so that every access is a preemption
/// point already; here they get their price.
impl TableMem for SimPlatform {
    fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        self.0.check_may_allocate("taking a frame");
        self.0.point(costs::FRAME);
        self.0.ram.frames(order)
    }

    fn release(&self, frames: Fresh) {
        self.0.ram.release(frames);
    }

    fn reclaim_frames(&self, first: Phys, order: u32) {
        self.0.ram.reclaim_frames(first, order);
    }

    fn load<W: Word>(&self, table: Phys, i: usize) -> W {
        self.0.charge(costs::TABLE_ACCESS);
        self.0.ram.load(table, i)
    }

    fn store<W: Word>(&self, table: Phys, i: usize, w: W) {
        self.0.charge(costs::TABLE_ACCESS);
        self.0.ram.store(table, i, w);
    }

    fn cas<W: Word>(&self, table: Phys, i: usize, old: W, new: W) -> Result<(), W> {
        self.0.charge(costs::TABLE_ACCESS);
        self.0.ram.cas(table, i, old, new)
    }

    fn load128(&self, table: Phys, i: usize) -> u128 {
        self.0.charge(costs::TABLE_ACCESS);
        self.0.ram.load128(table, i)
    }

    fn store128(&self, table: Phys, i: usize, w: u128) {
        self.0.charge(costs::TABLE_ACCESS);
        self.0.ram.store128(table, i, w);
    }

    fn fill_private<W: Word>(&self, frame: &mut Fresh, range: Range<usize>, entry: impl FnMut(usize) -> W) {
        self.0.charge(costs::TABLE_ACCESS * range.len() as u64);
        self.0.ram.fill_private(frame, range, entry);
    }

    fn run<W: Word>(&self, table: Phys, range: Range<usize>, visit: impl FnMut(usize, &W::Atomic)) {
        self.0.charge(costs::TABLE_ACCESS * range.len() as u64);
        self.0.ram.run::<W>(table, range, visit);
    }

    fn barrier(&self) {
        self.0.ram.barrier();
    }

    fn clean(&self, table: Phys, bytes: Range<usize>) {
        let lines = bytes.len().div_ceil(64) as u64;
        self.0.point(costs::CLEAN_LINE * lines);
        self.0.ram.clean(table, bytes);
    }
}

/// A short lock. Its holder may be preempted; whoever wants it meanwhile is not runnable until it
/// is free, whatever context it is in.
pub struct SimLock<T> {
    shared: Arc<Shared>,
    number: u64,
    value: OneThread<RefCell<T>>,
}

impl<T> fmt::Debug for SimLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimLock").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<T: Send> ShortLock<T> for SimLock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        self.shared.point(costs::LOCK);
        let value = loop {
            match self.value.get().try_borrow_mut() {
                Ok(value) => break value,
                Err(_) => self.shared.locked_out(self.number),
            }
        };
        self.shared.locked();
        // Dropped after the value is free again, and on a panic as well.
        let _unlock = Unlock { shared: &self.shared, number: self.number };
        let mut value = value;
        f(&mut value)
    }
}

struct Unlock<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        self.shared.unlocked(self.number);
    }
}
