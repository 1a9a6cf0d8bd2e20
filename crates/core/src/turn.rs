//! What a driver's service turn hands to the core, and the answer that the core offers back.

use crate::{
    driver::{PageRequest, QueuePos, Stall, Taken},
    fault::RawFault,
    ids::{Pasid, SourceId, StallId},
    stall::{Verdict, event::id_of},
};
use portcullis_sync::slot::{Generation, SlotWord};

/// The response to a page-request group. Each driver turns it into its wire code in one exhaustive
/// match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The pages are there: the device may retry.
    Success,
    /// They are not, and will not be: the device must not retry.
    Invalid,
    /// Something is wrong with the device's interface as a whole. On PCIe this turns page requests
    /// off for the function and all that share its interface (`[V]` 7.1.3): policy of the core, out
    /// of reach for resolvers.
    Failure,
}

impl Code {
    #[inline]
    pub(crate) fn to_bits(self) -> u8 {
        match self {
            Code::Success => 0,
            Code::Invalid => 1,
            Code::Failure => 2,
        }
    }

    #[inline]
    pub(crate) fn from_bits(b: u8) -> Code {
        match b {
            0 => Code::Success,
            1 => Code::Invalid,
            _ => Code::Failure,
        }
    }
}

/// Where a turn's records go. The core implements it for an instance; a driver's own tests may
/// implement it to look at what the driver decodes.
pub trait Intake {
    /// See [`Turn::page_request`].
    fn page_request(&mut self, request: PageRequest) -> Taken;
    /// See [`Turn::malformed`].
    fn malformed(&mut self, request: PageRequest) -> Taken;
    /// See [`Turn::stalled`].
    fn stalled(&mut self, stall: Stall) -> Taken;
    /// See [`Turn::stalls_ended`].
    fn stalls_ended(&mut self, source: SourceId);
    /// See [`Turn::fault`].
    fn fault(&mut self, fault: RawFault);
    /// See [`Turn::passed`].
    fn passed(&mut self, head: QueuePos);
    /// See [`Turn::overflow`].
    fn overflow(&mut self);
    /// See [`Turn::completed`].
    fn completed(&mut self);
}

/// One bounded turn of reading an instance's queues, in service context.
pub struct Turn<'a> {
    intake: &'a mut dyn Intake,
    budget: usize,
}

impl<'a> Turn<'a> {
    /// A turn that may hand over up to `budget` records.
    pub fn new(intake: &'a mut dyn Intake, budget: usize) -> Turn<'a> {
        Turn { intake, budget }
    }

    /// Uses one unit of the turn's bound; false when it is used up and the driver should return
    /// [`More::Yes`](crate::driver::More::Yes).
    #[inline]
    pub fn spend(&mut self) -> bool {
        if self.budget == 0 {
            return false;
        }
        self.budget -= 1;
        true
    }

    /// Hands over a page request. On [`Taken::NoRoom`] the driver leaves it in the queue, does not
    /// move its head past it, and ends the turn.
    #[inline]
    pub fn page_request(&mut self, request: PageRequest) -> Taken {
        self.intake.page_request(request)
    }

    /// Hands over a request that violates the protocol: it is settled with Invalid if it is the
    /// last of its group, counted, and reaches no resolver.
    #[inline]
    pub fn malformed(&mut self, request: PageRequest) -> Taken {
        self.intake.malformed(request)
    }

    /// Hands over a stalled transaction: it is ended by exactly one
    /// [`Driver::resume`](crate::driver::Driver::resume). On [`Taken::NoRoom`] the driver leaves it
    /// in the queue, does not move its head past it, and ends the turn.
    pub fn stalled(&mut self, stall: Stall) -> Taken {
        self.intake.stalled(stall)
    }

    /// Everything of a requester that was stalled until now has ended without a verdict, and its
    /// records may be lost: the driver had to stop the whole stream (SMMUv3: CMD_STALL_TERM). None
    /// of it is resumed any more.
    pub fn stalls_ended(&mut self, source: SourceId) {
        self.intake.stalls_ended(source)
    }

    /// Hands over a fault record.
    pub fn fault(&mut self, fault: RawFault) {
        self.intake.fault(fault)
    }

    /// Every entry of the page-request queue before `head` has been handed over. Called after the
    /// entries and before the turn ends; a drain compares it with its
    /// [`DrainEnd`](crate::driver::DrainEnd).
    pub fn passed(&mut self, head: QueuePos) {
        self.intake.passed(head)
    }

    /// The page-request queue overflowed, and the hardware answered the last requests that found
    /// no room: groups of which only a part was seen are dropped.
    pub fn overflow(&mut self) {
        self.intake.overflow()
    }

    /// Invalidations completed or failed since the last turn: whoever waits for one should look
    /// again. Said in every turn, it would have those who wait run turns without a pause.
    pub fn completed(&mut self) {
        self.intake.completed()
    }
}

/// A decided answer, on its way out.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The group's last request, as the driver handed it over.
    pub last: &'a PageRequest,
    word: &'a SlotWord,
    generation: Generation,
}

impl<'a> Answer<'a> {
    /// An answer for the group that `word` stands for under `generation`.
    #[inline]
    pub fn new(last: &'a PageRequest, word: &'a SlotWord, generation: Generation) -> Answer<'a> {
        Answer { last, word, generation }
    }

    /// Takes the code for sending. `None`: somebody sent it before, or nobody needs it any more.
    /// Must be called with the hardware queue's lock held and room in the queue, and what it
    /// returns must be queued before that lock is released.
    #[inline]
    pub fn take(&self) -> Option<Code> {
        self.word.take(self.generation).map(Code::from_bits)
    }
}

/// A decided verdict, on its way to the hardware.
#[derive(Debug)]
pub struct Resume<'a> {
    /// The requester.
    pub source: SourceId,
    /// The PASID of the transaction.
    pub pasid: Option<Pasid>,
    /// The transaction.
    pub id: StallId,
    word: &'a SlotWord,
    generation: Generation,
}

impl<'a> Resume<'a> {
    pub(crate) fn new(stall: &PageRequest, word: &'a SlotWord, generation: Generation) -> Resume<'a> {
        Resume { source: stall.source, pasid: stall.pasid, id: id_of(stall), word, generation }
    }

    /// Takes the verdict for the hardware. `None`: somebody resumed it before, or there is nothing
    /// left to resume. Must be called with the lock held under which the hardware is told, and with
    /// room to tell it, and it must be told before that lock is released.
    pub fn take(&self) -> Option<Verdict> {
        self.word.take(self.generation).map(|bits| match Code::from_bits(bits) {
            Code::Success => Verdict::Retry,
            Code::Invalid | Code::Failure => Verdict::Terminate,
        })
    }
}
