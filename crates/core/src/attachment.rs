//! An attachment: a group of devices, most often one, or one PASID of it, translating through one
//! domain, with the caller's data.

use crate::{
    detach::{Detaching, detach},
    device::{Device, DeviceInner},
    domain::DomainInner,
    driver::{PageRequest, Target},
    ids::{At, DomainTag, Key},
    instance::Instance,
    op::{Op, block_on},
    platform::{Platform, ShortLock, Sleep},
    quota::Lease,
    record::{Group, Record},
    resolver::{Deferred, Handler, PageGroup, Resolves},
    roll::{Roll, Rolls},
    slab::Tenant,
    spill::Spill,
    stall::StallHandler,
    turn::Code,
};
use alloc::{boxed::Box, sync::Arc};
use portcullis_sync::{
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    inbox::Inbox,
    slot::Generation,
    tenants,
};

/// What an attachment is made of.
pub(crate) struct Parts<P: Platform> {
    pub(crate) key: Key,
    /// The own id of the device that was named.
    pub(crate) at: At,
    /// Who takes part, and where.
    pub(crate) roll: Roll<P>,
    /// What the caches know the domain by; none where nothing passes.
    pub(crate) tag: Option<DomainTag>,
    /// The device that was named.
    pub(crate) named: Device<P>,
    /// The same, as its instance serves it.
    pub(crate) device: Arc<DeviceInner<P>>,
    pub(crate) domain: Arc<DomainInner<P>>,
    pub(crate) handler: Box<dyn Handler<P>>,
    pub(crate) resolves: Resolves,
    /// What decides stalled transactions, where the devices may stall.
    pub(crate) stalls: Option<Arc<dyn StallHandler<P>>>,
    /// Room for the groups that wait for the resolver.
    pub(crate) inbox: Inbox,
}

/// Ours until the hardware no longer uses it and no handler runs with it.
pub(crate) struct Inner<P: Platform> {
    pub(crate) key: Key,
    pub(crate) at: At,
    pub(crate) rolls: Rolls<P>,
    pub(crate) tag: Option<DomainTag>,
    pub(crate) instance: Arc<Instance<P>>,
    pub(crate) named: Device<P>,
    pub(crate) device: Arc<DeviceInner<P>>,
    pub(crate) domain: Arc<DomainInner<P>>,
    /// Until the attachment is shown.
    handlers: P::Lock<Option<Handlers<P>>>,
    pub(crate) resolves: Resolves,
    /// Its devices may stall.
    may_stall: bool,
    /// What it has outstanding of its owner's quota.
    pub(crate) lease: Lease,
    /// Slot and generation of each group that waits for the resolver. What is owed there stands in the
    /// hub's queue, or a worker has it: at most one is occupied.
    inbox: Inbox,
    /// The same of devices that joined, where the queue has no room.
    pub(crate) spill: Spill<P>,
    life: AtomicU32,
    /// For so many of the devices, the first ones, it counts among those that page requests are on for.
    pub(crate) holds_pri: AtomicUsize,
    /// So many of the places, the first ones, have their cache tag published.
    pub(crate) published: AtomicUsize,
    /// The domain maps the direct regions of the devices.
    pub(crate) pinned: AtomicBool,
    /// What it replaces, while the hardware may still use that: who ends one ends both.
    pub(crate) replaces: P::Lock<Option<Arc<Inner<P>>>>,
    /// The hardware was lost while it was detached.
    pub(crate) lost: AtomicBool,
}

/// What decides page requests, and what decides stalled transactions.
type Handlers<P> = (Box<dyn Handler<P>>, Option<Arc<dyn StallHandler<P>>>);

/// In its owner's hands.
const LIVE: u32 = 0;
/// A detach has begun, or its owner dropped it and the reaper will begin one.
const LEAVING: u32 = 1;
/// Neither hardware nor a handler uses it; its data is dropped.
const GONE: u32 = 2;

impl<P: Platform> Inner<P> {
    pub(crate) fn new(parts: Parts<P>) -> Inner<P> {
        let Parts { key, at, roll, tag, named, device, domain, handler, resolves, stalls, inbox } = parts;
        let platform = device.instance.platform();
        Inner {
            key,
            at,
            rolls: Rolls::new(platform, roll),
            tag,
            instance: device.instance.clone(),
            named,
            may_stall: stalls.is_some(),
            handlers: platform.lock(Some((handler, stalls))),
            resolves,
            lease: Lease::default(),
            inbox,
            spill: Spill::new(platform),
            life: AtomicU32::new(LIVE),
            holds_pri: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
            pinned: AtomicBool::new(false),
            replaces: platform.lock(None),
            lost: AtomicBool::new(false),
            device,
            domain,
        }
    }

    /// Who takes part, and where. It stays so while the caller has the place's token.
    pub(crate) fn roll(&self) -> Arc<Roll<P>> {
        self.rolls.now()
    }

    /// Whether it is where some device expects its direct regions.
    pub(crate) fn has_direct(&self) -> bool {
        self.at.pasid.is_none() && self.roll().direct(&self.named).next().is_some()
    }

