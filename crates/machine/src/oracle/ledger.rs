//! The ledger: entries come in by their stamps, and are compared.

use super::{Entry, Mapping, Place, Reader, Verdict, name, settlement};
use portcullis_models::{
    bus::{PrivateData, Responder},
    log::{Event, Reach, What},
};
use std::collections::{BTreeMap, BTreeSet};

/// A request that wants a response: its group's number, and its private data.
type Owed = (u64, Option<PrivateData>);

#[derive(Default)]
pub(super) struct Ledger {
    /// The stamp of the next entry.
    next: u64,
    /// Entries that wait for earlier ones: no more than there are threads that write.
    early: BTreeMap<u64, Entry>,
    /// Reads along.
    pub(super) reader: Option<Box<dyn Reader>>,
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
    pub(super) owed: BTreeMap<Owed, Place>,
    settled: BTreeSet<Owed>,
    /// Handlers that run, by the number that the scenario gave the attachment.
    running: BTreeMap<u64, u32>,
    /// Handlers that run, of all attachments, and the most there were at once.
    pub(super) at_once: (u32, u32),
    gone: BTreeSet<u64>,
    pub(super) verdict: Verdict,
}

impl Ledger {
    fn epoch(&self, place: Place) -> u64 {
        self.epochs.get(&place).copied().unwrap_or(0)
    }

    /// Takes an entry in, once all before it are.
    pub(super) fn write(&mut self, stamp: u64, entry: Entry) {
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
        if let Some(reader) = &mut self.reader {
            reader.read(&entry);
        }
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
            Entry::Enters { attachment, .. } => self.handler_enters(attachment),
            Entry::Leaves { attachment, .. } => self.handler_leaves(attachment),
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
