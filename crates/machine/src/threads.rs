//! The threaded platform: the same trait on real threads and the real clock.
//!
//! One thread steps the hardware, one delivers interrupts, one keeps the timer, and as many workers
//! as wanted do sleepable work; whoever calls the public interface brings a thread of its own.
//! Nobody busy-waits.

mod platform;

use crate::{
    hardware::{Hardware, HwWork, INTERRUPTS_UNDER_WAY, Msi},
    memory::{MemoryError, Ram},
};
use parking_lot::{Condvar, Mutex};
use portcullis::{Platform, Sleep, Time, Woken};
use std::{
    any::Any,
    fmt,
    hash::{BuildHasher, RandomState},
    panic::resume_unwind,
    sync::{Arc, atomic::AtomicU64},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// The handle that drivers and core get. Clones name the same platform.
#[derive(Clone)]
pub struct ThreadPlatform(Arc<Inner>);

struct Inner {
    ram: Ram,
    start: Instant,
    random: Mutex<fastrand::Rng>,
    /// Notifications and the end. One condition variable for all events: their waiters are few.
    bell: Mutex<Bell>,
    rung: Condvar,
    work: ThreadEvent,
    hardware: Mutex<Bench>,
    /// A register was accessed: the hardware may have something to do.
    touched: Condvar,
    raised: Condvar,
}

#[derive(Default)]
struct Bell {
    shutdown: bool,
    timer: Option<Time>,
}

/// The hardware, and the interrupts that are on their way from it.
#[derive(Default)]
struct Bench {
    hardware: Option<Box<dyn Hardware>>,
    pending: Vec<Msi>,
    /// Somebody takes the interrupts.
    delivered: bool,
    shutdown: bool,
}

/// Something to wait for.
#[derive(Debug, Default)]
pub struct ThreadEvent(AtomicU64);

/// A short lock.
#[derive(Debug, Default)]
pub struct ThreadLock<T>(Mutex<T>);

/// Owns a platform's threads.
pub struct Threads {
    platform: ThreadPlatform,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for ThreadPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPlatform").finish_non_exhaustive()
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("threads", &self.threads.len()).finish_non_exhaustive()
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
            bell: Mutex::default(),
            rung: Condvar::new(),
            work: ThreadEvent::default(),
            hardware: Mutex::default(),
            touched: Condvar::new(),
            raised: Condvar::new(),
        };
        Ok(Threads { platform: ThreadPlatform(Arc::new(inner)), threads: Vec::new() })
    }

    /// The platform's handle.
    pub fn platform(&self) -> &ThreadPlatform {
        &self.platform
    }

    /// Puts the hardware in and starts the thread that steps it.
    pub fn set_hardware(&mut self, hardware: impl Hardware) {
        self.platform.0.hardware.lock().hardware = Some(Box::new(hardware));
        self.start(|p| p.0.step_hardware());
    }

    /// Has `handler` called, on a thread of its own, for each interrupt. Without one they are
    /// dropped.
    pub fn on_interrupt(&mut self, handler: impl Fn(&ThreadPlatform, Msi) + Send + 'static) {
        self.platform.0.hardware.lock().delivered = true;
        self.start(move |p| {
            while let Some(msi) = p.0.next_interrupt() {
                handler(p, msi);
            }
        });
    }

    /// Has `handler` called, on a thread of its own, when a time asked for with `timer_at` has come.
    pub fn on_timer(&mut self, handler: impl Fn(&ThreadPlatform) + Send + 'static) {
        self.start(move |p| {
            while p.0.timer_expires() {
                handler(p);
            }
        });
    }

    /// Starts `n` workers, which call `work` after a kick until it returns false.
    pub fn workers(&mut self, n: usize, work: impl Fn(&ThreadPlatform) -> bool + Send + Sync + 'static) {
        let work = Arc::new(work);
        for _ in 0..n {
            let work = work.clone();
            self.start(move |p| {
                let cx = Sleep::in_sleepable_context();
                let mut end = Woken::Notified;
                while end != Woken::Shutdown {
                    let seen = p.seen(&p.0.work);
                    while work(p) {}
                    end = p.wait(&cx, &p.0.work, seen, None);
                }
                while work(p) {}
            });
        }
    }

    /// Ends the run: every wait returns Shutdown, the threads come to their end, and the hardware
    /// is dropped.
    ///
    /// # Panics
    /// If one of the threads did.
    pub fn stop(mut self) {
        if let Err(panic) = self.shut_down() {
            resume_unwind(panic);
        }
    }

    fn start(&mut self, body: impl FnOnce(&ThreadPlatform) + Send + 'static) {
        let p = self.platform.clone();
        self.threads.push(thread::spawn(move || body(&p)));
    }

    fn shut_down(&mut self) -> thread::Result<()> {
        let inner = &self.platform.0;
        inner.bell.lock().shutdown = true;
        inner.rung.notify_all();
        inner.hardware.lock().shutdown = true;
        inner.touched.notify_all();
        inner.raised.notify_all();
        let ends: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        let hardware = inner.hardware.lock().hardware.take();
        drop(hardware);
        ends.into_iter().collect()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // `stop` tells about panics, for those who ask.
        let _ = self.shut_down();
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
        let hardware: &mut dyn Any = bench.hardware.as_deref_mut()?;
        let r = hardware.downcast_mut().map(f);
        drop(bench);
        self.0.touched.notify_one();
        r
    }
}

