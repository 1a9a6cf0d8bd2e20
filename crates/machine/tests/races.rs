//! The race that the slot word is made for, in small: an answer that is decided and then sent in
//! two steps goes out after its slot has a new owner. The simulation must find it, and must find
//! nothing where the answer is taken inside the queue's lock.
#![cfg(feature = "sim")]

use portcullis::{Platform, ShortLock, Sleep, Time};
use portcullis_machine::{
    platform::MachinePlatform,
    sim::{Pool, Sim, SimConfig, SimLock},
};
use portcullis_pgtable::FRAME_SIZE;
use portcullis_sync::slot::{Generation, SlotWord};
use std::sync::Arc;

const FIRST: u32 = 1;
const SECOND: u32 = 2;

struct Wire {
    slot: SlotWord,
    /// What the hardware was told: (group, code).
    queue: SimLock<Vec<(u32, u8)>>,
}

impl Wire {
    fn send(&self, group: u32, generation: Generation, in_two_steps: bool) {
        if in_two_steps {
            if let Some(code) = self.slot.take(generation) {
                self.queue.with(|q| q.push((group, code)));
            }
        } else {
            self.queue.with(|q| q.extend(self.slot.take(generation).map(|code| (group, code))));
        }
    }
}

/// A resolver that answers after a while, against a detach that waits for it, gives up at a
/// deadline, and hands the slot to the next group.
fn late_answer(seed: u64, in_two_steps: bool, pool: &Pool) -> bool {
    let config =
        SimConfig { memory: FRAME_SIZE, jump_budget: u64::MAX, pool: pool.clone(), ..SimConfig::new(seed) };
    let mut sim = Sim::new(config).unwrap();
    let p = sim.platform();
    let wire = Arc::new(Wire { slot: SlotWord::new(), queue: p.lock(Vec::new()) });
    let answered = Arc::new(p.event());
    let generation = wire.slot.arm().unwrap();

    let (w, e) = (wire.clone(), answered.clone());
    sim.spawn("resolver", move |p| {
        p.sleep(&Sleep::in_sleepable_context(), 500_000);
        if w.slot.answer(generation, 0) {
            w.send(FIRST, generation, in_two_steps);
            p.notify(&e);
        }
    });
    let w = wire.clone();
    sim.spawn("detach", move |p| {
        let seen = p.seen(&answered);
        let until = Some(Time(1_000_000_000));
        p.wait(&Sleep::in_sleepable_context(), &answered, seen, until);
        w.slot.answer(generation, 1);
        w.send(FIRST, generation, false);
        let next = w.slot.arm().unwrap();
        assert!(w.slot.answer(next, 2));
        w.send(SECOND, next, false);
    });
    sim.run().unwrap();
    let sent = wire.queue.with(std::mem::take);
    sim.finish().unwrap();
    assert_eq!(sent.len(), 2, "seed {seed}: {sent:?}");
    sent[0].0 != FIRST
}

#[test]
fn an_answer_after_its_slot_has_a_new_owner_is_found() {
    let pool = Pool::default();
    let found: Vec<_> = (0..2_000).filter(|&seed| late_answer(seed, true, &pool)).collect();
    assert!(!found.is_empty(), "2,000 seeds did not find it");
    let first = found[0];
    assert!(late_answer(first, true, &pool), "seed {first} does not show it again");
}

#[test]
fn an_answer_taken_inside_the_lock_is_never_late() {
    let pool = Pool::default();
    for seed in 0..2_000 {
        assert!(!late_answer(seed, false, &pool), "seed {seed}");
    }
}
