//! The fault core alone: a driver that hands over page requests which it makes up, and swallows the
//! answers. What is measured is everything between, quotas, deadlines and the answer's arbitration
//! included.

use crate::Row;
use parking_lot::Mutex;
use portcullis::{
    Answer, At, Attachment, Config, Device, DeviceCaps, DeviceId, DeviceSpec, Domain, DomainOptions,
    External, InstanceId, Iommu, PageGroup, Response, Sleep, SourceId, Turn, Upstream, VendorBits,
    driver::{
        Batch, Caps, Change, DeviceControl, DrainEnd, Driver, Features, Incompatible, InvError, InvSeq, More,
        Offer, PageRequest, PrepareError, Prepared, QueuePos, Start, StartError, SubmitError, TableRequest,
        Taken, Target,
    },
};
use portcullis_machine::threads::{ThreadPlatform, Threads};
use portcullis_pgtable::{FormatDesc, IoTable, Table, VtdSecondStage};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
};

const IOMMU: InstanceId = InstanceId(0);
const SOURCE: SourceId = SourceId(8);
/// Requests that one turn hands over.
const TURN: u64 = 512;

/// What a turn brings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Groups of a single request.
    Single,
    /// Groups of eight, one after the other.
    Eight,
    /// Groups of eight, sixty-four at a time, a request of each in turn.
    Interleaved,
}

impl Shape {
    /// The `n`th request of a turn.
    fn request(self, n: u64) -> PageRequest {
        let (index, last) = match self {
            Shape::Single => (n, true),
            Shape::Eight => (n / 8, n % 8 == 7),
            Shape::Interleaved => (n % 64, n / 64 == 7),
        };
        PageRequest {
            source: SOURCE,
            pasid: None,
            index: index as u16 & 511,
            address: 0x1_0000_0000 + n * 4096,
            read: true,
            write: true,
            exec: false,
            privileged: false,
            last,
            own_answer: false,
            vendor: VendorBits::default(),
        }
    }
}

/// The hardware: a queue that is filled when it is read.
struct Source {
    platform: ThreadPlatform,
    shape: Shape,
    /// Requests that one turn still has to hand over.
    due: AtomicU64,
    head: AtomicU64,
    /// The queue of answers, behind its lock as a driver's is.
    answers: Mutex<u64>,
    /// The same count, for those who wait for it.
    answered: AtomicU64,
}

struct Scripted(Arc<Source>);

impl Driver for Scripted {
    fn caps(&self) -> Caps {
        Caps {
            tags: 1..64,
            pasid_bits: 0,
            ats: true,
            page_requests: 4 * TURN as u32,
            invalidations: 0,
            stalls: 0,
            stop_markers: true,
            coherent: true,
            identity: true,
            reserved: &[],
            never_output: &[],
        }
    }

    fn start(&self, _: Start<'_>) -> Poll<Result<(), StartError>> {
        Poll::Ready(Ok(()))
    }

    fn new_table(&self, _: TableRequest) -> Result<Box<dyn IoTable>, PrepareError> {
        let table = Table::<VtdSecondStage, _>::new(self.0.platform.clone(), Default::default());
        Ok(Box::new(table.map_err(|_| PrepareError::NoMem)?))
    }

    fn can_walk(&self, _: &FormatDesc) -> Result<(), Incompatible> {
        Ok(())
    }

    fn add_device(&self, _: SourceId, features: Features) -> Result<u8, PrepareError> {
        Ok(features.pasid_bits)
    }

    fn set_features(&self, _: SourceId, _: Features) -> Result<InvSeq, SubmitError> {
        Ok(InvSeq(0))
    }

    fn cut_off(&self, _: SourceId) -> Result<InvSeq, SubmitError> {
        Ok(InvSeq(0))
    }

    fn restore(&self, _: SourceId) -> Result<InvSeq, SubmitError> {
        Ok(InvSeq(0))
    }

    fn remove_device(&self, _: SourceId) {}

