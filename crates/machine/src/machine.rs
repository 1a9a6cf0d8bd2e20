//! A machine, wired up: models and drivers that share registers and memory, and the
//! interrupts, timer and workers that drive the core, as a kernel's do.

#[cfg(feature = "sim")]
use crate::sim::{Sim, SimConfig};
use crate::{
    board::{Board, BusMemory},
    function::Function,
    memory::MemoryError,
    platform::{AnyPlatform, MachinePlatform},
    runner::Runner,
    threads::Threads,
};
use portcullis::{
    Config, DeviceCaps, DeviceId, DeviceSpec, InstanceId, Iommu, Sleep, SourceId, Upstream, Window,
    driver::Driver,
};
use portcullis_drivers::vtd as driver;
use portcullis_models::{
    adversary::{Adversary, Level},
    bus::RequesterId,
    complex::Complex,
    endpoint::Endpoint,
    log::{AccessLog, Silent},
    mutation::Mutations,
    vtd as model,
};
use std::{sync::Arc, time::Duration};

/// The machine's one IOMMU.
pub const INSTANCE: InstanceId = InstanceId(0);
/// Data of the interrupt by which it tells of fault records.
pub const FAULT_EVENT: u16 = 0x30;
/// Data of the interrupt by which it tells of completed invalidations.
pub const INVALIDATION_EVENT: u16 = 0x31;
/// Data of the interrupt by which it tells of page requests.
pub const PAGE_REQUEST_EVENT: u16 = 0x32;

/// Makes the adversary's choices differ from the scheduler's.
const ADVERSARY_SEED: u64 = 0xad7e_25a1;

/// What a machine runs on.
pub enum On {
    /// The simulation.
    #[cfg(feature = "sim")]
    Sim(SimConfig),
    /// Real threads.
    Threads(OnThreads),
}

/// What threads start from.
#[derive(Clone, Copy, Debug)]
pub struct OnThreads {
    /// Guest address of the memory.
    pub base: u64,
    /// Bytes of memory.
    pub memory: usize,
    /// How long the run may take.
    pub patience: Duration,
}

impl Default for OnThreads {
    fn default() -> OnThreads {
        OnThreads { base: 0x1000_0000, memory: 64 << 20, patience: Duration::from_secs(120) }
    }
}

impl On {
    fn runner(self) -> Result<Runner, MemoryError> {
        Ok(match self {
            #[cfg(feature = "sim")]
            On::Sim(config) => Runner::Sim(Box::new(Sim::new(config)?)),
            On::Threads(OnThreads { base, memory, patience }) => {
                Runner::Threads { threads: Threads::new(base, memory)?, patience }
            }
        })
    }
}

/// What a machine is made of.
pub struct MachineConfig {
    /// What it runs on.
    pub on: On,
    /// Seed of the adversary.
    pub seed: u64,
    /// The core's limits.
    pub core: Config,
    /// The unit's choices.
    pub unit: model::Config,
    /// Workers that run resolvers; at least one.
    pub workers: usize,
    /// The adversary's level.
    pub adversary: Level,
    /// Faults planted in the models, for tests.
    pub mutations: Mutations,
    /// Reads what happens on the bus.
    pub log: Box<dyn AccessLog>,
}

impl MachineConfig {
    /// A machine on the simulation, without an adversary, whose bus nobody watches.
    #[cfg(feature = "sim")]
    pub fn new(seed: u64) -> MachineConfig {
        MachineConfig::on(On::Sim(SimConfig::new(seed)), seed)
    }

    /// The same on what is given.
    pub fn on(on: On, seed: u64) -> MachineConfig {
        MachineConfig {
            on,
            seed,
            core: Config::default(),
            unit: model::Config::default(),
            workers: 4,
            adversary: Level::Off,
            mutations: Mutations::default(),
            log: Box::new(Silent),
        }
    }
}

/// Why there is no machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// The core's own records could not be had.
    #[error("out of memory")]
    OutOfMemory,
    /// The platform's memory could not be had.
    #[error("{0}")]
    Memory(#[from] MemoryError),
}

/// A machine with one Intel VT-d (scalable mode, ATS, PRI), nothing attached to it and its driver
/// not started yet.
pub struct Machine {
    /// What runs it.
    pub run: Runner,
    /// The subsystem under test, or in use.
    pub iommu: Iommu<AnyPlatform>,
}

impl Machine {
    /// Builds and wires it.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn new(config: MachineConfig) -> Result<Machine, MachineError> {
        let mut run = config.on.runner()?;
        let platform = run.platform();
        let mut complex = Complex::new(Arc::new(BusMemory(platform.ram().clone())), config.log);
        complex.set_adversary(Adversary::new(config.adversary, config.seed ^ ADVERSARY_SEED));
        complex.set_mutations(config.mutations);
        complex.add_unit(Box::new(model::Vtd::new(config.unit)));
        run.set_hardware(Board::new(complex));

        let iommu = Iommu::new(platform, config.core).map_err(|_| MachineError::OutOfMemory)?;
        let core = iommu.clone();
        run.on_interrupt(move |_| {
            if core.interrupt(INSTANCE) {
                core.service(INSTANCE);
            }
        });
        let core = iommu.clone();
        run.on_timer(move || core.tick());
        let core = iommu.clone();
        run.workers(config.workers.max(1), move || core.run_one(&Sleep::in_sleepable_context()));
        Ok(Machine { run, iommu })
    }
}

/// A driver for the machine's IOMMU, to be registered as [`INSTANCE`].
pub fn vtd<P: MachinePlatform>(platform: &P) -> Box<dyn Driver> {
    vtd_with(platform, driver::Options::default())
}

/// The same with the embedder's choices, but for the interrupts, which are the machine's.
pub fn vtd_with<P: MachinePlatform>(platform: &P, options: driver::Options) -> Box<dyn Driver> {
    let msi = |data| Some(driver::Msi { address: 0xfee0_0000, data });
    let options = driver::Options {
        fault_event: msi(FAULT_EVENT),
        invalidation_event: msi(INVALIDATION_EVENT),
        page_request_event: msi(PAGE_REQUEST_EVENT),
        ..options
    };
    Box::new(driver::Vtd::new(platform.clone(), Window(0), options))
}

/// Plugs an endpoint in below the IOMMU: from here on it does what it likes, whether or not the
/// core knows it. Returns its place, and what to tell the core of it.
pub fn plug<P: MachinePlatform>(platform: &P, endpoint: Endpoint, trusted: bool) -> (usize, DeviceSpec) {
    let source = endpoint.id();
    let plugged = platform.hardware(|b: &mut Board| b.complex.add_endpoint(endpoint, Some(0)));
    // On a platform without a board it is nowhere, and whoever asks for it is told so.
    let place = plugged.unwrap_or(usize::MAX);
    (place, spec(platform, place, source, trusted))
}

/// What to tell the core of the endpoint at `place` of the complex.
pub fn spec<P: MachinePlatform>(
    platform: &P,
    place: usize,
    source: RequesterId,
    trusted: bool,
) -> DeviceSpec {
    let source = u32::from(source.0);
    let caps = DeviceCaps {
        pasid_bits: 20,
        ats: true,
        invalidate_queue_depth: 0,
        page_requests: Some(256),
        stop_markers: false,
        coherent_dma: true,
        physical_function: None,
    };
    let upstreams = vec![Upstream { instance: INSTANCE, sources: vec![SourceId(source)] }];
    let control = Arc::new(Function::new(platform, place));
    DeviceSpec { trusted, caps, ..DeviceSpec::new(DeviceId(source.into()), upstreams, control) }
}
