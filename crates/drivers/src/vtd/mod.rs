//! Intel VT-d, after revision 5.10 of its specification (`[V]`).
//!
//! Legacy or scalable mode by capability. [`Vtd`] is the driver of one unit; the files below are its
//! parts:
//!
//! - `unit` reads the capabilities and decides what is used; `regs` is the register window.
//! - `start` brings the unit up; `devices`, `attach`, `entry`, `directory` and `tables` are what
//!   requesters translate through.
//! - `queue`, `invalidate` and `recover` are the invalidation queue.
//! - `prq`, `drain` and `faults` are what comes back.
//!
//! # A device that does not answer
//!
//! [`Driver::done`] reports [`DeviceTimeout`](portcullis::driver::InvError::DeviceTimeout) once
//! everything else of that submission is done. Until the device is cut off, each further submission
//! that would ask it fails the same way at once, without asking it. After that it is left out: its
//! translated requests are refused. [`Driver::restore`] gives it a new life.
//!
//! # Not here yet
//!
//! Caching mode, write buffers that software must flush (RWBF), and adopting another kernel's tables
//! are refused at start. Nested translation, host permission tables and interrupt remapping are not
//! used.

mod attach;
mod devices;
mod directory;
mod drain;
mod entry;
mod faults;
mod invalidate;
mod prq;
mod queue;
mod recover;
mod regs;
mod size;
mod start;
mod tables;
mod unit;

#[cfg(test)]
mod tests;

pub use regs::Msi;
pub use size::QueueSize;

use self::{
    devices::Devices, invalidate::Items, prq::Requests, queue::End, queue::Queue, regs::Regs, start::Step,
    tables::Tables, unit::Unit,
};
use alloc::boxed::Box;
use core::task::Poll;
use portcullis::{
    Answer, At, Platform, SourceId, Turn, Window,
    driver::{
        Batch, Caps, DrainEnd, Driver, Features, Incompatible, InvError, InvSeq, More, MuteError, Offer,
        PrepareError, Prepared, Start, StartError, SubmitError, TableRequest, Target,
    },
};
use portcullis_pgtable::{FormatDesc, IoTable, Phys, Table, VTD_SECOND_STAGE, VtdSecondStage, X86FirstStage};

/// What the embedder decides about a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Use legacy mode where the unit has scalable mode too.
    pub force_legacy: bool,
    /// Write AW into PASID-table entries with a first stage too. The manual has it reserved where
    /// there is no second stage, and ignored elsewhere (`[V]` 9.6); QEMU 11 takes it for the width
    /// of first-stage addresses, and without it stops everything from 2^29 on.
    pub first_stage_width: bool,
    /// The unit is built after a revision 3.x of the manual, in which page requests have private
    /// data that the response has to bring back. No register says so, and other units have the bits
    /// as reserved (*unverified*: see [`portcullis_spec::vtd::private_data`]).
    pub private_data: bool,
    /// Bits of the platform's physical addresses, from the DMAR table (`[V]` 8.1). Without it the
    /// unit's maximum guest address width is taken, which is at least as wide.
    pub host_address_width: Option<u8>,
    /// The page-request queue, of 128 requests a page, one of which stays empty. The shares that
    /// devices are given add up to it less a reserve; what it holds can wait for an answer, which is
    /// what the core keeps room for. By default 4 pages, of which 15 devices can have a share of 32.
    /// Smaller where memory has no
    /// such run: [`Caps::page_requests`] says it.
    pub page_request_queue: QueueSize,
    /// The invalidation queue, of 256 descriptors a page, or 128 in scalable mode, one of which stays
    /// empty. By default 2 pages: two of the largest batches, of about a hundred descriptors each,
    /// find room at once. Smaller where memory has no such run:
    /// [`Caps::invalidations`] says it.
    pub invalidation_queue: QueueSize,
    /// The message of faults and of queue errors; none where the embedder polls.
    pub fault_event: Option<Msi>,
    /// The message of completed invalidations; none where the embedder polls.
    pub invalidation_event: Option<Msi>,
    /// The message of page requests; none where the embedder polls.
    pub page_request_event: Option<Msi>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            force_legacy: false,
            first_stage_width: false,
            private_data: false,
            host_address_width: None,
            page_request_queue: QueueSize::of_pages(4),
            invalidation_queue: QueueSize::of_pages(2),
            fault_event: None,
            invalidation_event: None,
            page_request_event: None,
        }
    }
}

/// The driver of one remapping unit.
pub struct Vtd<P: Platform> {
    mem: P,
    regs: Regs<P>,
    unit: Unit,
    options: Options,
    step: P::Lock<Step>,
    /// The root table, once the start has made it.
    root: P::Lock<Option<Phys>>,
    /// Held while a structure gets a new table below it.
    growing: P::Lock<()>,
    tables: Tables<P>,
    devices: Devices<P>,
    queue: Queue<P>,
    requests: Requests<P>,
}

