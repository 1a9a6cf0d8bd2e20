//! What the core needs to know of a machine's IOMMUs, whichever table told it.

mod build;
mod place;
mod remark;

pub use place::Bridges;
pub use remark::{Contradiction, Remark};

use alloc::{string::String, vec::Vec};
use place::Place;
use portcullis::topology::{Address, Function, Kind};
use portcullis::{InstanceId, ReservedRegion, SourceId};

/// The units of a machine, and what firmware asks for on behalf of devices. Addresses are as
/// bridges were numbered when it was built: after renumbering, build it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Bits of a host address.
    host_address_width: u8,
    units: Vec<Unit>,
    /// Which unit serves what, in the order of the table.
    served: Vec<(Place, usize)>,
    reserved: Vec<Region>,
    ats_ports: Vec<Ports>,
    /// From SATC, or SIDP.
    atc: Vec<(Place, Atc)>,
    sources: Vec<PlatformSource>,
    namespace: Vec<NamespaceDevice>,
    remarks: Vec<Remark>,
}

/// A remapping hardware unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its stable id: the units of a table are numbered in its order.
    pub instance: InstanceId,
    /// Its PCI segment.
    pub segment: u16,
    /// Physical address of its registers.
    pub registers: u64,
    /// Bytes of its registers.
    pub bytes: u64,
    /// It serves every PCI device of its segment that no other unit names.
    pub include_all: bool,
    /// The memory that is nearest to it, as the SRAT numbers proximity domains.
    pub proximity: Option<u32>,
}

/// What firmware says of a device's own TLB (ATC), and of how its translations may be set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Atc {
    /// It is integrated, and was validated (`[V]` 4.4): to enable it is recommended.
    pub hardened: bool,
    /// The device does not work without it.
    pub required: bool,
    /// Requests without PASID must not go through nested translation.
    pub no_nesting: bool,
    /// PWSNP must stay clear for requests without PASID.
    pub no_walk_snoop: bool,
    /// PGSNP, and SNP in second-stage entries, must stay clear for requests without PASID.
    pub no_page_snoop: bool,
}

/// A source of requests that is not a PCI function of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlatformSource {
    /// What it is.
    pub kind: PlatformSourceKind,
    /// I/O APIC id, HPET number or ACPI device number.
    pub number: u8,
    /// The unit that serves it.
    pub instance: InstanceId,
    /// The requester id that its requests carry.
    pub source: SourceId,
}

/// What a [`PlatformSource`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformSourceKind {
    /// An I/O APIC: its interrupts are requests.
    IoApic,
    /// An HPET with interrupts of its own.
    Hpet,
    /// A device of ACPI's name space.
    Namespace,
}

/// A device of ACPI's name space that starts requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceDevice {
    /// Its ACPI device number, by which a [`PlatformSource`] names it.
    pub number: u8,
    /// The object's full name.
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Region {
    base: u64,
    bytes: u64,
    devices: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ports {
    All { segment: u16 },
    One(Address),
}

impl Topology {
    /// Bits of a host address: DMA reaches no address beyond.
    pub fn host_address_width(&self) -> u8 {
        self.host_address_width
    }

    /// The units, in the order of their ids.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// What the table says that is of no use, or could not be used.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// The unit that serves a PCI function: the one that names it, else the one that names the
    /// nearest bridge above it, else the one that serves the rest of its segment. Of two that say
    /// the same, the first in the table. A virtual function is asked for by its physical one, an
    /// extended one (ARI) by function 0 (`[V]` 8.3.2, 8.3.3).
    pub fn unit_of(&self, function: Address) -> Option<&Unit> {
        let named = self.served.iter().filter_map(|(place, unit)| Some((place.distance(function)?, *unit)));
        // The first of those that are nearest: `min_by_key` gives that one.
        match named.min_by_key(|(distance, _)| *distance) {
            Some((_, unit)) => self.units.get(unit),
            None => self.units.iter().find(|unit| unit.include_all && unit.segment == function.segment),
        }
    }

    /// The unit and the number by which it knows a requester id of a function: what
    /// [`Hierarchy::group`](portcullis::topology::Hierarchy::group) asks for. Whatever id a
    /// function's requests carry, they pass the same unit.
    pub fn serve(&self, function: &Function, rid: u16) -> Option<(InstanceId, SourceId)> {
        let at = match function.kind {
            Kind::Virtual { physical } => physical,
            _ => function.at,
        };
        self.unit_of(at).map(|unit| (unit.instance, SourceId(rid.into())))
    }

    /// The memory that a function must always reach, whatever it is attached to. `class` is its
    /// class code: firmware lets go of what it reserved for USB controllers and graphics once a
    /// driver has the device, so that of these is relaxable.
    pub fn reserved_of(&self, function: Address, class: u32) -> impl Iterator<Item = ReservedRegion> {
        let regions = self.reserved.iter();
        let regions = regions.filter(move |r| r.devices.iter().any(|place| place.contains(function)));
        regions.map(move |region| build::reserved(region, class))
    }

    /// What is said of a function's own TLB.
    pub fn atc_of(&self, function: Address) -> Atc {
        let named = self.atc.iter().find(|(place, _)| place.contains(function));
        named.map_or(Atc::default(), |(_, atc)| *atc)
    }

    /// Whether address translation services may be enabled for devices behind a root port. For
    /// integrated devices, which no port is above, [`Topology::atc_of`] tells.
    pub fn ats_behind(&self, root_port: Address) -> bool {
        self.ats_ports.iter().any(|ports| match *ports {
            Ports::All { segment } => segment == root_port.segment,
            Ports::One(port) => port == root_port,
        })
    }

    /// I/O APICs, HPETs and devices of ACPI's name space, with their requester ids.
    pub fn platform_sources(&self) -> &[PlatformSource] {
        &self.sources
    }

    /// The devices of ACPI's name space.
    pub fn namespace_devices(&self) -> &[NamespaceDevice] {
        &self.namespace
    }
}
