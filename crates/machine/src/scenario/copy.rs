//! The main scenario: engines copy a file through an IOMMU that pages their memory in on demand,
//! and rogues beside them are stopped.

mod config;

pub use self::config::{CopyConfig, CopyError, MOST_ENGINES, MOST_THREADS, Progress, most_input};
use crate::{
    board::Board,
    machine::{self, INSTANCE, Machine, MachineConfig},
    pager::{Backing, PAGE, Paging, Region, Space},
    platform::{AnyPlatform, MachinePlatform},
    report::{self, DeviceReport, NO_SCHEDULE, Report, Timing},
    watch::Watch,
};
use parking_lot::Mutex;
use portcullis::{
    Attachment, Config, Device, Domain, DomainOptions, External, Iommu, Platform, Reason, Scope, Sleep,
    Subscription, Told, Waited,
    driver::{Stage, Start, TableRequest},
    error::AttachError,
};
use portcullis_drivers::vtd::{Options, QueueSize};
pub use portcullis_models::adversary::{Action, Level};
use portcullis_models::{
    bus::{Pasid, RequesterId},
    endpoint::{CopyEngine, Endpoint, Engine, Flood, FloodConfig, Job, JobEnd, Rogue, RogueConfig},
};
use portcullis_pgtable::{Phys, Prot};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, sync::Arc, time::Instant};

/// IOVA of the first byte that an engine reads.
const SOURCE: u64 = 0x1_0000_0000;
/// IOVA of the first byte that it writes.
const DESTINATION: u64 = 0x8_0000_0000;
/// Pieces that an engine has under way at most.
const WINDOW: usize = 4;
/// Pieces after which an engine reads where an earlier one went: often enough that a translation
/// which outlives its eviction is used.
const LOOK_BACK: u64 = 8;
/// How often an engine asks again for a page that was refused.
const RETRIES: u32 = 64;
/// Entries of the page-request queue that can be in use: one page, which is little for so many.
const PAGE_QUEUE: u32 = 127;
/// Where the rogues' own pages are.
const ROGUE_IOVA: u64 = 0x4000_0000;
/// How many they have.
const ROGUE_PAGES: usize = 4;
/// Where the untrusted rogue has none.
const ROGUE_OUTSIDE: u64 = 0x7000_0000;
/// What a rogue does before it falls silent.
const ROGUE_ACTIONS: u64 = 440;
/// Nanoseconds between two looks at the engines.
const WATCH_INTERVAL: u64 = 50_000;
/// The same in real time.
const WATCH_INTERVAL_ON_THREADS: u64 = 1_000_000;
/// Workers of the simulation.
const WORKERS: usize = 4;
/// Faults that are explained in words.
const EXPLAINED: usize = 3;
/// Maps and unmaps of a domain that are remembered to explain faults.
const HISTORY: usize = 64;

/// What a run leaves.
pub struct Outcome {
    /// The report.
    pub report: Report,
    /// What each engine wrote.
    pub outputs: Vec<Vec<u8>>,
}

/// Which part a device plays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Engine,
    Untrusted,
    Flooding,
}

struct Actor {
    role: Role,
    id: RequesterId,
    place: usize,
    pasid: Option<Pasid>,
    frames: usize,
}

impl Actor {
    fn name(&self) -> &'static str {
        match (self.role, self.pasid) {
            (Role::Engine, None) => "copy engine",
            (Role::Engine, Some(_)) => "copy engine in a PASID",
            (Role::Untrusted, _) => "rogue, not trusted, no ATS",
            (Role::Flooding, _) => "rogue, trusted, floods page requests",
        }
    }
}

