//! The hardware side of each IOMMU, the bus in front of it and the endpoints behind it.
//!
//! Everything here is a state machine without threads and without a clock: time is passed in as
//! nanoseconds, a step is taken when the caller says so, and two runs with equal seeds and equal
//! steps are equal to the last byte. [`complex::Complex`] owns the parts and says which steps are
//! possible; the caller (a simulation, a test, a real thread) decides which one comes next.
//!
//! What a manual lets hardware keep, the models keep: an invalidation removes exactly what the
//! manual obliges it to, so that a missing or too narrow one is visible. What a manual lets go
//! wrong, the [`adversary`] does, by seed.
#![forbid(unsafe_code)]

pub mod access;
pub mod adversary;
pub mod bus;
pub mod complex;
pub mod endpoint;
pub mod fabric;
mod hash;
pub mod iommu;
pub mod log;
pub mod memory;
pub mod mutation;
pub mod testing;
pub mod vtd;
