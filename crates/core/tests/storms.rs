//! Devices that fault too much: what is told, what is masked, who is cut off, and how that ends.

use crate::common::*;
use portcullis::{
    Access, Code, Config, FaultKind, FaultRecord, Platform, RawFault, Reason, Rung, Scope, SourceId, Storms,
    Thresholds, error::AttachError,
};
use std::time::Duration;

fn fault(source: u32, n: u64, reason: Reason) -> RawFault {
    RawFault {
        source: Some(SourceId(source)),
        access: Access::Write,
        address: Some(n << 12),
        ..RawFault::new(FaultKind::Dma, reason)
    }
}

/// So many faults of a requester, in one service turn.
fn burst(w: &World, source: u32, count: u64) {
    (0..count).for_each(|n| w.hw.faults(fault(source, n, Reason::NotMapped)));
    w.iommu.service(IOMMU);
}

fn told(observer: &portcullis::Subscription<Board>) -> Vec<FaultRecord> {
    core::iter::from_fn(|| observer.try_next()).map(|t| *t).collect()
}

/// What was said about the ladder itself.
fn news(records: &[FaultRecord]) -> Vec<(FaultKind, u32)> {
    let of_ladder = |r: &&FaultRecord| r.kind != FaultKind::Dma;
    records.iter().filter(of_ladder).map(|r| (r.kind, r.code)).collect()
}

const COALESCE: (FaultKind, u32) = (FaultKind::Storm, Rung::Coalesce as u32);
const MASK: (FaultKind, u32) = (FaultKind::Storm, Rung::Mask as u32);
const CUT: (FaultKind, u32) = (FaultKind::Storm, Rung::Quarantine as u32);
const CALM: (FaultKind, u32) = (FaultKind::Storm, Rung::Log as u32);

/// What it translated itself and sent before it was cut off is on its way until it answers.
#[test]
fn a_device_that_was_cut_off_is_still_waited_for() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    let iova = w.map(&dom, 0x1000);
    burst(&w, 1, 10);
    assert!(d.is_quarantined() && w.hw.is_cut_off(SourceId(1)));
    w.hw.take_log();
    w.hw.state().dead.insert(SourceId(1));
    let mut gone = dom.unmapping();
    gone.unmap(iova, 0x1000).unwrap();
    let mut gone = gone.start_sync();
    assert!((0..20).all(|_| gone.step().is_pending()), "it has not answered");
    w.hw.state().dead.clear();
    assert!(gone.step().is_ready());
    assert!(w.hw.take_log().iter().any(|c| matches!(c, Call::Submit { ats: 1, .. })));
    assert!(a.begin_detach(&cx()).is_gone());
}

#[test]
fn ten_faults_in_ten_milliseconds_cut_a_device_off_until_it_is_reset() {
    let w = World::new();
    let (d, other) = (w.device(1), w.device(2));
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let keeps = kept.clone();
    let dom = w.resolved_by(&d, move |_, _, g| keeps.lock().unwrap().push(g.defer()));
    let a = w.attach(&dom, &d);
    w.sends(&[last(1, 5)]);
    w.work();
    let observer = w.iommu.observe(Scope::Device(d.id()), 64).unwrap();
    w.hw.take_log();
    burst(&w, 1, 10);
    let records = told(&observer);
    assert_eq!(news(&records), [COALESCE, MASK, CUT, (FaultKind::Quarantine, 0)]);
    assert_eq!(records.iter().filter(|r| r.kind == FaultKind::Dma).count(), 5);
    assert_eq!(d.counters().faults, 14, "what is not told is counted all the same");
    // Nobody else had work for the hardware.
    let log = w.hw.take_log();
    assert!(
        log.contains(&Call::Mute(SourceId(1), true)) && log.contains(&Call::CutOff(SourceId(1))),
        "{log:?}"
    );
    assert!(log.contains(&Call::Answer(sent(1, 5, Code::Invalid))), "what it asked is answered: {log:?}");
    let storm = d.storm();
    assert_eq!((storm.rung, storm.quarantined, storm.untold), (Rung::Quarantine, 1, 5));
    assert_eq!(other.storm().rung, Rung::Log);
    let refused = w.iommu.attach(&cx(), &dom, &d, pasid(1), data());
    assert!(matches!(refused, Err(AttachError::Quarantined(id)) if id == d.id()));

    d.reset(&cx()).unwrap();
    w.pass(Duration::from_millis(1));
    assert_eq!((d.storm().rung, d.storm().quarantined), (Rung::Log, 1));
    assert!(w.hw.take_log().contains(&Call::Mute(SourceId(1), false)));
    burst(&w, 1, 1);
    assert_eq!(told(&observer).len(), 1, "it is told again");
    let _b = w.iommu.attach(&cx(), &dom, &d, pasid(1), data()).unwrap();
    drop(a);
}

#[test]
fn what_was_masked_is_told_when_it_ends_and_the_hardware_records_again() {
    let w = World::new();
    let d = w.device(1);
    let observer = w.iommu.observe(Scope::All, 64).unwrap();
    burst(&w, 1, 8);
    assert_eq!(d.storm().rung, Rung::Mask);
    burst(&w, 1, 100);
    assert_eq!(d.storm().rung, Rung::Mask, "the hardware records nothing of it");
    w.pass(Duration::from_millis(100));
    assert_eq!(d.storm().rung, Rung::Log);
    burst(&w, 1, 1);
    let records = told(&observer);
    assert_eq!(news(&records), [COALESCE, MASK, CALM]);
    let muted: Vec<_> = w.hw.take_log().into_iter().filter(|c| matches!(c, Call::Mute(..))).collect();
    assert_eq!(muted, [Call::Mute(SourceId(1), true), Call::Mute(SourceId(1), false)]);
    let (told, untold) = (
        records.iter().filter(|r| r.kind == FaultKind::Dma).count() as u64,
        records.iter().map(|r| r.untold).sum::<u64>(),
    );
    assert_eq!((told, untold), (6, 3), "nine faults were recorded, and each is accounted for");
}

