//! One type per descriptor: bits 127:0. `new()` has the type field set and all else zero.

use bitfield_struct::bitfield;

use super::{
    CcGranularity, Desc, HptGranularity, IotlbGranularity, PasidCacheGranularity,
    PasidIotlbGranularity,
};
use crate::vtd::field::{
    address_from_u128, address_to_u128, dword_from_u128, dword_to_u128, pasid_from_u128,
    pasid_to_u128, prgi_from_u128, prgi_to_u128,
};
use crate::vtd::page_req::ResponseCode;
use crate::vtd::split;

/// Gives each descriptor its way into the queue.
macro_rules! into_desc {
    ($($name:ident)+) => {$(
        impl $name {
            /// The descriptor as it stands in the queue.
            #[must_use]
            pub const fn desc(self) -> Desc {
                let [q0, q1] = split(self.into_bits());
                [q0, q1, 0, 0]
            }
        }
    )+};
}

into_desc! {
    CcInv PasidCacheInv IotlbInv PasidIotlbInv DevTlbInv PasidDevTlbInv HptInv IecInv InvWait
    PageGroupResponse
}

/// The source id of the physical function, whose field both device-TLB descriptors split alike.
macro_rules! pfsid {
    ($($name:ident)+) => {$(
        impl $name {
            /// PFSID, reserved if ECAP.DIT is clear.
            pub const PFSID: u128 = 0x0000_0000_0000_0000_FFF0_0000_0000_F000;

            /// PFSID, bits 63:52 above bits 15:12: source id of the physical function.
            #[must_use]
            pub const fn pfsid(self) -> u16 {
                self.pfsid_high() << 4 | self.pfsid_low() as u16
            }

            /// This descriptor with PFSID set.
            #[must_use]
            pub const fn with_pfsid(self, pfsid: u16) -> Self {
                self.with_pfsid_low((pfsid & 0xF) as u8).with_pfsid_high(pfsid >> 4)
            }
        }
    )+};
}

pfsid! { DevTlbInv PasidDevTlbInv }

/// Context-cache invalidate, cc_inv_dsc (`[V]` 6.5.2.1).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct CcInv {
    #[bits(4, default = 0x1)]
    type_low: u8,
    /// G, bits 5:4; see [`CcGranularity`].
    #[bits(2)]
    pub g: u8,
    #[bits(3)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(4)]
    __: u8,
    /// DID, bits 31:16: domain identifier; ignored in scalable mode.
    pub did: u16,
    /// SID, bits 47:32: source id, for device-selective.
    pub sid: u16,
    /// FM, bits 49:48: number of low function bits of SID that are masked (`[V]` table 21).
    #[bits(2)]
    pub fm: u8,
    #[bits(78)]
    __: u128,
}

impl CcInv {
    /// Reserved bits: 127:50, 15:12, 8:6.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FFFF_FFFF_FFFC_0000_0000_F1C0;

    /// G decoded, or `None` if reserved.
    #[must_use]
    pub const fn granularity(self) -> Option<CcGranularity> {
        CcGranularity::from_bits(self.g())
    }

    /// Everything.
    #[must_use]
    pub const fn global() -> Self {
        Self::new().with_g(CcGranularity::Global.bits())
    }

    /// Entries of a domain.
    #[must_use]
    pub const fn domain(did: u16) -> Self {
        Self::new()
            .with_g(CcGranularity::Domain.bits())
            .with_did(did)
    }

    /// Entries of one source id.
    #[must_use]
    pub const fn device(did: u16, sid: u16) -> Self {
        Self::new()
            .with_g(CcGranularity::Device.bits())
            .with_did(did)
            .with_sid(sid)
    }
}

/// PASID-cache invalidate, pc_inv_dsc (`[V]` 6.5.2.2). 256-bit queues only.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PasidCacheInv {
    #[bits(4, default = 0x7)]
    type_low: u8,
    /// G, bits 5:4; see [`PasidCacheGranularity`].
    #[bits(2)]
    pub g: u8,
    #[bits(3)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(4)]
    __: u8,
    /// DID, bits 31:16: domain identifier.
    pub did: u16,
    /// PASID, bits 51:32.
    #[bits(20, from = pasid_from_u128, into = pasid_to_u128)]
    pub pasid: u32,
    #[bits(76)]
    __: u128,
}

impl PasidCacheInv {
    /// Reserved bits: 127:52, 15:12, 8:6.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FFFF_FFFF_FFF0_0000_0000_F1C0;

    /// G decoded, or `None` if reserved.
    #[must_use]
    pub const fn granularity(self) -> Option<PasidCacheGranularity> {
        PasidCacheGranularity::from_bits(self.g())
    }

