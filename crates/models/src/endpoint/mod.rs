//! Endpoints: PCI functions with a requester id, capabilities, a device TLB and an engine.
//!
//! The lower half ([`Port`]) speaks the bus: it translates through the device TLB where ATS is on,
//! asks for pages where PRI is on, and completes invalidations. The upper half ([`Engine`]) decides
//! what to read and write. Honest engines use the port; rogues send whatever they like.

mod caps;
mod copy;
mod dtlb;
mod flood;
mod port;
mod pri;
mod rogue;
mod stats;

use crate::adversary::Adversary;
use crate::bus::{Completion, Downstream, Pasid, Prefix, Request, RequesterId, Upstream};
use crate::log::Journal;

pub use caps::{Capabilities, Violation};
pub use copy::CopyEngine;
pub use flood::{Flood, FloodConfig};
pub use port::{Failure, Intent, Port};
pub use rogue::{Rogue, RogueConfig};
pub use stats::Statistics;

/// What a copy is about: source and destination as the device addresses them, and a length in
/// bytes. Any alignment is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// IOVA of the first byte read.
    pub source: u64,
    /// IOVA of the first byte written.
    pub destination: u64,
    /// Bytes.
    pub len: u64,
}

/// How an engine's job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// All bytes are written.
    Done,
    /// An access failed and was not repaired by asking for its page.
    Failed {
        /// The address.
        iova: u64,
        /// Why.
        failure: Failure,
    },
    /// The endpoint was reset.
    Reset,
}

/// The engine does not take jobs, or has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JobRefused {
    /// It never takes one.
    #[error("this engine takes no jobs")]
    NoJobs,
    /// It is working.
    #[error("the engine is busy")]
    Busy,
}

/// The upper half of an endpoint.
pub trait Engine: Send {
    /// True while it has something to do in [`step`](Self::step). The answer changes only when
    /// something is done to the endpoint: that is when it is asked again.
    fn wants(&self, port: &Port) -> bool;

    /// Does some of it through the port.
    fn step(&mut self, port: &mut Port, adversary: &mut Adversary, page_queue_entries: usize);

    /// An access given to the port has ended: with the data of a read (empty for a write), or not.
    fn ended(&mut self, port: &mut Port, ticket: u64, result: Result<Vec<u8>, Failure>);

    /// The endpoint has been reset: forget everything.
    fn reset(&mut self);

    /// Starts a job.
    ///
    /// # Errors
    /// Where the engine takes none, or has one.
    fn submit(&mut self, _job: Job) -> Result<(), JobRefused> {
        Err(JobRefused::NoJobs)
    }

    /// How the last job ended; `None` while it runs or where there was none.
    fn job_end(&self) -> Option<JobEnd> {
        None
    }
}

/// What an endpoint puts on the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tlp {
    /// A request that will be completed.
    Request {
        ticket: u64,
        /// What the endpoint means, where the request carries a translated address.
        iova: u64,
        /// The PASID it means; a translated request carries none.
        pasid: Option<Pasid>,
        request: Request,
    },
    /// A posted message.
    Message(Upstream),
}

/// A PCI function.
pub struct Endpoint {
    port: Port,
    engine: Box<dyn Engine>,
    epoch: u64,
}

impl Endpoint {
    /// An endpoint without PASID, ATS or PRI enabled. The seed drives its random choices.
    pub fn new(id: RequesterId, seed: u64, engine: Box<dyn Engine>) -> Self {
        Endpoint { port: Port::new(id, seed), engine, epoch: 0 }
    }

    /// Requester id.
    pub fn id(&self) -> RequesterId {
        self.port.id()
    }

    /// Sets the prefix that the engine's accesses carry; `None` for the requester id alone. Part
    /// of giving the engine work, not of the PCI configuration.
    pub fn work_in(&mut self, pasid: Option<Pasid>) {
        self.port.set_prefix(pasid.map(Prefix::user));
    }

    /// Configuration space: PASID, ATS and PRI.
    pub fn capabilities(&self) -> &Capabilities {
        self.port.capabilities()
    }

    /// PASID Control: enables PASIDs of up to `width` bits, or disables them.
    ///
    /// # Errors
    /// Where PCIe forbids the order; the write is ignored and noted.
    pub fn set_pasid(&mut self, width: Option<u8>) -> Result<(), Violation> {
        self.port.configure(|c| c.set_pasid(width))
    }

