//! What the ladders ask for, done: records told together or not at all, hardware muted, devices cut
//! off, resets asked for.

use crate::{
    device::Device,
    driver::{InvError, InvSeq, MuteError, SubmitError},
    fault::{FaultKind, FaultRecord, RawFault, Reason},
    ids::{InstanceId, SourceId},
    instance::{Instance, State, taken},
    iommu::Iommu,
    platform::{Platform, ShortLock, Time},
    sources::Source,
    storm::{Ladder, Rung, Step, Storm, Storms},
};
use core::task::Poll;
use portcullis_sync::atomic::Ordering;

/// The ladders of one requester, and what was done of what they ask for.
pub(crate) struct Weather {
    faults: Ladder,
    requests: Ladder,
    /// The hardware takes no fault records of it, as far as it can.
    muted: bool,
}

impl Weather {
    pub(crate) fn new(storms: &Storms) -> Weather {
        Weather { faults: Ladder::new(storms.faults), requests: Ladder::new(storms.requests), muted: false }
    }

    fn ladder(&mut self, of: Trouble) -> &mut Ladder {
        match of {
            Trouble::Fault => &mut self.faults,
            Trouble::Request => &mut self.requests,
        }
    }

    fn wants_mute(&self) -> bool {
        self.faults.seen().rung >= Rung::Mask
    }

    fn seen(&self) -> Storm {
        self.faults.seen().and(self.requests.seen())
    }

    fn due(&self) -> Option<Time> {
        [self.faults.due(), self.requests.due()].into_iter().flatten().min()
    }
}

/// What the core has to see to, when it is time.
pub(crate) struct Watch {
    /// Of all that the instance tells.
    ladder: Ladder,
    /// When some ladder may be come down from.
    due: Option<Time>,
    /// A marked device that is being cut off by service turns, and since when.
    cutting: Option<(SourceId, InvSeq, Time)>,
}

impl Watch {
    pub(crate) fn new(storms: &Storms) -> Watch {
        Watch { ladder: Ladder::new(storms.instance), due: None, cutting: None }
    }

    fn sooner(&mut self, due: Option<Time>) {
        self.due = [self.due, due].into_iter().flatten().min();
    }
}

/// What a device may do too much of.
#[derive(Clone, Copy)]
enum Trouble {
    Fault,
    Request,
}

/// What kind of trouble a record is; `None` where it is no device's doing.
fn trouble(record: &FaultRecord) -> Option<Trouble> {
    match (record.kind, record.reason) {
        (FaultKind::Dma | FaultKind::InterruptRemapping | FaultKind::Configuration, _) => {
            Some(Trouble::Fault)
        }
        (FaultKind::PageRequest, Reason::Deadline) => None,
        // What waits for a verdict is no trouble so far, and its own limit counts it.
        (FaultKind::Stall, _) if record.stalled.is_some() => None,
        (FaultKind::Stall, Reason::Deadline) => None,
        (FaultKind::PageRequest | FaultKind::Stall, _) => Some(Trouble::Request),
        _ => None,
    }
}

/// A ladder whose rung has changed: of a requester, or of the instance.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    source: Option<SourceId>,
    rung: Rung,
    untold: u64,
}

/// What becomes of a record.
pub(crate) struct Judged {
    pub(crate) tell: bool,
    pub(crate) changes: [Option<Change>; 2],
}

impl<P: Platform> State<P> {
    /// Counts a record, and decides whether it is told.
    pub(crate) fn judge(&mut self, record: &mut FaultRecord) -> Judged {
        let mut judged = Judged { tell: true, changes: [None; 2] };
        let Some(trouble) = trouble(record) else { return judged };
        let State { sources, watch, .. } = self;
        let now = record.at;
        if let Some(source) = record.source.and_then(|id| sources.get_mut(id)) {
            if record.reason == Reason::Blocked && source.is_leaving(record) {
                // What is on its way while something is detached is nobody's storm.
                return judged;
            }
            // A device is not cut off for what the IOMMU met in memory on its behalf.
            if record.reason != Reason::TableAccess {
                let step = source.weather.ladder(trouble).event(now);
                judged.tell = step.tell;
                record.untold = step.untold;
                judged.changes[0] = Change::of(record.source, step);
                watch.sooner(source.weather.due());
            }
        }
        if judged.tell {
            let step = watch.ladder.event(now);
            judged.tell = step.tell;
            record.untold += step.untold;
            if !judged.tell {
                watch.ladder.forward(core::mem::take(&mut record.untold));
            }
            judged.changes[1] = Change::of(None, step);
            watch.sooner(watch.ladder.due());
        }
        judged
    }

    /// A ladder that can be come down from now.
    fn calmed(&mut self, now: Time) -> Option<Change> {
        let State { sources, watch, .. } = self;
        let late = |l: &Ladder| l.due().is_some_and(|t| t <= now);
        while late(&watch.ladder) {
            if let Some(change) = Change::of(None, watch.ladder.calm(now)) {
                return Some(change);
            }
        }
        for source in sources.iter_mut() {
            for ladder in [&mut source.weather.faults, &mut source.weather.requests] {
                while late(ladder) {
                    if let Some(change) = Change::of(Some(source.id), ladder.calm(now)) {
                        return Some(change);
                    }
                }
            }
        }
        watch.due = watch.ladder.due();
        sources.iter_mut().for_each(|s| watch.sooner(s.weather.due()));
        None
    }
}

