//! Our model as a rig: a simulation with three endpoints that do what they are told.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use portcullis::driver::{DeviceControl, Start};
use portcullis::{Config, Iommu, Sleep, Storms, Window, Woken};
use portcullis_drivers::vtd::{Msi, Options, Vtd};
use portcullis_machine::board::{Board, BusMemory};
use portcullis_machine::function::Function;
use portcullis_machine::memory::Ram;
use portcullis_machine::oracle::{Oracle, Verdict};
use portcullis_machine::platform::MachinePlatform;
use portcullis_machine::sim::{Sim, SimConfig, SimPlatform};
use portcullis_models::adversary::Adversary;
use portcullis_models::bus::RequesterId;
use portcullis_models::complex::Complex;
use portcullis_models::endpoint::{Endpoint, Engine, Failure, Intent, Port};
use portcullis_models::mutation::Mutations;
use portcullis_models::vtd as model;
use portcullis_pgtable::FRAME_SIZE;

use super::{Fetched, Form, INSTANCE, Kind, Outlet, Rig, Sent, Shape, Told, Who};
use crate::stage::Stage;

/// Schedules that each scenario runs under.
const SEEDS: std::ops::Range<u64> = 0..4;

/// Nanoseconds between two looks at an access.
const LOOK: u64 = 500;

/// Nanoseconds that a service turn takes at most, where nobody preempts it for long.
const TURN: u64 = 50_000;

/// How an access ended: the data of a read, empty for a write, or why not.
type Ended = Result<Vec<u8>, Failure>;

/// The machine of the model, as the scenario's task sees it.
pub struct ModelRig {
    shape: Shape,
    platform: SimPlatform,
    iommu: Iommu<SimPlatform>,
    oracle: Oracle,
    desks: BTreeMap<Who, Desk>,
    salt: u8,
}

/// Plays a scenario on the model, under a few schedules.
///
/// # Panics
/// When the scenario fails, with its seed.
pub fn on_model(shape: impl Into<Shape>, scenario: fn(&mut Stage<ModelRig>)) {
    let shape = shape.into();
    for seed in SEEDS {
        let verdict = play(shape, seed, Mutations::default(), scenario);
        assert!(verdict.holds(), "seed {seed}: {verdict:#?}");
        assert!(verdict.isolation.checked > 0, "no access was looked at");
    }
}

/// Plays a scenario once, with faults planted in the model, and returns what the oracle saw.
///
/// # Panics
/// When the scenario fails, with its seed.
pub fn play(
    shape: impl Into<Shape>,
    seed: u64,
    mutations: Mutations,
    scenario: fn(&mut Stage<ModelRig>),
) -> Verdict {
    let shape = shape.into();
    let mut sim = Sim::new(SimConfig::new(seed)).expect("memory");
    let oracle = Oracle::default();
    let memory = Arc::new(BusMemory(sim.platform().ram().clone()));
    let mut complex = Complex::new(memory, Box::new(oracle.clone()));
    complex.set_mutations(mutations);
    let unit = complex.add_unit(Box::new(model::Vtd::new(config(shape))));
    let mut desks = BTreeMap::new();
    for who in Who::ALL {
        let desk = Desk::default();
        let id = RequesterId(who.source().0 as u16);
        complex.add_endpoint(Endpoint::new(id, seed, Box::new(desk.clone())), Some(unit));
        desks.insert(who, desk);
    }
    sim.set_hardware(Board::new(complex));
    // The scenarios look at each fault.
    let config = Config { storms: Storms::NEVER, ..Config::default() };
    let iommu = Iommu::new(sim.platform().clone(), config).expect("memory");
    let core = iommu.clone();
    sim.on_interrupt(move |_, _| {
        if core.interrupt(INSTANCE) {
            core.service(INSTANCE);
        }
    });
    let core = iommu.clone();
    sim.on_timer(move |_| core.tick());
    let core = iommu.clone();
    sim.workers(1, move |_| core.run_one(&Sleep::in_sleepable_context()));

    let watched = oracle.clone();
    sim.spawn("scenario", move |p| {
        let mut stage = Stage::new(ModelRig::start(shape, p.clone(), iommu, watched, desks));
        scenario(&mut stage);
        stage.close();
    });
    if let Err(stuck) = sim.run().and_then(|()| sim.settle()) {
        panic!("seed {seed}: {stuck}");
    }
    sim.finish().expect("every stack comes to its end");
    oracle.close()
}

