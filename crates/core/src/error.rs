//! Why something was refused. Every error says which object, which range and why.

pub use crate::stall::StallError;
use crate::{
    claim::DefaultKind,
    driver::{HwLost, Incompatible, PrepareError, StartError},
    ids::{At, DeviceId, GroupId, InstanceId, Key, OwnerId, Pasid, SourceId},
};
use portcullis_pgtable::{DirtyError, MapError, Phys};

/// No memory for one of the core's own records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// Why an observer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// As many observers exist as [`Config::observers`](crate::Config::observers) allows.
    #[error("{limit} observers exist already, as many as are configured")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// No memory for its queue.
    #[error("no memory for the observer's queue")]
    OutOfMemory,
}

/// Why there is no [`Iommu`](crate::Iommu).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No memory for what the configuration sizes.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A page-request group waits 1 to 100 s for its answer, or for ever.
    #[error("a page-request group cannot wait {0:?} for its answer: 1 s to 100 s, or none")]
    GroupDeadline(core::time::Duration),
}

/// Why an instance was not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The id is taken.
    #[error("{0} is registered already")]
    Duplicate(InstanceId),
    /// The hardware could not be brought up.
    #[error("{0} did not start: {1}")]
    Start(InstanceId, #[source] StartError),
    /// No memory for its records.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The platform ends.
    #[error("the platform is shutting down")]
    Shutdown,
}

/// A device that nothing can be attached to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotUp {
    /// No IOMMU stands before it: what it sends reaches memory as it is.
    #[error("{0} has no IOMMU")]
    NoIommu(DeviceId),
    /// Its instance is not registered yet.
    #[error("{device} waits for {instance}")]
    Waiting {
        /// The device.
        device: DeviceId,
        /// The instance.
        instance: InstanceId,
    },
    /// Its instance could not take it when it came up; see
    /// [`Device::state`](crate::Device::state).
    #[error("{0} was refused by its IOMMU")]
    Refused(DeviceId),
    /// It was removed.
    #[error("{0} was removed")]
    Removed(DeviceId),
}

/// Why a device was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddDeviceError {
    /// The device's id or one of its requester ids is known already.
    #[error("{0} or one of its requester ids is known already")]
    Duplicate(DeviceId),
    /// It names an instance, but no id that it is known by there.
    #[error("{0} has no requester id at its IOMMU")]
    NoSource(DeviceId),
    /// It stands behind several instances, which this version does not serve.
    #[error("{0} is behind several IOMMU instances, which would have to be attached as one")]
    SeveralInstances(DeviceId),
    /// Its group has a member behind another instance: the group could not be attached as one.
    #[error("{device} and {other} are in one group, behind different IOMMU instances")]
    GroupSpans {
        /// The device.
        device: DeviceId,
        /// The member that is elsewhere.
        other: DeviceId,
    },
    /// It cannot be attached to what its group is attached to.
    #[error("{device} cannot join {group}: {why}")]
    Join {
        /// The device.
        device: DeviceId,
        /// Its group.
        group: GroupId,
        /// Why not.
        why: AttachError,
    },
    /// Kernel drivers have its group, with a default domain that is laxer than policy allows once the
    /// device is a member.
    #[error("{device} cannot join {group}: its drivers have {has:?} as default domain, and {wants:?} is due")]
    LaxDefault {
        /// The device.
        device: DeviceId,
        /// Its group.
        group: GroupId,
        /// The default domain as it is.
        has: DefaultKind,
        /// What it would have to be.
        wants: DefaultKind,
    },
    /// It has a requester id in common with another, and one of them uses ATS under it: nobody
    /// could say whose TLB holds what.
    #[error("{device} has {source_id} in common with another device, and one of them has ATS")]
    SharedId {
        /// The device.
        device: DeviceId,
        /// The id.
        source_id: SourceId,
    },
    /// The instance serves as many devices as it was configured for.
    #[error("{0} has no room for another device")]
    TooMany(InstanceId),
    /// A direct region (RMRR) could not be mapped.
    #[error("direct region at {start:#x} could not be mapped: {why}")]
    Direct {
        /// First address of the region.
        start: u64,
        /// Why not.
        why: MapError,
    },
    /// The driver refused it.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// No memory for its records.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The hardware is gone.
    #[error(transparent)]
    Lost(#[from] HwLost),
    /// The platform ends.
    #[error("the platform is shutting down")]
    Shutdown,
}