    /// Places for groups and stalled transactions that its queue was made with.
    pub(crate) fn room(&self) -> usize {
        self.inbox.room()
    }

    /// What the hardware translates through; `None` where nothing passes.
    pub(crate) fn target(&self) -> Option<Target> {
        self.domain.target(self.tag?)
    }

    /// Whether its devices may stall, and somebody decides it.
    pub(crate) fn may_stall(&self) -> bool {
        self.may_stall
    }

    /// Whether page requests go to a resolver.
    pub(crate) fn resolves(&self) -> bool {
        self.resolves != Resolves::Nothing
    }

    /// Whether what faults in it is to be held.
    pub(crate) fn wants_stalls(&self) -> bool {
        self.may_stall && self.domain.stalls() && !self.is_closed()
    }

    /// The handlers, for whoever shows the attachment first.
    pub(crate) fn take_handlers(&self) -> Option<Handlers<P>> {
        self.handlers.with(Option::take)
    }

    /// Lets nobody begin to use the attachment any more.
    pub(crate) fn close(&self) {
        self.instance.hub.attachments.close(self.key);
    }

    /// Whether nobody begins to use it any more.
    pub(crate) fn is_closed(&self) -> bool {
        !self.instance.hub.attachments.is_there(self.key)
    }

    /// Keeps a group for the resolver, whom a worker calls once it is [announced](Self::announce).
    /// False when there is no room. For the service turn.
    #[inline]
    pub(crate) fn enqueue(&self, slot: u32, generation: Generation) -> bool {
        let piece = [slot.into(), generation.get()];
        self.inbox.push(piece) || self.spill(piece)
    }

    /// Keeps what the queue has no room for, if others joined since that was made.
    #[cold]
    fn spill(&self, piece: [u64; 2]) -> bool {
        let kept = self.spill.push(piece);
        if kept {
            self.inbox.count_one();
        }
        kept
    }

    /// Has a worker call the resolver for what was kept. For the service turn.
    #[inline]
    pub(crate) fn announce(self: &Arc<Self>) {
        if self.inbox.announce() {
            self.instance.hub.schedule(self.clone());
        }
    }

    /// Has a worker look after the attachment.
    pub(crate) fn schedule(self: &Arc<Self>) {
        if self.inbox.call() {
            self.instance.hub.schedule(self.clone());
        }
    }

    /// The attachment is ready: what came while it was being made goes to its resolver.
    pub(crate) fn schedule_waiting(&self) {
        if self.resolves() || self.may_stall {
            self.instance.say_ready();
            self.instance.service();
        }
    }

    /// Runs the resolver for what waits: for one group, and for the next ones while `go_on`. For the
    /// worker that was sent. Sleepable context.
    pub(crate) fn handle(self: &Arc<Self>, go_on: impl Fn() -> bool) {
        let mut visit = Visit { inner: self, done: 0 };
        let Some(tenant) = self.instance.hub.attachments.enter(self.key) else {
            visit.done = self.inbox.owed();
            return self.refuse_pending();
        };
        self.instance.hub.resolver_runs(1);
        let inside = Inside { inner: self, tenant: Some(tenant) };
        let Some(tenant) = &inside.tenant else { return };
        let mut owed = self.inbox.owed();
        while visit.done < owed {
            // Done also by a resolver that panics.
            visit.done += 1;
            if let Some((slot, generation)) = self.next_group()
                && let Some(words) = self.instance.records.read(slot, generation)
                && let Some(group) = Record::from_words(&words).group()
            {
                self.decide(tenant, slot, generation, group);
            }
            if tenant.is_closed() || !go_on() {
                break;
            }
            if visit.done == owed {
                owed = self.inbox.owed();
            }
        }
    }

    /// Has a group, or a stalled transaction, decided.
    #[inline]
    fn decide(&self, tenant: &Tenant<P>, slot: u32, generation: Generation, group: Group<&PageRequest>) {
        let instance = &self.instance;
        if instance.is_stall(slot) {
            if let Some(handler) = &tenant.stalls {
                let stalled = Deferred::new(instance, slot, generation, group.keep(), false);
                handler.handle(&Sleep::in_resolver(self.key), stalled, false);
            }
        } else {
            tenant.handler.handle(PageGroup::new(instance, slot, generation, group, false));
        }
    }

    fn next_group(&self) -> Option<(u32, Generation)> {
        let [slot, generation] = self.spill.pop().or_else(|| self.inbox.pop())?;
        Some((slot as u32, Generation::from_raw(generation)))
    }

    /// Answers Invalid what a closed attachment's resolver will not be asked any more.
    fn refuse_pending(&self) {
        while let Some((slot, generation)) = self.next_group() {
            if let Some(words) = self.instance.records.read(slot, generation) {
                let last = Record::from_words(&words).last;
                self.instance.settle(slot, generation, &last, Code::Invalid);
                self.instance.say_ended();
            }
        }
    }

