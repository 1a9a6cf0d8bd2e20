//! One leaf: what most calls of map and unmap are about, in a table that an earlier call found.
//!
//! Such a call is a few compares, one load and one store. It needs no stack, because whatever else
//! there is to do, or to say, is done out of line by the functions named `_other`.

use crate::{
    cursor::low,
    engine::Table,
    format::{Entry, Format},
    gather::Gather,
    mem::{Phys, TableMem},
    table::{MapError, Prot, UnmapError},
};

/// What such a call compares with. For walkers that do not snoop nothing fits: they want cleaning.
pub(crate) struct Quick<F: Format> {
    /// What the format makes of the permissions that are asked for most.
    templates: [F::Word; 64],
    /// As [`Table::reach`].
    reach: u64,
    /// As [`Table::output_last`].
    output_last: u64,
}

impl<F: Format> Quick<F> {
    pub(crate) fn new(format: &F, coherent: bool, reach: u64, output_last: u64) -> Quick<F> {
        let template = |bits: usize| format.template(Prot::from_bits_retain(bits as u32)).unwrap_or_default();
        // A leaf ends beyond 0.
        let known = |last: u64| if coherent { last } else { 0 };
        Quick {
            templates: core::array::from_fn(template),
            reach: known(reach),
            output_last: known(output_last),
        }
    }

    /// The template for `prot`; `None` where only the format can tell.
    #[inline]
    fn template(&self, prot: Prot) -> Option<F::Word> {
        let template = *self.templates.get(prot.bits() as usize)?;
        (template != F::Word::default()).then_some(template)
    }
}

impl<F: Format, M: TableMem> Table<F, M> {
    /// Maps a single leaf of one entry into a table at `LEVEL` that is there; `false` where anything
    /// else has to be done or said. Without `WALK` the table must have been found before.
    #[inline(always)]
    pub(crate) fn map_leaf<const LEVEL: usize, const WALK: bool>(
        &self,
        iova: u64,
        phys: Phys,
        prot: Prot,
    ) -> bool {
        let rest = low(F::shift(LEVEL));
        let output_last = if WALK { self.output_last } else { self.quick.output_last };
        if phys.0 & rest != 0
            || phys.0 | rest > output_last
            || (LEVEL > 1 && self.page_sizes & (rest + 1) == 0)
        {
            return false;
        }
        let template = if WALK { self.format.template(prot) } else { self.quick.template(prot) };
        let Some(template) = template else {
            return false;
        };
        let Some((table, i)) = self.place_of::<LEVEL, WALK>(iova) else {
            return false;
        };
        if Self::is_present(self.load(table, i)) {
            return false;
        }
        self.store(table, i, self.format.leaf(template, LEVEL, phys, F::shift(LEVEL)));
        if WALK {
            self.clean(table, i..i + 1);
        }
        self.mem.barrier();
        true
    }

    /// [`crate::IoTable::map`], whatever it takes.
    #[cold]
    #[inline(never)]
    pub(crate) fn map_other(&self, iova: u64, phys: Phys, len: u64, prot: Prot) -> Result<(), MapError> {
        let done = if len == 1 << F::GRANULE_BITS {
            self.map_leaf::<1, true>(iova, phys, prot)
        } else if len == 1 << F::shift(2) {
            self.map_leaf::<2, true>(iova, phys, prot)
        } else {
            false
        };
        if done { Ok(()) } else { self.map_any(iova, phys, len, prot) }
    }

    /// Unmaps what one entry of a table at `LEVEL` maps, if it is a leaf of its own; `false` where
    /// anything else has to be done or said. `WALK` is as for [`Table::map_leaf`].
    #[inline(always)]
    pub(crate) fn unmap_leaf<const LEVEL: usize, const WALK: bool>(
        &self,
        iova: u64,
        gather: &mut Gather,
    ) -> bool {
        let Some((table, i)) = self.place_of::<LEVEL, WALK>(iova) else {
            return false;
        };
        match self.format.decode(LEVEL, self.load(table, i)) {
            Entry::Leaf { size_bits, .. } if size_bits == F::shift(LEVEL) => {}
            _ => return false,
        }
        self.store(table, i, F::Word::default());
        if WALK {
            self.clean(table, i..i + 1);
            self.clean_barrier();
        }
        let rest = low(F::shift(LEVEL));
        gather.add_leaves(iova, iova | rest, rest + 1);
        true
    }

    /// [`crate::IoTable::unmap`], whatever it takes.
    #[cold]
    #[inline(never)]
    pub(crate) fn unmap_other(&self, iova: u64, len: u64, gather: &mut Gather) -> Result<(), UnmapError> {
        let done = if len == 1 << F::GRANULE_BITS {
            self.unmap_leaf::<1, true>(iova, gather)
        } else if len == 1 << F::shift(2) {
            self.unmap_leaf::<2, true>(iova, gather)
        } else {
            false
        };
        if done { Ok(()) } else { self.unmap_any(iova, len, gather) }
    }

    /// The table at `LEVEL` and the entry in it for a leaf that begins at `iova`.
    #[inline(always)]
    fn place_of<const LEVEL: usize, const WALK: bool>(&self, iova: u64) -> Option<(Phys, usize)> {
        let rest = low(F::shift(LEVEL));
        let reach = if WALK { self.reach } else { self.quick.reach };
        let before_space = if F::SPACES.len() == 1 { 0 } else { self.before_space };
        if iova & rest != 0 || (iova | rest).wrapping_add(before_space) > reach {
            return None;
        }
        let pos = if F::SPACES.len() == 1 { iova } else { iova & reach };
        let table = if WALK { self.table_at::<LEVEL>(pos) } else { self.hints.find(LEVEL, pos) };
        Some((table?, self.index_at::<LEVEL>(pos)))
    }
}
