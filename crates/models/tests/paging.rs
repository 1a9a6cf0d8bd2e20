//! Device TLBs, page requests and their queue, with a small operating system that serves them.

mod common;

use std::sync::Arc;

use common::*;
use portcullis_models::adversary::{Action, Adversary, Level};
use portcullis_models::bus::{Pasid, Prefix, ResponseCode};
use portcullis_models::complex::{Complex, Work};
use portcullis_models::endpoint::{
    CopyEngine, Endpoint, Flood, FloodConfig, Idle, Intent, Job, JobEnd, Rogue, RogueConfig, Violation,
};
use portcullis_models::iommu::Width;
use portcullis_models::log::{DropCause, Settlement, What};
use portcullis_models::memory::Memory;
use portcullis_models::mutation::Mutations;
use portcullis_models::testing::Events;
use portcullis_models::vtd::{Config, Vtd, step};
use portcullis_spec::vtd::fault::FaultReason;
use portcullis_spec::vtd::page_req::{PageRequest, ResponseCode as Code};
use portcullis_spec::vtd::qi::{DevTlbInv, IotlbInv, PageGroupResponse, PasidCacheInv, PasidIotlbInv};
use portcullis_spec::vtd::regs::offset;

/// Device A by second stage in domain 5 with ATS and PRI on.
fn paging() -> (Rig, Tables) {
    let mut rig = Rig::scalable(Config::default());
    let t = Tables::new(&rig.ram, 0, false);
    pasid_entry(&rig.ram, RID_A, 2, t.base, 5);
    let e = rig.complex.endpoint_mut(0).unwrap();
    e.set_ats(Some(0)).unwrap();
    e.set_pri(Some(32)).unwrap();
    (rig, t)
}

fn access(rig: &mut Rig, iova: u64) {
    rig.complex.endpoint_mut(0).unwrap().port_mut().access(iova, Intent::Read(8));
}

/// The requests in the queue, taken out.
fn drain_queue(rig: &mut Rig) -> Vec<PageRequest> {
    let mut found = Vec::new();
    let (mut head, tail) = (rig.read(offset::PQH, Width::Qword), rig.read(offset::PQT, Width::Qword));
    while head != tail {
        found.push(PageRequest::from_bits(rig.ram.load128(PAGE_QUEUE + head).unwrap()));
        head = (head + 32) % 4096;
    }
    rig.write(offset::PQH, Width::Qword, tail);
    rig.write(offset::PRS, Width::Dword, 3);
    found
}

fn respond(request: &PageRequest, code: Code) -> [u64; 4] {
    let pasid = request.pp().then(|| request.pasid());
    PageGroupResponse::respond(request.rid(), pasid, request.prgi(), code).desc()
}

fn settlements(rig: &mut Rig) -> Vec<Settlement> {
    let news = rig.news();
    news.iter()
        .filter_map(|e| if let What::Settled { how, .. } = e.what { Some(how) } else { None })
        .collect()
}

#[test]
fn a_missing_page_is_asked_for_and_used_once_it_is_there() {
    let (mut rig, t) = paging();
    rig.write(offset::PEDATA, Width::Dword, 0x77);
    rig.write(offset::PECTL, Width::Dword, 0);
    for page in [0x7000, 0x8000] {
        access(&mut rig, page);
    }
    rig.settle();
    assert_eq!(rig.complex.take_interrupts().len(), 1, "one event for both requests");
    let requests = drain_queue(&mut rig);
    assert_eq!(
        requests.iter().map(|r| (r.address(), r.lpig())).collect::<Vec<_>>(),
        [(0x7000, false), (0x8000, true)]
    );
    assert!(requests.iter().all(|r| r.rid() == A.0 && r.rdr() && !r.wrr() && !r.pp()));
    for page in [0x7000, 0x8000] {
        t.map(&rig.ram, page, DATA + page, true);
    }
    rig.news();
    rig.invalidate(&[respond(&requests[1], Code::Success)]);
    assert_eq!(settlements(&mut rig), [Settlement::Software(ResponseCode::Success)]);
    let stats = rig.complex.endpoint(0).unwrap().statistics().clone();
    assert_eq!((stats.bytes_read, stats.groups, stats.page_requests), (16, 1, 2));
}

