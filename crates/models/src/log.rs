//! What happened on the bus, for an oracle: every byte that moved, every page request and how it
//! was settled, every interrupt.

use crate::bus::{
    Msi, PageRequest, Pasid, PrivateData, RequesterId, Responder, ResponseCode, Status, Translation,
};

/// Receives events in the order in which they happen. Implementations only take notes: they never
/// call back into the complex.
pub trait AccessLog: Send {
    /// One event.
    fn event(&mut self, event: &Event);
}

/// A log that keeps nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl AccessLog for Silent {
    fn event(&mut self, _: &Event) {}
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Position in the log, from 0, without gaps.
    pub seq: u64,
    /// When, in nanoseconds.
    pub time: u64,
    /// What.
    pub what: What,
}

/// A stretch of physical memory reached by a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Number of the access, unique in the complex: joins begin and finish.
    pub access: u64,
    /// Requester id of the request.
    pub source: RequesterId,
    /// The PASID the endpoint meant. Translated requests carry none on the wire.
    pub pasid: Option<Pasid>,
    /// The address the endpoint meant: for a translated request the IOVA that its device TLB
    /// looked up, and the physical address itself where it forged one.
    pub iova: u64,
    /// Physical address of the first byte.
    pub phys: u64,
    /// Bytes.
    pub len: u32,
    /// True for a write.
    pub write: bool,
    /// True for a request with a translated address.
    pub translated: bool,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The IOMMU has let an access through; no byte has moved yet.
    Begin(Reach),
    /// Its bytes have moved.
    Finish(Reach),
    /// A request was refused.
    Blocked {
        /// Who asked.
        source: RequesterId,
        /// Its PASID.
        pasid: Option<Pasid>,
        /// The address in the request.
        addr: u64,
        /// True for a write.
        write: bool,
        /// The status returned.
        status: Status,
        /// Fault reason, by the number of the IOMMU's manual; 0 for none.
        reason: u8,
    },
    /// A translation request has been answered, with permissions or without.
    Translated {
        /// Who asked.
        source: RequesterId,
        /// Its PASID.
        pasid: Option<Pasid>,
        /// The page it asked for.
        addr: u64,
        /// The answer.
        translation: Translation,
    },
    /// An endpoint has sent a page request (or a stop marker).
    PageRequested(PageRequest),
    /// The IOMMU has put it into its queue.
    PageQueued {
        /// The request.
        request: PageRequest,
        /// Place in the unit.
        unit: usize,
        /// The queue's tail after it, in bytes from the queue's start.
        tail: u64,
    },
    /// The IOMMU has dropped it: queue full, table fault, or not enabled.
    PageDropped {
        /// The request.
        request: PageRequest,
        /// Place of the unit.
        unit: usize,
        /// Why.
        cause: DropCause,
    },
    /// The IOMMU has sent a page group response towards the endpoint.
    ResponseSent {
        /// To whom.
        source: RequesterId,
        /// The group's PASID.
        pasid: Option<Pasid>,
        /// The group's index.
        prgi: u16,
        /// The verdict.
        code: ResponseCode,
        /// Who decided it.
        by: Responder,
        /// The private data that it brings back.
        private: Option<PrivateData>,
    },
    /// A request of an endpoint that wants a response has been settled.
    Settled {
        /// The endpoint.
        source: RequesterId,
        /// The group's PASID.
        pasid: Option<Pasid>,
        /// The group's index.
        prgi: u16,
        /// Number of the group, as in [`PageRequest::group`].
        group: u64,
        /// The request's private data.
        private: Option<PrivateData>,
        /// How.
        how: Settlement,
    },
    /// A response arrived that matches no request the endpoint waits for, nor one that a reset made
    /// void.
    UnexpectedResponse {
        /// The endpoint.
        source: RequesterId,
        /// The response's PASID.
        pasid: Option<Pasid>,
        /// The response's index.
        prgi: u16,
        /// The private data that it brings back.
        private: Option<PrivateData>,
    },
    /// A late response to a group that a reset made void: discarded, as it must be (`[V]` 7.9).
    LateResponse {
        /// The endpoint.
        source: RequesterId,
        /// The response's PASID.
        pasid: Option<Pasid>,
        /// The response's index.
        prgi: u16,
    },
    /// The IOMMU has executed an invalidation of its own caches, or sent one to a device.
    Invalidated {
        /// What was to be forgotten.
        cache: Cache,
        /// The device it was sent to, of those that are.
        source: Option<RequesterId>,
        /// The PASID it was about, of those that name one.
        pasid: Option<Pasid>,
    },
    /// An interrupt left for the interrupt controller.
    Interrupt(Msi),
    /// An endpoint was reset.
    Reset {
        /// The endpoint.
        source: RequesterId,
    },
}

/// What an invalidation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cache {
    /// Context entries.
    Context,
    /// PASID entries.
    Pasid,
    /// Translations in the IOMMU.
    Iotlb,
    /// Translations in a device.
    DeviceTlb,
}

/// Why an IOMMU dropped a page request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropCause {
    /// Its tables could not be followed; the fault reason.
    Tables(u8),
    /// The queue was full.
    Full,
    /// The queue had overflowed before and had not been repaired.
    Overflowed,
}

/// How a request that wants a response was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Settlement {
    /// Answered by software.
    Software(ResponseCode),
    /// Answered by the IOMMU.
    Hardware(ResponseCode),
    /// Made void by a reset of the endpoint: no answer counts any more.
    Void,
}

/// Numbers and stamps events on their way to the sink.
pub(crate) struct Journal {
    sink: Box<dyn AccessLog>,
    next: u64,
    pub(crate) now: u64,
}

impl Journal {
    pub(crate) fn new(sink: Box<dyn AccessLog>) -> Self {
        Journal { sink, next: 0, now: 0 }
    }

    pub(crate) fn note(&mut self, what: What) {
        let event = Event { seq: self.next, time: self.now, what };
        self.next += 1;
        self.sink.event(&event);
    }
}
