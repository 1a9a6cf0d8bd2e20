//! Drivers, core, models and devices put together.
//!
//! A machine runs either on [`sim`], where a seed decides every step and the clock is virtual, or
//! on [`threads`], on real threads and the real clock. Both are the same
//! [`Platform`](portcullis::Platform) over the same [`memory`] and the same [`hardware`], and
//! [`platform::AnyPlatform`] is whichever was chosen: a [`machine::Machine`], its pager, its oracle
//! and every scenario are written once for both.

pub mod board;
pub mod costs;
pub mod function;
pub mod hardware;
pub mod life;
pub mod machine;
pub mod memory;
pub mod oracle;
pub mod pager;
pub mod platform;
#[cfg(unix)]
pub mod qtest;
pub mod report;
pub mod runner;
#[cfg(feature = "sim")]
pub mod scenario;
#[cfg(feature = "sim")]
pub mod sim;
pub mod threads;
pub mod trace;
pub mod watch;
