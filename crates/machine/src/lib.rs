//! Drivers, core, models and devices put together.
//!
//! A machine runs either on [`sim`], where a seed decides every step and the clock is virtual, or
//! on [`threads`], on real threads and the real clock. Both are the same
//! [`Platform`](portcullis::Platform) over the same [`memory`] and the same [`hardware`].

pub mod board;
pub mod costs;
#[cfg(feature = "sim")]
pub mod function;
pub mod hardware;
#[cfg(feature = "sim")]
pub mod life;
#[cfg(feature = "sim")]
pub mod machine;
pub mod memory;
#[cfg(feature = "sim")]
pub mod oracle;
#[cfg(feature = "sim")]
pub mod pager;
#[cfg(feature = "sim")]
pub mod report;
#[cfg(feature = "sim")]
pub mod scenario;
#[cfg(feature = "sim")]
pub mod sim;
pub mod threads;