    /// Claims the right to begin a detach. False if somebody did before.
    pub(crate) fn begin_leaving(&self) -> bool {
        self.life.compare_exchange(LIVE, LEAVING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.life.load(Ordering::Acquire) == LIVE
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.life.load(Ordering::Acquire) == GONE
    }

    /// Lets go of the caller's data once the attachment is closed and nobody is inside, and says so.
    /// Sleepable context.
    pub(crate) fn finish(&self) {
        if !self.is_closed() {
            return;
        }
        if let Some(tenant) = self.instance.hub.attachments.empty(self.key) {
            drop(tenant);
            self.life.store(GONE, Ordering::Release);
            self.instance.hub.progressed();
        }
    }
}

/// A worker has what is owed to an attachment in its hands. On drop what is left gets its turn, also
/// after a resolver that panicked.
struct Visit<'a, P: Platform> {
    inner: &'a Arc<Inner<P>>,
    /// Units that are done.
    done: u32,
}

impl<P: Platform> Drop for Visit<'_, P> {
    fn drop(&mut self) {
        if self.inner.inbox.done(self.done) {
            self.inner.instance.hub.schedule(self.inner.clone());
        } else {
            // Also for a service turn that left last while the attachment was scheduled.
            self.inner.finish();
        }
    }
}

/// A worker is inside an attachment. Leaves on drop, so that a resolver that panics does not hang
/// the detach.
struct Inside<'a, P: Platform> {
    inner: &'a Inner<P>,
    tenant: Option<tenants::Inside<'a, Tenant<P>>>,
}

impl<P: Platform> Drop for Inside<'_, P> {
    fn drop(&mut self) {
        self.inner.instance.hub.resolver_runs(-1);
        let last = self.tenant.take().and_then(|tenant| tenant.leave(|_| ()));
        if last.is_some() {
            self.inner.finish();
        }
    }
}

/// A live attachment. Made only by a successful attach; linear.
///
/// Dropping it detaches it without waiting: a worker does the rest. Forgetting it leaks it and
/// frees nothing that a device can still reach. Stored inside its own caller data it is a cycle
/// whose drop never runs: keep its [`key`](Attachment::key) there instead.
#[must_use = "an attachment that is dropped is detached"]
pub struct Attachment<P: Platform> {
    inner: Arc<Inner<P>>,
}

impl<P: Platform> Attachment<P> {
    pub(crate) fn new(inner: Arc<Inner<P>>) -> Self {
        Attachment { inner }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner<P>> {
        &self.inner
    }

    /// Names the attachment without keeping it.
    pub fn key(&self) -> Key {
        self.inner.key
    }

    /// Where it is attached: the own id of the device that was named, and the PASID.
    pub fn at(&self) -> At {
        self.inner.at
    }

    /// Every place it stands for at the moment: each id of each member of the group, once. A device that
    /// [joins](crate::Iommu::add_device) the group is appended.
    pub fn places(&self) -> impl Iterator<Item = At> + use<P> {
        let roll = self.inner.roll();
        (0..).map_while(move |n| roll.places.get(n).copied())
    }

    /// Blocks the device, invalidates, drains, answers everything pending with Invalid, and frees
    /// the place for a new attach. Sleeps for hardware, never for a resolver. Cannot fail:
    /// hardware that is lost on the way is one of its outcomes ([`Detaching::lost`]).
    pub fn begin_detach(self, cx: &Sleep<'_>) -> Detaching<P> {
        let inner = self.inner.clone();
        let unfinished = Unfinished(Some(inner.clone()));
        inner.begin_leaving();
        if block_on(&inner.instance.hub, cx, detach(inner.clone())).is_ok() {
            unfinished.done();
        }
        Detaching::new(inner)
    }

    /// The step form of [`begin_detach`](Attachment::begin_detach).
    pub fn start_detach(self) -> Op<'static, Detaching<P>>
    where
        P: 'static,
    {
        Op::new(self.leaves())
    }

    /// Begun here, so that an operation which is dropped before its first step detaches too.
    pub(crate) fn leaves(self) -> impl Future<Output = Detaching<P>> + use<P> {
        let inner = self.inner.clone();
        inner.begin_leaving();
        let unfinished = Unfinished(Some(inner.clone()));
        async move {
            detach(inner.clone()).await;
            unfinished.done();
            Detaching::new(inner)
        }
    }
}

/// A detach that was given up half-way goes to the reaper, which begins again.
pub(crate) struct Unfinished<P: Platform>(pub(crate) Option<Arc<Inner<P>>>);

impl<P: Platform> Unfinished<P> {
    pub(crate) fn done(mut self) {
        self.0 = None;
    }
}

impl<P: Platform> Drop for Unfinished<P> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            inner.begin_leaving();
            let hub = inner.instance.hub.clone();
            hub.reap(inner);
        }
    }
}

impl<P: Platform> Drop for Attachment<P> {
    fn drop(&mut self) {
        // Who detached or replaced it has claimed that before.
        if self.inner.begin_leaving() {
            self.inner.instance.hub.reap(self.inner.clone());
        }
    }
}
