//! Stalls: transactions that the hardware holds where they fault, until somebody has decided whether
//! they are tried again or given up.
//!
//! The core alone resumes, exactly once: a stalled transaction is kept like the one request of a
//! page-request group, in a slot of its own, whose word decides between verdict, deadline, detach
//! and the end of the guard. Nobody else ever has anything in hands that resumes, but for owners
//! whose decider lives elsewhere, and they have a token that can be used once.

pub(crate) mod event;
mod guard;
mod intake;
pub(crate) mod ledger;
mod limit;
pub(crate) mod switch;

pub use guard::{StallError, Stalling};
pub(crate) use guard::{all_stand, may_stall, switched};
pub(crate) use intake::hand_over_stall;
pub use limit::StallLimit;

use crate::{
    fault::Access,
    ids::{At, DeviceId, Key, StallId},
    owner::{Defers, Stalls},
    platform::{Platform, ShortLock, Sleep},
    resolver::{Deferred, Resolves, Response},
};
use alloc::sync::Arc;
use core::marker::PhantomData;

/// What becomes of a stalled transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is tried again: the page is there.
    Retry,
    /// It is given up; the device gets an error.
    Terminate,
}

impl From<Verdict> for Response {
    fn from(verdict: Verdict) -> Response {
        match verdict {
            Verdict::Retry => Response::Success,
            Verdict::Terminate => Response::Invalid,
        }
    }
}

/// A stalled transaction, as who decides it sees it. It resumes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StalledAccess {
    /// Names it in the instance's numbers, as the fault records do
    /// ([`FaultRecord::stalled`](crate::FaultRecord::stalled)).
    pub id: StallId,
    /// The device that waits; of several that have its id, the one that was named in the attach.
    pub device: DeviceId,
    /// Where it came from.
    pub at: At,
    /// The address that faulted.
    pub address: u64,
    /// What the device tries.
    pub access: Access,
    /// Whether it is privileged.
    pub privileged: bool,
    /// The attachment, for a detach from inside a resolver.
    pub attachment: Key,
}

/// Decides what becomes of stalled transactions, and may sleep for it: map what is missing, read it
/// in, capture the device's state. Runs on a worker, for one attachment one call at a time, page
/// requests included. `data` is what the caller gave to attach.
pub trait StallResolver<P: Platform, T>: Send + Sync + 'static {
    /// The verdict. The core resumes the transaction by it when this returns, unless a deadline, a
    /// detach or the end of the guard has ended it before: then it decides nothing.
    fn resolve(&self, cx: &Sleep<'_>, data: &Arc<T>, stalled: &StalledAccess) -> Verdict;
}

impl<P, T, F> StallResolver<P, T> for F
where
    P: Platform,
    F: Fn(&Sleep<'_>, &Arc<T>, &StalledAccess) -> Verdict + Send + Sync + 'static,
{
    fn resolve(&self, cx: &Sleep<'_>, data: &Arc<T>, stalled: &StalledAccess) -> Verdict {
        self(cx, data, stalled)
    }
}

/// Decides without sleeping, in service context, which may be an interrupt: by what it knows
/// already. It may not wait, allocate, or let go of the last reference to something that sleeps in
/// its drop; nor may its own drop.
pub trait ImmediateStallResolver<P: Platform, T>: Send + Sync + 'static {
    /// As [`StallResolver::resolve`].
    fn resolve(&self, data: &Arc<T>, stalled: &StalledAccess) -> Verdict;
}

impl<P, T, F> ImmediateStallResolver<P, T> for F
where
    P: Platform,
    F: Fn(&Arc<T>, &StalledAccess) -> Verdict + Send + Sync + 'static,
{
    fn resolve(&self, data: &Arc<T>, stalled: &StalledAccess) -> Verdict {
        self(data, stalled)
    }
}

/// Passes stalled transactions on to who decides them, in service context, under the same conditions
/// as an [`ImmediateStallResolver`].
pub trait StallForwarder<P: Platform, T>: Send + Sync + 'static {
    /// Takes the transaction, to be answered later from anywhere:
    /// [`Response::Success`] retries it, [`Response::Invalid`] and a drop terminate it. Whoever
    /// holds nothing but numbers has it in a table of [`Cookies`](crate::Cookies).
    fn forward(&self, data: &Arc<T>, stalled: Deferred<P>);
}

impl<P, T, F> StallForwarder<P, T> for F
where
    P: Platform,
    F: Fn(&Arc<T>, Deferred<P>) + Send + Sync + 'static,
{
    fn forward(&self, data: &Arc<T>, stalled: Deferred<P>) {
        self(data, stalled)
    }
}

