//! A page for each concept, with examples that compile.
//!
//! | concept | in short |
//! |---|---|
//! | [`platform`] | what the embedder provides, and in which context what runs |
//! | [`devices`] | instances, devices, groups, reserved regions |
//! | [`domains`] | who owns an IOVA space; mapping and unmapping |
//! | [`attachments`] | attach, replace, detach |
//! | [`page_requests`] | pages that come when a device asks for them |
//! | [`responses`] | answers that come later, or as numbers |
//! | [`address_spaces`] | PASIDs, and devices that use a process's pointers |
//! | [`faults`] | observers, fault records, explanations |
//! | [`resets`] | resets, quarantine, lost hardware |
//! | [`stall`] | transactions that are held where they fault |
//! | [`storms`] | devices that fault too much |

#[doc = include_str!("../docs/address_spaces.md")]
pub mod address_spaces {}
#[doc = include_str!("../docs/attachments.md")]
pub mod attachments {}
#[doc = include_str!("../docs/devices.md")]
pub mod devices {}
#[doc = include_str!("../docs/domains.md")]
pub mod domains {}
#[doc = include_str!("../docs/faults.md")]
pub mod faults {}
#[doc = include_str!("../docs/page_requests.md")]
pub mod page_requests {}
#[doc = include_str!("../docs/platform.md")]
pub mod platform {}
#[doc = include_str!("../docs/resets.md")]
pub mod resets {}
#[doc = include_str!("../docs/responses.md")]
pub mod responses {}
#[doc = include_str!("../docs/stall.md")]
pub mod stall {}
#[doc = include_str!("../docs/storms.md")]
pub mod storms {}
