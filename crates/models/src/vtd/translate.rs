//! What becomes of a request (`[V]` 3.4, 3.15, 4.2, table 30).

use portcullis_spec::vtd::context::{ScalableContext, TranslationType};
use portcullis_spec::vtd::fault::{Answer, FaultReason};
use portcullis_spec::vtd::pasid::Pgtt;
use portcullis_spec::vtd::regs::{AddressType as At, FrcdType, Ttm};
use portcullis_spec::vtd::{INTERRUPT_RANGE_START, in_interrupt_range};

use super::Vtd;
use super::faults::Fault;
use super::iotlb::{Entry, Key, NO_PASID, Stage, Tag, table_shift};
use super::tables::{Check, Context, LegacyContext, PasidContext, Refusal};
use super::walk::{Leaf, Need, Start, walk};
use crate::adversary::Action;
use crate::bus::{AddressType, Operation, PAGE, Request, Status, Translation};
use crate::iommu::{Cx, Outcome};

/// Whose translation an access uses, for draining (`[V]` 6.5.4).
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    /// Translation was off.
    Bypass,
    /// An untranslated request.
    Translated(Tag, u64),
}

/// What a successful look-up gives.
struct Found {
    entry: Entry,
    privileged: bool,
}

impl Vtd {
    /// Decides about a request.
    pub(super) fn decide(&mut self, cx: &mut Cx<'_>, access: u64, req: &Request) -> Outcome {
        let refused = |status| Outcome::Refused { status, reason: 0 };
        let plain = req.prefix.is_none() && at(req) == At::Untranslated;
        if plain && in_interrupt_range(req.addr) {
            return self.interrupt_range(req);
        }
        if !self.regs.gsts.tes() {
            // Only plain requests are known while translation is off ([V] 4.2.1).
            if !plain {
                return refused(Status::UnsupportedRequest);
            }
            self.begun.insert(access, Use::Bypass);
            return match req.op {
                Operation::ZeroLengthRead => Outcome::Nothing,
                _ => Outcome::Memory { phys: req.addr },
            };
        }
        if cx.adversary.considers(Action::Evict) {
            let pick = cx.adversary.below(u64::MAX);
            let gone = if pick & 1 == 0 { self.iotlb.evict(pick >> 1) } else { self.tables.evict(pick >> 1) };
            if gone {
                cx.adversary.count(Action::Evict);
            }
        }
        let decided = match at(req) {
            At::Translated => self.translated(cx, req),
            At::TranslationRequest => self.translation_request(cx, req),
            At::Untranslated => self.untranslated(cx, access, req),
        };
        decided.unwrap_or_else(|refusal| self.refuse(req, refusal))
    }

    /// Requests without PASID to 0xFEEx_xxxx (`[V]` 3.15). Interrupts are not remapped.
    fn interrupt_range(&mut self, req: &Request) -> Outcome {
        match &req.op {
            Operation::Write(data) if req.addr.is_multiple_of(4) => {
                if let Ok(word) = <[u8; 4]>::try_from(data.as_slice()) {
                    return Outcome::Interrupt { addr: req.addr, data: u32::from_le_bytes(word) };
                }
            }
            Operation::ZeroLengthRead => return Outcome::Nothing,
            _ => {}
        }
        if self.regs.gsts.tes() {
            self.refuse(req, Refusal::new(FaultReason::Ir29, false))
        } else {
            Outcome::Refused { status: Status::UnsupportedRequest, reason: 0 }
        }
    }

    /// The address is a physical one already; only the function's right to say so is checked
    /// (`[V]` 4.2.5).
    fn translated(&mut self, cx: &mut Cx<'_>, req: &Request) -> Check<Outcome> {
        let legacy = match self.context(cx, req)? {
            Context::Legacy(c) => {
                if c.kind != TranslationType::DeviceTlb {
                    return Err(Refusal::new(FaultReason::Lct5, c.fpd));
                }
                Some(c)
            }
            Context::Scalable(c) => {
                if !c.dte() {
                    return Err(Refusal::new(FaultReason::Sct5, c.fpd()));
                }
                if req.prefix.is_some() {
                    return Err(Refusal::new(FaultReason::Sct10, c.fpd()));
                }
                None
            }
        };
        let fail = |l, s| Err(Refusal::new(if legacy.is_some() { l } else { s }, false));
        if self.limits.beyond(req.addr) {
            return fail(FaultReason::Lgn1, FaultReason::Sgn4);
        }
        if in_interrupt_range(req.addr) {
            return fail(FaultReason::Lgn4, FaultReason::Sgn8);
        }
        Ok(match req.op {
            Operation::ZeroLengthRead => Outcome::Nothing,
            _ => Outcome::Memory { phys: req.addr },
        })
    }

