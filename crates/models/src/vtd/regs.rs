//! The register file (`[V]` chapter 11). Writes change registers and mark work; steps do the rest.

use portcullis_spec::vtd::regs::{
    Cap, Ccmd, Ecap, Frcd, Fsts, Gcmd, Gsts, Ics, IotlbReg, Iqa, Iqei, Iqercd, Iva, Pqa, Prs, Rtaddr, offset,
};

use super::config::{Config, FRCD_BASE, IVA_BASE};
use super::events::Event;

/// Byte offsets in a queue: bits 18:4.
const QUEUE_OFFSET: u64 = 0x7_fff0;
/// Byte offsets in the page request queue: bits 18:5.
const PAGE_QUEUE_OFFSET: u64 = 0x7_ffe0;

#[derive(Debug)]
pub(super) struct Registers {
    ver: u32,
    pub(super) cap: Cap,
    pub(super) ecap: Ecap,
    /// A command that has been written and not been carried out.
    pub(super) command: Option<u32>,
    pub(super) gsts: Gsts,
    /// As software wrote it; in force from the next set-root-table-pointer command.
    pub(super) rtaddr: u64,
    /// In force.
    pub(super) root: Rtaddr,
    pub(super) ccmd: Ccmd,
    pub(super) iotlb: IotlbReg,
    pub(super) iva: Iva,
    /// PFO, IQE, ICE, ITE and FRI; PPF is computed.
    pub(super) fsts: Fsts,
    pub(super) fault_event: Event,
    pub(super) frcd: Vec<Frcd>,
    /// The register that takes the next fault.
    pub(super) next_frcd: usize,
    pub(super) iqh: u64,
    pub(super) iqt: u64,
    pub(super) iqa: Iqa,
    pub(super) ics: Ics,
    pub(super) invalidation_event: Event,
    pub(super) iqercd: Iqercd,
    irta: u64,
    pub(super) pqh: u64,
    pub(super) pqt: u64,
    pub(super) pqa: Pqa,
    pub(super) prs: Prs,
    pub(super) page_event: Event,
}

impl Registers {
    pub(super) fn new(config: &Config) -> Self {
        let cap = config.cap();
        Registers {
            ver: config.ver().into_bits(),
            cap,
            ecap: config.ecap(),
            command: None,
            gsts: Gsts::new(),
            rtaddr: 0,
            root: Rtaddr::new(),
            ccmd: Ccmd::new(),
            iotlb: IotlbReg::new(),
            iva: Iva::new(),
            fsts: Fsts::new(),
            fault_event: Event::new(),
            frcd: vec![Frcd::new(); cap.fault_records() as usize],
            next_frcd: 0,
            iqh: 0,
            iqt: 0,
            iqa: Iqa::new(),
            ics: Ics::new(),
            invalidation_event: Event::new(),
            iqercd: Iqercd::new(),
            irta: 0,
            pqh: 0,
            pqt: 0,
            pqa: Pqa::new(),
            prs: Prs::new(),
            page_event: Event::new(),
        }
    }

    /// PPF: a fault recording register has F set.
    pub(super) fn pending_fault(&self) -> bool {
        self.frcd.iter().any(|r| r.f())
    }

    /// A condition of the fault event is unserved (`[V]` 7.3).
    pub(super) fn fault_unserved(&self) -> bool {
        let s = self.fsts;
        s.pfo() || s.iqe() || s.ice() || s.ite() || self.pending_fault()
    }

    /// Stops the invalidation queue (`[V]` 6.5.2.11).
    pub(super) fn queue_error(&mut self, why: Iqei) {
        if !self.fault_unserved() {
            self.fault_event.raise();
        }
        self.fsts.set_iqe(true);
        self.iqercd.set_iqei(why.bits());
    }

    /// A condition of the page request event arises (`[V]` 7.5).
    pub(super) fn page_condition(&mut self, set: impl FnOnce(&mut Prs)) {
        if !self.prs.ppr() && !self.prs.pro() {
            self.page_event.raise();
        }
        set(&mut self.prs);
    }

