//! Private data of page requests (VT-d 3.x): what a device gives with a request comes back with the
//! response to it, and each request that has some wants a response.

mod common;

use common::*;
use portcullis_models::bus::{PrivateData, ResponseCode};
use portcullis_models::endpoint::Intent;
use portcullis_models::iommu::Width;
use portcullis_models::log::{Settlement, What};
use portcullis_models::memory::Memory;
use portcullis_models::vtd::Config;
use portcullis_spec::vtd::page_req::{PageRequest, ResponseCode as Code};
use portcullis_spec::vtd::private_data;
use portcullis_spec::vtd::qi::{Desc, PageGroupResponse};
use portcullis_spec::vtd::regs::offset;

/// Device A by second stage in domain 5 with ATS and PRI on, which reads two pages that are missing.
fn two_reads(unit: Config) -> (Rig, Vec<[u64; 4]>) {
    let mut rig = Rig::scalable(unit);
    let t = Tables::new(&rig.ram, 0, false);
    pasid_entry(&rig.ram, RID_A, 2, t.base, 5);
    let e = rig.complex.endpoint_mut(0).unwrap();
    e.set_private_data(true);
    e.set_ats(Some(0)).unwrap();
    e.set_pri(Some(32)).unwrap();
    for page in [0x7000, 0x8000] {
        rig.complex.endpoint_mut(0).unwrap().port_mut().access(page, Intent::Read(8));
    }
    rig.settle();
    rig.news();
    let (head, tail) = (rig.read(offset::PQH, Width::Qword), rig.read(offset::PQT, Width::Qword));
    let qword = |at| rig.ram.load64(PAGE_QUEUE + at).unwrap();
    let entries = (head..tail).step_by(32).map(|at| [0, 8, 16, 24].map(|n| qword(at + n))).collect();
    (rig, entries)
}

fn unit() -> Config {
    Config { private_data: true, ..Config::default() }
}

fn answer(entry: [u64; 4], code: Code, private: Option<PrivateData>) -> Desc {
    let request = PageRequest::from_qwords(entry);
    private_data::response(PageGroupResponse::respond(request.rid(), None, request.prgi(), code), private)
}

/// How many requests were settled, and how many responses nobody waited for.
fn news(rig: &mut Rig) -> (Vec<Settlement>, usize) {
    let news = rig.news();
    let settled = news.iter().filter_map(|e| match e.what {
        What::Settled { how, .. } => Some(how),
        _ => None,
    });
    let strangers = news.iter().filter(|e| matches!(e.what, What::UnexpectedResponse { .. })).count();
    (settled.collect(), strangers)
}

#[test]
fn each_request_has_its_own_bits_and_wants_its_own_response() {
    let (mut rig, entries) = two_reads(unit());
    let private: Vec<_> = entries.iter().map(|e| private_data::take_from_request(*e).1).collect();
    assert!(matches!(private[..], [Some(a), Some(b)] if a != b), "{private:x?}");
    assert!(!PageRequest::from_qwords(entries[0]).lpig(), "the first is not the last of the group");
    let success = Settlement::Software(ResponseCode::Success);
    rig.invalidate(&[answer(entries[1], Code::Success, private[1])]);
    assert_eq!(news(&mut rig), (vec![success], 0));
    assert!(rig.complex.endpoint(0).unwrap().pri_has_open_groups(), "the first still waits");
    rig.invalidate(&[answer(entries[1], Code::Success, private[1])]);
    assert_eq!(news(&mut rig), (vec![], 1), "the last was answered before");
    rig.invalidate(&[answer(entries[0], Code::Success, private[0])]);
    assert_eq!(news(&mut rig), (vec![success], 0));
}

#[test]
fn other_bits_or_none_answer_nothing() {
    let (mut rig, entries) = two_reads(unit());
    let [Some([low, high]), _] = [0, 1].map(|n| private_data::take_from_request(entries[n]).1) else {
        panic!("no private data");
    };
    for wrong in [Some([low ^ 1, high]), Some([low, high ^ 1 << 63]), None] {
        rig.invalidate(&[answer(entries[0], Code::Success, wrong)]);
        assert_eq!(news(&mut rig), (vec![], 1), "{wrong:x?}");
    }
}

#[test]
fn the_worst_response_of_a_group_counts() {
    let (mut rig, entries) = two_reads(unit());
    for (entry, code) in entries.iter().zip([Code::InvalidRequest, Code::Success]) {
        rig.invalidate(&[answer(*entry, code, private_data::take_from_request(*entry).1)]);
    }
    let (settled, strangers) = news(&mut rig);
    assert_eq!((settled.len(), strangers), (2, 0));
    assert!(drained(&mut rig), "nothing was read: the group was refused");
}

fn drained(rig: &mut Rig) -> bool {
    let endpoint = rig.complex.endpoint(0).unwrap();
    endpoint.port().outstanding() == 0 && endpoint.statistics().bytes_read == 0
}

#[test]
fn a_unit_of_revision_5_neither_writes_nor_takes_them() {
    let (mut rig, entries) = two_reads(Config::default());
    for entry in &entries {
        assert_eq!(private_data::take_from_request(*entry), (*entry, None));
        assert_eq!(entry[2..], [0, 0]);
    }
    let before = rig.read(offset::FSTS, Width::Dword);
    rig.submit_wait(&[answer(entries[1], Code::Success, Some([1, 2]))], |w| w);
    rig.settle();
    let iqe = rig.read(offset::FSTS, Width::Dword) & !before;
    assert_ne!(iqe & 1 << 4, 0, "IQE: the bits are reserved");
}
