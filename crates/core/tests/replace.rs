//! Replacing what is attached: old, new or blocked, never a mix, and it is said which.

use crate::common::*;
use portcullis::error::AttachError;
use portcullis::{At, Code, Gap, Replaced, SourceId, Waited};
use std::sync::{Arc, Mutex};

const AT: At = At { source: SourceId(1), pasid: None };

#[test]
fn hitless_never_blocks_and_answers_what_the_old_one_owed() {
    let w = World::new();
    let d = w.device(1);
    let (old, new) = (w.resolved_by(&d, |_, _, g| drop(g.defer())), w.served(&d));
    let keep = Arc::new(Mutex::new(None));
    let kept = keep.clone();
    let old_slow = w.resolved_by(&d, move |_, _, g| *kept.lock().unwrap() = Some(g.defer()));
    drop(old);
    let a = w.attach(&old_slow, &d);
    w.sends(&[last(1, 4)]);
    w.work();
    w.hw.take_log();
    let (b, gone, how) = w.iommu.replace(&cx(), a, &new, data(), Gap::Refused).map_err(|(_, e)| e).unwrap();
    assert_eq!(how, Replaced::Hitless);
    assert!(!w.hw.take_log().contains(&Call::Block(AT)));
    assert_eq!(gone.wait(&cx(), None), Waited::Gone);
    let late = keep.lock().unwrap().take().unwrap();
    assert!(late.respond(portcullis::Response::Success).is_err(), "the replace answered it");
    assert!(old_slow.is_unused() && !new.is_unused());
    w.sends(&[last(1, 5)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 5, Code::Success)]);
    drop(b.begin_detach(&cx()));
    assert!(new.is_unused());
}

#[test]
fn through_blocked_blocks_and_drains_before_the_new_one_shows() {
    let w = World::new();
    let d = w.device(1);
    let (old, new) = (w.served(&d), w.served(&d));
    let a = w.attach(&old, &d);
    w.hw.state().gaps = true;
    w.hw.take_log();
    let (_b, gone, how) = w.iommu.replace(&cx(), a, &new, data(), Gap::Allowed).map_err(|(_, e)| e).unwrap();
    assert_eq!(how, Replaced::ThroughBlocked);
    assert!(gone.is_gone());
    let log = w.hw.take_log();
    let find = |wanted: &dyn Fn(&Call) -> bool| log.iter().position(wanted).expect("called");
    let block = find(&|c| *c == Call::Block(AT));
    let drain = find(&|c| *c == Call::Drain(AT));
    let shown = find(&|c| matches!(c, Call::Commit(AT, _)));
    assert!(block < drain && drain < shown, "{log:?}");
}

#[test]
fn a_gap_is_refused_to_who_accepts_none() {
    let w = World::new();
    let d = w.device(1);
    let (old, new) = (w.served(&d), w.served(&d));
    let a = w.attach(&old, &d);
    let before = w.hw.entry(AT);
    w.hw.state().gaps = true;
    let (back, why) = w.iommu.replace(&cx(), a, &new, data(), Gap::Refused).err().unwrap();
    assert_eq!(why, AttachError::NotHitless(AT));
    assert_eq!(w.hw.entry(AT), before);
    assert!(new.is_unused());
    let a = back.expect("the old one still stands");
    w.sends(&[last(1, 1)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success)]);
    drop(a.begin_detach(&cx()));
}

#[test]
fn a_device_with_direct_regions_is_replaced_hitless_or_not_at_all() {
    let w = World::new();
    let d = w.device_with_direct(1, 0x8000);
    let (old, new) = (w.plain(&d), w.plain(&d));
    let a = w.attach(&old, &d);
    w.hw.state().gaps = true;
    let (back, why) = w.iommu.replace(&cx(), a, &new, data(), Gap::Allowed).err().unwrap();
    assert_eq!(why, AttachError::NotHitless(AT));
    w.hw.state().gaps = false;
    let (_b, _, how) =
        w.iommu.replace(&cx(), back.unwrap(), &new, data(), Gap::Allowed).map_err(|(_, e)| e).unwrap();
    assert_eq!(how, Replaced::Hitless);
    assert_eq!(new.lookup(0x8000).map(|l| l.start & !0xfff), Some(0x8000));
}

#[test]
fn the_same_domain_with_other_data() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    let a = w.attach(&dom, &d);
    let other = data();
    let (b, _, _) = w.iommu.replace(&cx(), a, &dom, other.clone(), Gap::Refused).map_err(|(_, e)| e).unwrap();
    w.sends(&[last(1, 3)]);
    w.work();
    assert_eq!(*other.lock().unwrap(), ["3000"]);
    let iova = w.map(&dom, 0x4000);
    w.hw.take_log();
    let mut gone = dom.unmapping();
    gone.unmap(iova, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
    assert!(w.hw.take_log().contains(&Call::Submit { range: Some((0x4000, 0x4fff)), tags: 1, ats: 1 }));
    drop(b.begin_detach(&cx()));
    assert!(dom.is_unused());
}

#[test]
fn an_attachment_that_was_detached_by_key_is_not_replaced() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    drop(w.iommu.begin_detach_by_key(&cx(), a.key()).unwrap());
    let (back, why) = w.iommu.replace(&cx(), a, &dom, data(), Gap::Allowed).err().unwrap();
    assert_eq!(why, AttachError::Occupied(AT), "the place is not as the replace found it");
    assert!(back.is_none());
}

#[test]
fn a_replace_that_loses_its_hardware_keeps_both_domains_and_leaks_no_attachment() {
    let w = World::new();
    let d = w.device(1);
    let (old, new) = (w.served(&d), w.served(&d));
    let (held, fresh) = (data(), data());
    let a = w.iommu.attach(&cx(), &old, &d, None, held.clone()).unwrap();
    w.map(&old, 0x1000);
    w.map(&new, 0x2000);
    let hw = w.hw.clone();
    w.hw.state().hold = true;
    w.board.on_wait(Some(Box::new(move || hw.state().lost = true)));
    let (back, why) = w.iommu.replace(&cx(), a, &new, fresh.clone(), Gap::Allowed).err().unwrap();
    assert!(matches!(why, AttachError::Lost(_)));
    assert!(back.is_none());
    let frames = w.board.frames();
    w.work();
    drop((old, new));
    assert_eq!(w.board.frames(), frames, "lost hardware may walk both tables");
    assert_eq!((Arc::strong_count(&held), Arc::strong_count(&fresh)), (1, 1), "the data is let go");
}