    fn prepare(&self, at: At, _: Target) -> Result<Prepared, PrepareError> {
        Ok(Prepared { at, change: Change::Hitless, image: [0; 8] })
    }

    fn commit(&self, _: Prepared) -> Result<InvSeq, (Prepared, SubmitError)> {
        Ok(InvSeq(0))
    }

    fn abandon(&self, _: Prepared) {}

    fn block(&self, _: At) -> Result<InvSeq, SubmitError> {
        Ok(InvSeq(0))
    }

    fn submit(&self, _: &Batch<'_>) -> Result<InvSeq, SubmitError> {
        Ok(InvSeq(0))
    }

    fn done(&self, _: InvSeq) -> Poll<Result<(), InvError>> {
        Poll::Ready(Ok(()))
    }

    fn drain(&self, _: At) -> Result<InvSeq, SubmitError> {
        Ok(InvSeq(0))
    }

    fn drain_end(&self, _: At) -> DrainEnd {
        DrainEnd::At(QueuePos(self.0.head.load(Ordering::Relaxed)))
    }

    fn page_response(&self, answer: &Answer<'_>) -> Offer {
        let mut sent = self.0.answers.lock();
        *sent += u64::from(answer.take().is_some());
        self.0.answered.store(*sent, Ordering::Release);
        Offer::Done
    }

    fn interrupt(&self) -> bool {
        false
    }

    fn service(&self, turn: &mut Turn<'_>) -> More {
        let due = self.0.due.swap(0, Ordering::Relaxed);
        for n in 0..due {
            assert!(turn.spend(), "the turn is as long as the queue");
            assert_eq!(turn.page_request(self.0.shape.request(n)), Taken::Yes);
        }
        let head = self.0.head.load(Ordering::Relaxed) + due;
        self.0.head.store(head, Ordering::Relaxed);
        turn.passed(QueuePos(head));
        More::No
    }
}

struct NoCapabilities;

impl DeviceControl for NoCapabilities {
    fn set_pasid(&self, _: bool) {}
    fn set_ats(&self, _: bool) {}
    fn set_pri(&self, _: Option<u32>) {}
    fn reset(&self) {}
}

/// One core with one device attached, and what keeps it so.
pub(crate) struct World {
    iommu: Iommu<ThreadPlatform>,
    source: Arc<Source>,
    threads: Threads,
    _kept: (Device<ThreadPlatform>, Domain<ThreadPlatform, External<()>>, Attachment<ThreadPlatform>),
}

impl World {
    pub(crate) fn new(shape: Shape, immediate: bool, deadline: bool) -> World {
        let threads = Threads::new(0x1000_0000, 4 << 20).expect("4 MiB");
        let platform = threads.platform().clone();
        let room = 2 * TURN as u32;
        let config = Config {
            credits_per_device: room,
            credits_per_attachment: room,
            credits_per_owner: room,
            partials_per_device: room,
            partials_per_owner: room,
            turn_budget: 2 * TURN as usize,
            group_deadline: Config::default().group_deadline.filter(|_| deadline),
            ..Config::default()
        };
        let iommu = Iommu::new(platform.clone(), config).expect("memory for the core");
        let source = Arc::new(Source {
            platform,
            shape,
            due: AtomicU64::new(0),
            head: AtomicU64::new(0),
            answers: Mutex::new(0),
            answered: AtomicU64::new(0),
        });
        let cx = Sleep::in_sleepable_context();
        iommu.register(&cx, IOMMU, Box::new(Scripted(source.clone())), Start::Fresh).expect("it starts");
        let upstreams = vec![Upstream { instance: IOMMU, sources: vec![SOURCE] }];
        let mut spec = DeviceSpec::new(DeviceId(1), upstreams, Arc::new(NoCapabilities));
        spec.trusted = true;
        spec.caps = DeviceCaps { ats: true, page_requests: Some(room), ..DeviceCaps::default() };
        let device = iommu.add_device(&cx, spec).expect("a new device");
        let yes =
            |g: PageGroup<'_, ThreadPlatform>| g.respond(Response::Success).expect("nobody else answers");
        let options = DomainOptions::default();
        let domain = match immediate {
            true => iommu.external_domain_immediate(
                &[&device],
                options,
                move |_: &Arc<()>, g: PageGroup<'_, ThreadPlatform>| yes(g),
            ),
            false => iommu.external_domain(
                &[&device],
                options,
                Some(move |_: &Sleep<'_>, _: &Arc<()>, g: PageGroup<'_, ThreadPlatform>| yes(g)),
            ),
        }
        .expect("a table");
        let attachment = iommu.attach(&cx, &domain, &device, None, Arc::new(())).expect("a free place");
        World { iommu, source, threads, _kept: (device, domain, attachment) }
    }

