//! Queues of every size: how much they hold, where they wrap, and what is done where memory is short.

use super::{
    comes_back::{Seen, arrive, turn},
    *,
};
use crate::vtd::QueueSize;
use portcullis::driver::{Batch, CacheTag, More, SubmitError};
use portcullis_spec::vtd::regs::offset;
use std::vec::Vec;

const PRO: u32 = 2;

fn sizes() -> impl Iterator<Item = (u64, Options)> {
    (0..8).map(|order| {
        let size = QueueSize::of_pages(1 << order);
        (order, Options { page_request_queue: size, invalidation_queue: size, ..Options::default() })
    })
}

fn request(n: u64) -> [u64; 4] {
    // 01:02.3 without PASID; a read, the last of its group.
    [0x0113_0001, n << 12 | 0b101, 0, 0]
}

#[test]
fn a_page_request_queue_of_every_size_fills_wraps_and_overflows() {
    for (order, options) in sizes() {
        let (fake, vtd) = running_with(cap(), scalable_ecap(), options);
        let entries = 128 << order;
        assert_eq!(fake.get64(offset::PQA) & 0xfff, order);
        assert_eq!(u64::from(vtd.caps().page_requests), entries - 1);
        let mut passed = 0;
        for round in 1..4 {
            // Everything but the entry that stays empty, and what did not fit was thrown away.
            let all: Vec<_> = (1..entries).map(request).collect();
            arrive(&fake, &all);
            fake.set32(offset::PRS, fake.get32(offset::PRS) | PRO);
            let (seen, more) = turn(&vtd, entries as usize);
            let mut addresses = seen.iter().filter_map(|s| match s {
                Seen::Request(r) => Some(r.address >> 12),
                _ => None,
            });
            assert!(addresses.by_ref().eq(1..entries), "{entries} entries, round {round}");
            passed += entries - 1;
            assert!(seen.contains(&Seen::Passed(passed)) && seen.contains(&Seen::Overflow));
            assert_eq!((more, fake.get32(offset::PRS) & PRO), (More::Yes, 0));
            assert_eq!(fake.get64(offset::PQH), passed % entries * 32, "where hardware writes next");
            assert_eq!(fake.get64(offset::PQH), fake.get64(offset::PQT));
        }
    }
}

#[test]
fn a_tail_outside_of_the_queue_leads_nowhere_else() {
    for (order, options) in sizes() {
        let (fake, vtd) = running_with(cap(), scalable_ecap(), options);
        let size = 4096u64 << order;
        arrive(&fake, &[request(1)]);
        fake.set64(offset::PQT, (size + 32) & 0x7_ffe0);
        let (seen, _) = turn(&vtd, 10);
        let requests = seen.iter().filter(|s| matches!(s, Seen::Request(_)));
        assert_eq!(requests.count(), 1, "PQS {order}");
    }
}

#[test]
fn an_invalidation_queue_of_every_size_fills_and_wraps() {
    for wide in [false, true] {
        for (order, options) in sizes() {
            let ecap = if wide { scalable_ecap() } else { legacy_ecap() };
            let (fake, vtd) = running_with(cap(), ecap, options);
            let entries = if wide { 128 } else { 256 } << order;
            assert_eq!(fake.get64(offset::IQA) & 7, order);
            assert_eq!(u64::from(vtd.caps().invalidations), entries - 1);
            let tag = CacheTag { tag: DomainTag(7), at: rid(), ats: false, nested: false };
            let batch = Batch { tags: &[tag], desc: desc(VTD_SECOND_STAGE), range: None, non_leaf: true };
            let mut issued = 0;
            for _ in 0..3 {
                let mut last = InvSeq(0);
                // An invalidation and a wait each: one slot stays empty, and the last is left alone.
                for _ in 0..(entries - 1) / 2 {
                    last = vtd.submit(&batch).unwrap();
                    issued += 2;
                }
                assert_eq!(vtd.submit(&batch), Err(SubmitError::Full), "{entries} entries");
                assert_eq!(fake.tail(), issued % entries);
                assert_eq!(vtd.done(last), Poll::Pending);
                let queued = fake.queued();
                assert_eq!(queued.len() as u64, (entries - 1) / 2 * 2);
                assert!(queued.iter().step_by(2).all(|d| d[0] & 0xf == 2), "IOTLB invalidations");
                fake.complete_all();
                assert_eq!(vtd.done(last), Poll::Ready(Ok(())), "each wait has a status word of its own");
            }
        }
    }
}

#[test]
fn status_words_of_a_large_queue_are_not_shared() {
    let options = Options { invalidation_queue: QueueSize::of_pages(16), ..Options::default() };
    let (fake, vtd) = running_with(cap(), scalable_ecap(), options);
    let tag = CacheTag { tag: DomainTag(7), at: rid(), ats: false, nested: false };
    let batch = Batch { tags: &[tag], desc: desc(VTD_SECOND_STAGE), range: None, non_leaf: true };
    let first = vtd.submit(&batch).unwrap();
    fake.fetch(2, true);
    // Nobody looks until 1024 slots further on, where another frame of status words begins.
    for _ in 0..512 {
        let _ = vtd.submit(&batch).unwrap();
    }
    assert_eq!(vtd.done(first), Poll::Ready(Ok(())));
}

#[test]
fn where_memory_is_in_pieces_the_queues_are_smaller_and_say_so() {
    for order in 0..3 {
        let fake = Fake::new(cap(), scalable_ecap());
        fake.limit_runs(order);
        let size = QueueSize::of_pages(8);
        let options = Options { page_request_queue: size, invalidation_queue: size, ..Options::default() };
        let vtd = Vtd::new(fake.clone(), Window(0), options);
        assert_eq!(finish_start(&fake, &vtd), Ok(()));
        assert_eq!((fake.get64(offset::IQA) & 7, fake.get64(offset::PQA) & 7), (order.into(), order.into()));
        let entries = 128 << order;
        let caps = vtd.caps();
        assert_eq!((caps.page_requests, caps.invalidations), (entries - 1, entries - 1));
    }
}

#[test]
fn status_words_that_have_no_room_make_the_queue_smaller() {
    let fake = Fake::new(cap(), legacy_ecap());
    // 128 pages of 128-bit descriptors have 128 KiB of status words.
    let options = Options { invalidation_queue: QueueSize::MAX, ..Options::default() };
    fake.limit_runs(7);
    fake.limit_frames(2);
    let vtd = Vtd::new(fake.clone(), Window(0), options);
    assert!(finish_start(&fake, &vtd).is_err());
    assert_eq!(fake.frames_in_use(), 0, "what was there without its status words was given back");
}
