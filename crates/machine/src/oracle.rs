//! The three invariants, checked while a scenario runs.
//!
//! - *isolation*: every physical access lies in a mapping of the domain that its requester (and
//!   PASID) is attached to, with the right to do what it does, from the call of map to the return
//!   of sync. Checked when an access is let through, and again when its bytes have moved.
//! - *settled once*: every last page request is settled exactly once, and no response arrives that
//!   nobody waits for.
//! - *quiescence*: once an attachment is gone, no handler runs with it, no access of it lands, no
//!   answer to its requests goes out, and none of its requests reaches the next one.
//!
//! What is mapped and attached comes from the caller, what is accessed from the bus: the two logs
//! share nothing with the code between them.
//!
//! On threads the two are put into one order by stamps from one counter. A caller takes its stamp at
//! the outer side of what it does: before the call of map, attach or begin of a handler, after the
//! return of sync, detach or wait. The bus takes it where the access happens, inside the hardware's
//! step. So an access that is allowed always lies between the stamps that allow it, and one that
//! comes after the return of sync is seen to. An entry waits for those with earlier stamps, however
//! late they are written down.

use parking_lot::Mutex;
use portcullis_models::{
    bus::{Pasid, PrivateData, RequesterId, Responder},
    log::{AccessLog, Event, Reach, Settlement, What},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Violations described in words; further ones are only counted.
const DESCRIBED: usize = 16;

/// What one invariant checked and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Things checked.
    pub checked: u64,
    /// How many of them violate the invariant.
    pub violations: u64,
    /// The first of them, in words.
    pub described: Vec<String>,
}

impl Check {
    fn violated(&mut self, say: impl FnOnce() -> String) {
        self.violations += 1;
        if self.described.len() < DESCRIBED {
            self.described.push(say());
        }
    }
}

/// All three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// No access outside what is mapped.
    pub isolation: Check,
    /// One end for each page-request group.
    pub settled_once: Check,
    /// Nothing after the end.
    pub quiescence: Check,
}

impl Verdict {
    /// Whether nothing was violated.
    pub fn holds(&self) -> bool {
        self.isolation.violations + self.settled_once.violations + self.quiescence.violations == 0
    }
}

/// Where a translation is attached: a requester, or a PASID of it.
pub type Place = (RequesterId, Option<Pasid>);

/// A request that wants a response: its group's number, and its private data.
type Owed = (u64, Option<PrivateData>);

#[derive(Clone, Copy)]
struct Mapping {
    phys: u64,
    len: u64,
    write: bool,
}

/// What the books are kept from.
#[derive(Clone)]
enum Entry {
    Map { domain: u64, iova: u64, mapping: Mapping },
    Unmapped { domain: u64, iova: u64 },
    Attach { place: Place, domain: u64 },
    Replaced { place: Place, domain: u64 },
    Detached { place: Place, domain: u64 },
    Delivered { place: Place, epoch: u64, prgi: u16 },
    Enters(u64),
    Leaves(u64),
    Gone(u64),
    Bus(Event),
}

#[derive(Default)]
struct Ledger {
    /// The stamp of the next entry.
    next: u64,
    /// Entries that wait for earlier ones: no more than there are threads that write.
    early: BTreeMap<u64, Entry>,
    /// By domain and first IOVA.
    mappings: BTreeMap<(u64, u64), Mapping>,
    /// The domains that a place may translate through now: two while it is switched.
    attached: BTreeMap<Place, Vec<u64>>,
    /// Places that something was attached to before, and is not now.
    left: BTreeSet<Place>,
    /// Detaches of a place so far.
    epochs: BTreeMap<Place, u64>,
    /// In which epoch a request that wants a response got into the IOMMU's queue, by group index and
    /// private data. Its place in the queue counts, not when it was sent: the drain separates by
    /// that.
    queued: BTreeMap<(Place, u16, Option<PrivateData>), u64>,
    /// By group and private data.
    owed: BTreeMap<Owed, Place>,
    settled: BTreeSet<Owed>,
    /// Handlers that run, by the number that the scenario gave the attachment.
    running: BTreeMap<u64, u32>,
    /// Handlers that run, of all attachments, and the most there were at once.
    at_once: (u32, u32),
    gone: BTreeSet<u64>,
    verdict: Verdict,
}

