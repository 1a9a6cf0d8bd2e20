//! ACPI: root pointer, root table and DMAR, as firmware left them.

use portcullis::topology::{Address, Buses};
use portcullis_firmware::Topology;
use portcullis_firmware::acpi::{Header, RootTable, Rsdp, Tables};
use portcullis_firmware::dmar::Dmar;

/// Reads the bytes as they are, then with what comes before the structures put right, which no
/// mutation would find.
pub fn run(data: &[u8]) {
    let _ = Rsdp::parse(data);
    let _ = Header::parse(data);
    for root in [RootTable::Rsdt(0), RootTable::Xsdt(0)] {
        if let Ok(tables) = Tables::parse(root, data) {
            assert!(tables.count() <= data.len() / 4);
        }
    }
    read(data);
    if let Some(sealed) = sealed(data) {
        read(&sealed);
    }
}

fn read(bytes: &[u8]) {
    match Dmar::parse(bytes) {
        Ok(table) => {
            let written = table.write().expect("what was read can be written");
            assert_eq!(Dmar::parse(&written).as_ref(), Ok(&table));
            ask(&table, bytes);
        }
        Err(wrong) => assert!(wrong.offset <= bytes.len(), "{wrong}"),
    }
}

/// Bridges whose numbers are in the bytes too.
fn ask(table: &Dmar, bytes: &[u8]) {
    let byte = |at: u16| bytes.get(usize::from(at) % bytes.len()).copied().unwrap_or(0);
    let bridges = |at: Address| {
        let (secondary, subordinate) = (byte(at.rid), byte(at.rid.wrapping_add(1)));
        (secondary & 1 == 0).then_some(Buses { secondary, subordinate })
    };
    let Ok(topology) = Topology::from_dmar(table, &bridges) else { return };
    for rid in (0..=u16::MAX).step_by(0x101) {
        let at = Address { segment: u16::from(byte(rid)), rid };
        if let Some(unit) = topology.unit_of(at) {
            assert_eq!(unit.segment, at.segment);
        }
        assert!(topology.reserved_of(at, rid.into()).all(|region| region.len.is_multiple_of(4096)));
        topology.atc_of(at);
        topology.ats_behind(at);
    }
}

fn sealed(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let length = u32::try_from(bytes.len()).ok()?;
    bytes.get_mut(..4)?.copy_from_slice(b"DMAR");
    bytes.get_mut(4..8)?.copy_from_slice(&length.to_le_bytes());
    *bytes.get_mut(9)? = 0;
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    *bytes.get_mut(9)? = sum.wrapping_neg();
    Some(bytes)
}
