//! What the platform's handle and the scheduler both see.

use super::{
    config::{Plant, Pool, SimConfig, SimStats},
    one_thread::OneThread,
    stack::{Body, Kind, Running, current},
};
use crate::{
    costs,
    hardware::{Hardware, Msi},
    memory::{MemoryError, Ram},
};
use portcullis::{Time, Woken};
use std::{
    cell::{Cell, RefCell, RefMut},
    ptr, thread,
};

pub(super) struct Shared {
    pub(super) ram: Ram,
    pool: Pool,
    plant: Option<Plant>,
    spurious: bool,
    hot: OneThread<Hot>,
    state: OneThread<RefCell<State>>,
    hardware: OneThread<RefCell<Option<Box<dyn Hardware>>>>,
    /// Notified when there is sleepable work.
    pub(super) work: SimEvent,
}

/// What every preemption point touches.
struct Hot {
    now: Cell<u64>,
    /// Preemption points until the next choice.
    left: Cell<u32>,
    slice: u32,
    /// Tasks that wait for a short lock.
    locked_out: Cell<usize>,
    /// Something else than before may be possible, but for the hardware.
    changed: Cell<bool>,
    /// The hardware can do something else than before, perhaps.
    touched: Cell<bool>,
    rng: RefCell<fastrand::Rng>,
    random: RefCell<fastrand::Rng>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) tasks: Vec<Task>,
    /// How many of the scenario's have not ended.
    pub(super) tasks_left: usize,
    /// Tasks that have no stack yet.
    pub(super) born: Vec<(usize, Body)>,
    /// Interrupts on their way, and when they arrive.
    pub(super) pending: Vec<(Time, Msi)>,
    pub(super) timer: Option<Time>,
    pub(super) shutdown: bool,
    pub(super) stats: SimStats,
    numbers: u64,
    raised: Vec<Msi>,
}

pub(super) struct Task {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) why: Why,
    pub(super) status: Status,
    woken: Woken,
}

/// What a coroutine serves: one service coroutine at a time for each interrupt and for the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Spawned,
    Timer,
    Interrupt(Msi),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ready,
    Waiting { event: u64, until: Option<Time> },
    LockedOut(u64),
    Done,
}

/// Something to wait for.
#[derive(Debug)]
pub struct SimEvent {
    number: u64,
    notified: OneThread<Cell<u64>>,
}

impl Shared {
    pub(super) fn new(config: &SimConfig, slice: u32) -> Result<Shared, MemoryError> {
        let stream = |n: u64| fastrand::Rng::with_seed(config.seed.wrapping_mul(4).wrapping_add(n));
        Ok(Shared {
            ram: config.pool.ram(config.base, config.memory)?,
            pool: config.pool.clone(),
            plant: config.plant,
            spurious: config.spurious_wakeups,
            hot: OneThread::new(Hot {
                now: Cell::new(0),
                left: Cell::new(1),
                slice: slice.max(1),
                locked_out: Cell::new(0),
                changed: Cell::new(true),
                touched: Cell::new(true),
                rng: RefCell::new(stream(1)),
                random: RefCell::new(stream(2)),
            }),
            state: OneThread::new(RefCell::default()),
            hardware: OneThread::new(RefCell::new(None)),
            work: SimEvent::new(0),
        })
    }

