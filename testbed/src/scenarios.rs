//! Scenarios, each written once for every rig and form.

pub mod basic;
