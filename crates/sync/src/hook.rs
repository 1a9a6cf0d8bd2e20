//! Where a simulation gets control, and a test counts: before every atomic operation of this crate's
//! types.
//!
//! Exists with the feature `hook` only. The registered function belongs to the process, because
//! atomics know no platform; it finds out itself whether the calling thread simulates anything.
#![allow(unsafe_code, reason = "a function pointer is kept in an atomic word")]

use core::sync::atomic::{AtomicPtr, Ordering};

/// What an atomic operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A load or a store.
    Access,
    /// A read-modify-write, whether it changes anything or not: what costs as much as a lock.
    Update,
    /// A fence.
    Fence,
}

static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Has `f` called before every atomic operation from now on, in every thread. A later call
/// replaces the function.
pub fn register(f: fn(Op)) {
    HOOK.store(f as *mut (), Ordering::Relaxed);
}

/// A preemption point: calls the registered function, if there is one.
#[inline]
pub fn point(op: Op) {
    let f = HOOK.load(Ordering::Relaxed);
    if !f.is_null() {
        // SAFETY: the only store of a non-null value is in `register`, from a `fn(Op)`, and a
        // function lives as long as the program: no ordering is needed to see it whole.
        let f = unsafe { core::mem::transmute::<*mut (), fn(Op)>(f) };
        f(op);
    }
}
