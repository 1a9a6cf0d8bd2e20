//! One IOMMU instance: its driver, its service turns, and what it knows of its requesters.

use crate::{
    config::Config,
    credits::Credits,
    driver::{Caps, Driver, More, QueuePos},
    error::OutOfMemory,
    fault::{FaultKind, FaultRecord, RawFault, Reason},
    faultlog::FaultLog,
    hub::Hub,
    ids::{At, DomainTag, InstanceId, SourceId},
    intake::TurnIntake,
    platform::{Platform, ShortLock},
    quell::Watch,
    requests::Requests,
    sources::Sources,
    turn::Turn,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::time::Duration;
use portcullis_sync::{
    atomic::{AtomicBool, AtomicU32, Ordering},
    slot::SlotWord,
};

const IDLE: u32 = 0;
const RUNNING: u32 = 1;
const AGAIN: u32 = 2;

/// How soon a turn that left work behind is followed by another.
const NEXT_TURN: Duration = Duration::from_micros(10);

pub(crate) struct Instance<P: Platform> {
    id: InstanceId,
    driver: Box<dyn Driver>,
    caps: Caps,
    pub(crate) hub: Arc<Hub<P>>,
    /// One word for each page-request group that can wait for an answer.
    pub(crate) words: Box<[SlotWord]>,
    pub(crate) state: P::Lock<State<P>>,
    turn: AtomicU32,
    lost: AtomicBool,
    /// Something is to be done about a storm.
    pub(crate) restless: AtomicBool,
}

/// What the short lock of an instance guards.
pub(crate) struct State<P: Platform> {
    pub(crate) sources: Sources<P>,
    pub(crate) requests: Requests,
    pub(crate) credits: Credits,
    pub(crate) head: QueuePos,
    /// Devices that are marked and not cut off yet.
    suspects: u32,
    pub(crate) watch: Watch,
    sequence: u64,
    pub(crate) faults: FaultLog,
    tags: Vec<u64>,
}

impl<P: Platform> Instance<P> {
    pub(crate) fn new(
        hub: Arc<Hub<P>>,
        id: InstanceId,
        driver: Box<dyn Driver>,
    ) -> Result<Self, OutOfMemory> {
        let caps = driver.caps();
        let slots = caps.page_requests as usize;
        let mut words = Vec::new();
        words.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
        words.resize_with(slots, SlotWord::new);
        let mut tags = Vec::new();
        let count = caps.tags.len().div_ceil(64);
        tags.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        tags.resize(count, 0);
        let state = State {
            sources: Sources::new(hub.config.devices)?,
            requests: Requests::new(slots)?,
            credits: Credits::new(caps.page_requests, &hub.config),
            head: QueuePos(0),
            suspects: 0,
            watch: Watch::new(&hub.config.storms),
            sequence: 0,
            faults: FaultLog::new(hub.config.last_faults)?,
            tags,
        };
        Ok(Instance {
            id,
            driver,
            caps,
            words: words.into_boxed_slice(),
            state: hub.platform.lock(state),
            hub,
            turn: AtomicU32::new(IDLE),
            lost: AtomicBool::new(false),
            restless: AtomicBool::new(false),
        })
    }

    pub(crate) fn id(&self) -> InstanceId {
        self.id
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    pub(crate) fn caps(&self) -> &Caps {
        &self.caps
    }

    pub(crate) fn platform(&self) -> &P {
        &self.hub.platform
    }

    pub(crate) fn config(&self) -> &Config {
        &self.hub.config
    }

    /// Whether the hardware was given up.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Gives the hardware up: every wait for it ends, and what it may still reach is kept for ever.
    pub(crate) fn declare_lost(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            self.report(RawFault::new(FaultKind::InstanceLost, Reason::Hardware));
        }
        self.hub.progressed();
    }

    /// Reads the hardware's queues once, unless a turn runs already: then that one goes round
    /// again. Service context.
    pub(crate) fn service(self: &Arc<Self>) {
        if self.turn.swap(AGAIN, Ordering::AcqRel) != IDLE {
            return;
        }
        loop {
            // A swap, so that what a second caller saw before it asked is seen by this turn.
            self.turn.swap(RUNNING, Ordering::AcqRel);
            let mut intake = TurnIntake::new(self);
            let more = self.driver.service(&mut Turn::new(&mut intake, self.config().turn_budget.max(1)));
            let full = !self.send_unsent();
            self.expire();
            self.quell();
            if more == More::Yes || full {
                self.turn_soon();
            }
            if self.turn.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return;
            }
        }
    }

    /// Asks for another turn, for work that no interrupt will announce.
    pub(crate) fn turn_soon(&self) {
        self.platform().timer_at(self.platform().now() + NEXT_TURN);
    }

    /// Completes a driver's record and tells the observers.
    pub(crate) fn report(&self, raw: RawFault) {
        self.report_with(raw, 0);
    }

    /// The same of a record that stands for others before it.
    pub(crate) fn report_with(&self, raw: RawFault, untold: u64) {
        let mut record = FaultRecord {
            instance: self.id,
            source: raw.source,
            device: None,
            group: None,
            domain: None,
            pasid: raw.pasid,
            kind: raw.kind,
            access: raw.access,
            privileged: raw.privileged,
            address: raw.address.map(|a| a & raw.address_mask),
            address_mask: raw.address_mask,
            stage: raw.stage,
            reason: raw.reason,
            code: raw.code,
            raw: raw.raw,
            stalled: raw.stalled,
            at: self.platform().now(),
            untold,
            sequence: 0,
        };
        let judged = self.state.with(|s| {
            s.sequence += 1;
            record.sequence = s.sequence;
            let judged = s.judge(&mut record);
            if let Some(source) = raw.source.and_then(|id| s.sources.get_mut(id)) {
                source.note(&mut record);
            }
            s.faults.note(&record);
            judged
        });
        if judged.tell {
            self.hub.tell(&record);
        }
        judged.changes.into_iter().flatten().for_each(|c| self.changed(c));
    }

    /// Marks a device whose own TLB does not answer, or that faults too much. It is cut off before
    /// any other work of the hardware, in a service turn at the latest.
    pub(crate) fn quarantine(&self, source: SourceId, why: Reason) {
        let first = self.state.with(|s| {
            let first =
                s.sources.get_mut(source).is_some_and(|src| !core::mem::replace(&mut src.quarantined, true));
            s.suspects += u32::from(first);
            first
        });
        if first {
            let raw = RawFault::new(FaultKind::Quarantine, why);
            self.report(RawFault { source: Some(source), ..raw });
            self.restless.store(true, Ordering::Release);
        }
    }

    /// A device that is marked and not cut off yet. Whoever has work for the hardware does that
    /// first: until then the device may use what an invalidation no longer asks it about.
    pub(crate) fn suspect(&self) -> Option<SourceId> {
        self.state.with(|s| match s.suspects {
            0 => None,
            _ => s.sources.iter_mut().find(|src| src.quarantined && !src.cut).map(|src| src.id),
        })
    }

    /// A marked device is cut off now: what it still waits for is answered.
    pub(crate) fn was_cut(&self, source: SourceId) {
        let newly = self.state.with(|s| {
            let newly = s
                .sources
                .get_mut(source)
                .is_some_and(|src| src.quarantined && !core::mem::replace(&mut src.cut, true));
            s.suspects -= u32::from(newly);
            newly
        });
        if newly {
            self.settle_source(source);
        }
    }

    /// Ends a quarantine.
    pub(crate) fn absolve(&self, source: SourceId) {
        self.state.with(|s| {
            if let Some(src) = s.sources.get_mut(source) {
                s.suspects -= u32::from(src.quarantined && !src.cut);
                (src.quarantined, src.cut) = (false, false);
            }
        });
        self.forgive(source);
    }

    pub(crate) fn is_quarantined(&self, source: SourceId) -> bool {
        self.state.with(|s| s.sources.get(source).is_some_and(|src| src.quarantined))
    }

    /// A domain tag that no cache holds anything of.
    pub(crate) fn take_tag(&self) -> Option<DomainTag> {
        let range = self.caps.tags.clone();
        self.state.with(|s| {
            let (i, word) = s.tags.iter_mut().enumerate().find(|(_, w)| **w != u64::MAX)?;
            let bit = word.trailing_ones();
            let tag = range.start + (i as u32) * 64 + bit;
            if tag >= range.end {
                return None;
            }
            *word |= 1 << bit;
            Some(DomainTag(tag))
        })
    }

    /// Gives a tag back, once everything cached under it was invalidated.
    pub(crate) fn give_tag(&self, tag: DomainTag) {
        let n = tag.0 - self.caps.tags.start;
        self.state.with(|s| {
            if let Some(word) = s.tags.get_mut(n as usize / 64) {
                *word &= !(1 << (n % 64));
            }
        });
    }

    /// Whether the device at `at` may hold translations that an invalidation must wait for.
    pub(crate) fn may_cache(&self, at: At) -> bool {
        self.state.with(|s| s.sources.get(at.source).is_some_and(|src| src.features.ats && !src.cut))
    }
}
