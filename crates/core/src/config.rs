//! Bounds and deadlines. Everything that a device can make grow has its limit here.

use crate::claim::DefaultKind;
#[cfg(feature = "planted")]
pub use crate::planted::Plant;
use crate::{error::ConfigError, stall::StallLimit, storm::Storms};
use core::{ops::RangeInclusive, time::Duration};

/// The limits of one [`Iommu`](crate::Iommu). What they size is allocated when it is made or when
/// a device is added, and never grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Devices that can be added to one instance.
    pub devices: usize,
    /// Attachments that can exist at once, those still detaching included.
    pub attachments: usize,
    /// Attachments of one device: its requester id and its PASIDs.
    pub attachments_per_device: usize,
    /// Page requests a device may have outstanding at most; its own limit may be lower. The shares
    /// of all devices together never exceed the hardware's queue less `credit_reserve`.
    pub credits_per_device: u32,
    /// Page requests that one attachment may have outstanding: a PASID, or the requester id.
    pub credits_per_attachment: u32,
    /// Page requests that all attachments of one domain may have outstanding, unless its options
    /// say otherwise. Instances lease them eight at a time.
    pub credits_per_owner: u32,
    /// Groups of one device of which the last request has not come.
    pub partials_per_device: u32,
    /// The same of all attachments of one domain.
    pub partials_per_owner: u32,
    /// Entries of the hardware's page-request queue kept out of the shares, for requests that
    /// nobody has a right to make, and for those that come again.
    pub credit_reserve: u32,
    /// Workers that the resolvers of one device may occupy at once; further attachments of it wait
    /// until one returns. Fewer than there are workers, so that a device whose resolvers sleep leaves
    /// some for the others.
    pub workers_per_device: u32,
    /// How long a page-request group may wait for its answer before the core answers Invalid;
    /// 1 to 100 s, or `None` for ever.
    pub group_deadline: Option<Duration>,
    /// How long the first requests of a group wait for the last one before they are dropped.
    pub partial_deadline: Duration,
    /// Stalled transactions that one instance keeps, where its hardware holds that many. What it has
    /// beyond waits in its queue.
    pub stalls: u32,
    /// Of these, the ones of one requester; further ones are terminated at once. They count against
    /// what an attachment and an owner may have outstanding too.
    pub stalls_per_device: u32,
    /// How long a stalled transaction may wait for its verdict before the core terminates it; `None`
    /// for ever. It occupies the hardware meanwhile.
    pub stall_deadline: Option<Duration>,
    /// When a device is not let stall any more.
    pub stall_limit: StallLimit,
    /// How long one hardware step may take before the hardware is given up. Must exceed the
    /// hardware's own time-out for device-TLB invalidations.
    pub hardware_deadline: Duration,
    /// What is done about devices that fault too much.
    pub storms: Storms,
    /// Observers that can exist at once.
    pub observers: usize,
    /// Fault records kept with each device, domain and instance, the last ones.
    pub last_faults: usize,
    /// Events of a domain's history that are kept to explain faults with: maps, unmaps and
    /// invalidations. 0 keeps none, and costs nothing.
    pub provenance: usize,
    /// What a group translates through while kernel drivers have it, where no device says otherwise.
    pub default_domain: DefaultKind,
    /// What becomes of an attach to a group of which a device is being reset.
    pub during_reset: DuringReset,
    /// Records that one service turn hands over at most.
    pub turn_budget: usize,
    /// Races that tests plant, to show that the simulation finds them.
    #[cfg(feature = "planted")]
    pub plant: Option<Plant>,
}

/// What becomes of an attach or a replace while a device of the group is parked. Detaches go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuringReset {
    /// It waits for the end.
    Wait,
    /// It is refused, and names the device.
    Refuse,
}

/// The shortest time that a page-request group waits for its answer, and the longest.
const GROUP_DEADLINE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(100);

impl Config {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        match self.group_deadline {
            Some(d) if !GROUP_DEADLINE.contains(&d) => Err(ConfigError::GroupDeadline(d)),
            _ => Ok(()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            devices: 256,
            attachments: 1024,
            attachments_per_device: 64,
            credits_per_device: 32,
            credits_per_attachment: 32,
            credits_per_owner: 1024,
            partials_per_device: 32,
            partials_per_owner: 256,
            credit_reserve: 8,
            workers_per_device: 2,
            group_deadline: Some(Duration::from_secs(10)),
            partial_deadline: Duration::from_secs(1),
            stalls: 64,
            stalls_per_device: 16,
            stall_deadline: Some(Duration::from_secs(1)),
            stall_limit: StallLimit::default(),
            hardware_deadline: Duration::from_secs(120),
            storms: Storms::default(),
            observers: 64,
            last_faults: 8,
            provenance: 0,
            default_domain: DefaultKind::Translating,
            during_reset: DuringReset::Wait,
            turn_budget: 64,
            #[cfg(feature = "planted")]
            plant: None,
        }
    }
}
