//! Queued invalidation (`[V]` 6.5.2): descriptors are fetched, executed in any order that the manual
//! allows, and waited for.

use std::collections::{BTreeSet, VecDeque};

use portcullis_spec::vtd::private_data;
use portcullis_spec::vtd::qi::{
    CcGranularity, DescWidth, Descriptor, InvWait, IotlbGranularity, PageGroupResponse,
    PasidCacheGranularity, PasidIotlbGranularity, Rules, dev_tlb_size,
};
use portcullis_spec::vtd::regs::{Iqei, Ttm};

use super::iotlb::{Pages, Stage, Tag};
use super::translate::Use;
use super::{Config, Vtd};
use crate::adversary::Action;
use crate::bus::{Downstream, Pasid, PrivateData, RequesterId, Responder, ResponseCode};
use crate::iommu::Cx;
use crate::log::{Cache, What};

/// A descriptor that has been fetched and not been completed.
#[derive(Debug)]
struct Op {
    seq: u64,
    descriptor: Descriptor,
    /// For a wait with PD: page requests received that it stands behind.
    page_requests: u64,
    /// For a page group response: what it brings back.
    private: Option<PrivateData>,
}

/// A device-TLB invalidation under way (`[V]` 4.3).
#[derive(Debug, Clone, Copy)]
struct Pending {
    seq: u64,
    source: RequesterId,
    deadline: u64,
}

/// The queue's state beyond its registers.
#[derive(Debug, Default)]
pub(super) struct Queue {
    ops: VecDeque<Op>,
    next_seq: u64,
    itags: Vec<Option<Pending>>,
    /// The earliest deadline of these.
    deadline: Option<u64>,
    /// Accesses that an executed invalidation has to see finished, each with its place.
    drains: BTreeSet<(u64, u64)>,
    /// Waits complete in the order of the queue.
    waits_in_order: bool,
}

impl Queue {
    /// Descriptors fetched ahead.
    const DEPTH: usize = 16;

    pub(super) fn new(config: &Config) -> Self {
        Queue {
            itags: vec![None; usize::from(config.itags.clamp(1, 32))],
            waits_in_order: config.waits_in_order,
            ..Queue::default()
        }
    }

    /// Nothing more is fetched behind a fence.
    fn has_room(&self) -> bool {
        let fenced = matches!(self.ops.back(), Some(Op { descriptor: Descriptor::Wait(w), .. }) if w.fence());
        self.ops.len() < Self::DEPTH && !fenced
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Something of the itags has changed.
    fn find_deadline(&mut self) {
        self.deadline = self.itags.iter().flatten().map(|p| p.deadline).min();
    }

    pub(super) fn finished(&mut self, access: u64) {
        self.drains.retain(|(a, _)| *a != access);
    }

    /// Forgets what has been fetched: queued invalidation is being disabled.
    pub(super) fn reset(&mut self) {
        self.ops.clear();
        self.itags.iter_mut().for_each(|t| *t = None);
        self.find_deadline();
    }

    /// The fetched descriptors that may be executed now, the one in order first.
    pub(super) fn executable(&self, accepted: u64, reorder: bool) -> impl Iterator<Item = usize> + '_ {
        let depth = if reorder { self.ops.len() } else { self.ops.len().min(1) };
        (0..depth).filter(move |&i| self.may_execute(i, accepted))
    }

    /// The ordering rules of `[V]` 6.5.2.12 and 7.8.
    fn may_execute(&self, index: usize, accepted: u64) -> bool {
        let Some(op) = self.ops.get(index) else {
            return false;
        };
        let ahead = || self.ops.iter().take(index).map(|o| &o.descriptor);
        use Descriptor as D;
        match &op.descriptor {
            D::ContextCache(_) | D::InterruptEntryCache(_) | D::Hpt(_) => true,
            D::PasidCache(_) => !ahead().any(|d| matches!(d, D::ContextCache(_))),
            D::Iotlb(_) | D::PasidIotlb(_) => {
                !ahead().any(|d| matches!(d, D::ContextCache(_) | D::PasidCache(_)))
            }
            D::DevTlb(_) | D::PasidDevTlb(_) => {
                let before = |d: &D| match d {
                    D::Iotlb(_) | D::PasidIotlb(_) | D::InterruptEntryCache(_) => true,
                    D::DevTlb(_) | D::PasidDevTlb(_) | D::PageGroupResponse(_) => true,
                    D::ContextCache(_) | D::PasidCache(_) | D::Hpt(_) | D::Wait(_) => false,
                };
                !ahead().any(before) && self.itags.iter().any(Option::is_none)
            }
            D::PageGroupResponse(_) => {
                !ahead().any(|d| matches!(d, D::DevTlb(_) | D::PasidDevTlb(_) | D::PageGroupResponse(_)))
            }
            D::Wait(w) => {
                // All behind the previous wait; all of the queue where waits keep their order.
                let since = |o: &&Op| o.seq < op.seq && matches!(o.descriptor, D::Wait(_));
                let previous = self.ops.iter().filter(since).map(|o| o.seq).max();
                let from = previous.filter(|_| !self.waits_in_order).map_or(0, |s| s + 1);
                let covered = |seq: u64| (from..op.seq).contains(&seq);
                !self.ops.iter().any(|o| covered(o.seq))
                    && !self.itags.iter().flatten().any(|p| covered(p.seq))
                    && !self.drains.iter().any(|&(_, seq)| covered(seq))
                    && (!w.pd() || accepted >= op.page_requests)
            }
        }
    }
}

