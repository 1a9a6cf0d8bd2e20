//! Enabling and disabling stalls for a domain: all that is attached to it, or nothing.

use super::{Seat, StallDecider, Vacate, switch::Switch};
use crate::{
    attachment::Inner,
    detach::by_deadline,
    device::DeviceInner,
    domain::{Domain, DomainInner},
    driver::HwLost,
    ids::{At, DeviceId, InstanceId, SourceId},
    instance::Instance,
    iommu::Iommu,
    op::{Op, block_on},
    owner::Stalls,
    platform::{Platform, ShortLock, Sleep},
    record::Record,
    turn::Code,
};
use alloc::sync::Arc;
use portcullis_sync::slot::Generation;

/// Why a domain does not stall, or a device cannot be attached to one that does. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StallError {
    /// A PCIe function: what it has written must arrive before a read of its registers is answered,
    /// so that a stalled write would stop the processor that reads them.
    #[error("{0} is a PCIe function, which must not stall")]
    Pci(DeviceId),
    /// Nobody said that the device may stall ([`Bus::Platform`](crate::Bus::Platform)).
    #[error("{0} is not known to bear stalls")]
    Device(DeviceId),
    /// Its instance holds no transactions.
    #[error("{0} has no stalls")]
    Instance(InstanceId),
    /// The driver cannot have transactions held there.
    #[error("{at} does not stall: {why}")]
    Place {
        /// Where.
        at: At,
        /// In the driver's words.
        why: &'static str,
    },
    /// The domain stalls already.
    #[error("the domain stalls already")]
    Already,
    /// The domain belongs to another [`Iommu`].
    #[error("the domain belongs to another IOMMU subsystem")]
    Foreign,
    /// The hardware is gone.
    #[error(transparent)]
    Lost(#[from] HwLost),
    /// The platform ends.
    #[error("the platform is shutting down")]
    Shutdown,
}

impl<P: Platform> Iommu<P> {
    /// Has transactions that fault in a domain held until `decider` has a verdict. When this
    /// returns, everything that is attached stalls; what is attached later does, or is refused.
    /// Nothing that a device does can undo that, but for too many stalls
    /// ([`Config::stall_limit`](crate::Config::stall_limit)), and that for a while. Sleeps for
    /// hardware.
    ///
    /// # Errors
    /// See [`StallError`], which names what cannot stall.
    pub fn enable_stall<O: Stalls>(
        &self,
        cx: &Sleep<'_>,
        domain: &Domain<P, O>,
        decider: StallDecider<P, O>,
    ) -> Result<Stalling<P>, StallError> {
        block_on(&self.shared.hub, cx, enable(self, domain, decider)).map_err(|_| StallError::Shutdown)?
    }

    /// The step form of [`enable_stall`](Iommu::enable_stall). Dropped unfinished, nothing stalls.
    pub fn start_enable_stall<'a, O: Stalls>(
        &'a self,
        domain: &'a Domain<P, O>,
        decider: StallDecider<P, O>,
    ) -> Op<'a, Result<Stalling<P>, StallError>> {
        Op::new(enable(self, domain, decider))
    }
}

/// A domain whose faulting transactions are held, as long as this lives. There is one for a domain.
///
/// Dropped, in whatever context, it terminates what is stalled, lets go of the decider there and
/// then, and has the next service turns switch the hardware. A resolver that runs meanwhile comes to
/// its end and decides nothing.
#[must_use = "the domain stalls as long as the guard lives"]
pub struct Stalling<P: Platform> {
    domain: Arc<DomainInner<P>>,
    seat: Arc<dyn Vacate>,
}

impl<P: Platform> Stalling<P> {
    /// Ends it, and returns when no attached device stalls any more. Sleeps for hardware. Where that
    /// is lost, or the platform ends, the transactions are ended as far as they can be.
    pub fn disable(self, cx: &Sleep<'_>) {
        let domain = self.domain.clone();
        drop(self);
        // Shut down, it is the drop's work that counts.
        let _ = block_on(&domain.shared.hub, cx, all_switched(&domain));
    }

    /// The step form of [`disable`](Stalling::disable). Ended by service turns where it is dropped.
    pub fn start_disable(self) -> Op<'static, ()>
    where
        P: 'static,
    {
        let domain = self.domain.clone();
        drop(self);
        Op::new(async move { all_switched(&domain).await })
    }
}

impl<P: Platform> Drop for Stalling<P> {
    fn drop(&mut self) {
        self.domain.set_stalls(false);
        // First: what is filed at this moment finds nobody to decide it, and what somebody was asked
        // about before is found below.
        self.seat.vacate();
        for instance in instances(&self.domain) {
            instance.end_stalls_in(&self.domain);
            instance.ask_for_stalls();
            instance.turn_soon();
        }
    }
}

async fn enable<P: Platform, O: Stalls>(
    iommu: &Iommu<P>,
    domain: &Domain<P, O>,
    decider: StallDecider<P, O>,
) -> Result<Stalling<P>, StallError> {
    let inner = &domain.inner;
    if !Arc::ptr_eq(&iommu.shared, &inner.shared) {
        return Err(StallError::Foreign);
    }
    // Before the hardware is asked anything.
    each_place(inner, |instance, _, attached| bears(instance, attached))?;
    if !inner.set_stalls(true) {
        return Err(StallError::Already);
    }
    let seat: Arc<Seat<P, O::Data>> = domain.seat.clone();
    seat.sit(decider);
    let stalling = Stalling { domain: inner.clone(), seat };
    // What was attached a moment ago has not seen that the domain stalls; what is attached from now
    // on looks for itself.
    let stands = match each_place(inner, |instance, _, attached| bears(instance, attached)) {
        Ok(()) => {
            all_switched(inner).await;
            each_place(inner, |instance, at, _| stands(instance, at))
        }
        refused => refused,
    };
    if let Err(why) = stands {
        drop(stalling);
        all_switched(inner).await;
        return Err(why);
    }
    Ok(stalling)
}

