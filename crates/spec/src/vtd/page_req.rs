//! The page request descriptor that hardware writes to the page request queue (`[V]` 7.4.1.1), and
//! the response codes of a page group response (`[V]` table 32).

use bitfield_struct::bitfield;

use super::field::{
    address_from_u128, address_to_u128, pasid_from_u128, pasid_to_u128, prgi_from_u128, prgi_to_u128,
};

/// Shift from an index of the page request queue to its byte offset: descriptors of 32 bytes.
pub const PRQ_SHIFT: u32 = 5;
/// Bytes of a page request descriptor.
pub const PAGE_REQ_SIZE: usize = 1 << PRQ_SHIFT;
/// Value of the type field of a page request descriptor.
pub const PAGE_REQ_TYPE: u8 = 0x01;
/// Largest page request group index, which has 9 bits.
pub const PRGI_MAX: u16 = 0x1FF;

/// Bits 127:0 of a page request descriptor (`[V]` 7.4.1.1), which are all that has fields.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PageRequest {
    /// Type, bits 7:0: [`PAGE_REQ_TYPE`].
    #[bits(8, default = PAGE_REQ_TYPE)]
    pub ty: u8,
    /// PP, bit 8: the request has a PASID.
    pub pp: bool,
    #[bits(7)]
    __: u8,
    /// RID, bits 31:16: requester id.
    pub rid: u16,
    /// PASID, bits 51:32; undefined if PP is clear.
    #[bits(20, from = pasid_from_u128, into = pasid_to_u128)]
    pub pasid: u32,
    /// EXR, bit 52: execute requested, if PP and RDR are set too.
    pub exr: bool,
    /// PMR, bit 53: privileged mode requested.
    pub pmr: bool,
    #[bits(10)]
    __: u16,
    /// RDR, bit 64: read requested.
    pub rdr: bool,
    /// WRR, bit 65: write requested.
    pub wrr: bool,
    /// LPIG, bit 66: last page in group.
    pub lpig: bool,
    /// PRGI, bits 75:67: page request group index; undefined if neither read nor write is requested.
    #[bits(9, from = prgi_from_u128, into = prgi_to_u128)]
    pub prgi: u16,
    /// ADDR, bits 127:76: page address.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub address: u64,
}

impl PageRequest {
    /// Bits 63:54 and 15:9.
    pub const RESERVED: u128 = 0x0000_0000_0000_0000_FFC0_0000_0000_FE00;

    /// The request in the descriptor whose quadwords these are, lowest first. Hardware writes the
    /// upper two as zero.
    #[must_use]
    pub const fn from_qwords(qw: [u64; 4]) -> Self {
        Self::from_bits(super::join(qw[0], qw[1]))
    }

    /// The descriptor's quadwords, lowest first.
    #[must_use]
    pub const fn into_qwords(self) -> [u64; 4] {
        let [q0, q1] = super::split(self.into_bits());
        [q0, q1, 0, 0]
    }

    /// Whether this is a stop marker: last, with neither read nor write requested (PCI Express ATS;
    /// `[V]` 11.4.3, SMS). A stop marker is never answered.
    #[must_use]
    pub const fn is_stop_marker(self) -> bool {
        self.lpig() && !self.rdr() && !self.wrr()
    }
}

encoding! {
    /// Response code of a page group response (`[V]` table 32).
    ResponseCode {
        /// All requests of the group were served.
        Success = 0,
        /// At least one request of the group was not served.
        InvalidRequest = 1,
        /// A request met an error that cannot be recovered from. The function, with all its virtual
        /// functions, stops using page requests (`[V]` 7.1.3).
        ResponseFailure = 15,
    }
}
