//! The PASID directory and table of scalable mode (`[V]` 9.5, 9.6).

use bitfield_struct::bitfield;

use super::Agaw;
use super::field::{address_from_u64, address_from_u128, address_to_u64, address_to_u128};

/// Entries of a PASID table, which is one 4 KiB page.
pub const PASID_TABLE_ENTRIES: usize = 64;
/// Bytes of a PASID table entry.
pub const PASID_ENTRY_SIZE: usize = 64;
/// Bytes of a PASID directory entry.
pub const PASID_DIR_ENTRY_SIZE: usize = 8;
/// Largest PASID, which has 20 bits.
pub const PASID_MAX: u32 = 0xF_FFFF;

/// Index into the PASID directory: bits 19:6 of the PASID (`[V]` 3.4.3).
#[must_use]
pub const fn dir_index(pasid: u32) -> usize {
    ((pasid & PASID_MAX) >> 6) as usize
}

/// Index into the PASID table: bits 5:0 of the PASID (`[V]` 3.4.3).
#[must_use]
pub const fn table_index(pasid: u32) -> usize {
    (pasid & 0x3F) as usize
}

/// PASID directory entry (`[V]` 9.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidDirEntry {
    /// P, bit 0: the entry is present.
    pub p: bool,
    /// FPD, bit 1: qualified faults are not recorded; holds with P clear too.
    pub fpd: bool,
    #[bits(10)]
    __: u16,
    /// SMPTBLPTR, bits 63:12: address of the PASID table.
    #[bits(52, from = address_from_u64, into = address_to_u64)]
    pub smptblptr: u64,
}

impl PasidDirEntry {
    /// Bits 11:2. Bits 63:HAW of SMPTBLPTR are reserved too.
    pub const RESERVED: u64 = 0x0000_0000_0000_0FFC;
}

encoding! {
    /// PGTT, the translation type of a PASID table entry (`[V]` 9.6).
    Pgtt {
        /// First stage only. Reserved if ECAP.FSTS is clear.
        FirstStage = 1,
        /// Second stage only. Reserved if ECAP.SSTS is clear.
        SecondStage = 2,
        /// First stage nested in second. Reserved if ECAP.NEST is clear.
        Nested = 3,
        /// Pass-through. Reserved if ECAP.PT is clear.
        PassThrough = 4,
    }
}

encoding! {
    /// FSPM, the first-stage paging mode of a PASID table entry (`[V]` 9.6).
    Fspm {
        /// 4 levels, 48-bit canonical addresses.
        Level4 = 0,
        /// 5 levels, 57-bit canonical addresses. Allowed if CAP.FS5LP is set.
        Level5 = 1,
    }
}

/// Bits 127:0 of the PASID table entry (`[V]` 9.6). They are replaced by one 16-byte store.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PasidLow {
    /// P, bit 0: the entry is present.
    pub p: bool,
    /// FPD, bit 1: qualified faults are not recorded; holds with P clear too.
    pub fpd: bool,
    /// AW, bits 4:2; see [`Agaw`]. Reserved(0) if SSTS=0, else ignored for first stage and
    /// pass-through.
    #[bits(3)]
    pub aw: u8,
    #[bits(1)]
    __: u8,
    /// PGTT, bits 8:6; see [`Pgtt`].
    #[bits(3)]
    pub pgtt: u8,
    /// SSADE, bit 9: second-stage accessed and dirty bits are used. Reserved if ECAP.SSADS is clear.
    pub ssade: bool,
    #[bits(2)]
    __: u8,
    /// SSPTPTR, bits 63:12: root of the second-stage table. Ignored for first stage and
    /// pass-through.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub ssptptr: u64,
    /// DID, bits 79:64: domain identifier; bits above CAP.ND's width are reserved.
    pub did: u16,
    #[bits(7)]
    __: u8,
    /// PWSNP, bit 87: page walks snoop processor caches. Reserved if ECAP.SMPWCS is clear.
    pub pwsnp: bool,
    /// PGSNP, bit 88: requests snoop processor caches in any case. Reserved if ECAP.SC is clear.
    pub pgsnp: bool,
    /// CD, bit 89: cache disable. Reserved if ECAP.MTS is clear.
    pub cd: bool,
    /// EMTE, bit 90: extended memory type enable. Reserved if ECAP.MTS is clear.
    pub emte: bool,
    #[bits(5)]
    __: u8,
    /// PAT, bits 127:96: page attribute table. Reserved if ECAP.MTS is clear.
    pub pat: u32,
}

impl PasidLow {
    /// Bits 95:91, 86:80, 11:10 and 5. Bits 63:HAW of SSPTPTR are reserved too.
    pub const RESERVED: u128 = 0x0000_0000_F87F_0000_0000_0000_0000_0C20;

