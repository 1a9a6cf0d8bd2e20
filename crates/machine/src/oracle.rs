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

use parking_lot::Mutex;
use portcullis_models::{
    bus::{Pasid, PrivateData, RequesterId, Responder},
    log::{AccessLog, Event, Reach, Settlement, What},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
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

#[derive(Default)]
struct Ledger {
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
    gone: BTreeSet<u64>,
    verdict: Verdict,
}

/// The oracle's book. A handle.
#[derive(Clone, Default)]
pub struct Oracle(Arc<Mutex<Ledger>>);

impl Oracle {
    /// A map is about to be made.
    pub fn map(&self, domain: u64, iova: u64, phys: u64, len: u64, write: bool) {
        self.0.lock().mappings.insert((domain, iova), Mapping { phys, len, write });
    }

    /// A map failed, or the sync of its unmap has returned.
    pub fn unmapped(&self, domain: u64, iova: u64) {
        self.0.lock().mappings.remove(&(domain, iova));
    }

    /// An attach is about to be made.
    pub fn attach(&self, place: Place, domain: u64) {
        let mut l = self.0.lock();
        l.left.remove(&place);
        l.attached.entry(place).or_default().push(domain);
    }

    /// An attach failed, or the detach has returned: the hardware has let go.
    pub fn detached(&self, place: Place, domain: u64) {
        self.replaced(place, domain);
        *self.0.lock().epochs.entry(place).or_default() += 1;
    }

    /// A replace has returned, and `domain` is the one that the place has left.
    pub fn replaced(&self, place: Place, domain: u64) {
        let mut l = self.0.lock();
        if let Some(list) = l.attached.get_mut(&place) {
            if let Some(i) = list.iter().position(|d| *d == domain) {
                list.remove(i);
            }
            if list.is_empty() {
                l.attached.remove(&place);
                l.left.insert(place);
            }
        }
    }

    /// Detaches of a place so far: what is attached there now is of this epoch.
    pub fn epoch(&self, place: Place) -> u64 {
        self.0.lock().epoch(place)
    }

    /// A handler of an attachment made in `epoch` was given a group of the place.
    pub fn delivered(&self, place: Place, epoch: u64, prgi: u16) {
        let mut l = self.0.lock();
        l.verdict.quiescence.checked += 1;
        // Which of the requests with this index it is, the handler cannot tell: the newest.
        let all = (place, prgi, None)..=(place, prgi, Some([u64::MAX; 2]));
        if l.queued.range(all).map(|(_, queued)| *queued).max().is_some_and(|queued| queued < epoch) {
            l.verdict.quiescence.violated(|| {
                format!(
                    "group index {prgi} of {}, queued before a detach, was handed to what was attached after",
                    name(place)
                )
            });
        }
    }

    /// A handler of an attachment begins.
    pub fn handler_enters(&self, attachment: u64) {
        let mut l = self.0.lock();
        l.verdict.quiescence.checked += 1;
        if l.gone.contains(&attachment) {
            l.verdict
                .quiescence
                .violated(|| format!("a handler began after attachment {attachment} was gone"));
        }
        *l.running.entry(attachment).or_default() += 1;
    }

    /// A handler of an attachment ends.
    pub fn handler_leaves(&self, attachment: u64) {
        let mut l = self.0.lock();
        if let Some(n) = l.running.get_mut(&attachment) {
            *n = n.saturating_sub(1);
        }
        if l.gone.contains(&attachment) {
            l.verdict
                .quiescence
                .violated(|| format!("a handler ended after attachment {attachment} was gone"));
        }
    }

    /// An attachment is gone.
    pub fn gone(&self, attachment: u64) {
        let mut l = self.0.lock();
        l.verdict.quiescence.checked += 1;
        l.gone.insert(attachment);
        if l.running.get(&attachment).is_some_and(|n| *n > 0) {
            l.verdict.quiescence.violated(|| format!("attachment {attachment} is gone and its handler runs"));
        }
    }

    /// Closes the book: what is still owed was never settled.
    pub fn close(&self) -> Verdict {
        let mut l = self.0.lock();
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
        self.0.lock().verdict.clone()
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
        let mut l = self.0.lock();
        match &event.what {
            What::Begin(r) => l.reach(r, false, event.time),
            What::Finish(r) => l.reach(r, true, event.time),
            What::PageRequested(r) if r.needs_response() && r.group != 0 => {
                l.owed.insert((r.group, r.private), (r.source, r.prefix.map(|p| p.pasid)));
            }
            What::Settled { source, pasid, group, private, how, .. } => {
                let place = (*source, *pasid);
                let request = (*group, *private);
                l.verdict.settled_once.checked += 1;
                if l.owed.remove(&request).is_none() && l.settled.contains(&request) {
                    let how = settlement(*how);
                    l.verdict
                        .settled_once
                        .violated(|| format!("group {group:#x} of {} was settled again: {how}", name(place)));
                }
                l.settled.insert(request);
            }
            What::PageQueued { request, .. } if request.needs_response() => {
                let place = (request.source, request.prefix.map(|p| p.pasid));
                let epoch = l.epoch(place);
                l.queued.insert((place, request.prgi, request.private), epoch);
            }
            What::ResponseSent { source, pasid, prgi, private, by: Responder::Software, .. } => {
                let place = (*source, *pasid);
                let epoch = l.epoch(place);
                l.verdict.quiescence.checked += 1;
                if l.queued.get(&(place, *prgi, *private)).is_some_and(|queued| *queued < epoch) {
                    l.verdict.quiescence.violated(|| {
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
                l.verdict.settled_once.checked += 1;
                l.verdict.settled_once.violated(|| {
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
}

/// How a group ended, in words.
pub fn settlement(how: Settlement) -> String {
    match how {
        Settlement::Software(code) => format!("software: {code:?}"),
        Settlement::Hardware(code) => format!("hardware: {code:?}"),
        Settlement::Void => "void".into(),
    }
}
