//! Page requests as devices send them, and the answers as the hardware does.

use portcullis::driver::PageRequest;
use portcullis::{Code, Pasid, SourceId, VendorBits};

pub fn pasid(n: u32) -> Option<Pasid> {
    Some(Pasid::new(n).expect("a PASID"))
}

/// The last request of a group that consists of it alone.
pub fn last(source: u32, index: u16) -> PageRequest {
    PageRequest {
        source: SourceId(source),
        pasid: None,
        index,
        address: 0x1000 * u64::from(index),
        read: true,
        write: false,
        exec: false,
        privileged: false,
        last: true,
        own_answer: false,
        vendor: VendorBits([u64::from(index), 1, 2, 3]),
    }
}

/// A request that is not the last of its group.
pub fn first(source: u32, index: u16, address: u64) -> PageRequest {
    PageRequest { last: false, address, ..last(source, index) }
}

/// An answer as the hardware sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub source: SourceId,
    pub pasid: Option<Pasid>,
    pub index: u16,
    pub code: Code,
}

pub fn sent(source: u32, index: u16, code: Code) -> Sent {
    Sent { source: SourceId(source), pasid: None, index, code }
}
