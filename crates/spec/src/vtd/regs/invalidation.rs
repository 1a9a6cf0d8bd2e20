//! The register-based and the queued invalidation interface (`[V]` 11.4.6, 11.4.9).

use bitfield_struct::bitfield;

use crate::vtd::field::{address_from_u64, address_to_u64, offset16_from_u64, offset16_to_u64};
use crate::vtd::qi::{CcGranularity, DescWidth, IotlbGranularity};

/// CCMD_REG (`[V]` 11.4.6.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ccmd {
    /// DID, bits 15:0: domain identifier.
    pub did: u16,
    /// SID, bits 31:16: source id.
    pub sid: u16,
    /// FM, bits 33:32: function mask.
    #[bits(2)]
    pub fm: u8,
    #[bits(25)]
    __: u32,
    /// CAIG, bits 60:59: granularity that was performed; 0 is an error.
    #[bits(2)]
    pub caig: u8,
    /// CIRG, bits 62:61: granularity that is requested; 0 is reserved.
    #[bits(2)]
    pub cirg: u8,
    /// ICC, bit 63: start; hardware clears it at completion.
    pub icc: bool,
}

impl Ccmd {
    /// CIRG decoded, or `None` if reserved.
    #[must_use]
    pub const fn requested(self) -> Option<CcGranularity> {
        CcGranularity::from_bits(self.cirg())
    }

    /// CAIG decoded, or `None` where hardware refused the request.
    #[must_use]
    pub const fn performed(self) -> Option<CcGranularity> {
        CcGranularity::from_bits(self.caig())
    }
}

/// IOTLB_REG (`[V]` 11.4.6.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbReg {
    #[bits(32)]
    __: u32,
    /// DID, bits 47:32: domain identifier.
    pub did: u16,
    /// DW, bit 48: drain writes.
    pub dw: bool,
    /// DR, bit 49: drain reads.
    pub dr: bool,
    #[bits(7)]
    __: u8,
    /// IAIG, bits 58:57: granularity that was performed; 0 is an error.
    #[bits(2)]
    pub iaig: u8,
    #[bits(1)]
    __: u8,
    /// IIRG, bits 61:60: granularity that is requested; 0 is reserved.
    #[bits(2)]
    pub iirg: u8,
    #[bits(1)]
    __: u8,
    /// IVT, bit 63: start; hardware clears it at completion.
    pub ivt: bool,
}

impl IotlbReg {
    /// IIRG decoded, or `None` if reserved.
    #[must_use]
    pub const fn requested(self) -> Option<IotlbGranularity> {
        IotlbGranularity::from_bits(self.iirg())
    }

    /// IAIG decoded, or `None` where hardware refused the request.
    #[must_use]
    pub const fn performed(self) -> Option<IotlbGranularity> {
        IotlbGranularity::from_bits(self.iaig())
    }
}

/// IVA_REG (`[V]` 11.4.6.4). Write-only.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iva {
    /// AM, bits 5:0: number of low page-number bits that are masked.
    #[bits(6)]
    pub am: u8,
    /// IH, bit 6: invalidation hint, only leaf entries changed.
    pub ih: bool,
    #[bits(5)]
    __: u8,
    /// ADDR, bits 63:12: input address.
    #[bits(52, from = address_from_u64, into = address_to_u64)]
    pub address: u64,
}

/// IQH_REG (`[V]` 11.4.9.1). Read-only.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iqh {
    #[bits(4)]
    __: u8,
    /// QH, bits 18:4: byte offset of the descriptor that hardware processes next.
    #[bits(15, from = offset16_from_u64, into = offset16_to_u64)]
    pub qh: u64,
    #[bits(45)]
    __: u64,
}

/// IQT_REG (`[V]` 11.4.9.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iqt {
    #[bits(4)]
    __: u8,
    /// QT, bits 18:4: byte offset of the descriptor that software writes next. With 256-bit
    /// descriptors bit 4 must be 0 ([`Iqei::TailUnaligned`]).
    #[bits(15, from = offset16_from_u64, into = offset16_to_u64)]
    pub qt: u64,
    #[bits(45)]
    __: u64,
}

/// IQA_REG (`[V]` 11.4.9.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iqa {
    /// QS, bits 2:0: the queue has 2^QS pages of 4 KiB.
    #[bits(3)]
    pub qs: u8,
    #[bits(8)]
    __: u8,
    /// DW, bit 11: descriptors have 256 bits instead of 128.
    pub dw: bool,
    /// IQA, bits 63:12: address of the queue.
    #[bits(52, from = address_from_u64, into = address_to_u64)]
    pub iqa: u64,
}

impl Iqa {
    /// Bytes of the queue.
    #[must_use]
    pub const fn size(self) -> u64 {
        4096 << self.qs()
    }

    /// DW as a descriptor width.
    #[must_use]
    pub const fn width(self) -> DescWidth {
        if self.dw() { DescWidth::Bits256 } else { DescWidth::Bits128 }
    }

    /// Descriptors that the queue has room for, one of which always stays free.
    #[must_use]
    pub const fn entries(self) -> u64 {
        self.size() >> self.width().shift()
    }
}

/// ICS_REG (`[V]` 11.4.9.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Ics {
    /// IWC, bit 0: a wait descriptor with IF completed; written 1 to clear.
    pub iwc: bool,
    #[bits(31)]
    __: u32,
}

encoding! {
    /// IQEI, why the invalidation queue stopped (`[V]` 11.4.9.9).
    Iqei {
        /// Older hardware that gives no reason.
        None = 0,
        /// The tail pointer is invalid.
        InvalidTail = 1,
        /// A descriptor could not be fetched.
        FetchError = 2,
        /// The descriptor type is not valid in this mode (`[V]` table 26).
        InvalidType = 3,
        /// A reserved field of a valid descriptor type is not zero.
        ReservedField = 4,
        /// The descriptor width does not suit the translation table mode or the capabilities.
        InvalidWidth = 5,
        /// With 256-bit descriptors, bit 4 of the tail is set.
        TailUnaligned = 6,
        /// RTADDR_REG.TTM has an invalid value.
        InvalidTtm = 7,
    }
}

/// IQERCD_REG (`[V]` 11.4.9.9). Read-only.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Iqercd {
    /// IQEI, bits 3:0; see [`Iqei`]. Valid while FSTS.IQE is set.
    #[bits(4)]
    pub iqei: u8,
    #[bits(28)]
    __: u32,
    /// ITESID, bits 47:32: one requester whose invalidation timed out, or 0 from older hardware.
    /// Valid while FSTS.ITE is set.
    pub itesid: u16,
    /// ICESID, bits 63:48: the requester that sent an invalid completion, or 0 from older hardware.
    /// Valid while FSTS.ICE is set.
    pub icesid: u16,
}

impl Iqercd {
    /// IQEI decoded, or `None` where the manual leaves it undefined.
    #[must_use]
    pub const fn error(self) -> Option<Iqei> {
        Iqei::from_bits(self.iqei())
    }
}
