//! The lower half of an endpoint: from "read here" to requests on the link and back.

mod ats;
mod pages;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::adversary::{Action, Adversary};
use crate::bus::{
    Completion, Downstream, PageRequest, Pasid, Prefix, Request, RequesterId, ResponseCode, Status, Upstream,
};
use crate::endpoint::Tlp;
use crate::endpoint::caps::Capabilities;
use crate::endpoint::dtlb::DeviceTlb;
use crate::endpoint::pri::Groups;
use crate::endpoint::stats::Statistics;
use crate::log::{Journal, Settlement, What};

/// What an access wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// This many bytes, within a page.
    Read(u32),
    /// These bytes, within a page.
    Write(Vec<u8>),
}

impl Intent {
    fn is_write(&self) -> bool {
        matches!(self, Intent::Write(_))
    }
}

/// Why an access failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The root complex refused it.
    Refused {
        /// The status returned.
        status: Status,
        /// Fault reason by the IOMMU's manual, 0 for none.
        reason: u8,
    },
    /// The translation lacks a permission, and pages cannot be asked for.
    NoPermission,
    /// The page request was answered with this code.
    Denied(ResponseCode),
    /// The page was granted again and again, and was never there.
    NoProgress,
}

/// How an access stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Looks into the device TLB next, or goes out untranslated.
    Ready,
    /// Waits for a translation; `stale` once an invalidation has overtaken it.
    Translating { stale: bool },
    /// Needs a page request, from that time on.
    NeedPage { since: u64 },
    /// Waits for the response of its group.
    WaitPage,
    /// On its way to memory.
    InFlight { translated: bool },
}

#[derive(Debug)]
struct Transfer {
    prefix: Option<Prefix>,
    iova: u64,
    intent: Intent,
    state: State,
    /// Whether its look-up has been counted as a miss already.
    missed: bool,
    rounds: u32,
}

/// An invalidation that has been received and not been completed.
#[derive(Debug)]
struct Invalidation {
    itag: u8,
    /// Translated accesses that used what it removed.
    waits_for: BTreeSet<u64>,
}

/// The lower half of an endpoint.
#[derive(Debug)]
pub struct Port {
    id: RequesterId,
    prefix: Option<Prefix>,
    caps: Capabilities,
    dtlb: DeviceTlb,
    groups: Groups,
    transfers: BTreeMap<u64, Transfer>,
    /// Requests sent by hand: only their fate is counted.
    raw: BTreeSet<u64>,
    invalidations: Vec<Invalidation>,
    deaf: bool,
    private_data: bool,
    next_ticket: u64,
    out: Vec<Tlp>,
    ended: VecDeque<(u64, Result<Vec<u8>, Failure>)>,
    stats: Statistics,
    rng: fastrand::Rng,
    now: u64,
}

impl Port {
    /// Most page requests in a group.
    const GROUP: usize = 8;
    /// Page requests for one access before it is given up.
    const ROUNDS: u32 = 2000;
    /// Of these, so many follow at once: a page that was granted and is not there may have been
    /// taken away again, or the queue was full and nobody has seen the request. After them the
    /// device gives software time.
    const HASTY_ROUNDS: u32 = 64;
    /// Nanoseconds of the longest pause between two.
    const LONGEST_PAUSE: u64 = 1_000_000;

    pub(crate) fn new(id: RequesterId, seed: u64) -> Self {
        Port {
            id,
            prefix: None,
            caps: Capabilities::default(),
            dtlb: DeviceTlb::default(),
            groups: Groups::new(id.0),
            transfers: BTreeMap::new(),
            raw: BTreeSet::new(),
            invalidations: Vec::new(),
            deaf: false,
            private_data: false,
            next_ticket: 1,
            out: Vec::new(),
            ended: VecDeque::new(),
            stats: Statistics::default(),
            rng: fastrand::Rng::with_seed(seed),
            now: 0,
        }
    }

    /// Requester id.
    pub fn id(&self) -> RequesterId {
        self.id
    }

    /// The prefix that accesses carry.
    pub fn prefix(&self) -> Option<Prefix> {
        self.prefix
    }

