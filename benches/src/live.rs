//! A machine on real threads, with interrupts, workers and devices that fault: page faults served in
//! a second, and how long a detach takes while another device floods the fault path.

use parking_lot::Mutex;
use portcullis::{
    Device, DomainOptions, External, Iommu, PageGroup, Platform, Response, Sleep,
    driver::{Start, TableRequest},
};
use portcullis_machine::{
    board::Board,
    machine::{INSTANCE, Machine, MachineConfig, On, OnThreads, plug, vtd},
    platform::{AnyPlatform, MachinePlatform},
};
use portcullis_models::{
    bus::RequesterId,
    endpoint::{CopyEngine, Endpoint, Engine, Flood, FloodConfig, Idle, Job},
};
use portcullis_pgtable::{Phys, Prot};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

const PAGE: u64 = 4096;
const SOURCE: u64 = 0x1_0000_0000;
const DESTINATION: u64 = 0x8_0000_0000;
/// Bytes that each engine copies: all its pages fault once.
const COPY: u64 = 4 << 20;
const ENGINES: u16 = 4;
const WORKERS: usize = 4;
const DETACHES: usize = 400;

/// What a resolver gets: the pages that are there already.
#[derive(Default)]
struct Space(Mutex<BTreeSet<u64>>);

type Domain = portcullis::Domain<AnyPlatform, External<Space>>;

fn machine() -> Machine {
    let config =
        MachineConfig { workers: WORKERS, ..MachineConfig::on(On::Threads(OnThreads::default()), 0) };
    Machine::new(config).expect("a machine")
}

