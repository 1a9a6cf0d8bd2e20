//! The threaded platform: the same trait on real threads and the real clock.
//!
//! One thread steps the hardware, one delivers interrupts, one keeps the timer, and as many workers
//! as wanted do sleepable work; tasks of a scenario, and whoever calls the public interface, bring
//! threads of their own. Nobody busy-waits.

mod bells;
mod bench;
mod crew;
mod platform;

use self::{
    bells::{Bells, Timer},
    bench::Bench,
    crew::Crew,
};
use crate::{
    hardware::{Hardware, Msi},
    memory::{MemoryError, Ram},
};
use parking_lot::{Condvar, Mutex};
use portcullis::{Time, Woken};
use std::{
    any::Any,
    fmt,
    hash::{BuildHasher, RandomState},
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub use self::bells::ThreadEvent;

/// How long threads are given to come to their end after they were told to.
const END: Duration = Duration::from_secs(10);

/// The handle that drivers and core get. Clones name the same platform.
#[derive(Clone)]
pub struct ThreadPlatform(Arc<Inner>);

struct Inner {
    ram: Ram,
    start: Instant,
    random: Mutex<fastrand::Rng>,
    bells: Bells,
    timer: Timer,
    crew: Crew,
    hardware: Mutex<Bench>,
    /// A register was accessed: the hardware may have something to do.
    touched: Condvar,
    raised: Condvar,
    calm: Calm,
}

/// Tells whoever waits for the machine to be quiet that something of it has become so.
#[derive(Default)]
struct Calm {
    /// Somebody waits.
    wanted: AtomicBool,
    changes: Mutex<u64>,
    changed: Condvar,
}

/// A short lock.
#[derive(Debug, Default)]
pub struct ThreadLock<T>(Mutex<T>);

/// Owns a platform's threads.
pub struct Threads {
    platform: ThreadPlatform,
    workers: usize,
}

/// Threads that did not come to their end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// How long they were waited for.
    pub after: Duration,
    /// What they are called; empty if all tasks had ended, and the machine did not come to rest.
    pub tasks: Vec<String>,
}

impl std::error::Error for Late {}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = self.after.as_secs_f64();
        match self.tasks.as_slice() {
            [] => write!(f, "the machine was not at rest {after:.0} s after its tasks had ended"),
            tasks => write!(f, "not at their end after {after:.0} s: {}", tasks.join(", ")),
        }
    }
}

