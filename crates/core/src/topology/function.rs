//! What a topology is described with.

use super::acs::Acs;
use crate::{
    device::Upstream,
    ids::{DeviceId, SourceId},
};
use alloc::vec::Vec;
use core::fmt;

/// Everything that can start requests, described before it is grouped. The order plays no part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchy {
    /// PCI functions, ports and bridges included: a bridge that is left out cannot be judged.
    pub functions: Vec<Function>,
    /// Devices that are not PCI.
    pub platform: Vec<PlatformDevice>,
}

/// A device that is not PCI: it has its stream ids from firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformDevice {
    /// Its stable id.
    pub id: DeviceId,
    /// The instances it stands behind, and its stream ids there.
    pub upstreams: Vec<Upstream>,
}

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its stable id.
    pub id: DeviceId,
    /// Where it is; its requester id with that.
    pub at: Address,
    /// What it is.
    pub kind: Kind,
    /// Its ACS extended capability, if it has one.
    pub acs: Option<Acs>,
    /// How many bits of the function number are claimed for phantom functions: what Device
    /// Capabilities offers while Device Control enables it, else 0. At most 3. (PCIe 2.2.6.2)
    pub phantom_bits: u8,
    /// What is known of this model beyond its registers.
    pub quirks: Vec<Quirk>,
}

impl Function {
    /// A function without ACS, phantom functions and quirks.
    pub fn new(id: DeviceId, at: Address, kind: Kind) -> Self {
        Self { id, at, kind, acs: None, phantom_bits: 0, quirks: Vec::new() }
    }
}

/// A function's place: segment, bus, device, function. That several functions are described at one
/// device says what bit 7 of the header type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// PCI segment.
    pub segment: u16,
    /// Bus in bits 15:8, device in 7:3, function in 2:0; with ARI, function in 7:0.
    pub rid: u16,
}

impl Address {
    /// The place of a function; `device` counts modulo 32, `function` modulo 8.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Self {
        Self { segment, rid: (bus as u16) << 8 | (device as u16 & 0x1f) << 3 | (function as u16 & 7) }
    }

    /// The bus.
    pub const fn bus(self) -> u8 {
        (self.rid >> 8) as u8
    }

    /// Device in bits 7:3, function in 2:0.
    pub const fn devfn(self) -> u8 {
        self.rid as u8
    }

    /// The device on its bus, by the rules without ARI.
    pub const fn device(self) -> u8 {
        self.devfn() >> 3
    }

    /// The function of the device, by the rules without ARI.
    pub const fn function(self) -> u8 {
        self.devfn() & 7
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, SourceId(self.rid.into()))
    }
}

/// What a function is: its header's type and the Device/Port Type of its PCI Express capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A PCI Express or legacy endpoint.
    Endpoint,
    /// An endpoint integrated in the root complex.
    Integrated,
    /// A root complex event collector.
    EventCollector,
    /// A virtual function of an SR-IOV device.
    Virtual {
        /// Its physical function.
        physical: Address,
    },
    /// A root port.
    RootPort(Buses),
    /// The upstream port of a switch.
    UpstreamPort(Buses),
    /// A downstream port of a switch.
    DownstreamPort(Buses),
    /// A bridge from PCI Express to conventional PCI or PCI-X.
    PcieToPci(Buses),
    /// A bridge from conventional PCI or PCI-X to PCI Express.
    PciToPcie(Buses),
    /// A function without a PCI Express capability.
    Conventional,
    /// A bridge without a PCI Express capability.
    ConventionalBridge(Buses),
}

impl Kind {
    /// The kind by registers: bits 6:0 of the header type, Device/Port Type (bits 7:4 of the PCI
    /// Express Capabilities register) if there is such a capability, and a bridge's buses.
    ///
    /// # Errors
    /// [`UnknownKind`] if they contradict each other, or name a type that is not defined.
    pub fn decode(header_type: u8, port_type: Option<u8>, buses: Buses) -> Result<Self, UnknownKind> {
        match (header_type & 0x7f, port_type) {
            (0, None) => Ok(Kind::Conventional),
            (0, Some(0b0000 | 0b0001)) => Ok(Kind::Endpoint),
            (0, Some(0b1001)) => Ok(Kind::Integrated),
            (0, Some(0b1010)) => Ok(Kind::EventCollector),
            (1, None) => Ok(Kind::ConventionalBridge(buses)),
            (1, Some(0b0100)) => Ok(Kind::RootPort(buses)),
            (1, Some(0b0101)) => Ok(Kind::UpstreamPort(buses)),
            (1, Some(0b0110)) => Ok(Kind::DownstreamPort(buses)),
            (1, Some(0b0111)) => Ok(Kind::PcieToPci(buses)),
            (1, Some(0b1000)) => Ok(Kind::PciToPcie(buses)),
            (header_type, port_type) => Err(UnknownKind { header_type, port_type }),
        }
    }

    /// The buses behind it, if it is a port or a bridge.
    pub const fn buses(self) -> Option<Buses> {
        match self {
            Kind::RootPort(b)
            | Kind::UpstreamPort(b)
            | Kind::DownstreamPort(b)
            | Kind::PcieToPci(b)
            | Kind::PciToPcie(b)
            | Kind::ConventionalBridge(b) => Some(b),
            Kind::Endpoint
            | Kind::Integrated
            | Kind::EventCollector
            | Kind::Virtual { .. }
            | Kind::Conventional => None,
        }
    }
}

/// A header type and a port type that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no function has header type {header_type:#x} and port type {port_type:x?}")]
pub struct UnknownKind {
    /// Bits 6:0 of the header type.
    pub header_type: u8,
    /// Device/Port Type, if there is a PCI Express capability.
    pub port_type: Option<u8>,
}

/// The buses behind a bridge, by its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buses {
    /// Secondary Bus Number: the one directly behind it.
    pub secondary: u8,
    /// Subordinate Bus Number: the last one behind it.
    pub subordinate: u8,
}

impl Buses {
    /// Whether a bus is behind the bridge.
    pub const fn contain(self, bus: u8) -> bool {
        self.secondary <= bus && bus <= self.subordinate
    }
}

/// What is known of a model beyond its registers, by whoever describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quirk {
    /// Its requests may also carry the requester id of this device and function on its bus
    /// (device in bits 7:3).
    AlsoUses(u8),
    /// It isolates as if it had every service of ACS on: its maker says so.
    Isolated,
    /// It does not isolate, whatever its ACS registers say.
    NotIsolated,
    /// A bridge without a PCI Express capability that sends requests on as a PCI Express to PCI
    /// bridge does: with the secondary bus, device 0 and function 0.
    TakesOwnership,
}
