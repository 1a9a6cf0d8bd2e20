//! Names of things: instances, devices, streams, PASIDs, attachments.

use core::fmt;

/// The stable id of an IOMMU instance, chosen by the embedder (firmware order, a register
/// address): which instance serves a device never depends on the order of registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u32);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iommu{}", self.0)
    }
}

/// The stable id of a device, chosen by the embedder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u64);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {:#x}", self.0)
    }
}

/// An owner of devices outside the kernel, in the embedder's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u64);

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owner {:#x}", self.0)
    }
}

/// A group of devices that cannot be isolated from one another, named after the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {:#x}", self.0)
    }
}

/// A transaction that its device holds until it gets a verdict, in the numbers of its instance
/// (SMMUv3: a stall tag; SMMUv2: a context bank).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StallId(pub u64);

/// What an IOMMU knows a requester by: a PCI requester id, a stream id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", (self.0 >> 8) & 0xff, (self.0 >> 3) & 0x1f, self.0 & 7)
    }
}

/// A process address space id: 1 to 2^20 - 1. PASID 0 stands for "no PASID" in several vendors'
/// tables and is never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(core::num::NonZeroU32);

impl Pasid {
    /// Bits of the largest PASID that PCIe can carry.
    pub const BITS: u8 = 20;
    /// The largest PASID that PCIe can carry.
    pub const MAX: u32 = (1 << Pasid::BITS) - 1;

    /// A PASID, unless the number is 0 or needs more than 20 bits.
    #[inline]
    pub fn new(n: u32) -> Option<Pasid> {
        if n > Pasid::MAX { None } else { core::num::NonZeroU32::new(n).map(Pasid) }
    }

    /// The number.
    #[inline]
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One place where a translation can be attached: a requester id, or a PASID of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// The requester.
    pub source: SourceId,
    /// Its PASID, or none for requests without one.
    pub pasid: Option<Pasid>,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pasid {
            Some(p) => write!(f, "{} PASID {p}", self.source),
            None => write!(f, "{}", self.source),
        }
    }
}

/// The number that an instance's caches know a domain by (VT-d domain id, SMMU ASID or VMID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainTag(pub u32);

/// What a vendor needs back later (a stall tag, a group index, private data): opaque to everyone
/// but its driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VendorBits(pub [u64; 4]);

/// An index into one of the core's tables, with the generation that its holder saw. A stale key
/// is a typed error, never somebody else's object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u64,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.index, self.generation)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.index, self.generation)
    }
}
