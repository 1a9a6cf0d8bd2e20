//! Root, context and PASID structures in memory: where an entry is, and how it is made visible.
//! [`super::directory`] has what is between a context entry and a PASID table.
//!
//! Structures grow only in sleepable calls, and those that lead to others (root and context tables)
//! are never taken back. So an entry is found by loads alone, from any context.

use super::unit::Unit;
use portcullis::{Pasid, Platform, SourceId};
use portcullis_pgtable::{FRAME_SIZE, Fresh, NoMem, Phys};
use portcullis_spec::vtd::{
    context::{SCALABLE_CONTEXT_ENTRIES, SCALABLE_CONTEXT_ENTRY_SIZE},
    pasid::{PasidFirstStage, PasidLow},
    root::{RootEntry, ScalableRootEntry},
};

use super::entry::PasidHalves;

/// Requests without PASID are translated by this entry: RID_PASID is left 0 (`[V]` 9.4).
pub(super) const RID_PASID: u32 = 0;

/// The number that indexes a requester's PASID structures.
pub(super) fn pasid_number(pasid: Option<Pasid>) -> u32 {
    pasid.map_or(RID_PASID, Pasid::get)
}

/// Sixteen bytes of a structure that hardware reads as one (`[V]` 6.2.2.1, 6.2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    table: Phys,
    index: usize,
}

impl Place {
    pub(super) fn new(table: Phys, index: usize) -> Place {
        Place { table, index }
    }

    /// The frame that it is in.
    pub(super) fn table(self) -> Phys {
        self.table
    }

    fn next(self) -> Place {
        Place { index: self.index + 1, ..self }
    }
}

/// Access to the structures below one root table.
#[derive(Clone)]
pub(super) struct Tables<P> {
    pub(super) mem: P,
    scalable: bool,
    coherent: bool,
}

impl<P: Platform> Tables<P> {
    pub(super) fn new(mem: P, unit: &Unit) -> Tables<P> {
        Tables { mem, scalable: unit.scalable, coherent: unit.coherent_structures() }
    }

    /// A table that is visible to hardware as all zeros: nothing present.
    pub(super) fn frame(&self) -> Result<Fresh, NoMem> {
        self.frames(0)
    }

    /// A run of 2^`order` such frames, or the largest there is.
    pub(super) fn largest_run(&self, order: u32) -> Result<Fresh, NoMem> {
        let found = (0..=order).rev().find_map(|order| self.frames(order).ok());
        found.ok_or(NoMem)
    }

    /// 2^`order` such frames in a row.
    pub(super) fn frames(&self, order: u32) -> Result<Fresh, NoMem> {
        let frames = self.mem.frames(order)?;
        for i in 0..1 << order {
            self.clean(Phys(frames.phys().0 + i * FRAME_SIZE as u64), 0..FRAME_SIZE);
        }
        Ok(frames)
    }

    pub(super) fn load(&self, at: Place) -> u128 {
        self.mem.load128(at.table, at.index)
    }

    /// Replaces sixteen bytes in one store, after everything stored before.
    pub(super) fn store(&self, at: Place, value: u128) {
        self.mem.barrier();
        self.mem.store128(at.table, at.index, value);
        self.clean(at.table, at.index * 16..at.index * 16 + 16);
        self.mem.barrier();
    }

    /// The context table that serves `source`, or `None` where there is none yet.
    fn context_table(&self, root: Phys, source: SourceId) -> Option<Phys> {
        let entry = self.load(root_place(root, source));
        if !self.scalable {
            let entry = RootEntry::from_bits(entry);
            return entry.p().then_some(Phys(entry.ctp()));
        }
        let entry = ScalableRootEntry::from_bits(entry);
        if upper_half(source) {
            entry.up().then_some(Phys(entry.uctp()))
        } else {
            entry.lp().then_some(Phys(entry.lctp()))
        }
    }

    /// Links `table` as the context table of `source`'s bus, or of its half of it, unless another
    /// is there: then the frame comes back. The caller excludes other callers.
    pub(super) fn add_context_table(&self, root: Phys, source: SourceId, table: Fresh) -> Option<Fresh> {
        if self.context_table(root, source).is_some() {
            return Some(table);
        }
        let at = root_place(root, source);
        let table = table.publish();
        let value = if !self.scalable {
            RootEntry::new().with_p(true).with_ctp(table.0).into_bits()
        } else {
            let entry = ScalableRootEntry::from_bits(self.load(at));
            let entry = if upper_half(source) {
                entry.with_uctp(table.0).with_up(true)
            } else {
                entry.with_lctp(table.0).with_lp(true)
            };
            entry.into_bits()
        };
        self.store(at, value);
        None
    }

    /// The context entry of a requester: in scalable mode its low half, which has all fields
    /// (`[V]` 9.4).
    pub(super) fn context(&self, root: Phys, source: SourceId) -> Option<Place> {
        let table = self.context_table(root, source)?;
        let devfn = (source.0 & 0xff) as usize;
        let index = if self.scalable {
            devfn % SCALABLE_CONTEXT_ENTRIES * (SCALABLE_CONTEXT_ENTRY_SIZE / 16)
        } else {
            devfn
        };
        Some(Place { table, index })
    }

    pub(super) fn load_pasid(&self, at: Place) -> PasidHalves {
        PasidHalves {
            low: PasidLow::from_bits(self.load(at)),
            first_stage: PasidFirstStage::from_bits(self.load(at.next())),
        }
    }

    /// Shows a PASID entry. The half with P goes last; the other is written only where it is used
    /// and differs, which [`super::entry::change`] allows under a present entry for equal halves
    /// only.
    pub(super) fn store_pasid(&self, at: Place, new: &PasidHalves) {
        let old = self.load_pasid(at);
        if old.first_stage != new.first_stage && !old.low.p() {
            self.store(at.next(), new.first_stage.into_bits());
        }
        self.store(at, new.low.into_bits());
    }

    pub(super) fn clean(&self, table: Phys, bytes: core::ops::Range<usize>) {
        if !self.coherent {
            self.mem.clean(table, bytes);
        }
    }
}

fn root_place(root: Phys, source: SourceId) -> Place {
    Place { table: root, index: (source.0 >> 8 & 0xff) as usize }
}

/// Whether the upper half of a scalable-mode root entry serves `source`: devices 16 to 31.
fn upper_half(source: SourceId) -> bool {
    source.0 & 0x80 != 0
}
