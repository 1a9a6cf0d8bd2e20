//! The modules that the core's fault path stands on, under loom: each property in one line, and
//! for each line of code that protects one a test that takes the line away and sees the property
//! fail. Run as `loom.rs` says, with `--test loom_faults`.
#![cfg(portcullis_loom)]

mod lines;

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};
use portcullis_sync::{
    census::Census,
    lookup::{Found, Lookup},
    records::Records,
    slot::{SlotWord, State},
    tenants::Tenants,
    turnstile::Turnstile,
};

/// The caller's data of an attachment: loom reports a use that is not ordered before the drop, the
/// flag one that comes after it.
#[derive(Default)]
struct Data {
    memory: UnsafeCell<()>,
    dropped: AtomicBool,
}

// SAFETY: loom's cell reports every access to it that another does not happen before: that nobody
// races for it is what the models check, not what they rely on.
#[allow(unsafe_code, reason = "a cell that loom watches")]
unsafe impl Sync for Data {}

impl Data {
    fn use_it(&self) {
        assert!(!self.dropped.load(Ordering::Relaxed), "used after it was let go of");
        self.memory.with(|_| ());
    }

    fn let_go(&self) {
        self.memory.with_mut(|_| ());
        assert!(!self.dropped.swap(true, Ordering::Relaxed), "let go of twice");
    }

    fn is_gone(&self) -> bool {
        self.dropped.load(Ordering::Relaxed)
    }
}

type Attachments = Tenants<Arc<Data>>;

/// An attachment that is open, its generation and its data.
fn attached(tenants: &Attachments, index: u32) -> (u64, Arc<Data>) {
    let data = Arc::new(Data::default());
    let generation = tenants.renew(index).unwrap();
    assert!(tenants.fill(index, generation, data.clone()).is_ok());
    tenants.open(index, generation);
    (generation, data)
}

/// Ends an attachment that is closed, if nobody is inside.
fn finish(tenants: &Attachments, index: u32, generation: u64) {
    if let Some(data) = tenants.empty(index, generation) {
        data.let_go();
    }
}

/// What a service turn does for a group, `f`, inside of an attachment.
fn deliver(tenants: &Attachments, index: u32, generation: u64, f: impl FnOnce(&Data)) {
    if let Some(inside) = tenants.enter(index, generation) {
        f(&**inside);
        if inside.leave(|_| ()).is_some() {
            finish(tenants, index, generation);
        }
    }
}

fn detach(tenants: &Attachments, index: u32, generation: u64) {
    tenants.close(index, generation);
    finish(tenants, index, generation);
}

/// Delivery against detach: the data is let go of once, and never used after.
fn data_outlives_its_users() {
    loom::model(|| {
        let tenants = Arc::new(Attachments::new(1, 0).unwrap());
        let (generation, data) = attached(&tenants, 0);
        let turns: Vec<_> = (0..2)
            .map(|_| {
                let tenants = tenants.clone();
                thread::spawn(move || deliver(&tenants, 0, generation, Data::use_it))
            })
            .collect();
        detach(&tenants, 0, generation);
        turns.into_iter().for_each(|t| t.join().unwrap());
        assert!(data.is_gone(), "nobody let go of it");
    });
}

/// Delivery against detach: nobody goes in once it is closed, and when the head has passed, every
/// group of the attachment is found.
fn a_drain_finds_every_group() {
    loom::model(|| {
        let tenants = Arc::new(Attachments::new(1, 0).unwrap());
        let records = Arc::new(Records::<1>::new(2, 0).unwrap());
        let head = Arc::new(AtomicU64::new(0));
        let closed = Arc::new(AtomicBool::new(false));
        let (generation, _data) = attached(&tenants, 0);
        let turn = {
            let (tenants, records, head) = (tenants.clone(), records.clone(), head.clone());
            let closed = closed.clone();
            thread::spawn(move || {
                for round in 0..2 {
                    let late = closed.load(Ordering::Acquire);
                    deliver(&tenants, 0, generation, |_| {
                        assert!(!late, "gone in to after it was closed");
                        records.arm(round, || [generation]).unwrap();
                    });
                    head.store(u64::from(round) + 1, Ordering::Release);
                }
            })
        };
        tenants.close(0, generation);
        closed.store(true, Ordering::Release);
        let drained = head.load(Ordering::Acquire) == 2;
        let answer_all = || {
            for slot in 0..2 {
                if let Some((g, _, [owner])) = records.live(slot) {
                    assert_eq!(owner, generation);
                    let word = records.word(slot).unwrap();
                    assert!(word.answer(g, 1) && word.take(g) == Some(1));
                }
            }
        };
        if drained {
            answer_all();
        }
        turn.join().unwrap();
        if drained {
            assert!((0..2).all(|slot| records.live(slot).is_none()), "a group was left behind");
        }
    });
}