#[test]
fn overflow_is_answered_success_by_the_hardware() {
    let (mut rig, _) = paging();
    for n in 0..129 {
        let port = rig.complex.endpoint_mut(0).unwrap().port_mut();
        port.raw_page_request(None, 0x7000 + n * 0x1000, false, true);
    }
    rig.settle();
    assert_eq!(rig.read(offset::PRS, Width::Dword), 3);
    let hardware = Settlement::Hardware(ResponseCode::Success);
    assert_eq!(settlements(&mut rig), [hardware; 2], "the queue holds N-1 = 127");
    assert_eq!(drain_queue(&mut rig).len(), 127);
    rig.complex.endpoint_mut(0).unwrap().port_mut().raw_page_request(None, 0x7000, false, true);
    rig.settle();
    assert_eq!(drain_queue(&mut rig).len(), 1, "it works again");
}

#[test]
fn a_table_fault_is_answered_invalid_and_recorded() {
    let (mut rig, _) = paging();
    rig.ram.put64(PASID_TABLE + u64::from(RID_A) * 64, 0);
    let port = rig.complex.endpoint_mut(0).unwrap().port_mut();
    port.raw_page_request(None, 0x7000, false, false);
    port.raw_page_request(None, 0x8000, false, true);
    rig.settle();
    assert!(drain_queue(&mut rig).is_empty());
    let news = rig.news();
    let reason = FaultReason::Spt2.bits();
    let dropped = |e: &&_| matches!(e, What::PageDropped { cause: DropCause::Tables(r), .. } if *r == reason);
    assert_eq!(news.iter().map(|e| &e.what).filter(dropped).count(), 2);
    let how = Settlement::Hardware(ResponseCode::Invalid);
    assert_eq!(
        news.iter().filter(|e| matches!(e.what, What::Settled { how: h, .. } if h == how)).count(),
        1,
        "only the last one is answered"
    );
    let high = rig.read(0x1008, Width::Qword);
    assert_eq!((high >> 32 & 0xff) as u8, reason);
    assert_eq!(high >> 28 & 1, 1, "T2: a page request");
}

#[test]
fn a_stop_marker_is_queued_and_never_answered() {
    let (mut rig, _) = paging();
    pasid_entry(&rig.ram, 9, 4, 0, 5);
    for present in [true, false] {
        if !present {
            rig.ram.put64(PASID_TABLE + 9 * 64, 0);
            rig.invalidate(&[PasidCacheInv::global().desc()]);
        }
        let pasid = Pasid::new(9).unwrap();
        rig.complex.endpoint_mut(0).unwrap().port_mut().stop_marker(pasid);
        rig.settle();
        let queued = drain_queue(&mut rig);
        assert_eq!(queued.iter().filter(|r| r.is_stop_marker()).count(), usize::from(present));
        let answered = |e: &portcullis_models::log::Event| matches!(e.what, What::ResponseSent { .. });
        assert!(!rig.news().iter().any(answered));
    }
}

#[test]
fn legacy_mode_knows_no_page_requests() {
    let mut rig = Rig::bare(Config { page_requests: true, ..Config::legacy() });
    rig.write(offset::GCMD, Width::Dword, 1 << 31);
    rig.settle();
    rig.complex.endpoint_mut(0).unwrap().port_mut().raw_page_request(None, 0x7000, false, true);
    rig.settle();
    assert_eq!(settlements(&mut rig), [Settlement::Hardware(ResponseCode::Invalid)]);
    assert_eq!((rig.read(0x1008, Width::Qword) >> 32 & 0xff) as u8, FaultReason::Rta3.bits());
}

#[test]
fn a_page_request_invalidates_what_it_asks_for() {
    let (mut rig, t) = paging();
    t.map(&rig.ram, 0x7000, DATA, false);
    assert_eq!(rig.load(A, 0x7000), Ok(DATA));
    t.map(&rig.ram, 0x7000, DATA, true);
    assert_eq!(rig.store(A, 0x7000), Err(FaultReason::Sgn6.bits()), "read-only is cached");
    rig.complex.endpoint_mut(0).unwrap().port_mut().raw_page_request(None, 0x7000, true, true);
    rig.settle();
    assert_eq!(rig.store(A, 0x7000), Ok(DATA));
}

