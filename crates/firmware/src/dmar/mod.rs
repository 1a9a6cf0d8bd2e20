//! The DMA Remapping Reporting table: what firmware says of VT-d (`[V]` 8.1 to 8.9).
//!
//! ```
//! use portcullis_firmware::dmar::{Dmar, Drhd, Structure};
//!
//! let mut table = Dmar::new(46);
//! table.structures.push(Structure::Drhd(Drhd {
//!     include_all: true,
//!     segment: 0,
//!     base: 0xfed9_0000,
//!     pages_log2: 0,
//!     scopes: vec![],
//! }));
//! let bytes = table.write()?;
//! assert_eq!(Dmar::parse(&bytes), Ok(table));
//! # Ok::<(), portcullis_firmware::dmar::TooLong>(())
//! ```

mod parse;
mod write;

pub use write::TooLong;

use crate::acpi::Header;
use alloc::{string::String, vec::Vec};

/// A DMAR table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dmar {
    /// Its header, but for what is computed from the rest: length and signature.
    pub origin: Origin,
    /// Bits of a host address, 1 to 64: DMA reaches no address beyond.
    pub host_address_width: u8,
    /// What the platform does, and wants.
    pub flags: Flags,
    /// The remapping structures in the order of the table.
    pub structures: Vec<Structure>,
}

/// Who made a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The table's revision.
    pub revision: u8,
    /// Who made it.
    pub oem_id: [u8; 6],
    /// Its maker's name for it.
    pub oem_table_id: [u8; 8],
    /// Its maker's revision.
    pub oem_revision: u32,
    /// The tool that made it.
    pub creator_id: [u8; 4],
    /// That tool's revision.
    pub creator_revision: u32,
}

impl From<Header> for Origin {
    fn from(header: Header) -> Self {
        let Header { revision, oem_id, oem_table_id, oem_revision, creator_id, creator_revision, .. } =
            header;
        Self { revision, oem_id, oem_table_id, oem_revision, creator_id, creator_revision }
    }
}

/// The table's Flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// INTR_REMAP: the platform remaps interrupts.
    pub interrupt_remapping: bool,
    /// X2APIC_OPT_OUT: the platform asks not to use x2APIC mode.
    pub x2apic_opt_out: bool,
    /// DMA_CTRL_PLATFORM_OPT_IN_FLAG: until the system's own software starts DMA, there is none
    /// but to the reserved regions.
    pub dma_control_opt_in: bool,
}

/// A remapping structure.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Structure {
    /// A remapping hardware unit (`[V]` 8.3).
    Drhd(Drhd),
    /// Memory that devices must always reach (`[V]` 8.4).
    Rmrr(Rmrr),
    /// Root ports that take part in address translation services (`[V]` 8.5).
    Atsr(Atsr),
    /// A unit's proximity to memory (`[V]` 8.6).
    Rhsa(Rhsa),
    /// A device that ACPI's name space enumerates (`[V]` 8.7).
    Andd(Andd),
    /// Integrated devices with device TLBs (`[V]` 8.8).
    Satc(Satc),
    /// Integrated devices that restrict how they are set up (`[V]` 8.9).
    Sidp(Sidp),
    /// A type that is not known: skipped by its length, as the manual asks.
    Unknown {
        /// Its type, above 6.
        kind: u16,
        /// Its bytes after type and length.
        body: Vec<u8>,
    },
}

/// DMA Remapping Hardware Unit Definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drhd {
    /// INCLUDE_PCI_ALL: it serves every PCI device of the segment that no other unit names.
    pub include_all: bool,
    /// Its PCI segment.
    pub segment: u16,
    /// Where its registers are.
    pub base: u64,
    /// Size: the registers take 2^n pages of 4 KiB; 0 to 15.
    pub pages_log2: u8,
    /// What it serves.
    pub scopes: Vec<Scope>,
}

/// Reserved Memory Region Reporting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rmrr {
    /// PCI segment of the devices.
    pub segment: u16,
    /// First address, a multiple of 4 KiB.
    pub base: u64,
    /// Last address.
    pub limit: u64,
    /// Who needs it.
    pub scopes: Vec<Scope>,
}

/// Root Port ATS Capability Reporting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atsr {
    /// ALL_PORTS: every root port of the segment.
    pub all_ports: bool,
    /// PCI segment of the ports.
    pub segment: u16,
    /// The ports otherwise.
    pub scopes: Vec<Scope>,
}

