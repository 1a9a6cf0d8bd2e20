//! Page requests, drains, responses and faults: what comes from devices.

use super::*;
use portcullis::{
    Access, Answer, FaultKind, Intake, RawFault, Reason, Turn, VendorBits,
    driver::{DrainEnd, More, Offer, PageRequest, QueuePos, Stall, Taken},
};
use portcullis_spec::vtd::regs::offset;
use portcullis_sync::slot::SlotWord;
use std::{
    sync::{Arc, Mutex},
    vec,
    vec::Vec,
};

#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Request(PageRequest),
    Malformed(PageRequest),
    Fault(RawFault),
    Passed(u64),
    Overflow,
    Completed,
}

#[derive(Default)]
struct Log {
    seen: Vec<Seen>,
    full: bool,
}

impl Log {
    fn take(&mut self, seen: Seen) -> Taken {
        if self.full {
            return Taken::NoRoom;
        }
        self.seen.push(seen);
        Taken::Yes
    }
}

impl Intake for Log {
    fn page_request(&mut self, request: PageRequest) -> Taken {
        self.take(Seen::Request(request))
    }
    fn malformed(&mut self, request: PageRequest) -> Taken {
        self.take(Seen::Malformed(request))
    }
    fn stalled(&mut self, stall: Stall) -> Taken {
        unreachable!("VT-d stalls nothing: {stall:?}")
    }
    fn stalls_ended(&mut self, source: SourceId) {
        unreachable!("VT-d stalls nothing: {source}")
    }
    fn fault(&mut self, fault: RawFault) {
        self.seen.push(Seen::Fault(fault));
    }
    fn passed(&mut self, head: QueuePos) {
        self.seen.push(Seen::Passed(head.0));
    }
    fn overflow(&mut self) {
        self.seen.push(Seen::Overflow);
    }
    fn completed(&mut self) {
        self.seen.push(Seen::Completed);
    }
}

pub(super) fn turn(vtd: &Vtd<Fake>, budget: usize) -> (Vec<Seen>, More) {
    let mut log = Log::default();
    let more = vtd.service(&mut Turn::new(&mut log, budget));
    (log.seen, more)
}

const PPR: u32 = 1;
const PRO: u32 = 2;

/// 01:02.3, PASID 0x42, PP.
const WITH_PASID: u64 = 0x0000_0042_0113_0101;
/// 01:02.3, without PASID.
const WITHOUT: u64 = 0x0113_0001;

/// Writes entries as hardware does.
pub(super) fn arrive(fake: &Fake, entries: &[[u64; 4]]) {
    for e in entries {
        let tail = fake.get64(offset::PQT);
        let at = (fake.get64(offset::PQA) & !0xfff) + tail;
        for (i, q) in e.iter().enumerate() {
            fake.poke(at + 8 * i as u64, *q);
        }
        // PQS in bits 2:0.
        let size = 4096 << (fake.get64(offset::PQA) & 7);
        fake.set64(offset::PQT, (tail + 32) % size);
    }
    fake.set32(offset::PRS, fake.get32(offset::PRS) | PPR);
}

/// Read of page `address`, last of group 0x155.
fn read_last(q0: u64, address: u64) -> [u64; 4] {
    [q0, address | 0x155 << 3 | 0b101, 0, 0]
}

pub(super) fn only(seen: Vec<Seen>) -> Seen {
    let mut of_interest = seen.into_iter().filter(|s| !matches!(s, Seen::Passed(_)));
    let one = of_interest.next().expect("something was handed over");
    assert_eq!(of_interest.next(), None);
    one
}

#[test]
fn a_request_as_the_manual_draws_it() {
    let (fake, vtd) = scalable();
    assert!(!vtd.interrupt());
    arrive(&fake, &[read_last(WITH_PASID, 0x7fff_1234_5000)]);
    assert!(vtd.interrupt());
    let (seen, more) = turn(&vtd, 10);
    let expected = PageRequest {
        source: SOURCE,
        pasid: Pasid::new(0x42),
        index: 0x155,
        address: 0x7fff_1234_5000,
        read: true,
        write: false,
        exec: false,
        privileged: false,
        last: true,
        own_answer: false,
        vendor: VendorBits([WITH_PASID, 0x7fff_1234_5aad, 0, 0]),
    };
    assert_eq!(seen, [Seen::Request(expected), Seen::Passed(1)]);
    assert_eq!(more, More::No);
    assert_eq!(fake.get64(offset::PQH), 32);
    assert!(!vtd.interrupt(), "PPR was cleared");
}

