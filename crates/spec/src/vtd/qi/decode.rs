//! Which descriptors are valid, and what a valid one says.

use super::{
    CcInv, Desc, DescType, DescWidth, DevTlbInv, HptInv, IecInv, InvWait, IotlbGranularity, IotlbInv,
    PageGroupResponse, PasidCacheInv, PasidDevTlbInv, PasidIotlbInv,
};
use crate::vtd::join;
use crate::vtd::regs::{Cap, Ecap, Iqei, Rtaddr, Ttm};

/// What the validity of a descriptor depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The translation table mode in force.
    pub mode: Ttm,
    /// IQA_REG.DW.
    pub width: DescWidth,
    /// CAP_REG.
    pub cap: Cap,
    /// ECAP_REG.
    pub ecap: Ecap,
}

impl Rules {
    /// The rules for this programming of RTADDR_REG and IQA_REG.DW.
    ///
    /// # Errors
    /// [`Iqei::InvalidTtm`] for a mode that is reserved or not supported, [`Iqei::InvalidWidth`] for
    /// a width that the mode or the capabilities exclude (`[V]` 11.4.9.9).
    pub const fn new(rtaddr: Rtaddr, width: DescWidth, cap: Cap, ecap: Ecap) -> Result<Self, Iqei> {
        let mode = match rtaddr.mode() {
            Some(Ttm::Legacy) => Ttm::Legacy,
            Some(Ttm::Scalable) if ecap.smts() => Ttm::Scalable,
            Some(Ttm::Abort) if ecap.adms() => Ttm::Abort,
            _ => return Err(Iqei::InvalidTtm),
        };
        let width_allowed = match width {
            DescWidth::Bits128 => matches!(mode, Ttm::Legacy),
            DescWidth::Bits256 => ecap.smts() || ecap.adms(),
        };
        if width_allowed { Ok(Self { mode, width, cap, ecap }) } else { Err(Iqei::InvalidWidth) }
    }

    /// The type of a descriptor, if it is valid in this mode and with these capabilities (`[V]`
    /// table 26, 6.5.2.5 to 6.5.2.7, 7.6.1).
    ///
    /// # Errors
    /// [`Iqei::InvalidType`].
    pub const fn descriptor_type(&self, desc: &Desc) -> Result<DescType, Iqei> {
        let Some(ty) = DescType::from_bits(DescType::field(desc)) else {
            return Err(Iqei::InvalidType);
        };
        let in_mode = ty.fits_128() || !matches!(self.mode, Ttm::Legacy);
        let capable = match ty {
            DescType::DevTlb | DescType::PasidDevTlb => self.ecap.dt(),
            DescType::PageGroupResponse => self.ecap.prs(),
            DescType::Hpt => self.ecap.hpts(),
            _ => true,
        };
        if in_mode && capable { Ok(ty) } else { Err(Iqei::InvalidType) }
    }
}

/// A valid descriptor. Its granularity is not a reserved value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Context-cache invalidate.
    ContextCache(CcInv),
    /// IOTLB invalidate.
    Iotlb(IotlbInv),
    /// Device-TLB invalidate.
    DevTlb(DevTlbInv),
    /// Interrupt entry cache invalidate.
    InterruptEntryCache(IecInv),
    /// Invalidation wait.
    Wait(InvWait),
    /// PASID-based IOTLB invalidate.
    PasidIotlb(PasidIotlbInv),
    /// PASID-cache invalidate.
    PasidCache(PasidCacheInv),
    /// PASID-based device-TLB invalidate.
    PasidDevTlb(PasidDevTlbInv),
    /// Page group response. Its code may be reserved: the manual does not make that an error.
    PageGroupResponse(PageGroupResponse),
    /// HPT cache invalidate.
    Hpt(HptInv),
}

