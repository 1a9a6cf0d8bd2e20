//! The scripted instance: its driver, its queues, and what its devices do.

use super::{Board, Mutex, MutexGuard, Sent, Vendor};
use portcullis::driver::{
    Batch, CacheTag, Caps, Change, DeviceControl, DrainEnd, Driver, Features, HwLost, Incompatible, InvError,
    InvSeq, More, MuteError, Offer, PageRequest, PrepareError, Prepared, QueuePos, Stall, StallSwitchError,
    Start, StartError, SubmitError, TableRequest, Taken, Target,
};
use portcullis::{Answer, At, FaultKind, Platform, RawFault, Resume, SourceId, StallId, Time, Turn, Verdict};
use portcullis_pgtable::{FormatDesc, IoTable, Phys, TableMem};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    task::Poll,
    time::Duration,
};

/// What the driver, or a device's PCIe capabilities, were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    AddDevice(SourceId),
    Features(SourceId, bool),
    CutOff(SourceId),
    Restore(SourceId),
    Mute(SourceId, bool),
    RemoveDevice(SourceId),
    Commit(At, Target),
    Block(At),
    Silence(At),
    Submit { range: Option<(u64, u64)>, tags: usize, ats: usize },
    Drain(At),
    DrainEnd(At),
    Answer(Sent),
    Stall(At, bool),
    Resume(StallId, Verdict),
    Pasid(SourceId, bool),
    Ats(SourceId, bool),
    Pri(SourceId, Option<u32>),
    Reset(SourceId),
}

#[derive(Clone)]
pub struct Hardware {
    board: Board,
    state: Arc<Mutex<State>>,
}

/// Transactions that the hardware can hold at once.
pub const STALLS: u32 = 8;

/// How long the hardware waits for a device's own TLB.
pub const DEVICE_TIMEOUT: Duration = Duration::from_secs(60);

/// A batch of invalidations: for whom, which range, and whether non-leaf entries changed.
pub type Batched = (Vec<CacheTag>, Option<(u64, u64)>, bool);

pub struct State {
    vendor: Vendor,
    caps: Caps,
    devices: BTreeMap<SourceId, Device>,
    /// What the hardware translates through now.
    pub entries: BTreeMap<At, Target>,
    pub log: Vec<Call>,
    pub batches: Vec<Batched>,
    /// Whether its walkers keep accessed and dirty bits.
    pub marks: bool,
    /// Whether it walks one table through another.
    pub nests: bool,
    /// Entries that are prepared and neither committed nor abandoned.
    pub images: BTreeMap<u64, Target>,
    queue: VecDeque<Work>,
    results: BTreeMap<u64, Result<(), InvError>>,
    next: u64,
    head_since: Time,
    requests: VecDeque<(PageRequest, bool)>,
    head: u64,
    faults: VecDeque<RawFault>,
    stalls: VecDeque<Stall>,
    /// Requesters whose stalls the hardware had to end by itself.
    ended: VecDeque<SourceId>,
    /// Places whose faulting transactions are held.
    pub stalling: BTreeSet<At>,
    /// Transactions that are held now.
    pub held: BTreeMap<StallId, SourceId>,
    /// Records of each tag that were written and not resumed.
    pub records: BTreeMap<StallId, u32>,
    /// Places that can hold nothing.
    pub rigid: BTreeSet<At>,
    /// The queue for resumptions has no room.
    pub resumes_full: bool,
    /// Held transactions whose record is on its way: a drain fence brings it.
    pub late_stalls: Vec<Stall>,
    overflowed: bool,
    /// Requests still on their way: a drain fence brings them to the queue.
    pub in_fabric: Vec<PageRequest>,
    /// Calls of start that find the hardware not ready.
    pub slow_start: u32,
    /// Starts that were asked for.
    pub starts: u32,
    /// Invalidations stay in the queue.
    pub hold: bool,
    /// Devices whose own TLB does not answer.
    pub dead: BTreeSet<SourceId>,
    /// Submissions that find the queue full before one is taken.
    pub full: u32,
    /// Page-group responses find the queue full.
    pub responses_full: bool,
    /// Submissions that are aborted before one completes.
    pub aborts: u32,
    /// Drains that end in a full queue before one does not.
    pub drain_again: u32,
    pub lost: bool,
    /// Whether there is a switch for the fault records of one requester.
    pub can_mute: bool,
    completed: bool,
    /// Whether a commit over something else must go through blocked.
    pub gaps: bool,
    /// The calls until one fails; counts down.
    pub fail_after: Option<u32>,
    /// A service turn runs: the core allows one at a time.
    in_turn: bool,
    /// A frame that an entry needs, as a vendor's table on the way to it would.
    spare: Option<Phys>,
}

