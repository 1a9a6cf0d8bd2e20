//! What small scenarios share: one VT-d, endpoints that do what they are told, domains and
//! attachments of which the oracle is told.

pub use crate::watch::Tally;
use crate::{
    board::Board,
    machine::{self, INSTANCE, Machine, MachineConfig, MachineError, On, OnThreads},
    oracle::{Oracle, Verdict},
    platform::{AnyPlatform, MachinePlatform},
    report::{self, DeviceReport, NO_SCHEDULE, Report, Timing},
    runner::{Runner, Schedule, Stuck},
    sim::{Plant, Pool, SimConfig, Strategy},
    trace::Trace,
    watch::Watch,
};
use parking_lot::Mutex;
use portcullis::{
    Config, Device, Iommu, Sleep, Storms, Woken,
    driver::{Driver, Start},
};
use portcullis_drivers::vtd as driver;
use portcullis_models::{
    adversary::{Action, Level},
    bus::RequesterId,
    mutation::Mutations,
    vtd as model,
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Requester id of the device whose page requests are followed.
const FIRST: u16 = 0x08;
/// Workers of the simulation.
const WORKERS: usize = 4;
/// Bytes of memory.
const MEMORY: usize = 16 << 20;
/// Nanoseconds between the first two looks at something that the hardware does.
pub(super) const LOOK: u64 = 2_000;
/// Nanoseconds between two looks at most.
const LONGEST_LOOK: u64 = 256_000;
/// Looks after which a wait is given up.
const PATIENCE: u32 = 200_000;

/// Puts another driver in front of the real one.
pub type Wrap = Arc<dyn Fn(&AnyPlatform, Box<dyn Driver>) -> Box<dyn Driver> + Send + Sync>;

/// What a small scenario starts from.
#[derive(Clone)]
pub struct Setting {
    /// The seed.
    pub seed: u64,
    /// Real threads, so many of them workers; the seed then picks data and adversary, and the
    /// system's scheduler the steps. `None` for the simulation.
    pub threads: Option<usize>,
    /// How much happens, where the scenario lets it be chosen.
    pub size: Option<usize>,
    /// How many devices, where the scenario lets it be chosen.
    pub devices: Option<usize>,
    /// What the manuals let go wrong.
    pub adversary: Level,
    /// The unit's choices.
    pub unit: model::Config,
    /// The embedder's choices, but for its interrupts.
    pub options: driver::Options,
    /// The core's limits.
    pub core: Config,
    /// Faults planted in the model.
    pub mutations: Mutations,
    /// A race planted in the platform.
    pub plant: Option<Plant>,
    /// A driver in front of the driver.
    pub wrap: Option<Wrap>,
    /// How steps are chosen; `None` leaves it to the seed.
    pub strategy: Option<Strategy>,
    /// Is told of everything that happens.
    pub trace: Option<Trace>,
    /// Memory and stacks to use again from run to run.
    pub pool: Pool,
}

impl Setting {
    /// The default unit, nothing planted, no adversary.
    pub fn new(seed: u64) -> Setting {
        Setting {
            seed,
            threads: None,
            size: None,
            devices: None,
            adversary: Level::Off,
            unit: model::Config::default(),
            options: driver::Options::default(),
            // What small scenarios send is sent on purpose, and looked at record by record.
            core: Config { storms: Storms::NEVER, ..Config::default() },
            mutations: Mutations::default(),
            plant: None,
            wrap: None,
            strategy: None,
            trace: None,
            pool: Pool::default(),
        }
    }
}

impl Setting {
    fn on(&self) -> On {
        match self.threads {
            Some(_) => On::Threads(OnThreads { memory: MEMORY, ..OnThreads::default() }),
            None => On::Sim(SimConfig {
                strategy: self.strategy,
                plant: self.plant,
                memory: MEMORY,
                pool: self.pool.clone(),
                ..SimConfig::new(self.seed)
            }),
        }
    }
}

/// What a small scenario leaves.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Its name.
    pub scenario: &'static str,
    /// The seed.
    pub seed: u64,
    /// The three invariants.
    pub verdict: Verdict,
    /// What the scenario itself expected and did not find, in words.
    pub problems: Vec<String>,
    /// The run hung.
    pub stuck: Option<Stuck>,
    /// What the bus saw.
    pub tally: Tally,
    /// What the scenario counted.
    pub counts: BTreeMap<String, u64>,
    /// Its devices, in the order in which they were plugged in.
    pub devices: Vec<DeviceReport>,
    /// What the adversary did.
    pub actions: Vec<(Action, u64)>,
    /// Resolvers that ran at the same time, at most.
    pub resolvers_at_once: u32,
    /// The life of one page request of the first device.
    pub life: Vec<String>,
    /// How the steps were chosen, on the simulation.
    pub schedule: Option<Schedule>,
    /// Nanoseconds of the platform's clock at the end.
    pub ns: u64,
    /// Real time that it took.
    pub real: Duration,
}

