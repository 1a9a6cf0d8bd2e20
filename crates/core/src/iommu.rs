//! The calls by which an embedder drives it all.

use crate::{
    attach::{Gap, Replaced, Wanted, attach, replace},
    attachment::Attachment,
    config::Config,
    detach::{Detaching, detach},
    device::{Device, DeviceSpec},
    domain::Domain,
    driver::{Caps, Driver, Start},
    error::{AddDeviceError, AttachError, ConfigError, ObserveError, RegisterError, Stale},
    hub::{Hub, Job, Load},
    ids::{InstanceId, Key, Pasid},
    observer::{ImmediateObserver, Observation, Observer, Scope, Subscription},
    op::{Op, block_on},
    owner::{
        Attaches, Owner,
        spaces::Spaces,
        sva::{AddressSpace, Sva},
    },
    platform::{Platform, Sleep},
    registry::{self, Instances, Roster},
    resolver::{Keeps, Resolves},
};
use alloc::{boxed::Box, sync::Arc};
use portcullis_sync::atomic::{AtomicU64, Ordering};

pub(crate) struct Shared<P: Platform> {
    pub(crate) hub: Arc<Hub<P>>,
    pub(crate) instances: Instances<P>,
    pub(crate) spaces: Spaces<P>,
    pub(crate) devices: Roster<P>,
    domains: AtomicU64,
}

impl<P: Platform> Shared<P> {
    pub(crate) fn next_domain(&self) -> u64 {
        self.domains.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The IOMMU subsystem of one machine. A counted handle.
#[derive(Clone)]
pub struct Iommu<P: Platform> {
    pub(crate) shared: Arc<Shared<P>>,
}

impl<P: Platform> Iommu<P> {
    /// An empty subsystem. Allocates what `config` sizes.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(platform: P, config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let shared = Shared {
            instances: Instances::new(&platform)?,
            spaces: Spaces::new(&platform),
            devices: Roster::new(&platform),
            domains: AtomicU64::new(0),
            hub: Arc::new(Hub::new(platform, config)?),
        };
        Ok(Iommu { shared: Arc::new(shared) })
    }

    /// Brings an instance up and takes it in under its stable id. Until then, and from then on,
    /// streams that nobody attached are aborted. Sleeps.
    ///
    /// # Errors
    /// See [`RegisterError`]; the instance is not registered then, unless it was given up
    /// ([`RegisterError::Shutdown`]) when it was up and its devices were not: these can be
    /// [tried again](Iommu::retry_device).
    pub fn register(
        &self,
        cx: &Sleep<'_>,
        id: InstanceId,
        driver: Box<dyn Driver>,
        how: Start<'_>,
    ) -> Result<Caps, RegisterError> {
        let started = block_on(&self.shared.hub, cx, registry::register(&self.shared, id, driver, how));
        started.map_err(|_| RegisterError::Shutdown)?
    }

