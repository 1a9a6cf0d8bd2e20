//! The lower half of an endpoint: from "read here" to requests on the link and back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Tlp;
use super::caps::{Capabilities, Violation};
use super::dtlb::{DeviceTlb, overlaps};
use super::pri::{Group, Groups};
use super::stats::Statistics;
use crate::adversary::{Action, Adversary};
use crate::bus::{
    AddressType, Completion, Downstream, Operation, PAGE, PageRequest, Pasid, Prefix, Request,
    RequesterId, Responder, ResponseCode, Status, Translation, Upstream,
};
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
    /// Needs a page request.
    NeedPage,
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
        let transfer = Transfer {
            prefix: self.prefix,
            iova,
            intent,
            state: State::Ready,
            missed: false,
            rounds: 0,
        };
        self.transfers.insert(ticket, transfer);
        ticket
    }

    /// Sends a request as it is, whatever it is. Its end is reported to the engine too.
    pub fn raw_request(&mut self, request: Request) -> u64 {
        let ticket = self.ticket();
        self.raw.insert(ticket);
        let (iova, pasid) = (request.addr, request.pasid());
        self.out.push(Tlp::Request {
            ticket,
            iova,
            pasid,
            request,
        });
        ticket
    }

    /// Sends a page request that nobody waits for, without regard to credits or capabilities. A
    /// last one opens a group, where an index is free; else it is sent as not the last.
    pub fn raw_page_request(&mut self, prefix: Option<Prefix>, addr: u64, write: bool, last: bool) {
        let pasid = prefix.map(|p| p.pasid);
        let index = self.groups.free_index(pasid);
        let last = last && index.is_some();
        let prgi = index.unwrap_or(0);
        let number = if last { self.groups.number() } else { 0 };
        self.emit_page_request(prefix, addr, (true, write), last, prgi, number);
        if last {
            self.stats.groups += 1;
            let group = Group {
                number,
                tickets: Vec::new(),
                requests: 1,
                sent: self.now,
            };
            self.groups.open((pasid, prgi), group);
            self.caps.set_pri_busy(true);
        }
    }

    /// Sends a message as it is, such as a stop marker or a completion of an invalidation that
    /// nobody asked for.
    pub fn raw_message(&mut self, message: Upstream) {
        self.out.push(Tlp::Message(message));
    }

    /// Accesses that have not ended, those sent by hand included.
    pub fn outstanding(&self) -> usize {
        self.transfers.len() + self.raw.len()
    }

    pub(crate) fn configure<R>(&mut self, f: impl FnOnce(&mut Capabilities) -> R) -> R {
        f(&mut self.caps)
    }

    pub(crate) fn set_ats(&mut self, stu: Option<u8>) -> Result<(), Violation> {
        self.caps.set_ats(stu)?;
        if stu.is_some() {
            self.dtlb.clear();
        }
        Ok(())
    }

    pub(crate) fn set_pri(&mut self, credits: Option<u32>) -> Result<(), Violation> {
        self.caps.set_pri_busy(!self.groups.is_empty());
        self.caps.set_pri(credits)
    }

    pub(crate) fn pri_stopped(&self) -> bool {
        self.caps.pri().is_none() && self.groups.is_empty()
    }

    pub(crate) fn set_deaf(&mut self, deaf: bool) {
        self.deaf = deaf;
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

    /// True where [`advance`](Self::advance) has something to do.
    pub(crate) fn wants(&self) -> bool {
        let stuck = self.credits() == Some(0);
        !self.out.is_empty()
            || self
                .invalidations
                .iter()
                .any(|i| !self.deaf && i.waits_for.is_empty())
            || self.transfers.values().any(|t| match t.state {
                State::Ready => true,
                State::NeedPage => !stuck,
                _ => false,
            })
    }

    /// Page requests that may still be sent; `None` where PRI is off.
    fn credits(&self) -> Option<u32> {
        self.caps
            .pri()
            .map(|limit| limit.saturating_sub(self.groups.requests()))
    }

    /// Sends what can be sent.
    pub(crate) fn advance(&mut self, adversary: &mut Adversary) {
        if adversary.considers(Action::Evict) && self.dtlb.evict(adversary.below(u64::MAX)) {
            adversary.count(Action::Evict);
        }
        let ready: Vec<u64> = self
            .transfers
            .iter()
            .filter(|(_, t)| t.state == State::Ready)
            .map(|(&k, _)| k)
            .collect();
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

    /// Looks an access up and sends it, or the translation request it needs.
    fn issue(&mut self, ticket: u64) {
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        let (iova, prefix, write) = (t.iova, t.prefix, t.intent.is_write());
        let pasid = prefix.map(|p| p.pasid);
        if self.caps.ats().is_none() {
            return self.send(ticket, iova, prefix, None);
        }
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        let found = self
            .dtlb
            .lookup(pasid, iova)
            .filter(|e| if write { e.write } else { e.read });
        match found {
            Some(entry) => {
                self.stats.dtlb_hits += u64::from(!t.missed);
                let translated = (!entry.untranslated_only).then(|| within(entry, iova));
                self.send(ticket, translated.unwrap_or(iova), prefix, translated);
            }
            None => {
                self.stats.dtlb_misses += u64::from(!t.missed);
                t.missed = true;
                t.state = State::Translating { stale: false };
                let op = Operation::Translate { no_write: !write };
                let addr = iova & !(PAGE - 1);
                let at = AddressType::Untranslated;
                let request = Request {
                    source: self.id,
                    prefix,
                    at,
                    addr,
                    op,
                };
                self.out.push(Tlp::Request {
                    ticket,
                    iova,
                    pasid,
                    request,
                });
            }
        }
    }

    fn send(&mut self, ticket: u64, addr: u64, prefix: Option<Prefix>, translated: Option<u64>) {
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        t.state = State::InFlight {
            translated: translated.is_some(),
        };
        let op = match &t.intent {
            Intent::Read(len) => Operation::Read(*len),
            Intent::Write(data) => Operation::Write(data.clone()),
        };
        let (at, on_wire) = match translated {
            // Translated requests carry no PASID, unless both sides agreed on it ([V] 4.2.1).
            Some(_) => (AddressType::Translated, None),
            None => (AddressType::Untranslated, prefix),
        };
        let (iova, pasid) = (t.iova, prefix.map(|p| p.pasid));
        let request = Request {
            source: self.id,
            prefix: on_wire,
            at,
            addr,
            op,
        };
        self.out.push(Tlp::Request {
            ticket,
            iova,
            pasid,
            request,
        });
    }

    /// Forms a group of the pages that are missing, as far as credits and indices go.
    fn ask_for_pages(&mut self) {
        loop {
            let waiting = |t: &Transfer| t.state == State::NeedPage;
            let Some(prefix) = self
                .transfers
                .values()
                .find(|t| waiting(t))
                .map(|t| t.prefix)
            else {
                return;
            };
            let Some(credits) = self.credits() else {
                return self.fail_where(waiting, Failure::NoPermission);
            };
            let pasid = prefix.map(|p| p.pasid);
            let Some(prgi) = self.groups.free_index(pasid).filter(|_| credits > 0) else {
                return;
            };
            let room = Self::GROUP.min(credits as usize);
            let (mut pages, mut tickets) = (BTreeMap::<u64, bool>::new(), Vec::new());
            for (&ticket, t) in &mut self.transfers {
                let page = t.iova & !(PAGE - 1);
                if !waiting(t)
                    || t.prefix != prefix
                    || (pages.len() >= room && !pages.contains_key(&page))
                {
                    continue;
                }
                *pages.entry(page).or_default() |= t.intent.is_write();
                tickets.push(ticket);
                t.state = State::WaitPage;
            }
            let requests = pages.len() as u32;
            let number = self.groups.number();
            for (i, (page, write)) in pages.into_iter().enumerate() {
                let last = i + 1 == requests as usize;
                self.emit_page_request(prefix, page, (true, write), last, prgi, number);
            }
            self.stats.groups += 1;
            self.groups.open(
                (pasid, prgi),
                Group {
                    number,
                    tickets,
                    requests,
                    sent: self.now,
                },
            );
            self.caps.set_pri_busy(true);
        }
    }

    fn emit_page_request(
        &mut self,
        prefix: Option<Prefix>,
        addr: u64,
        (read, write): (bool, bool),
        last: bool,
        prgi: u16,
        group: u64,
    ) {
        self.stats.page_requests += 1;
        let addr = addr & !(PAGE - 1);
        let request = PageRequest {
            source: self.id,
            prefix,
            addr,
            read,
            write,
            last,
            prgi,
            group,
        };
        self.out.push(Tlp::Message(Upstream::PageRequest(request)));
    }

    /// The adversary's idea: asks for a page, or a translation, that is there already.
    fn spurious(&mut self, adversary: &mut Adversary) {
        if self.caps.ats().is_none() || !adversary.considers(Action::Spurious) {
            return;
        }
        let Some((pasid, page, t)) = self.dtlb.some_page(adversary.below(u64::MAX)) else {
            return;
        };
        adversary.count(Action::Spurious);
        let prefix = pasid.map(Prefix::user);
        if self.credits().is_some_and(|c| c > 0) && adversary.below(2) == 0 {
            self.raw_page_request(prefix, page, t.write, true);
        } else {
            let op = Operation::Translate { no_write: !t.write };
            let at = AddressType::Untranslated;
            self.raw_request(Request {
                source: self.id,
                prefix,
                at,
                addr: page,
                op,
            });
        }
    }

    /// A request has come back.
    pub(crate) fn complete(&mut self, ticket: u64, completion: Completion) {
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
            (Completion::Translation(_), State::Translating { stale: true }) => {
                t.state = State::Ready
            }
            (Completion::Translation(entry), _) => self.translated(ticket, entry),
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

    fn translated(&mut self, ticket: u64, entry: Translation) {
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        let granted = if t.intent.is_write() {
            entry.write
        } else {
            entry.read
        };
        if granted {
            t.state = State::Ready;
            let (pasid, iova) = (t.prefix.map(|p| p.pasid), t.iova);
            self.dtlb.insert(pasid, iova, entry);
            return;
        }
        t.rounds += 1;
        t.state = State::NeedPage;
        let tired = t.rounds > Self::ROUNDS;
        if self.caps.pri().is_none() {
            self.end(ticket, Err(Failure::NoPermission));
        } else if tired {
            self.end(ticket, Err(Failure::NoProgress));
        }
    }

    /// A message has arrived.
    pub(crate) fn receive(&mut self, now: u64, message: Downstream, journal: &mut Journal) {
        match message {
            Downstream::Invalidate {
                itag,
                pasid,
                global,
                addr,
                bits,
            } => {
                self.invalidate(itag, pasid, global, addr, bits);
            }
            Downstream::PageResponse {
                pasid,
                prgi,
                code,
                by,
            } => {
                self.response(now, pasid, prgi, code, by, journal);
            }
        }
    }

    fn invalidate(&mut self, itag: u8, pasid: Option<Pasid>, global: bool, addr: u64, bits: u8) {
        self.stats.invalidations += 1;
        self.dtlb.invalidate(pasid, global, addr, bits);
        let mut waits_for = BTreeSet::new();
        for (&ticket, t) in &mut self.transfers {
            let p = t.prefix.map(|p| p.pasid);
            if !(if global { p.is_some() } else { p == pasid }) {
                continue;
            }
            match &mut t.state {
                // Its answer may cover more than the page it asks for, so any may be stale.
                State::Translating { stale } => *stale = true,
                State::InFlight { translated: true } if overlaps(addr, bits, t.iova, 12) => {
                    waits_for.insert(ticket);
                }
                _ => {}
            }
        }
        self.invalidations.push(Invalidation { itag, waits_for });
    }

    fn response(
        &mut self,
        now: u64,
        pasid: Option<Pasid>,
        prgi: u16,
        code: ResponseCode,
        by: Responder,
        journal: &mut Journal,
    ) {
        let source = self.id;
        let Some(group) = self.groups.close((pasid, prgi)) else {
            journal.note(if self.groups.was_void((pasid, prgi)) {
                What::LateResponse {
                    source,
                    pasid,
                    prgi,
                }
            } else {
                What::UnexpectedResponse {
                    source,
                    pasid,
                    prgi,
                }
            });
            return;
        };
        self.caps.set_pri_busy(!self.groups.is_empty());
        *self.stats.responses.entry((by, code)).or_default() += 1;
        self.stats.latency(now.saturating_sub(group.sent));
        let how = match by {
            Responder::Software => Settlement::Software(code),
            Responder::Hardware => Settlement::Hardware(code),
        };
        journal.note(What::Settled {
            source,
            pasid,
            prgi,
            group: group.number,
            how,
        });
        if matches!(code, ResponseCode::Failure | ResponseCode::Reserved(_)) {
            self.caps.pri_failure();
        }
        for ticket in group.tickets {
            match (code, self.transfers.get_mut(&ticket)) {
                (ResponseCode::Success, Some(t)) => t.state = State::Ready,
                (_, Some(_)) => self.end(ticket, Err(Failure::Denied(code))),
                (_, None) => {}
            }
        }
    }

    pub(crate) fn reset(&mut self, journal: &mut Journal) {
        let source = self.id;
        for ((pasid, prgi), group) in self.groups.void_all() {
            self.stats.void += 1;
            let how = Settlement::Void;
            journal.note(What::Settled {
                source,
                pasid,
                prgi,
                group: group.number,
                how,
            });
        }
        self.caps.clear();
        self.dtlb.clear();
        self.transfers.clear();
        self.raw.clear();
        self.invalidations
            .iter_mut()
            .for_each(|i| i.waits_for.clear());
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
        let tickets: Vec<u64> = self
            .transfers
            .iter()
            .filter(|(_, t)| which(t))
            .map(|(&k, _)| k)
            .collect();
        for ticket in tickets {
            self.end(ticket, Err(failure));
        }
    }
}

/// The translated address of an IOVA inside a cached region.
fn within(entry: Translation, iova: u64) -> u64 {
    let offset = 1u64
        .checked_shl(u32::from(entry.bits))
        .map_or(u64::MAX, |size| size - 1);
    (entry.addr & !offset) | (iova & offset)
}
