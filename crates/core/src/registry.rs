//! Taking instances and devices in, in any order, and letting devices go.

use crate::{
    device::{Device, DeviceInner, DeviceSpec},
    driver::{Caps, Driver, HwLost, Start, StartError},
    error::{AddDeviceError, AttachError, OutOfMemory, RegisterError},
    group::Group,
    ids::{At, DeviceId, GroupId, InstanceId},
    instance::Instance,
    iommu::Shared,
    join::join,
    left::{Leaving, Then},
    member::{DeviceState, Member},
    platform::{Platform, ShortLock},
    requesters::Ids,
};
use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{future::poll_fn, task::Poll};

/// Instances that one [`Iommu`](crate::Iommu) can hold.
const INSTANCES: usize = 64;

/// The instances, each under its stable id. One that is being started has its id and nothing else.
pub(crate) struct Instances<P: Platform>(P::Lock<Vec<Entry<P>>>);

struct Entry<P: Platform> {
    id: InstanceId,
    instance: Option<Arc<Instance<P>>>,
}

impl<P: Platform> Instances<P> {
    pub(crate) fn new(platform: &P) -> Result<Self, OutOfMemory> {
        let mut list = Vec::new();
        list.try_reserve_exact(INSTANCES).map_err(|_| OutOfMemory)?;
        Ok(Instances(platform.lock(list)))
    }

    pub(crate) fn get(&self, id: InstanceId) -> Option<Arc<Instance<P>>> {
        self.0.with(|list| list.iter().find(|e| e.id == id)?.instance.clone())
    }

    /// The `n`th that is up.
    pub(crate) fn nth(&self, n: usize) -> Option<Arc<Instance<P>>> {
        self.0.with(|list| list.iter().filter_map(|e| e.instance.as_ref()).nth(n).cloned())
    }

    /// How many are up.
    pub(crate) fn len(&self) -> usize {
        self.0.with(|list| list.iter().filter(|e| e.instance.is_some()).count())
    }

    /// Takes an id for an instance that is about to be started.
    fn reserve(&self, id: InstanceId) -> Result<Reserved<'_, P>, RegisterError> {
        self.0.with(|list| {
            if list.iter().any(|e| e.id == id) {
                return Err(RegisterError::Duplicate(id));
            }
            if list.len() == list.capacity() {
                return Err(RegisterError::OutOfMemory(OutOfMemory));
            }
            list.push(Entry { id, instance: None });
            Ok(Reserved { instances: self, id, filled: false })
        })
    }
}

/// An id that is taken; free again on drop, unless an instance came of it.
struct Reserved<'a, P: Platform> {
    instances: &'a Instances<P>,
    id: InstanceId,
    filled: bool,
}

impl<P: Platform> Reserved<'_, P> {
    fn fill(mut self, instance: Arc<Instance<P>>) {
        self.instances.0.with(|list| {
            if let Some(entry) = list.iter_mut().find(|e| e.id == self.id) {
                entry.instance = Some(instance);
            }
        });
        self.filled = true;
    }
}

impl<P: Platform> Drop for Reserved<'_, P> {
    fn drop(&mut self) {
        if !self.filled {
            self.instances.0.with(|list| list.retain(|e| e.id != self.id));
        }
    }
}

/// Every device that was named, and the group it is in.
pub(crate) struct Roster<P: Platform> {
    pub(crate) known: P::Lock<Vec<Known<P>>>,
}

/// Held weakly: a device is there as long as somebody has a handle of it, or of another of its
/// group.
pub(crate) struct Known<P: Platform> {
    id: DeviceId,
    group_id: GroupId,
    pub(crate) member: Weak<Member<P>>,
    group: Weak<Group<P>>,
    /// It was left behind, and a worker is to see to it.
    pub(crate) left: Option<(Device<P>, Then)>,
}

impl<P: Platform> Roster<P> {
    pub(crate) fn new(platform: &P) -> Roster<P> {
        Roster { known: platform.lock(Vec::new()) }
    }

