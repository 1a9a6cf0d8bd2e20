//! Bring-up: which registers are written, in which order.

use super::*;
use crate::vtd::Msi;
use portcullis::driver::StartError;
use portcullis_spec::vtd::regs::offset;
use std::vec::Vec;

const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;

fn commands(writes: &[(u32, u64)]) -> Vec<u32> {
    let gcmd = writes.iter().filter(|(at, _)| *at == offset::GCMD);
    gcmd.map(|(_, v)| *v as u32).collect()
}

fn refused(cap: Cap, ecap: Ecap) -> StartError {
    let fake = Fake::new(cap, ecap);
    let vtd = Vtd::new(fake.clone(), Window(0), Options::default());
    let e = finish_start(&fake, &vtd).unwrap_err();
    assert_eq!(fake.writes(), [], "a refused unit is left alone");
    e
}

#[test]
fn legacy_mode_one_command_at_a_time() {
    let (fake, vtd) = legacy();
    let writes = fake.writes();
    assert_eq!(
        commands(&writes),
        [QIE, QIE | SRTP, QIE | TE],
        "one field a write, and the one-shot bit gone from the next"
    );
    assert_eq!(fake.get64(offset::RTADDR) & 0xfff, 0, "TTM 00b");
    assert_eq!(fake.get64(offset::IQA) & 0xfff, 1, "128-bit, two pages");
    assert!(!vtd.is_scalable());
    assert_eq!(vtd.caps().tags, 1..0x1_0000);
    assert_eq!(vtd.caps().page_requests, 0);
    assert_eq!(vtd.caps().reserved, [(0xfee0_0000, 0xfeef_ffff)]);
}

#[test]
fn scalable_mode() {
    let (fake, vtd) = scalable();
    assert_eq!(fake.get64(offset::RTADDR) & 0xfff, 0x400, "TTM 01b");
    assert_eq!(fake.get64(offset::IQA) & 0xfff, 0x801, "256-bit, two pages");
    assert_eq!(fake.get64(offset::PQA) & 0xfff, 2, "four pages");
    let caps = vtd.caps();
    assert_eq!((caps.pasid_bits, caps.page_requests, caps.invalidations), (20, 511, 255));
    assert!(caps.stop_markers && caps.coherent && caps.identity && caps.ats);
}

#[test]
fn scalable_mode_can_be_declined() {
    let fake = Fake::new(cap(), scalable_ecap());
    let options = Options { force_legacy: true, ..Options::default() };
    let vtd = Vtd::new(fake.clone(), Window(0), options);
    assert_eq!(finish_start(&fake, &vtd), Ok(()));
    assert_eq!(fake.get64(offset::RTADDR) & 0xfff, 0);
    assert_eq!(vtd.caps().pasid_bits, 0);
}

#[test]
fn without_esrtps_everything_is_invalidated_in_order() {
    let fake = Fake::new(cap().with_esrtps(false), scalable_ecap());
    let vtd = Vtd::new(fake.clone(), Window(0), Options::default());
    assert_eq!(vtd.start(Start::Fresh), Poll::Pending);
    let queued = fake.queued();
    let low: Vec<u64> = queued.iter().map(|d| d[0]).collect();
    // Context cache, PASID cache and IOTLB, all global, then the wait.
    assert_eq!(low, [0x11, 0x37, 0xd2, 0x1_0000_0025]);
    assert_eq!(fake.get32(offset::GSTS) & TE, 0, "not before it is done");
    assert_eq!(finish_start(&fake, &vtd), Ok(()));
    assert_eq!(fake.get32(offset::GSTS) & TE, TE);
}

#[test]
fn what_firmware_left_is_switched_off_first() {
    let fake = Fake::new(cap().with_plmr(true), legacy_ecap());
    fake.set32(offset::GSTS, TE | SRTP | QIE | IRE);
    fake.set32(offset::PMEN, 1 << 31 | 1);
    let vtd = Vtd::new(fake.clone(), Window(0), Options::default());
    assert_eq!(finish_start(&fake, &vtd), Ok(()));
    let writes = fake.writes();
    let off = [QIE | IRE, QIE, 0];
    let on = [QIE, QIE | SRTP, QIE | TE];
    assert_eq!(commands(&writes), [off, on].concat());
    // The protected regions go last, when every requester is blocked.
    let te = writes.iter().position(|w| *w == (offset::GCMD, u64::from(QIE | TE)));
    let pmen = writes.iter().position(|(at, _)| *at == offset::PMEN);
    assert!(te.is_some() && te < pmen);
    assert_eq!(fake.get32(offset::PMEN), 0);
}

