//! The page walkers (`[V]` 3.6, 3.7). The entry formats are written down here a second time on
//! purpose: they share nothing with the tables that the software under test builds.

use portcullis_spec::vtd::fault::FaultReason;

use super::iotlb::{Iotlb, Pointer, Stage};
use super::tables::Limits;
use crate::iommu::Cx;

/// Page frame of an entry: bits 51:12.
const ADDR: u64 = 0x000f_ffff_ffff_f000;
/// PS: the entry maps a page at a level above 1.
const PAGE_SIZE: u64 = 1 << 7;

/// Second stage (`[V]` 9.8): R, W, A, D and SNP.
const SS_READ: u64 = 1 << 0;
const SS_WRITE: u64 = 1 << 1;
const SS_ACCESSED: u64 = 1 << 8;
const SS_DIRTY: u64 = 1 << 9;
const SS_SNOOP: u64 = 1 << 11;

/// First stage (`[V]` 9.7): P, R/W, U/S, A and D.
const FS_PRESENT: u64 = 1 << 0;
const FS_WRITE: u64 = 1 << 1;
const FS_USER: u64 = 1 << 2;
const FS_ACCESSED: u64 = 1 << 5;
const FS_DIRTY: u64 = 1 << 6;

/// Attempts at setting a flag in an entry that software keeps changing.
const ATTEMPTS: u32 = 8;

/// What the request behind a walk wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) read: bool,
    pub(super) write: bool,
    /// A missing permission is an answer and not a fault: translation requests (`[V]` 4.2.3).
    pub(super) tolerant: bool,
    /// The request is privileged.
    pub(super) privileged: bool,
    /// A zero-length read that a write-only page serves too.
    pub(super) flush: bool,
}

/// Where a walk starts and how it treats flags.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) stage: Stage,
    pub(super) did: u16,
    /// Tag of the paging-structure caches: the second stage has none.
    pub(super) pasid: Option<u32>,
    pub(super) table: u64,
    pub(super) levels: u8,
    /// Accessed and dirty flags are kept (always, in the first stage).
    pub(super) flags: bool,
    /// Flags may be written: walks are snooped.
    pub(super) snooped: bool,
    /// WPE: supervisor writes honour read-only pages.
    pub(super) write_protect: bool,
    /// Reasons are those of legacy mode.
    pub(super) legacy: bool,
}

/// The end of a successful walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaf {
    /// Physical address of the 4 KiB that the input address lies in.
    pub(super) phys: u64,
    /// log2 of the page's size.
    pub(super) bits: u8,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) user: bool,
    pub(super) dirty: bool,
}

/// A walk under way.
struct Walk<'a, 'b> {
    cx: &'a mut Cx<'b>,
    limits: &'a Limits,
    start: &'a Start,
    need: Need,
}

/// Translates `addr`, starting at the cached pointer closest to the leaf.
pub(super) fn walk(
    cx: &mut Cx<'_>,
    caches: &mut Iotlb,
    limits: &Limits,
    start: &Start,
    addr: u64,
    need: Need,
) -> Result<Leaf, FaultReason> {
    let top = Pointer { table: start.table, read: true, write: true, user: true };
    let cached = caches.pointer(start.did, start.pasid, addr, start.levels);
    let (mut level, mut at) = cached.unwrap_or((start.levels, top));
    let mut walk = Walk { cx, limits, start, need };
    loop {
        let place = at.table.wrapping_add((addr >> (3 + 9 * level) & 0x1ff) << 3);
        let first = level == start.levels;
        let (entry, next) = walk.entry(place, level, first, at)?;
        if level == 1 || entry & PAGE_SIZE != 0 {
            return walk.leaf(place, entry, level, next, addr);
        }
        level -= 1;
        at = next;
        caches.keep_pointer(start.did, start.pasid, addr, level, next);
    }
}

impl Walk<'_, '_> {
    /// Reads and checks an entry, and marks it accessed. Returns it with the permissions so far.
    fn entry(
        &mut self,
        place: u64,
        level: u8,
        first: bool,
        at: Pointer,
    ) -> Result<(u64, Pointer), FaultReason> {
        for _ in 0..ATTEMPTS {
            self.cx.table_reads += 1;
            let entry = self.cx.mem.load64(place).map_err(|_| self.unreachable(first))?;
            let next = self.check(entry, level, at)?;
            let accessed = if self.is_first() { FS_ACCESSED } else { SS_ACCESSED };
            if !self.start.flags || entry & accessed != 0 {
                return Ok((entry, next));
            }
            if self.set(place, entry, accessed)? {
                return Ok((entry | accessed, next));
            }
        }
        Err(self.update_failed())
    }