impl Change {
    fn of(source: Option<SourceId>, step: Step) -> Option<Change> {
        step.change.map(|rung| Change { source, rung, untold: if step.tell { 0 } else { step.untold } })
    }
}

impl<P: Platform> Source<P> {
    /// Whether a record is of a place that is being left, or of a device that is being reset.
    fn is_leaving(&self, record: &FaultRecord) -> bool {
        let at = self.slots.iter().find(|s| s.pasid == record.pasid);
        self.resetting || at.is_some_and(|s| s.inner.is_closed())
    }
}

impl<P: Platform> Instance<P> {
    /// Says that a ladder's rung has changed, and has the next service turn do what that asks for.
    pub(crate) fn changed(&self, change: Change) {
        let Change { source, rung, untold } = change;
        let kind = if rung == Rung::AskReset { FaultKind::ResetWanted } else { FaultKind::Storm };
        let raw = RawFault { source, code: rung as u32, ..RawFault::new(kind, Reason::Storm) };
        self.report_with(raw, untold, self.platform().now());
        if let (Some(source), Rung::Quarantine) = (source, rung) {
            self.quarantine(source, Reason::Storm);
        }
        self.restless.store(true, Ordering::Release);
        self.turn_soon();
    }

    /// Does what there is to do about storms, in a service turn. One load when there is nothing.
    pub(crate) fn quell(&self) {
        if !taken(&self.restless) {
            return;
        }
        let now = self.platform().now();
        while let Some(change) = self.state.with(|s| s.calmed(now)) {
            self.changed(change);
        }
        let quiet = self.mute_some() & self.cut_some(now);
        if !quiet {
            self.turn_soon();
        }
        if let Some(due) = self.state.with(|s| s.watch.due) {
            self.platform().timer_at(due);
            self.restless.store(true, Ordering::Release);
        }
        self.restless.fetch_or(!quiet, Ordering::AcqRel);
    }

    /// Has hardware take fault records of a requester, or no more. False where it could not be
    /// told yet.
    fn mute_some(&self) -> bool {
        let differs = |s: &mut State<P>| {
            let source = s.sources.iter_mut().find(|s| s.weather.wants_mute() != s.weather.muted)?;
            Some((source.id, source.weather.wants_mute()))
        };
        while let Some((source, on)) = self.state.with(differs) {
            match self.driver().mute(source, on) {
                // Hardware that cannot is asked once.
                Ok(_) | Err(MuteError::Cannot) => self.state.with(|s| {
                    if let Some(src) = s.sources.get_mut(source) {
                        src.weather.muted = on;
                    }
                }),
                Err(MuteError::Submit(SubmitError::Full)) => return false,
                Err(MuteError::Submit(SubmitError::Lost(_))) => {
                    self.declare_lost();
                    return true;
                }
            }
        }
        true
    }

    /// Cuts marked devices off, where nobody has work for the hardware that would do it first. False
    /// while one is on its way.
    fn cut_some(&self, now: Time) -> bool {
        loop {
            if self.is_lost() {
                return true;
            }
            let Some((source, seq, since)) = self.state.with(|s| s.watch.cutting) else {
                let Some(source) = self.suspect() else { return true };
                match self.driver().cut_off(source) {
                    Ok(seq) => self.state.with(|s| s.watch.cutting = Some((source, seq, now))),
                    Err(SubmitError::Full) => return false,
                    Err(SubmitError::Lost(_)) => self.declare_lost(),
                }
                continue;
            };
            match self.driver().done(seq) {
                Poll::Pending => {
                    if now.since(since) > self.config().hardware_deadline {
                        self.declare_lost();
                    }
                    return self.is_lost();
                }
                Poll::Ready(Ok(())) => self.was_cut(source),
                Poll::Ready(Err(InvError::DeviceTimeout(other))) => {
                    self.quarantine(other, Reason::DeviceTimeout);
                }
                Poll::Ready(Err(InvError::Aborted)) => {}
                Poll::Ready(Err(InvError::Lost(_))) => self.declare_lost(),
            }
            self.state.with(|s| s.watch.cutting = None);
        }
    }

    /// A device was reset, and begins again.
    pub(crate) fn forgive(&self, source: SourceId) {
        let now = self.platform().now();
        self.state.with(|s| {
            if let Some(src) = s.sources.get_mut(source) {
                src.weather.faults.absolve(now);
                src.weather.requests.absolve(now);
            }
        });
        self.restless.store(true, Ordering::Release);
        self.turn_soon();
    }
}

impl<P: Platform> Device<P> {
    /// How stormy it is, its aliases included, and was since the device was added. Any context.
    pub fn storm(&self) -> Storm {
        let Ok(device) = self.member.up() else { return Storm::default() };
        let seen = |source| {
            device
                .instance
                .state
                .with(|s| s.sources.get(source).map(|src| src.weather.seen()))
                .unwrap_or_default()
        };
        device.spec.sources().iter().fold(Storm::default(), |all, id| all.and(seen(*id)))
    }
}

impl<P: Platform> Iommu<P> {
    /// The same of everything that an instance tells. `None` when it is not registered. Any context.
    pub fn storm(&self, id: InstanceId) -> Option<Storm> {
        Some(self.shared.instances.get(id)?.state.with(|s| s.watch.ladder.seen()))
    }
}
