//! Whether the hardware holds what faults at a place: switched by service turns, one driver call a
//! place, so that no two callers ask for opposite things in an order that nobody knows.

use crate::{
    driver::{InvError, InvSeq, StallSwitchError, SubmitError},
    fault::Reason,
    ids::{At, SourceId},
    instance::{Instance, taken},
    platform::{Platform, ShortLock, Time},
    sources::{Slot, Source},
    turn::Code,
};
use core::task::Poll;
use portcullis_sync::atomic::Ordering;

/// How far the switch of a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Off,
    On,
    /// Asked for, since then.
    Turning(bool, InvSeq, Time),
    /// The driver cannot.
    Refused(&'static str),
}

/// What is to be done about a place.
enum Step {
    Ask(bool),
    Poll(bool, InvSeq, Time),
    Forget,
}

impl Switch {
    fn step(self, wanted: bool) -> Option<Step> {
        match (self, wanted) {
            (Switch::Off, true) => Some(Step::Ask(true)),
            (Switch::On, false) => Some(Step::Ask(false)),
            (Switch::Refused(_), false) => Some(Step::Forget),
            (Switch::Turning(to, seq, since), _) => Some(Step::Poll(to, seq, since)),
            _ => None,
        }
    }
}

impl<P: Platform> Source<P> {
    fn step(&self, instance: &Instance<P>, slot: &Slot<P>) -> Option<Step> {
        let wanted = slot.inner.wants_stalls() && !slot.leaving && !instance.account_of(self).is_limited();
        slot.stall.step(wanted)
    }
}

impl<P: Platform> Instance<P> {
    /// Has the next service turn look at every place.
    pub(crate) fn ask_for_stalls(&self) {
        self.stalls_due.store(true, Ordering::Release);
    }

    /// How the place's switch stands, where there is nothing left to do about it.
    pub(crate) fn stall_switch(&self, at: At) -> Option<Switch> {
        self.state.with(|s| {
            let source = s.sources.get(at.source)?;
            let slot = source.slots.iter().find(|s| s.pasid == at.pasid)?;
            source.step(self, slot).is_none().then_some(slot.stall)
        })
    }

    /// Whether nothing is left to do about a place.
    pub(crate) fn is_switched(&self, at: At) -> bool {
        self.state.with(|s| {
            s.sources.get(at.source).is_none_or(|source| {
                let slot = source.slots.iter().find(|s| s.pasid == at.pasid);
                slot.is_none_or(|slot| source.step(self, slot).is_none())
            })
        })
    }

    /// Does what there is to do about stalls, in a service turn. One load when there is nothing.
    pub(crate) fn switch_stalls(&self) {
        if !taken(&self.stalls_due) {
            return;
        }
        if self.is_lost() {
            return self.end_stalls_of_the_lost();
        }
        let (mut last, mut moved) = (None, false);
        while !self.is_lost()
            && let Some((at, step)) = self.next_step(last)
        {
            last = Some(at);
            if let Some(new) = self.take_step(at, step) {
                moved = true;
                self.set_switch(at, new);
            }
        }
        if moved {
            self.hub.progressed();
        }
        if !self.is_lost() && self.next_step(None).is_some() {
            self.ask_for_stalls();
            self.turn_soon();
        }
    }

    /// The next place after `last`, in the order of their names, at which there is something to do.
    fn next_step(&self, last: Option<At>) -> Option<(At, Step)> {
        self.state.with(|s| {
            let after = last.map_or(SourceId(0), |at| at.source);
            for source in s.sources.iter().filter(|src| src.id >= after) {
                let places = source.slots.iter().map(|s| (At { source: source.id, pasid: s.pasid }, s));
                let next = places
                    .filter(|(at, _)| Some(*at) > last)
                    .filter_map(|(at, slot)| Some((at, source.step(self, slot)?)))
                    .min_by_key(|(at, _)| *at);
                if next.is_some() {
                    return next;
                }
            }
            None
        })
    }

    /// Where that leads; `None` where it has to be tried again.
    fn take_step(&self, at: At, step: Step) -> Option<Switch> {
        let now = self.platform().now();
        match step {
            Step::Forget => Some(Switch::Off),
            Step::Ask(on) => match self.driver().set_stall(at, on) {
                Ok(seq) => Some(Switch::Turning(on, seq, now)),
                Err(StallSwitchError::Cannot(why)) if on => Some(Switch::Refused(why)),
                Err(StallSwitchError::Cannot(_)) => Some(Switch::Off),
                Err(StallSwitchError::Submit(SubmitError::Full)) => None,
                Err(StallSwitchError::Submit(SubmitError::Lost(_))) => {
                    self.declare_lost();
                    None
                }
            },
            Step::Poll(to, seq, since) => match self.driver().done(seq) {
                Poll::Ready(Ok(())) => Some(if to { Switch::On } else { Switch::Off }),
                Poll::Ready(Err(e)) => {
                    match e {
                        InvError::DeviceTimeout(other) => self.quarantine(other, Reason::DeviceTimeout),
                        InvError::Lost(_) => self.declare_lost(),
                        InvError::Aborted => {}
                    }
                    // Asked for again, as if it had not been.
                    Some(if to { Switch::Off } else { Switch::On })
                }
                Poll::Pending => {
                    if now.since(since) > self.config().hardware_deadline {
                        self.declare_lost();
                    }
                    None
                }
            },
        }
    }

    fn set_switch(&self, at: At, to: Switch) {
        self.state.with(|s| {
            let Some(source) = s.sources.get_mut(at.source) else { return };
            // From here on there may be some on their way.
            source.asked |= matches!(to, Switch::Turning(true, ..));
            if let Some(slot) = source.slots.iter_mut().find(|s| s.pasid == at.pasid) {
                slot.stall = to;
            }
        });
    }

    /// What is stalled when the hardware is lost ends without a verdict.
    fn end_stalls_of_the_lost(&self) {
        self.each_stall(|slot, generation, r| {
            self.settle(slot, generation, &r.last, Code::Invalid);
        });
        self.say_ended();
    }
}
