//! Global command and status, root table address, interrupt table address and protected memory
//! enable (`[V]` 11.4.4, 11.4.5, 11.4.8.1, 11.4.10).

use bitfield_struct::bitfield;

use crate::vtd::field::{address_from_u64, address_to_u64};

/// GCMD_REG (`[V]` 11.4.4.1). Write-only; one field is changed at a time, starting from
/// [`Gsts::as_command`].
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Gcmd {
    #[bits(23)]
    __: u32,
    /// CFI, bit 23: compatibility format interrupts.
    pub cfi: bool,
    /// SIRTP, bit 24: set interrupt remap table pointer; one-shot.
    pub sirtp: bool,
    /// IRE, bit 25: interrupt remapping enable.
    pub ire: bool,
    /// QIE, bit 26: queued invalidation enable.
    pub qie: bool,
    /// WBF, bit 27: write buffer flush; one-shot.
    pub wbf: bool,
    #[bits(2)]
    __: u8,
    /// SRTP, bit 30: set root table pointer; one-shot.
    pub srtp: bool,
    /// TE, bit 31: translation enable.
    pub te: bool,
}

/// GSTS_REG (`[V]` 11.4.4.2). Read-only.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Gsts {
    #[bits(23)]
    __: u32,
    /// CFIS, bit 23: compatibility format interrupts pass.
    pub cfis: bool,
    /// IRTPS, bit 24: the interrupt remap table pointer is set.
    pub irtps: bool,
    /// IRES, bit 25: interrupt remapping is enabled.
    pub ires: bool,
    /// QIES, bit 26: queued invalidation is enabled.
    pub qies: bool,
    /// WBFS, bit 27: a write buffer flush is in progress.
    pub wbfs: bool,
    #[bits(2)]
    __: u8,
    /// RTPS, bit 30: the root table pointer is set.
    pub rtps: bool,
    /// TES, bit 31: translation is enabled.
    pub tes: bool,
}

impl Gsts {
    /// What a command that changes nothing writes to GCMD_REG: the status without the one-shot bits
    /// 30, 29, 27 and 24 (`[V]` 11.4.4.1, step 2).
    #[must_use]
    pub const fn as_command(self) -> Gcmd {
        Gcmd::from_bits(self.into_bits() & 0x96FF_FFFF)
    }
}

encoding! {
    /// TTM, the translation table mode of RTADDR_REG (`[V]` 11.4.5).
    Ttm {
        /// Legacy mode: root and context tables.
        Legacy = 0,
        /// Scalable mode: scalable-mode root and context tables and PASID tables.
        Scalable = 1,
        /// Abort-DMA mode: every request is blocked.
        Abort = 3,
    }
}

/// RTADDR_REG (`[V]` 11.4.5). Takes effect at the Set Root Table Pointer command.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Rtaddr {
    #[bits(7)]
    __: u8,
    /// SSIRWE, bit 7: the second stage uses its I/O read and write bits. Reserved if ECAP.SSIRWS is
    /// clear.
    pub ssirwe: bool,
    #[bits(2)]
    __: u8,
    /// TTM, bits 11:10; see [`Ttm`].
    #[bits(2)]
    pub ttm: u8,
    /// RTA, bits 63:12: root table address.
    #[bits(52, from = address_from_u64, into = address_to_u64)]
    pub rta: u64,
}

impl Rtaddr {
    /// TTM decoded, or `None` if reserved.
    #[must_use]
    pub const fn mode(self) -> Option<Ttm> {
        Ttm::from_bits(self.ttm())
    }
}

/// IRTA_REG (`[V]` 11.4.10). Takes effect at the Set Interrupt Remap Table Pointer command.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Irta {
    /// S, bits 3:0: the table has 2^(S+1) entries.
    #[bits(4)]
    pub s: u8,
    #[bits(7)]
    __: u8,
    /// EIME, bit 11: extended interrupt mode enable.
    pub eime: bool,
    /// IRTA, bits 63:12: interrupt remapping table address.
    #[bits(52, from = address_from_u64, into = address_to_u64)]
    pub irta: u64,
}

/// PMEN_REG (`[V]` 11.4.8.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Pmen {
    /// PRS, bit 0: protected regions are enabled; read-only.
    pub prs: bool,
    #[bits(30)]
    __: u32,
    /// EPM, bit 31: enable protected memory.
    pub epm: bool,
}
