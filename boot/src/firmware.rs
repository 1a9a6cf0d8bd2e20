//! What firmware left in memory: the way from the loader's start information to the DMAR table.

use alloc::vec::Vec;
use core::ptr;

use portcullis::topology::Address;
use portcullis_firmware::acpi::{Header, Rsdp, Tables};
use portcullis_firmware::dmar::Dmar;
use portcullis_firmware::{Topology, Unit};

use crate::mmio::Registers;
use crate::pci::Function;
use crate::port::say;

/// PVH's start information: what it begins with, and where it has the address of the root pointer.
const MAGIC: u32 = 0x336e_c578;
const RSDP_POINTER: u64 = 32;

/// Where a BIOS has the root pointer, if the loader does not tell.
const BIOS: u64 = 0xe_0000;
const BIOS_BYTES: usize = 0x2_0000;

/// The part of the identity map that is memory: above the interrupt vectors, below the devices.
const MEMORY: core::ops::Range<u64> = 0x400..0xc000_0000;

/// Where this image begins; `image_end` is where it ends.
const IMAGE: u64 = 0x10_0000;

/// The most bytes of any one table.
const LONGEST: usize = 1 << 20;

/// The units of this machine, by its DMAR table.
pub fn topology(information: u64) -> Result<Topology, &'static str> {
    let table = dmar(information)?;
    let table = Dmar::parse(&table).map_err(|wrong| {
        say!("{wrong}");
        "the DMAR table is damaged"
    })?;
    let buses = |at: Address| (at.segment == 0).then_some(Function(at.rid)).and_then(Function::buses);
    Topology::from_dmar(&table, &buses).map_err(|wrong| {
        say!("{wrong}");
        "the DMAR table contradicts itself"
    })
}

/// A unit's registers.
pub fn registers(unit: &Unit) -> Option<Registers> {
    let end = unit.registers.checked_add(unit.bytes)?;
    let reachable = MEMORY.end <= unit.registers && end <= 1 << 32;
    let bytes = u32::try_from(unit.bytes).ok()?;
    // SAFETY: in the uncached part of the identity map. They are the registers of a unit, by
    // firmware's word; it accesses memory that its driver gave it.
    reachable.then(|| unsafe { Registers::new(unit.registers as usize, bytes) })
}

fn dmar(information: u64) -> Result<Vec<u8>, &'static str> {
    let root = root_pointer(information)?.root;
    let root_table = table(root.address()).ok_or("there is no root table")?;
    let mut tables = Tables::parse(root, &root_table).map_err(|_| "the root table is damaged")?;
    tables
        .find_map(|at| table(at).filter(|bytes| bytes.starts_with(&Dmar::SIGNATURE)))
        .ok_or("there is no DMAR table")
}

fn root_pointer(information: u64) -> Result<Rsdp, &'static str> {
    let told = copy(information, 4).is_some_and(|magic| magic == MAGIC.to_le_bytes());
    let told = told.then(|| copy(information + RSDP_POINTER, 8)).flatten();
    let told = told.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
    if let Some(rsdp) = told.and_then(|at| Rsdp::parse(&copy(at, Rsdp::BYTES)?).ok()) {
        say!("ACPI: the loader knows the root pointer");
        return Ok(rsdp);
    }
    let bios = copy(BIOS, BIOS_BYTES).unwrap_or_default();
    let mut places = (0..bios.len()).step_by(Rsdp::ALIGNMENT);
    places.find_map(|at| Rsdp::parse(bios.get(at..)?).ok()).ok_or("there is no ACPI root pointer")
}

/// A table's bytes, by the length in its header.
fn table(at: u64) -> Option<Vec<u8>> {
    let header = Header::parse(&copy(at, Header::BYTES)?).ok()?;
    copy(at, usize::try_from(header.length).ok()?)
}

/// Copies memory that is not this image's.
fn copy(at: u64, count: usize) -> Option<Vec<u8>> {
    unsafe extern "C" {
        static image_end: u8;
    }
    let end = at.checked_add(count as u64)?;
    let image = IMAGE..(&raw const image_end).addr() as u64;
    let is_apart = end <= image.start || image.end <= at;
    if count > LONGEST || !MEMORY.contains(&at) || end > MEMORY.end || !is_apart {
        return None;
    }
    let first = ptr::with_exposed_provenance::<u8>(at as usize);
    // SAFETY: mapped, and not of the image, so that no object of Rust's is there; where nothing is,
    // reads give ones. Any bytes make a u8.
    Some((0..count).map(|i| unsafe { first.add(i).read_volatile() }).collect())
}
