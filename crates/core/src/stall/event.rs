//! What a driver says of stalled transactions.

use crate::{
    driver::{PageRequest, SubmitError},
    fault::{Access, FaultKind, RawFault, Reason, Stage},
    ids::{Pasid, SourceId, StallId, VendorBits},
};

/// One stalled transaction as the driver decoded it: held by the hardware until it is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Names it to [`Driver::resume`](crate::driver::Driver::resume). Of all that wait on one instance,
    /// no other has the number.
    pub id: StallId,
    /// The requester.
    pub source: SourceId,
    /// The PASID of the transaction.
    pub pasid: Option<Pasid>,
    /// The address that faulted.
    pub address: u64,
    /// What the device tries.
    pub access: Access,
    /// Is privileged.
    pub privileged: bool,
    /// The stage that stopped it, where the record says.
    pub stage: Option<Stage>,
    /// Why it was stopped.
    pub reason: Reason,
    /// The vendor's own code.
    pub code: u32,
    /// The record as the hardware wrote it, lowest word first.
    pub raw: [u64; 4],
}

impl Stall {
    pub(crate) fn fault(&self, kind: FaultKind, reason: Reason) -> RawFault {
        RawFault {
            source: Some(self.source),
            pasid: self.pasid,
            access: self.access,
            privileged: self.privileged,
            address: Some(self.address),
            stage: self.stage,
            code: self.code,
            raw: self.raw,
            ..RawFault::new(kind, reason)
        }
    }
}

/// Why an attachment point does not stall, or does still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StallSwitchError {
    /// What faults there cannot be held, for this reason.
    #[error("the hardware cannot hold what faults there: {0}")]
    Cannot(&'static str),
    /// It could not be told.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

/// A stalled transaction is kept as the one request of a group, by slots of its own: its number
/// where another has the vendor's bits.
impl From<&Stall> for PageRequest {
    fn from(stall: &Stall) -> PageRequest {
        let Stall { id, source, pasid, address, access, privileged, .. } = *stall;
        PageRequest {
            source,
            pasid,
            index: 0,
            address,
            read: matches!(access, Access::Read | Access::Atomic),
            write: matches!(access, Access::Write | Access::Atomic),
            exec: access == Access::Execute,
            privileged,
            last: true,
            own_answer: false,
            vendor: VendorBits([id.0, 0, 0, 0]),
        }
    }
}

/// Its number again.
pub(crate) fn id_of(kept: &PageRequest) -> StallId {
    StallId(kept.vendor.0[0])
}

/// What the device tries.
pub(crate) fn access_of(kept: &PageRequest) -> Access {
    match (kept.read, kept.write, kept.exec) {
        (true, true, _) => Access::Atomic,
        (_, true, _) => Access::Write,
        (_, _, true) => Access::Execute,
        (true, ..) => Access::Read,
        _ => Access::Unknown,
    }
}