struct Device {
    features: Features,
    cut: bool,
    muted: bool,
}

struct Work {
    seq: u64,
    asks: Vec<SourceId>,
    drains: bool,
}

impl Hardware {
    pub fn new(board: &Board, queue: u32) -> Hardware {
        Hardware::of(Vendor::INTEL, board, queue)
    }

    /// `queue` is the number of page requests that the hardware's queue holds.
    pub fn of(vendor: Vendor, board: &Board, queue: u32) -> Hardware {
        let caps = Caps {
            tags: 16..24,
            pasid_bits: vendor.pasid_bits,
            ats: true,
            page_requests: queue,
            stalls: STALLS,
            stop_markers: false,
            coherent: vendor.coherent,
            identity: vendor.identity,
            reserved: &[(0xfee0_0000, 0xfeef_ffff)],
            never_output: &[(0xfee0_0000, 0xfeef_ffff)],
        };
        let state = State {
            vendor,
            caps,
            devices: BTreeMap::new(),
            entries: BTreeMap::new(),
            log: Vec::new(),
            batches: Vec::new(),
            nests: false,
            marks: false,
            images: BTreeMap::new(),
            queue: VecDeque::new(),
            results: BTreeMap::new(),
            next: 1,
            head_since: Time(0),
            requests: VecDeque::new(),
            head: 0,
            faults: VecDeque::new(),
            stalls: VecDeque::new(),
            ended: VecDeque::new(),
            stalling: BTreeSet::new(),
            held: BTreeMap::new(),
            records: BTreeMap::new(),
            rigid: BTreeSet::new(),
            resumes_full: false,
            late_stalls: Vec::new(),
            overflowed: false,
            in_fabric: Vec::new(),
            slow_start: vendor.slow_start,
            starts: 0,
            hold: false,
            dead: BTreeSet::new(),
            full: 0,
            responses_full: false,
            aborts: 0,
            drain_again: 0,
            lost: false,
            can_mute: true,
            completed: false,
            gaps: false,
            fail_after: None,
            in_turn: false,
            spare: None,
        };
        Hardware { board: board.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub fn driver(&self) -> Box<dyn Driver> {
        Box::new(self.clone())
    }

    pub fn control(&self, source: SourceId) -> Arc<dyn DeviceControl> {
        Arc::new(Control { hw: self.clone(), source })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }

    pub fn sends(&self, requests: &[PageRequest]) {
        self.state().requests.extend(requests.iter().map(|r| (*r, true)));
    }

    pub fn sends_malformed(&self, request: PageRequest) {
        self.state().requests.push_back((request, false));
    }

    pub fn faults(&self, fault: RawFault) {
        let mut s = self.state();
        let muted = fault.source.and_then(|id| s.devices.get(&id)).is_some_and(|d| d.muted);
        if !muted {
            s.faults.push_back(fault);
        }
    }

    /// A transaction faults: held and recorded where its place stalls, else refused. Whether it is
    /// held.
    pub fn stalls(&self, stall: Stall) -> bool {
        let at = At { source: stall.source, pasid: stall.pasid };
        let mut s = self.state();
        if s.stalling.contains(&at) && s.entries.contains_key(&at) {
            let taken = s.held.insert(stall.id, stall.source);
            assert_eq!(taken, None, "the tests' own tags are unique");
            s.records(stall);
            return true;
        }
        drop(s);
        let raw = RawFault::new(FaultKind::Dma, stall.reason);
        self.faults(RawFault {
            source: Some(stall.source),
            pasid: stall.pasid,
            address: Some(stall.address),
            access: stall.access,
            ..raw
        });
        false
    }

    /// The hardware records a stall, whatever it was asked to do.
    pub fn reports_stall(&self, stall: Stall) {
        let mut s = self.state();
        s.held.entry(stall.id).or_insert(stall.source);
        s.records(stall);
    }

    /// The hardware ends what a requester has stalled by itself, and loses the records.
    pub fn ends_stalls(&self, source: SourceId) {
        let mut s = self.state();
        s.held.retain(|_, of| *of != source);
        s.stalls.retain(|stall| stall.source != source);
        s.late_stalls.retain(|stall| stall.source != source);
        s.ended.push_back(source);
    }

    /// What was resumed since the log was last taken.
    pub fn resumed(&self) -> Vec<(StallId, Verdict)> {
        let resume = |c: &Call| if let Call::Resume(id, v) = c { Some((*id, *v)) } else { None };
        self.state().log.iter().filter_map(resume).collect()
    }

    /// Whether records wait for a service turn.
    pub fn has_faults(&self) -> bool {
        !self.state().faults.is_empty()
    }

    pub fn overflows(&self) {
        self.state().overflowed = true;
    }

    /// What was written down since the last time.
    pub fn take_log(&self) -> Vec<Call> {
        core::mem::take(&mut self.state().log)
    }

    /// The answers that went out since the log was last taken.
    pub fn answers(&self) -> Vec<Sent> {
        let sent = |c: &Call| if let Call::Answer(a) = c { Some(*a) } else { None };
        self.state().log.iter().filter_map(sent).collect()
    }

    pub fn entry(&self, at: At) -> Option<Target> {
        self.state().entries.get(&at).copied()
    }

    /// Whether the driver was made to know a requester.
    pub fn knows(&self, source: SourceId) -> bool {
        self.state().devices.contains_key(&source)
    }

    /// Whether a known requester is cut off.
    pub fn is_cut_off(&self, source: SourceId) -> bool {
        self.state().devices.get(&source).is_some_and(|d| d.cut)
    }

    /// What the driver was told of each requester: its features, and whether it is cut off and muted.
    pub fn devices(&self) -> Vec<(SourceId, Features, bool, bool)> {
        self.state().devices.iter().map(|(id, d)| (*id, d.features, d.cut, d.muted)).collect()
    }

    /// Frames that the driver keeps for itself.
    pub fn own_frames(&self) -> usize {
        usize::from(self.state().spare.is_some())
    }

    /// Page requests and stalls that the core has not taken from the queue.
    pub fn waiting(&self) -> usize {
        let s = self.state();
        s.requests.len() + s.stalls.len()
    }
}

impl State {
    fn call(&mut self, call: Call) {
        self.log.push(call);
    }

    /// Counts a call that can fail.
    fn fails(&mut self) -> bool {
        match &mut self.fail_after {
            Some(0) => {
                self.fail_after = None;
                true
            }
            Some(n) => {
                *n -= 1;
                false
            }
            None => false,
        }
    }

    fn records(&mut self, stall: Stall) {
        *self.records.entry(stall.id).or_default() += 1;
        self.stalls.push_back(stall);
    }

    /// Whether the invalidation queue takes anything now.
    fn room(&mut self) -> Result<(), SubmitError> {
        if self.lost {
            return Err(SubmitError::Lost(HwLost));
        }
        if self.fails() {
            return Err(SubmitError::Full);
        }
        if self.full > 0 {
            self.full -= 1;
            return Err(SubmitError::Full);
        }
        Ok(())
    }

    fn asks(&self, sources: impl Iterator<Item = SourceId>) -> Vec<SourceId> {
        sources.filter(|s| self.devices.get(s).is_some_and(|d| d.features.ats && !d.cut)).collect()
    }

    fn push(&mut self, now: Time, asks: Vec<SourceId>, drains: bool) -> InvSeq {
        if self.queue.is_empty() {
            self.head_since = now;
        }
        let seq = self.next;
        self.next += 1;
        self.queue.push_back(Work { seq, asks, drains });
        InvSeq(seq)
    }

    /// The hardware works through its queue.
    fn run(&mut self, now: Time) {
        while !self.hold
            && !self.lost
            && let Some(work) = self.queue.front()
        {
            let dead = work.asks.iter().find(|s| self.dead.contains(s)).copied();
            let result = match dead {
                Some(s) if now.since(self.head_since) >= DEVICE_TIMEOUT => Err(InvError::DeviceTimeout(s)),
                Some(_) => return,
                None if self.aborts > 0 => {
                    self.aborts -= 1;
                    Err(InvError::Aborted)
                }
                None => Ok(()),
            };
            if work.drains && result.is_ok() {
                let arrived = core::mem::take(&mut self.in_fabric);
                self.requests.extend(arrived.into_iter().map(|r| (r, true)));
                let late = core::mem::take(&mut self.late_stalls);
                late.into_iter().for_each(|stall| self.records(stall));
            }
            let done = self.queue.pop_front().map(|w| w.seq);
            self.results.extend(done.map(|s| (s, result)));
            if result.is_err() {
                // What stood behind it is dropped.
                let dropped = self.queue.drain(..).map(|w| (w.seq, Err(InvError::Aborted)));
                self.results.extend(dropped);
            }
            self.completed = true;
            self.head_since = now;
        }
    }
}

impl Driver for Hardware {
    fn caps(&self) -> Caps {
        self.state().caps.clone()
    }

    fn start(&self, how: Start<'_>) -> Poll<Result<(), StartError>> {
        let mut s = self.state();
        s.starts += 1;
        if let Some(left) = s.slow_start.checked_sub(1) {
            s.slow_start = left;
            return Poll::Pending;
        }
        Poll::Ready(match how {
            Start::Fresh => Ok(()),
            _ => Err(StartError::Unsupported("adopting tables")),
        })
    }

    fn new_table(&self, request: TableRequest) -> Result<Box<dyn IoTable>, PrepareError> {
        if self.state().fails() {
            return Err(PrepareError::NoMem);
        }
        let vendor = self.state().vendor;
        let marks = self.state().marks;
        vendor.new_table(&self.board, request, marks)
    }

    fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible> {
        self.state().vendor.can_walk(desc)
    }

    fn can_nest(&self, table: &FormatDesc, parent: &FormatDesc) -> Result<(), Incompatible> {
        if !self.state().nests {
            return Err(Incompatible::NoNesting);
        }
        self.can_walk(table).and(self.can_walk(parent))
    }

    fn add_device(&self, source: SourceId, features: Features) -> Result<(), PrepareError> {
        let mut s = self.state();
        if s.fails() {
            return Err(PrepareError::NoMem);
        }
        s.call(Call::AddDevice(source));
        let new = s.devices.insert(source, Device { features, cut: false, muted: false });
        assert!(new.is_none(), "{source} is added twice");
        Ok(())
    }

    fn set_features(&self, source: SourceId, features: Features) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Features(source, features.pri));
        s.devices.get_mut(&source).expect("known").features = features;
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn cut_off(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::CutOff(source));
        s.devices.get_mut(&source).expect("known").cut = true;
        s.entries.retain(|at, _| at.source != source);
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn restore(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Restore(source));
        s.devices.get_mut(&source).expect("known").cut = false;
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn mute(&self, source: SourceId, on: bool) -> Result<InvSeq, MuteError> {
        let mut s = self.state();
        if !s.can_mute {
            return Err(MuteError::Cannot);
        }
        s.room()?;
        s.call(Call::Mute(source, on));
        s.devices.get_mut(&source).expect("known").muted = on;
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn remove_device(&self, source: SourceId) {
        let mut s = self.state();
        s.call(Call::RemoveDevice(source));
        let gone = s.devices.remove(&source).expect("known");
        assert!(gone.cut, "{source} is removed before it was cut off");
    }

    fn prepare(&self, at: At, to: Target) -> Result<Prepared, PrepareError> {
        // The tables on the way to an entry are made with the first one, and stay.
        if self.state().spare.is_none() {
            let frame = self.board.frame().map_err(|_| PrepareError::NoMem)?;
            self.state().spare = Some(frame.publish());
        }
        let mut s = self.state();
        if s.fails() {
            return Err(PrepareError::NoMem);
        }
        if !s.devices.contains_key(&at.source) {
            return Err(PrepareError::UnknownSource(at.source));
        }
        let occupied = s.entries.contains_key(&at);
        let change = if s.gaps && occupied { Change::ThroughBlocked } else { Change::Hitless };
        let id = s.next;
        s.next += 1;
        s.images.insert(id, to);
        Ok(Prepared { at, change, image: [id, 0, 0, 0, 0, 0, 0, 0] })
    }

    fn commit(&self, prepared: Prepared) -> Result<InvSeq, (Prepared, SubmitError)> {
        let mut s = self.state();
        if let Err(e) = s.room() {
            return Err((prepared, e));
        }
        let at = prepared.at;
        let target = s.images.remove(&prepared.image[0]).expect("prepared once, committed once");
        s.call(Call::Commit(at, target));
        s.entries.insert(at, target);
        let asks = s.asks([at.source].into_iter());
        Ok(s.push(self.board.now(), asks, false))
    }

    fn abandon(&self, prepared: Prepared) {
        let known = self.state().images.remove(&prepared.image[0]);
        assert!(known.is_some(), "abandoned once");
    }

    fn block(&self, at: At) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Block(at));
        s.entries.remove(&at);
        let asks = s.asks([at.source].into_iter());
        Ok(s.push(self.board.now(), asks, false))
    }

