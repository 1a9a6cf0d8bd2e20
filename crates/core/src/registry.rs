//! Taking instances and devices in, and letting devices go.

use crate::{
    attach::map_missing,
    device::{Device, DeviceInner, DeviceSpec, Holding},
    domain::{DomainInner, Kind},
    driver::{Caps, Driver, Features, HwLost, Start, StartError, TableRequest},
    error::{AddDeviceError, AttachError, NotYet, OutOfMemory, RegisterError},
    group::Group,
    ids::{At, DomainTag, InstanceId, SourceId},
    instance::Instance,
    iommu::Shared,
    op::hw,
    platform::{Platform, ShortLock},
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{future::poll_fn, mem::ManuallyDrop, task::Poll};

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

/// Brings an instance up and takes it in.
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
    Ok(caps)
}

/// Takes a device in; see [`Iommu::add_device`](crate::Iommu::add_device).
pub(crate) async fn add_device<P: Platform>(
    shared: &Arc<Shared<P>>,
    spec: DeviceSpec,
) -> Result<Device<P>, AddDeviceError> {
    let (upstream, source) = the_upstream(&spec)?;
    let instance = shared.instances.get(upstream).ok_or(AddDeviceError::NotReady(upstream))?;
    let caps = instance.caps();
    let features = Features {
        pasid: spec.caps.pasid_bits > 0 && caps.pasid_bits > 0,
        ats: spec.trusted && spec.caps.ats && caps.ats,
        pri: false,
        invalidate_queue_depth: spec.caps.invalidate_queue_depth,
        physical_function: spec.caps.physical_function,
    };
    let known = Known::new(&instance, source, &spec, features)?;
    instance.driver().add_device(source, features)?;
    let made = make_device(shared, spec, &instance, source).await;
    if made.is_err() && hw(&instance, || instance.driver().cut_off(source)).await.is_ok() {
        instance.driver().remove_device(source);
    }
    let device = made?;
    known.stays();
    device.inner.enable();
    Ok(device)
}

/// The one instance and the one requester id that this version serves a device by.
fn the_upstream(spec: &DeviceSpec) -> Result<(InstanceId, SourceId), AddDeviceError> {
    match spec.upstreams.as_slice() {
        [] => Err(AddDeviceError::NoUpstream(spec.id)),
        [one] => match one.sources.as_slice() {
            [] => Err(AddDeviceError::NoUpstream(spec.id)),
            [source] => Ok((one.instance, *source)),
            _ => Err(NotYet("a device with several requester ids").into()),
        },
        _ => Err(NotYet("a device behind several IOMMU instances").into()),
    }
}

/// A requester that the fault path knows; forgotten on drop, unless it stays.
struct Known<'a, P: Platform> {
    instance: &'a Instance<P>,
    source: SourceId,
    stays: bool,
}

impl<'a, P: Platform> Known<'a, P> {
    fn new(
        instance: &'a Instance<P>,
        source: SourceId,
        spec: &DeviceSpec,
        features: Features,
    ) -> Result<Self, AddDeviceError> {
        instance.learn(spec.id, &[source], features)?;
        Ok(Known { instance, source, stays: false })
    }

    fn stays(mut self) {
        self.stays = true;
    }
}

impl<P: Platform> Drop for Known<'_, P> {
    fn drop(&mut self) {
        if !self.stays {
            self.instance.forget(self.source);
        }
    }
}

async fn make_device<P: Platform>(
    shared: &Arc<Shared<P>>,
    spec: DeviceSpec,
    instance: &Arc<Instance<P>>,
    source: SourceId,
) -> Result<Device<P>, AddDeviceError> {
    let group = Arc::new(Group::new(&shared.hub, spec.id).ok_or(OutOfMemory)?);
    let lane = shared.hub.open_lane()?;
    let direct_only = match spec.regions.iter().any(|r| r.kind.is_direct()) {
        true => Some(direct_only(shared, &spec, instance)?),
        false => None,
    };
    let (instance_, shared_) = (instance.clone(), shared.clone());
    let inner = DeviceInner::new(spec, source, instance_, group, shared_, direct_only, lane);
    let device = Device { inner: Arc::new(inner) };
    if let Some((domain, tag)) = &device.inner.direct_only
        && let Some(target) = domain.target(*tag)
    {
        let at = At { source, pasid: None };
        let (held, _) =
            Holding::prepare(instance, at, target).inspect_err(|_| domain.release_tag(instance))?;
        let shown = Shown { domain, done: false };
        device.inner.install_prepared(at, target, Some(held)).await?;
        shown.done();
    }
    Ok(device)
}

/// A domain that hardware may have begun to use: given up half-way, it is kept for ever, and its
/// tag is never given to another.
struct Shown<'a, P: Platform> {
    domain: &'a DomainInner<P>,
    done: bool,
}

impl<P: Platform> Shown<'_, P> {
    fn done(mut self) {
        self.done = true;
    }
}

impl<P: Platform> Drop for Shown<'_, P> {
    fn drop(&mut self) {
        if !self.done {
            self.domain.keep_for_ever();
        }
    }
}

/// A domain that maps exactly a device's direct regions, and its tag.
fn direct_only<P: Platform>(
    shared: &Arc<Shared<P>>,
    spec: &DeviceSpec,
    instance: &Arc<Instance<P>>,
) -> Result<(Arc<DomainInner<P>>, DomainTag), AddDeviceError> {
    // The second stage where there is one, but not every unit has it.
    let table = instance.driver().new_table(TableRequest::default())?;
    for r in spec.regions.iter().filter(|r| r.kind.is_direct()) {
        map_missing(&*table, r.start, r.len, r.prot)
            .map_err(|why| AddDeviceError::Direct { start: r.start, why })?;
    }
    let kind = Kind::Table(ManuallyDrop::new(table));
    let domain = Arc::new(DomainInner::new(shared, kind, false, core::slice::from_ref(instance))?);
    let tag = domain.acquire_tag(instance)?.ok_or(AddDeviceError::TooMany(instance.id()))?;
    Ok((domain, tag))
}

/// Lets a device go; see [`Iommu::remove_device`](crate::Iommu::remove_device).
pub(crate) async fn remove_device<P: Platform>(device: &Device<P>) -> Result<(), AttachError> {
    let inner = &device.inner;
    let (instance, source) = (&inner.instance, inner.source);
    if !inner.group.remove() {
        return Err(AttachError::Occupied(At { source, pasid: None }));
    }
    let removing = Removing { group: &inner.group, done: false };
    inner.disable();
    hw(instance, || instance.driver().cut_off(source)).await.map_err(|HwLost| AttachError::Lost(HwLost))?;
    inner.give_share_back();
    instance.void_all_of(source);
    instance.absolve(source);
    instance.forget(source);
    instance.driver().remove_device(source);
    if let Some((domain, _)) = &inner.direct_only {
        domain.release_tag(instance);
    }
    removing.done();
    Ok(())
}

/// A group that takes no attachment any more; it does again on drop, unless its device is gone.
struct Removing<'a, P: Platform> {
    group: &'a Group<P>,
    done: bool,
}

impl<P: Platform> Removing<'_, P> {
    fn done(mut self) {
        self.done = true;
    }
}

impl<P: Platform> Drop for Removing<'_, P> {
    fn drop(&mut self) {
        if !self.done {
            self.group.restore();
        }
    }
}