    /// The bookkeeping, to read and to count. Nothing that holds it calls out.
    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.state.get().borrow_mut()
    }

    /// The bookkeeping, to change what is possible.
    pub(super) fn change(&self) -> RefMut<'_, State> {
        self.hot.get().changed.set(true);
        self.state()
    }

    /// Whether anybody has changed what is possible since the last call.
    pub(super) fn take_changed(&self) -> bool {
        self.hot.get().changed.replace(false)
    }

    /// Whether anything was done to the hardware, or by it, since the last call.
    pub(super) fn take_touched(&self) -> bool {
        self.hot.get().touched.replace(false)
    }

    pub(super) fn now(&self) -> Time {
        Time(self.hot.get().now.get())
    }

    pub(super) fn set_now(&self, now: Time) {
        self.hot.get().now.set(now.0);
    }

    /// Lets time pass.
    #[inline]
    pub(super) fn charge(&self, ns: u64) {
        let now = &self.hot.get().now;
        now.set(now.get().saturating_add(ns));
    }

    pub(super) fn random(&self) -> u64 {
        self.hot.get().random.borrow_mut().u64(..)
    }

    /// A preemption point that costs `ns`: the scheduler may choose somebody else here.
    #[inline]
    pub(super) fn point(&self, ns: u64) {
        let hot = self.hot.get();
        hot.now.set(hot.now.get().saturating_add(ns));
        if hot.left.get() > 1 {
            hot.left.set(hot.left.get() - 1);
        } else {
            self.preempt();
        }
    }

    #[cold]
    fn preempt(&self) {
        let hot = self.hot.get();
        let left = hot.rng.borrow_mut().u32(1..=hot.slice.saturating_mul(2) - 1);
        hot.left.set(left);
        self.here(|running| {
            if let Some(running) = running
                && running.undisturbed.get() == 0
                && !thread::panicking()
            {
                running.suspend();
            }
        });
    }

    /// Calls `f` with the coroutine that runs now, if it is one of this simulation.
    fn here<R>(&self, f: impl FnOnce(Option<&Running<'_>>) -> R) -> R {
        current(|running| f(running.filter(|r| ptr::eq(r.shared, self))))
    }

    /// Calls `f` without a preemption point inside.
    pub(super) fn undisturbed<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Leave<'a>(&'a Cell<u32>);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        self.here(|running| {
            let _leave = running.map(|r| {
                r.undisturbed.set(r.undisturbed.get() + 1);
                Leave(&r.undisturbed)
            });
            f()
        })
    }

    /// What the rules say about a call that allocates.
    pub(super) fn check_may_allocate(&self, what: &str) {
        self.here(|running| {
            if let Some(running) = running {
                assert!(running.kind != Kind::Service, "{what} in interrupt or service context");
                assert!(running.locks.get() == 0, "{what} with a short lock held");
            }
        });
    }

    pub(super) fn wait(&self, event: &SimEvent, seen: u64, until: Option<Time>) -> Woken {
        if thread::panicking() {
            return Woken::Shutdown;
        }
        self.check_may_allocate("a wait");
        self.point(costs::EVENT);
        let seen = match self.plant {
            Some(Plant::LostWakeup) => event.seen(),
            None => seen,
        };
        let spurious = self.spurious && self.hot.get().rng.borrow_mut().u32(..256) == 0;
        self.here(|running| {
            let Some(running) = running else {
                assert!(self.state().shutdown, "a wait outside of the simulation's tasks");
                return Woken::Shutdown;
            };
            assert!(running.undisturbed.get() == 0, "a wait in a stretch without preemption");
            {
                let mut state = self.change();
                if state.shutdown {
                    return Woken::Shutdown;
                }
                if event.seen() != seen {
                    return Woken::Notified;
                }
                if until.is_some_and(|t| t <= self.now()) {
                    return Woken::Deadline;
                }
                if spurious {
                    state.stats.spurious_wakeups += 1;
                    return Woken::Notified;
                }
                state.tasks[running.task].status = Status::Waiting { event: event.number, until };
            }
            running.suspend();
            self.state().tasks[running.task].woken
        })
    }

    pub(super) fn notify(&self, event: &SimEvent) {
        event.notified.get().set(event.seen().wrapping_add(1));
        for task in &mut self.change().tasks {
            if matches!(task.status, Status::Waiting { event: e, .. } if e == event.number) {
                task.wake(Woken::Notified);
            }
        }
        self.point(costs::EVENT);
    }

    /// A number for an event or a lock, to be named by in reports.
    pub(super) fn number(&self) -> u64 {
        let mut state = self.state();
        state.numbers += 1;
        state.numbers
    }

    /// Suspends until the short lock is free.
    pub(super) fn locked_out(&self, lock: u64) {
        self.here(|running| {
            let Some(running) = running.filter(|r| r.undisturbed.get() == 0) else {
                panic!("short lock {lock} is held, and nobody can run to release it");
            };
            {
                let mut state = self.change();
                state.tasks[running.task].status = Status::LockedOut(lock);
                state.stats.lock_waits += 1;
            }
            let waiting = &self.hot.get().locked_out;
            waiting.set(waiting.get() + 1);
            running.suspend();
        });
    }

    /// Counts the locks that the running coroutine holds.
    pub(super) fn locked(&self) {
        self.here(|running| {
            if let Some(running) = running {
                running.locks.set(running.locks.get() + 1);
            }
        });
    }

    pub(super) fn unlocked(&self, lock: u64) {
        self.here(|running| {
            if let Some(running) = running {
                running.locks.set(running.locks.get() - 1);
            }
        });
        let waiting = &self.hot.get().locked_out;
        if waiting.get() == 0 {
            return;
        }
        for task in &mut self.change().tasks {
            if task.status == Status::LockedOut(lock) {
                task.status = Status::Ready;
                waiting.set(waiting.get() - 1);
            }
        }
    }

    pub(super) fn set_hardware(&self, hardware: Option<Box<dyn Hardware>>) {
        self.hot.get().touched.set(true);
        let before = self.hardware.get().replace(hardware);
        drop(before);
    }

    pub(super) fn take_hardware(&self) -> Option<Box<dyn Hardware>> {
        self.hot.get().touched.set(true);
        self.hardware.get().take()
    }

    /// Calls the hardware, without a preemption point inside, and sends the interrupts it raised on
    /// their way. `None` if there is none.
    pub(super) fn with_hardware<R>(&self, f: impl FnOnce(&mut dyn Hardware, Time) -> R) -> Option<R> {
        self.undisturbed(|| {
            let mut hardware = self.hardware.get().borrow_mut();
            let hardware = hardware.as_deref_mut()?;
            self.hot.get().touched.set(true);
            let r = f(hardware, self.now());
            let mut state = self.change();
            let mut raised = std::mem::take(&mut state.raised);
            hardware.take_interrupts(&mut raised);
            let due = Time(self.now().0.saturating_add(costs::INTERRUPT_LATENCY));
            for msi in raised.drain(..) {
                state.stats.interrupts_raised += 1;
                // As an interrupt controller does: one request bit for each vector.
                if !state.pending.iter().any(|p| p.1 == msi) {
                    state.pending.push((due, msi));
                }
            }
            state.raised = raised;
            Some(r)
        })
    }

    /// Calls the hardware to ask it something that makes nothing runnable, without a preemption point
    /// inside. `None` if there is none.
    pub(super) fn look_at_hardware<R>(&self, f: impl FnOnce(&mut dyn Hardware, Time) -> R) -> Option<R> {
        self.undisturbed(|| {
            let mut hardware = self.hardware.get().borrow_mut();
            hardware.as_deref_mut().map(|hardware| f(hardware, self.now()))
        })
    }

    /// A new task, runnable; it gets its stack from the scheduler.
    pub(super) fn spawn(&self, name: String, kind: Kind, why: Why, body: Body) -> usize {
        let mut state = self.change();
        state.tasks_left += usize::from(kind == Kind::Task);
        let task = Task { name, kind, why, status: Status::Ready, woken: Woken::Notified };
        let free = state.tasks.iter().position(|t| t.status == Status::Done);
        let id = free.unwrap_or(state.tasks.len());
        match state.tasks.get_mut(id) {
            Some(slot) => *slot = task,
            None => state.tasks.push(task),
        }
        state.born.push((id, body));
        id
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pool.give_ram(self.ram.clone());
    }
}

impl State {
    /// Whether a handler of this runs.
    pub(super) fn is_served(&self, why: Why) -> bool {
        let mut tasks = self.tasks.iter();
        tasks.any(|t| t.why == why && t.status != Status::Done)
    }

    /// A task has come to its end.
    pub(super) fn done(&mut self, task: usize) {
        let task = &mut self.tasks[task];
        task.status = Status::Done;
        self.tasks_left -= usize::from(task.kind == Kind::Task);
    }
}

impl Task {
    pub(super) fn wake(&mut self, woken: Woken) {
        self.status = Status::Ready;
        self.woken = woken;
    }
}

impl SimEvent {
    pub(super) fn new(number: u64) -> SimEvent {
        SimEvent { number, notified: OneThread::new(Cell::new(0)) }
    }

    pub(super) fn seen(&self) -> u64 {
        self.notified.get().get()
    }
}