/// Whether a device may be attached to a domain that stalls.
pub(crate) fn may_stall<P: Platform>(device: &DeviceInner<P>) -> Result<(), StallError> {
    if device.instance.caps().stalls == 0 || device.instance.config().stalls == 0 {
        return Err(StallError::Instance(device.instance.id()));
    }
    device.spec.bus.may_stall(device.id)
}

fn bears<P: Platform>(instance: &Instance<P>, attached: &Inner<P>) -> Result<(), StallError> {
    if instance.is_lost() {
        return Err(HwLost.into());
    }
    attached.roll().devices.iter().try_for_each(|d| may_stall(d))
}

/// Whether a place did what its domain asks.
fn stands<P: Platform>(instance: &Instance<P>, at: At) -> Result<(), StallError> {
    match instance.stall_switch(at) {
        _ if instance.is_lost() => Err(HwLost.into()),
        Some(Switch::Refused(why)) => Err(StallError::Place { at, why }),
        _ => Ok(()),
    }
}

/// Waits until every place of an attachment stalls, or does not, as its domain asks.
pub(crate) async fn switched<P: Platform>(inner: &Inner<P>) -> Result<(), StallError> {
    all_stand(&inner.instance, &inner.roll().places).await
}

/// The same of some of them.
pub(crate) async fn all_stand<P: Platform>(
    instance: &Arc<Instance<P>>,
    places: &[At],
) -> Result<(), StallError> {
    for at in places {
        wait_for(instance, *at).await;
    }
    places.iter().try_for_each(|at| stands(instance, *at))
}

/// The same of everything that is attached to a domain.
async fn all_switched<P: Platform>(domain: &DomainInner<P>) {
    for instance in instances(domain) {
        let mut last = None;
        while let Some((at, _)) = instance.attached_to(domain, last) {
            wait_for(&instance, at).await;
            last = Some(at);
        }
    }
}

async fn wait_for<P: Platform>(instance: &Arc<Instance<P>>, at: At) {
    if !instance.is_switched(at) {
        instance.ask_for_stalls();
        by_deadline(instance, || instance.is_lost() || instance.is_switched(at)).await;
    }
}

fn instances<P: Platform>(domain: &DomainInner<P>) -> impl Iterator<Item = Arc<Instance<P>>> {
    (0..).map_while(|n| domain.shared.instances.nth(n))
}

fn each_place<P: Platform>(
    domain: &DomainInner<P>,
    mut f: impl FnMut(&Instance<P>, At, &Inner<P>) -> Result<(), StallError>,
) -> Result<(), StallError> {
    for instance in instances(domain) {
        let mut last = None;
        while let Some((at, inner)) = instance.attached_to(domain, last) {
            f(&instance, at, &inner)?;
            last = Some(at);
        }
    }
    Ok(())
}

impl<P: Platform> Instance<P> {
    /// The next place after `last` that is attached to a domain.
    fn attached_to(&self, domain: &DomainInner<P>, last: Option<At>) -> Option<(At, Arc<Inner<P>>)> {
        self.state.with(|s| {
            let after = last.map_or(SourceId(0), |at| at.source);
            s.sources.iter().filter(|src| src.id >= after).find_map(|src| {
                let places = src.slots.iter().map(|s| (At { source: src.id, pasid: s.pasid }, &s.inner));
                places
                    .filter(|(at, inner)| Some(*at) > last && core::ptr::eq(&*inner.domain, domain))
                    .min_by_key(|(at, _)| *at)
                    .map(|(at, inner)| (at, inner.clone()))
            })
        })
    }

    /// Visits the stalled transactions that are not resumed yet.
    pub(super) fn each_stall(&self, mut f: impl FnMut(u32, Generation, &Record)) {
        self.each_live(|slot, generation, _, record| {
            if self.is_stall(slot) {
                f(slot, generation, record);
            }
        });
    }

    /// Terminates what is stalled in a domain.
    fn end_stalls_in(&self, domain: &DomainInner<P>) {
        self.each_stall(|slot, generation, r| {
            let inside = r.owner.and_then(|key| self.hub.attachments.enter(key));
            let of_it = inside.as_ref().is_some_and(|t| core::ptr::eq(&*t.inner.domain, domain));
            inside.into_iter().for_each(crate::slab::leave);
            if of_it {
                self.settle(slot, generation, &r.last, Code::Invalid);
            }
        });
        self.say_ended();
    }

    /// Terminates what a requester has stalled, and offers what is decided. True when nothing is
    /// left.
    pub(crate) fn end_stalls_of(&self, source: SourceId) -> bool {
        let mut left = false;
        self.each_stall(|slot, generation, r| {
            if r.last.source == source {
                self.settle(slot, generation, &r.last, Code::Invalid);
                left |= !self.offer(slot, generation, &r.last);
            }
        });
        self.say_ended();
        !left
    }

    /// What a requester had stalled has ended: nothing of it is resumed.
    pub(super) fn void_stalls_of(&self, source: SourceId) {
        self.each_stall(|slot, generation, r| {
            if let (true, Some(word)) = (r.last.source == source, self.records.word(slot)) {
                word.void(generation);
            }
        });
        self.say_ended();
    }
}
