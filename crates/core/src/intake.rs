//! What the core does with a record, in service context: file it, and say who must act.

use crate::attachment::Inner;
use crate::{
    driver::{PageRequest, QueuePos, Taken},
    fault::{Access, FaultKind, RawFault, Reason},
    instance::{Instance, State},
    platform::{Platform, ShortLock, Time},
    requests::{Chain, Group},
    sources::{Partial, Phase},
    turn::{Code, Intake},
};
use alloc::sync::Arc;
use portcullis_sync::slot::{Generation, SlotWord};

/// One service turn's way into an instance.
pub(crate) struct TurnIntake<'a, P: Platform> {
    instance: &'a Arc<Instance<P>>,
}

impl<'a, P: Platform> TurnIntake<'a, P> {
    pub(crate) fn new(instance: &'a Arc<Instance<P>>) -> Self {
        TurnIntake { instance }
    }

    fn file(&mut self, request: PageRequest, wellformed: bool) -> Taken {
        let now = self.instance.platform().now();
        let filed = self
            .instance
            .state
            .with(|s| s.file(&self.instance.words, request, wellformed, now, self.instance));
        match filed {
            Filed::Kept | Filed::Void => {}
            Filed::NoRoom => return Taken::NoRoom,
            Filed::Answer(slot, generation, why) => {
                if let Some(reason) = why {
                    self.instance.report(refused(&request, reason));
                }
                self.instance.settle(slot, generation, Code::Invalid);
            }
            Filed::Dropped(reason) => self.instance.report(refused(&request, reason)),
            Filed::Deliver(inner) => inner.deliver(),
            Filed::Waits => {}
        }
        let until = self.instance.state.with(|s| s.requests.next_deadline);
        if let Some(t) = until {
            self.instance.platform().timer_at(t);
        }
        Taken::Yes
    }
}

impl<P: Platform> Intake for TurnIntake<'_, P> {
    fn page_request(&mut self, request: PageRequest) -> Taken {
        self.file(request, true)
    }

    fn malformed(&mut self, request: PageRequest) -> Taken {
        self.file(request, false)
    }

    fn fault(&mut self, fault: RawFault) {
        self.instance.report(fault);
    }

    fn passed(&mut self, head: QueuePos) {
        // Only what is new wakes anybody: waiters run service turns themselves.
        let new = self.instance.state.with(|s| {
            let new = s.head < head;
            s.head = s.head.max(head);
            new
        });
        if new {
            self.instance.hub.progressed();
        }
    }

    fn overflow(&mut self) {
        self.instance.state.with(|s| {
            let State { sources, requests, .. } = s;
            sources.iter_mut().for_each(|source| source.drop_partials(requests, |_| true));
        });
        self.instance.report(RawFault::new(FaultKind::Overflow, Reason::QueueOverflow));
    }

    fn completed(&mut self) {
        self.instance.hub.progressed();
    }
}

fn refused(request: &PageRequest, reason: Reason) -> RawFault {
    RawFault {
        source: Some(request.source),
        pasid: request.pasid,
        access: match (request.exec, request.write) {
            (true, _) => Access::Execute,
            (_, true) => Access::Write,
            _ => Access::Read,
        },
        privileged: request.privileged,
        address: Some(request.address),
        ..RawFault::new(FaultKind::PageRequest, reason)
    }
}

enum Filed<P: Platform> {
    /// A first request of a group, kept until the last one comes.
    Kept,
    /// Of a device that is being reset: nobody waits for it any more.
    Void,
    /// A group, kept for an attachment that is still being made or whose resolver is at work.
    Waits,
    /// A group, and its resolver must be woken.
    Deliver(Arc<Inner<P>>),
    /// A group that is answered Invalid at once.
    Answer(u32, Generation, Option<Reason>),
    /// Not the last of its group, and nothing keeps it: no answer is due.
    Dropped(Reason),
    /// Leave it in the hardware's queue.
    NoRoom,
}

