//! Every atomic, cell, ring and slot word that more than one core touches.
//!
//! The same sources run on the real atomics, on loom's (`--cfg portcullis_loom`), on shuttle's
//! (`--cfg portcullis_shuttle`), and, with the feature `hook`, on real atomics whose every
//! operation is a preemption point of a simulation.
#![no_std]
extern crate alloc;

pub mod atomic;
mod cell;
pub mod census;
pub mod errand;
#[cfg(feature = "hook")]
pub mod hook;
pub mod inbox;
pub mod lookup;
#[cfg(portcullis_loom)]
pub mod mutate;
#[cfg(not(portcullis_loom))]
#[allow(dead_code, reason = "a list for loom's tests")]
mod mutate;
pub mod records;
pub mod ring;
pub mod roster;
pub mod slot;
pub mod tenants;
pub mod turnstile;
pub mod wide;
