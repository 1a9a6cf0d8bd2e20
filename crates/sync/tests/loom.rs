//! Every interleaving of the slot word and the ring, up to a bound on preemptions.
//!
//! Each property is shown to be able to fail: a twin of the test does one thing wrong and must be
//! caught. Run with
//! `RUSTFLAGS="--cfg portcullis_loom -C target-feature=+cmpxchg16b" LOOM_MAX_PREEMPTIONS=2
//! cargo test --release -p portcullis-sync --test loom`.
#![cfg(portcullis_loom)]

mod lines;

use loom::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use portcullis_sync::{
    ring::Ring,
    slot::{Generation, SlotWord},
};

/// How a claimant may go wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Decides for whatever group the slot stands for now.
    IgnoresGeneration,
    /// Takes the answer first and queues it later, not under one hold of the queue's lock.
    SendsOutsideLock,
}

const FIRST: u8 = 1;
const NEXT: u8 = 2;
const NEXT_CODE: u8 = 9;

/// The slot word, and the hardware's queue: (group, code) in the order sent.
#[derive(Default)]
struct Wire {
    slot: SlotWord,
    queue: Mutex<Vec<(u8, u8)>>,
}

impl Wire {
    /// Puts the decided answer of `group` into the queue, unless somebody did.
    fn offer(&self, group: u8, generation: Generation, fault: Fault) {
        if fault == Fault::SendsOutsideLock {
            let code = self.slot.take(generation);
            if let Some(code) = code {
                self.queue.lock().unwrap().push((group, code));
            }
            return;
        }
        let mut queue = self.queue.lock().unwrap();
        if let Some(code) = self.slot.take(generation) {
            queue.push((group, code));
        }
    }

    /// Claims the first group and sends: what a resolver and a deadline do.
    fn claim(&self, generation: Generation, code: u8, fault: Fault) -> bool {
        let generation = match fault {
            Fault::IgnoresGeneration => self.slot.peek().0,
            _ => generation,
        };
        let won = self.slot.answer(generation, code);
        if won {
            self.offer(FIRST, generation, fault);
        }
        won
    }
}

/// Resolver and deadline against a detach that decides, sends what is decided, frees the slot and
/// gives it to the next group.
fn slot_settles_once(fault: Fault) {
    loom::model(move || {
        let wire = Arc::new(Wire::default());
        let g = wire.slot.arm().unwrap();
        let claimants: Vec<_> = [3, 4]
            .into_iter()
            .map(|code| {
                let wire = wire.clone();
                thread::spawn(move || wire.claim(g, code, fault))
            })
            .collect();

        let detached = wire.slot.answer(g, 5);
        wire.offer(FIRST, g, Fault::None);
        // A claimant may hold the answer without having queued it only if it is broken.
        assert!(!wire.slot.is_live(g));
        assert_eq!(wire.queue.lock().unwrap().len(), 1, "freed before sent");
        let next = wire.slot.arm().unwrap();
        assert!(wire.slot.answer(next, NEXT_CODE), "decided by a stranger");
        wire.offer(NEXT, next, Fault::None);

        let mut winners = usize::from(detached);
        for c in claimants {
            winners += usize::from(c.join().unwrap());
        }
        assert_eq!(winners, 1, "not decided exactly once");
        let queue = wire.queue.lock().unwrap();
        assert_eq!(queue.len(), 2);
        assert!(queue[0].0 == FIRST && queue[0].1 != NEXT_CODE);
        assert_eq!(queue[1], (NEXT, NEXT_CODE));
    });
}

#[test]
fn slot_is_settled_once_and_never_for_its_next_owner() {
    slot_settles_once(Fault::None);
}

#[test]
#[should_panic(expected = "decided by a stranger")]
fn slot_decided_without_its_generation_is_caught() {
    slot_settles_once(Fault::IgnoresGeneration);
}

#[test]
#[should_panic(expected = "freed before sent")]
fn slot_sent_outside_the_queue_lock_is_caught() {
    slot_settles_once(Fault::SendsOutsideLock);
}

