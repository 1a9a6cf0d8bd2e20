//! Making and replacing attachments: of a whole group at a time, as a transaction. Everything is
//! prepared before anything is shown; a preparation that fails leaves the group as it was.

use crate::{
    attachment::{Attachment, Inner, Parts, Unfinished},
    detach::{Detaching, drain, let_go, settle_rest},
    device::{Device, DeviceInner},
    domain::{DomainInner, Kind},
    driver::{CacheTag, Change, HwLost, Incompatible, Target},
    entry::Holding,
    error::{AttachError, OutOfMemory},
    fault::Reason,
    group::{Going, NotSo, Plan, Token},
    ids::{At, DomainTag, Key, Pasid},
    instance::Instance,
    pins::pin,
    platform::{Platform, ShortLock},
    resolver::{Handler, Resolves},
    roll::Roll,
    sources::Phase,
    stall::{StallHandler, may_stall, switched},
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::future::poll_fn;
use portcullis_sync::{atomic::Ordering, inbox::Inbox};

/// What an attach is asked to do.
pub(crate) struct Wanted<P: Platform> {
    pub(crate) device: Device<P>,
    pub(crate) domain: Arc<DomainInner<P>>,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) handler: Box<dyn Handler<P>>,
    pub(crate) resolves: Resolves,
    pub(crate) stalls: Option<Arc<dyn StallHandler<P>>>,
}

impl<P: Platform> Wanted<P> {
    /// The right to change the place, and who takes part in that.
    async fn begin(&self, from: Option<Key>) -> Result<(Token<P>, Plan<P>), AttachError> {
        let device = self.device.member.up()?;
        if !Arc::ptr_eq(&device.shared, &self.domain.shared) {
            return Err(AttachError::Foreign);
        }
        let group = &self.device.group;
        let begun = poll_fn(|_| group.begin(self.pasid, from, Going::In)).await;
        let token = begun.map_err(|e| match e {
            NotSo::Otherwise => AttachError::Occupied(At { source: device.source, pasid: self.pasid }),
            NotSo::NoRoom => AttachError::TooMany(device.id),
            NotSo::Parked(device) => AttachError::Parked(device),
        })?;
        // Looked at again: it may have gone before the place was ours.
        self.device.member.up()?;
        if !group.lets(self.device.owner) {
            return Err(AttachError::NotOwner(group.id));
        }
        let plan = group.plan(device.id, self.pasid)?;
        let (domain, handle) = (&self.domain, &self.device);
        plan.roll.devices.iter().try_for_each(|d| fits(domain, self.pasid, handle, d))?;
        Ok((token, plan))
    }
}

/// Everything that can be said of a member before anything changes. `handle` is whose attachment it is.
pub(crate) fn fits<P: Platform>(
    domain: &DomainInner<P>,
    pasid: Option<Pasid>,
    handle: &Device<P>,
    device: &DeviceInner<P>,
) -> Result<(), AttachError> {
    let instance = &device.instance;
    let at = At { source: device.source, pasid };
    if instance.is_lost() {
        return Err(AttachError::Lost(HwLost));
    }
    if device.is_quarantined() {
        return Err(AttachError::Quarantined(device.id));
    }
    if domain.stalls() {
        may_stall(device)?;
    }
    let unfit = |why| Err(AttachError::Incompatible { device: device.id, at, why });
    if let Err(why) = device.meets(domain.coherence) {
        return unfit(why);
    }
    match &domain.kind {
        Kind::Blocked => {
            if pasid.is_none() && handle.keeps_direct(&device.spec) {
                return Err(AttachError::NotHitless(at));
            }
        }
        Kind::Identity if !instance.caps().identity => return unfit(Incompatible::NoIdentity),
        Kind::Identity => {}
        Kind::Table(t) => {
            if pasid.is_none() && domain.pasid_only {
                return Err(AttachError::PasidOnly(at));
            }
            if let Err(why) = instance.driver().can_walk(&t.desc()) {
                return unfit(why);
            }
            if let Some(region) = domain.lacks(device.regions()) {
                return unfit(Incompatible::Open(region));
            }
        }
        Kind::Foreign(_) if pasid.is_none() && domain.pasid_only => {
            return Err(AttachError::PasidOnly(at));
        }
        Kind::Foreign(_) if pasid.is_none() && handle.keeps_direct(&device.spec) => {
            return unfit(Incompatible::Other("nobody can map the device's direct regions there"));
        }
        Kind::Foreign(f) => {
            if let Err(why) = f.fits(instance.driver()) {
                return unfit(why);
            }
        }
    }
    Ok(())
}

