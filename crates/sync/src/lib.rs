//! Every atomic, cell, ring and slot word that more than one core touches.
#![no_std]
extern crate alloc;

pub mod gate;
pub mod slot;

/// Atomics: the real ones, loom's, or shuttle's, by one switch.
pub mod atomic {
    pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}