/// Delivery against replace: a group goes to the old attachment or to the new one, whole.
fn a_place_has_the_old_or_the_new() {
    loom::model(|| {
        let tenants = Arc::new(Attachments::new(2, 0).unwrap());
        let (table, mut writer) = Lookup::new(1).unwrap();
        let table = Arc::new(table);
        let _ = tenants.renew(1);
        let ((old, old_data), (new, new_data)) = (attached(&tenants, 0), attached(&tenants, 1));
        assert!(writer.set(&table, 7, [0, old]));
        let turn = {
            let (tenants, table) = (tenants.clone(), table.clone());
            thread::spawn(move || match table.find(7) {
                Found::Value([index, generation]) => {
                    assert!([(0, old), (1, new)].contains(&(index, generation)), "half of each");
                    deliver(&tenants, index as u32, generation, Data::use_it);
                }
                found => assert_eq!(found, Found::Changing, "a place that was attached all the time"),
            })
        };
        assert!(writer.set(&table, 7, [1, new]));
        detach(&tenants, 0, old);
        turn.join().unwrap();
        assert!(old_data.is_gone() && !new_data.is_gone());
    });
}

/// Release of a device against a late report: what is found is what was there, though others move.
fn a_key_is_found_while_others_move() {
    loom::model(|| {
        let (table, mut writer) = Lookup::new(1).unwrap();
        // Two entries, so that the second key stands behind the first, or before it.
        assert!(writer.set(&table, 1, [10, 11]));
        let table = Arc::new(table);
        let late = {
            let table = table.clone();
            thread::spawn(move || {
                let found = table.find(1);
                assert!(
                    [Found::Value([10, 11]), Found::Nothing, Found::Value([20, 21]), Found::Changing]
                        .contains(&found),
                    "another device's report"
                );
            })
        };
        writer.remove(&table, 1);
        assert!(writer.set(&table, 1, [20, 21]));
        late.join().unwrap();
    });
}

/// PASID reuse: who looked up the old attachment never comes to the one that has its place now.
fn a_place_that_is_reused_is_another() {
    loom::model(|| {
        let tenants = Arc::new(Attachments::new(1, 0).unwrap());
        let (old, old_data) = attached(&tenants, 0);
        let late = {
            let (tenants, old_data) = (tenants.clone(), old_data.clone());
            thread::spawn(move || {
                deliver(&tenants, 0, old, |data| {
                    assert!(std::ptr::eq(data, &*old_data), "another process's group");
                });
            })
        };
        detach(&tenants, 0, old);
        if old_data.is_gone() && tenants.generation(0) == Some(old) {
            let (_, new_data) = attached(&tenants, 0);
            late.join().unwrap();
            assert!(!new_data.is_gone());
        } else {
            late.join().unwrap();
        }
    });
}

/// Two detaches of one device: each attachment ends once, whatever the turn is inside of.
fn two_detaches_end_two_attachments() {
    loom::model(|| {
        let tenants = Arc::new(Attachments::new(2, 0).unwrap());
        let ((rid, rid_data), (pasid, pasid_data)) = (attached(&tenants, 0), attached(&tenants, 1));
        let turn = {
            let tenants = tenants.clone();
            thread::spawn(move || {
                deliver(&tenants, 0, rid, |data| {
                    data.use_it();
                    deliver(&tenants, 1, pasid, Data::use_it);
                });
            })
        };
        let other = {
            let tenants = tenants.clone();
            thread::spawn(move || detach(&tenants, 1, pasid))
        };
        detach(&tenants, 0, rid);
        turn.join().unwrap();
        other.join().unwrap();
        assert!(rid_data.is_gone() && pasid_data.is_gone(), "nobody let go of it");
    });
}

/// Respond against time-out against detach: one decides, one answer goes out, none for the next.
fn one_answer_goes_out() {
    loom::model(|| {
        let shared = Arc::new((SlotWord::new(), Mutex::new(Vec::new())));
        let generation = shared.0.arm().unwrap();
        let claim = move |shared: &(SlotWord, Mutex<Vec<u8>>), code| {
            let (word, queue) = shared;
            let won = word.answer(generation, code);
            if won {
                let mut queue = queue.lock().unwrap();
                queue.extend(word.take(generation));
            }
            won
        };
        let claimants: Vec<_> = [3, 4]
            .into_iter()
            .map(|code| {
                let shared = shared.clone();
                thread::spawn(move || claim(&shared, code))
            })
            .collect();
        let mut winners = usize::from(claim(&shared, 5));
        {
            // What a detach does: it offers what is decided, whoever decided.
            let mut queue = shared.1.lock().unwrap();
            queue.extend(shared.0.take(generation));
        }
        let next = shared.0.arm();
        for c in claimants {
            winners += usize::from(c.join().unwrap());
        }
        assert_eq!(winners, 1, "decided more than once, or not at all");
        assert_eq!(shared.1.lock().unwrap().len(), 1, "one answer");
        let next = next.expect("a slot whose answer went out is free");
        assert_eq!(shared.0.peek(), (next, State::Pending), "decided by a stranger");
    });
}

