//! Shares of the hardware's page-request queue.

use crate::config::Config;

/// What is left to give out. The shares together never exceed the queue less a reserve, so that a
/// device that keeps to its share cannot make the queue overflow for others.
#[derive(Debug)]
pub(crate) struct Credits {
    all: u32,
    left: u32,
    share: u32,
}

impl Credits {
    pub(crate) fn new(queue: u32, config: &Config) -> Credits {
        // Without any reserve, groups that wait for resolvers could fill every slot, and a request
        // that is answered at once would wait for them in the hardware's queue, with all behind it.
        let reserve = config.credit_reserve.max(1);
        let all = queue.saturating_sub(reserve);
        Credits { all, left: all, share: config.credits_per_device }
    }

    /// A share for a device that can have `wanted` requests outstanding, or `None` when nothing is
    /// left.
    pub(crate) fn take(&mut self, wanted: u32) -> Option<u32> {
        let given = wanted.min(self.share).min(self.left);
        if given == 0 {
            return None;
        }
        self.left -= given;
        Some(given)
    }

    /// What devices hold.
    pub(crate) fn given(&self) -> u32 {
        self.all - self.left
    }

    pub(crate) fn give_back(&mut self, share: u32) {
        self.left += share;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_queue_less_the_reserve() {
        let config = Config { credits_per_device: 32, credit_reserve: 8, ..Config::default() };
        let mut credits = Credits::new(127, &config);
        let mut given = Vec::new();
        while let Some(share) = credits.take(100) {
            given.push(share);
        }
        assert_eq!(given, [32, 32, 32, 23], "full shares first, then what is left");
        assert_eq!(given.iter().sum::<u32>(), 119);
        credits.give_back(32);
        assert_eq!(credits.take(5), Some(5), "a device's own limit is respected");
        assert_eq!(credits.take(100), Some(27));
        assert_eq!(credits.take(1), None);
    }

    proptest! {
        /// Against the list of who holds what.
        #[test]
        fn shares_are_what_a_list_of_holders_says(
            (queue, reserve, most) in (0..200u32, 0..20u32, 0..40u32),
            steps in proptest::collection::vec((any::<bool>(), 0..50u32), 0..60),
        ) {
            let config = Config { credits_per_device: most, credit_reserve: reserve, ..Config::default() };
            let mut credits = Credits::new(queue, &config);
            let all = queue.saturating_sub(reserve.max(1));
            let mut holders: Vec<u32> = Vec::new();
            for (takes, n) in steps {
                let left = all - holders.iter().sum::<u32>();
                if takes || holders.is_empty() {
                    let expected = n.min(most).min(left);
                    prop_assert_eq!(credits.take(n), (expected > 0).then_some(expected));
                    holders.extend((expected > 0).then_some(expected));
                } else {
                    let gone = holders.swap_remove(n as usize % holders.len());
                    credits.give_back(gone);
                }
                prop_assert_eq!(credits.given(), holders.iter().sum::<u32>());
            }
        }
    }

    extern crate std;
    use alloc::vec::Vec;
    use proptest::prelude::*;
}
