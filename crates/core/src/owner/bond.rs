//! Bonds of devices to an address space: counted for each group of devices, one attachment behind them,
//! since what is attached to one member is attached to all.

use super::sva::{AddressSpace, Sva};
use crate::{
    attach::attach,
    attachment::{Attachment, Inner},
    detach::{Detaching, look_again},
    device::Device,
    domain::{Domain, DomainInner, Kind},
    driver::HwLost,
    error::{AttachError, BindError, OutOfMemory},
    group::{Going, Group},
    hub::Hub,
    ids::Pasid,
    iommu::Iommu,
    op::{Op, block_on, hw},
    platform::{Platform, ShortLock, Sleep},
};
use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{future::poll_fn, task::Poll};

/// Who is bound to an address space.
pub(crate) struct Bonds<P: Platform> {
    pasid: Pasid,
    state: P::Lock<State<P>>,
    hub: Arc<Hub<P>>,
}

struct State<P: Platform> {
    exited: bool,
    bound: Vec<Bound<P>>,
}

/// One group of devices. Named weakly: one that was bound once does not keep its members.
struct Bound<P: Platform> {
    group: Weak<Group<P>>,
    how: How<P>,
}

enum How<P: Platform> {
    /// Somebody attaches it now.
    Making,
    /// With so many bonds.
    Made { attachment: Attachment<P>, bonds: usize },
    /// The last bond is gone, and this attachment is on its way out. Until that is over the hardware may
    /// use it.
    Leaving(Weak<Inner<P>>),
}

/// What a bind has to do.
enum Turn<P: Platform> {
    /// Nothing: it is counted.
    Counted,
    /// Attach, after this attachment if it is still there.
    Attach(Option<Weak<Inner<P>>>),
}

impl<P: Platform> Bonds<P> {
    pub(crate) fn new(hub: &Arc<Hub<P>>, pasid: Pasid) -> Result<Self, OutOfMemory> {
        let mut bound = Vec::new();
        bound.try_reserve_exact(hub.config.devices).map_err(|_| OutOfMemory)?;
        let state = hub.platform.lock(State { exited: false, bound });
        Ok(Bonds { pasid, state, hub: hub.clone() })
    }

    pub(crate) fn pasid(&self) -> Pasid {
        self.pasid
    }

    /// Counts one bond more, or takes the turn to attach. Pending while somebody else does.
    fn turn(&self, device: &Device<P>) -> Poll<Result<Turn<P>, BindError>> {
        let group = &device.group;
        let (turn, gone) = self.state.with(|s| {
            if s.exited {
                return (Poll::Ready(Err(BindError::Exited)), None);
            }
            let Some(b) = s.find(group) else {
                let gone = s.make_room();
                if s.bound.len() == s.bound.capacity() {
                    return (Poll::Ready(Err(AttachError::TooMany(device.id()).into())), gone);
                }
                s.bound.push(Bound { group: Arc::downgrade(group), how: How::Making });
                return (Poll::Ready(Ok(Turn::Attach(None))), gone);
            };
            let turn = match &mut b.how {
                How::Making => return (Poll::Pending, None),
                How::Made { bonds, .. } => {
                    *bonds += 1;
                    Turn::Counted
                }
                How::Leaving(inner) => Turn::Attach(Some(inner.clone())),
            };
            if let Turn::Attach(_) = turn {
                b.how = How::Making;
            }
            (Poll::Ready(Ok(turn)), None)
        });
        drop(gone);
        turn
    }

    /// What the group is attached by is `attachment` now. It comes back if the address space has
    /// exited meanwhile.
    fn made(&self, group: &Arc<Group<P>>, attachment: Attachment<P>) -> Result<(), Attachment<P>> {
        let back = self.state.with(|s| {
            let exited = s.exited;
            match s.find(group) {
                Some(b) if !exited => {
                    b.how = How::Made { attachment, bonds: 1 };
                    None
                }
                Some(b) => {
                    b.how = How::Leaving(Arc::downgrade(attachment.inner()));
                    Some(attachment)
                }
                None => Some(attachment),
            }
        });
        self.hub.progressed();
        back.map_or(Ok(()), Err)
    }