#[test]
fn hardware_without_a_switch_is_asked_once_and_its_records_are_not_told() {
    let w = World::with(Config {
        storms: Storms { faults: Thresholds { quarantine: None, ..Thresholds::FAULTS }, ..Storms::default() },
        ..Config::default()
    });
    w.hw.state().can_mute = false;
    let d = w.device(1);
    let observer = w.iommu.observe(Scope::All, 64).unwrap();
    burst(&w, 1, 60);
    assert_eq!(told(&observer).iter().filter(|r| r.kind == FaultKind::Dma).count(), 5);
    assert_eq!((d.storm().rung, d.storm().untold), (Rung::Mask, 55));
    w.pass(Duration::from_secs(1));
    assert_eq!(d.storm().rung, Rung::Log);
    assert_eq!(told(&observer).iter().map(|r| r.untold).sum::<u64>(), 55);
}

#[test]
fn a_full_queue_does_not_forget_who_is_to_be_muted_and_cut_off() {
    let w = World::new();
    let d = w.device(1);
    w.hw.take_log();
    w.hw.state().full = 5;
    burst(&w, 1, 10);
    w.pass(Duration::from_millis(1));
    let mut log = w.hw.take_log();
    log.sort_by_key(|c| matches!(c, Call::CutOff(_)));
    assert_eq!(log, [Call::Mute(SourceId(1), true), Call::CutOff(SourceId(1))]);
    assert_eq!(d.storm().rung, Rung::Quarantine);
}

#[test]
fn a_device_that_is_cut_off_and_goes_on_is_to_be_reset() {
    let w = World::new();
    w.hw.state().can_mute = false;
    let d = w.device(1);
    let observer = w.iommu.observe(Scope::All, 64).unwrap();
    burst(&w, 1, 10);
    burst(&w, 1, 9);
    assert_eq!(d.storm().resets_asked, 0);
    burst(&w, 1, 1);
    assert_eq!((d.storm().rung, d.storm().resets_asked), (Rung::AskReset, 1));
    let records = told(&observer);
    assert_eq!(records.last().map(|r| (r.kind, r.device)), Some((FaultKind::ResetWanted, Some(d.id()))));
    let said = w.iommu.explain(records.last().unwrap()).to_string();
    assert!(said.contains("should be reset: it faults too much"), "{said}");
}

#[test]
fn what_comes_from_a_place_that_is_being_detached_is_no_storm() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    w.hw.state().hold = true;
    let mut detaching = a.start_detach();
    assert!(detaching.step().is_pending());
    for n in 0..100 {
        w.hw.faults(fault(1, n, Reason::Blocked));
    }
    w.iommu.service(IOMMU);
    assert_eq!((d.storm().rung, d.counters().faults), (Rung::Log, 100));
    w.hw.state().hold = false;
    while detaching.step().is_pending() {}
    burst(&w, 1, 10);
    assert_eq!(d.storm().rung, Rung::Quarantine, "after the detach they count");
}

#[test]
fn nobody_is_cut_off_because_the_iommu_could_not_reach_its_tables() {
    let w = World::new();
    let d = w.device(1);
    let observer = w.iommu.observe(Scope::All, 256).unwrap();
    (0..300).for_each(|n| w.hw.faults(fault(1, n, Reason::TableAccess)));
    w.iommu.service(IOMMU);
    assert_eq!((d.storm().rung, d.is_quarantined()), (Rung::Log, false));
    // What is told is bounded all the same, by the instance's ladder.
    let all = told(&observer);
    assert_eq!(news(&all), [COALESCE, MASK]);
    assert!(all.len() < 80, "{}", all.len());
    // They do not make what the device does itself weigh more.
    burst(&w, 1, 9);
    assert!(!d.is_quarantined());
}

#[test]
fn refused_page_requests_have_thresholds_of_their_own() {
    let w = World::new();
    let d = w.device(1);
    let ask = |count: u16| {
        for n in 0..count {
            w.sends(&[last(1, n & 0x1ff)]);
        }
    };
    ask(10);
    assert_eq!(d.storm().rung, Rung::Coalesce, "ten faults would have cut it off");
    ask(502);
    assert_eq!(d.storm().rung, Rung::Quarantine);
    assert_eq!(w.hw.answers().len(), 512, "each was answered");
}

#[test]
fn requesters_that_nobody_knows_are_told_together_with_the_instance() {
    let w = World::new();
    let d = w.device(1);
    let observer = w.iommu.observe(Scope::All, 512).unwrap();
    for n in 0..1000 {
        w.hw.faults(fault(0x100 + (n % 100), n.into(), Reason::Blocked));
    }
    while w.hw.has_faults() {
        w.iommu.service(IOMMU);
    }
    assert_eq!(w.iommu.storm(IOMMU).unwrap().rung, Rung::Mask);
    assert_eq!(told(&observer).iter().filter(|r| r.kind == FaultKind::Dma).count(), 64);
    assert_eq!(d.storm().rung, Rung::Log, "no device pays for it");
    // And those of a device are not lost behind it.
    burst(&w, 1, 3);
    w.pass(Duration::from_secs(1));
    let untold = told(&observer).iter().map(|r| r.untold).sum::<u64>();
    assert_eq!(untold, 1000 - 64 + 3);
    assert_eq!(w.iommu.storm(IOMMU).unwrap().rung, Rung::Log);
    assert!(w.board.now() > portcullis::Time(0));
}
