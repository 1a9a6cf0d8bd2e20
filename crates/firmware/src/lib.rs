//! What firmware says of IOMMUs.
//!
//! [`acpi`] finds tables, [`dmar`] reads the one that tells of VT-d, and [`Topology`] is what the
//! core needs of it: the units, which unit serves which device, the memory that devices must always
//! reach, and which device TLBs are wanted. All of it takes bytes and gives values; nothing here
//! reaches memory or configuration space by itself, so that a kernel, a VMM and a fuzzer use the
//! same lines.
//!
//! Firmware is input like any other: whatever it says, reading ends with a value or an error that
//! names the offset and the reason.
//!
//! `[V]` is Intel's VT-d specification, revision 5.10.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod acpi;
pub mod dmar;

mod malformed;
mod reader;
mod topology;

pub use malformed::{Malformed, Why};
pub use topology::{
    Atc, Bridges, Contradiction, NamespaceDevice, PlatformSource, PlatformSourceKind, Remark, Topology, Unit,
};