    fn silence(&self, at: At) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Silence(at));
        s.entries.remove(&at);
        let asks = s.asks([at.source].into_iter());
        Ok(s.push(self.board.now(), asks, false))
    }

    fn submit(&self, b: &Batch<'_>) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.batches.push((b.tags.to_vec(), b.range, b.non_leaf));
        let ats = b.tags.iter().filter(|t| t.ats).count();
        s.call(Call::Submit { range: b.range, tags: b.tags.len(), ats });
        let asks = s.asks(b.tags.iter().filter(|t| t.ats).map(|t| t.at.source));
        Ok(s.push(self.board.now(), asks, false))
    }

    fn done(&self, seq: InvSeq) -> Poll<Result<(), InvError>> {
        let mut s = self.state();
        if s.lost {
            return Poll::Ready(Err(HwLost.into()));
        }
        s.run(self.board.now());
        s.results.get(&seq.0).map_or(Poll::Pending, |r| Poll::Ready(*r))
    }

    fn drain(&self, at: At) -> Result<InvSeq, SubmitError> {
        let mut s = self.state();
        s.room()?;
        s.call(Call::Drain(at));
        Ok(s.push(self.board.now(), Vec::new(), true))
    }

    fn drain_end(&self, at: At) -> DrainEnd {
        let mut s = self.state();
        s.call(Call::DrainEnd(at));
        if s.drain_again > 0 {
            s.drain_again -= 1;
            return DrainEnd::Again;
        }
        DrainEnd::At(QueuePos(s.head + (s.requests.len() + s.stalls.len()) as u64))
    }

    fn page_response(&self, answer: &Answer<'_>) -> Offer {
        let mut s = self.state();
        if s.lost {
            return Offer::Lost;
        }
        if s.responses_full {
            return Offer::Full;
        }
        assert_eq!(
            answer.vendor.0[0],
            u64::from(answer.index),
            "the vendor's bits come back with the answer"
        );
        if let Some(code) = answer.take() {
            let (source, pasid, index) = (answer.source, answer.pasid, answer.index);
            s.call(Call::Answer(Sent { source, pasid, index, code }));
        }
        Offer::Done
    }

    fn set_stall(&self, at: At, on: bool) -> Result<InvSeq, StallSwitchError> {
        let mut s = self.state();
        s.room()?;
        if on && s.rigid.contains(&at) {
            return Err(StallSwitchError::Cannot("it has no context of its own"));
        }
        s.call(Call::Stall(at, on));
        match on {
            true => s.stalling.insert(at),
            false => s.stalling.remove(&at),
        };
        Ok(s.push(self.board.now(), Vec::new(), false))
    }

    fn resume(&self, resume: &Resume<'_>) -> Offer {
        let mut s = self.state();
        if s.lost {
            return Offer::Lost;
        }
        if s.resumes_full {
            return Offer::Full;
        }
        if let Some(verdict) = resume.take() {
            let id = resume.id;
            s.call(Call::Resume(id, verdict));
            s.held.remove(&id);
            let records = s.records.entry(id).or_default();
            *records = records.checked_sub(1).expect("resumed more often than it was held");
        }
        Offer::Done
    }

    fn interrupt(&self) -> bool {
        !self.state().requests.is_empty()
    }

    fn service(&self, turn: &mut Turn<'_>) -> More {
        let second = core::mem::replace(&mut self.state().in_turn, true);
        // Elsewhere one thread does everything, and a resolver's panic may have ended a turn.
        assert!(!second || cfg!(not(portcullis_shuttle)), "two service turns of one instance at once");
        let more = self.read_queues(turn);
        self.state().in_turn = false;
        more
    }
}

