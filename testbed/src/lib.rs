//! The conformance suite, run over {driver} x {our model, QEMU}.

pub mod qemu;
pub mod qtest;