/// Attaches. Every member translates through the domain when this is done.
pub(crate) async fn attach<P: Platform>(wanted: Wanted<P>) -> Result<Attachment<P>, AttachError> {
    let (token, plan) = wanted.begin(None).await?;
    let made = Made::new(wanted, plan, token, None).await?;
    let inner = made.inner.clone();
    let (held, change) = match prepare_all(&inner.instance, inner.target(), &inner.roll().places) {
        Ok(prepared) => prepared,
        Err(e) => return Err(made.undo(e).await),
    };
    let gap = change == Change::ThroughBlocked;
    if gap && inner.has_direct() {
        return Err(made.undo(AttachError::NotHitless(inner.at)).await);
    }
    let made = made.shown().await?;
    let shown = show_all(&inner, &inner.roll().places, held, gap).await;
    lost_half_way(&inner, shown)?;
    Ok(made.publish())
}

/// How a replacement looked to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The old translation, then the new one, nothing between.
    Hitless,
    /// The old translation, then nothing, then the new one.
    ThroughBlocked,
}

/// Whether a replacement may leave the device without any translation for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// It may: where the hardware cannot go from one to the other at once, it goes through blocked.
    Allowed,
    /// It may not: where it would have to, the replacement is refused.
    Refused,
}

/// Replaces what is attached. `old` has been claimed by its owner's hand.
pub(crate) async fn replace<P: Platform>(
    old: &Arc<Inner<P>>,
    wanted: Wanted<P>,
    gap: Gap,
) -> Result<(Attachment<P>, Detaching<P>, Replaced), AttachError> {
    let (token, plan) = wanted.begin(Some(old.key)).await?;
    let made = Made::new(wanted, plan, token, Some(old)).await?;
    let inner = made.inner.clone();
    let (held, how) = match prepare_all(&inner.instance, inner.target(), &inner.roll().places) {
        Ok((held, Change::Hitless)) => (held, Replaced::Hitless),
        Ok((held, Change::ThroughBlocked)) => (held, Replaced::ThroughBlocked),
        Err(e) => return Err(made.undo(e).await),
    };
    if how == Replaced::ThroughBlocked && (inner.has_direct() || gap == Gap::Refused) {
        return Err(made.undo(AttachError::NotHitless(inner.at)).await);
    }
    let made = made.shown().await?;
    old.begin_leaving();
    old.close();
    let gap = how == Replaced::ThroughBlocked;
    let shown = show_all(&inner, &inner.roll().places, held, gap).await;
    lost_half_way(&inner, shown)?;
    settle_rest(old).await;
    let_go(old, Ok(())).await;
    inner.replaces.with(Option::take);
    let made = made.publish();
    old.finish();
    Ok((made, Detaching::new(old.clone()), how))
}

/// Prepares the entry of every place, and says how the change will look to the device that sees
/// most of it. Nothing to prepare where nothing will pass.
pub(crate) fn prepare_all<'a, P: Platform>(
    instance: &'a Instance<P>,
    target: Option<Target>,
    places: &[At],
) -> Result<(Vec<Holding<'a, P>>, Change), AttachError> {
    let Some(target) = target else { return Ok((Vec::new(), Change::ThroughBlocked)) };
    let (mut held, mut change) = (Vec::new(), Change::Hitless);
    held.try_reserve_exact(places.len()).map_err(|_| OutOfMemory)?;
    for at in places {
        let (holding, how) = Holding::prepare(instance, *at, target)?;
        held.push(holding);
        if how == Change::ThroughBlocked {
            change = how;
        }
    }
    Ok((held, change))
}

