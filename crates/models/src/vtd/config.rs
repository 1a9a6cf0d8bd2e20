//! The choices that the manual leaves to an implementation.

use portcullis_spec::vtd::Agaw;
use portcullis_spec::vtd::regs::{Cap, Ecap, Ver};

/// What one VT-d unit can do. [`Config::default`] is a present-day unit: scalable mode with both
/// stages, device TLBs and page requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// VER.MAX: up to 5 the register-based invalidation interface works (`[V]` 6.5.1).
    pub major: u8,
    /// Host address width in bits: physical addresses at or above it are reserved in entries.
    pub host_address_width: u8,
    /// CAP.MGAW: guest address width in bits.
    pub guest_address_width: u8,
    /// CAP.SAGAW: widths of second-stage tables.
    pub widths: Vec<Agaw>,
    /// CAP.SSLPS: 2 MiB pages in the second stage.
    pub second_stage_2m: bool,
    /// CAP.SSLPS: 1 GiB pages in the second stage.
    pub second_stage_1g: bool,
    /// CAP.FS1GP: 1 GiB pages in the first stage.
    pub first_stage_1g: bool,
    /// CAP.FS5LP: 5 levels in the first stage.
    pub first_stage_5_levels: bool,
    /// CAP.ND: width of domain ids in bits: 4, 6, 8, 10, 12, 14 or 16.
    pub domain_id_bits: u8,
    /// CAP.PSI: page-selective invalidation.
    pub page_selective: bool,
    /// CAP.MAMV: largest address mask of one.
    pub max_address_mask: u8,
    /// CAP.NFR: fault recording registers, 1 to 256.
    pub fault_records: u16,
    /// Faults of a requester that has one recorded already are not recorded (`[V]` 7.2.1).
    pub collapse_faults: bool,
    /// CAP.ZLR: zero-length reads of write-only pages complete.
    pub zero_length_reads: bool,
    /// CAP.CM: not-present entries may be cached. This unit caches none all the same.
    pub caching_mode: bool,
    /// CAP.ESRTPS: setting the root table pointer invalidates all caches.
    pub esrtps: bool,
    /// ECAP.C: root, context and legacy second-stage tables are snooped.
    pub coherent: bool,
    /// ECAP.SMPWCS: walks through PASID-table entries can be snooped.
    pub walks_coherent: bool,
    /// ECAP.SC: the SNP bit of second-stage leaves and PGSNP.
    pub snoop_control: bool,
    /// ECAP.PT: pass-through.
    pub pass_through: bool,
    /// ECAP.SMTS: scalable mode.
    pub scalable: bool,
    /// ECAP.SSTS: second stage in scalable mode.
    pub second_stage: bool,
    /// ECAP.FSTS: first stage.
    pub first_stage: bool,
    /// ECAP.SSADS: accessed and dirty bits in the second stage.
    pub second_stage_accessed_dirty: bool,
    /// ECAP.PASID and PSS: width of PASIDs in bits; 0 for none.
    pub pasid_bits: u8,
    /// ECAP.RPS: the RID_PASID field.
    pub rid_pasid: bool,
    /// ECAP.SRS: supervisor requests.
    pub supervisor: bool,
    /// ECAP.DT: device TLBs.
    pub device_tlb: bool,
    /// ECAP.NWFS: the no-write flag of translation requests counts.
    pub no_write_flag: bool,
    /// ECAP.PRS: page requests.
    pub page_requests: bool,
    /// ECAP.PDS: page requests can be drained.
    pub page_request_drain: bool,
    /// ECAP.SMS: stop markers.
    pub stop_markers: bool,
    /// Private data of page requests, as units after revisions 3.x of the manual have them. No
    /// register announces it.
    pub private_data: bool,
    /// Device-TLB invalidations under way at once, 1 to 32.
    pub itags: u8,
    /// Waits complete in the order of the queue. The manual asks for less: a wait stands behind what
    /// follows the wait before it (`[V]` 6.5.2.12), so where this is false one may overtake another
    /// that is held up by a device. It takes an adversary for that to happen.
    pub waits_in_order: bool,
    /// Nanoseconds until a device-TLB invalidation has timed out.
    pub device_tlb_timeout: u64,
    /// IQERCD.ITESID and ICESID name a requester; older hardware leaves them 0.
    pub names_suspects: bool,
    /// IOTLB entries. Nothing is evicted: where it is full, a new translation is not kept.
    pub iotlb_entries: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            major: 6,
            host_address_width: 46,
            guest_address_width: 48,
            widths: vec![Agaw::Bits39, Agaw::Bits48],
            second_stage_2m: true,
            second_stage_1g: true,
            first_stage_1g: true,
            first_stage_5_levels: false,
            domain_id_bits: 16,
            page_selective: true,
            max_address_mask: 18,
            fault_records: 8,
            collapse_faults: true,
            zero_length_reads: true,
            caching_mode: false,
            esrtps: true,
            coherent: true,
            walks_coherent: true,
            snoop_control: true,
            pass_through: true,
            scalable: true,
            second_stage: true,
            first_stage: true,
            second_stage_accessed_dirty: true,
            pasid_bits: 20,
            rid_pasid: true,
            supervisor: false,
            device_tlb: true,
            no_write_flag: true,
            page_requests: true,
            page_request_drain: true,
            stop_markers: true,
            private_data: false,
            itags: 32,
            waits_in_order: true,
            device_tlb_timeout: 1_000_000_000,
            names_suspects: true,
            iotlb_entries: 1 << 20,
        }
    }
}