/// A device whose pages all lead to one frame, mapped when they are asked for.
fn device(
    p: &AnyPlatform,
    iommu: &Iommu<AnyPlatform>,
    cx: &Sleep<'_>,
    id: u16,
    engine: Box<dyn Engine>,
    served: &Arc<AtomicU64>,
) -> (usize, Device<AnyPlatform>, Domain) {
    let (place, spec) = plug(p, Endpoint::new(RequesterId(id), 0, engine), true);
    let device = iommu.add_device(cx, spec).expect("a new device");
    let frame = p.ram().page().expect("a frame");
    let made: Arc<Mutex<Option<Domain>>> = Arc::default();
    let (own, served) = (made.clone(), served.clone());
    let resolver = move |_: &Sleep<'_>, space: &Arc<Space>, group: PageGroup<'_, AnyPlatform>| {
        let Some(domain) = own.lock().clone() else { return };
        for request in group.requests() {
            present(&domain, space, request.address & !(PAGE - 1), frame);
        }
        if group.respond(Response::Success).is_ok() {
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    let options = DomainOptions { table: TableRequest::default(), ..DomainOptions::default() };
    let domain = iommu.external_domain(&[&device], options, Some(resolver)).expect("a table");
    *made.lock() = Some(domain.clone());
    (place, device, domain)
}

fn present(domain: &Domain, space: &Space, page: u64, frame: Phys) {
    if space.0.lock().insert(page) {
        let _ = domain.map_range(page, frame, PAGE, Prot::READ | Prot::WRITE);
    }
}

/// Page-request groups served in a second, while engines page in all they copy.
pub(crate) fn faults() -> String {
    let mut machine = machine();
    let iommu = machine.iommu.clone();
    let line = machine.run.call("engines", move |p| {
        let cx = Sleep::in_sleepable_context();
        iommu.register(&cx, INSTANCE, vtd(p), Start::Fresh).expect("a unit that starts");
        let served = Arc::new(AtomicU64::new(0));
        let mut all = Vec::new();
        for n in 0..ENGINES {
            let (place, device, domain) =
                device(p, &iommu, &cx, 8 * (n + 1), Box::new(CopyEngine::new(8, 1 << 20)), &served);
            let space = Arc::new(Space::default());
            let attachment = iommu.attach(&cx, &domain, &device, None, space).expect("a free place");
            all.push((place, device, domain, attachment));
        }
        let begun = Instant::now();
        let job = Job { source: SOURCE, destination: DESTINATION, len: COPY };
        for (place, ..) in &all {
            let submitted =
                p.hardware::<Board, _>(|b| b.complex.endpoint_mut(*place).map(|e| e.submit(job).is_ok()));
            assert_eq!(submitted, Some(Some(true)));
        }
        let ended = |b: &mut Board| {
            all.iter().all(|(place, ..)| b.complex.endpoint(*place).is_some_and(|e| e.job_end().is_some()))
        };
        while p.hardware(ended) != Some(true) {
            p.sleep(&cx, 1_000_000);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let groups = served.load(Ordering::Relaxed);
        for (.., attachment) in all {
            attachment.begin_detach(&cx).wait(&cx, None);
        }
        format!(
            "page-request groups served, {ENGINES} engines, {WORKERS} workers: {groups} in {:.0} ms, {:.0} a second\n",
            seconds * 1e3,
            groups as f64 / seconds
        )
    });
    let line = line.expect("a run that ends");
    machine.run.finish().expect("threads that end");
    line
}

/// `begin_detach` of a quiet device, with and without a storm of page requests beside it.
pub(crate) fn detaches() -> String {
    [false, true].map(detach).concat()
}

fn detach(storm: bool) -> String {
    let mut machine = machine();
    let iommu = machine.iommu.clone();
    let line = machine.run.call("detaches", move |p| {
        let cx = Sleep::in_sleepable_context();
        iommu.register(&cx, INSTANCE, vtd(p), Start::Fresh).expect("a unit that starts");
        let served = Arc::new(AtomicU64::new(0));
        let budget = if storm { u64::MAX } else { 0 };
        let flood = Flood::new(FloodConfig { budget, pages: SOURCE..SOURCE + 64 * PAGE });
        let (place, loud, swamp) = device(p, &iommu, &cx, 0x80, Box::new(flood), &served);
        let swamped = iommu.attach(&cx, &swamp, &loud, None, Arc::default()).expect("a free place");
        let (_, quiet, domain) = device(p, &iommu, &cx, 0x08, Box::new(Idle), &served);
        let mut times: Vec<u64> = (0..DETACHES)
            .map(|_| {
                let attachment =
                    iommu.attach(&cx, &domain, &quiet, None, Arc::default()).expect("a free place");
                let begun = p.now();
                let detaching = attachment.begin_detach(&cx);
                let taken = p.now().since(begun).as_nanos() as u64;
                detaching.wait(&cx, None);
                taken
            })
            .collect();
        times.sort_unstable();
        let sent =
            p.hardware::<Board, _>(|b| b.complex.endpoint(place).map(|e| e.statistics().page_requests));
        // Its end is the storm's: nothing is served that is not attached.
        swamped.begin_detach(&cx).wait(&cx, None);
        format!(
            "begin_detach, {} page requests sent beside it: p50 {:.1} us, p99 {:.1} us\n",
            sent.flatten().unwrap_or(0),
            times[DETACHES / 2] as f64 / 1e3,
            times[DETACHES * 99 / 100] as f64 / 1e3
        )
    });
    let line = line.expect("a run that ends");
    // A flood has no end: the machine does not come to rest before it is taken apart.
    machine.run.finish().expect("threads that end");
    line
}

#[cfg(test)]
mod tests {
    #[test]
    fn faults_are_served_and_a_storm_does_not_keep_a_detach_from_its_end() {
        let lines = [super::faults(), super::detaches()].concat();
        println!("{lines}");
        assert_eq!(lines.lines().count(), 3, "{lines}");
        assert!(!lines.contains(" 0 in "), "{lines}");
        let quiet = lines.lines().filter(|line| line.contains(", 0 page requests sent")).count();
        assert_eq!(quiet, 1, "{lines}");
    }
}