/// Copies, and reports.
///
/// # Errors
/// See [`CopyError`]: the run did not begin.
pub fn run(config: &CopyConfig) -> Result<Outcome, CopyError> {
    let begun = Instant::now();
    let frames = config.budget()?;
    let pages = (config.input.len() as u64).div_ceil(PAGE) * config.engines as u64;
    let actors = Arc::new(cast(config, frames));
    let watch = Watch::new(actors[0].id);
    let Machine { mut run, iommu } = Machine::new(MachineConfig {
        core: limits(config),
        unit: config.unit(),
        workers: config.threads.unwrap_or(WORKERS),
        adversary: config.adversary,
        mutations: config.mutations,
        log: Box::new(watch.clone()),
        ..MachineConfig::on(config.on(pages), config.seed)
    })?;

    if let Some(trace) = &config.trace {
        watch.oracle.read_along(trace.reader(&run.platform()));
    }
    let results = Arc::new(Mutex::new(Results::default()));
    let scene = Scene {
        seed: config.seed,
        threads: config.threads.is_some(),
        iommu,
        input: config.input.clone(),
        watch: watch.clone(),
        actors: actors.clone(),
        results: results.clone(),
        progress: config.progress.clone(),
    };
    run.spawn("main", move |p| scene.play(p));
    let mut problems = Vec::new();
    if let Err(stuck) = run.run().and_then(|()| run.settle()) {
        problems.push(stuck.to_string());
    }
    let mut results = std::mem::take(&mut *results.lock());
    problems.append(&mut results.problems);
    let schedule = run.schedule();
    let ns = run.now().0;
    let input_sha256 = sha256(&config.input);
    let board = run.take_hardware::<Board>();
    if let Err(stuck) = run.finish() {
        problems.push(stuck.to_string());
    }
    let devices = match &board {
        Some(board) => {
            actors.iter().map(|a| told(a, &watch, board, &results, (&config.input, &input_sha256))).collect()
        }
        None => Vec::new(),
    };
    let actions = board.map(|b| b.complex.adversary().counts().to_vec()).unwrap_or_default();
    let invariants = watch.oracle.close();
    let sound = |d: &DeviceReport| d.identical != Some(false) && d.order_violations == 0;
    let ok = invariants.holds() && problems.is_empty() && !devices.is_empty() && devices.iter().all(sound);
    let report = Report {
        seed: config.seed,
        adversary: format!("{:?}", config.adversary).to_lowercase(),
        strategy: schedule.as_ref().map_or_else(|| NO_SCHEDULE.into(), |s| s.strategy.clone()),
        scenario: "copy".into(),
        input_bytes: Some(config.input.len() as u64),
        input_sha256: Some(input_sha256),
        frames: Some(frames),
        counts: BTreeMap::new(),
        devices,
        adversary_actions: actions.into_iter().collect(),
        fault_records: results.fault_records,
        fault_records_lost: results.fault_records_lost,
        explained: std::mem::take(&mut results.explained).into_iter().map(|(_, said)| said).collect(),
        resolvers_at_once: watch.oracle.most_handlers_at_once(),
        virtual_ns: schedule.as_ref().map(|_| ns),
        steps: schedule.as_ref().map(|s| s.steps),
        schedule_hash: schedule.map(|s| format!("{:016x}", s.hash)),
        threads: config.threads.map(|workers| results.on_threads(workers)),
        invariants,
        problems,
        ok,
        life: watch.life.lines(),
        timing: Timing { seconds: begun.elapsed().as_secs_f64() },
    };
    Ok(Outcome { report, outputs: results.outputs })
}

/// What is told of a device, of the input and its hash.
fn told(
    actor: &Actor,
    watch: &Watch,
    board: &Board,
    results: &Results,
    (input, hash): (&[u8], &str),
) -> DeviceReport {
    let mut report = DeviceReport {
        role: actor.name().into(),
        pasid: actor.pasid.map(Pasid::get),
        core: results.counters.get(&actor.place).copied().unwrap_or_default().into(),
        pager: results.pagers.get(&actor.place).copied(),
        ..watch.device(board, actor.place)
    };
    if actor.role == Role::Engine {
        let output = results.outputs.get(actor.place);
        let identical = output.is_some_and(|o| o == input);
        report.identical = Some(identical);
        // Of the same bytes it is the same.
        report.sha256 = if identical { Some(hash.into()) } else { output.map(|o| sha256(o)) };
    }
    report
}

