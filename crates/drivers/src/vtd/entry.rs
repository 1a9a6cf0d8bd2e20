//! What entries contain, and when one store replaces one.
//!
//! Blocked is not present. An entry that was blocked keeps its domain id, which hardware ignores then
//! (`[V]` 9.3, 9.6): the invalidations of a block that has to be repeated, and of the drain after it,
//! still find it there.

use super::{directory::Directory, unit::Unit};
use portcullis::driver::{Change, Features, Incompatible, Target};
use portcullis_pgtable::{FormatDesc, X86_FIRST_STAGE};
use portcullis_spec::vtd::{
    Agaw,
    context::{ContextEntry, ScalableContext, TranslationType},
    pasid::{Fspm, PasidFirstStage, PasidLow, Pgtt},
};

/// PAT of a PASID-table entry where memory types exist: the processor's values after reset, WB, WT,
/// UC- and UC, twice (`[V]` 9.6).
const PAT: u32 = 0x0746_0746;

/// A tag as the 16 bits of a DID field. The core keeps to [`Unit::caps`].
fn did(tag: portcullis::DomainTag) -> Result<u16, Incompatible> {
    u16::try_from(tag.0).map_err(|_| Incompatible::Other("the domain tag does not fit 16 bits"))
}

/// The width that the AW fields have for a table of so many levels (`[V]` 9.3, 9.6).
fn width(desc: &FormatDesc) -> Result<Agaw, Incompatible> {
    let found = Agaw::ALL.iter().find(|w| w.levels() == u32::from(desc.levels));
    found.copied().ok_or(Incompatible::Levels(desc.levels))
}

/// The context entry of legacy mode that shows a requester `to` (`[V]` 9.3).
pub(super) fn legacy(unit: &Unit, features: Features, to: &Target) -> Result<ContextEntry, Incompatible> {
    let entry = ContextEntry::new().with_p(true);
    match *to {
        Target::Identity { tag } => {
            let agaw = unit.widest_agaw().filter(|_| unit.ecap.pt());
            let agaw = agaw.ok_or(Incompatible::NoIdentity)?;
            if features.ats {
                // TT 10b blocks translation requests, and a blocked one turns ATS off.
                return Err(Incompatible::Other("legacy pass-through blocks translation requests"));
            }
            Ok(entry.with_tt(TranslationType::PassThrough.bits()).with_aw(agaw.bits()).with_did(did(tag)?))
        }
        Target::Table { desc, root, tag } => {
            unit.can_walk(&desc)?;
            let tt = translation_type(features);
            Ok(entry
                .with_tt(tt.bits())
                .with_ssptptr(root.0)
                .with_aw(width(&desc)?.bits())
                .with_did(did(tag)?))
        }
        Target::Nested { .. } => Err(Incompatible::NoNesting),
    }
}

/// TT of a context entry with a table.
pub(super) fn translation_type(features: Features) -> TranslationType {
    if features.ats { TranslationType::DeviceTlb } else { TranslationType::Untranslated }
}

/// What is left of a context entry when it is blocked.
pub(super) fn blocked_context(old: ContextEntry) -> ContextEntry {
    ContextEntry::new().with_did(old.did())
}

/// What is left of a PASID-table entry when it is blocked.
pub(super) fn blocked_pasid(old: PasidLow) -> PasidLow {
    PasidLow::new().with_did(old.did())
}

/// The two halves of a PASID-table entry that this driver uses (`[V]` 9.6). The other two stay zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PasidHalves {
    pub(super) low: PasidLow,
    pub(super) first_stage: PasidFirstStage,
}

/// The PASID-table entry that shows a requester or one of its PASIDs `to`.
pub(super) fn pasid(unit: &Unit, to: &Target) -> Result<PasidHalves, Incompatible> {
    let mut low = PasidLow::new().with_p(true).with_pwsnp(unit.ecap.smpwcs()).with_pat(if unit.ecap.mts() {
        PAT
    } else {
        0
    });
    let mut first_stage = PasidFirstStage::new();
    match *to {
        Target::Identity { tag } => {
            if !unit.ecap.pt() {
                return Err(Incompatible::NoIdentity);
            }
            low = low.with_pgtt(Pgtt::PassThrough.bits()).with_did(did(tag)?).with_pwsnp(false);
        }
        Target::Table { desc, root, tag } => {
            unit.can_walk(&desc)?;
            low = low.with_did(did(tag)?);
            if desc.id == X86_FIRST_STAGE {
                // Its entries have no snoop bit: the table counts on this one.
                low = low.with_pgtt(Pgtt::FirstStage.bits()).with_pgsnp(unit.ecap.sc());
                let width = width(&desc)?;
                if unit.first_stage_width {
                    low = low.with_aw(width.bits());
                }
                let mode = if width == Agaw::Bits57 { Fspm::Level5 } else { Fspm::Level4 };
                first_stage = first_stage.with_fspm(mode.bits()).with_fsptptr(root.0);
            } else {
                low = low
                    .with_pgtt(Pgtt::SecondStage.bits())
                    .with_aw(width(&desc)?.bits())
                    .with_ssade(desc.dirty)
                    .with_ssptptr(root.0);
            }
        }
        Target::Nested { .. } => return Err(Incompatible::NoNesting),
    }
    Ok(PasidHalves { low, first_stage })
}

/// How `new` can take the place of `old`. One store covers the low half only, so a first stage
/// takes the place of something that is present only through blocked, unless its own half is there
/// already (`[V]` 6.2.3.1).
pub(super) fn change(old: &PasidHalves, new: &PasidHalves) -> Change {
    let uses_first_stage = new.low.translation_type() == Some(Pgtt::FirstStage);
    if old.low.p() && uses_first_stage && old.first_stage != new.first_stage {
        Change::ThroughBlocked
    } else {
        Change::Hitless
    }
}

/// The context entry of scalable mode for a requester with these features (`[V]` 9.4). Requests
/// without PASID use PASID 0, which the core never gives out.
pub(super) fn scalable_context(features: Features, directory: Directory) -> ScalableContext {
    ScalableContext::new()
        .with_p(true)
        .with_dte(features.ats)
        .with_paside(features.pasid_bits > 0)
        .with_pre(features.pri)
        .with_pdts(directory.pdts())
        .with_pasiddirptr(directory.address().0)
}

/// Whether the unit can give a requester these features.
pub(super) fn check_features(unit: &Unit, features: Features) -> Result<(), Incompatible> {
    if features.ats && !unit.ecap.dt() {
        return Err(Incompatible::Other("the unit has no device-TLB support"));
    }
    if u32::from(features.pasid_bits) > unit.pasid_bits() {
        return Err(Incompatible::Other("the unit translates no PASIDs of that many bits"));
    }
    if features.pri && !unit.page_requests() {
        return Err(Incompatible::Other("the unit takes no page requests, or cannot drain them"));
    }
    if features.pri && !features.ats {
        // DTE=0 with PRE=1 is illegal ([V] table 30, SCT.4.1).
        return Err(Incompatible::Other("page requests need ATS"));
    }
    Ok(())
}