#[test]
fn a_device_tlb_answers_until_it_is_invalidated_and_waits_for_its_accesses() {
    let (mut rig, t) = paging();
    t.map(&rig.ram, 0x7000, DATA, true);
    access(&mut rig, 0x7000);
    rig.settle();
    t.unmap(&rig.ram, 0x7000);
    rig.invalidate(&[IotlbInv::pages(5, 0x7000, 0, true).desc()]);
    access(&mut rig, 0x7000);
    let finish = |w: &Work| matches!(w, Work::Finish(_));
    rig.settle_except(finish);
    assert_eq!(rig.complex.in_flight(A), 1, "the device TLB is stale");
    let n = rig.submit_wait(&[DevTlbInv::pages(A.0, 0x7000, 0).desc()], |w| w);
    rig.settle_except(finish);
    assert_ne!(rig.status(), n, "it waits for the access");
    rig.settle();
    assert_eq!(rig.status(), n);
    rig.news();
    access(&mut rig, 0x7000);
    rig.settle();
    assert_eq!(drain_queue(&mut rig).len(), 1, "now the page is missing");
}

#[test]
fn a_wait_with_page_request_drain_stands_behind_what_was_received() {
    for (pd, expected) in [(false, 0), (true, 1)] {
        let (mut rig, _) = paging();
        rig.complex.endpoint_mut(0).unwrap().port_mut().raw_page_request(None, 0x7000, false, true);
        let accept = |w: &Work| matches!(w, Work::Unit { step: step::ACCEPT, .. });
        rig.settle_except(accept);
        let n = rig.submit_wait(&[DevTlbInv::all(A.0).desc()], |w| w.with_pd(pd));
        rig.settle_except(accept);
        assert_eq!(rig.status() == n, !pd);
        if pd {
            rig.settle();
        }
        assert_eq!(rig.status(), n);
        assert_eq!(drain_queue(&mut rig).len(), expected);
    }
}

#[test]
fn a_reset_makes_groups_void_and_late_answers_harmless() {
    let (mut rig, _) = paging();
    access(&mut rig, 0x7000);
    rig.settle();
    rig.news();
    rig.complex.reset(rig.now, 0);
    assert_eq!(settlements(&mut rig), [Settlement::Void]);
    let requests = drain_queue(&mut rig);
    rig.invalidate(&[respond(&requests[0], Code::Success)]);
    assert!(rig.news().iter().any(|e| matches!(e.what, What::LateResponse { .. })));
    rig.invalidate(&[respond(&requests[0], Code::Success)]);
    assert!(rig.news().iter().any(|e| matches!(e.what, What::UnexpectedResponse { .. })));
}

#[test]
fn the_double_answer_is_seen() {
    let (mut rig, _) = paging();
    access(&mut rig, 0x7000);
    rig.settle();
    let requests = drain_queue(&mut rig);
    rig.complex.set_mutations(Mutations { answer_twice: true, ..Mutations::default() });
    rig.news();
    rig.invalidate(&[respond(&requests[0], Code::InvalidRequest)]);
    let news = rig.news();
    let count = |f: fn(&What) -> bool| news.iter().filter(|e| f(&e.what)).count();
    assert_eq!(count(|w| matches!(w, What::Settled { .. })), 1);
    assert_eq!(count(|w| matches!(w, What::UnexpectedResponse { .. })), 1);
}

#[test]
fn capabilities_keep_their_order() {
    let mut e = Endpoint::new(A, 0, Box::new(Idle));
    assert_eq!(e.set_pri(Some(8)), Err(Violation::PriBeforeAts));
    e.set_ats(Some(0)).unwrap();
    assert_eq!(e.set_pasid(Some(20)), Err(Violation::PasidWhileAts));
    e.set_pri(Some(8)).unwrap();
    assert_eq!(e.set_ats(None), Err(Violation::AtsOffWhilePri));
    assert_eq!(e.violations().len(), 3);
}

#[test]
fn an_unsupported_request_switches_ats_off() {
    let (mut rig, _) = paging();
    context_entry(&rig.ram, A, RID_A, 1);
    access(&mut rig, 0x7000);
    rig.settle();
    assert_eq!(rig.complex.endpoint(0).unwrap().capabilities().ats(), None);
}

