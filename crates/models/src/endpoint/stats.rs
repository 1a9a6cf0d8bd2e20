//! Counters of an endpoint.

use std::collections::BTreeMap;

use crate::bus::{Responder, ResponseCode, Status};

/// What an endpoint did and what it met.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Reads and writes that moved bytes.
    pub accesses: u64,
    /// Look-ups that the device TLB answered.
    pub dtlb_hits: u64,
    /// Look-ups that needed a translation request.
    pub dtlb_misses: u64,
    /// Device-TLB invalidations received.
    pub invalidations: u64,
    /// Page request messages sent, stop markers excepted.
    pub page_requests: u64,
    /// Groups of them.
    pub groups: u64,
    /// Responses that ended a group, by who answered and how.
    pub responses: BTreeMap<(Responder, ResponseCode), u64>,
    /// Groups made void by a reset.
    pub void: u64,
    /// Requests refused, by status and fault reason.
    pub blocked: BTreeMap<(Status, u8), u64>,
    /// Nanoseconds from a group's last request to its response, in order of arrival. The first
    /// 65,536 are kept.
    pub latencies: Vec<u64>,
}

impl Statistics {
    /// Latencies kept.
    const KEPT: usize = 1 << 16;

    pub(crate) fn latency(&mut self, ns: u64) {
        if self.latencies.len() < Self::KEPT {
            self.latencies.push(ns);
        }
    }
}
