//! Scenarios: whole machines at work, with the oracle watching.

pub mod copy;
