//! A device that joins a group to which something is attached: its ids are put where the group is, all
//! or nothing. The group is frozen meanwhile.
//!
//! Everything is prepared for every attachment before the hardware is shown anything. From the moment
//! that a device stands in an attachment's roll, whoever ends the attachment ends it for the device too;
//! and a join that was given up half-way is [taken back](part_all) by who takes the device back.

use crate::{
    attach::{fits, prepare_all, publish, quarantine, room_for, show, show_all},
    attachment::Inner,
    detach::drain,
    device::DeviceInner,
    driver::{Change, HwLost},
    entry::Holding,
    error::{AddDeviceError, AttachError, OutOfMemory},
    group::Group,
    ids::At,
    op::hw,
    pins::{pin, unpin},
    platform::Platform,
    roll::{Joining, Roll},
    stall::{all_stand, may_stall},
};
use alloc::{sync::Arc, vec::Vec};
use portcullis_sync::atomic::{AtomicBool, Ordering};

/// Puts a device, which rests, where its group is attached.
pub(crate) async fn join<P: Platform>(
    group: &Arc<Group<P>>,
    device: &Arc<DeviceInner<P>>,
) -> Result<(), AddDeviceError> {
    group.bears(device.id)?;
    let refused = |why| AddDeviceError::Join { device: device.id, group: group.id, why };
    let mut coming: Vec<Coming<'_, P>> = Vec::new();
    // One that is on its way out goes without the device.
    let takes_part = |inner: &Arc<Inner<P>>| inner.is_live() && takes_part(inner, device);
    for inner in attachments(group).filter(takes_part) {
        let prepared = match coming.try_reserve(1) {
            Ok(()) => Coming::prepare(inner, device).await,
            Err(_) => Err(OutOfMemory.into()),
        };
        match prepared {
            Ok(one) => coming.push(one),
            Err(why) => {
                while let Some(one) = coming.pop() {
                    one.undo().await;
                }
                return Err(refused(why));
            }
        }
    }
    let mut shown = Ok(());
    for one in &mut coming {
        if shown.is_ok() {
            shown = one.commit().await;
        }
    }
    coming.iter().for_each(|one| one.inner.rolls.joined());
    Ok(shown?)
}

/// Takes back the join that was given up half-way, if there was one. May be given up and begun again.
pub(crate) async fn part_all<P: Platform>(group: &Arc<Group<P>>) -> Result<(), HwLost> {
    for member in group.members() {
        let Ok(served) = member.up() else { continue };
        for source in served.sources() {
            let mut last = None;
            // Those too whose detach was given up half-way.
            while let Some((at, inner)) = served.instance.attached_after(*source, last) {
                last = Some(at);
                if let Some(joining) = inner.rolls.joining() {
                    part(&inner, &joining, true).await?;
                }
            }
        }
    }
    Ok(())
}

/// What is attached to a group, unless nothing comes in any more.
fn attachments<P: Platform>(group: &Group<P>) -> impl Iterator<Item = Arc<Inner<P>>> {
    let attached = (0..).map_while(|n| group.attached(n));
    attached.filter_map(|key| group.hub.attachments.get(key?))
}

/// Requests without PASID concern every member; a PASID those that have PASIDs.
fn takes_part<P: Platform>(inner: &Inner<P>, device: &DeviceInner<P>) -> bool {
    inner.at.pasid.is_none() || device.caps.pasid_bits > 0
}

/// An attachment that is about to take a device in.
struct Coming<'a, P: Platform> {
    inner: Arc<Inner<P>>,
    device: &'a Arc<DeviceInner<P>>,
    joining: Arc<Joining<P>>,
    roll: Arc<Roll<P>>,
    /// An entry for each new place.
    held: Vec<Holding<'a, P>>,
    gap: bool,
}

impl<'a, P: Platform> Coming<'a, P> {
    /// Does what may be refused, and shows the places to everybody but the hardware. What is refused
    /// has changed nothing.
    async fn prepare(inner: Arc<Inner<P>>, device: &'a Arc<DeviceInner<P>>) -> Result<Self, AttachError> {
        let (at, old) = (inner.at, inner.roll());
        if let Some(pasid) = at.pasid.filter(|pasid| !device.does_pasid(*pasid)) {
            return Err(AttachError::Pasid(device.id, pasid));
        }
        fits(&inner.domain, at.pasid, &inner.named, device)?;
        let new = old.with(device, at)?;
        let room = room_for(&device.instance, inner.resolves, inner.may_stall(), &new);
        inner.spill.make_room(room.saturating_sub(inner.room()))?;
        if at.pasid.is_none() {
            pin(&inner.domain, inner.named.direct_of(&device.spec))
                .await
                .map_err(|e| AttachError::Direct { start: e.start, why: e.why })?;
        }
        let (roll, joining) = (Arc::new(new), Joining { before: old, pinned: AtomicBool::new(true) });
        let joining = Arc::new(joining);
        inner.rolls.begin(roll.clone(), joining.clone());
        let mut coming = Coming { inner, device, joining, roll, held: Vec::new(), gap: false };
        match coming.acquire().await {
            Ok(()) => Ok(coming),
            Err(why) => {
                coming.undo().await;
                Err(why)
            }
        }
    }