#[derive(Default)]
struct Books {
    stamps: AtomicU64,
    ledger: Mutex<Ledger>,
    /// Detaches of a place so far, for those who attach after them: the ledger may be behind.
    epochs: Mutex<BTreeMap<Place, u64>>,
}

/// The oracle's books. A handle.
#[derive(Clone, Default)]
pub struct Oracle(Arc<Books>);

impl Oracle {
    /// A map is about to be made.
    pub fn map(&self, domain: u64, iova: u64, phys: u64, len: u64, write: bool) {
        self.write(Entry::Map { domain, iova, mapping: Mapping { phys, len, write } });
    }

    /// A map failed, or the sync of its unmap has returned.
    pub fn unmapped(&self, domain: u64, iova: u64) {
        self.write(Entry::Unmapped { domain, iova });
    }

    /// An attach is about to be made.
    pub fn attach(&self, place: Place, domain: u64) {
        self.write(Entry::Attach { place, domain });
    }

    /// An attach failed, or the detach has returned: the hardware has let go.
    pub fn detached(&self, place: Place, domain: u64) {
        self.write(Entry::Detached { place, domain });
        *self.0.epochs.lock().entry(place).or_default() += 1;
    }

    /// A replace has returned, and `domain` is the one that the place has left.
    pub fn replaced(&self, place: Place, domain: u64) {
        self.write(Entry::Replaced { place, domain });
    }

    /// Detaches of a place so far: what is attached there now is of this epoch.
    pub fn epoch(&self, place: Place) -> u64 {
        self.0.epochs.lock().get(&place).copied().unwrap_or(0)
    }

    /// A handler of an attachment made in `epoch` was given a group of the place.
    pub fn delivered(&self, place: Place, epoch: u64, prgi: u16) {
        self.write(Entry::Delivered { place, epoch, prgi });
    }

    /// A handler of an attachment begins.
    pub fn handler_enters(&self, attachment: u64) {
        self.write(Entry::Enters(attachment));
    }

    /// A handler of an attachment ends.
    pub fn handler_leaves(&self, attachment: u64) {
        self.write(Entry::Leaves(attachment));
    }

    /// An attachment is gone.
    pub fn gone(&self, attachment: u64) {
        self.write(Entry::Gone(attachment));
    }

    /// Closes the books: what is still owed was never settled.
    pub fn close(&self) -> Verdict {
        let mut l = self.0.ledger.lock();
        let owed = std::mem::take(&mut l.owed);
        for ((group, _), place) in owed {
            l.verdict
                .settled_once
                .violated(|| format!("group {group:#x} of {} was never settled", name(place)));
        }
        l.verdict.clone()
    }

    /// What was found so far.
    pub fn verdict(&self) -> Verdict {
        self.0.ledger.lock().verdict.clone()
    }

    /// Handlers that ran at the same time, at most.
    pub fn most_handlers_at_once(&self) -> u32 {
        self.0.ledger.lock().at_once.1
    }

    fn write(&self, entry: Entry) {
        // The stamp first: what else delays this thread moves its entry no more.
        let stamp = self.0.stamps.fetch_add(1, Ordering::SeqCst);
        self.0.ledger.lock().write(stamp, entry);
    }
}

fn name((source, pasid): Place) -> String {
    match pasid {
        Some(p) => format!("{source} PASID {}", p.get()),
        None => source.to_string(),
    }
}

impl Ledger {
    fn epoch(&self, place: Place) -> u64 {
        self.epochs.get(&place).copied().unwrap_or(0)
    }

    /// Takes an entry in, once all before it are.
    fn write(&mut self, stamp: u64, entry: Entry) {
        if stamp != self.next {
            self.early.insert(stamp, entry);
            return;
        }
        self.enter(entry);
        self.next += 1;
        while let Some(entry) = self.early.remove(&self.next) {
            self.enter(entry);
            self.next += 1;
        }
    }

    fn enter(&mut self, entry: Entry) {
        match entry {
            Entry::Map { domain, iova, mapping } => {
                self.mappings.insert((domain, iova), mapping);
            }
            Entry::Unmapped { domain, iova } => {
                self.mappings.remove(&(domain, iova));
            }
            Entry::Attach { place, domain } => {
                self.left.remove(&place);
                self.attached.entry(place).or_default().push(domain);
            }
            Entry::Replaced { place, domain } => self.leave(place, domain),
            Entry::Detached { place, domain } => {
                self.leave(place, domain);
                *self.epochs.entry(place).or_default() += 1;
            }
            Entry::Delivered { place, epoch, prgi } => self.delivered(place, epoch, prgi),
            Entry::Enters(attachment) => self.handler_enters(attachment),
            Entry::Leaves(attachment) => self.handler_leaves(attachment),
            Entry::Gone(attachment) => self.gone(attachment),
            Entry::Bus(event) => self.bus(&event),
        }
    }

