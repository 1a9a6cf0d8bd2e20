//! That QEMU is what the suite takes it for: its VT-d answers, and its test devices move bytes.

use portcullis::{Config, InstanceId, Iommu, Sleep, driver::Start};
use portcullis_drivers::vtd::{Options, Vtd};
use portcullis_testbed::platform::{QemuPlatform, VTD};
use portcullis_testbed::qemu::{DmaFailure, EDUS, MEMORY_BYTES, Qemu, VTD_REGISTERS};
use vm_memory::{Bytes, GuestAddress};

/// Version register: major version in bits 7:4. [V] 11.4.1
const VER: u64 = VTD_REGISTERS;
/// Capability register. [V] 11.4.2
const CAP: u64 = VTD_REGISTERS + 0x08;
/// Extended capability register. [V] 11.4.3
const ECAP: u64 = VTD_REGISTERS + 0x10;

/// ECAP.SMTS, bit 43: scalable mode.
const ECAP_SMTS: u64 = 1 << 43;
/// ECAP.SSTS, bit 46, and FSTS, bit 47: second and first stage in scalable mode.
const ECAP_SSTS: u64 = 1 << 46;
const ECAP_FSTS: u64 = 1 << 47;

fn pattern(salt: u8) -> Vec<u8> {
    (0..=u8::MAX).map(|i| i.wrapping_mul(7) ^ salt).collect()
}

#[test]
fn vtd_answers_in_its_legacy_form() {
    let Some(qemu) = Qemu::start_or_skip("vtd_answers_in_its_legacy_form", "") else {
        return;
    };
    let qtest = qemu.qtest();
    assert_eq!(qtest.read32(VER).unwrap() >> 4 & 0xf, 1);
    let cap = qtest.read64(CAP).unwrap();
    assert_eq!(cap >> 8 & 0x1f, 0b00110, "SAGAW: 3 and 4 levels");
    let ecap = qtest.read64(ECAP).unwrap();
    assert_eq!(ecap & ECAP_SMTS, 0);
    assert_eq!(ecap >> 1 & 1, 1, "QI");
    // Two halves of a register are one register.
    let low = u64::from(qtest.read32(CAP).unwrap());
    let high = u64::from(qtest.read32(CAP + 4).unwrap());
    assert_eq!(high << 32 | low, cap);
}

#[test]
fn vtd_takes_its_scalable_form_by_property() {
    for (vtd, stage) in [("scalable-mode=on", ECAP_SSTS), ("scalable-mode=on,fsts=on", ECAP_FSTS)] {
        let name = "vtd_takes_its_scalable_form_by_property";
        let Some(qemu) = Qemu::start_or_skip(name, vtd) else {
            return;
        };
        let ecap = qemu.qtest().read64(ECAP).unwrap();
        let bits = ECAP_SMTS | ECAP_SSTS | ECAP_FSTS;
        assert_eq!(ecap & bits, ECAP_SMTS | stage, "{vtd}");
    }
}

