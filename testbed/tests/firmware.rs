//! The table that QEMU has for its VT-d, and the unit that is where the table says.

use portcullis::topology::{Address, Buses};
use portcullis_firmware::Topology;
use portcullis_firmware::dmar::{Dmar, ScopeKind, Structure};
use portcullis_testbed::qemu::{EDUS, Qemu, TESTDEV, VTD_REGISTERS};

/// The DMAR of QEMU's tables. In them checksums are left to firmware.
fn table(qemu: &Qemu) -> Vec<u8> {
    let tables = qemu.fw_cfg().file("etc/acpi/tables").unwrap().expect("the tables");
    let start = tables.windows(4).position(|at| at == Dmar::SIGNATURE).expect("a DMAR");
    let length = u32::from_le_bytes(tables[start + 4..start + 8].try_into().unwrap());
    let mut table = tables[start..start + length as usize].to_vec();
    assert_eq!(table[9], 0);
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

fn no_bridge(_: Address) -> Option<Buses> {
    None
}

#[test]
fn qemu_describes_its_unit() {
    let Some(qemu) = Qemu::start_or_skip("qemu_describes_its_unit", "") else {
        return;
    };
    let dmar = Dmar::parse(&table(&qemu)).unwrap();
    let topology = Topology::from_dmar(&dmar, &no_bridge).unwrap();
    let [unit] = topology.units() else { panic!("one unit: {dmar:?}") };
    assert_eq!((unit.registers, unit.segment), (VTD_REGISTERS, 0));
    // Version register, [V] 11.4.1: there is a unit.
    assert_eq!(qemu.qtest().read32(unit.registers).unwrap() >> 4 & 0xf, 1);
    for device in [EDUS[0], EDUS[1], TESTDEV] {
        let at = Address::new(0, 0, device.device(), 0);
        assert_eq!(topology.unit_of(at), Some(unit), "{at}");
        assert_eq!(topology.reserved_of(at, 0).count(), 0);
    }
    assert_eq!(topology.remarks(), []);
    // What is said is said again.
    assert_eq!(Dmar::parse(&dmar.write().unwrap()), Ok(dmar.clone()));

    let Structure::Drhd(drhd) = &dmar.structures[0] else { panic!("a unit first: {dmar:?}") };
    assert!(drhd.scopes.iter().any(|scope| scope.kind == ScopeKind::IoApic));
}

#[test]
fn qemu_tells_of_device_tlbs_when_it_has_them() {
    for (properties, ats) in [("", false), ("device-iotlb=on", true)] {
        let Some(qemu) = Qemu::start_or_skip("qemu_tells_of_device_tlbs_when_it_has_them", properties) else {
            return;
        };
        let dmar = Dmar::parse(&table(&qemu)).unwrap();
        let topology = Topology::from_dmar(&dmar, &no_bridge).unwrap();
        assert_eq!(topology.ats_behind(Address::new(0, 0, 3, 0)), ats, "{properties}: {dmar:?}");
    }
}
