//! Private data of page requests against descriptors written out bit by bit.

use portcullis_spec::vtd::page_req::{PageRequest, ResponseCode};
use portcullis_spec::vtd::private_data::{
    REQUEST_PRESENT, RESPONSE_PRESENT, request, response, take_from_request, take_from_response,
};
use portcullis_spec::vtd::qi::{CcInv, PageGroupResponse};
use proptest::prelude::*;

const DATA: [u64; 2] = [0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210];

#[test]
fn golden_request() {
    let asked = PageRequest::new()
        .with_pp(true)
        .with_rid(0x0108)
        .with_pasid(0x1_2345)
        .with_rdr(true)
        .with_prgi(0x155)
        .with_address(0x7FFF_1234_5000);
    let golden = [0x0001_2345_0108_0301, 0x7FFF_1234_5AA9, DATA[0], DATA[1]];
    assert_eq!(request(asked, Some(DATA)), golden);
    assert_eq!(take_from_request(golden), (asked.into_qwords(), Some(DATA)));
    assert_eq!(request(asked, None), asked.into_qwords());
    assert_ne!(u128::from(REQUEST_PRESENT) & PageRequest::RESERVED, 0, "reserved since 4.0");
}

#[test]
fn golden_response() {
    let answer = PageGroupResponse::respond(0x0108, Some(0x1_2345), 0x155, ResponseCode::InvalidRequest);
    let golden = [0x0001_2345_0108_1039, 0xAA8, DATA[0], DATA[1]];
    assert_eq!(response(answer, Some(DATA)), golden);
    assert_eq!(take_from_response(golden), (answer.desc(), Some(DATA)));
    assert_eq!(response(answer, None), answer.desc());
    assert_ne!(u128::from(RESPONSE_PRESENT) & PageGroupResponse::RESERVED, 0, "reserved since 4.0");
}

#[test]
fn other_descriptors_have_none() {
    let [q0, q1, ..] = CcInv::domain(7).desc();
    let other = [q0 | RESPONSE_PRESENT, q1, DATA[0], DATA[1]];
    assert_eq!(take_from_response(other), (other, None));
}

proptest! {
    #[test]
    fn what_is_not_marked_is_left_alone(mut qw: [u64; 4]) {
        qw[0] &= !REQUEST_PRESENT;
        prop_assert_eq!(take_from_request(qw), (qw, None));
    }

    #[test]
    fn data_come_back_whole(q0: u64, q1: u64, data: [u64; 2]) {
        let bits = PageRequest::from_qwords([q0 & !REQUEST_PRESENT, q1, 0, 0]);
        let (rest, taken) = take_from_request(request(bits, Some(data)));
        prop_assert_eq!((rest, taken), (bits.into_qwords(), Some(data)));
    }
}