    /// Takes a device in, and finds its group: the one that stands, or this one.
    fn enter(&self, member: &Arc<Member<P>>, new: Arc<Group<P>>) -> Result<Arc<Group<P>>, AddDeviceError> {
        let (id, group_id) = (member.id(), new.id);
        let mut room: Vec<Known<P>> = Vec::new();
        loop {
            let mut wanted = 0;
            let entered = self.known.with(|list| {
                // A group that is found is handed out: nothing is dropped under the lock.
                let stands = |k: &Known<P>| k.member.strong_count() > 0;
                if list.iter().any(|k| k.id == id && stands(k)) {
                    return Some(Err(AddDeviceError::Duplicate(id)));
                }
                if list.len() == list.capacity() && !list.iter().any(|k| !stands(k)) {
                    if room.capacity() <= list.len() {
                        wanted = list.len() + 8;
                        return None;
                    }
                    room.append(list);
                    core::mem::swap(list, &mut room);
                }
                let of_it = |k: &&Known<P>| k.group_id == group_id;
                let found = list.iter().filter(of_it).find_map(|k| k.group.upgrade());
                let group = found.unwrap_or_else(|| new.clone());
                let (member, weak) = (Arc::downgrade(member), Arc::downgrade(&group));
                let known = Known { id, group_id, member, group: weak, left: None };
                match list.iter_mut().find(|k| !stands(k)) {
                    Some(free) => *free = known,
                    None => list.push(known),
                }
                Some(Ok(group))
            });
            match entered {
                Some(entered) => return entered,
                None => room.try_reserve_exact(wanted).map_err(|_| OutOfMemory)?,
            }
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.known.with(|list| list.iter().filter(|k| k.member.strong_count() > 0).count())
    }

    pub(crate) fn forget(&self, member: &Member<P>) {
        let gone = self.known.with(|list| {
            let i = list.iter().position(|k| core::ptr::eq(k.member.as_ptr(), member))?;
            Some(list.swap_remove(i))
        });
        drop(gone);
    }

    /// The device with the lowest id above `after` that stands behind an instance.
    fn behind(&self, instance: InstanceId, after: Option<DeviceId>) -> Option<Device<P>> {
        // Handed out before they are looked at, since dropping the last handle does not belong
        // under a short lock.
        let mut after = after;
        loop {
            let (id, member, group) = self.known.with(|list| {
                let later = list.iter().filter(|k| Some(k.id) > after);
                let next = later.min_by_key(|k| k.id)?;
                Some((next.id, next.member.upgrade(), next.group.upgrade()))
            })?;
            after = Some(id);
            if let (Some(member), Some(group)) = (member, group)
                && member.upstream() == Some(instance)
            {
                return Some(Device { member, group, owner: None });
            }
        }
    }
}

/// Brings an instance up and takes it in, and with it the devices that wait for it.
pub(crate) async fn register<P: Platform>(
    shared: &Arc<Shared<P>>,
    id: InstanceId,
    driver: Box<dyn Driver>,
    how: Start<'_>,
) -> Result<Caps, RegisterError> {
    let hub = &shared.hub;
    let reserved = shared.instances.reserve(id)?;
    let until = hub.platform.now() + hub.config.hardware_deadline;
    poll_fn(|_| match driver.start(how) {
        Poll::Pending if hub.platform.now() >= until => Poll::Ready(Err(StartError::Lost)),
        other => other,
    })
    .await
    .map_err(|e| RegisterError::Start(id, e))?;
    let instance = Arc::new(Instance::new(hub.clone(), id, driver)?);
    let caps = instance.caps().clone();
    reserved.fill(instance);
    // By id, whatever the order in which they were added.
    let mut last = None;
    while let Some(device) = shared.devices.behind(id, last) {
        last = Some(device.id());
        // One that is refused says why in its state, and holds nobody else up.
        let _ = bring_up(shared, &device).await;
    }
    Ok(caps)
}

/// Takes a device in; see [`Iommu::add_device`](crate::Iommu::add_device).
pub(crate) async fn add_device<P: Platform>(
    shared: &Arc<Shared<P>>,
    spec: DeviceSpec,
) -> Result<Device<P>, AddDeviceError> {
    let id = spec.id;
    match spec.upstreams.as_slice() {
        [] => {}
        [one] if one.sources.is_empty() => return Err(AddDeviceError::NoSource(id)),
        [_] => {}
        _ => return Err(AddDeviceError::SeveralInstances(id)),
    }
    let group = Arc::new(Group::new(&shared.hub, spec.group_id())?);
    let member = Arc::new(Member::new(&shared.hub.platform, spec));
    let group = shared.devices.enter(&member, group)?;
    let device = Device { member, group, owner: None };
    let entering = Entering { shared, device: &device, done: false };
    device.group.join(&device.member)?;
    bring_up(shared, &device).await?;
    entering.done();
    Ok(device)
}

/// A device that is being added; forgotten on drop, unless it was.
struct Entering<'a, P: Platform> {
    shared: &'a Shared<P>,
    device: &'a Device<P>,
    done: bool,
}

impl<P: Platform> Entering<'_, P> {
    fn done(mut self) {
        self.done = true;
    }
}

impl<P: Platform> Drop for Entering<'_, P> {
    fn drop(&mut self) {
        if !self.done {
            match self.device.member.is_known() {
                true => self.shared.leave_behind(self.device, Then::Goes),
                false => self.shared.forget(self.device),
            }
        }
    }
}

