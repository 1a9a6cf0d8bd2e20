//! What happens when the invalidation queue stops (`[V]` 6.5.2.11).
//!
//! After a time-out nothing from the oldest pending device-TLB invalidation on is guaranteed. All
//! that is unfinished is taken out of the ring and queued again, in order: invalidations may be
//! repeated. A page-group response may not; whether it was sent is known, because a response that
//! stands behind a device's invalidation stands behind a fence as well.
//!
//! The device that did not answer is not asked again: those of its invalidations that wait in the
//! queue would each cost the others another time-out. Where hardware does not name it and there are
//! several suspects, all of them are asked again, each with a wait of its own behind it; the next
//! time-out then names its device.

use super::{
    invalidate::{Item, Kind},
    queue::{Queue, Ring, SlotKind},
};
use portcullis::{
    Platform, SourceId,
    driver::{HwLost, InvError},
};
use portcullis_spec::vtd::{
    qi::InvWait,
    regs::{Fsts, Iqercd},
};

/// Queue errors in a row after which the unit is given up.
const MAX_REFUSALS: u32 = 16;

impl<P: Platform> Queue<P> {
    /// Deals with the error bits that are set. The caller has taken the completions.
    pub(super) fn recover(&self, ring: &mut Ring) {
        if ring.lost {
            // A queue that refuses everything would set its error again, with an event each time.
            return;
        }
        let fsts = self.regs.fsts();
        if fsts.into_bits() == u32::MAX {
            // A window that reads as all ones has no unit behind it any more.
            ring.lost = true;
            return;
        }
        if !(fsts.iqe() || fsts.ite() || fsts.ice()) {
            return;
        }
        let record = self.regs.iqercd();
        // Completions that were written before the error are as good as any.
        self.reap(ring);
        if fsts.ite() {
            self.after_time_out(ring, record);
        }
        if fsts.iqe() {
            self.after_queue_error(ring);
            if ring.lost {
                return;
            }
        }
        if fsts.ice() {
            ring.ice_source = source(record.icesid());
        }
        // Hardware goes on when the bits are cleared: last.
        let bits = Fsts::new().with_iqe(fsts.iqe()).with_ite(fsts.ite()).with_ice(fsts.ice());
        ring.told = Fsts::from_bits(ring.told.into_bits() | bits.into_bits());
        self.mem.barrier();
        self.regs.clear_fsts(bits);
    }

    fn after_time_out(&self, ring: &mut Ring, record: Iqercd) {
        let head = self.head(ring);
        match self.guilty(ring, head, record.itesid()) {
            Some(sid) => {
                ring.set_silent(sid, true);
                ring.ite_source = Some(SourceId(sid.into()));
            }
            None if record.itesid() == 0 => ring.isolate = true,
            None => {}
        }
        self.take_back(ring, head);
        self.void_unfetched(ring, head);
    }

    /// The device whose invalidation timed out, if that is certain.
    fn guilty(&self, ring: &Ring, head: usize, itesid: u16) -> Option<u16> {
        // 0 is what older hardware says ([V] 11.4.9.9), or the device of that name. Another name is
        // the device, or nobody: what was asked before an earlier time-out is still waited for, and
        // may run out while somebody else is being asked.
        if itesid != 0 {
            return ring.asks(itesid).then_some(itesid);
        }
        // Suspects are those that hardware has fetched, up to the next fence: behind it nothing was
        // sent.
        let mut first = None;
        let mut several = false;
        for slot in slots(ring, ring.retired, head) {
            match ring.slots[slot].kind {
                SlotKind::Item(Kind::DeviceTlb(sid)) => {
                    several |= first.is_some_and(|f| f != sid);
                    first = first.or(Some(sid));
                }
                SlotKind::Mark | SlotKind::Item(Kind::End) if first.is_some() => break,
                _ => {}
            }
        }
        first.filter(|_| !several)
    }

    /// Moves everything unfinished to the backlog, in front of what waits there.
    fn take_back(&self, ring: &mut Ring, head: usize) {
        // Everything before the first device's invalidation was executed, and everything before
        // `head` was fetched. A fetched response is not sent before the fence that stands between.
        let fetched = ring.distance(ring.retired, head);
        let certain = slots(ring, ring.retired, ring.tail)
            .position(|s| matches!(ring.slots[s].kind, SlotKind::Item(Kind::DeviceTlb(_))))
            .unwrap_or(fetched)
            .min(fetched);
        for i in (0..ring.used()).rev() {
            let slot = (ring.retired + i) % ring.slots.len();
            let entry = ring.slots[slot];
            let SlotKind::Item(kind) = entry.kind else {
                continue;
            };
            if kind == Kind::Response && i < certain {
                continue;
            }
            let desc = self.read(ring, slot);
            ring.backlog.push_front((entry.seq, Item { kind, desc }));
        }
    }

    /// Makes nothing of what hardware has not fetched: it goes on at `head`. A wait in the last slot
    /// says when it has passed.
    fn void_unfetched(&self, ring: &mut Ring, head: usize) {
        let mut last = None;
        let mut slot = head;
        while slot != ring.tail {
            ring.slots[slot].kind = SlotKind::Void;
            self.write(ring, slot, InvWait::new().desc());
            last = Some(slot);
            slot = ring.next(slot);
        }
        ring.retired = head;
        if let Some(slot) = last {
            ring.slots[slot].kind = SlotKind::Mark;
            let wait = InvWait::new().with_interrupt(self.interrupt);
            let wait = self.reporting(ring, slot, wait);
            self.write(ring, slot, wait);
        }
    }

    /// The head stands at the descriptor that hardware refuses. It becomes a wait, which every mode
    /// knows, and its submission fails.
    fn after_queue_error(&self, ring: &mut Ring) {
        ring.refusals += 1;
        if ring.refusals > MAX_REFUSALS {
            ring.lost = true;
            return;
        }
        let head = self.head(ring);
        if head == ring.tail {
            return;
        }
        let slot = ring.slots[head];
        if let SlotKind::Item(kind) = slot.kind {
            ring.fail(slot.seq, InvError::Lost(HwLost));
            if kind != Kind::End {
                ring.slots[head].kind = SlotKind::Void;
                self.write(ring, head, InvWait::new().desc());
                return;
            }
        }
        let wait = match slot.kind {
            SlotKind::Void => InvWait::new().desc(),
            _ => self.reporting(ring, head, InvWait::fence_only()),
        };
        self.write(ring, head, wait);
    }
}

/// The slots from `from` up to, and without, `to`.
fn slots(ring: &Ring, from: usize, to: usize) -> impl Iterator<Item = usize> {
    let len = ring.slots.len();
    (0..ring.distance(from, to)).map(move |i| (from + i) % len)
}

fn source(sid: u16) -> Option<SourceId> {
    (sid != 0).then(|| SourceId(sid.into()))
}
