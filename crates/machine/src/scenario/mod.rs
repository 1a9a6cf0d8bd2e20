//! Scenarios: whole machines at work, with the oracle watching.
//!
//! [`copy`] is the main one. The small ones stand in files by what they are about, run on a
//! [`stage`], and are listed in [`ALL`].

pub mod caches;
pub mod churn;
pub mod copy;
pub mod paging;
pub mod rogues;
pub mod room;
pub mod stage;
pub mod units;

use self::stage::{Ending, Setting};

/// A small scenario.
pub type Scenario = fn(&Setting) -> Ending;

/// The small scenarios, by name. Each expects a unit in scalable mode unless it sets its own.
pub const ALL: [(&str, Scenario); 19] = [
    ("page requests", paging::page_requests),
    ("pasids", paging::pasids),
    ("queue overflow", paging::queue_overflow),
    ("page request at detach", paging::request_at_detach),
    ("page requests switched off", paging::requests_switched_off),
    ("answer at detach", paging::answer_at_detach),
    ("reset with requests outstanding", paging::reset_with_requests),
    ("sleeping resolvers", paging::sleeping_resolvers),
    ("unmap", caches::unmap),
    ("device TLBs", caches::device_tlbs),
    ("domain switch", caches::domain_switch),
    ("tables wait for the sync", caches::tables_wait_for_the_sync),
    ("device TLB time-out", caches::device_tlb_timeout),
    ("unmap at attach", caches::unmap_at_attach),
    ("untrusted rogue", rogues::untrusted_rogue),
    ("flooding rogue", rogues::flooding_rogue),
    ("two devices", units::two_devices),
    ("fault record overflow", units::fault_overflow),
    ("churn", churn::churn),
];
