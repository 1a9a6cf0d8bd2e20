//! What an IOMMU driver implements, and what the core gives it in return.
//!
//! A driver never waits: it submits work and is asked whether it is done. Deadlines, retries and
//! quarantine are the core's, once for all vendors. A driver never calls out except through the
//! [`Turn`] it is given.

pub use crate::stall::event::{Stall, StallSwitchError};
use crate::{
    ids::{At, DomainTag, Pasid, SourceId, VendorBits},
    reserved::ReservedRegion,
    turn::{Answer, Resume, Turn},
};
use alloc::boxed::Box;
use core::{ops::Range, task::Poll};
use portcullis_pgtable::{FormatDesc, IoTable, Phys};

/// What an instance can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Domain tags that the core may give out.
    pub tags: Range<u32>,
    /// Bits of the PASIDs it translates; 0 where it knows none.
    pub pasid_bits: u8,
    /// Whether devices may be given ATS.
    pub ats: bool,
    /// Entries of the page-request queue that can be occupied at once; 0 without page requests.
    pub page_requests: u32,
    /// Entries of the queue of invalidations that can be occupied at once, for whoever sizes it: the
    /// core goes by [`SubmitError::Full`].
    pub invalidations: u32,
    /// Stalled transactions that can wait for their verdict at once; 0 where none stall.
    pub stalls: u32,
    /// Whether devices that send PASID stop markers may be given page requests.
    pub stop_markers: bool,
    /// Whether table walks snoop the CPU's caches.
    pub coherent: bool,
    /// Whether identity attachments exist.
    pub identity: bool,
    /// Input ranges (inclusive) that requester-id attachments cannot translate.
    pub reserved: &'static [(u64, u64)],
    /// Output ranges (inclusive) that no mapping may point at.
    pub never_output: &'static [(u64, u64)],
}

/// The state in which an instance is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start<'a> {
    /// Nothing of what is there is kept; from the first moment unknown streams are aborted.
    Fresh,
    /// Tables of an earlier kernel are taken over: a kdump kernel, a live update.
    Adopt(&'a [u8]),
}

/// Why an instance could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Something that this version does not do.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// No memory for the instance's own structures.
    #[error("out of memory for the instance's tables")]
    NoMem,
    /// The hardware reports something that contradicts itself or the manual.
    #[error("the hardware's registers make no sense: {0}")]
    Hardware(&'static str),
    /// The hardware did not do in time what a register asked of it.
    #[error("the hardware did not respond")]
    Lost,
}

/// The hardware does not respond any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hardware does not respond")]
pub struct HwLost;

/// Why an entry could not be prepared. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// No memory for the tables on the way to the entry.
    #[error("out of memory for the device's tables")]
    NoMem,
    /// The instance cannot express it.
    #[error("incompatible: {0}")]
    Incompatible(#[from] Incompatible),
    /// The device was not added to this instance.
    #[error("{0} is not known to the instance")]
    UnknownSource(SourceId),
    /// The hardware is gone.
    #[error(transparent)]
    Lost(#[from] HwLost),
}

/// Why a domain and an instance or a device do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Incompatible {
    /// There is no table format that all of them walk.
    #[error("no common table format")]
    NoCommonFormat,
    /// The walker does not snoop, and the table or the owner relies on it.
    #[error("the walker is not coherent, and the table or its owner relies on that")]
    NotCoherent,
    /// The device's DMA does not snoop, and the owner needs it to.
    #[error("the device's DMA is not coherent, which the owner needs")]
    NotCoherentDma,
    /// The walker takes fewer address bits than the table has, or than were asked for.
    #[error("the table's input width of {table} bits does not fit the walker's {walker}")]
    InputWidth {
        /// Bits of the table.
        table: u8,
        /// Bits of the walker.
        walker: u8,
    },
    /// The walker has no walk of that many levels.
    #[error("the walker has no walk of {0} levels")]
    Levels(u8),
    /// The walker does not note writes in the table's entries, and the table or the owner relies on it.
    #[error("the walker keeps no dirty bits, and the table or its owner relies on them")]
    NoDirtyTracking,
    /// The walker does not know a leaf size that the table may contain.
    #[error("the table's page sizes {table:#x} are not among the walker's {walker:#x}")]
    PageSizes {
        /// Page sizes of the table.
        table: u64,
        /// Page sizes of the walker.
        walker: u64,
    },
    /// The instance has no PASIDs, or the number is too large for it.
    #[error("PASID {0} is beyond what the instance translates")]
    Pasid(Pasid),
    /// The instance has no identity translation.
    #[error("the instance has no identity translation")]
    NoIdentity,
    /// The instance cannot walk one table through another.
    #[error("the instance has no nested translation")]
    NoNesting,
    /// The domain's owner may map, or has mapped, what the device does not take for memory: the
    /// domain was made without naming the device.
    #[error("the domain does not keep {0} free, which the device does not take for memory")]
    Open(ReservedRegion),
    /// Something else, in the driver's words.
    #[error("{0}")]
    Other(&'static str),
}

/// Which stage a new table should be for, where a vendor has both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// The driver's choice.
    #[default]
    Any,
    /// The first stage: the format that CPUs and PASIDs use.
    First,
    /// The second stage: the format of hypervisors.
    Second,
}