    /// Sets the prefix of later accesses.
    pub fn set_prefix(&mut self, prefix: Option<Prefix>) {
        self.prefix = prefix;
    }

    /// State of the capabilities.
    pub fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    /// Counters.
    pub fn statistics(&self) -> &Statistics {
        &self.stats
    }

    /// The endpoint's own random numbers.
    pub fn rng(&mut self) -> &mut fastrand::Rng {
        &mut self.rng
    }

    /// Starts an access and returns its ticket. Its end is reported to the engine.
    pub fn access(&mut self, iova: u64, intent: Intent) -> u64 {
        let ticket = self.ticket();
        let transfer =
            Transfer { prefix: self.prefix, iova, intent, state: State::Ready, missed: false, rounds: 0 };
        self.transfers.insert(ticket, transfer);
        ticket
    }

    /// Sends a request as it is, whatever it is. Its end is reported to the engine too.
    pub fn raw_request(&mut self, request: Request) -> u64 {
        let ticket = self.ticket();
        self.raw.insert(ticket);
        let (iova, pasid) = (request.addr, request.pasid());
        self.out.push(Tlp::Request { ticket, iova, pasid, request });
        ticket
    }

    /// Sends a message as it is, such as a stop marker or a completion of an invalidation that
    /// nobody asked for.
    pub fn raw_message(&mut self, message: Upstream) {
        self.out.push(Tlp::Message(message));
    }

    /// Sends a stop marker: no page request of this PASID follows those sent before.
    pub fn stop_marker(&mut self, pasid: Pasid) {
        let (prefix, prgi) = (Some(Prefix::user(pasid)), 0);
        let marker = PageRequest {
            source: self.id,
            prefix,
            addr: 0,
            read: false,
            write: false,
            last: true,
            prgi,
            group: 0,
            private: None,
        };
        self.raw_message(Upstream::PageRequest(marker));
    }

    /// Accesses that have not ended, those sent by hand included.
    pub fn outstanding(&self) -> usize {
        self.transfers.len() + self.raw.len()
    }

    pub(crate) fn configure<R>(&mut self, f: impl FnOnce(&mut Capabilities) -> R) -> R {
        f(&mut self.caps)
    }

    pub(crate) fn set_deaf(&mut self, deaf: bool) {
        self.deaf = deaf;
    }

    pub(crate) fn set_private_data(&mut self, on: bool) {
        self.private_data = on;
    }

    pub(crate) fn set_now(&mut self, now: u64) {
        self.now = now;
    }

    pub(crate) fn take_out(&mut self) -> Vec<Tlp> {
        std::mem::take(&mut self.out)
    }

    pub(crate) fn take_ended(&mut self) -> Option<(u64, Result<Vec<u8>, Failure>)> {
        self.ended.pop_front()
    }

    /// Nanoseconds before the page request of a round.
    fn pause(round: u32) -> u64 {
        match round.checked_sub(Self::HASTY_ROUNDS) {
            None | Some(0) => 0,
            Some(n) => Self::LONGEST_PAUSE.min(1_000 << n.min(10)),
        }
    }

    /// When, after `now`, an access that pauses before its next page request goes on.
    pub(crate) fn deadline(&self, now: u64) -> Option<u64> {
        let pauses = self.transfers.values().filter_map(|t| match t.state {
            State::NeedPage { since } if since > now => Some(since),
            _ => None,
        });
        pauses.min()
    }

    /// True where [`advance`](Self::advance) has something to do.
    pub(crate) fn wants(&self, now: u64) -> bool {
        !self.out.is_empty()
            || self.may_ask(now)
            || self.transfers.values().any(|t| t.state == State::Ready)
            || self.invalidations.iter().any(|i| !self.deaf && i.waits_for.is_empty())
    }