impl Descriptor {
    /// Reads a descriptor as hardware does. In a 128-bit queue the upper two quadwords are not part
    /// of it and are not looked at.
    ///
    /// # Errors
    /// [`Iqei::InvalidType`] or [`Iqei::ReservedField`]. The manual calls a descriptor with a
    /// reserved granularity invalid without giving its code; it is reported as a reserved field.
    pub fn decode(desc: &Desc, rules: &Rules) -> Result<Self, Iqei> {
        let ty = rules.descriptor_type(desc)?;
        let bits = join(desc[0], desc[1]);
        let upper = match rules.width {
            DescWidth::Bits128 => 0,
            DescWidth::Bits256 => join(desc[2], desc[3]),
        };
        let (this, granularity_defined) = Self::read(ty, bits, rules.cap);
        let reserved = Self::reserved(ty, rules.ecap);
        if bits & reserved == 0 && upper == 0 && granularity_defined {
            Ok(this)
        } else {
            Err(Iqei::ReservedField)
        }
    }

    /// The descriptor as it stands in the queue.
    #[must_use]
    pub const fn desc(self) -> Desc {
        match self {
            Self::ContextCache(d) => d.desc(),
            Self::Iotlb(d) => d.desc(),
            Self::DevTlb(d) => d.desc(),
            Self::InterruptEntryCache(d) => d.desc(),
            Self::Wait(d) => d.desc(),
            Self::PasidIotlb(d) => d.desc(),
            Self::PasidCache(d) => d.desc(),
            Self::PasidDevTlb(d) => d.desc(),
            Self::PageGroupResponse(d) => d.desc(),
            Self::Hpt(d) => d.desc(),
        }
    }

    /// The reserved bits among 127:0 of a descriptor type, with those of missing capabilities.
    #[must_use]
    pub const fn reserved(ty: DescType, ecap: Ecap) -> u128 {
        let pfsid = if ecap.dit() { 0 } else { DevTlbInv::PFSID };
        let pasid_pfsid = if ecap.dit() { 0 } else { PasidDevTlbInv::PFSID };
        let pd = if ecap.pds() { 0 } else { InvWait::PD };
        match ty {
            DescType::ContextCache => CcInv::RESERVED,
            DescType::Iotlb => IotlbInv::RESERVED,
            DescType::DevTlb => DevTlbInv::RESERVED | pfsid,
            DescType::InterruptEntryCache => IecInv::RESERVED,
            DescType::Wait => InvWait::RESERVED | pd,
            DescType::PasidIotlb => PasidIotlbInv::RESERVED,
            DescType::PasidCache => PasidCacheInv::RESERVED,
            DescType::PasidDevTlb => PasidDevTlbInv::RESERVED | pasid_pfsid,
            DescType::PageGroupResponse => PageGroupResponse::RESERVED,
            DescType::Hpt => HptInv::RESERVED,
        }
    }

    /// The descriptor of a type, and whether its granularity is defined.
    const fn read(ty: DescType, bits: u128, cap: Cap) -> (Self, bool) {
        match ty {
            DescType::ContextCache => {
                let d = CcInv::from_bits(bits);
                (Self::ContextCache(d), d.granularity().is_some())
            }
            DescType::Iotlb => {
                let d = IotlbInv::from_bits(bits);
                let defined = match d.granularity() {
                    Some(IotlbGranularity::Page) => cap.psi(),
                    Some(_) => true,
                    None => false,
                };
                (Self::Iotlb(d), defined)
            }
            DescType::DevTlb => (Self::DevTlb(DevTlbInv::from_bits(bits)), true),
            DescType::InterruptEntryCache => (Self::InterruptEntryCache(IecInv::from_bits(bits)), true),
            DescType::Wait => (Self::Wait(InvWait::from_bits(bits)), true),
            DescType::PasidIotlb => {
                let d = PasidIotlbInv::from_bits(bits);
                (Self::PasidIotlb(d), d.granularity().is_some())
            }
            DescType::PasidCache => {
                let d = PasidCacheInv::from_bits(bits);
                (Self::PasidCache(d), d.granularity().is_some())
            }
            DescType::PasidDevTlb => (Self::PasidDevTlb(PasidDevTlbInv::from_bits(bits)), true),
            DescType::PageGroupResponse => {
                (Self::PageGroupResponse(PageGroupResponse::from_bits(bits)), true)
            }
            DescType::Hpt => {
                let d = HptInv::from_bits(bits);
                (Self::Hpt(d), d.granularity().is_some())
            }
        }
    }
}
