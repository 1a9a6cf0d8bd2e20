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
    pub(crate) requests: Pool,
    /// Groups of which the last request has not come.
    pub(crate) partials: Pool,
}

#[derive(Debug)]
pub(crate) struct Pool {
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

    /// Takes a batch of up to `most`, and less and less of it as little is left, so that what one instance leases
    /// and does not use keeps no other from its last few.
    fn take_batch(&self, most: u32) -> u32 {
        let mut left = self.left.load(Ordering::Relaxed);
        loop {
            let got = (left / PLENTY).clamp(1, BATCH).min(left).min(most);
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
    pub(crate) requests: Leased,
    pub(crate) partials: Leased,
}

impl Lease {
    /// Gives back what little is left and not used. At the end of a turn.
    pub(crate) fn trim(&self, quota: &Quota) {
        self.requests.trim(&quota.requests);
        self.partials.trim(&quota.partials);
    }

    /// Gives everything back: no turn knows the attachment any more.
    pub(crate) fn end(&self, quota: &Quota) {
        self.requests.end(&quota.requests);
        self.partials.end(&quota.partials);
    }
}

/// What is leased of one pool.
#[derive(Debug, Default)]
pub(crate) struct Leased {
    used: AtomicU32,
    leased: AtomicU32,
}

impl Leased {
    /// Whether one of what is leased is not used.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.leased.load(Ordering::Relaxed)
    }

    /// The same, leasing a batch if need be. False when `most` of this attachment, or the owner's all,
    /// are out.
    pub(crate) fn make_room(&self, pool: &Pool, most: u32) -> bool {
        let leased = self.leased.load(Ordering::Relaxed);
        if self.used.load(Ordering::Relaxed) >= leased {
            let more = pool.take_batch(most.saturating_sub(leased));
            self.leased.store(leased + more, Ordering::Relaxed);
        }
        self.has_room()
    }

    /// Charges one, for which there is room.
    #[inline]
    pub(crate) fn charge(&self) {
        self.used.store(self.used.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Charges one if there is room, or some can be leased.
    pub(crate) fn lease(&self, pool: &Pool, most: u32) -> bool {
        let fits = self.has_room() || self.make_room(pool, most);
        if fits {
            self.charge();
        }
        fits
    }

    /// Takes `n` charges back.
    #[inline]
    pub(crate) fn uncharge(&self, n: u32, pool: &Pool) {
        self.used.store(self.used.load(Ordering::Relaxed).saturating_sub(n), Ordering::Relaxed);
        self.trim(pool);
    }

    /// Gives back what is leased and not used: all of it where little is left, else what is more than
    /// a batch.
    #[inline]
    pub(crate) fn trim(&self, pool: &Pool) {
        let spare = self.leased.load(Ordering::Relaxed).saturating_sub(self.used.load(Ordering::Relaxed));
        let keep = (pool.left.load(Ordering::Relaxed) / PLENTY).min(BATCH);
        if spare > keep {
            self.give_back(spare - keep, pool);
        }
    }

    #[cold]
    fn give_back(&self, n: u32, pool: &Pool) {
        self.leased.store(self.leased.load(Ordering::Relaxed) - n, Ordering::Relaxed);
        pool.give(n);
    }

    fn end(&self, pool: &Pool) {
        pool.give(self.leased.swap(0, Ordering::Relaxed));
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
                        let of = &leases[n].requests;
                        let charged = of.lease(&quota.requests, MOST);
                        prop_assert!(!charged || (all < requests && used[n] < MOST), "over a bound");
                        let others = (0..LEASES).any(|m| m != n && untrimmed[m]);
                        let must = all < requests && used[n] < MOST && !others;
                        prop_assert!(charged || !must, "refused with {all} of {requests} out");
                        used[n] += u32::from(charged);
                        untrimmed[n] = true;
                    }
                    Step::Uncharge(n, units) => {
                        let units = units.min(used[n]);
                        leases[n].requests.uncharge(units, &quota.requests);
                        used[n] -= units;
                        untrimmed[n] = requests - used.iter().sum::<u32>() >= PLENTY;
                    }
                    Step::Trim(n) => {
                        leases[n].requests.trim(&quota.requests);
                        // What little is left unused is the others' again.
                        let left = requests - used.iter().sum::<u32>();
                        untrimmed[n] = left >= PLENTY;
                    }
                    Step::TakePartial(n) => {
                        let all: u32 = kept.iter().sum();
                        prop_assert_eq!(leases[n].partials.lease(&quota.partials, u32::MAX), all < partials);
                        kept[n] += u32::from(all < partials);
                    }
                    Step::GivePartial(n) if kept[n] > 0 => {
                        leases[n].partials.uncharge(1, &quota.partials);
                        kept[n] -= 1;
                    }
                    Step::GivePartial(_) => {}
                    Step::End(n) => {
                        leases[n].end(&quota);
                        leases[n].requests.used.store(0, Ordering::Relaxed);
                        leases[n].partials.used.store(0, Ordering::Relaxed);
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