impl Hardware {
    fn read_queues(&self, turn: &mut Turn<'_>) -> More {
        let overflowed = core::mem::take(&mut self.state().overflowed);
        loop {
            let next = self.state().requests.front().copied();
            let Some((request, wellformed)) = next else { break };
            if !turn.spend() {
                return More::Yes;
            }
            let taken = if wellformed { turn.page_request(request) } else { turn.malformed(request) };
            if taken == Taken::NoRoom {
                return More::Yes;
            }
            let mut s = self.state();
            s.requests.pop_front();
            s.head += 1;
        }
        // Before what was stalled since.
        let ended = core::mem::take(&mut self.state().ended);
        ended.into_iter().for_each(|source| turn.stalls_ended(source));
        loop {
            let next = self.state().stalls.front().copied();
            let Some(stall) = next else { break };
            if !turn.spend() || turn.stalled(stall) == Taken::NoRoom {
                return More::Yes;
            }
            let mut s = self.state();
            s.stalls.pop_front();
            s.head += 1;
        }
        if overflowed {
            turn.overflow();
        }
        let faults = core::mem::take(&mut self.state().faults);
        faults.into_iter().for_each(|f| turn.fault(f));
        turn.passed(QueuePos(self.state().head));
        let completed = core::mem::take(&mut self.state().completed);
        if completed {
            turn.completed();
        }
        More::No
    }
}

struct Control {
    hw: Hardware,
    source: SourceId,
}

impl DeviceControl for Control {
    fn set_pasid(&self, on: bool) {
        self.hw.state().call(Call::Pasid(self.source, on));
    }
    fn set_ats(&self, on: bool) {
        self.hw.state().call(Call::Ats(self.source, on));
    }
    fn set_pri(&self, credits: Option<u32>) {
        self.hw.state().call(Call::Pri(self.source, credits));
    }
    fn reset(&self) {
        self.hw.state().call(Call::Reset(self.source));
    }
}