#[test]
fn the_status_is_cleared_before_the_tail_is_read() {
    let (fake, vtd) = scalable();
    arrive(&fake, &[read_last(WITHOUT, 0x1000)]);
    fake.writes();
    let _ = turn(&vtd, 10);
    let writes = fake.writes();
    assert_eq!(writes, [(offset::PRS, u64::from(PPR)), (offset::PQH, 32)]);
}

#[test]
fn what_no_device_may_ask_is_malformed() {
    let read = |q0| read_last(q0, 0x1000);
    let cases = [
        ("unknown type", read(WITHOUT + 1)),
        ("reserved bits 63:54", read(WITHOUT | 1 << 60)),
        ("reserved bits 15:9", read(WITHOUT | 1 << 9)),
        ("upper quadwords", [WITHOUT, 0x1005, 1, 0]),
        ("upper quadwords", [WITHOUT, 0x1005, 0, 1]),
        ("privileged", read(WITH_PASID | 1 << 53)),
        ("execute", read(WITH_PASID | 1 << 52)),
        ("PASID 0", read(WITHOUT | 1 << 8)),
        ("not canonical", read_last(WITHOUT, 0x0001_0000_0000_0000)),
        ("not canonical", read_last(WITHOUT, 0xffff_7fff_ffff_f000)),
        ("neither read nor write", [WITHOUT, 0x1000, 0, 0]),
    ];
    for (why, entry) in cases {
        let (fake, vtd) = scalable();
        arrive(&fake, &[entry]);
        let seen = only(turn(&vtd, 10).0);
        assert!(matches!(seen, Seen::Malformed(_)), "{why}: {seen:?}");
    }
    for address in [0xffff_8000_0000_0000, 0x8000_0000_0000, 0] {
        let (fake, vtd) = scalable();
        arrive(&fake, &[read_last(WITHOUT, address)]);
        assert!(matches!(only(turn(&vtd, 10).0), Seen::Request(_)));
    }
}

#[test]
fn where_tables_have_5_levels_requests_are_as_wide() {
    for (sagaw, fs5lp) in [(0b01000, false), (0b00100, true)] {
        let cap = cap().with_sagaw(sagaw).with_mgaw(56).with_fs5lp(fs5lp);
        for (address, fits) in [
            (0xffff_7fff_ffff_f000, true),
            (0x01ff_ffff_ffff_f000, true),
            (0x0200_0000_0000_0000, false),
            (0xfeff_ffff_ffff_f000, false),
        ] {
            let (fake, vtd) = running(cap, scalable_ecap());
            arrive(&fake, &[read_last(WITHOUT, address)]);
            let seen = only(turn(&vtd, 10).0);
            assert_eq!(matches!(seen, Seen::Request(_)), fits, "{address:#x}: {seen:?}");
        }
    }
}

#[test]
fn a_stop_marker_is_passed_and_not_told() {
    let (fake, vtd) = scalable();
    arrive(&fake, &[[WITH_PASID, 0b100, 0, 0], read_last(WITHOUT, 0x1000)]);
    let (seen, _) = turn(&vtd, 10);
    assert!(matches!(seen[..], [Seen::Request(_), Seen::Passed(2)]));
}

#[test]
fn what_the_core_does_not_take_stays() {
    let (fake, vtd) = scalable();
    arrive(&fake, &[read_last(WITHOUT, 0x1000); 3]);
    let mut log = Log { full: true, ..Log::default() };
    let more = vtd.service(&mut Turn::new(&mut log, 10));
    assert_eq!((log.seen, more), (vec![Seen::Passed(0)], More::Yes));
    assert_eq!(fake.get64(offset::PQH), 0);
    // A turn's bound.
    let (seen, more) = turn(&vtd, 2);
    assert!(matches!(seen[..], [_, _, Seen::Passed(2)]));
    assert_eq!(more, More::Yes);
    let (seen, more) = turn(&vtd, 2);
    assert!(matches!(seen[..], [_, Seen::Passed(3)]));
    assert_eq!(more, More::No);
}

