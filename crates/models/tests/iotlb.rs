//! The software IOTLB beside a map: it may have forgotten, and never says anything else.

use portcullis_models::iotlb::{Iotlb, Space, Translation};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SPACES: u16 = 3;
const SIZES: [u8; 3] = [12, 21, 30];

#[derive(Debug, Clone, Copy)]
enum Op {
    Insert(u16, u64, u8),
    /// Walks first, and fills in after the next operation.
    InsertLate(u16, u64, u8),
    Invalidate(u16, u64, u64),
    InvalidateSpace(u16),
    Clear,
    Lookup(u16, u64),
}

/// Few addresses that touch in every size, in both halves.
fn iova() -> impl Strategy<Value = u64> {
    let upper = u64::MAX << 47;
    (0u64..6, 0u64..3, 0u64..2, prop_oneof![Just(0), Just(1 << 46), Just(upper)])
        .prop_map(|(page, large, huge, high)| high | huge << 30 | large << 21 | page << 12 | 0x123)
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![6 => Just(12u8), 2 => Just(21u8), 1 => Just(30u8)];
    let len = prop_oneof![4 => 0u64..0x4000, 2 => 0u64..0x20_0000, 1 => 0u64..1 << 31];
    prop_oneof![
        8 => (0..SPACES, iova(), size.clone()).prop_map(|(s, i, b)| Op::Insert(s, i, b)),
        2 => (0..SPACES, iova(), size).prop_map(|(s, i, b)| Op::InsertLate(s, i, b)),
        4 => (0..SPACES, iova(), len).prop_map(|(s, i, n)| Op::Invalidate(s, i, i.saturating_add(n))),
        1 => (0..SPACES).prop_map(Op::InvalidateSpace),
        1 => Just(Op::Clear),
        12 => (0..SPACES, iova()).prop_map(|(s, i)| Op::Lookup(s, i)),
    ]
}

/// What is true: by space and size, page to frame and flags.
type Truth = BTreeMap<(u16, u8, u64), (u64, u8)>;

fn forget(truth: &mut Truth, space: u16, first: u64, last: u64) {
    truth.retain(|(s, bits, page), _| *s != space || *page < first >> bits || *page > last >> bits);
}

/// Every answer has to be one that is true, of one of the sizes that the address has.
fn allowed(truth: &Truth, space: u16, iova: u64, found: &Translation) -> bool {
    let known = truth.get(&(space, found.bits, iova >> found.bits));
    let offset = iova & ((1 << found.bits) - 1);
    known.is_some_and(|(frame, flags)| found.phys == (frame | offset) && found.flags == *flags)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn never_says_what_is_not_true(ops in proptest::collection::vec(op(), 1..120), entries in 4usize..64) {
        let tlb = Iotlb::new(entries, SPACES);
        let mut truth = Truth::new();
        let mut late = None;
        for (n, op) in ops.into_iter().enumerate() {
            let walked = |bits: u8| (((n as u64) << 33) + (1 << 30), n as u8, bits);
            let held = late.take();
            match op {
                Op::Insert(space, iova, size) | Op::InsertLate(space, iova, size) => {
                    let (frame, flags, bits) = walked(size);
                    let fill = tlb.begin(Space(space)).unwrap();
                    if let Op::InsertLate(..) = op {
                        late = Some((fill, space, iova, Translation { phys: frame, bits, flags }));
                    } else {
                        truth.insert((space, bits, iova >> bits), (frame, flags));
                        let filled = tlb.insert(fill, iova, Translation { phys: frame | 0x55, bits, flags });
                        prop_assert!(filled);
                        let found = tlb.lookup(Space(space), iova);
                        prop_assert!(found.is_some_and(|f| allowed(&truth, space, iova, &f)), "{found:?}");
                    }
                }
                Op::Invalidate(space, first, last) => {
                    tlb.invalidate(Space(space), first, last);
                    forget(&mut truth, space, first, last);
                }
                Op::InvalidateSpace(space) => {
                    tlb.invalidate_space(Space(space));
                    forget(&mut truth, space, 0, u64::MAX);
                }
                Op::Clear => {
                    tlb.clear();
                    truth.clear();
                }
                Op::Lookup(space, iova) => {
                    if let Some(found) = tlb.lookup(Space(space), iova) {
                        prop_assert!(allowed(&truth, space, iova, &found), "{iova:#x}: {found:?}");
                    }
                }
            }
            if let Some((fill, space, iova, t)) = held {
                let touched = match op {
                    Op::Invalidate(s, ..) | Op::InvalidateSpace(s) => s == space,
                    Op::Clear => true,
                    _ => false,
                };
                prop_assert_eq!(tlb.insert(fill, iova, t), !touched, "a walk from before {:?}", op);
                if !touched {
                    truth.insert((space, t.bits, iova >> t.bits), (t.phys, t.flags));
                }
            }
        }
    }
}

