//! Observers of domains that nobody resolves faults for: they see every record that the hardware
//! gave, hear of its overflow, and change nothing.
#![cfg(feature = "sim")]

use parking_lot::Mutex;
use portcullis::{
    Config, Direction, DmaOptions, FaultKind, FaultRecord, InstanceId, Iommu, Observation, Scope, Sleep,
    Storms, Subscription, Told, Window, Woken, driver::Start,
};
use portcullis_drivers::vtd::{Msi, Options, Vtd};
use portcullis_machine::{
    board::{Board, BusMemory},
    machine::plug,
    platform::MachinePlatform,
    sim::{Sim, SimConfig, SimPlatform},
};
use portcullis_models::{
    adversary::Adversary,
    bus::RequesterId,
    complex::Complex,
    endpoint::{Endpoint, Engine, Failure, Intent, Job, JobRefused, Port},
    log::{AccessLog, Event, What},
    vtd as model,
};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

const INSTANCE: InstanceId = InstanceId(0);
/// Attached to a domain of the DMA API, and to one that blocks.
const DEVICES: [RequesterId; 2] = [RequesterId(0x80), RequesterId(0x88)];
const PAGE: u64 = 4096;

/// A refused access: whose, and in which page.
type Refused = (u32, u64);

/// What the bus refused, in its order.
#[derive(Clone, Default)]
struct Bus(Arc<Mutex<Vec<Refused>>>);

impl AccessLog for Bus {
    fn event(&mut self, event: &Event) {
        if let What::Blocked { source, addr, .. } = event.what {
            self.0.lock().push((source.0.into(), addr & !(PAGE - 1)));
        }
    }
}

/// Writes its budget of pages, those of its job's destination and their neighbours.
struct Wild {
    around: Option<u64>,
    left: u32,
    burst: usize,
    ended: Arc<AtomicU32>,
}

/// Accesses of each device.
const BUDGET: u32 = 120;

impl Engine for Wild {
    fn wants(&self, port: &Port) -> bool {
        self.left > 0 && self.around.is_some() && port.outstanding() < self.burst
    }
    fn step(&mut self, port: &mut Port, _: &mut Adversary, _: usize) {
        let Some(around) = self.around else { return };
        let page = (u64::from(self.left) * 7 + port.rng().u64(..5)) % 16;
        // Accesses in flight may end in any order: what is written depends on the page alone.
        port.access(around + page * PAGE, Intent::Write(vec![page as u8 + 1; 64]));
        self.left -= 1;
    }
    fn ended(&mut self, _: &mut Port, _: u64, _: Result<Vec<u8>, Failure>) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
    fn reset(&mut self) {}
    fn submit(&mut self, job: Job) -> Result<(), JobRefused> {
        self.around = Some(job.destination);
        Ok(())
    }
}

/// What a run leaves behind.
struct Run {
    /// The memory that the first device had been given.
    bytes: Vec<u8>,
    refused: Vec<Refused>,
    seen: Seen,
}

/// What each way of observing saw.
#[derive(Clone, Default)]
struct Seen {
    queue: Vec<FaultRecord>,
    queue_lost: u64,
    immediate: Arc<Mutex<Vec<FaultRecord>>>,
    sleeping: Arc<Mutex<Vec<FaultRecord>>>,
    /// By scope: the DMA API's domain, the blocked one.
    domains: [Arc<Mutex<Vec<FaultRecord>>>; 2],
}

