//! What has to be invalidated for which change (`[V]` 6.5.2, table 28), as lists of descriptors.
//!
//! Hardware keeps the serial order context cache, PASID cache, IOTLB, device TLB by itself, with one
//! gap: nothing orders a device-TLB invalidation without PASID after a PASID-based IOTLB
//! invalidation (`[V]` 6.5.2.12). A fence stands before every group of device-TLB invalidations.

use super::unit::Unit;
use portcullis::{
    At, SourceId,
    driver::{Batch, CacheTag, Features},
};
use portcullis_pgtable::X86_FIRST_STAGE;
use portcullis_spec::vtd::{
    context::ContextEntry,
    pasid::{PasidLow, Pgtt},
    qi::{
        CcInv, Desc, DevTlbInv, InvWait, IotlbInv, PasidCacheInv, PasidDevTlbInv, PasidIotlbInv, address_mask,
    },
};

use super::tables::pasid_number;

/// Most blocks of pages that a range is cut into.
const MAX_BLOCKS: usize = 2;

/// Most descriptors of one list: each tag's IOTLB and device-TLB invalidations and the fence
/// between.
const MAX_ITEMS: usize = 2 * MAX_BLOCKS * Batch::MAX_TAGS + 1;

/// What an item of the queue is, as far as recovery has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An invalidation that hardware completes alone, or a fence. May be done again.
    Own,
    /// An invalidation that a device has to complete.
    DeviceTlb(u16),
    /// A page-group response. Must not be sent twice.
    Response,
    /// The wait that ends a submission.
    End,
}

/// A descriptor on its way to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) kind: Kind,
    pub(super) desc: Desc,
}

/// The descriptors of one submission, without the wait that ends it.
#[derive(Clone, Debug)]
pub(super) struct Items {
    items: [Item; MAX_ITEMS],
    len: usize,
}

impl Items {
    pub(super) fn new() -> Items {
        let none = Item { kind: Kind::Own, desc: [0; 4] };
        Items { items: [none; MAX_ITEMS], len: 0 }
    }

    pub(super) fn as_slice(&self) -> &[Item] {
        &self.items[..self.len]
    }

    pub(super) fn asks_a_device(&self) -> bool {
        self.as_slice().iter().any(|i| matches!(i.kind, Kind::DeviceTlb(_)))
    }

    /// Slots that the submission takes: with the wait that ends it, and in isolation one behind each
    /// device's invalidation.
    pub(super) fn slots(&self, isolate: bool) -> usize {
        let asks = |i: &&Item| matches!(i.kind, Kind::DeviceTlb(_));
        let marks = self.as_slice().iter().filter(asks).count();
        self.len + 1 + if isolate { marks } else { 0 }
    }

    /// The lists below are bounded by construction: more is a mistake of this file.
    fn push(&mut self, kind: Kind, desc: Desc) {
        self.items[self.len] = Item { kind, desc };
        self.len += 1;
    }

    pub(super) fn fence(&mut self) {
        self.push(Kind::Own, InvWait::fence_only().desc());
    }

    pub(super) fn response(&mut self, desc: Desc) {
        self.push(Kind::Response, desc);
    }

    /// Everything, in the order context cache, PASID cache, IOTLB (`[V]` 6.6): for a new root table,
    /// and for a change to a context entry whose domains are not tracked.
    pub(super) fn all_below_context(&mut self, unit: &Unit, context: CcInv) {
        self.push(Kind::Own, context.desc());
        if unit.scalable {
            self.push(Kind::Own, PasidCacheInv::global().desc());
        }
        self.push(Kind::Own, drain_flags(unit, IotlbInv::global()).desc());
    }

    /// After a change to a present context entry of legacy mode, whose old value was `old`.
    pub(super) fn context_entry(&mut self, unit: &Unit, source: SourceId, old: ContextEntry) {
        let did = old.did();
        self.push(Kind::Own, CcInv::device(did, source.0 as u16).desc());
        self.push(Kind::Own, drain_flags(unit, IotlbInv::domain(did)).desc());
    }

    /// After a change to a present PASID-table entry, whose old value was `old`.
    pub(super) fn pasid_entry(&mut self, unit: &Unit, at: At, old: PasidLow) {
        if old.translation_type() == Some(Pgtt::PassThrough) {
            // More than the manual asks for: QEMU takes a requester out of pass-through with this
            // one only.
            self.push(Kind::Own, CcInv::device(0, at.source.0 as u16).desc());
        }
        let pasid = pasid_number(at.pasid);
        self.push(Kind::Own, PasidCacheInv::pasid_within(old.did(), pasid).desc());
        self.translations(unit, at, old);
    }

    /// What the IOTLB and the paging-structure caches may hold from a PASID-table entry. One that
    /// was blocked does not say any more of which kind it was: the domain covers all kinds
    /// (`[V]` table 23).
    pub(super) fn translations(&mut self, unit: &Unit, at: At, entry: PasidLow) {
        let did = entry.did();
        let desc = match entry.translation_type() {
            Some(Pgtt::FirstStage | Pgtt::PassThrough) => {
                PasidIotlbInv::pasid_within(did, pasid_number(at.pasid)).desc()
            }
            Some(Pgtt::SecondStage | Pgtt::Nested) | None => drain_flags(unit, IotlbInv::domain(did)).desc(),
        };
        self.push(Kind::Own, desc);
    }