    fn leave(&mut self, place: Place, domain: u64) {
        if let Some(list) = self.attached.get_mut(&place) {
            if let Some(i) = list.iter().position(|d| *d == domain) {
                list.remove(i);
            }
            if list.is_empty() {
                self.attached.remove(&place);
                self.left.insert(place);
            }
        }
    }

    fn delivered(&mut self, place: Place, epoch: u64, prgi: u16) {
        self.verdict.quiescence.checked += 1;
        // Which of the requests with this index it is, the handler cannot tell: the newest.
        let all = (place, prgi, None)..=(place, prgi, Some([u64::MAX; 2]));
        if self.queued.range(all).map(|(_, queued)| *queued).max().is_some_and(|queued| queued < epoch) {
            self.verdict.quiescence.violated(|| {
                format!(
                    "group index {prgi} of {}, queued before a detach, was handed to what was attached after",
                    name(place)
                )
            });
        }
    }

    fn handler_enters(&mut self, attachment: u64) {
        self.verdict.quiescence.checked += 1;
        if self.gone.contains(&attachment) {
            self.verdict
                .quiescence
                .violated(|| format!("a handler began after attachment {attachment} was gone"));
        }
        *self.running.entry(attachment).or_default() += 1;
        let (now, most) = &mut self.at_once;
        *now += 1;
        *most = (*most).max(*now);
    }

    fn handler_leaves(&mut self, attachment: u64) {
        if let Some(n) = self.running.get_mut(&attachment) {
            *n = n.saturating_sub(1);
        }
        self.at_once.0 = self.at_once.0.saturating_sub(1);
        if self.gone.contains(&attachment) {
            self.verdict
                .quiescence
                .violated(|| format!("a handler ended after attachment {attachment} was gone"));
        }
    }

    fn gone(&mut self, attachment: u64) {
        self.verdict.quiescence.checked += 1;
        self.gone.insert(attachment);
        if self.running.get(&attachment).is_some_and(|n| *n > 0) {
            self.verdict
                .quiescence
                .violated(|| format!("attachment {attachment} is gone and its handler runs"));
        }
    }

    fn bus(&mut self, event: &Event) {
        match &event.what {
            What::Begin(r) => self.reach(r, false, event.time),
            What::Finish(r) => self.reach(r, true, event.time),
            What::PageRequested(r) if r.needs_response() && r.group != 0 => {
                self.owed.insert((r.group, r.private), (r.source, r.prefix.map(|p| p.pasid)));
            }
            What::Settled { source, pasid, group, private, how, .. } => {
                let place = (*source, *pasid);
                let request = (*group, *private);
                self.verdict.settled_once.checked += 1;
                if self.owed.remove(&request).is_none() && self.settled.contains(&request) {
                    let how = settlement(*how);
                    self.verdict
                        .settled_once
                        .violated(|| format!("group {group:#x} of {} was settled again: {how}", name(place)));
                }
                self.settled.insert(request);
            }
            What::PageQueued { request, .. } if request.needs_response() => {
                let place = (request.source, request.prefix.map(|p| p.pasid));
                let epoch = self.epoch(place);
                self.queued.insert((place, request.prgi, request.private), epoch);
            }
            What::ResponseSent { source, pasid, prgi, private, by: Responder::Software, .. } => {
                let place = (*source, *pasid);
                let epoch = self.epoch(place);
                self.verdict.quiescence.checked += 1;
                if self.queued.get(&(place, *prgi, *private)).is_some_and(|queued| *queued < epoch) {
                    self.verdict.quiescence.violated(|| {
                        format!(
                            "{} ns: the answer to group index {prgi} of {} goes out after its detach",
                            event.time,
                            name(place)
                        )
                    });
                }
            }
            What::UnexpectedResponse { source, pasid, prgi, private } => {
                let place = (*source, *pasid);
                self.verdict.settled_once.checked += 1;
                self.verdict.settled_once.violated(|| {
                    format!(
                        "{} ns: {} got a response for group index {prgi}{}, for which it does not wait",
                        event.time,
                        name(place),
                        private.map_or(String::new(), |p| format!(" with private data {p:x?}"))
                    )
                });
            }
            _ => {}
        }
    }