/// Who decides what stalls in a domain; given to [`Iommu::enable_stall`](crate::Iommu::enable_stall).
pub struct StallDecider<P: Platform, O: Stalls> {
    decider: Decider<P, O::Data>,
    owner: PhantomData<fn() -> O>,
}

impl<P: Platform, O: Stalls> StallDecider<P, O> {
    /// One that may sleep.
    pub fn sleeping(resolver: impl StallResolver<P, O::Data>) -> Self {
        StallDecider { decider: Decider::Sleeping(Arc::new(resolver)), owner: PhantomData }
    }

    /// One that decides in service context.
    pub fn immediate(resolver: impl ImmediateStallResolver<P, O::Data>) -> Self {
        StallDecider { decider: Decider::Immediate(Arc::new(resolver)), owner: PhantomData }
    }
}

impl<P: Platform, O: Stalls + Defers> StallDecider<P, O> {
    /// One that is elsewhere, and late.
    pub fn elsewhere(forwarder: impl StallForwarder<P, O::Data>) -> Self {
        StallDecider { decider: Decider::Elsewhere(Arc::new(forwarder)), owner: PhantomData }
    }
}

enum Decider<P: Platform, T> {
    Sleeping(Arc<dyn StallResolver<P, T>>),
    Immediate(Arc<dyn ImmediateStallResolver<P, T>>),
    Elsewhere(Arc<dyn StallForwarder<P, T>>),
}

impl<P: Platform, T> Clone for Decider<P, T> {
    fn clone(&self) -> Self {
        match self {
            Decider::Sleeping(r) => Decider::Sleeping(r.clone()),
            Decider::Immediate(r) => Decider::Immediate(r.clone()),
            Decider::Elsewhere(r) => Decider::Elsewhere(r.clone()),
        }
    }
}

impl<P: Platform, T> Decider<P, T> {
    fn resolves(&self) -> Resolves {
        match self {
            Decider::Sleeping(_) => Resolves::Sleeping,
            Decider::Immediate(_) | Decider::Elsewhere(_) => Resolves::Immediately,
        }
    }
}

/// Where a domain's decider sits while its guard lives: the attachments look there at each fault.
pub(crate) struct Seat<P: Platform, T: Send + Sync + 'static>(P::Lock<Option<Decider<P, T>>>);

impl<P: Platform, T: Send + Sync + 'static> Seat<P, T> {
    pub(crate) fn new(platform: &P) -> Seat<P, T> {
        Seat(platform.lock(None))
    }

    pub(crate) fn bind(self: &Arc<Self>, data: Arc<T>) -> Arc<dyn StallHandler<P>> {
        Arc::new(Bound { seat: self.clone(), data })
    }

    fn sit<O: Stalls<Data = T>>(&self, decider: StallDecider<P, O>) {
        let before = self.0.with(|seat| seat.replace(decider.decider));
        drop(before);
    }
}

/// A seat of any data.
pub(crate) trait Vacate: Send + Sync {
    fn vacate(&self);
}

impl<P: Platform, T: Send + Sync + 'static> Vacate for Seat<P, T> {
    fn vacate(&self) {
        let before = self.0.with(Option::take);
        drop(before);
    }
}

/// What an attachment's stalled transactions go to: the domain's decider, and the caller's data.
pub(crate) trait StallHandler<P: Platform>: Send + Sync {
    /// Where it is decided, if there is anybody.
    fn resolves(&self) -> Resolves;
    /// Has it decided. `in_turn` says that this is service context.
    fn handle(&self, cx: &Sleep<'_>, stalled: Deferred<P>, in_turn: bool);
}

struct Bound<P: Platform, T: Send + Sync + 'static> {
    seat: Arc<Seat<P, T>>,
    data: Arc<T>,
}

impl<P: Platform, T: Send + Sync + 'static> StallHandler<P> for Bound<P, T> {
    fn resolves(&self) -> Resolves {
        self.seat.0.with(|d| d.as_ref().map_or(Resolves::Nothing, Decider::resolves))
    }

    fn handle(&self, cx: &Sleep<'_>, stalled: Deferred<P>, in_turn: bool) {
        // One that sleeps is neither called nor let go of in a turn, whoever sat there before.
        let here = |d: &&Decider<P, T>| !in_turn || d.resolves() == Resolves::Immediately;
        let decider = self.seat.0.with(|d| d.as_ref().filter(here).cloned());
        let (Some(decider), Some(access)) = (decider, stalled.stalled()) else { return };
        let verdict = match decider {
            Decider::Sleeping(r) => r.resolve(cx, &self.data, &access),
            Decider::Immediate(r) => r.resolve(&self.data, &access),
            Decider::Elsewhere(f) => return f.forward(&self.data, stalled.leaves_turn()),
        };
        // Where a deadline, a detach or the end of the guard was first, that stands.
        let _ = stalled.respond(verdict.into());
    }
}
