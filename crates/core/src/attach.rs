//! Making and replacing attachments.

use crate::{
    attachment::{Attachment, Inner, Unfinished},
    detach::{Detaching, drain, let_go, settle_rest},
    device::{DeviceInner, Holding},
    domain::{DomainInner, Kind},
    driver::{CacheTag, Change, HwLost, Incompatible, PrepareError},
    error::{AttachError, OutOfMemory},
    group::{NotSo, Token},
    ids::{At, DomainTag, Key, Pasid},
    op::hw,
    platform::{Platform, ShortLock},
    resolver::{Handler, Resolves},
    sources::Phase,
};
use alloc::{collections::VecDeque, sync::Arc};
use core::future::poll_fn;
use portcullis_pgtable::IoTable;
use portcullis_sync::atomic::Ordering;

/// What an attach is asked to do.
pub(crate) struct Wanted<P: Platform> {
    pub(crate) device: Arc<DeviceInner<P>>,
    pub(crate) domain: Arc<DomainInner<P>>,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) handler: Arc<dyn Handler<P>>,
    pub(crate) resolves: Resolves,
}

impl<P: Platform> Wanted<P> {
    fn at(&self) -> At {
        At { source: self.device.source, pasid: self.pasid }
    }

    /// Everything that can be said before anything changes.
    fn check(&self) -> Result<(), AttachError> {
        let (device, domain, at) = (&self.device, &self.domain, self.at());
        let instance = &device.instance;
        if !Arc::ptr_eq(&device.shared, &domain.shared) {
            return Err(AttachError::Foreign);
        }
        if instance.is_lost() {
            return Err(AttachError::Lost(HwLost));
        }
        if instance.is_quarantined(device.source) {
            return Err(AttachError::Quarantined(device.id));
        }
        if let Some(pasid) = self.pasid
            && !device.does_pasid(pasid)
        {
            return Err(AttachError::Pasid(device.id, pasid));
        }
        let unfit = |why| Err(AttachError::Incompatible { at, why });
        match &domain.kind {
            Kind::Blocked => {
                if self.pasid.is_none() && device.has_direct() {
                    return Err(AttachError::NotHitless(at));
                }
            }
            Kind::Identity if !instance.caps().identity => return unfit(Incompatible::NoIdentity),
            Kind::Identity => {}
            Kind::Table(t) => {
                if self.pasid.is_none() && domain.pasid_only {
                    return Err(AttachError::PasidOnly(at));
                }
                if let Err(why) = instance.driver().can_walk(&t.desc()) {
                    return unfit(why);
                }
            }
            Kind::Foreign(_) if self.pasid.is_none() && domain.pasid_only => {
                return Err(AttachError::PasidOnly(at));
            }
            Kind::Foreign(_) if self.pasid.is_none() && device.has_direct() => {
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

    /// Direct regions are mapped before the hardware sees the table, and stay when it is left.
    fn map_direct(&self) -> Result<(), AttachError> {
        let (Kind::Table(table), None) = (&self.domain.kind, self.pasid) else { return Ok(()) };
        for region in self.device.direct() {
            map_missing(&***table, region.start, region.len, region.prot)
                .map_err(|why| AttachError::Direct { start: region.start, why })?;
        }
        Ok(())
    }
}

/// Maps what is not mapped yet of a region, one to one: regions of several devices may overlap.
pub(crate) fn map_missing(
    table: &dyn IoTable,
    start: u64,
    len: u64,
    prot: portcullis_pgtable::Prot,
) -> Result<(), portcullis_pgtable::MapError> {
    use portcullis_pgtable::{MapError, Phys};
    let granule = 1u64 << table.desc().page_sizes.trailing_zeros().min(63);
    let end = start.checked_add(len).ok_or(MapError::InputRange {
        iova: start,
        len,
        bits: table.desc().input_bits,
    })?;
    let mut at = start;
    while at < end {
        match table.lookup(at) {
            Some(leaf) if leaf.phys == Phys(at) && leaf.prot.contains(prot) => {
                at = leaf.start.saturating_add(leaf.size)
            }
            Some(leaf) => return Err(MapError::AlreadyMapped { iova: at, phys: leaf.phys }),
            None => {
                table.map(at, Phys(at), granule, prot)?;
                at += granule;
            }
        }
    }
    Ok(())
}

/// Attaches. The device translates through the domain when this is done.
pub(crate) async fn attach<P: Platform>(wanted: Wanted<P>) -> Result<Attachment<P>, AttachError> {
    wanted.check()?;
    let at = wanted.at();
    let token = begin(&wanted, None).await?;
    wanted.map_direct()?;
    let made = Made::new(wanted, token, None).await?;
    let inner = made.inner.clone();
    let Some(target) = inner.target() else {
        return Ok(made.publish());
    };
    let (instance, device) = (&inner.instance, &inner.device);
    let (held, change) = match Holding::prepare(instance, at, target) {
        Ok(p) => p,
        Err(e) => return Err(made.undo(e.into()).await),
    };
    let gap = change == Change::ThroughBlocked;
    if gap && device.direct_only.is_some() && at.pasid.is_none() {
        return Err(made.undo(AttachError::NotHitless(at)).await);
    }
    if let Err(e) = made.show() {
        return Err(made.undo(e).await);
    }
    if gap {
        // An entry that an earlier life left there goes through blocked.
        drop(held);
        hw(instance, || instance.driver().block(at)).await?;
        device.install(at, target).await?;
    } else {
        device.install_prepared(at, target, Some(held)).await?;
    }
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
    wanted.check()?;
    let at = wanted.at();
    let token = begin(&wanted, Some(old.key)).await?;
    wanted.map_direct()?;
    let direct = wanted.pasid.is_none() && wanted.device.has_direct();
    let made = Made::new(wanted, token, Some(old)).await?;
    let inner = made.inner.clone();
    let (instance, device) = (&inner.instance, &inner.device);
    let target = inner.target();
    let (held, how) = match target.map(|t| Holding::prepare(instance, at, t)) {
        Some(Ok((held, Change::Hitless))) => (Some(held), Replaced::Hitless),
        Some(Ok((_, Change::ThroughBlocked))) | None => (None, Replaced::ThroughBlocked),
        Some(Err(e)) => return Err(made.undo(e.into()).await),
    };
    if how == Replaced::ThroughBlocked && (direct || gap == Gap::Refused) {
        return Err(made.undo(AttachError::NotHitless(at)).await);
    }
    if let Err(e) = made.show() {
        return Err(made.undo(e).await);
    }
    old.begin_leaving();
    old.gate.close();
    if how == Replaced::ThroughBlocked {
        hw(instance, || instance.driver().block(at)).await?;
        drain(instance, at).await?;
    }
    if let Some(target) = target {
        device.install_prepared(at, target, held).await?;
    }
    settle_rest(old).await;
    let_go(old, Ok(())).await;
    inner.replaces.with(Option::take);
    let made = made.publish();
    old.finish();
    Ok((made, Detaching::new(old.clone()), how))
}

async fn begin<P: Platform>(wanted: &Wanted<P>, from: Option<Key>) -> Result<Token<P>, AttachError> {
    poll_fn(|_| wanted.device.group.begin(wanted.pasid, from)).await.map_err(|e| match e {
        NotSo::Otherwise => AttachError::Occupied(wanted.at()),
        NotSo::NoRoom => AttachError::TooMany(wanted.device.id),
        NotSo::Removed => PrepareError::UnknownSource(wanted.device.source).into(),
    })
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
            self.inner.device.shared_slab().fill(self.inner.clone());
            token.finish(Some(self.inner.key));
            self.inner.replaces.with(|r| r.as_ref().map(|old| old.begin_leaving()));
            drop(Unfinished(Some(self.inner.clone())));
        }
    }
}

impl<P: Platform> Made<P> {
    /// Allocates everything that an attachment needs, the right to page requests included.
    async fn new(
        wanted: Wanted<P>,
        token: Token<P>,
        replaces: Option<&Arc<Inner<P>>>,
    ) -> Result<Made<P>, AttachError> {
        let at = wanted.at();
        let Wanted { device, domain, handler, resolves, .. } = wanted;
        let instance = device.instance.clone();
        let mut pending = VecDeque::new();
        if resolves != Resolves::Nothing {
            let most = instance.config().credits_per_device as usize;
            pending.try_reserve_exact(most).map_err(|_| OutOfMemory)?;
        }
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
        let inner = Arc::new(Inner::new(key, at, tag, device, domain, handler, resolves, pending));
        inner.replaces.with(|r| *r = replaces.cloned());
        let made = Made { inner, token: Some(token) };
        if resolves != Resolves::Nothing {
            if let Err(e) = made.inner.device.acquire_pri().await {
                return Err(made.undo(e).await);
            }
            made.inner.holds_pri.store(true, Ordering::Release);
        }
        Ok(made)
    }

