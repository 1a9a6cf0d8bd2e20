//! The invalidation queue: wrap-around, room, and what happens when it stops.

use super::{fake::Did, *};
use portcullis::{
    Answer, Code, VendorBits,
    driver::{Batch, CacheTag, HwLost, InvError, Offer, PageRequest, SubmitError},
};
use portcullis_spec::vtd::{
    qi::{Desc, DescType},
    regs::offset,
};
use portcullis_sync::slot::{SlotWord, State};
use std::vec::Vec;

const A: SourceId = SourceId(0x0100);
const B: SourceId = SourceId(0x0200);
const ITE: u32 = 1 << 6;
const ICE: u32 = 1 << 5;
const IQE: u32 = 1 << 4;

fn two_devices() -> (Fake, Vtd<Fake>) {
    let (fake, vtd) = scalable();
    for source in [A, B] {
        vtd.add_device(source, all_features()).unwrap();
    }
    (fake, vtd)
}

/// Invalidates everything of the given requesters, their own TLBs too.
fn submit(vtd: &Vtd<Fake>, sources: &[SourceId]) -> Result<InvSeq, SubmitError> {
    let tags: Vec<CacheTag> = sources
        .iter()
        .map(|&source| CacheTag {
            tag: DomainTag(source.0),
            at: At { source, pasid: None },
            ats: true,
            nested: false,
        })
        .collect();
    vtd.submit(&Batch { tags: &tags, desc: desc(VTD_SECOND_STAGE), range: None, non_leaf: true })
}

fn time_out(fake: &Fake, source: u64) {
    fake.set64(offset::IQERCD, source << 32);
    fake.set32(offset::FSTS, fake.get32(offset::FSTS) | ITE);
}

fn is(d: &Desc, ty: DescType) -> bool {
    DescType::field(d) == ty.bits()
}

/// The requesters that the queue is about to ask.
fn asked(fake: &Fake) -> Vec<u64> {
    let queued = fake.queued();
    let asked = queued.iter().filter(|d| is(d, DescType::DevTlb));
    asked.map(|d| d[0] >> 32 & 0xffff).collect()
}

fn responses(fake: &Fake) -> usize {
    let queued = fake.queued();
    let found = queued.iter().filter(|d| is(d, DescType::PageGroupResponse));
    found.count()
}

fn respond(vtd: &Vtd<Fake>, slot: &SlotWord) -> Offer {
    let request = PageRequest {
        source: B,
        pasid: None,
        index: 3,
        address: 0,
        read: true,
        write: false,
        exec: false,
        privileged: false,
        last: true,
        own_answer: false,
        vendor: VendorBits([0x0200_0001, 0x1d, 0, 0]),
    };
    let generation = match slot.peek() {
        (_, State::Unused) => {
            let g = slot.arm().unwrap();
            assert!(slot.answer(g, 0));
            g
        }
        (g, _) => g,
    };
    let answer = Answer::new(&request, slot, generation);
    vtd.page_response(&answer)
}

#[test]
fn the_ring_wraps() {
    let (fake, vtd) = two_devices();
    let mut last = InvSeq(0);
    for _ in 0..200 {
        let seq = submit(&vtd, &[A]).unwrap();
        assert!(seq > last);
        last = seq;
        assert_eq!(vtd.done(seq), Poll::Pending);
        // IOTLB, fence, device TLB, wait.
        assert_eq!(fake.queued().len(), 4);
        fake.complete_all();
        assert_eq!(vtd.done(seq), Poll::Ready(Ok(())));
    }
    assert_eq!(vtd.done(InvSeq(1)), Poll::Ready(Ok(())));
    assert_eq!(fake.tail(), 200 * 4 % 256);
}

/// What was written to the queue's frame is visible before hardware is told to go on by `register`.
fn visible_before(fake: &Fake, register: u32) {
    let done = fake.done_around(fake.get64(offset::IQA) & !0xfff);
    let told = done.iter().position(|d| *d == Did::Write(register)).unwrap();
    let written = done[..told].iter().rposition(|d| matches!(d, Did::Store(..))).unwrap();
    assert!(done[written..told].contains(&Did::Barrier), "{done:?}");
}

#[test]
fn descriptors_are_visible_before_hardware_goes_on() {
    let (fake, vtd) = two_devices();
    fake.done_around(0);
    let seq = submit(&vtd, &[A]).unwrap();
    visible_before(&fake, offset::IQT);
    let _ = submit(&vtd, &[B]).unwrap();
    fake.fetch(3, false);
    time_out(&fake, A.0.into());
    fake.done_around(0);
    let _ = vtd.done(seq);
    visible_before(&fake, offset::FSTS);
}