    fn reach(&mut self, r: &Reach, moved: bool, time: u64) {
        let place = (r.source, r.pasid);
        let word = if r.write { "write" } else { "read" };
        let what = || {
            let stage = if moved { "moved bytes" } else { "was let through" };
            let way = if r.translated { "translated " } else { "" };
            format!(
                "{time} ns: a {way}{word} of {} bytes by {} at {:#x} {stage} at {:#x}",
                r.len,
                name(place),
                r.iova,
                r.phys
            )
        };
        self.verdict.isolation.checked += 1;
        let Some(domains) = self.attached.get(&place) else {
            if self.left.contains(&place) {
                self.verdict.quiescence.checked += 1;
                self.verdict.quiescence.violated(|| format!("{} after its detach", what()));
            } else {
                self.verdict.isolation.violated(|| format!("{}, attached to nothing", what()));
            }
            return;
        };
        let covers = |domain: &u64| {
            let before = self.mappings.range((*domain, 0)..=(*domain, r.iova)).next_back();
            before.is_some_and(|((_, start), m)| {
                let offset = r.iova - start;
                offset.checked_add(u64::from(r.len)).is_some_and(|end| end <= m.len)
                    && m.phys + offset == r.phys
                    && (m.write || !r.write)
            })
        };
        if !domains.iter().any(covers) {
            self.verdict.isolation.violated(|| format!("{}, which is not mapped so", what()));
        }
    }
}

impl AccessLog for Oracle {
    fn event(&mut self, event: &Event) {
        if matters(&event.what) {
            self.write(Entry::Bus(event.clone()));
        }
    }
}

/// Whether an event of the bus says anything about an invariant.
fn matters(what: &What) -> bool {
    matches!(
        what,
        What::Begin(_)
            | What::Finish(_)
            | What::PageRequested(_)
            | What::PageQueued { .. }
            | What::Settled { .. }
            | What::ResponseSent { .. }
            | What::UnexpectedResponse { .. }
    )
}

/// How a group ended, in words.
pub fn settlement(how: Settlement) -> String {
    match how {
        Settlement::Software(code) => format!("software: {code:?}"),
        Settlement::Hardware(code) => format!("hardware: {code:?}"),
        Settlement::Void => "void".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = (RequesterId(8), None);

    fn access() -> Entry {
        let reach = Reach {
            access: 1,
            source: PLACE.0,
            pasid: None,
            iova: 0x4000,
            phys: 0x1000_0000,
            len: 64,
            write: true,
            translated: false,
        };
        Entry::Bus(Event { seq: 0, time: 0, what: What::Finish(reach) })
    }

    /// An oracle that knows of one mapping, and the next stamp.
    fn oracle() -> (Oracle, u64) {
        let oracle = Oracle::default();
        oracle.attach(PLACE, 1);
        oracle.map(1, 0x4000, 0x1000_0000, 4096, true);
        (oracle, 2)
    }

    fn violations(oracle: &Oracle, entries: [(u64, Entry); 2]) -> u64 {
        for (stamp, entry) in entries {
            oracle.0.ledger.lock().write(stamp, entry);
        }
        oracle.verdict().isolation.violations
    }

    #[test]
    fn an_access_after_the_sync_is_seen_though_it_is_written_down_first() {
        let (oracle, next) = oracle();
        let unmapped = Entry::Unmapped { domain: 1, iova: 0x4000 };
        assert_eq!(violations(&oracle, [(next + 1, access()), (next, unmapped)]), 1);
    }

    #[test]
    fn an_access_before_the_sync_is_allowed_though_it_is_written_down_last() {
        let (oracle, next) = oracle();
        let unmapped = Entry::Unmapped { domain: 1, iova: 0x4000 };
        assert_eq!(violations(&oracle, [(next + 1, unmapped), (next, access())]), 0);
        assert_eq!(oracle.verdict().isolation.checked, 1);
    }

    #[test]
    fn handlers_at_once_are_counted() {
        let oracle = Oracle::default();
        for attachment in [1, 2, 3] {
            oracle.handler_enters(attachment);
            if attachment != 2 {
                oracle.handler_leaves(attachment);
            }
        }
        assert_eq!(oracle.most_handlers_at_once(), 2);
    }
}
