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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    enum Step {
        Charge(usize),
        Uncharge(usize, u32),
        Trim(usize),
        TakePartial(usize),
        GivePartial(usize),
        End(usize),
    }

    const LEASES: usize = 3;
    const MOST: u32 = 20;

    fn step() -> impl Strategy<Value = Step> {
        let n = 0..LEASES;
        prop_oneof![
            8 => n.clone().prop_map(Step::Charge),
            3 => (n.clone(), 1..6u32).prop_map(|(n, units)| Step::Uncharge(n, units)),
            3 => n.clone().prop_map(Step::Trim),
            2 => n.clone().prop_map(Step::TakePartial),
            1 => n.clone().prop_map(Step::GivePartial),
            1 => n.prop_map(Step::End),
        ]
    }

    proptest! {
        /// Against what each lease uses, and no more than that: an owner is never over its bound, and
        /// is refused only when it has reached it but for what others leased and have not trimmed.
        #[test]
        fn leases_keep_to_their_owners_bound(
            requests in 0..300u32,
            partials in 0..4u32,
            steps in proptest::collection::vec(step(), 0..200),
        ) {
            let quota = Quota::new(requests, partials);
            let leases: Vec<Lease> = (0..LEASES).map(|_| Lease::default()).collect();
            let (mut used, mut kept, mut untrimmed) = ([0u32; LEASES], [0u32; LEASES], [false; LEASES]);
            for step in steps {
                match step {
                    Step::Charge(n) => {
                        let all: u32 = used.iter().sum();
                        let charged = leases[n].charge(&quota, MOST);
                        prop_assert!(!charged || (all < requests && used[n] < MOST), "over a bound");
                        let others = (0..LEASES).any(|m| m != n && untrimmed[m]);
                        let must = all < requests && used[n] < MOST && !others;
                        prop_assert!(charged || !must, "refused with {all} of {requests} out");
                        used[n] += u32::from(charged);
                        untrimmed[n] = true;
                    }
                    Step::Uncharge(n, units) => {
                        let units = units.min(used[n]);
                        leases[n].uncharge(units);
                        used[n] -= units;
                        untrimmed[n] = true;
                    }
                    Step::Trim(n) => {
                        leases[n].trim(&quota);
                        // What little is left unused is the others' again.
                        let left = requests - used.iter().sum::<u32>();
                        untrimmed[n] = left >= PLENTY;
                    }
                    Step::TakePartial(n) => {
                        let all: u32 = kept.iter().sum();
                        prop_assert_eq!(leases[n].take_partial(&quota), all < partials);
                        kept[n] += u32::from(all < partials);
                    }
                    Step::GivePartial(n) if kept[n] > 0 => {
                        leases[n].give_partial(&quota);
                        kept[n] -= 1;
                    }
                    Step::GivePartial(_) => {}
                    Step::End(n) => {
                        leases[n].end(&quota);
                        leases[n].used.store(0, Ordering::Relaxed);
                        (used[n], kept[n], untrimmed[n]) = (0, 0, false);
                    }
                }
            }
            leases.iter().for_each(|l| l.end(&quota));
            prop_assert_eq!(quota.requests.left.load(Ordering::Relaxed), requests, "lost or made up");
            prop_assert_eq!(quota.partials.left.load(Ordering::Relaxed), partials);
        }
    }
}
