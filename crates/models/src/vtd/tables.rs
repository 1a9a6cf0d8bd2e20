//! Root, context and PASID tables, and the caches of what was read from them (`[V]` 9.1 to 9.6,
//! 6.2.2, 6.2.3). Entries that would fault are never cached: caching mode is off.

use portcullis_spec::vtd::Agaw;
use portcullis_spec::vtd::context::{
    CONTEXT_ENTRY_SIZE, ContextEntry, SCALABLE_CONTEXT_ENTRY_SIZE, ScalableContext, TranslationType,
};
use portcullis_spec::vtd::fault::FaultReason;
use portcullis_spec::vtd::pasid::{
    self, Fspm, PASID_DIR_ENTRY_SIZE, PASID_ENTRY_SIZE, PasidDirEntry, PasidFirstStage, PasidHpt, PasidLow,
    Pgtt,
};
use portcullis_spec::vtd::regs::{Cap, Ecap, Rtaddr, Ttm};
use portcullis_spec::vtd::root::{ROOT_ENTRY_SIZE, RootEntry, ScalableRootEntry};

use crate::hash::Map;
use crate::iommu::Cx;

/// A fault condition, and whether an FPD bit on the way suppresses its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: FaultReason,
    fpd: bool,
}

impl Refusal {
    pub(super) fn new(reason: FaultReason, fpd: bool) -> Self {
        Refusal { reason, fpd }
    }

    pub(super) fn is_recorded(&self) -> bool {
        !(self.fpd && self.reason.is_qualified())
    }
}

/// The outcome of a check.
pub(super) type Check<T> = Result<T, Refusal>;

/// A context entry that has passed its checks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Context {
    Legacy(LegacyContext),
    Scalable(ScalableContext),
}

/// A legacy context entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct LegacyContext {
    pub(super) kind: TranslationType,
    pub(super) agaw: Agaw,
    pub(super) table: u64,
    pub(super) did: u16,
    pub(super) fpd: bool,
}

/// A PASID-table entry that has passed its checks.
#[derive(Debug, Clone, Copy)]
pub(super) struct PasidContext {
    pub(super) kind: Pgtt,
    pub(super) did: u16,
    /// Width of the second-stage table.
    pub(super) agaw: Agaw,
    pub(super) second_stage: u64,
    pub(super) first_stage: u64,
    /// Levels of the first-stage table, by FSPM.
    pub(super) first_stage_levels: u8,
    /// SSADE.
    pub(super) accessed_dirty: bool,
    /// PWSNP.
    pub(super) snooped: bool,
    /// SRE.
    pub(super) supervisor: bool,
    /// WPE.
    pub(super) write_protect: bool,
    pub(super) fpd: bool,
}

/// What the checks of entries depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) cap: Cap,
    pub(super) ecap: Ecap,
    /// Host address width.
    pub(super) haw: u8,
}

impl Limits {
    /// True for a physical address that an entry must not hold.
    pub(super) fn beyond(&self, addr: u64) -> bool {
        self.haw < 64 && addr >> self.haw != 0
    }

    fn bad_domain(&self, did: u16) -> bool {
        let bits = self.cap.domain_id_bits().unwrap_or(16);
        u32::from(did).checked_shr(bits).unwrap_or(0) != 0
    }
}

/// The context cache and the PASID cache.
#[derive(Debug, Default)]
pub(super) struct Tables {
    contexts: Map<u16, Context>,
    pasids: Map<(u16, u32), PasidContext>,
}

impl Tables {
    /// The context entry of a requester, from the cache or from memory.
    pub(super) fn context(
        &mut self,
        cx: &mut Cx<'_>,
        limits: &Limits,
        root: Rtaddr,
        source: u16,
    ) -> Check<Context> {
        if let Some(found) = self.contexts.get(&source) {
            return Ok(*found);
        }
        let entry = match root.mode() {
            Some(Ttm::Scalable) => Context::Scalable(scalable_context(cx, limits, root.rta(), source)?),
            _ => Context::Legacy(legacy_context(cx, limits, root.rta(), source)?),
        };
        self.contexts.insert(source, entry);
        Ok(entry)
    }

    /// The PASID-table entry of a requester's PASID, from the cache or from memory.
    pub(super) fn pasid(
        &mut self,
        cx: &mut Cx<'_>,
        limits: &Limits,
        context: &ScalableContext,
        source: u16,
        pasid: u32,
    ) -> Check<PasidContext> {
        if let Some(found) = self.pasids.get(&(source, pasid)) {
            return Ok(*found);
        }
        let entry = pasid_context(cx, limits, context, pasid)?;
        self.pasids.insert((source, pasid), entry);
        Ok(entry)
    }

    pub(super) fn clear_contexts(&mut self) {
        self.contexts.clear();
    }

    pub(super) fn clear_pasids(&mut self) {
        self.pasids.clear();
    }

    /// Domain-selective, legacy mode: scalable-mode entries have no domain (`[V]` 6.5.2.1).
    pub(super) fn drop_context_domain(&mut self, did: u16) {
        self.contexts.retain(|_, c| !matches!(c, Context::Legacy(l) if l.did == did));
    }