/// Respond against reset: the answer goes out, or the group is void, not both.
fn void_or_answered() {
    loom::model(|| {
        let shared = Arc::new((SlotWord::new(), AtomicUsize::new(0)));
        let generation = shared.0.arm().unwrap();
        let resolver = {
            let shared = shared.clone();
            thread::spawn(move || {
                if shared.0.answer(generation, 3) && shared.0.take(generation).is_some() {
                    shared.1.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let void = usize::from(shared.0.void(generation));
        resolver.join().unwrap();
        assert_eq!(void + shared.1.load(Ordering::Relaxed), 1, "settled not once");
    });
}

/// A detach that looks for its groups against a slot that is used again: a record is whole.
fn a_record_is_one_groups() {
    loom::model(|| {
        let records = Arc::new(Records::<2>::new(1, 0).unwrap());
        let first = records.arm(0, || [1, 1]).unwrap();
        let turn = {
            let records = records.clone();
            thread::spawn(move || {
                let word = records.word(0).unwrap();
                assert!(word.answer(first, 0) && word.take(first).is_some());
                records.arm(0, || [2, 2]).unwrap();
            })
        };
        if let Some(record) = records.read(0, first) {
            assert_eq!(record, [1, 1], "half of another");
        }
        turn.join().unwrap();
    });
}

/// Service turns: one at a time, and what was seen before a turn was asked for is seen by one.
fn turns_exclude_each_other_and_none_is_lost() {
    loom::model(|| {
        let shared = Arc::new((Turnstile::new(0u64), AtomicU64::new(0)));
        let service = |shared: &(Turnstile<u64>, AtomicU64)| {
            shared.1.fetch_add(1, Ordering::Relaxed);
            let Some(mut turn) = shared.0.enter() else { return };
            loop {
                turn.with(|seen| *seen = shared.1.load(Ordering::Relaxed));
                match turn.end() {
                    Ok(()) => return,
                    Err(again) => turn = again,
                }
            }
        };
        let other = {
            let shared = shared.clone();
            thread::spawn(move || service(&shared))
        };
        service(&shared);
        other.join().unwrap();
        let seen = shared.0.try_enter().expect("nobody has the turn").with(|seen| *seen);
        assert_eq!(seen, 2, "a request for a turn was lost");
    });
}

/// Attach against unmap: the device sees the cleared entry, or the unmap sees the device.
fn attach_and_unmap_do_not_miss_each_other() {
    loom::model(|| {
        let census = Arc::new(Census::new());
        let entry = Arc::new(AtomicBool::new(true));
        let attach = {
            let (census, entry) = (census.clone(), entry.clone());
            thread::spawn(move || {
                census.publish(1);
                entry.load(Ordering::Relaxed)
            })
        };
        entry.store(false, Ordering::Relaxed);
        census.fence();
        let told = census.anybody();
        let used = attach.join().unwrap();
        assert!(told || !used, "a device uses what nobody will invalidate");
    });
}

macro_rules! holds {
    ($($model:ident)*) => {
        mod holds {
            $(#[test] fn $model() { super::$model() })*
        }
    };
}

holds! {
    data_outlives_its_users
    a_drain_finds_every_group
    a_place_has_the_old_or_the_new
    a_key_is_found_while_others_move
    a_place_that_is_reused_is_another
    two_detaches_end_two_attachments
    one_answer_goes_out
    void_or_answered
    a_record_is_one_groups
    turns_exclude_each_other_and_none_is_lost
    attach_and_unmap_do_not_miss_each_other
}

fails_without! {
    the_closed_phase: EnterChecksClosed, a_drain_finds_every_group;
    the_generation_of_a_place: EnterChecksGeneration, a_place_that_is_reused_is_another;
    the_count_of_those_inside: EmptyWaitsForInside, data_outlives_its_users;
    the_release_on_leaving: LeaveReleases, data_outlives_its_users;
    the_last_one_hearing_of_it: LastHears, data_outlives_its_users;
    the_last_one_hearing_of_it_twice: LastHears, two_detaches_end_two_attachments;
    the_mark_of_a_change: LookupMarksChange, a_place_has_the_old_or_the_new;
    the_second_look_at_the_version: LookupChecksChange, a_place_has_the_old_or_the_new;
    the_mark_of_a_release: LookupMarksChange, a_key_is_found_while_others_move;
    the_generation_of_a_slot: AnswerChecksGeneration, one_answer_goes_out;
    the_swap_that_decides: AnswerSwaps, one_answer_goes_out;
    the_swap_that_takes: TakeSwaps, void_or_answered;
    the_fence_before_a_record: RecordBehindFence, a_record_is_one_groups;
    the_second_look_at_the_word: RecordReadAgain, a_record_is_one_groups;
    the_exclusion_of_turns: TurnExcludes, turns_exclude_each_other_and_none_is_lost;
    the_round_that_was_asked_for: TurnGoesAgain, turns_exclude_each_other_and_none_is_lost;
    the_fence_after_publishing: CensusPublishFence, attach_and_unmap_do_not_miss_each_other;
    the_fence_before_asking: CensusCollectFence, attach_and_unmap_do_not_miss_each_other;
}
