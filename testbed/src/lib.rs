//! The conformance suite, run over {driver} x {our model, QEMU}.
//!
//! - [`rig`] is a machine with a VT-d: our model in the simulation, or QEMU.
//! - [`stage`] is what scenarios are written in: it knows every byte that may change.
//! - [`scenarios`] are written once, for every rig and form; beside them [`deviations`] says where
//!   QEMU does otherwise than the manual.
//! - [`platform`], [`qemu`] and [`qtest`] are QEMU as a machine.

pub mod deviations;
pub mod platform;
pub mod qemu;
pub mod qtest;
pub mod rig;
pub mod scenarios;
pub mod stage;
