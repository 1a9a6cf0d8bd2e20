//! Devices and IOMMUs that do not answer, and resets.

use crate::common::{hardware::DEVICE_TIMEOUT, *};
use portcullis::error::{AlreadyAnswered, AttachError, SyncError};
use portcullis::{At, Code, Config, Deferred, DeviceId, FaultKind, Platform, Response, Scope, SourceId};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

fn at(n: u32) -> At {
    At { source: SourceId(n), pasid: None }
}

#[test]
fn a_device_whose_tlb_is_dead_is_cut_off_and_the_neighbour_synced_after_one_timeout() {
    let w = World::new();
    let (dead, alive) = (w.device(1), w.device(2));
    let dom = w.served(&dead);
    let _a = w.attach(&dom, &dead);
    let _b = w.attach(&dom, &alive);
    let observer = w.iommu.observe(Scope::Device(dead.id()), 8).unwrap();
    let iova = w.map(&dom, 0x40_0000);
    w.hw.state().dead.insert(SourceId(1));
    let frames = w.board.frames();
    let start = w.board.now();
    let mut gone = dom.unmapping();
    gone.unmap(iova, 0x1000).unwrap();
    w.hw.take_log();
    gone.sync(&cx()).expect("the IOMMU refuses what the device translates");
    let took = w.board.now().since(start);
    assert!(took >= DEVICE_TIMEOUT && took < DEVICE_TIMEOUT + Duration::from_secs(1), "{took:?}");
    let calls: Vec<Call> = w.hw.take_log();
    let cut = calls.iter().position(|c| *c == Call::CutOff(SourceId(1))).expect("cut off");
    let asks = |c: &Call| if let Call::Submit { ats, .. } = c { Some(*ats) } else { None };
    assert_eq!(calls[..cut].iter().filter_map(asks).collect::<Vec<_>>(), [2]);
    assert_eq!(calls[cut..].iter().filter_map(asks).collect::<Vec<_>>(), [1], "not asked again");
    assert!(w.board.frames() <= frames);
    assert!(dead.is_quarantined() && !alive.is_quarantined());
    assert_eq!(w.hw.entry(at(1)), None);
    assert!(w.hw.entry(at(2)).is_some());
    assert_eq!(observer.try_next().map(|r| r.kind), Some(FaultKind::Quarantine));
    let refused = w.iommu.attach(&cx(), &dom, &dead, pasid(1), data()).err();
    assert_eq!(refused, Some(AttachError::Quarantined(DeviceId(1))));
    let iova = w.map(&dom, 0x40_0000);
    let mut gone = dom.unmapping();
    gone.unmap(iova, 0x1000).unwrap();
    let start = w.board.now();
    gone.sync(&cx()).unwrap();
    assert!(w.board.now().since(start) < Duration::from_secs(1), "nobody waits for it again");
}

#[test]
fn no_sync_leaves_a_suspect_out_before_it_is_cut_off() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let _a = w.attach(&dom, &d);
    w.map(&dom, 0x1000);
    w.map(&dom, 0x2000);
    w.hw.state().dead.insert(SourceId(1));
    let mut one = dom.unmapping();
    one.unmap(0x1000, 0x1000).unwrap();
    let mut one = one.start_sync();
    assert!(one.step().is_pending());
    w.board.advance(w.board.now() + DEVICE_TIMEOUT);
    // The time-out is seen, and the cut-off finds no room.
    w.hw.state().full = 1;
    assert!(one.step().is_pending());
    assert!(d.is_quarantined() && w.hw.entry(at(1)).is_some(), "marked, and not cut off yet");
    drop(one);
    w.hw.take_log();
    let mut two = dom.unmapping();
    two.unmap(0x2000, 0x1000).unwrap();
    two.sync(&cx()).unwrap();
    let log = w.hw.take_log();
    assert_eq!(log[0], Call::CutOff(SourceId(1)), "whoever comes next cuts it off first");
    assert!(matches!(log[1], Call::Submit { ats: 0, .. }));
}

#[test]
fn a_quarantine_answers_what_the_device_waits_for() {
    let w = World::with(Config { group_deadline: None, ..Config::default() });
    let d = w.device(1);
    let kept: Arc<Mutex<Vec<Deferred<Board>>>> = Arc::default();
    let keeps = kept.clone();
    let dom = w.resolved_by(&d, move |_, _, g| keeps.lock().unwrap().push(g.defer()));
    let _a = w.attach(&dom, &d);
    let iova = w.map(&dom, 0x1000);
    w.sends(&[last(1, 1)]);
    w.work();
    w.hw.state().dead.insert(SourceId(1));
    let mut gone = dom.unmapping();
    gone.unmap(iova, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Invalid)]);
    let late = kept.lock().unwrap().pop().unwrap();
    assert_eq!(late.respond(Response::Success), Err(AlreadyAnswered));
    w.sends(&[last(1, 2)]);
    assert_eq!(w.hw.answers()[1..], [sent(1, 2, Code::Invalid)]);
}

#[test]
fn a_dead_device_is_detached_and_reset_brings_it_back() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.served(&d);
    let a = w.attach(&dom, &d);
    w.hw.state().dead.insert(SourceId(1));
    let gone = a.begin_detach(&cx());
    assert!(gone.is_gone() && !gone.lost());
    assert!(d.is_quarantined());
    w.hw.state().dead.clear();
    d.reset(&cx()).unwrap();
    assert!(!d.is_quarantined());
    let _a = w.attach(&dom, &d);
    w.sends(&[last(1, 1)]);
    w.work();
    assert_eq!(w.hw.answers(), [sent(1, 1, Code::Success)]);
}