    /// One with workers of its own, who sleep while there is nothing to do.
    pub(crate) fn with_workers(workers: usize) -> World {
        let mut world = World::new(Shape::Single, false, true);
        let core = world.iommu.clone();
        world.threads.workers(workers, move |_| core.run(&Sleep::in_sleepable_context()));
        world
    }

    pub(crate) fn iommu(&self) -> &Iommu<ThreadPlatform> {
        &self.iommu
    }

    /// Hands `n` requests over in a turn.
    pub(crate) fn service(&self, n: u64) {
        self.source.due.store(n, Ordering::Relaxed);
        self.iommu.service(IOMMU);
    }

    /// Hands `n` requests over in a turn, and does what workers would.
    fn turn(&self, n: u64) {
        self.service(n);
        let cx = Sleep::in_sleepable_context();
        while self.iommu.run(&cx) {}
    }

    pub(crate) fn answered(&self) -> u64 {
        self.source.answered.load(Ordering::Acquire)
    }
}

/// The rows that [`count`] knows.
pub(crate) const NAMES: [&str; 5] = ["single", "eight", "interleaved", "worker", "alone"];

/// One of the rows, as it is shipped: its shape, whether the resolver is immediate, and the requests
/// of a turn.
fn named(name: &str) -> (Shape, bool, u64) {
    match name {
        "eight" => (Shape::Eight, true, TURN),
        "interleaved" => (Shape::Interleaved, true, TURN),
        "worker" => (Shape::Single, false, 64),
        "alone" => (Shape::Single, false, 1),
        _ => (Shape::Single, true, 64),
    }
}

/// Runs so many turns of a row, and says how many faults these were.
pub(crate) fn count(name: &str, turns: u64) -> String {
    let (shape, immediate, requests) = named(name);
    let world = World::new(shape, immediate, true);
    (0..turns).for_each(|_| world.turn(requests));
    format!("{name}: {} faults, {} groups answered", turns * requests, world.answered())
}

pub(crate) fn rows() -> Vec<Row> {
    vec![
        row("fault core: a group of one, answered in the turn", "single", true),
        row("the same without a deadline", "single", false),
        row("fault core: groups of eight, a fault", "eight", true),
        row("fault core: 64 groups interleaved, a fault", "interleaved", true),
        row("fault core: a group of one, by a worker, same CPU", "worker", true),
        row("the same, one in flight: a round trip, same thread", "alone", true),
    ]
}

fn row(what: &str, name: &str, deadline: bool) -> Row {
    let (shape, immediate, requests) = named(name);
    let world = World::new(shape, immediate, deadline);
    world.turn(requests);
    let groups = (0..requests).filter(|n| shape.request(*n).last).count() as u64;
    assert_eq!(world.answered(), groups, "{what}: each group is answered once");
    Row::new(what, requests, move || world.turn(requests))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations;

    #[test]
    fn a_fault_allocates_nothing_once_all_is_warm() {
        for name in NAMES {
            let (shape, immediate, requests) = named(name);
            let world = World::new(shape, immediate, true);
            world.turn(requests);
            let before = world.answered();
            let turns = || (0..10).for_each(|_| world.turn(requests));
            assert_eq!(allocations::of(turns), 0, "{name}");
            assert!(world.answered() > before, "{name}: nothing was answered");
        }
    }
}
