//! The drain of page requests and responses (`[V]` 7.10).
//!
//! The tail that is read right after a block proves nothing: requests may still be in the fabric.
//! Behind a fence, which lets older responses out first, the device's TLB is invalidated. Its
//! completion pushes every request before it, and the wait with PD=1 completes only when those are
//! visible in the queue. The tail that is read then is the end.

use super::{Vtd, invalidate::Items, queue::End};
use portcullis::{
    At, Platform,
    driver::{DrainEnd, InvSeq, SubmitError},
};
use portcullis_spec::vtd::pasid::PasidLow;

impl<P: Platform> Vtd<P> {
    pub(super) fn submit_drain(&self, at: At) -> Result<InvSeq, SubmitError> {
        let device = self.devices.get(at.source);
        let resolved = self.queue.resolved();
        if device.is_some_and(|d| !d.drains.has_room(at.pasid, resolved)) {
            return Err(SubmitError::Full);
        }
        let mut items = Items::new();
        items.fence();
        if let Some(device) = device.filter(|d| d.features.ats && d.directory.is_some()) {
            // Any granularity will do. What is blocked still says under which tag it was.
            let entry = self.entry_of(&device, at).map_or(0, |p| self.tables.load(p));
            items.translations(&self.unit, at, PasidLow::from_bits(entry));
            // One that was cut off because it does not answer can prove nothing. It can send
            // nothing either: its requests are refused at the context entry.
            if self.is_asked(&device) {
                items.device_tlb(&self.unit, at, device.features);
            }
        }
        let end = End { drain: self.unit.page_requests() };
        let seq = self.queue.submit(&items, end, || ())?;
        self.devices.update(at.source, |d| d.drains.note(at.pasid, seq));
        Ok(seq)
    }

    pub(super) fn end_of_drain(&self, at: At) -> DrainEnd {
        let device = self.devices.get(at.source);
        let Some(fence) = device.and_then(|d| d.drains.find(at.pasid)) else {
            return DrainEnd::Again;
        };
        let end = self.requests.drain_end(fence);
        if matches!(end, DrainEnd::At(_)) {
            self.devices.update(at.source, |d| d.drains.forget(at.pasid));
        }
        if let (DrainEnd::At(_), Some(device)) = (end, device)
            && device.directory.is_some()
            && let Some(place) = self.entry_of(&device, at)
        {
            // From here on a fault is news again. A not-present entry is not cached.
            let entry = PasidLow::from_bits(self.tables.load(place));
            if entry.fpd() && !entry.p() {
                self.tables.store(place, entry.with_fpd(false).into_bits());
            }
        }
        end
    }
}