#[test]
fn a_full_queue_takes_nothing_until_something_completed() {
    let (fake, vtd) = two_devices();
    let mut taken = 0;
    while submit(&vtd, &[A]).is_ok() {
        taken += 1;
    }
    // 255 slots of 256 can be used.
    assert_eq!(taken, 255 / 4);
    let tail = fake.tail();
    assert_eq!(submit(&vtd, &[A]), Err(SubmitError::Full));
    assert_eq!(fake.tail(), tail, "nothing was queued");
    // Three slots are left: a response fits, an answer that finds no room keeps its slot.
    let (first, second) = (SlotWord::new(), SlotWord::new());
    assert_eq!(respond(&vtd, &first), Offer::Done);
    assert_eq!(respond(&vtd, &second), Offer::Full);
    assert!(matches!(second.peek().1, State::Answered(0)));
    fake.complete_all();
    assert_eq!(respond(&vtd, &second), Offer::Done);
    assert!(submit(&vtd, &[A]).is_ok());
}

#[test]
fn a_full_queue_leaves_entries_alone() {
    let (fake, vtd) = two_devices();
    let at = At { source: A, pasid: None };
    let _ = attach(&vtd, at, second_stage(5, 0x1000));
    while submit(&vtd, &[A]).is_ok() {}
    fake.writes();
    assert_eq!(vtd.block(at), Err(SubmitError::Full));
    let prepared = vtd.prepare(at, second_stage(6, 0x2000)).unwrap();
    assert_eq!(prepared.change, portcullis::driver::Change::Hitless);
    let (prepared, e) = vtd.commit(prepared).unwrap_err();
    assert_eq!(e, SubmitError::Full);
    vtd.abandon(prepared);
    // Still present: a first stage would have to go through blocked.
    let prepared = vtd.prepare(at, first_stage(7, 0x3000)).unwrap();
    assert_eq!(prepared.change, portcullis::driver::Change::ThroughBlocked);
    vtd.abandon(prepared);
}

#[test]
fn waits_may_complete_out_of_order() {
    let (fake, vtd) = scalable();
    vtd.add_device(A, Features::default()).unwrap();
    let one = vtd.cut_off(A).unwrap();
    let two = vtd.cut_off(A).unwrap();
    fake.fetch(4, false);
    fake.fetch(4, true);
    assert_eq!(vtd.done(two), Poll::Pending, "everything up to it");
    assert_eq!(vtd.done(one), Poll::Pending);
}

#[test]
fn a_named_time_out_costs_its_device_alone() {
    let (fake, vtd) = two_devices();
    let dead = submit(&vtd, &[A, B]).unwrap();
    let other = submit(&vtd, &[B]).unwrap();
    let again = submit(&vtd, &[A]).unwrap();
    // Fetched up to the wait of the first submission: 2 IOTLB, fence, 2 device TLBs.
    fake.fetch(5, false);
    time_out(&fake, A.0.into());
    // Hardware goes on where its head is as soon as the bit is clear.
    fake.after_write(offset::FSTS, |f| {
        assert!(asked(f).is_empty() && f.queued().iter().all(|d| is(d, DescType::Wait)));
    });
    assert_eq!(vtd.done(other), Poll::Pending);
    assert_eq!(fake.get32(offset::FSTS) & ITE, 0, "hardware goes on");
    assert_eq!(asked(&fake), [u64::from(B.0), u64::from(B.0)], "A is not asked again");
    assert_eq!(vtd.done(dead), Poll::Pending, "the rest of it is not done yet");
    fake.complete_all();
    assert_eq!(vtd.done(dead), Poll::Ready(Err(InvError::DeviceTimeout(A))));
    assert_eq!(vtd.done(other), Poll::Ready(Ok(())));
    assert_eq!(vtd.done(again), Poll::Ready(Err(InvError::DeviceTimeout(A))));

    // Until A is cut off its submissions fail without asking it, after that it is left out.
    let seq = submit(&vtd, &[A, B]).unwrap();
    assert_eq!(asked(&fake), [u64::from(B.0)]);
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Err(InvError::DeviceTimeout(A))));
    let seq = vtd.cut_off(A).unwrap();
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())));
    let seq = submit(&vtd, &[A, B]).unwrap();
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())));
    // After a reset it is asked again.
    let _ = vtd.restore(A).unwrap();
    let _ = submit(&vtd, &[A]).unwrap();
    assert_eq!(asked(&fake), [u64::from(A.0)]);
}