impl<P: Platform> Vtd<P> {
    /// The driver of the unit whose registers are in `window`. Reads its capabilities and changes
    /// nothing. Sleepable context.
    pub fn new(platform: P, window: Window, options: Options) -> Vtd<P> {
        let regs = Regs::new(platform.clone(), window);
        let unit = Unit::read(&regs, &options);
        let interrupt = options.invalidation_event.is_some();
        Vtd {
            step: platform.lock(Step::Untouched),
            root: platform.lock(None),
            growing: platform.lock(()),
            tables: Tables::new(platform.clone(), &unit),
            devices: Devices::new(&platform),
            queue: Queue::new(regs.clone(), platform.clone(), &unit, interrupt),
            requests: Requests::new(
                regs.clone(),
                platform.clone(),
                options.private_data,
                unit.address_bits(),
            ),
            regs,
            unit,
            options,
            mem: platform,
        }
    }

    /// Whether the unit runs (or will run) in scalable mode.
    pub fn is_scalable(&self) -> bool {
        self.unit.scalable
    }
}

impl<P: Platform> Driver for Vtd<P> {
    fn caps(&self) -> Caps {
        self.unit.caps(self.requests.capacity(), self.queue.capacity())
    }

    fn start(&self, how: Start<'_>) -> Poll<Result<(), StartError>> {
        self.start_steps(how)
    }

    fn new_table(&self, request: TableRequest) -> Result<Box<dyn IoTable>, PrepareError> {
        let (id, config) = self.unit.table(request)?;
        let mem = self.mem.clone();
        let no_mem = |_| PrepareError::NoMem;
        if id == VTD_SECOND_STAGE {
            let table = Table::<VtdSecondStage, P>::new(mem, config).map_err(no_mem)?;
            Ok(Box::new(table))
        } else {
            let table = Table::<X86FirstStage, P>::new(mem, config).map_err(no_mem)?;
            Ok(Box::new(table))
        }
    }

    fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible> {
        self.unit.can_walk(desc)
    }

    fn add_device(&self, source: SourceId, features: Features) -> Result<u8, PrepareError> {
        self.add(source, features)
    }

    fn set_features(&self, source: SourceId, features: Features) -> Result<InvSeq, SubmitError> {
        self.change_features(source, features)
    }

    fn cut_off(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        self.cut(source)
    }

    fn restore(&self, source: SourceId) -> Result<InvSeq, SubmitError> {
        self.reconnect(source)
    }

    fn mute(&self, source: SourceId, on: bool) -> Result<InvSeq, MuteError> {
        Ok(self.set_fpd(source, on)?)
    }

    fn remove_device(&self, source: SourceId) {
        self.remove(source)
    }

    fn prepare(&self, at: At, to: Target) -> Result<Prepared, PrepareError> {
        self.prepare_entry(at, to)
    }

    fn commit(&self, prepared: Prepared) -> Result<InvSeq, (Prepared, SubmitError)> {
        self.commit_entry(prepared)
    }

    fn abandon(&self, prepared: Prepared) {
        self.abandon_entry(prepared)
    }

    fn block(&self, at: At) -> Result<InvSeq, SubmitError> {
        self.block_entry(at, false)
    }

    fn silence(&self, at: At) -> Result<InvSeq, SubmitError> {
        self.block_entry(at, true)
    }

    fn submit(&self, batch: &Batch<'_>) -> Result<InvSeq, SubmitError> {
        let device = |source| {
            let device = self.devices.get(source)?;
            self.is_asked(&device).then_some(device.features)
        };
        let items = Items::batch(&self.unit, batch, device);
        self.queue.submit(&items, End::default(), || ())
    }

    fn done(&self, seq: InvSeq) -> Poll<Result<(), InvError>> {
        self.queue.done(seq)
    }

    fn drain(&self, at: At) -> Result<InvSeq, SubmitError> {
        self.submit_drain(at)
    }

    fn drain_end(&self, at: At) -> DrainEnd {
        self.end_of_drain(at)
    }

    fn page_response(&self, answer: &Answer<'_>) -> Offer {
        let taken = self.queue.respond(|| {
            let code = answer.take()?;
            Some(prq::response(answer.last.vendor, code))
        });
        match taken {
            Ok(()) => Offer::Done,
            Err(SubmitError::Full) => Offer::Full,
            Err(SubmitError::Lost(_)) => Offer::Lost,
        }
    }

    fn interrupt(&self) -> bool {
        faults::pending(&self.regs) || self.regs.ics().iwc() || self.requests.pending()
    }

    fn service(&self, turn: &mut Turn<'_>) -> More {
        if self.regs.ics().iwc() {
            // Before the completions are looked at: what comes later sets it again.
            self.regs.clear_ics();
        }
        let (news, errors) = self.queue.service();
        if news {
            turn.completed();
        }
        faults::tell(errors, turn);
        let faults = faults::service(&self.regs, &self.unit, turn);
        let requests = self.requests.service(turn, &self.queue);
        // Errors of a queue that was given up stay as they are.
        let left = !self.queue.is_lost() && faults::left(&self.regs);
        if faults == More::Yes || requests == More::Yes || left { More::Yes } else { More::No }
    }
}