    /// One bond less. The attachment, if it was the last.
    fn less(&self, group: &Arc<Group<P>>) -> Option<Attachment<P>> {
        self.state.with(|s| {
            let b = s.find(group)?;
            match &mut b.how {
                How::Made { attachment, bonds: 1 } => {
                    let leaving = How::Leaving(Arc::downgrade(attachment.inner()));
                    match core::mem::replace(&mut b.how, leaving) {
                        How::Made { attachment, .. } => Some(attachment),
                        How::Making | How::Leaving(_) => None,
                    }
                }
                How::Made { bonds, .. } => {
                    *bonds -= 1;
                    None
                }
                How::Making | How::Leaving(_) => None,
            }
        })
    }

    /// Silences every device that is bound, and lets none be bound from here on.
    pub(crate) async fn exit(&self, domain: &DomainInner<P>) -> Result<(), HwLost> {
        self.state.with(|s| s.exited = true);
        if let Kind::Foreign(foreign) = &domain.kind {
            foreign.end();
        }
        let settled = || self.state.with(|s| !s.bound.iter().any(|b| matches!(b.how, How::Making)));
        poll_fn(|_| if settled() { Poll::Ready(()) } else { Poll::Pending }).await;
        let mut n = 0;
        while let Some(inner) = self.nth(n) {
            n += 1;
            if let Some(inner) = inner {
                silence(&inner).await?;
            }
        }
        Ok(())
    }

    /// The attachment of the `n`th group, if it has one. Once nothing is bound any more, none
    /// changes its place.
    fn nth(&self, n: usize) -> Option<Option<Arc<Inner<P>>>> {
        self.state.with(|s| {
            Some(match &s.bound.get(n)?.how {
                How::Made { attachment, .. } => Some(attachment.inner().clone()),
                How::Leaving(inner) => inner.upgrade(),
                How::Making => None,
            })
        })
    }
}

impl<P: Platform> Bound<P> {
    fn is_of(&self, group: &Arc<Group<P>>) -> bool {
        core::ptr::eq(self.group.as_ptr(), Arc::as_ptr(group))
    }
}

impl<P: Platform> State<P> {
    fn find(&mut self, group: &Arc<Group<P>>) -> Option<&mut Bound<P>> {
        self.bound.iter_mut().find(|b| b.is_of(group))
    }

    /// Where there is no room, one that was bound once is forgotten.
    fn make_room(&mut self) -> Option<Bound<P>> {
        if self.bound.len() < self.bound.capacity() {
            return None;
        }
        let i = self.bound.iter().position(|b| matches!(b.how, How::Leaving(_)))?;
        Some(self.bound.swap_remove(i))
    }
}

/// Stops what a device does through an attachment without a record for each access. Nothing else
/// happens at its place meanwhile.
async fn silence<P: Platform>(inner: &Arc<Inner<P>>) -> Result<(), HwLost> {
    let (instance, group) = (&inner.instance, &inner.named.group);
    let Ok(token) = poll_fn(|_| group.begin(inner.at.pasid, Some(inner.key), Going::Out)).await else {
        // It is detached.
        return Ok(());
    };
    for at in &inner.roll().places {
        hw(instance, || instance.driver().silence(*at)).await?;
    }
    token.finish(Some(inner.key));
    Ok(())
}

/// A turn to attach; given back on drop.
struct Making<'a, P: Platform> {
    bonds: &'a Bonds<P>,
    group: &'a Arc<Group<P>>,
    earlier: Option<Weak<Inner<P>>>,
    done: bool,
}

impl<P: Platform> Drop for Making<'_, P> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let gone = self.bonds.state.with(|s| {
            let i = s.bound.iter().position(|b| b.is_of(self.group))?;
            if let Some(inner) = self.earlier.take() {
                s.bound[i].how = How::Leaving(inner);
                return None;
            }
            Some(s.bound.swap_remove(i))
        });
        drop(gone);
        self.bonds.hub.progressed();
    }
}

