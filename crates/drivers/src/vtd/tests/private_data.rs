//! Private data of page requests (VT-d 3.x).

use super::{
    comes_back::{Seen, arrive, only, turn},
    *,
};
use portcullis::{
    Answer, VendorBits,
    driver::{Driver, Offer},
};
use portcullis_sync::slot::SlotWord;

const DATA: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// Page request of 01:02.3 without PASID.
const REQUEST: u64 = 1 | 0x0113 << 16;
const PRESENT: u64 = 1 << 9;

fn with_private_data() -> (Fake, Vtd<Fake>) {
    running_with(cap(), scalable_ecap(), Options { private_data: true, ..Options::default() })
}

#[test]
fn they_come_back_unchanged_with_the_response_to_a_request_that_is_not_the_last() {
    let (fake, vtd) = with_private_data();
    arrive(&fake, &[[REQUEST | PRESENT, 0x1000 | 0x155 << 3 | 1, DATA[0], DATA[1]]]);
    let Seen::Request(request) = only(turn(&vtd, 10).0) else { panic!("a request") };
    assert!(request.own_answer && !request.last && request.wants_answer());
    let slot = SlotWord::new();
    let generation = slot.arm().unwrap();
    assert!(slot.answer(generation, 1));
    assert_eq!(vtd.page_response(&Answer::new(&request, &slot, generation)), Offer::Done);
    // Type 9, PDP in bit 5, RC 1, RID; PRGI in bits 75:67; the data.
    let expected = [9 | 1 << 5 | 1 << 12 | 0x0113 << 16, 0x155 << 3, DATA[0], DATA[1]];
    assert_eq!(fake.queued()[0], expected);
}

#[test]
fn a_request_without_them_is_as_ever() {
    let (fake, vtd) = with_private_data();
    arrive(&fake, &[[REQUEST, 0x1000 | 0x155 << 3 | 0b101, 0, 0], [REQUEST, 0x1005, 1, 0]]);
    let (seen, _) = turn(&vtd, 10);
    let [Seen::Request(request), Seen::Malformed(_), Seen::Passed(2)] = &seen[..] else {
        panic!("{seen:?}");
    };
    assert!(!request.own_answer);
    assert_eq!(request.vendor, VendorBits([REQUEST, 0x1000 | 0x155 << 3 | 0b101, 0, 0]));
}

#[test]
fn a_unit_of_revision_5_is_never_sent_any() {
    let (fake, vtd) = scalable();
    arrive(&fake, &[[REQUEST | PRESENT, 0x1005, DATA[0], DATA[1]]]);
    let Seen::Malformed(request) = only(turn(&vtd, 10).0) else { panic!("the bits are reserved") };
    assert!(!request.own_answer);
    let slot = SlotWord::new();
    let generation = slot.arm().unwrap();
    assert!(slot.answer(generation, 1));
    assert_eq!(vtd.page_response(&Answer::new(&request, &slot, generation)), Offer::Done);
    assert_eq!(fake.queued()[0], [9 | 1 << 12 | 0x0113 << 16, 0, 0, 0]);
}
