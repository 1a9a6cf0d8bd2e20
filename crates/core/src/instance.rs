//! One IOMMU instance: its driver, its service turns, and what it knows of its requesters.

use crate::{
    account::Account,
    books::{Books, Ledger, SOON},
    config::Config,
    credits::Credits,
    driver::{Caps, Driver, QueuePos},
    error::OutOfMemory,
    fault::{FaultKind, FaultRecord, RawFault, Reason},
    faultlog::FaultLog,
    hub::Hub,
    ids::{At, DomainTag, InstanceId, SourceId},
    intake::TurnIntake,
    platform::{Platform, ShortLock, Time},
    quell::Watch,
    record::Records,
    sources::Sources,
    turn::Turn,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use portcullis_sync::{
    atomic::{AtomicBool, AtomicU64, Ordering},
    lookup::{Lookup, Writer},
    turnstile::Turnstile,
};

pub(crate) struct Instance<P: Platform> {
    id: InstanceId,
    driver: Box<dyn Driver>,
    caps: Caps,
    pub(crate) hub: Arc<Hub<P>>,
    /// One for each page-request group that can wait for an answer, then one for each stalled
    /// transaction that can wait for its verdict.
    pub(crate) records: Records,
    /// From a requester, or a place of one, to its account and what is attached there: written
    /// under the short lock, read without.
    pub(crate) places: Lookup,
    pub(crate) accounts: Box<[Account]>,
    pub(crate) state: P::Lock<State<P>>,
    /// What the service turn owns.
    turn: Turnstile<Ledger>,
    head: AtomicU64,
    head_awaited: AtomicBool,
    ended: AtomicBool,
    unsent: AtomicBool,
    ready: AtomicBool,
    sweep: AtomicBool,
    lost: AtomicBool,
    /// Something is to be done about a storm.
    pub(crate) restless: AtomicBool,
    /// Some place may have to begin to stall, or to cease.
    pub(crate) stalls_due: AtomicBool,
}

/// What the short lock of an instance guards.
pub(crate) struct State<P: Platform> {
    pub(crate) sources: Sources<P>,
    pub(crate) places: Writer,
    pub(crate) credits: Credits,
    /// Devices that are marked and not cut off yet.
    suspects: u32,
    pub(crate) watch: Watch,
    sequence: u64,
    pub(crate) faults: FaultLog,
    /// A bit for each, set while it is taken.
    pub(crate) tags: Vec<u64>,
}

impl<P: Platform> Instance<P> {
    pub(crate) fn new(
        hub: Arc<Hub<P>>,
        id: InstanceId,
        driver: Box<dyn Driver>,
    ) -> Result<Self, OutOfMemory> {
        let caps = driver.caps();
        let groups = caps.page_requests as usize;
        let stalls = caps.stalls.min(hub.config.stalls) as usize;
        let (devices, attachments) = (hub.config.devices, hub.config.attachments);
        let mut accounts = Vec::new();
        accounts.try_reserve_exact(devices).map_err(|_| OutOfMemory)?;
        accounts.resize_with(devices, Account::new);
        // So many requesters as devices, at least, and two places for each attachment.
        let most = devices.saturating_add(attachments.saturating_mul(2));
        let (places, writer) = Lookup::new(most).map_err(|_| OutOfMemory)?;
        let mut tags = Vec::new();
        let count = caps.tags.len().div_ceil(64);
        tags.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        tags.resize(count, 0);
        let state = State {
            sources: Sources::new(hub.config.devices)?,
            places: writer,
            credits: Credits::new(caps.page_requests, &hub.config),
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
            records: Records::new(groups + stalls, groups).map_err(|_| OutOfMemory)?,
            places,
            accounts: accounts.into_boxed_slice(),
            state: hub.platform.lock(state),
            hub,
            turn: Turnstile::new(Ledger::new(groups, stalls, devices)?),
            head: AtomicU64::new(0),
            head_awaited: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            unsent: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            sweep: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            restless: AtomicBool::new(false),
            stalls_due: AtomicBool::new(false),
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

    /// Whether a slot is for a stalled transaction.
    #[inline]
    pub(crate) fn is_stall(&self, slot: u32) -> bool {
        slot >= self.caps.page_requests
    }

    /// Whether the hardware was given up.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Gives the hardware up: every wait for it ends, and what it may still reach is kept for ever.
    pub(crate) fn declare_lost(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            self.report(RawFault::new(FaultKind::InstanceLost, Reason::Hardware));
            // What is stalled is nobody's to resume any more.
            self.ask_for_stalls();
        }
        self.hub.progressed();
    }

    /// Reads the hardware's queues once, unless a turn runs already: then that one goes round
    /// again. Service context.
    pub(crate) fn service(self: &Arc<Self>) {
        let Some(mut turn) = self.turn.enter() else { return };
        loop {
            turn.with(|ledger| {
                let mut intake = TurnIntake::new(self, ledger);
                intake.begin();
                let more = self.driver.service(&mut Turn::new(&mut intake, self.config().turn_budget.max(1)));
                intake.end(more);
            });
            self.quell();
            self.switch_stalls();
            match turn.end() {
                Ok(()) => return,
                Err(again) => turn = again,
            }
        }
    }

    /// Brings the books up to date, if no turn runs.
    pub(crate) fn tidy(&self) {
        let Some(mut turn) = self.turn.try_enter() else { return };
        turn.with(|ledger| {
            let mut books = Books::open(self, ledger);
            books.sweep();
            books.search();
        });
        if turn.end().is_err() {
            self.turn_soon();
        }
    }

    /// Asks for another turn, for work that no interrupt will announce.
    pub(crate) fn turn_soon(&self) {
        self.platform().timer_at(self.platform().now() + SOON);
    }

    /// Something was answered outside a turn: its charge is to be taken back.
    pub(crate) fn say_ended(&self) {
        self.ended.store(true, Ordering::Release);
        if self.unsent.load(Ordering::Acquire) {
            self.turn_soon();
        }
    }

    pub(crate) fn take_ended(&self) -> bool {
        taken(&self.ended)
    }

    /// A decided answer found no room.
    pub(crate) fn leave_unsent(&self) {
        self.unsent.store(true, Ordering::Release);
    }

    pub(crate) fn take_unsent(&self) -> bool {
        taken(&self.unsent)
    }

    /// An attachment that groups may wait for is ready.
    pub(crate) fn say_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub(crate) fn take_ready(&self) -> bool {
        taken(&self.ready)
    }

    /// Partial groups of a device or an attachment are void.
    pub(crate) fn ask_sweep(&self) {
        self.sweep.store(true, Ordering::Release);
    }

    pub(crate) fn take_sweep(&self) -> bool {
        taken(&self.sweep)
    }

    /// The head of the page-request queue has passed a position. Only a drain waits for that.
    pub(crate) fn pass(&self, head: QueuePos) {
        if self.head.load(Ordering::Relaxed) < head.0 {
            self.head.store(head.0, Ordering::Release);
            if taken(&self.head_awaited) {
                self.hub.progressed();
            }
        }
    }

    /// Whether the head of a service turn has passed a position of the page-request queue. Where it
    /// has not, whoever asked hears of it when it moves, or looks again after a pause.
    pub(crate) fn has_passed(&self, tail: QueuePos) -> bool {
        let passed = self.head.load(Ordering::Acquire) >= tail.0;
        if !passed {
            self.head_awaited.store(true, Ordering::Release);
        }
        passed
    }

    /// Completes a driver's record and tells the observers.
    pub(crate) fn report(&self, raw: RawFault) {
        self.report_at(raw, self.platform().now());
    }

    /// [`report`](Self::report) in a turn, which has read the clock.
    pub(crate) fn report_at(&self, raw: RawFault, at: Time) {
        self.report_with(raw, 0, at);
    }

    /// The same of a record that stands for others before it.
    pub(crate) fn report_with(&self, raw: RawFault, untold: u64, at: Time) {
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
            at,
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
            let src = s.sources.get_mut(source);
            let first = src.is_some_and(|src| {
                self.account_of(src).set_quarantined(true);
                src.silent |= why == Reason::DeviceTimeout;
                !core::mem::replace(&mut src.quarantined, true)
            });
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
                (src.quarantined, src.cut, src.silent) = (false, false, false);
                self.account_of(src).set_quarantined(false);
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

    /// Whether the device at `at` may have translated something itself, and can say when that is over.
    /// One that was cut off is still asked: what it sent before may be on its way.
    pub(crate) fn may_cache(&self, at: At) -> bool {
        self.state.with(|s| {
            s.sources.get(at.source).is_some_and(|src| src.features.ats && !(src.cut && src.silent))
        })
    }
}

/// Takes back what was said, if it was.
pub(crate) fn taken(said: &AtomicBool) -> bool {
    said.load(Ordering::Relaxed) && said.swap(false, Ordering::AcqRel)
}