impl Vtd {
    /// `[V]` 6.5.2: when descriptors are fetched.
    pub(super) fn may_fetch(&self) -> bool {
        let r = &self.regs;
        r.gsts.qies() && !r.fsts.iqe() && !r.fsts.ite() && r.iqh != r.iqt && self.queue.has_room()
    }

    pub(super) fn fetch(&mut self, cx: &mut Cx<'_>) {
        if !self.may_fetch() {
            return;
        }
        match self.read_descriptor(cx) {
            Ok((descriptor, private)) => {
                let seq = self.queue.next_seq;
                self.queue.next_seq += 1;
                let page_requests = self.page_requests_received();
                self.queue.ops.push_back(Op { seq, descriptor, page_requests, private });
                let iqa = self.regs.iqa;
                self.regs.iqh = (self.regs.iqh + iqa.width().bytes() as u64) % iqa.size();
            }
            Err(why) => self.regs.queue_error(why),
        }
    }

    fn read_descriptor(&mut self, cx: &mut Cx<'_>) -> Result<(Descriptor, Option<PrivateData>), Iqei> {
        let r = &self.regs;
        let width = r.iqa.width();
        let rules = Rules::new(r.root, width, r.cap, r.ecap)?;
        if r.iqt >= r.iqa.size() || r.iqh >= r.iqa.size() {
            return Err(Iqei::InvalidTail);
        }
        if width == DescWidth::Bits256 && r.iqt & 0x10 != 0 {
            return Err(Iqei::TailUnaligned);
        }
        let mut bytes = [0; 32];
        let bytes = &mut bytes[..width.bytes()];
        cx.table_reads += 1;
        let at = r.iqa.iqa().checked_add(r.iqh).ok_or(Iqei::FetchError)?;
        cx.mem.read(at, bytes).map_err(|_| Iqei::FetchError)?;
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b));
        }
        let (words, private) = match self.config.private_data {
            true => private_data::take_from_response(words),
            false => (words, None),
        };
        Descriptor::decode(&words, &rules).map(|d| (d, private))
    }

    /// Executes a fetched descriptor.
    pub(super) fn execute(&mut self, cx: &mut Cx<'_>, index: usize) {
        if !self.queue.may_execute(index, self.page_requests_accepted()) {
            return;
        }
        let Some(op) = self.queue.ops.remove(index) else {
            return;
        };
        if index > 0 {
            cx.adversary.count(Action::Reorder);
        }
        if let Some((cache, source, pasid)) = invalidation(&op.descriptor) {
            cx.note(What::Invalidated { cache, source, pasid });
        }
        let ignore = cx.mutations;
        match op.descriptor {
            Descriptor::ContextCache(d) => {
                if !ignore.ignore_context_invalidation {
                    self.drop_contexts(d.granularity(), d.did(), d.sid(), d.fm());
                }
            }
            Descriptor::PasidCache(d) => {
                if !ignore.ignore_pasid_invalidation {
                    match d.granularity() {
                        Some(PasidCacheGranularity::Domain) => self.tables.drop_pasid_domain(d.did()),
                        Some(PasidCacheGranularity::Pasid) => self.tables.drop_pasid(d.did(), d.pasid()),
                        Some(PasidCacheGranularity::Global) => self.tables.clear_pasids(),
                        None => {}
                    }
                }
            }
            Descriptor::Iotlb(d) => {
                if !ignore.ignore_iotlb_invalidation {
                    let drains = self.config.major >= 2 || d.dr() || d.dw();
                    let pages = Pages::new(d.address(), d.am());
                    self.drop_iotlb(d.granularity(), d.did(), pages, d.ih(), drains.then_some(op.seq));
                }
            }
            Descriptor::PasidIotlb(d) => {
                if !ignore.ignore_iotlb_invalidation {
                    let pages = Pages::new(d.address(), d.am());
                    self.drop_pasid_iotlb(d.granularity(), d.did(), d.pasid(), pages, d.ih(), op.seq);
                }
            }
            Descriptor::DevTlb(d) => {
                let (addr, pages) = dev_tlb_size(d.address(), d.s());
                self.ask_device(cx, op.seq, d.sid(), None, false, addr, pages);
            }
            Descriptor::PasidDevTlb(d) => {
                let (addr, pages) = dev_tlb_size(d.address(), d.s());
                self.ask_device(cx, op.seq, d.sid(), Pasid::new(d.pasid()), d.gi(), addr, pages);
            }
            Descriptor::PageGroupResponse(d) => respond(cx, &d, op.private),
            Descriptor::Wait(d) => self.complete_wait(cx, &d),
            // Nothing is cached of either: interrupts are not remapped and there is no HPT.
            Descriptor::InterruptEntryCache(_) | Descriptor::Hpt(_) => {}
        }
    }

    pub(super) fn drop_contexts(&mut self, g: Option<CcGranularity>, did: u16, sid: u16, fm: u8) {
        match g {
            Some(CcGranularity::Global) => self.tables.clear_contexts(),
            // Scalable-mode entries carry no domain: everything goes.
            Some(CcGranularity::Domain) if self.regs.root.mode() == Some(Ttm::Legacy) => {
                self.tables.drop_context_domain(did);
            }
            Some(CcGranularity::Domain) => self.tables.clear_contexts(),
            Some(CcGranularity::Device) => self.tables.drop_context_device(did, sid, fm),
            None => {}
        }
    }

    /// Drops translations; with `drain`, accesses that use them are waited for from this place on.
    pub(super) fn drop_iotlb(
        &mut self,
        g: Option<IotlbGranularity>,
        did: u16,
        pages: Pages,
        hint: bool,
        drain: Option<u64>,
    ) {
        match g {
            Some(IotlbGranularity::Global) => {
                self.iotlb.clear();
                self.drain(drain, |_, _| true);
            }
            Some(IotlbGranularity::Domain) => {
                self.iotlb.drop_domain(did);
                self.drain(drain, |t, _| t.did == did);
            }
            Some(IotlbGranularity::Page) => {
                self.iotlb.drop_domain_pages(did, pages, hint);
                self.drain(drain, |t, page| {
                    t.did == did && (t.stage == Stage::First || pages.contains(page))
                });
            }
            None => {}
        }
    }

    pub(super) fn drop_pasid_iotlb(
        &mut self,
        g: Option<PasidIotlbGranularity>,
        did: u16,
        pasid: u32,
        pages: Pages,
        hint: bool,
        seq: u64,
    ) {
        let same = |t: &Tag| t.did == did && t.pasid == pasid;
        match g {
            Some(PasidIotlbGranularity::Pasid) => {
                self.iotlb.drop_pasid(did, pasid);
                self.drain(Some(seq), |t, _| same(t));
            }
            Some(PasidIotlbGranularity::Page) => {
                self.iotlb.drop_pasid_pages(did, pasid, pages, hint);
                self.drain(Some(seq), |t, page| same(t) && pages.contains(page));
            }
            None => {}
        }
    }

    fn drain(&mut self, seq: Option<u64>, which: impl Fn(&Tag, u64) -> bool) {
        let Some(seq) = seq else { return };
        for (&access, used) in &self.begun {
            if matches!(used, Use::Translated(tag, page) if which(tag, *page)) {
                self.queue.drains.insert((access, seq));
            }
        }
    }

    /// True while an access that began before translation was on has not finished.
    pub(super) fn is_bypassed(&self) -> bool {
        self.begun.values().any(|u| matches!(u, Use::Bypass))
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of an invalidation request")]
    fn ask_device(
        &mut self,
        cx: &mut Cx<'_>,
        seq: u64,
        sid: u16,
        pasid: Option<Pasid>,
        global: bool,
        addr: u64,
        pages_log2: u8,
    ) {
        if cx.mutations.ignore_device_tlb_invalidation {
            return;
        }
        let Some(itag) = self.queue.itags.iter().position(Option::is_none) else {
            return;
        };
        let source = RequesterId(sid);
        let deadline = cx.now.saturating_add(self.config.device_tlb_timeout);
        self.queue.itags[itag] = Some(Pending { seq, source, deadline });
        self.queue.find_deadline();
        let bits = 12 + pages_log2;
        cx.send(source, Downstream::Invalidate { itag: itag as u8, pasid, global, addr, bits });
    }

    fn complete_wait(&mut self, cx: &mut Cx<'_>, wait: &InvWait) {
        if wait.sw() {
            let mask = 1u64.checked_shl(u32::from(self.config.host_address_width));
            let addr = wait.status_address() & mask.map_or(u64::MAX, |m| m - 1);
            // Behaviour is undefined where this is not memory ([V] 6.5.2.9): nothing is written.
            let _ = cx.mem.write(addr, &wait.status_data().to_le_bytes());
        }
        if wait.interrupt() && !self.regs.ics.iwc() {
            self.regs.ics.set_iwc(true);
            self.regs.invalidation_event.raise();
        }
    }

    /// A device has completed invalidations (`[V]` 4.3).
    pub(super) fn completed(&mut self, source: RequesterId, itags: u32) {
        if !self.regs.gsts.tes() {
            return;
        }
        let received = self.page_requests_received();
        let mut invalid = false;
        for i in (0..32).filter(|i| itags >> i & 1 != 0) {
            match self.queue.itags.get_mut(i) {
                Some(slot @ Some(Pending { .. })) if slot.is_some_and(|p| p.source == source) => {
                    *slot = None;
                }
                _ => invalid = true,
            }
        }
        self.queue.find_deadline();
        for op in &mut self.queue.ops {
            op.page_requests = received;
        }
        if invalid {
            if !self.regs.fault_unserved() {
                self.regs.fault_event.raise();
            }
            self.regs.fsts.set_ice(true);
            if self.config.names_suspects {
                self.regs.iqercd.set_icesid(source.0);
            }
        }
    }

    /// Device-TLB invalidations have timed out (`[V]` 6.5.2.11).
    pub(super) fn time_out(&mut self, now: u64) {
        let oldest = self.queue.itags.iter().flatten().map(|p| p.seq).min();
        let mut suspect = None;
        for slot in &mut self.queue.itags {
            if let Some(p) = slot.filter(|p| p.deadline <= now) {
                suspect = suspect.or(Some(p.source));
                *slot = None;
            }
        }
        self.queue.find_deadline();
        let (Some(suspect), Some(oldest)) = (suspect, oldest) else {
            return;
        };
        if !self.regs.fault_unserved() {
            self.regs.fault_event.raise();
        }
        self.regs.fsts.set_ite(true);
        if self.config.names_suspects {
            self.regs.iqercd.set_itesid(suspect.0);
        }
        // Waits are aborted, and what stands behind the oldest pending invalidation is not
        // guaranteed: it does not happen.
        let wait = |op: &Op| matches!(op.descriptor, Descriptor::Wait(_));
        self.queue.ops.retain(|op| !wait(op) && op.seq < oldest);
    }
}

