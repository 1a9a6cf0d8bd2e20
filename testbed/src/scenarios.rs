//! Scenarios, each written once for every rig and form.
//!
//! What they say is checked by the [`Stage`](crate::stage::Stage) sentence by sentence, the bytes of
//! all memory around included. Where QEMU does otherwise than the manual, a scenario names the entry
//! of [`deviations`](crate::deviations) and says what happens instead.

mod access;
mod attaching;
mod dirty;
mod entries;
mod faults;
mod invalidation;

pub use access::{a_read_only_page, huge_pages, identity, large_pages, large_transfers, scattered_pages};
pub use attaching::{
    blocked_until_attached, detached, direct_region, domain_switch, one_domain_for_two, reset,
    switch_to_identity, switch_to_nothing, two_devices_two_domains,
};
pub use dirty::dirty_pages;
pub use entries::{address_width_of_a_first_stage, end_of_pass_through, pasid_directories, present_bit};
pub use faults::{faults_of_two_devices, too_wide, unknown_device, unmapped};
pub use invalidation::{
    a_refused_descriptor, large_page_becomes_small_ones, stale_until_synced, tables_are_freed_after_the_sync,
    the_queue_wraps, unmap_leaves_neighbours,
};
