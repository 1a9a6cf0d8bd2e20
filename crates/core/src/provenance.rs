//! What was mapped where, when, by which call, and when it went: a bounded history of one domain,
//! kept when [`Config::provenance`](crate::Config::provenance) says so, to explain faults with.
//! Off, a map or an unmap costs one branch more.

use crate::{
    domain::{Domain, DomainInner},
    error::OutOfMemory,
    owner::Owner,
    platform::{Platform, ShortLock, Time},
};
use alloc::vec::Vec;
use core::{fmt, panic::Location};
use portcullis_pgtable::{Phys, Prot};

/// A call of the domain's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it was made.
    pub at: Time,
    /// The line of source that made it.
    pub by: &'static Location<'static>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} by {}:{}", self.at, self.by.file(), self.by.line())
    }
}

/// A mapping that is or was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MappingHistory {
    /// Its first address, as it was mapped.
    pub iova: u64,
    /// Its bytes.
    pub len: u64,
    /// Where `iova` went.
    pub phys: Phys,
    /// What a device may do or might have done there.
    pub prot: Prot,
    /// The call that mapped it.
    pub mapped: Call,
    /// How the page asked about went, where it did.
    pub gone: Option<Gone>,
}

/// How a mapping went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gone {
    /// The call that unmapped it.
    pub unmapped: Call,
    /// When an invalidation had completed that began after it. Until then a device may use what
    /// is cached of it.
    pub invalidated: Option<Time>,
}

/// What is known of the mappings at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provenance {
    /// No history is kept.
    Off,
    /// Nothing was ever mapped there.
    Never,
    /// Nothing was mapped there as far as the history goes back, which is not to the beginning.
    Forgotten,
    /// The last mapping there.
    Known(MappingHistory),
}

impl<P: Platform, O: Owner> Domain<P, O> {
    /// The mapping that is or was at an address. Any context.
    pub fn provenance(&self, iova: u64) -> Provenance {
        self.inner.provenance(iova)
    }
}

impl<P: Platform> DomainInner<P> {
    pub(crate) fn provenance(&self, iova: u64) -> Provenance {
        self.history.as_ref().map_or(Provenance::Off, |h| h.with(|h| h.at(iova)))
    }

    #[track_caller]
    pub(crate) fn note_mapped(&self, iova: u64, phys: Phys, len: u64, prot: Prot) {
        self.note(iova, len, What::Mapped { phys, prot, by: Location::caller() });
    }

    pub(crate) fn note_unmapped(&self, iova: u64, len: u64, by: &'static Location<'static>) {
        self.note(iova, len, What::Unmapped { by });
    }

    fn note(&self, iova: u64, len: u64, what: What) {
        if let (Some(history), Some(more)) = (&self.history, len.checked_sub(1)) {
            let at = self.shared.hub.platform.now();
            history.with(|h| h.push(Event { start: iova, last: iova.saturating_add(more), at, what }));
        }
    }

    /// Before an invalidation begins: what was unmapped up to here is what it covers.
    pub(crate) fn before_invalidation(&self) -> u64 {
        self.history.as_ref().map_or(0, |h| h.with(|h| h.pushed))
    }

    /// After an invalidation has completed, of a range or of everything.
    pub(crate) fn note_invalidated(&self, range: Option<(u64, u64)>, before: u64) {
        if let Some(history) = &self.history {
            let at = self.shared.hub.platform.now();
            let (start, last) = range.unwrap_or((0, u64::MAX));
            history.with(|h| h.push(Event { start, last, at, what: What::Invalidated { before } }));
        }
    }
}

/// The last events of a domain, oldest overwritten first.
pub(crate) struct History {
    ring: Vec<Event>,
    next: usize,
    /// Events since the domain was made: the number of the next one.
    pushed: u64,
}

#[derive(Clone, Copy)]
struct Event {
    start: u64,
    last: u64,
    at: Time,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Mapped {
        phys: Phys,
        prot: Prot,
        by: &'static Location<'static>,
    },
    Unmapped {
        by: &'static Location<'static>,
    },
    /// Covers the events numbered below `before`.
    Invalidated {
        before: u64,
    },
}

impl History {
    /// A history of so many events; none is kept for 0.
    pub(crate) fn new(events: usize) -> Result<Option<History>, OutOfMemory> {
        let mut ring = Vec::new();
        ring.try_reserve_exact(events).map_err(|_| OutOfMemory)?;
        Ok((events > 0).then_some(History { ring, next: 0, pushed: 0 }))
    }

    fn push(&mut self, event: Event) {
        self.pushed += 1;
        if self.ring.len() < self.ring.capacity() {
            self.ring.push(event);
        } else if let Some(oldest) = self.ring.get_mut(self.next) {
            *oldest = event;
            self.next = (self.next + 1) % self.ring.len();
        }
    }

    /// Goes back from the newest event to the mapping.
    fn at(&self, iova: u64) -> Provenance {
        let (newer, older) = self.ring.split_at(self.next);
        let newest_first = newer.iter().rev().chain(older.iter().rev());
        let numbers = (0..self.pushed).rev();
        let mut gone = None::<Gone>;
        // The invalidations that came after, the earliest that suffices first: (before, at).
        let mut invalidated = None::<(u64, Time)>;
        for (event, number) in newest_first.zip(numbers).filter(|(e, _)| e.start <= iova && iova <= e.last) {
            match event.what {
                What::Invalidated { before } => invalidated = Some((before, event.at)),
                What::Unmapped { by } if gone.is_none() => {
                    gone = Some(Gone {
                        unmapped: Call { at: event.at, by },
                        invalidated: invalidated.filter(|(before, _)| number < *before).map(|(_, at)| at),
                    });
                }
                What::Unmapped { .. } => {}
                What::Mapped { phys, prot, by } => {
                    return Provenance::Known(MappingHistory {
                        iova: event.start,
                        len: event.last - event.start + 1,
                        phys,
                        prot,
                        mapped: Call { at: event.at, by },
                        gone,
                    });
                }
            }
        }
        if self.pushed > self.ring.len() as u64 { Provenance::Forgotten } else { Provenance::Never }
    }
}