/// What an invalidation is about, for the log.
fn invalidation(d: &Descriptor) -> Option<(Cache, Option<RequesterId>, Option<Pasid>)> {
    Some(match d {
        Descriptor::ContextCache(_) => (Cache::Context, None, None),
        Descriptor::PasidCache(_) => (Cache::Pasid, None, None),
        Descriptor::Iotlb(_) => (Cache::Iotlb, None, None),
        Descriptor::PasidIotlb(d) => (Cache::Iotlb, None, Pasid::new(d.pasid())),
        Descriptor::DevTlb(d) => (Cache::DeviceTlb, Some(RequesterId(d.sid())), None),
        Descriptor::PasidDevTlb(d) => (Cache::DeviceTlb, Some(RequesterId(d.sid())), Pasid::new(d.pasid())),
        _ => return None,
    })
}

/// Sends software's answer to a group of page requests (`[V]` 7.6.1).
fn respond(cx: &mut Cx<'_>, d: &PageGroupResponse, private: Option<PrivateData>) {
    let source = RequesterId(d.rid());
    let pasid = if d.pp() { Pasid::new(d.pasid()) } else { None };
    let code = ResponseCode::from_wire(d.rc());
    let (prgi, by) = (d.prgi(), Responder::Software);
    let times = if cx.mutations.answer_twice { 2 } else { 1 };
    for _ in 0..times {
        cx.note(What::ResponseSent { source, pasid, prgi, code, by, private });
        cx.send(source, Downstream::PageResponse { pasid, prgi, code, by, private });
    }
}
