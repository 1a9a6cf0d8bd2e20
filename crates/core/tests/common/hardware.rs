//! The scripted instance: its queues, what its devices do, and what a test says and sees of it.

// The path is written out for tests that take this file in by its own path.
#[path = "hardware/driver.rs"]
mod driver;

use super::{Board, Mutex, MutexGuard, Sent, Vendor};
use portcullis::driver::{
    CacheTag, Caps, DeviceControl, Driver, Features, HwLost, InvError, InvSeq, PageRequest, Stall,
    SubmitError, Target,
};
use portcullis::{At, FaultKind, RawFault, SourceId, StallId, Time, Verdict};
use portcullis_pgtable::Phys;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
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
    /// Bits of PASID that there is memory for.
    pub pasid_room: u8,
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
    /// It let an invalidation time out.
    silent: bool,
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
            invalidations: 0,
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
            pasid_room: 20,
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
        Arc::new(driver::Control { hw: self.clone(), source })
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
        sources
            .filter(|s| self.devices.get(s).is_some_and(|d| d.features.ats && !(d.cut && d.silent)))
            .collect()
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
            if let Err(InvError::DeviceTimeout(s)) = result
                && let Some(device) = self.devices.get_mut(&s)
            {
                device.silent = true;
            }
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