/// The observers of a run, while it lasts.
struct Watch(Subscription<SimPlatform>, #[expect(dead_code, reason = "held")] Vec<Observation<SimPlatform>>);

fn watch(iommu: &Iommu<SimPlatform>, seen: &Seen, domains: [u64; 2]) -> Watch {
    let into = |list: &Arc<Mutex<Vec<FaultRecord>>>| {
        let list = list.clone();
        move |r: &FaultRecord| list.lock().push(*r)
    };
    let sleeping = seen.sleeping.clone();
    let told = move |_: &Sleep<'_>, told: &Told| sleeping.lock().push(told.record);
    Watch(
        iommu.observe(Scope::All, 1024).unwrap(),
        vec![
            iommu.observe_immediate(Scope::Instance(INSTANCE), into(&seen.immediate)).unwrap(),
            iommu.observe_sleeping(Scope::All, 1024, told).unwrap(),
            iommu.observe_immediate(Scope::Domain(domains[0]), into(&seen.domains[0])).unwrap(),
            iommu.observe_immediate(Scope::Domain(domains[1]), into(&seen.domains[1])).unwrap(),
        ],
    )
}

/// Two devices write where they may and where they may not; `burst` accesses of each at once.
fn run(seed: u64, fault_records: u16, burst: usize, observed: bool) -> Run {
    let mut sim = Sim::new(SimConfig::new(seed)).unwrap();
    let bus = Bus::default();
    let memory = BusMemory(sim.platform().ram().clone());
    let mut complex = Complex::new(Arc::new(memory), Box::new(bus.clone()));
    let unit = model::Config { fault_records, collapse_faults: false, ..model::Config::default() };
    complex.add_unit(Box::new(model::Vtd::new(unit)));
    sim.set_hardware(Board::new(complex));
    // Every record, one by one, is what is looked for.
    let config = Config { storms: Storms::NEVER, ..Config::default() };
    let iommu = Iommu::new(sim.platform().clone(), config).unwrap();
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
    let done = Arc::new(Mutex::new(None));
    let end = done.clone();
    sim.spawn("owner", move |p| {
        let left = owner(p, &iommu, burst, observed);
        *end.lock() = Some(left);
    });
    sim.run().and_then(|()| sim.settle()).unwrap();
    sim.finish().unwrap();
    let (bytes, seen) = done.lock().take().unwrap();
    Run { bytes, refused: std::mem::take(&mut *bus.0.lock()), seen }
}

fn owner(p: &SimPlatform, iommu: &Iommu<SimPlatform>, burst: usize, observed: bool) -> (Vec<u8>, Seen) {
    let cx = Sleep::in_sleepable_context();
    let event = |data| Some(Msi { address: 0xfee0_0000, data });
    let options = Options { fault_event: event(0x30), invalidation_event: event(0x31), ..Options::default() };
    let vtd = Vtd::new(p.clone(), Window(0), options);
    iommu.register(&cx, INSTANCE, Box::new(vtd), Start::Fresh).unwrap();
    let ended = Arc::new(AtomicU32::new(0));
    let [good, bad] = [0, 1].map(|i| {
        let engine = Wild { around: None, left: BUDGET, burst, ended: ended.clone() };
        let (_, spec) = plug(p, Endpoint::new(DEVICES[i], 1, Box::new(engine)), false);
        iommu.add_device(&cx, spec).unwrap()
    });
    let dma = iommu.kernel_dma_domain(&[&good], DmaOptions::default()).unwrap();
    let blocked = iommu.blocked_domain().unwrap();
    let one = iommu.attach(&cx, &dma, &good, None, Arc::new(())).unwrap();
    let two = iommu.attach(&cx, &blocked, &bad, None, Arc::new(())).unwrap();
    let pages = p.ram().pages(8).unwrap();
    let buffer = dma.dma_map(pages, 8 * PAGE, Direction::FromDevice).unwrap();

    let mut seen = Seen::default();
    let watch = observed.then(|| watch(iommu, &seen, [dma.id(), blocked.id()]));
    let job = Job { source: buffer.iova(), destination: buffer.iova(), len: 8 * PAGE };
    for place in 0..DEVICES.len() {
        let submit = |b: &mut Board| b.complex.endpoint_mut(place).map(|e| e.submit(job));
        assert_eq!(p.hardware(submit), Some(Some(Ok(()))));
    }
    while ended.load(Ordering::Relaxed) < 2 * BUDGET {
        assert_ne!(p.sleep(&cx, 1000), Woken::Shutdown);
    }
    // The last records find their way.
    for _ in 0..20_000 {
        assert_ne!(p.sleep(&cx, 1000), Woken::Shutdown);
    }
    if let Some(Watch(queue, _)) = &watch {
        seen.queue.extend(std::iter::from_fn(|| queue.try_next()).map(|told| told.record));
        seen.queue_lost = queue.lost();
    }
    drop(watch);
    buffer.unmap(&cx).unwrap();
    let mut bytes = vec![0; 8 * PAGE as usize];
    p.ram().read(pages.0, &mut bytes).unwrap();
    for attachment in [one, two] {
        attachment.begin_detach(&cx).wait(&cx, None);
    }
    for device in [good, bad] {
        iommu.remove_device(&cx, device).map_err(|_| ()).unwrap();
    }
    (bytes, seen)
}

fn dma(records: &[FaultRecord]) -> Vec<Refused> {
    let of = |r: &FaultRecord| Some((r.source?.0, r.address?));
    records.iter().filter(|r| r.kind != FaultKind::Overflow).filter_map(of).collect()
}

fn sorted(mut list: Vec<Refused>) -> Vec<Refused> {
    list.sort_unstable();
    list
}

/// With room for every record, each observer is told of each refusal, in the same order.
#[test]
fn every_record_of_a_kernel_dma_domain_and_of_a_blocked_one_is_seen() {
    for seed in 0..4 {
        let Run { refused, seen, .. } = run(seed, 256, 8, true);
        let count = |device: usize| refused.iter().filter(|r| r.0 == u32::from(DEVICES[device].0)).count();
        assert!(count(0) > 0 && count(1) == BUDGET as usize);
        assert_eq!(sorted(dma(&seen.queue)), sorted(refused.clone()), "seed {seed}");
        assert_eq!(seen.queue.len(), refused.len(), "nothing else was told");
        for list in [&*seen.immediate.lock(), &*seen.sleeping.lock()] {
            assert_eq!(*list, seen.queue, "seed {seed}");
        }
        for (device, list) in DEVICES.iter().zip(&seen.domains) {
            let of: Vec<_> = dma(&seen.queue).into_iter().filter(|r| r.0 == u32::from(device.0)).collect();
            assert_eq!(dma(&list.lock()), of, "seed {seed}");
        }
        assert_eq!(seen.queue_lost, 0);
    }
}

/// With one register, the hardware loses most: what it kept is seen, and that it lost some.
#[test]
fn what_the_hardware_lost_is_told_as_an_overflow() {
    for seed in 0..4 {
        let Run { refused, seen, .. } = run(seed, 1, 64, true);
        let (kept, mut refused) = (sorted(dma(&seen.queue)), sorted(refused).into_iter());
        let overflows = seen.queue.iter().filter(|r| r.kind == FaultKind::Overflow).count();
        assert!(kept.len() < refused.len() && overflows > 0, "seed {seed}: {} {overflows}", kept.len());
        assert!(kept.iter().all(|k| refused.any(|r| r == *k)), "seed {seed}: told, and never refused");
        assert_eq!(*seen.immediate.lock(), seen.queue);
    }
}

/// With and without observers, the same seed leaves the same bytes and the same refusals.
#[test]
fn observers_do_not_change_the_outcome() {
    for seed in 0..4 {
        for records in [1, 256] {
            let (with, without) = (run(seed, records, 16, true), run(seed, records, 16, false));
            assert!(without.seen.queue.is_empty() && with.bytes.iter().any(|b| *b != 0));
            assert!(with.bytes == without.bytes, "seed {seed}: the devices wrote other bytes");
            assert_eq!(sorted(with.refused), sorted(without.refused), "seed {seed}");
        }
    }
}
