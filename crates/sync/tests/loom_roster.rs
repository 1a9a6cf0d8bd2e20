//! The roster of observers under loom: unsubscribe against notify. Run as `loom.rs` says, with
//! `--test loom_roster`.
#![cfg(portcullis_loom)]

mod lines;

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

/// A visit that begins after `leave` was called does not reach the member, also while another one
/// keeps it in its place.
#[test]
fn no_visit_begins_after_leaving() {
    loom::model(|| {
        let roster = Arc::new(Roster::with_capacity(2).unwrap());
        let (member, other) = (Arc::new(Member::default()), Arc::new(Member::default()));
        let membership = roster.join(member.clone()).unwrap();
        let _stays = roster.join(other.clone()).unwrap();
        let notifier = {
            let roster = roster.clone();
            thread::spawn(move || roster.visit(|m: &Arc<Member>| m.tell()))
        };
        let _left = roster.leave(membership);
        roster.visit(|m| {
            assert!(!Arc::ptr_eq(m, &member), "a visit began after leaving");
            m.tell();
        });
        notifier.join().unwrap();
        assert_eq!(other.told.load(Ordering::Relaxed), 2, "a member that was in was not told");
    });
}

/// A member abandons its place while it is visited, and another one takes the place: it is not
/// taken before the visit is over, and the next visit finds the next member whole.
#[test]
fn a_place_changes_hands() {
    loom::model(|| {
        let roster = Arc::new(Roster::with_capacity(1).unwrap());
        let (first, next) = (Arc::new(Member::default()), Arc::new(Member::default()));
        let membership = roster.join(first.clone()).unwrap();
        let notifier = {
            let roster = roster.clone();
            thread::spawn(move || (0..2).for_each(|_| roster.visit(|m: &Arc<Member>| m.tell())))
        };
        if roster.abandon(membership).is_some() {
            first.gone.store(true, Ordering::Relaxed);
        }
        let joined = roster.join(next.clone()).is_ok();
        notifier.join().unwrap();
        let before = next.told.load(Ordering::Relaxed);
        roster.visit(|m| m.tell());
        assert_eq!(next.told.load(Ordering::Relaxed), before + usize::from(joined));
    });
}

fails_without! {
    the_look_whether_it_is_closed: VisitChecksClosed, no_visit_begins_after_leaving;
    the_wait_for_visitors: LeaveWaitsForVisits, nobody_is_told_after_leaving;
    the_wait_for_visitors_of_a_place: LeaveWaitsForVisits, a_place_changes_hands;
    the_release_after_a_visit: VisitReleases, nobody_is_told_after_leaving;
    the_release_of_a_new_member: JoinReleases, a_place_changes_hands;
}
