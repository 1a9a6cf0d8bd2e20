//! The register window, by the manual's names (`[V]` chapter 11).

use portcullis::{Platform, Window};
use portcullis_spec::vtd::regs::{
    Ecap, EventAddress, EventControl, EventData, FRCD_SIZE, Frcd, Fsts, Gcmd, Gsts, Ics, Iqa, Iqercd, Iqh,
    Iqt, Pmen, Pqa, Pqh, Pqt, Prs, Rtaddr, Ver, offset,
};
use portcullis_spec::vtd::{join, regs::Cap};

/// A message that an event of the unit is signalled by (`[V]` 5.1.6): in xAPIC mode an address in
/// 0xFEEx_xxxx and a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Message address, a multiple of 4.
    pub address: u64,
    /// Message data, of which hardware sends 16 bits.
    pub data: u16,
}

/// Which of the three events of the unit: their registers have the same layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Faults and invalidation queue errors (`[V]` 11.4.7.2).
    Fault,
    /// Completion of a wait descriptor with IF (`[V]` 11.4.9.5).
    Invalidation,
    /// Page requests (`[V]` 11.4.11.5).
    PageRequest,
}

impl Event {
    fn control(self) -> u32 {
        match self {
            Event::Fault => offset::FECTL,
            Event::Invalidation => offset::IECTL,
            Event::PageRequest => offset::PECTL,
        }
    }
}

/// The registers of one unit.
#[derive(Clone)]
pub(super) struct Regs<P> {
    platform: P,
    window: Window,
}

impl<P: Platform> Regs<P> {
    pub(super) fn new(platform: P, window: Window) -> Regs<P> {
        Regs { platform, window }
    }

    fn read32(&self, offset: u32) -> u32 {
        self.platform.read32(self.window, offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.platform.write32(self.window, offset, value)
    }

    fn read64(&self, offset: u32) -> u64 {
        self.platform.read64(self.window, offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.platform.write64(self.window, offset, value)
    }

    pub(super) fn ver(&self) -> Ver {
        Ver::from_bits(self.read32(offset::VER))
    }

    pub(super) fn cap(&self) -> Cap {
        Cap::from_bits(self.read64(offset::CAP))
    }

    pub(super) fn ecap(&self) -> Ecap {
        Ecap::from_bits(self.read64(offset::ECAP))
    }

    pub(super) fn gsts(&self) -> Gsts {
        Gsts::from_bits(self.read32(offset::GSTS))
    }

    /// Changes one field of the global command, starting from the status with the one-shot bits
    /// masked out (`[V]` 11.4.4.1).
    pub(super) fn command(&self, change: impl FnOnce(Gcmd) -> Gcmd) {
        let command = change(self.gsts().as_command());
        self.write32(offset::GCMD, command.into_bits());
    }

    pub(super) fn set_rtaddr(&self, value: Rtaddr) {
        self.write64(offset::RTADDR, value.into_bits());
    }

    pub(super) fn pmen(&self) -> Pmen {
        Pmen::from_bits(self.read32(offset::PMEN))
    }

    pub(super) fn set_pmen(&self, value: Pmen) {
        self.write32(offset::PMEN, value.into_bits());
    }

    pub(super) fn fsts(&self) -> Fsts {
        Fsts::from_bits(self.read32(offset::FSTS))
    }

    /// Clears the bits that are set in `bits`, all of them written 1 to clear.
    pub(super) fn clear_fsts(&self, bits: Fsts) {
        self.write32(offset::FSTS, bits.into_bits() & Fsts::W1C);
    }

    /// The fault recording register at byte offset `at`, or `None` while its F bit is clear. F is
    /// looked at first: hardware sets it after the rest (`[V]` 11.4.7.6).
    pub(super) fn frcd(&self, at: u32) -> Option<Frcd> {
        let high = self.read64(at + 8);
        let record = Frcd::from_bits(join(0, high));
        record.f().then(|| Frcd::from_bits(join(self.read64(at), high)))
    }

    /// Clears F of the fault recording register at byte offset `at`, bit 127.
    pub(super) fn clear_frcd(&self, at: u32) {
        self.write32(at + FRCD_SIZE - 4, 1 << 31);
    }

    pub(super) fn iqh(&self) -> Iqh {
        Iqh::from_bits(self.read64(offset::IQH))
    }

    pub(super) fn iqt(&self) -> Iqt {
        Iqt::from_bits(self.read64(offset::IQT))
    }

    pub(super) fn set_iqt(&self, value: Iqt) {
        self.write64(offset::IQT, value.into_bits());
    }

    pub(super) fn set_iqa(&self, value: Iqa) {
        self.write64(offset::IQA, value.into_bits());
    }

    pub(super) fn iqercd(&self) -> Iqercd {
        Iqercd::from_bits(self.read64(offset::IQERCD))
    }

    pub(super) fn ics(&self) -> Ics {
        Ics::from_bits(self.read32(offset::ICS))
    }

    /// Clears IWC.
    pub(super) fn clear_ics(&self) {
        self.write32(offset::ICS, Ics::new().with_iwc(true).into_bits());
    }

    pub(super) fn pqt(&self) -> Pqt {
        Pqt::from_bits(self.read64(offset::PQT))
    }

    pub(super) fn set_pqt(&self, value: Pqt) {
        self.write64(offset::PQT, value.into_bits());
    }

    pub(super) fn set_pqh(&self, value: Pqh) {
        self.write64(offset::PQH, value.into_bits());
    }

    pub(super) fn set_pqa(&self, value: Pqa) {
        self.write64(offset::PQA, value.into_bits());
    }

    pub(super) fn prs(&self) -> Prs {
        Prs::from_bits(self.read32(offset::PRS))
    }

    /// Clears the bits that are set in `bits`, both written 1 to clear.
    pub(super) fn clear_prs(&self, bits: Prs) {
        self.write32(offset::PRS, bits.into_bits() & Prs::W1C);
    }

    /// Programs an event's message and unmasks it, or masks it where there is none: then the
    /// embedder polls.
    pub(super) fn set_event(&self, event: Event, msi: Option<Msi>) {
        let control = event.control();
        let preserved = EventControl::from_bits(self.read32(control)).with_ip(false);
        self.write32(control, preserved.with_im(true).into_bits());
        if let Some(msi) = msi {
            let data = EventData::new().with_imd(msi.data);
            let address = EventAddress::new().with_ma(msi.address as u32);
            self.write32(control + 4, data.into_bits());
            self.write32(control + 8, address.into_bits());
            self.write32(control + 12, (msi.address >> 32) as u32);
            self.write32(control, preserved.with_im(false).into_bits());
        }
    }
}
