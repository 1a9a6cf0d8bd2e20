//! Context entries (`[V]` 9.3, 9.4): what a requester id is translated by.

use bitfield_struct::bitfield;

use super::Agaw;
use super::field::{address_from_u128, address_to_u128, pasid_from_u128, pasid_to_u128};

/// Entries of a legacy context table, indexed by device and function number.
pub const CONTEXT_ENTRIES: usize = 256;
/// Bytes of a legacy context entry.
pub const CONTEXT_ENTRY_SIZE: usize = 16;
/// Entries of each of a bus's two scalable-mode context tables, indexed by the low 7 bits of device
/// and function number; bit 7 chooses the table.
pub const SCALABLE_CONTEXT_ENTRIES: usize = 128;
/// Bytes of a scalable-mode context entry.
pub const SCALABLE_CONTEXT_ENTRY_SIZE: usize = 32;

encoding! {
    /// TT, the translation type of a legacy context entry (`[V]` 9.3).
    TranslationType {
        /// Untranslated requests through the second stage; translated and translation requests are
        /// blocked.
        Untranslated = 0,
        /// Untranslated, translated and translation requests. Reserved if ECAP.DT is clear.
        DeviceTlb = 1,
        /// Untranslated requests pass through; translated and translation requests are blocked.
        /// Reserved if ECAP.PT is clear.
        PassThrough = 2,
    }
}

/// Context entry of legacy mode (`[V]` 9.3).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ContextEntry {
    /// P, bit 0: the entry is present.
    pub p: bool,
    /// FPD, bit 1: qualified faults are not recorded; holds with P clear too.
    pub fpd: bool,
    /// TT, bits 3:2; see [`TranslationType`].
    #[bits(2)]
    pub tt: u8,
    #[bits(8)]
    __: u8,
    /// SSPTPTR, bits 63:12: root of the second-stage table; ignored for pass-through.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub ssptptr: u64,
    /// AW, bits 66:64; see [`Agaw`]. For pass-through the largest width that hardware supports.
    #[bits(3)]
    pub aw: u8,
    /// Bits 70:67: ignored by hardware.
    #[bits(4)]
    pub ign: u8,
    #[bits(1)]
    __: u8,
    /// DID, bits 87:72: domain identifier; bits above CAP.ND's width are reserved.
    pub did: u16,
    #[bits(40)]
    __: u64,
}

impl ContextEntry {
    /// Bits 127:88, 71 and 11:4. Bits 63:HAW of SSPTPTR are reserved too.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FF00_0080_0000_0000_0000_0FF0;

    /// TT decoded, or `None` if reserved.
    #[must_use]
    pub const fn translation_type(self) -> Option<TranslationType> {
        TranslationType::from_bits(self.tt())
    }

    /// AW decoded, or `None` if reserved.
    #[must_use]
    pub const fn agaw(self) -> Option<Agaw> {
        Agaw::from_bits(self.aw())
    }
}

/// Bits 127:0 of the scalable-mode context entry (`[V]` 9.4), which are all that has fields. They
/// are replaced by one 16-byte store.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ScalableContext {
    /// P, bit 0: the entry is present.
    pub p: bool,
    /// FPD, bit 1: qualified faults are not recorded; holds with P clear too.
    pub fpd: bool,
    /// DTE, bit 2: translation requests and translated requests are allowed. Reserved if ECAP.DT is
    /// clear.
    pub dte: bool,
    /// PASIDE, bit 3: requests with PASID are allowed. Reserved if ECAP.PASID is clear.
    pub paside: bool,
    /// PRE, bit 4: page requests are allowed. Reserved if ECAP.PRS is clear; illegal without DTE.
    pub pre: bool,
    /// HPTE, bit 5: translated requests are checked against the host permission table. Reserved if
    /// ECAP.HPTS is clear.
    pub hpte: bool,
    /// EPTR, bit 6: translated requests may have a PASID. Reserved if ECAP.PTRS is clear; illegal
    /// without PASIDE.
    pub eptr: bool,
    #[bits(2)]
    __: u8,
    /// PDTS, bits 11:9: the PASID directory has 2^(PDTS+7) entries.
    #[bits(3)]
    pub pdts: u8,
    /// PASIDDIRPTR, bits 63:12: address of the PASID directory.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub pasiddirptr: u64,
    /// RID_PASID, bits 83:64: the PASID that requests without PASID use. Reserved if ECAP.RPS is
    /// clear, and 0 is used.
    #[bits(20, from = pasid_from_u128, into = pasid_to_u128)]
    pub rid_pasid: u32,
    /// RID_PRIV, bit 84: requests without PASID are privileged. Reserved if ECAP.RPRIVS is clear.
    pub rid_priv: bool,
    #[bits(43)]
    __: u64,
}

impl ScalableContext {
    /// Bits 127:85 and 8:7. Bits 63:HAW of PASIDDIRPTR and fields without their capability are
    /// reserved too.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FFE0_0000_0000_0000_0000_0180;

    /// Number of PASIDs that the directory of this entry covers.
    #[must_use]
    pub const fn pasid_count(self) -> u32 {
        (super::pasid::PASID_TABLE_ENTRIES as u32) << (self.pdts() as u32 + 7)
    }
}

/// Context entry of scalable mode, 256 bits (`[V]` 9.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScalableContextEntry {
    /// Bits 127:0.
    pub low: ScalableContext,
    /// Bits 255:128, reserved as a whole.
    pub reserved: u128,
}

impl ScalableContextEntry {
    /// The entry whose quadwords these are, lowest first.
    #[must_use]
    pub const fn from_qwords(qw: [u64; 4]) -> Self {
        Self {
            low: ScalableContext::from_bits(super::join(qw[0], qw[1])),
            reserved: super::join(qw[2], qw[3]),
        }
    }

    /// The entry's quadwords, lowest first.
    #[must_use]
    pub const fn into_qwords(self) -> [u64; 4] {
        let [q0, q1] = super::split(self.low.into_bits());
        let [q2, q3] = super::split(self.reserved);
        [q0, q1, q2, q3]
    }

    /// Whether a bit that is reserved whatever the capabilities are is set.
    #[must_use]
    pub const fn has_reserved(self) -> bool {
        self.low.into_bits() & ScalableContext::RESERVED != 0 || self.reserved != 0
    }
}
