//! The fuzzers' targets: each a function of bytes that must return, whatever the bytes are.
//!
//! `cargo xtask fuzz` builds them with coverage and runs libFuzzer over them; this crate's test runs
//! what is kept in `corpus/` without either.

mod bytes;
pub mod dmar;
pub mod intake;
pub mod pgtable;
pub mod vtd;

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by the names of their fuzzers and of their folders in `corpus/`.
pub const TARGETS: [(&str, Target); 4] =
    [("dmar", dmar::run), ("vtd", vtd::run), ("intake", intake::run), ("pgtable", pgtable::run)];
