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
        let smallest = self.sizes.first().map_or(0, |size| u32::from(bits.saturating_sub(*size)));
        let pages = 1u64.checked_shl(smallest).unwrap_or(u64::MAX);
        if !global && pages <= self.entries.len() as u64 {
            for &size in &self.sizes {
                let first = page(addr, bits.max(size)) << bits.saturating_sub(size);
                for number in first..first + (1 << bits.saturating_sub(size)) {
                    self.entries.remove(&(pasid, number, size));
                }
            }
            return;
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn place() -> impl Strategy<Value = (Option<Pasid>, u64, u8)> {
        let pasid = prop_oneof![Just(None), (1u32..3).prop_map(Pasid::new)];
        let size = prop_oneof![4 => Just(12u8), 1 => 13u8..16, 1 => Just(21u8), 1 => Just(64u8)];
        (pasid, 0u64..64, size).prop_map(|(pasid, n, size)| (pasid, n << 12, size))
    }

    proptest! {
        /// What overlaps goes, however it is looked for, and nothing else.
        #[test]
        fn invalidations_remove_what_overlaps(
            rounds in proptest::collection::vec(
                (proptest::collection::vec(place(), 0..40), place(), any::<bool>()),
                1..6,
            ),
        ) {
            let mut tlb = DeviceTlb::default();
            let mut expected = BTreeMap::new();
            for (inserted, (pasid, addr, bits), global) in rounds {
                for (pasid, iova, size) in inserted {
                    let t = Translation {
                        addr: iova,
                        bits: size,
                        read: true,
                        write: true,
                        untranslated_only: false,
                        privileged: false,
                    };
                    tlb.insert(pasid, iova, t);
                    expected.insert((pasid, page(iova, size), size), t);
                }
                tlb.invalidate(pasid, global, addr, bits);
                expected.retain(|(p, number, size), _| {
                    let concerned = if global { p.is_some() } else { *p == pasid };
                    !(concerned && overlaps(addr, bits, checked_base(*number, *size), *size))
                });
                let left: BTreeMap<Key, Translation> = tlb.entries.iter().map(|(k, t)| (*k, *t)).collect();
                prop_assert_eq!(left, expected.clone());
            }
        }
    }
}