/// Serves page requests as simply as possible: maps each page to the frame of its number.
fn serve(rig: &mut Rig, tables: [(Option<u32>, Tables); 2], partial: &mut Vec<PageRequest>) {
    rig.settle_some(64);
    let full = rig.read(offset::PRS, Width::Dword) & 2 != 0;
    let mut answers = Vec::new();
    for r in drain_queue(rig) {
        if !r.lpig() {
            partial.push(r);
            continue;
        }
        let key = (r.rid(), r.pp(), r.prgi());
        partial.push(r);
        for p in partial.extract_if(.., |p| (p.rid(), p.pp(), p.prgi()) == key) {
            let pasid = p.pp().then(|| p.pasid());
            if let Some((_, t)) = tables.iter().find(|(q, _)| *q == pasid) {
                t.map(&rig.ram, p.address(), DATA + p.address(), true);
            }
        }
        answers.push(respond(&r, Code::Success));
    }
    if full {
        partial.clear();
    }
    if !answers.is_empty() {
        // Needless, and something for the responses to overtake.
        let inner = [IotlbInv::domain(5).desc(), PasidIotlbInv::pasid_within(6, 9).desc()];
        rig.submit_wait(&inner, |w| w);
        rig.submit(&answers);
    }
}

impl Rig {
    /// Takes up to `n` steps, chosen by a fixed rule that mixes them; lets time pass when idle.
    fn settle_some(&mut self, n: u64) {
        for i in 0..n {
            let works = self.works();
            if works.is_empty() {
                match self.complex.next_deadline(self.now) {
                    Some(t) => self.now = t,
                    None => return,
                }
                continue;
            }
            let pick = (self.now.wrapping_mul(31) + i * 7) as usize % works.len();
            self.complex.run(self.now, works[pick]);
            self.now += 10;
        }
    }
}

/// Two copy engines (one in a PASID), a rogue and a flood, under an adversary.
fn copies(seed: u64) -> Vec<(Action, u64)> {
    let mut rig = Rig::scalable(Config::default());
    let mem: Arc<dyn Memory> = rig.ram.clone();
    rig.log = Events::default();
    rig.complex = Complex::new(mem, Box::new(rig.log.clone()));
    rig.complex.add_unit(Box::new(Vtd::new(Config::default())));
    let rogue = RogueConfig {
        budget: 300,
        outside: 0x30_0000..0x60_0000,
        physical: DATA..DATA + 0x8_0000,
        pasids: vec![Pasid::new(9).unwrap()],
    };
    let flood = FloodConfig { budget: 2000, pages: 0x7000..0x9000 };
    let ids = [0x08, 0x09, 0x10, 0x18].map(portcullis_models::bus::RequesterId);
    let engines: [Box<dyn portcullis_models::endpoint::Engine>; 4] = [
        Box::new(CopyEngine::new(4, 50)),
        Box::new(CopyEngine::new(4, 50)),
        Box::new(Rogue::new(rogue)),
        Box::new(Flood::new(flood)),
    ];
    for (id, engine) in ids.into_iter().zip(engines) {
        rig.complex.add_endpoint(Endpoint::new(id, seed, engine), Some(0));
    }
    rig.complex.set_adversary(Adversary::new(Level::Hostile, seed));
    let tables = [(None, Tables::new(&rig.ram, 0, false)), (Some(9), Tables::new(&rig.ram, 1, true))];
    pasid_entry(&rig.ram, RID_A, 2, tables[0].1.base, 5);
    pasid_entry(&rig.ram, 9, 1, tables[1].1.base, 6);
    for (id, flags) in ids.into_iter().zip([ALL_FLAGS, ALL_FLAGS, 1 | 1 << 3, ALL_FLAGS]) {
        let rid = if id.0 == 0x10 { 60 } else { RID_A };
        context_entry(&rig.ram, id, rid, flags);
    }
    rig.write(offset::RTADDR, Width::Qword, ROOT | 1 << 10);
    rig.write(offset::PQA, Width::Qword, PAGE_QUEUE);
    rig.write(offset::IQA, Width::Qword, QUEUE | 1 << 11);
    for command in [1 << 30, 1 << 26, 1 << 26 | 1 << 31] {
        rig.write(offset::GCMD, Width::Dword, command);
        rig.settle_except(|w| !matches!(w, Work::Unit { .. }));
    }
    for place in [0, 1, 3] {
        let e = rig.complex.endpoint_mut(place).unwrap();
        e.set_pasid(Some(20)).unwrap();
        e.set_ats(Some(0)).unwrap();
        e.set_pri(Some(32)).unwrap();
    }
    rig.complex.endpoint_mut(1).unwrap().work_in(Pasid::new(9));
    // Both copy 64 KiB within their domains: the frame of a page follows from its number.
    let len = 0x1_0003;
    for (place, source, destination) in [(0, 0x2_0010, 0x4_0020), (1, 0x6_0000, 0x8_0008)] {
        for i in 0..len {
            let byte = (i ^ (i >> 8) ^ seed) as u8;
            rig.ram.write(DATA + source + i, &[byte]).unwrap();
        }
        let job = Job { source, destination, len };
        rig.complex.endpoint_mut(place).unwrap().submit(job).unwrap();
    }
    let mut partial = Vec::new();
    let ended = |rig: &Rig, p| rig.complex.endpoint(p).and_then(Endpoint::job_end);
    for _ in 0..20_000 {
        serve(&mut rig, tables, &mut partial);
        if ended(&rig, 0).is_some() && ended(&rig, 1).is_some() {
            break;
        }
    }
    for (place, source, destination) in [(0, 0x2_0010, 0x4_0020), (1, 0x6_0000, 0x8_0008)] {
        assert_eq!(ended(&rig, place), Some(JobEnd::Done), "seed {seed}, place {place}");
        let (mut from, mut to) = (vec![0; len as usize], vec![0; len as usize]);
        rig.ram.read(DATA + source, &mut from).unwrap();
        rig.ram.read(DATA + destination, &mut to).unwrap();
        assert!(from == to, "seed {seed}, place {place}: bytes differ");
    }
    let rogue = rig.complex.endpoint(2).unwrap().statistics();
    assert_eq!((rogue.bytes_read, rogue.dtlb_hits), (0, 0), "the rogue has read nothing");
    rig.complex.adversary().counts().to_vec()
}