/// A device's right to an address space. The device, and with it its group, stays bound until the last
/// bond of any member is given back: by [`unbind`](Bond::unbind), or dropped, and then a worker does the
/// rest.
#[must_use = "a bond that is dropped is given back"]
pub struct Bond<P: Platform> {
    bonds: Arc<Bonds<P>>,
    group: Arc<Group<P>>,
    given_back: bool,
}

impl<P: Platform> Bond<P> {
    /// The PASID that the device puts on its requests.
    pub fn pasid(&self) -> Pasid {
        self.bonds.pasid
    }

    /// Gives the bond back. With the last of the device's group the attachment ends: the device is
    /// stopped, drained, and everything pending answered Invalid. Sleeps for hardware, never for a fault
    /// that is being handled.
    ///
    /// `None` while the device, or another that cannot be told from it, has another bond.
    pub fn unbind(mut self, cx: &Sleep<'_>) -> Option<Detaching<P>> {
        self.given_back = true;
        Some(self.bonds.less(&self.group)?.begin_detach(cx))
    }

    /// The step form of [`unbind`](Bond::unbind). `None` while there is another bond.
    pub fn start_unbind(mut self) -> Option<Op<'static, Detaching<P>>>
    where
        P: 'static,
    {
        self.given_back = true;
        Some(self.bonds.less(&self.group)?.start_detach())
    }
}

impl<P: Platform> Drop for Bond<P> {
    fn drop(&mut self) {
        if !self.given_back {
            drop(self.bonds.less(&self.group));
        }
    }
}

impl<P: Platform, A: AddressSpace> Domain<P, Sva<A>> {
    /// Binds a device to the address space: requests that it makes with the PASID translate as the
    /// CPU does, and page requests are taken to [`AddressSpace::fault`]. Any number of devices, of any
    /// instances, can be bound, each as often as it likes: all use the one PASID, and those of an
    /// instance the one tag. A device without page requests can be bound too; it has to know by itself
    /// what is there. Sleeps for hardware.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(&self, cx: &Sleep<'_>, device: &Device<P>) -> Result<Bond<P>, BindError> {
        let bound = block_on(&self.inner.shared.hub, cx, bind(self.clone(), device.clone()));
        bound.map_err(|_| AttachError::Shutdown)?
    }

    /// The step form of [`bind`](Self::bind).
    pub fn start_bind(&self, device: &Device<P>) -> Op<'static, Result<Bond<P>, BindError>>
    where
        P: 'static,
    {
        Op::new(bind(self.clone(), device.clone()))
    }
}

async fn bind<P: Platform, A: AddressSpace>(
    domain: Domain<P, Sva<A>>,
    device: Device<P>,
) -> Result<Bond<P>, BindError> {
    let bonds = &domain.own.bonds;
    let pasid = bonds.pasid;
    let served = device.member.up().map_err(AttachError::from)?;
    let group = &device.group;
    let bond = || Bond { bonds: bonds.clone(), group: group.clone(), given_back: false };
    if !served.does_pasid(pasid) {
        return Err(BindError::PasidTooBig(device.id(), pasid));
    }
    if !group.lets(device.owner) {
        return Err(AttachError::NotOwner(group.id).into());
    }
    let earlier = match poll_fn(|_| bonds.turn(&device)).await? {
        Turn::Counted => return Ok(bond()),
        Turn::Attach(earlier) => earlier,
    };
    let mut making = Making { bonds, group, earlier: earlier.clone(), done: false };
    let attachment = loop {
        let leaving = earlier.as_ref().and_then(Weak::upgrade).is_some_and(|inner| !inner.is_closed());
        let wanted = Iommu::bound(&domain, &device);
        match attach(wanted).await {
            Err(AttachError::Occupied(_)) if leaving => look_again().await,
            Err(AttachError::Occupied(at)) => return Err(BindError::OtherSpace(at)),
            other => break other?,
        }
    };
    making.done = true;
    match bonds.made(group, attachment) {
        Ok(()) => {
            drop(making);
            Ok(bond())
        }
        Err(attachment) => {
            drop(attachment.leaves().await);
            Err(BindError::Exited)
        }
    }
}