    /// AW decoded, or `None` if reserved.
    #[must_use]
    pub const fn agaw(self) -> Option<Agaw> {
        Agaw::from_bits(self.aw())
    }

    /// PGTT decoded, or `None` if reserved.
    #[must_use]
    pub const fn translation_type(self) -> Option<Pgtt> {
        Pgtt::from_bits(self.pgtt())
    }
}

/// Bits 255:128 of the PASID table entry, all of the first stage (`[V]` 9.6). Bit numbers in the
/// field comments are those of the whole entry.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PasidFirstStage {
    /// SRE, bit 128: supervisor requests are allowed. Reserved if ECAP.SRS is clear.
    pub sre: bool,
    #[bits(1)]
    __: u8,
    /// FSPM, bits 131:130; see [`Fspm`].
    #[bits(2)]
    pub fspm: u8,
    /// WPE, bit 132: supervisor writes honour read-only pages.
    pub wpe: bool,
    /// Bits 134:133: ignored by hardware.
    #[bits(2)]
    pub ign: u8,
    /// EAFE, bit 135: extended accessed flag enable. Reserved if ECAP.EAFS is clear.
    pub eafe: bool,
    #[bits(4)]
    __: u8,
    /// FSPTPTR, bits 191:140: root of the first-stage table; a guest address when nested.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub fsptptr: u64,
    #[bits(64)]
    __: u64,
}

impl PasidFirstStage {
    /// Bits 255:192, 139:136 and 129. Bits 191:(HAW+128) of FSPTPTR are reserved too.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FFFF_FFFF_0000_0000_0000_0F02;

    /// FSPM decoded, or `None` if reserved.
    #[must_use]
    pub const fn paging_mode(self) -> Option<Fspm> {
        Fspm::from_bits(self.fspm())
    }
}

/// Bits 383:256 of the PASID table entry, all of the host permission table (`[V]` 9.6). Reserved as
/// a whole if ECAP.HPTS is clear. Bit numbers in the field comments are those of the whole entry.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PasidHpt {
    /// HPTSZ, bits 257:256: the root table has 4, 8, 16 or 32 KiB and covers 49 to 52 bits.
    #[bits(2)]
    pub hptsz: u8,
    /// HPTPFD, bit 258: no prefetch into the HPT cache.
    pub hptpfd: bool,
    #[bits(9)]
    __: u16,
    /// HPTPTR, bits 319:268: root of the host permission table.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub hptptr: u64,
    /// HPTDID, bits 335:320: HPT domain identifier.
    pub hptdid: u16,
    #[bits(48)]
    __: u64,
}

impl PasidHpt {
    /// Bits 383:336 and 267:259. Bits 319:(HAW+256) of HPTPTR are reserved too.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FFFF_0000_0000_0000_0000_0FF8;
}

/// PASID table entry, 512 bits (`[V]` 9.6), in the 16-byte parts that hardware reads atomically.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PasidEntry {
    /// Bits 127:0.
    pub low: PasidLow,
    /// Bits 255:128.
    pub first_stage: PasidFirstStage,
    /// Bits 383:256.
    pub hpt: PasidHpt,
    /// Bits 511:384, reserved as a whole.
    pub reserved: u128,
}

impl PasidEntry {
    /// The entry whose quadwords these are, lowest first.
    #[must_use]
    pub const fn from_qwords(qw: [u64; 8]) -> Self {
        Self {
            low: PasidLow::from_bits(super::join(qw[0], qw[1])),
            first_stage: PasidFirstStage::from_bits(super::join(qw[2], qw[3])),
            hpt: PasidHpt::from_bits(super::join(qw[4], qw[5])),
            reserved: super::join(qw[6], qw[7]),
        }
    }

    /// The entry's quadwords, lowest first.
    #[must_use]
    pub const fn into_qwords(self) -> [u64; 8] {
        let [q0, q1] = super::split(self.low.into_bits());
        let [q2, q3] = super::split(self.first_stage.into_bits());
        let [q4, q5] = super::split(self.hpt.into_bits());
        let [q6, q7] = super::split(self.reserved);
        [q0, q1, q2, q3, q4, q5, q6, q7]
    }

    /// Whether a bit that is reserved whatever the capabilities are is set.
    #[must_use]
    pub const fn has_reserved(self) -> bool {
        self.low.into_bits() & PasidLow::RESERVED != 0
            || self.first_stage.into_bits() & PasidFirstStage::RESERVED != 0
            || self.hpt.into_bits() & PasidHpt::RESERVED != 0
            || self.reserved != 0
    }
}