/// Has the device's instance serve it, if it is registered and does not yet. A device without one,
/// or whose instance is not there, is left as it is.
pub(crate) async fn bring_up<P: Platform>(
    shared: &Arc<Shared<P>>,
    device: &Device<P>,
) -> Result<(), AddDeviceError> {
    let Device { member, group, .. } = device;
    let instance = member.upstream().and_then(|id| shared.instances.get(id));
    let Some(instance) = instance else { return Ok(()) };
    if !member.begin() {
        // Another does, as when the instance is registered at this moment.
        poll_fn(|_| if member.is_starting() { Poll::Pending } else { Poll::Ready(()) }).await;
        return match member.state() {
            DeviceState::Refused { why, .. } => Err(why),
            _ => Ok(()),
        };
    }
    let starting = Starting { shared, device, done: false };
    let came = serve(shared, group, member, &instance).await;
    let result = came.as_ref().map(|_| ()).map_err(|e| *e);
    member.came(came);
    starting.done();
    shared.hub.progressed();
    result
}

/// A device that is being brought up; refused where that is given up.
struct Starting<'a, P: Platform> {
    shared: &'a Shared<P>,
    device: &'a Device<P>,
    done: bool,
}

impl<P: Platform> Starting<'_, P> {
    fn done(mut self) {
        self.done = true;
    }
}

impl<P: Platform> Drop for Starting<'_, P> {
    fn drop(&mut self) {
        if !self.done {
            let member = &self.device.member;
            member.came(Err(AddDeviceError::Shutdown));
            if member.is_known() {
                self.shared.leave_behind(self.device, Then::Stays);
            }
        }
    }
}

async fn serve<P: Platform>(
    shared: &Arc<Shared<P>>,
    group: &Arc<Group<P>>,
    member: &Member<P>,
    instance: &Arc<Instance<P>>,
) -> Result<Arc<DeviceInner<P>>, AddDeviceError> {
    // The first driver chooses by who is there, and attaches.
    let _frozen = poll_fn(|_| if group.is_being_used() { Poll::Pending } else { group.freeze() }).await;
    let own = *member.spec.sources().first().ok_or(AddDeviceError::NoSource(member.id()))?;
    let lane = shared.hub.open_lane()?;
    let ids = Ids { group, member, instance };
    // What an earlier try left behind.
    ids.take_back().await?;
    ids.enter().await?;
    if let Err(e) = group.admit_direct(shared, instance, member).await {
        ids.leave().await;
        return Err(e);
    }
    let spec = member.spec.clone();
    let device = Arc::new(DeviceInner::new(spec, own, instance.clone(), shared.clone(), lane));
    if let Err(e) = goes_on(&ids, &device).await {
        // Of hardware that is lost, what it may still reach is kept.
        ids.leave().await;
        let _ = group.dismiss_direct(member).await;
        return Err(e);
    }
    Ok(device)
}

/// Lets a device that is known go where its group rests, and from there where it is attached.
async fn goes_on<P: Platform>(ids: &Ids<'_, P>, device: &Arc<DeviceInner<P>>) -> Result<(), AddDeviceError> {
    ids.rest().await?;
    device.enable();
    join(ids.group, device).await.inspect_err(|_| device.disable())
}

/// Lets a device go; see [`Iommu::remove_device`](crate::Iommu::remove_device).
pub(crate) async fn remove_device<P: Platform>(
    shared: &Shared<P>,
    device: &Device<P>,
) -> Result<(), AttachError> {
    let Device { member, group, .. } = device;
    poll_fn(|_| if member.is_starting() { Poll::Pending } else { Poll::Ready(()) }).await;
    let _frozen = poll_fn(|_| group.freeze()).await;
    let served = member.up().ok();
    if let (Some(served), Some(pasid)) = (&served, group.occupied()) {
        return Err(AttachError::Occupied(At { source: served.source, pasid }));
    }
    let leaving = Leaving::new(shared, device, Then::Goes);
    member.removed();
    let instance = member.upstream().and_then(|id| shared.instances.get(id));
    let ids = instance.as_ref().map(|instance| Ids { group, member, instance });
    let gone = match (&ids, &served) {
        (Some(ids), Some(served)) => goes(ids, served).await,
        (Some(ids), None) => ids.take_back().await,
        (None, _) => Ok(()),
    };
    leaving.done();
    match served {
        // It was not stopped.
        Some(served) if !member.ids().is_empty() => member.came(Ok(served)),
        _ => shared.forget(device),
    }
    Ok(gone?)
}

async fn goes<P: Platform>(ids: &Ids<'_, P>, served: &DeviceInner<P>) -> Result<(), HwLost> {
    served.disable();
    ids.stop().await?;
    served.give_share_back();
    ids.forget();
    ids.make_room().await
}
