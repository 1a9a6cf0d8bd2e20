//! A request on its way to memory: begun, then finished, with room for a scheduler in between.
//!
//! Finishing an [`Access`] is the only way by which a device's bytes move. It takes the request and
//! what the IOMMU made of it, and nothing else.

use crate::bus::{AddressType, Completion, Msi, MsiSource, Operation, Pasid, Request, RequesterId, Status};
use crate::iommu::{Cx, Iommu, Outcome};
use crate::log::{Reach, What};
use crate::memory::Memory;

/// A request in the fabric or in the root complex.
#[derive(Debug)]
pub struct Access {
    /// Unique number.
    id: u64,
    /// Place of the endpoint that issued it.
    pub(crate) endpoint: usize,
    /// Number the endpoint gave it.
    pub(crate) ticket: u64,
    /// Resets the endpoint had seen when it issued it.
    pub(crate) epoch: u64,
    /// What the endpoint meant, where the request carries a translated address.
    iova: u64,
    /// The PASID it meant.
    pasid: Option<Pasid>,
    request: Request,
    /// It does not arrive before this time.
    not_before: u64,
    /// What the IOMMU decided; `None` while the request is in the fabric.
    outcome: Option<Outcome>,
}

impl Access {
    pub(crate) fn new(
        id: u64,
        endpoint: usize,
        (ticket, epoch): (u64, u64),
        (iova, pasid): (u64, Option<Pasid>),
        request: Request,
    ) -> Self {
        Access { id, endpoint, ticket, epoch, iova, pasid, request, not_before: 0, outcome: None }
    }

    pub(crate) fn hold_until(&mut self, time: u64) {
        self.not_before = time;
    }

    /// The time before which its next step is not possible.
    pub(crate) fn not_before(&self) -> u64 {
        self.not_before
    }

    /// True once the IOMMU has decided.
    pub(crate) fn is_begun(&self) -> bool {
        self.outcome.is_some()
    }

    /// Requester id in the request.
    pub fn source(&self) -> RequesterId {
        self.request.source
    }

    /// Bytes it moves.
    pub(crate) fn len(&self) -> u32 {
        self.request.len() as u32
    }

    /// Arrives at the root complex. Without an IOMMU the address is a physical one.
    pub(crate) fn begin(&mut self, cx: &mut Cx<'_>, unit: Option<&mut dyn Iommu>) {
        let outcome = if self.request.is_malformed() {
            Outcome::Refused { status: Status::Malformed, reason: 0 }
        } else {
            match unit {
                Some(unit) => unit.request(cx, self.id, &self.request),
                None => unprotected(&self.request),
            }
        };
        if let Outcome::Memory { phys } = outcome {
            cx.note(What::Begin(self.reach(phys)));
        }
        self.outcome = Some(outcome);
    }

    /// Moves the bytes, or delivers the verdict.
    pub(crate) fn finish(mut self, cx: &mut Cx<'_>) -> Completion {
        match self.outcome.take() {
            Some(Outcome::Memory { phys }) => {
                let moved = move_bytes(cx.mem, phys, &mut self.request.op);
                cx.note(What::Finish(self.reach(phys)));
                moved.unwrap_or_else(|| self.refuse(cx, Status::NoMemory, 0))
            }
            Some(Outcome::Interrupt { addr, data }) => {
                let msi = Msi { addr, data, from: MsiSource::Requester(self.request.source) };
                cx.note(What::Interrupt(msi));
                cx.outbox.interrupts.push(msi);
                Completion::Written
            }
            Some(Outcome::Nothing) => Completion::Data(Vec::new()),
            Some(Outcome::Translation(translation)) => {
                let (source, pasid, addr) = (self.request.source, self.request.pasid(), self.request.addr);
                cx.note(What::Translated { source, pasid, addr, translation });
                Completion::Translation(translation)
            }
            Some(Outcome::Refused { status, reason }) => self.refuse(cx, status, reason),
            None => self.refuse(cx, Status::Malformed, 0),
        }
    }

    fn refuse(&self, cx: &mut Cx<'_>, status: Status, reason: u8) -> Completion {
        cx.note(What::Blocked {
            source: self.request.source,
            pasid: self.request.pasid(),
            addr: self.request.addr,
            write: self.request.is_write(),
            status,
            reason,
        });
        Completion::Refused { status, reason }
    }

    fn reach(&self, phys: u64) -> Reach {
        Reach {
            access: self.id,
            source: self.request.source,
            pasid: self.pasid,
            iova: self.iova,
            phys,
            len: self.request.len() as u32,
            write: self.request.is_write(),
            translated: self.request.at == AddressType::Translated,
        }
    }
}

/// A root complex without an IOMMU takes addresses as they are and knows no ATS.
fn unprotected(request: &Request) -> Outcome {
    let plain = request.at == AddressType::Untranslated && request.prefix.is_none();
    match &request.op {
        Operation::Translate { .. } => Outcome::Refused { status: Status::UnsupportedRequest, reason: 0 },
        _ if !plain => Outcome::Refused { status: Status::UnsupportedRequest, reason: 0 },
        Operation::ZeroLengthRead => Outcome::Nothing,
        _ => Outcome::Memory { phys: request.addr },
    }
}

/// The bytes of a request, at the physical address that the walk gave; `None` where no memory is.
fn move_bytes(mem: &dyn Memory, phys: u64, op: &mut Operation) -> Option<Completion> {
    match op {
        Operation::Read(len) => {
            let mut data = vec![0; *len as usize];
            mem.read(phys, &mut data).ok()?;
            Some(Completion::Data(data))
        }
        Operation::Write(data) => {
            mem.write(phys, data).ok()?;
            Some(Completion::Written)
        }
        Operation::ZeroLengthRead | Operation::Translate { .. } => Some(Completion::Data(Vec::new())),
    }
}
