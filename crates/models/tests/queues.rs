//! The two queues in memory at every size that their registers can say.

mod common;

use common::*;
use portcullis_models::bus::{Pasid, Prefix};
use portcullis_models::iommu::Width;
use portcullis_models::log::{DropCause, What};
use portcullis_models::memory::Memory;
use portcullis_models::vtd::Config;
use portcullis_spec::vtd::page_req::PageRequest;
use portcullis_spec::vtd::qi::IotlbInv;
use portcullis_spec::vtd::regs::{Prs, offset};

fn prs(rig: &mut Rig) -> Prs {
    Prs::from_bits(rig.read(offset::PRS, Width::Dword) as u32)
}

/// Requests with PASID 9 for so many pages from `first` on, each a group of its own.
fn ask(rig: &mut Rig, first: u64, n: u64) {
    for page in first..first + n {
        let port = rig.complex.endpoint_mut(0).unwrap().port_mut();
        port.raw_page_request(Pasid::new(9).map(Prefix::user), page << 12, false, true);
        rig.settle();
    }
}

#[test]
fn a_page_request_queue_holds_one_less_than_pqs_says_and_wraps() {
    for pqs in 0..8 {
        let mut rig = Rig::scalable(Config::default());
        pasid_entry(&rig.ram, 9, 1, Tables::new(&rig.ram, 0, true).base, 5);
        rig.resize_queues(pqs);
        let entries = 128 << pqs;
        let size = entries * 32;
        // Begins in the middle, so that it wraps.
        for at in [offset::PQH, offset::PQT] {
            rig.write(at, Width::Qword, size / 2);
        }
        ask(&mut rig, 1, entries - 1);
        assert!(prs(&mut rig).ppr() && !prs(&mut rig).pro(), "PQS {pqs}: the last one fits");
        assert_eq!(rig.read(offset::PQT, Width::Qword), size / 2 - 32);
        for n in [0, entries / 2 - 1, entries / 2, entries - 2] {
            let at = LARGE_PAGE_QUEUE + (size / 2 + n * 32) % size;
            let found = PageRequest::from_bits(rig.ram.load128(at).unwrap());
            assert_eq!(found.address(), (n + 1) << 12, "PQS {pqs}");
        }
        assert_eq!(rig.ram.load128(LARGE_PAGE_QUEUE + size), Ok(0), "nothing behind it");

        rig.news();
        ask(&mut rig, entries, 1);
        assert!(prs(&mut rig).pro(), "PQS {pqs}");
        let dropped = |e: &portcullis_models::log::Event| {
            matches!(e.what, What::PageDropped { cause: DropCause::Full, .. })
        };
        assert!(rig.news().iter().any(dropped));
        assert_eq!(rig.read(offset::PQT, Width::Qword), size / 2 - 32);
        // Software has read one, and has cleared the overflow.
        rig.write(offset::PQH, Width::Qword, size / 2 + 32);
        rig.write(offset::PRS, Width::Dword, 3);
        ask(&mut rig, entries + 1, 1);
        assert!(!prs(&mut rig).pro());
        assert_eq!(rig.read(offset::PQT, Width::Qword), size / 2);
    }
}

#[test]
fn an_invalidation_queue_is_fetched_as_far_as_qs_says() {
    for qs in 0..8 {
        let mut rig = Rig::scalable(Config::default());
        rig.resize_queues(qs);
        let entries = 128 << qs;
        for round in 1..4 {
            // All but one slot, the last of them a wait.
            let many = vec![IotlbInv::domain(5).desc(); entries - 2];
            rig.invalidate(&many);
            let tail = (round * (entries as u64 - 1)) % entries as u64 * 32;
            assert_eq!(rig.read(offset::IQH, Width::Qword), tail, "QS {qs}, round {round}");
        }
        // A tail beyond the end is an error, not a descriptor.
        if qs < 7 {
            rig.write(offset::IQT, Width::Qword, 4096 << qs);
            rig.settle();
            assert_eq!(rig.read(offset::FSTS, Width::Dword) >> 4 & 1, 1, "QS {qs}: IQE");
        }
    }
}
