//! Page tables of every format: one binary, because each would compile all formats again. Apart is
//! `loom`, which has atomics of its own.
#![cfg(not(any(portcullis_loom, portcullis_shuttle)))]

mod change;
mod common;
mod dump;
mod engine;
mod exhaustive;
mod golden;
mod model;
mod races;
mod spaces;
