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
use crate::sim::{Sim, SimPlatform};
use portcullis::{InstanceId, Iommu, Sleep};
use portcullis_drivers::vtd::{Msi, Options};

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

/// Data of the IOMMU's page-request interrupt.
pub const PAGE_REQUEST_EVENT: u16 = 0x32;

/// Interrupts, the timer and the workers call the core, as a kernel's do.
pub(crate) fn wire(sim: &mut Sim, iommu: &Iommu<SimPlatform>, workers: usize) {
    let instance = InstanceId(0);
    let core = iommu.clone();
    sim.on_interrupt(move |_, _| {
        if core.interrupt(instance) {
            core.service(instance);
        }
    });
    let core = iommu.clone();
    sim.on_timer(move |_| core.tick());
    let core = iommu.clone();
    sim.workers(workers.max(1), move |_| core.run_one(&Sleep::in_sleepable_context()));
}

/// `options` with a message for each of the unit's events.
pub(crate) fn interrupts(options: Options) -> Options {
    let msi = |data| Some(Msi { address: 0xfee0_0000, data });
    Options {
        fault_event: msi(0x30),
        invalidation_event: msi(0x31),
        page_request_event: msi(PAGE_REQUEST_EVENT),
        ..options
    }
}