/// A reset that voids the group against an answer: exactly one of void and take.
#[test]
fn slot_is_void_or_taken() {
    loom::model(|| {
        let wire = Arc::new(Wire::default());
        let g = wire.slot.arm().unwrap();
        let resolver = {
            let wire = wire.clone();
            thread::spawn(move || wire.claim(g, 3, Fault::None))
        };
        let void = wire.slot.void(g);
        resolver.join().unwrap();
        assert_eq!(wire.queue.lock().unwrap().is_empty(), void);
        assert!(!wire.slot.is_live(g));
    });
}

/// What the ring test needs of a queue.
trait Queue: Send + Sync + 'static {
    fn make() -> Self;
    fn push(&self, n: u64) -> Result<(), u64>;
    fn pop(&self) -> Option<u64>;
}

impl Queue for Ring<u64> {
    fn make() -> Self {
        Ring::with_capacity(2).unwrap()
    }
    fn push(&self, n: u64) -> Result<(), u64> {
        Ring::push(self, n)
    }
    fn pop(&self) -> Option<u64> {
        Ring::pop(self)
    }
}

/// Claims a place by load and store: two producers may get the same one.
struct RacyQueue {
    tail: AtomicU64,
    head: AtomicU64,
    cells: [AtomicU64; 2],
}

impl Queue for RacyQueue {
    fn make() -> Self {
        RacyQueue {
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            cells: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }
    fn push(&self, n: u64) -> Result<(), u64> {
        let at = self.tail.load(Ordering::Acquire);
        self.cells[at as usize & 1].store(n, Ordering::Release);
        self.tail.store(at + 1, Ordering::Release);
        Ok(())
    }
    fn pop(&self) -> Option<u64> {
        let at = self.head.load(Ordering::Acquire);
        if at == self.tail.load(Ordering::Acquire) {
            return None;
        }
        self.head.store(at + 1, Ordering::Release);
        Some(self.cells[at as usize & 1].load(Ordering::Acquire))
    }
}

/// Two producers and a consumer that looks twice meanwhile and drains at the end.
fn nothing_lost_nothing_twice<Q: Queue>() {
    loom::model(|| {
        let ring = Arc::new(Q::make());
        let producers: Vec<_> = [10, 20]
            .into_iter()
            .map(|n| {
                let ring = ring.clone();
                thread::spawn(move || ring.push(n).unwrap())
            })
            .collect();
        let mut got: Vec<u64> = (0..2).filter_map(|_| ring.pop()).collect();
        for p in producers {
            p.join().unwrap();
        }
        got.extend(std::iter::from_fn(|| ring.pop()));
        got.sort_unstable();
        assert_eq!(got, [10, 20], "lost or repeated");
    });
}

#[test]
fn ring_loses_and_repeats_nothing() {
    nothing_lost_nothing_twice::<Ring<u64>>();
}

#[test]
#[should_panic(expected = "lost or repeated")]
fn ring_with_racing_claims_is_caught() {
    nothing_lost_nothing_twice::<RacyQueue>();
}

/// A full ring refuses, and a pop makes exactly one place.
#[test]
fn ring_never_holds_more_than_its_capacity() {
    loom::model(|| {
        let ring = Arc::new(Ring::with_capacity(2).unwrap());
        ring.push(1u64).unwrap();
        ring.push(2).unwrap();
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || usize::from(ring.push(3).is_ok()))
        };
        let first = ring.pop();
        let pushed = producer.join().unwrap();
        assert_eq!(first, Some(1));
        assert_eq!(ring.pop(), Some(2));
        assert_eq!(ring.pop().is_some(), pushed == 1);
    });
}

fails_without! {
    the_release_of_a_filled_cell: RingPushReleases, ring_loses_and_repeats_nothing;
    the_release_of_an_emptied_cell: RingPopReleases, ring_never_holds_more_than_its_capacity;
    the_swap_that_claims: RingClaimSwaps, ring_loses_and_repeats_nothing;
    the_turn_of_a_cell: RingChecksTurn, ring_never_holds_more_than_its_capacity;
}
