//! The registry: instances, devices, domains, and the calls by which an embedder drives it all.

use crate::{
    attach::{Replaced, Wanted, attach, map_missing, replace},
    attachment::Attachment,
    config::Config,
    detach::{Detaching, detach},
    device::{Device, DeviceInner, DeviceSpec, Holding},
    domain::{
        AddressSpace, Blocked, Domain, DomainInner, DomainOptions, External, Identity, KernelDma, Kind,
        Nested, Owner, UserObject, instances_of,
    },
    driver::{Caps, Driver, Features, HwLost, Stage, Start, StartError, TableRequest},
    error::{AddDeviceError, AttachError, DomainError, NotYet, OutOfMemory, RegisterError, Stale},
    group::Group,
    hub::{Hub, Job, Load},
    ids::{At, DomainTag, InstanceId, Key, Pasid, SourceId},
    instance::Instance,
    observer::{Scope, Subscription},
    op::{Op, block_on, hw},
    platform::{Platform, ShortLock, Sleep},
    resolver::{Bind, Bound, Keeps, Resolver},
    slab::Slab,
    sources::Source,
    wait::{GaveUp, poll_until},
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::mem::ManuallyDrop;
use portcullis_sync::atomic::{AtomicU64, Ordering};

/// Instances that one [`Iommu`] can hold.
const INSTANCES: usize = 64;

pub(crate) struct Shared<P: Platform> {
    pub(crate) hub: Arc<Hub<P>>,
    pub(crate) attachments: Slab<P>,
    instances: P::Lock<Vec<Arc<Instance<P>>>>,
    domains: AtomicU64,
}

impl<P: Platform> Shared<P> {
    pub(crate) fn next_domain(&self) -> u64 {
        self.domains.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn instance(&self, id: InstanceId) -> Option<Arc<Instance<P>>> {
        self.instances.with(|list| list.iter().find(|i| i.id() == id).cloned())
    }
}

/// The IOMMU subsystem of one machine. A counted handle.
#[derive(Clone)]
pub struct Iommu<P: Platform> {
    shared: Arc<Shared<P>>,
}

impl<P: Platform> Iommu<P> {
    /// An empty subsystem. Allocates what `config` sizes.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(platform: P, config: Config) -> Result<Self, OutOfMemory> {
        let attachments = Slab::new(&platform, config.attachments)?;
        let mut list = Vec::new();
        list.try_reserve_exact(INSTANCES).map_err(|_| OutOfMemory)?;
        let shared = Shared {
            attachments,
            instances: platform.lock(list),
            domains: AtomicU64::new(0),
            hub: Arc::new(Hub::new(platform, config)?),
        };
        Ok(Iommu { shared: Arc::new(shared) })
    }

    /// Brings an instance up and takes it in under its stable id. Until then, and from then on,
    /// streams that nobody attached are aborted. Sleeps.
    ///
    /// # Errors
    /// See [`RegisterError`]; the instance is not registered then.
    pub fn register(
        &self,
        cx: &Sleep<'_>,
        id: InstanceId,
        driver: Box<dyn Driver>,
        how: Start<'_>,
    ) -> Result<Caps, RegisterError> {
        let hub = &self.shared.hub;
        if self.shared.instance(id).is_some() {
            return Err(RegisterError::Duplicate(id));
        }
        let until = hub.platform.now() + hub.config.hardware_deadline;
        match poll_until(&hub.platform, cx, &hub.progress, Some(until), || driver.start(how)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(RegisterError::Start(id, e)),
            Err(GaveUp::Deadline) => return Err(RegisterError::Start(id, StartError::Lost)),
            Err(GaveUp::Shutdown) => return Err(RegisterError::Shutdown),
        }
        let instance = Arc::new(Instance::new(hub.clone(), id, driver)?);
        let caps = instance.caps().clone();
        self.shared.instances.with(|list| {
            if list.iter().any(|i| i.id() == id) {
                return Err(RegisterError::Duplicate(id));
            }
            if list.len() == list.capacity() {
                return Err(RegisterError::OutOfMemory(OutOfMemory));
            }
            list.push(instance);
            Ok(())
        })?;
        Ok(caps)
    }

    /// Takes a device in: blocked, or translating its direct regions and nothing else. PASID and
    /// ATS are switched on where device, instance and trust allow. Sleeps.
    ///
    /// # Errors
    /// See [`AddDeviceError`]; the device is not added then.
    pub fn add_device(&self, cx: &Sleep<'_>, spec: DeviceSpec) -> Result<Device<P>, AddDeviceError> {
        let hub = &self.shared.hub;
        let (upstream, source) = match spec.upstreams.as_slice() {
            [] => return Err(AddDeviceError::NoUpstream(spec.id)),
            [one] => match one.sources.as_slice() {
                [] => return Err(AddDeviceError::NoUpstream(spec.id)),
                [source] => (one.instance, *source),
                _ => return Err(NotYet("a device with several requester ids").into()),
            },
            _ => return Err(NotYet("a device behind several IOMMU instances").into()),
        };
        let instance = self.shared.instance(upstream).ok_or(AddDeviceError::NotReady(upstream))?;
        let caps = instance.caps();
        let ats = spec.trusted && spec.caps.ats && caps.ats;
        let features = Features {
            pasid: spec.caps.pasid_bits > 0 && caps.pasid_bits > 0,
            ats,
            pri: false,
            invalidate_queue_depth: spec.caps.invalidate_queue_depth,
            physical_function: None,
        };
        let config = &hub.config;
        let entry = Source::new(
            source,
            spec.id,
            features,
            config.attachments_per_device,
            config.credits_per_device as usize,
        )?;
        let mut entry = Some(entry);
        instance.state.with(|s| {
            if s.sources.get(source).is_some() || s.sources.iter_mut().any(|x| x.device == spec.id) {
                return Err(AddDeviceError::Duplicate(spec.id));
            }
            if s.sources.is_full() {
                return Err(AddDeviceError::TooMany(upstream));
            }
            entry.take().into_iter().for_each(|e| s.sources.insert(e));
            Ok(())
        })?;
        let added = instance.driver().add_device(source, features).map_err(AddDeviceError::from);
        let made = added.and_then(|()| {
            self.make_device(cx, spec, &instance, source).inspect_err(|_| {
                let cut = block_on(hub, cx, hw(&instance, || instance.driver().cut_off(source)));
                if matches!(cut, Ok(Ok(()))) {
                    instance.driver().remove_device(source);
                }
            })
        });
        if made.is_err() {
            let gone = instance.state.with(|s| s.sources.remove(source));
            drop(gone);
        }
        let device = made?;
        device.inner.enable();
        Ok(device)
    }

    fn make_device(
        &self,
        cx: &Sleep<'_>,
        spec: DeviceSpec,
        instance: &Arc<Instance<P>>,
        source: SourceId,
    ) -> Result<Device<P>, AddDeviceError> {
        let group = Arc::new(Group::new(&self.shared.hub, spec.id).ok_or(OutOfMemory)?);
        let direct_only = match spec.direct.is_empty() {
            true => None,
            false => Some(self.direct_only(&spec, instance)?),
        };
        let inner = DeviceInner::new(spec, source, instance.clone(), group, self.shared.clone(), direct_only);
        let device = Device { inner: Arc::new(inner) };
        if let Some((domain, tag)) = &device.inner.direct_only {
            let at = At { source, pasid: None };
            let target = domain.target(*tag);
            let shown = match Holding::prepare(instance, at, target) {
                Ok((held, _)) => {
                    let show = device.inner.install_prepared(at, target, Some(held));
                    match block_on(&self.shared.hub, cx, show) {
                        Ok(Ok(())) => return Ok(device),
                        // The hardware may use it for ever.
                        _ => domain.keep_for_ever(),
                    }
                    HwLost.into()
                }
                Err(e) => e.into(),
            };
            domain.release_tag(instance);
            return Err(shown);
        }
        Ok(device)
    }

    /// A domain that maps exactly a device's direct regions, and its tag.
    fn direct_only(
        &self,
        spec: &DeviceSpec,
        instance: &Arc<Instance<P>>,
    ) -> Result<(Arc<DomainInner<P>>, DomainTag), AddDeviceError> {
        let request = TableRequest { stage: Stage::Second, ..TableRequest::default() };
        let table = instance.driver().new_table(request)?;
        for r in &spec.direct {
            map_missing(&*table, r.start, r.len, r.prot)
                .map_err(|why| AddDeviceError::Direct { start: r.start, why })?;
        }
        let kind = Kind::Table(ManuallyDrop::new(table));
        let domain = Arc::new(DomainInner::new(&self.shared, kind, false, core::slice::from_ref(instance))?);
        let tag = domain.acquire_tag(instance)?.ok_or(AddDeviceError::TooMany(instance.id()))?;
        Ok((domain, tag))
    }

    /// Forgets a device to which nothing is attached. Its features are switched off, and whatever
    /// it still sends is aborted. Sleeps.
    ///
    /// # Errors
    /// The device, when something is attached to it or the hardware is lost.
    pub fn remove_device(&self, cx: &Sleep<'_>, device: Device<P>) -> Result<(), (Device<P>, AttachError)> {
        let inner = &device.inner;
        let (instance, source) = (&inner.instance, inner.source);
        if !inner.group.remove() {
            let at = At { source, pasid: None };
            return Err((device.clone(), AttachError::Occupied(at)));
        }
        inner.disable();
        let cut = block_on(&self.shared.hub, cx, hw(instance, || instance.driver().cut_off(source)));
        let failed = match cut {
            Ok(Ok(())) => None,
            Ok(Err(lost)) => Some(AttachError::Lost(lost)),
            Err(_) => Some(AttachError::Shutdown),
        };
        if let Some(e) = failed {
            inner.group.restore();
            return Err((device.clone(), e));
        }
        inner.give_share_back();
        instance.void_all_of(source);
        instance.absolve(source);
        let gone = instance.state.with(|s| s.sources.remove(source));
        drop(gone);
        instance.driver().remove_device(source);
        if let Some((domain, _)) = &inner.direct_only {
            domain.release_tag(instance);
        }
        Ok(())
    }

    /// A domain through which nothing passes.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn blocked_domain(&self) -> Result<Domain<P, Blocked>, OutOfMemory> {
        self.fixed(Kind::Blocked)
    }

    /// A domain in which IOVA equals physical address.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn identity_domain(&self) -> Result<Domain<P, Identity>, OutOfMemory> {
        self.fixed(Kind::Identity)
    }

    fn fixed<O: Owner<Data = ()>>(&self, kind: Kind) -> Result<Domain<P, O>, OutOfMemory> {
        Ok(Domain { inner: Arc::new(DomainInner::new(&self.shared, kind, false, &[])?), bind: None })
    }

    /// A domain whose mappings are the caller's, in a format that all of `devices` can walk, open
    /// to every other device that can walk it. With a resolver, page requests of what is attached
    /// go to it.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn external_domain<T, R>(
        &self,
        devices: &[&Device<P>],
        options: DomainOptions,
        resolver: Option<R>,
    ) -> Result<Domain<P, External<T>>, DomainError>
    where
        T: Send + Sync + 'static,
        R: Resolver<P, T>,
    {
        let first = devices.first().ok_or(DomainError::NoDevice)?;
        let table = first.inner.instance.driver().new_table(options.table)?;
        for d in devices {
            d.inner
                .instance
                .driver()
                .can_walk(&table.desc())
                .map_err(|why| DomainError::Incompatible { device: d.id(), why })?;
        }
        let kind = Kind::Table(ManuallyDrop::new(table));
        let served_by = instances_of(devices)?;
        let inner = DomainInner::new(&self.shared, kind, options.pasid_only, &served_by)?;
        let bind = resolver.map(|r| Arc::new(Bound(Arc::new(r))) as Arc<dyn Bind<P, T>>);
        Ok(Domain { inner: Arc::new(inner), bind })
    }

    /// The kernel's DMA API as owner.
    ///
    /// # Errors
    /// Always [`NotYet`].
    pub fn kernel_dma_domain(&self) -> Result<Domain<P, KernelDma>, DomainError> {
        Err(NotYet("domains of the kernel's DMA API").into())
    }

    /// A CPU address space as owner (SVA).
    ///
    /// # Errors
    /// Always [`NotYet`].
    pub fn address_space_domain(&self) -> Result<Domain<P, AddressSpace>, DomainError> {
        Err(NotYet("domains that share a CPU address space").into())
    }

    /// A user-space object as owner (iommufd).
    ///
    /// # Errors
    /// Always [`NotYet`].
    pub fn user_object_domain(&self) -> Result<Domain<P, UserObject>, DomainError> {
        Err(NotYet("domains owned by user-space objects").into())
    }

    /// A guest as owner of the first stage.
    ///
    /// # Errors
    /// Always [`NotYet`].
    pub fn nested_domain(&self) -> Result<Domain<P, Nested>, DomainError> {
        Err(NotYet("nested domains").into())
    }

    fn wanted<O: Owner>(
        &self,
        domain: &Domain<P, O>,
        device: &Device<P>,
        pasid: Option<Pasid>,
        data: Arc<O::Data>,
    ) -> Wanted<P> {
        let resolves = domain.bind.is_some();
        let handler = match &domain.bind {
            Some(bind) => bind.bind(data),
            None => Arc::new(Keeps(data)),
        };
        Wanted { device: device.inner.clone(), domain: domain.inner.clone(), pasid, handler, resolves }
    }

    /// Attaches a device, or one PASID of it, to a domain. The device translates through it when
    /// this returns. `data` is handed to the domain's resolver, and let go of before the detach is
    /// over. Sleeps for hardware.
    ///
    /// # Errors
    /// See [`AttachError`]; the device is as it was, except after [`AttachError::Lost`].
    pub fn attach<O: Owner>(
        &self,
        cx: &Sleep<'_>,
        domain: &Domain<P, O>,
        device: &Device<P>,
        pasid: Option<Pasid>,
        data: Arc<O::Data>,
    ) -> Result<Attachment<P>, AttachError> {
        let wanted = self.wanted(domain, device, pasid, data);
        block_on(&self.shared.hub, cx, attach(wanted)).map_err(|_| AttachError::Shutdown)?
    }

    /// The step form of [`attach`](Iommu::attach).
    pub fn start_attach<O: Owner>(
        &self,
        domain: &Domain<P, O>,
        device: &Device<P>,
        pasid: Option<Pasid>,
        data: Arc<O::Data>,
    ) -> Op<'static, Result<Attachment<P>, AttachError>>
    where
        P: 'static,
    {
        let wanted = self.wanted(domain, device, pasid, data);
        Op::new(attach(wanted))
    }

    /// Replaces an attachment by one to another domain. The device sees the old translation, the
    /// new one, or nothing, never a mix; which of it is said in the answer. With `gap_allowed`
    /// false the change is refused where it cannot be made without a gap. Page requests that the
    /// old one owed an answer are answered Invalid. Sleeps for hardware.
    ///
    /// # Errors
    /// See [`AttachError`], with the old attachment where it still stands.
    #[expect(clippy::type_complexity, reason = "the old attachment comes back with the reason")]
    pub fn replace<O: Owner>(
        &self,
        cx: &Sleep<'_>,
        old: Attachment<P>,
        domain: &Domain<P, O>,
        data: Arc<O::Data>,
        gap_allowed: bool,
    ) -> Result<(Attachment<P>, Detaching<P>, Replaced), (Option<Attachment<P>>, AttachError)> {
        let Some(inner) = old.into_inner() else { return Err((None, AttachError::Shutdown)) };
        let device = Device { inner: inner.device.clone() };
        let wanted = self.wanted(domain, &device, inner.at.pasid, data);
        block_on(&self.shared.hub, cx, replace(&inner, wanted, gap_allowed))
            .unwrap_or(Err(AttachError::Shutdown))
            .map_err(|e| (inner.is_live().then(|| Attachment::new(inner)), e))
    }

    /// Begins to detach by key, as a resolver does that has no [`Attachment`] in its hands. The
    /// attachment's owner finds it detached. Sleeps for hardware.
    ///
    /// # Errors
    /// [`Stale`] when it is detached already.
    pub fn begin_detach_by_key(&self, cx: &Sleep<'_>, key: Key) -> Result<Detaching<P>, Stale> {
        let inner = self.shared.attachments.get(key).ok_or(Stale(key))?;
        if !inner.begin_leaving() {
            return Err(Stale(key));
        }
        Ok(Attachment::new(inner).begin_detach(cx))
    }

    /// Subscribes to faults. The queue is bounded; what finds no room is counted.
    ///
    /// # Errors
    /// [`OutOfMemory`], also when as many subscriptions exist as are allowed.
    pub fn observe(&self, scope: Scope, capacity: usize) -> Result<Subscription<P>, OutOfMemory> {
        Subscription::new(&self.shared.hub, scope, capacity)
    }

    /// An instance's interrupt. Interrupt context. Returns whether a service turn is due, which
    /// the embedder runs by [`service`](Iommu::service), now or soon.
    pub fn interrupt(&self, id: InstanceId) -> bool {
        self.shared.instance(id).is_some_and(|i| i.driver().interrupt())
    }

    /// Runs a service turn of an instance: reads its queues, hands records on, sends what waits.
    /// Service context; bounded.
    pub fn service(&self, id: InstanceId) {
        if let Some(i) = self.shared.instance(id) {
            i.service();
        }
    }

    /// Runs a service turn of every instance, and ends what has passed its deadline: what a
    /// platform calls when its timer fires. Service context.
    pub fn tick(&self) {
        let mut n = 0;
        while let Some(i) = self.shared.instances.with(|list| list.get(n).cloned()) {
            i.service();
            n += 1;
        }
    }

    /// Does one piece of sleepable work: a resolver for one group, or the clean-up after a dropped
    /// attachment. False when there is none. Sleepable context; may take as long as a resolver
    /// takes.
    pub fn run_one(&self, cx: &Sleep<'_>) -> bool {
        match self.shared.hub.next_job() {
            None => false,
            Some(Job::Handle(inner)) => {
                inner.handle_one();
                true
            }
            Some(Job::Reap(inner)) => {
                // Shut down half-way, what the device may still reach stays where it is.
                if block_on(&self.shared.hub, cx, detach(inner.clone())).is_err() {
                    inner.domain.keep_for_ever();
                }
                true
            }
        }
    }

    /// How busy the workers are.
    pub fn load(&self) -> Load {
        self.shared.hub.load()
    }
}
