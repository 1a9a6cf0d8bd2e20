//! Scenarios: whole machines at work, with the oracle watching.
//!
//! [`copy`] is the main one. The others stand in files by what they are about, run on a [`stage`],
//! and are listed in [`ALL`].

pub mod actor;
pub mod caches;
pub mod churn;
pub mod copy;
pub mod migration;
pub mod owners;
pub mod paging;
pub mod private_data;
pub mod register;
pub mod rogues;
pub mod room;
pub mod space;
pub mod stage;
pub mod storms;
pub mod units;

use self::stage::{Ending, Setting};

/// A scenario that runs on a stage.
pub type Scenario = fn(&Setting) -> Ending;

/// A scenario that can be asked for by name.
#[derive(Clone, Copy)]
pub struct Listed {
    /// Its name.
    pub name: &'static str,
    /// What happens in it, in a line.
    pub about: &'static str,
    /// The scenario.
    pub run: Scenario,
    /// What its size counts, where it can be chosen.
    pub size: Option<Amount>,
    /// The same of its devices.
    pub devices: Option<Amount>,
}

/// A number that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// What is counted.
    pub of: &'static str,
    /// How many, where nobody says.
    pub usual: usize,
    /// How many at least.
    pub least: usize,
    /// How many at most.
    pub most: usize,
}

impl Listed {
    /// Its name as one word, for a command line.
    pub fn word(&self) -> String {
        self.name.replace(' ', "-")
    }
}

const fn small(name: &'static str, run: Scenario, about: &'static str) -> Listed {
    Listed { name, about, run, size: None, devices: None }
}

/// The scenarios that run on a stage, by name. Each expects a unit in scalable mode unless it sets
/// its own.
pub const ALL: [Listed; 28] = [
    Listed {
        name: "churn",
        about: "devices and PASIDs attached, bound, replaced, detached, reset and unplugged while data flows",
        run: churn::churn,
        size: Some(churn::SIZE),
        devices: Some(churn::DEVICES),
    },
    Listed {
        name: "register",
        about: "memory registered by key and deregistered while devices work, beside a user of bad keys",
        run: register::register,
        size: Some(register::SIZE),
        devices: Some(register::USERS),
    },
    small(
        "page requests",
        paging::page_requests,
        "a device pages its memory in, by requester id and in a PASID",
    ),
    small("pasids", paging::pasids, "three address spaces of one device, of which one ends"),
    small(
        "queue overflow",
        paging::queue_overflow,
        "a flood overflows the page-request queue beside an honest device",
    ),
    small(
        "page request at detach",
        paging::request_at_detach,
        "a device is detached with requests everywhere on the way",
    ),
    small(
        "page requests switched off",
        paging::requests_switched_off,
        "requests on their way when page requests end",
    ),
    small("answer at detach", paging::answer_at_detach, "a resolver answers while a detach answers for it"),
    small(
        "reset with requests outstanding",
        paging::reset_with_requests,
        "a reset makes requests void, late answers are discarded",
    ),
    small("sleeping resolvers", paging::sleeping_resolvers, "more resolvers that sleep than workers"),
    small("unmap", caches::unmap, "pages are unmapped under a device without ATS"),
    small("device TLBs", caches::device_tlbs, "pages are unmapped under devices that cache translations"),
    small(
        "domain switch",
        caches::domain_switch,
        "a device goes from domain to domain at the same addresses",
    ),
    small(
        "tables wait for the sync",
        caches::tables_wait_for_the_sync,
        "a table taken out is not reused before the sync",
    ),
    small(
        "device TLB time-out",
        caches::device_tlb_timeout,
        "devices that do not answer invalidations are cut off",
    ),
    small(
        "migration",
        migration::migration,
        "memory is copied while devices write to it, by what is told as dirty",
    ),
    small(
        "unmap at attach",
        caches::unmap_at_attach,
        "a domain is unmapped while a device is attached to it",
    ),
    small(
        "untrusted rogue",
        rogues::untrusted_rogue,
        "a device that forges requests beside a neighbour's memory",
    ),
    small(
        "flooding rogue",
        rogues::flooding_rogue,
        "a device that floods page requests beside an honest one",
    ),
    small(
        "private data",
        private_data::private_data,
        "page requests with bits that come back with the answer (VT-d 3.x)",
    ),
    small(
        "storm",
        storms::storm,
        "devices that flood and fault beside honest ones, who are served as before",
    ),
    small("stuck resolver", storms::stuck_resolver, "a resolver that does not return delays nobody's detach"),
    small("two devices", units::two_devices, "two devices, the same addresses, different memory"),
    small("fault record overflow", units::fault_overflow, "more faults than the unit has records"),
    small("kernel DMA", owners::kernel_dma, "buffers of the DMA API go to a device and back"),
    small(
        "user object",
        owners::user_object,
        "page requests wait for a process, a doorbell is reached through the MSI window",
    ),
    small(
        "address space",
        owners::address_space,
        "two devices share an address space of the CPU, which exits in the middle of their DMA",
    ),
    small("identity", owners::identity, "a device reaches memory at its own address"),
];
