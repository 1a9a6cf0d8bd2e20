//! The device TLB (address translation cache) of an endpoint.

use std::collections::BTreeSet;

use crate::bus::{Pasid, Translation};
use crate::hash::Map;

/// Key: the PASID, the page number, and log2 of the page's size.
type Key = (Option<Pasid>, u64, u8);

/// Translations an endpoint has been given. It forgets none of its own accord, except where it is
/// full.
#[derive(Debug, Default)]
pub(crate) struct DeviceTlb {
    entries: Map<Key, Translation>,
    /// Sizes in use: a look-up probes each once.
    sizes: BTreeSet<u8>,
}

impl DeviceTlb {
    /// Entries kept.
    const CAPACITY: usize = 4096;

    pub(crate) fn lookup(&self, pasid: Option<Pasid>, iova: u64) -> Option<Translation> {
        self.sizes.iter().find_map(|&bits| self.entries.get(&(pasid, page(iova, bits), bits)).copied())
    }

    pub(crate) fn insert(&mut self, pasid: Option<Pasid>, iova: u64, t: Translation) {
        if self.entries.len() >= Self::CAPACITY {
            self.evict(iova);
        }
        self.sizes.insert(t.bits);
        self.entries.insert((pasid, page(iova, t.bits), t.bits), t);
    }

    /// Removes what overlaps the range: `pasid` `None` stands for requests without PASID, `global`
    /// for all PASIDs.
    pub(crate) fn invalidate(&mut self, pasid: Option<Pasid>, global: bool, addr: u64, bits: u8) {
        self.entries.retain(|&(p, number, size), _| {
            let hit = if global { p.is_some() } else { p == pasid };
            !(hit && overlaps(addr, bits, checked_base(number, size), size))
        });
    }

    /// Forgets one entry, chosen by `pick`. Returns whether there was one.
    pub(crate) fn evict(&mut self, pick: u64) -> bool {
        let n = self.entries.len() as u64;
        let victim = pick.checked_rem(n).and_then(|i| self.entries.keys().nth(i as usize).copied());
        victim.is_some_and(|key| self.entries.remove(&key).is_some())
    }

    /// A page with a translation, chosen by `pick`.
    pub(crate) fn some_page(&self, pick: u64) -> Option<(Option<Pasid>, u64, Translation)> {
        let n = self.entries.len() as u64;
        let i = pick.checked_rem(n)?;
        let (&(pasid, number, bits), &t) = self.entries.iter().nth(i as usize)?;
        Some((pasid, checked_base(number, bits), t))
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.sizes.clear();
    }
}

fn page(iova: u64, bits: u8) -> u64 {
    iova.checked_shr(u32::from(bits)).unwrap_or(0)
}

fn checked_base(number: u64, bits: u8) -> u64 {
    number.checked_shl(u32::from(bits)).unwrap_or(0)
}

/// Whether two aligned power-of-two ranges overlap: then the smaller lies in the larger.
pub(crate) fn overlaps(a: u64, a_bits: u8, b: u64, b_bits: u8) -> bool {
    let bits = a_bits.max(b_bits);
    page(a, bits) == page(b, bits)
}
