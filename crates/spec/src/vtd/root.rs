//! Root entries (`[V]` 9.1, 9.2): one per bus, 256 in the 4 KiB table that RTADDR_REG points to.

use bitfield_struct::bitfield;

use super::field::{address_from_u128, address_to_u128};

/// Entries of a root table, one per bus number.
pub const ROOT_ENTRIES: usize = 256;
/// Bytes of a root entry of either mode.
pub const ROOT_ENTRY_SIZE: usize = 16;

/// Root entry of legacy mode (`[V]` 9.1).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct RootEntry {
    /// P, bit 0: the entry is present.
    pub p: bool,
    #[bits(11)]
    __: u16,
    /// CTP, bits 63:12: address of the context table of this bus.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub ctp: u64,
    #[bits(64)]
    __: u64,
}

impl RootEntry {
    /// Bits 127:64 and 11:1. Bits 63:HAW of CTP are reserved too.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FFFF_FFFF_0000_0000_0000_0FFE;
}

/// Root entry of scalable mode (`[V]` 9.2). Its halves are present independently.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ScalableRootEntry {
    /// LP, bit 0: the lower half is present.
    pub lp: bool,
    #[bits(11)]
    __: u16,
    /// LCTP, bits 63:12: address of the context table for devices 0 to 15 of this bus.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub lctp: u64,
    /// UP, bit 64: the upper half is present.
    pub up: bool,
    #[bits(11)]
    __: u16,
    /// UCTP, bits 127:76: address of the context table for devices 16 to 31 of this bus.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub uctp: u64,
}

impl ScalableRootEntry {
    /// Bits 11:1, evaluated when LP is set. Bits 63:HAW of LCTP are reserved too.
    pub const RESERVED_LOWER: u128 = 0x0000_0000_0000_0000_0000_0000_0000_0FFE;
    /// Bits 75:65, evaluated when UP is set. Bits 127:(HAW+64) of UCTP are reserved too.
    pub const RESERVED_UPPER: u128 = 0x0000_0000_0000_0FFE_0000_0000_0000_0000;
}
