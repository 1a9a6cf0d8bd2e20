//! Who reads the bus's log of a run, and what is told of each device at its end.

use super::{Actor, Results, Role, sha256};
use crate::{
    board::Board,
    life::Life,
    machine::PAGE_REQUEST_EVENT,
    oracle::{Oracle, settlement},
    report::{DeviceReport, percentile},
};
use parking_lot::Mutex;
use portcullis_models::{
    bus::{Pasid, RequesterId, Status},
    log::{AccessLog, Event, What},
};
use portcullis_spec::vtd::fault::FaultReason;
use std::{collections::BTreeMap, sync::Arc};

/// Everyone who reads the bus's log.
#[derive(Clone)]
pub(super) struct Watch {
    pub(super) oracle: Oracle,
    pub(super) life: Life,
    /// How groups were settled, by requester.
    settled: Arc<Mutex<BTreeMap<(RequesterId, String), u64>>>,
}

impl Watch {
    pub(super) fn new(followed: RequesterId) -> Watch {
        Watch {
            oracle: Oracle::default(),
            life: Life::of(followed, u32::from(PAGE_REQUEST_EVENT)),
            settled: Arc::default(),
        }
    }

    pub(super) fn report(
        &self,
        actor: &Actor,
        board: &Board,
        results: &Results,
        input: &str,
    ) -> DeviceReport {
        let mut report = DeviceReport {
            id: actor.id.to_string(),
            role: actor.name().into(),
            pasid: actor.pasid.map(Pasid::get),
            interrupts: board.interrupts_from(actor.id),
            core: results.counters.get(&actor.place).copied().unwrap_or_default().into(),
            pager: results.pagers.get(&actor.place).copied(),
            ..DeviceReport::default()
        };
        if actor.role == Role::Engine {
            let hash = results.outputs.get(actor.place).map(|o| sha256(o));
            report.identical = Some(hash.as_deref() == Some(input));
            report.sha256 = hash;
        }
        let settled = self.settled.lock();
        let ours = settled.iter().filter(|((id, _), _)| *id == actor.id);
        report.settled = ours.map(|((_, how), n)| (how.clone(), *n)).collect();
        if let Some(unit) = board.complex.unit(0) {
            let lookups = unit.lookups(actor.id);
            report.iotlb_hits = lookups.hits;
            report.iotlb_misses = lookups.misses;
        }
        if let Some(endpoint) = board.complex.endpoint(actor.place) {
            let s = endpoint.statistics();
            report.bytes = s.bytes_read + s.bytes_written;
            report.accesses = s.accesses;
            report.device_tlb_hits = s.dtlb_hits;
            report.device_tlb_misses = s.dtlb_misses;
            report.page_requests = s.page_requests;
            report.groups = s.groups;
            report.blocked =
                s.blocked.iter().map(|((status, code), n)| (blocked(*status, *code), *n)).collect();
            let mut latencies = s.latencies.clone();
            latencies.sort_unstable();
            report.response_p50_ns = percentile(&latencies, 50);
            report.response_p99_ns = percentile(&latencies, 99);
            report.order_violations = endpoint.violations().len();
        }
        report
    }
}

fn blocked(status: Status, code: u8) -> String {
    match FaultReason::from_bits(code) {
        Some(reason) => format!("{} ({code:#x}): {}", reason.name(), reason.description()),
        None => format!("{status:?}"),
    }
}

impl AccessLog for Watch {
    fn event(&mut self, event: &Event) {
        self.oracle.event(event);
        self.life.event(event);
        if let What::Settled { source, how, .. } = &event.what {
            *self.settled.lock().entry((*source, settlement(*how))).or_default() += 1;
        }
    }
}