/// Shares of the page-request queue small enough for every engine and the flooding rogue.
fn limits(config: &CopyConfig) -> Config {
    let devices = config.engines as u32 + 1;
    let base = Config::default();
    let share = (PAGE_QUEUE - base.credit_reserve) / devices;
    // On threads what is measured goes without a history.
    let provenance = if config.threads.is_some() { 0 } else { HISTORY };
    Config { credits_per_device: share.clamp(1, base.credits_per_device), provenance, ..base }
}

fn cast(config: &CopyConfig, frames: usize) -> Vec<Actor> {
    let mut actors = Vec::new();
    for n in 0..config.engines {
        let extra = usize::from(n < frames % config.engines);
        let pasid = if n % 2 == 1 { Pasid::new(100 + n as u32) } else { None };
        let frames = frames / config.engines + extra;
        actors.push(Actor {
            role: Role::Engine,
            id: RequesterId(((n + 1) << 3) as u16),
            place: n,
            pasid,
            frames,
        });
    }
    let rogues = [(Role::Untrusted, 0x6600), (Role::Flooding, 0x6608)];
    for (i, (role, id)) in rogues.into_iter().enumerate() {
        let place = config.engines + i;
        actors.push(Actor { role, id: RequesterId(id), place, pasid: None, frames: ROGUE_PAGES });
    }
    actors
}

/// What the main task leaves behind.
#[derive(Default)]
struct Results {
    outputs: Vec<Vec<u8>>,
    /// By place of the device.
    counters: BTreeMap<usize, portcullis::Counters>,
    pagers: BTreeMap<usize, crate::pager::PagerCounts>,
    fault_records: u64,
    fault_records_lost: u64,
    /// The first fault of each reason, in words.
    explained: Vec<(Reason, String)>,
    problems: Vec<String>,
    /// Nanoseconds from the first attach to the end of the work.
    working_ns: u64,
}

impl Results {
    fn on_threads(&self, workers: usize) -> report::OnThreads {
        let served = self.pagers.values().map(|p| p.served).sum();
        report::OnThreads::new(workers, served, self.working_ns)
    }
}

/// The main task: what the owner of the devices does.
struct Scene {
    seed: u64,
    threads: bool,
    iommu: Iommu<AnyPlatform>,
    input: Arc<[u8]>,
    watch: Watch,
    actors: Arc<Vec<Actor>>,
    results: Arc<Mutex<Results>>,
    progress: Option<Progress>,
}

/// A device with everything that hangs on it.
struct Member {
    device: Device<AnyPlatform>,
    domain: Domain<AnyPlatform, External<Space>>,
    space: Arc<Space>,
    attachment: Attachment<AnyPlatform>,
}

impl Scene {
    fn play(&self, p: &AnyPlatform) {
        let cx = Sleep::in_sleepable_context();
        if let Err(problem) = self.play_out(p, &cx) {
            self.results.lock().problems.push(problem);
        }
    }

    fn play_out(&self, p: &AnyPlatform, cx: &Sleep<'_>) -> Result<(), String> {
        let options = Options { page_request_queue: QueueSize::MIN, ..Options::default() };
        let driver = machine::vtd_with(p, options);
        self.iommu.register(cx, INSTANCE, driver, Start::Fresh).map_err(|e| e.to_string())?;
        let faults = self.iommu.observe(Scope::All, 1024).map_err(|e| e.to_string())?;
        let begun = p.now();
        let mut on_stage = Vec::new();
        for actor in self.actors.iter() {
            on_stage
                .push(self.enter(p, cx, actor).map_err(|e| format!("{} {}: {e}", actor.name(), actor.id))?);
        }
        self.watch_engines(p, cx, &faults)?;
        self.results.lock().working_ns = p.now().0 - begun.0;
        for (actor, member) in self.actors.iter().zip(on_stage) {
            self.leave(p, cx, actor, member).map_err(|e| format!("{} {}: {e}", actor.name(), actor.id))?;
        }
        self.hear(&faults);
        self.results.lock().fault_records_lost = faults.lost();
        Ok(())
    }

