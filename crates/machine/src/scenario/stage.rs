//! What small scenarios share: one VT-d, endpoints that do what they are told, domains and
//! attachments of which the oracle is told.

use crate::{
    board::Board,
    machine::{self, INSTANCE, Machine, MachineConfig, MachineError, On, OnThreads},
    oracle::{Oracle, Place, Verdict, settlement},
    platform::{AnyPlatform, MachinePlatform},
    runner::{Runner, Stuck},
    sim::{Plant, Pool, SimConfig, Strategy},
};
use parking_lot::Mutex;
use portcullis::{
    Config, Device, Iommu, Sleep, Woken,
    driver::{Driver, Start},
};
use portcullis_drivers::vtd as driver;
use portcullis_models::{
    adversary::{Action, Adversary, Level},
    bus::{Pasid, Prefix, RequesterId},
    endpoint::{Endpoint, Engine, Failure, Intent, Port},
    log::{AccessLog, DropCause, Event, What},
    mutation::Mutations,
    vtd as model,
};
use std::{collections::BTreeMap, sync::Arc};

/// Workers of the simulation.
const WORKERS: usize = 4;
/// Bytes of memory.
const MEMORY: usize = 16 << 20;
/// Nanoseconds between the first two looks at something that the hardware does.
const LOOK: u64 = 2_000;
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
    /// Memory and stacks to use again from run to run.
    pub pool: Pool,
}

impl Setting {
    /// The default unit, nothing planted, no adversary.
    pub fn new(seed: u64) -> Setting {
        Setting {
            seed,
            threads: None,
            adversary: Level::Off,
            unit: model::Config::default(),
            options: driver::Options::default(),
            core: Config::default(),
            mutations: Mutations::default(),
            plant: None,
            wrap: None,
            strategy: None,
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
    /// What the adversary did.
    pub actions: Vec<(Action, u64)>,
    /// Hash of the schedule; 0 on threads.
    pub schedule_hash: u64,
    /// Nanoseconds of the platform's clock at the end.
    pub ns: u64,
}

impl Ending {
    /// Whether everything was as it should be.
    pub fn ok(&self) -> bool {
        self.verdict.holds() && self.problems.is_empty() && self.stuck.is_none()
    }
}

/// Counts from the bus's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How last page requests were settled.
    pub settled: BTreeMap<String, u64>,
    /// Page requests that the IOMMU dropped, by cause.
    pub dropped: BTreeMap<DropCause, u64>,
    /// Responses discarded because a reset had made their group void.
    pub late: u64,
    /// Requests refused.
    pub blocked: u64,
    /// Interrupts that endpoints sent.
    pub interrupts: u64,
}

impl Tally {
    /// Groups settled in a way that begins so.
    pub fn settled_by(&self, how: &str) -> u64 {
        self.settled.iter().filter(|(h, _)| h.starts_with(how)).map(|(_, n)| n).sum()
    }
}

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
    tally: Arc<Mutex<Tally>>,
    problems: Arc<Mutex<Vec<String>>>,
    numbers: Arc<Mutex<u64>>,
}