impl fmt::Debug for ThreadPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPlatform").finish_non_exhaustive()
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Threads {
    /// A platform without threads yet, with `memory` bytes of memory from guest address `base`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(base: u64, memory: usize) -> Result<Threads, MemoryError> {
        let inner = Inner {
            ram: Ram::new(base, memory)?,
            start: Instant::now(),
            random: Mutex::new(fastrand::Rng::with_seed(RandomState::new().hash_one(0))),
            bells: Bells::default(),
            timer: Timer::default(),
            crew: Crew::default(),
            hardware: Mutex::default(),
            touched: Condvar::new(),
            raised: Condvar::new(),
            calm: Calm::default(),
        };
        Ok(Threads { platform: ThreadPlatform(Arc::new(inner)), workers: 0 })
    }

    /// The platform's handle.
    pub fn platform(&self) -> &ThreadPlatform {
        &self.platform
    }

    /// Puts the hardware in and starts the thread that steps it.
    pub fn set_hardware(&mut self, hardware: impl Hardware) {
        self.platform.0.hardware.lock().put(Box::new(hardware));
        self.platform.start("hardware", |p| p.0.step_hardware());
    }

    /// Takes the hardware out, if it is an `H`; what is left answers nothing.
    pub fn take_hardware<H: Hardware>(&mut self) -> Option<Box<H>> {
        let hardware: Box<dyn Any> = self.platform.0.hardware.lock().take()?;
        self.platform.0.touched.notify_all();
        hardware.downcast().ok()
    }

    /// Has `handler` called, on a thread of its own, for each interrupt. Without one they are
    /// dropped.
    pub fn on_interrupt(&mut self, handler: impl Fn(&ThreadPlatform, Msi) + Send + 'static) {
        self.platform.0.hardware.lock().deliver();
        self.platform.start("interrupts", move |p| {
            while let Some(msi) = p.0.next_interrupt() {
                handler(p, msi);
            }
        });
    }

    /// Has `handler` called, on a thread of its own, when a time asked for with `timer_at` has come.
    pub fn on_timer(&mut self, handler: impl Fn(&ThreadPlatform) + Send + 'static) {
        self.platform.start("timer", move |p| {
            while p.0.timer.expires(&p.0) {
                handler(p);
            }
        });
    }

    /// Starts `n` workers, which call `work` after a kick until it returns false.
    pub fn workers(&mut self, n: usize, work: impl Fn(&ThreadPlatform) -> bool + Send + Sync + 'static) {
        let work = Arc::new(work);
        self.workers += n;
        for i in 0..n {
            let work = work.clone();
            self.platform.start(&format!("worker {i}"), move |p| {
                let mut end = Woken::Notified;
                while end != Woken::Shutdown {
                    let seen = p.0.bells.work().seen();
                    while work(p) {}
                    end = p.0.rest(seen);
                }
                while work(p) {}
            });
        }
    }

    /// Starts a task of the scenario. [`ThreadPlatform::spawn`] does the same from inside.
    pub fn spawn(&mut self, name: impl Into<String>, task: impl FnOnce(&ThreadPlatform) + Send + 'static) {
        self.platform.spawn(name, task);
    }

    /// Waits until every task of the scenario has ended.
    ///
    /// # Errors
    /// [`Late`] when that takes longer than `patience`.
    ///
    /// # Panics
    /// If a thread did, with its name.
    pub fn run(&mut self, patience: Duration) -> Result<(), Late> {
        let late = self.platform.0.crew.until_tasks_end(patience);
        self.tell_panic();
        match late {
            tasks if tasks.is_empty() => Ok(()),
            tasks => Err(Late { after: patience, tasks }),
        }
    }

    /// Waits until nothing is possible but that the timer's time comes: the hardware is idle, no
    /// interrupt is under way, every worker rests.
    ///
    /// # Errors
    /// [`Late`] when that takes longer than `patience`.
    ///
    /// # Panics
    /// As [`Threads::run`].
    pub fn settle(&mut self, patience: Duration) -> Result<(), Late> {
        let inner = &self.platform.0;
        let until = Instant::now() + patience;
        inner.calm.wanted.store(true, Ordering::SeqCst);
        let mut in_time = true;
        while in_time && !inner.crew.panicked() {
            let seen = *inner.calm.changes.lock();
            if self.is_quiet() {
                break;
            }
            let mut changes = inner.calm.changes.lock();
            while in_time && *changes == seen {
                in_time = !inner.calm.changed.wait_until(&mut changes, until).timed_out();
            }
        }
        inner.calm.wanted.store(false, Ordering::SeqCst);
        self.tell_panic();
        if in_time { Ok(()) } else { Err(Late { after: patience, tasks: Vec::new() }) }
    }

    /// Ends the run: every wait returns Shutdown, the threads come to their end, and the hardware
    /// is dropped.
    ///
    /// # Errors
    /// [`Late`] with the threads that do not end; they are left alone.
    ///
    /// # Panics
    /// If one of the threads did.
    pub fn finish(self) -> Result<(), Late> {
        let tasks = self.shut_down();
        if let Some((_, panic)) = self.platform.0.crew.take_panic() {
            resume_unwind(panic);
        }
        if tasks.is_empty() { Ok(()) } else { Err(Late { after: END, tasks }) }
    }

    /// Ends the run as [`finish`](Threads::finish) does, for those who know that it ends.
    ///
    /// # Panics
    /// If one of the threads did, or does not end.
    pub fn stop(self) {
        if let Err(late) = self.finish() {
            panic!("{late}");
        }
    }

    /// Whether nothing goes on. All three locks are held at once: what one part hands to another
    /// is seen in one of them.
    fn is_quiet(&self) -> bool {
        let inner = &self.platform.0;
        let bench = inner.hardware.lock();
        bench.is_quiet() && inner.bells.resting() == self.workers && !inner.timer.is_served()
    }

    fn tell_panic(&mut self) {
        if let Some((name, panic)) = self.platform.0.crew.take_panic() {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            panic!("`{name}` panicked: {}", text.unwrap_or("a panic without a text"));
        }
    }

    /// Tells every thread to end, and returns those that do not.
    fn shut_down(&self) -> Vec<String> {
        let inner = &self.platform.0;
        inner.bells.shut_down();
        inner.timer.shut_down();
        inner.hardware.lock().shut_down();
        inner.touched.notify_all();
        inner.raised.notify_all();
        let tasks = inner.crew.until_all_end(END);
        let hardware = inner.hardware.lock().take();
        drop(hardware);
        tasks
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // `finish` tells of panics, and of what did not end, for those who ask.
        self.shut_down();
    }
}

impl ThreadPlatform {
    /// The machine's memory.
    pub fn ram(&self) -> &Ram {
        &self.0.ram
    }

    /// Calls `f` with the hardware, if it is an `H`. The hardware does not step meanwhile.
    pub fn hardware<H: Hardware, R>(&self, f: impl FnOnce(&mut H) -> R) -> Option<R> {
        let mut bench = self.0.hardware.lock();
        let hardware: &mut dyn Any = bench.hardware()?;
        let r = hardware.downcast_mut().map(f);
        drop(bench);
        self.0.touched.notify_one();
        r
    }

    /// Starts a task of the scenario, on a thread of its own: the run lasts until it ends.
    /// Sleepable context.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn spawn(&self, name: impl Into<String>, task: impl FnOnce(&ThreadPlatform) + Send + 'static) {
        let p = self.clone();
        self.0.crew.start(name.into(), true, &self.0, move || task(&p));
    }

    fn start(&self, name: &str, body: impl FnOnce(&ThreadPlatform) + Send + 'static) {
        let p = self.clone();
        self.0.crew.start(name.into(), false, &self.0, move || body(&p));
    }
}

impl Inner {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn instant(&self, t: Time) -> Instant {
        self.start + Duration::from_nanos(t.0)
    }

    /// Waits as a worker that has found nothing to do.
    fn rest(&self, seen: u64) -> Woken {
        self.bells.rest(seen, || self.calm.changed())
    }
}

impl Calm {
    /// Something came to rest. May be called with any lock of the platform held but its own.
    fn changed(&self) {
        if self.wanted.load(Ordering::SeqCst) {
            *self.changes.lock() += 1;
            self.changed.notify_all();
        }
    }
}