    /// Counts what an observer was told, and has the first of each reason explained.
    fn hear(&self, faults: &Subscription<AnyPlatform>) {
        while let Some(Told { record, .. }) = faults.try_next() {
            let is_new = {
                let mut results = self.results.lock();
                results.fault_records += 1;
                results.explained.len() < EXPLAINED
                    && results.explained.iter().all(|(r, _)| *r != record.reason)
            };
            if is_new {
                // It looks into domains: nothing of ours is held meanwhile.
                let said = self.iommu.explain(&record).to_string();
                self.results.lock().explained.push((record.reason, said));
            }
        }
    }

    /// The device as it comes out of its box.
    fn endpoint(&self, p: &AnyPlatform, actor: &Actor) -> Endpoint {
        let strangers = self.actors.iter().filter_map(|a| a.pasid).collect();
        let engine: Box<dyn Engine> = match actor.role {
            Role::Engine => {
                let window = WINDOW.min(actor.frames / 2).max(1);
                Box::new(CopyEngine::new(window, RETRIES).looking_back(LOOK_BACK))
            }
            Role::Untrusted => Box::new(Rogue::new(RogueConfig {
                budget: ROGUE_ACTIONS,
                outside: ROGUE_OUTSIDE..ROGUE_OUTSIDE + (1 << 24),
                physical: p.ram().base()..p.ram().base() + p.ram().size() as u64,
                pasids: strangers,
            })),
            Role::Flooding => Box::new(Flood::new(FloodConfig {
                budget: ROGUE_ACTIONS * 4,
                pages: ROGUE_IOVA..ROGUE_IOVA + 2 * ROGUE_PAGES as u64 * PAGE,
            })),
        };
        let mut endpoint = Endpoint::new(actor.id, self.seed ^ u64::from(actor.id.0) << 32, engine);
        endpoint.work_in(actor.pasid);
        endpoint
    }

    /// Adds a device, makes its domain and its pages, attaches it, and gives it its work.
    fn enter(&self, p: &AnyPlatform, cx: &Sleep<'_>, actor: &Actor) -> Result<Member, String> {
        let trusted = actor.role != Role::Untrusted;
        let (_, spec) = machine::plug(p, self.endpoint(p, actor), trusted);
        let device = self.iommu.add_device(cx, spec).map_err(|e| e.to_string())?;
        let stage = if actor.pasid.is_some() { Stage::First } else { Stage::Second };
        let options = DomainOptions {
            table: TableRequest { stage, ..TableRequest::default() },
            ..DomainOptions::default()
        };
        let resolver = trusted.then(|| Paging(p.clone()));
        let domain = self.iommu.external_domain(&[&device], options, resolver).map_err(|e| e.to_string())?;
        let frames = (0..actor.frames).map(|_| p.ram().page()).collect::<Result<Vec<_>, _>>();
        let frames = frames.map_err(|e| e.to_string())?;
        let space = self.space(actor, frames, &domain)?;
        let place = (actor.id, actor.pasid);
        self.watch.oracle.attach(place, domain.id());
        let pasid = actor.pasid.and_then(|x| portcullis::Pasid::new(x.get()));
        let attachment = loop {
            match self.iommu.attach(cx, &domain, &device, pasid, space.clone()) {
                Ok(attachment) => break attachment,
                // Rogues do not wait to be attached: one that was cut off for it meanwhile begins anew.
                Err(AttachError::Quarantined(_)) if actor.role != Role::Engine => {
                    device.reset(cx).map_err(|e| e.to_string())?;
                }
                Err(e) => return Err(e.to_string()),
            }
        };
        if actor.role == Role::Engine {
            let job = Job { source: SOURCE, destination: DESTINATION, len: self.input.len() as u64 };
            let begun =
                p.hardware::<Board, _>(|b| b.complex.endpoint_mut(actor.place).map(|e| e.submit(job)));
            if !matches!(begun, Some(Some(Ok(())))) {
                return Err(format!("the engine refused its job: {begun:?}"));
            }
        }
        Ok(Member { device, domain, space, attachment })
    }

