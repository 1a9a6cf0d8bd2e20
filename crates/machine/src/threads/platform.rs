//! The threads as a platform.

use super::{ThreadEvent, ThreadLock, ThreadPlatform};
use crate::hardware::{Hardware, Width};
use parking_lot::Mutex;
use portcullis::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};
use std::sync::atomic::Ordering;

impl<T: Send> ShortLock<T> for ThreadLock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock())
    }
}

impl Platform for ThreadPlatform {
    type Lock<T: Send + 'static> = ThreadLock<T>;
    type Event = ThreadEvent;

    fn lock<T: Send + 'static>(&self, value: T) -> ThreadLock<T> {
        ThreadLock(Mutex::new(value))
    }

    fn event(&self) -> ThreadEvent {
        ThreadEvent::default()
    }

    fn seen(&self, event: &ThreadEvent) -> Seen {
        Seen(event.0.load(Ordering::SeqCst))
    }

    fn wait(&self, _: &Sleep<'_>, event: &ThreadEvent, seen: Seen, until: Option<Time>) -> Woken {
        let mut bell = self.0.bell.lock();
        loop {
            if bell.shutdown {
                return Woken::Shutdown;
            }
            if event.0.load(Ordering::SeqCst) != seen.0 {
                return Woken::Notified;
            }
            match until {
                Some(t) if t <= self.0.now() => return Woken::Deadline,
                Some(t) => {
                    self.0.rung.wait_until(&mut bell, self.0.instant(t));
                }
                None => self.0.rung.wait(&mut bell),
            }
        }
    }

    fn notify(&self, event: &ThreadEvent) {
        // Under the lock, so that it does not fall between a waiter's look and its sleep.
        let bell = self.0.bell.lock();
        event.0.fetch_add(1, Ordering::SeqCst);
        drop(bell);
        self.0.rung.notify_all();
    }

    fn now(&self) -> Time {
        self.0.now()
    }

    fn timer_at(&self, at: Time) {
        let mut bell = self.0.bell.lock();
        bell.timer = Some(bell.timer.map_or(at, |earlier| earlier.min(at)));
        drop(bell);
        self.0.rung.notify_all();
    }

    fn random(&self) -> u64 {
        self.0.random.lock().u64(..)
    }

    fn kick(&self) {
        self.notify(&self.0.work);
    }

    fn read32(&self, window: Window, offset: u32) -> u32 {
        let read = |h: &mut dyn Hardware, now| h.mmio_read(now, window, offset, Width::Dword);
        self.0.access(read).unwrap_or(u64::MAX) as u32
    }

    fn write32(&self, window: Window, offset: u32, value: u32) {
        self.0.access(|h, now| h.mmio_write(now, window, offset, Width::Dword, value.into()));
    }

    fn read64(&self, window: Window, offset: u32) -> u64 {
        let read = |h: &mut dyn Hardware, now| h.mmio_read(now, window, offset, Width::Qword);
        self.0.access(read).unwrap_or(u64::MAX)
    }

    fn write64(&self, window: Window, offset: u32, value: u64) {
        self.0.access(|h, now| h.mmio_write(now, window, offset, Width::Qword, value));
    }
}

crate::table_mem_of_ram!(ThreadPlatform);