/// What a new table must be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRequest {
    /// The stage.
    pub stage: Stage,
    /// Leaf sizes to use at most (bit n: 2^n bytes); the driver drops what it cannot walk.
    pub page_sizes: u64,
    /// Bits of IOVA that the table must translate; the driver takes the fewest levels that hold
    /// them. 0 leaves the width to the driver.
    pub input_bits: u8,
    /// The walkers must note writes in the table's entries, so that dirty tracking is possible
    /// ([`Domain::set_dirty_tracking`](crate::Domain::set_dirty_tracking)).
    pub dirty: bool,
}

impl Default for TableRequest {
    fn default() -> Self {
        TableRequest { stage: Stage::Any, page_sizes: u64::MAX, input_bits: 0, dirty: false }
    }
}

/// What a device may do, as decided by the core from its capabilities and its trust.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Bits of the PASIDs that its requests may have; 0 for none.
    pub pasid_bits: u8,
    /// Translation requests and translated requests (ATS).
    pub ats: bool,
    /// Page requests.
    pub pri: bool,
    /// Depth of the device's invalidation queue (ATS capability; 0 means 32).
    pub invalidate_queue_depth: u8,
    /// The physical function, where the requester is a virtual function of another.
    pub physical_function: Option<SourceId>,
}

/// What an attachment point should translate through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Input address = output address.
    Identity {
        /// The tag for the caches.
        tag: DomainTag,
    },
    /// A page table.
    Table {
        /// Its format.
        desc: FormatDesc,
        /// Its root.
        root: Phys,
        /// The tag for the caches.
        tag: DomainTag,
    },
    /// A page table whose every address, those of its own tables among them, another one translates.
    Nested {
        /// Its format.
        desc: FormatDesc,
        /// Its root, an input address of the parent.
        root: Phys,
        /// The tag for the caches, of this pair of tables.
        tag: DomainTag,
        /// The table below.
        parent: ParentTable,
    },
}

/// The table below a nested one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentTable {
    /// Its format.
    pub desc: FormatDesc,
    /// Its root.
    pub root: Phys,
}

/// How a commit will look to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing was there before, or one store replaces it: old or new, nothing between.
    Hitless,
    /// The core must [`block`](Driver::block) first and wait for that.
    ThroughBlocked,
}

/// What a driver prepared: everything allocated, nothing visible to hardware yet. Linear: it is
/// given to [`Driver::commit`] or [`Driver::abandon`].
#[derive(Debug)]
#[must_use = "a prepared entry is committed or abandoned"]
pub struct Prepared {
    /// Where.
    pub at: At,
    /// How the commit will look to the device, given what is there now.
    pub change: Change,
    /// The driver's own image of the entry.
    pub image: [u64; 8],
}

/// A point in an instance's invalidation queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InvSeq(pub u64);

/// A point in an instance's page-request queue, and the queue of its stalls where that is another:
/// counts entries since start, without wrapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueuePos(pub u64);

