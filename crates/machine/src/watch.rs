//! Everyone who reads the bus's log of a run, and what is told of each device at its end.

use crate::{
    board::Board,
    life::Life,
    machine::PAGE_REQUEST_EVENT,
    oracle::{Oracle, settlement},
    report::{DeviceReport, percentile},
};
use parking_lot::Mutex;
use portcullis_models::{
    bus::{RequesterId, Status},
    log::{AccessLog, DropCause, Event, What},
};
use portcullis_spec::vtd::fault::FaultReason;
use std::{collections::BTreeMap, sync::Arc};

/// Everyone who reads the bus's log. A handle.
#[derive(Clone)]
pub struct Watch {
    /// The oracle.
    pub oracle: Oracle,
    /// Follows one page request.
    pub life: Life,
    tally: Arc<Mutex<Tally>>,
    /// How groups were settled, by requester.
    settled: Arc<Mutex<BTreeMap<(RequesterId, String), u64>>>,
}

/// Counts from the bus's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How last page requests were settled.
    pub settled: BTreeMap<String, u64>,
    /// Page requests that the IOMMU dropped, by cause.
    pub dropped: BTreeMap<DropCause, u64>,
    /// Responses discarded because a reset had made their group void.
    pub late: u64,
    /// Requests refused.
    pub blocked: u64,
    /// Interrupts that endpoints sent.
    pub interrupts: u64,
}

impl Tally {
    /// Groups settled in a way that begins so.
    pub fn settled_by(&self, how: &str) -> u64 {
        self.settled.iter().filter(|(h, _)| h.starts_with(how)).map(|(_, n)| n).sum()
    }
}

impl Watch {
    /// Follows the life of page requests of one device.
    pub fn new(followed: RequesterId) -> Watch {
        Watch {
            oracle: Oracle::default(),
            life: Life::of(followed, u32::from(PAGE_REQUEST_EVENT)),
            tally: Arc::default(),
            settled: Arc::default(),
        }
    }

    /// What the bus saw so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().clone()
    }

    /// What hardware says of the device at `place`.
    pub fn device(&self, board: &Board, place: usize) -> DeviceReport {
        let Some(endpoint) = board.complex.endpoint(place) else { return DeviceReport::default() };
        let id = endpoint.id();
        let settled = self.settled.lock();
        let ours = settled.iter().filter(|((of, _), _)| *of == id);
        let lookups = board.complex.unit(0).map(|u| u.lookups(id)).unwrap_or_default();
        let s = endpoint.statistics();
        let mut latencies = s.latencies.clone();
        latencies.sort_unstable();
        DeviceReport {
            id: id.to_string(),
            interrupts: board.interrupts_from(id),
            settled: ours.map(|((_, how), n)| (how.clone(), *n)).collect(),
            iotlb_hits: lookups.hits,
            iotlb_misses: lookups.misses,
            bytes: s.bytes_read + s.bytes_written,
            accesses: s.accesses,
            device_tlb_hits: s.dtlb_hits,
            device_tlb_misses: s.dtlb_misses,
            page_requests: s.page_requests,
            groups: s.groups,
            blocked: s.blocked.iter().map(|((status, code), n)| (blocked(*status, *code), *n)).collect(),
            response_p50_ns: percentile(&latencies, 50),
            response_p99_ns: percentile(&latencies, 99),
            order_violations: endpoint.violations().len(),
            ..DeviceReport::default()
        }
    }
}

/// Why a request was refused, in words.
pub(crate) fn blocked(status: Status, code: u8) -> String {
    match FaultReason::from_bits(code) {
        Some(reason) => format!("{} ({code:#x}): {}", reason.name(), reason.description()),
        None => format!("{status:?}"),
    }
}

impl AccessLog for Watch {
    fn event(&mut self, event: &Event) {
        self.oracle.event(event);
        self.life.event(event);
        match &event.what {
            What::Settled { source, how, .. } => {
                let how = settlement(*how);
                *self.settled.lock().entry((*source, how.clone())).or_default() += 1;
                *self.tally.lock().settled.entry(how).or_default() += 1;
            }
            What::PageDropped { cause, .. } => *self.tally.lock().dropped.entry(*cause).or_default() += 1,
            What::LateResponse { .. } => self.tally.lock().late += 1,
            What::Blocked { .. } => self.tally.lock().blocked += 1,
            _ => {}
        }
    }
}
