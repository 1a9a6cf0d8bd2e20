//! The page request queue registers (`[V]` 11.4.11.1 to 11.4.11.4).

use bitfield_struct::bitfield;

use crate::vtd::field::{address_from_u64, address_to_u64, offset32_from_u64, offset32_to_u64};
use crate::vtd::page_req::PRQ_SHIFT;

/// PQH_REG (`[V]` 11.4.11.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pqh {
    #[bits(5)]
    __: u8,
    /// PQH, bits 18:5: byte offset of the request that software processes next.
    #[bits(14, from = offset32_from_u64, into = offset32_to_u64)]
    pub pqh: u64,
    #[bits(45)]
    __: u64,
}

/// PQT_REG (`[V]` 11.4.11.2). Software writes it only to initialise the queue.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pqt {
    #[bits(5)]
    __: u8,
    /// PQT, bits 18:5: byte offset of the request that hardware writes next.
    #[bits(14, from = offset32_from_u64, into = offset32_to_u64)]
    pub pqt: u64,
    #[bits(45)]
    __: u64,
}

/// PQA_REG (`[V]` 11.4.11.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pqa {
    /// PQS, bits 2:0: the queue has 2^PQS pages of 4 KiB.
    #[bits(3)]
    pub pqs: u8,
    #[bits(9)]
    __: u16,
    /// PQA, bits 63:12: address of the queue.
    #[bits(52, from = address_from_u64, into = address_to_u64)]
    pub pqa: u64,
}

impl Pqa {
    /// Bytes of the queue.
    #[must_use]
    pub const fn size(self) -> u64 {
        4096 << self.pqs()
    }

    /// Descriptors that the queue has room for, one of which always stays free.
    #[must_use]
    pub const fn entries(self) -> u64 {
        self.size() >> PRQ_SHIFT
    }
}

/// PRS_REG (`[V]` 11.4.11.4). Both bits are written 1 to clear.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Prs {
    /// PPR, bit 0: a page request was queued.
    pub ppr: bool,
    /// PRO, bit 1: a page request met a full queue; requests are not queued until it is cleared.
    pub pro: bool,
    #[bits(30)]
    __: u32,
}

impl Prs {
    /// The bits that are written 1 to clear.
    pub const W1C: u32 = 0x0000_0003;
}