impl<P: Platform> State<P> {
    fn file(
        &mut self,
        words: &[SlotWord],
        request: PageRequest,
        wellformed: bool,
        now: Time,
        instance: &Instance<P>,
    ) -> Filed<P> {
        let State { sources, requests, .. } = self;
        let free = requests.free_slot();
        if request.wants_answer() && free.is_none() {
            return Filed::NoRoom;
        }
        let config = instance.config();
        let mut deliver = None;
        let mut spoilt = None;
        let mut first = Chain::default();
        let mut device = None;
        let mut charge = 0;
        match sources.get_mut(request.source) {
            None => spoilt = Some(Reason::Blocked),
            Some(source) => {
                device = source.named();
                source.counters.requests += 1;
                if source.resetting {
                    source.counters.groups += u64::from(request.wants_answer());
                    source.counters.void += u64::from(request.wants_answer());
                    return Filed::Void;
                }
                let full = source.outstanding >= source.share;
                if source.share == 0 || source.quarantined {
                    source.counters.unauthorised += 1;
                    spoilt = Some(Reason::RequestType);
                } else if !wellformed {
                    source.counters.malformed += 1;
                    spoilt = Some(Reason::BadEntry);
                } else if full {
                    source.counters.quota += 1;
                    spoilt = Some(Reason::Quota);
                }
                // One that wants an answer of its own is a group of its own.
                if !request.wants_answer() {
                    return source.keep(requests, request, spoilt, now + config.partial_deadline);
                }
                if request.last
                    && let Some(p) = source.take_partial(&request)
                {
                    if p.spoilt {
                        spoilt = spoilt.or(Some(Reason::Quota));
                    }
                    first = p.chain;
                    charge = first.len;
                }
                source.counters.groups += 1;
                // What was kept for the group stays charged until it is settled; the last request
                // is charged like the others, unless the group reaches nobody anyway.
                if spoilt.is_none() {
                    charge += 1;
                    source.outstanding += 1;
                }
                let slot = source.slots.iter().find(|s| s.pasid == request.pasid);
                match slot {
                    Some(s) if s.phase != Phase::Draining && s.inner.resolves() => {
                        deliver = Some((s.inner.clone(), s.phase));
                    }
                    Some(s) if s.phase == Phase::Draining => {}
                    _ => spoilt = spoilt.or(Some(Reason::Blocked)),
                }
            }
        }
        if !request.wants_answer() {
            return Filed::Dropped(spoilt.unwrap_or(Reason::Blocked));
        }
        let Some((slot, generation)) = free.and_then(|f| Some((f, words.get(f as usize)?.arm()?))) else {
            return Filed::NoRoom;
        };
        let deliver = deliver.filter(|_| spoilt.is_none());
        let owner = deliver.as_ref().map(|(inner, _)| inner.key);
        requests.occupy(Group {
            generation,
            last: request,
            first,
            device,
            owner,
            unsent: false,
            charge,
            until: config.group_deadline.filter(|_| owner.is_some()).map(|d| now + d),
        });
        match deliver {
            Some((inner, phase)) => match inner.enqueue(slot, generation, phase == Phase::Attached) {
                Queued::Schedule => Filed::Deliver(inner),
                Queued::Waits => Filed::Waits,
                Queued::Full => Filed::Answer(slot, generation, Some(Reason::Quota)),
            },
            None => Filed::Answer(slot, generation, spoilt),
        }
    }
}

/// What became of a group offered to an attachment's queue.
pub(crate) enum Queued {
    /// The resolver must be scheduled; the queue is marked so.
    Schedule,
    /// It is scheduled, or the attachment is not ready.
    Waits,
    /// The queue is full.
    Full,
}

impl<P: Platform> crate::sources::Source<P> {
    /// Keeps a request that is not the last of its group.
    fn keep(
        &mut self,
        requests: &mut crate::requests::Requests,
        request: PageRequest,
        refused: Option<Reason>,
        until: Time,
    ) -> Filed<P> {
        let same = |p: &Partial| p.pasid == request.pasid && p.index == request.index;
        let at = match self.partials.iter().position(same) {
            Some(i) => i,
            None if self.share > 0 && self.partials.len() < self.partials.capacity() => {
                self.partials.push(Partial {
                    pasid: request.pasid,
                    index: request.index,
                    chain: Chain::default(),
                    spoilt: false,
                    until,
                });
                requests.sooner(Some(until));
                self.partials.len() - 1
            }
            None => return Filed::Dropped(refused.unwrap_or(Reason::Quota)),
        };
        let partial = &mut self.partials[at];
        if let Some(reason) = refused {
            partial.spoilt = true;
            return Filed::Dropped(reason);
        }
        if !requests.store(&mut partial.chain, request) {
            partial.spoilt = true;
            self.counters.quota += 1;
            return Filed::Dropped(Reason::Quota);
        }
        self.outstanding += 1;
        Filed::Kept
    }
}
