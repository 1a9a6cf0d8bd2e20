//! What the fault path keeps of one requester, next to what was registered of it: switches that others
//! set, and counts that the service turn alone writes.

use crate::{ids::DeviceId, sources::Counters};
use portcullis_sync::{
    atomic::{AtomicU32, AtomicU64, Ordering},
    slot::State,
};

/// One requester's account with an instance.
pub(crate) struct Account {
    /// The share of outstanding page requests; 0 while it may make none.
    share: AtomicU32,
    switches: AtomicU32,
    /// Changes when everything collected of the device so far is void.
    life: AtomicU32,
    device: AtomicU64,
    /// Changes when the account is another device's.
    holder: AtomicU32,
    /// Requests that are kept now, in groups and in partials. Written by the turn.
    pub(crate) outstanding: Own,
    /// Groups of which the last request has not come. Written by the turn.
    pub(crate) partials: Own,
    /// Stalled transactions that wait for a verdict. Written by the turn.
    pub(crate) stalled: Own,
    pub(crate) counts: Counts,
}

/// A number with one writer, the service turn, and many readers.
#[derive(Default)]
pub(crate) struct Own(AtomicU64);

impl Own {
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.get().saturating_sub(n), Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

macro_rules! counts {
    ($($name:ident),*) => {
        /// [`Counters`], as the turn writes them.
        #[derive(Default)]
        pub(crate) struct Counts {
            $(pub(crate) $name: Own,)*
        }

        impl Counts {
            /// Adds up into what is counted elsewhere.
            fn read(&self, into: &mut Counters) {
                $(into.$name = self.$name.get();)*
            }

            fn clear(&self) {
                $(self.$name.clear();)*
            }
        }
    };
}
counts!(
    requests,
    groups,
    success,
    invalid,
    deadline,
    void,
    quota,
    unauthorised,
    malformed,
    partials_dropped,
    stalls,
    retried,
    terminated,
    stalls_late,
    stalls_over,
    stalls_lost,
    stall_storms
);

impl Counts {
    /// A group's answer is decided.
    #[inline]
    pub(crate) fn ended(&self, state: State) {
        match state {
            State::Sent(0) | State::Answered(0) => self.success.add(1),
            State::Void => self.void.add(1),
            _ => self.invalid.add(1),
        }
    }
}

/// Between the block and the end of a reset: what the device sent before is void.
const RESETTING: u32 = 1;
/// Its own TLB does not answer: it is to be cut off, or was.
const QUARANTINED: u32 = 2;
/// Several devices have its id.
const SHARED: u32 = 4;
/// It stalled too much, and does not for a while.
const LIMITED: u32 = 8;

/// What a device may do, read once for each request.
#[derive(Clone, Copy)]
pub(crate) struct Standing(u32);

impl Standing {
    /// Nothing keeps it from making requests but its share.
    #[inline]
    pub(crate) fn is_good(self) -> bool {
        self.0 & (RESETTING | QUARANTINED) == 0
    }

    pub(crate) fn is_resetting(self) -> bool {
        self.0 & RESETTING != 0
    }

    pub(crate) fn is_quarantined(self) -> bool {
        self.0 & QUARANTINED != 0
    }
}

impl Account {
    pub(crate) fn new() -> Account {
        Account {
            share: AtomicU32::new(0),
            switches: AtomicU32::new(0),
            life: AtomicU32::new(0),
            device: AtomicU64::new(0),
            holder: AtomicU32::new(0),
            outstanding: Own::default(),
            partials: Own::default(),
            stalled: Own::default(),
            counts: Counts::default(),
        }
    }

    /// Opens the account for a device. What an earlier one left outstanding is still given back.
    pub(crate) fn open(&self, device: Option<DeviceId>) {
        self.switches.store(0, Ordering::Relaxed);
        self.name(device);
        self.holder.fetch_add(1, Ordering::AcqRel);
        self.share.store(0, Ordering::Relaxed);
        self.counts.clear();
        self.end_life();
    }

    /// Says whose requester it is. `None`: of several devices, and nobody can say which.
    pub(crate) fn name(&self, device: Option<DeviceId>) {
        self.device.store(device.map_or(0, |d| d.0), Ordering::Relaxed);
        self.switch(SHARED, device.is_none());
    }

    #[inline]
    pub(crate) fn standing(&self) -> Standing {
        Standing(self.switches.load(Ordering::Acquire))
    }

    /// The device, where one alone has the id.
    #[inline]
    pub(crate) fn device(&self, standing: Standing) -> Option<DeviceId> {
        (standing.0 & SHARED == 0).then(|| DeviceId(self.device.load(Ordering::Relaxed)))
    }

    /// The requests it may have outstanding; 0 while it may make none.
    #[inline]
    pub(crate) fn share(&self) -> u64 {
        self.share.load(Ordering::Relaxed).into()
    }

    pub(crate) fn set_share(&self, share: u32) {
        self.share.store(share, Ordering::Release);
    }

    pub(crate) fn set_resetting(&self, on: bool) {
        self.switch(RESETTING, on);
    }

    pub(crate) fn set_quarantined(&self, on: bool) {
        self.switch(QUARANTINED, on);
    }

    pub(crate) fn set_limited(&self, on: bool) {
        self.switch(LIMITED, on);
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.switches.load(Ordering::Acquire) & LIMITED != 0
    }

    fn switch(&self, which: u32, on: bool) {
        if on {
            self.switches.fetch_or(which, Ordering::AcqRel);
        } else {
            self.switches.fetch_and(!which, Ordering::AcqRel);
        }
    }

    #[inline]
    pub(crate) fn holder(&self) -> u32 {
        self.holder.load(Ordering::Acquire)
    }

    /// Everything collected so far is void.
    pub(crate) fn end_life(&self) {
        self.life.fetch_add(1, Ordering::AcqRel);
    }

    #[inline]
    pub(crate) fn life(&self) -> u32 {
        self.life.load(Ordering::Acquire)
    }

    /// Puts what turns counted beside what is counted elsewhere.
    pub(crate) fn read(&self, counters: &mut Counters) {
        self.counts.read(counters);
    }
}
