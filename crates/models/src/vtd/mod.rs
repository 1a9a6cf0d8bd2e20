//! The hardware side of Intel VT-d, after revision 5.10 of its manual.
//!
//! Legacy and scalable mode, first and second stage, pass-through, device TLBs, page requests,
//! queued invalidation and fault recording. Not modelled: nested translation, the host permission
//! table, interrupt remapping, caching mode, protected memory ranges and memory types; the
//! capability registers say so.

mod config;
mod events;
mod faults;
mod iotlb;
mod page_requests;
mod queue;
mod regs;
mod tables;
mod translate;
mod walk;

use std::collections::{BTreeMap, VecDeque};

use portcullis_spec::vtd::regs::{Gcmd, Rtaddr, Ttm};

use crate::bus::{PageRequest, Request, RequesterId, Upstream};
use crate::hash::Map;
use crate::iommu::{Cx, Iommu, Lookups, Outcome, Width};

pub use config::Config;
pub use portcullis_spec::vtd::Agaw;

use iotlb::{Iotlb, Pages};
use queue::Queue;
use regs::Registers;
use tables::{Limits, Tables};
use translate::Use;

/// The steps of the unit, as numbers of [`Iommu::step`]. From [`step::EXECUTE`] on: execute the
/// descriptor at that place of those fetched.
pub mod step {
    /// Carry out what was written to GCMD_REG.
    pub const COMMAND: u32 = 0;
    /// Fetch a descriptor.
    pub const FETCH: u32 = 1;
    /// Give device-TLB invalidations up that have timed out.
    pub const TIME_OUT: u32 = 2;
    /// Put a page request that has arrived into the queue.
    pub const ACCEPT: u32 = 3;
    /// Send the fault event.
    pub const FAULT_EVENT: u32 = 4;
    /// Send the invalidation completion event.
    pub const INVALIDATION_EVENT: u32 = 5;
    /// Send the page request event.
    pub const PAGE_EVENT: u32 = 6;
    /// Carry out what was written to CCMD_REG or IOTLB_REG.
    pub const REGISTER_INVALIDATION: u32 = 7;
    /// Execute the first descriptor fetched; the next number is the second, and so on.
    pub const EXECUTE: u32 = 16;
}

/// One remapping unit.
#[derive(Debug)]
pub struct Vtd {
    config: Config,
    limits: Limits,
    regs: Registers,
    tables: Tables,
    iotlb: Iotlb,
    queue: Queue,
    /// Page requests received and not accepted.
    ingress: VecDeque<PageRequest>,
    /// Page requests accepted since the unit exists, dropped ones included.
    accepted: u64,
    /// Accesses let through that have not finished.
    begun: BTreeMap<u64, Use>,
    lookups: Map<u16, Lookups>,
}

impl Vtd {
    /// A unit after power-on reset.
    pub fn new(config: Config) -> Self {
        let regs = Registers::new(&config);
        Vtd {
            limits: Limits { cap: regs.cap, ecap: regs.ecap, haw: config.host_address_width },
            iotlb: Iotlb::new(config.iotlb_entries),
            queue: Queue::new(&config),
            config,
            regs,
            tables: Tables::default(),
            ingress: VecDeque::new(),
            accepted: 0,
            begun: BTreeMap::new(),
            lookups: Map::default(),
        }
    }

    /// Carries out a command (`[V]` 11.4.4.1). Enabling waits for accesses that bypass the unit
    /// (`[V]` 6.5.4).
    fn command(&mut self) {
        let Some(command) = self.regs.command.map(Gcmd::from_bits) else {
            return;
        };
        if command.te() && !self.regs.gsts.tes() && self.is_bypassed() {
            return;
        }
        self.regs.command = None;
        if command.srtp() {
            self.regs.root = Rtaddr::from_bits(self.regs.rtaddr);
            self.regs.gsts.set_rtps(true);
            if self.regs.cap.esrtps() {
                self.invalidate_all();
            }
        }
        if command.sirtp() {
            self.regs.gsts.set_irtps(true);
        }
        if command.qie() != self.regs.gsts.qies() {
            self.regs.iqh = 0;
            self.queue.reset();
            self.regs.gsts.set_qies(command.qie());
        }
        if !command.te() {
            self.regs.next_frcd = 0;
        }
        self.regs.gsts.set_tes(command.te());
    }

    fn may_command(&self) -> bool {
        self.regs
            .command
            .is_some_and(|c| !(Gcmd::from_bits(c).te() && !self.regs.gsts.tes() && self.is_bypassed()))
    }

