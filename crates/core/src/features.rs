//! What is switched on for a device: page requests while some attachment needs them, PASID and ATS
//! as long as it is up.

use crate::{
    device::{DeviceInner, DeviceSpec},
    driver::{Features, HwLost},
    error::AttachError,
    op::hw,
    platform::{Platform, ShortLock},
};
use core::{future::poll_fn, task::Poll};

/// Page requests of a device: on while some attachment needs them.
#[derive(Default)]
pub(crate) struct Pri {
    users: u32,
    /// Credits that the device holds; kept when switching was given up half-way.
    share: u32,
    on: bool,
    turning: bool,
}

impl<P: Platform> DeviceInner<P> {
    /// Page requests for one more attachment: switched on with the first, in PCIe's order.
    pub(crate) async fn acquire_pri(&self) -> Result<(), AttachError> {
        let limit = self.may_request_pages()?;
        let turn = self.turn().await;
        if !self.pri.with(|p| p.on) {
            let share = self.take_share(limit).ok_or(AttachError::NoCredits(self.id))?;
            if let Err(lost) = self.set_features(|f| f.pri = true).await {
                self.give_share_back();
                return Err(lost.into());
            }
            self.instance.set_share(self.source, share);
            self.spec.control.set_pri(Some(share));
        }
        self.pri.with(|p| {
            p.on = true;
            p.users += 1;
        });
        drop(turn);
        Ok(())
    }

    /// One attachment less: switched off with the last. Hardware that is lost stays as it is.
    pub(crate) async fn release_pri(&self) {
        let turn = self.turn().await;
        if self.pri.with(|p| p.users <= 1) {
            self.spec.control.set_pri(None);
            self.instance.set_share(self.source, 0);
            // The interface is reset before it is switched on again: nothing completes these.
            self.instance.drop_partials_of(self.source);
            self.pri.with(|p| p.on = false);
            if self.set_features(|f| f.pri = false).await.is_ok() {
                self.give_share_back();
            }
        }
        self.pri.with(|p| p.users = p.users.saturating_sub(1));
        drop(turn);
    }

    fn take_share(&self, limit: u32) -> Option<u32> {
        let held = self.pri.with(|p| p.share);
        if held > 0 {
            return Some(held);
        }
        let share = self.instance.take_credits(limit)?;
        self.pri.with(|p| p.share = share);
        Some(share)
    }

    /// Gives back the credits of a device that makes no page requests any more.
    pub(crate) fn give_share_back(&self) {
        let share = self.pri.with(|p| core::mem::take(&mut p.share));
        self.instance.give_credits(share);
    }

    /// The device's limit of outstanding page requests, if it may make any.
    fn may_request_pages(&self) -> Result<u32, AttachError> {
        let caps = self.instance.caps();
        let refuse = |why| Err(AttachError::NoPageRequests(self.id, why));
        let Some(limit) = self.caps.page_requests else { return refuse("it has no page-request interface") };
        if !self.spec.trusted {
            return refuse("it is not trusted, and page requests need ATS");
        }
        if !self.caps.ats || !caps.ats {
            return refuse("it has no ATS, which page requests need");
        }
        if caps.page_requests == 0 {
            return refuse("its IOMMU has no page requests");
        }
        if self.caps.stop_markers && !caps.stop_markers {
            return refuse("it sends stop markers, which its IOMMU does not take");
        }
        Ok(limit)
    }

    /// The right to switch the device's page requests. Taken after the group's transitions, and for
    /// one device at a time.
    pub(crate) async fn turn(&self) -> Turning<'_, P> {
        poll_fn(|_| match self.pri.with(|p| core::mem::replace(&mut p.turning, true)) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
        Turning(self)
    }

    pub(crate) fn pri_is_on(&self) -> bool {
        self.pri.with(|p| p.on)
    }

    /// Tells the device that it may make page requests, if it may: it forgot in a reset.
    pub(crate) fn enable_pri(&self) {
        let (on, share) = self.pri.with(|p| (p.on, p.share));
        if on {
            self.spec.control.set_pri(Some(share));
        }
    }

    async fn set_features(&self, change: impl FnOnce(&mut Features)) -> Result<(), HwLost> {
        let mut features = self.instance.features(self.source);
        change(&mut features);
        hw(&self.instance, || self.instance.driver().set_features(self.source, features)).await?;
        self.instance.set_features(self.source, features);
        Ok(())
    }

    /// PASID, then ATS: the order that PCIe asks for.
    pub(crate) fn enable(&self) {
        let f = self.instance.features(self.source);
        if f.pasid_bits > 0 {
            self.spec.control.set_pasid(true);
        }
        if f.ats {
            self.spec.control.set_ats(true);
        }
    }

    /// Page requests, ATS, PASID off: the reverse order.
    pub(crate) fn disable(&self) {
        disable(&self.spec);
    }
}

impl<P: Platform> Drop for DeviceInner<P> {
    fn drop(&mut self) {
        // Of a device that was given up on the way in or out.
        self.give_share_back();
    }
}

/// Page requests, ATS, PASID off, in this order, of a device that may not be served.
pub(crate) fn disable(spec: &DeviceSpec) {
    spec.control.set_pri(None);
    spec.control.set_ats(false);
    spec.control.set_pasid(false);
}

/// The right to switch a device's page requests; given back on drop.
pub(crate) struct Turning<'a, P: Platform>(&'a DeviceInner<P>);

impl<P: Platform> Drop for Turning<'_, P> {
    fn drop(&mut self) {
        self.0.pri.with(|p| p.turning = false);
        self.0.instance.hub.progressed();
    }
}
