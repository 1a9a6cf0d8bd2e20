//! PASID directories: how large one is, where its entries are, and the tables that it leads to.
//!
//! A directory is as large as the PASIDs of its requester ask for, a run of frames at most; the
//! tables, 64 PASIDs each, come with what is attached (`[V]` 3.4.3, 9.4, 9.5).

use super::tables::{Place, RID_PASID, Tables};
use portcullis::Platform;
use portcullis_pgtable::{FRAME_SIZE, NoMem, Phys};
use portcullis_spec::vtd::pasid::{
    PASID_DIR_ENTRY_SIZE, PASID_ENTRY_SIZE, PASID_TABLE_ENTRIES, PasidDirEntry, dir_index, table_index,
};

/// PASID bits of the smallest directory, which has PDTS 0: 2^7 entries of 64 PASIDs (`[V]` 9.4).
const LEAST_BITS: u8 = 7 + PASID_TABLE_ENTRIES.ilog2() as u8;

/// PASID bits of the largest directory, with PDTS 7.
const MOST_BITS: u8 = LEAST_BITS + 7;

const ENTRIES_PER_FRAME: usize = FRAME_SIZE / PASID_DIR_ENTRY_SIZE;

/// A PASID directory. Its size stays what it is while a context entry leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    first: Phys,
    /// The PASIDs that it has entries for have so many bits, [`LEAST_BITS`] to [`MOST_BITS`].
    bits: u8,
}

impl Directory {
    /// PASIDDIRPTR.
    pub(super) fn address(&self) -> Phys {
        self.first
    }

    /// PDTS: there are 2^(PDTS+7) entries (`[V]` 9.4).
    pub(super) fn pdts(&self) -> u8 {
        self.bits - LEAST_BITS
    }

    /// Bits of the PASIDs that it has entries for.
    pub(super) fn pasid_bits(&self) -> u8 {
        self.bits
    }

    /// The frame and the index there of the entry for a PASID and its neighbours.
    fn entry(&self, pasid: u32) -> Option<(Phys, usize)> {
        let index = dir_index(pasid);
        let frame = (index / ENTRIES_PER_FRAME * FRAME_SIZE) as u64;
        (pasid >> self.bits == 0).then(|| (Phys(self.first.0 + frame), index % ENTRIES_PER_FRAME))
    }
}

/// The frames of a directory for PASIDs of so many bits are 2^`order`.
fn order(bits: u8) -> u32 {
    u32::from(bits - LEAST_BITS).saturating_sub((ENTRIES_PER_FRAME >> 7).ilog2())
}

impl<P: Platform> Tables<P> {
    /// A directory for PASIDs of so many bits, with the table for requests without PASID; for fewer
    /// where there is no run of frames for all.
    pub(super) fn new_directory(&self, pasid_bits: u8) -> Result<Directory, NoMem> {
        let table = self.frame()?;
        let bits = pasid_bits.clamp(LEAST_BITS, MOST_BITS);
        let frames = match self.largest_run(order(bits)) {
            Ok(frames) => frames,
            Err(e) => {
                self.mem.release(table);
                return Err(e);
            }
        };
        // Each order less is half as many PASIDs.
        let bits = bits - (order(bits) - frames.order()) as u8;
        let directory = Directory { first: frames.publish(), bits };
        self.add_pasid_table(directory, RID_PASID, table.publish());
        Ok(directory)
    }

    /// The low half of a PASID's entry; `None` while the table that holds it does not exist, and for
    /// a PASID that the directory does not cover.
    pub(super) fn pasid(&self, directory: Directory, pasid: u32) -> Option<Place> {
        let (frame, index) = directory.entry(pasid)?;
        let entry = PasidDirEntry::from_bits(self.mem.load::<u64>(frame, index));
        let within = table_index(pasid) * (PASID_ENTRY_SIZE / 16);
        entry.p().then(|| Place::new(Phys(entry.smptblptr()), within))
    }

    /// Links `table` as the PASID table for `pasid` and its neighbours, unless another is there:
    /// then it comes back. The caller excludes other callers.
    pub(super) fn add_pasid_table(&self, directory: Directory, pasid: u32, table: Phys) -> Option<Phys> {
        let Some((frame, index)) = directory.entry(pasid) else {
            return Some(table);
        };
        if PasidDirEntry::from_bits(self.mem.load::<u64>(frame, index)).p() {
            return Some(table);
        }
        let entry = PasidDirEntry::new().with_p(true).with_smptblptr(table.0);
        self.mem.barrier();
        self.mem.store::<u64>(frame, index, entry.into_bits());
        self.clean(frame, index * 8..index * 8 + 8);
        self.mem.barrier();
        None
    }

    /// Gives back a directory and its tables, which hardware cannot reach any more.
    pub(super) fn free_directory(&self, directory: Directory) {
        for pasid in (0..1 << directory.bits).step_by(PASID_TABLE_ENTRIES) {
            if let Some(entry) = self.pasid(directory, pasid) {
                self.mem.reclaim(entry.table());
            }
        }
        self.mem.reclaim_frames(directory.first, order(directory.bits));
    }
}
