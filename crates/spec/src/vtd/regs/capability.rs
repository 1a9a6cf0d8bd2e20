//! Version and capability registers (`[V]` 11.4.1 to 11.4.3). All fields are read-only to software.

use bitfield_struct::bitfield;

use crate::vtd::Agaw;

/// VER_REG (`[V]` 11.4.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Ver {
    /// MIN, bits 3:0: minor version.
    #[bits(4)]
    pub min: u8,
    /// MAX, bits 7:4: major version.
    #[bits(4)]
    pub max: u8,
    #[bits(24)]
    __: u32,
}

/// CAP_REG (`[V]` 11.4.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// ND, bits 2:0: domain identifiers have 4 + 2*ND bits; 7 is reserved.
    #[bits(3)]
    pub nd: u8,
    #[bits(1)]
    __: u8,
    /// RWBF, bit 4: write buffers must be flushed.
    pub rwbf: bool,
    /// PLMR, bit 5: protected low-memory region.
    pub plmr: bool,
    /// PHMR, bit 6: protected high-memory region.
    pub phmr: bool,
    /// CM, bit 7: caching mode.
    pub cm: bool,
    /// SAGAW, bits 12:8: bit n tells that the width of code n is supported; see [`Agaw`].
    #[bits(5)]
    pub sagaw: u8,
    #[bits(3)]
    __: u8,
    /// MGAW, bits 21:16: maximum guest address width minus one.
    #[bits(6)]
    pub mgaw: u8,
    /// ZLR, bit 22: zero-length reads of write-only pages are allowed.
    pub zlr: bool,
    /// DEP, bit 23: deprecated, reads as zero.
    pub dep: bool,
    /// FRO, bits 33:24: offset of the fault recording registers in units of 16 bytes.
    #[bits(10)]
    pub fro: u16,
    /// SSLPS, bits 37:34: second-stage large pages; bit 0 for 2 MiB, bit 1 for 1 GiB.
    #[bits(4)]
    pub sslps: u8,
    #[bits(1)]
    __: u8,
    /// PSI, bit 39: page-selective invalidation of second-stage translations.
    pub psi: bool,
    /// NFR, bits 47:40: number of fault recording registers minus one.
    pub nfr: u8,
    /// MAMV, bits 53:48: largest address mask of an IOTLB invalidation.
    #[bits(6)]
    pub mamv: u8,
    /// DWD, bit 54: draining of writes.
    pub dwd: bool,
    /// DRD, bit 55: draining of reads.
    pub drd: bool,
    /// FS1GP, bit 56: first-stage 1 GiB pages.
    pub fs1gp: bool,
    #[bits(2)]
    __: u8,
    /// PI, bit 59: posted interrupts.
    pub pi: bool,
    /// FS5LP, bit 60: first-stage 5-level paging.
    pub fs5lp: bool,
    /// ECMDS, bit 61: enhanced command interface.
    pub ecmds: bool,
    /// ESIRTPS, bit 62: setting the interrupt remap table pointer invalidates its caches.
    pub esirtps: bool,
    /// ESRTPS, bit 63: setting the root table pointer invalidates all translation caches.
    pub esrtps: bool,
}

impl Cap {
    /// Bits of a domain identifier, or `None` for the reserved encoding.
    #[must_use]
    pub const fn domain_id_bits(self) -> Option<u32> {
        match self.nd() {
            7 => None,
            nd => Some(4 + 2 * nd as u32),
        }
    }

    /// Whether SAGAW announces this width.
    #[must_use]
    pub const fn supports(self, agaw: Agaw) -> bool {
        self.sagaw() >> agaw.bits() & 1 != 0
    }

    /// Maximum guest address width in bits.
    #[must_use]
    pub const fn guest_address_width(self) -> u32 {
        self.mgaw() as u32 + 1
    }

    /// Second-stage 2 MiB pages (SSLPS bit 0).
    #[must_use]
    pub const fn second_stage_2m(self) -> bool {
        self.sslps() & 0b01 != 0
    }

    /// Second-stage 1 GiB pages (SSLPS bit 1).
    #[must_use]
    pub const fn second_stage_1g(self) -> bool {
        self.sslps() & 0b10 != 0
    }

    /// Number of fault recording registers.
    #[must_use]
    pub const fn fault_records(self) -> u32 {
        self.nfr() as u32 + 1
    }

    /// Byte offset of fault recording register `index`.
    #[must_use]
    pub const fn frcd_offset(self, index: u8) -> u32 {
        self.fro() as u32 * 16 + index as u32 * super::FRCD_SIZE
    }
}