#[test]
fn the_queue_wraps() {
    let (fake, vtd) = scalable();
    for n in 1..=1200 {
        arrive(&fake, &[read_last(WITHOUT, n << 12)]);
        let (seen, _) = turn(&vtd, 10);
        assert!(matches!(&seen[..], [Seen::Request(r), Seen::Passed(p)]
            if r.address == n << 12 && *p == n));
    }
    assert_eq!(fake.get64(offset::PQH), 1200 % 512 * 32);
}

#[test]
fn an_overflow_is_cleared_when_the_queue_is_empty() {
    let (fake, vtd) = scalable();
    arrive(&fake, &[read_last(WITHOUT, 0x1000); 3]);
    fake.set32(offset::PRS, PPR | PRO);
    let (seen, more) = turn(&vtd, 2);
    assert!(matches!(seen[..], [_, _, Seen::Passed(2)]));
    assert_eq!((more, fake.get32(offset::PRS)), (More::Yes, PRO));
    let (seen, more) = turn(&vtd, 2);
    assert!(matches!(seen[..], [_, Seen::Passed(3), Seen::Overflow]));
    // Something may have come in between: look again.
    assert_eq!((more, fake.get32(offset::PRS)), (More::Yes, 0));
    assert_eq!(turn(&vtd, 2).1, More::No);
}

#[test]
fn a_drain_names_the_position_that_has_to_be_passed() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    let at = with_pasid(0x42);
    let _ = attach(&vtd, at, first_stage(0x22, 0x1000));
    let _ = vtd.block(at).unwrap();
    fake.complete_all();
    let seq = vtd.drain(at).unwrap();
    let mut queued = fake.queued();
    queued[4][1] = 0;
    // Fence; the domain's IOTLB and the PASID's device TLB; a wait with SW, FN and PD.
    assert_eq!(
        queued,
        [
            [0x45, 0, 0, 0],
            [0xe2 | 0x22 << 16, 0, 0, 0],
            [0x45, 0, 0, 0],
            [8 | 0x0113 << 16 | 0x42 << 32, 0x7fff_ffff_ffff_f800, 0, 0],
            [0x1_0000_00e5, 0, 0, 0],
        ]
    );
    arrive(&fake, &[read_last(WITH_PASID, 0x1000); 2]);
    let _ = turn(&vtd, 1);
    arrive(&fake, &[read_last(WITH_PASID, 0x1000); 2]);
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())));
    assert_eq!(vtd.drain_end(at), DrainEnd::At(QueuePos(4)));
}

#[test]
fn faults_are_told_again_after_the_drain() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    let _ = attach(&vtd, rid(), second_stage(5, 0x1000));
    let low = {
        let root = fake.get64(offset::RTADDR) & !0xfff;
        let context = (fake.peek(root + 16) & !0xfff) + 0x13 * 32;
        let directory = fake.peek(context) & !0xfff;
        fake.peek(directory) & !0xfff
    };
    assert_eq!(fake.peek(low) & 3, 1);
    let _ = vtd.block(rid()).unwrap();
    assert_eq!(fake.peek(low) & 3, 2, "FPD without P");
    let _ = vtd.drain(rid()).unwrap();
    fake.complete_all();
    assert_eq!(vtd.drain_end(rid()), DrainEnd::At(QueuePos(0)));
    assert_eq!(fake.peek(low) & 3, 0);
}

#[test]
fn an_overflow_during_the_drain_repeats_it() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    assert_eq!(vtd.drain_end(rid()), DrainEnd::Again, "none was begun");
    let _ = vtd.drain(rid()).unwrap();
    fake.set32(offset::PRS, PRO);
    fake.complete_all();
    assert_eq!(vtd.drain_end(rid()), DrainEnd::Again, "PRO is set");
    let _ = turn(&vtd, 10);
    assert_eq!(fake.get32(offset::PRS), 0);
    assert_eq!(vtd.drain_end(rid()), DrainEnd::Again, "it was set meanwhile");
    let _ = vtd.drain(rid()).unwrap();
    fake.complete_all();
    assert_eq!(vtd.drain_end(rid()), DrainEnd::At(QueuePos(0)));
    assert_eq!(vtd.drain_end(rid()), DrainEnd::Again, "told once");
}

