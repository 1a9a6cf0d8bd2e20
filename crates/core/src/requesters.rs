//! A device's ids at its instance, on their way in and out. The group is frozen meanwhile.

use crate::{
    device::DeviceSpec,
    driver::{Features, HwLost},
    entry::Holding,
    error::AddDeviceError,
    features::disable,
    group::Group,
    ids::{At, Pasid, SourceId},
    instance::Instance,
    join::part_all,
    member::Member,
    op::hw,
    platform::Platform,
};
use alloc::sync::Arc;
use portcullis_sync::atomic::Ordering;

/// The ids of one member.
pub(crate) struct Ids<'a, P: Platform> {
    pub(crate) group: &'a Arc<Group<P>>,
    pub(crate) member: &'a Member<P>,
    pub(crate) instance: &'a Arc<Instance<P>>,
}

impl<P: Platform> Ids<'_, P> {
    fn all(&self) -> &[SourceId] {
        self.member.spec.sources()
    }

    /// Whether no other member that is up has the id.
    fn is_alone_with(&self, source: SourceId) -> bool {
        !self.group.is_shared(source, self.member.id())
    }

    /// Whether something is attached to the id itself, for others who have it too.
    fn is_attached(&self, source: SourceId) -> bool {
        self.instance.attached_after(source, None).is_some_and(|(at, _)| at.pasid.is_none())
    }

    /// Makes every id known to the fault path and to the driver, blocked at first. All or none.
    pub(crate) async fn enter(&self) -> Result<(), AddDeviceError> {
        for (n, source) in self.all().iter().enumerate() {
            if let Err(e) = self.enter_one(*source, n == 0) {
                self.leave().await;
                return Err(e);
            }
            self.member.entered.store(n + 1, Ordering::Release);
        }
        Ok(())
    }

    fn enter_one(&self, source: SourceId, own: bool) -> Result<(), AddDeviceError> {
        let device = self.member.id();
        let features = features(&self.member.spec, self.instance, own);
        if !self.is_alone_with(source) {
            if features.ats || self.instance.features(source).ats {
                return Err(AddDeviceError::SharedId { device, source_id: source });
            }
            return self.instance.share(source, device);
        }
        self.instance.learn(device, self.group.id, source, features)?;
        let added = self.instance.driver().add_device(source, features);
        let pasid_bits = added.inspect_err(|_| self.instance.forget(source))?.min(features.pasid_bits);
        self.instance.set_features(source, Features { pasid_bits, ..features });
        Ok(())
    }

    /// Takes back what was made known, as far as the hardware lets go of it.
    pub(crate) async fn leave(&self) {
        if self.stop().await.is_ok() {
            self.forget();
        }
    }

    /// Stops what only this device sends.
    pub(crate) async fn stop(&self) -> Result<(), HwLost> {
        for source in self.member.ids().iter().filter(|s| self.is_alone_with(**s)) {
            hw(self.instance, || self.instance.driver().cut_off(*source)).await?;
        }
        Ok(())
    }

    /// Forgets the ids, which were stopped.
    pub(crate) fn forget(&self) {
        for source in self.member.ids() {
            if self.is_alone_with(*source) {
                self.instance.void_all_of(*source);
                self.instance.absolve(*source);
                self.instance.forget(*source);
                self.instance.driver().remove_device(*source);
            } else {
                let other = |m: &Arc<Member<P>>| m.id() != self.member.id() && m.ids().contains(source);
                self.instance.unshare(*source, self.group.members().find(other).map(|m| m.id()));
            }
        }
        self.member.entered.store(0, Ordering::Release);
    }

    /// Takes everything back that hardware knows of the member. May be given up and begun again.
    pub(crate) async fn take_back(&self) -> Result<(), HwLost> {
        if self.member.is_known() {
            disable(&self.member.spec);
        }
        part_all(self.group).await?;
        self.stop().await?;
        self.forget();
        self.make_room().await
    }

    /// After the ids were forgotten: the direct regions go, and an id that others have too rests where
    /// they need it.
    pub(crate) async fn make_room(&self) -> Result<(), HwLost> {
        self.group.dismiss_direct(self.member).await?;
        for source in self.all().iter().filter(|s| !self.is_alone_with(**s) && !self.is_attached(**s)) {
            let at = At { source: *source, pasid: None };
            self.instance.switch(at, self.group.rest_of(at)).await?;
        }
        Ok(())
    }

    /// Lets every id go where it rests; one that others have too, and that is attached, stays there. What
    /// cannot be prepared leaves the ids where they are.
    pub(crate) async fn rest(&self) -> Result<(), AddDeviceError> {
        for source in self.all().iter().filter(|s| !self.is_attached(**s)) {
            let at = At { source: *source, pasid: None };
            if let Some(target) = self.group.rest_of(at) {
                let (held, _) = Holding::prepare(self.instance, at, target)?;
                self.instance.install(at, target, Some(held)).await?;
            }
        }
        Ok(())
    }
}

/// What is switched on for an id while its device is up. Aliases carry requests and nothing else:
/// translation and page requests have the device's own id.
pub(crate) fn features<P: Platform>(spec: &DeviceSpec, instance: &Instance<P>, own: bool) -> Features {
    let caps = instance.caps();
    Features {
        pasid_bits: spec.caps.pasid_bits.min(caps.pasid_bits).min(Pasid::BITS),
        ats: own && spec.trusted && spec.caps.ats && caps.ats,
        pri: false,
        invalidate_queue_depth: spec.caps.invalidate_queue_depth,
        physical_function: spec.caps.physical_function,
    }
}