impl Config {
    /// A unit that knows legacy mode only.
    pub fn legacy() -> Self {
        Config {
            major: 1,
            scalable: false,
            second_stage: false,
            first_stage: false,
            second_stage_accessed_dirty: false,
            pasid_bits: 0,
            rid_pasid: false,
            page_requests: false,
            page_request_drain: false,
            stop_markers: false,
            esrtps: false,
            walks_coherent: false,
            names_suspects: false,
            ..Config::default()
        }
    }

    /// The same unit with walks of so many levels only: tables of that width in the second stage, 5
    /// levels in the first where it is 5, and guest addresses no wider than that.
    pub fn with_levels(self, width: Agaw) -> Self {
        Config {
            guest_address_width: width.width() as u8,
            widths: vec![width],
            first_stage_5_levels: width == Agaw::Bits57,
            host_address_width: self.host_address_width.min(width.width() as u8),
            ..self
        }
    }

    pub(super) fn ver(&self) -> Ver {
        Ver::new().with_max(self.major & 0xf)
    }

    pub(super) fn cap(&self) -> Cap {
        let sagaw = self.widths.iter().fold(0, |bits, w| bits | 1 << w.bits());
        Cap::new()
            .with_cm(self.caching_mode)
            .with_nd((self.domain_id_bits.clamp(4, 16) - 4) / 2)
            .with_sagaw(sagaw)
            .with_mgaw(self.guest_address_width.clamp(1, 64) - 1)
            .with_zlr(self.zero_length_reads)
            .with_fro(FRCD_BASE / 16)
            .with_sslps(u8::from(self.second_stage_2m) | u8::from(self.second_stage_1g) << 1)
            .with_psi(self.page_selective)
            .with_nfr((self.fault_records.clamp(1, 256) - 1) as u8)
            .with_mamv(self.max_address_mask.min(63))
            .with_dwd(true)
            .with_drd(true)
            .with_fs1gp(self.first_stage_1g)
            .with_fs5lp(self.first_stage && self.first_stage_5_levels)
            .with_esrtps(self.esrtps)
    }

    pub(super) fn ecap(&self) -> Ecap {
        Ecap::new()
            .with_c(self.coherent)
            .with_qi(true)
            .with_dt(self.device_tlb)
            .with_pt(self.pass_through)
            .with_sc(self.snoop_control)
            .with_iro(IVA_BASE / 16)
            .with_prs(self.page_requests)
            .with_srs(self.supervisor)
            .with_nwfs(self.no_write_flag)
            .with_pss(self.pasid_bits.clamp(1, 20) - 1)
            .with_pasid(self.pasid_bits > 0)
            .with_pds(self.page_request_drain)
            .with_smts(self.scalable)
            .with_ssads(self.second_stage_accessed_dirty)
            .with_ssts(self.second_stage)
            .with_fsts(self.first_stage)
            .with_smpwcs(self.walks_coherent)
            .with_rps(self.rid_pasid)
            .with_sms(self.stop_markers)
    }
}

/// Offset of IVA_REG; IOTLB_REG follows.
pub(super) const IVA_BASE: u16 = 0x500;
/// Offset of the first fault recording register.
pub(super) const FRCD_BASE: u16 = 0x1000;
