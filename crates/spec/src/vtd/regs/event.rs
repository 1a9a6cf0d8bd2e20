//! The registers of a message-signalled event: fault (FE), invalidation completion (IE) and page
//! request (PE) have the same three layouts (`[V]` 11.4.7.2 to 11.4.7.5, 11.4.9.5 to 11.4.9.8,
//! 11.4.11.5 to 11.4.11.8). The upper address register has no fields.

use bitfield_struct::bitfield;

use crate::vtd::field::{dword_from_u32, dword_to_u32};

/// FECTL_REG, IECTL_REG, PECTL_REG (`[V]` 11.4.7.2, 11.4.9.5, 11.4.11.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventControl {
    /// Bits 29:0: reserved, to be preserved.
    #[bits(30)]
    pub rsvd: u32,
    /// IP, bit 30: an interrupt is pending; read-only.
    pub ip: bool,
    /// IM, bit 31: the interrupt is masked.
    pub im: bool,
}

impl EventControl {
    /// Value after reset: masked.
    pub const RESET: Self = Self::new().with_im(true);
}

/// FEDATA_REG, IEDATA_REG, PEDATA_REG (`[V]` 11.4.7.3, 11.4.9.6, 11.4.11.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventData {
    /// IMD, bits 15:0: message data.
    pub imd: u16,
    #[bits(16)]
    __: u16,
}

/// FEADDR_REG, IEADDR_REG, PEADDR_REG (`[V]` 11.4.7.4, 11.4.9.7, 11.4.11.7).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventAddress {
    #[bits(2)]
    __: u8,
    /// MA, bits 31:2: lower half of the message address, DWORD-aligned.
    #[bits(30, from = dword_from_u32, into = dword_to_u32)]
    pub ma: u32,
}
