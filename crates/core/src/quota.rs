//! What one owner, that is all attachments of one domain, may have outstanding, on whatever
//! instances they are. Instances lease in batches, so that a group costs no shared word.

use portcullis_sync::atomic::{AtomicU32, Ordering};

/// Units that a service turn leases at once, at most.
const BATCH: u32 = 8;
/// A batch is at most this part of what is left.
const PLENTY: u32 = 16;

/// What is left for an owner.
#[derive(Debug)]
pub(crate) struct Quota {
    requests: Pool,
    partials: Pool,
}

#[derive(Debug)]
struct Pool {
    left: AtomicU32,
}

impl Quota {
    pub(crate) fn new(requests: u32, partials: u32) -> Quota {
        Quota { requests: Pool::new(requests), partials: Pool::new(partials) }
    }
}

impl Pool {
    fn new(most: u32) -> Pool {
        Pool { left: AtomicU32::new(most) }
    }

    /// Takes a batch, and less and less of it as little is left, so that what one instance leases
    /// and does not use keeps no other from its last few.
    fn take_batch(&self) -> u32 {
        let left = self.left.load(Ordering::Relaxed);
        self.take((left / PLENTY).clamp(1, BATCH))
    }

    /// Takes up to `wanted`.
    fn take(&self, wanted: u32) -> u32 {
        let mut left = self.left.load(Ordering::Relaxed);
        loop {
            let got = left.min(wanted);
            if got == 0 {
                return 0;
            }
            match self.left.compare_exchange(left, left - got, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return got,
                Err(now) => left = now,
            }
        }
    }

    fn give(&self, n: u32) {
        if n > 0 {
            self.left.fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// What one attachment uses of its owner's quota. Written by the turns of its instance, and given
/// back when the attachment ends.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    used: AtomicU32,
    leased: AtomicU32,
    partials: AtomicU32,
}

impl Lease {
    /// Charges one request. False when `most` of this attachment, or the owner's all, are out.
    #[inline]
    pub(crate) fn charge(&self, quota: &Quota, most: u32) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        if used >= most {
            return false;
        }
        let leased = self.leased.load(Ordering::Relaxed);
        if used >= leased {
            let more = quota.requests.take_batch();
            if more == 0 {
                return false;
            }
            self.leased.store(leased + more, Ordering::Relaxed);
        }
        self.used.store(used + 1, Ordering::Relaxed);
        true
    }

    /// Takes charges back.
    #[inline]
    pub(crate) fn uncharge(&self, n: u32) {
        let used = self.used.load(Ordering::Relaxed);
        self.used.store(used.saturating_sub(n), Ordering::Relaxed);
    }

    /// One more group of which the last request has not come. False when the owner has too many.
    pub(crate) fn take_partial(&self, quota: &Quota) -> bool {
        let taken = quota.partials.take(1) == 1;
        self.partials.store(self.partials.load(Ordering::Relaxed) + u32::from(taken), Ordering::Relaxed);
        taken
    }

    pub(crate) fn give_partial(&self, quota: &Quota) {
        self.partials.store(self.partials.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        quota.partials.give(1);
    }

    /// Gives back what is leased and not used: all of it where little is left, else what is more
    /// than a batch. At the end of a turn.
    pub(crate) fn trim(&self, quota: &Quota) {
        let (leased, used) = (self.leased.load(Ordering::Relaxed), self.used.load(Ordering::Relaxed));
        let spare = leased.saturating_sub(used);
        let keep = (quota.requests.left.load(Ordering::Relaxed) / PLENTY).min(BATCH);
        if spare > keep {
            self.give(quota, spare - keep);
        }
    }

    fn give(&self, quota: &Quota, n: u32) {
        self.leased.store(self.leased.load(Ordering::Relaxed) - n, Ordering::Relaxed);
        quota.requests.give(n);
    }

    /// Gives everything back: no turn knows the attachment any more.
    pub(crate) fn end(&self, quota: &Quota) {
        quota.requests.give(self.leased.swap(0, Ordering::Relaxed));
        quota.partials.give(self.partials.swap(0, Ordering::Relaxed));
    }
}
