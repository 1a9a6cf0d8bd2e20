//! Drivers, core, models and devices put together.
//!
//! A machine runs either on [`sim`], where a seed decides every step and the clock is virtual, or
//! on [`threads`], on real threads and the real clock. Both are the same
//! [`Platform`](portcullis::Platform) over the same [`memory`] and the same [`hardware`].

pub mod costs;
pub mod hardware;
pub mod memory;
#[cfg(feature = "sim")]
pub mod sim;
pub mod threads;
