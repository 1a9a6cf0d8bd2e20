//! A topology, made of a DMAR table.

use super::{
    Atc, Contradiction, NamespaceDevice, PlatformSource, PlatformSourceKind, Ports, Region, Remark, Topology,
    Unit,
    place::{Bridges, Place, follow},
};
use crate::{
    dmar::{Dmar, Drhd, Rmrr, Scope, ScopeKind, Structure},
    reader::push,
};
use alloc::{string::String, vec::Vec};
use portcullis::{InstanceId, RegionKind, ReservedRegion, SourceId};
use portcullis_pgtable::Prot;

impl Topology {
    /// Reads a table's statements together. `bridges` follows paths through bridges.
    ///
    /// # Errors
    /// [`Contradiction`] where the table leaves open which unit serves a device, or where its
    /// registers are. What is merely odd is a [`Remark`].
    pub fn from_dmar(dmar: &Dmar, bridges: &dyn Bridges) -> Result<Topology, Contradiction> {
        let mut building = Building {
            topology: Topology {
                host_address_width: dmar.host_address_width,
                units: Vec::new(),
                served: Vec::new(),
                reserved: Vec::new(),
                ats_ports: Vec::new(),
                atc: Vec::new(),
                sources: Vec::new(),
                namespace: Vec::new(),
                remarks: Vec::new(),
            },
            bridges,
        };
        // Software that knows SIDP ignores SATC ([V] 8.9).
        let has_sidp = dmar.structures.iter().any(|s| matches!(s, Structure::Sidp(_)));
        for structure in &dmar.structures {
            match structure {
                Structure::Drhd(drhd) => building.unit(drhd)?,
                Structure::Rmrr(rmrr) => building.region(rmrr)?,
                Structure::Atsr(atsr) if atsr.all_ports => {
                    add(&mut building.topology.ats_ports, Ports::All { segment: atsr.segment })?;
                }
                Structure::Atsr(atsr) => building.ports(atsr.segment, &atsr.scopes)?,
                Structure::Satc(satc) if !has_sidp => {
                    let atc = Atc { hardened: true, required: satc.required, ..Atc::default() };
                    building.atc(satc.segment, &satc.scopes, |_| atc)?;
                }
                Structure::Satc(_) => {}
                Structure::Sidp(sidp) => building.atc(sidp.segment, &sidp.scopes, properties)?,
                Structure::Andd(andd) => {
                    let mut name = String::new();
                    name.try_reserve_exact(andd.name.len()).map_err(|_| Contradiction::OutOfMemory)?;
                    name.push_str(&andd.name);
                    let device = NamespaceDevice { number: andd.number, name };
                    add(&mut building.topology.namespace, device)?;
                }
                Structure::Rhsa(_) => {}
                Structure::Unknown { kind, .. } => {
                    building.remark(Remark::UnknownStructure { kind: *kind })?;
                }
            }
        }
        // Wherever they stand: the units are known now.
        for structure in &dmar.structures {
            if let Structure::Rhsa(rhsa) = structure {
                building.affinity(rhsa.base, rhsa.proximity)?;
            }
        }
        Ok(building.topology)
    }
}

struct Building<'a> {
    topology: Topology,
    bridges: &'a dyn Bridges,
}