#[test]
fn responses_behind_a_time_out_are_sent_once() {
    let (fake, vtd) = two_devices();
    let slots = [(); 3].map(|()| SlotWord::new());
    // Before the invalidation: executed, whatever happens later.
    assert_eq!(respond(&vtd, &slots[0]), Offer::Done);
    let dead = submit(&vtd, &[A]).unwrap();
    // Behind it, and behind its fence: fetched, but not executed.
    assert_eq!(respond(&vtd, &slots[1]), Offer::Done);
    // Behind it, and not even fetched.
    assert_eq!(respond(&vtd, &slots[2]), Offer::Done);
    fake.fetch(2 + 4 + 1, false);
    time_out(&fake, A.0.into());
    assert_eq!(vtd.done(dead), Poll::Pending);
    assert_eq!(responses(&fake), 2);
    fake.complete_all();
    assert_eq!(vtd.done(dead), Poll::Ready(Err(InvError::DeviceTimeout(A))));
    assert_eq!(responses(&fake), 0);
    assert_eq!(respond(&vtd, &slots[1]), Offer::Done, "taken before: nothing");
    assert_eq!(responses(&fake), 0);
}

#[test]
fn one_suspect_needs_no_name() {
    let (fake, vtd) = two_devices();
    let dead = submit(&vtd, &[A]).unwrap();
    let other = submit(&vtd, &[B]).unwrap();
    // Both fetched, but B's invalidation stands behind A's fence.
    fake.fetch(8, false);
    time_out(&fake, 0);
    assert_eq!(vtd.done(other), Poll::Pending);
    assert_eq!(asked(&fake), [u64::from(B.0)]);
    fake.complete_all();
    assert_eq!(vtd.done(dead), Poll::Ready(Err(InvError::DeviceTimeout(A))));
    assert_eq!(vtd.done(other), Poll::Ready(Ok(())));
}

/// Hardware still waits for what it sent before an earlier time-out.
#[test]
fn a_late_time_out_is_not_blamed_on_who_is_asked_now() {
    let (fake, vtd) = two_devices();
    const C: SourceId = SourceId(0x0300);
    vtd.add_device(C, all_features()).unwrap();
    let both = submit(&vtd, &[A, B]).unwrap();
    let other = submit(&vtd, &[C]).unwrap();
    fake.fetch(6, false);
    time_out(&fake, A.0.into());
    assert_eq!(vtd.done(other), Poll::Pending);
    // Hardware goes on, and has not reached B again when B's first invalidation runs out.
    fake.fetch(2, false);
    time_out(&fake, B.0.into());
    assert_eq!(vtd.done(other), Poll::Pending);
    assert_eq!(asked(&fake), [u64::from(C.0)]);
    // One of a device that is asked nothing any more: C goes unblamed, and is asked again.
    fake.fetch(fake.queued().len() as u64 - 1, false);
    time_out(&fake, B.0.into());
    assert_eq!(vtd.done(other), Poll::Pending);
    assert_eq!(asked(&fake), [u64::from(C.0)]);
    fake.complete_all();
    assert_eq!(vtd.done(other), Poll::Ready(Ok(())));
    assert!(matches!(vtd.done(both), Poll::Ready(Err(InvError::DeviceTimeout(_)))));
}

#[test]
fn suspects_are_asked_one_by_one() {
    let (fake, vtd) = two_devices();
    let seq = submit(&vtd, &[A, B]).unwrap();
    fake.fetch(6, false);
    time_out(&fake, 0);
    assert_eq!(vtd.done(seq), Poll::Pending);
    // Each with a wait of its own behind it, which is a fence.
    let queued = fake.queued();
    let kinds: Vec<u8> = queued.iter().map(DescType::field).collect();
    assert_eq!(kinds, [2, 2, 5, 3, 5, 3, 5, 5]);
    assert_eq!(queued[4][0] & 0x60, 0x60, "SW and FN");
    // A answers, B does not.
    fake.fetch(5, true);
    fake.fetch(2, false);
    time_out(&fake, 0);
    assert_eq!(vtd.done(seq), Poll::Pending);
    assert_eq!(asked(&fake), [] as [u64; 0]);
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Err(InvError::DeviceTimeout(B))));
}

