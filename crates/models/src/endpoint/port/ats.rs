//! Address translation services of an endpoint: its device TLB in use.

use std::collections::BTreeSet;

use super::{Failure, Intent, Invalidation, Port, State};
use crate::bus::{AddressType, Operation, PAGE, Pasid, Prefix, Request, Translation};
use crate::endpoint::Tlp;
use crate::endpoint::caps::Violation;
use crate::endpoint::dtlb::overlaps;

impl Port {
    pub(crate) fn set_ats(&mut self, stu: Option<u8>) -> Result<(), Violation> {
        self.caps.set_ats(stu)?;
        if stu.is_some() {
            self.dtlb.clear();
        }
        Ok(())
    }

    /// Looks an access up and sends it, or the translation request it needs.
    pub(super) fn issue(&mut self, ticket: u64) {
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        let (iova, prefix, write) = (t.iova, t.prefix, t.intent.is_write());
        let pasid = prefix.map(|p| p.pasid);
        if self.caps.ats().is_none() {
            return self.send(ticket, iova, prefix, None);
        }
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        let found = self.dtlb.lookup(pasid, iova).filter(|e| if write { e.write } else { e.read });
        match found {
            Some(entry) => {
                self.stats.dtlb_hits += u64::from(!t.missed);
                let translated = (!entry.untranslated_only).then(|| within(entry, iova));
                self.send(ticket, translated.unwrap_or(iova), prefix, translated);
            }
            None => {
                self.stats.dtlb_misses += u64::from(!t.missed);
                t.missed = true;
                t.state = State::Translating { stale: false };
                let op = Operation::Translate { no_write: !write };
                let addr = iova & !(PAGE - 1);
                let at = AddressType::Untranslated;
                let request = Request { source: self.id, prefix, at, addr, op };
                self.out.push(Tlp::Request { ticket, iova, pasid, request });
            }
        }
    }

    pub(super) fn send(&mut self, ticket: u64, addr: u64, prefix: Option<Prefix>, translated: Option<u64>) {
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        t.state = State::InFlight { translated: translated.is_some() };
        let op = match &t.intent {
            Intent::Read(len) => Operation::Read(*len),
            Intent::Write(data) => Operation::Write(data.clone()),
        };
        let (at, on_wire) = match translated {
            // Translated requests carry no PASID, unless both sides agreed on it ([V] 4.2.1).
            Some(_) => (AddressType::Translated, None),
            None => (AddressType::Untranslated, prefix),
        };
        let (iova, pasid) = (t.iova, prefix.map(|p| p.pasid));
        let request = Request { source: self.id, prefix: on_wire, at, addr, op };
        self.out.push(Tlp::Request { ticket, iova, pasid, request });
    }

    pub(super) fn translated(&mut self, now: u64, ticket: u64, entry: Translation) {
        let Some(t) = self.transfers.get_mut(&ticket) else {
            return;
        };
        let granted = if t.intent.is_write() { entry.write } else { entry.read };
        if granted {
            t.state = State::Ready;
            let (pasid, iova) = (t.prefix.map(|p| p.pasid), t.iova);
            self.dtlb.insert(pasid, iova, entry);
            return;
        }
        t.rounds += 1;
        t.state = State::NeedPage { since: now.saturating_add(Self::pause(t.rounds)) };
        let tired = t.rounds > Self::ROUNDS;
        if self.caps.pri().is_none() {
            self.end(ticket, Err(Failure::NoPermission));
        } else if tired {
            self.end(ticket, Err(Failure::NoProgress));
        }
    }

    pub(super) fn invalidate(&mut self, itag: u8, pasid: Option<Pasid>, global: bool, addr: u64, bits: u8) {
        self.stats.invalidations += 1;
        self.dtlb.invalidate(pasid, global, addr, bits);
        let mut waits_for = BTreeSet::new();
        for (&ticket, t) in &mut self.transfers {
            let p = t.prefix.map(|p| p.pasid);
            if !(if global { p.is_some() } else { p == pasid }) {
                continue;
            }
            match &mut t.state {
                // Its answer may cover more than the page it asks for, so any may be stale.
                State::Translating { stale } => *stale = true,
                State::InFlight { translated: true } if overlaps(addr, bits, t.iova, 12) => {
                    waits_for.insert(ticket);
                }
                _ => {}
            }
        }
        self.invalidations.push(Invalidation { itag, waits_for });
    }
}

/// The translated address of an IOVA inside a cached region.
fn within(entry: Translation, iova: u64) -> u64 {
    let offset = 1u64.checked_shl(u32::from(entry.bits)).map_or(u64::MAX, |size| size - 1);
    (entry.addr & !offset) | (iova & offset)
}
