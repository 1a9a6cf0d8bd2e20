//! What is told about a fault: one record for DMA, interrupt-remapping and configuration faults.

use crate::{
    ids::{DeviceId, GroupId, InstanceId, Pasid, SourceId, StallId},
    platform::Time,
};
use core::fmt;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// A memory request was blocked.
    Dma,
    /// A page request was settled without reaching a resolver.
    PageRequest,
    /// An interrupt request was blocked.
    InterruptRemapping,
    /// The IOMMU could not use its own structures for this request.
    Configuration,
    /// Records or requests were lost: a queue of the instance overflowed.
    Overflow,
    /// A device was cut off: its own TLB does not answer, or it faults too much.
    Quarantine,
    /// The instance does not respond any more.
    InstanceLost,
    /// A device, or the whole instance, faults more than it did, or less: the code is the
    /// [`Rung`](crate::Rung) that it stands on now.
    Storm,
    /// A device was cut off for its faults and goes on: somebody should reset it.
    ResetWanted,
    /// A stalled transaction: one that waits for a verdict, or one that was terminated without
    /// being asked about, or too late.
    Stall,
    /// What a device does stalls no more since it stalled too much (the code is 0), or stalls again
    /// (1).
    StallLimit,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [FaultKind; 11] = [
        FaultKind::Dma,
        FaultKind::PageRequest,
        FaultKind::InterruptRemapping,
        FaultKind::Configuration,
        FaultKind::Overflow,
        FaultKind::Quarantine,
        FaultKind::InstanceLost,
        FaultKind::Storm,
        FaultKind::ResetWanted,
        FaultKind::Stall,
        FaultKind::StallLimit,
    ];
}

/// What the device tried to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// A read.
    Read,
    /// A write.
    Write,
    /// An instruction fetch.
    Execute,
    /// An atomic operation.
    Atomic,
    /// A translation request (ATS).
    Translate,
    /// The record does not say.
    Unknown,
}

/// Which stage of the translation stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The first stage: a process's, or a guest's own.
    First,
    /// The second stage: the host's.
    Second,
}

/// Why it was stopped, in words that all vendors share; the vendor's own code is beside it in
/// [`FaultRecord::code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing is mapped at the address.
    NotMapped,
    /// The mapping does not allow this access.
    Permission,
    /// The address is wider than the table or not canonical.
    AddressRange,
    /// The device or PASID is blocked or unknown.
    Blocked,
    /// The request's type is not allowed for this device (a translated request, a translation
    /// request, a page request of a device without the right to make one).
    RequestType,
    /// The request went to the interrupt range in a way that is no interrupt.
    InterruptRange,
    /// An entry of the IOMMU's own structures is invalid or uses reserved bits.
    BadEntry,
    /// The IOMMU could not read or write its structures in memory.
    TableAccess,
    /// The device exceeded its quota of page requests.
    Quota,
    /// The request queue overflowed.
    QueueOverflow,
    /// Nobody answered before the deadline.
    Deadline,
    /// The device did not complete an invalidation of its own TLB.
    DeviceTimeout,
    /// The device completed an invalidation that nobody asked of it.
    UnexpectedCompletion,
    /// The IOMMU itself does not respond.
    Hardware,
    /// There are too many faults.
    Storm,
    /// Another reason: see the vendor's code.
    Other,
}

/// One fault. `Display` says it in a line; [`explain`](crate::Iommu::explain) says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultRecord {
    /// The instance that reported it.
    pub instance: InstanceId,
    /// The requester, where the record names one.
    pub source: Option<SourceId>,
    /// The device that the requester belongs to; `None` for a requester that nobody added.
    pub device: Option<DeviceId>,
    /// The device's group.
    pub group: Option<GroupId>,
    /// What the requester, or its PASID, was attached to when the record was taken: the domain's
    /// [`id`](crate::Domain::id).
    pub domain: Option<u64>,
    /// The PASID of the request.
    pub pasid: Option<Pasid>,
    /// What the record is about.
    pub kind: FaultKind,
    /// What the device tried.
    pub access: Access,
    /// Whether the request was privileged.
    pub privileged: bool,
    /// The address, where the record gives one. Bits outside `address_mask` are zero.
    pub address: Option<u64>,
    /// The bits of `address` that the hardware recorded: page granular for most vendors.
    pub address_mask: u64,
    /// The stage that stopped it, where the record says.
    pub stage: Option<Stage>,
    /// Why it was stopped.
    pub reason: Reason,
    /// The vendor's own code.
    pub code: u32,
    /// The vendor's record as the hardware wrote it, lowest word first; zero where there was none.
    pub raw: [u64; 4],
    /// The transaction that waits for a verdict, where the device stalled.
    pub stalled: Option<StallId>,
    /// When the core took the record.
    pub at: Time,
    /// Records like this one, before it, that were counted and not told one by one (see
    /// [`Config::storms`](crate::Config::storms)).
    pub untold: u64,
    /// Counts the records of this instance, from 1.
    pub sequence: u64,
}

/// What a driver decodes; the core adds who and where that is, the time and the sequence number.
/// Made by [`RawFault::new`] and struct update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFault {
    /// The requester, where the record names one.
    pub source: Option<SourceId>,
    /// The PASID of the request.
    pub pasid: Option<Pasid>,
    /// What the record is about.
    pub kind: FaultKind,
    /// What the device tried.
    pub access: Access,
    /// Whether the request was privileged.
    pub privileged: bool,
    /// The address, where the record gives one.
    pub address: Option<u64>,
    /// The bits of `address` that the hardware recorded.
    pub address_mask: u64,
    /// The stage that stopped it, where the record says.
    pub stage: Option<Stage>,
    /// Why it was stopped.
    pub reason: Reason,
    /// The vendor's own code.
    pub code: u32,
    /// The record as the hardware wrote it, lowest word first; zero where there was none.
    pub raw: [u64; 4],
    /// The transaction that waits for a verdict, where the device stalled.
    pub stalled: Option<StallId>,
}

impl RawFault {
    /// A record that names nothing but its kind and reason.
    pub const fn new(kind: FaultKind, reason: Reason) -> RawFault {
        RawFault {
            source: None,
            pasid: None,
            kind,
            access: Access::Unknown,
            privileged: false,
            address: None,
            address_mask: u64::MAX,
            stage: None,
            reason,
            code: 0,
            raw: [0; 4],
            stalled: None,
        }
    }
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.instance)?;
        match (self.device, self.source) {
            (Some(d), Some(s)) => write!(f, "{d} ({s})")?,
            (None, Some(s)) => write!(f, "unknown device {s}")?,
            _ => f.write_str("no device")?,
        }
        if let Some(p) = self.pasid {
            write!(f, " PASID {p}")?;
        }
        write!(f, ": {:?}", self.access)?;
        if let Some(a) = self.address {
            write!(f, " at {a:#x}")?;
        }
        write!(f, " stopped: {:?} (code {:#x})", self.reason, self.code)
    }
}