/// Remapping Hardware Static Affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhsa {
    /// The unit, by its register base.
    pub base: u64,
    /// Its proximity domain, as the SRAT numbers them.
    pub proximity: u32,
}

/// ACPI Name-space Device Declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Andd {
    /// ACPI Device Number, by which scopes name it.
    pub number: u8,
    /// The object's full name: ASCII without NUL.
    pub name: String,
}

/// SoC Integrated Address Translation Cache Reporting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Satc {
    /// ATC_REQUIRED: the devices do not work without their device TLB.
    pub required: bool,
    /// PCI segment of the devices.
    pub segment: u16,
    /// The devices.
    pub scopes: Vec<Scope>,
}

/// SoC Integrated Device Property Reporting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidp {
    /// PCI segment of the devices.
    pub segment: u16,
    /// The devices, with flags.
    pub scopes: Vec<Scope>,
}

/// A Device Scope entry (`[V]` 8.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// What it names.
    pub kind: ScopeKind,
    /// Flags, of entries in a SIDP structure.
    pub flags: u8,
    /// Enumeration ID: which I/O APIC, HPET or ACPI device it is.
    pub enumeration_id: u8,
    /// Start Bus Number.
    pub start_bus: u8,
    /// The way from there, at least one step.
    pub path: Vec<Step>,
}

impl Scope {
    /// REQ_WO_PASID_NESTED_NOTALLOWED: no nested translation for requests without PASID.
    pub const NESTED_NOT_ALLOWED: u8 = 1 << 0;
    /// REQ_WO_PASID_PWSNP_NOTALLOWED: PWSNP stays clear for requests without PASID.
    pub const PWSNP_NOT_ALLOWED: u8 = 1 << 1;
    /// REQ_WO_PASID_PGSNP_NOTALLOWED: PGSNP and SNP stay clear for requests without PASID.
    pub const PGSNP_NOT_ALLOWED: u8 = 1 << 2;
    /// ATC_HARDENED: the device TLB was validated.
    pub const ATC_HARDENED: u8 = 1 << 3;
    /// ATC_REQUIRED: the device does not work without its device TLB.
    pub const ATC_REQUIRED: u8 = 1 << 4;
}

/// A step of a path: a device on the bus where the one before leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

/// What a scope entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeKind {
    /// A PCI endpoint device.
    Endpoint,
    /// A PCI-PCI bridge, and everything behind it.
    SubHierarchy,
    /// An I/O APIC.
    IoApic,
    /// An MSI-capable HPET.
    Hpet,
    /// A device of ACPI's name space.
    Namespace,
    /// A type that is not known.
    Unknown(u8),
}

impl ScopeKind {
    /// The kind of a type field.
    pub const fn from_type(number: u8) -> Self {
        match number {
            1 => ScopeKind::Endpoint,
            2 => ScopeKind::SubHierarchy,
            3 => ScopeKind::IoApic,
            4 => ScopeKind::Hpet,
            5 => ScopeKind::Namespace,
            other => ScopeKind::Unknown(other),
        }
    }

    /// The type field of a kind.
    pub const fn to_type(self) -> u8 {
        match self {
            ScopeKind::Endpoint => 1,
            ScopeKind::SubHierarchy => 2,
            ScopeKind::IoApic => 3,
            ScopeKind::Hpet => 4,
            ScopeKind::Namespace => 5,
            ScopeKind::Unknown(other) => other,
        }
    }
}

impl Dmar {
    /// The table's signature.
    pub const SIGNATURE: [u8; 4] = *b"DMAR";
    /// The most bytes that are read. The largest machines need a few KiB; what takes time that
    /// grows faster than the table stays bounded by this.
    pub const MOST_BYTES: u32 = 64 << 10;

    /// A table that says nothing but how wide addresses are.
    pub fn new(host_address_width: u8) -> Self {
        let origin = Origin {
            revision: 1,
            oem_id: *b"PORTCU",
            oem_table_id: *b"LLIS    ",
            oem_revision: 1,
            creator_id: *b"PCUL",
            creator_revision: 1,
        };
        Self { origin, host_address_width, flags: Flags::default(), structures: Vec::new() }
    }
}

/// Types of remapping structures (`[V]` 8.2).
mod kind {
    pub(super) const DRHD: u16 = 0;
    pub(super) const RMRR: u16 = 1;
    pub(super) const ATSR: u16 = 2;
    pub(super) const RHSA: u16 = 3;
    pub(super) const ANDD: u16 = 4;
    pub(super) const SATC: u16 = 5;
    pub(super) const SIDP: u16 = 6;
}
