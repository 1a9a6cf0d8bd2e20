//! What every scenario has: one scripted instance, workers and a timer, and the accounts of what was
//! sent, handled and answered.

use super::{
    Call, Hardware, Sent,
    board::{Board, Thread, held},
    cx,
    devices::{IOMMU, soc, spec, stall},
    requests::{first, last},
};
use portcullis::driver::{PageRequest, Start};
use portcullis::error::StallError;
use portcullis::{
    At, Attachment, Code, Config, Deferred, Detaching, Device, DeviceId, Domain, DomainOptions, External,
    Iommu, PageGroup, Pasid, Platform, Response, Sleep, SourceId, StallDecider, StalledAccess, Stalling,
    UserObject, Verdict, Waited,
};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

pub type Dom = Domain<Board, External<Attached>>;
pub type User = Domain<Board, UserObject<Attached>>;
/// Transactions that were passed on.
pub type Passed = Arc<Mutex<Vec<Deferred<Board>>>>;
pub type Att = Attachment<Board>;
pub type Dev = Device<Board>;

/// Page requests that a device may have outstanding.
pub const SHARE: u32 = 3;
/// Workers that the resolvers of one device may occupy.
pub const PER_DEVICE: u32 = 1;

/// What hangs on an attachment: whether its handler runs, and whether it may.
#[derive(Default)]
pub struct Attached {
    gone: AtomicBool,
    inside: AtomicUsize,
    pub groups: AtomicUsize,
}

/// A handler that runs.
pub struct Inside<'a>(&'a Attached);

impl Attached {
    pub fn new() -> Arc<Attached> {
        Arc::default()
    }