    fn untranslated(&mut self, cx: &mut Cx<'_>, access: u64, req: &Request) -> Check<Outcome> {
        let found = self.look_up(cx, req, need(req, self.regs.cap.zlr()))?;
        let Entry { tag, phys, .. } = found.entry;
        self.begun.insert(access, Use::Translated(tag, req.addr >> 12));
        if matches!(req.op, Operation::ZeroLengthRead) {
            return Ok(Outcome::Nothing);
        }
        Ok(Outcome::Memory { phys: phys | (req.addr & (PAGE - 1)) })
    }

    fn translation_request(&mut self, cx: &mut Cx<'_>, req: &Request) -> Check<Outcome> {
        let no_write = matches!(req.op, Operation::Translate { no_write: true }) && self.regs.ecap.nwfs();
        if req.prefix.is_none() && in_interrupt_range(req.addr) {
            return Ok(Outcome::Translation(interrupt_answer(req.addr, no_write)));
        }
        match self.context(cx, req)? {
            Context::Legacy(c) if c.kind != TranslationType::DeviceTlb => {
                return Err(Refusal::new(FaultReason::Lct5, c.fpd));
            }
            Context::Scalable(c) if !c.dte() => {
                return Err(Refusal::new(FaultReason::Sct5, c.fpd()));
            }
            _ => {}
        }
        let need = Need { write: !no_write, tolerant: true, ..need(req, self.regs.cap.zlr()) };
        let Found { entry, privileged } = self.look_up(cx, req, need)?;
        let mask = 1u64.checked_shl(u32::from(entry.bits)).map_or(u64::MAX, |s| s - 1);
        Ok(Outcome::Translation(Translation {
            addr: entry.phys & !mask,
            bits: entry.bits,
            read: entry.read,
            write: entry.write && !no_write,
            untranslated_only: false,
            privileged,
        }))
    }

    /// The translation of a request's page, from the IOTLB or by a walk.
    fn look_up(&mut self, cx: &mut Cx<'_>, req: &Request, need: Need) -> Check<Found> {
        let pasid = req.pasid().map_or(NO_PASID, |p| p.get());
        let key = Key { source: req.source.0, pasid, page: req.addr >> 12 };
        let privileged = req.prefix.is_some_and(|p| p.privileged);
        let need = Need { privileged, ..need };
        let hit = self.iotlb.lookup(&key).filter(|e| e.dirty || !(need.write && e.write));
        let counts = self.lookups.entry(key.source).or_default();
        if let Some(entry) = hit {
            counts.hits += 1;
            self.cached_rights(&entry, need)?;
            return Ok(Found { entry, privileged });
        }
        counts.misses += 1;
        let entry = match self.context(cx, req)? {
            Context::Legacy(c) => self.legacy_walk(cx, &c, req.addr, need)?,
            Context::Scalable(c) => self.scalable_walk(cx, &c, req, need)?,
        };
        let entry = if cx.mutations.identity_walk {
            Entry { phys: req.addr & !(PAGE - 1), bits: 12, ..entry }
        } else {
            entry
        };
        self.iotlb.insert(key, entry);
        Ok(Found { entry, privileged })
    }

    /// Hardware may enforce permissions from its caches (`[V]` 3.7.1), so it does.
    fn cached_rights(&self, entry: &Entry, need: Need) -> Check<()> {
        let legacy = self.regs.root.mode() == Some(Ttm::Legacy);
        let fail = |l, s| Err(Refusal::new(if legacy { l } else { s }, entry.fpd));
        if !entry.user && !need.privileged {
            return fail(FaultReason::Sgn2, FaultReason::Sgn2);
        }
        if need.tolerant {
            return Ok(());
        }
        if need.write && !entry.write {
            return fail(FaultReason::Lgn2, FaultReason::Sgn6);
        }
        if need.read && !entry.read && !need.flush {
            return fail(FaultReason::Lgn3, FaultReason::Sgn7);
        }
        Ok(())
    }

