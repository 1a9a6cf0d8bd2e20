//! Fault recording (`[V]` 7.2, 7.3, 11.4.7): every record is handed over, and an overflow is told.

use super::{queue::Errors, regs::Regs, unit::Unit};
use portcullis::{Access, FaultKind, Pasid, Platform, RawFault, Reason, SourceId, Stage, Turn, driver::More};
use portcullis_spec::vtd::{
    fault::FaultReason,
    regs::{AddressType, Frcd, FrcdType, Fsts},
};

/// Hands over the records that are there, from the one that FRI names on.
pub(super) fn service<P: Platform>(regs: &Regs<P>, unit: &Unit, turn: &mut Turn<'_>) -> More {
    let fsts = regs.fsts();
    if gone(fsts) {
        return More::No;
    }
    if fsts.ppf() {
        let records = unit.cap.fault_records();
        // A circular log. FRI is the first that was pending when PPF became set ([V] 11.4.7.1): it
        // stays where it is while some are pending, so those before the oldest may be handed over.
        for i in 0..records {
            let index = (u32::from(fsts.fri()) + i) % records;
            let at = unit.cap.frcd_offset(index as u8);
            let Some(record) = regs.frcd(at) else {
                continue;
            };
            if !turn.spend() {
                return More::Yes;
            }
            regs.clear_frcd(at);
            turn.fault(decode(record));
        }
    }
    // Hardware records nothing while PFO is set: cleared when all records are out.
    if fsts.pfo() {
        regs.clear_fsts(Fsts::new().with_pfo(true));
        turn.fault(RawFault::new(FaultKind::Overflow, Reason::Other));
    }
    More::No
}

/// Tells the errors of the invalidation queue. Its own code is the bit in FSTS_REG.
pub(super) fn tell(errors: Errors, turn: &mut Turn<'_>) {
    let told = [
        (Fsts::new().with_iqe(true), None, Reason::BadEntry),
        (Fsts::new().with_ice(true), errors.invalid, Reason::UnexpectedCompletion),
        (Fsts::new().with_ite(true), errors.timed_out, Reason::DeviceTimeout),
    ];
    for (bit, source, reason) in told {
        if errors.bits.into_bits() & bit.into_bits() != 0 {
            turn.fault(RawFault {
                source,
                code: bit.into_bits(),
                ..RawFault::new(FaultKind::Configuration, reason)
            });
        }
    }
}

/// Whether any bit of the fault status asks for a service turn.
pub(super) fn pending<P: Platform>(regs: &Regs<P>) -> bool {
    asks(regs.fsts())
}

/// Whether a bit is set at the end of a turn. All bits share one event, which is sent only when none
/// was set before (`[V]` 7.3): what came while another was being served has not announced itself.
pub(super) fn left<P: Platform>(regs: &Regs<P>) -> bool {
    let fsts = regs.fsts();
    !gone(fsts) && asks(fsts)
}

fn asks(fsts: Fsts) -> bool {
    fsts.ppf() || fsts.pfo() || fsts.iqe() || fsts.ice() || fsts.ite()
}

/// Forgets what an earlier owner of the unit left.
pub(super) fn clear<P: Platform>(regs: &Regs<P>, unit: &Unit) {
    for index in 0..unit.cap.fault_records() {
        regs.clear_frcd(unit.cap.frcd_offset(index as u8));
    }
    regs.clear_fsts(Fsts::from_bits(Fsts::W1C));
}

fn gone(fsts: Fsts) -> bool {
    fsts.into_bits() == u32::MAX
}

