//! Every interleaving, up to a bound on preemptions, of the software IOTLB's lookups, fills and
//! invalidations: what was invalidated is not found after the invalidation has returned.
//!
//! Run with `RUSTFLAGS="--cfg portcullis_loom" LOOM_MAX_PREEMPTIONS=2 cargo test --release
//! -p portcullis-models --test loom`.
#![cfg(portcullis_loom)]

use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use loom::thread;
use portcullis_models::iotlb::{Iotlb, Space, Translation};

const SPACE: Space = Space(0);
const IOVA: u64 = 0x5000;
const OLD: u64 = 0x10_0000;
const NEW: u64 = 0x20_0000;

/// The two ways in which something is invalidated.
const WAYS: [fn(&Iotlb); 2] =
    [|tlb| tlb.invalidate(SPACE, IOVA, IOVA + 0xfff), |tlb| tlb.invalidate_space(SPACE)];

fn page(phys: u64) -> Translation {
    Translation { phys, bits: 12, flags: 1 }
}

fn fill(tlb: &Iotlb, iova: u64, phys: u64) -> bool {
    let fill = tlb.begin(SPACE).expect("a space");
    tlb.insert(fill, iova, page(phys))
}

fn found(tlb: &Iotlb, iova: u64) -> Option<u64> {
    tlb.lookup(SPACE, iova).map(|t| t.phys)
}

/// A lookup beside an invalidation may find what was there; one that begins after it has returned
/// does not.
#[test]
fn what_was_invalidated_is_not_found() {
    for invalidate in WAYS {
        loom::model(move || {
            let tlb = Arc::new(Iotlb::new(4, 1));
            let returned = Arc::new(AtomicBool::new(false));
            assert!(fill(&tlb, IOVA, OLD));
            let (t, r) = (tlb.clone(), returned.clone());
            let reader = thread::spawn(move || {
                let after = r.load(Ordering::Acquire);
                let found = found(&t, IOVA);
                assert!(found.is_none() || !after && found == Some(OLD), "{found:x?} after {after}");
            });
            invalidate(&tlb);
            returned.store(true, Ordering::Release);
            assert_eq!(found(&tlb, IOVA), None);
            reader.join().unwrap();
        });
    }
}

/// A walk that read the table before it changed, and is filled in at any time: its result is not
/// found once the invalidation has returned.
#[test]
fn a_walk_from_before_the_invalidation_is_not_filled_in_after_it() {
    for invalidate in WAYS {
        loom::model(move || {
            let tlb = Arc::new(Iotlb::new(4, 1));
            let table = Arc::new(AtomicU64::new(OLD));
            let (t, walked) = (tlb.clone(), table.clone());
            let filler = thread::spawn(move || {
                let fill = t.begin(SPACE).expect("a space");
                let phys = walked.load(Ordering::Acquire);
                t.insert(fill, IOVA, page(phys));
            });
            table.store(NEW, Ordering::Release);
            invalidate(&tlb);
            assert_ne!(found(&tlb, IOVA), Some(OLD));
            filler.join().unwrap();
            assert_ne!(found(&tlb, IOVA), Some(OLD));
        });
    }
}

/// A set that is written while it is read: the reader has its own page or none, never a part of each.
/// The reader is the thread that is spawned: loom tries other orders for what was stored before.
#[test]
fn a_reader_never_sees_two_entries_in_one() {
    loom::model(|| {
        let tlb = Arc::new(Iotlb::new(4, 1));
        let iova = |n: u64| n << 12;
        let phys = |n: u64| OLD + (n << 12);
        for n in 0..4 {
            assert!(fill(&tlb, iova(n), phys(n)));
        }
        let t = tlb.clone();
        let reader = thread::spawn(move || {
            for n in [3, 0, 4] {
                let found = found(&t, iova(n));
                assert!(found.is_none() || found == Some(phys(n)), "page {n}: {found:x?}");
            }
        });
        // The set is full: some page goes.
        assert!(fill(&tlb, iova(4), phys(4)));
        reader.join().unwrap();
        assert_eq!(found(&tlb, iova(4)), Some(phys(4)));
        assert_eq!(found(&tlb, iova(0)), None, "which is what the reader was after");
    });
}

/// The same, and what is put there is of another space.
#[test]
fn a_reader_never_sees_the_data_of_another_space() {
    loom::model(|| {
        let tlb = Arc::new(Iotlb::new(4, 2));
        let phys = |n: u64| OLD + (n << 12);
        for n in 0..4 {
            assert!(fill(&tlb, n << 12, phys(n)));
        }
        let t = tlb.clone();
        let reader = thread::spawn(move || {
            let found = found(&t, 0);
            assert!(found.is_none() || found == Some(phys(0)), "{found:x?}");
        });
        let other = tlb.begin(Space(1)).expect("a space");
        assert!(tlb.insert(other, IOVA, page(NEW)));
        reader.join().unwrap();
        assert_eq!(found(&tlb, 0), None, "which is what the reader was after");
    });
}

/// Two who invalidate, and one who fills in.
#[test]
fn two_invalidations_at_once() {
    loom::model(|| {
        let tlb = Arc::new(Iotlb::new(4, 1));
        let table = Arc::new(AtomicU64::new(OLD));
        let (t, walked) = (tlb.clone(), table.clone());
        let filler = thread::spawn(move || {
            let fill = t.begin(SPACE).expect("a space");
            let phys = walked.load(Ordering::Acquire);
            t.insert(fill, IOVA, page(phys));
        });
        let t = tlb.clone();
        let other = thread::spawn(move || t.invalidate(SPACE, 0, 0xfff));
        table.store(NEW, Ordering::Release);
        WAYS[0](&tlb);
        assert_ne!(found(&tlb, IOVA), Some(OLD));
        filler.join().unwrap();
        other.join().unwrap();
        assert_ne!(found(&tlb, IOVA), Some(OLD));
    });
}
