//! What a unit can do, as its capability registers say, and what this driver makes of it.

use super::{Options, regs::Regs};
use portcullis::{
    Platform,
    driver::{Caps, Incompatible, PrepareError, Stage, StartError, TableRequest},
};
use portcullis_pgtable::{
    Config, FormatDesc, FormatId, Space, VTD_SECOND_STAGE, X86_FIRST_STAGE, formats::size,
};
use portcullis_spec::vtd::{
    Agaw, INTERRUPT_RANGE_LAST, INTERRUPT_RANGE_START,
    pasid::{PASID_DIR_ENTRY_SIZE, PASID_TABLE_ENTRIES},
    regs::{Cap, Ecap, Ver},
};

/// Requests without PASID cannot be translated there, and no mapping may lead there (`[V]` 3.15;
/// LGN.4 and SGN.8 in table 30).
static INTERRUPT_RANGE: [(u64, u64); 1] = [(INTERRUPT_RANGE_START, INTERRUPT_RANGE_LAST)];

/// Bits of the PASIDs that a directory of one frame covers: table memory comes in single frames.
const DIRECTORY_PASID_BITS: u32 =
    (portcullis_pgtable::FRAME_SIZE / PASID_DIR_ENTRY_SIZE * PASID_TABLE_ENTRIES).ilog2();

/// Entries of the page-request queue, which is one frame; it holds one request less (`[V]` 7.4.1).
pub(super) const PRQ_ENTRIES: u32 =
    (portcullis_pgtable::FRAME_SIZE / portcullis_spec::vtd::page_req::PAGE_REQ_SIZE) as u32;

/// A unit's capabilities. Read once: the registers are constant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub(super) ver: Ver,
    pub(super) cap: Cap,
    pub(super) ecap: Ecap,
    /// Scalable mode is used.
    pub(super) scalable: bool,
    /// AW is written for a first stage too.
    pub(super) first_stage_width: bool,
    /// Host address width.
    haw: u8,
}

impl Unit {
    pub(super) fn read<P: Platform>(regs: &Regs<P>, options: &Options) -> Unit {
        let (ver, cap, ecap) = (regs.ver(), regs.cap(), regs.ecap());
        // Hardware has no register for it, but MGAW is at least as wide ([V] 11.4.2).
        let widest = cap.guest_address_width().min(52) as u8;
        Unit {
            ver,
            cap,
            ecap,
            scalable: ecap.smts() && !options.force_legacy,
            first_stage_width: options.first_stage_width,
            haw: options.host_address_width.map_or(widest, |w| w.min(52)),
        }
    }

    /// Whether this driver can run the unit.
    pub(super) fn check(&self) -> Result<(), StartError> {
        if self.ver.into_bits() == u32::MAX || self.cap.into_bits() == u64::MAX {
            return Err(StartError::Hardware("the registers read as all ones"));
        }
        if self.ver.max() == 0 {
            return Err(StartError::Hardware("VER_REG has major version 0"));
        }
        if self.cap.domain_id_bits().is_none() {
            return Err(StartError::Hardware("CAP_REG.ND is reserved"));
        }
        if self.cap.cm() {
            return Err(StartError::Unsupported(
                "caching mode (CAP_REG.CM=1): not-present entries may be cached, and this driver \
                 does not invalidate after making an entry present",
            ));
        }
        if self.cap.rwbf() {
            return Err(StartError::Unsupported(
                "write buffers that software must flush (CAP_REG.RWBF=1): a map would not be seen",
            ));
        }
        if !self.ecap.qi() {
            return Err(StartError::Unsupported("no queued invalidation (ECAP_REG.QI=0)"));
        }
        if !self.second_stage() && !self.first_stage() {
            return Err(StartError::Unsupported("neither a second stage of 4 levels nor a first stage"));
        }
        Ok(())
    }

    /// Whether second-stage tables of 4 levels can be walked.
    pub(super) fn second_stage(&self) -> bool {
        self.cap.supports(Agaw::Bits48) && (!self.scalable || self.ecap.ssts())
    }

    /// Whether first-stage tables can be walked.
    pub(super) fn first_stage(&self) -> bool {
        self.scalable && self.ecap.fsts()
    }