pub(super) fn decode(record: Frcd) -> RawFault {
    let known = record.reason();
    let reason = known.map_or(Reason::Other, reason);
    let source = Some(SourceId(record.sid().into()));
    let code = record.fr().into();
    let bits = record.into_bits();
    let raw = [bits as u64, (bits >> 64) as u64, 0, 0];
    if known.is_some_and(FaultReason::is_interrupt) {
        // No address type, PASID or address here ([V] 11.4.7.6).
        return RawFault {
            source,
            access: Access::Write,
            code,
            raw,
            ..RawFault::new(FaultKind::InterruptRemapping, reason)
        };
    }
    let ty = record.request_type();
    let kind = match (reason, ty) {
        (Reason::BadEntry | Reason::TableAccess, _) => FaultKind::Configuration,
        (_, FrcdType::PageRequest) => FaultKind::PageRequest,
        _ => FaultKind::Dma,
    };
    let access = match (record.address_type(), ty) {
        (_, FrcdType::PageRequest) => Access::Unknown,
        (Some(AddressType::TranslationRequest), _) => Access::Translate,
        (_, FrcdType::Read) if record.pp() && record.exe() => Access::Execute,
        (_, FrcdType::Read) => Access::Read,
        (_, FrcdType::Write) => Access::Write,
        (_, FrcdType::AtomicOp) => Access::Atomic,
    };
    RawFault {
        source,
        pasid: record.pp().then(|| Pasid::new(record.pv())).flatten(),
        access,
        privileged: record.pp() && record.privileged(),
        address: Some(record.fi()),
        address_mask: !0xfff, // FI is bits 63:12
        stage: known.and_then(stage),
        code,
        raw,
        ..RawFault::new(kind, reason)
    }
}

/// The stage whose walk or check a reason names (`[V]` table 30); most are of neither, and the
/// permission of a nested walk may be refused by both.
fn stage(r: FaultReason) -> Option<Stage> {
    use FaultReason as F;
    match r {
        F::Sfs1
        | F::Sfs2
        | F::Sfs3
        | F::Sfs4
        | F::Sfs5
        | F::Sfs6
        | F::Sfs7
        | F::Sfs8
        | F::Sfs9
        | F::Sfs10
        | F::Sgn1
        | F::Sgn2 => Some(Stage::First),
        F::Lss1
        | F::Lss2
        | F::Lgn2
        | F::Lgn3
        | F::Sss1
        | F::Sss2
        | F::Sss3
        | F::Sss4
        | F::Sss5
        | F::Sss6
        | F::Sgn5 => Some(Stage::Second),
        _ => None,
    }
}

/// The manual's reasons (`[V]` tables 30 and 15) in the words that all vendors share.
fn reason(r: FaultReason) -> Reason {
    use FaultReason as F;
    match r {
        F::Lrt2 | F::Lct2 | F::Srt2 | F::Sct2 | F::Spd2 | F::Spt2 | F::Rta4 => Reason::Blocked,
        F::Sfs2 | F::Sss2 => Reason::NotMapped,
        F::Lgn2 | F::Lgn3 | F::Sgn2 | F::Sgn6 | F::Sgn7 | F::Hpt4 | F::Hpt5 | F::Hpt6 | F::Spt6 => {
            Reason::Permission
        }
        F::Lgn1 | F::Sgn1 | F::Sgn4 | F::Sgn5 | F::Spt9 => Reason::AddressRange,
        F::Lct5
        | F::Rta2
        | F::Rta3
        | F::Rta5
        | F::Sct5
        | F::Sct6
        | F::Sct7
        | F::Sct8
        | F::Sct9
        | F::Sct10
        | F::Spt5
        | F::Sgn10 => Reason::RequestType,
        F::Lgn4 | F::Sgn8 | F::Ir29 => Reason::InterruptRange,
        F::Lct4
        | F::Lrt3
        | F::Lct3
        | F::Lss2
        | F::Rta1
        | F::Srt3
        | F::Sct3
        | F::Sct4
        | F::Spd3
        | F::Spt3
        | F::Spt4
        | F::Sfs3
        | F::Sfs5
        | F::Sss3
        | F::Hpt2
        | F::Ir24
        | F::Ir28 => Reason::BadEntry,
        F::Lss1
        | F::Lrt1
        | F::Lct1
        | F::Srt1
        | F::Sct1
        | F::Spd1
        | F::Spt1
        | F::Sfs1
        | F::Sfs4
        | F::Sfs6
        | F::Sfs7
        | F::Sfs8
        | F::Sfs9
        | F::Sfs10
        | F::Sss1
        | F::Sss4
        | F::Sss5
        | F::Sss6
        | F::Hpt1
        | F::Hpt3
        | F::Ir23
        | F::Ir27 => Reason::TableAccess,
        F::Ir22 => Reason::NotMapped,
        F::Ir20 | F::Ir21 | F::Ir25 | F::Ir26 | F::Ir2a | F::Ir2b => Reason::RequestType,
    }
}