    fn legacy_walk(&mut self, cx: &mut Cx<'_>, c: &LegacyContext, addr: u64, need: Need) -> Check<Entry> {
        let fail = |reason| Err(Refusal::new(reason, c.fpd));
        if c.kind == TranslationType::PassThrough {
            if self.limits.beyond(addr) {
                return fail(FaultReason::Lgn1);
            }
            return Ok(unity(Tag { did: c.did, pasid: 0, stage: Stage::PassThrough }, addr, c.fpd));
        }
        let width = c.agaw.width().min(self.regs.cap.guest_address_width());
        if above(addr, width) {
            return fail(FaultReason::Lgn1);
        }
        let start = Start {
            stage: Stage::Second,
            did: c.did,
            pasid: None,
            table: c.table,
            levels: c.agaw.levels() as u8,
            flags: false,
            snooped: self.regs.ecap.c(),
            write_protect: false,
            legacy: true,
        };
        let leaf = walk(cx, &mut self.iotlb, &self.limits, &start, addr, need);
        let leaf = leaf.map_err(|reason| Refusal::new(reason, c.fpd))?;
        if in_interrupt_range(leaf.phys) {
            return fail(FaultReason::Lgn4);
        }
        Ok(entry(Tag { did: c.did, pasid: 0, stage: Stage::Second }, leaf, c.fpd))
    }

    fn scalable_walk(
        &mut self,
        cx: &mut Cx<'_>,
        c: &ScalableContext,
        req: &Request,
        need: Need,
    ) -> Check<Entry> {
        let pasid = self.pasid_of(c, req)?;
        let p = self.tables.pasid(cx, &self.limits, c, req.source.0, pasid)?;
        let fail = |reason| Err(Refusal::new(reason, p.fpd));
        if req.prefix.is_some_and(|x| x.execute) {
            return fail(FaultReason::Spt5);
        }
        if need.privileged && !p.supervisor {
            return fail(FaultReason::Spt6);
        }
        let addr = req.addr;
        let (stage, table, levels) = match p.kind {
            Pgtt::PassThrough => {
                if self.limits.beyond(addr) {
                    return fail(FaultReason::Sgn4);
                }
                if in_interrupt_range(addr) {
                    return fail(FaultReason::Sgn8);
                }
                return Ok(unity(Tag { did: p.did, pasid, stage: Stage::PassThrough }, addr, p.fpd));
            }
            Pgtt::FirstStage => {
                // Canonical: the bits above those translated repeat the highest of them.
                let above = 64 - table_shift(p.first_stage_levels);
                if ((addr as i64) << above >> above) as u64 != addr {
                    return fail(FaultReason::Sgn1);
                }
                (Stage::First, p.first_stage, p.first_stage_levels)
            }
            Pgtt::SecondStage => {
                if above(addr, p.agaw.width().min(self.regs.cap.guest_address_width())) {
                    return fail(FaultReason::Sgn5);
                }
                (Stage::Second, p.second_stage, p.agaw.levels() as u8)
            }
            // Never announced, so the checks of the entry have refused it.
            Pgtt::Nested => return fail(FaultReason::Spt4),
        };
        let start = self.start(&p, stage, table, levels, pasid);
        let leaf = walk(cx, &mut self.iotlb, &self.limits, &start, addr, need);
        let leaf = leaf.map_err(|reason| Refusal::new(reason, p.fpd))?;
        if in_interrupt_range(leaf.phys) {
            return fail(FaultReason::Sgn8);
        }
        Ok(entry(Tag { did: p.did, pasid, stage }, leaf, p.fpd))
    }

    fn start(&self, p: &PasidContext, stage: Stage, table: u64, levels: u8, pasid: u32) -> Start {
        Start {
            stage,
            did: p.did,
            pasid: (stage == Stage::First).then_some(pasid),
            table,
            levels,
            flags: stage == Stage::First || p.accessed_dirty,
            snooped: p.snooped && self.regs.ecap.smpwcs(),
            write_protect: p.write_protect,
            legacy: false,
        }
    }

    /// The PASID that selects the table: that of the request, or RID_PASID (`[V]` 3.4.3).
    pub(super) fn pasid_of(&self, c: &ScalableContext, req: &Request) -> Check<u32> {
        let Some(prefix) = req.prefix else {
            return Ok(c.rid_pasid());
        };
        let pasid = self.check_pasid(c, prefix.pasid.get())?;
        if pasid >> self.regs.ecap.pasid_bits() != 0 {
            return Err(Refusal::new(FaultReason::Sgn10, c.fpd()));
        }
        Ok(pasid)
    }

    /// What every request with PASID is checked for, page requests too: these meet no SGN.10
    /// (`[V]` table 30).
    pub(super) fn check_pasid(&self, c: &ScalableContext, pasid: u32) -> Check<u32> {
        let fail = |reason| Err(Refusal::new(reason, c.fpd()));
        if !c.paside() {
            return fail(FaultReason::Sct6);
        }
        if pasid >= c.pasid_count() {
            return fail(FaultReason::Sct7);
        }
        if pasid == c.rid_pasid() {
            return fail(FaultReason::Sct9);
        }
        Ok(pasid)
    }