    /// Publishes the cache tag for unmaps, then the attachment for the fault path. Both before
    /// the hardware can use the entry: an unmap must not miss it, and a request that comes at once
    /// waits for the resolver instead of being refused.
    fn show(&self) -> Result<(), AttachError> {
        let inner = &self.inner;
        let (instance, at) = (&inner.instance, inner.at);
        if let Some(tag) = inner.tag {
            let ats = instance.may_cache(at);
            inner.domain.publish(instance, CacheTag { tag, at, ats, nested: false })?;
        }
        if !instance.show(at, Phase::Attaching, inner) {
            inner.tag.iter().for_each(|tag| inner.domain.withdraw(instance, at, *tag));
            return Err(AttachError::TooMany(inner.device.id));
        }
        Ok(())
    }

    /// The hardware translates: the resolver may run.
    fn publish(mut self) -> Attachment<P> {
        // The key first: a resolver may use it before the caller has the attachment.
        self.inner.device.shared_slab().fill(self.inner.clone());
        self.inner.instance.show(self.inner.at, Phase::Attached, &self.inner);
        if let Some(token) = self.token.take() {
            token.finish(Some(self.inner.key));
        }
        self.inner.schedule_waiting();
        Attachment::new(self.inner.clone())
    }

    /// Takes back what was allocated; the hardware has seen nothing.
    async fn undo(mut self, why: AttachError) -> AttachError {
        let_go(&self.inner, Ok(())).await;
        drop(self.token.take());
        why
    }
}