    /// Everything that a device's own TLB may hold for `at`.
    pub(super) fn device_tlb(&mut self, unit: &Unit, at: At, device: Features) {
        self.fence();
        self.device_tlb_block(unit, at, device, &Block::ALL);
    }

    fn device_tlb_block(&mut self, unit: &Unit, at: At, device: Features, block: &Block) {
        let sid = at.source.0 as u16;
        // Reserved without DIT ([V] 6.5.2.5).
        let pfsid = match device.physical_function {
            _ if !unit.ecap.dit() => 0,
            Some(pf) => pf.0 as u16,
            None => sid,
        };
        // 5 bits, of which 0 means 32.
        let mip = device.invalidate_queue_depth & 0x1f;
        let (first, log2) = (block.first, block.log2);
        let desc = match at.pasid {
            None => DevTlbInv::pages(sid, first, log2).with_pfsid(pfsid).with_mip(mip).desc(),
            Some(pasid) => {
                PasidDevTlbInv::pages(sid, pasid.get(), first, log2).with_pfsid(pfsid).with_mip(mip).desc()
            }
        };
        self.push(Kind::DeviceTlb(sid), desc);
    }

    /// After changes to the entries of a table: for each of its users what that user's tag finds,
    /// then the device TLBs. `device` tells the features of a requester whose TLB is in use.
    pub(super) fn batch(
        unit: &Unit,
        batch: &Batch<'_>,
        device: impl Fn(SourceId) -> Option<Features>,
    ) -> Items {
        assert!(batch.tags.len() <= Batch::MAX_TAGS, "a batch has at most {} tags", Batch::MAX_TAGS);
        let (blocks, count) = Block::cover(batch.range);
        let blocks = &blocks[..count];
        let mut items = Items::new();
        if batch.desc.id == X86_FIRST_STAGE {
            for t in batch.tags {
                items.first_stage(t, blocks, batch);
            }
        } else {
            let mut last = None;
            for t in batch.tags.iter().filter(|t| last.replace(t.tag) != Some(t.tag)) {
                items.second_stage(unit, t, blocks, batch);
            }
        }
        let mut fenced = false;
        for t in batch.tags.iter().filter(|t| t.ats) {
            let Some(features) = device(t.at.source) else {
                continue;
            };
            if !core::mem::replace(&mut fenced, true) {
                items.fence();
            }
            let held = if t.nested { &[Block::ALL][..] } else { blocks };
            for block in held {
                items.device_tlb_block(unit, t.at, features, block);
            }
        }
        items
    }

    /// `[V]` 6.5.2.4. Any address mask is allowed here, whatever MAMV says.
    fn first_stage(&mut self, tag: &CacheTag, blocks: &[Block], batch: &Batch<'_>) {
        let (did, pasid) = (tag.tag.0 as u16, pasid_number(tag.at.pasid));
        for block in blocks {
            let desc = if block.is_all() {
                PasidIotlbInv::pasid_within(did, pasid)
            } else {
                PasidIotlbInv::pages(did, pasid, block.first, block.log2, !batch.non_leaf)
            };
            self.push(Kind::Own, desc.desc());
        }
    }

    /// `[V]` 6.5.2.3: by page where hardware can, else the domain.
    fn second_stage(&mut self, unit: &Unit, tag: &CacheTag, blocks: &[Block], batch: &Batch<'_>) {
        let did = tag.tag.0 as u16;
        let by_page = !tag.nested && unit.cap.psi() && blocks.iter().all(|b| b.log2 <= unit.cap.mamv());
        if !by_page {
            let desc = drain_flags(unit, IotlbInv::domain(did));
            return self.push(Kind::Own, desc.desc());
        }
        for block in blocks {
            let desc = IotlbInv::pages(did, block.first, block.log2, !batch.non_leaf);
            self.push(Kind::Own, drain_flags(unit, desc).desc());
        }
    }
}

/// DR and DW where hardware has them: from major version 2 on it always drains (`[V]` 6.5.2.3).
fn drain_flags(unit: &Unit, desc: IotlbInv) -> IotlbInv {
    desc.with_dr(unit.cap.drd()).with_dw(unit.cap.dwd())
}

/// An aligned run of 2^`log2` pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    first: u64,
    log2: u8,
}

impl Block {
    const ALL: Block = Block { first: 0, log2: 52 };

    fn is_all(&self) -> bool {
        self.log2 >= Block::ALL.log2
    }

    fn holding(first: u64, last: u64) -> Block {
        let log2 = address_mask(first, last);
        Block { first: portcullis_spec::vtd::qi::masked_base(first, log2), log2 }
    }

    /// One block that holds the whole range, or two that meet inside it and are smaller together: a
    /// short range across a large boundary must not become a huge one.
    fn cover(range: Option<(u64, u64)>) -> ([Block; MAX_BLOCKS], usize) {
        let Some((first, last)) = range else {
            return ([Block::ALL; MAX_BLOCKS], 1);
        };
        let whole = Block::holding(first, last);
        if whole.log2 == 0 || whole.is_all() {
            return ([whole; MAX_BLOCKS], 1);
        }
        // The upper half of the aligned block begins inside the range, else a smaller block would
        // have held it.
        let middle = whole.first + (1 << (11 + whole.log2));
        let low = Block::holding(first, middle - 1);
        let high = Block::holding(middle, last);
        if low.log2.max(high.log2) + 1 < whole.log2 { ([low, high], 2) } else { ([whole; MAX_BLOCKS], 1) }
    }
}
