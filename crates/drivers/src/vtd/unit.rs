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
    regs::{Cap, Ecap, Ver},
};

/// Requests without PASID cannot be translated there, and no mapping may lead there (`[V]` 3.15;
/// LGN.4 and SGN.8 in table 30).
static INTERRUPT_RANGE: [(u64, u64); 1] = [(INTERRUPT_RANGE_START, INTERRUPT_RANGE_LAST)];

/// Width of a table for which nobody asked for one, where the unit has it.
const USUAL_BITS: u8 = 48;

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

/// One walk of a unit.
#[derive(Clone, Copy, Debug)]
struct Walk {
    levels: u8,
    /// Bits of the IOVAs that a table for it can have.
    input_bits: u8,
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
        if self.walks(VTD_SECOND_STAGE).chain(self.walks(X86_FIRST_STAGE)).next().is_none() {
            return Err(StartError::Unsupported("neither a second stage nor a first stage"));
        }
        Ok(())
    }

    /// The walks that the unit has for tables of a format, the shortest first. Second-stage tables
    /// have the widths of SAGAW (`[V]` 11.4.2); first-stage ones 4 levels and with FS5LP 5, and of
    /// what these reach software uses the lower canonical half only (`[V]` 3.6). MGAW limits both.
    fn walks(&self, id: FormatId) -> impl Iterator<Item = Walk> {
        let first = id == X86_FIRST_STAGE;
        let known = match first {
            true => self.scalable && self.ecap.fsts(),
            false => id == VTD_SECOND_STAGE && (!self.scalable || self.ecap.ssts()),
        };
        let has = move |width: Agaw| match (first, width) {
            (false, width) => self.cap.supports(width),
            (true, Agaw::Bits39) => false,
            (true, Agaw::Bits48) => true,
            (true, Agaw::Bits57) => self.cap.fs5lp(),
        };
        let half = u32::from(first);
        let most = self.cap.guest_address_width();
        Agaw::ALL
            .iter()
            .filter(move |w| known && has(**w))
            .map(move |w| Walk { levels: w.levels() as u8, input_bits: (w.width() - half).min(most) as u8 })
    }

    /// The widest input of a format's walks; `None` where the unit has none.
    fn widest(&self, id: FormatId) -> Option<u8> {
        self.walks(id).map(|w| w.input_bits).max()
    }

    /// Bits of the widest address that a page request can be about, of any table.
    pub(super) fn address_bits(&self) -> u32 {
        let five = |id| self.walks(id).any(|w| w.levels == 5);
        if five(VTD_SECOND_STAGE) || five(X86_FIRST_STAGE) { 57 } else { 48 }
    }

    /// Whether the walks of a format note writes in the entries: the first stage always does, the
    /// second with SSADE (`[V]` 3.6.2, 3.7.2); neither where the walk does not snoop (`[V]` 3.10).
    fn keeps_dirty(&self, id: FormatId) -> bool {
        self.scalable && self.coherent_tables() && (id == X86_FIRST_STAGE || self.ecap.ssads())
    }

    /// Page requests need scalable mode (`[V]` 7.4), and a drain that can be proved: without PDS the
    /// PD flag is reserved (`[V]` 6.5.2.9).
    pub(super) fn page_requests(&self) -> bool {
        self.scalable && self.ecap.dt() && self.ecap.prs() && self.ecap.pds()
    }

    /// Bits of the PASIDs that it translates (`[V]` 11.4.3, PASID and PSS).
    pub(super) fn pasid_bits(&self) -> u32 {
        if self.scalable && self.ecap.pasid() { self.ecap.pasid_bits() } else { 0 }
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

    /// With queues that hold so much.
    pub(super) fn caps(&self, page_requests: u32, invalidations: u32) -> Caps {
        Caps {
            // Tag 0 stands for faulting entries in caching mode; giving it out gains nothing.
            tags: 1..1 << self.cap.domain_id_bits().unwrap_or(4),
            pasid_bits: self.pasid_bits() as u8,
            ats: self.ecap.dt(),
            page_requests,
            invalidations,
            stalls: 0,
            stop_markers: page_requests > 0 && self.ecap.sms(),
            coherent: self.coherent_tables(),
            identity: self.ecap.pt(),
            reserved: &INTERRUPT_RANGE,
            never_output: &INTERRUPT_RANGE,
        }
    }

    /// The format and the configuration for a new table.
    pub(super) fn table(&self, request: TableRequest) -> Result<(FormatId, Config), PrepareError> {
        let ids: &[FormatId] = match request.stage {
            Stage::Any => &[VTD_SECOND_STAGE, X86_FIRST_STAGE],
            Stage::Second => &[VTD_SECOND_STAGE],
            Stage::First => &[X86_FIRST_STAGE],
        };
        // What keeps the preferred format from being used, where the unit has it.
        let mut why = Incompatible::NoCommonFormat;
        for &id in ids {
            match self.table_of(id, request) {
                Ok(config) => return Ok((id, config)),
                Err(e) if why == Incompatible::NoCommonFormat => why = e,
                Err(_) => {}
            }
        }
        Err(why.into())
    }

    fn table_of(&self, id: FormatId, request: TableRequest) -> Result<Config, Incompatible> {
        let widest = self.widest(id).ok_or(Incompatible::NoCommonFormat)?;
        if request.dirty && !self.keeps_dirty(id) {
            return Err(Incompatible::NoDirtyTracking);
        }
        let input_bits = match request.input_bits {
            0 => widest.min(USUAL_BITS),
            asked => asked,
        };
        let shortest = self.walks(id).find(|w| w.input_bits >= input_bits);
        let walk = shortest.ok_or(Incompatible::InputWidth { table: input_bits, walker: widest })?;
        Ok(Config {
            input_bits,
            output_bits: self.haw,
            page_sizes: self.page_sizes(id) & request.page_sizes,
            coherent: self.coherent_tables(),
            // SSADE is set for such tables only. The first stage always keeps its bits ([V] 3.6.2).
            accessed: request.dirty,
            snoop: self.ecap.sc(),
            levels: walk.levels,
            ..Config::default()
        })
    }

    /// Whether a walk of this unit reads such a table right.
    pub(super) fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible> {
        let widest = self.widest(desc.id).ok_or(Incompatible::NoCommonFormat)?;
        if desc.space != Space::Lower {
            return Err(Incompatible::NoCommonFormat);
        }
        if desc.coherent && !self.coherent_tables() {
            return Err(Incompatible::NotCoherent);
        }
        if desc.input_bits > widest {
            return Err(Incompatible::InputWidth { table: desc.input_bits, walker: widest });
        }
        if !self.walks(desc.id).any(|w| w.levels == desc.levels && w.input_bits >= desc.input_bits) {
            return Err(Incompatible::Levels(desc.levels));
        }
        if desc.output_bits > self.haw {
            return Err(Incompatible::Other("the table may lead beyond the unit's host address width"));
        }
        let walker = self.page_sizes(desc.id);
        if desc.page_sizes & !walker != 0 {
            return Err(Incompatible::PageSizes { table: desc.page_sizes, walker });
        }
        if desc.dirty && !self.keeps_dirty(desc.id) {
            return Err(Incompatible::NoDirtyTracking);
        }
        Ok(())
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