    fn space(
        &self,
        actor: &Actor,
        frames: Vec<Phys>,
        domain: &Domain<AnyPlatform, External<Space>>,
    ) -> Result<Arc<Space>, String> {
        let zeros = |n: usize| Backing::Writable(vec![0; n]);
        let (regions, frames) = match actor.role {
            Role::Engine => {
                let input = Backing::ReadOnly(self.input.clone());
                let output = zeros(self.input.len());
                (
                    vec![
                        Region { start: SOURCE, bytes: input },
                        Region { start: DESTINATION, bytes: output },
                    ],
                    frames,
                )
            }
            Role::Flooding => {
                let pages = 2 * ROGUE_PAGES * PAGE as usize;
                (vec![Region { start: ROGUE_IOVA, bytes: zeros(pages) }], frames)
            }
            Role::Untrusted => {
                // What it may reach is mapped beforehand, beside what it tries to reach.
                for (i, frame) in frames.iter().enumerate() {
                    let iova = ROGUE_IOVA + i as u64 * PAGE;
                    self.watch.oracle.map(domain.id(), iova, frame.0, PAGE, true);
                    domain
                        .map_range(iova, *frame, PAGE, Prot::READ | Prot::WRITE)
                        .map_err(|e| e.to_string())?;
                }
                (Vec::new(), Vec::new())
            }
        };
        let number = actor.place as u64;
        let Watch { oracle, life, .. } = &self.watch;
        let space =
            Space::new(number, (actor.id, actor.pasid), regions, frames, oracle.clone(), life.clone());
        space.serve(domain);
        Ok(space)
    }

    /// Waits until every engine's job has ended.
    fn watch_engines(
        &self,
        p: &AnyPlatform,
        cx: &Sleep<'_>,
        faults: &Subscription<AnyPlatform>,
    ) -> Result<(), String> {
        let engines = || self.actors.iter().filter(|a| a.role == Role::Engine);
        let interval = if self.threads { WATCH_INTERVAL_ON_THREADS } else { WATCH_INTERVAL };
        loop {
            let (written, ends) = p
                .hardware::<Board, _>(|b| {
                    let of = |a: &Actor| b.complex.endpoint(a.place);
                    let written = engines().filter_map(of).map(|e| e.statistics().bytes_written).sum::<u64>();
                    let ends = engines().map(|a| of(a).and_then(Endpoint::job_end)).collect::<Vec<_>>();
                    (written, ends)
                })
                .unwrap_or_default();
            if let Some(tell) = &self.progress {
                tell(written);
            }
            self.hear(faults);
            if ends.iter().all(Option::is_some) {
                for (actor, end) in engines().zip(ends) {
                    if end != Some(JobEnd::Done) {
                        let said = format!("{} {}: its job ended with {end:?}", actor.name(), actor.id);
                        self.results.lock().problems.push(said);
                    }
                }
                return Ok(());
            }
            if p.sleep(cx, interval) == portcullis::Woken::Shutdown {
                return Err("shut down".into());
            }
        }
    }

    /// Detaches, waits until it is gone, takes the pages back.
    fn leave(&self, p: &AnyPlatform, cx: &Sleep<'_>, actor: &Actor, member: Member) -> Result<(), String> {
        let Member { device, domain, space, attachment } = member;
        let place = (actor.id, actor.pasid);
        let detaching = attachment.begin_detach(cx);
        self.watch.oracle.detached(place, domain.id());
        if detaching.lost() {
            return Err("the hardware was lost at detach".into());
        }
        if detaching.wait(cx, None) != Waited::Gone {
            return Err("a handler did not end".into());
        }
        self.watch.oracle.gone(space.attachment);
        let frames = space.release(p, cx).map_err(|e| e.to_string())?;
        frames.into_iter().for_each(|f| p.ram().free_page(f));
        let mut results = self.results.lock();
        results.counters.insert(actor.place, device.counters());
        results.pagers.insert(actor.place, space.counts());
        if actor.role == Role::Engine {
            results.outputs.push(space.take_bytes(1));
        }
        drop(results);
        self.iommu.remove_device(cx, device).map_err(|(_, e)| e.to_string())
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