/// PRO is clear already, and what it stood for is not forgotten yet.
#[test]
fn a_drain_that_ends_while_the_overflow_is_cleared_is_repeated() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    let _ = vtd.drain(rid()).unwrap();
    fake.complete_all();
    fake.set32(offset::PRS, PRO);
    let vtd = Arc::new(vtd);
    let (other, seen) = (vtd.clone(), Arc::new(Mutex::new(None)));
    let note = seen.clone();
    // PPR is cleared first, PRO at the end of the turn.
    fake.after_write(offset::PRS, |f| {
        f.after_write(offset::PRS, move |f| {
            assert_eq!(f.get32(offset::PRS), 0);
            *note.lock().unwrap() = Some(other.drain_end(rid()));
        });
    });
    let _ = turn(&vtd, 10);
    assert_eq!(*seen.lock().unwrap(), Some(DrainEnd::Again));
}

#[test]
fn a_device_that_does_not_answer_is_not_asked_by_its_drain() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    let seq = vtd.drain(rid()).unwrap();
    fake.fetch(4, false);
    fake.set64(offset::IQERCD, 0x0113 << 32);
    fake.set32(offset::FSTS, 1 << 6);
    assert_eq!(vtd.done(seq), Poll::Pending);
    fake.complete_all();
    let timed_out = portcullis::driver::InvError::DeviceTimeout(SOURCE);
    assert_eq!(vtd.done(seq), Poll::Ready(Err(timed_out)));
    let _ = vtd.cut_off(SOURCE).unwrap();
    let seq = vtd.drain(rid()).unwrap();
    assert!(fake.queued().iter().all(|d| d[0] & 0xf != 3));
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())), "it can send nothing: that is proof enough");
    assert_eq!(vtd.drain_end(rid()), DrainEnd::At(QueuePos(0)));
}

#[test]
fn many_points_of_a_device_are_drained_at_once() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, all_features()).unwrap();
    let ended = |at| vtd.drain_end(at) == DrainEnd::At(QueuePos(0));
    // Four are under way; a fifth does not push one of them out.
    for n in 1..=4 {
        let _ = vtd.drain(with_pasid(n)).unwrap();
    }
    assert_eq!(vtd.drain(with_pasid(5)), Err(portcullis::driver::SubmitError::Full));
    let seq = vtd.drain(with_pasid(1)).unwrap();
    fake.complete_all();
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())));
    assert!((1..=4).all(|n| ended(with_pasid(n))));

    // One that was given up half-way keeps its place only until its fence is complete.
    for n in 1..=4 {
        let _ = vtd.drain(with_pasid(n)).unwrap();
    }
    fake.complete_all();
    let _ = vtd.drain(with_pasid(5)).unwrap();
    fake.complete_all();
    assert!(ended(with_pasid(5)));
    assert_eq!(vtd.drain_end(with_pasid(1)), DrainEnd::Again, "others do not answer for it");
}

#[test]
fn responses_are_addressed_as_the_request_was() {
    for (q0, code, wire, pasid_bits) in [
        (WITH_PASID, 0, 0, 0x42 << 32 | 1 << 4),
        (WITH_PASID, 1, 1, 0x42 << 32 | 1 << 4),
        (WITHOUT, 0, 0, 0),
        (WITHOUT, 2, 0xf, 0),
    ] {
        let (fake, vtd) = scalable();
        arrive(&fake, &[read_last(q0, 0x1000)]);
        let Seen::Request(request) = only(turn(&vtd, 10).0) else {
            panic!("a request");
        };
        let slot = SlotWord::new();
        let generation = slot.arm().unwrap();
        let answer = Answer::new(&request, &slot, generation);
        assert_eq!(vtd.page_response(&answer), Offer::Done);
        assert_eq!(fake.queued(), [] as [[u64; 4]; 0], "not decided yet");
        assert!(slot.answer(generation, code));
        assert_eq!(vtd.page_response(&answer), Offer::Done);
        assert_eq!(vtd.page_response(&answer), Offer::Done, "and not twice");
        let queued = fake.queued();
        assert_eq!(queued.len(), 2);
        // Type 9, RC, RID; PRGI in bits 75:67.
        let expected = 9 | wire << 12 | 0x0113 << 16 | pasid_bits;
        assert_eq!(queued[0], [expected, 0x155 << 3, 0, 0]);
    }
}