    /// Everything.
    #[must_use]
    pub const fn global() -> Self {
        Self::new().with_g(PasidCacheGranularity::Global.bits())
    }

    /// Entries of a domain.
    #[must_use]
    pub const fn domain(did: u16) -> Self {
        Self::new()
            .with_g(PasidCacheGranularity::Domain.bits())
            .with_did(did)
    }

    /// Entries of a PASID within a domain.
    #[must_use]
    pub const fn pasid_within(did: u16, pasid: u32) -> Self {
        Self::new()
            .with_g(PasidCacheGranularity::Pasid.bits())
            .with_did(did)
            .with_pasid(pasid)
    }
}

/// IOTLB invalidate, iotlb_inv_dsc (`[V]` 6.5.2.3).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct IotlbInv {
    #[bits(4, default = 0x2)]
    type_low: u8,
    /// G, bits 5:4; see [`IotlbGranularity`].
    #[bits(2)]
    pub g: u8,
    /// DW, bit 6: drain writes; always done from major version 2 on.
    pub dw: bool,
    /// DR, bit 7: drain reads; always done from major version 2 on.
    pub dr: bool,
    #[bits(1)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(4)]
    __: u8,
    /// DID, bits 31:16: domain identifier.
    pub did: u16,
    #[bits(32)]
    __: u32,
    /// AM, bits 69:64: number of low page-number bits that are masked.
    #[bits(6)]
    pub am: u8,
    /// IH, bit 70: invalidation hint, only leaf entries changed.
    pub ih: bool,
    #[bits(5)]
    __: u8,
    /// ADDR, bits 127:76: input address.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub address: u64,
}

impl IotlbInv {
    /// Reserved bits: 75:71, 63:32, 15:12, 8.
    pub const RESERVED: u128 = 0x0000_0000_0000_0F80_FFFF_FFFF_0000_F100;

    /// G decoded, or `None` if reserved.
    #[must_use]
    pub const fn granularity(self) -> Option<IotlbGranularity> {
        IotlbGranularity::from_bits(self.g())
    }

    /// Everything.
    #[must_use]
    pub const fn global() -> Self {
        Self::new().with_g(IotlbGranularity::Global.bits())
    }

    /// Entries of a domain.
    #[must_use]
    pub const fn domain(did: u16) -> Self {
        Self::new()
            .with_g(IotlbGranularity::Domain.bits())
            .with_did(did)
    }

    /// Entries of 2^`am` pages at `address` within a domain; `am` is at most 63.
    #[must_use]
    pub const fn pages(did: u16, address: u64, am: u8, ih: bool) -> Self {
        Self::new()
            .with_g(IotlbGranularity::Page.bits())
            .with_did(did)
            .with_address(address)
            .with_am(am)
            .with_ih(ih)
    }
}

/// PASID-based IOTLB invalidate, p_iotlb_inv_dsc (`[V]` 6.5.2.4). 256-bit queues only.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PasidIotlbInv {
    #[bits(4, default = 0x6)]
    type_low: u8,
    /// G, bits 5:4; see [`PasidIotlbGranularity`].
    #[bits(2)]
    pub g: u8,
    #[bits(3)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(4)]
    __: u8,
    /// DID, bits 31:16: domain identifier.
    pub did: u16,
    /// PASID, bits 51:32.
    #[bits(20, from = pasid_from_u128, into = pasid_to_u128)]
    pub pasid: u32,
    #[bits(12)]
    __: u16,
    /// AM, bits 69:64: number of low page-number bits that are masked.
    #[bits(6)]
    pub am: u8,
    /// IH, bit 70: invalidation hint, only leaf entries changed.
    pub ih: bool,
    #[bits(5)]
    __: u8,
    /// ADDR, bits 127:76: input address.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub address: u64,
}

impl PasidIotlbInv {
    /// Reserved bits: 75:71, 63:52, 15:12, 8:6.
    pub const RESERVED: u128 = 0x0000_0000_0000_0F80_FFF0_0000_0000_F1C0;

    /// G decoded, or `None` if reserved.
    #[must_use]
    pub const fn granularity(self) -> Option<PasidIotlbGranularity> {
        PasidIotlbGranularity::from_bits(self.g())
    }

    /// Entries of a PASID within a domain.
    #[must_use]
    pub const fn pasid_within(did: u16, pasid: u32) -> Self {
        Self::new()
            .with_g(PasidIotlbGranularity::Pasid.bits())
            .with_did(did)
            .with_pasid(pasid)
    }

