//! What travels between an endpoint and the root complex: requests, messages and answers, in the
//! terms of PCI Express and its Address Translation Services.

use std::fmt;

pub use portcullis_spec::vtd::private_data::PrivateData;

/// Bytes of the smallest page; no request crosses a multiple of it (`[V]` 3.13).
pub const PAGE: u64 = 4096;

/// Bus, device and function of a requester: bits 15:8, 7:3 and 2:0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequesterId(pub u16);

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.0 >> 8, (self.0 >> 3) & 0x1f, self.0 & 7)
    }
}

/// A process address space id: 20 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(u32);

impl Pasid {
    /// `None` above 20 bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value < 1 << 20 { Some(Pasid(value)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The PASID prefix of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The address space the request is for.
    pub pasid: Pasid,
    /// Execute-requested (ER).
    pub execute: bool,
    /// Privileged-mode-requested (PR).
    pub privileged: bool,
}

impl Prefix {
    /// A user-mode prefix without execute.
    pub const fn user(pasid: Pasid) -> Self {
        Prefix { pasid, execute: false, privileged: false }
    }
}

/// The AT field of a memory request. A translation request is an [`Operation`] of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressType {
    /// The address is an IOVA (or whatever the IOMMU makes of it).
    Untranslated,
    /// The endpoint claims that the address came out of a translation completion.
    Translated,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Reads this many bytes (1 to 4096, within a page).
    Read(u32),
    /// A read with no byte enabled: a flush (`[V]` 3.14).
    ZeroLengthRead,
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Asks for the translation of the page (AT = 01b).
    Translate {
        /// NW: only read access is wanted.
        no_write: bool,
    },
}

/// A request that wants an answer or moves bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who sends it (or claims to).
    pub source: RequesterId,
    /// The PASID prefix, if there is one.
    pub prefix: Option<Prefix>,
    /// Whether the address is translated already.
    pub at: AddressType,
    /// First byte.
    pub addr: u64,
    /// What to do there.
    pub op: Operation,
}

impl Request {
    /// The PASID of the prefix.
    pub fn pasid(&self) -> Option<Pasid> {
        self.prefix.map(|p| p.pasid)
    }

    /// Bytes moved by this request.
    pub fn len(&self) -> usize {
        match &self.op {
            Operation::Read(n) => *n as usize,
            Operation::Write(data) => data.len(),
            Operation::ZeroLengthRead | Operation::Translate { .. } => 0,
        }
    }

    /// True where no byte moves.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True for a request that needs write permission.
    pub fn is_write(&self) -> bool {
        matches!(self.op, Operation::Write(_))
    }

    /// True where the request breaks the rules of the link: it crosses a page, moves nothing, or
    /// runs past the end of the address space. A receiver blocks it (`[V]` 3.13).
    pub fn is_malformed(&self) -> bool {
        match &self.op {
            Operation::ZeroLengthRead | Operation::Translate { .. } => false,
            Operation::Read(_) | Operation::Write(_) => {
                let len = self.len() as u64;
                len == 0 || len > PAGE || (self.addr & (PAGE - 1)) + len > PAGE
            }
        }
    }
}

/// A page request message, as an endpoint sends it. One with neither read nor write and with
/// `last` set is a stop marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// Who sends it.
    pub source: RequesterId,
    /// The PASID prefix, if there is one.
    pub prefix: Option<Prefix>,
    /// The page, its low 12 bits clear.
    pub addr: u64,
    /// Read access is wanted.
    pub read: bool,
    /// Write access is wanted.
    pub write: bool,
    /// Last in its group: an answer is wanted (except for a stop marker).
    pub last: bool,
    /// Page request group index, 9 bits.
    pub prgi: u16,
    /// Number of the group over the life of the complex; 0 for messages outside any. It is not on
    /// the wire: it lets an oracle tell two groups with the same index apart.
    pub group: u64,
    /// Bits that the response has to bring back. A request with some wants a response of its own,
    /// also when it is not the last (VT-d 3.x; see [`portcullis_spec::vtd::private_data`]).
    pub private: Option<PrivateData>,
}

