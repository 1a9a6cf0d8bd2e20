//! What a run reports. On the simulation everything but [`Timing`] is equal for equal seeds; on
//! threads the input and what the adversary may do are.

use crate::{oracle::Verdict, pager::PagerCounts};
use portcullis_models::adversary::Action;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// Seed of the run.
    pub seed: u64,
    /// Level of the adversary.
    pub adversary: String,
    /// How the scheduler chose.
    pub strategy: String,
    /// Bytes of the input, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_bytes: Option<u64>,
    /// SHA-256 of the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_sha256: Option<String>,
    /// Frames for pages, of all engines together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<usize>,
    /// What happened, by what the scenario counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
    /// Each device.
    pub devices: Vec<DeviceReport>,
    /// Actions of the adversary by kind.
    #[serde(serialize_with = "by_name")]
    pub adversary_actions: BTreeMap<Action, u64>,
    /// Fault records that observers were told.
    pub fault_records: u64,
    /// Fault records that found no room with the observer.
    pub fault_records_lost: u64,
    /// The first faults, each of another reason, in words; where the scenario keeps them.
    pub explained: Vec<String>,
    /// Resolvers that ran at the same time, at most.
    pub resolvers_at_once: u32,
    /// Virtual nanoseconds at the end; on the simulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_ns: Option<u64>,
    /// Choices the scheduler made; on the simulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Hash of all of them; on the simulation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_hash: Option<String>,
    /// What only real threads have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<OnThreads>,
    /// The three invariants.
    pub invariants: Verdict,
    /// Whatever else went wrong, in words: a job that failed, a run that hung.
    pub problems: Vec<String>,
    /// Every byte compared is what it should be, no invariant is broken, nothing else went wrong.
    pub ok: bool,
    /// The life of one page request.
    pub life: Vec<String>,
    /// What depends on the real clock.
    pub timing: Timing,
}

/// A run on real threads.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct OnThreads {
    /// Workers that ran resolvers.
    pub workers: usize,
    /// Real nanoseconds from the first attach to the end of the work.
    pub working_ns: u64,
    /// Page-request groups that resolvers answered with Success in that time.
    pub served: u64,
    /// The same in a second.
    pub served_per_second: f64,
}

impl OnThreads {
    /// So many groups served, in so many nanoseconds.
    pub fn new(workers: usize, served: u64, working_ns: u64) -> OnThreads {
        let seconds = working_ns as f64 / 1e9;
        let served_per_second = if seconds > 0.0 { served as f64 / seconds } else { 0.0 };
        OnThreads { workers, working_ns, served, served_per_second }
    }
}

/// How steps are chosen on threads.
pub const NO_SCHEDULE: &str = "the system's; the seed picks data and adversary, not the schedule";

/// What depends on the real clock.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Timing {
    /// Real seconds that the run took.
    pub seconds: f64,
}

/// One device.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeviceReport {
    /// Requester id.
    pub id: String,
    /// What it is.
    pub role: String,
    /// Its PASID, where it works inside one.
    pub pasid: Option<u32>,
    /// SHA-256 of what it wrote; engines only.
    pub sha256: Option<String>,
    /// Whether that is the input's; engines only.
    pub identical: Option<bool>,
    /// Bytes moved.
    pub bytes: u64,
    /// Reads and writes that moved bytes.
    pub accesses: u64,
    /// Look-ups that the IOMMU's IOTLB answered.
    pub iotlb_hits: u64,
    /// Look-ups that needed a walk.
    pub iotlb_misses: u64,
    /// Look-ups that the device's own TLB answered.
    pub device_tlb_hits: u64,
    /// Look-ups that needed a translation request.
    pub device_tlb_misses: u64,
    /// Page requests sent.
    pub page_requests: u64,
    /// Groups sent.
    pub groups: u64,
    /// How last requests were settled.
    pub settled: BTreeMap<String, u64>,
    /// Requests refused, by reason.
    pub blocked: BTreeMap<String, u64>,
    /// Writes to the interrupt range that arrived as interrupts.
    pub interrupts: u64,
    /// Median nanoseconds of the machine's clock from a group's last request to its response.
    pub response_p50_ns: Option<u64>,
    /// The same, 99th percentile.
    pub response_p99_ns: Option<u64>,
    /// What the core counted.
    pub core: CoreCounts,
    /// What its pager did.
    pub pager: Option<PagerCounts>,
    /// Configuration writes in an order that PCIe forbids.
    pub order_violations: usize,
}

/// The core's counts of a device.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct CoreCounts {
    /// Page requests taken from the queue.
    pub requests: u64,
    /// Refused: over the device's share.
    pub quota: u64,
    /// Refused: no right to make any.
    pub unauthorised: u64,
    /// Refused: malformed.
    pub malformed: u64,
    /// Dropped: the last of the group never came, or was answered by the hardware.
    pub partials_dropped: u64,
    /// Fault records.
    pub faults: u64,
}

impl From<portcullis::Counters> for CoreCounts {
    fn from(c: portcullis::Counters) -> Self {
        CoreCounts {
            requests: c.requests,
            quota: c.quota,
            unauthorised: c.unauthorised,
            malformed: c.malformed,
            partials_dropped: c.partials_dropped,
            faults: c.faults,
        }
    }
}

fn by_name<S: Serializer>(actions: &BTreeMap<Action, u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(actions.iter().map(|(action, n)| (action.to_string(), n)))
}

/// The value below which the given share of the sorted values lies.
pub fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get(last * percent / 100).copied()
}