#[test]
fn a_full_ring_recovers_in_isolation() {
    let (fake, vtd) = two_devices();
    let mut last = InvSeq(0);
    while let Ok(seq) = submit(&vtd, &[A, B]) {
        last = seq;
    }
    fake.fetch(6, false);
    time_out(&fake, 0);
    assert_eq!(vtd.done(last), Poll::Pending);
    // Isolation makes each submission longer: what does not fit waits its turn, and what is new
    // waits behind it.
    let mut refused = 0;
    while vtd.done(last) == Poll::Pending {
        let refusal = submit(&vtd, &[A]).is_err();
        refused += u32::from(refusal);
        fake.complete_all();
    }
    assert!((1..10).contains(&refused));
    for n in 1..=last.0 {
        assert_eq!(vtd.done(InvSeq(n)), Poll::Ready(Ok(())));
    }
}

#[test]
fn every_resting_place_of_the_head_recovers() {
    for fetched in 0..=12 {
        let (fake, vtd) = two_devices();
        let slot = SlotWord::new();
        let seqs = [submit(&vtd, &[A]), submit(&vtd, &[B, A]), submit(&vtd, &[B])];
        assert_eq!(respond(&vtd, &slot), Offer::Done);
        // The first device TLB is fetched in any case: it is what timed out.
        fake.fetch(fetched.max(3), false);
        time_out(&fake, A.0.into());
        let _ = vtd.done(seqs[2].unwrap());
        assert_eq!(responses(&fake), 1, "{fetched} fetched");
        for _ in 0..3 {
            fake.complete_all();
            let _ = vtd.done(seqs[2].unwrap());
        }
        let timed_out = Poll::Ready(Err(InvError::DeviceTimeout(A)));
        assert_eq!(vtd.done(seqs[0].unwrap()), timed_out);
        assert_eq!(vtd.done(seqs[1].unwrap()), timed_out);
        assert_eq!(vtd.done(seqs[2].unwrap()), Poll::Ready(Ok(())));
    }
}

#[test]
fn a_refused_descriptor_fails_its_submission_alone() {
    let (fake, vtd) = two_devices();
    let bad = submit(&vtd, &[A]).unwrap();
    let good = submit(&vtd, &[B]).unwrap();
    fake.set32(offset::FSTS, IQE);
    assert_eq!(vtd.done(bad), Poll::Pending);
    assert_eq!(fake.get32(offset::FSTS), 0);
    assert_eq!(fake.slot(0)[0] & 0xf, 5, "a wait in its place");
    fake.complete_all();
    assert_eq!(vtd.done(bad), Poll::Ready(Err(InvError::Lost(HwLost))));
    assert_eq!(vtd.done(good), Poll::Ready(Ok(())));
}

#[test]
fn a_unit_that_refuses_everything_is_lost() {
    let (fake, vtd) = two_devices();
    let seq = submit(&vtd, &[A]).unwrap();
    let mut tries = 0;
    while vtd.done(seq) == Poll::Pending {
        fake.set32(offset::FSTS, IQE);
        tries += 1;
        assert!(tries < 100);
    }
    assert_eq!(vtd.done(seq), Poll::Ready(Err(InvError::Lost(HwLost))));
    assert_eq!(submit(&vtd, &[A]), Err(SubmitError::Lost(HwLost)));
    assert_eq!(respond(&vtd, &SlotWord::new()), Offer::Lost);
    assert_eq!(fake.get32(offset::FSTS), IQE, "left alone: it would come back with an event each time");
}

#[test]
fn a_unit_that_is_not_there_any_more_is_lost() {
    let (fake, vtd) = two_devices();
    let seq = submit(&vtd, &[A]).unwrap();
    fake.set32(offset::FSTS, u32::MAX);
    assert_eq!(vtd.done(seq), Poll::Ready(Err(InvError::Lost(HwLost))));
}

#[test]
fn an_invalid_completion_does_not_stop_the_queue() {
    let (fake, vtd) = two_devices();
    let seq = submit(&vtd, &[A]).unwrap();
    fake.set64(offset::IQERCD, 0x0200 << 48);
    fake.set32(offset::FSTS, ICE);
    assert_eq!(vtd.done(seq), Poll::Pending);
    assert_eq!(fake.get32(offset::FSTS), 0);
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())));
}

#[test]
fn wire_codes() {
    for (code, wire) in [(Code::Success, 0), (Code::Invalid, 1), (Code::Failure, 15)] {
        assert_eq!(crate::vtd::prq::wire_code(code).bits(), wire);
    }
}
