//! Lines of this crate that a loom test takes away, to show that its model notices.
//!
//! Compiled for loom only; elsewhere [`without`] is a constant, and nothing is left of it.

use crate::atomic::Ordering;

/// A line that protects something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// An answer is decided for one generation of a slot only.
    AnswerChecksGeneration,
    /// An answer is decided by one compare-and-swap, not by a look and a store.
    AnswerSwaps,
    /// The answer is taken by one compare-and-swap.
    TakeSwaps,
    /// A record is written behind a fence, after its slot was seen free.
    RecordBehindFence,
    /// A reader of a record looks at the slot's word again.
    RecordReadAgain,
    /// Nobody goes in to a tenant that is closed.
    EnterChecksClosed,
    /// Nobody goes in to another tenant than the one that was looked up.
    EnterChecksGeneration,
    /// A tenant is taken out only when nobody is inside.
    EmptyWaitsForInside,
    /// Whoever leaves orders what they did before the tenant is taken out.
    LeaveReleases,
    /// The last one to leave a closed tenant hears of it.
    LastHears,
    /// A table that changes says so before.
    LookupMarksChange,
    /// A reader of a table that changed meanwhile looks again.
    LookupChecksChange,
    /// A turn that was asked for while another ran is run.
    TurnGoesAgain,
    /// One turn runs at a time.
    TurnExcludes,
    /// A piece is there when its position is.
    InboxPublishes,
    /// A piece is written where none waits.
    InboxHasRoom,
    /// What came while a worker was there is still owed when it goes.
    InboxCountsDown,
    /// What is published lies before a fence, and the entry is shown after it.
    CensusPublishFence,
    /// The list is read after a fence, and entries were cleared before it.
    CensusCollectFence,
    /// A filled cell of a ring is shown after it was filled.
    RingPushReleases,
    /// An emptied cell of a ring is given back after it was read.
    RingPopReleases,
    /// One thread gets a position of a ring.
    RingClaimSwaps,
    /// A cell of a ring is filled when it is empty, and read when it is filled.
    RingChecksTurn,
    /// One worker at a time runs an errand.
    ErrandExcludes,
    /// A worker that ends looks whether there is work again.
    ErrandLooksAtEnd,
    /// A worker that ends hears of the one that found it there.
    ErrandEndSwaps,
    /// Whoever asks for a worker shows it the work.
    ErrandAskReleases,
    /// Whoever hears a bell hears of every ringing before.
    BellSwaps,
    /// Nobody visits a member who has left.
    VisitChecksClosed,
    /// A member is handed out when nobody visits any more.
    LeaveWaitsForVisits,
    /// A visitor orders what it did before the member is handed out.
    VisitReleases,
    /// A place opens after the member was put there.
    JoinReleases,
}

#[cfg(portcullis_loom)]
mod real {
    extern crate std;
    use super::Line;
    use core::cell::Cell;

    std::thread_local! {
        // loom runs the threads of a model on the thread of its test.
        static GONE: Cell<Option<Line>> = const { Cell::new(None) };
    }

    /// Whether a line is taken away in this thread's model.
    pub fn without(line: Line) -> bool {
        GONE.with(Cell::get) == Some(line)
    }

    /// Takes a line away, or gives all of them back.
    pub fn take_away(line: Option<Line>) {
        GONE.with(|g| g.set(line));
    }
}

#[cfg(portcullis_loom)]
pub use real::{take_away, without};

/// An ordering, or none where the line that asks for it is taken away.
#[inline(always)]
pub(crate) fn unless(line: Line, order: Ordering) -> Ordering {
    if without(line) { Ordering::Relaxed } else { order }
}

/// Whether a line is taken away: never, outside loom.
#[cfg(not(portcullis_loom))]
#[inline(always)]
pub(crate) const fn without(_: Line) -> bool {
    false
}