/// Why an invalidation did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvError {
    /// A device did not answer the invalidation of its own TLB.
    #[error("{0} did not complete the invalidation of its device TLB")]
    DeviceTimeout(SourceId),
    /// It was dropped because of somebody else's error: submit it again.
    #[error("dropped because of another invalidation's error")]
    Aborted,
    /// The hardware is gone.
    #[error(transparent)]
    Lost(#[from] HwLost),
}

/// Why a submission was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full now: try again after something completed.
    #[error("the invalidation queue is full")]
    Full,
    /// The hardware is gone.
    #[error(transparent)]
    Lost(#[from] HwLost),
}

/// Why a requester's fault records were not switched off or on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MuteError {
    /// The hardware cannot: it goes on recording.
    #[error("the hardware has no switch for the fault records of one requester")]
    Cannot,
    /// It could not be told.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

/// One user of a domain, as an instance's caches know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheTag {
    /// The domain's tag on the instance.
    pub tag: DomainTag,
    /// The attachment.
    pub at: At,
    /// Whether the device may hold translations of its own (ATS).
    pub ats: bool,
    /// The domain is the table below a nested one: the device and what caches by its addresses know
    /// nothing of the range, so that everything they hold under this tag goes.
    pub nested: bool,
}

/// What is to be invalidated on one instance: one batch of a gather.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The users of the domain on this instance, sorted; never empty, at most
    /// [`Batch::MAX_TAGS`].
    pub tags: &'a [CacheTag],
    /// The format of the table, since vendors tag their stages differently.
    pub desc: FormatDesc,
    /// First and last IOVA, both inclusive; `None` for everything.
    pub range: Option<(u64, u64)>,
    /// Whether non-leaf entries changed.
    pub non_leaf: bool,
}

impl Batch<'_> {
    /// Most tags in one batch.
    pub const MAX_TAGS: usize = 16;
}

/// Where a drain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEnd {
    /// Every request received before the block lies before this position.
    At(QueuePos),
    /// The queue was full meanwhile: requests may still be outside. Drain again.
    Again,
}

/// One page request as the driver decoded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The requester.
    pub source: SourceId,
    /// The PASID of the request.
    pub pasid: Option<Pasid>,
    /// Page request group index.
    pub index: u16,
    /// The page's address.
    pub address: u64,
    /// Wants to read.
    pub read: bool,
    /// Wants to write.
    pub write: bool,
    /// Wants to execute.
    pub exec: bool,
    /// Is privileged.
    pub privileged: bool,
    /// Is the last of its group: the group wants one answer.
    pub last: bool,
    /// Wants an answer of its own even where it is not the last, as requests with private data of
    /// VT-d 3.x do.
    pub own_answer: bool,
    /// What the driver wants back with the answer.
    pub vendor: VendorBits,
}

impl PageRequest {
    /// Whether somebody has to answer it.
    #[inline]
    pub fn wants_answer(&self) -> bool {
        self.last || self.own_answer
    }

    /// Where it comes from.
    pub(crate) fn at(&self) -> At {
        At { source: self.source, pasid: self.pasid }
    }
}

/// Whether the core took a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a record that was not taken stays in the hardware's queue"]
pub enum Taken {
    /// It is the core's now.
    Yes,
    /// There is no room: leave it in the queue and end the turn.
    NoRoom,
}

/// Whether an answer was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an answer that found no room must be offered again"]
pub enum Offer {
    /// [`Answer::take`] was called inside the queue lock; whatever it returned was sent.
    Done,
    /// The hardware's queue is full: offer it again.
    Full,
    /// The hardware is gone: nobody will ever be answered.
    Lost,
}

/// Whether a service turn left work behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "work left behind needs another turn"]
pub enum More {
    /// The queues were empty when they were last looked at.
    No,
    /// The turn's bound was reached, or the core had no room.
    Yes,
}

