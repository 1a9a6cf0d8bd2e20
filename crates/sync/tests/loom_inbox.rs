//! The queue of an attachment's groups under loom: each property in one line, and for each line of
//! code that protects one a test that takes the line away and sees the property fail. Run as `loom.rs`
//! says, with `--test loom_inbox`.
#![cfg(portcullis_loom)]

mod lines;

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use portcullis_sync::inbox::Inbox;

struct Room {
    inbox: Inbox,
    /// Workers that were sent and have not gone yet.
    sent: AtomicUsize,
    there: AtomicBool,
    taken: [AtomicUsize; 3],
}

impl Room {
    fn new(pieces: usize) -> Arc<Room> {
        Arc::new(Room {
            inbox: Inbox::new(pieces).unwrap(),
            sent: AtomicUsize::new(0),
            there: AtomicBool::new(false),
            taken: std::array::from_fn(|_| AtomicUsize::new(0)),
        })
    }

    fn send(&self, must: bool) {
        if must {
            self.sent.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Goes if somebody was sent, and does what is owed.
    fn work(&self) {
        let go = self.sent.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed);
        if go.is_err() {
            return;
        }
        assert!(!self.there.swap(true, Ordering::Relaxed), "two workers at once");
        let owed = self.inbox.owed();
        for _ in 0..owed {
            if let Some([n, check]) = self.inbox.pop() {
                assert_eq!(check, n + 7, "not what was pushed");
                self.taken[n as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        self.there.store(false, Ordering::Relaxed);
        self.send(self.inbox.done(owed));
    }

    fn push(&self, n: u64) -> bool {
        self.inbox.push([n, n + 7])
    }

    /// Everything that was pushed was taken once, after the worker that may still be due.
    fn check(&self, pushed: usize) {
        while self.sent.load(Ordering::Relaxed) > 0 {
            self.work();
        }
        let taken: usize = self.taken.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        assert_eq!(taken, pushed, "left behind, or taken twice");
    }
}

/// A turn pushes and announces twice while a worker works and somebody calls one: each piece is taken
/// once, as it was pushed, by one worker at a time.
fn each_piece_is_taken_once() {
    loom::model(|| {
        let room = Room::new(2);
        let worker = {
            let room = room.clone();
            thread::spawn(move || {
                room.work();
                room.work();
            })
        };
        let caller = {
            let room = room.clone();
            thread::spawn(move || room.send(room.inbox.call()))
        };
        for n in 0..2 {
            assert!(room.push(n));
            room.send(room.inbox.announce());
        }
        worker.join().unwrap();
        caller.join().unwrap();
        room.check(2);
    });
}

/// A place that is used again is written only after its piece was read.
fn a_place_is_free_when_it_was_read() {
    loom::model(|| {
        let room = Room::new(1);
        assert!(room.push(0));
        room.send(room.inbox.announce());
        let worker = {
            let room = room.clone();
            thread::spawn(move || room.work())
        };
        let second = room.push(1);
        room.send(room.inbox.announce());
        worker.join().unwrap();
        room.check(1 + usize::from(second));
    });
}

#[test]
fn pieces_are_taken_once() {
    each_piece_is_taken_once();
}

#[test]
fn places_are_free_when_they_were_read() {
    a_place_is_free_when_it_was_read();
}

fails_without! {
    the_release_of_a_piece: InboxPublishes, each_piece_is_taken_once;
    the_look_for_room: InboxHasRoom, a_place_is_free_when_it_was_read;
    the_count_of_what_is_owed: InboxCountsDown, each_piece_is_taken_once;
}
