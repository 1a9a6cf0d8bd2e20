//! Private data of page requests: 128 bits that a device gives with a request and gets back,
//! unchanged, with its response. Each request that has some wants a response of its own, also when
//! it is not the last of its group.
//!
//! Revisions 3.x of the manual had it; 4.0 took it out, and no register announces it. *Unverified*:
//! the layout here is that of software written for revisions 3.x, since the text of `[V]` has the
//! bits as reserved. [`PageRequest::RESERVED`] and [`PageGroupResponse::RESERVED`] are `[V]`'s.

use super::page_req::PageRequest;
use super::qi::{Desc, DescType, PageGroupResponse};

/// Private data present: bit 9 of a page request descriptor. The data are its upper quadwords.
pub const REQUEST_PRESENT: u64 = 1 << 9;
/// Private data present: bit 5 of a page group response descriptor. The data are its upper
/// quadwords.
pub const RESPONSE_PRESENT: u64 = 1 << 5;

/// 128 bits, the lower quadword first.
pub type PrivateData = [u64; 2];

const fn put([q0, q1, ..]: [u64; 4], present: u64, data: Option<PrivateData>) -> [u64; 4] {
    match data {
        Some([q2, q3]) => [q0 | present, q1, q2, q3],
        None => [q0 & !present, q1, 0, 0],
    }
}

const fn take(qw: [u64; 4], present: u64) -> ([u64; 4], Option<PrivateData>) {
    let [q0, q1, q2, q3] = qw;
    if q0 & present == 0 { (qw, None) } else { ([q0 & !present, q1, 0, 0], Some([q2, q3])) }
}

/// The quadwords of a page request descriptor with private data.
#[must_use]
pub const fn request(request: PageRequest, data: Option<PrivateData>) -> [u64; 4] {
    put(request.into_qwords(), REQUEST_PRESENT, data)
}

/// Takes the private data out of the quadwords of a page request descriptor. What is left is as
/// `[V]` has it.
#[must_use]
pub const fn take_from_request(qw: [u64; 4]) -> ([u64; 4], Option<PrivateData>) {
    take(qw, REQUEST_PRESENT)
}

/// A page group response descriptor with private data.
#[must_use]
pub const fn response(response: PageGroupResponse, data: Option<PrivateData>) -> Desc {
    put(response.desc(), RESPONSE_PRESENT, data)
}

/// Takes the private data out of a page group response descriptor; nothing out of another. What is
/// left is as `[V]` has it.
#[must_use]
pub const fn take_from_response(desc: Desc) -> (Desc, Option<PrivateData>) {
    if DescType::field(&desc) == DescType::PageGroupResponse.bits() {
        take(desc, RESPONSE_PRESENT)
    } else {
        (desc, None)
    }
}
