//! Groups: devices that cannot be isolated from one another, and the transitions of what is
//! attached to them.

use crate::{
    claim::Claims,
    config::DuringReset,
    error::{AddDeviceError, AttachError, NotUp, OutOfMemory},
    hub::Hub,
    ids::{At, DeviceId, GroupId, Key, Pasid, SourceId},
    instance::Instance,
    member::Member,
    platform::{Platform, ShortLock},
    rest::Rest,
    roll::Roll,
};
use alloc::{sync::Arc, vec::Vec};
use core::task::Poll;

/// A group of devices: the smallest set that can be attached, replaced and detached. All stand
/// behind one instance.
pub(crate) struct Group<P: Platform> {
    pub(crate) hub: Arc<Hub<P>>,
    pub(crate) id: GroupId,
    /// Where requester ids go while nothing is attached.
    pub(crate) rest: P::Lock<Rest<P>>,
    /// Who has it.
    pub(crate) claims: P::Lock<Claims<P>>,
    state: P::Lock<State<P>>,
}

struct State<P: Platform> {
    /// Sorted by id, so that whatever is done for all of them does not depend on their order of
    /// arrival.
    members: Vec<Arc<Member<P>>>,
    /// What is attached where, sorted by PASID. An absent place is free.
    places: Vec<Place>,
    /// The group changes as a whole: no transition of a place begins.
    frozen: bool,
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
    /// A member is parked, and what comes in does not wait for it.
    Parked(DeviceId),
}

/// Which way a transition goes: what goes out does not wait for a member that is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Going {
    In,
    Out,
}

/// What an attachment of a place of a group consists of.
pub(crate) struct Plan<P: Platform> {
    pub(crate) instance: Arc<Instance<P>>,
    pub(crate) roll: Roll<P>,
}

impl<P: Platform> Group<P> {
    pub(crate) fn new(hub: &Arc<Hub<P>>, id: GroupId) -> Result<Group<P>, OutOfMemory> {
        let mut places = Vec::new();
        places.try_reserve_exact(hub.config.attachments_per_device).map_err(|_| OutOfMemory)?;
        let state = State { members: Vec::new(), places, frozen: false };
        let rest = hub.platform.lock(Rest::default());
        let claims = hub.platform.lock(Claims::Nobody);
        Ok(Group { hub: hub.clone(), id, rest, claims, state: hub.platform.lock(state) })
    }

    /// Takes a member in, unless it stands behind another instance than the others.
    pub(crate) fn join(&self, member: &Arc<Member<P>>) -> Result<(), AddDeviceError> {
        let mut room = Vec::new();
        loop {
            let (done, old) = self.state.with(|s| {
                let elsewhere = s.members.iter().find(|m| m.upstream() != member.upstream());
                if let Some(other) = elsewhere {
                    let why = AddDeviceError::GroupSpans { device: member.id(), other: other.id() };
                    return (Some(Err(why)), Vec::new());
                }
                if s.members.len() == s.members.capacity() {
                    if room.capacity() <= s.members.len() {
                        return (None, Vec::new());
                    }
                    room.append(&mut s.members);
                    core::mem::swap(&mut s.members, &mut room);
                }
                let at = s.members.partition_point(|m| m.id() < member.id());
                s.members.insert(at, member.clone());
                (Some(Ok(())), core::mem::take(&mut room))
            });
            drop(old);
            match done {
                Some(done) => return done,
                None => room.try_reserve_exact(room.capacity() + 4).map_err(|_| OutOfMemory)?,
            }
        }
    }

    /// Lets a member go.
    pub(crate) fn leave(&self, member: &Member<P>) {
        let gone = self.state.with(|s| {
            let i = s.members.iter().position(|m| core::ptr::eq(&**m, member))?;
            Some(s.members.remove(i))
        });
        drop(gone);
    }

    /// The `n`th member.
    pub(crate) fn member(&self, n: usize) -> Option<Arc<Member<P>>> {
        self.state.with(|s| s.members.get(n).cloned())
    }

    /// All of them, the lowest id first.
    pub(crate) fn members(&self) -> impl Iterator<Item = Arc<Member<P>>> {
        (0..).map_while(|n| self.member(n))
    }

