//! Fault records of one requester, switched off and on.

use super::*;
use portcullis_spec::vtd::regs::offset;

/// FPD of both kinds of context entry.
const FPD: u64 = 2;

/// The low quadword of the context entry of 01:02.3.
fn entry(fake: &Fake, size: u64) -> u64 {
    let root = fake.get64(offset::RTADDR) & !0xfff;
    fake.peek((fake.peek(root + 16) & !0xfff) + 0x13 * size)
}

#[test]
fn a_muted_requester_has_fpd_whatever_else_changes_until_it_is_unmuted() {
    for ((fake, vtd), target, size) in
        [(scalable(), first_stage(0x22, 0x1000), 32), (legacy(), second_stage(0x22, 0x1000), 16)]
    {
        vtd.add_device(SOURCE, ats()).unwrap();
        let fpd = || entry(&fake, size) & FPD != 0;
        let _ = vtd.mute(SOURCE, true).unwrap();
        assert!(fpd());
        assert!(!fake.queued().is_empty(), "what was cached without it goes");
        fake.complete_all();
        let steps: [&dyn Fn(); 5] = [
            &|| assert!(attach(&vtd, rid(), target) >= InvSeq(0)),
            &|| assert!(vtd.set_features(SOURCE, Features::default()).is_ok()),
            &|| assert!(vtd.block(rid()).is_ok()),
            &|| assert!(vtd.cut_off(SOURCE).is_ok()),
            &|| assert!(vtd.restore(SOURCE).is_ok()),
        ];
        for (n, step) in steps.into_iter().enumerate() {
            step();
            fake.complete_all();
            assert!(fpd(), "step {n}");
        }
        let others = entry(&fake, size) & !FPD;
        let _ = vtd.mute(SOURCE, false).unwrap();
        assert_eq!(entry(&fake, size), others, "nothing but the bit has changed");
    }
}

#[test]
fn a_requester_that_is_not_known_is_not_muted() {
    let (fake, vtd) = scalable();
    assert_eq!(vtd.mute(SOURCE, true), Ok(InvSeq(0)));
    assert!(fake.queued().is_empty());
}

#[test]
fn a_new_life_begins_unmuted() {
    let (fake, vtd) = scalable();
    vtd.add_device(SOURCE, ats()).unwrap();
    let _ = vtd.mute(SOURCE, true).unwrap();
    let _ = vtd.cut_off(SOURCE).unwrap();
    fake.complete_all();
    vtd.remove_device(SOURCE);
    vtd.add_device(SOURCE, ats()).unwrap();
    assert_eq!(entry(&fake, 32) & FPD, 0);
}