/// Shows every place what was prepared for it: at once, or when nothing of what was there before is
/// left.
pub(crate) async fn show_all<P: Platform>(
    inner: &Inner<P>,
    places: &[At],
    held: Vec<Holding<'_, P>>,
    gap: bool,
) -> Result<(), HwLost> {
    if gap {
        // An entry that an earlier life left there goes the same way.
        drop(held);
        return through_blocked(inner, places).await;
    }
    let Some(target) = inner.target() else { return Ok(()) };
    for (at, holding) in places.iter().zip(held) {
        inner.instance.install(*at, target, Some(holding)).await?;
    }
    Ok(())
}

/// Blocks every place, and shows it the new translation when nothing of the old one is left.
async fn through_blocked<P: Platform>(inner: &Inner<P>, places: &[At]) -> Result<(), HwLost> {
    let instance = &inner.instance;
    for at in places {
        instance.switch(*at, None).await?;
    }
    for at in places {
        drain(instance, *at).await?;
    }
    if let Some(target) = inner.target() {
        for at in places {
            instance.switch(*at, Some(target)).await?;
        }
    }
    Ok(())
}

/// Hardware that is lost between the first member and the last leaves nobody knowing what each
/// translates through: the whole group is quarantined.
fn lost_half_way<P: Platform>(inner: &Inner<P>, shown: Result<(), HwLost>) -> Result<(), AttachError> {
    if shown.is_err() {
        quarantine(inner, &inner.roll().places);
    }
    Ok(shown?)
}

pub(crate) fn quarantine<P: Platform>(inner: &Inner<P>, places: &[At]) {
    places.iter().for_each(|at| inner.instance.quarantine(at.source, Reason::Hardware));
}

/// An attachment that the hardware may not know yet. Dropped on the way (the hardware was lost, the
/// operation was given up), it goes to the reaper, which detaches it as it would any other.
struct Made<P: Platform> {
    inner: Arc<Inner<P>>,
    token: Option<Token<P>>,
}

impl<P: Platform> Drop for Made<P> {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.inner.device.shared_slab().fill(&self.inner);
            token.finish(Some(self.inner.key));
            self.inner.replaces.with(|r| r.as_ref().map(|old| old.begin_leaving()));
            drop(Unfinished(Some(self.inner.clone())));
        }
    }
}

impl<P: Platform> Made<P> {
    /// Allocates everything that an attachment needs, the right to page requests and the direct
    /// regions in the domain included.
    async fn new(
        wanted: Wanted<P>,
        plan: Plan<P>,
        token: Token<P>,
        replaces: Option<&Arc<Inner<P>>>,
    ) -> Result<Made<P>, AttachError> {
        let Plan { instance, roll } = plan;
        let most = room_for(&instance, wanted.resolves, wanted.stalls.is_some(), &roll);
        let inbox = Inbox::new(most).map_err(|_| OutOfMemory)?;
        let Wanted { device: named, domain, pasid, handler, resolves, stalls } = wanted;
        let device = named.member.up()?;
        let key = device.shared_slab().reserve().ok_or(AttachError::TooMany(device.id))?;
        let tag: Result<Option<DomainTag>, AttachError> = match &domain.kind {
            Kind::Blocked => Ok(None),
            _ => match domain.acquire_tag(&instance) {
                Ok(Some(tag)) => Ok(Some(tag)),
                Ok(None) => Err(AttachError::NoTag(instance.id())),
                Err(e) => Err(e.into()),
            },
        };
        let tag = tag.inspect_err(|_| device.shared_slab().free(key))?;
        domain.count_attachment(true);
        let at = At { source: device.source, pasid };
        let parts = Parts { key, at, roll, tag, named, device, domain, handler, resolves, stalls, inbox };
        let inner = Arc::new(Inner::new(parts));
        inner.replaces.with(|r| *r = replaces.cloned());
        let made = Made { inner, token: Some(token) };
        match made.acquire().await {
            Ok(()) => Ok(made),
            Err(e) => Err(made.undo(e).await),
        }
    }