impl Ending {
    /// Whether everything was as it should be.
    pub fn ok(&self) -> bool {
        self.verdict.holds() && self.problems.is_empty() && self.stuck.is_none()
    }

    /// Hash of the schedule; 0 on threads, which have none.
    pub fn schedule_hash(&self) -> u64 {
        self.schedule.as_ref().map_or(0, |s| s.hash)
    }

    /// The same as a report of a run.
    pub fn report(&self, setting: &Setting) -> Report {
        let schedule = self.schedule.as_ref();
        let stuck = self.stuck.iter().map(Stuck::to_string);
        let served = self.tally.settled_by("software: Success");
        Report {
            scenario: self.scenario.into(),
            seed: self.seed,
            adversary: format!("{:?}", setting.adversary).to_lowercase(),
            strategy: schedule.map_or_else(|| NO_SCHEDULE.into(), |s| s.strategy.clone()),
            input_bytes: None,
            input_sha256: None,
            frames: None,
            counts: self.counts.clone(),
            devices: self.devices.clone(),
            adversary_actions: self.actions.iter().copied().collect(),
            fault_records: self.devices.iter().map(|d| d.core.faults).sum(),
            fault_records_lost: 0,
            explained: Vec::new(),
            resolvers_at_once: self.resolvers_at_once,
            virtual_ns: schedule.map(|_| self.ns),
            steps: schedule.map(|s| s.steps),
            schedule_hash: schedule.map(|s| format!("{:016x}", s.hash)),
            threads: setting.threads.map(|workers| report::OnThreads::new(workers, served, self.ns)),
            invariants: self.verdict.clone(),
            problems: stuck.chain(self.problems.iter().cloned()).collect(),
            ok: self.ok(),
            life: self.life.clone(),
            timing: Timing { seconds: self.real.as_secs_f64() },
        }
    }
}

/// What each device is, by its place, and what the core knows of it.
type Cast = BTreeMap<usize, (String, Device<AnyPlatform>)>;

/// The machine, in the hands of a scenario's tasks. A handle.
#[derive(Clone)]
pub struct Stage {
    /// The platform.
    pub platform: AnyPlatform,
    /// The subsystem.
    pub iommu: Iommu<AnyPlatform>,
    /// The oracle.
    pub oracle: Oracle,
    /// What was set.
    pub setting: Arc<Setting>,
    watch: Watch,
    counts: Arc<Mutex<BTreeMap<String, u64>>>,
    pub(super) cast: Arc<Mutex<Cast>>,
    problems: Arc<Mutex<Vec<String>>>,
    numbers: Arc<Mutex<u64>>,
}

