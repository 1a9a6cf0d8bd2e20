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

mod ledger;

use self::ledger::Ledger;
use parking_lot::Mutex;
use portcullis_models::{
    bus::{Pasid, RequesterId},
    log::{AccessLog, Event, Settlement},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
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

/// Where an IOVA range leads.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// First physical address.
    pub phys: u64,
    /// Bytes.
    pub len: u64,
    /// Writable.
    pub write: bool,
}

/// One note of what the caller did or the bus saw.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A map is about to be made.
    Map {
        /// The domain's number.
        domain: u64,
        /// First IOVA.
        iova: u64,
        /// Where it leads.
        mapping: Mapping,
    },
    /// A map failed, or the sync of its unmap has returned.
    Unmapped {
        /// The domain's number.
        domain: u64,
        /// First IOVA.
        iova: u64,
    },
    /// An attach is about to be made.
    Attach {
        /// Where.
        place: Place,
        /// The domain's number.
        domain: u64,
    },
    /// A replace has returned, or an attach failed.
    Replaced {
        /// Where.
        place: Place,
        /// The domain that it has left.
        domain: u64,
    },
    /// A detach has returned.
    Detached {
        /// Where.
        place: Place,
        /// The domain that it has left.
        domain: u64,
    },
    /// A handler was given a group.
    Delivered {
        /// Of what.
        place: Place,
        /// Detaches of the place before the handler's attachment was made.
        epoch: u64,
        /// The group's index.
        prgi: u16,
    },
    /// A handler begins.
    Enters {
        /// Whose requests it handles.
        place: Place,
        /// The number of its attachment.
        attachment: u64,
    },
    /// A handler ends.
    Leaves {
        /// Whose requests it handled.
        place: Place,
        /// The number of its attachment.
        attachment: u64,
    },
    /// An attachment is gone.
    Gone(u64),
    /// The bus saw something.
    Bus(Event),
}

/// Reads what is entered, in its order. It may not call the oracle.
pub trait Reader: Send {
    /// One entry.
    fn read(&mut self, entry: &Entry);
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
    /// Has somebody read every entry, in order, beside the oracle itself.
    pub fn read_along(&self, reader: Box<dyn Reader>) {
        self.0.ledger.lock().reader = Some(reader);
    }

    /// Takes the reader out again.
    pub fn take_reader(&self) -> Option<Box<dyn Reader>> {
        self.0.ledger.lock().reader.take()
    }

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
    pub fn handler_enters(&self, place: Place, attachment: u64) {
        self.write(Entry::Enters { place, attachment });
    }

    /// A handler of an attachment ends.
    pub fn handler_leaves(&self, place: Place, attachment: u64) {
        self.write(Entry::Leaves { place, attachment });
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

impl AccessLog for Oracle {
    fn event(&mut self, event: &Event) {
        self.write(Entry::Bus(event.clone()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_models::log::{Reach, What};

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
            oracle.handler_enters(PLACE, attachment);
            if attachment != 2 {
                oracle.handler_leaves(PLACE, attachment);
            }
        }
        assert_eq!(oracle.most_handlers_at_once(), 2);
    }
}