impl Inner {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn instant(&self, t: Time) -> Instant {
        self.start + Duration::from_nanos(t.0)
    }

    fn step_hardware(&self) {
        let mut work: Vec<HwWork> = Vec::new();
        let mut bench = self.hardware.lock();
        while !bench.shutdown {
            if bench.pending.len() >= INTERRUPTS_UNDER_WAY {
                self.touched.wait(&mut bench);
                continue;
            }
            let Some(hardware) = bench.hardware.as_deref_mut() else {
                return;
            };
            let now = self.now();
            work.clear();
            hardware.runnable(now, &mut work);
            for &step in &work {
                hardware.run(now, step);
            }
            let next = hardware.next_deadline(now);
            self.collect_interrupts(&mut bench);
            match next {
                // Registers can be accessed between two rounds.
                _ if !work.is_empty() => parking_lot::MutexGuard::bump(&mut bench),
                Some(t) => {
                    self.touched.wait_until(&mut bench, self.instant(t));
                }
                None => self.touched.wait(&mut bench),
            }
        }
    }

    fn next_interrupt(&self) -> Option<Msi> {
        let mut bench = self.hardware.lock();
        loop {
            if bench.shutdown {
                return None;
            }
            if !bench.pending.is_empty() {
                self.touched.notify_one();
                return Some(bench.pending.remove(0));
            }
            self.raised.wait(&mut bench);
        }
    }

    /// Waits for the timer. False at the end.
    fn timer_expires(&self) -> bool {
        let mut bell = self.bell.lock();
        loop {
            match bell.timer {
                _ if bell.shutdown => return false,
                Some(t) if t <= self.now() => {
                    bell.timer = None;
                    return true;
                }
                Some(t) => {
                    self.rung.wait_until(&mut bell, self.instant(t));
                }
                None => self.rung.wait(&mut bell),
            }
        }
    }

    /// Accesses a register; where nothing answers, nothing happens.
    fn access<R>(&self, access: impl FnOnce(&mut dyn Hardware, Time) -> R) -> Option<R> {
        let mut bench = self.hardware.lock();
        let hardware = bench.hardware.as_deref_mut()?;
        let r = access(hardware, self.now());
        self.collect_interrupts(&mut bench);
        self.touched.notify_one();
        Some(r)
    }

    fn collect_interrupts(&self, bench: &mut Bench) {
        let Bench { hardware, pending, delivered, .. } = bench;
        let Some(hardware) = hardware else { return };
        let before = pending.len();
        hardware.take_interrupts(pending);
        if !*delivered {
            pending.clear();
            return;
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
        if pending.len() > before {
            self.raised.notify_one();
        }
    }
}