#[test]
fn copies_arrive_under_a_hostile_adversary() {
    let mut totals = std::collections::BTreeMap::new();
    for seed in 0..8 {
        for (action, n) in copies(seed) {
            *totals.entry(action).or_insert(0) += n;
        }
    }
    for action in Action::ALL {
        assert!(totals[&action] > 0, "{action} never happened");
    }
}

#[test]
fn equal_seeds_give_equal_runs() {
    assert_eq!(copies(3), copies(3));
}

#[test]
fn a_prefix_reaches_the_log_through_a_translated_request() {
    let mut rig = Rig::scalable(Config::default());
    let t = Tables::new(&rig.ram, 0, true);
    pasid_entry(&rig.ram, 9, 1, t.base, 5);
    t.map(&rig.ram, 0x7000, DATA, true);
    let e = rig.complex.endpoint_mut(0).unwrap();
    e.set_pasid(Some(20)).unwrap();
    e.set_ats(Some(0)).unwrap();
    e.work_in(Pasid::new(9));
    assert_eq!(e.port_mut().prefix(), Pasid::new(9).map(Prefix::user));
    access(&mut rig, 0x7008);
    rig.settle();
    let reach = rig.news().iter().find_map(|e| if let What::Finish(r) = e.what { Some(r) } else { None });
    let reach = reach.unwrap();
    assert_eq!(
        (reach.pasid, reach.iova, reach.phys, reach.translated),
        (Pasid::new(9), 0x7008, DATA + 8, true)
    );
}

#[test]
fn a_page_request_is_not_held_to_the_size_of_pasids() {
    let mut rig = Rig::scalable(Config { pasid_bits: 8, ..Config::default() });
    let f = Tables::new(&rig.ram, 0, true);
    pasid_entry(&rig.ram, 9, 1, f.base, 5);
    rig.ram.put64(PASID_DIR + (256 >> 6) * 8, PASID_TABLE | 1);
    let port = rig.complex.endpoint_mut(0).unwrap().port_mut();
    port.raw_page_request(Pasid::new(256 + 9).map(Prefix::user), 0x7000, false, true);
    rig.settle();
    assert_eq!(drain_queue(&mut rig).len(), 1, "SGN.10 is a fault of other requests");
}