    /// Page requests need scalable mode (`[V]` 7.4), and a drain that can be proved: without PDS the
    /// PD flag is reserved (`[V]` 6.5.2.9).
    pub(super) fn page_requests(&self) -> bool {
        self.scalable && self.ecap.dt() && self.ecap.prs() && self.ecap.pds()
    }

    pub(super) fn pasid_bits(&self) -> u32 {
        if self.scalable && self.ecap.pasid() { self.ecap.pasid_bits().min(DIRECTORY_PASID_BITS) } else { 0 }
    }

    /// Whether reads of root, context and PASID structures snoop (`[V]` 11.4.3, C).
    pub(super) fn coherent_structures(&self) -> bool {
        self.ecap.c()
    }

    /// Whether reads of page tables snoop: C in legacy mode, else SMPWC with PWSNP, which this
    /// driver always sets (`[V]` 3.10, 9.6).
    pub(super) fn coherent_tables(&self) -> bool {
        if self.scalable { self.ecap.smpwcs() } else { self.ecap.c() }
    }

    /// AW for a pass-through entry of legacy mode: the largest that hardware supports (`[V]` 9.3).
    pub(super) fn widest_agaw(&self) -> Option<Agaw> {
        Agaw::ALL.iter().rev().copied().find(|a| self.cap.supports(*a))
    }

    pub(super) fn caps(&self) -> Caps {
        let page_requests = if self.page_requests() { PRQ_ENTRIES - 1 } else { 0 };
        Caps {
            // Tag 0 stands for faulting entries in caching mode; giving it out gains nothing.
            tags: 1..1 << self.cap.domain_id_bits().unwrap_or(4),
            pasid_bits: self.pasid_bits() as u8,
            ats: self.ecap.dt(),
            page_requests,
            stop_markers: page_requests > 0 && self.ecap.sms(),
            coherent: self.coherent_tables(),
            identity: self.ecap.pt(),
            reserved: &INTERRUPT_RANGE,
            never_output: &INTERRUPT_RANGE,
        }
    }

    /// The format and the configuration for a new table.
    pub(super) fn table(&self, request: TableRequest) -> Result<(FormatId, Config), PrepareError> {
        let id = match request.stage {
            Stage::Any | Stage::Second if self.second_stage() => VTD_SECOND_STAGE,
            Stage::Any | Stage::First if self.first_stage() => X86_FIRST_STAGE,
            _ => return Err(Incompatible::NoCommonFormat.into()),
        };
        let config = Config {
            input_bits: self.input_bits(id),
            output_bits: self.haw,
            page_sizes: self.page_sizes(id) & request.page_sizes,
            coherent: self.coherent_tables(),
            // SSADE stays 0. The first stage always keeps its bits ([V] 3.6.2).
            accessed: false,
            snoop: self.ecap.sc(),
            levels: 4,
            ..Config::default()
        };
        Ok((id, config))
    }

    /// Whether a walk of this unit reads such a table right.
    pub(super) fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible> {
        let known = (desc.id == VTD_SECOND_STAGE && self.second_stage())
            || (desc.id == X86_FIRST_STAGE && self.first_stage());
        if !known || desc.levels != 4 || desc.space != Space::Lower {
            return Err(Incompatible::NoCommonFormat);
        }
        if desc.coherent && !self.coherent_tables() {
            return Err(Incompatible::NotCoherent);
        }
        let walker = self.input_bits(desc.id);
        if desc.input_bits > walker {
            return Err(Incompatible::InputWidth { table: desc.input_bits, walker });
        }
        if desc.output_bits > self.haw {
            return Err(Incompatible::Other("the table may lead beyond the unit's host address width"));
        }
        let walker = self.page_sizes(desc.id);
        if desc.page_sizes & !walker != 0 {
            return Err(Incompatible::PageSizes { table: desc.page_sizes, walker });
        }
        Ok(())
    }

    fn input_bits(&self, id: FormatId) -> u8 {
        if id == X86_FIRST_STAGE {
            // The lower canonical half ([V] 3.6).
            47
        } else {
            self.cap.guest_address_width().min(48) as u8
        }
    }

    fn page_sizes(&self, id: FormatId) -> u64 {
        let (m2, g1) = if id == X86_FIRST_STAGE {
            (true, self.cap.fs1gp())
        } else {
            (self.cap.second_stage_2m(), self.cap.second_stage_1g())
        };
        size::K4 | if m2 { size::M2 } else { 0 } | if g1 { size::G1 } else { 0 }
    }
}
