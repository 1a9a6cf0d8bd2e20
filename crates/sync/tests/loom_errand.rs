//! The errand of a sleeping observer under loom. Run as `loom.rs` says, with `--test loom_errand`.
#![cfg(portcullis_loom)]

mod lines;

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use portcullis_sync::errand::{Bell, Errand};

/// The work, and the bell by which workers are woken.
#[derive(Default)]
struct Desk {
    errand: Errand,
    bell: Bell,
    left: AtomicUsize,
    done: AtomicUsize,
    there: AtomicBool,
}

impl Desk {
    fn leave(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
        if self.errand.ask() {
            self.bell.ring();
        }
    }

    /// What a worker does that looks at the bell once. False if it was not rung.
    fn look(&self) -> bool {
        if !self.bell.heard() {
            return false;
        }
        if self.errand.take() {
            assert!(!self.there.swap(true, Ordering::Relaxed), "two workers at once");
            self.done.store(self.left.load(Ordering::Relaxed), Ordering::Relaxed);
            self.there.store(false, Ordering::Relaxed);
            if self.errand.end() {
                self.bell.ring();
            }
        }
        true
    }
}

/// Two pieces of work arrive while two workers look: none is left behind without a bell that rings
/// for it, and the workers do not meet.
#[test]
fn no_work_is_left_behind() {
    loom::model(|| {
        let desk = Arc::new(Desk::default());
        let workers = [(); 2].map(|()| {
            let desk = desk.clone();
            thread::spawn(move || while desk.look() {})
        });
        (0..2).for_each(|_| desk.leave());
        workers.into_iter().for_each(|w| w.join().unwrap());
        while desk.look() {}
        assert_eq!(desk.done.load(Ordering::Relaxed), 2, "work was left behind");
    });
}

fails_without! {
    the_exclusion_of_workers: ErrandExcludes, no_work_is_left_behind;
    the_look_at_the_end: ErrandLooksAtEnd, no_work_is_left_behind;
    the_swap_at_the_end: ErrandEndSwaps, no_work_is_left_behind;
    the_release_of_what_was_left: ErrandAskReleases, no_work_is_left_behind;
    the_swap_that_rings: BellSwaps, no_work_is_left_behind;
}