    /// Presence, reserved fields and privilege.
    fn check(&self, entry: u64, level: u8, at: Pointer) -> Result<Pointer, FaultReason> {
        let table = entry & ADDR;
        if self.is_first() {
            if entry & FS_PRESENT == 0 {
                return Err(FaultReason::Sfs2);
            }
            if self.reserved(entry, level, self.limits.cap.fs1gp(), true) {
                return Err(FaultReason::Sfs3);
            }
            let user = at.user && entry & FS_USER != 0;
            if !user && !self.need.privileged {
                return Err(FaultReason::Sgn2);
            }
            let write = at.write && entry & FS_WRITE != 0;
            return Ok(Pointer { table, read: true, write, user });
        }
        let (read, write) = (entry & SS_READ != 0, entry & SS_WRITE != 0);
        let next = Pointer { table, read: at.read && read, write: at.write && write, user: true };
        if !read && !write {
            return Err(self.absent());
        }
        let cap = self.limits.cap;
        let leaf = level == 1 || entry & PAGE_SIZE != 0;
        let snoop = entry & SS_SNOOP != 0 && !(leaf && self.limits.ecap.sc());
        if snoop || self.reserved(entry, level, cap.second_stage_1g(), cap.second_stage_2m()) {
            return Err(if self.start.legacy { FaultReason::Lss2 } else { FaultReason::Sss3 });
        }
        if !next.read && !next.write {
            return Err(self.absent());
        }
        Ok(next)
    }

    /// Bits that both formats reserve: the frame beyond the host address width, PS where there is no
    /// such page, and the low frame bits of a large page.
    fn reserved(&self, entry: u64, level: u8, huge: bool, large: bool) -> bool {
        let size = level > 1 && entry & PAGE_SIZE != 0;
        // Bit 12 of a first-stage large page is its PAT bit ([V] 9.7).
        let lowest = if self.is_first() { 13 } else { 12 };
        let low = |bits: u32| entry & ((1 << bits) - 1) & !((1 << lowest) - 1) != 0;
        let bad_size = size
            && match level {
                2 => !large || low(21),
                3 => !huge || low(30),
                _ => true,
            };
        bad_size || self.limits.beyond(entry & ADDR)
    }

    fn leaf(
        &mut self,
        place: u64,
        entry: u64,
        level: u8,
        at: Pointer,
        addr: u64,
    ) -> Result<Leaf, FaultReason> {
        let bits = 12 + 9 * (level - 1);
        let mask = (1u64 << bits) - 1;
        let phys = (entry & ADDR & !mask) | (addr & mask & !0xfff);
        let write = at.write || (self.is_first() && self.need.privileged && !self.start.write_protect);
        if !self.need.tolerant {
            if self.need.write && !write {
                return Err(if self.start.legacy { FaultReason::Lgn2 } else { FaultReason::Sgn6 });
            }
            if self.need.read && !at.read && !self.need.flush {
                return Err(if self.start.legacy { FaultReason::Lgn3 } else { FaultReason::Sgn7 });
            }
        }
        let flag = if self.is_first() { FS_DIRTY } else { SS_DIRTY };
        let mut entry = entry;
        if self.start.flags && self.need.write && write {
            entry = self.make_dirty(place, entry, flag)?;
        }
        let dirty = !self.start.flags || entry & flag != 0;
        Ok(Leaf { phys, bits, read: at.read, write, user: at.user, dirty })
    }

    fn make_dirty(&mut self, place: u64, entry: u64, flag: u64) -> Result<u64, FaultReason> {
        // Only flags may have changed since the entry was read; else the page is another one.
        let mut entry = entry;
        for _ in 0..ATTEMPTS {
            if entry & flag != 0 || self.set(place, entry, flag)? {
                return Ok(entry | flag);
            }
            let now = self.cx.mem.load64(place).map_err(|_| self.update_failed())?;
            let flags = FS_ACCESSED | FS_DIRTY | SS_ACCESSED | SS_DIRTY;
            if (now ^ entry) & !flags != 0 {
                break;
            }
            entry = now;
        }
        Err(self.update_failed())
    }

    /// Sets a flag in an entry that still reads as it did. False where it has changed.
    fn set(&mut self, place: u64, entry: u64, flag: u64) -> Result<bool, FaultReason> {
        if !self.start.snooped {
            return Err(if self.is_first() { FaultReason::Sfs9 } else { FaultReason::Sss5 });
        }
        let seen = self.cx.mem.cas64(place, entry, entry | flag).map_err(|_| self.update_failed())?;
        Ok(seen == entry)
    }

    fn is_first(&self) -> bool {
        self.start.stage == Stage::First
    }

    fn absent(&self) -> FaultReason {
        match (self.start.legacy, self.need.write) {
            (true, true) => FaultReason::Lgn2,
            (true, false) => FaultReason::Lgn3,
            (false, _) => FaultReason::Sss2,
        }
    }

    fn unreachable(&self, first: bool) -> FaultReason {
        match (self.is_first(), self.start.legacy, first) {
            (true, _, true) => FaultReason::Sfs4,
            (true, _, false) => FaultReason::Sfs1,
            (false, true, true) => FaultReason::Lct4,
            (false, true, false) => FaultReason::Lss1,
            (false, false, true) => FaultReason::Sss4,
            (false, false, false) => FaultReason::Sss1,
        }
    }

    fn update_failed(&self) -> FaultReason {
        if self.is_first() { FaultReason::Sfs10 } else { FaultReason::Sss6 }
    }
}