    /// Register-based invalidation (`[V]` 6.5.1): for older units in legacy mode only; elsewhere the
    /// request is ignored, which a performed granularity of 0 says.
    pub(super) fn register_invalidation(&mut self) {
        let r = &self.regs;
        let works = r.root.mode() == Some(Ttm::Legacy) && !r.gsts.qies() && self.config.major <= 5;
        if self.regs.ccmd.icc() {
            let c = self.regs.ccmd;
            if works {
                self.drop_contexts(c.requested(), c.did(), c.sid(), c.fm());
            }
            let performed = if works { c.cirg() } else { 0 };
            self.regs.ccmd = c.with_caig(performed).with_icc(false);
        }
        if self.regs.iotlb.ivt() {
            let (c, iva) = (self.regs.iotlb, self.regs.iva);
            if works {
                let pages = Pages::new(iva.address(), iva.am());
                self.drop_iotlb(c.requested(), c.did(), pages, iva.ih(), None);
            }
            let performed = if works { c.iirg() } else { 0 };
            self.regs.iotlb = c.with_iaig(performed).with_ivt(false);
        }
    }

    /// Empties every translation cache, as a set-root-table-pointer command does with ESRTPS.
    pub(super) fn invalidate_all(&mut self) {
        self.tables.clear_contexts();
        self.tables.clear_pasids();
        self.iotlb.clear();
    }
}

impl Iommu for Vtd {
    fn mmio_read(&mut self, off: u64, width: Width) -> u64 {
        let Ok(off) = u32::try_from(off) else {
            return 0;
        };
        match width {
            Width::Dword => u64::from(self.regs.read(off & !3)),
            Width::Qword => {
                let off = off & !7;
                u64::from(self.regs.read(off)) | u64::from(self.regs.read(off | 4)) << 32
            }
        }
    }

    fn mmio_write(&mut self, off: u64, width: Width, value: u64) {
        let Ok(off) = u32::try_from(off) else { return };
        match width {
            Width::Dword => self.regs.write(off & !3, value as u32),
            Width::Qword => {
                let off = off & !7;
                self.regs.write(off, value as u32);
                self.regs.write(off | 4, (value >> 32) as u32);
            }
        }
    }

    fn request(&mut self, cx: &mut Cx<'_>, access: u64, request: &Request) -> Outcome {
        self.decide(cx, access, request)
    }

    fn finished(&mut self, access: u64) {
        self.begun.remove(&access);
        self.queue.finished(access);
    }

    fn message(&mut self, cx: &mut Cx<'_>, message: Upstream) {
        match message {
            Upstream::PageRequest(request) => self.receive(cx, request),
            Upstream::InvalidationCompletion { source, itags } => self.completed(source, itags),
        }
    }

    fn runnable(&self, now: u64, reorder: bool, may: &mut dyn FnMut(u32)) {
        let r = &self.regs;
        let steps = [
            (self.may_command(), step::COMMAND),
            (self.may_fetch(), step::FETCH),
            (self.queue.deadline().is_some_and(|t| t <= now), step::TIME_OUT),
            (!self.ingress.is_empty(), step::ACCEPT),
            (r.fault_event.is_due(), step::FAULT_EVENT),
            (r.invalidation_event.is_due(), step::INVALIDATION_EVENT),
            (r.page_event.is_due(), step::PAGE_EVENT),
            (r.ccmd.icc() || r.iotlb.ivt(), step::REGISTER_INVALIDATION),
        ];
        for (_, step) in steps.into_iter().filter(|(possible, _)| *possible) {
            may(step);
        }
        for i in self.queue.executable(self.accepted, reorder) {
            may(step::EXECUTE + i as u32);
        }
    }

    fn step(&mut self, cx: &mut Cx<'_>, step: u32) {
        match step {
            step::COMMAND => self.command(),
            step::FETCH => self.fetch(cx),
            step::TIME_OUT => self.time_out(cx.now),
            step::ACCEPT => self.accept(cx),
            step::FAULT_EVENT => self.regs.fault_event.fire(cx),
            step::INVALIDATION_EVENT => self.regs.invalidation_event.fire(cx),
            step::PAGE_EVENT => self.regs.page_event.fire(cx),
            step::REGISTER_INVALIDATION => self.register_invalidation(),
            _ => {
                if let Some(index) = step.checked_sub(step::EXECUTE) {
                    self.execute(cx, index as usize);
                }
            }
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        self.queue.deadline()
    }

    fn lookups(&self, source: RequesterId) -> Lookups {
        self.lookups.get(&source.0).copied().unwrap_or_default()
    }

    fn page_queue_entries(&self) -> usize {
        if self.regs.root.mode() == Some(Ttm::Scalable) && self.regs.ecap.prs() {
            self.regs.pqa.entries() as usize
        } else {
            0
        }
    }
}