    /// Device-selective: `mask` low bits of the source id do not count; the domain counts in legacy
    /// mode.
    pub(super) fn drop_context_device(&mut self, did: u16, source: u16, mask: u8) {
        let same = |s: u16| s >> mask.min(3) == source >> mask.min(3);
        self.contexts.retain(|&s, c| {
            let domain = !matches!(c, Context::Legacy(l) if l.did != did);
            !(same(s) && domain)
        });
    }

    pub(super) fn drop_pasid_domain(&mut self, did: u16) {
        self.pasids.retain(|_, p| p.did != did);
    }

    pub(super) fn drop_pasid(&mut self, did: u16, pasid: u32) {
        self.pasids.retain(|&(_, number), p| !(p.did == did && number == pasid));
    }

    /// Forgets one entry, chosen by `pick`. Returns whether there was one.
    pub(super) fn evict(&mut self, pick: u64) -> bool {
        let total = (self.contexts.len() + self.pasids.len()) as u64;
        let Some(i) = pick.checked_rem(total).map(|i| i as usize) else {
            return false;
        };
        if let Some(key) = self.contexts.keys().nth(i).copied() {
            self.contexts.remove(&key);
        } else if let Some(key) = self.pasids.keys().nth(i - self.contexts.len()).copied() {
            self.pasids.remove(&key);
        }
        true
    }
}

/// Reads 16 bytes whole; `None` where memory does not answer.
fn whole(cx: &mut Cx<'_>, addr: u64) -> Option<u128> {
    cx.table_reads += 1;
    cx.mem.load128(addr).ok()
}

fn entry_address(table: u64, index: u64, size: usize) -> u64 {
    table.wrapping_add(index * size as u64)
}

fn legacy_context(cx: &mut Cx<'_>, limits: &Limits, root: u64, source: u16) -> Check<LegacyContext> {
    let fail = |reason| Err(Refusal::new(reason, false));
    let bus = u64::from(source >> 8);
    let Some(bits) = whole(cx, entry_address(root, bus, ROOT_ENTRY_SIZE)) else {
        return fail(FaultReason::Lrt1);
    };
    let entry = RootEntry::from_bits(bits);
    if !entry.p() {
        return fail(FaultReason::Lrt2);
    }
    if bits & RootEntry::RESERVED != 0 || limits.beyond(entry.ctp()) {
        return fail(FaultReason::Lrt3);
    }
    let Some(bits) = whole(cx, entry_address(entry.ctp(), u64::from(source & 0xff), CONTEXT_ENTRY_SIZE))
    else {
        return fail(FaultReason::Lct1);
    };
    let entry = ContextEntry::from_bits(bits);
    let fail = |reason| Err(Refusal::new(reason, entry.fpd()));
    if !entry.p() {
        return fail(FaultReason::Lct2);
    }
    let reserved = bits & ContextEntry::RESERVED != 0
        || limits.beyond(entry.ssptptr())
        || limits.bad_domain(entry.did());
    if reserved {
        return fail(FaultReason::Lct3);
    }
    let kind = entry.translation_type().filter(|t| match t {
        TranslationType::Untranslated => true,
        TranslationType::DeviceTlb => limits.ecap.dt(),
        TranslationType::PassThrough => limits.ecap.pt(),
    });
    let agaw = entry.agaw().filter(|w| limits.cap.supports(*w));
    let (Some(kind), Some(agaw)) = (kind, agaw) else {
        return fail(FaultReason::Lct4);
    };
    Ok(LegacyContext { kind, agaw, table: entry.ssptptr(), did: entry.did(), fpd: entry.fpd() })
}

fn scalable_context(cx: &mut Cx<'_>, limits: &Limits, root: u64, source: u16) -> Check<ScalableContext> {
    let fail = |reason| Err(Refusal::new(reason, false));
    let bus = u64::from(source >> 8);
    let Some(bits) = whole(cx, entry_address(root, bus, ROOT_ENTRY_SIZE)) else {
        return fail(FaultReason::Srt1);
    };
    let entry = ScalableRootEntry::from_bits(bits);
    let (present, table, reserved) = if source & 0x80 == 0 {
        (entry.lp(), entry.lctp(), ScalableRootEntry::RESERVED_LOWER)
    } else {
        (entry.up(), entry.uctp(), ScalableRootEntry::RESERVED_UPPER)
    };
    if !present {
        return fail(FaultReason::Srt2);
    }
    if bits & reserved != 0 || limits.beyond(table) {
        return fail(FaultReason::Srt3);
    }
    let addr = entry_address(table, u64::from(source & 0x7f), SCALABLE_CONTEXT_ENTRY_SIZE);
    let (Some(bits), Some(upper)) = (whole(cx, addr), whole(cx, addr.wrapping_add(16))) else {
        return fail(FaultReason::Sct1);
    };
    let entry = ScalableContext::from_bits(bits);
    let fail = |reason| Err(Refusal::new(reason, entry.fpd()));
    if !entry.p() {
        return fail(FaultReason::Sct2);
    }
    let ecap = limits.ecap;
    let reserved = bits & ScalableContext::RESERVED != 0
        || upper != 0
        || limits.beyond(entry.pasiddirptr())
        || (entry.dte() && !ecap.dt())
        || (entry.paside() && !ecap.pasid())
        || (entry.pre() && !ecap.prs())
        || (entry.hpte() && !ecap.hpts())
        || (entry.eptr() && !ecap.ptrs())
        || (entry.rid_pasid() != 0 && !ecap.rps())
        || (entry.rid_priv() && !ecap.rprivs());
    if reserved {
        return fail(FaultReason::Sct3);
    }
    if (entry.pre() && !entry.dte()) || entry.rid_pasid() >= entry.pasid_count() {
        return fail(FaultReason::Sct4);
    }
    Ok(entry)
}