    /// Entries of 2^`am` pages at `address` within a PASID and a domain; `am` is at most 63.
    #[must_use]
    pub const fn pages(did: u16, pasid: u32, address: u64, am: u8, ih: bool) -> Self {
        Self::new()
            .with_g(PasidIotlbGranularity::Page.bits())
            .with_did(did)
            .with_pasid(pasid)
            .with_address(address)
            .with_am(am)
            .with_ih(ih)
    }
}

/// Device-TLB invalidate, dev_tlb_inv_dsc (`[V]` 6.5.2.5).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct DevTlbInv {
    #[bits(4, default = 0x3)]
    type_low: u8,
    #[bits(5)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(4)]
    pfsid_low: u8,
    /// MIP, bits 20:16: maximum invalidations pending; 0 for 32.
    #[bits(5)]
    pub mip: u8,
    #[bits(11)]
    __: u16,
    /// SID, bits 47:32: source id.
    pub sid: u16,
    #[bits(4)]
    __: u8,
    #[bits(12)]
    pfsid_high: u16,
    /// S, bit 64: more than one page; see [`super::dev_tlb_range`].
    pub s: bool,
    #[bits(11)]
    __: u16,
    /// ADDR, bits 127:76: input address, with the size below it if S is set.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub address: u64,
}

impl DevTlbInv {
    /// Reserved bits: 75:65, 51:48, 31:21, 8:4.
    pub const RESERVED: u128 = 0x0000_0000_0000_0FFE_000F_0000_FFE0_01F0;

    /// 2^`pages_log2` pages holding `address`, of requests without PASID.
    #[must_use]
    pub const fn pages(sid: u16, address: u64, pages_log2: u8) -> Self {
        let (address, s) = super::dev_tlb_range(address, pages_log2);
        Self::new().with_sid(sid).with_address(address).with_s(s)
    }

    /// The whole address space, which the manual calls a global device-TLB invalidation (`[V]`
    /// 6.5.3.3).
    #[must_use]
    pub const fn all(sid: u16) -> Self {
        Self::pages(sid, 0, u8::MAX)
    }
}

/// PASID-based device-TLB invalidate, p_dev_tlb_inv_dsc (`[V]` 6.5.2.6). 256-bit queues only.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PasidDevTlbInv {
    #[bits(4, default = 0x8)]
    type_low: u8,
    /// MIP, bits 8:4: maximum invalidations pending; 0 for 32.
    #[bits(5)]
    pub mip: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(4)]
    pfsid_low: u8,
    /// SID, bits 31:16: source id.
    pub sid: u16,
    /// PASID, bits 51:32; ignored if GI is set.
    #[bits(20, from = pasid_from_u128, into = pasid_to_u128)]
    pub pasid: u32,
    #[bits(12)]
    pfsid_high: u16,
    /// GI, bit 64: global invalidate, of every PASID.
    pub gi: bool,
    #[bits(10)]
    __: u16,
    /// S, bit 75: more than one page; see [`super::dev_tlb_range`].
    pub s: bool,
    /// ADDR, bits 127:76: input address, with the size below it if S is set.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub address: u64,
}

impl PasidDevTlbInv {
    /// Reserved bits: 74:65.
    pub const RESERVED: u128 = 0x0000_0000_0000_07FE_0000_0000_0000_0000;

    /// 2^`pages_log2` pages holding `address`, of requests with this PASID.
    #[must_use]
    pub const fn pages(sid: u16, pasid: u32, address: u64, pages_log2: u8) -> Self {
        let (address, s) = super::dev_tlb_range(address, pages_log2);
        Self::new()
            .with_sid(sid)
            .with_pasid(pasid)
            .with_address(address)
            .with_s(s)
    }

    /// Everything of this PASID.
    #[must_use]
    pub const fn all(sid: u16, pasid: u32) -> Self {
        Self::pages(sid, pasid, 0, u8::MAX)
    }
}

/// HPT cache invalidate, hpt_inv_desc (`[V]` 6.5.2.7). 256-bit queues only.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct HptInv {
    #[bits(4, default = 0xA)]
    type_low: u8,
    /// G, bits 5:4; see [`HptGranularity`].
    #[bits(2)]
    pub g: u8,
    #[bits(3)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(4)]
    __: u8,
    /// HPTDID, bits 31:16: HPT domain identifier.
    pub hptdid: u16,
    #[bits(32)]
    __: u32,
    /// AM, bits 69:64: number of low page-number bits that are masked.
    #[bits(6)]
    pub am: u8,
    /// IH, bits 71:70: levels to invalidate; 0 for L1 only, 3 for L1 to L4.
    #[bits(2)]
    pub ih: u8,
    #[bits(4)]
    __: u8,
    /// ADDR, bits 127:76: host physical address.
    #[bits(52, from = address_from_u128, into = address_to_u128)]
    pub address: u64,
}

