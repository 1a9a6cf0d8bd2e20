//! Fault recording (`[V]` 7.2).

use portcullis_spec::vtd::fault::FaultReason;
use portcullis_spec::vtd::regs::{AddressType, Frcd, FrcdType};

use super::regs::Registers;
use crate::bus::{Prefix, RequesterId};

/// A request that met a fault condition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) reason: FaultReason,
    pub(super) addr: u64,
    pub(super) source: RequesterId,
    pub(super) prefix: Option<Prefix>,
    pub(super) kind: FrcdType,
    pub(super) at: AddressType,
}

impl Registers {
    /// Records a fault, unless there is no room for it or its requester has one recorded.
    pub(super) fn record(&mut self, fault: &Fault, collapse: bool) {
        if self.fsts.pfo() {
            return;
        }
        if collapse && self.frcd.iter().any(|r| r.f() && r.sid() == fault.source.0) {
            return;
        }
        let index = self.next_frcd;
        let (unserved, first) = (self.fault_unserved(), !self.pending_fault());
        let Some(record) = self.frcd.get_mut(index) else {
            return;
        };
        if record.f() {
            self.fsts.set_pfo(true);
            return;
        }
        *record = entry(fault);
        if first {
            self.fsts.set_fri(index as u8);
        }
        if !unserved {
            self.fault_event.raise();
        }
        self.next_frcd = (index + 1) % self.frcd.len();
    }
}

fn entry(fault: &Fault) -> Frcd {
    let record = Frcd::new()
        .with_fi(fault.addr & !0xfff)
        .with_sid(fault.source.0)
        .with_fr(fault.reason.bits())
        .with_at(fault.at.bits())
        .with_request_type(fault.kind)
        .with_f(true);
    match fault.prefix {
        Some(p) => {
            record.with_pp(true).with_pv(p.pasid.get()).with_exe(p.execute).with_privileged(p.privileged)
        }
        None => record,
    }
}