fn pasid_context(
    cx: &mut Cx<'_>,
    limits: &Limits,
    context: &ScalableContext,
    number: u32,
) -> Check<PasidContext> {
    let fpd = context.fpd();
    let dir = entry_address(context.pasiddirptr(), pasid::dir_index(number) as u64, PASID_DIR_ENTRY_SIZE);
    cx.table_reads += 1;
    let Ok(bits) = cx.mem.load64(dir) else {
        return Err(Refusal::new(FaultReason::Spd1, fpd));
    };
    let entry = PasidDirEntry::from_bits(bits);
    let fpd = fpd || entry.fpd();
    if !entry.p() {
        return Err(Refusal::new(FaultReason::Spd2, fpd));
    }
    if bits & PasidDirEntry::RESERVED != 0 || limits.beyond(entry.smptblptr()) {
        return Err(Refusal::new(FaultReason::Spd3, fpd));
    }
    let addr = entry_address(entry.smptblptr(), pasid::table_index(number) as u64, PASID_ENTRY_SIZE);
    let mut parts = [0; 4];
    for (part, at) in parts.iter_mut().zip((addr..).step_by(16)) {
        *part = whole(cx, at).ok_or(Refusal::new(FaultReason::Spt1, fpd))?;
    }
    check_pasid_entry(limits, parts, fpd)
}

fn check_pasid_entry(
    limits: &Limits,
    [low_bits, fs_bits, hpt, rest]: [u128; 4],
    fpd: bool,
) -> Check<PasidContext> {
    let (low, fs) = (PasidLow::from_bits(low_bits), PasidFirstStage::from_bits(fs_bits));
    let fpd = fpd || low.fpd();
    let fail = |reason| Err(Refusal::new(reason, fpd));
    if !low.p() {
        return fail(FaultReason::Spt2);
    }
    let ecap = limits.ecap;
    let memory_type = low.cd() || low.emte() || low.pat() != 0;
    let reserved = low_bits & PasidLow::RESERVED != 0
        || fs_bits & PasidFirstStage::RESERVED != 0
        || rest != 0
        || if ecap.hpts() { hpt & PasidHpt::RESERVED != 0 } else { hpt != 0 }
        || limits.bad_domain(low.did())
        || (low.ssade() && !(ecap.ssads() && ecap.ssts()))
        || (!ecap.ssts() && (low.aw() != 0 || low.ssptptr() != 0))
        || (!ecap.fsts() && (fs.fspm() != 0 || fs.wpe() || fs.fsptptr() != 0))
        || (low.pwsnp() && !ecap.smpwcs())
        || (low.pgsnp() && !ecap.sc())
        || (memory_type && !ecap.mts())
        || (fs.sre() && !ecap.srs())
        || (fs.eafe() && !ecap.eafs())
        || limits.beyond(low.ssptptr())
        || limits.beyond(fs.fsptptr());
    if reserved {
        return fail(FaultReason::Spt3);
    }
    let kind = low.translation_type().filter(|k| match k {
        Pgtt::FirstStage => ecap.fsts(),
        Pgtt::SecondStage => ecap.ssts(),
        Pgtt::Nested => ecap.nest(),
        Pgtt::PassThrough => ecap.pt(),
    });
    let Some(kind) = kind else {
        return fail(FaultReason::Spt4);
    };
    let agaw = low.agaw().filter(|w| limits.cap.supports(*w));
    let agaw = match kind {
        Pgtt::SecondStage | Pgtt::Nested => agaw,
        Pgtt::FirstStage | Pgtt::PassThrough => agaw.or(Some(Agaw::Bits48)),
    };
    let Some(agaw) = agaw else {
        return fail(FaultReason::Spt4);
    };
    let first_stage_levels = match fs.paging_mode() {
        Some(Fspm::Level5) if limits.cap.fs5lp() => 5,
        Some(Fspm::Level4) => 4,
        _ if matches!(kind, Pgtt::FirstStage | Pgtt::Nested) => return fail(FaultReason::Spt4),
        _ => 4,
    };
    Ok(PasidContext {
        kind,
        did: low.did(),
        agaw,
        second_stage: low.ssptptr(),
        first_stage: fs.fsptptr(),
        first_stage_levels,
        accessed_dirty: low.ssade(),
        snooped: low.pwsnp(),
        supervisor: fs.sre(),
        write_protect: fs.wpe(),
        fpd,
    })
}