#[test]
fn as_many_neighbours_as_there_are_entries_are_all_there() {
    let tlb = Iotlb::new(4096, 1);
    let page = |n: u64| 0x700_0000 + (n << 12);
    for n in 0..4096 {
        let fill = tlb.begin(Space(0)).unwrap();
        assert!(tlb.insert(fill, page(n), Translation { phys: n << 12, bits: 12, flags: 1 }));
    }
    for n in 0..4096 {
        assert_eq!(tlb.lookup(Space(0), page(n)).map(|t| t.phys), Some(n << 12));
    }
    // Pages 2 MiB apart do not all meet in one set.
    let tlb = Iotlb::new(4096, 1);
    for n in 0..512u64 {
        let fill = tlb.begin(Space(0)).unwrap();
        assert!(tlb.insert(fill, n << 21, Translation { phys: n << 12, bits: 12, flags: 1 }));
    }
    let found = (0..512u64).filter(|n| tlb.lookup(Space(0), n << 21).is_some()).count();
    assert!(found > 400, "{found} of 512");
}

/// A generation has 16 bits. When one comes again, nothing of the last time may be there.
#[test]
fn generations_come_again_and_what_they_had_does_not() {
    let tlb = Iotlb::new(64, 2);
    let old = Translation { phys: 0x5000, bits: 12, flags: 1 };
    for n in 0..3 * (1 << 16) {
        let iova = 0x1000 * (1 + n % 7);
        assert_eq!(tlb.lookup(Space(0), iova), None, "{n} invalidations");
        let fill = tlb.begin(Space(0)).unwrap();
        let held = tlb.begin(Space(0)).unwrap();
        assert!(tlb.insert(fill, iova, old), "{n} invalidations");
        tlb.invalidate_space(Space(0));
        assert!(!tlb.insert(held, iova, old));
        if n % 1000 == 0 {
            let other = tlb.begin(Space(1)).unwrap();
            assert!(tlb.insert(other, iova, old));
            assert!(tlb.lookup(Space(1), iova).is_some());
        }
    }
}

#[test]
fn what_does_not_fit_is_not_kept() {
    let tlb = Iotlb::new(64, 1);
    let put = |iova, phys, bits| {
        let fill = tlb.begin(Space(0)).unwrap();
        tlb.insert(fill, iova, Translation { phys, bits, flags: 0 })
    };
    assert!(put((1 << 57) - 1, 0, 12));
    assert!(!put(1 << 57 | 0x1000, 0, 12), "neither 57 bits nor an upper half");
    assert_eq!(tlb.lookup(Space(0), 1 << 57 | 0x1000), None);
    assert!(put(u64::MAX << 56, 0, 30));
    assert!(put(0, (1 << 52) - 1, 12));
    assert!(!put(0, 1 << 52, 12), "an address of 53 bits");
    assert!(!put(0, 0, 13), "no such size");
    assert!(tlb.begin(Space(1)).is_none());
    assert_eq!(tlb.lookup(Space(1), 0), None);
    for size in SIZES {
        assert!(put(5 << 30, 7 << 30, size));
    }
}