impl HptInv {
    /// Reserved bits: 75:72, 63:32, 15:12, 8:6.
    pub const RESERVED: u128 = 0x0000_0000_0000_0F00_FFFF_FFFF_0000_F1C0;

    /// G decoded, or `None` if reserved.
    #[must_use]
    pub const fn granularity(self) -> Option<HptGranularity> {
        HptGranularity::from_bits(self.g())
    }
}

/// Interrupt entry cache invalidate, iec_inv_dsc (`[V]` 6.5.2.8).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct IecInv {
    #[bits(4, default = 0x4)]
    type_low: u8,
    /// G, bit 4: index-selective instead of global.
    pub g: bool,
    #[bits(4)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(15)]
    __: u16,
    /// IM, bits 31:27: number of low index bits that are masked (`[V]` table 25).
    #[bits(5)]
    pub im: u8,
    /// IIDX, bits 47:32: interrupt index.
    pub iidx: u16,
    #[bits(80)]
    __: u128,
}

impl IecInv {
    /// Reserved bits: 127:48, 26:12, 8:5.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FFFF_FFFF_FFFF_0000_07FF_F1E0;
}

/// Invalidation wait, inv_wait_dsc (`[V]` 6.5.2.9).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct InvWait {
    #[bits(4, default = 0x5)]
    type_low: u8,
    /// IF, bit 4: raise the invalidation completion event.
    pub interrupt: bool,
    /// SW, bit 5: write the status data to the status address.
    pub sw: bool,
    /// FN, bit 6: fence, later descriptors start after this one completed.
    pub fence: bool,
    /// PD, bit 7: complete behind the page requests received so far. Reserved if ECAP.PDS is clear.
    pub pd: bool,
    #[bits(1)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    #[bits(20)]
    __: u32,
    /// Status data, bits 63:32.
    pub status_data: u32,
    #[bits(2)]
    __: u8,
    /// Status address, bits 127:66; DWORD-aligned.
    #[bits(62, from = dword_from_u128, into = dword_to_u128)]
    pub status_address: u64,
}

impl InvWait {
    /// Reserved bits: 65:64, 31:12, 8. Bits 127:(HAW+64) are ignored.
    pub const RESERVED: u128 = 0x0000_0000_0000_0003_0000_0000_FFFF_F100;
    /// PD, reserved if ECAP.PDS is clear.
    pub const PD: u128 = 0x0000_0000_0000_0000_0000_0000_0000_0080;

    /// Writes `data` to `address` at completion.
    #[must_use]
    pub const fn status(address: u64, data: u32) -> Self {
        Self::new()
            .with_sw(true)
            .with_status_address(address)
            .with_status_data(data)
    }

    /// A fence that reports nothing.
    #[must_use]
    pub const fn fence_only() -> Self {
        Self::new().with_fence(true)
    }
}

/// Page group response, page_grp_resp_dsc (`[V]` 7.6.1). 256-bit queues only.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PageGroupResponse {
    #[bits(4, default = 0x9)]
    type_low: u8,
    /// PP, bit 4: the response has a PASID, as the request had.
    pub pp: bool,
    #[bits(4)]
    __: u8,
    #[bits(3)]
    type_high: u8,
    /// RC, bits 15:12; see [`ResponseCode`].
    #[bits(4)]
    pub rc: u8,
    /// RID, bits 31:16: requester id.
    pub rid: u16,
    /// PASID, bits 51:32; ignored if PP is clear.
    #[bits(20, from = pasid_from_u128, into = pasid_to_u128)]
    pub pasid: u32,
    #[bits(12)]
    __: u16,
    #[bits(2)]
    __: u8,
    /// Bit 66: ignored by hardware.
    pub ign: bool,
    /// PRGI, bits 75:67: page request group index.
    #[bits(9, from = prgi_from_u128, into = prgi_to_u128)]
    pub prgi: u16,
    #[bits(52)]
    __: u64,
}

impl PageGroupResponse {
    /// Reserved bits: 127:76, 65:64, 63:52, 8:5.
    pub const RESERVED: u128 = 0xFFFF_FFFF_FFFF_F003_FFF0_0000_0000_01E0;

    /// RC decoded, or `None` if reserved.
    #[must_use]
    pub const fn code(self) -> Option<ResponseCode> {
        ResponseCode::from_bits(self.rc())
    }

    /// The response to a group.
    #[must_use]
    pub const fn respond(rid: u16, pasid: Option<u32>, prgi: u16, code: ResponseCode) -> Self {
        let response = Self::new()
            .with_rid(rid)
            .with_prgi(prgi)
            .with_rc(code.bits());
        match pasid {
            Some(pasid) => response.with_pp(true).with_pasid(pasid),
            None => response,
        }
    }
}
