//! The lock of a machine without threads, or with one that never sleeps with it.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use portcullis::ShortLock;

use crate::cpu;

/// A spin lock, held with interrupts off: a handler on the same CPU that wanted it would spin for
/// ever otherwise.
pub struct SpinLock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `with` lets one caller at a time reach the value (T: Send), and `taken` orders them.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> From<T> for SpinLock<T> {
    fn from(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: value.into() }
    }
}

impl<T: Send> ShortLock<T> for SpinLock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        cpu::without_interrupts(|| {
            while self.taken.swap(true, Ordering::Acquire) {
                core::hint::spin_loop();
            }
            // SAFETY: whoever set `taken` is alone until it is cleared below, which every way out
            // of `f` comes to: a panic ends the image.
            let result = f(unsafe { &mut *self.value.get() });
            self.taken.store(false, Ordering::Release);
            result
        })
    }
}
