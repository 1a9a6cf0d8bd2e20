//! QEMU as a platform: its memory is mapped, its registers are reached over qtest.
//!
//! There is no thread behind it. Nothing arrives as an interrupt: whoever drives the machine asks
//! for service turns, and plays the worker and the timer, by [`QemuPlatform::timer_is_due`] and
//! [`QemuPlatform::was_kicked`].

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use portcullis::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
use portcullis_machine::memory::{MemoryError, Ram};
use portcullis_pgtable::TableMem;

use crate::qemu::{Qemu, VTD_REGISTERS};
use crate::qtest::{Qtest, QtestError};

/// The window that the registers of the VT-d are in.
pub const VTD: Window = Window(0);

/// The handle that driver and core get. Clones name the same QEMU.
#[derive(Clone)]
pub struct QemuPlatform(Arc<Inner>);

struct Inner {
    ram: Ram,
    qtest: Arc<Qtest>,
    start: Instant,
    hasher: RandomState,
    drawn: AtomicU64,
    /// Held between a waiter's last look and its sleep, and for each notification.
    bell: Mutex<()>,
    rung: Condvar,
    timer: Mutex<Option<Time>>,
    kicked: AtomicBool,
}

/// Something to wait for.
#[derive(Debug, Default)]
pub struct QemuEvent(AtomicU64);

/// A short lock.
#[derive(Debug, Default)]
pub struct QemuLock<T>(Mutex<T>);

impl fmt::Debug for QemuPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QemuPlatform").field("ram", &self.0.ram).finish_non_exhaustive()
    }
}

impl QemuPlatform {
    /// The platform of a QEMU, which must outlive it; its frames are those of [`Qemu::ram`].
    ///
    /// # Errors
    /// As [`Qemu::ram`].
    pub fn new(qemu: &Qemu) -> Result<Self, MemoryError> {
        Ok(Self(Arc::new(Inner {
            ram: qemu.ram()?,
            qtest: qemu.qtest().clone(),
            start: Instant::now(),
            hasher: RandomState::new(),
            drawn: AtomicU64::new(0),
            bell: Mutex::new(()),
            rung: Condvar::new(),
            timer: Mutex::new(None),
            kicked: AtomicBool::new(false),
        })))
    }

    /// The memory that tables and pages come from.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.0.ram
    }

    /// Whether a time asked for by `timer_at` has come, once: the caller then calls
    /// [`Iommu::tick`](portcullis::Iommu::tick).
    #[must_use]
    pub fn timer_is_due(&self) -> bool {
        let now = self.now();
        self.0.timer.lock().take_if(|at| *at <= now).is_some()
    }

    /// Whether there was a kick since the last call: the caller then calls
    /// [`Iommu::run_one`](portcullis::Iommu::run_one) until it returns false.
    #[must_use]
    pub fn was_kicked(&self) -> bool {
        self.0.kicked.swap(false, Ordering::SeqCst)
    }

    /// Accesses a register by `access`; other windows are empty.
    ///
    /// # Panics
    /// When QEMU is gone: no test can go on.
    fn register<T>(
        &self,
        window: Window,
        offset: u32,
        access: impl FnOnce(&Qtest, u64) -> Result<T, QtestError>,
    ) -> Option<T> {
        if window != VTD {
            return None;
        }
        match access(&self.0.qtest, VTD_REGISTERS + u64::from(offset)) {
            Ok(value) => Some(value),
            Err(error) => panic!("the VT-d's register at {offset:#x}: {error:?}"),
        }
    }
}

impl<T: Send> ShortLock<T> for QemuLock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock())
    }
}

impl Platform for QemuPlatform {
    type Lock<T: Send + 'static> = QemuLock<T>;
    type Event = QemuEvent;

    fn lock<T: Send + 'static>(&self, value: T) -> QemuLock<T> {
        QemuLock(Mutex::new(value))
    }

    fn event(&self) -> QemuEvent {
        QemuEvent::default()
    }

    fn seen(&self, event: &QemuEvent) -> Seen {
        Seen(event.0.load(Ordering::SeqCst))
    }

    fn wait(&self, _: &Sleep<'_>, event: &QemuEvent, seen: Seen, until: Option<Time>) -> Woken {
        let mut bell = self.0.bell.lock();
        while event.0.load(Ordering::SeqCst) == seen.0 {
            match until {
                None => self.0.rung.wait(&mut bell),
                Some(t) if t <= self.now() => return Woken::Deadline,
                Some(t) => {
                    let at = self.0.start + Duration::from_nanos(t.0);
                    self.0.rung.wait_until(&mut bell, at);
                }
            }
        }
        Woken::Notified
    }

    fn notify(&self, event: &QemuEvent) {
        let bell = self.0.bell.lock();
        event.0.fetch_add(1, Ordering::SeqCst);
        drop(bell);
        self.0.rung.notify_all();
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.0.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn timer_at(&self, at: Time) {
        let mut timer = self.0.timer.lock();
        *timer = Some(timer.map_or(at, |earlier| earlier.min(at)));
    }

    fn random(&self) -> u64 {
        self.0.hasher.hash_one(self.0.drawn.fetch_add(1, Ordering::Relaxed))
    }

    fn kick(&self) {
        self.0.kicked.store(true, Ordering::SeqCst);
    }

    fn read32(&self, window: Window, offset: u32) -> u32 {
        self.register(window, offset, Qtest::read32).unwrap_or(u32::MAX)
    }

    fn write32(&self, window: Window, offset: u32, value: u32) {
        self.0.ram.barrier();
        self.register(window, offset, |q, at| q.write32(at, value));
    }

    fn read64(&self, window: Window, offset: u32) -> u64 {
        self.register(window, offset, Qtest::read64).unwrap_or(u64::MAX)
    }

    fn write64(&self, window: Window, offset: u32, value: u64) {
        self.0.ram.barrier();
        self.register(window, offset, |q, at| q.write64(at, value));
    }
}

portcullis_machine::table_mem_of_ram!(QemuPlatform);
