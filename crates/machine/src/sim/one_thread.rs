//! A value that one thread uses, inside of types that must be `Sync`.
#![allow(unsafe_code, reason = "Sync is promised on the strength of a check at every access")]

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

/// A value that only the thread that made it can reach; any other gets a panic.
///
/// All of a simulation runs on one thread, but [`Platform`](portcullis::Platform) asks for `Sync`.
#[derive(Debug)]
pub(super) struct OneThread<T> {
    owner: u64,
    value: T,
}

// SAFETY: a shared reference to the value is given out by `get` only, to the thread `owner` only;
// numbers of threads are never used again. So no two threads have references at the same time. The
// value may be dropped, or moved with the whole, by another thread: T is Send.
unsafe impl<T: Send> Sync for OneThread<T> {}

impl<T> OneThread<T> {
    pub(super) fn new(value: T) -> OneThread<T> {
        OneThread { owner: this_thread(), value }
    }

    #[inline]
    pub(super) fn get(&self) -> &T {
        assert!(self.owner == this_thread(), "a simulation is used from a thread that did not make it");
        &self.value
    }
}

#[inline]
fn this_thread() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    match NUMBER.get() {
        0 => {
            let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
            NUMBER.set(number);
            number
        }
        number => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "from a thread that did not make it")]
    fn another_thread_is_refused() {
        let value = OneThread::new(Cell::new(1));
        value.get().set(2);
        let other = std::thread::scope(|s| s.spawn(|| value.get().get()).join());
        if let Err(panic) = other {
            std::panic::resume_unwind(panic);
        }
    }
}