/// Runs a scenario.
pub fn perform(
    scenario: &'static str,
    setting: &Setting,
    play: impl FnOnce(&Stage, &Sleep<'_>) -> Result<(), String> + Send + 'static,
) -> Ending {
    let begun = Instant::now();
    let mut ending = Ending {
        scenario,
        seed: setting.seed,
        verdict: Verdict::default(),
        problems: Vec::new(),
        stuck: None,
        tally: Tally::default(),
        counts: BTreeMap::new(),
        devices: Vec::new(),
        actions: Vec::new(),
        resolvers_at_once: 0,
        life: Vec::new(),
        schedule: None,
        ns: 0,
        real: Duration::ZERO,
    };
    let (mut run, stage) = match Stage::set(setting) {
        Ok(set) => set,
        Err(e) => {
            ending.problems.push(e.to_string());
            return ending;
        }
    };
    let (watch, problems, counts) = (stage.watch.clone(), stage.problems.clone(), stage.counts.clone());
    let core = Arc::new(Mutex::new(BTreeMap::new()));
    let counters = core.clone();
    run.spawn("main", move |_| {
        let cx = Sleep::in_sleepable_context();
        if let Err(e) = play(&stage, &cx) {
            stage.problem(e);
        }
        let of = |(place, (role, device)): (usize, (String, Device<_>))| (place, (role, device.counters()));
        *counters.lock() = std::mem::take(&mut *stage.cast.lock()).into_iter().map(of).collect();
    });
    ending.stuck = run.run().and_then(|()| run.settle()).err();
    ending.schedule = run.schedule();
    ending.ns = run.now().0;
    let board = run.take_hardware::<Board>();
    if let Err(stuck) = run.finish() {
        ending.stuck.get_or_insert(stuck);
    }
    ending.problems.append(&mut problems.lock());
    ending.counts = std::mem::take(&mut *counts.lock());
    ending.tally = watch.tally();
    ending.verdict = watch.oracle.close();
    ending.resolvers_at_once = watch.oracle.most_handlers_at_once();
    ending.life = watch.life.lines();
    if let Some(board) = board {
        ending.actions = board.complex.adversary().counts().to_vec();
        let core = core.lock();
        for place in 0..board.complex.endpoints() {
            let Some(endpoint) = board.complex.endpoint(place) else { continue };
            let id = endpoint.id();
            ending.tally.interrupts += board.interrupts_from(id);
            ending.problems.extend(endpoint.violations().iter().map(|v| format!("{id}: {v}")));
            let (role, counters) = core.get(&place).cloned().unwrap_or_default();
            let device = watch.device(&board, place);
            ending.devices.push(DeviceReport { role, core: counters.into(), ..device });
        }
    }
    ending.real = begun.elapsed();
    ending
}

impl Stage {
    fn set(setting: &Setting) -> Result<(Runner, Stage), MachineError> {
        let watch = Watch::new(RequesterId(FIRST));
        let Machine { run, iommu } = Machine::new(MachineConfig {
            core: setting.core,
            unit: setting.unit.clone(),
            adversary: setting.adversary,
            mutations: setting.mutations,
            workers: setting.threads.unwrap_or(WORKERS),
            log: Box::new(watch.clone()),
            ..MachineConfig::on(setting.on(), setting.seed)
        })?;
        let platform = run.platform();
        if let Some(trace) = &setting.trace {
            watch.oracle.read_along(trace.reader(&platform));
        }
        // Where one of the two is snooped, structures or page tables, both are taken to be.
        platform.ram().track_cleaning(!setting.unit.coherent && !setting.unit.walks_coherent);
        let stage = Stage {
            platform,
            iommu,
            oracle: watch.oracle.clone(),
            setting: Arc::new(setting.clone()),
            watch,
            counts: Arc::default(),
            cast: Arc::default(),
            problems: Arc::default(),
            numbers: Arc::default(),
        };
        Ok((run, stage))
    }

    /// Brings the unit up.
    ///
    /// # Errors
    /// The driver's reason.
    pub fn start(&self, cx: &Sleep<'_>) -> Result<(), String> {
        let vtd = machine::vtd_with(&self.platform, self.setting.options);
        let vtd = match &self.setting.wrap {
            Some(wrap) => wrap(&self.platform, vtd),
            None => vtd,
        };
        self.iommu.register(cx, INSTANCE, vtd, Start::Fresh).map(|_| ()).map_err(|e| e.to_string())
    }

    /// A random number generator for one task of the scenario.
    pub fn rng(&self, task: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.setting.seed.wrapping_mul(31).wrapping_add(task ^ 0x7a5c))
    }

    /// Notes something that is not as expected.
    pub fn problem(&self, what: impl Into<String>) {
        let mut problems = self.problems.lock();
        if problems.len() < 32 {
            problems.push(what.into());
        }
    }

    /// Whether the adversary is away, so that what may happen does not.
    pub fn is_calm(&self) -> bool {
        self.setting.adversary == Level::Off
    }

    /// Whether it runs on real threads, where it is chance how far software gets while hardware does
    /// something: what depends on that is no expectation there.
    pub fn on_threads(&self) -> bool {
        self.setting.threads.is_some()
    }

    /// What the bus saw so far.
    pub fn tally(&self) -> Tally {
        self.watch.tally()
    }

    /// Counts something for the report.
    pub fn count(&self, what: &str, n: u64) {
        *self.counts.lock().entry(what.into()).or_default() += n;
    }

    /// A number that nothing else of this run has.
    pub fn number(&self) -> u64 {
        let mut n = self.numbers.lock();
        *n += 1;
        *n
    }

    /// Lets virtual time pass.
    ///
    /// # Errors
    /// When the run ends.
    pub fn sleep(&self, cx: &Sleep<'_>, ns: u64) -> Result<(), String> {
        match self.platform.sleep(cx, ns) {
            Woken::Shutdown => Err("the run ends".into()),
            _ => Ok(()),
        }
    }

    /// Runs tasks side by side and waits for all of them.
    ///
    /// # Errors
    /// When the run ends before they do. What they return is noted.
    pub fn together(&self, cx: &Sleep<'_>, tasks: Vec<Task>) -> Result<(), String> {
        let left = Arc::new(Mutex::new(tasks.len()));
        for (n, task) in tasks.into_iter().enumerate() {
            let (stage, left) = (self.clone(), left.clone());
            self.platform.spawn(format!("task {n}"), move |_| {
                if let Err(e) = task(&stage, &Sleep::in_sleepable_context()) {
                    stage.problem(e);
                }
                *left.lock() -= 1;
            });
        }
        self.until(cx, "the end of its tasks", || *left.lock() == 0)
    }

    /// Waits until something has come true.
    ///
    /// # Errors
    /// When it does not, or the run ends.
    pub fn until(&self, cx: &Sleep<'_>, what: &str, mut done: impl FnMut() -> bool) -> Result<(), String> {
        let mut pause = LOOK;
        for _ in 0..PATIENCE {
            if done() {
                return Ok(());
            }
            self.sleep(cx, pause)?;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
        Err(format!("waited in vain for {what}"))
    }
}

/// A task of a scenario.
pub type Task = Box<dyn FnOnce(&Stage, &Sleep<'_>) -> Result<(), String> + Send>;
