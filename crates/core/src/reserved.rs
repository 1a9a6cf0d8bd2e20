//! Ranges of a device's IOVA space that are not the owner's to use as it likes: five kinds, and how
//! they read together.

use crate::error::OutOfMemory;
use alloc::vec::Vec;
use core::fmt;
use portcullis_pgtable::Prot;

/// What a reserved range is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegionKind {
    /// The device accesses it at addresses equal to physical ones, whatever it is attached to
    /// (RMRR and the like): mapped before every attach and never interrupted.
    Direct,
    /// The same for firmware and for kernel drivers (graphics memory, USB keyboards). Not mapped in
    /// what an owner outside the kernel attaches who has claimed the device.
    DirectRelaxable,
    /// Nothing may be mapped there: the device cannot reach it, or it means something else.
    Reserved,
    /// Writes there are interrupts, which the IOMMU never translates.
    Msi,
    /// A window in which software maps the doorbells of interrupt controllers.
    SoftwareMsi,
}

impl RegionKind {
    /// Whether the device needs the range mapped one to one.
    pub const fn is_direct(self) -> bool {
        matches!(self, RegionKind::Direct | RegionKind::DirectRelaxable)
    }

    /// Whether no owner may map there. A request that carries a PASID is never taken for an
    /// interrupt.
    pub(crate) const fn is_closed(self, pasid_only: bool) -> bool {
        match self {
            RegionKind::Reserved => true,
            RegionKind::Msi => !pasid_only,
            // A window that owners map doorbells in; one that keeps it says so itself.
            RegionKind::SoftwareMsi | RegionKind::Direct | RegionKind::DirectRelaxable => false,
        }
    }
}

/// One reserved range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// First address; of a direct region, a multiple of the page size.
    pub start: u64,
    /// Bytes; of a direct region, a multiple of the page size.
    pub len: u64,
    /// What the device may do there; of direct regions.
    pub prot: Prot,
    /// What it is for.
    pub kind: RegionKind,
}

impl ReservedRegion {
    /// Memory that the device accesses at addresses equal to physical ones.
    pub const fn direct(start: u64, len: u64, prot: Prot) -> ReservedRegion {
        ReservedRegion { start, len, prot, kind: RegionKind::Direct }
    }

    /// A range of a kind that no device accesses as memory.
    pub const fn closed(start: u64, len: u64, kind: RegionKind) -> ReservedRegion {
        ReservedRegion { start, len, prot: Prot::empty(), kind }
    }

    /// Its last address.
    pub const fn last(&self) -> u64 {
        self.start.saturating_add(self.len.saturating_sub(1))
    }

    /// Whether every address of it is in one of `others`.
    pub(crate) fn is_covered_by(&self, others: &[ReservedRegion]) -> bool {
        let mut at = self.start;
        while let Some(r) = others.iter().find(|r| r.start <= at && at <= r.last()) {
            if r.last() >= self.last() {
                return true;
            }
            at = r.last() + 1;
        }
        self.len == 0
    }

    fn joins(&self, next: &ReservedRegion) -> bool {
        self.kind == next.kind && self.prot == next.prot && next.start <= self.last().saturating_add(1)
    }
}

impl fmt::Display for ReservedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            RegionKind::Direct => "direct",
            RegionKind::DirectRelaxable => "direct, relaxable",
            RegionKind::Reserved => "reserved",
            RegionKind::Msi => "interrupts",
            RegionKind::SoftwareMsi => "interrupt doorbells, mapped by software",
        };
        write!(f, "{:#x}..={:#x} ({what})", self.start, self.last())
    }
}

/// A list under construction; [`Regions::finish`] sorts it by kind and start, and merges what
/// touches.
#[derive(Default)]
pub(crate) struct Regions(Vec<ReservedRegion>);

impl Regions {
    pub(crate) fn add(&mut self, region: ReservedRegion) -> Result<(), OutOfMemory> {
        if region.len > 0 {
            self.0.try_reserve(1).map_err(|_| OutOfMemory)?;
            self.0.push(region);
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Vec<ReservedRegion> {
        let Regions(mut list) = self;
        list.sort_unstable_by_key(|r| (r.kind, r.start, r.len));
        // What touches stands side by side now, but for regions of different rights between.
        list.dedup_by(|next, kept| {
            let joins = kept.joins(next);
            if joins {
                kept.len = kept.last().max(next.last()).saturating_sub(kept.start).saturating_add(1);
            }
            joins
        });
        list.sort_unstable_by_key(|r| (r.start, r.kind));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn merged(regions: &[ReservedRegion]) -> Vec<(u64, u64, RegionKind)> {
        let mut list = Regions::default();
        regions.iter().for_each(|r| list.add(*r).unwrap());
        list.finish().iter().map(|r| (r.start, r.last(), r.kind)).collect()
    }

    #[test]
    fn ranges_of_a_kind_that_touch_are_one_and_kinds_stay_apart() {
        use RegionKind::{Direct, Msi, Reserved};
        let direct = |start, len| ReservedRegion::direct(start, len, Prot::READ);
        let closed = ReservedRegion::closed;
        assert_eq!(
            merged(&[
                closed(0xfee0_0000, 0x10_0000, Msi),
                direct(0x3000, 0x1000),
                direct(0x1000, 0x2000),
                closed(0x2000, 0x4000, Reserved),
                direct(0x1800, 0x800),
                closed(0, 0, Reserved),
                direct(0x9000, 0x1000),
            ]),
            vec![
                (0x1000, 0x3fff, Direct),
                (0x2000, 0x5fff, Reserved),
                (0x9000, 0x9fff, Direct),
                (0xfee0_0000, 0xfeef_ffff, Msi),
            ]
        );
    }

    #[test]
    fn rights_are_not_merged_and_the_end_of_the_address_space_is_no_overflow() {
        let read = ReservedRegion::direct(0x1000, 0x1000, Prot::READ);
        let write = ReservedRegion::direct(0x2000, 0x1000, Prot::WRITE);
        assert_eq!(merged(&[write, read]).len(), 2);
        let end = ReservedRegion::closed(u64::MAX - 0xfff, 0x1000, RegionKind::Reserved);
        let all = ReservedRegion::closed(0, u64::MAX, RegionKind::Reserved);
        assert_eq!(merged(&[end, all])[0].0, 0);
    }
}