/// Runs a scenario.
pub fn perform(
    scenario: &'static str,
    setting: &Setting,
    play: impl FnOnce(&Stage, &Sleep<'_>) -> Result<(), String> + Send + 'static,
) -> Ending {
    let mut ending = Ending {
        scenario,
        seed: setting.seed,
        verdict: Verdict::default(),
        problems: Vec::new(),
        stuck: None,
        tally: Tally::default(),
        actions: Vec::new(),
        schedule_hash: 0,
        ns: 0,
    };
    let begun = Stage::set(setting);
    let (mut run, stage) = match begun {
        Ok(begun) => begun,
        Err(e) => {
            ending.problems.push(e.to_string());
            return ending;
        }
    };
    let (oracle, tally, problems) = (stage.oracle.clone(), stage.tally.clone(), stage.problems.clone());
    run.spawn("main", move |_| {
        let cx = Sleep::in_sleepable_context();
        if let Err(e) = play(&stage, &cx) {
            stage.problem(e);
        }
    });
    ending.stuck = run.run().and_then(|()| run.settle()).err();
    ending.schedule_hash = run.schedule().map_or(0, |s| s.hash);
    ending.ns = run.now().0;
    let board = run.take_hardware::<Board>();
    if let Err(stuck) = run.finish() {
        ending.stuck.get_or_insert(stuck);
    }
    ending.problems.append(&mut problems.lock());
    ending.tally = tally.lock().clone();
    ending.verdict = oracle.close();
    if let Some(board) = board {
        ending.actions = board.complex.adversary().counts().to_vec();
        for place in 0..board.complex.endpoints() {
            let Some(endpoint) = board.complex.endpoint(place) else { continue };
            let id = endpoint.id();
            ending.tally.interrupts += board.interrupts_from(id);
            ending.problems.extend(endpoint.violations().iter().map(|v| format!("{id}: {v}")));
        }
    }
    ending
}

impl Stage {
    fn set(setting: &Setting) -> Result<(Runner, Stage), MachineError> {
        let (oracle, tally) = (Oracle::default(), Arc::default());
        let Machine { run, iommu } = Machine::new(MachineConfig {
            core: setting.core,
            unit: setting.unit.clone(),
            adversary: setting.adversary,
            mutations: setting.mutations,
            workers: setting.threads.unwrap_or(WORKERS),
            log: Box::new(Notes { oracle: oracle.clone(), tally: Arc::clone(&tally) }),
            ..MachineConfig::on(setting.on(), setting.seed)
        })?;
        let platform = run.platform();
        // Where one of the two is snooped, structures or page tables, both are taken to be.
        platform.ram().track_cleaning(!setting.unit.coherent && !setting.unit.walks_coherent);
        let stage = Stage {
            platform,
            iommu,
            oracle,
            setting: Arc::new(setting.clone()),
            tally,
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
        self.tally.lock().clone()
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

    /// Plugs an endpoint in that does what it is told, and adds its device.
    ///
    /// # Errors
    /// The core's reason.
    pub fn device(&self, cx: &Sleep<'_>, id: u16, trusted: bool) -> Result<Actor, String> {
        let results = Arc::new(Mutex::new(BTreeMap::new()));
        let hand = Box::new(Hand(results.clone()));
        self.device_with(cx, id, trusted, hand).map(|a| Actor { results, ..a })
    }

    /// The same with another engine: its accesses are not the scenario's.
    ///
    /// # Errors
    /// The core's reason.
    pub fn device_with(
        &self,
        cx: &Sleep<'_>,
        id: u16,
        trusted: bool,
        engine: Box<dyn Engine>,
    ) -> Result<Actor, String> {
        let rid = RequesterId(id);
        let endpoint = Endpoint::new(rid, self.setting.seed ^ u64::from(id) << 32, engine);
        let (place, spec) = machine::plug(&self.platform, endpoint, trusted);
        let device = self.iommu.add_device(cx, spec).map_err(|e| e.to_string())?;
        Ok(Actor { stage: self.clone(), id: rid, place, device, results: Arc::default() })
    }
}

/// A task of a scenario.
pub type Task = Box<dyn FnOnce(&Stage, &Sleep<'_>) -> Result<(), String> + Send>;

type Results = Arc<Mutex<BTreeMap<u64, Result<Vec<u8>, Failure>>>>;

/// A device on the stage: the endpoint and what the core knows of it.
#[derive(Clone)]
pub struct Actor {
    stage: Stage,
    /// Its requester id.
    pub id: RequesterId,
    /// Its place in the complex.
    pub place: usize,
    /// The core's handle.
    pub device: Device<AnyPlatform>,
    results: Results,
}

impl Actor {
    /// Where it translates: by its requester id, or inside a PASID.
    pub fn at(&self, pasid: Option<u32>) -> Place {
        (self.id, pasid.and_then(Pasid::new))
    }

    /// Calls `f` with the endpoint.
    pub fn endpoint<R>(&self, f: impl FnOnce(&mut Endpoint) -> R) -> Option<R> {
        self.stage.platform.hardware::<Board, _>(|b| b.complex.endpoint_mut(self.place).map(f)).flatten()
    }

    /// Begins an access.
    pub fn begin(&self, pasid: Option<u32>, iova: u64, intent: Intent) -> u64 {
        let prefix = pasid.and_then(Pasid::new).map(Prefix::user);
        let ticket = self.endpoint(|e| {
            e.port_mut().set_prefix(prefix);
            e.port_mut().access(iova, intent)
        });
        ticket.unwrap_or(0)
    }

    /// Waits for the end of an access.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&self, cx: &Sleep<'_>, ticket: u64) -> Result<Result<Vec<u8>, Failure>, String> {
        let mut result = None;
        self.stage.until(cx, "the end of an access", || {
            result = self.results.lock().remove(&ticket);
            result.is_some()
        })?;
        result.ok_or_else(|| format!("{}: access {ticket} did not end", self.id))
    }

    /// One access, begun and ended.
    ///
    /// # Errors
    /// When it does not end.
    pub fn access(
        &self,
        cx: &Sleep<'_>,
        pasid: Option<u32>,
        iova: u64,
        intent: Intent,
    ) -> Result<Result<Vec<u8>, Failure>, String> {
        let ticket = self.begin(pasid, iova, intent);
        self.end(cx, ticket)
    }

    /// An access that has to succeed. One whose page request the hardware refuses, as the adversary
    /// has it do, is tried again.
    ///
    /// # Errors
    /// When it fails.
    pub fn must(
        &self,
        cx: &Sleep<'_>,
        pasid: Option<u32>,
        iova: u64,
        intent: Intent,
    ) -> Result<Vec<u8>, String> {
        let threads = self.stage.on_threads();
        let tries = if self.stage.is_calm() && !threads { 1 } else { 64 };
        let mut last = None;
        for n in 0..tries {
            match self.access(cx, pasid, iova, intent.clone())? {
                Ok(data) => return Ok(data),
                Err(failure) => last = Some(failure),
            }
            if threads {
                // There hardware is fast beside software: what is in the way takes longer to go.
                self.stage.sleep(cx, LOOK << (n / 4))?;
            }
        }
        Err(format!("{} at {iova:#x}, PASID {pasid:?}: {last:?}", self.id))
    }

    /// An access that has to fail.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn must_not(
        &self,
        cx: &Sleep<'_>,
        pasid: Option<u32>,
        iova: u64,
        intent: Intent,
    ) -> Result<Failure, String> {
        match self.access(cx, pasid, iova, intent)? {
            Err(failure) => Ok(failure),
            Ok(_) => Err(format!("{} at {iova:#x}, PASID {pasid:?}: it was let through", self.id)),
        }
    }

    /// Waits until the engine has fallen silent.
    ///
    /// # Errors
    /// When the run ends.
    pub fn until_silent(&self, cx: &Sleep<'_>) -> Result<(), String> {
        let look = || {
            self.endpoint(|e| {
                let s = e.statistics();
                let blocked = s.blocked.values().sum::<u64>();
                (s.page_requests, s.accesses, blocked, e.port().outstanding())
            })
        };
        let (mut before, mut same) = (look(), 0);
        while same < 20 {
            self.stage.sleep(cx, 10_000)?;
            let now = look();
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }
}

/// An engine without a will: the scenario begins accesses, and reads here how they ended.
struct Hand(Results);

impl Engine for Hand {
    fn wants(&self, _: &Port) -> bool {
        false
    }

    fn step(&mut self, _: &mut Port, _: &mut Adversary, _: usize) {}

    fn ended(&mut self, _: &mut Port, ticket: u64, result: Result<Vec<u8>, Failure>) {
        self.0.lock().insert(ticket, result);
    }

    fn reset(&mut self) {
        self.0.lock().clear();
    }
}

/// The oracle and the counters read the bus's log.
struct Notes {
    oracle: Oracle,
    tally: Arc<Mutex<Tally>>,
}

impl AccessLog for Notes {
    fn event(&mut self, event: &Event) {
        self.oracle.event(event);
        let mut t = self.tally.lock();
        match &event.what {
            What::Settled { how, .. } => *t.settled.entry(settlement(*how)).or_default() += 1,
            What::PageDropped { cause, .. } => *t.dropped.entry(*cause).or_default() += 1,
            What::LateResponse { .. } => t.late += 1,
            What::Blocked { .. } => t.blocked += 1,
            _ => {}
        }
    }
}