    /// ATS Control: enables ATS with this smallest translation unit (4096 << stu), or disables it.
    /// Enabling empties the device TLB.
    ///
    /// # Errors
    /// Where PCIe forbids the order; the write is ignored and noted.
    pub fn set_ats(&mut self, stu: Option<u8>) -> Result<(), Violation> {
        self.port.set_ats(stu)
    }

    /// PRI Control: grants this many outstanding page requests and enables them, or disables.
    ///
    /// # Errors
    /// Where PCIe forbids the order; the write is ignored and noted.
    pub fn set_pri(&mut self, credits: Option<u32>) -> Result<(), Violation> {
        self.port.set_pri(credits)
    }

    /// PRI Control: the reset bit. Clears the interface's state while it is disabled.
    ///
    /// # Errors
    /// While PRI is enabled.
    pub fn reset_pri(&mut self) -> Result<(), Violation> {
        self.port.configure(Capabilities::reset_pri)
    }

    /// PRI Status: true where no page request is outstanding and none will be sent.
    pub fn pri_stopped(&self) -> bool {
        self.port.pri_stopped()
    }

    /// Whether page requests of it wait for an answer.
    pub fn pri_has_open_groups(&self) -> bool {
        self.port.pri_has_open_groups()
    }

    /// From now on device-TLB invalidations are never completed, or are again.
    pub fn set_deaf(&mut self, deaf: bool) {
        self.port.set_deaf(deaf);
    }

    /// From now on page requests carry random private data (VT-d 3.x), which the responses have to
    /// bring back, or no longer do. For endpoints behind a unit that knows them.
    pub fn set_private_data(&mut self, on: bool) {
        self.port.set_private_data(on);
    }

    /// Everything that broke PCIe's order, in order of time.
    pub fn violations(&self) -> &[Violation] {
        self.port.capabilities().violations()
    }

    /// Counters.
    pub fn statistics(&self) -> &Statistics {
        self.port.statistics()
    }

    /// Gives the engine a job.
    ///
    /// # Errors
    /// Where the engine takes none, or has one.
    pub fn submit(&mut self, job: Job) -> Result<(), JobRefused> {
        self.engine.submit(job)
    }

    /// How the last job ended; `None` while it runs or where there was none.
    pub fn job_end(&self) -> Option<JobEnd> {
        self.engine.job_end()
    }

    /// The lower half.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// The lower half, for tests that issue accesses and raw requests by hand.
    pub fn port_mut(&mut self) -> &mut Port {
        &mut self.port
    }

    /// True where [`step`](Self::step) has something to do.
    pub(crate) fn wants(&self, now: u64) -> bool {
        self.port.wants(now) || self.engine.wants(&self.port)
    }

    /// When, after `now`, it may want something that it does not want before.
    pub(crate) fn deadline(&self, now: u64) -> Option<u64> {
        self.port.deadline(now)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn step(&mut self, now: u64, queue: usize, adversary: &mut Adversary) -> Vec<Tlp> {
        self.port.set_now(now);
        self.engine.step(&mut self.port, adversary, queue);
        self.port.advance(adversary);
        self.hand_up();
        self.port.take_out()
    }

    /// A request has been completed. One issued before a reset no longer concerns anybody.
    pub(crate) fn complete(&mut self, now: u64, ticket: u64, epoch: u64, completion: Completion) {
        if epoch == self.epoch {
            self.port.complete(now, ticket, completion);
            self.hand_up();
        }
    }

    pub(crate) fn receive(&mut self, now: u64, message: Downstream, journal: &mut Journal) {
        self.port.receive(now, message, journal);
        self.hand_up();
    }

    pub(crate) fn reset(&mut self, journal: &mut Journal) {
        self.epoch += 1;
        self.port.reset(journal);
        self.engine.reset();
    }

    fn hand_up(&mut self) {
        while let Some((ticket, result)) = self.port.take_ended() {
            self.engine.ended(&mut self.port, ticket, result);
        }
    }
}

/// An engine that does nothing: the endpoint is driven through its port.
#[derive(Debug, Clone, Copy, Default)]
pub struct Idle;

impl Engine for Idle {
    fn wants(&self, _: &Port) -> bool {
        false
    }
    fn step(&mut self, _: &mut Port, _: &mut Adversary, _: usize) {}
    fn ended(&mut self, _: &mut Port, _: u64, _: Result<Vec<u8>, Failure>) {}
    fn reset(&mut self) {}
}