#[test]
fn a_queue_that_an_error_has_stopped_will_not_get_empty() {
    for (fsts, ends) in [(0, false), (1 << 4, true), (1 << 6, true), (1 << 5, false)] {
        let fake = Fake::new(cap(), legacy_ecap());
        fake.set32(offset::GSTS, QIE);
        fake.set64(offset::IQT, 0x40);
        fake.set32(offset::FSTS, fsts);
        let vtd = Vtd::new(fake.clone(), Window(0), Options::default());
        assert_eq!(vtd.start(Start::Fresh).is_ready(), ends, "FSTS_REG {fsts:#x}");
        if ends {
            assert_eq!(commands(&fake.writes())[0], 0, "it was switched off");
            assert_eq!(fake.get32(offset::FSTS), 0);
        }
    }
}

#[test]
fn a_step_that_hardware_does_not_finish_is_pending() {
    let fake = Fake::new(cap(), legacy_ecap());
    fake.stick(true);
    let vtd = Vtd::new(fake.clone(), Window(0), Options::default());
    assert_eq!(vtd.start(Start::Fresh), Poll::Pending);
    assert_eq!(vtd.start(Start::Fresh), Poll::Pending);
    assert_eq!(commands(&fake.writes()), [QIE], "asked once");
    fake.stick(false);
    fake.set32(offset::GSTS, QIE);
    assert_eq!(finish_start(&fake, &vtd), Ok(()));
}

#[test]
fn refusals_say_why() {
    let e = refused(cap().with_cm(true), legacy_ecap());
    assert!(matches!(e, StartError::Unsupported(why) if why.contains("caching mode")));
    let e = refused(cap().with_rwbf(true), legacy_ecap());
    assert!(matches!(e, StartError::Unsupported(why) if why.contains("write buffers")));
    let e = refused(cap(), legacy_ecap().with_qi(false));
    assert!(matches!(e, StartError::Unsupported(why) if why.contains("queued invalidation")));
    let e = refused(cap().with_sagaw(0b10001), legacy_ecap());
    assert!(matches!(e, StartError::Unsupported(why) if why.contains("second stage")), "reserved widths");
    let e = refused(cap().with_nd(7), legacy_ecap());
    assert!(matches!(e, StartError::Hardware(_)));

    let fake = Fake::new(cap(), legacy_ecap());
    let vtd = Vtd::new(fake, Window(0), Options::default());
    assert!(matches!(vtd.start(Start::Adopt(&[])), Poll::Ready(Err(StartError::Unsupported(_)))));
}

#[test]
fn without_a_drain_there_are_no_page_requests() {
    let (fake, vtd) = running(cap(), scalable_ecap().with_pds(false));
    assert_eq!(vtd.caps().page_requests, 0);
    assert_eq!(fake.get64(offset::PQA), 0);
    assert!(vtd.add_device(SOURCE, all_features()).is_err());
}

#[test]
fn out_of_memory_gives_everything_back() {
    for frames in 0..4 {
        let fake = Fake::new(cap(), scalable_ecap());
        fake.limit_frames(frames);
        let vtd = Vtd::new(fake.clone(), Window(0), Options::default());
        assert_eq!(finish_start(&fake, &vtd), Err(StartError::NoMem));
        assert_eq!(fake.frames_in_use(), 0);
    }
}

#[test]
fn events_are_unmasked_with_their_message() {
    let fake = Fake::new(cap(), scalable_ecap());
    fake.set32(offset::FECTL, 1 << 31 | 5);
    let options =
        Options { fault_event: Some(Msi { address: 0x1_fee0_1000, data: 0x41 }), ..Options::default() };
    let vtd = Vtd::new(fake.clone(), Window(0), options);
    assert_eq!(finish_start(&fake, &vtd), Ok(()));
    assert_eq!(fake.get32(offset::FECTL), 5, "unmasked, the rest preserved");
    assert_eq!(fake.get32(offset::FEDATA), 0x41);
    assert_eq!(fake.get32(offset::FEADDR), 0xfee0_1000);
    assert_eq!(fake.get32(offset::FEUADDR), 1);
    assert_eq!(fake.get32(offset::PECTL), 1 << 31, "polled");
}
