//! Fault status and fault recording registers (`[V]` 11.4.7.1, 11.4.7.6).

use bitfield_struct::bitfield;

use crate::vtd::fault::FaultReason;
use crate::vtd::field::{address_from_u128, address_to_u128, pasid_from_u128, pasid_to_u128};

/// FSTS_REG (`[V]` 11.4.7.1). PFO, IQE, ICE and ITE are written 1 to clear.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Fsts {
    /// PFO, bit 0: a fault was not recorded for want of a free register.
    pub pfo: bool,
    /// PPF, bit 1: a fault recording register has F set; read-only.
    pub ppf: bool,
    #[bits(2)]
    __: u8,
    /// IQE, bit 4: invalidation queue error.
    pub iqe: bool,
    /// ICE, bit 5: invalid device-TLB invalidation completion.
    pub ice: bool,
    /// ITE, bit 6: device-TLB invalidation time-out.
    pub ite: bool,
    /// DEP, bit 7: deprecated, reads as zero.
    pub dep: bool,
    /// FRI, bits 15:8: fault recording register of the first pending fault; valid while PPF is set.
    pub fri: u8,
    #[bits(16)]
    __: u16,
}

impl Fsts {
    /// The bits that are written 1 to clear.
    pub const W1C: u32 = 0x0000_0071;
}

/// Bytes of a fault recording register.
pub const FRCD_SIZE: u32 = 16;

encoding! {
    /// Type of a faulted request, T1 and T2 of FRCD_REG taken as `T1 << 1 | T2` (`[V]` 11.4.7.6).
    FrcdType {
        /// Write request.
        Write = 0,
        /// Page request.
        PageRequest = 1,
        /// Read request.
        Read = 2,
        /// AtomicOp request.
        AtomicOp = 3,
    }
}

encoding! {
    /// AT, the address type of a faulted request (`[V]` 11.4.7.6).
    AddressType {
        /// Untranslated request.
        Untranslated = 0,
        /// Translation request.
        TranslationRequest = 1,
        /// Translated request.
        Translated = 2,
    }
}

/// FRCD_REG (`[V]` 11.4.7.6). F is written 1 to clear; the rest is read-only and valid while F is
/// set.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct Frcd {
    #[bits(12)]
    __: u16,
    /// FI, bits 63:12: page address of the request, or for an interrupt remapping fault its index
    /// in bits 63:48; see [`Self::interrupt_index`].
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub fi: u64,
    /// SID, bits 79:64: requester id.
    pub sid: u16,
    #[bits(12)]
    __: u16,
    /// T2, bit 92: low bit of the type; see [`FrcdType`].
    pub t2: bool,
    /// PRIV, bit 93: privileged mode requested.
    pub privileged: bool,
    /// EXE, bit 94: execute requested.
    pub exe: bool,
    /// PP, bit 95: the request has a PASID.
    pub pp: bool,
    /// FR, bits 103:96: fault reason; see [`FaultReason`].
    pub fr: u8,
    /// PV, bits 123:104: PASID, if PP is set.
    #[bits(20, from = pasid_from_u128, into = pasid_to_u128)]
    pub pv: u32,
    /// AT, bits 125:124; see [`AddressType`].
    #[bits(2)]
    pub at: u8,
    /// T1, bit 126: high bit of the type; see [`FrcdType`].
    pub t1: bool,
    /// F, bit 127: a fault is recorded.
    pub f: bool,
}

impl Frcd {
    /// T1 and T2 together.
    #[must_use]
    pub const fn request_type(self) -> FrcdType {
        match (self.t1(), self.t2()) {
            (false, false) => FrcdType::Write,
            (false, true) => FrcdType::PageRequest,
            (true, false) => FrcdType::Read,
            (true, true) => FrcdType::AtomicOp,
        }
    }

    /// This record with T1 and T2 set for the type.
    #[must_use]
    pub const fn with_request_type(self, ty: FrcdType) -> Self {
        self.with_t1(ty.bits() & 0b10 != 0).with_t2(ty.bits() & 0b01 != 0)
    }

    /// AT decoded, or `None` if reserved.
    #[must_use]
    pub const fn address_type(self) -> Option<AddressType> {
        AddressType::from_bits(self.at())
    }

    /// FR decoded, or `None` for a code that the manual does not define.
    #[must_use]
    pub const fn reason(self) -> Option<FaultReason> {
        FaultReason::from_bits(self.fr())
    }

    /// Bits 63:48 of FI: the interrupt index of an interrupt remapping fault.
    #[must_use]
    pub const fn interrupt_index(self) -> u16 {
        (self.fi() >> 48) as u16
    }
}
