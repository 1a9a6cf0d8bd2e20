//! What the IOMMU manuals fix: registers, in-memory structures, commands and event records.
//!
//! The rule of this crate is *layout only*: a bit's place and an encoding's meaning belong here, the
//! order in which a driver stores them or what hardware does with them does not. Drivers and models
//! share these types, so each structure is held to golden bytes worked out by hand from its manual
//! (`tests/`), not from the code. Page-table entries are not here; they live with the page-table
//! formats.
//!
//! Conventions:
//! - A structure is a plain value over `u32`, `u64` or `u128` with a getter, `with_` and `set_` per
//!   field; `from_bits` takes any bits, `into_bits` gives them back unchanged.
//! - An address field is read and written as a full byte address; the bits below its alignment are
//!   dropped on writing. PASIDs and page request group indices are cut to their width. Any other
//!   `with_`/`set_` panics when the value is wider than its field, so values that a device controls
//!   never go through those.
//! - An encoding with reserved values is an enum whose `from_bits` returns `None` for them.
//! - `RESERVED` is the mask of bits that software must leave zero whatever the capabilities are;
//!   fields that are reserved by capability have a mask of their own where it matters.
//!
//! To add an IOMMU: a module named as its driver's folder, one file per concept of its manual, each
//! type and field with the section that defines it, and a test file with golden bytes.
//!
//! Sections in brackets: `[V]` is Intel's Virtualization Technology for Directed I/O specification,
//! revision 5.10.
#![no_std]
#![forbid(unsafe_code)]

pub mod vtd;
