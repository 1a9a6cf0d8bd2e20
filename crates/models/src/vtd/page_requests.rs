//! The page request queue (`[V]` 7.4 to 7.7).

use portcullis_spec::vtd::fault::FaultReason;
use portcullis_spec::vtd::page_req::PageRequest as Slot;
use portcullis_spec::vtd::pasid::Pgtt;
use portcullis_spec::vtd::private_data;
use portcullis_spec::vtd::regs::{AddressType, FrcdType, Ttm};

use super::Vtd;
use super::faults::Fault;
use super::iotlb::Pages;
use super::tables::{Check, Context, PasidContext, Refusal};
use crate::adversary::Action;
use crate::bus::{Downstream, PageRequest, Responder, ResponseCode};
use crate::iommu::Cx;
use crate::log::{DropCause, What};

impl Vtd {
    /// Page requests that can wait at the ingress; flow control keeps them below it.
    const INGRESS: usize = 16_384;

    pub(super) fn page_requests_received(&self) -> u64 {
        self.accepted + self.ingress.len() as u64
    }

    pub(super) fn page_requests_accepted(&self) -> u64 {
        self.accepted
    }

    /// A page request has arrived: it is received, and accepted by a later step (`[V]` 7.7).
    pub(super) fn receive(&mut self, cx: &mut Cx<'_>, mut request: PageRequest) {
        // A unit that does not know private data has no place to put them.
        request.private = request.private.filter(|_| self.config.private_data);
        if self.ingress.len() >= Self::INGRESS {
            self.accept(cx);
        }
        self.ingress.push_back(request);
    }

    /// Takes the oldest page request from the ingress into the queue, or drops it.
    pub(super) fn accept(&mut self, cx: &mut Cx<'_>) {
        let Some(request) = self.ingress.pop_front() else {
            return;
        };
        self.accepted += 1;
        let pasid_and_entry = match self.page_request_tables(cx, &request) {
            Ok(found) => found,
            Err(refusal) => return self.drop_for_tables(cx, &request, refusal),
        };
        if self.regs.prs.pro() {
            return self.drop_request(cx, &request, DropCause::Overflowed, ResponseCode::Success);
        }
        let size = self.regs.pqa.size();
        let (head, tail) = (self.regs.pqh % size, self.regs.pqt % size);
        let next = (tail + portcullis_spec::vtd::page_req::PAGE_REQ_SIZE as u64) % size;
        let written = next != head && self.write_slot(cx, tail, &request);
        if !written {
            self.regs.page_condition(|prs| prs.set_pro(true));
            return self.drop_request(cx, &request, DropCause::Full, ResponseCode::Success);
        }
        self.implicit_invalidation(pasid_and_entry, request.addr);
        self.regs.pqt = next;
        self.regs.page_condition(|prs| prs.set_ppr(true));
        let unit = cx.unit();
        cx.note(What::PageQueued { request, unit, tail: next });
    }

    /// Follows the tables as far as a page request needs them (`[V]` table 30, page request columns).
    fn page_request_tables(&mut self, cx: &mut Cx<'_>, request: &PageRequest) -> Check<(u32, PasidContext)> {
        let fault = |reason| Err(Refusal::new(reason, false));
        if self.mode()? == Ttm::Legacy || !self.regs.gsts.tes() {
            return fault(FaultReason::Rta3);
        }
        let source = request.source.0;
        let context = match self.tables.context(cx, &self.limits, self.regs.root, source)? {
            Context::Scalable(c) => c,
            Context::Legacy(_) => return fault(FaultReason::Rta3),
        };
        let pasid = match request.prefix {
            Some(prefix) => self.check_pasid(&context, prefix.pasid.get())?,
            None => context.rid_pasid(),
        };
        if !context.pre() {
            return Err(Refusal::new(FaultReason::Sct8, context.fpd()));
        }
        if cx.adversary.strikes(Action::TableFault) {
            return fault(FaultReason::Spt1);
        }
        Ok((pasid, self.tables.pasid(cx, &self.limits, &context, source, pasid)?))
    }

    /// `[V]` table 27.
    fn implicit_invalidation(&mut self, (pasid, entry): (u32, PasidContext), addr: u64) {
        let pages = Pages::new(addr, 0);
        match entry.kind {
            Pgtt::FirstStage => self.iotlb.drop_pasid_pages(entry.did, pasid, pages, false),
            Pgtt::SecondStage | Pgtt::PassThrough => {
                self.iotlb.drop_domain_pages(entry.did, pages, false);
            }
            Pgtt::Nested => self.iotlb.drop_domain(entry.did),
        }
    }

    fn write_slot(&self, cx: &mut Cx<'_>, tail: u64, request: &PageRequest) -> bool {
        let mut slot = Slot::new()
            .with_rid(request.source.0)
            .with_rdr(request.read)
            .with_wrr(request.write)
            .with_lpig(request.last)
            .with_prgi(request.prgi & 0x1ff)
            .with_address(request.addr);
        if let Some(p) = request.prefix {
            slot = slot
                .with_pp(true)
                .with_pasid(p.pasid.get())
                .with_exr(p.execute && request.read)
                .with_pmr(p.privileged);
        }
        let qwords = private_data::request(slot, request.private);
        let bytes: Vec<u8> = qwords.iter().flat_map(|q| q.to_le_bytes()).collect();
        let at = self.regs.pqa.pqa().checked_add(tail);
        at.is_some_and(|at| cx.mem.write(at, &bytes).is_ok())
    }

    /// A remapping table error: recorded, and answered Invalid Request (`[V]` table 31).
    fn drop_for_tables(&mut self, cx: &mut Cx<'_>, request: &PageRequest, refusal: Refusal) {
        let reason = refusal.reason;
        // A stop marker is dropped silently where the unit understands them ([V] 11.4.3, SMS).
        let silent = request.is_stop_marker() && self.regs.ecap.sms();
        if refusal.is_recorded() && self.regs.gsts.tes() && !silent {
            let fault = Fault {
                reason,
                addr: request.addr,
                source: request.source,
                prefix: request.prefix,
                kind: FrcdType::PageRequest,
                at: AddressType::Untranslated,
            };
            self.regs.record(&fault, self.config.collapse_faults);
        }
        self.drop_request(cx, request, DropCause::Tables(reason.bits()), ResponseCode::Invalid);
    }

    fn drop_request(&mut self, cx: &mut Cx<'_>, request: &PageRequest, cause: DropCause, code: ResponseCode) {
        let unit = cx.unit();
        cx.note(What::PageDropped { request: *request, unit, cause });
        // Without the knowledge of stop markers the unit takes one for a last request.
        // Not in the manual any more for requests with private data that are not the last: software
        // has to answer them, so hardware that drops them does.
        let answered = request.last || request.private.is_some();
        if !answered || (request.is_stop_marker() && self.regs.ecap.sms()) {
            return;
        }
        let (source, prgi, by) = (request.source, request.prgi, Responder::Hardware);
        let private = request.private;
        let pasid = request.prefix.map(|p| p.pasid);
        cx.note(What::ResponseSent { source, pasid, prgi, code, by, private });
        cx.send(source, Downstream::PageResponse { pasid, prgi, code, by, private });
    }
}