    /// The step form of [`register`](Iommu::register).
    pub fn start_register<'a>(
        &'a self,
        id: InstanceId,
        driver: Box<dyn Driver>,
        how: Start<'a>,
    ) -> Op<'a, Result<Caps, RegisterError>> {
        Op::new(registry::register(&self.shared, id, driver, how))
    }

    /// Takes a device in: blocked, or translating its direct regions and nothing else. PASID and
    /// ATS are switched on where device, instance and trust allow. A device whose instance is not
    /// registered yet waits for that ([`Device::state`]), and one without an IOMMU is no error. Where
    /// something is attached to its group, it is attached there too: to all of it or not at all. Sleeps.
    ///
    /// # Errors
    /// See [`AddDeviceError`]; the device is not added then.
    pub fn add_device(&self, cx: &Sleep<'_>, spec: DeviceSpec) -> Result<Device<P>, AddDeviceError> {
        let added = block_on(&self.shared.hub, cx, registry::add_device(&self.shared, spec));
        added.map_err(|_| AddDeviceError::Shutdown)?
    }

    /// The step form of [`add_device`](Iommu::add_device). Dropped unfinished, a worker takes back what
    /// was begun; until then the id is taken, and nothing is attached to the group.
    pub fn start_add_device(&self, spec: DeviceSpec) -> Op<'_, Result<Device<P>, AddDeviceError>> {
        Op::new(registry::add_device(&self.shared, spec))
    }

    /// Tries again what an instance refused when it came up: [`DeviceState::Refused`](crate::DeviceState::Refused). Nothing
    /// happens to a device that was not refused. Sleeps.
    ///
    /// # Errors
    /// See [`AddDeviceError`]; the device stays refused.
    pub fn retry_device(&self, cx: &Sleep<'_>, device: &Device<P>) -> Result<(), AddDeviceError> {
        let tried = block_on(&self.shared.hub, cx, registry::bring_up(&self.shared, device));
        tried.map_err(|_| AddDeviceError::Shutdown)?
    }

    /// The step form of [`retry_device`](Iommu::retry_device). Dropped unfinished, the device stays refused.
    pub fn start_retry_device<'a>(&'a self, device: &'a Device<P>) -> Op<'a, Result<(), AddDeviceError>> {
        Op::new(registry::bring_up(&self.shared, device))
    }

    /// Forgets a device; nothing may be attached to its group. Its features are switched off, and whatever
    /// it still sends is aborted. Given up after that began, it is ended by a worker. Sleeps.
    ///
    /// # Errors
    /// The device, when something is attached to it or the hardware is lost.
    pub fn remove_device(&self, cx: &Sleep<'_>, device: Device<P>) -> Result<(), (Device<P>, AttachError)> {
        block_on(&self.shared.hub, cx, registry::remove_device(&self.shared, &device))
            .unwrap_or(Err(AttachError::Shutdown))
            .map_err(|e| (device, e))
    }

    /// The step form of [`remove_device`](Iommu::remove_device).
    pub fn start_remove_device<'a>(&'a self, device: &'a Device<P>) -> Op<'a, Result<(), AttachError>> {
        Op::new(registry::remove_device(&self.shared, device))
    }

    pub(crate) fn wanted<O: Owner>(
        domain: &Domain<P, O>,
        device: &Device<P>,
        pasid: Option<Pasid>,
        data: Arc<O::Data>,
    ) -> Wanted<P> {
        let resolves = domain.bind.as_ref().map_or(Resolves::Nothing, |b| b.resolves());
        let handler = match &domain.bind {
            Some(bind) => bind.bind(data.clone()),
            None => Box::new(Keeps(data.clone())),
        };
        let may_stall = device.group.members().any(|m| m.spec.bus.may_stall(m.id()).is_ok());
        let stalls = may_stall.then(|| domain.seat.bind(data));
        Wanted { device: device.clone(), domain: domain.inner.clone(), pasid, handler, resolves, stalls }
    }

    /// What an attach of a device to an address space asks for. Page requests need a device that
    /// makes them.
    pub(crate) fn bound<A: AddressSpace>(domain: &Domain<P, Sva<A>>, device: &Device<P>) -> Wanted<P> {
        let wanted = Self::wanted(domain, device, Some(domain.pasid()), domain.address_space().clone());
        match device.member.spec.caps.page_requests {
            Some(_) => wanted,
            None => Wanted { resolves: Resolves::Nothing, ..wanted },
        }
    }

    /// Attaches a device, or one PASID of it, to a domain. The device translates through it when
    /// this returns. `data` is handed to the domain's resolver, and let go of before the detach is
    /// over. Sleeps for hardware.
    ///
    /// # Errors
    /// See [`AttachError`]; the device is as it was, except after [`AttachError::Lost`].
    pub fn attach<O: Attaches>(
        &self,
        cx: &Sleep<'_>,
        domain: &Domain<P, O>,
        device: &Device<P>,
        pasid: Option<Pasid>,
        data: Arc<O::Data>,
    ) -> Result<Attachment<P>, AttachError> {
        let wanted = Self::wanted(domain, device, pasid, data);
        block_on(&self.shared.hub, cx, attach(wanted)).map_err(|_| AttachError::Shutdown)?
    }

    /// The step form of [`attach`](Iommu::attach).
    pub fn start_attach<O: Attaches>(
        &self,
        domain: &Domain<P, O>,
        device: &Device<P>,
        pasid: Option<Pasid>,
        data: Arc<O::Data>,
    ) -> Op<'static, Result<Attachment<P>, AttachError>>
    where
        P: 'static,
    {
        let wanted = Self::wanted(domain, device, pasid, data);
        Op::new(attach(wanted))
    }

    /// Replaces an attachment by one to another domain. The device sees the old translation, the
    /// new one, or nothing, never a mix; which of it is said in the answer. With
    /// [`Gap::Refused`] the change is not made where it takes a gap. Page requests that the
    /// old one owed an answer are answered Invalid. Sleeps for hardware.
    ///
    /// # Errors
    /// See [`AttachError`], with the old attachment where it still stands.
    #[expect(clippy::type_complexity, reason = "the old attachment comes back with the reason")]
    pub fn replace<O: Attaches>(
        &self,
        cx: &Sleep<'_>,
        old: Attachment<P>,
        domain: &Domain<P, O>,
        data: Arc<O::Data>,
        gap: Gap,
    ) -> Result<(Attachment<P>, Detaching<P>, Replaced), (Option<Attachment<P>>, AttachError)> {
        let inner = old.inner();
        let wanted = Self::wanted(domain, &inner.named, inner.at.pasid, data);
        block_on(&self.shared.hub, cx, replace(inner, wanted, gap))
            .unwrap_or(Err(AttachError::Shutdown))
            .map_err(|e| (Some(old).filter(|old| old.inner().is_live()), e))
    }

    /// The step form of [`replace`](Iommu::replace). Dropped unfinished, it is ended by a worker.
    #[expect(clippy::type_complexity, reason = "as the form that sleeps")]
    pub fn start_replace<O: Attaches>(
        &self,
        old: Attachment<P>,
        domain: &Domain<P, O>,
        data: Arc<O::Data>,
        gap: Gap,
    ) -> Op<'static, Result<(Attachment<P>, Detaching<P>, Replaced), (Option<Attachment<P>>, AttachError)>>
    where
        P: 'static,
    {
        let wanted = Self::wanted(domain, &old.inner().named, old.inner().at.pasid, data);
        Op::new(async move {
            let done = replace(old.inner(), wanted, gap).await;
            // What was replaced is nobody's to drop any more; what still stands goes back.
            done.map_err(|e| (Some(old).filter(|old| old.inner().is_live()), e))
        })
    }

    /// Begins to detach by key, as a resolver does that has no [`Attachment`] in its hands. The
    /// attachment's owner finds it detached. Sleeps for hardware.
    ///
    /// # Errors
    /// [`Stale`] when it is detached already.
    pub fn begin_detach_by_key(&self, cx: &Sleep<'_>, key: Key) -> Result<Detaching<P>, Stale> {
        let inner = self.shared.hub.attachments.get(key).ok_or(Stale(key))?;
        if !inner.begin_leaving() {
            return Err(Stale(key));
        }
        Ok(Attachment::new(inner).begin_detach(cx))
    }

    /// Subscribes to faults: records are read from a queue for `capacity` of them; what finds no
    /// room is counted. Allocates.
    ///
    /// # Errors
    /// See [`ObserveError`].
    pub fn observe(&self, scope: Scope, capacity: usize) -> Result<Subscription<P>, ObserveError> {
        Subscription::new(&self.shared.hub, scope, capacity)
    }

    /// Has an observer called with each fault in service context. Allocates.
    ///
    /// # Errors
    /// See [`ObserveError`].
    pub fn observe_immediate(
        &self,
        scope: Scope,
        observer: impl ImmediateObserver,
    ) -> Result<Observation<P>, ObserveError> {
        Observation::immediate(&self.shared.hub, scope, Box::new(observer))
    }

    /// Has an observer called with each fault by a worker, from a queue for `capacity` records.
    /// Allocates.
    ///
    /// # Errors
    /// See [`ObserveError`].
    pub fn observe_sleeping(
        &self,
        scope: Scope,
        capacity: usize,
        observer: impl Observer,
    ) -> Result<Observation<P>, ObserveError> {
        Observation::sleeping(&self.shared.hub, scope, capacity, Box::new(observer))
    }

    /// An instance's interrupt. Interrupt context. Returns whether a service turn is due, which
    /// the embedder runs by [`service`](Iommu::service), now or soon.
    pub fn interrupt(&self, id: InstanceId) -> bool {
        self.shared.instances.get(id).is_some_and(|i| i.driver().interrupt())
    }

    /// Runs a service turn of an instance: reads its queues, hands records on, sends what waits.
    /// Service context; bounded.
    pub fn service(&self, id: InstanceId) {
        if let Some(i) = self.shared.instances.get(id) {
            i.service();
        }
    }

    /// Runs a service turn of every instance, and ends what has passed its deadline: what a
    /// platform calls when its timer fires. Service context.
    pub fn tick(&self) {
        let mut n = 0;
        while let Some(i) = self.shared.instances.nth(n) {
            i.service();
            n += 1;
        }
    }

    /// Does one piece of sleepable work: a resolver for one group, the clean-up after a dropped
    /// attachment, or a few records for an observer that sleeps. False when there is none. Sleepable
    /// context; may take as long as a resolver takes.
    pub fn run_one(&self, cx: &Sleep<'_>) -> bool {
        self.work(cx, || false)
    }

    /// As [`run_one`](Iommu::run_one), but goes on with an attachment's next group while nothing else
    /// waits, which saves asking whose turn it is: what a worker that was [kicked](Platform::kick)
    /// calls until it returns false. Sleepable context; may take as long as groups keep coming.
    pub fn run(&self, cx: &Sleep<'_>) -> bool {
        self.work(cx, || !self.shared.hub.is_wanted())
    }

    fn work(&self, cx: &Sleep<'_>, go_on: impl Fn() -> bool) -> bool {
        match self.shared.hub.next_job() {
            None => return false,
            Some(Job::Handle(inner, _turn)) => inner.handle(go_on),
            Some(Job::Clear) => self.shared.clear_left(cx),
            Some(Job::Tell(desk)) => {
                if desk.run(cx) {
                    self.shared.hub.ask_for_telling();
                }
            }
            Some(Job::Reap(inner)) => {
                // Shut down half-way, what the device may still reach stays where it is.
                if block_on(&self.shared.hub, cx, detach(inner.clone())).is_err() {
                    inner.domain.keep_for_ever();
                }
            }
        }
        true
    }

    /// How busy the workers are.
    pub fn load(&self) -> Load {
        self.shared.hub.load()
    }
}