    /// The context entry of a request, after the checks of the mode.
    fn context(&mut self, cx: &mut Cx<'_>, req: &Request) -> Check<Context> {
        self.mode()?;
        if self.regs.root.mode() == Some(Ttm::Legacy) && req.prefix.is_some() {
            return Err(Refusal::new(FaultReason::Rta2, false));
        }
        self.tables.context(cx, &self.limits, self.regs.root, req.source.0)
    }

    /// The translation table mode (`[V]` table 30, RTA.1 and RTA.4).
    pub(super) fn mode(&self) -> Check<Ttm> {
        match self.regs.root.mode() {
            Some(Ttm::Legacy) => Ok(Ttm::Legacy),
            Some(Ttm::Scalable) if self.regs.ecap.smts() => Ok(Ttm::Scalable),
            Some(Ttm::Abort) if self.regs.ecap.adms() => Err(Refusal::new(FaultReason::Rta4, false)),
            _ => Err(Refusal::new(FaultReason::Rta1, false)),
        }
    }

    /// Records the fault, where it is one to be recorded, and answers by `[V]` table 30.
    fn refuse(&mut self, req: &Request, refusal: Refusal) -> Outcome {
        let reason = refusal.reason;
        let at = at(req);
        let (answer, recorded) = match at {
            At::Untranslated => (reason.on_untranslated(), true),
            At::Translated => (reason.on_translated(), true),
            At::TranslationRequest => (reason.on_translation(), reason.reported_on_translation()),
        };
        if recorded && refusal.is_recorded() {
            let kind = if req.is_write() { FrcdType::Write } else { FrcdType::Read };
            let (addr, source, prefix) = (req.addr, req.source, req.prefix);
            let fault = Fault { reason, addr, source, prefix, kind, at };
            self.regs.record(&fault, self.config.collapse_faults);
        }
        let status = match answer {
            Answer::SuccessNoAccess | Answer::SuccessEffective => {
                return Outcome::Translation(no_access(req.addr));
            }
            Answer::CompleterAbort => Status::CompleterAbort,
            Answer::UnsupportedRequest | Answer::NotApplicable => Status::UnsupportedRequest,
        };
        Outcome::Refused { status, reason: reason.bits() }
    }
}

fn at(req: &Request) -> At {
    match (req.at, &req.op) {
        (_, Operation::Translate { .. }) => At::TranslationRequest,
        (AddressType::Translated, _) => At::Translated,
        (AddressType::Untranslated, _) => At::Untranslated,
    }
}

fn need(req: &Request, zlr: bool) -> Need {
    let flush = zlr && matches!(req.op, Operation::ZeroLengthRead);
    let write = req.is_write();
    Need { read: !write, write, tolerant: false, privileged: false, flush }
}

fn above(addr: u64, width: u32) -> bool {
    addr.checked_shr(width).unwrap_or(0) != 0
}

fn entry(tag: Tag, leaf: Leaf, fpd: bool) -> Entry {
    Entry {
        tag,
        phys: leaf.phys,
        bits: leaf.bits,
        read: leaf.read,
        write: leaf.write,
        user: leaf.user,
        dirty: leaf.dirty,
        fpd,
    }
}

/// Pass-through: the address itself, for device TLBs in the largest region that leaves the interrupt
/// range out (`[V]` 4.2.3).
fn unity(tag: Tag, addr: u64, fpd: bool) -> Entry {
    let phys = addr & !(PAGE - 1);
    let clear = |bits: &u8| addr >> bits != INTERRUPT_RANGE_START >> bits;
    let bits = [30, 21].into_iter().find(clear).unwrap_or(12);
    Entry { tag, phys, bits, read: true, write: true, user: true, dirty: true, fpd }
}

/// Success with R=W=U=S=0.
fn no_access(addr: u64) -> Translation {
    Translation {
        addr: addr & !(PAGE - 1),
        bits: 12,
        read: false,
        write: false,
        untranslated_only: false,
        privileged: false,
    }
}

/// The special conditions S.1 and S.2 of `[V]` table 30: devices may ask for their interrupt address.
fn interrupt_answer(addr: u64, no_write: bool) -> Translation {
    Translation { write: !no_write, untranslated_only: !no_write, ..no_access(addr) }
}