    fn enter(&self) -> Inside<'_> {
        assert_eq!(held(), 0, "a resolver is called with a short lock held");
        assert!(!self.gone.load(SeqCst), "a handler begins after Gone");
        assert_eq!(self.inside.fetch_add(1, SeqCst), 0, "two handlers of one attachment at once");
        self.groups.fetch_add(1, SeqCst);
        Inside(self)
    }

    /// Somebody was told that the attachment is gone.
    pub fn is_gone(self: &Arc<Self>) {
        self.gone.store(true, SeqCst);
        assert_eq!(self.inside.load(SeqCst), 0, "a handler runs at Gone");
        assert_eq!(Arc::strong_count(self), 1, "the data outlives Gone");
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        assert!(!self.0.gone.load(SeqCst), "a handler runs after Gone");
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

/// A machine with one instance. Clones are in every thread's hands.
#[derive(Clone)]
pub struct Room {
    pub board: Board,
    pub hw: Hardware,
    pub iommu: Iommu<Board>,
    accounts: Arc<Accounts>,
}

#[derive(Default)]
struct Accounts {
    index: AtomicU16,
    /// Last requests that lie in the hardware's queue or were taken from it, as the place and index.
    sent: Mutex<Vec<(At, u16)>>,
    /// A reset voids what is outstanding: no answer is then as good as one.
    voids: AtomicBool,
    /// Handlers that run, by device.
    running: Mutex<BTreeMap<DeviceId, u32>>,
    services: Mutex<Vec<Thread>>,
}

impl Room {
    pub fn new(workers: usize) -> Room {
        Room::with(workers, small())
    }

    pub fn with(workers: usize, config: Config) -> Room {
        let board = Board::new();
        let hw = Hardware::new(&board, 16);
        let iommu = Iommu::new(board.clone(), config).expect("memory");
        iommu.register(&cx(), IOMMU, hw.driver(), Start::Fresh).expect("starts");
        let room = Room { board, hw, iommu, accounts: Arc::default() };
        let mut services: Vec<_> = (0..workers).map(|_| room.board.worker(&room.iommu)).collect();
        services.push(room.board.timer(&room.iommu));
        *room.accounts.services.lock().unwrap() = services;
        room
    }

    /// A thread of the test with the room in its hands.
    pub fn spawn(&self, f: impl FnOnce(&Room) + Send + 'static) -> Thread {
        let room = self.clone();
        self.board.spawn(move || f(&room))
    }

    pub fn device(&self, n: u32) -> Dev {
        let mut spec = spec(n, self.hw.control(SourceId(n)));
        spec.caps.page_requests = Some(SHARE);
        self.iommu.add_device(&cx(), spec).expect("added")
    }

    /// A device that is on no PCIe, and bears stalls.
    pub fn soc_device(&self, n: u32) -> Dev {
        self.iommu.add_device(&cx(), soc(n, self.hw.control(SourceId(n)))).expect("added")
    }

    /// A domain for stalls alone.
    pub fn plain(&self, device: &Dev) -> Dom {
        type Never = fn(&Sleep<'_>, &Arc<Attached>, PageGroup<'_, Board>);
        self.iommu.external_domain(&[device], DomainOptions::default(), None::<Never>).expect("made")
    }

    /// Has what stalls in a domain decided by workers.
    pub fn enables(&self, domain: &Dom, verdict: Verdict) -> Result<Stalling<Board>, StallError> {
        let resolver = move |_: &Sleep<'_>, data: &Arc<Attached>, _: &StalledAccess| {
            let _inside = data.enter();
            verdict
        };
        self.iommu.enable_stall(&cx(), domain, StallDecider::sleeping(resolver))
    }

    /// A domain whose stalls are passed on to a list.
    pub fn passes_on(&self, device: &Dev) -> (User, Stalling<Board>, Passed) {
        type Never = fn(&Sleep<'_>, &Arc<Attached>, PageGroup<'_, Board>);
        let made = self.iommu.user_object_domain(&[device], DomainOptions::default(), None::<Never>);
        let (domain, passed): (User, Passed) = (made.expect("made"), Passed::default());
        let list = passed.clone();
        let forward = move |_: &Arc<Attached>, stalled: Deferred<Board>| list.lock().unwrap().push(stalled);
        let guard = self.iommu.enable_stall(&cx(), &domain, StallDecider::elsewhere(forward));
        (domain, guard.expect("it can stall"), passed)
    }

    /// The device faults, a few times; a service turn each reads the record, if there is one.
    pub fn faults(&self, source: u32, tags: Range<u64>) {
        for tag in tags {
            self.hw.stalls(stall(source, tag));
            self.iommu.service(IOMMU);
        }
    }

    /// A domain whose resolver does `f` with each group, for one device.
    pub fn domain<F>(&self, device: &Dev, f: F) -> Dom
    where
        F: Fn(PageGroup<'_, Board>) + Send + Sync + 'static,
    {
        let (accounts, id) = (self.accounts.clone(), device.id());
        let count = move |by: i32| {
            let mut running = accounts.running.lock().unwrap();
            let n = running.entry(id).or_default();
            *n = n.checked_add_signed(by).expect("as many end as begin");
            assert!(*n <= PER_DEVICE, "a device occupies {n} workers");
        };
        let resolver = move |_: &Sleep<'_>, data: &Arc<Attached>, group: PageGroup<'_, Board>| {
            let _inside = data.enter();
            count(1);
            f(group);
            count(-1);
        };
        self.iommu.external_domain(&[device], DomainOptions::default(), Some(resolver)).expect("made")
    }

    /// A domain whose resolver answers Success at once.
    pub fn served(&self, device: &Dev) -> Dom {
        self.domain(device, |group| {
            // A detach may have answered it meanwhile.
            let _ = group.respond(Response::Success);
        })
    }

    pub fn attach(&self, domain: &Dom, device: &Dev, pasid: Option<Pasid>) -> (Att, Arc<Attached>) {
        let data = Attached::new();
        (self.iommu.attach(&cx(), domain, device, pasid, data.clone()).expect("attached"), data)
    }

    /// The device sends a group of two requests, and one of one; a service turn each.
    pub fn sends(&self, source: u32, pasid: Option<Pasid>) {
        let (two, one) = (self.index(), self.index());
        let from = |r| PageRequest { pasid, ..r };
        self.send(&[from(first(source, two, 0xa000)), from(last(source, two))]);
        self.send(&[from(last(source, one))]);
    }

    fn index(&self) -> u16 {
        self.accounts.index.fetch_add(1, SeqCst) + 1
    }

    fn send(&self, requests: &[PageRequest]) {
        self.hw.sends(requests);
        let at = |r: &PageRequest| At { source: r.source, pasid: r.pasid };
        let lasts = requests.iter().filter(|r| r.last).map(|r| (at(r), r.index));
        self.accounts.sent.lock().unwrap().extend(lasts);
        self.iommu.service(IOMMU);
    }

    /// A reset is about to void what is outstanding.
    pub fn voids(&self) {
        self.accounts.voids.store(true, SeqCst);
    }

    fn answers_of(log: &[Call], at: At, index: u16) -> usize {
        let is = |a: &Sent| (a.source, a.pasid, a.index) == (at.source, at.pasid, index);
        log.iter().filter(|c| matches!(c, Call::Answer(a) if is(a))).count()
    }

    /// Waits until everybody else waits: time passes no sooner.
    pub fn quiet(&self) {
        let (event, later) = (self.board.event(), self.board.now() + Duration::from_millis(1));
        let seen = self.board.seen(&event);
        self.board.wait(&cx(), &event, seen, Some(later));
    }

    /// The code of the one answer that a group got.
    pub fn code(&self, index: u16) -> Option<Code> {
        self.hw.answers().iter().find(|a| a.index == index).map(|a| a.code)
    }

    /// Begins to detach. What was sent before is answered when that returns ([V] 7.8: before the place
    /// is used again).
    pub fn begin_detach(&self, a: Att) -> Detaching<Board> {
        let at = a.at();
        let before: Vec<_> =
            self.accounts.sent.lock().unwrap().iter().filter(|s| s.0 == at).copied().collect();
        let detaching = a.begin_detach(&cx());
        let log = &self.hw.state().log;
        for (at, index) in before {
            assert_eq!(Room::answers_of(log, at, index), 1, "{at} {index} after its detach");
        }
        detaching
    }

    pub fn detach(&self, a: Att, data: &Arc<Attached>) {
        let detaching = self.begin_detach(a);
        assert_eq!(detaching.wait(&cx(), None), Waited::Gone);
        data.is_gone();
    }

    /// Everybody else is done: works off what is left, and reads the accounts.
    pub fn close(self) {
        self.board.stop();
        let services = core::mem::take(&mut *self.accounts.services.lock().unwrap());
        services.into_iter().for_each(Thread::join);
        let mut turns = 0;
        loop {
            self.iommu.service(IOMMU);
            if !self.iommu.run_one(&cx())
                && !self.board.tick_if_due(&self.iommu)
                && !self.board.pass_to_timer()
            {
                break;
            }
            turns += 1;
            assert!(turns < 1000, "the core never comes to rest");
        }
        let load = self.iommu.load();
        assert_eq!((load.running, load.waiting, load.held_back), (0, 0, 0));
        assert_eq!(self.hw.waiting(), 0, "requests that nobody reads");
        let state = self.hw.state();
        assert!(state.held.is_empty(), "stalled for ever: {:?}", state.held);
        assert!(state.images.is_empty(), "entries that were prepared and forgotten");
        let voids = self.accounts.voids.load(SeqCst);
        for (at, index) in self.accounts.sent.lock().unwrap().iter().copied() {
            let answers = Room::answers_of(&state.log, at, index);
            assert!(answers == 1 || voids && answers == 0, "{at} {index} got {answers} answers");
        }
    }
}

/// A configuration that is made quickly.
pub fn small() -> Config {
    Config {
        devices: 4,
        attachments: 8,
        attachments_per_device: 4,
        credits_per_device: SHARE,
        credit_reserve: 2,
        workers_per_device: PER_DEVICE,
        observers: 4,
        last_faults: 1,
        ..Config::default()
    }
}