/// ECAP_REG (`[V]` 11.4.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ecap {
    /// C, bit 0: hardware reads of root, context, PASID and interrupt tables and of legacy-mode
    /// second-stage tables are coherent.
    pub c: bool,
    /// QI, bit 1: queued invalidation.
    pub qi: bool,
    /// DT, bit 2: device TLBs.
    pub dt: bool,
    /// IR, bit 3: interrupt remapping.
    pub ir: bool,
    /// EIM, bit 4: extended interrupt mode.
    pub eim: bool,
    /// DEP, bit 5: deprecated, reads as zero.
    pub dep5: bool,
    /// PT, bit 6: pass-through.
    pub pt: bool,
    /// SC, bit 7: snoop control.
    pub sc: bool,
    /// IRO, bits 17:8: offset of the IOTLB registers in units of 16 bytes.
    #[bits(10)]
    pub iro: u16,
    #[bits(2)]
    __: u8,
    /// MHMV, bits 23:20: largest index mask of an interrupt entry cache invalidation.
    #[bits(4)]
    pub mhmv: u8,
    /// DEP, bit 24: deprecated, reads as zero.
    pub dep24: bool,
    /// MTS, bit 25: memory types.
    pub mts: bool,
    /// NEST, bit 26: nested translation.
    pub nest: bool,
    #[bits(1)]
    __: u8,
    /// DEP, bit 28: deprecated, reads as zero.
    pub dep28: bool,
    /// PRS, bit 29: page requests.
    pub prs: bool,
    /// ERS, bit 30: execute requests; planned for deprecation.
    pub ers: bool,
    /// SRS, bit 31: supervisor requests.
    pub srs: bool,
    #[bits(1)]
    __: u8,
    /// NWFS, bit 33: the no-write flag of translation requests is honoured.
    pub nwfs: bool,
    /// EAFS, bit 34: extended accessed flag.
    pub eafs: bool,
    /// PSS, bits 39:35: PASIDs have PSS + 1 bits.
    #[bits(5)]
    pub pss: u8,
    /// PASID, bit 40: requests with PASID.
    pub pasid: bool,
    /// DIT, bit 41: device-TLB invalidation throttling.
    pub dit: bool,
    /// PDS, bit 42: the page-request drain flag of the wait descriptor.
    pub pds: bool,
    /// SMTS, bit 43: scalable mode.
    pub smts: bool,
    /// VCS, bit 44: virtual commands.
    pub vcs: bool,
    /// SSADS, bit 45: second-stage accessed and dirty bits.
    pub ssads: bool,
    /// SSTS, bit 46: second stage in scalable mode.
    pub ssts: bool,
    /// FSTS, bit 47: first stage.
    pub fsts: bool,
    /// SMPWCS, bit 48: page walks through PASID table entries can snoop; see PWSNP.
    pub smpwcs: bool,
    /// RPS, bit 49: the RID_PASID field.
    pub rps: bool,
    /// TDXCS, bit 50: TDX connect extensions.
    pub tdxcs: bool,
    /// PMS, bit 51: performance monitoring.
    pub pms: bool,
    /// ADMS, bit 52: abort-DMA mode.
    pub adms: bool,
    /// RPRIVS, bit 53: the RID_PRIV field.
    pub rprivs: bool,
    #[bits(1)]
    __: u8,
    /// HPTS, bit 55: host permission tables.
    pub hpts: bool,
    /// PTRS, bit 56: PASID in translated requests.
    pub ptrs: bool,
    /// SSIRWS, bit 57: second-stage I/O read and write bits.
    pub ssirws: bool,
    /// SMS, bit 58: stop markers are dropped silently when they cannot be queued.
    pub sms: bool,
    /// HPT1GPS, bit 59: 1 GiB pages in host permission tables.
    pub hpt1gps: bool,
    /// RDTS, bit 60: RDT configuration.
    pub rdts: bool,
    /// EIMER, bit 61: extended interrupt mode only.
    pub eimer: bool,
    /// IRREQ, bit 62: interrupts are blocked while interrupt remapping is disabled.
    pub irreq: bool,
    #[bits(1)]
    __: u8,
}

impl Ecap {
    /// Byte offset of IVA_REG (`[V]` 11.4.6.4).
    #[must_use]
    pub const fn iva_offset(self) -> u32 {
        self.iro() as u32 * 16
    }

    /// Byte offset of IOTLB_REG (`[V]` 11.4.6.3).
    #[must_use]
    pub const fn iotlb_offset(self) -> u32 {
        self.iva_offset() + 8
    }

    /// Bits of the PASIDs that hardware accepts. PSS is ignored above the 20 bits of a PASID.
    #[must_use]
    pub const fn pasid_bits(self) -> u32 {
        let bits = self.pss() as u32 + 1;
        if bits > 20 { 20 } else { bits }
    }
}
