//! The roster of observers under loom: unsubscribe against notify. Run as `loom.rs` says, with
//! `--test loom_roster`.
#![cfg(portcullis_loom)]

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use portcullis_sync::roster::Roster;

/// Says whether it was told, and refuses to be once it was handed out. The place it lies in is
/// loom's own cell: a visit that overlaps a move is a causality violation.
#[derive(Debug, Default)]
struct Member {
    gone: AtomicBool,
    told: AtomicUsize,
}

impl Member {
    fn tell(&self) {
        assert!(!self.gone.load(Ordering::Relaxed), "told after it left");
        self.told.fetch_add(1, Ordering::Relaxed);
    }
}

/// Two notifiers against one who leaves: once `leave` gives the member back, nobody uses it.
#[test]
fn nobody_is_told_after_leaving() {
    loom::model(|| {
        let roster = Arc::new(Roster::with_capacity(1).unwrap());
        let member = Arc::new(Member::default());
        let membership = roster.join(member.clone()).unwrap();
        let notifiers: Vec<_> = (0..2)
            .map(|_| {
                let roster = roster.clone();
                thread::spawn(move || roster.visit(|m: &Arc<Member>| m.tell()))
            })
            .collect();
        match roster.leave(membership) {
            Ok(_) => member.gone.store(true, Ordering::Relaxed),
            Err(again) => {
                notifiers.into_iter().for_each(|n| n.join().unwrap());
                assert!(roster.leave(again).is_ok(), "kept out by a visit that is over");
                return;
            }
        }
        notifiers.into_iter().for_each(|n| n.join().unwrap());
    });
}

/// A notifier, one who abandons its place, and one who takes it: each member is told only while it
/// is in, and the one that is told is whole.
#[test]
fn a_place_changes_hands() {
    loom::model(|| {
        let roster = Arc::new(Roster::with_capacity(1).unwrap());
        let (first, next) = (Arc::new(Member::default()), Arc::new(Member::default()));
        let membership = roster.join(first.clone()).unwrap();
        let notifier = {
            let roster = roster.clone();
            thread::spawn(move || roster.visit(|m: &Arc<Member>| m.tell()))
        };
        let joiner = {
            let (roster, next) = (roster.clone(), next.clone());
            thread::spawn(move || roster.join(next).is_ok())
        };
        if roster.abandon(membership).is_some() {
            first.gone.store(true, Ordering::Relaxed);
        }
        notifier.join().unwrap();
        let joined = joiner.join().unwrap();
        roster.visit(|m| m.tell());
        if !joined {
            assert_eq!(next.told.load(Ordering::Relaxed), 0);
        } else {
            assert!(next.told.load(Ordering::Relaxed) >= 1, "a member that was in was not told");
        }
    });
}