/// Units like QEMU's, but that a fault of one requester does not keep another's from being
/// recorded. Where tables of 5 levels are wanted, it can do with fewer too.
pub(super) fn config(shape: Shape) -> model::Config {
    let unit = match shape.form {
        Form::Legacy => model::Config::legacy(),
        Form::ScalableSecond => model::Config { first_stage: false, ..model::Config::default() },
        Form::ScalableFirst => model::Config { second_stage: false, ..model::Config::default() },
    };
    match shape.levels {
        5 => model::Config { widths: model::Agaw::ALL.to_vec(), ..unit.with_levels(model::Agaw::Bits57) },
        _ => unit,
    }
}

impl ModelRig {
    fn start(
        shape: Shape,
        platform: SimPlatform,
        iommu: Iommu<SimPlatform>,
        oracle: Oracle,
        desks: BTreeMap<Who, Desk>,
    ) -> Self {
        let event = |data| Some(Msi { address: 0xfee0_0000, data });
        let options = Options {
            fault_event: event(0x30),
            invalidation_event: event(0x31),
            page_request_event: event(0x32),
            ..Options::default()
        };
        let vtd = Vtd::new(platform.clone(), Window(0), options);
        let cx = Sleep::in_sleepable_context();
        iommu.register(&cx, INSTANCE, Box::new(vtd), Start::Fresh).expect("the VT-d starts");
        ModelRig { shape, platform, iommu, oracle, desks, salt: 0 }
    }

    fn access(&self, who: Who, iova: u64, intent: Intent) -> Ended {
        let ticket = self
            .platform
            .hardware::<Board, _>(|b| {
                let endpoint = b.complex.endpoint_mut(who as usize)?;
                Some(endpoint.port_mut().access(iova, intent))
            })
            .flatten()
            .expect("the endpoint is plugged in");
        let cx = Sleep::in_sleepable_context();
        loop {
            if let Some(ended) = self.desks[&who].0.lock().remove(&ticket) {
                return ended;
            }
            assert_ne!(self.platform.sleep(&cx, LOOK), Woken::Shutdown, "shut down");
        }
    }
}

impl Rig for ModelRig {
    type P = SimPlatform;

    fn kind(&self) -> Kind {
        Kind::Model
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn platform(&self) -> &SimPlatform {
        &self.platform
    }

    fn fault_registers(&self) -> usize {
        model::Config::default().fault_records.into()
    }

    fn iommu(&self) -> &Iommu<SimPlatform> {
        &self.iommu
    }

    fn ram(&self) -> &Ram {
        self.platform.ram()
    }

    fn control(&self, who: Who) -> Arc<dyn DeviceControl> {
        Arc::new(Function::new(&self.platform, who as usize))
    }

    fn write(&mut self, who: Who, iova: u64, len: usize) -> Sent {
        self.salt = self.salt.wrapping_add(1);
        let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(37) ^ self.salt).collect();
        let mut told = Told::Done;
        let mut at = iova;
        let mut rest = bytes.as_slice();
        // A request does not cross a page.
        while !rest.is_empty() {
            let room = FRAME_SIZE - at as usize % FRAME_SIZE;
            let (now, later) = rest.split_at(rest.len().min(room));
            if self.access(who, at, Intent::Write(now.to_vec())).is_err() {
                told = Told::Blocked;
            }
            at += now.len() as u64;
            rest = later;
        }
        Sent { bytes, told }
    }

    fn read(&mut self, who: Who, iova: u64, len: usize, _: Option<Outlet>) -> Fetched {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let at = iova + bytes.len() as u64;
            let room = FRAME_SIZE - at as usize % FRAME_SIZE;
            let n = room.min(len - bytes.len());
            match self.access(who, at, Intent::Read(n as u32)) {
                Ok(data) => bytes.extend(data),
                Err(_) => return Fetched::Nothing,
            }
        }
        Fetched::Bytes(bytes)
    }

    /// Interrupts do it by themselves; what they have not done yet is done here, and a turn that
    /// is under way on another stack gets the time to end.
    fn settle(&mut self) {
        self.iommu.service(INSTANCE);
        let cx = Sleep::in_sleepable_context();
        assert_ne!(self.platform.sleep(&cx, TURN), Woken::Shutdown, "shut down");
    }

    fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    fn verdict(&mut self) -> Result<(), String> {
        let verdict = self.oracle.verdict();
        if verdict.holds() { Ok(()) } else { Err(format!("{verdict:#?}")) }
    }
}

/// An engine without a will: its port is driven from outside, and what ends is laid down here.
#[derive(Clone, Default)]
struct Desk(Arc<Mutex<BTreeMap<u64, Ended>>>);

impl Engine for Desk {
    fn wants(&self, _: &Port) -> bool {
        false
    }

    fn step(&mut self, _: &mut Port, _: &mut Adversary, _: usize) {}

    fn ended(&mut self, _: &mut Port, ticket: u64, result: Ended) {
        self.0.lock().insert(ticket, result);
    }

    fn reset(&mut self) {
        self.0.lock().clear();
    }
}