/// Why a domain was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// The driver cannot make such a table.
    #[error(transparent)]
    Table(#[from] PrepareError),
    /// The devices named have no table format in common.
    #[error("{device} cannot use it: {why}")]
    Incompatible {
        /// The device that does not fit.
        device: DeviceId,
        /// Why not.
        why: Incompatible,
    },
    /// No device was named.
    #[error("a domain is made for at least one device")]
    NoDevice,
    /// The address space has a domain already: its handle is cloned.
    #[error("the address space has a domain already")]
    SharedAlready,
    /// No PASID is left for another address space.
    #[error("no PASID is left")]
    NoPasid,
    /// The parent belongs to another [`Iommu`](crate::Iommu).
    #[error("the parent domain belongs to another IOMMU subsystem")]
    Foreign,
    /// The MSI window cannot be where it was wanted.
    #[error("no MSI window of {len:#x} bytes at {base:#x}: {why}")]
    MsiWindow {
        /// First IOVA asked for.
        base: u64,
        /// Bytes asked for.
        len: u64,
        /// Why not.
        why: &'static str,
    },
    /// A device has no IOMMU that could walk a table, or not yet.
    #[error(transparent)]
    NotUp(#[from] NotUp),
    /// No memory for its records.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why an attach was refused. The device is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The device, or another member of its group, cannot be attached to anything now.
    #[error(transparent)]
    NotUp(#[from] NotUp),
    /// Something is attached there: replace it instead.
    #[error("{0} has an attachment already")]
    Occupied(At),
    /// Somebody outside the kernel has claimed the group, or has not: it attaches through the handle
    /// of its claim, and nobody else does.
    #[error("{0} is not this caller's to attach")]
    NotOwner(GroupId),
    /// A member of the group is being reset, and the configuration says not to wait for that.
    #[error("{0} is being reset")]
    Parked(DeviceId),
    /// A member of the group and the domain do not fit.
    #[error("{device} ({at}) and the domain do not fit: {why}")]
    Incompatible {
        /// The member.
        device: DeviceId,
        /// Where.
        at: At,
        /// Why not.
        why: Incompatible,
    },
    /// The device or its instance does not do this PASID.
    #[error("{0} does not do PASID {1}")]
    Pasid(DeviceId, Pasid),
    /// The domain maps, or may map, a range that a requester id cannot translate.
    #[error("the domain was made for PASIDs only and {0} is a requester id")]
    PasidOnly(At),
    /// No share of the hardware's page-request queue is left for the device.
    #[error("{0} gets no page requests: the queue's shares are all given out")]
    NoCredits(DeviceId),
    /// The domain needs page requests and the device or its instance has none, or may not use them.
    #[error("{0} cannot make page requests: {1}")]
    NoPageRequests(DeviceId, &'static str),
    /// The device is quarantined: it must be reset first.
    #[error("{0} is quarantined: reset it first")]
    Quarantined(DeviceId),
    /// As many attachments exist as were configured for.
    #[error("no room for another attachment of {0}")]
    TooMany(DeviceId),
    /// A direct region of the device could not be mapped into the domain.
    #[error("direct region at {start:#x} could not be mapped: {why}")]
    Direct {
        /// First address of the region.
        start: u64,
        /// Why not.
        why: MapError,
    },
    /// The domain stalls, and a member of the group cannot.
    #[error(transparent)]
    Stall(#[from] StallError),
    /// The change cannot be made without a gap, and the caller or a direct region forbids one.
    #[error("{0} cannot be switched without a gap")]
    NotHitless(At),
    /// The domain belongs to another [`Iommu`](crate::Iommu).
    #[error("the domain and the device belong to different IOMMU subsystems")]
    Foreign,
    /// The driver could not prepare it.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// No memory for its records.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The instance has no tag left for another domain.
    #[error("{0} has no domain id left")]
    NoTag(InstanceId),
    /// The hardware is gone.
    #[error(transparent)]
    Lost(#[from] HwLost),
    /// The platform ends.
    #[error("the platform is shutting down")]
    Shutdown,
}

/// Why it is not known what devices wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyTrackingError {
    /// The table keeps no dirty bits, or tracking is off.
    #[error("not tracked: {0}")]
    NotTracked(DirtyError),
    /// Devices may go on writing without a mark.
    #[error("the caches were not invalidated: {0}")]
    Unsynced(SyncError),
}

/// Why a group was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Kernel drivers have it.
    #[error("kernel drivers have {0}")]
    Drivers(GroupId),
    /// Somebody outside the kernel has it.
    #[error("{1} has claimed {0}")]
    Owned(GroupId, OwnerId),
    /// Something is attached that no claim covers.
    #[error("{0} has an attachment already")]
    Attached(At),
    /// The default domain could not be attached.
    #[error("the default domain: {0}")]
    Attach(#[from] AttachError),
    /// The default domain could not be made.
    #[error("the default domain: {0}")]
    Domain(#[from] DomainError),
    /// No memory for its records.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why no PASID was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoPasid {
    /// All are given out, or something is attached under them.
    #[error("no PASID is left")]
    NoneLeft,
    /// The device is not served.
    #[error(transparent)]
    NotUp(#[from] NotUp),
    /// No memory for its record.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why a device was not bound to an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address space has exited.
    #[error("the address space has exited")]
    Exited,
    /// The device or its instance does not do the PASID of the address space.
    #[error("{0} does not do PASID {1} of the address space")]
    PasidTooBig(DeviceId, Pasid),
    /// Something else is attached under the PASID of the address space.
    #[error("{0} is bound to something else")]
    OtherSpace(At),
    /// The device cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Why a range was not mapped. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainMapError {
    /// The table refused it.
    #[error(transparent)]
    Table(#[from] MapError),
    /// The IOVA range touches one that devices of this domain cannot translate.
    #[error("IOVA {iova:#x}+{len:#x} touches the reserved range {start:#x}..={end:#x}")]
    ReservedInput {
        /// First IOVA asked for.
        iova: u64,
        /// Bytes asked for.
        len: u64,
        /// First address of the reserved range.
        start: u64,
        /// Last address of the reserved range.
        end: u64,
    },
    /// The physical range touches one that no mapping may point at.
    #[error("physical {phys}+{len:#x} touches {start:#x}..={end:#x}, which is never an output")]
    ReservedOutput {
        /// First physical address asked for.
        phys: Phys,
        /// Bytes asked for.
        len: u64,
        /// First address of the range.
        start: u64,
        /// Last address of the range.
        end: u64,
    },
}

/// Why memory was not mapped for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaMapError {
    /// The length is zero.
    #[error("DMA map of zero bytes at {0}")]
    ZeroLength(Phys),
    /// The range wraps around.
    #[error("DMA map of {1:#x} bytes at {0} wraps")]
    Wraps(Phys, u64),
    /// No gap is large enough; IOVAs of mappings that were dropped come back with a flush.
    #[error("no {len:#x} bytes of IOVA are free below {limit:#x}")]
    NoIova {
        /// Bytes, as whole pages.
        len: u64,
        /// The highest address that the devices can put on the bus.
        limit: u64,
    },
    /// As many mappings exist as the domain was made for; a flush frees what dropped ones hold.
    #[error("the domain has as many DMA mappings as it was made for")]
    TooMany,
    /// The memory cannot be mapped.
    #[error(transparent)]
    Map(#[from] DomainMapError),
}

/// Why a doorbell has no IOVA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MsiError {
    /// The domain was made without an MSI window.
    #[error("the domain has no MSI window")]
    NoWindow,
    /// Every page of the window leads to another doorbell.
    #[error("the MSI window has no page left for the doorbell at {0}")]
    Full(Phys),
    /// The doorbell's page cannot be mapped.
    #[error(transparent)]
    Map(#[from] DomainMapError),
    /// The platform ends.
    #[error("the platform is shutting down")]
    Shutdown,
}

/// Why an unmapped range is not free yet: it stays retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// An instance that may cache the range is gone.
    #[error(transparent)]
    Lost(#[from] HwLost),
    /// The platform ends.
    #[error("the platform is shutting down")]
    Shutdown,
}

/// The group was answered before: by a deadline, a detach, a reset, or by its resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page-request group has been answered already")]
pub struct AlreadyAnswered;

/// The key names nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} names nothing any more")]
pub struct Stale(pub Key);