impl PageRequest {
    /// A stop marker: no more requests of this PASID follow.
    pub fn is_stop_marker(&self) -> bool {
        !self.read && !self.write && self.last && self.prefix.is_some()
    }

    /// True where somebody has to answer.
    pub fn needs_response(&self) -> bool {
        (self.last || self.private.is_some()) && !self.is_stop_marker()
    }
}

/// A posted message from an endpoint. Messages of one endpoint arrive in the order in which they
/// were sent (`[V]` 7.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    /// A page request or stop marker.
    PageRequest(PageRequest),
    /// A device-TLB invalidation is done.
    InvalidationCompletion {
        /// Who has done it.
        source: RequesterId,
        /// One bit for each ITag that is done.
        itags: u32,
    },
}

/// A posted message to an endpoint. They arrive in order (`[V]` 7.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Downstream {
    /// Forget cached translations.
    Invalidate {
        /// The tag that the completion has to name.
        itag: u8,
        /// `None`: translations of requests without PASID.
        pasid: Option<Pasid>,
        /// All PASIDs at once.
        global: bool,
        /// First byte of the range, aligned to its size.
        addr: u64,
        /// log2 of the size in bytes; 64 means everything.
        bits: u8,
    },
    /// The answer to a group of page requests.
    PageResponse {
        /// The PASID of the group.
        pasid: Option<Pasid>,
        /// Its index.
        prgi: u16,
        /// The verdict.
        code: ResponseCode,
        /// Who decided it.
        by: Responder,
        /// The private data of the request that it answers.
        private: Option<PrivateData>,
    },
}

/// The verdict in a page group response (PCIe; `[V]` table 32).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResponseCode {
    /// All pages are there (0h).
    Success,
    /// At least one request was refused (1h).
    Invalid,
    /// The service is broken: the function stops sending page requests (Fh).
    Failure,
    /// A value that PCIe reserves; endpoints take it for a failure.
    Reserved(u8),
}

impl ResponseCode {
    /// From the 4 bits on the wire.
    pub const fn from_wire(code: u8) -> Self {
        match code & 0xf {
            0 => ResponseCode::Success,
            1 => ResponseCode::Invalid,
            0xf => ResponseCode::Failure,
            other => ResponseCode::Reserved(other),
        }
    }
}

/// Who answered a group of page requests. Not on the wire; kept for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Responder {
    /// Software, through the IOMMU's queue.
    Software,
    /// The IOMMU itself.
    Hardware,
}

/// A translation that an endpoint may cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Translated address of the region, aligned to its size.
    pub addr: u64,
    /// log2 of the region's size in bytes.
    pub bits: u8,
    /// R.
    pub read: bool,
    /// W.
    pub write: bool,
    /// U: the range may be accessed by untranslated requests only.
    pub untranslated_only: bool,
    /// PRIV: the permissions are those of privileged mode.
    pub privileged: bool,
}

/// How a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Unsupported request.
    UnsupportedRequest,
    /// Completer abort.
    CompleterAbort,
    /// The receiver dropped a malformed packet.
    Malformed,
    /// Translated to an address where nothing answers.
    NoMemory,
}

/// What comes back to an endpoint for a [`Request`]. Writes are posted on a real link, so a device
/// does not see their fate; here the notice stands for the flush with which it makes sure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// Data of a read; empty for a zero-length read.
    Data(Vec<u8>),
    /// The write has landed (or the interrupt has been sent).
    Written,
    /// A translation; without permissions where there is none.
    Translation(Translation),
    /// Refused. `reason` is the IOMMU's fault reason, 0 where it has none.
    Refused {
        /// The status that a completion would carry.
        status: Status,
        /// Fault reason, by the number of its manual.
        reason: u8,
    },
}

/// A message-signalled interrupt on its way to the interrupt controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// Address of the write, in 0xFEEx_xxxx.
    pub addr: u64,
    /// Data of the write.
    pub data: u32,
    /// Who raised it.
    pub from: MsiSource,
}

/// Who raised an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MsiSource {
    /// An IOMMU, by its place in the complex.
    Unit(usize),
    /// A write of this requester.
    Requester(RequesterId),
}
