//! Groups: devices that cannot be isolated from one another, and the transitions of what is
//! attached to them.

use crate::{
    hub::Hub,
    ids::{DeviceId, Key, Pasid},
    platform::{Platform, ShortLock},
    topology::MergedBy,
};
use alloc::{sync::Arc, vec::Vec};
use core::task::Poll;

/// A group of devices. In this version every group has one member: the embedder vouches that each
/// device it adds is isolated from the others.
pub(crate) struct Group<P: Platform> {
    hub: Arc<Hub<P>>,
    pub(crate) member: DeviceId,
    pub(crate) merged_by: Option<MergedBy>,
    state: P::Lock<State>,
}

struct State {
    /// What is attached where. An absent place is free.
    places: Vec<Place>,
    /// The group changes as a whole: no transition of a place begins.
    frozen: bool,
    removed: bool,
}

struct Place {
    pasid: Option<Pasid>,
    attached: Option<Key>,
    /// A transition is under way.
    busy: bool,
}

/// Somebody's exclusive right to change what is attached at a place: a state with waiters, held
/// across hardware waits, and released before anybody waits for a resolver. Dropped unfinished, it
/// leaves the place as it was.
pub(crate) struct Token<P: Platform> {
    group: Arc<Group<P>>,
    pasid: Option<Pasid>,
    was: Option<Key>,
    finished: bool,
}

/// The place is not in the state that the transition starts from.
#[derive(Debug)]
pub(crate) enum NotSo {
    Otherwise,
    NoRoom,
    Removed,
}

impl<P: Platform> Group<P> {
    pub(crate) fn new(hub: &Arc<Hub<P>>, member: DeviceId) -> Option<Group<P>> {
        let mut places = Vec::new();
        places.try_reserve_exact(hub.config.attachments_per_device).ok()?;
        Some(Group {
            hub: hub.clone(),
            member,
            merged_by: None,
            state: hub.platform.lock(State { places, frozen: false, removed: false }),
        })
    }

    /// Begins a transition of a place where `from` is attached. Pending while another runs.
    pub(crate) fn begin(
        self: &Arc<Self>,
        pasid: Option<Pasid>,
        from: Option<Key>,
    ) -> Poll<Result<Token<P>, NotSo>> {
        self.state.with(|State { places, frozen, removed }| {
            if *removed {
                return Poll::Ready(Err(NotSo::Removed));
            }
            if *frozen {
                return Poll::Pending;
            }
            let i = match places.iter().position(|p| p.pasid == pasid) {
                Some(i) => i,
                None if places.len() < places.capacity() => {
                    places.push(Place { pasid, attached: None, busy: false });
                    places.len() - 1
                }
                None => return Poll::Ready(Err(NotSo::NoRoom)),
            };
            let place = &mut places[i];
            if place.busy {
                return Poll::Pending;
            }
            if place.attached != from {
                if place.attached.is_none() {
                    places.swap_remove(i);
                }
                return Poll::Ready(Err(NotSo::Otherwise));
            }
            place.busy = true;
            Poll::Ready(Ok(Token { group: self.clone(), pasid, was: from, finished: false }))
        })
    }

    /// Whether something is attached at a PASID, or a transition there is not over.
    pub(crate) fn is_occupied(&self, pasid: Pasid) -> bool {
        self.state.with(|s| s.places.iter().any(|p| p.pasid == Some(pasid)))
    }

    /// Keeps every place as it is, once no transition runs.
    pub(crate) fn freeze(self: &Arc<Self>) -> Poll<Frozen<P>> {
        self.state.with(|s| {
            if s.frozen || s.places.iter().any(|p| p.busy) {
                return Poll::Pending;
            }
            s.frozen = true;
            Poll::Ready(Frozen { group: self.clone() })
        })
    }

    /// Lets nothing be attached any more. False if something is, or a transition runs.
    pub(crate) fn remove(&self) -> bool {
        self.state.with(|s| {
            let idle = s.places.is_empty() && !s.frozen;
            s.removed |= idle;
            idle
        })
    }

    /// Takes [`remove`](Self::remove) back.
    pub(crate) fn restore(&self) {
        self.state.with(|s| s.removed = false);
    }

    fn end(&self, pasid: Option<Pasid>, now: Option<Key>) {
        self.state.with(|State { places, .. }| {
            let Some(i) = places.iter().position(|p| p.pasid == pasid) else { return };
            if now.is_none() {
                places.swap_remove(i);
            } else {
                places[i].attached = now;
                places[i].busy = false;
            }
        });
        self.hub.progressed();
    }
}

/// The right to change a group as a whole; given back on drop.
pub(crate) struct Frozen<P: Platform> {
    group: Arc<Group<P>>,
}

impl<P: Platform> Drop for Frozen<P> {
    fn drop(&mut self) {
        self.group.state.with(|s| s.frozen = false);
        self.group.hub.progressed();
    }
}

impl<P: Platform> Token<P> {
    /// Ends the transition with `now` attached.
    pub(crate) fn finish(mut self, now: Option<Key>) {
        self.finished = true;
        self.group.end(self.pasid, now);
    }
}

impl<P: Platform> Drop for Token<P> {
    fn drop(&mut self) {
        if !self.finished {
            self.group.end(self.pasid, self.was);
        }
    }
}