    /// Whether the instance knows this requester id for a member other than `than` too.
    pub(crate) fn is_shared(&self, source: SourceId, than: DeviceId) -> bool {
        self.members().any(|m| m.id() != than && m.ids().contains(&source))
    }

    /// Whether a requester id is parked by others than this device.
    pub(crate) fn is_parked_but_for(&self, source: SourceId, device: DeviceId) -> bool {
        let by = |m: &Member<P>| m.id() != device && m.parked.is_parked();
        self.members().any(|m| by(&m) && m.spec.sources().contains(&source))
    }

    /// Who takes part in an attachment. Requests without PASID concern every member; a PASID those
    /// that have PASIDs, and the others are passed over. Valid while the caller has the place's token.
    pub(crate) fn plan(&self, named: DeviceId, pasid: Option<Pasid>) -> Result<Plan<P>, AttachError> {
        let (mut devices, mut places) = (Vec::new(), Vec::new());
        let mut instance = None;
        for member in self.members() {
            let device = member.up()?;
            if let Some(pasid) = pasid {
                if device.caps.pasid_bits == 0 && device.id != named {
                    continue;
                }
                if !device.does_pasid(pasid) {
                    return Err(AttachError::Pasid(device.id, pasid));
                }
            }
            for source in device.sources() {
                let at = At { source: *source, pasid };
                if !places.contains(&at) {
                    places.try_reserve(1).map_err(|_| OutOfMemory)?;
                    places.push(at);
                }
            }
            instance = Some(device.instance.clone());
            devices.try_reserve(1).map_err(|_| OutOfMemory)?;
            devices.push(device);
        }
        let instance = instance.ok_or(NotUp::Removed(named))?;
        Ok(Plan { instance, roll: Roll { places, devices } })
    }

    /// Begins a transition of a place where `from` is attached. Pending while another runs.
    pub(crate) fn begin(
        self: &Arc<Self>,
        pasid: Option<Pasid>,
        from: Option<Key>,
        going: Going,
    ) -> Poll<Result<Token<P>, NotSo>> {
        self.state.with(|State { places, frozen, members }| {
            if *frozen {
                return Poll::Pending;
            }
            let parked = members.iter().find(|m| going == Going::In && m.parked.is_parked());
            if let Some(member) = parked {
                return match self.hub.config.during_reset {
                    DuringReset::Wait => Poll::Pending,
                    DuringReset::Refuse => Poll::Ready(Err(NotSo::Parked(member.id()))),
                };
            }
            let found = places.binary_search_by_key(&pasid, |p| p.pasid);
            let attached = found.ok().and_then(|i| places.get(i)?.attached);
            if found.is_ok_and(|i| places.get(i).is_some_and(|p| p.busy)) {
                return Poll::Pending;
            }
            if attached != from {
                return Poll::Ready(Err(NotSo::Otherwise));
            }
            match found {
                Ok(i) => places.iter_mut().skip(i).take(1).for_each(|p| p.busy = true),
                Err(_) if places.len() == places.capacity() => return Poll::Ready(Err(NotSo::NoRoom)),
                Err(i) => places.insert(i, Place { pasid, attached: None, busy: true }),
            }
            Poll::Ready(Ok(Token { group: self.clone(), pasid, was: from, finished: false }))
        })
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

    /// Whether something is attached at a PASID, or a transition there is not over.
    pub(crate) fn is_occupied(&self, pasid: Pasid) -> bool {
        self.state.with(|s| s.places.binary_search_by_key(&Some(pasid), |p| p.pasid).is_ok())
    }

    /// A place where something is attached.
    pub(crate) fn occupied(&self) -> Option<Option<Pasid>> {
        self.state.with(|s| s.places.first().map(|p| p.pasid))
    }

    /// What is attached at the `n`th place. While the group is frozen they stay as they are.
    pub(crate) fn attached(&self, n: usize) -> Option<Option<Key>> {
        self.state.with(|s| s.places.get(n).map(|p| p.attached))
    }

    fn end(&self, pasid: Option<Pasid>, now: Option<Key>) {
        self.state.with(|State { places, .. }| {
            let Ok(i) = places.binary_search_by_key(&pasid, |p| p.pasid) else { return };
            if now.is_none() {
                places.remove(i);
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