/// Puts a record into a fault recording register.
fn record(fake: &Fake, index: u32, low: u64, high: u64) {
    fake.set64(0x220 + 16 * index, low);
    fake.set64(0x228 + 16 * index, high);
    let fsts = fake.get32(offset::FSTS);
    if fsts & 2 == 0 {
        fake.set32(offset::FSTS, fsts | 2 | index << 8);
    }
}

const F: u64 = 1 << 63;
/// T1: a read.
const READ: u64 = 1 << 62;

#[test]
fn fault_records_are_read_from_the_oldest_on() {
    let (fake, vtd) = scalable();
    record(&fake, 3, 0x1000, F | READ | 0x86 << 32 | 0x0113);
    record(&fake, 0, 0x2000, F | 0x85 << 32 | 0x0113);
    assert!(vtd.interrupt());
    let (seen, more) = turn(&vtd, 10);
    let fault = |access, address, code, high| {
        Seen::Fault(RawFault {
            source: Some(SOURCE),
            access,
            address: Some(address),
            address_mask: !0xfff,
            code,
            raw: [address, high, 0, 0],
            ..RawFault::new(FaultKind::Dma, Reason::Permission)
        })
    };
    assert_eq!(
        seen,
        [
            fault(Access::Read, 0x1000, 0x86, F | READ | 0x86 << 32 | 0x0113),
            fault(Access::Write, 0x2000, 0x85, F | 0x85 << 32 | 0x0113),
            Seen::Passed(0)
        ]
    );
    assert_eq!(more, More::No);
    assert!(!vtd.interrupt());
}

#[test]
fn a_bound_turn_leaves_records_for_the_next() {
    let (fake, vtd) = scalable();
    for i in 0..4 {
        record(&fake, i, 0x1000, F | 0x71 << 32 | u64::from(i));
    }
    fake.set32(offset::FSTS, fake.get32(offset::FSTS) | 1);
    let (seen, more) = turn(&vtd, 3);
    assert_eq!((seen.len(), more), (4, More::Yes));
    assert_eq!(fake.get32(offset::FSTS) & 1, 1, "PFO waits for the last record");
    // FRI stays at the record that was the first when PPF became set.
    assert_eq!(fake.get32(offset::FSTS) & 0xff02, 2);
    let (seen, more) = turn(&vtd, 3);
    assert!(matches!(&seen[..], [Seen::Fault(_), Seen::Fault(o), Seen::Passed(0)]
        if o.kind == FaultKind::Overflow));
    assert_eq!((more, fake.get32(offset::FSTS) & 3), (More::No, 0));
}

/// All bits of the fault status share one event, which is sent only if none was set.
#[test]
fn what_comes_while_another_bit_is_served_is_looked_at_again() {
    const ITE: u32 = 1 << 6;
    let (fake, vtd) = scalable();
    record(&fake, 0, 0x1000, F | 0x71 << 32 | 0x0113);
    fake.after_write(0x22c, |f| f.set32(offset::FSTS, f.get32(offset::FSTS) | ITE));
    let (seen, more) = turn(&vtd, 10);
    assert!(matches!(seen[..], [Seen::Fault(_), Seen::Passed(0)]));
    assert_eq!(more, More::Yes, "the time-out has no event of its own");
    let (seen, more) = turn(&vtd, 10);
    assert!(matches!(&seen[..], [Seen::Fault(f), Seen::Passed(0)] if f.code == ITE));
    assert_eq!((more, fake.get32(offset::FSTS)), (More::No, 0));
}

