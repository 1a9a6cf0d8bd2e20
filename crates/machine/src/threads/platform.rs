//! The threads as a platform.

use super::{ThreadEvent, ThreadLock, ThreadPlatform};
use crate::hardware::Width;
use parking_lot::Mutex;
use portcullis::{Platform, Seen, ShortLock, Sleep, Time, Window, Woken};

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
        self.0.bells.event()
    }

    fn seen(&self, event: &ThreadEvent) -> Seen {
        Seen(event.seen())
    }

    fn wait(&self, _: &Sleep<'_>, event: &ThreadEvent, seen: Seen, until: Option<Time>) -> Woken {
        self.0.bells.wait(event, seen.0, until.map(|t| self.0.instant(t)))
    }

    fn notify(&self, event: &ThreadEvent) {
        self.0.bells.notify(event);
    }

    fn now(&self) -> Time {
        self.0.now()
    }

    fn timer_at(&self, at: Time) {
        self.0.timer.at(at);
    }

    fn random(&self) -> u64 {
        self.0.random.lock().u64(..)
    }

    fn kick(&self) {
        self.0.bells.notify(self.0.bells.work());
    }

    fn read32(&self, window: Window, offset: u32) -> u32 {
        self.0.read(window, offset, Width::Dword) as u32
    }

    fn write32(&self, window: Window, offset: u32, value: u32) {
        self.0.write(window, offset, Width::Dword, value.into());
    }

    fn read64(&self, window: Window, offset: u32) -> u64 {
        self.0.read(window, offset, Width::Qword)
    }

    fn write64(&self, window: Window, offset: u32, value: u64) {
        self.0.write(window, offset, Width::Qword, value);
    }
}

crate::table_mem_of_ram!(ThreadPlatform);
