//! QEMU as a rig: two edu devices, and iommu-testdev as the teller.

use std::sync::Arc;

use portcullis::driver::{DeviceControl, Start};
use portcullis::{Config, Iommu, Sleep, Storms};
use portcullis_drivers::vtd::{Options, Vtd};
use portcullis_machine::{memory::Ram, oracle::Oracle};
use vm_memory::{Bytes, GuestAddress};

use super::{Fetched, Form, INSTANCE, Kind, Outlet, Rig, Sent, Shape, Told, Who};
use crate::platform::{QemuPlatform, VTD};
use crate::qemu::{DmaFailure, Edu, Qemu, TestDev};
use crate::stage::{IOVA_SPACE, Stage};

/// The half of edu's buffer that its writes come from; the other half is for its reads.
const HALF: usize = Edu::BUFFER_BYTES / 2;

/// The most bytes that the teller writes at once.
const TELLER_BYTES: usize = 64;

/// What a device has in its buffer before it reads.
const FILLER: u8 = 0xa5;

/// A QEMU with its VT-d started, or our model in its place.
pub struct QemuRig {
    kind: Kind,
    fault_registers: usize,
    shape: Shape,
    qemu: Qemu,
    platform: QemuPlatform,
    iommu: Iommu<QemuPlatform>,
    oracle: Oracle,
    /// What both edu devices have in the first half of their buffers.
    stock: Vec<u8>,
    /// What the teller writes.
    tale: Vec<u8>,
    /// Where the next write begins in the stock.
    turn: usize,
    /// What is in low memory, at the addresses that the scenarios use as IOVAs.
    low: Vec<u8>,
}

/// Properties of QEMU's VT-d with all that it can do: PASIDs, device TLBs and page requests, for
/// which it has no device.
const EVERYTHING: &str = "scalable-mode=on,fsts=on,device-iotlb=on,pasid-bits=20,svm=on";

/// Plays a scenario on QEMU, or prints the line by which `name` counts as skipped.
///
/// # Panics
/// When the scenario fails.
pub fn on_qemu(name: &str, shape: impl Into<Shape>, scenario: fn(&mut Stage<QemuRig>)) {
    let shape = shape.into();
    let properties = match shape.form {
        Form::Legacy => "",
        Form::ScalableSecond => "scalable-mode=on",
        Form::ScalableFirst => "scalable-mode=on,fsts=on",
    };
    play(name, properties, shape, scenario);
}

/// The same with a first stage and everything else that QEMU's VT-d can do.
///
/// # Panics
/// When the scenario fails.
pub fn on_full_qemu(name: &str, scenario: fn(&mut Stage<QemuRig>)) {
    play(name, EVERYTHING, Form::ScalableFirst.into(), scenario);
}

/// Plays a scenario on our model in QEMU's place: by the same client, over the same protocol.
///
/// # Panics
/// When the scenario fails.
pub fn on_qtest_model(shape: impl Into<Shape>, scenario: fn(&mut Stage<QemuRig>)) {
    let shape = shape.into();
    let unit = super::model::config(shape);
    let fault_registers = unit.fault_records.into();
    let qemu = Qemu::start_model(unit).expect("the model starts");
    let mut stage = Stage::new(QemuRig::new(qemu, Kind::Model, shape, fault_registers));
    scenario(&mut stage);
    stage.close();
}

fn play(name: &str, properties: &str, shape: Shape, scenario: fn(&mut Stage<QemuRig>)) {
    if let Some(qemu) = Qemu::start_or_skip(name, properties) {
        let mut stage = Stage::new(QemuRig::new(qemu, Kind::Qemu, shape, 1));
        scenario(&mut stage);
        stage.close();
    }
}

impl QemuRig {
    fn new(qemu: Qemu, kind: Kind, shape: Shape, fault_registers: usize) -> Self {
        let platform = QemuPlatform::new(&qemu).expect("memory");
        let stock: Vec<u8> = (0..HALF).map(|i| (i * 31 + (i >> 8) * 7 + 1) as u8).collect();
        let page = platform.ram().page().expect("a page");
        platform.ram().write(page.0, &stock).expect("memory");
        // Nothing is translated yet.
        for edu in qemu.edus() {
            edu.read_memory(page.0, 0, HALF).expect("edu reads");
        }
        qemu.testdev().write_memory(page.0, page.0, TELLER_BYTES as u32).expect("the teller writes");
        let mut tale = vec![0; TELLER_BYTES];
        platform.ram().read(page.0, &mut tale).expect("memory");
        platform.ram().free_page(page);

        let low: Vec<u8> =
            (0..IOVA_SPACE.end - IOVA_SPACE.start).map(|i| (i * 13 + (i >> 8)) as u8).collect();
        qemu.memory().write_slice(&low, GuestAddress(IOVA_SPACE.start)).expect("low memory");

        // The scenarios look at each fault.
        let config = Config { storms: Storms::NEVER, ..Config::default() };
        let iommu = Iommu::new(platform.clone(), config).expect("memory");
        // See `deviations::FIRST_STAGE_WIDTH`.
        let options = Options { first_stage_width: kind == Kind::Qemu, ..Options::default() };
        let vtd = Vtd::new(platform.clone(), VTD, options);
        let cx = Sleep::in_sleepable_context();
        iommu.register(&cx, INSTANCE, Box::new(vtd), Start::Fresh).expect("the VT-d starts");
        QemuRig {
            kind,
            fault_registers,
            shape,
            qemu,
            platform,
            iommu,
            oracle: Oracle::default(),
            stock,
            tale,
            turn: 0,
            low,
        }
    }