/// The OS side of one IOMMU instance.
///
/// Contexts: [`start`](Driver::start), [`new_table`](Driver::new_table),
/// [`add_device`](Driver::add_device), [`prepare`](Driver::prepare) are called in sleepable
/// context and may allocate from the platform; everything else may be called in service context,
/// allocates nothing and holds only short locks. No method waits.
pub trait Driver: Send + Sync + 'static {
    /// What the instance can do. Constant after a successful start.
    fn caps(&self) -> Caps;
    /// Brings the instance up, a step a call: `Pending` means that hardware has not finished a
    /// step; the core calls again, with a deadline of its own. On `Ready(Ok)` unknown streams are
    /// aborted and the queues run.
    fn start(&self, how: Start<'_>) -> Poll<Result<(), StartError>>;

    /// Makes an empty table in a format of this instance.
    ///
    /// # Errors
    /// Out of memory, or a request that the instance cannot satisfy.
    fn new_table(&self, request: TableRequest) -> Result<Box<dyn IoTable>, PrepareError>;
    /// Whether this instance can walk a table that another may have made.
    ///
    /// # Errors
    /// The reason why not.
    fn can_walk(&self, desc: &FormatDesc) -> Result<(), Incompatible>;

    /// Whether this instance can walk `table` with `parent` below it.
    ///
    /// # Errors
    /// The reason why not; by default that there is no nested translation.
    fn can_nest(&self, table: &FormatDesc, parent: &FormatDesc) -> Result<(), Incompatible> {
        let _ = (table, parent);
        Err(Incompatible::NoNesting)
    }

    /// Makes a requester known, blocked at first, with the given features. Returns the bits of PASID
    /// that it has: those asked for, or fewer where there is no memory for the structures of all. Of
    /// these nobody is given more as long as the requester is known.
    ///
    /// # Errors
    /// Out of memory, or hardware that is gone.
    fn add_device(&self, source: SourceId, features: Features) -> Result<u8, PrepareError>;
    /// Changes the features of a known requester and queues the invalidation that this needs. Its
    /// PASIDs are at most those that [`add_device`](Driver::add_device) gave it.
    ///
    /// # Errors
    /// A full queue, or hardware that is gone; nothing changed.
    fn set_features(&self, source: SourceId, features: Features) -> Result<InvSeq, SubmitError>;
    /// Stops everything a requester can send, translated requests too, without asking anything of
    /// the device: for one that is lost, is about to be reset, or is going away. The requester
    /// stays known with its tables. What it had translated itself before may still be on its way, so
    /// that commits, blocks and batches go on asking it for its own TLB, unless its features are off
    /// or it was the one that let an invalidation time out.
    ///
    /// # Errors
    /// A full queue, or hardware that is gone.
    fn cut_off(&self, source: SourceId) -> Result<InvSeq, SubmitError>;
    /// Takes [`cut_off`](Driver::cut_off) back, after the requester was reset: it has its features
    /// and PASIDs again, and its attachment points are what they were or blocked; the core attaches
    /// them anew. Nothing else takes a cut-off back, a change of features least of all.
    ///
    /// # Errors
    /// A full queue, or hardware that is gone; nothing changed.
    fn restore(&self, source: SourceId) -> Result<InvSeq, SubmitError>;
    /// Frees the tables of a requester that was cut off, after that completed.
    fn remove_device(&self, source: SourceId);

    /// Has the hardware take no fault records of a requester, or take them again, as far as it can
    /// tell requesters apart there. Nothing else changes. Called in a storm: what the requester
    /// sends is blocked as ever, and nobody is told.
    ///
    /// # Errors
    /// [`MuteError::Cannot`] where the hardware has no such switch, which is what a driver says
    /// that does not implement this; a full queue (nothing changed), or hardware that is gone.
    fn mute(&self, _source: SourceId, _on: bool) -> Result<InvSeq, MuteError> {
        Err(MuteError::Cannot)
    }

    /// Prepares a translation for an attachment point: allocates, checks, writes nothing that
    /// hardware reads.
    ///
    /// # Errors
    /// See [`PrepareError`].
    fn prepare(&self, at: At, to: Target) -> Result<Prepared, PrepareError>;
    /// Shows it to the hardware, with the invalidation that the change needs.
    ///
    /// # Errors
    /// A full queue (nothing was written; the value comes back), or hardware that is gone.
    fn commit(&self, prepared: Prepared) -> Result<InvSeq, (Prepared, SubmitError)>;
    /// Gives up what was prepared.
    fn abandon(&self, prepared: Prepared);
    /// Blocks an attachment point and queues every invalidation that makes the block true, the
    /// device's own TLB included where it has one.
    ///
    /// # Errors
    /// A full queue (nothing was written), or hardware that is gone.
    fn block(&self, at: At) -> Result<InvSeq, SubmitError>;

    /// Blocks an attachment point whose table is going away while its device works on: as
    /// [`block`](Driver::block), and where hardware can do without a record for each access that it
    /// refuses from then on, it does. By default a plain block.
    ///
    /// # Errors
    /// A full queue (nothing was written), or hardware that is gone.
    fn silence(&self, at: At) -> Result<InvSeq, SubmitError> {
        self.block(at)
    }

    /// Queues one batch of invalidations with the inner syncs that the manual asks for.
    ///
    /// # Errors
    /// A full queue (nothing was queued), or hardware that is gone.
    fn submit(&self, batch: &Batch<'_>) -> Result<InvSeq, SubmitError>;
    /// Whether everything up to `seq` has completed. Never waits.
    fn done(&self, seq: InvSeq) -> Poll<Result<(), InvError>>;

    /// Queues the vendor's drain fence for a blocked attachment point: when it is done, requests
    /// that were in the fabric at the block are visible in the queue.
    ///
    /// # Errors
    /// A full queue, or hardware that is gone.
    fn drain(&self, at: At) -> Result<InvSeq, SubmitError>;
    /// After the fence is done: the position that a service turn must pass.
    fn drain_end(&self, at: At) -> DrainEnd;

    /// Sends an answer: takes it inside the lock of the hardware's queue, so that whoever comes
    /// first sends it and nobody sends it twice.
    fn page_response(&self, answer: &Answer<'_>) -> Offer;

    /// Switches whether what faults at an attachment point is held until its verdict, with the
    /// invalidation that this needs. It holds for what is attached there now and later, also over a
    /// block, a cut-off and a replacement, until it is switched again; where nothing translates,
    /// nothing is held. Off at first. What is held when it is switched off is resumed like any
    /// other. Where one switch serves several points (a context bank), they stall as long as any of
    /// them is on: the core ends at once what stalls elsewhere. Asking for what is so already is no
    /// error. Called by service turns, for one point at a time.
    ///
    /// # Errors
    /// [`StallSwitchError::Cannot`] where these transactions cannot be held, which is what a driver
    /// says that does not implement this; a full queue (nothing changed), or hardware that is gone.
    fn set_stall(&self, _at: At, _on: bool) -> Result<InvSeq, StallSwitchError> {
        Err(StallSwitchError::Cannot("it has no stalls"))
    }

    /// Ends a stalled transaction: takes the verdict inside the lock of the hardware's queue, or of
    /// the register, so that whoever comes first resumes it and nobody does so twice. The verdict of
    /// what the driver has ended by itself ([`Turn::stalls_ended`]) is taken, and the hardware told
    /// nothing. A driver that hands over no stalls is never asked.
    fn resume(&self, _resume: &Resume<'_>) -> Offer {
        Offer::Lost
    }

    /// Acknowledges an interrupt. Returns whether there is work for a service turn. Interrupt
    /// context: takes short locks at most.
    fn interrupt(&self) -> bool;
    /// Reads the hardware's queues and hands records to the turn; a bounded amount.
    fn service(&self, turn: &mut Turn<'_>) -> More;
}

/// What an embedder's bus code does for a device: PCIe capabilities, in the order that the core
/// asks for. Called in sleepable context.
pub trait DeviceControl: Send + Sync {
    /// Turns PASID on or off. On only while ATS is off (PCIe: PASID is enabled before ATS).
    fn set_pasid(&self, on: bool);
    /// Turns ATS on with a smallest translation unit of 4 KiB, or off.
    fn set_ats(&self, on: bool);
    /// Turns page requests on with this allocation of outstanding requests, or off with `None`.
    /// Before it is turned on the interface has stopped, which it has when all earlier requests
    /// are answered, and is reset.
    fn set_pri(&self, credits: Option<u32>);
    /// Resets the function. Everything it had outstanding is void, and when this returns no memory
    /// request that it sent before can arrive any more (PCIe gives that 100 ms).
    fn reset(&self);
}
