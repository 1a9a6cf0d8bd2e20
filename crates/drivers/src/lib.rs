//! The OS side of each IOMMU, one folder per vendor, each behind a feature of its name.
//!
//! A driver is generic over the embedder's [`Platform`](portcullis::Platform) and implements
//! [`Driver`](portcullis::driver::Driver). It never waits and never calls out, and its source does
//! not know whether a register is silicon, a model or a socket.
#![no_std]
#![cfg_attr(not(test), forbid(unsafe_code))]
extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(feature = "vtd")]
pub mod vtd;
