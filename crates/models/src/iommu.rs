//! What the complex asks of an IOMMU model. Another IOMMU is another folder that implements
//! [`Iommu`]; nothing outside it changes.

use crate::adversary::Adversary;
use crate::bus::{Downstream, Msi, MsiSource, Request, RequesterId, Status, Translation, Upstream};
use crate::log::{Journal, What};
use crate::memory::Memory;
use crate::mutation::Mutations;

/// Width of a register access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

/// What an IOMMU decides about a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The bytes move at this physical address.
    Memory {
        /// Physical address of the first byte.
        phys: u64,
    },
    /// The write is an interrupt and goes to the interrupt controller.
    Interrupt {
        /// Its address.
        addr: u64,
        /// Its data.
        data: u32,
    },
    /// Completes without touching anything (a zero-length read).
    Nothing,
    /// Answer to a translation request.
    Translation(Translation),
    /// Refused.
    Refused {
        /// The status returned.
        status: Status,
        /// Fault reason by the IOMMU's manual, 0 for none.
        reason: u8,
    },
}

/// Hits and misses of the IOTLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lookups {
    /// Requests served from the IOTLB.
    pub hits: u64,
    /// Requests that needed a walk, successful or not.
    pub misses: u64,
}

/// The hardware side of one IOMMU. Register accesses only change registers and mark work; what
/// follows from them happens in [`step`](Self::step).
pub trait Iommu: Send {
    /// Reads a register at byte offset `off` of the unit's window. Reserved offsets read as zero.
    fn mmio_read(&mut self, off: u64, width: Width) -> u64;

    /// Writes a register. Reserved offsets and read-only fields ignore it.
    fn mmio_write(&mut self, off: u64, width: Width, value: u64);

    /// Begins a request: decides where it goes. `access` names it until
    /// [`finished`](Self::finished).
    fn request(&mut self, cx: &mut Cx<'_>, access: u64, request: &Request) -> Outcome;

    /// The bytes of `access` have moved, or it was refused. Numbers that the unit has not seen
    /// (malformed requests never reach it) are ignored.
    fn finished(&mut self, access: u64);

    /// A posted message of an endpoint has arrived.
    fn message(&mut self, cx: &mut Cx<'_>, message: Upstream);

    /// Calls `may` with each step that is possible at `now`. With `reorder`, also with those that
    /// the manual lets overtake others; the first of a kind is the one in order.
    fn runnable(&self, now: u64, reorder: bool, may: &mut dyn FnMut(u32));

    /// Takes one step, as named by [`runnable`](Self::runnable). One that is no longer possible
    /// does nothing.
    fn step(&mut self, cx: &mut Cx<'_>, step: u32);

    /// The next time at which something becomes possible that is not possible now.
    fn next_deadline(&self) -> Option<u64>;

    /// IOTLB hits and misses of one requester.
    fn lookups(&self, source: RequesterId) -> Lookups;

    /// How many page requests its queue holds, 0 where it has none.
    fn page_queue_entries(&self) -> usize;
}

/// What a model is lent for one step.
pub struct Cx<'a> {
    /// Time in nanoseconds.
    pub now: u64,
    /// Physical memory.
    pub mem: &'a dyn Memory,
    /// The adversary.
    pub adversary: &'a mut Adversary,
    /// Planted faults.
    pub mutations: Mutations,
    /// Loads of table entries made during this step: its cost.
    pub table_reads: u32,
    pub(crate) unit: usize,
    pub(crate) journal: &'a mut Journal,
    pub(crate) outbox: &'a mut Outbox,
}

impl Cx<'_> {
    /// Writes a line of the log.
    pub fn note(&mut self, what: What) {
        self.journal.note(what);
    }

    /// Place of this unit in the complex.
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Sends a posted message to an endpoint.
    pub fn send(&mut self, to: RequesterId, message: Downstream) {
        self.outbox.messages.push((to, message));
    }

    /// Raises an interrupt of this unit.
    pub fn interrupt(&mut self, addr: u64, data: u32) {
        let msi = Msi { addr, data, from: MsiSource::Unit(self.unit) };
        self.journal.note(What::Interrupt(msi));
        self.outbox.interrupts.push(msi);
    }
}

/// What left the units during a step.
#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) messages: Vec<(RequesterId, Downstream)>,
    pub(crate) interrupts: Vec<Msi>,
}