impl Building<'_> {
    fn unit(&mut self, drhd: &Drhd) -> Result<(), Contradiction> {
        let units = &mut self.topology.units;
        let bytes = 1_u64 << (12 + (drhd.pages_log2 & 0xf));
        let index = match units.iter_mut().enumerate().find(|(_, unit)| unit.registers == drhd.base) {
            Some((_, unit)) if (unit.segment, unit.bytes) != (drhd.segment, bytes) => {
                return Err(Contradiction::Unit { registers: drhd.base });
            }
            Some((index, unit)) => {
                unit.include_all |= drhd.include_all;
                self.remark(Remark::RepeatedUnit { registers: drhd.base })?;
                index
            }
            None => {
                let overlaps = |unit: &&Unit| {
                    unit.registers.abs_diff(drhd.base)
                        < if unit.registers < drhd.base { unit.bytes } else { bytes }
                };
                if let Some(other) = units.iter().find(overlaps) {
                    return Err(Contradiction::Overlap { first: other.registers, second: drhd.base });
                }
                let number = u32::try_from(units.len()).map_err(|_| Contradiction::OutOfMemory)?;
                let unit = Unit {
                    instance: InstanceId(number),
                    segment: drhd.segment,
                    registers: drhd.base,
                    bytes,
                    include_all: drhd.include_all,
                    proximity: None,
                };
                add(units, unit)?;
                units.len() - 1
            }
        };
        self.only_one_includes_all(drhd)?;
        for scope in &drhd.scopes {
            self.served(drhd, index, scope)?;
        }
        Ok(())
    }

    fn only_one_includes_all(&self, drhd: &Drhd) -> Result<(), Contradiction> {
        let mut all = self.topology.units.iter().filter(|u| u.include_all && u.segment == drhd.segment);
        match (all.next(), all.next()) {
            (Some(first), Some(second)) => Err(Contradiction::IncludeAll {
                segment: drhd.segment,
                first: first.registers,
                second: second.registers,
            }),
            _ => Ok(()),
        }
    }

    /// A scope of a unit: PCI devices, or a source that is none.
    fn served(&mut self, drhd: &Drhd, index: usize, scope: &Scope) -> Result<(), Contradiction> {
        let kind = match scope.kind {
            ScopeKind::Endpoint | ScopeKind::SubHierarchy => return self.devices(drhd, index, scope),
            ScopeKind::IoApic => PlatformSourceKind::IoApic,
            ScopeKind::Hpet => PlatformSourceKind::Hpet,
            ScopeKind::Namespace => PlatformSourceKind::Namespace,
            kind @ ScopeKind::Unknown(_) => return self.remark(Remark::UselessScope { kind }),
        };
        let Some(unit) = self.topology.units.get(index) else { return Ok(()) };
        let instance = unit.instance;
        // The path of an HPET or name-space device is its requester id: one step, no bridge.
        match follow(scope, drhd.segment, self.bridges) {
            Ok(at) => {
                let source = SourceId(at.rid.into());
                let found = PlatformSource { kind, number: scope.enumeration_id, instance, source };
                if !self.topology.sources.contains(&found) {
                    add(&mut self.topology.sources, found)?;
                }
                Ok(())
            }
            Err(remark) => self.remark(remark),
        }
    }

    fn devices(&mut self, drhd: &Drhd, index: usize, scope: &Scope) -> Result<(), Contradiction> {
        let place = match Place::of(scope, drhd.segment, self.bridges) {
            Ok(place) => place,
            Err(remark) => return self.remark(remark),
        };
        let before = self.topology.served.iter().find(|(named, _)| *named == place).map(|(_, unit)| *unit);
        match before {
            Some(unit) if unit == index => Ok(()),
            Some(unit) => {
                let first = self.topology.units.get(unit).map_or(0, |unit| unit.registers);
                self.remark(Remark::TwoUnits { first, second: drhd.base, place: place.address() })
            }
            None => add(&mut self.topology.served, (place, index)),
        }
    }

    fn region(&mut self, rmrr: &Rmrr) -> Result<(), Contradiction> {
        let mut devices = Vec::new();
        for scope in &rmrr.scopes {
            if let Some(place) = self.pci(rmrr.segment, scope)? {
                add(&mut devices, place)?;
            }
        }
        if devices.is_empty() {
            return self.remark(Remark::ReservedForNobody { base: rmrr.base });
        }
        let bytes = rmrr.limit.saturating_sub(rmrr.base).saturating_add(1);
        add(&mut self.topology.reserved, Region { base: rmrr.base, bytes, devices })
    }

    fn ports(&mut self, segment: u16, scopes: &[Scope]) -> Result<(), Contradiction> {
        for scope in scopes {
            if let Some(place) = self.pci(segment, scope)? {
                add(&mut self.topology.ats_ports, Ports::One(place.address()))?;
            }
        }
        Ok(())
    }

    fn atc(
        &mut self,
        segment: u16,
        scopes: &[Scope],
        atc: impl Fn(&Scope) -> Atc,
    ) -> Result<(), Contradiction> {
        for scope in scopes {
            // A device of ACPI's name space has its requester id in its path, as one of PCI.
            let place = match scope.kind {
                ScopeKind::Namespace => follow(scope, segment, self.bridges).ok().map(Place::Function),
                _ => self.pci(segment, scope)?,
            };
            if let Some(place) = place {
                add(&mut self.topology.atc, (place, atc(scope)))?;
            }
        }
        Ok(())
    }

    /// The PCI functions that a scope names, or a remark that it names none.
    fn pci(&mut self, segment: u16, scope: &Scope) -> Result<Option<Place>, Contradiction> {
        let place = match scope.kind {
            ScopeKind::Endpoint | ScopeKind::SubHierarchy => Place::of(scope, segment, self.bridges),
            kind => Err(Remark::UselessScope { kind }),
        };
        match place {
            Ok(place) => Ok(Some(place)),
            Err(remark) => self.remark(remark).map(|()| None),
        }
    }

    fn affinity(&mut self, registers: u64, proximity: u32) -> Result<(), Contradiction> {
        match self.topology.units.iter_mut().find(|unit| unit.registers == registers) {
            Some(unit) => {
                unit.proximity = Some(proximity);
                Ok(())
            }
            None => self.remark(Remark::NoSuchUnit { registers }),
        }
    }

    fn remark(&mut self, remark: Remark) -> Result<(), Contradiction> {
        add(&mut self.topology.remarks, remark)
    }
}

fn properties(scope: &Scope) -> Atc {
    let has = |flag| scope.flags & flag != 0;
    Atc {
        hardened: has(Scope::ATC_HARDENED),
        required: has(Scope::ATC_REQUIRED),
        no_nesting: has(Scope::NESTED_NOT_ALLOWED),
        no_walk_snoop: has(Scope::PWSNP_NOT_ALLOWED),
        no_page_snoop: has(Scope::PGSNP_NOT_ALLOWED),
    }
}

/// Class codes, base class and sub-class: a USB controller, and all of display.
const USB: u32 = 0x0c03;
const DISPLAY: u32 = 0x03;

/// `[V]` 3.16: read and write permission.
pub(super) fn reserved(region: &Region, class: u32) -> ReservedRegion {
    let relaxable = class >> 8 == USB || class >> 16 == DISPLAY;
    ReservedRegion {
        start: region.base,
        len: region.bytes,
        prot: Prot::READ | Prot::WRITE,
        kind: if relaxable { RegionKind::DirectRelaxable } else { RegionKind::Direct },
    }
}

fn add<T>(list: &mut Vec<T>, value: T) -> Result<(), Contradiction> {
    push(list, value).map_err(|_| Contradiction::OutOfMemory)
}