    async fn acquire(&self) -> Result<(), AttachError> {
        let (inner, roll) = (&self.inner, self.inner.roll());
        if inner.resolves() {
            for (n, device) in roll.devices.iter().enumerate() {
                device.acquire_pri().await?;
                inner.holds_pri.store(n + 1, Ordering::Release);
            }
        }
        if inner.at.pasid.is_none() {
            // Before the hardware sees the table.
            pin(&inner.domain, roll.direct(&inner.named))
                .await
                .map_err(|e| AttachError::Direct { start: e.start, why: e.why })?;
            inner.pinned.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Shows it to everybody but the hardware, and has the places stall, or not, as the domain asks:
    /// before anything translates through it.
    async fn shown(self) -> Result<Self, AttachError> {
        if let Err(e) = self.show() {
            return Err(self.unshow(e).await);
        }
        if self.inner.domain.stalls()
            && let Some(Err(e)) = self.inner.roll().devices.iter().map(|d| may_stall(d)).find(Result::is_err)
        {
            // The domain began to stall while this was being prepared.
            return Err(self.unshow(e.into()).await);
        }
        match switched(&self.inner).await {
            Ok(()) => Ok(self),
            Err(e) => Err(self.unshow(e.into()).await),
        }
    }

    /// Takes back what was shown. What came for it meanwhile belongs to nobody, and the places stall
    /// as what is there again wants.
    async fn unshow(self, why: AttachError) -> AttachError {
        self.inner.close();
        let _ = switched(&self.inner).await;
        self.hide();
        let _ = switched(&self.inner).await;
        settle_rest(&self.inner).await;
        self.undo(why).await
    }

    /// Publishes the cache tags for unmaps, then the attachment for the fault path. Both before
    /// the hardware can use an entry: an unmap must not miss it, and a request that comes at once
    /// waits for the resolver instead of being refused.
    fn show(&self) -> Result<(), AttachError> {
        let roll = self.inner.roll();
        publish(&self.inner, &roll.places)?;
        show(&self.inner, &roll.places)
    }

    /// Puts the fault path back to what it was.
    fn hide(&self) {
        let inner = &self.inner;
        let old = inner.replaces.with(|r| r.clone());
        for at in &inner.roll().places {
            match &old {
                Some(old) => drop(inner.instance.show(*at, Phase::Attached, old)),
                None => inner.instance.hide(*at, inner.key),
            }
        }
    }

    /// The hardware translates: the resolver may run.
    fn publish(mut self) -> Attachment<P> {
        // The key first: a resolver may use it before the caller has the attachment.
        self.inner.device.shared_slab().fill(&self.inner);
        for at in &self.inner.roll().places {
            self.inner.instance.show(*at, Phase::Attached, &self.inner);
        }
        if let Some(token) = self.token.take() {
            token.finish(Some(self.inner.key));
        }
        self.inner.schedule_waiting();
        Attachment::new(self.inner.clone())
    }

    /// Takes back what was allocated; the hardware has seen nothing.
    async fn undo(mut self, why: AttachError) -> AttachError {
        let_go(&self.inner, Ok(())).await;
        self.inner.finish();
        drop(self.token.take());
        why
    }
}

/// How many groups and stalled transactions may wait for an attachment's handlers.
pub(crate) fn room_for<P: Platform>(
    instance: &Instance<P>,
    resolves: Resolves,
    stalls: bool,
    roll: &Roll<P>,
) -> usize {
    let config = instance.config();
    let groups = match resolves {
        Resolves::Sleeping => config.credits_per_device,
        Resolves::Immediately | Resolves::Nothing => 0,
    };
    let stalls = if stalls { config.stalls_per_device } else { 0 };
    let times = |n: u32, of: usize| (n as usize).saturating_mul(of);
    times(groups, roll.devices.len()).saturating_add(times(stalls, roll.places.len()))
}

/// Publishes the cache tag of more places.
pub(crate) fn publish<P: Platform>(inner: &Inner<P>, places: &[At]) -> Result<(), OutOfMemory> {
    for at in places {
        if let Some(tag) = inner.tag {
            let ats = inner.instance.may_cache(*at);
            inner.domain.publish(&inner.instance, CacheTag { tag, at: *at, ats, nested: false })?;
            inner.published.fetch_add(1, Ordering::AcqRel);
        }
    }
    Ok(())
}

/// Shows the attachment to the fault path at some places.
pub(crate) fn show<P: Platform>(inner: &Arc<Inner<P>>, places: &[At]) -> Result<(), AttachError> {
    for at in places {
        if !inner.instance.show(*at, Phase::Attaching, inner) {
            return Err(AttachError::TooMany(inner.device.id));
        }
    }
    Ok(())
}