#[test]
fn a_completion_that_nobody_asked_for_does_not_silence_faults() {
    const ICE: u32 = 1 << 5;
    let (fake, vtd) = scalable();
    fake.set64(offset::IQERCD, 0x0113 << 48);
    fake.set32(offset::FSTS, ICE);
    assert!(vtd.interrupt());
    let (seen, more) = turn(&vtd, 10);
    assert!(matches!(&seen[..], [Seen::Fault(f), Seen::Passed(0)]
        if f.source == Some(SOURCE) && (f.code, f.reason) == (ICE, Reason::UnexpectedCompletion)));
    assert_eq!((more, fake.get32(offset::FSTS)), (More::No, 0), "cleared although the queue is empty");
}

#[test]
fn what_a_record_says() {
    let decode = |high: u64| {
        let bits = u128::from(high) << 64 | 0xabc_d000;
        crate::vtd::faults::decode(portcullis_spec::vtd::regs::Frcd::from_bits(bits))
    };
    // PASID 0x42, execute, privileged; SFS.2.
    let f = decode(F | READ | 0x42 << 40 | 0x71 << 32 | 0xe000_0000 | 0x0113);
    assert_eq!((f.access, f.reason), (Access::Execute, Reason::NotMapped));
    assert_eq!((f.pasid, f.privileged), (Pasid::new(0x42), true));
    // AT 01b: a translation request; SCT.5.
    let f = decode(F | 1 << 60 | 0x44 << 32);
    assert_eq!((f.access, f.reason), (Access::Translate, Reason::RequestType));
    // T2: a page request; SPT.2.
    let f = decode(F | 0x59 << 32 | 1 << 28);
    assert_eq!((f.kind, f.reason), (FaultKind::PageRequest, Reason::Blocked));
    // T1 and T2: an atomic operation; SGN.8.
    let f = decode(F | READ | 0x87 << 32 | 1 << 28);
    assert_eq!((f.access, f.reason), (Access::Atomic, Reason::InterruptRange));
    // A reserved bit in a PASID-table entry is our fault, not the device's.
    let f = decode(F | 0x5a << 32);
    assert_eq!((f.kind, f.reason), (FaultKind::Configuration, Reason::BadEntry));
    // Interrupt remapping has no address.
    let f = decode(F | 0x22 << 32);
    assert_eq!((f.kind, f.address), (FaultKind::InterruptRemapping, None));
    // A code that the manual does not know.
    let f = decode(F | 0xee << 32);
    assert_eq!((f.code, f.reason), (0xee, Reason::Other));
}

#[test]
fn a_completion_while_the_last_one_is_acknowledged_is_not_lost() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, Features::default()).unwrap();
    let seq = vtd.cut_off(SOURCE).unwrap();
    fake.set32(offset::ICS, 1);
    // Before the write takes effect, so that IWC is clear afterwards.
    fake.after_write(offset::ICS, Fake::complete_all);
    assert_eq!(turn(&vtd, 10).0, [Seen::Completed, Seen::Passed(0)]);
    assert_eq!(vtd.done(seq), Poll::Ready(Ok(())));
}

#[test]
fn queue_errors_and_completions_are_told() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, ats()).unwrap();
    let _ = attach(&vtd, rid(), second_stage(5, 0x1000));
    let _ = vtd.block(rid()).unwrap();
    fake.fetch(4, false);
    fake.set64(offset::IQERCD, 0x0113 << 32);
    fake.set32(offset::FSTS, 1 << 6);
    assert!(vtd.interrupt());
    let (seen, _) = turn(&vtd, 10);
    assert!(matches!(&seen[..], [Seen::Fault(f), Seen::Passed(0)]
        if f.source == Some(SOURCE) && f.kind == FaultKind::Configuration && f.code == 1 << 6));
    fake.complete_all();
    fake.set32(offset::ICS, 1);
    assert!(vtd.interrupt());
    assert_eq!(turn(&vtd, 10).0, [Seen::Completed, Seen::Passed(0)]);
    assert!(!vtd.interrupt());
    assert_eq!(turn(&vtd, 10).0, [Seen::Passed(0)], "told once");
}