    /// Reads 32 bits at an aligned offset.
    pub(super) fn read(&self, off: u32) -> u32 {
        let (aligned, upper) = (off & !7, off & 4 != 0);
        let wide = match aligned {
            offset::CAP => Some(self.cap.into_bits()),
            offset::ECAP => Some(self.ecap.into_bits()),
            offset::RTADDR => Some(self.rtaddr),
            offset::CCMD => Some(self.ccmd.into_bits()),
            offset::IQH => Some(self.iqh),
            offset::IQT => Some(self.iqt),
            offset::IQA => Some(self.iqa.into_bits()),
            offset::IQERCD => Some(self.iqercd.into_bits()),
            offset::IRTA => Some(self.irta),
            offset::PQH => Some(self.pqh),
            offset::PQT => Some(self.pqt),
            offset::PQA => Some(self.pqa.into_bits()),
            _ if aligned == u32::from(IVA_BASE) + 8 => Some(self.iotlb.into_bits()),
            _ => None,
        };
        if let Some(value) = wide {
            return if upper { (value >> 32) as u32 } else { value as u32 };
        }
        match off {
            offset::VER => self.ver,
            offset::GSTS => self.gsts.into_bits(),
            offset::FSTS => self.fsts.with_ppf(self.pending_fault()).into_bits(),
            offset::FECTL..=offset::FEUADDR => self.fault_event.read((off - offset::FECTL) / 4),
            offset::ICS => self.ics.into_bits(),
            offset::IECTL..=offset::IEUADDR => self.invalidation_event.read((off - offset::IECTL) / 4),
            offset::PRS => self.prs.into_bits(),
            offset::PECTL..=offset::PEUADDR => self.page_event.read((off - offset::PECTL) / 4),
            _ => self.frcd_word(off).map_or(0, |(i, word)| {
                let bits = self.frcd.get(i).map_or(0, |r| r.into_bits());
                (bits >> (32 * word)) as u32
            }),
        }
    }

    /// Writes 32 bits at an aligned offset.
    pub(super) fn write(&mut self, off: u32, value: u32) {
        let put = |old: u64| {
            if off & 4 != 0 {
                old & 0xffff_ffff | u64::from(value) << 32
            } else {
                old & !0xffff_ffff | u64::from(value)
            }
        };
        match off & !7 {
            offset::RTADDR => self.rtaddr = put(self.rtaddr),
            offset::CCMD => self.ccmd = Ccmd::from_bits(put(self.ccmd.into_bits())),
            offset::IQT => self.iqt = put(self.iqt) & QUEUE_OFFSET,
            offset::IQA => self.iqa = Iqa::from_bits(put(self.iqa.into_bits())),
            offset::IRTA => self.irta = put(self.irta),
            offset::PQH => self.pqh = put(self.pqh) & PAGE_QUEUE_OFFSET,
            offset::PQT => self.pqt = put(self.pqt) & PAGE_QUEUE_OFFSET,
            offset::PQA => self.pqa = Pqa::from_bits(put(self.pqa.into_bits())),
            base if base == u32::from(IVA_BASE) => {
                self.iva = Iva::from_bits(put(self.iva.into_bits()));
            }
            base if base == u32::from(IVA_BASE) + 8 => {
                self.iotlb = IotlbReg::from_bits(put(self.iotlb.into_bits()));
            }
            _ => self.write_narrow(off, value),
        }
    }

    fn write_narrow(&mut self, off: u32, value: u32) {
        match off {
            offset::GCMD => {
                self.command = Some(value);
                if Gcmd::from_bits(value).srtp() {
                    self.gsts.set_rtps(false);
                }
            }
            offset::FSTS => self.clear_fault_status(value),
            offset::FECTL..=offset::FEUADDR => {
                self.fault_event.write((off - offset::FECTL) / 4, value);
            }
            offset::ICS => {
                if Ics::from_bits(value).iwc() {
                    self.ics.set_iwc(false);
                    self.invalidation_event.settle();
                }
            }
            offset::IECTL..=offset::IEUADDR => {
                self.invalidation_event.write((off - offset::IECTL) / 4, value);
            }
            offset::PRS => {
                self.prs = Prs::from_bits(self.prs.into_bits() & !(value & Prs::W1C));
                if !self.prs.ppr() && !self.prs.pro() {
                    self.page_event.settle();
                }
            }
            offset::PECTL..=offset::PEUADDR => {
                self.page_event.write((off - offset::PECTL) / 4, value);
            }
            _ => self.clear_fault_record(off, value),
        }
    }

    fn clear_fault_status(&mut self, value: u32) {
        self.fsts = Fsts::from_bits(self.fsts.into_bits() & !(value & Fsts::W1C));
        if !self.fault_unserved() {
            self.fault_event.settle();
        }
    }

    /// F is the top bit of a record and is written 1 to clear.
    fn clear_fault_record(&mut self, off: u32, value: u32) {
        if let Some((i, 3)) = self.frcd_word(off)
            && value >> 31 != 0
            && let Some(record) = self.frcd.get_mut(i)
        {
            record.set_f(false);
            if !self.fault_unserved() {
                self.fault_event.settle();
            }
        }
    }

    /// The fault recording register at an offset, and which of its four words.
    fn frcd_word(&self, off: u32) -> Option<(usize, u32)> {
        let rel = off.checked_sub(u32::from(FRCD_BASE))?;
        let index = (rel / 16) as usize;
        (index < self.frcd.len()).then_some((index, rel / 4 % 4))
    }
}