    fn edu(&self, who: Who) -> Option<Edu> {
        let [first, second] = self.qemu.edus();
        match who {
            Who::First => Some(first),
            Who::Second => Some(second),
            Who::Teller => None,
        }
    }

    fn edu_writes(&mut self, edu: &Edu, iova: u64, len: usize) -> Sent {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let n = (len - bytes.len()).min(HALF);
            let from = self.turn % (HALF - n + 1);
            self.turn += 97;
            edu.write_memory(iova + bytes.len() as u64, from, n).expect("edu's engine");
            bytes.extend_from_slice(&self.stock[from..from + n]);
        }
        Sent { bytes, told: Told::Nothing }
    }

    fn teller_writes(&mut self, teller: &TestDev, iova: u64, len: usize) -> Sent {
        let mut sent = Sent { bytes: Vec::new(), told: Told::Done };
        while sent.bytes.len() < len {
            let n = (len - sent.bytes.len()).min(TELLER_BYTES);
            let at = iova + sent.bytes.len() as u64;
            // Where the bytes are is not its word to give: the stage looks for itself.
            match teller.write_memory(at, self.platform.ram().base(), n as u32) {
                Ok(()) | Err(DmaFailure::Elsewhere) => {}
                Err(DmaFailure::Blocked) => sent.told = Told::Blocked,
                Err(error) => panic!("the teller's engine: {error:?}"),
            }
            sent.bytes.extend_from_slice(&self.tale[..n]);
        }
        sent
    }
}

impl Rig for QemuRig {
    type P = QemuPlatform;

    fn kind(&self) -> Kind {
        self.kind
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn platform(&self) -> &QemuPlatform {
        &self.platform
    }

    fn fault_registers(&self) -> usize {
        self.fault_registers
    }

    fn iommu(&self) -> &Iommu<QemuPlatform> {
        &self.iommu
    }

    fn ram(&self) -> &Ram {
        self.platform.ram()
    }

    fn control(&self, _: Who) -> Arc<dyn DeviceControl> {
        Arc::new(Plain)
    }

    fn write(&mut self, who: Who, iova: u64, len: usize) -> Sent {
        match self.edu(who) {
            Some(edu) => self.edu_writes(&edu, iova, len),
            None => self.teller_writes(&self.qemu.testdev(), iova, len),
        }
    }

    /// The bytes of edu's buffer can be seen only after it wrote them to memory.
    fn read(&mut self, who: Who, iova: u64, len: usize, outlet: Option<Outlet>) -> Fetched {
        let edu = self.edu(who).expect("the teller cannot read");
        assert!(len <= HALF, "more than edu's buffer has room for");
        let read = |iova| edu.read_memory(iova, HALF, len).expect("edu's engine");
        let Some(outlet) = outlet else {
            read(iova);
            return Fetched::Unseen;
        };
        let filler = vec![FILLER; len];
        self.ram().write(outlet.phys.0, &filler).expect("memory");
        read(outlet.iova);
        read(iova);
        self.ram().write(outlet.phys.0, &vec![!FILLER; len]).expect("memory");
        edu.write_memory(outlet.iova, HALF, len).expect("edu's engine");
        let mut bytes = vec![0; len];
        self.ram().read(outlet.phys.0, &mut bytes).expect("memory");
        if bytes == filler { Fetched::Nothing } else { Fetched::Bytes(bytes) }
    }

    fn settle(&mut self) {
        let cx = Sleep::in_sleepable_context();
        if self.platform.timer_is_due() {
            self.iommu.tick();
        }
        self.iommu.service(INSTANCE);
        if self.platform.was_kicked() {
            while self.iommu.run_one(&cx) {}
        }
    }

    fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    fn verdict(&mut self) -> Result<(), String> {
        let mut now = vec![0; self.low.len()];
        self.qemu.memory().read_slice(&mut now, GuestAddress(IOVA_SPACE.start)).map_err(|e| e.to_string())?;
        match now.iter().zip(&self.low).position(|(now, before)| now != before) {
            None => Ok(()),
            Some(i) => Err(format!("low memory was written at {:#x}", IOVA_SPACE.start + i as u64)),
        }
    }
}

/// The configuration space of a device without PASID, ATS and page requests.
struct Plain;

impl DeviceControl for Plain {
    fn set_pasid(&self, on: bool) {
        assert!(!on, "the device has no PASID capability");
    }
    fn set_ats(&self, on: bool) {
        assert!(!on, "the device has no ATS capability");
    }
    fn set_pri(&self, credits: Option<u32>) {
        assert!(credits.is_none(), "the device has no page requests");
    }
    fn reset(&self) {}
}