    async fn acquire(&mut self) -> Result<(), AttachError> {
        let (inner, device) = (&self.inner, self.device);
        if inner.resolves() {
            device.acquire_pri().await?;
            inner.holds_pri.store(self.roll.devices.len(), Ordering::Release);
        }
        let (held, change) = prepare_all(&device.instance, inner.target(), self.places())?;
        let gap = change == Change::ThroughBlocked;
        if gap && inner.at.pasid.is_none() && inner.named.keeps_direct(&device.spec) {
            return Err(AttachError::NotHitless(At { source: device.source, ..inner.at }));
        }
        publish(inner, self.places())?;
        show(inner, self.places())?;
        // The domain may have begun to stall meanwhile.
        if inner.domain.stalls() {
            may_stall(device)?;
        }
        all_stand(&inner.instance, self.places()).await?;
        (self.held, self.gap) = (held, gap);
        Ok(())
    }

    /// The places that are the device's alone.
    fn places(&self) -> &[At] {
        self.roll.after(&self.joining.before)
    }

    /// Shows the hardware what was prepared. Where that is lost on the way nobody knows what the device
    /// translates through: it is quarantined, and stays in the attachment.
    async fn commit(&mut self) -> Result<(), HwLost> {
        let held = core::mem::take(&mut self.held);
        let (inner, places) = (&self.inner, self.places());
        let shown = match inner.target() {
            None => silence(inner, places).await,
            Some(_) => show_all(inner, places, held, self.gap).await,
        };
        if shown.is_err() {
            quarantine(inner, places);
        }
        shown
    }

    /// Takes back what was prepared; the hardware has seen nothing.
    async fn undo(self) {
        drop(self.held);
        // Of hardware that is lost, the domain keeps what it may still walk.
        let _ = part(&self.inner, &self.joining, false).await;
    }
}

/// Takes the last device out of an attachment's roll again. `shown`: the hardware may use the attachment
/// at its places. May be given up and begun again.
async fn part<P: Platform>(inner: &Inner<P>, joining: &Joining<P>, shown: bool) -> Result<(), HwLost> {
    let (instance, roll, before) = (&inner.instance, inner.roll(), &joining.before);
    let Some(device) = roll.devices.last() else { return Ok(()) };
    let places = roll.after(before);
    for at in places.iter().filter(|_| shown) {
        instance.switch(*at, inner.named.group.rest_of(*at)).await?;
        drain(instance, *at).await?;
    }
    places.iter().for_each(|at| instance.set_leaving(*at));
    // Hardware that cannot cease is cut off with the device.
    let _ = all_stand(instance, places).await;
    for at in places {
        instance.hide(*at, inner.key);
        instance.settle_source(at.source);
        instance.drop_partials_at(*at);
    }
    if inner.holds_pri.load(Ordering::Acquire) == roll.devices.len() {
        device.release_pri().await;
        inner.holds_pri.store(before.devices.len(), Ordering::Release);
    }
    let most = before.places.len().min(inner.published.load(Ordering::Acquire));
    let published = inner.published.swap(most, Ordering::AcqRel);
    for (at, tag) in roll.places.iter().take(published).skip(most).zip(inner.tag.iter().cycle()) {
        inner.domain.withdraw(instance, *at, *tag);
    }
    if inner.at.pasid.is_none() {
        unpin(&inner.domain, inner.named.direct_of(&device.spec), &joining.pinned).await?;
    }
    inner.rolls.parted(before.clone());
    Ok(())
}

/// Where nothing passes: the table is gone while the attachment stays, or there never was one.
async fn silence<P: Platform>(inner: &Inner<P>, places: &[At]) -> Result<(), HwLost> {
    for at in places.iter().filter(|_| inner.tag.is_some()) {
        hw(&inner.instance, || inner.instance.driver().silence(*at)).await?;
    }
    Ok(())
}
