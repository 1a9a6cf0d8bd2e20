//! Where a group's requester ids go while nothing is attached: nowhere, or to what the group's
//! direct regions need.

use crate::{
    domain::{DomainInner, Kind},
    driver::{CacheTag, HwLost, TableRequest, Target},
    error::{AddDeviceError, OutOfMemory},
    group::Group,
    ids::{At, DomainTag, SourceId},
    instance::Instance,
    iommu::Shared,
    member::Member,
    pins::{pin, unpin},
    platform::{Platform, ShortLock},
};
use alloc::sync::Arc;
use portcullis_sync::atomic::{AtomicBool, Ordering};

/// A domain of the core's own, with a tag on the instance that uses it. Unless the hardware was
/// told to let go of it, it is kept for ever.
pub(crate) struct Use<P: Platform> {
    pub(crate) domain: Arc<DomainInner<P>>,
    tag: DomainTag,
    instance: Arc<Instance<P>>,
    free: AtomicBool,
}

impl<P: Platform> Use<P> {
    fn new(domain: Arc<DomainInner<P>>, instance: &Arc<Instance<P>>) -> Result<Use<P>, AddDeviceError> {
        let tag = domain.acquire_tag(instance)?.ok_or(AddDeviceError::TooMany(instance.id()))?;
        Ok(Use { domain, tag, instance: instance.clone(), free: AtomicBool::new(true) })
    }

    pub(crate) fn target(&self) -> Option<Target> {
        self.domain.target(self.tag)
    }

    /// A requester may go there from now on: what is taken out of the domain is invalidated there.
    fn admit(&self, source: SourceId) -> Result<(), OutOfMemory> {
        let at = At { source, pasid: None };
        let ats = self.instance.may_cache(at);
        self.domain.publish(&self.instance, CacheTag { tag: self.tag, at, ats, nested: false })
    }

    fn dismiss(&self, source: SourceId) {
        self.domain.withdraw(&self.instance, At { source, pasid: None }, self.tag);
    }
}

impl<P: Platform> Drop for Use<P> {
    fn drop(&mut self) {
        match self.free.load(Ordering::Acquire) {
            true => self.domain.release_tag(&self.instance),
            false => self.domain.keep_for_ever(),
        }
    }
}

/// A group's places to rest.
pub(crate) struct Rest<P: Platform> {
    /// Maps exactly the direct regions of the members that are up.
    direct: Option<Arc<Use<P>>>,
}

impl<P: Platform> Default for Rest<P> {
    fn default() -> Self {
        Rest { direct: None }
    }
}

impl<P: Platform> Group<P> {
    /// Where a requester id goes while nothing is attached; `None`: it is blocked.
    pub(crate) fn rest_of(&self, at: At) -> Option<Target> {
        match at.pasid {
            Some(_) => None,
            None => self.direct_of(at.source),
        }
    }

    /// What a requester id needs while it is cut off from all else.
    pub(crate) fn direct_of(&self, source: SourceId) -> Option<Target> {
        let direct = self.rest.with(|r| r.direct.clone())?;
        let needs = |m: &Member<P>| m.rests() && m.spec.sources().contains(&source);
        self.members().any(|m| needs(&m)).then(|| direct.target())?
    }

    /// Makes room for a member's direct regions where the group rests. All or nothing.
    pub(crate) async fn admit_direct(
        &self,
        shared: &Arc<Shared<P>>,
        instance: &Arc<Instance<P>>,
        member: &Member<P>,
    ) -> Result<(), AddDeviceError> {
        if !member.spec.has_direct() {
            return Ok(());
        }
        let old = self.rest.with(|r| r.direct.clone());
        let direct = match old {
            Some(direct) => direct,
            None => Arc::new(Use::new(own_table(shared, instance)?, instance)?),
        };
        pin(&direct.domain, member.spec.direct())
            .await
            .map_err(|e| AddDeviceError::Direct { start: e.start, why: e.why })?;
        // From here on it is taken back by who dismisses the member.
        member.direct.pinned.store(true, Ordering::Release);
        member.direct.is_there.store(true, Ordering::Release);
        self.rest.with(|r| r.direct = Some(direct.clone()));
        for source in member.spec.sources() {
            if let Err(e) = direct.admit(*source) {
                // Nothing was shown to the hardware; what fails to be taken out is kept.
                let _ = self.dismiss_direct(member).await;
                return Err(e.into());
            }
        }
        direct.free.store(false, Ordering::Release);
        Ok(())
    }

    /// Forgets a member's direct regions, after its requester ids were cut off. May be given up and begun
    /// again until it is done.
    pub(crate) async fn dismiss_direct(&self, member: &Member<P>) -> Result<(), HwLost> {
        if !member.rests() {
            return Ok(());
        }
        let Some(direct) = self.rest.with(|r| r.direct.clone()) else { return Ok(()) };
        unpin(&direct.domain, member.spec.direct(), &member.direct.pinned).await?;
        let other = |m: &Member<P>| m.id() != member.id() && m.rests();
        for source in member.spec.sources() {
            if !self.members().any(|m| other(&m) && m.spec.sources().contains(source)) {
                direct.dismiss(*source);
            }
        }
        if !self.members().any(|m| other(&m)) {
            direct.free.store(true, Ordering::Release);
            let gone = self.rest.with(|r| r.direct.take());
            drop(gone);
        }
        member.direct.is_there.store(false, Ordering::Release);
        Ok(())
    }
}

/// A domain that nobody owns, with nothing mapped. The second stage where there is one, but not
/// every unit has it.
fn own_table<P: Platform>(
    shared: &Arc<Shared<P>>,
    instance: &Arc<Instance<P>>,
) -> Result<Arc<DomainInner<P>>, AddDeviceError> {
    let table = instance.driver().new_table(TableRequest::default())?;
    Ok(Arc::new(DomainInner::new(shared, Kind::Table(table), false)?))
}