#[test]
fn aborted_work_is_submitted_again() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    w.hw.state().aborts = 3;
    let _a = w.attach(&dom, &d);
    let commits = w.hw.take_log().iter().filter(|c| matches!(c, Call::Commit(..))).count();
    assert_eq!(commits, 4);
    assert!(w.hw.state().images.is_empty());
    let iova = w.map(&dom, 0x1000);
    w.hw.state().aborts = 2;
    let mut gone = dom.unmapping();
    gone.unmap(iova, 0x1000).unwrap();
    gone.sync(&cx()).unwrap();
    assert_eq!(w.hw.take_log().iter().filter(|c| matches!(c, Call::Submit { .. })).count(), 3);
}

#[test]
fn hardware_that_never_completes_is_lost_after_its_deadline() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    let a = w.attach(&dom, &d);
    let iova = w.map(&dom, 0x1000);
    let observer = w.iommu.observe(Scope::Instance(IOMMU), 8).unwrap();
    w.hw.state().hold = true;
    let start = w.board.now();
    let mut gone = dom.unmapping();
    gone.unmap(iova, 0x1000).unwrap();
    assert!(matches!(gone.sync(&cx()), Err(SyncError::Lost(_))));
    let took = w.board.now().since(start);
    let deadline = Config::default().hardware_deadline;
    assert!(took >= deadline && took < deadline + Duration::from_secs(1), "{took:?}");
    assert_eq!(observer.try_next().map(|r| r.kind), Some(FaultKind::InstanceLost));
    let at_once = w.board.now();
    assert!(matches!(w.iommu.attach(&cx(), &dom, &d, pasid(1), data()), Err(AttachError::Lost(_))));
    let ended = a.begin_detach(&cx());
    assert!(ended.lost() && ended.is_gone());
    assert_eq!(w.board.now(), at_once, "nobody waits for it any more");
    let frames = w.board.frames();
    drop(dom);
    assert_eq!(w.board.frames(), frames, "it may walk the tables for ever");
}

#[test]
fn a_reset_makes_outstanding_groups_void_and_brings_attachments_back() {
    let w = World::new();
    let d = w.device(1);
    let kept: Arc<Mutex<Vec<Deferred<Board>>>> = Arc::default();
    let keeps = kept.clone();
    let dom = w.resolved_by(&d, move |_, _, g| keeps.lock().unwrap().push(g.defer()));
    let _a = w.attach(&dom, &d);
    let _b = w.iommu.attach(&cx(), &dom, &d, pasid(3), data()).unwrap();
    let before = (w.hw.entry(at(1)), w.hw.entry(At { source: SourceId(1), pasid: pasid(3) }));
    w.sends(&[last(1, 1), first(1, 2, 0x1000)]);
    w.work();
    // The second one has no attachment, and would be refused at once.
    let astray = portcullis::driver::PageRequest { pasid: pasid(9), ..last(1, 4) };
    w.hw.state().in_fabric = vec![last(1, 3), astray];
    w.hw.take_log();
    d.reset(&cx()).unwrap();
    assert!(w.hw.answers().is_empty(), "no answer goes out, also not for what came out of the fabric");
    assert_eq!(kept.lock().unwrap().pop().unwrap().respond(Response::Success), Err(AlreadyAnswered));
    let c = d.counters();
    assert_eq!((c.void, c.partials_dropped, c.groups), (3, 1, 3));
    assert_eq!((w.hw.entry(at(1)), w.hw.entry(At { source: SourceId(1), pasid: pasid(3) })), before);
    let log = w.hw.take_log();
    let find = |c: Call| log.iter().position(|x| *x == c).unwrap_or_else(|| panic!("{c:?} in {log:?}"));
    let order = [
        find(Call::CutOff(SourceId(1))),
        find(Call::Reset(SourceId(1))),
        find(Call::Drain(at(1))),
        find(Call::Commit(at(1), before.0.unwrap())),
        find(Call::Pasid(SourceId(1), true)),
        find(Call::Ats(SourceId(1), true)),
        find(Call::Pri(SourceId(1), Some(8))),
    ];
    assert!(order.is_sorted(), "{log:?}");
    w.sends(&(1..=8).map(|i| last(1, i)).collect::<Vec<_>>());
    w.work();
    assert_eq!(kept.lock().unwrap().len(), 8, "its whole share is its own again");
}

#[test]
fn nothing_is_attached_while_a_device_is_reset() {
    let w = World::new();
    let d = w.device(1);
    let dom = w.plain(&d);
    w.hw.state().hold = true;
    let (iommu, hw, board) = (w.iommu.clone(), w.hw.clone(), w.board.clone());
    let (late, other) = (dom.clone(), d.clone());
    let mut tried = false;
    w.board.on_wait(Some(Box::new(move || {
        if core::mem::replace(&mut tried, true) {
            return;
        }
        // Another CPU tries to attach, for a while, and gives up.
        let mut op = iommu.start_attach(&late, &other, None, data());
        for _ in 0..3 {
            assert!(op.step().is_pending(), "it waits for the reset");
            assert!(hw.entry(at(1)).is_none());
        }
        assert!(!hw.state().log.iter().any(|c| matches!(c, Call::Commit(..))));
        hw.state().hold = false;
        board.on_wait(None);
    })));
    d.reset(&cx()).unwrap();
    assert!(!w.hw.state().hold, "the attach was tried");
    let _a = w.attach(&dom, &d);
    assert!(w.hw.entry(at(1)).is_some());
}