    /// Sends what can be sent.
    pub(crate) fn advance(&mut self, adversary: &mut Adversary) {
        if adversary.considers(Action::Evict) && self.dtlb.evict(adversary.below(u64::MAX)) {
            adversary.count(Action::Evict);
        }
        let ready: Vec<u64> =
            self.transfers.iter().filter(|(_, t)| t.state == State::Ready).map(|(&k, _)| k).collect();
        for ticket in ready {
            self.issue(ticket);
        }
        self.ask_for_pages();
        self.spurious(adversary);
        // Behind the page requests that were sent before: messages keep their order ([V] 7.7).
        let (done, open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.invalidations)
            .into_iter()
            .partition(|i| !self.deaf && i.waits_for.is_empty());
        self.invalidations = open;
        let source = self.id;
        self.out.extend(done.iter().map(|i| {
            let itags = 1 << (i.itag & 31);
            Tlp::Message(Upstream::InvalidationCompletion { source, itags })
        }));
    }

    /// A request has come back.
    pub(crate) fn complete(&mut self, now: u64, ticket: u64, completion: Completion) {
        for i in &mut self.invalidations {
            i.waits_for.remove(&ticket);
        }
        if let Completion::Refused { status, reason } = completion {
            *self.stats.blocked.entry((status, reason)).or_default() += 1;
        }
        if self.raw.remove(&ticket) {
            self.complete_raw(ticket, completion);
            return;
        }
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        match (completion, t.state) {
            (Completion::Translation(_), State::Translating { stale: true }) => t.state = State::Ready,
            (Completion::Translation(entry), _) => self.translated(now, ticket, entry),
            (Completion::Refused { status, reason }, state) => {
                // The answer "unsupported request" ends ATS for the function ([V] 7.1.3).
                let translating = matches!(state, State::Translating { .. });
                if translating && status == Status::UnsupportedRequest {
                    self.caps.ats_refused();
                }
                self.end(ticket, Err(Failure::Refused { status, reason }));
            }
            (Completion::Data(data), _) => {
                self.stats.accesses += 1;
                self.stats.bytes_read += data.len() as u64;
                self.end(ticket, Ok(data));
            }
            (Completion::Written, _) => {
                self.stats.accesses += 1;
                if let Intent::Write(data) = &t.intent {
                    self.stats.bytes_written += data.len() as u64;
                }
                self.end(ticket, Ok(Vec::new()));
            }
        }
    }

    fn complete_raw(&mut self, ticket: u64, completion: Completion) {
        let result = match completion {
            Completion::Refused { status, reason } => Err(Failure::Refused { status, reason }),
            Completion::Data(data) => {
                self.stats.accesses += u64::from(!data.is_empty());
                self.stats.bytes_read += data.len() as u64;
                Ok(data)
            }
            Completion::Written => {
                self.stats.accesses += 1;
                Ok(Vec::new())
            }
            Completion::Translation(_) => Ok(Vec::new()),
        };
        self.ended.push_back((ticket, result));
    }

    /// A message has arrived.
    pub(crate) fn receive(&mut self, now: u64, message: Downstream, journal: &mut Journal) {
        match message {
            Downstream::Invalidate { itag, pasid, global, addr, bits } => {
                self.invalidate(itag, pasid, global, addr, bits);
            }
            Downstream::PageResponse { pasid, prgi, code, by, private } => {
                self.response(now, (pasid, prgi), code, by, private, journal);
            }
        }
    }

    pub(crate) fn reset(&mut self, journal: &mut Journal) {
        let source = self.id;
        for ((pasid, prgi), group) in self.groups.void_all() {
            self.stats.void += 1;
            let how = Settlement::Void;
            for private in group.awaits {
                journal.note(What::Settled { source, pasid, prgi, group: group.number, private, how });
            }
        }
        self.caps.clear();
        self.dtlb.clear();
        self.transfers.clear();
        self.raw.clear();
        self.invalidations.iter_mut().for_each(|i| i.waits_for.clear());
        self.ended.clear();
        self.prefix = None;
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    fn end(&mut self, ticket: u64, result: Result<Vec<u8>, Failure>) {
        if self.transfers.remove(&ticket).is_some() {
            self.ended.push_back((ticket, result));
        }
    }

    fn fail_where(&mut self, which: impl Fn(&Transfer) -> bool, failure: Failure) {
        let tickets: Vec<u64> = self.transfers.iter().filter(|(_, t)| which(t)).map(|(&k, _)| k).collect();
        for ticket in tickets {
            self.end(ticket, Err(failure));
        }
    }
}
