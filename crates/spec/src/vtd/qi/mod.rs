//! The invalidation queue's descriptors (`[V]` 6.5.2, 7.6.1).
//!
//! A descriptor has 128 or 256 bits, by IQA_REG.DW. The fields of all of them lie in bits 127:0; of
//! a 256-bit descriptor the upper half is zero. So each type is a `u128`, and [`Desc`] is what
//! stands in the queue: in a 128-bit queue only its first two quadwords do.

mod decode;
mod descriptor;
mod range;

pub use decode::{Descriptor, Rules};
pub use descriptor::{
    CcInv, DevTlbInv, HptInv, IecInv, InvWait, IotlbInv, PageGroupResponse, PasidCacheInv, PasidDevTlbInv,
    PasidIotlbInv,
};
pub use range::{address_mask, dev_tlb_range, dev_tlb_size, masked_base};

/// A descriptor's quadwords, lowest first. A 128-bit descriptor is the first two.
pub type Desc = [u64; 4];

/// Shift from an index of the queue to its byte offset with 128-bit descriptors.
pub const QI_SHIFT_128: u32 = 4;
/// Shift from an index of the queue to its byte offset with 256-bit descriptors.
pub const QI_SHIFT_256: u32 = 5;

/// IQA_REG.DW, the width of the descriptors (`[V]` 11.4.9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescWidth {
    /// 128 bits; legacy mode only.
    Bits128,
    /// 256 bits; needs ECAP.SMTS or ECAP.ADMS.
    Bits256,
}

impl DescWidth {
    /// Shift from an index of the queue to its byte offset.
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::Bits128 => QI_SHIFT_128,
            Self::Bits256 => QI_SHIFT_256,
        }
    }

    /// Bytes of a descriptor.
    #[must_use]
    pub const fn bytes(self) -> usize {
        1 << self.shift()
    }
}

encoding! {
    /// Type of a descriptor: bits 11:9 above bits 3:0 (`[V]` 6.5.2).
    DescType {
        /// Context-cache invalidate, cc_inv_dsc.
        ContextCache = 0x1,
        /// IOTLB invalidate, iotlb_inv_dsc.
        Iotlb = 0x2,
        /// Device-TLB invalidate, dev_tlb_inv_dsc.
        DevTlb = 0x3,
        /// Interrupt entry cache invalidate, iec_inv_dsc.
        InterruptEntryCache = 0x4,
        /// Invalidation wait, inv_wait_dsc.
        Wait = 0x5,
        /// PASID-based IOTLB invalidate, p_iotlb_inv_dsc; 256 bits.
        PasidIotlb = 0x6,
        /// PASID-cache invalidate, pc_inv_dsc; 256 bits.
        PasidCache = 0x7,
        /// PASID-based device-TLB invalidate, p_dev_tlb_inv_dsc; 256 bits.
        PasidDevTlb = 0x8,
        /// Page group response, page_grp_resp_dsc; 256 bits.
        PageGroupResponse = 0x9,
        /// HPT cache invalidate, hpt_inv_desc; 256 bits.
        Hpt = 0xA,
    }
}

impl DescType {
    /// The type field of a descriptor, valid or not: 7 bits.
    #[must_use]
    pub const fn field(desc: &Desc) -> u8 {
        ((desc[0] >> 9 & 0x7) << 4 | desc[0] & 0xF) as u8
    }

    /// Whether the descriptor exists in 128 bits too; the others are valid in 256-bit queues only.
    #[must_use]
    pub const fn fits_128(self) -> bool {
        self.bits() <= Self::Wait.bits()
    }
}

encoding! {
    /// Granularity of a context-cache invalidation (`[V]` 6.5.2.1, 11.4.6.1).
    CcGranularity {
        /// Everything.
        Global = 1,
        /// Entries of a domain; in scalable mode everything.
        Domain = 2,
        /// Entries of a source id (and, in legacy mode, a domain).
        Device = 3,
    }
}

encoding! {
    /// Granularity of a PASID-cache invalidation (`[V]` 6.5.2.2).
    PasidCacheGranularity {
        /// Entries of a domain.
        Domain = 0,
        /// Entries of a PASID within a domain.
        Pasid = 1,
        /// Everything.
        Global = 3,
    }
}

encoding! {
    /// Granularity of an IOTLB invalidation (`[V]` 6.5.2.3, 11.4.6.3).
    IotlbGranularity {
        /// Everything.
        Global = 1,
        /// Entries of a domain.
        Domain = 2,
        /// Entries of an address range within a domain. Reserved if CAP.PSI is clear.
        Page = 3,
    }
}

encoding! {
    /// Granularity of a PASID-based IOTLB invalidation (`[V]` 6.5.2.4).
    PasidIotlbGranularity {
        /// Entries of a PASID within a domain.
        Pasid = 2,
        /// Entries of an address range within a PASID and a domain.
        Page = 3,
    }
}

encoding! {
    /// Granularity of an HPT cache invalidation (`[V]` 6.5.2.7).
    HptGranularity {
        /// Everything.
        Global = 1,
        /// Entries of an HPT domain.
        Domain = 2,
        /// Entries of an address range within an HPT domain.
        Page = 3,
    }
}