#[test]
fn memory_is_shared_with_the_guest() {
    let Some(qemu) = Qemu::start_or_skip("memory_is_shared_with_the_guest", "") else {
        return;
    };
    let (memory, qtest) = (qemu.memory(), qemu.qtest());
    let last = MEMORY_BYTES as u64 - 8;
    for at in [0x10_0000, last] {
        memory.write_obj(0x1122_3344_5566_7788_u64, GuestAddress(at)).unwrap();
        assert_eq!(qtest.read64(at).unwrap(), 0x1122_3344_5566_7788);
        qtest.write32(at, 0xcafe_f00d).unwrap();
        let seen: u64 = memory.read_obj(GuestAddress(at)).unwrap();
        assert_eq!(seen, 0x1122_3344_cafe_f00d);
    }

    let bytes = pattern(3);
    qtest.write(0x20_0000, &bytes).unwrap();
    let mut seen = vec![0; bytes.len()];
    memory.read_slice(&mut seen, GuestAddress(0x20_0000)).unwrap();
    assert_eq!(seen, bytes);
    let mut back = vec![0; bytes.len()];
    qtest.read(0x20_0000, &mut back).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn both_edus_copy_untranslated() {
    let Some(qemu) = Qemu::start_or_skip("both_edus_copy_untranslated", "") else {
        return;
    };
    let memory = qemu.memory();
    for (i, edu) in qemu.edus().iter().enumerate() {
        let bytes = pattern(i as u8);
        let (source, destination) = (0x30_0000, 0x40_0000 + i as u64 * 0x1000);
        memory.write_slice(&bytes, GuestAddress(source)).unwrap();
        edu.read_memory(source, 64, bytes.len()).unwrap();
        edu.write_memory(destination, 64, bytes.len()).unwrap();
        let mut seen = vec![0; bytes.len()];
        memory.read_slice(&mut seen, GuestAddress(destination)).unwrap();
        assert_eq!(seen, bytes);
    }
}

#[test]
fn a_device_that_may_not_master_the_bus_writes_nothing() {
    let name = "a_device_that_may_not_master_the_bus_writes_nothing";
    let Some(qemu) = Qemu::start_or_skip(name, "") else {
        return;
    };
    let [edu, _] = qemu.edus();
    let memory = qemu.memory();
    let canary = [0x5a; 16];
    memory.write_slice(&canary, GuestAddress(0x50_0000)).unwrap();
    let seen = || {
        let mut seen = [0; 16];
        memory.read_slice(&mut seen, GuestAddress(0x50_0000)).unwrap();
        seen
    };

    qemu.pci().set_bus_master(EDUS[0], false).unwrap();
    edu.write_memory(0x50_0000, 0, 16).unwrap();
    assert_eq!(seen(), canary);
    qemu.pci().set_bus_master(EDUS[0], true).unwrap();
    edu.write_memory(0x50_0000, 0, 16).unwrap();
    assert_ne!(seen(), canary);
}

#[test]
fn transfers_outside_edus_buffer_are_refused() {
    let name = "transfers_outside_edus_buffer_are_refused";
    let Some(qemu) = Qemu::start_or_skip(name, "") else {
        return;
    };
    let [edu, _] = qemu.edus();
    for (offset, count) in [(4096, 1), (1, 4096), (usize::MAX, 2)] {
        let refused = edu.read_memory(0, offset, count);
        assert!(matches!(refused, Err(DmaFailure::OutsideBuffer)));
    }
    edu.read_memory(0, 0, 4096).unwrap();
}

#[test]
fn testdev_tells_where_its_bytes_went() {
    let Some(qemu) = Qemu::start_or_skip("testdev_tells_where_its_bytes_went", "") else {
        return;
    };
    let testdev = qemu.testdev();
    testdev.write_memory(0x60_0000, 0x60_0000, 16).unwrap();
    let elsewhere = testdev.write_memory(0x60_0000, 0x70_0000, 16);
    assert!(matches!(elsewhere, Err(DmaFailure::Elsewhere)), "{elsewhere:?}");
    let nowhere = testdev.write_memory(1 << 40, 0x70_0000, 16);
    assert!(matches!(nowhere, Err(DmaFailure::Blocked)), "{nowhere:?}");
}

#[test]
fn the_driver_refuses_caching_mode_with_the_reason() {
    let name = "the_driver_refuses_caching_mode_with_the_reason";
    let Some(qemu) = Qemu::start_or_skip(name, "caching-mode=on") else {
        return;
    };
    let platform = QemuPlatform::new(&qemu).unwrap();
    let iommu = Iommu::new(platform.clone(), Config::default()).unwrap();
    let driver = Box::new(Vtd::new(platform, VTD, Options::default()));
    let refused = iommu.register(&Sleep::in_sleepable_context(), InstanceId(0), driver, Start::Fresh);
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("caching mode"), "{why}");
}
